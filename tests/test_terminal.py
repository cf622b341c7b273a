"""Ctrl-C and Ctrl-Z: of a real terminal, of a notebook, at random moments, at every call.

Laws: exactly one KeyboardInterrupt comes in the caller, within a second while Python or dsmfor runs
in the workers and two when C code holds on to them; nothing else is said; the next call has a full
team; no process, descriptor or crew is lost. While the caller is stopped its workers are, too, and
no timeout runs.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from faults import state
from programs import Program, children, prompt, until

# -- Ctrl-C -------------------------------------------------------------------------------------

STRUCK = """
flags = dsm.zeros(4, int)
large = np.zeros(8 << 20)
caller = os.getpid()

class Slow:
    def __init__(self, where):
        self.where = where
    def __reduce__(self):
        if self.where == "pickling" and os.getpid() != caller:
            flags[0] = 1
            time.sleep(60)
        return restore, (self.where,)

def restore(where):
    if where == "unpickling" and os.getpid() != caller:
        flags[0] = 1
        time.sleep(60)
    if where == "unpickling a large result" and os.getpid() == caller:
        flags[0] = 1
        while True:
            pass
    return Slow(where)

@dsm.parallel(workers=2)
def kernel(flags, place, slow):
    rank = dsm.rank()
    if place in ("pickling", "unpickling a large result"):
        return Slow(place), bytes(1 << 20)
    if place == "C code":
        flags[rank] = 1
        import ctypes
        lock = ctypes.PyDLL(None).pthread_mutex_lock  # holds the GIL, and no signal ends it
        mutex = ctypes.create_string_buffer(256)
        lock(mutex)
        lock(mutex)
    if place == "lock":
        with dsm.critical():
            flags[0] = 1
            time.sleep(60)
    if place == "chunk":
        for i in dsm.prange(10, schedule="dynamic"):
            flags[rank] = 1
            time.sleep(60)
    flags[rank] = 1
    if rank == 0 and place == "barrier":
        dsm.barrier()
    while place == "computing":
        pass
    time.sleep(60)

@dsm.parallel(workers=2)
def touch(a):
    a[dsm.rank()] += 1

@dsm.parallel(workers=2)
def last_long(flags):
    dsm.barrier()
    while not flags[3]:
        time.sleep(0.001)
    return dsm.rank()

def strike(place):
    if place == "start":
        process.shutdown()
        when(lambda: children(caller), at=place)
        roll_call()
    elif place == "staging":
        touch(large)
        tell(at=place)
        while True:
            touch(large)
    elif place == "creating":
        tell(at=place)
        while True:
            dsm.zeros(8 << 20)
    elif place == "beside another thread":
        flags[3] = 0
        found = []
        thread = threading.Thread(target=lambda: found.append(last_long(flags)))
        thread.start()
        try:
            when(lambda: process._busy() and flags[0], at=place)
            kernel(flags, "sleeping", None)
        finally:
            flags[3] = 1
            thread.join()
            assert found == [[0, 1]], found
    else:
        when(lambda: flags[0], at=place)
        kernel(flags, place, Slow(place))

roll_call()
def descriptors():
    process.housekeep()
    return len(os.listdir("/proc/self/fd"))

roll_call()
for place in sys.argv[1:]:
    flags[:] = 0
    before = descriptors()
    caught = 0
    try:
        try:
            strike(place)
        except KeyboardInterrupt:
            caught += 1
            tell(raised=True)
        for _ in range(20):
            assert roll_call() == [0, 1]
    except KeyboardInterrupt:
        caught += 1
    del _
    more = max(0, descriptors() - before - 8)
    tell(caught=caught, ranks=roll_call(), settled=settled(), more=more)
