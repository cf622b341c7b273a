"""A word to the user whose kernel failed to write an array that arrived read-only.

NumPy says "assignment destination is read-only" and not which array, nor why. In a worker both can
be told: the array is one that `shared` does not name.
"""

from __future__ import annotations

import dis
from collections.abc import Iterable, Iterator
from types import FrameType, TracebackType
from typing import Any

import numpy as np

from dsmfor._native import registry
from dsmfor.outcome import add_note, text_of
from dsmfor.reachable import reachable

__all__ = ["note_read_only"]

_WORDS = ("read-only", "readonly", "read only", "writeable", "writable")


def note_read_only(
    error: BaseException,
    named: Iterable[tuple[str, Any]],
    inward: frozenset[str],
    fixed: frozenset[int],
) -> None:
    """Add a note to an error about read-only memory that names the array.

    Parameters
    ----------
    error : exception
        What left the kernel, with its traceback.
    named : iterable of (str, object)
        The kernel's arguments and captured variables, by the user's names.
    inward : frozenset of str
        Names of intent 'in'.
    fixed : frozenset of int
        Where the staged copies of arrays lie that are read-only in the caller.
    """
    if not isinstance(error, (ValueError, TypeError, BufferError, RuntimeError)):
        return
    text = text_of(error).lower()
    if not any(word in text for word in _WORDS):
        return
    arrays = {
        label: found
        for name, value in named
        for label, found in reachable(name, value)
        if isinstance(found, np.ndarray) and not found.flags.writeable
    }
    touched = [label for label, array in arrays.items() if _in_hand(error, label, array)]
    if len(arrays) == 1:
        touched = list(arrays)
    for label in touched:
        add_note(error, f"{label!r} arrived read-only: {_why(label, arrays[label], inward, fixed)}")


def _why(label: str, array: np.ndarray, inward: frozenset[str], fixed: frozenset[int]) -> str:
    """Why an array arrived so, and what to do."""
    private = "in private for a copy in every worker"
    if type(array) is not np.ndarray or array.dtype.hasobject:
        kind = "an array of objects" if type(array) is np.ndarray else f"a {type(array).__name__}"
        remedy = (
            "share its .data and .mask"
            if isinstance(array, np.ma.MaskedArray)
            else f"pass np.asarray({label})"
            if not array.dtype.hasobject
            else "convert it to a dtype of fixed size"
        )
        return f"{kind} is not copied back; {remedy} to write the caller's, or name it {private}"
    handle = registry.handle(array)
    if handle is not None and handle[1] in fixed:
        return (
            f"it is read-only in the caller too; pass one that may be written ({label}.copy()), "
            f"or name it {private}"
        )
    if label in inward:
        return (
            f"shared names {label!r} as 'in'; say 'inout' to write the caller's array, or "
            f"name it {private}"
        )
    why = "a plain array that `shared` does not name for writing is not copied back. "
    if "[" in label:
        return f"{why}Pass it as an argument of its own and name that in shared, or {private}"
    return f"{why}Name it in shared ({label!r}) to write the caller's array, or {private}"


def _in_hand(error: BaseException, label: str, array: np.ndarray) -> bool:
    """Whether the line that failed, in any frame, speaks of an array or holds a view of it."""
    last = label.rpartition(".")[2].partition("[")[0]
    root = label.partition(".")[0].partition("[")[0]
    return any(
        {last, root} <= names or any(_views(value, array) for value in values)
        for names, values in _lines(error.__traceback__)
    )


def _views(value: Any, array: np.ndarray) -> bool:
    return (
        isinstance(value, np.ndarray)
        and not value.flags.writeable
        and np.may_share_memory(value, array)
    )


def _lines(traceback: TracebackType | None) -> Iterator[tuple[set[str], list[Any]]]:
    """For each frame: the names in the line that failed, and the values of those that are local."""
    while traceback is not None:
        frame: FrameType = traceback.tb_frame
        names = set(str(frame.f_globals.get("__name__")).split("."))  # its module's own names
        for instruction in dis.get_instructions(frame.f_code):
            place = instruction.positions
            if place is not None and place.lineno == traceback.tb_lineno:
                if isinstance(instruction.argval, str):
                    names.add(instruction.argval)
                elif isinstance(instruction.argval, tuple):  # of two variables, from 3.13 on
                    names.update(name for name in instruction.argval if isinstance(name, str))
        yield names, [frame.f_locals[name] for name in names if name in frame.f_locals]
        traceback = traceback.tb_next
