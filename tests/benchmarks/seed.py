"""The programs of examples/pydsm, on dsmfor, on py-dsm itself, and rewritten for dsmfor.

Each lane runs one of the three; a program tells the seconds of its own parallel part.
"""

from __future__ import annotations

import importlib
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from types import ModuleType

import numpy as np

from benchmarks.work import WORKERS

FOLDER = Path(__file__).resolve().parents[2] / "examples"
OURS, THEIRS = "from dsmfor import pydsm\n", "import pydsm\n"

ROUNDS = 2
"""Runs in a Cluster, of which the last counts."""

SIDES: dict[str, Callable[[int], int]] = {
    "vec_add": int,
    "primes": int,
    "matmul": math.isqrt,
    "pairwise_distances": math.isqrt,
}
"""What each program takes for results of `n` elements."""


class Programs:
    """The programs with one import.

    Parameters
    ----------
    line : str
        The import, in place of that of `dsmfor.pydsm`.
    """

    def __init__(self, line: str) -> None:
        self.line = line
        self.loaded: dict[str, ModuleType] = {}
        exec(line, {})
        sys.path.insert(0, "")

    def seconds(self, name: str, n: int) -> float:
        """Seconds that a program gives for its processes."""
        if name not in self.loaded:
            self.loaded[name] = importlib.import_module(self.copy(name).stem)
        *_, seconds = self.loaded[name].run(SIDES[name](n), WORKERS, ROUNDS)
        return seconds

    def start(self) -> float:
        """Seconds of a whole program, the interpreter's start and end included."""
        program = self.copy("vec_add")
        began = perf_counter()
        subprocess.run(
            [sys.executable, str(program), "--size", "10"], check=True, stdout=subprocess.DEVNULL
        )
        return perf_counter() - began

    def copy(self, name: str) -> Path:
        """The program with its import, in the lane's folder."""
        path = Path(f"seed_{name}.py")
        if not path.exists():
            source = (FOLDER / "pydsm" / f"{name}.py").read_text()
            assert OURS in source
            path.write_text(source.replace(OURS, self.line))
        return path


class Natives:
    """What the programs compute, in dsmfor's own idiom."""

    def seconds(self, name: str, n: int) -> float:
        """Seconds of the kernel's call."""
        side = SIDES[name](n)
        call = getattr(self, name)(side)
        for _ in range(ROUNDS):
            began = perf_counter()
            call()
            seconds = perf_counter() - began
        return seconds

    def vec_add(self, n: int) -> Callable[[], None]:
        """Slices, written in place."""
        A, B, C = (dsm.zeros(n, int) for _ in range(3))
        A[:] = np.arange(n)
        B[:] = A + 1
        return lambda: add(A, B, C)

    def primes(self, limit: int) -> Callable[[], None]:
        """Blocks, claimed by whoever is free."""
        small = [p for p in range(2, math.isqrt(limit) + 1) if all(p % q for q in range(2, p))]
        return lambda: count_primes(limit, small)

    def matmul(self, side: int) -> Callable[[], None]:
        """Rows."""
        A, X, Y = (dsm.zeros((side, side)) for _ in range(3))
        A[:] = np.arange(side * side).reshape(side, side) % 11 - 5
        X[:] = np.arange(side * side).reshape(side, side) % 7 - 3
        return lambda: multiply(A, X, Y)

    def pairwise_distances(self, side: int) -> Callable[[], None]:
        """Rows."""
        X = dsm.array(np.random.default_rng(seed=1).random((side, 3)))
        D = dsm.zeros((side, side))
        return lambda: measure(X, D)

    def start(self) -> float:
        """Seconds of the native example, a whole program."""
        command = [sys.executable, str(FOLDER / "vec_add.py"), "--size", "10", "--workers", "2"]
        began = perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return perf_counter() - began


try:
    from scipy.spatial.distance import cdist

    import dsmfor as dsm
except ModuleNotFoundError:
    pass
else:

    @dsm.parallel(workers=WORKERS)
    def add(A, B, C):
        for part in dsm.pslices(len(C)):
            np.add(A[part], B[part], out=C[part])

    @dsm.parallel(workers=WORKERS, reduce="+")
    def count_primes(limit, small_primes):
        found = 0
        for block in dsm.pslices(2, limit, schedule="dynamic", chunk=500_000):
            is_prime = np.ones(block.stop - block.start, dtype=bool)
            for p in small_primes:
                first = max(p * p, -(-block.start // p) * p)
                is_prime[first - block.start :: p] = False
            found += np.count_nonzero(is_prime)
        return found

    @dsm.parallel(workers=WORKERS)
    def multiply(A, X, Y):
        for rows in dsm.pslices(len(A)):
            np.matmul(A[rows], X, out=Y[rows])

    @dsm.parallel(workers=WORKERS)
    def measure(X, D):
        for rows in dsm.pslices(len(X)):
            cdist(X[rows], X, out=D[rows])
