"""Whether an exception was raised by a handler of a signal, and not by the code that it struck.

Where any exception of the user's code is caught, because it says something about that code, one of
a handler says nothing: an alarm that raises TimeoutError must come out as that.
"""

from __future__ import annotations

import signal
import threading
import traceback
from functools import partial
from types import CodeType, FunctionType
from typing import Any

__all__ = ["by_handler"]


def by_handler(error: BaseException) -> bool:
    """Whether a handler of a signal raised this, and not the code that it interrupted."""
    if threading.current_thread() is not threading.main_thread():
        return False
    codes = {frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)}
    return any(_code(signal.getsignal(number)) in codes for number in signal.valid_signals())


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
