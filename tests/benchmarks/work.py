"""The bodies that workers run, importable by all of them."""

from __future__ import annotations

import os
import time
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np

WORKERS = 2

held: list[np.ndarray] = []
"""What `keep` keeps alive in a worker."""


def nothing(_: object = None) -> None:
    """The body of an empty region."""


def read_three(arguments: tuple[np.ndarray, np.ndarray, np.ndarray, float]) -> float:
    """The body of a call with three arrays and a scalar: one element of each."""
    a, b, c, scale = arguments
    return float(a[0] + scale * (b[0] + c[0]))


def burn(turns: int) -> int:
    """Busy arithmetic in pure Python whose cost is proportional to `turns`."""
    total = 0
    for k in range(turns):
        total += k & 7
    return total


def burn_all(n: int) -> None:
    """The triangular loop on one core."""
    for i in range(n):
        burn(i)


def resident_bytes() -> int:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def read_pages(array: np.ndarray) -> float:
    """Read one element of every page of a float64 array."""
    return float(array[::512].sum())


def keep(arguments: tuple[np.ndarray, str, int]) -> None:
    """Read `array` everywhere and keep it, once all `count` workers have theirs.

    The workers meet through files in `directory`, so that one of them cannot
    serve both calls.
    """
    array, directory, count = arguments
    held[:] = [array]
    read_pages(array)
    (Path(directory) / str(os.getpid())).touch()
    deadline = time.monotonic() + 60
    while len(os.listdir(directory)) < count:
        if time.monotonic() > deadline:
            raise TimeoutError(f"fewer than {count} workers took the array within 60 s")
        time.sleep(0.001)


def lock_seconds(lock: AbstractContextManager[object], count: int) -> float:
    """Seconds per lock and unlock, less those of the loop itself."""
    began = time.perf_counter()
    for _ in range(count):
        pass
    between = time.perf_counter()
    for _ in range(count):
        with lock:
            pass
    ended = time.perf_counter()
    return ((ended - between) - (between - began)) / count
