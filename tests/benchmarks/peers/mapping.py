"""The measures that all pools share: they differ only in how a function is mapped."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from benchmarks.timing import once, typical
from benchmarks.work import WORKERS, burn, burn_all, keep, nothing, read_three


class Map(Protocol):
    """Call `function` on every item, `chunk` items at a time; return when all are done."""

    def __call__(self, function: Callable[[Any], Any], items: Iterable[Any], chunk: int) -> object:
        """Results are not used."""


@dataclass
class Pool:
    """The measures of a pool.

    Parameters
    ----------
    start : callable
        Takes the number of workers, returns a `Map` on a new pool of so many.

    Attributes
    ----------
    teams : dict of Map
        The pools started so far, by their number of workers.
    array : ndarray of float64
        What `hold` filled last.
    """

    start: Callable[[int], Map]
    teams: dict[int, Map] = field(default_factory=dict)
    array: np.ndarray = field(default_factory=lambda: np.empty(0))

    def team(self, workers: int) -> Map:
        """The pool of so many workers."""
        if workers not in self.teams:
            self.teams[workers] = self.start(workers)
        return self.teams[workers]

    def start_team(self, workers: int) -> float:
        """Start the workers; they are idle afterwards."""
        self.team(workers)(nothing, range(workers), 1)
        return 0.0

    def empty_region(self, seconds: float, workers: int) -> float:
        """Map a function that does nothing: one item for each worker."""
        run = self.team(workers)
        return typical(lambda: run(nothing, range(workers), 1), seconds)

    def warm_call(self, seconds: float, length: int) -> float:
        """Map a function of three arrays and a scalar: one item for each worker."""
        arguments = (np.ones(length), np.ones(length), np.ones(length), 3.0)
        run = self.team(WORKERS)
        return typical(lambda: run(read_three, [arguments] * WORKERS, 1), seconds)

    def triangle(self, n: int, chunk: int) -> float:
        """Duration of the triangular loop over half of its duration on one core."""
        run = self.team(WORKERS)
        alone = once(lambda: burn_all(n))
        return once(lambda: run(burn, range(n), chunk)) / (alone / 2)

    def hold(self, size: int) -> float:
        """Fill an array of `size` bytes and have every worker read and keep it."""
        self.array = np.ones(size // 8)
        with tempfile.TemporaryDirectory() as directory:
            arguments = (self.array, directory, WORKERS)
            self.team(WORKERS)(keep, list(itertools.repeat(arguments, WORKERS)), 1)
        return 0.0
