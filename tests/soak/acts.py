"""What a caller under fire does: calls that check their own results.

An act is one call or a few, chosen by a random generator. It returns when all is as it must be,
raises `Disturbed` when a fault from outside ended it with the error that was promised, and lets
any other exception out: that is a finding. Some acts bring their fault with them: their kernel
raises, dies or hangs.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import dsmfor as dsm
from dsmfor.engines import process

SCHEDULES = ["static", "static,3", "random", "random,5", "dynamic", "dynamic,7", "guided", "auto"]
LONG = 20.0  # seconds of an ordinary call, when a worker was stopped and nobody woke it
SHORT = 0.3  # seconds of a call that is to run out of time
PLACES = ["computing", "barrier", "lock", "waiting", "chunk", "result"]
ENDS = [signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, 0, 7]


class Disturbed(Exception):
    """A call ended with the error of a fault from outside."""

    def __init__(self, error: dsm.DSMError) -> None:
        super().__init__(type(error).__name__)
        self.words = str(error)
        self.pid = getattr(error, "pid", None)


class Deadly:
    """A result whose pickling ends the process."""

    def __init__(self, how: int) -> None:
        self.how = how

    def __reduce__(self) -> Any:
        die(self.how)


class Wordless(Exception):
    """An exception that cannot travel."""

    def __reduce__(self) -> Any:
        raise TypeError("no words for it")


class Interrupts:
    """Ctrl-C as Python makes it, at most once in an act, and none between acts."""

    armed = False
    raised = 0

    def struck(self) -> bool:
        """Whether this act has been."""
        return threading.current_thread() is threading.main_thread() and not self.armed

    def handle(self, *_: object) -> None:
        if self.armed:
            self.armed = False
            self.raised += 1
            raise KeyboardInterrupt


interrupts = Interrupts()


def die(how: int) -> None:
    """End this process by a signal, or with an exit status."""
    if how in (0, 7):
        os._exit(how)
    os.kill(os.getpid(), how)
    time.sleep(60)  # SIGKILL has been sent; it may take a moment


def expect(well: bool, what: str) -> None:
    if not well:
        raise AssertionError(what)


# -- Kernels ------------------------------------------------------------------------------------


@dsm.parallel(timeout=LONG)
def mixed(data, counter, big, schedule, offset):
    """Every index once by a loop, once by slices; a lock; a barrier; a value for all; a result."""
    for i in dsm.prange(len(data), schedule=schedule):
        data[i] += i + offset
    for s in dsm.pslices(len(data), schedule=schedule, nowait=True):
        data[s] *= 2
    with dsm.critical("counter"):
        counter[0] += 1
    dsm.barrier()
    seen = dsm.single(int, counter[0])
    return np.full(big, seen + dsm.rank()), os.getpid()


@dsm.parallel(timeout=LONG)
def roll_call():
    dsm.barrier()
    return dsm.rank()


@dsm.parallel(timeout=LONG)
def failing(victim, how):
    if dsm.rank() == victim:
        if how == "raise":
            raise LookupError(victim)
        if how == "wordless":
            raise Wordless("it has lost its words")
        if how == "exit":
            sys.exit(victim)
        if how == "interrupt":
            raise KeyboardInterrupt
        return threading.Lock()  # a result that cannot be pickled
    if how != "result":
        dsm.barrier()
    return None


@dsm.parallel(timeout=LONG)
def dying(victim, place, how, since, data):
    """One rank ends its process at a place; the others wait for it, or compute."""
    mine = dsm.rank() == victim

    def end():
        since[0] = time.monotonic()
        die(how)

    if place == "computing" and mine:
        end()
    if place in ("lock", "waiting"):
        keeper = mine == (place == "lock")
        if keeper:
            with dsm.critical("one"):
                since[1] = 1
                end() if mine else time.sleep(60)
        while not since[1]:
            time.sleep(0)
        if mine:
            since[0] = time.monotonic() + 0.05
            signal.signal(signal.SIGALRM, lambda *_: die(how))
            signal.setitimer(signal.ITIMER_REAL, 0.05)
        try:
            with dsm.critical("one"):
                pass
        finally:  # a region that was broken off lets it live
            signal.setitimer(signal.ITIMER_REAL, 0)
    for i in dsm.prange(len(data), schedule="static,3"):
        data[i] += 1
        if place == "chunk" and mine:
            end()
    if place == "barrier":
        if mine:
            end()
        dsm.barrier()
    if place == "result" and mine:
        since[0] = time.monotonic()
        return Deadly(how)
    return None


@dsm.parallel(timeout=SHORT)
def hanging(victim, how):
    if dsm.rank() == victim:
        if how == "stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        while how == "loop":
            pass
        3 ** (1 << 24) % 7 if how == "deaf" else None  # C code that does not look at signals
        while True:
            with contextlib.suppress(BaseException):
                time.sleep(60)
    dsm.barrier()


@dsm.parallel(timeout=LONG)
def diverging(victim, how):
    if how == "break":
        for i in dsm.prange(100):
            if dsm.rank() == victim and i >= 0:
                break
    elif dsm.rank() == victim:
        dsm.barrier()


@dsm.parallel(timeout=LONG)
def adding(arrays, total):
    for k, array in enumerate(arrays):
        if k % dsm.size() == dsm.rank():
            with dsm.critical("total"):
                total[0] += array.sum()


@dsm.parallel(timeout=LONG, private=["a"])
def scribbling(a):
    a[dsm.rank() :: 7] = 0
    dsm.barrier()
    return float(a.sum())


@dsm.parallel(timeout=LONG)
def echoing(text):
    return text


# -- Acts ---------------------------------------------------------------------------------------


def call(kernel: Any, *args: Any) -> Any:
    """A call that may be ended from outside."""
    try:
        return kernel(*args)
    except (dsm.WorkerDied, dsm.RegionTimeout) as error:
        raise Disturbed(error) from None
    except dsm.DSMError as error:
        if not still_born(error):
            raise
        raise Disturbed(error) from None


def still_born(error: dsm.DSMError) -> bool:
    """Whether a warden was killed again and again as it started, in a program that reaps it."""
    return "ended while it started: it was killed" in str(error)


def whole(rng: random.Random) -> None:
    """A region with everything in it, on shared or plain memory."""
    size = rng.randint(1, 4)
    n = rng.choice([1, 10, 100, 3000])
    big = rng.choice([1, 1, 1, 20_000])
    offset = rng.randrange(1000)
    shared = rng.random() < 0.5
    data = dsm.zeros(n, int) if shared else np.zeros(n, int)
    counter = dsm.zeros(1, int)
    try:
        results = call(mixed.using(workers=size), data, counter, big, rng.choice(SCHEDULES), offset)
    except Disturbed:
        assert shared or not data.any(), "a failed call wrote to a plain array"
        raise
    assert (data == 2 * (np.arange(n) + offset)).all()
    assert counter[0] == size
    assert [(len(a), a[0], a[-1]) for a, _ in results] == [
        (big, size + rank, size + rank) for rank in range(size)
    ]
    assert len({pid for _, pid in results}) == size


def error_in_kernel(rng: random.Random) -> None:
    """One rank raises, leaves, or returns what cannot travel."""
    size = rng.randint(1, 4)
    victim = rng.randrange(size)
    how = rng.choice(["raise", "wordless", "exit", "interrupt", "result"])
    try:
        call(failing.using(workers=size), victim, how)
    except LookupError as error:
        expect(how == "raise" and error.args == (victim,), how)
    except dsm.RegionError as error:
        expect(how == "wordless" and "lost its words" in str(error), str(error))
    except SystemExit as error:
        expect(how == "exit" and error.code == victim, how)
    except KeyboardInterrupt:
        if how != "interrupt" or interrupts.struck():
            raise
    except (TypeError, pickle.PicklingError):
        expect(how == "result", how)
    else:
        raise AssertionError(f"a kernel that ends by {how} ended in silence")


def death_in_kernel(rng: random.Random) -> float | None:
    """One rank ends its own process; seconds until the caller knew it."""
    size = rng.randint(2, 4)
    victim = rng.randrange(size)
    how = rng.choice(ENDS)
    place = rng.choice(PLACES)
    since, data = dsm.zeros(2), dsm.zeros(60, int)
    since[0] = np.nan
    try:
        dying.using(workers=size)(victim, place, how, since, data)
    except dsm.RegionTimeout as error:
        raise Disturbed(error) from None
    except dsm.WorkerDied as error:
        late = time.monotonic() - since[0]
        expected = -how if how not in (0, 7) else how
        if error.rank != victim or error.exitcode != expected:
            raise Disturbed(error) from None  # who fell first is the one that is told
        expect(data.max() <= 1, "a chunk ran twice")
        return None if np.isnan(late) else float(late)
    except dsm.DSMError as error:
        if not still_born(error):
            raise
        raise Disturbed(error) from None
    raise AssertionError(f"a rank died at {place} by {how} and the call succeeded")


def timeout(rng: random.Random) -> None:
    """One rank does not come back: an endless loop, a sleep, C code, a stopped process."""
    size = rng.randint(1, 3)
    victim = rng.randrange(size)
    began = time.monotonic()
    try:
        hanging.using(workers=size)(victim, rng.choice(["loop", "sleep", "deaf", "stopped"]))
    except dsm.WorkerDied as error:
        raise Disturbed(error) from None
    except dsm.RegionTimeout as error:
        expect(f"rank {victim}" in str(error) or "ranks" in str(error), str(error))
        expect(time.monotonic() - began >= SHORT, "it ran out of time too soon")
        return
    except dsm.DSMError as error:
        if not still_born(error):
            raise
        raise Disturbed(error) from None
    raise AssertionError("a kernel without an end ended")


def wrong_program(rng: random.Random) -> None:
    """Ranks that diverge, loops that are left."""
    size = rng.randint(2, 4)
    try:
        call(
            diverging.using(workers=size),
            rng.randrange(size),
            rng.choice(["break", "barrier"]),
        )
    except dsm.RegionError:
        return
    raise AssertionError("a wrong program ended well")


def many_arrays(rng: random.Random) -> None:
    """Arrays of all sizes come, are used by workers, and go."""
    sizes = [rng.choice([1, 10, 1000, 200_000]) for _ in range(rng.randint(1, 40))]
    arrays = [dsm.full(n, k, dtype=float) for k, n in enumerate(sizes)]
    total = dsm.zeros(1)
    call(adding.using(workers=rng.randint(1, 4)), arrays, total)
    assert total[0] == sum(k * n for k, n in enumerate(sizes))


def large_messages(rng: random.Random) -> None:
    """Megabytes there and back."""
    text = rng.randbytes(rng.choice([1 << 16, 1 << 20, 1 << 23]))
    size = rng.randint(1, 3)
    assert call(echoing.using(workers=size), text) == [text] * size


def private_copies(rng: random.Random) -> None:
    """Arrays of which every worker has a copy of its own, small and large."""
    size, n = rng.randint(1, 3), 7 * rng.choice([100, 10_000, 100_000])
    a = np.ones(n)
    assert call(scribbling.using(workers=size), a) == [n * 6 / 7] * size
    assert a.sum() == n


def no_room(rng: random.Random) -> None:
    """More than there can be is refused."""
    try:
        dsm.zeros(1 << rng.randint(48, 58), np.uint8)
    except dsm.SharedMemoryFull:
        return
    raise AssertionError("petabytes were given")


def anew(rng: random.Random) -> None:
    """The team is ended, and the next call starts another one."""
    process.shutdown()
    size = rng.randint(1, 3)
    assert call(roll_call.using(workers=size)) == list(range(size))


def fork(rng: random.Random) -> None:
    """A child of the caller reads what it inherited, has a team of its own, and goes."""
    data = dsm.array(np.arange(1000))
    armed, interrupts.armed = interrupts.armed, False
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with contextlib.suppress(BaseException):
            if data.sum() == 499_500 and roll_call.using(workers=2)() == [0, 1]:
                os.write(writing, b"well")
        os._exit(0)
    os.close(writing)
    try:
        try:
            interrupts.armed = armed
            word = os.read(reading, 4)
        finally:  # twice, for Ctrl-C may strike here, but once
            interrupts.armed = False
    finally:
        os.close(reading)
        with contextlib.suppress(ChildProcessError):  # SIGCHLD may be ignored
            os.waitpid(pid, 0)
    expect(word == b"well", "a forked child could not call")


ACTS: dict[Callable[[random.Random], float | None], int] = {
    whole: 60,
    error_in_kernel: 10,
    death_in_kernel: 6,
    timeout: 1,
    wrong_program: 6,
    many_arrays: 6,
    large_messages: 4,
    private_copies: 4,
    no_room: 2,
}
"""Acts and how often they come."""

ALONE = {anew: 2, fork: 1}
"""Likewise, of callers of one thread."""
