"""The caller's own end and what else its program does: forks, signals, timers, threads.

Laws: however the caller ends, its workers, its warden and what they started are gone soon after,
and nothing is said on stderr that the program itself does not say. Whatever a program does with its
children, signals, threads and descriptors, calls give right results, and nothing is left behind.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess

import pytest
from faults import gone
from programs import Program, prompt, until

# -- the end of the caller ----------------------------------------------------------------------

ENDING = """
flags = dsm.zeros(3, int)

@dsm.parallel(workers=2)
def kernel(flags):
    helper = subprocess.Popen(["sleep", "600"])
    flags[dsm.rank()] = helper.pid
    if dsm.rank() == 0:
        dsm.barrier()
    time.sleep(600)

@dsm.parallel(workers=2)
def leave_helpers(flags):
    flags[dsm.rank()] = subprocess.Popen(["sleep", "600"]).pid

def watch():
    while not flags[:2].all():
        time.sleep(0.001)
    tell(pids=sorted(process.team_pids()) + flags[:2].tolist(), child=child)

held = dsm.zeros(1 << 22)
child = 0
thread = threading.Thread(target=watch)
if "grandchild" in sys.argv:
    # A fork that no hook of Python's hears of: it holds every descriptor that there is, for long.
    roll_call()
    libc = ctypes.PyDLL(None)
    child = libc.fork()
    if child == 0:
        libc.sleep(600 if "execv" in sys.argv else 2)
        libc._exit(0)
thread.start()
if "region" in sys.argv:
    kernel(flags)
if "beside" in sys.argv:
    threading.Thread(target=kernel, args=(flags,), daemon=True).start()
else:
    leave_helpers(flags)
thread.join()
if "wait" in sys.argv:
    time.sleep(600)
if "_exit" in sys.argv:
    os._exit(0)
if "execv" in sys.argv:
    os.execv("/bin/sleep", ["sleep", "600"])
if "raise" in sys.argv:
    raise KeyError("mine")
if "atexit" in sys.argv:
    import atexit
    atexit.register(lambda: tell(ranks=roll_call()))
if "struck" in sys.argv:
    signal.alarm(1)
    time.sleep(600)
"""


@pytest.mark.parametrize(
    ("signum", "place"),
    [
        (signal.SIGKILL, "region"),
        (signal.SIGKILL, "wait"),
        (signal.SIGKILL, "region grandchild"),
        (signal.SIGTERM, "region"),
        (signal.SIGTERM, "wait"),
        (signal.SIGHUP, "region"),
    ],
)
def test_nothing_outlives_a_caller_that_is_killed(signum, place):
    with Program(ENDING, *place.split()) as program:
        pids = program.hear()["pids"]
        assert len(pids) == 5
        with prompt(5.0):  # seconds; the promise is 1, on a quiet machine
            program.send(signum)
            until(lambda: all(map(gone, pids)))
        assert program.end() == ""


def test_nothing_outlives_a_process_group_that_is_killed():
    with Program(ENDING, "region") as program:
        pids = program.hear()["pids"]
        with prompt(5.0):
            os.killpg(program.process.pid, signal.SIGKILL)
            until(lambda: all(map(gone, pids)))
        assert program.end() == ""


def test_nothing_outlives_a_terminal_that_is_closed():
    with Program(ENDING, "region", terminal=True) as program:
        pids = [*program.hear()["pids"], program.pid]
        with prompt(5.0):
            program.hang_up()
            until(lambda: all(map(gone, pids)))
        assert program.end() == ""


ENDINGS = {
    "normally": "",
    "_exit": "",
    "raise": "KeyError: 'mine'",
    "atexit": "",
    "beside": "",
    "beside _exit": "",
    "struck": "",
}


@pytest.mark.parametrize("how", ENDINGS, ids=lambda how: how.replace(" ", "_"))
def test_nothing_outlives_a_caller_that_ends(how):
    with Program(ENDING, *how.split()) as program:
        pids = program.hear()["pids"]
        if how == "atexit":
            assert program.hear() == {"ranks": [0, 1]}
        errors = program.end()
        with prompt(5.0):
            until(lambda: all(map(gone, pids)))
        assert errors.strip().endswith(ENDINGS[how])
        assert errors == "" or ENDINGS[how]


@pytest.mark.parametrize("how", ["", "beside", "grandchild", "grandchild beside"])
def test_nothing_outlives_a_caller_that_becomes_another_program(how):
    with Program(ENDING, "execv", *how.split()) as program:
        heard = program.hear()
        try:
            with prompt(5.0):
                until(lambda: all(map(gone, heard["pids"])))
        finally:
            program.send(signal.SIGKILL)
            if heard["child"]:
                os.kill(heard["child"], signal.SIGKILL)
        assert program.end() == ""


# -- what else a program does -------------------------------------------------------------------

FORKS = """
import atexit

