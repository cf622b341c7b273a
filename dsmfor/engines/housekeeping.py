"""A thread of the caller that hears of freed memory, and has idle workers let it go too.

The garbage collector tells of freed memory in any thread, at any bytecode, perhaps while a lock
is held; so the telling is a deque and a write to an eventfd (`dsmfor._native.farewell`), and the
acting is this thread's.

Guarantees
----------
- After `stop` neither thread nor descriptor is left.
"""

from __future__ import annotations

import errno
import os
import select
import threading
from collections.abc import Callable

from dsmfor._native.farewell import Doorbell
from dsmfor.engines.channel import lift

__all__ = ["Housekeeper"]

_BATCH = 0.05  # seconds: one letter tells of many
_RETRY = 1.0  # seconds, after an error


class Housekeeper:
    """Calls `act` soon after memory was freed.

    Parameters
    ----------
    bell : Doorbell
        Is rung when memory was freed.
    act : callable
        Called in the thread of the housekeeper. It returns after how many seconds it wants to be
        called again, whatever happens, or None.
    """

    def __init__(self, bell: Doorbell, act: Callable[[], float | None]) -> None:
        self._act = act
        self._bell = bell
        self._stopping = threading.Event()
        self._wake = lift(os.eventfd(0, os.EFD_CLOEXEC))
        bell.hang(self._wake)
        self._thread = threading.Thread(target=self._run, name="dsmfor housekeeping", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:  # Python's word for it
            self.close()
            raise BlockingIOError(errno.EAGAIN, "no thread can be started") from error

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        again: float | None = None
        while True:
            if poll.poll(None if again is None else again * 1000):
                os.eventfd_read(self._wake)
                self._stopping.wait(_BATCH)
            if self._stopping.is_set():
                return
            try:
                again = self._act()
            except Exception:  # the next call meets the same, and says so
                again = _RETRY

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        self._bell.ring()
        self._thread.join()
        self.close()

    def close(self) -> None:
        """Let go of the descriptor alone: in a forked child, which has no thread."""
        self._bell.take_down()
        wake, self._wake = self._wake, -1
        if wake >= 0:
            os.close(wake)
