"""Tools of the tests that kill, stop and interrupt: real faults to real processes, told apart.

Where a fault must meet a worker at a certain place, the test looks at the worker's place in the
control block, or has the worker tell by a shared array, always with a deadline.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import dsmfor as dsm
from dsmfor.engines import process

PROMPT = 2.0  # seconds that an error may take after its cause, on a loaded machine
DEADLINE = 20.0  # seconds after which a test gives up waiting for what should come at once


def die(code: int) -> None:
    """End this process at once, by a signal if `code` is negative."""
    if code >= 0:
        os._exit(code)
    os.kill(os.getpid(), -code)
    time.sleep(60)


def await_flag(flags: np.ndarray, index: int = 0) -> None:
    """In a kernel: wait until another process has set a flag."""
    until = time.monotonic() + DEADLINE
    while not flags[index]:
        assert time.monotonic() < until
        time.sleep(0.0005)


def until(condition: Callable[[], object]) -> None:
    """In the test: look until it is so."""
    end = time.monotonic() + DEADLINE
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("what the test waits for did not come")
        time.sleep(0.0005)


def phase(rank: int) -> str:
    """Where a rank of the region that runs is."""
    crew = next(iter(process._busy()), None)
    return "nowhere" if crew is None else crew.block.place(rank)["phase"]


def state(pid: int) -> str:
    """What the kernel says a process does: R, S, T (stopped) ...; X if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def gone(pid: int) -> bool:
    """Whether a process has ended, be it a zombie."""
    return state(pid) in "ZX"


@contextmanager
def meanwhile(act: Callable[[], object]) -> Iterator[None]:
    """Do something in a thread while the body runs; its errors are the test's."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            act()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join()
    if errors:
        raise errors[0]


@contextmanager
def prompt(seconds: float = PROMPT) -> Iterator[None]:
    """The body takes no longer than `seconds`."""
    began = time.monotonic()
    yield
    took = time.monotonic() - began
    assert took < seconds, f"took {took:.2f} s"


def outcome(call: Callable[..., Any], *args: Any) -> tuple[Any, dsm.WorkerDied | None]:
    """What a call returned, and the death that it told of instead."""
    try:
        return call(*args), None
    except dsm.WorkerDied as error:
        return None, error


@dsm.parallel
def roll_call():
    dsm.barrier()
    return dsm.rank(), os.getpid()


def warm(size: int) -> list[int]:
    """Have a team of `size`; its pids."""
    return [pid for _, pid in roll_call.using(workers=size)()]


def warden() -> int:
    """The pid of the warden: the member of the team that is our own child."""
    return next(
        pid
        for pid in process.team_pids()
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1] == str(os.getpid())
    )


def assert_full_team(size: int) -> None:
    with prompt():
        ranks = roll_call.using(workers=size)()
    assert [rank for rank, _ in ranks] == list(range(size))
    assert len({pid for _, pid in ranks}) == size


def assert_obituary(error: dsm.WorkerDied, rank: int, pid: int, code: int) -> None:
    assert (error.rank, error.pid, error.exitcode) == (rank, pid, code)
    text = str(error)
    assert f"worker {rank}" in text
    assert str(pid) in text
    if code < 0:
        assert signal.Signals(-code).name in text
    else:
        assert f"exited with code {code}" in text
    assert ("memory may have run out" in text) == (code == -signal.SIGKILL)