process.shutdown()
links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
files = [os.readlink(link) for link in links if os.path.islink(link)]
tell(descriptors=sum(file.startswith(("socket", "anon_inode")) for file in files))
"""

PLACES = [
    "computing",
    "sleeping",
    "barrier",
    "lock",
    "chunk",
    "unpickling",
    "pickling",
    "unpickling a large result",
    "staging",
    "creating",
    "beside another thread",
    "start",
    "C code",
]


@pytest.mark.parametrize("way", ["in a terminal", "to the caller alone"])
def test_ctrl_c_once(way):
    terminal = way == "in a terminal"
    with Program(STRUCK, *PLACES, terminal=terminal) as program:
        for place in PLACES:
            assert program.hear() == {"at": place}
            with prompt(6.0):  # seconds; the promise is 1, and 2 for C code, on a quiet machine
                if terminal:
                    program.press("C")
                else:
                    program.send(signal.SIGINT)
                assert program.hear() == {"raised": True}
            facts = program.hear()
            assert facts == {"caught": 1, "ranks": [0, 1], "settled": True, "more": 0}, place
        assert program.hear() == {"descriptors": 0}
        assert program.end() == ""
        assert program.process.returncode == 0


DEAF = """
flags = dsm.zeros(4, int)

@dsm.parallel(workers=2)
def kernel(flags, raises):
    flags[dsm.rank()] = 1
    if raises and dsm.rank() == 0:
        while not flags[1]:
            time.sleep(0.001)
        raise ValueError("first")
    while True:
        try:
            time.sleep(60)
        except BaseException:
            flags[2] = 1

roll_call()
for raises in (False, False, True):
    flags[:] = 0
    when(lambda: flags[1], running=True)
    when(lambda: flags[2], deaf=True)
    caught = 0
    try:
        try:
            kernel(flags, raises)
        except KeyboardInterrupt:
            caught += 1
            tell(raised=True)
        for _ in range(20):
            assert roll_call() == [0, 1]
    except KeyboardInterrupt:
        caught += 1
    tell(caught=caught, ranks=roll_call(), settled=settled())
"""


def test_ctrl_c_and_kernels_that_do_not_stop():
    """Once: after the grace. Twice: at once. While the region fails by itself: at once, too."""
    usable = {"caught": 1, "ranks": [0, 1], "settled": True}
    with Program(DEAF) as program:
        assert program.hear() == {"running": True}
        with prompt(6.0):
            program.send(signal.SIGINT)
            assert program.hear() == {"deaf": True}
            assert program.hear() == {"raised": True}
        assert program.hear() == usable
        assert program.hear() == {"running": True}
        program.send(signal.SIGINT)
        assert program.hear() == {"deaf": True}
        with prompt(0.7):
            program.send(signal.SIGINT)
            assert program.hear() == {"raised": True}
        assert program.hear() == usable
        assert program.hear() == {"running": True}
        assert program.hear() == {"deaf": True}  # in the grace of a kernel that has raised
        with prompt(0.7):
            program.send(signal.SIGINT)
            assert program.hear() == {"raised": True}
        assert program.hear() == usable
        assert program.end() == ""


def test_ctrl_c_while_the_team_is_shut_down_at_exit_says_nothing():
    body = """
    roll_call()
    tell(pids=sorted(process.team_pids()))
    stop = process._line.stop
    def struck(**options):
        signal.raise_signal(signal.SIGINT)
        stop(**options)
    process._line.stop = struck
    """
    with Program(body) as program:
        pids = program.hear()["pids"]
        assert program.end() == ""
        assert program.process.returncode == 0
        until(lambda: all(state(pid) in "ZX" for pid in pids))


INTERRUPTER = """
import os, random, signal, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
rng = random.Random(3)
for _ in range(150):
    time.sleep(0.002 + rng.random() * 0.02)
    os.kill(int(sys.argv[1]), signal.SIGINT)
