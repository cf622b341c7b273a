"""Multiply two integer matrices tile by tile, where NumPy alone uses one core.

    python examples/matmul.py --size 1000 --workers 2

Matrices of floats NumPy hands to BLAS, which has threads of its own. Inside a region each worker
has `blas_threads=1` of them, the default, so that workers times threads never exceeds the cores.
"""

import argparse
from time import perf_counter

import numpy as np

import dsmfor as dsm

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--size", type=int, default=1000, help="rows and columns of the matrices")
parser.add_argument("--workers", type=int, help="default: one for each core")
options = parser.parse_args()


@dsm.parallel(workers=options.workers, shared=["A", "B", "C"], schedule="dynamic", blas_threads=1)
def multiply(A, B, C):
    for rows, columns in dsm.ptiles(C.shape, (64, 64)):
        np.matmul(A[rows], B[:, columns], out=C[rows, columns])


def seconds(func, *args):
    start = perf_counter()
    func(*args)
    return perf_counter() - start


random = np.random.default_rng(seed=1)
A = random.integers(-9, 10, (options.size, options.size))
B = random.integers(-9, 10, (options.size, options.size))
C, expected = np.zeros_like(A), np.zeros_like(A)

multiply(np.eye(8), np.eye(8), np.eye(8))  # the first call starts the workers; they stay
serial = seconds(multiply.serial, A, B, expected)
parallel = seconds(multiply, A, B, C)

np.testing.assert_array_equal(C, A @ B)
np.testing.assert_array_equal(C, expected)
print(
    f"matmul, {options.size} x {options.size} integers: "
    f"serial {serial:.2f} s, parallel {parallel:.2f} s, speed-up {serial / parallel:.1f}"
)
