"""Add two vectors: the first program with workers, a loop they share, and a barrier.

$ python examples/vec_add.py --size 10_000_000 --workers 2
"""

import argparse
from time import perf_counter

import numpy as np

import dsmfor as dsm

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--size", type=int, default=10_000_000, help="elements of the long vectors")
parser.add_argument("--workers", type=int, help="default: one for each core")
options = parser.parse_args()


@dsm.parallel(workers=options.workers, shared=["A", "B", "C"])
def add(A, B, C):
    # Every worker runs this whole function; the loop deals its slices out among them.
    # `for i in dsm.prange(len(C)): C[i] = A[i] + B[i]` adds the same, one element at a time.
    for part in dsm.pslices(len(C)):
        np.add(A[part], B[part], out=C[part])
    dsm.barrier()  # now every part is there (a loop ends in a barrier anyway)
    if dsm.rank() == dsm.size() - 1 and len(C) <= 10:
        print("vec_add: the last worker sees", C)


# Plain arrays, as any program has them: C is updated in place.
A, B, C = np.arange(10), np.arange(10) + 1, np.zeros(10, dtype=int)
add(A, B, C)
np.testing.assert_array_equal(C, A + B)

# Arrays made by dsm are plain arrays too, in memory that the workers see: nothing is copied.
A, B, C = dsm.ones(options.size), dsm.ones(options.size), dsm.zeros(options.size)
A *= np.pi


def best_time(func):
    times = []
    for _ in range(5):
        start = perf_counter()
        func(A, B, C)
        times.append(perf_counter() - start)
    np.testing.assert_array_equal(C, A + B)
    C[:] = 0
    return min(times)


serial, parallel = best_time(add.serial), best_time(add)
print(
    f"vec_add, {options.size:,} elements: "
    f"serial {serial:.4f} s, parallel {parallel:.4f} s, speed-up {serial / parallel:.1f}"
)
