"""The serial engine: a team of one, in this thread of this process.

The same native words as the process engine's, in private memory: loops, locks and barriers keep
their rules, a debugger sees everything, and exceptions are the kernel's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from dsmfor.outcome import add_note
from dsmfor.team import Settings, enter, solo

__all__ = ["run"]

R = TypeVar("R")
_MASK = (1 << 64) - 1


def run(
    kernel: Callable[..., R],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    settings: Settings,
    seed: int,
) -> R:
    """Call the kernel as a region of one rank.

    Raises
    ------
    RegionError
        A loop was left early.
    Exception
        Whatever the kernel raises.
    """
    member = solo()
    member.settings = settings
    member.seed = seed & _MASK
    before = enter(member)
    try:
        value = kernel(*args, **kwargs)
        member.finish()
    except BaseException as error:
        last = member.last_index()
        if last is not None:
            add_note(error, f"in worker 0 of 1, {last[0]}")
        raise
    finally:
        enter(before)
        member.end()
    return value
