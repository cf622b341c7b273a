"""Places where a rank can be, and how to have a team of three in them: `play` a scene, then kill.

What dies where, and what must come of it, is test_deaths.py's table; test_random_kills.py draws
from the same places.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from faults import PROMPT, await_flag, die, meanwhile, phase, until, warm

import dsmfor as dsm

CALLER = os.getpid()

CAUSES = {
    "SIGKILL": -signal.SIGKILL,
    "SIGSEGV": -signal.SIGSEGV,
    "SIGBUS": -signal.SIGBUS,
    "SIGABRT": -signal.SIGABRT,
    "exit 0": 0,
    "exit 7": 7,
}


class Place(NamedTuple):
    victim: int  # rank
    at: str  # its phase, as WorkerDied tells it
    others: str = "at a barrier"  # phase of those that are to be released


SCHEDULES = ["static", "static,4", "random", "random,4", "dynamic", "dynamic,4", "guided", "auto"]

PLACES = {
    "unpickling": Place(1, "unpickling its arguments"),
    "computing": Place(1, "computing"),
    "at a barrier": Place(1, "at a barrier"),
    "holding a lock": Place(1, "computing", "waiting for a lock"),
    "waiting for a lock": Place(1, "waiting for a lock", "waiting for a lock"),
    "waiting to enter a loop": Place(1, "waiting to enter a loop", "waiting to enter a loop"),
    "making the value of single": Place(0, "computing"),
    "waiting in single": Place(1, "at a barrier"),
    "pickling its result": Place(1, "pickling its result", "idle"),
    **{
        f"in a chunk, {schedule}": Place(1, "in a loop, last chunk", "at a barrier")
        for schedule in SCHEDULES
    },
}

GO, STAGED, VICTIM = range(3)  # flags

releases: list[float] = []  # seconds from a death to the error


class Trap:
    """Dies, when it is told to, where the victim pickles or unpickles it."""

    def __init__(self, flags: np.ndarray, code: int) -> None:
        self.flags = flags
        self.code = code

    def __reduce__(self) -> tuple[Any, ...]:
        if os.getpid() != CALLER:
            spring(self.flags, self.code)
        return spring, (self.flags, self.code)


def spring(flags: np.ndarray, code: int) -> None:
    if os.getpid() == flags[VICTIM]:
        flags[STAGED] = 1
        await_flag(flags, GO)
        die(code)


@dsm.parallel(workers=3, timeout=30)
def scene(place: str, victim: int, code: int, flags: np.ndarray, data: np.ndarray, _trap: Any):
    """The victim gets to its place and stays there; the others wait for what only it can give."""
    me = dsm.rank()
    data[me] = 1 + me

    def hit() -> None:  # by a thread: the victim may be waiting in C
        await_flag(flags, GO)
        die(code)

    if me == victim and not place.endswith("pickling its result"):
        threading.Thread(target=hit, daemon=True).start()
    if place == "unpickling":
        dsm.barrier()
    elif place == "computing":
        while me == victim:
            pass
    elif place == "at a barrier":
        while me == 0:
            time.sleep(0.001)
    elif place == "holding a lock":
        if me != victim:
            await_flag(flags, STAGED)
        with dsm.critical("it"):
            flags[STAGED] = 1
            while True:
                time.sleep(0.001)
    elif place == "waiting for a lock":
        if me:
            await_flag(flags, STAGED)
        with dsm.critical("it"):
            flags[STAGED] = 1
            while True:
                time.sleep(0.001)
    elif place == "waiting to enter a loop":
        for _ in range(20):
            for _ in dsm.prange(3, nowait=True):
                while me == 0:
                    time.sleep(0.001)
    elif place.endswith("single"):
        dsm.single(lambda: time.sleep(60))
    elif place == "pickling its result":
        return Trap(flags, code) if me == victim else None
    else:
        for _ in dsm.prange(60, schedule=place.removeprefix("in a chunk, ")):
            if me == victim:
                flags[STAGED] = 1
                while True:
                    time.sleep(0.001)
            await_flag(flags, STAGED)
    dsm.barrier()
    return None


class Stage(NamedTuple):
    flags: np.ndarray
    data: np.ndarray


def staged(name: str, stage: Stage) -> bool:
    """Whether everybody is where the scene wants them."""
    place = PLACES[name]
    here = phase(place.victim)
    if not place.at.startswith(here):
        return False
    if "pickling" in here and not stage.flags[STAGED]:
        return False
    others = {0, 1, 2} - {place.victim}
    started = others if name == "unpickling" else {0, 1, 2}
    if not all(stage.data[rank] for rank in started):
        return False
    return any(phase(rank) == place.others for rank in others)


def play(
    name: str, code: int, kill: Callable[[Stage], object]
) -> tuple[dsm.WorkerDied, list[int], Stage]:
    """Have a full team in its places, then `kill`: the call's error, the pids, the arrays."""
    place = PLACES[name]
    stage = Stage(dsm.zeros(3, int), dsm.zeros(3, int))
    pids = warm(3)
    stage.flags[VICTIM] = pids[place.victim]
    trap = Trap(stage.flags, code) if name == "unpickling" else None
    struck = 0.0

    def strike() -> None:
        nonlocal struck
        until(lambda: staged(name, stage))
        struck = time.monotonic()
        kill(stage)

    with meanwhile(strike), pytest.raises(dsm.WorkerDied) as caught:
        scene(name, place.victim, code, stage.flags, stage.data, trap)
    took = time.monotonic() - struck
    assert took < PROMPT, f"the others were released after {took:.2f} s"
    releases.append(took)
    ran = [rank for rank in range(3) if name != "unpickling" or rank != place.victim]
    assert all(stage.data[rank] == 1 + rank for rank in ran), "shared arrays keep what was written"
    stage.data[:] = 7
    return caught.value, pids, stage
