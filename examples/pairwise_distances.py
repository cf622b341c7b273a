"""Compare every handwritten digit of scikit-learn's data set with every other, by SciPy's cdist.

$ python examples/pairwise_distances.py --size 1797 --workers 2
"""

import argparse
from time import perf_counter

import numpy as np
from scipy.spatial.distance import cdist
from sklearn.datasets import load_digits

import dsmfor as dsm

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--size", type=int, default=1797, help="number of images, at most 1797")
parser.add_argument("--workers", type=int, help="default: one for each core")
options = parser.parse_args()


@dsm.parallel(workers=options.workers)  # every array that comes as an argument is shared
def pairwise(X, D):
    for rows in dsm.pslices(len(X)):
        cdist(X[rows], X, metric="jensenshannon", out=D[rows])


def best_time(func, *args):
    times = []
    for _ in range(3):
        start = perf_counter()
        func(*args)
        times.append(perf_counter() - start)
    return min(times)


digits = load_digits()
X = digits.data[: options.size]  # shape (images, 64), each image 8 x 8 pixels of ink
D = np.zeros((len(X), len(X)))
expected = np.zeros_like(D)

pairwise(X[:2], np.zeros((2, 2)))  # the first call starts the workers; they stay
serial = best_time(pairwise.serial, X, expected)
parallel = best_time(pairwise, X, D)

np.testing.assert_array_equal(D, cdist(X, X, metric="jensenshannon"))
np.fill_diagonal(D, np.inf)
same = np.mean(digits.target[D.argmin(axis=1)] == digits.target[: len(X)])
print(
    f"pairwise_distances, {len(X)} images ({same:.1%} have their like as nearest): "
    f"serial {serial:.2f} s, parallel {parallel:.2f} s, speed-up {serial / parallel:.1f}"
)
