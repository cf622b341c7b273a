"""What is told of a worker that has ended, or that runs for too long: words alone.

What has happened is found out by crew.py; here it is said, from the place that the worker last
wrote into the control block (`Block.place`).
"""

from __future__ import annotations

import signal
from typing import Any

from dsmfor.errors import WorkerDied

__all__ = ["obituary", "signal_name", "whereabouts"]


def obituary(rank: int, pid: int, code: int | None, place: dict[str, Any]) -> WorkerDied:
    """The error for a worker that has ended at `place` with exit code `code`, if that is known."""
    if code is None:
        how = "ended for an unknown reason"
    elif code < 0:
        how = f"was killed by {signal_name(-code)}"
        if -code == signal.SIGKILL:
            how += " (memory may have run out: see the kernel's log)"
    else:
        how = f"exited with code {code}"
    where = place["phase"]
    if place["at"] == "prange" and place["low"] < place["high"]:
        where += f", last chunk [{place['low']}, {place['high']}) of line {place['line']}"
    return WorkerDied(
        f"worker {rank} (pid {pid}) {how} while {where}; plain arrays of this call are as they "
        "were before it, shared ones as the workers left them. The next call has a full team",
        rank=rank,
        pid=pid,
        exitcode=code,
    )


def signal_name(number: int) -> str:
    """What a signal is called."""
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def whereabouts(rank: int, place: dict[str, Any]) -> str:
    """Where a rank is, in words."""
    line = f" (line {place['line']})" if place["line"] else ""
    return f"rank {rank} was {place['phase']}{line}"
