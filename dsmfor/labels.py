"""What is written behind a named array, so that others can make an array of its bytes again.

::

    a named file  | data: nbytes | label: JSON | tail: 24 bytes | SharedArray's footer: 548 bytes |
    the tail      magic[16]  length of the label u32  its CRC-32 u32

The *label* tells dtype, shape, order of the axes in memory, and who owns the name: all that
SharedArray's footer has no room for. The footer tells a program that has only SharedArray of the
same bytes as well as it can: of the axes in the order in which they lie in memory (an F-ordered
array is seen transposed), of dates as int64, and of structured and byte-swapped elements as void
of their size. An array that SharedArray made has no label.

Nothing is unpickled: a label is plain data, and every word of it is checked against the others
before an array is made. Files and their descriptors are the business of `dsmfor.shmfiles`.
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dsmfor import footer
from dsmfor.footer import FOOTER

__all__ = ["Label", "Owner", "arrange", "read", "write"]

TAIL = struct.Struct("<16sII")

_MAGIC = b"[dsmfor array 1]"
_MOST = 1 << 22
"""Bytes of a label: a structured dtype of some ten thousand fields."""

_PLAIN = re.compile(r"[<>|][?biufcSUVmM]\d{1,10}(\[\d{0,10}[a-zA-Zμ]{1,7}\])?")


class Owner(NamedTuple):
    """The process that gave a name: nobody else ever has the same three numbers at a time."""

    pid: int
    started: int  # clock ticks since the machine did
    space: int  # inode of the namespace that the pid is of


class Label(NamedTuple):
    """An array in a named file."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    axes: tuple[int, ...]  # in the order of their strides, the widest first
    nbytes: int  # of the data, at least one
    owner: Owner | None  # None: SharedArray made it
    created: float  # seconds since the epoch; 0 if SharedArray made it


def write(label: Label) -> bytes:
    """What comes behind the data of a file.

    Raises
    ------
    TypeError
        The dtype means nothing to other programs.
    """
    words = {
        "dtype": _describe(label.dtype),
        "shape": label.shape,
        "axes": label.axes,
        "nbytes": label.nbytes,
        "owner": label.owner,
        "created": label.created,
    }
    text = json.dumps(words).encode()
    if len(text) > _MOST:
        raise TypeError(
            f"a dtype of {len(text):,} bytes of description cannot be published under a name, "
            f"{_MOST:,} are possible; use fewer fields"
        )
    return text + TAIL.pack(_MAGIC, len(text), zlib.crc32(text)) + _outside(label)


def read(fd: int) -> Label:
    """The label of the file behind a descriptor.

    Raises
    ------
    ValueError
        It holds no array, or one that is not whole.
    """
    size = os.fstat(fd).st_size
    end = size - FOOTER.size
    seen, dtype = footer.unpack(os.pread(fd, FOOTER.size, max(end, 0)))
    tail = os.pread(fd, TAIL.size, end - TAIL.size) if end >= TAIL.size else b""
    if not tail.startswith(_MAGIC):
        nbytes = math.prod(seen) * dtype.itemsize
        if not 0 < nbytes <= end:
            raise ValueError(f"its footer tells of {nbytes} bytes, and it has {max(end, 0)}")
        return Label(dtype, seen, tuple(range(len(seen))), nbytes, None, 0.0)
    _, length, checksum = TAIL.unpack(tail)
    start = end - TAIL.size - length
    if length > _MOST or start < 1:
        raise ValueError(f"its label is to have {length} bytes, and the file has {size}")
    text = os.pread(fd, length, start)
    if zlib.crc32(text) != checksum:
        raise ValueError("its label is damaged")
    label = _understand(text)
    if label.nbytes != start:
        raise ValueError(f"its label tells of {label.nbytes} bytes, and it has {start}")
    if os.pread(fd, FOOTER.size, end) != _outside(label):
        raise ValueError("its label and SharedArray's footer tell of different arrays")
    return label


def arrange(label: Label, root: NDArray[np.uint8]) -> NDArray[Any]:
    """The array that a label describes, over the bytes of its file."""
    packed = np.ndarray([label.shape[axis] for axis in label.axes], label.dtype, root)
    return packed.transpose([label.axes.index(axis) for axis in range(len(label.axes))])


