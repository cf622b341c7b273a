"""What the user's names lead to: the values inside an argument or captured variable, and their
names as the user would write them.

Containers are looked into, and the attributes of objects whose class is not an installed
package's: what is inside those is their own business.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

from dsmfor.origin import installed

__all__ = ["ATOMS", "attributes", "reachable"]

ATOMS = frozenset(
    (type(None), bool, int, float, complex, str, bytes, type(Ellipsis), range, np.dtype)
) | {type(np.dtype(c).type(0)) for c in np.typecodes["AllInteger"] + np.typecodes["AllFloat"]}
"""Types whose values never change and hold nothing."""

_OPAQUE = (np.ndarray, ModuleType, FunctionType, BuiltinFunctionType, MethodType, type)
_CLOSED = {"builtins", __name__.partition(".")[0]}
_MOST = 1000  # values that are looked at


def reachable(label: str, value: Any) -> Iterator[tuple[str, Any]]:
    """A value and the values inside it, nearest first, each once.

    Parameters
    ----------
    label : str
        The value's name, such as ``'self'``.
    value : object

    Yields
    ------
    label : str
        As one would write it: ``'self.grid'``, ``"params['w']"``, ``'rows[2]'``.
    value : object
        No atoms, and no more than a thousand.
    """
    waiting: deque[tuple[str, Any]] = deque([(label, value)])
    seen: set[int] = set()
    while waiting and len(seen) < _MOST:
        label, value = waiting.popleft()
        if type(value) in ATOMS or id(value) in seen:
            continue
        seen.add(id(value))
        yield label, value
        waiting.extend(_inside(label, value))


def attributes(value: Any) -> dict[str, Any] | None:
    """The attributes of an object that is looked into, None if it is not."""
    kind = type(value)
    if isinstance(value, _OPAQUE) or not isinstance(kind.__module__, str):
        return None
    if kind.__module__.partition(".")[0] in _CLOSED or installed(kind.__module__):
        return None
    try:
        found = dict(object.__getattribute__(value, "__dict__"))
    except (AttributeError, TypeError):
        found = {}
    for base in kind.__mro__:
        slots = vars(base).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            member = vars(base).get(name)
            if member is not None and hasattr(member, "__get__"):
                try:
                    found[name] = member.__get__(value, kind)
                except AttributeError:  # not set
                    continue
    return found


def _inside(label: str, value: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(value, dict):
        if not set(map(type, value.values())) <= ATOMS:
            yield from ((f"{label}[{key!r}]", item) for key, item in value.items())
    elif isinstance(value, (list, tuple, deque)):
        if not set(map(type, value)) <= ATOMS:
            fields = getattr(value, "_fields", ())  # a named tuple's
            for number, item in enumerate(value):
                part = f".{fields[number]}" if len(fields) == len(value) else f"[{number}]"
                yield label + part, item
    if (found := attributes(value)) is not None:
        yield from ((f"{label}.{name}", item) for name, item in found.items())
