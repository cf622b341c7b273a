"""What the caller holds of one worker process, from its fork to its end.

How it comes to be is `launch`'s business, what it is sent `letters`', what it computes `crew`'s.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections import deque

from dsmfor._native.interrupts import ready
from dsmfor.engines.channel import lift, receive
from dsmfor.errors import DSMError

__all__ = ["STUCK", "Recruit", "leaving"]

leaving: deque[int] = deque()  # pidfds of workers that end and may not have ended

STUCK = 10.0  # seconds that a message may wait for room on a socket of the team


class Recruit:
    """What the caller holds of a worker process: its pid, pidfd and socket."""

    def __init__(self, pid: int, incarnation: int, pidfd: int, end: int) -> None:
        self.pid = pid
        self.incarnation = incarnation  # its number in the ids of the segments that it makes
        self.pidfd = lift(pidfd)
        self.end = socket.socket(fileno=lift(end))
        self.end.settimeout(STUCK)

    def close(self) -> None:
        """Let go of the descriptors."""
        self.end.close()
        fd, self.pidfd = self.pidfd, -1
        if fd >= 0:
            os.close(fd)

    def part(self) -> int:
        """Give the pidfd away, to somebody who waits for the end."""
        fd, self.pidfd = self.pidfd, -1
        return fd

    def ended(self, seconds: float = 0.0) -> bool:
        """Whether the process has ended, or does within `seconds`: it was killed, if they are many.

        No handler of a signal is heard meanwhile: what must be gone is not given up half-way.
        """
        return bool(ready([self.pidfd], seconds, hearing=False))

    def kill(self) -> None:
        """End the process, whoever still watches over it."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def receive_outcome(self, epoch: int) -> int:
        """Descriptor of the outcome of region `epoch` that did not fit the page."""
        while True:
            letter = receive(self.end)
            if letter is None:
                raise DSMError(f"worker process {self.pid} announced a large result and has gone")
            (_, found), descriptors = letter
            if found == epoch:
                return descriptors[0]
            for fd in descriptors:  # of a region that was interrupted before anybody asked
                os.close(fd)
