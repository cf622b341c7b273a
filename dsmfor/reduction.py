"""Folding the values that the ranks of a region returned, always in rank order."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

__all__ = ["Reduce", "check", "fold"]

Reduce: TypeAlias = str | Callable[[Any, Any], Any] | None

_OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "*": operator.mul,
    "&": operator.and_,
    "|": operator.or_,
    "^": operator.xor,
    "min": np.minimum,
    "max": np.maximum,
    "and": lambda a, b: a and b,
    "or": lambda a, b: a or b,
}


def check(reduce: Reduce) -> Reduce:
    """The argument, if it is one.

    Raises
    ------
    ValueError, TypeError
    """
    if reduce is None or callable(reduce):
        return reduce
    names = ", ".join(map(repr, [*_OPERATIONS, "same"]))
    if not isinstance(reduce, str):
        raise TypeError(
            f"reduce must be one of {names}, a function of two values or None, got {reduce!r}"
        )
    if reduce != "same" and reduce not in _OPERATIONS:
        raise ValueError(
            f"reduce must be one of {names}, a function of two values or None, got {reduce!r}"
        )
    return reduce


def fold(reduce: Reduce, values: Sequence[Any]) -> Any:
    """The values of ranks 0, 1, ... as one.

    Parameters
    ----------
    reduce : str or callable
        As `check` lets pass; not None.
    values : sequence
        By rank.

    Raises
    ------
    ValueError
        A rank returned None; with 'same', two ranks returned different values.
    """
    if reduce == "same":
        for rank, value in enumerate(values):
            if not _equal(values[0], value):
                raise ValueError(
                    f"reduce='same' needs one value from all ranks: rank 0 returned "
                    f"{_short(values[0])}, rank {rank} returned {_short(value)}"
                )
        return values[0]
    empty = [rank for rank, value in enumerate(values) if value is None]
    if empty:
        raise ValueError(
            f"reduce={reduce!r} needs a value from every rank, and rank {empty[0]} of "
            f"{len(values)} returned None; return a neutral value, such as 0 for '+'"
        )
    operation = reduce if callable(reduce) else _OPERATIONS[str(reduce)]
    if reduce in ("min", "max") and not any(isinstance(v, np.ndarray) for v in values):
        return min(values) if reduce == "min" else max(values)
    return functools.reduce(operation, values)


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return np.array_equal(a, b, equal_nan=np.asarray(a).dtype.kind in "fc")
    if isinstance(a, (tuple, list)) and type(a) is type(b):
        return len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    return a is b or bool(a == b) or _both_nan(a, b)


def _both_nan(a: Any, b: Any) -> bool:
    return isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
