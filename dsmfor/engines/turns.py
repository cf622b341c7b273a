"""Turns of the workers of all crews: at a pipe (byte 0 of a file), and at memory (byte 1).

A turn is a record lock, which ends with its owner, however that ends. How lines take turns at a
pipe is streams.py's.

Guarantees
----------
- Of the workers that hand over large outcomes, one at a time looks at how much memory is left and
  takes it. Two that look at once would both find room where there is room for one.
"""

from __future__ import annotations

from fcntl import LOCK_EX, LOCK_UN, lockf

from dsmfor import limits
from dsmfor._native.sealed import memfd

__all__ = ["MemoryTurn", "turnstile"]

_MEMORY = 1  # the byte


def turnstile() -> int:
    """A descriptor of the file, which the warden makes and every worker inherits."""
    return memfd("dsmfor control of turns", 2)


class MemoryTurn:
    """A turn that is taken with the first large thing of a ``with`` block and ends with it."""

    def __init__(self, turns: int) -> None:
        self._turns = turns
        self._ours = False

    def _wait(self) -> None:
        if not self._ours:
            lockf(self._turns, LOCK_EX, 1, _MEMORY)
            self._ours = True

    def __enter__(self) -> None:
        limits.set_queue(self._wait)

    def __exit__(self, *_: object) -> None:
        limits.set_queue(None)
        if self._ours:
            self._ours = False
            lockf(self._turns, LOCK_UN, 1, _MEMORY)
