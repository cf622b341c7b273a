"""Named arrays: what other programs see, who owns a name, and when it is gone.

Laws: what a program attaches has the dtype, shape, order and bytes of what was published; a name
has one owner; it is gone when its owner is, however that ended; nothing that is not dsmfor's is
ever touched. What others might put into /dev/shm is test_security.py's.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SharedArray
from dialogues import PACKAGE, Program, Refused

import dsmfor as dsm
from dsmfor import arrays, labels, naming, shmfiles
from dsmfor.engines import process

DEADLINE = 20.0  # seconds after which a test gives up waiting
SHM = Path("/dev/shm")


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "what the test waits for did not come"
        time.sleep(0.001)


def fresh() -> str:
    """A name that nobody has."""
    return f"dsmfor-test-{os.urandom(8).hex()}"


@pytest.fixture
def name() -> Iterator[str]:
    """A name that nobody has, and that nobody has after the test."""
    found = fresh()
    yield found
    gc.collect()
    assert not (SHM / found).exists()


@pytest.fixture(scope="module")
def other() -> Iterator[Program]:
    """Another program with dsmfor."""
    with Program("import dsmfor as dsm") as program:
        program.ask("a = dsm.zeros(1, name='warm-' + str(os.getpid())); del a")  # its warden
        yield program


@pytest.fixture(scope="module")
def plain() -> Iterator[Program]:
    """Another program that has only SharedArray."""
    with Program("import SharedArray") as program:
        program.ask("1")
        yield program
        assert program.ask("[each for each in sys.modules if each.startswith('dsmfor')]") == []


def leave(name: str, values: np.ndarray, pid: int = 2**22 + 1) -> None:
    """The name of an owner that has died."""
    owner = labels.Owner(pid, 1, shmfiles.myself().space)
    axes = tuple(range(values.ndim))
    label = labels.Label(values.dtype, values.shape, axes, values.nbytes, owner, time.time() - 7200)
    held = shmfiles.make(label)
    os.pwrite(held.number, values.tobytes(), 0)
    shmfiles.link(held.number, name)


# -- What others see ----------------------------------------------------------------------------

STRUCTURED = np.dtype(
    {
        "names": ["b", "a", "in"],
        "formats": [">i4", ("M8[ms]", (2,)), [("x", "f4"), ("é", "U3")]],
        "offsets": [32, 0, 16],
        "itemsize": 40,
    }
)
DTYPES = [
    *("?", "i1", "u2", "i8", "f2", "f8", "g", "c16", ">i4", ">f8", ">c8", "S5", "U3", ">U3", "V7"),
    *("M8[ns]", "m8[25s]", ">M8[D]", "M8", STRUCTURED, np.dtype("i1,f8", align=True)),
    *(np.dtype((np.record, [("x", "f4")])), np.dtype([("p", [("q", "<u4")], (2, 2))])),
]


@pytest.mark.parametrize("order", ["C", "F"])
def test_dtype_shape_order_and_bytes_survive(order: Any, name: str, other: Program) -> None:
    for dtype in DTYPES:
        A = dsm.zeros((2, 3), dtype, order, name=name)
        raw = np.ndarray(A.nbytes, np.uint8, A.T if order == "F" else A)
        raw[:] = np.arange(A.nbytes) % 2  # every dtype takes ones and zeros
        other.ask(f"a = dsm.attach({name!r})")
        assert other.ask("[repr(a.dtype), a.shape, a.strides, a.flags.writeable]") == [
            repr(A.dtype),
            [2, 3],
            list(A.strides),
            True,
        ]
        assert other.ask("[a.dtype.isalignedstruct, a.dtype.type.__name__]") == [
            A.dtype.isalignedstruct,
            A.dtype.type.__name__,
        ]
        assert bytes.fromhex(other.ask("a.tobytes('A').hex()")) == raw.tobytes()
        other.ask("del a")
        del A, raw


@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_any_shape_have_names(
    order: Any, name: str, other: Program, plain: Program
) -> None:
    for shape in [(), 0, (0, 3), (3, 0), 1, (1, 5, 1), (1,) * 62 + (2, 3)]:
        A = dsm.full(shape, 7, "i2", order, name=name)
        assert other.ask(f"dsm.attach({name!r}).tolist()") == A.tolist()
        assert other.ask(f"dsm.attach({name!r}).strides") == list(A.strides)
        seen = A.T if order == "F" else A
        assert plain.ask(f"SharedArray.attach('shm://{name}').tolist()") == seen.tolist()
        del A, seen


def test_axes_in_any_order_survive(name: str, other: Program) -> None:
    model = np.empty((4, 2, 3), "f4").transpose(1, 2, 0)
    A = dsm.array(np.arange(24, dtype="f4").reshape(4, 2, 3).transpose(1, 2, 0), name=name)
    assert A.strides == model.strides == dsm.zeros_like(model).strides
    other.ask(f"a = dsm.attach({name!r})")
    assert other.ask("[a.strides, a.tolist()]") == [list(A.strides), A.tolist()]


SEEN = [
    ("f8", "float64"),
    ("?", "bool"),
    ("S4", "|S4"),
    ("U2", "<U2"),
    (">i4", "|V4"),
    (">M8[s]", "|V8"),
    ("M8[ns]", "int64"),
    ("m8[s]", "int64"),
    (STRUCTURED, "|V40"),
]


def test_what_sharedarray_alone_sees(name: str, plain: Program) -> None:
    for dtype, seen in SEEN:
        A = dsm.zeros((2, 3), dtype, name=name)
        plain.ask(f"a = SharedArray.attach('shm://{name}')")
        assert plain.ask("[str(a.dtype), a.shape, a.nbytes]") == [seen, [2, 3], A.nbytes]
        plain.ask("print(a, file=open(os.devnull, 'w')); np.asarray(a).view(np.uint8)[...] = 1")
        assert A.tobytes() == b"\1" * A.nbytes
        plain.ask("del a")
        del A


def test_sharedarray_alone_sees_columns_as_rows(name: str, plain: Program) -> None:
    A = dsm.array([[1, 2, 3], [4, 5, 6]], order="F", name=name)
    assert plain.ask(f"SharedArray.attach('shm://{name}').tolist()") == A.T.tolist()


def test_a_live_run_is_watched_and_steered(name: str, plain: Program) -> None:
    board = dsm.zeros(4, name=name)
    plain.ask(f"b = SharedArray.attach('shm://{name}')")

    @dsm.parallel(workers=2, shared=["board"])
    def step() -> None:
        for i in dsm.prange(len(board)):
            board[i] += 10 * i
        end = time.monotonic() + DEADLINE
        while board[0] != 5:  # until it is told to stop
            assert time.monotonic() < end
            time.sleep(0.0005)

    caller = threading.Thread(target=step)
    caller.start()
    try:
        until(lambda: plain.ask("b.tolist()") == [0, 10, 20, 30])
    finally:
        plain.ask("b[0] = 5")
        caller.join()
    plain.ask("del b")
    with Program("import dsmfor as dsm") as second:  # with a team of its own
        second.ask(f"b = dsm.attach({name!r})")
        second.ask("dsm.parallel(workers=2)(lambda b: b.__setitem__(dsm.rank(), 9))(b)")
        assert board.tolist() == [9, 9, 20, 30]


CREATORS = {
    "zeros": lambda name: dsm.zeros(3, name=name),
    "empty": lambda name: dsm.empty(3, name=name),
    "ones": lambda name: dsm.ones(3, name=name),
    "full": lambda name: dsm.full(3, 7.5, name=name),
    "zeros_like": lambda name: dsm.zeros_like([1, 2, 3], name=name),
    "empty_like": lambda name: dsm.empty_like([1, 2, 3], name=name),
    "ones_like": lambda name: dsm.ones_like([1, 2, 3], name=name),
    "full_like": lambda name: dsm.full_like([1, 2, 3], 9, name=name),
    "array": lambda name: dsm.array([1, 2, 3], name=name),
}


def test_every_creation_function_gives_names(name: str) -> None:
    assert set(CREATORS) == {
        each for each in arrays.__all__ if each not in ("Handle", "handle", "is_shared", "rebuild")
    }
    for create in CREATORS.values():
        A = create(name)
        B = SharedArray.attach(f"shm://{name}")
        assert (A.dtype, A.tolist()) == (B.dtype, B.tolist())
        assert name in dsm.names()
        del A


def test_a_named_array_is_a_shared_array_like_any_other(name: str) -> None:
    A = dsm.zeros((4, 5), order="F", name=name)
    view = A[1:3, ::-2]

    @dsm.parallel(workers=2, shared=["A", "view"])
    def kernel(A: np.ndarray, view: np.ndarray) -> np.ndarray:
        if dsm.rank() == 0:
            view[...] = 3
        dsm.barrier()
        return A[1:3]

    first, second = kernel(A, view)
    assert kernel.last_report.bytes_in == kernel.last_report.bytes_out == 0
    assert np.shares_memory(first, A)
    np.testing.assert_array_equal(second, A[1:3])
    assert A.sum() == 3 * view.size


# -- The life of a name -------------------------------------------------------------------------


def test_a_name_goes_with_the_last_reference_and_everything_with_it(name: str) -> None:
    fds = os.listdir("/proc/self/fd")
    A = dsm.zeros(1000, name=name)
    view = A[10:20]
    del A
    assert (SHM / name).exists()
    other_view = dsm.attach(name)
    assert np.shares_memory(view, other_view)
    del view
    assert (SHM / name).exists()
    del other_view
    assert not (SHM / name).exists()
    process.housekeep()
    assert len(os.listdir("/proc/self/fd")) <= len(fds) + 40  # a warden may have come
    assert name not in Path("/proc/self/maps").read_text()


def test_who_has_attached_keeps_the_memory(name: str, other: Program) -> None:
    A = dsm.ones(5, name=name)
    other.ask(f"a = dsm.attach({name!r})")
    del A
    assert not (SHM / name).exists()
    assert other.ask("a.tolist()") == [1] * 5
    with pytest.raises(Refused, match="NameUnknown"):
        other.ask(f"dsm.attach({name!r})")
    other.ask("del a")


def test_delete_takes_the_name_and_leaves_the_array(name: str) -> None:
    A = dsm.ones(3, name=name)
    dsm.delete(name)
    assert not (SHM / name).exists()
    B = dsm.zeros(3, name=name)
    assert A.tolist() == [1, 1, 1]
    del A  # must not take the name that is another array's now
    assert dsm.attach(name) is not None
    assert B.tolist() == [0, 0, 0]


def test_a_file_that_others_have_put_in_place_of_ours_is_left_alone(name: str) -> None:
    A = dsm.ones(3, name=name)
    (SHM / name).unlink()
    (SHM / name).write_text("theirs")
    del A
    assert (SHM / name).read_text() == "theirs"
    (SHM / name).unlink()


def test_names_are_listed_with_what_they_are(name: str, other: Program) -> None:
    before = time.time()
    A = dsm.zeros((2, 3), ">i4", name=name)
    other.ask(f"a = dsm.ones(1000, name={name + '-b'!r})")
    try:
        listed = dsm.names()
        assert list(listed) == sorted(listed)
        mine, theirs = listed[name], listed[name + "-b"]
        assert (mine.name, mine.shape, mine.dtype, mine.nbytes) == (name, (2, 3), A.dtype, 24)
        assert (mine.pid, theirs.pid, theirs.nbytes) == (os.getpid(), other.pid, 8000)
        assert before - 1 < mine.created.timestamp() < time.time() + 1
    finally:
        other.ask("del a")


def test_names_of_the_living_are_refused_with_pid_and_age(name: str, other: Program) -> None:
    other.ask(f"a = dsm.ones(3, name={name!r})")
    try:
        says = rf"process {other.pid} \(array made \d+ seconds? ago\)"
        with pytest.raises(dsm.NameTaken, match=says) as refused:
            dsm.zeros(3, name=name)
        assert isinstance(refused.value, FileExistsError)
        assert refused.value.pid == other.pid
        with pytest.raises(dsm.NameTaken, match=says):
            dsm.delete(name)
        assert dsm.attach(name).tolist() == [1, 1, 1]
    finally:
        other.ask("del a")


def test_a_name_is_given_once_in_a_program(name: str) -> None:
    A = dsm.ones(3, name=name)
    with pytest.raises(dsm.NameTaken, match=r"of this program.*dsm\.delete") as refused:
        dsm.zeros(3, name=name)
    assert refused.value.pid == os.getpid()
    assert dsm.attach(name).tolist() == A.tolist()


def test_an_unknown_name_is_told_with_those_there_are(name: str) -> None:
    with pytest.raises(KeyError, match=f"no array is named '{name}'; there"):
        dsm.attach(name)
    A = dsm.ones(3, name=name)
    for ask in (dsm.attach, dsm.delete):
        with pytest.raises(dsm.NameUnknown, match=f"named 'nobody'; there are .*'{name}'"):
            ask("nobody")
    assert A.all()


BAD = [
    ("", "names no file"),
    (".", "names no file"),
    ("..", "names no file"),
    ("a/b", "'/' has a meaning"),
    ("/a", "'/' has a meaning"),
    ("a\nb", "cannot be printed"),
    ("a\0b", "cannot be printed"),
    ("\ud800", "cannot be printed"),
    ("n" * 256, "256 bytes, and 255"),
    ("é" * 128, "256 bytes, and 255"),
    ("sem.a", "for semaphores"),
]


def test_what_is_no_name_is_refused() -> None:
    for bad, told in BAD:
        for use in (lambda bad: dsm.zeros(3, name=bad), dsm.attach, dsm.delete):
            with pytest.raises(ValueError, match=told):
                use(bad)
    with pytest.raises(TypeError, match="is a str, got 7"):
        dsm.zeros(3, name=7)  # type: ignore[arg-type]


def test_whatever_is_a_file_name_is_a_name(plain: Program) -> None:
    for good in ["n" * 255, "é" * 127, " a b", "-rf", ".hidden", "shm:", "ο"]:
        A = dsm.ones(3, name=good)
        assert plain.ask(f"SharedArray.attach('shm://{good}').tolist()") == A.tolist()
        del A
        assert not (SHM / good).exists()


def test_dtypes_that_mean_nothing_elsewhere_are_refused(name: str) -> None:
    titled = np.dtype({"names": ["a"], "formats": ["i4"], "titles": [7]})
    with pytest.raises(TypeError, match="titles that are no texts"):
        dsm.zeros(3, titled, name=name)
    with pytest.raises(TypeError, match="no bytes to publish"):
        dsm.zeros(3, np.dtype([]), name=name)
    with pytest.raises(TypeError, match="references to objects"):
        dsm.zeros(3, object, name=name)


@pytest.mark.parametrize("engine", ["serial", "process"])
def test_kernels_give_no_names_and_attach_once_for_all(engine: Any, name: str) -> None:
    A = dsm.ones(3, name=name)

    @dsm.parallel(workers=2)
    def publish() -> None:
        dsm.single(dsm.zeros, 3, name="from-a-kernel")

    @dsm.parallel(workers=2)
    def attach_each() -> None:
        dsm.attach(name)

    @dsm.parallel(workers=2)
    def attach() -> np.ndarray:
        a = dsm.single(dsm.attach, name)
        if dsm.rank() == 0:
            a[1] = 8
        return a

    def call(kernel: Any) -> Any:
        return kernel.serial() if engine == "serial" else kernel()

    with pytest.raises(dsm.RegionError, match="a name belongs to the program"):
        call(publish)
    with pytest.raises(dsm.RegionError, match=r"dsm\.attach was called inside a kernel"):
        call(attach_each)
    found = call(attach)
    assert A[1] == 8
    found[0][2] = 9
    assert A[2] == 9


def test_readonly_is_readonly_everywhere(name: str, other: Program) -> None:
    other.ask(f"A = dsm.array([0.0, 1.0, 2.0], name={name!r})")
    a = dsm.attach(name, readonly=True)
    assert not a.flags.writeable
    with pytest.raises(ValueError, match="WRITEABLE"):
        a.flags.writeable = True
    low = a.__array_interface__["data"][0]
    line = next(
        line
        for line in Path("/proc/self/maps").read_text().splitlines()
        if int(line.partition("-")[0], 16) <= low < int(line.split()[0].partition("-")[2], 16)
    )
    assert line.split()[1] == "r--s"
    ctypes.CDLL(None).mprotect.restype = ctypes.c_int
    assert (
        ctypes.CDLL(None).mprotect(ctypes.c_void_p(low), 4096, 3) == -1
    )  # to be written after all

    @dsm.parallel(workers=2)
    def kernel(a: np.ndarray) -> tuple[float, bool]:
        maps = Path("/proc/self/maps").read_text()
        return a.sum(), any("rw-s" in line and name in line for line in maps.splitlines())

    assert kernel(a) == [(3.0, False)] * 2
    other.ask("A[0] = 4")
    assert a[0] == 4
    assert kernel(a) == [(7.0, False)] * 2
    other.ask("del A")


def test_names_come_and_go_and_leave_nothing() -> None:
    dsm.zeros(3, name=fresh())
    fds = len(os.listdir("/proc/self/fd"))
    maps = len(Path("/proc/self/maps").read_text().splitlines())
    for _ in range(200):
        dsm.zeros(3, name=fresh())
    assert len(os.listdir("/proc/self/fd")) <= fds + 1
    assert len(Path("/proc/self/maps").read_text().splitlines()) <= maps + 5
    assert len(naming._own) <= 1


# -- Owners that end ----------------------------------------------------------------------------


def test_a_dead_owners_name_is_taken_over_and_never_seen(name: str) -> None:
    values = np.arange(5)
    leave(name, values)
    with pytest.raises(dsm.NameUnknown, match=r"process 4194305 \(array made 2 hours ago\).*ended"):
        dsm.attach(name)
    assert not (SHM / name).exists()
    leave(name, values)
    assert name not in dsm.names()
    assert not (SHM / name).exists()
    leave(name, values)
    dsm.delete(name)
    assert not (SHM / name).exists()
    leave(name, values)
    A = dsm.ones(3, name=name)
    assert dsm.attach(name).tolist() == A.tolist()


def test_a_team_that_starts_takes_names_of_the_dead_away(name: str) -> None:
    process.shutdown()
    leave(name, np.arange(5))
    kernel = dsm.parallel(workers=1)(lambda: None)
    kernel()
    until(lambda: not (SHM / name).exists())


def test_of_two_who_want_the_name_of_a_dead_one_gets_it(name: str, other: Program) -> None:
    with Program("import dsmfor as dsm") as third:
        for each in range(40):
            if each % 2:
                leave(name, np.arange(5))
            for program in (other, third):
                program.tell(f"a = dsm.full(3, os.getpid(), name={name!r})")
            winners, losses = [], []
            for program in (other, third):
                try:
                    program.hear()
                except Refused as refused:
                    losses.append(refused.args[0])
                else:
                    winners.append(program)
            assert losses == ["NameTaken"]
            assert len(winners) == 1
            (winner,) = winners
            assert dsm.attach(name)[0] == winner.pid
            winner.ask("del a")


ENDINGS = {
    "SIGKILL": "os.kill(os.getpid(), 9)",
    "SIGKILL of its group": "os.killpg(0, 9)",
    "SIGTERM": "os.kill(os.getpid(), 15)",
    "SIGHUP": "os.kill(os.getpid(), 1)",
    "os._exit": "os._exit(3)",
    "exit": "sys.exit()",
    "exec": "os.execv('/bin/sleep', ['sleep', '30'])",
    "exec, before a team": None,
}
BEGINNING = "import dsmfor as dsm; import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)"


def test_a_name_is_gone_soon_after_its_owner_however_that_ended() -> None:
    """Reported, not asserted: how soon. The promise is a second on a machine that is not loaded."""
    with contextlib.ExitStack() as stack:
        programs = {
            ending: stack.enter_context(Program(BEGINNING, start_new_session=True))
            for ending in ENDINGS
        }
        for number, program in enumerate(programs.values()):
            program.tell(f"A = dsm.ones(1000, name='ending-{os.getpid()}-{number}')")
        for program in programs.values():
            program.hear()
        slowest = 0.0
        for number, (ending, program) in enumerate(programs.items()):
            path = SHM / f"ending-{os.getpid()}-{number}"
            assert path.exists()
            began = time.monotonic()
            program.tell(ENDINGS[ending] or "os.execv('/bin/sleep', ['sleep', '30'])")
            until(lambda path=path: not path.exists())
            slowest = max(slowest, time.monotonic() - began)
            program.process.kill()
            assert program.end() == ""
    print(f"names were gone {slowest:.3f} s after their owner at the latest")


def warden_of(pid: int) -> int:
    """The warden of a program that has one and no other child."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    (warden,) = map(int, children)
    return warden


