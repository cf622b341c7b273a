"""Locks of a Cluster, with the verbs of `multiprocessing.Lock` and those of py-dsm's README."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any

from dsmfor.errors import RegionError
from dsmfor.team import current

__all__ = ["Lock"]


class Lock:
    """A lock of a Cluster: in its processes the team's lock of that name, elsewhere a thread's.

    Made by `Cluster.createLock`. To be held in a ``with`` block, or from `acquire` to `release`.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._threads = threading.Lock()  # outside the processes
        self._owner: int | None = None  # thread that has it; written by the one that has

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
        """Take the lock.

        Parameters
        ----------
        block : bool
            Wait until it is free.
        timeout : float, seconds, optional
            Give up after this long.

        Returns
        -------
        bool
            Whether it was taken.

        Raises
        ------
        RegionError
            This process has it already.
        """
        if timeout is not None and timeout <= 0:
            block, timeout = False, None
        team = current()
        if not team.orphan:
            lock: Any = team.lock(self.name)
            return bool(lock.acquire(block, timeout or 0.0))
        if block and self._owner == threading.get_ident():
            raise RegionError(
                f"this thread holds {self!r} already and would wait for itself: release it first"
            )
        taken = self._threads.acquire(block, -1 if timeout is None or not block else timeout)
        if taken:
            self._owner = threading.get_ident()
        return taken

    apply = acquire  # so it is called in py-dsm's README

    def release(self) -> None:
        """Give the lock back.

        Raises
        ------
        RegionError
            This process does not have it.
        """
        team = current()
        if not team.orphan:
            lock: Any = team.lock(self.name)
            lock.release()
            return
        if self._owner != threading.get_ident():
            raise RegionError(
                f"{self!r} is released and this thread does not hold it: release a lock once, "
                "where it was acquired"
            )
        self._owner = None
        self._threads.release()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        team = current()
        if team.orphan:
            self.release()
        else:
            team.lock(self.name).__exit__(kind, error, traceback)

    def __reduce__(self) -> tuple[Any, ...]:
        return Lock, (self.name,)

    def __repr__(self) -> str:
        return f"<lock {self.name!r} of a Cluster>"