"""


@pytest.mark.parametrize("what", ["regions", "arrays and letters"])
def test_ctrl_c_at_random_moments(what):
    """No crew, descriptor, worker or memory is lost; nothing is said; every call is right."""
    body = """
    @dsm.parallel(workers=2)
    def add(a, b, text):
        for s in dsm.pslices(len(a)):
            a[s] += b[s]
        return text

    plain = np.ones(2000)
    number = 0

    def work():
        global number
        number += 1
        if sys.argv[2] == "regions":
            assert roll_call() == [0, 1]
            return
        small, large = dsm.zeros(2000), dsm.zeros(1 << 18)
        large[:3] = 1
        text = bytes(200_000) if number % 5 == 0 else b""
        os.environ["NUMBER"] = str(number)
        assert add(small, plain, text) == [text] * 2
        assert (small == 1).all()
        assert add(large, large, b"") == [b""] * 2
        assert large.sum() == 6
        del small, large

    armed = False
    def strike(*_):
        global armed
        if armed:
            armed = False
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, strike)
    work()
    work()
    child = subprocess.Popen([sys.executable, "-c", sys.argv[1], str(os.getpid())])
    peek = os.WEXITED | os.WNOHANG | os.WNOWAIT  # an interrupted Popen.poll may keep its lock
    caught = 0
    while True:
        try:
            armed = True
            while os.waitid(os.P_PID, child.pid, peek) is None:
                work()
            armed = False
            break
        except KeyboardInterrupt:
            caught += 1
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    child.wait()
    work()
    gc.collect()
    facts = dict(settled=settled(), busy=len(process._busy()), team=len(process.team_pids()))
    process.shutdown()
    from dsmfor import arenas, segments, staging
    arenas.drop_spares()
    left = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
            if os.path.islink(f"/proc/self/fd/{fd}")]
    facts["left"] = [to for to in left if to.startswith(("/memfd", "socket", "anon_inode"))]
    facts["segments"] = len(segments.live())
    tell(caught=caught, **facts)
    """
    with Program(body, INTERRUPTER, what) as program:
        facts = program.hear()
        assert facts.pop("caught") > 20
        assert facts == {"settled": True, "busy": 0, "team": 3, "left": [], "segments": 0}
        assert program.end() == ""


EVERYWHERE = """
import random
from pathlib import Path
from dsmfor import arenas, staging

PACKAGE = str(Path(dsm.__file__).parent)
plain = np.ones(1000)
seen = struck = 0

def watch(frame, event, what):
    # Where Python looks at signals: as a function of Python's begins, after one of C's has ended.
    global seen
    if event in ("call", "c_return") and frame.f_code.co_filename.startswith(PACKAGE):
        if frame.f_code.co_name != "<genexpr>":  # one that is closed is told as a call, and is none
            seen += 1
            if seen == struck:
                sys.setprofile(None)
                signal.raise_signal(signal.SIGINT)

@dsm.parallel(workers=2)
def add(a, b, text):
    for s in dsm.pslices(len(a)):
        a[s] += b[0]
    return bytes(200_000)

def warm():
    assert roll_call() == [0, 1]

def letters():
    os.environ["NUMBER"] = str(seen + 1000 * struck)
    add(dsm.zeros(1 << 18), dsm.ones(10), bytes(200_000))
    add(plain, plain, b"")

def start():
    process.shutdown()
    warm()

def look():
    gc.collect()
    assert settled()
    staging.drop_spares()
    process.housekeep()
    arenas.drop_spares()
    return len(os.listdir("/proc/self/fd")), len(process.team_pids()), len(process._busy())

def run(action, number):
    global seen, struck
    seen, struck = 0, number
    sys.setprofile(watch)
    try:
        action()
    finally:
        sys.setprofile(None)

rng = random.Random(2026)
for action, many in ((warm, 1000), (letters, 30), (start, 5)):
    action()
    action()
    normal = look()
    run(action, 0)
    calls = seen
    lost = wrong = 0
    numbers = range(1, calls + 1)
    for number in numbers if calls <= many else sorted(rng.sample(numbers, many)):
        try:
            run(action, number)
            lost += seen >= number
        except KeyboardInterrupt:
            pass
        warm()
        now = look()
        wrong += now != normal
        if now != normal:
            tell(at=number, now=now, normal=normal)
            normal = now
    tell(action=action.__name__, calls=calls > 30, lost=lost, wrong=wrong)
"""


def test_ctrl_c_at_every_call_that_is_made():
    """In a warm region at each one, with letters and from the start at some, drawn with a seed."""
    with Program(EVERYWHERE) as program:
        for action in ("warm", "letters", "start"):
            facts = {"action": action, "calls": True, "lost": 0, "wrong": 0}
            assert program.hear() == facts
        assert program.end() == ""


# -- Ctrl-C in a notebook -----------------------------------------------------------------------


NOTEBOOK = """
import tempfile
from jupyter_client.manager import KernelManager