def test_when_the_warden_is_killed_too_the_next_program_reclaims(name: str) -> None:
    with Program("import dsmfor as dsm") as program:
        program.ask(f"A = dsm.ones(1000, name={name!r})")
        warden = warden_of(program.pid)
        os.kill(warden, signal.SIGSTOP)
        program.process.kill()
        program.process.wait()
        os.kill(warden, signal.SIGKILL)
    assert (SHM / name).exists()
    A = dsm.zeros(3, name=name)
    assert A.tolist() == [0, 0, 0]


def test_a_new_warden_hears_of_the_names_there_are(name: str) -> None:
    with Program("import dsmfor as dsm") as program:
        program.ask(f"A = dsm.ones(1000, name={name!r})")
        program.ask("k = dsm.parallel(workers=1)(lambda: None)")
        os.kill(warden_of(program.pid), signal.SIGKILL)
        with contextlib.suppress(Refused):
            program.ask("k()")
        program.ask("k()")
        program.process.kill()
        until(lambda: not (SHM / name).exists())


FORKED = """
def fork(raw):
    global child
    ready, told = os.pipe()
    child = ctypes.CDLL(None).fork() if raw else os.fork()
    if child == 0:
        os.write(told, b'!')
        while True:
            time.sleep(60)
    os.read(ready, 1)
    return child
"""


