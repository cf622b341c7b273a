"""A warden that serves: started anew if something kills it at once, or ahead of the first call.

A warden takes a tenth of a second to come up. Who knows that a call will follow starts it `ahead`
and goes on; the call finds it half-way or ready. The state is process.py's, which holds its guard
for every function here.
"""

from __future__ import annotations

import contextlib

from dsmfor.engines.launch import StillBorn, WardenLine
from dsmfor.errors import DSMError

__all__ = ["abandon", "ahead", "coming", "start"]

_ATTEMPTS = 3  # to start a warden that something kills

_coming: WardenLine | None = None  # it has been started, and nobody has waited for it


def ahead() -> None:
    """Start a warden, and do not wait for it."""
    global _coming
    with contextlib.suppress(DSMError, OSError):  # the call that follows says what is wrong
        if _coming is None:
            _coming = WardenLine()


def start() -> WardenLine:
    """A warden that serves."""
    global _coming
    for _ in range(_ATTEMPTS):
        try:
            line = _coming or WardenLine()
            _coming = None
            line.come_up()
            return line
        except StillBorn as dead:
            error = dead.error
    try:
        raise error
    finally:  # its traceback holds this frame
        del error


def coming() -> WardenLine | None:
    """The warden that was started ahead, if no call has come for it."""
    return _coming


def abandon(*, forked: bool = False) -> None:
    """No call came for it: end it; in a forked child, let go of what is the parent's."""
    global _coming
    line, _coming = _coming, None
    if line is None:
        return
    if forked:
        line.close()
    else:
        line.stop(patience=0.0)
