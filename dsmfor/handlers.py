"""Whether an exception was raised by a handler of a signal, and not by the code that it struck.

Where any exception of the user's code is caught, because it says something about that code, one of
a handler says nothing: an alarm that raises TimeoutError must come out as that.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # Python's makes an enum of all that it tells
import threading
import traceback
from functools import partial
from types import CodeType, FrameType, FunctionType
from typing import Any

__all__ = ["by_handler"]


def by_handler(error: BaseException) -> bool:
    """Whether a handler of a signal raised this, and not the code that it interrupted.

    To be asked in the frame that has caught it, whose locals are left alone: a look at them would
    be kept with them, and the exception in it.
    """
    trace = error.__traceback__
    if trace is None or threading.current_thread() is not threading.main_thread():
        return False
    frames = [frame for frame, _ in traceback.walk_tb(trace.tb_next) if _given_one(frame)]
    if not frames:
        return False
    codes = {_code(_signal.getsignal(number)) for number in range(1, _signal.NSIG)}
    return any(frame.f_code in codes for frame in frames)


def _given_one(frame: FrameType) -> bool:
    """Whether a frame is among the arguments, as a handler's is: decorators share their code."""
    return any(
        isinstance(value, FrameType)
        or (type(value) is tuple and any(isinstance(one, FrameType) for one in value))
        for value in frame.f_locals.values()
    )


def _code(handler: Any) -> CodeType | None:
    """What runs when a handler is called; None of what is not Python."""
    while isinstance(handler, partial):
        handler = handler.func
    if not callable(handler):
        return None
    function = getattr(handler, "__func__", handler)
    if not isinstance(function, FunctionType):
        function = type(handler).__call__
    return getattr(function, "__code__", None)
