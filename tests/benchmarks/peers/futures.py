"""concurrent.futures.ProcessPoolExecutor."""

from __future__ import annotations

import collections
import multiprocessing
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from benchmarks.peers.mapping import Map, Pool


def start(workers: int) -> Map:
    """An executor of so many processes."""
    executor = ProcessPoolExecutor(workers, multiprocessing.get_context("fork"))

    def run(function: Callable[[Any], Any], items: Iterable[Any], chunk: int) -> object:
        return collections.deque(executor.map(function, items, chunksize=chunk), maxlen=0)

    return run


def peer() -> Pool:
    """The contender."""
    return Pool(start)
