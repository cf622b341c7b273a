"""Plain arrays of the caller, in shared memory for the length of one region.

Workers cannot see the caller's private memory, so an array that lies there is copied into a
segment before the region and, if the kernel may write it, back afterwards. Segments are reused
from call to call. Arrays that overlap go as one image of the bytes that they span, with every view
rebuilt in it, so they overlap in the workers too.

Guarantees
----------
- What is copied back is each writable view element by element, never a byte between elements.
- The caller's arrays are read once, before the region, and written once, after it.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import numpy as np

from dsmfor import segments
from dsmfor._native import registry

__all__ = ["Stage", "drop_spares", "stageable"]

_ALIGNMENT = 64
_SPARES = 8  # segments kept for the next call


class _Item(NamedTuple):
    """A plain array, and what the kernel does with it."""

    array: np.ndarray
    intent: str  # "in" | "out" | "inout"


class _Spares:
    """Segments between two calls. `_lock` guards the list; a segment in use is not in it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._roots: list[np.ndarray] = []  # oldest first

    def take(self, nbytes: int) -> np.ndarray:
        """A segment of `nbytes` at least, and not wastefully more; its bytes mean nothing."""
        with self._lock:
            fitting = [r for r in self._roots if nbytes <= r.nbytes <= max(2 * nbytes, 1 << 20)]
            if fitting:
                root = min(fitting, key=lambda r: r.nbytes)
                self._roots = [r for r in self._roots if r is not root]
                return root
        return segments.create(nbytes)

    def give(self, roots: list[np.ndarray]) -> None:
        with self._lock:
            self._roots += roots
            del self._roots[:-_SPARES]

    def drop(self) -> None:
        with self._lock:
            self._roots.clear()


_spares = _Spares()


def _own_spares() -> None:
    """In a forked child: the spare segments are the parent's, and shared with it."""
    global _spares
    _spares = _Spares()


os.register_at_fork(after_in_child=_own_spares)


def drop_spares() -> None:
    """Give the memory of past calls back to the system."""
    _spares.drop()


def stageable(value: object) -> bool:
    """Whether `value` is exactly an ndarray, plain, whose bytes can be copied."""
    return (
        type(value) is np.ndarray
        and value.size > 0
        and not value.dtype.hasobject
        and value.dtype.itemsize > 0
        and value.dtype.kind != "T"
        and registry.handle(value) is None
    )


class Stage:
    """The plain arrays of one call.

    Parameters
    ----------
    items : iterable of (ndarray, str)
        Plain arrays and their intents. The same array twice counts once, as the wider of its
        intents.

    Attributes
    ----------
    views : dict of int to ndarray
        By id of a plain array, the shared array that stands for it.
    bytes_in, bytes_out : int
        What was copied.
    """

    def __init__(self, items: Iterable[tuple[np.ndarray, str]]) -> None:
        self.views: dict[int, np.ndarray] = {}
        self.bytes_in = self.bytes_out = 0
        self._roots: list[np.ndarray] = []
        self._items: dict[int, _Item] = {}  # keeps the arrays, and so their ids, alive
        for array, intent in items:
            known = self._items.get(id(array))
            if known is not None and known.intent != intent:
                intent = "inout"
            self._items[id(array)] = _Item(array, intent)
        try:
            for group in _groups(self._items.values()):
                if len(group) == 1 and not _overlaps_itself(group[0].array):
                    self._pack(group[0])
                else:
                    self._image(group)
        except BaseException:
            self.close()
            raise

    def _take(self, nbytes: int) -> np.ndarray:
        root = _spares.take(nbytes)
        self._roots.append(root)
        return root

    def _pack(self, item: _Item) -> None:
        """A lone array: its elements side by side, in its own memory order."""
        array = item.array
        order: Literal["C", "F"] = (
            "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
        )
        root = self._take(array.nbytes)
        view = np.ndarray(array.shape, array.dtype, root, order=order)
        self._fill(item, view)
        self._offer(item, registry.handle(view), root)

    def _image(self, group: list[_Item]) -> None:
        """Arrays that overlap: the bytes from the lowest to the highest, and the views in them."""
        spans = [registry.span(item.array) for item in group]
        low, high = min(s[0] for s in spans), max(s[1] for s in spans)
        shift = low % _ALIGNMENT
        root = self._take(shift + high - low)
        raw = memoryview((ctypes.c_char * (high - low)).from_address(low))
        np.copyto(root[shift : shift + high - low], np.frombuffer(raw, np.uint8))
        self.bytes_in += high - low
        for item in group:
            array = item.array
            address = array.__array_interface__["data"][0]
            view = registry.view(
                root, shift + address - low, array.shape, array.strides, array.dtype, True
            )
            if item.intent == "out":
                view[...] = np.zeros((), array.dtype)
            self._offer(item, registry.handle(view), root)

    def _fill(self, item: _Item, view: np.ndarray) -> None:
        if item.intent == "out":
            view[...] = np.zeros((), item.array.dtype)
        else:
            np.copyto(view, item.array)
            self.bytes_in += item.array.nbytes

    def _offer(self, item: _Item, handle: Any, root: np.ndarray) -> None:
        _, offset, shape, strides, token, _ = handle
        self.views[id(item.array)] = registry.view(
            root, offset, shape, strides, token, item.intent != "in"
        )

    def copy_out(self) -> None:
        """Write back what the kernel may have written."""
        for key, item in self._items.items():
            if item.intent != "in":
                np.copyto(item.array, self.views[key])
                self.bytes_out += item.array.nbytes

    def close(self) -> None:
        """Keep the segments for the next call."""
        self.views.clear()
        roots, self._roots = self._roots, []
        _spares.give(roots)


def _groups(items: Iterable[_Item]) -> list[list[_Item]]:
    """Items by overlap of their byte spans."""
    spans = sorted((registry.span(item.array), n, item) for n, item in enumerate(items))
    groups: list[list[_Item]] = []
    end = -1
    for (low, high), _, item in spans:
        if low >= end:
            groups.append([])
        groups[-1].append(item)
        end = max(end, high)
    return groups


def _overlaps_itself(array: np.ndarray) -> bool:
    """Whether two indices may mean one element: broadcasts, sliding windows."""
    dims = sorted(
        (abs(stride), n) for stride, n in zip(array.strides, array.shape, strict=True) if n > 1
    )
    reach = array.itemsize
    for stride, n in dims:
        if stride < reach:
            return True
        reach += stride * (n - 1)
    return False
