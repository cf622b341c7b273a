"""py-dsm, which starts its processes at every region and spins in its barrier."""

from __future__ import annotations

import multiprocessing
from multiprocessing.queues import SimpleQueue
from time import perf_counter
from typing import Any

import pydsm

from benchmarks.timing import typical
from benchmarks.work import WORKERS, nothing

Resource = dict[str, Any]


def pass_barriers(resource: Resource, count: int, answers: SimpleQueue[float]) -> None:
    """Time `count` barriers in a worker."""
    pydsm.Cluster.barrier()
    began = perf_counter()
    for _ in range(count):
        pydsm.Cluster.barrier()
    if resource["id"] == 0:
        answers.put((perf_counter() - began) / count)


def deal(resource: Resource, n: int, answers: SimpleQueue[tuple[float, int]]) -> None:
    """Time the dealing of `n` indices in a worker, and see what memory they take."""
    before = private_bytes()
    began = perf_counter()
    indices = pydsm.Cluster.splitIndices(n, resource["id"], random=True)
    answers.put((perf_counter() - began, private_bytes() - before))
    del indices


def private_bytes() -> int:
    """Memory that this process alone has."""
    with open("/proc/self/smaps_rollup") as rollup:
        return 1024 * sum(int(line.split()[1]) for line in rollup if line.startswith("Private_"))


class PyDSM:
    """What is measured of py-dsm."""

    def __init__(self) -> None:
        self.cluster: pydsm.Cluster | None = None

    def empty_region(self, seconds: float, workers: int) -> float:
        """Run processes that do nothing, in a cluster that exists."""
        with pydsm.Cluster(workers) as cluster:
            return typical(lambda: cluster.runProcesses(nothing), seconds)

    def barrier(self, count: int, workers: int) -> float:
        """Seconds per barrier inside one region."""
        answers: SimpleQueue[float] = multiprocessing.SimpleQueue()
        with pydsm.Cluster(workers) as cluster:
            cluster.runProcesses(pass_barriers, paras=(count, answers))
        return answers.get()

    def random_start(self, n: int) -> float:
        """Seconds until a worker has its random share of `n` indices."""
        return max(seconds for seconds, _ in self._deal(n))

    def random_memory(self, n: int) -> float:
        """Bytes that its share takes in a worker."""
        return max(grown for _, grown in self._deal(n))

    def _deal(self, n: int) -> list[tuple[float, int]]:
        answers: SimpleQueue[tuple[float, int]] = multiprocessing.SimpleQueue()
        with pydsm.Cluster(WORKERS) as cluster:
            cluster.runProcesses(deal, paras=(n, answers))
        return [answers.get() for _ in range(WORKERS)]


def peer() -> PyDSM:
    """The contender."""
    return PyDSM()