@pytest.mark.parametrize("raw", [False, True], ids=["os.fork", "fork of C code"])
def test_a_fork_that_outlives_the_owner_keeps_no_name(raw: bool, name: str) -> None:
    with Program("import dsmfor as dsm, ctypes, time\n" + FORKED) as program:
        program.ask(f"A = dsm.ones(1000, name={name!r})")
        child = program.ask(f"fork({raw})")
        try:
            assert (SHM / name).exists()
            copies = [os.readlink(entry.path) for entry in os.scandir(f"/proc/{child}/fd")]
            held = [target for target in copies if target.startswith("/dev/shm/")]
            assert len(held) == 1 + raw  # the file; and the sign of life, if Python was not asked
            program.process.kill()
            program.process.wait()
            until(lambda: not (SHM / name).exists())
            assert Path(f"/proc/{child}").exists()
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_fork_that_ends_takes_no_name_away(name: str, other: Program) -> None:
    other.ask(f"A = dsm.ones(3, name={name!r})")
    other.ask("child = os.fork()\nif child == 0:\n del A\n sys.exit()")
    other.ask("os.waitpid(child, 0)")
    assert dsm.attach(name).tolist() == [1, 1, 1]
    with pytest.raises(dsm.NameTaken, match=f"process {other.pid} "):
        dsm.zeros(3, name=name)
    other.ask("del A")


