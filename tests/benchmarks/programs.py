"""Whole programs of py-dsm beside py-dsm itself: rows, and the table of the README.

The programs are those of examples/pydsm; how they are run is seed.py's.
"""

from __future__ import annotations

import contextlib
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import processes
from benchmarks.harness import Bar, Contender, Result, Row, asking, ratio
from benchmarks.lane import Lane
from benchmarks.units import duration, size, times

DROP_IN, NATIVE, THEIRS = "dsmfor.pydsm", "dsmfor, rewritten", "py-dsm"
LANES = {DROP_IN: "seed_ours", NATIVE: "seed_native", THEIRS: "seed_theirs"}
TITLES = {
    "vec_add": "Sum of two vectors",
    "primes": "Primes below n",
    "matmul": "Matrix product, n elements",
    "pairwise_distances": "Pairwise distances, n of them",
}
SIZES = tuple(10**k for k in range(3, 8))
LARGEST = SIZES[-1]

ACCOUNT = """The program of examples/pydsm with two processes: the second of two runs in a Cluster,
from before `runProcesses` to after it. py-dsm starts its processes for each run, dsmfor's are
there. Shares of vectors and matrices are random; what is rewritten uses slices."""

MEMORY = """Peak of the proportional set sizes of the program and all its processes, summed, so that
a page that several have counts once; interpreters and libraries included. Looked at every 10 ms
while the program runs as above, the making and the checking of its arrays included."""

START = """A whole program, from the start of the interpreter to its end: examples/pydsm/vec_add.py
with vectors of 10 elements, and the native examples/vec_add.py, which adds a few vectors more."""


def rows() -> list[Callable[[Any], Row]]:
    """What makes each row."""
    found = [timed(name, n) for name in TITLES for n in SIZES]
    found += [peaked(name, n) for name in TITLES for n in SIZES[-2:]]
    return [*found, started]


def key(name: str, n: int) -> str:
    """How a row is chosen on the command line."""
    return f"{name.replace('_', '-')}-1e{len(str(n)) - 1}"


def contenders(measure: Callable[[Lane], float]) -> tuple[Contender, ...]:
    """The three, asked the same."""
    return tuple(Contender(label, lane, measure) for label, lane in LANES.items())


def timed(name: str, n: int) -> Callable[[Any], Row]:
    """Seconds of a program."""
    bars = []
    if name == "vec_add" and n == LARGEST:
        for label, limit in ((DROP_IN, 20), (NATIVE, 100)):
            text = f"{label}: at least {limit} x faster than {THEIRS}"
            bars.append(Bar(text, ratio(THEIRS, label), limit, False, times))
    if name in ("primes", "matmul"):
        bars.append(Bar(f"{DROP_IN}: at most 1 x {THEIRS}", ratio(DROP_IN, THEIRS), 1, show=times))

    def make(settings: Any) -> Row:
        return Row(
            key(name, n),
            f"{TITLES[name]}, n = {n:,}",
            ACCOUNT,
            contenders(asking("seconds", name, n)),
            tuple(bars),
            max(3, settings.rounds // 4),
            duration,
        )

    return make


def peaked(name: str, n: int) -> Callable[[Any], Row]:
    """Memory of a program."""

    def sample(lane: Lane) -> float:
        answer: list[Any] = []

        def ask() -> None:
            try:
                answer.append(lane.ask("seconds", name, n))
            except Exception as error:
                answer.append(error)

        asked = threading.Thread(target=ask)
        asked.start()
        highest = 0
        while asked.is_alive():
            with contextlib.suppress(OSError):  # a process has ended meanwhile
                highest = max(highest, processes.proportional_bytes(lane.family()))
            time.sleep(0.01)
        if isinstance(answer[0], Exception):
            raise answer[0]
        return highest

    return lambda settings: Row(
        f"{key(name, n)}-memory",
        f"Memory: {TITLES[name]}, n = {n:,}",
        MEMORY,
        contenders(sample),
        (),
        3,
        size,
        warm=False,
    )


def started(settings: Any) -> Row:
    """A whole program."""
    return Row(
        "pydsm-start",
        "A whole small program of py-dsm",
        START,
        contenders(asking("start")),
        (
            Bar(
                f"{DROP_IN}: at most 0.2 s more than {THEIRS}",
                lambda seen: seen[DROP_IN] - seen[THEIRS],
                0.2,
                show=duration,
            ),
        ),
        max(3, settings.rounds // 3),
        duration,
    )


def overview(results: Sequence[Result]) -> list[tuple[str, ...]]:
    """A line for each program's row: what each of the three takes."""
    return [
        (
            result.row.title,
            *(
                result.row.show(statistics.median(samples))
                if (samples := result.samples(label))
                else "not measured"
                for label in LANES
            ),
        )
        for result in results
        if is_program(result)
    ]


def is_program(result: Result) -> bool:
    """Whether a row is one of these."""
    return result.row.contenders[0].label == DROP_IN
