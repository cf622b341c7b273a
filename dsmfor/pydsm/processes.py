"""What runs in the processes of a Cluster: the region, who is in it, where they meet.

Guarantees
----------
`here.run` is set while a process runs its function, in the thread that does; `runs()` has the same
for other threads of that process. Nothing of a run outlasts it.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from dsmfor.parallel import Parallel, parallel
from dsmfor.team import Team, current

__all__ = ["Run", "here", "kernel", "meet", "runs", "seed"]


class Run:
    """What one process of a Cluster has in common with the others."""

    def __init__(self, resources: dict[str, Any]) -> None:
        self.resources = resources
        self.splits = 0  # random ones so far, the same number in every process


class Here(threading.local):
    """What this thread of a process runs."""

    held: weakref.ref[Run] | None = None

    @property
    def run(self) -> Run | None:
        return None if self.held is None else self.held()


# A stop signal may end a run anywhere: what holds it is the frame of its function alone.
here = Here()
_runs: list[weakref.ref[Run]] = []  # of all threads of this process


def runs() -> list[Run]:
    """What the threads of this process run, the latest last."""
    return [run for held in _runs if (run := held()) is not None]


def kernel(func: Callable[..., object]) -> Parallel[...]:
    """What runs in the processes to call a function."""

    def process(resources: dict[str, Any], paras: tuple[Any, ...]) -> None:
        run = Run(resources)
        before, here.held = here.held, weakref.ref(run)
        _runs[:] = [*filter(weakref.ref.__call__, _runs), here.held]
        try:
            func({"id": current().rank, **resources}, *paras)
        except SystemExit as end:  # a process ends, not the program
            if end.code not in (None, 0):
                raise RuntimeError(
                    f"process {current().rank} called exit({end.code!r}); raise an exception that "
                    "says what is wrong, or return"
                ) from end
        finally:
            del run  # a traceback may keep this frame
            here.held = before

    process.__qualname__ = getattr(func, "__qualname__", type(func).__qualname__)  # for messages
    return parallel(private="*")(process)


def meet(team: Team, place: int) -> None:
    """A barrier, at whatever line of the program."""
    frame = sys._getframe(2)  # of the caller of barrier or splitIndices
    team.barrier(frame.f_lineno, 0.0, place)


def seed() -> int | None:
    """What chooses the random shares of a run: NumPy's global state, which it leaves as it is."""
    random = sys.modules.get("numpy.random")
    if random is None:
        return None
    _, words, position, *_ = random.get_state()
    mixed = random.SeedSequence(np.append(words, np.uint32(position)))
    return int(mixed.generate_state(1, "u8")[0])
