"""What Python's standard library offers beside its pools: Value, Barrier and locks."""

from __future__ import annotations

import multiprocessing
import threading
from time import perf_counter

from benchmarks.work import lock_seconds

fork = multiprocessing.get_context("fork")


class Primitives:
    """What is measured of multiprocessing's and threading's primitives."""

    def claim_loop(self, n: int) -> float:
        """Seconds per index when each is claimed from a Value, by one process."""
        counter = fork.Value("q")
        total = 0
        began = perf_counter()
        while True:
            with counter.get_lock():
                i = counter.value
                counter.value = i + 1
            if i >= n:
                break
            total += i
        return (perf_counter() - began) / n

    def barrier(self, count: int, workers: int) -> float:
        """Seconds per passage through a Barrier by so many processes."""
        gate = fork.Barrier(workers)
        answers = fork.SimpleQueue()

        def pass_all(rank: int) -> None:
            gate.wait()
            began = perf_counter()
            for _ in range(count):
                gate.wait()
            if rank == 0:
                answers.put((perf_counter() - began) / count)

        team = [fork.Process(target=pass_all, args=(rank,)) for rank in range(workers)]
        for process in team:
            process.start()
        for process in team:
            process.join()
        return answers.get()

    def lock(self, count: int) -> float:
        """Seconds per lock and unlock of a multiprocessing.Lock."""
        return lock_seconds(fork.Lock(), count)

    def thread_lock(self, count: int) -> float:
        """Seconds per lock and unlock of a threading.Lock."""
        return lock_seconds(threading.Lock(), count)


def peer() -> Primitives:
    """The contender."""
    return Primitives()
