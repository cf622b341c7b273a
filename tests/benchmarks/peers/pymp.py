"""pymp-pypi, which forks its workers at every region."""

from __future__ import annotations

from time import perf_counter

import pymp

from benchmarks.timing import typical


class Pymp:
    """What is measured of pymp."""

    def empty_region(self, seconds: float, workers: int) -> float:
        """Enter and leave a parallel context."""

        def region() -> None:
            with pymp.Parallel(workers):
                pass

        return typical(region, seconds)

    def claim_loop(self, n: int) -> float:
        """Seconds per index of `xrange`, by one process."""
        total = 0
        with pymp.Parallel(1) as team:
            indices = team.xrange(n)  # fills its queue, which is not counted
            began = perf_counter()
            for i in indices:
                total += i
            return (perf_counter() - began) / n


def peer() -> Pymp:
    """The contender."""
    return Pymp()
