"""Kernels that raise, and what they raise and return misbehaves: always an error in the caller.

Laws: never a silent success, never the end of a worker for an error of the user's; where an
exception cannot travel its text does; the team is usable afterwards, by the same workers. What
comes back as itself, with its cause and notes, is test_payload.py's.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import gc
import os
import signal
import sys
import time
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from faults import prompt, warm

import dsmfor as dsm

CALLER = os.getpid()


class Own(Exception):
    pass


class OpensBadly(Exception):
    """Raises, whatever it is told to, where it is unpickled."""

    def __init__(self, error: BaseException) -> None:
        super().__init__("opens badly")
        self.error = error

    def __setstate__(self, state: Any) -> None:
        raise state["error"]


class PacksBadly(Exception):
    def __init__(self, error: BaseException) -> None:
        super().__init__("packs badly")
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error


class Turncoat(Exception):
    """Is no exception any more when it has been unpickled."""

    def __reduce__(self) -> Any:
        return str, ("I was an exception",)


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    code: int


class Locked(Exception):
    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{name} is not to be set")


class Mute(Exception):
    def __str__(self) -> str:
        raise SystemExit(0)


class OddNotes(Exception):
    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        self.__notes__ = "no list"


class Quitter(BaseException):
    pass


def recurse(n: int) -> int:
    return 1 + recurse(n + 1)


RAISED: dict[str, tuple[Callable[[], object], type[BaseException], str]] = {
    # what the kernel does: the error of the caller, and words of its text
    "sys.exit(0)": (lambda: sys.exit(0), SystemExit, "0"),
    "sys.exit()": (lambda: sys.exit(), SystemExit, ""),
    "sys.exit('x')": (lambda: sys.exit("x"), SystemExit, "x"),
    "recursion": (lambda: recurse(0), RecursionError, "recursion"),
    "memory, Python's": (lambda: bytearray(1 << 60), MemoryError, ""),
    "memory, NumPy's": (lambda: np.empty(1 << 58), MemoryError, "allocate"),
}

THROWN: dict[str, tuple[Callable[[], BaseException], type[BaseException], str]] = {
    "KeyboardInterrupt": (lambda: KeyboardInterrupt("by hand"), KeyboardInterrupt, "by hand"),
    "StopIteration": (lambda: StopIteration(3), StopIteration, "3"),
    "GeneratorExit": (lambda: GeneratorExit("mine"), GeneratorExit, "mine"),
    "own BaseException": (lambda: Quitter("mine"), Quitter, "mine"),
    "group": (lambda: ExceptionGroup("two", [Own(1), Own(2)]), ExceptionGroup, "two"),
    "base group": (
        lambda: BaseExceptionGroup("two", [Own(1), SystemExit(0)]),
        BaseExceptionGroup,
        "two",
    ),
    "group with one that cannot travel": (
        lambda: ExceptionGroup("two", [Own(1), PacksBadly(Own("inner"))]),
        dsm.RegionError,
        "ExceptionGroup: two",
    ),
    "raises when unpickled": (lambda: OpensBadly(Own("no")), dsm.RegionError, "opens badly"),
    "exits when unpickled": (lambda: OpensBadly(SystemExit(0)), dsm.RegionError, "opens badly"),
    "interrupts when unpickled": (
        lambda: OpensBadly(KeyboardInterrupt()),
        dsm.RegionError,
        "opens badly",
    ),
    "raises when pickled": (lambda: PacksBadly(Own("no")), dsm.RegionError, "packs badly"),
    "exits when pickled": (lambda: PacksBadly(SystemExit(0)), dsm.RegionError, "packs badly"),
    "is a string when unpickled": (lambda: Turncoat("x"), dsm.RegionError, "Turncoat: x"),
    "frozen dataclass": (lambda: Frozen(3), dsm.RegionError, "Frozen: 3"),
    "refuses attributes": (lambda: Locked("x"), Locked, "x"),
    "odd notes": (lambda: OddNotes("odd notes"), OddNotes, "odd notes"),
    "str() exits": (lambda: Mute("x"), Mute, ""),
}


def throw(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize("name", [*RAISED, *THROWN])
def test_whatever_a_kernel_raises_is_an_error_of_the_caller(name):
    if name in RAISED:
        act, kind, words = RAISED[name]
    else:
        make, kind, words = THROWN[name]

        def act() -> None:
            throw(make())

    @dsm.parallel(workers=3)
    def kernel():
        if dsm.rank() == 1:
            act()
        dsm.barrier()

    pids = warm(3)
    with prompt(), pytest.raises(BaseException) as caught:  # of the kind below
        kernel()
    error = caught.value
    assert type(error) is kind or (isinstance(error, kind) and kind is MemoryError)
    if kind is not Mute:
        assert words in str(error)
    assert any("in worker 1 of 3" in note for note in error.__notes__)
    assert "Traceback" in str(error.__cause__)
    assert warm(3) == pids


@pytest.mark.parametrize(
    "error", [Own("no"), SystemExit(0), KeyboardInterrupt(), Quitter()], ids=repr
)
def test_a_result_that_cannot_be_pickled_is_an_error_whatever_it_raises(error):
    @dsm.parallel(workers=2)
    def kernel():
        return PacksBadly(error) if dsm.rank() else 1

    pids = warm(2)
    with prompt(), pytest.raises(TypeError, match=r"rank 1 returned a PacksBadly.*cannot be pick"):
        kernel()
    assert warm(2) == pids


class Elsewhere:
    """Does something where it is unpickled, if `condition` holds there."""

    def __init__(self, act: Callable[[], object], *, here: bool) -> None:
        self.act = act
        self.here = here

    def __reduce__(self) -> Any:
        return act_if, (self.act, self.here)


def act_if(act: Callable[[], object], here: bool) -> object:
    return act() if here == (os.getpid() == CALLER) else "opened elsewhere"


@pytest.mark.parametrize("error", [Own("no"), SystemExit(0), Quitter("no")], ids=repr)
def test_a_result_that_cannot_be_unpickled_in_the_caller_is_an_error(error):
    """A BaseException is raised as it is: it may be a signal handler's, and no success anyway."""

    @dsm.parallel(workers=2)
    def kernel():
        return Elsewhere(lambda: throw(error), here=True)

    pids = warm(2)
    kind = dsm.RegionError if isinstance(error, Exception) else type(error)
    with prompt(), pytest.raises(kind):
        kernel()
    assert warm(2) == pids


