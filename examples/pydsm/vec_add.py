"""Add two vectors, each process its share, and let one print what all have made.

$ python examples/pydsm/vec_add.py --size 10_000_000 --processes 2
"""

import argparse
from time import perf_counter

import numpy as np

from dsmfor import pydsm


def add(resource, n):
    myid = resource["id"]
    A = pydsm.Cluster.getShared("A")
    B = pydsm.Cluster.getShared("B")
    C = pydsm.Cluster.getShared("C")
    myidxs = pydsm.Cluster.splitIndices(n, myid, random=True)
    C[myidxs] = A[myidxs] + B[myidxs]

    pydsm.Cluster.barrier()  # all shares are in C
    if myid == 1 and n <= 10:
        print("process 1 sees", np.array(C), flush=True)


def run(n, processes, rounds=1):
    """The sum of two vectors, and the seconds that it took in the last round."""
    with pydsm.Cluster(processes) as cluster:
        A = cluster.createShared(name="A", shape=n, dataType=int)
        B = cluster.createShared("B", n, int)
        C = cluster.createShared("C", n, int)
        A[:] = np.arange(n)
        B[:] = A + 1
        for _ in range(rounds):
            start = perf_counter()
            cluster.runProcesses(add, paras=(n,))
            seconds = perf_counter() - start
        return np.array(C), seconds


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, default=1_000_000, help="elements of the long vectors")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    for n in (10, options.size):
        C, seconds = run(n, options.processes)
        np.testing.assert_array_equal(C, 2 * np.arange(n) + 1)
        print(f"vec_add, {n:,} elements, sum {C.sum():,}: {seconds:.4f} s")
