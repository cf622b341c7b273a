"""NumPy on one core, for scale."""

from __future__ import annotations

import numpy as np

from benchmarks.timing import typical


class OneCore:
    """What is measured without any workers."""

    def __init__(self) -> None:
        self.arrays: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    def copies(self, n: int, seconds: float) -> float:
        """Bytes per second of a copy there and back."""
        here, there = np.ones(n), np.ones(n)

        def both() -> None:
            np.copyto(there, here)
            np.copyto(here, there)

        return 2 * here.nbytes / typical(both, seconds)

    def triad(self, n: int, seconds: float) -> float:
        """Bytes per second of ``a[:] = b + scale * c`` as it is usually written."""
        if self.arrays is None:
            self.arrays = np.zeros(n), np.ones(n), np.ones(n)
        a, b, c = self.arrays

        def assign() -> None:
            a[:] = b + 3.0 * c

        return 24 * n / typical(assign, seconds)


def peer() -> OneCore:
    """The contender."""
    return OneCore()
