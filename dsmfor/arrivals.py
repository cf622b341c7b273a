"""What pickles call in the process where they arrive: arrays found or made, objects completed.

How things leave is transit.py's. Pickles name these functions, and nobody else calls them.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from dsmfor import arrays

__all__ = [
    "Table",
    "arriving",
    "call",
    "complete",
    "inner",
    "made_frozen",
    "nothing",
    "of_bytes",
    "same",
    "set_frozen",
    "staged",
]

Table = list[arrays.Handle]
"""Handles of the staged arrays of a dump, by number."""


class _Arriving(threading.local):
    """What the dump that this thread is loading refers to."""

    table: Table = []  # noqa: RUF012  # replaced, never changed


arriving = _Arriving()


def nothing() -> None:
    """What a mark becomes."""


def same(value: Any) -> Any:
    """What was copied before it was pickled."""
    return value


def of_bytes(
    data: bytearray, dtype: np.dtype[Any], shape: tuple[int, ...], order: Literal["C", "F"]
) -> np.ndarray:
    """An array of another byte order, which NumPy would make a native one."""
    return np.ndarray(shape, dtype, data, order=order)


def inner(_: None, value: Any, __: None) -> Any:
    """What stood between two marks."""
    return value


def call(_: None, function: Callable[..., Any], arguments: tuple[Any, ...], __: None) -> Any:
    """An object, made between two marks."""
    return function(*arguments)


def complete(value: Any, rest: tuple[Any, ...]) -> None:
    """Give an object its items and its state, in the order in which pickle does it."""
    _, state, items, pairs, setter, _ = rest
    if items:
        value.extend(items) if hasattr(value, "extend") else [value.append(i) for i in items]
    for key, item in pairs or ():
        value[key] = item
    if state is None:
        return
    if setter is not None:
        setter(value, state)
    else:
        _set_state(value, state)


def _set_state(value: Any, state: Any) -> None:
    if hasattr(value, "__setstate__"):
        value.__setstate__(state)
        return
    slots = None
    if isinstance(state, tuple) and len(state) == 2:
        state, slots = state
    if state:
        value.__dict__.update({sys.intern(name): item for name, item in state.items()})
    for name, item in (slots or {}).items():
        setattr(value, name, item)


def staged(number: int) -> np.ndarray:
    """A plain array of the caller: its copy in shared memory."""
    return arrays.rebuild(arriving.table[number])


def made_frozen(function: Callable[..., np.ndarray], arguments: tuple[Any, ...]) -> np.ndarray:
    """An array of objects, or of a subclass, read-only."""
    return _freeze(function(*arguments))


def set_frozen(value: np.ndarray, state: Any) -> None:
    """Its state, for one that is made without."""
    value.__setstate__(state)
    _freeze(value)


def _freeze(value: np.ndarray) -> np.ndarray:
    if isinstance(value, np.ma.MaskedArray):
        value.mask = np.ma.getmaskarray(value)  # one that can be frozen, too
        np.ma.getmask(value).flags.writeable = False
    value.flags.writeable = False
    return value
