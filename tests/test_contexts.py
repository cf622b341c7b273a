"""Wherever Python runs: scripts, standard input, notebooks, forks; and whatever way it ends."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import dsmfor as dsm

PACKAGE = str(Path(dsm.__file__).parent.parent)
PATIENCE = 15.0

SCRIPT = """
import numpy as np
import dsmfor as dsm

SCALE = 3

def helper(x):
    return SCALE * x

class Point:
    def __init__(self, x):
        self.x = x

@dsm.parallel(workers=2)
def kernel(a):
    for i in dsm.prange(len(a)):
        a[i] = helper(i)
    return Point(dsm.rank())

a = np.zeros(4)
points = kernel(a)
SCALE = 5
kernel(a)
print(a.tolist(), [p.x for p in points], all(isinstance(p, Point) for p in points))
"""
EXPECTED = "[0.0, 5.0, 10.0, 15.0] [0, 1] True\n"


def environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join([PACKAGE, *filter(None, [os.environ.get("PYTHONPATH")])])
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("DSM_", "PYTHONUNB"))}
    return variables | {"PYTHONPATH": path} | more


def run(
    *arguments: str,
    given: str | None = None,
    cwd: Path | None = None,
    code: int = 0,
    errors: str = "",
) -> str:
    """What a Python prints; nothing else may be said on stderr, no process may outlive it."""
    done = subprocess.run(
        [sys.executable, *arguments],
        input=given,
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=60,
        check=False,
        env=environment(),
    )
    assert errors in done.stderr if errors else done.stderr == "", done.stderr
    assert done.returncode == code, done.stderr
    return done.stdout


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "program.py"
    path.write_text(SCRIPT)
    return path


# -- Ways to start ------------------------------------------------------------------------------


def test_a_script_needs_no_guard(script: Path) -> None:
    assert run(str(script)) == EXPECTED


def test_a_script_runs_from_another_directory(script: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    assert run(f"../{script.name}", cwd=tmp_path / "elsewhere") == EXPECTED


def test_a_program_comes_by_standard_input() -> None:
    assert run("-", given=SCRIPT) == EXPECTED
    assert run(given=SCRIPT) == EXPECTED


def test_a_program_comes_by_the_command_line() -> None:
    assert run("-c", SCRIPT) == EXPECTED


def test_a_module_is_run(script: Path, tmp_path: Path) -> None:
    assert run("-m", "program", cwd=tmp_path) == EXPECTED


def test_a_package_is_run_with_its_relative_imports(tmp_path: Path) -> None:
    package = tmp_path / "thing"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "tools.py").write_text("FACTOR = 7\ndef scaled(x):\n    return FACTOR * x\n")
    (package / "__main__.py").write_text(
        textwrap.dedent(
            """
            import dsmfor as dsm
            from . import tools
            from .tools import scaled

            @dsm.parallel(workers=2)
            def kernel():
                from .tools import FACTOR
                from . import tools as again
                return scaled(dsm.rank()), tools.FACTOR, FACTOR, again is tools

            print(kernel())
            """
        )
    )
    assert run("-m", "thing", cwd=tmp_path) == "[(0, 7, 7, True), (7, 7, 7, True)]\n"


@pytest.mark.parametrize("flags", [["-O", "-B", "-s"], ["-I"], ["-X", "utf8", "-W", "error", "-u"]])
def test_the_flags_of_the_interpreter_are_followed(flags: list[str], script: Path) -> None:
    source = (
        f"import sys; sys.path.insert(0, {PACKAGE!r})\n" + SCRIPT +
        "def flags(): return sys.flags.optimize, sys.flags.utf8_mode, __debug__\n"
        "f = dsm.parallel(workers=1)(flags)\n"
        "assert f() == f.serial(), (f(), f.serial())\n"
    )  # fmt: skip
    script.write_text(source)
    assert run(*flags, str(script)) == EXPECTED


def test_a_module_that_is_imported_and_called_from_elsewhere(script: Path, tmp_path: Path) -> None:
    (tmp_path / "library.py").write_text(SCRIPT.replace("print(", "_ = ("))
    source = (
        "import library, numpy as np\n"
        "a = np.zeros(3)\n"
        "points = library.kernel(a)\n"
        "library.SCALE = 2\n"
        "library.kernel(a)\n"
        "print(a.tolist(), all(type(p) is library.Point for p in points))\n"
    )
    script.write_text(source)
    assert run(str(script)) == "[0.0, 2.0, 4.0] True\n"


def test_a_file_beside_the_script_shadows_nothing_of_ours(script: Path, tmp_path: Path) -> None:
    """A user's random.py is the user's, and workers see it as the script does."""
    for name in ("random", "queue", "selectors", "tempfile", "statistics", "threadpool"):
        (tmp_path / f"{name}.py").write_text("MINE = True\n")
    (tmp_path / "numpy_helper.py").write_text("MINE = True\n")
    script.write_text(
        SCRIPT + "import statistics, numpy_helper\n"
        "@dsm.parallel(workers=2)\ndef theirs():\n"
        "    import statistics as again\n"
        "    return statistics.MINE, again.MINE, numpy_helper.MINE\n"
        "assert theirs() == [(True, True, True)] * 2\n"
    )
    plain = subprocess.run(
        [sys.executable, "-c", "import numpy"], cwd=tmp_path, capture_output=True, check=False,
        env=environment(),
    )  # fmt: skip
    if plain.returncode:  # NumPy itself stumbles over one of them: nobody could use it here
        (tmp_path / "random.py").unlink()
    assert run(str(script), cwd=tmp_path) == EXPECTED


@pytest.mark.parametrize("name", ["numpy", "dsmfor", "cloudpickle", "SharedArray"])
def test_a_folder_in_the_working_directory_shadows_nothing_of_ours(
    name: str, script: Path, tmp_path: Path
) -> None:
    """The script's folder is on the path, the working directory is not."""
    cwd = tmp_path / "cwd"
    (cwd / name).mkdir(parents=True)
    (cwd / name / "__init__.py").write_text("raise RuntimeError('shadowed')\n")
    assert run(str(script), cwd=cwd) == EXPECTED


