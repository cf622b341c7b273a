"""The doctor's trial: a region is really run, a worker really killed, and the next call timed."""

from __future__ import annotations

import os
import signal
import statistics
import time
from collections.abc import Iterator

import numpy as np

from dsmfor import arrays, team
from dsmfor.doctor.findings import Finding
from dsmfor.errors import WorkerDied
from dsmfor.loops import prange
from dsmfor.parallel import parallel

__all__ = ["trial"]

_PATIENCE = 60.0  # seconds for a region that takes microseconds
_ROUNDS = 300
_LARGE = (1 << 20) // 8


@parallel(workers=2, timeout=_PATIENCE, schedule="dynamic")
def _count(a: np.ndarray, b: np.ndarray) -> int:
    for i in prange(len(a)):
        a[i] += i
        b[i] += i
    return os.getpid()


@parallel(workers=2, timeout=_PATIENCE)
def _die() -> None:
    if team.current().rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)


@parallel(workers=2, timeout=_PATIENCE)
def _nothing() -> None:
    pass


def trial() -> Iterator[Finding]:
    """Run a region of two workers, kill one, see that it is replaced, and time an empty region.

    Yields
    ------
    Finding
        One for each step; after a problem there is no further step.
    """
    for topic, step in (
        ("region", _region),
        ("killed worker", _killed),
        ("empty region", _timed),
    ):
        try:
            yield Finding(topic, "ok", step())
        except Exception as error:  # noqa: BLE001  # whatever it is, it is what the user would meet
            name = type(error).__name__
            remedy = "if nothing above explains it, report it with this whole table"
            yield Finding(topic, "problem", f"{name}: {error}", remedy)
            return


def _region() -> str:
    shared, plain = arrays.zeros(_LARGE, np.int64), np.zeros(1000, np.int64)
    began = time.perf_counter()
    pids = _count(shared[:1000], plain)
    seconds = time.perf_counter() - began
    right = np.arange(1000)
    if not (np.array_equal(plain, right) and np.array_equal(shared[:1000], right)):
        raise ValueError("two workers counted wrong: memory that is shared did not show their work")
    return f"two workers, pids {pids[0]} and {pids[1]}, counted right; started in {seconds:.2f} s"


def _killed() -> str:
    began = time.perf_counter()
    try:
        _die()
    except WorkerDied as error:
        dead = error.pid
    else:
        raise ValueError("a worker was killed, and nobody noticed")
    told = time.perf_counter() - began
    pids = _count(arrays.zeros(10, np.int64), np.zeros(10, np.int64))
    if dead in pids:
        raise ValueError(f"worker {dead} was killed and runs all the same")
    return f"told after {1e3 * told:.1f} ms, and replaced: the next call had a full team"


def _timed() -> str:
    _nothing()
    times = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        _nothing()
        times.append(time.perf_counter() - began)
    middle, best = statistics.median(times), min(times)
    return f"{1e6 * middle:.0f} us from call to return (median of {_ROUNDS}; best {1e6 * best:.0f})"
