"""numba's prange: threads without the GIL in a compiled function."""

from __future__ import annotations

import numba
import numpy as np

from benchmarks.timing import typical


@numba.njit(parallel=True, cache=True)
def region(ranks: np.ndarray) -> None:
    """A region of one iteration a thread."""
    for rank in numba.prange(len(ranks)):
        ranks[rank] += 1


@numba.njit(parallel=True, cache=True)
def add_scaled(a: np.ndarray, b: np.ndarray, c: np.ndarray, scale: float) -> None:
    """``a = b + scale * c``."""
    for i in numba.prange(len(a)):
        a[i] = b[i] + scale * c[i]


class Numba:
    """What is measured of numba."""

    def __init__(self) -> None:
        self.arrays: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    def empty_region(self, seconds: float, workers: int) -> float:
        """Call a function that runs one iteration on each thread."""
        ranks = np.zeros(workers)
        return typical(lambda: region(ranks), seconds)

    def triad(self, n: int, seconds: float) -> float:
        """Bytes per second of ``a = b + scale * c``, elementwise."""
        if self.arrays is None:
            self.arrays = np.zeros(n), np.ones(n), np.ones(n)
        a, b, c = self.arrays
        return 24 * n / typical(lambda: add_scaled(a, b, c, 3.0), seconds)


def peer() -> Numba:
    """The contender."""
    return Numba()
