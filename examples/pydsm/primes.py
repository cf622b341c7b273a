"""Count the primes below a limit by a sieve; a lock guards where the next block begins.

$ python examples/pydsm/primes.py --limit 10_000_000 --processes 2
"""

import argparse
from math import isqrt
from time import perf_counter

import numpy as np

from dsmfor import pydsm


def sieve_blocks(resource, limit, length, small_primes):
    base, found = resource["next base"], resource["found"]
    while True:
        with resource["base lock"]:  # one process at a time takes the next block
            first = int(base[0])
            base[0] += length
        if first >= limit:
            break
        is_prime = np.ones(min(length, limit - first), dtype=bool)
        for p in small_primes:
            start = max(p * p, -(-first // p) * p)  # the first multiple of p in this block
            is_prime[start - first :: p] = False
        found[resource["id"]] += np.count_nonzero(is_prime)


def small_primes_below(limit):
    return [p for p in range(2, limit) if all(p % q for q in range(2, isqrt(p) + 1))]


def run(limit, processes, rounds=1):
    """How many primes there are, and each process found, and the seconds of the last round."""
    small_primes = small_primes_below(isqrt(limit) + 1)
    with pydsm.Cluster(processes) as cluster:
        base = cluster.createShared("next base", 1, int)
        found = cluster.createShared("found", processes, int)
        cluster.createLock("base lock")
        for _ in range(rounds):
            base[0], found[:] = 2, 0
            start = perf_counter()
            cluster.runProcesses(sieve_blocks, paras=(limit, 500_000, small_primes))
            seconds = perf_counter() - start
        return int(found.sum()), np.array(found), seconds


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--limit", type=int, default=10_000_000, help="count below this number")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    count, found, seconds = run(options.limit, options.processes)
    assert sum(found) == count
    print(f"primes, {count:,} below {options.limit:,}: {seconds:.4f} s")
