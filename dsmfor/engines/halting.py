"""The warden's eye on its caller: Ctrl-Z, ``fg``, SIGSTOP, exec.

They live in a session of their own, which the terminal's signals pass by, and nobody tells a
process that another one was stopped. So the warden looks at the caller's state while a region
runs; PROTOCOL.md, section 6. Nor does anybody tell of an exec, when a child that C code has forked
holds the caller's end of the line: the memory of the program that was is gone, and its map empty.

Guarantees
----------
- Workers that run a region are stopped within `_IDLE` + `_BUSY` seconds after their caller, and go
  on within `_BUSY` after it.
- The clock of their block (`Block.clock`), which timeouts go by, stands still meanwhile.
- Between regions a look costs a word of memory per crew, once in `_IDLE` seconds.
- `gone` is never true of a program that lives; it takes two microseconds.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Iterable, Mapping
from typing import Protocol

from dsmfor._native.block import Block

__all__ = ["Halting"]

_BUSY = 0.1  # seconds between looks while a region runs, or is stopped
_IDLE = 0.25  # between looks whether one does


class _Crew(Protocol):
    """What there is to know of a crew."""

    @property
    def block(self) -> Block: ...


class Halting:
    """How the caller fares, as far as /proc tells.

    Parameters
    ----------
    caller : int
        Its pid.
    """

    def __init__(self, caller: int) -> None:
        self._halted: set[int] = set()  # crews whose workers are stopped
        self._stat = self._maps = -1
        with contextlib.suppress(OSError):  # no /proc: nobody is stopped
            self._stat = os.open(f"/proc/{caller}/stat", os.O_RDONLY | os.O_CLOEXEC)
        with contextlib.suppress(OSError):  # not for us to see
            self._maps = os.open(f"/proc/{caller}/maps", os.O_RDONLY | os.O_CLOEXEC)
        self._seen = self._maps >= 0 and not self._unmapped()  # else this kernel shows nobody's

    def close(self) -> None:
        """Let go of the descriptors, in a worker."""
        for fd in (self._stat, self._maps):
            if fd >= 0:
                os.close(fd)

    def gone(self) -> bool:
        """Whether the caller has ended or become another program."""
        return self._seen and self._unmapped()

    def _unmapped(self) -> bool:
        """Whether there is nothing in the address space that was the caller's at the start."""
        try:
            return not os.pread(self._maps, 1, 0)
        except OSError as error:
            return error.errno == errno.ESRCH

    def look(self, crews: Mapping[int, _Crew], workers: Iterable[tuple[int, int]]) -> float | None:
        """Stop or continue workers as the caller is; seconds until the next look, None for never.

        Parameters
        ----------
        crews : mapping
            By number.
        workers : iterable of (int, int)
            Crew and pid of each that lives; called for only if something is to be done.
        """
        self._halted &= crews.keys()
        running = {number for number, crew in crews.items() if not crew.block.region_over()}
        if not running and not self._halted:
            return _IDLE if self._stat >= 0 else None
        stopped = self._caller_is_stopped()
        turn = running - self._halted if stopped else set(self._halted)
        if turn:
            if stopped:
                for number in turn:
                    crews[number].block.halt(True)
            for number, pid in workers:
                if number in turn:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGSTOP if stopped else signal.SIGCONT)
            if not stopped:
                for number in turn:
                    crews[number].block.halt(False)
            self._halted ^= turn
        return _BUSY

    def _caller_is_stopped(self) -> bool:
        try:  # the command, in brackets, may hold anything
            return os.pread(self._stat, 512, 0).rpartition(b")")[2].split()[0] == b"T"
        except (OSError, IndexError):
            return False
