"""Memory and CPU time of a family of processes, read from /proc.

A family is everything that inherited a mark in its environment, and every
descendant of those, whatever session or process group it moved to.
"""

from __future__ import annotations

import os
from pathlib import Path

MARK = "BENCHMARK_LANE"
"""The environment variable that holds the mark."""

PROC = Path("/proc")


def family(mark: str) -> set[int]:
    """The processes that carry `mark`, and their descendants; not the calling process."""
    marked = f"{MARK}={mark}".encode()
    parents: dict[int, int] = {}
    members: set[int] = set()
    for directory in PROC.iterdir():
        if not directory.name.isdigit():
            continue
        pid = int(directory.name)
        try:
            state, parent = (directory / "stat").read_text().rpartition(")")[2].split()[:2]
            if state == "Z":
                continue
            parents[pid] = int(parent)
            if marked in (directory / "environ").read_bytes().split(b"\0"):
                members.add(pid)
        except OSError:  # it has ended, or belongs to another user
            continue
    grown = True
    while grown:
        children = {pid for pid, parent in parents.items() if parent in members} - members
        members |= children
        grown = bool(children)
    return members - {os.getpid()}


def proportional_bytes(pids: set[int]) -> int:
    """Summed PSS: a page that several of the processes map counts once."""
    total = 0
    for pid in pids:
        for line in (PROC / str(pid) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total


def cpu_seconds(pids: set[int]) -> float:
    """User and system time of all threads of the processes, from the scheduler's own account."""
    nanoseconds = 0
    for pid in pids:
        for task in (PROC / str(pid) / "task").iterdir():
            nanoseconds += int((task / "schedstat").read_text().split()[0])
    return nanoseconds / 1e9
