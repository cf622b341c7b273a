"""Ours."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from types import FunctionType

import numpy as np

import dsmfor as dsm
from benchmarks.timing import once, typical
from benchmarks.work import (
    WORKERS,
    burn,
    burn_all,
    lock_seconds,
    read_pages,
    read_three,
    resident_bytes,
)

BLOCK = 32768
"""Elements of a slice of the triad: its product stays in a core's second-level cache."""


@dsm.parallel(workers=WORKERS)
def empty() -> None:
    """A region that does nothing."""


@dsm.parallel(workers=1)
def range_loop(n: int) -> float:
    """Seconds per index of a plain loop, in a worker."""
    total = 0
    began = time.perf_counter()
    for i in range(n):
        total += i
    return (time.perf_counter() - began) / n


@dsm.parallel(workers=1)
def prange_loop(n: int, schedule: str) -> float:
    """Seconds per index of the same loop dealt by prange."""
    total = 0
    began = time.perf_counter()
    for i in dsm.prange(n, schedule=schedule):
        total += i
    return (time.perf_counter() - began) / n


@dsm.parallel
def pass_barriers(count: int) -> float:
    """Seconds per barrier."""
    dsm.barrier()
    began = time.perf_counter()
    for _ in range(count):
        dsm.barrier()
    return (time.perf_counter() - began) / count


@dsm.parallel(workers=1)
def take_lock(count: int) -> float:
    """Seconds per uncontended lock and unlock."""
    return lock_seconds(dsm.critical("x"), count)


@dsm.parallel(workers=WORKERS)
def fill(a: np.ndarray, value: float) -> None:
    """Give every element a value, each page by the worker that uses it later."""
    for s in dsm.pslices(len(a), chunk=BLOCK):
        a[s] = value


@dsm.parallel(workers=WORKERS)
def add_scaled(a: np.ndarray, b: np.ndarray, c: np.ndarray, scale: float) -> None:
    """``a = b + scale * c``, in slices whose intermediate result stays in the cache."""
    for s in dsm.pslices(len(a), chunk=BLOCK):
        out = a[s]
        np.multiply(c[s], scale, out=out)
        out += b[s]


@dsm.parallel(workers=WORKERS)
def burn_each(n: int, schedule: str) -> None:
    """The triangular loop."""
    for i in dsm.prange(n, schedule=schedule):
        burn(i)


@dsm.parallel(workers=WORKERS)
def read_everywhere(a: np.ndarray) -> float:
    """Read every page in every worker."""
    return read_pages(a)


@dsm.parallel(workers=WORKERS)
def draw(n: int, count: int) -> tuple[float, int]:
    """Begin a random loop, and stop it after `count` indices.

    Returns the seconds to the first index, and the bytes that the worker grew by.
    """
    seen, first = 0, 0.0
    before = resident_bytes()
    began = time.perf_counter()
    for _ in dsm.prange(n, schedule="random"):
        if not seen:
            first = time.perf_counter() - began
        seen += 1  # noqa: SIM113 (enumerate would pair wrongly with a dealt loop)
        if seen == count:
            dsm.cancel()
    return first, resident_bytes() - before


@dsm.parallel(workers=WORKERS)
def untouched(a: np.ndarray) -> None:
    """A kernel that leaves its array alone."""


number, items, code = 1, [1], burn


def uses() -> None:
    """A kernel that captures three things, which `changed_call` replaces."""
    assert number >= 0
    assert items
    assert code is not None


class Dsmfor:
    """What is measured of dsmfor."""

    def __init__(self) -> None:
        self.arrays: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
        self.array: np.ndarray | None = None

    def start_team(self, workers: int) -> float:
        """Start the workers; they are idle afterwards."""
        empty.using(workers=workers)()
        return 0.0

    def empty_region(self, seconds: float, workers: int) -> float:
        """Call a kernel that does nothing."""
        return typical(empty.using(workers=workers), seconds)

    def warm_call(self, seconds: float, length: int) -> float:
        """Call a kernel with three shared arrays and a captured scalar."""
        return typical(self._call_of(dsm.ones(length), dsm.ones(length), dsm.ones(length)), seconds)

    def warm_call_plain(self, seconds: float, length: int) -> float:
        """The same with plain arrays, which are copied in and out."""
        return typical(self._call_of(np.ones(length), np.ones(length), np.ones(length)), seconds)

    def copies(self, n: int, seconds: float) -> float:
        """Bytes per second that a call with a plain array copies."""
        here = np.ones(n)
        return 2 * here.nbytes / typical(lambda: untouched(here), seconds)

    def changed_call(self, seconds: float, what: str) -> float:
        """Call a kernel after one of its captures was replaced."""
        codes = [burn.__code__.replace(co_firstlineno=line) for line in (1, 2)]
        space = {"number": 1, "items": [1], "code": FunctionType(codes[0], globals())}
        kernel = FunctionType(uses.__code__, space)
        decorated = dsm.parallel(workers=1)(kernel)
        turns = itertools.count()

        def call() -> None:
            turn = next(turns)
            if what == "number":
                space["number"] = turn
            elif what == "list":
                space["items"] = [turn]
            elif what == "code":
                space["code"] = FunctionType(codes[turn % 2], globals())
            decorated()

        return typical(call, seconds)

    def _call_of(self, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> Callable[[], object]:
        scale = 3.0

        @dsm.parallel(workers=WORKERS)
        def kernel(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> None:
            read_three((a, b, c, scale))

        return lambda: kernel(a, b, c)

    def range_loop(self, n: int) -> float:
        """Seconds per index of a plain loop, in a worker."""
        return range_loop(n)[0]

    def prange_loop(self, n: int, schedule: str) -> float:
        """Seconds per index of the same loop dealt by prange, in that worker."""
        return prange_loop(n, schedule)[0]

    def barrier(self, count: int, workers: int) -> float:
        """Seconds per barrier inside one region."""
        return pass_barriers.using(workers=workers)(count)[0]

    def lock(self, count: int) -> float:
        """Seconds per uncontended lock and unlock."""
        return take_lock(count)[0]

    def triad(self, n: int, seconds: float) -> float:
        """Bytes per second of ``a = b + scale * c``: two arrays read, one written."""
        if self.arrays is None:
            self.arrays = dsm.empty(n), dsm.empty(n), dsm.empty(n)
            for array in self.arrays:
                fill(array, 1.0)
        a, b, c = self.arrays
        return 24 * n / typical(lambda: add_scaled(a, b, c, 3.0), seconds)

    def triangle(self, n: int, schedule: str) -> float:
        """Duration of the triangular loop over half of its duration on one core."""
        alone = once(lambda: burn_all(n))
        return once(lambda: burn_each(n, schedule)) / (alone / 2)

    def hold(self, size: int) -> float:
        """Fill an array of `size` bytes and have every worker read it."""
        self.array = dsm.ones(size // 8)
        read_everywhere(self.array)
        return 0.0

    def random_start(self, n: int) -> float:
        """Seconds to the first index of a random loop over range(`n`)."""
        return max(first for first, _ in draw(n, 1000))

    def random_memory(self, n: int) -> float:
        """Bytes that a worker grows by in a million indices of it."""
        return max(grown for _, grown in draw(n, 10**6))


def peer() -> Dsmfor:
    """The contender."""
    return Dsmfor()
