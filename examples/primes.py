"""Count the primes below a limit by a sieve; each worker helps itself to the next block.

$ python examples/primes.py --limit 200_000_000 --workers 2
"""

import argparse
from math import isqrt
from time import perf_counter

import numpy as np

import dsmfor as dsm

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--limit", type=int, default=200_000_000, help="count below this number")
parser.add_argument("--workers", type=int, help="default: one for each core")
options = parser.parse_args()


@dsm.parallel(workers=options.workers, reduce="+")  # the call returns the sum over the workers
def count_primes(limit, small_primes):
    found = 0
    # Self-scheduled: a worker that is done with a block of numbers claims the next one.
    for block in dsm.pslices(2, limit, schedule="dynamic", chunk=1_000_000):
        is_prime = np.ones(block.stop - block.start, dtype=bool)
        for p in small_primes:
            first = max(p * p, -(-block.start // p) * p)  # first multiple of p in this block
            is_prime[first - block.start :: p] = False
        found += np.count_nonzero(is_prime)
    return found


def sieve(limit):
    """All primes below the limit, by NumPy alone."""
    is_prime = np.ones(limit, dtype=bool)
    is_prime[:2] = False
    for p in range(2, isqrt(limit) + 1):
        if is_prime[p]:
            is_prime[p * p :: p] = False
    return np.flatnonzero(is_prime)


def timed(func, *args):
    start = perf_counter()
    return func(*args), perf_counter() - start


small_primes = sieve(isqrt(options.limit) + 1).tolist()
count_primes(10, [2, 3])  # the first call starts the workers; they stay
expected, serial = timed(count_primes.serial, options.limit, small_primes)
found, parallel = timed(count_primes, options.limit, small_primes)

np.testing.assert_equal(found, expected)
np.testing.assert_equal(found, len(sieve(options.limit)))
print(
    f"primes, {found:,} below {options.limit:,}: "
    f"serial {serial:.2f} s, parallel {parallel:.2f} s, speed-up {serial / parallel:.1f}"
)
