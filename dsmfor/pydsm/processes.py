"""What runs in the processes of a Cluster: the region, who is in it, where they meet.

Guarantees
----------
`here.run` is set while a process runs its function, in the thread that does; `runs` has the same
for other threads of that process. Nothing of a run outlasts it.
"""

from __future__ import annotations

import copy
import hashlib
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

from dsmfor.arrays import is_shared
from dsmfor.parallel import Parallel, parallel
from dsmfor.reachable import reachable
from dsmfor.team import Team, current

__all__ = ["Run", "here", "kernel", "meet", "runs", "seed"]


class Here(threading.local):
    run: Run | None = None


class Run:
    """What one process of a Cluster has in common with the others."""

    def __init__(self, resources: dict[str, Any]) -> None:
        self.resources = resources
        self.splits = 0  # random ones so far, the same number in every process


here = Here()
runs: list[Run] = []  # of all threads of this process


def kernel(func: Callable[..., object]) -> Parallel[...]:
    """What runs in the processes to call a function."""

    def process(caller: int, resources: dict[str, Any], paras: tuple[Any, ...]) -> None:
        if os.getpid() == caller:  # the serial engine
            live = [item for _, item in reachable("paras", paras) if is_shared(item)]
            paras = copy.deepcopy(paras, {id(item): item for item in live})
        before, run = here.run, Run(resources)
        here.run = run
        runs.append(run)
        try:
            func({"id": current().rank, **resources}, *paras)
        except SystemExit as end:  # a process ends, not the program
            if end.code not in (None, 0):
                raise RuntimeError(
                    f"process {current().rank} called exit({end.code!r}); raise an exception that "
                    "says what is wrong, or return"
                ) from end
        finally:
            runs.remove(run)
            here.run = before

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
    digest = hashlib.blake2b(words.tobytes() + position.to_bytes(4, "little"), digest_size=8)
    return int.from_bytes(digest.digest(), "little")