class Fatal(Exception):
    def __init__(self, act: Callable[[], object]) -> None:
        super().__init__("fatal")
        self.act = act

    def __reduce__(self) -> Any:
        return act_if, (self.act, False)


def test_an_exception_that_kills_its_unpickler_kills_a_worker_and_not_the_caller():
    @dsm.parallel(workers=2)
    def kernel():
        if dsm.rank():
            raise Fatal(lambda: os._exit(9))
        dsm.barrier()

    warm(2)
    with prompt(), pytest.raises(dsm.WorkerDied, match="pickling its result") as caught:
        kernel()
    assert (caught.value.rank, caught.value.exitcode) == (1, 9)
    assert len(warm(2)) == 2


def test_an_exception_that_hangs_its_unpickler_meets_the_timeout():
    @dsm.parallel(workers=2, timeout=0.3)
    def kernel():
        if dsm.rank():
            raise Fatal(lambda: time.sleep(60))
        dsm.barrier()

    warm(2)
    with prompt(4.0), pytest.raises((dsm.RegionTimeout, dsm.RegionError)) as caught:
        kernel()
    assert "rank 1" in str(caught.value) or "failed" in str(caught.value)
    assert len(warm(2)) == 2


class Alarm:
    """A handler that is no function."""

    def __call__(self, *_: object) -> None:
        raise Own("in time")

    def strike(self, *_: object) -> None:
        raise Own("in time")


class Slow:
    """The caller's alarm goes off while it is unpickled."""

    def __setstate__(self, state: Any) -> None:
        if os.getpid() == CALLER:
            signal.raise_signal(signal.SIGALRM)

    def __getstate__(self) -> Any:
        return 1


class SlowError(Slow, Exception):
    """An exception likewise."""

    def __reduce__(self) -> Any:
        return type(self), (), 1


@pytest.mark.parametrize("handler", [Alarm(), Alarm().strike, functools.partial(Alarm().strike)])
@pytest.mark.parametrize("size", [1, 200_000])
@pytest.mark.parametrize("kind", [Slow, SlowError])
def test_a_handler_that_raises_while_a_result_arrives_is_heard_as_itself(kind, size, handler):
    @dsm.parallel(workers=2)
    def kernel(size):
        if dsm.rank() == 0 and issubclass(kind, Exception):
            raise kind
        return kind(), "x" * size

    before = signal.signal(signal.SIGALRM, handler)
    try:
        pids = warm(2)
        with pytest.raises(Own, match="in time"):
            kernel(size)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert warm(2) == pids


