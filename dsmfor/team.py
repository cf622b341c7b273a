"""The team that the running code belongs to: what an engine supplies, and which one is current.

`loops`, `sync` and the rooms above know a team by the `Team` protocol alone. The native `Member`
is one for teams whose ranks share memory words; the six verbs are rank, size, barrier, lock,
exchange and, inside the native iterators, the claim of a chunk.

Outside any region the current team is a team of one that belongs to the thread: directives act
there as OpenMP's orphaned directives do, and the same function runs serially.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from dsmfor._native.block import Block
from dsmfor._native.member import Member
from dsmfor.errors import RegionError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from dsmfor.schedules import Schedule

__all__ = [
    "Carrier",
    "Settings",
    "Team",
    "check_creation",
    "confine",
    "current",
    "enter",
    "outside",
    "solo",
]


class Settings(NamedTuple):
    """What a region chose for its loops."""

    schedule: Schedule | str = "static"
    chunk: int | None = None


class Carrier(Protocol):
    """How one rank's value reaches the others: a few numbered areas per rank."""

    def publish(self, area: int, value: object) -> None:
        """Place `value` in this rank's area; the protocol says when it may be overwritten."""

    def collect(self, rank: int, area: int) -> Any:
        """The value that `rank` published in its area."""


class Team(Protocol):
    """One rank's view of its team."""

    @property
    def rank(self) -> int:
        """This rank, 0 to size - 1."""

    @property
    def size(self) -> int:
        """Ranks in the team."""

    @property
    def orphan(self) -> bool:
        """Whether this is the team of one outside any region."""

    @property
    def in_loop(self) -> bool:
        """Whether this rank is inside the body of a loop."""

    @property
    def making(self) -> bool:
        """Whether this rank is inside the call that `single` makes for all."""

    @property
    def settings(self) -> Settings | None:
        """What the region chose for its loops."""

    @property
    def seed(self) -> int:
        """Of the loops' random schedules, the same on every rank."""

    def barrier(self, line: int, timeout: float = 0.0, place: int = -1) -> None:
        """Wait for every rank at the barrier of that source line, or `place` (32 bits) if given."""

    def lock(self, name: str | None) -> AbstractContextManager[object]:
        """The team's lock of that name; None is a name of its own."""

    def exchange(self, line: int, make: Callable[[], Any]) -> Any:
        """Rank 0 calls `make`; after a barrier every rank returns its value."""

    def cancel(self, value: object) -> None:
        """End the loop that this rank is in for every rank."""

    def cancelled(self) -> Any:
        """The value that this rank's loop was cancelled with, or None."""


class _Here(threading.local):
    team: Team | None = None
    alone: Member | None = None


_here = _Here()
_ranks_thread: int | None = None  # in a worker: the one thread that can be a rank


def confine() -> None:
    """Make this process a worker: no thread of it but this one is, or gets, a team."""
    global _ranks_thread
    _ranks_thread = threading.get_ident()


def outside() -> bool:
    """Whether a kernel that is called now gets workers: not inside another, nor in a worker."""
    return _here.team is None and _ranks_thread is None


def _check_thread() -> None:
    """Refuse threads that a kernel started: they would act as a team of one, in every rank."""
    if _ranks_thread is not None and threading.get_ident() != _ranks_thread:
        raise RegionError(
            f"thread {threading.current_thread().name!r}, which a kernel started, called dsmfor: "
            "only the thread that runs the kernel is a rank of the team. Call prange, barrier and "
            "the like there, and hand plain indices or arrays to threads"
        )


def current() -> Team:
    """The team of the region that this thread runs in, or a team of one outside any."""
    team = _here.team
    if team is not None:
        return team
    _check_thread()
    if _here.alone is None:
        _here.alone = solo(orphan=True)
    return _here.alone


def solo(*, orphan: bool = False) -> Member:
    """A team of one over memory of this process."""
    return Member(Block(), 0, 1, orphan)


def enter(team: Team | None) -> Team | None:
    """Make `team` the current one of this thread; the one before, to be entered again after it."""
    before = _here.team
    _here.team = team
    return before


def check_creation(function: str, name: str | None = None) -> None:
    """Refuse to make a shared array where every rank would make one of its own.

    Raises
    ------
    RegionError
        Called by a rank of a region, outside `single` or with a name to publish.
    """
    team = _here.team
    if name is not None and not (team is None and _ranks_thread is None):
        raise RegionError(
            f"dsm.{function} was called inside a kernel with name={name!r}: a name belongs to the "
            "program, and would go with the worker. Make the array before the call"
        )
    if team is None:
        _check_thread()
    elif not team.making:
        raise RegionError(
            f"dsm.{function} was called inside a kernel by rank {team.rank} of {team.size}: every "
            f"rank would get an array of its own. Make it before the call, or once for all with "
            f"dsm.single(dsm.{function}, ...)"
        )


def _leave_region() -> None:
    """In a child that was forked inside a kernel: it is no rank of the team."""
    global _ranks_thread
    _here.team = None
    _ranks_thread = None


os.register_at_fork(after_in_child=_leave_region)
