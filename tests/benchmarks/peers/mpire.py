"""mpire.WorkerPool with its workers kept alive between calls."""

from __future__ import annotations

import atexit
from collections.abc import Callable, Iterable
from typing import Any

from mpire import WorkerPool
from mpire.utils import make_single_arguments

from benchmarks.peers.mapping import Map, Pool


def start(workers: int) -> Map:
    """A pool of so many processes."""
    pool = WorkerPool(workers, keep_alive=True, start_method="fork")
    atexit.register(pool.stop_and_join)

    def run(function: Callable[[Any], Any], items: Iterable[Any], chunk: int) -> object:
        # A tuple would be taken apart into several arguments.
        arguments = make_single_arguments(items, generator=False)
        return pool.map_unordered(function, arguments, chunk_size=chunk)

    return run


def peer() -> Pool:
    """The contender."""
    return Pool(start)
