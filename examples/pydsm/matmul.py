"""Multiply two matrices, each process some rows.

$ python examples/pydsm/matmul.py --size 1000 --processes 2
"""

import argparse
from time import perf_counter

import numpy as np

from dsmfor import pydsm


def multiply(resource, X):
    A, Y = resource["A"], resource["Y"]
    myidxs = pydsm.Cluster.splitIndices(len(A), resource["id"], random=True)
    if myidxs:  # with more processes than rows, some have none
        Y[myidxs,] = np.matmul(A[myidxs,], X)


def run(size, processes, rounds=1):
    """The product of two square matrices of whole numbers, and the seconds of the last round."""
    numbers = np.arange(size * size, dtype=float).reshape(size, size)
    X = numbers % 7 - 3
    with pydsm.Cluster(processes) as cluster:
        A = cluster.createShared("A", (size, size), float)
        Y = cluster.createShared("Y", (size, size), float)
        A[:] = numbers % 11 - 5
        for _ in range(rounds):
            start = perf_counter()
            cluster.runProcesses(multiply, paras=(X,))
            seconds = perf_counter() - start
        np.testing.assert_array_equal(Y, np.matmul(A, X))
        return np.array(Y), seconds


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, default=1000, help="rows and columns of the matrices")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    Y, seconds = run(options.size, options.processes)
    total = int(np.abs(Y).sum())
    print(f"matmul, {options.size} x {options.size}, sum {total:,}: {seconds:.4f} s")
