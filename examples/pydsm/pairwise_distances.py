"""Measure the distance of every point to every other, each process some rows of the table.

$ python examples/pydsm/pairwise_distances.py --size 2000 --processes 2
"""

import argparse
from time import perf_counter

import numpy as np
from scipy.spatial.distance import cdist

from dsmfor import pydsm


def measure(resource, X):
    D = pydsm.Cluster.getShared("D")
    myidxs = pydsm.Cluster.splitIndices(len(X), resource["id"], random=False)
    if myidxs:  # with more processes than points, some have none
        D[myidxs] = cdist(X[myidxs], X)


def run(size, processes, rounds=1):
    """The table of distances of points in space, and the seconds of the last round."""
    X = np.random.default_rng(seed=1).random((size, 3))
    with pydsm.Cluster(processes) as cluster:
        D = cluster.createShared("D", (size, size), float)
        for _ in range(rounds):
            start = perf_counter()
            cluster.runProcesses(measure, paras=(X,))
            seconds = perf_counter() - start
        np.testing.assert_array_equal(D, cdist(X, X))
        return np.array(D), seconds


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, default=2000, help="points")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    D, seconds = run(options.size, options.processes)
    np.fill_diagonal(D, np.inf)
    print(
        f"pairwise_distances, {options.size:,} points, nearest {D.min():.6f} apart: {seconds:.4f} s"
    )