class Rings:
    """An alarm goes off while it is pickled, once."""

    def __init__(self) -> None:
        self.rung = False

    def __reduce__(self) -> Any:
        if not self.rung:
            self.rung = True
            signal.raise_signal(signal.SIGALRM)
        return Rings, ()


@pytest.mark.parametrize("kind", [TimeoutError, ValueError, TypeError, ImportError])
def test_a_handler_that_raises_while_arguments_are_pickled_is_heard_as_itself(kind):
    def handler(*_: object) -> None:
        raise kind("in time")

    @dsm.parallel(workers=2)
    def kernel(function, rings):
        return function(dsm.rank())

    @dsm.parallel(workers=2)
    def capturing():
        return captured is not None

    before = signal.signal(signal.SIGALRM, handler)
    captured = Rings()
    try:
        for call in (lambda: kernel(lambda x: x + 1, Rings()), capturing):
            with pytest.raises(kind, match="in time"):
                call()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert capturing() == [True, True]


class Remains:
    def __del__(self) -> None:
        raise Own("in __del__")


class Endless:
    def __del__(self) -> None:
        endless(self)


def endless(*_: object) -> None:
    while True:
        time.sleep(0.001)


def finalizer() -> None:
    Endless()


def cycle() -> None:
    one = Endless()
    one.itself = one  # type: ignore[attr-defined]
    del one
    gc.collect()


def weak_reference() -> None:
    held = Remote()
    reference = weakref.ref(held, endless)
    del held
    assert reference


def weak_dictionary() -> None:
    kept = weakref.WeakKeyDictionary({Remote(): 1})
    while True:
        kept[Remote()] = 1


def callback_of_c() -> None:
    compare = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(endless)
    ctypes.CDLL(None).qsort((ctypes.c_int * 2)(2, 1), 2, 4, compare)


def chained_hook() -> None:
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        before(unraisable)

    sys.unraisablehook = hook
    try:
        Endless()
        while True:
            time.sleep(0.001)
    finally:
        sys.unraisablehook = before


class Remote:
    """It can be referred to weakly."""


class Cleans:
    """A finalizer with something to do; the first of them never ends by itself."""

    def __init__(self, done: np.ndarray) -> None:
        self.done = done

    def __del__(self) -> None:
        self.done[1] += 1
        while self.done[1] == 1:
            time.sleep(0.001)
        self.done[0] += 1


def test_a_stop_that_strikes_a_finalizer_spares_those_that_come_with_it(capfd):
    done = dsm.zeros(2, int)

    @dsm.parallel(workers=2, timeout=0.1)
    def kernel(done):
        if dsm.rank() == 0:
            dsm.barrier()
        many = [Cleans(done) for _ in range(1000)]
        many.clear()
        while True:
            time.sleep(0.001)

    pids = warm(2)
    with pytest.raises(dsm.RegionTimeout):
        kernel(done)
    assert done.tolist() == [999, 1000]
    assert capfd.readouterr().err == ""
    assert warm(2) == pids


@pytest.mark.parametrize(
    "place",
    [finalizer, cycle, weak_reference, weak_dictionary, callback_of_c, chained_hook],
    ids=lambda f: f.__name__,
)
def test_a_stop_that_strikes_where_python_drops_it_is_heard_nevertheless(place, capfd):
    @dsm.parallel(workers=2, timeout=0.1)
    def kernel():
        if dsm.rank() == 0:
            dsm.barrier()
        place()
        while True:
            time.sleep(0.001)

    pids = warm(2)
    for _ in range(20 if place is weak_dictionary else 2):
        with pytest.raises(dsm.RegionTimeout):
            kernel()
    assert capfd.readouterr().err == ""
    assert warm(2) == pids


def test_an_exception_in_a_finalizer_is_told_and_changes_nothing(capfd):
    @dsm.parallel(workers=2)
    def kernel():
        Remains()
        dsm.barrier()
        remains = Remains()  # noqa: F841  # ends with the frame
        return dsm.rank()

    pids = warm(2)
    assert kernel() == [0, 1]
    told = capfd.readouterr().err
    assert told.count("Own: in __del__") == 4
    assert "Remains.__del__" in told
    assert warm(2) == pids