# -- How a name comes to be ---------------------------------------------------------------------


def test_a_name_appears_with_a_whole_and_private_file_behind_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shmfiles.link
    seen = []

    def link(fd: int, name: str) -> None:
        status = os.fstat(fd)
        assert status.st_nlink == 0
        assert not (SHM / name).exists()
        assert status.st_mode == 0o100600
        assert status.st_blocks * 512 >= status.st_size
        label = labels.read(fd)
        assert (label.shape, label.owner.pid) == ((5000, 3), os.getpid())
        with pytest.raises(BlockingIOError):
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, shmfiles._range(0))
        assert (name, (status.st_dev, status.st_ino)) in naming.published()
        seen.append(name)
        real(fd, name)

    monkeypatch.setattr(shmfiles, "link", link)
    for umask in (0, 0o777):
        before = os.umask(umask)
        try:
            A = dsm.ones((5000, 3), name=name)
        finally:
            os.umask(before)
        status = (SHM / name).stat()
        assert (status.st_mode, status.st_nlink, status.st_uid) == (0o100600, 1, os.geteuid())
        del A
    assert seen == [name, name]


def test_an_interrupt_at_any_moment_of_naming_leaves_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dsm.zeros(3, name=name)  # the warden
    for place in ["make", "identity", "hold", "link", "myself"]:
        for late in (False, True):
            real = getattr(shmfiles, place)

            def strike(*args: Any, real: Any = real, late: bool = late, **kwargs: Any) -> None:
                if late:
                    real(*args, **kwargs)
                raise KeyboardInterrupt

            with monkeypatch.context() as patch:
                patch.setattr(shmfiles, place, strike)
                with pytest.raises(KeyboardInterrupt):
                    dsm.zeros(3, name=name)
            gc.collect()
            assert not (SHM / name).exists(), (place, late)
            assert naming.published() == []