folder = tempfile.TemporaryDirectory()
os.environ |= {"IPYTHONDIR": folder.name, "JUPYTER_RUNTIME_DIR": folder.name}
kernel = KernelManager(kernel_name="python3", connection_file=folder.name + "/connection.json")
kernel.start_kernel()
client = kernel.client()
client.start_channels()
client.wait_for_ready(timeout=60)

def shown(number):
    while True:
        message = client.get_iopub_msg(timeout=30)
        if message["parent_header"].get("msg_id") != number:
            continue
        kind, content = message["msg_type"], message["content"]
        if kind == "status" and content["execution_state"] == "idle":
            return
        if kind == "stream":
            yield content["name"], content["text"].strip()
        elif kind == "error":
            yield "error", content["ename"]
        elif kind == "execute_result":
            yield "result", content["data"]["text/plain"]

((_, pid),) = shown(client.execute('''
import os, time, dsmfor as dsm

@dsm.parallel(workers=2)
def wait():
    dsm.barrier()
    if dsm.rank() == 0:
        print('running', flush=True)
    while True:
        pass

@dsm.parallel(workers=2)
def ranks():
    return dsm.rank()

os.getpid()
'''))
for interrupt in (kernel.interrupt_kernel, lambda: os.kill(int(pid), signal.SIGINT)) * 2:
    cell = shown(client.execute("wait()"))
    assert next(cell) == ("stdout", "running")
    interrupt()
    came = list(cell)
    tell(came=came, then=list(shown(client.execute("ranks()"))))
client.stop_channels()
kernel.shutdown_kernel(now=True)
"""


def test_the_interrupt_of_a_notebook():
    """Of the kernel's process group, as the button in Jupyter does, and of the kernel alone."""
    pytest.importorskip("jupyter_client")
    with Program(NOTEBOOK) as program:
        for _ in range(4):
            with prompt(10.0):
                assert program.hear() == {
                    "came": [["error", "KeyboardInterrupt"]],
                    "then": [["result", "[0, 1]"]],
                }
        program.end()


# -- Ctrl-Z -------------------------------------------------------------------------------------

STOPPED = """
flags = dsm.zeros(2, int)

@dsm.parallel(workers=2, timeout=2.5)
def count(flags):
    for _ in range(int(sys.argv[1])):
        flags[dsm.rank()] += 1
        time.sleep(0.01)
    dsm.barrier(timeout=2.5)
    return dsm.rank()

roll_call()
for _ in range(2):
    flags[:] = 0
    when(lambda: flags.all(), pid=os.getpid(), team=sorted(process.team_pids()))
    tell(ranks=count(flags))
    assert roll_call() == [0, 1]
"""


def seconds_of(pid: int) -> float:
    """Of the processor that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_workers_stop_and_go_on_with_their_caller():
    """By Ctrl-Z and fg, by SIGSTOP and SIGCONT; longer than the timeouts of region and barrier."""
    with Program(STOPPED.replace("int(sys.argv[1])", "100"), terminal=True) as program:
        for way in ("key", "signal"):
            facts = program.hear()
            caller = facts["pid"]
            (warden,) = children(caller)
            workers = set(facts["team"]) - {warden}
            if way == "key":
                program.press("Z")
            else:
                program.send(signal.SIGSTOP)
            until(lambda caller=caller: state(caller) == "T")
            until(lambda workers=workers: all(state(pid) == "T" for pid in workers))
            if way == "key":
                used = seconds_of(warden)
                time.sleep(2.6)  # seconds that must not count
                assert seconds_of(warden) - used < 0.3
                assert all(state(pid) == "T" for pid in workers)
            program.foreground()
            assert program.hear() == {"ranks": [0, 1]}
        program.foreground()
        assert program.end() == ""
        assert program.process.returncode == 0


def test_a_stopped_caller_that_is_killed_leaves_nobody():
    with Program(STOPPED.replace("int(sys.argv[1])", "6000")) as program:
        team = program.hear()["team"]
        program.send(signal.SIGSTOP)
        until(lambda: sum(state(pid) == "T" for pid in team) == 2)
        with prompt(6.0):
            program.send(signal.SIGKILL)
            until(lambda: all(state(pid) in "ZX" for pid in team))
        assert program.end() == ""