def test_a_working_directory_that_is_gone(script: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    script.write_text("import os\nos.rmdir(os.getcwd())\n" + SCRIPT)
    assert run(str(script), cwd=gone) == EXPECTED


def test_directory_environment_and_path_are_followed(script: Path, tmp_path: Path) -> None:
    (tmp_path / "late").mkdir()
    (tmp_path / "late" / "latecomer.py").write_text("X = 5\n")
    script.write_text(
        "import os, sys, dsmfor as dsm\n"
        "k = dsm.parallel(workers=2)(lambda: (os.getcwd(), os.environ.get('MINE'), sys.path[-1]))\n"
        "assert k() == k.serial() * 2, k()\n"
        "os.environ['MINE'] = 'x'; os.chdir('/'); "
        f"sys.path.append({str(tmp_path / 'late')!r})\n"
        "assert k() == k.serial() * 2, k()\n"
        "del os.environ['MINE']\n"
        "assert k() == k.serial() * 2, k()\n"
        "def late():\n    import latecomer\n    return latecomer.X\n"
        "assert dsm.parallel(workers=2)(late)() == [5, 5]\n"
    )
    assert run(str(script)) == ""


IPYTHON_CELLS = [
    "import numpy as np, dsmfor as dsm",
    "SCALE = 2",
    "def helper(x):\n    return SCALE * x",
    (
        "@dsm.parallel(workers=2)\n"
        "def kernel(a):\n    for i in dsm.prange(len(a)):\n        a[i] = helper(i)"
    ),
    "a = np.zeros(3); kernel(a); print('first', a.tolist())",
    "SCALE = 3",
    "kernel(a); print('second', a.tolist())",
    "def helper(x):\n    return -SCALE * x",
    "kernel(a); print('third', a.tolist())",
    "class P:\n    pass",
    "print('class', [type(p) is P for p in dsm.parallel(workers=2)(lambda: P())()])",
    "%run program.py",
]


def ipython() -> list[str] | None:
    """Folders from which IPython can be imported, if it is installed."""
    return [] if importlib.util.find_spec("IPython") else None


@pytest.mark.skipif(ipython() is None, reason="IPython is not installed")
@pytest.mark.parametrize("way", ["cells", "typed"])
def test_an_ipython_session(way: str, script: Path, tmp_path: Path) -> None:
    if way == "typed":
        given = "".join(cell + "\n" + "\n" * cell.count("\n") for cell in IPYTHON_CELLS) + "exit\n"
        arguments = ["-m", "IPython", "--simple-prompt", "--no-banner", "--colors=NoColor"]
    else:
        script.with_name("session.py").write_text(
            "from IPython.core.interactiveshell import InteractiveShell\n"
            "shell = InteractiveShell.instance()\n"
            f"for cell in {IPYTHON_CELLS!r}:\n"
            "    shell.run_cell(cell, store_history=True).raise_error()\n"
        )
        arguments, given = ["session.py"], ""
    done = subprocess.run(
        [sys.executable, *arguments], input=given, capture_output=True, text=True, timeout=60,
        check=False, cwd=tmp_path, env=environment(IPYTHONDIR=str(tmp_path), HOME=str(tmp_path)),
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    for line in (
        "first [0.0, 2.0, 4.0]",
        "second [0.0, 3.0, 6.0]",
        "third [0.0, -3.0, -6.0]",
        "class [True, True]",
        EXPECTED.strip(),
    ):
        assert line in said, said


def test_the_interactive_interpreter() -> None:
    cells = [
        "import dsmfor as dsm",
        "x = 1",
        "def f():\n    return x\n",
        "@dsm.parallel(workers=2)\ndef k():\n    return f()\n",
        "print(k())",
        "x = 2",
        "print(k())",
        "def f():\n    return 'new'\n",
        "print(k())",
    ]
    done = subprocess.run(
        [sys.executable, "-i", "-q"], input="\n".join(cells) + "\n", capture_output=True, text=True,
        timeout=60, check=False, env=environment(),
    )  # fmt: skip
    assert done.stdout.splitlines() == ["[1, 1]", "[2, 2]", "['new', 'new']"]
    assert "Error" not in done.stderr


def test_what_a_worker_prints_is_printed(script: Path) -> None:
    script.write_text(
        "import sys, dsmfor as dsm\n"
        "def say():\n    print('rank', dsm.rank())\n    print('error', file=sys.stderr)\n"
        "dsm.parallel(workers=2)(say)()\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=False,
        env=environment(),
    )  # fmt: skip
    assert sorted(done.stdout.splitlines()) == ["rank 0", "rank 1"]
    assert done.stderr.splitlines() == ["error", "error"]


def test_standard_streams_may_be_closed(script: Path) -> None:
    script.write_text(
        SCRIPT.replace("print(", "told = (") + "import os\nos.write(9, repr(told).encode())\n"
    )
    read, write = os.pipe()
    try:
        command = f"exec 9>&{write} {write}>&- 0<&- 1>&- 2>&-; exec {sys.executable} {script}"
        done = subprocess.run(
            ["bash", "-c", command], pass_fds=[write], timeout=60, check=False, env=environment()
        )
        os.close(write)
        assert os.read(read, 100) == b"([0.0, 5.0, 10.0, 15.0], [0, 1], True)"
        assert done.returncode == 0
    finally:
        os.close(read)


# -- Forks and multiprocessing beside it --------------------------------------------------------

PRELUDE = """
import os, sys, time
import numpy as np
import dsmfor as dsm

@dsm.parallel(workers=2)
def kernel(a):
    for i in dsm.prange(len(a)):
        a[i] += i
    return os.getpid()

def check():
    plain, shared = np.zeros(1000), dsm.zeros(1000)
    for a in plain, shared:
        kernel(a)
        assert (a == np.arange(1000)).all()

def collect(pid):
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
"""


def program(body: str, tmp_path: Path, *flags: str, code: int = 0, errors: str = "") -> str:
    path = tmp_path / "program.py"
    path.write_text(PRELUDE + textwrap.dedent(body))
    return run("-W", "ignore::DeprecationWarning", *flags, str(path), code=code, errors=errors)


def test_a_forked_child_calls_with_workers_of_its_own(tmp_path: Path) -> None:
    body = """
        mine = set(kernel(np.zeros(4)))
        pid = os.fork()
        if pid == 0:
            check()
            assert not mine & set(kernel(np.zeros(4)))
            sys.exit(0)
        check()
        collect(pid)
        check()
        assert mine == set(kernel(np.zeros(4)))
        print("done")
    """
    assert program(body, tmp_path) == "done\n"


def test_a_forked_child_that_calls_nothing_and_exits_harms_nobody(tmp_path: Path) -> None:
    body = """
        check()
        for way in (sys.exit, os._exit):
            pid = os.fork()
            if pid == 0:
                way(0)
            collect(pid)
            check()
        print("done")
    """
    assert program(body, tmp_path) == "done\n"


def test_a_forked_child_sees_and_writes_the_parents_shared_arrays(tmp_path: Path) -> None:
    body = """
        a = dsm.zeros(1000)
        kernel(a)
        pid = os.fork()
        if pid == 0:
            kernel(a)
            assert a[10] == 20
            sys.exit(0)
        collect(pid)
        assert a[10] == 20, "a forked child maps the same memory"
        kernel(a)
        assert a[10] == 30
        print("done")
    """
    assert program(body, tmp_path) == "done\n"


def test_a_forked_child_may_live_longer_than_its_parent(tmp_path: Path) -> None:
    """The parent's workers go with the parent although the child holds copies of its sockets."""
    body = """
        read, write = os.pipe()
        pids = kernel(np.zeros(2))
        if os.fork() == 0:
            os.close(write)
            os.read(read, 1)        # until the parent has gone
            deadline = time.monotonic() + 15
            while any(os.path.exists(f"/proc/{p}") for p in pids) and time.monotonic() < deadline:
                time.sleep(0.01)
            left = [p for p in pids if os.path.exists(f"/proc/{p}")]
            check()
            print("left", left, flush=True)
            os._exit(0)
        os._exit(0)
    """
    assert program(body, tmp_path) == "left []\n"


def test_forks_of_forks(tmp_path: Path) -> None:
    body = """
        def down(n):
            check()
            if n:
                pid = os.fork()
                if pid == 0:
                    down(n - 1)
                    sys.exit(0)
                check()
                collect(pid)
        down(3)
        print("done")
    """
    assert program(body, tmp_path) == "done\n"


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing_beside_it(method: str, tmp_path: Path) -> None:
    body = f"""
        import multiprocessing

        def job(n):
            check()
            a = np.zeros(n)
            kernel(a)
            return a.sum()

        if __name__ == "__main__":
            check()
            with multiprocessing.get_context({method!r}).Pool(2) as pool:
                assert pool.map(job, [3, 4, 5]) == [3, 6, 10]
                check()
            print("done")
    """
    assert program(body, tmp_path) == "done\n"


def test_a_kernel_may_start_processes(tmp_path: Path) -> None:
    body = """
        import subprocess
        @dsm.parallel(workers=2)
        def spawn():
            return subprocess.run(["echo", str(dsm.rank())], capture_output=True).stdout
        assert spawn() == [b"0\\n", b"1\\n"]
        @dsm.parallel(workers=2)
        def fork():
            pid = os.fork()
            if pid == 0:
                os._exit(7)
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert fork() == [7, 7]
        check()
        print("done")
    """
    assert program(body, tmp_path) == "done\n"


# -- Ways to end --------------------------------------------------------------------------------

ENDINGS = {
    "at the last line": ("", 0, ""),
    "sys.exit": ("sys.exit(3)", 3, ""),
    "an exception": ("raise KeyError('mine')", 1, "KeyError: 'mine'"),
    "os._exit": ("sys.stdout.flush(); os._exit(4)", 4, ""),
    "SIGKILL": ("sys.stdout.flush(); os.kill(os.getpid(), 9)", -9, ""),
    "SIGTERM": ("sys.stdout.flush(); os.kill(os.getpid(), 15)", -15, ""),
    "a kernel's exception": ("dsm.parallel(workers=2)(lambda: 1 // 0)()", 1, "ZeroDivisionError"),
    "sys.exit in a kernel": ("dsm.parallel(workers=2)(lambda: sys.exit(5))()", 5, ""),
    "a thread that still calls": (
        ("import threading\n"
        "calls = lambda: [check() for _ in range(50)]\n"
        "threading.Thread(target=calls, daemon=True).start()"), 0, ""),
    "exec": (
        "sys.stdout.flush(); os.execv(sys.executable, [sys.executable, '-c', 'pass'])", 0, ""),
}  # fmt: skip


@contextlib.contextmanager
def reported(output: str) -> Iterator[list[int]]:
    """Pids that a program told, each of which must end."""
    pids = [int(word) for word in output.split() if word.isdecimal()]
    assert len(pids) == 3, output
    yield pids
    assert gone(pids) == [], "these processes are left"


def gone(pids: list[int]) -> list[int]:
    """The processes that are still there when the patience ends; zombies are none of ours."""
    deadline = time.monotonic() + PATIENCE
    left = pids
    while left and time.monotonic() < deadline:
        left = [pid for pid in left if alive(pid)]
        time.sleep(0.01)  # between looks
    return left


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("ending", ENDINGS, ids=lambda e: e.replace(" ", "_"))
def test_no_process_is_left_however_the_caller_ends(ending: str, tmp_path: Path) -> None:
    last, code, errors = ENDINGS[ending]
    body = (
        "check()\nfrom dsmfor.engines import process\nprint(*process.team_pids())\n" + last + "\n"
    )
    with reported(program(body, tmp_path, code=code, errors=errors)):
        pass


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGINT", "SIGHUP"])
def test_no_process_is_left_when_the_caller_is_killed_in_a_region(
    name: str, tmp_path: Path
) -> None:
    path = tmp_path / "program.py"
    path.write_text(
        PRELUDE + "check()\n"
        "from dsmfor.engines import process\n"
        "print(*process.team_pids(), flush=True)\n"
        "def endless():\n"
        "    dsm.barrier()\n"
        "    if dsm.rank() == 0: os.write(1, b'running\\n')\n"
        "    while True: pass\n"
        "dsm.parallel(workers=2)(endless)()\n"
    )
    with subprocess.Popen(
        [sys.executable, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment(),
    ) as caller:  # fmt: skip
        assert caller.stdout is not None
        with reported(caller.stdout.readline()):
            assert caller.stdout.readline() == "running\n"
            caller.send_signal(getattr(signal, name))
            _, said = caller.communicate(timeout=PATIENCE)
            if name == "SIGINT":
                assert said.rstrip().endswith("KeyboardInterrupt")
            else:
                assert said == ""
            assert caller.returncode == -getattr(signal, name)


def test_nothing_is_started_by_the_import_alone(tmp_path: Path) -> None:
    body = """
        import threading
        from dsmfor.engines import process
        a = dsm.ones(5)
        assert kernel.serial(a)
        print(process.team_pids(), threading.active_count())
    """
    assert program(body, tmp_path) == "set() 1\n"


def test_a_pytest_module_can_hold_kernels(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        SCRIPT + "class Own(Exception): pass\n"
        "def test_kernel():\n"
        "    import pytest\n"
        "    b = np.zeros(4)\n"
        "    assert all(type(p) is Point for p in kernel(b))\n"
        "    assert b.tolist() == [0, 5, 10, 15]\n"
        "def test_error():\n"
        "    import pytest\n"
        "    @dsm.parallel(workers=2)\n"
        "    def fail(): raise Own(1)\n"
        "    with pytest.raises(Own): fail()\n"
    )
    out = run("-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path / "test_it.py"))
    assert "2 passed" in out