FULL = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np, dsmfor as dsm, os
def tell(make):
    try:
        make()
        print("made")
    except dsm.DSMError as error:
        print(type(error).__name__, error)
    except OSError as error:
        print("OSError", error)
kept = dsm.ones(4096, "u1", name="kept")
tell(lambda: dsm.zeros(1 << 20, "u1", name="large"))
tell(lambda: dsm.zeros(dsm.shmfiles_room, "u1", name="page") if False else None)
del_me = dsm.ones(4096, "u1", name="another")
print(kept.sum(), sorted(os.listdir("/dev/shm")), dsm.zeros(1 << 20, "u1").sum())
del kept, del_me
print(os.listdir("/dev/shm"))
os.system("mount -o remount,ro /dev/shm")
tell(lambda: dsm.zeros(3, name="ro"))
os.system("umount /dev/shm")
from dsmfor import shmfiles
shmfiles.FOLDER = "/dev/shm/absent"
tell(lambda: dsm.zeros(3, name="absent"))
"""


def test_a_full_a_missing_and_a_read_only_folder_are_told() -> None:
    done = subprocess.run(
        [
            *("unshare", "--mount", *(() if os.geteuid() == 0 else ("--map-root-user",))),
            *("sh", "-ec", 'mount -t tmpfs -o size=64k shm /dev/shm; exec "$@"', "sh"),
            *(sys.executable, "-c", FULL, str(PACKAGE)),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    large, _, kept, after, readonly, absent = done.stdout.splitlines()
    assert re.match(
        r"SharedMemoryFull cannot make a named array of 1,048,576 bytes: /dev/shm has [\d,]+ of "
        r"65,536 bytes left; .*--shm-size",
        large,
    )
    assert (kept, after) == ("4096 ['another', 'kept'] 0", "[]")
    assert "Read-only file system" in readonly
    assert "No such file or directory" in absent
    assert "writable tmpfs" in readonly
    assert "writable tmpfs" in absent


def test_arrays_of_sharedarray_itself_can_be_attached(name: str, plain: Program) -> None:
    plain.ask(f"os.umask(0o077); a = SharedArray.create('shm://{name}', (2, 3), np.int16)")
    plain.ask("a[:] = 4")
    try:
        b = dsm.attach(name)
        assert (b.dtype, b.shape, b.sum()) == (np.int16, (2, 3), 24)
        b[0, 0] = 9
        assert plain.ask("int(a[0, 0])") == 9
        assert dsm.names()[name].pid is None
        for use in (lambda: dsm.zeros(3, name=name), lambda: dsm.delete(name)):
            with pytest.raises(dsm.NameTaken, match=rf"SharedArray\.delete\('shm://{name}'\)"):
                use()
        (SHM / name).chmod(0o640)
        with pytest.raises(dsm.DSMError, match="mode is 0640"):
            dsm.attach(name)
    finally:
        plain.ask(f"del a; SharedArray.delete('shm://{name}')")
