"""Plain arrays of the caller, in shared memory for the length of one region.

Workers cannot see the caller's private memory, so the arrays that lie there are copied into one
segment before the region and, where the kernel may write, back afterwards. Segments are reused
from call to call. Arrays that overlap go as one image of the bytes that they span, with every view
rebuilt in it, so they overlap in the workers too.

Guarantees
----------
- What is copied back is each writable view element by element, never a byte between elements.
- The caller's arrays are read once, before the region, and written once, after it.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import threading
from collections.abc import Iterable
from typing import Literal, NamedTuple, cast

import numpy as np

from dsmfor import limits, segments
from dsmfor._native import registry
from dsmfor.arrays import Handle
from dsmfor.transit import Plain

__all__ = ["Stage", "drop_spares"]

_ALIGNMENT = 64
_SPARES = 8  # segments kept for the next call
_LOOK = 16 << 20  # bytes from which on a segment is kept only if as much is left


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

    def give(self, root: np.ndarray) -> None:
        # What a worker or the user's own code takes next may be killed for, not refused.
        if root.nbytes >= _LOOK and limits.scarce(root.nbytes):
            return
        with self._lock:
            self._roots.append(root)
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


class Stage:
    """The plain arrays of one call.

    Parameters
    ----------
    items : iterable of Plain
        Plain arrays and their intents, each array once.

    Attributes
    ----------
    table : list of Handle
        For each array, in order, where its copy lies.
    segment : int
        Number of the segment with all the copies.
    fixed : frozenset of int
        Offsets of the copies of read-only arrays.
    bytes_in, bytes_out : int
        What was copied.
    """

    def __init__(self, items: Iterable[Plain]) -> None:
        self._items = list(items)
        self._views: list[np.ndarray] = [item.array for item in self._items]  # to be replaced
        self.bytes_in = self.bytes_out = 0
        groups = _groups(self._items)
        places = list(itertools.accumulate(map(_Group.room, groups), initial=0))
        self._root: np.ndarray | None = _spares.take(places[-1])
        try:
            for group, place in zip(groups, places, strict=False):
                if group.alone:
                    self._pack(group.members[0], place)
                else:
                    self._image(group, place)
            self.table = [
                self._offered(view, item)
                for view, item in zip(self._views, self._items, strict=True)
            ]
            self.segment = self.table[0][0]
            self.fixed = frozenset(
                cast("int", handle[1])  # of a segment of our own, not of an arena
                for handle, item in zip(self.table, self._items, strict=True)
                if not item.array.flags.writeable
            )
        except BaseException:
            self.close()
            raise

    def _pack(self, number: int, place: int) -> None:
        """A lone array: its elements side by side, in its own memory order."""
        array = self._items[number].array
        order: Literal["C", "F"] = (
            "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
        )
        view: np.ndarray = np.ndarray(array.shape, array.dtype, self._root, place, order=order)
        self._views[number] = view
        if self._items[number].intent == "out":
            view[...] = np.zeros((), array.dtype)
        else:
            np.copyto(view, array)
            self.bytes_in += array.nbytes

    def _image(self, group: _Group, place: int) -> None:
        """Arrays that overlap: the bytes from the lowest to the highest, and the views in them."""
        place += group.low % _ALIGNMENT
        assert self._root is not None
        raw = memoryview((ctypes.c_char * (group.high - group.low)).from_address(group.low))
        image = self._root[place : place + group.high - group.low]
        np.copyto(image, np.frombuffer(raw, np.uint8))
        self.bytes_in += group.high - group.low
        cleared = False
        for number in group.members:
            array = self._items[number].array
            address = array.__array_interface__["data"][0]
            view = registry.view(
                self._root,
                place + address - group.low,
                array.shape,
                array.strides,
                array.dtype,
                True,
            )
            if self._items[number].intent == "out":
                view[...] = np.zeros((), array.dtype)
                cleared = True
            self._views[number] = view
        if cleared:  # but for what another view brings in
            for number in group.members:
                if self._items[number].intent != "out":
                    np.copyto(self._views[number], self._items[number].array)

    @staticmethod
    def _offered(view: np.ndarray, item: Plain) -> Handle:
        handle = registry.handle(view)
        assert handle is not None
        return (*handle[:5], item.intent != "in")

    def copy_out(self) -> None:
        """Write back what the kernel may have written."""
        for item, view in zip(self._items, self._views, strict=True):
            if item.intent != "in":
                np.copyto(item.array, view)
                self.bytes_out += item.array.nbytes

    def close(self) -> None:
        """Keep the segment for the next call."""
        self._views.clear()
        root, self._root = self._root, None
        if root is not None:
            _spares.give(root)


class _Group(NamedTuple):
    """Arrays whose byte spans overlap, by number, and the bytes that they span together."""

    members: list[int]
    low: int
    high: int
    alone: bool  # one array, no two of whose indices mean the same element
    nbytes: int  # of a lone array's elements

    def room(self) -> int:
        """Bytes that the copy takes, and its alignment."""
        needed = self.nbytes if self.alone else self.high - self.low + _ALIGNMENT
        return -(-needed // _ALIGNMENT) * _ALIGNMENT


def _groups(items: list[Plain]) -> list[_Group]:
    """Items by overlap of their byte spans."""
    spans = sorted((*registry.span(item.array), number) for number, item in enumerate(items))
    found: list[tuple[list[int], int, int]] = []
    for low, high, number in spans:
        if found and low < found[-1][2]:
            members, first, last = found[-1]
            members.append(number)
            found[-1] = members, first, max(last, high)
        else:
            found.append(([number], low, high))
    return [
        _Group(
            members,
            low,
            high,
            len(members) == 1 and not _overlaps_itself(items[members[0]].array),
            items[members[0]].array.nbytes,
        )
        for members, low, high in found
    ]


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
