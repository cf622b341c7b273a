"""What a kernel was given, to see afterwards whether it changed what nobody will see.

Every worker has copies of the caller's lists, dicts, sets and objects; what a kernel does to them
ends with the region. A serial loop would have kept it, so a kernel that ends with a changed one
fails, with the remedy, instead of losing the change in silence.

A snapshot is shallow: it tells which objects a container held, by identity. Containers inside
containers have snapshots of their own, as far as `reachable` leads.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from operator import is_
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, NamedTuple

import numpy as np

from dsmfor.errors import LostWriteError
from dsmfor.origin import users
from dsmfor.reachable import ATOMS, attributes, reachable

__all__ = ["QUIET", "Snapshots"]

_LISTS = (list, deque)
_STRUCTS = {"types.SimpleNamespace", "argparse.Namespace"}


_RETURN = (
    "Return the value (the call gives a list by rank, or what reduce= makes of it), write numbers "
    "into a shared array"
)
QUIET = ATOMS | {np.ndarray, FunctionType, BuiltinFunctionType, ModuleType, type}
"""Types of values in which a kernel changes nothing that the caller would miss."""


class _Change(NamedTuple):
    """What a kernel did in vain, in words."""

    what: str
    name: str = ""  # of the attribute
    remedy: str = _RETURN


class Snapshots:
    """Of everything that may change inside some values.

    Parameters
    ----------
    named : iterable of (str, object)
        Values and the user's names for them.
    private : frozenset of str
        Dotted names of what may change, for the user has said so.
    """

    def __init__(self, named: Iterable[tuple[str, Any]], private: frozenset[str]) -> None:
        self._taken: list[tuple[str, Any, Callable[[], _Change | None]]] = []
        for name, value in named:
            if type(value) in QUIET or name in private:
                continue
            for label, found in reachable(name, value):
                if not _within(label, private):
                    change = _watch(label, found, private)
                    if change is not None:
                        self._taken.append((label, found, change))

    def check(self, kernel: str) -> None:
        """Whether all is as it was.

        Raises
        ------
        LostWriteError
            Something is not.
        """
        for label, _, change in self._taken:
            if changed := change():
                raise LostWriteError(
                    f"{kernel} changed {changed.what}, and the change would be lost: every worker "
                    f"has a copy of its own, and the caller's stays as it is. {changed.remedy}, or "
                    f"say private=[{(changed.name or label).partition('[')[0]!r}] if it is scratch"
                )


def _within(label: str, private: frozenset[str]) -> bool:
    return any(label == name or label.startswith((f"{name}.", f"{name}[")) for name in private)


def _watch(label: str, value: Any, private: frozenset[str]) -> Callable[[], _Change | None] | None:
    """A function that tells what has changed in a value since now."""
    if isinstance(value, dict):
        return _watch_dict(label, value)
    if isinstance(value, _LISTS):
        items = list(value)
        name = "list" if isinstance(value, list) else "deque"
        return lambda: None if _same(items, list(value)) else _Change(f"the {name} {label!r}")
    if isinstance(value, set):
        members = frozenset(value)
        return lambda: None if members == value else _Change(f"the set {label!r}")
    if isinstance(value, bytearray):
        content = bytes(value)
        return lambda: None if content == value else _Change(f"the bytearray {label!r}")
    kind = type(value)
    if not users(kind.__module__) and f"{kind.__module__}.{kind.__qualname__}" not in _STRUCTS:
        return None  # Python's own objects keep caches: a path, its parts
    found = attributes(value)
    if found is None:
        return None
    free = private | {f"{label}.{name}" for name in _cached(kind)}
    return lambda: _changed_attributes(label, found, attributes(value) or {}, free)


def _cached(kind: type) -> Iterator[str]:
    """Names of the attributes that objects of a class compute when they are first asked."""
    for base in kind.__mro__:
        for name, member in vars(base).items():
            if isinstance(member, functools.cached_property):
                yield name


def _watch_dict(label: str, value: dict[Any, Any]) -> Callable[[], _Change | None]:
    keys, items = list(value), list(value.values())

    def change() -> _Change | None:
        if _same(keys, list(value)) and _same(items, list(value.values())):
            return None
        return _Change(f"the dict {label!r}")

    return change


def _same(before: list[Any], after: list[Any]) -> bool:
    return len(before) == len(after) and all(map(is_, before, after))


def _changed_attributes(
    label: str, before: dict[str, Any], after: dict[str, Any], private: frozenset[str]
) -> _Change | None:
    for name in {**before, **after}:
        if name in before and name in after and before[name] is after[name]:
            continue
        full = f"{label}.{name}"
        if full in private:
            continue
        if isinstance(before.get(name), np.ndarray) and isinstance(after.get(name), np.ndarray):
            remedy = f"Write into the array, {full}[...] = ..., and name {full!r} in shared"
            return _Change(f"the attribute {full!r}", full, remedy)
        return _Change(f"the attribute {full!r}", full)
    return None
