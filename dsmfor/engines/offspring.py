"""A process that a kernel has forked, and that comes to the kernel's end as if it were the worker.

It has broken words of its own by then (`Block.secede`): the team never hears of it.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import NoReturn

__all__ = ["end_as_child"]


def end_as_child() -> NoReturn:
    """End as the forked child of a program does: by the exception that is under way, if any."""
    error, code = sys.exc_info()[1], 0
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    elif error is not None:
        sys.excepthook(*sys.exc_info())
        code = 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code & 0xFF)