data = dsm.zeros(1000)
large = dsm.zeros(1 << 18)

@dsm.parallel(workers=2)
def add(a):
    for s in dsm.pslices(len(a)):
        a[s] += 1

def check():
    small, plain = dsm.zeros(500), np.zeros(500)
    for a in small, plain:
        add(a)
        assert (a == 1).all()

def ends(child, status=0):
    \"\"\"What a fork does; it ends with this status.\"\"\"
    pid = os.fork()
    if pid == 0:
        try:
            child()
        except SystemExit as error:
            raise
        except BaseException as error:
            if status != 1:
                import traceback
                traceback.print_exc()
            os._exit(1)
        os._exit(0)
    found = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert found == status, (child, found)
    check()

def free():
    global data, large
    del data, large
    gc.collect()
    dsm.zeros(1 << 18)

def fail():
    raise KeyError("mine")

def call_and_free():
    check()
    free()
    check()

def fork_again():
    ends(check)

check()
ends(lambda: None)
ends(check)
ends(free)
ends(call_and_free)
ends(fail, 1)
ends(fork_again)
ends(lambda: sys.exit(3), 3)
assert not data.any() and not large.any()
tell(forks=True)

# While another thread is in a region, over and over.
stop = threading.Event()
errors = []
def call():
    try:
        while not stop.is_set():
            check()
            add(np.zeros(100_000))
    except BaseException as error:
        errors.append(repr(error))
threads = [threading.Thread(target=call) for _ in range(2)]
for thread in threads:
    thread.start()
for number in range(12):
    ends(check if number % 3 == 0 else lambda: None)
stop.set()
for thread in threads:
    thread.join()
tell(errors=errors)

# Inside a kernel.
@dsm.parallel(workers=2)
def fork(way, flags):
    total = 0
    for i in dsm.prange(20, schedule="dynamic"):
        pid = os.fork() if i == 7 or way == "every" else -1
        if pid == 0:
            if way == "exit":
                sys.exit(4)
            if way == "raise":
                sys.stderr = open(os.devnull, "w")
                raise KeyError("mine")
            if way == "_exit":
                os._exit(4)
            continue  # as if it were the worker itself
        if pid > 0:
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            flags[i] = code
        total += 1
    dsm.barrier()
    return total

