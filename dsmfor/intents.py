"""What `shared` and `private` may hold and name, and the words for what they may not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dsmfor.design import MISSING

__all__ = ["check_shareable", "names", "parse"]


def names(option: str, names: Any) -> list[str]:
    """A list of names, checked."""
    if isinstance(names, str):
        raise TypeError(
            f"{option} must be a list of names, got the string {names!r}; "
            f"you wrote {option}={names!r}, you want {option}=[{names!r}]"
        )
    if not isinstance(names, (Sequence, set, frozenset)):
        raise TypeError(f"{option} must be a list of names, got {names!r}")
    for name in names:
        if not isinstance(name, str):
            raise TypeError(
                f"{option} must hold names, got {name!r}; write the parameter's name as a string"
            )
        if not all(part.isidentifier() for part in name.split(".")):
            raise ValueError(
                f"{option} must hold names such as 'A' or 'self.A', got {name!r}; "
                "what a list or dict holds can be passed as an argument of its own"
            )
    return list(names)


def parse(shared: Any) -> dict[str, str] | None:
    """`shared` as a dict of intents, or None for every array among the parameters."""
    if shared is None:
        return None
    if not isinstance(shared, dict):
        if not isinstance(shared, (str, Sequence, set, frozenset)):
            raise TypeError(
                "shared must be a list of names, a dict of names to 'in', 'out' or "
                f"'inout', or None, got {shared!r}"
            )
        return dict.fromkeys(names("shared", shared), "inout")
    names("shared", list(shared))
    for name, intent in shared.items():
        if intent not in ("in", "out", "inout"):
            raise ValueError(
                f"the intent of {name!r} must be 'in', 'out' or 'inout', got {intent!r}"
            )
    return dict(shared)


def check_shareable(name: str, value: object) -> None:
    """Refuse what `shared` names and cannot be written in place."""
    if isinstance(value, np.ndarray) and type(value) in (np.ndarray, np.memmap):
        if value.dtype.hasobject or value.dtype.kind == "T":
            raise TypeError(
                f"{name!r} is an array of Python objects, which cannot be shared; "
                "convert it to a numeric or fixed-size dtype"
            )
        return
    kind = type(value).__qualname__
    if value is MISSING:
        raise NameError(f"shared names {name!r}, which has no value yet")
    if isinstance(value, np.ma.MaskedArray):
        remedy = "share its .data and .mask"
    elif isinstance(value, np.ndarray):
        remedy = f"pass np.asarray({name})"
    elif hasattr(value, "to_numpy"):
        remedy = f"pass {name}.to_numpy()"
    elif isinstance(value, (list, tuple)):
        remedy = f"pass np.array({name}), or leave it out of shared: workers get a copy"
    else:
        remedy = "leave it out of shared: workers get a copy"
    raise TypeError(f"{name!r} is a {kind}, and only NumPy arrays can be shared; {remedy}")
