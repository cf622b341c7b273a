"""What comes back from a worker: the value that its kernel returned, or its exception.

An exception travels with its traceback as text, and as itself where it can: it is unpickled once
on trial in the worker, for the caller could do nothing about one that cannot be.
"""

from __future__ import annotations

import traceback
from typing import Any, NamedTuple

from dsmfor import limits
from dsmfor.errors import (
    BarrierBroken,
    DSMError,
    RegionError,
    RemoteTraceback,
    SharedMemoryFull,
)
from dsmfor.handlers import by_handler
from dsmfor.pickling import dump, load

__all__ = [
    "Bereft",
    "Failure",
    "Outcome",
    "Stop",
    "add_note",
    "describe_failure",
    "open_outcome",
    "refused",
    "revive",
    "text_of",
    "unopened",
]


class Stop(BaseException):
    """Raised in a kernel by the caller's stop signal: the region has ended without it."""


class Bereft(DSMError):
    """What a worker has made, and was asked for, has gone with it."""


class Failure(NamedTuple):
    """An exception that left a kernel, as it travels."""

    pickled: bytes | None  # None if it cannot be pickled, or not unpickled
    name: str  # of its type
    text: str  # str() of it
    traceback: str
    note: str  # the worker, and the loop index it was at
    collateral: bool  # released or stopped because the region failed elsewhere


class Outcome(NamedTuple):
    """How a rank ended: its value, or its failure."""

    value: Any = None
    failure: Failure | None = None


def describe_failure(error: BaseException, note: str) -> Failure:
    """Pack an exception; it is unpickled once on trial, for the caller cannot try."""
    text = "".join(traceback.format_exception(error))
    pickled: bytes | None
    try:
        pickled = dump(_bare(error))
        if not isinstance(load(pickled), BaseException):
            pickled = None
    except BaseException:  # noqa: BLE001  # the user's pickling may raise anything
        pickled = None
    return Failure(
        pickled,
        type(error).__qualname__,
        text_of(error),
        text,
        note,
        type(error) in (BarrierBroken, Bereft, Stop),
    )


def open_outcome(data: memoryview) -> Outcome:
    """A rank's outcome; the user's unpickling may raise anything."""
    outcome: Outcome = load(data)
    return outcome


def unopened(error: BaseException, rank: int, size: int) -> Failure:
    """The failure of a rank whose outcome cannot be unpickled here."""
    where = f"in the caller, from worker {rank} of {size}"
    if isinstance(error, MemoryError):
        full = limits.exhausted(f"the result of rank {rank}")
        if isinstance(error, SharedMemoryFull):
            full = SharedMemoryFull(str(error))
        return describe_failure(full, where)
    return Failure(
        None,
        type(error).__qualname__,
        f"while the result of rank {rank} was unpickled in the caller: {text_of(error)}",
        "".join(traceback.format_exception(error)),
        where,
        False,
    )


def _set(error: BaseException, name: str, value: object) -> None:
    """Set an attribute of an exception whose class may refuse it, as a frozen dataclass does."""
    BaseException.__setattr__(error, name, value)


def refused(outcome: Outcome, error: Exception, rank: int) -> Outcome:
    """What the caller gets in place of an outcome for which there is no room."""
    what = f"returned a {type(outcome.value).__qualname__}"
    if outcome.failure is not None:
        what = f"raised {outcome.failure.name}: {outcome.failure.text[:1000]}"
    full = SharedMemoryFull(f"rank {rank} {what}, which cannot be handed over: {error}")
    return Outcome(failure=describe_failure(full, f"in worker {rank}"))


def _bare(error: BaseException) -> BaseException:
    """The exception without its traceback and chain, which stay in the worker as text."""
    for name in ("__traceback__", "__cause__", "__context__"):
        _set(error, name, None)
    return error


def text_of(error: BaseException) -> str:
    """`str` of an exception, also of one whose own `__str__` fails."""
    try:
        return str(error)
    except BaseException:  # noqa: BLE001  # so may its __str__
        return f"<the str() of this {type(error).__name__} raised>"


def revive(failure: Failure) -> BaseException:
    """The exception of a worker, ready to be raised in the caller."""
    error: BaseException
    try:
        found = None if failure.pickled is None else load(failure.pickled)
        if not isinstance(found, BaseException):
            raise TypeError("it is no exception here")
        error = found
    except Exception as raised:  # so may its unpickling, here too
        if by_handler(raised):
            raise
        error = RegionError(
            f"the kernel raised {failure.name}: {failure.text} (the exception itself cannot be "
            "pickled; its traceback is the cause below)"
        )
    _set(error, "__cause__", RemoteTraceback(failure.traceback))
    add_note(error, failure.note)
    return error


def add_note(error: BaseException, note: str) -> None:
    """Add a note, also to an exception that refuses new attributes or has odd notes."""
    if not isinstance(getattr(error, "__notes__", None), list):
        _set(error, "__notes__", [])
    BaseException.add_note(error, note)