for way, code in (("exit", 4), ("raise", 1), ("_exit", 4), ("on", 1), ("every", 1)):
    flags = dsm.zeros(20, int)
    sys.stderr.flush()
    saved = os.dup(2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    try:
        counts = fork(way, flags)
    finally:
        os.dup2(saved, 2)
        os.close(saved)
    assert sum(counts) == 20, (way, counts)
    assert flags[7] == code, (way, flags)
    check()
tell(kernels=True, settled=settled())
"""


def test_forks_everywhere():
    """The child lives on, exits, calls, frees, raises, forks; beside regions, inside of kernels."""
    with Program(FORKS) as program:
        assert program.hear() == {"forks": True}
        assert program.hear() == {"errors": []}
        assert program.hear() == {"kernels": True, "settled": True}
        assert program.end() == ""
        assert program.process.returncode == 0


CHILDREN = """
@dsm.parallel(workers=2)
def die():
    if dsm.rank():
        os._exit(7)
    dsm.barrier()

def deaths(what):
    for _ in range(2):
        try:
            die()
        except dsm.WorkerDied as error:
            assert (error.rank, error.exitcode) == (1, 7)
        else:
            raise AssertionError
        assert roll_call() == [0, 1]
    tell(what=what)

def reap(*_):
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass

def kill_warden():
    warden = process._line.pid
    os.kill(warden, signal.SIGKILL)
    for _ in range(3):
        try:
            roll_call()
        except dsm.WorkerDied:
            break
        time.sleep(0.01)
    assert roll_call() == [0, 1] and process._line.pid != warden

signal.signal(signal.SIGCHLD, signal.SIG_IGN)
deaths("ignored")
kill_warden()
process.shutdown()
signal.signal(signal.SIGCHLD, reap)
deaths("handler")
kill_warden()
process.shutdown()
deaths("handler, new team")
stop = threading.Event()
def loop():
    while not stop.wait(0.001):
        reap()
thread = threading.Thread(target=loop)
thread.start()
kill_warden()
deaths("loop")
process.shutdown()
stop.set()
thread.join()
signal.signal(signal.SIGCHLD, signal.SIG_DFL)

# The team is started by a thread that ends, and every call comes from one that does.
ranks = []
for _ in range(3):
    thread = threading.Thread(target=lambda: ranks.append(roll_call()))
    thread.start()
    thread.join()
    time.sleep(0.05)  # for the kernel to do to its children what it would
assert ranks == [[0, 1]] * 3, ranks
pids = process.team_pids()
assert roll_call() == [0, 1] and pids == process.team_pids()
tell(what="thread", settled=settled(), children=len(children(os.getpid())))
"""


def test_whatever_is_done_with_sigchld_children_and_threads():
    with Program(CHILDREN) as program:
        for what in ("ignored", "handler", "handler, new team", "loop"):
            assert program.hear() == {"what": what}
        assert program.hear() == {"what": "thread", "settled": True, "children": 1}
        assert program.end() == ""


TIMERS = """
import faulthandler
faulthandler.enable()
ticks = late = 0

class Late(Exception):
    pass

def tick(*_):
    global ticks
    ticks += 1

@dsm.parallel(workers=2)
def work(a, b):
    for s in dsm.pslices(len(a), schedule="dynamic,1000"):
        a[s] += b[s]
    return np.ones(20_000)

def check():
    n = 1 << 21  # the array takes longer to reserve than the timer's period
    a, plain = dsm.zeros(n), np.ones(20_000)
    results = work(a[:20_000], plain)
    assert (a[:20_000] == 1).all() and all(r.sum() == 20_000 for r in results)

read, write = os.pipe()
os.set_blocking(write, False)
os.set_blocking(read, False)
check()
for number, timer in ((signal.SIGALRM, signal.ITIMER_REAL), (signal.SIGPROF, signal.ITIMER_PROF)):
    signal.signal(number, tick)
    before = ticks
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    signal.setitimer(timer, 0.001, 0.001)
    for _ in range(15):
        check()
    process.shutdown()
    for _ in range(5):
        check()
    signal.setitimer(timer, 0)
    signal.set_wakeup_fd(-1)
    assert ticks > before + 5, "no tick"
    assert number in set(os.read(read, 1 << 16))
    tell(timer=int(timer))

# A handler that raises: at any moment, and the exception is the one that comes.
armed = False
def strike(*_):
    global armed
    if armed:
        armed = False
        raise Late

signal.signal(signal.SIGALRM, strike)
signal.setitimer(signal.ITIMER_REAL, 0.0073, 0.0073)
for _ in range(60):
    armed = True
    try:
        check()
        armed = False
    except Late:
        late += 1
signal.setitimer(signal.ITIMER_REAL, 0)
armed = False
assert roll_call() == [0, 1]
tell(late=late > 5, settled=settled())

# The user's own tracing, and a thread that calls while the main one is signalled.
seen = []
def trace(frame, event, arg):
    seen.append(event)
    return trace
threading.settrace(trace)
sys.settrace(trace)
roll_call()
thread = threading.Thread(target=roll_call)
thread.start()
thread.join()
sys.settrace(None)
threading.settrace(None)
signal.signal(signal.SIGUSR1, tick)
before = ticks
found = []
thread = threading.Thread(target=lambda: [found.append(roll_call()) for _ in range(200)])
thread.start()
while thread.is_alive():
    signal.pthread_kill(thread.ident, signal.SIGUSR1)
    time.sleep(0.0005)
thread.join()
assert found == [[0, 1]] * 200 and ticks > before
tell(traced=len(seen) > 20)
"""


def test_timers_handlers_that_raise_tracing_and_signals_to_threads():
    with Program(TIMERS) as program:
        assert program.hear() == {"timer": int(signal.ITIMER_REAL)}
        assert program.hear() == {"timer": int(signal.ITIMER_PROF)}
        assert program.hear() == {"late": True, "settled": True}
        assert program.hear() == {"traced": True}
        assert program.end() == ""


OPENMP = """
#include <omp.h>
double sum(int n) {
    double s = 0;
    #pragma omp parallel for reduction(+:s) num_threads(4)
    for (int i = 0; i < n; i++) s += i;
    return s;
}
"""


def test_a_caller_with_threads_of_openmp_and_blas(tmp_path):
    """They are there when the team starts, and when the caller forks or ends."""
    library = tmp_path / "sum.so"
    if shutil.which("gcc"):
        (tmp_path / "sum.c").write_text(OPENMP)
        subprocess.run(
            ["gcc", "-shared", "-fPIC", "-fopenmp", "-o", library, tmp_path / "sum.c"],
            check=True,
            capture_output=True,
        )
    body = """
    a = np.ones((600, 600))
    assert (a @ a == 600).all()
    native = ctypes.CDLL(sys.argv[1]) if os.path.exists(sys.argv[1]) else None
    if native is not None:
        native.sum.restype = ctypes.c_double
        assert native.sum(1000) == 499500

    @dsm.parallel(workers=2, blas_threads=2)
    def both(a, path):
        import ctypes, os
        assert (a @ a == 600).all()
        if os.path.exists(path):
            native = ctypes.CDLL(path)
            native.sum.restype = ctypes.c_double
            assert native.sum(1000) == 499500
        return dsm.rank()

    shared = dsm.array(a)
    for _ in range(3):
        assert both(shared, sys.argv[1]) == [0, 1]
        assert (a @ a == 600).all()
        assert native is None or native.sum(1000) == 499500
    pid = os.fork()
    if pid == 0:
        os._exit(0 if roll_call() == [0, 1] else 1)
    tell(child=os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), settled=settled())
    """
    with Program(body, str(library)) as program:
        assert program.hear() == {"child": 0, "settled": True}
        assert program.end() == ""


# -- a team that cannot start -------------------------------------------------------------------


def test_a_warden_that_cannot_start_is_an_error_of_ours_and_leaves_no_zombie():
    body = """
    right, sys.executable = sys.executable, "/bin/false"
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        try:
            roll_call()
        except dsm.DSMError as error:
            tell(text=len(str(error)) > 20)
    left = children(os.getpid())
    tell(children=len(left), lost=len(os.listdir("/proc/self/fd")) > before)
    sys.executable = right
    tell(ranks=roll_call())
    """
    with Program(body) as program:
        for _ in range(3):
            assert program.hear() == {"text": True}
        assert program.hear() == {"children": 0, "lost": False}
        assert program.hear() == {"ranks": [0, 1]}
        assert program.end() == ""


@pytest.mark.parametrize("path", ["/no/such/python", "/dev/null"])
def test_an_executable_that_cannot_be_run_is_named(path):
    body = """
    sys.executable = sys.argv[1]
    try:
        roll_call()
    except dsm.DSMError as error:
        tell(text=str(error))
    """
    with Program(body, path) as program:
        text = program.hear()["text"]
        assert path in text
        assert "sys.executable" in text
        assert program.end() == ""


def test_descriptors_that_run_out_at_any_step_are_all_given_back():
    body = """
    import resource
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    roll_call()
    process.shutdown()
    gc.collect()
    before = set(os.listdir("/proc/self/fd"))
    named = 0
    for spare in range(24):
        free = os.dup(0)
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free + spare, hard))
        try:
            roll_call()
        except dsm.DSMError as error:
            named += "descriptor" in str(error)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        process.shutdown()
        gc.collect()
        now = set(os.listdir("/proc/self/fd"))
        if now != before or children(os.getpid()):
            tell(spare=spare, left=len(now - before), children=len(children(os.getpid())))
    tell(named=named)
    """
    with Program(body) as program:
        assert program.hear()["named"] >= 10
        assert program.end() == ""


def test_a_child_that_is_forked_while_the_warden_comes_up_does_not_hold_it():
    body = """
    roll_call()
    process.shutdown()
    for delay in (0.005, 0.02, 0.05):
        thread = threading.Thread(target=roll_call)
        thread.start()
        time.sleep(delay)
        pid = os.fork()
        if pid == 0:
            time.sleep(60)
        thread.join()
        began = time.monotonic()
        process.shutdown()
        took = time.monotonic() - began
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        tell(delay=delay, prompt=took < 2.0)
    """
    with Program(body) as program:
        for delay in (0.005, 0.02, 0.05):
            assert program.hear() == {"delay": delay, "prompt": True}
        assert program.end() == ""


def test_few_descriptors_are_an_error_and_not_the_end_of_the_warden():
    body = """
    import resource
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    try:
        roll_call.using(workers=60)()
    except (dsm.DSMError, OSError) as error:
        tell(kind=type(error).__name__, died=isinstance(error, dsm.WorkerDied))
    tell(ranks=roll_call())
    """
    with Program(body) as program:
        assert program.hear()["died"] is False
        assert program.hear() == {"ranks": [0, 1]}
        program.end()
