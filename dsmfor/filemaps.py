"""Arrays that lie in files which the user has mapped (`numpy.memmap`): they cross by name.

A worker maps the same file, so the array is live in both processes and nothing is copied,
however large it is.
"""

from __future__ import annotations

import mmap
import os
import weakref
from typing import Any

import numpy as np

__all__ = ["by_file"]

_files: weakref.WeakKeyDictionary[mmap.mmap, tuple[int, int]] = weakref.WeakKeyDictionary()


def by_file(value: np.ndarray, intent: str | None) -> Any:
    """An array as a place in a file, as `reducer_override` answers; None if it goes otherwise.

    It does if it is no view of a memory map, or of one whose changes are private (mode 'c') or
    whose file has lost its name.

    Parameters
    ----------
    value : ndarray
    intent : str or None
        'in' for a map that is to arrive read-only.
    """
    origin = _memory_map(value)
    if origin is None:
        return None
    mapped = origin._mmap  # type: ignore[attr-defined]
    path = getattr(origin, "filename", None)
    if path is None or origin.mode == "c":
        return None
    whole = np.frombuffer(mapped, np.uint8)
    address = whole.__array_interface__["data"][0]
    if not _still_there(mapped, address, path):
        return None
    return _from_file, (
        type(value),
        os.path.abspath(path),
        origin.offset - origin.offset % mmap.ALLOCATIONGRANULARITY,
        whole.nbytes,
        value.__array_interface__["data"][0] - address,
        value.shape,
        value.strides,
        value.dtype,
        value.flags.writeable and intent != "in" and origin.mode != "r",
    )


def _still_there(mapped: mmap.mmap, address: int, path: Any) -> bool:
    """Whether the file that is mapped at an address is the one that has its name now.

    The kernel's list of mappings says so, at some cost; from then on device and inode do.
    """
    try:
        found = os.stat(path)
    except OSError:
        return False
    known = _files.get(mapped)
    if known is None:
        real = os.path.realpath(path)
        with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
            for line in maps:
                low, _, high = line.split(maxsplit=1)[0].partition("-")
                if int(low, 16) <= address < int(high, 16):
                    name = line.rstrip("\n").split(maxsplit=5)[5:]
                    if name == [real]:  # else it was renamed, or deleted
                        known = _files[mapped] = found.st_dev, found.st_ino
                    break
    return known == (found.st_dev, found.st_ino)


def _from_file(
    kind: type,
    path: str,
    start: int,
    length: int,
    place: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    dtype: np.dtype[Any],
    writeable: bool,
) -> np.ndarray:
    mapped = np.memmap(path, np.uint8, "r+" if writeable else "r", start, (length,))
    buffer = mapped._mmap  # type: ignore[attr-defined]
    view: np.ndarray = np.ndarray.__new__(kind, shape, dtype, buffer, place, strides)
    if kind is np.memmap:
        vars(view).update(vars(mapped))
    return view


def _memory_map(value: np.ndarray) -> np.memmap | None:
    """The memory map that an array is a view of."""
    found: Any = value
    while found is not None:
        if isinstance(found, np.memmap) and getattr(found, "_mmap", None) is not None:
            return found
        found = getattr(found, "base", None)  # that of as_strided is no array, and has a base
    return None
