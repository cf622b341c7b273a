"""multiprocessing.Pool."""

from __future__ import annotations

import collections
import multiprocessing
from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.peers.mapping import Map, Pool


def start(workers: int) -> Map:
    """A Pool of so many processes."""
    pool = multiprocessing.get_context("fork").Pool(workers)

    def run(function: Callable[[Any], Any], items: Iterable[Any], chunk: int) -> object:
        if chunk == 1:
            return pool.map(function, items, 1)
        return collections.deque(pool.imap_unordered(function, items, chunk), maxlen=0)

    return run


def peer() -> Pool:
    """The contender."""
    return Pool(start)
