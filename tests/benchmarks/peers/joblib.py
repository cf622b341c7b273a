"""joblib with its loky workers, kept between calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import joblib

from benchmarks.peers.mapping import Map, Pool


def start(workers: int) -> Map:
    """A Parallel of so many processes, entered once for all calls."""
    parallel = joblib.Parallel(n_jobs=workers).__enter__()

    def run(function: Callable[[Any], Any], items: Iterable[Any], chunk: int) -> object:
        parallel.batch_size = chunk
        return parallel(joblib.delayed(function)(item) for item in items)

    return run


def peer() -> Pool:
    """The contender."""
    return Pool(start)