def _outside(label: Label) -> bytes:
    """The footer by which SharedArray knows the array."""
    dtype = label.dtype
    if not dtype.isnative or dtype.names is not None:
        dtype = np.dtype((np.void, dtype.itemsize))
    elif dtype.kind in "mM":  # without its unit, NumPy could not even print it
        dtype = np.dtype(np.int64)
    return footer.pack(tuple(label.shape[axis] for axis in label.axes), dtype)


def _understand(text: bytes) -> Label:
    try:
        words = json.loads(text)
        dtype = _made(words["dtype"])
        shape = _numbers(words["shape"])
        axes = _numbers(words["axes"])
        (nbytes,) = _numbers([words["nbytes"]])
        owner = Owner(*_numbers(words["owner"]))
        created = float(words["created"])
    except (KeyError, TypeError, ValueError, OverflowError, MemoryError, RecursionError) as error:
        raise ValueError(f"its label is no description of an array ({error})") from None
    if sorted(axes) != list(range(len(shape))) or len(shape) > 64:
        raise ValueError(f"its label tells of shape {shape} and axes {axes}")
    if dtype.hasobject or dtype.itemsize < 0 or max(math.prod(shape) * dtype.itemsize, 1) != nbytes:
        raise ValueError(f"its label tells of {nbytes} bytes for shape {shape} of {dtype}")
    if not math.isfinite(created):
        raise ValueError(f"its label tells of the time {created}")
    return Label(dtype, shape, axes, nbytes, owner, created)


def _numbers(values: Sequence[object]) -> tuple[int, ...]:
    """Integers that are lengths or the like."""
    if not isinstance(values, list):
        raise TypeError(f"{values!r} is no list of integers")
    found = []
    for value in values:
        if type(value) is not int or not 0 <= value < 2**63:
            raise ValueError(f"{value!r} is no length")
        found.append(value)
    return tuple(found)


def _describe(dtype: np.dtype[Any]) -> Any:
    """A dtype as plain data."""
    if dtype.itemsize == 0:
        raise TypeError(f"an array of dtype {dtype} has no bytes to publish under a name")
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return [_describe(base), list(shape)]
    if dtype.names is not None:
        assert dtype.fields is not None
        fields = [dtype.fields[name] for name in dtype.names]
        titles = [field[2] if len(field) > 2 else None for field in fields]
        if any(title is not None and not isinstance(title, str) for title in titles):
            raise TypeError(f"dtype {dtype} has titles that are no texts; publish one without them")
        return {
            "names": list(dtype.names),
            "formats": [_describe(field[0]) for field in fields],
            "offsets": [field[1] for field in fields],
            "titles": titles,
            "itemsize": dtype.itemsize,
            "aligned": dtype.isalignedstruct,
            "record": dtype.type is np.record,
        }
    if dtype.isbuiltin == 2 or not _PLAIN.fullmatch(dtype.str) or np.dtype(dtype.str) != dtype:
        raise TypeError(
            f"dtype {dtype} cannot be published under a name: programs beside this one do not "
            "know it; publish an array of plain numbers and view it as that dtype"
        )
    return dtype.str


def _made(words: object) -> np.dtype[Any]:
    """The dtype that `_describe` was given."""
    if isinstance(words, str):
        if not _PLAIN.fullmatch(words):
            raise ValueError(f"{words[:40]!r} is no dtype")
        return np.dtype(words)
    if isinstance(words, list):
        base, shape = words
        return np.dtype((_made(base), _numbers(shape)))
    if not isinstance(words, dict):
        raise TypeError(f"{words!r} is no dtype")
    parts: Any = {
        "names": [str(name) for name in words["names"]],
        "formats": [_made(each) for each in words["formats"]],
        "offsets": list(_numbers(words["offsets"])),
        "titles": [None if title is None else str(title) for title in words["titles"]],
        "itemsize": _numbers([words["itemsize"]])[0],
    }
    made: np.dtype[Any] = np.dtype(parts, align=bool(words["aligned"]))
    return np.dtype((np.record, made)) if words["record"] else made
