"""SharedArray's footer, by which ``SharedArray.attach`` maps a segment, here and anywhere.

::

    a segment   | data: nbytes, from a page boundary | footer: 548 bytes |
    the footer  magic[16]  size u64  type i32  item size i32  ndims i32  dims i64[64]

We write the footer ourselves, since SharedArray's own ``create`` insists on a name and reserves
nothing. So the installed SharedArray is asked once whether it reads what we write. It is
imported as late as can be, with the first segment: that import would switch the GIL back on in a
free-threaded Python. Making and mapping segments is the business of `dsmfor.segments`.
"""

from __future__ import annotations

import math
import os
import struct
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from dsmfor.errors import DSMError

__all__ = ["FOOTER", "SharedArray", "footer", "load", "pack", "unpack"]

FOOTER = struct.Struct("<16sQiii64q")
"""Magic, size, NumPy type number, item size, dimensions, their lengths."""

_MAGIC = b"[SharedArray]"
_MAX_DIMENSIONS = 64

_TYPES = {np.dtype(letter).num: np.dtype(letter) for letter in "?bBhHiIlLqQfdgFDGSUVe"}
_TYPES |= {np.dtype(letter).num: np.dtype(np.int64) for letter in "mM"}  # their unit is not kept
"""Dtypes by NumPy's numbers of their types; without those that hold references."""


class SharedArray(Protocol):
    """What is used of the SharedArray module."""

    def attach(self, name: str) -> NDArray[Any]:
        """Map the array of that name, or of a file: ``file://path``."""


def footer(nbytes: int) -> bytes:
    """The footer of a one-dimensional array of `nbytes` uint8."""
    return pack((nbytes,), np.dtype(np.uint8))


def pack(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    """The footer of a row-major array.

    Of the dtype, the number of its type and its size are all that is kept.
    """
    nbytes = math.prod(shape) * dtype.itemsize
    rest = [0] * (_MAX_DIMENSIONS - len(shape))
    return FOOTER.pack(_MAGIC, nbytes, dtype.num, dtype.itemsize, len(shape), *shape, *rest)


def unpack(data: bytes) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype of the row-major array that a footer describes.

    Raises
    ------
    ValueError
        It describes none that SharedArray could map without harm.
    """
    if len(data) != FOOTER.size:
        raise ValueError("it is too short for SharedArray's footer")
    magic, nbytes, number, itemsize, ndim, *dims = FOOTER.unpack(data)
    if magic.rstrip(b"\0") != _MAGIC:
        raise ValueError("it does not end with SharedArray's footer")
    if not 0 <= ndim <= _MAX_DIMENSIONS:
        raise ValueError(f"its footer tells of {ndim} dimensions")
    shape = tuple(dims[:ndim])
    if any(length < 0 for length in shape):
        raise ValueError(f"its footer tells of the shape {shape}")
    dtype = _TYPES.get(number)
    if dtype is None or itemsize < 1:
        raise ValueError(f"its footer tells of type {number} with {itemsize} bytes an element")
    if dtype.itemsize == 0 and dtype.kind in "SUV":
        unit = 4 if dtype.kind == "U" else 1
        if itemsize % unit:
            raise ValueError(f"its footer tells of texts of {itemsize} bytes")
        dtype = np.dtype(f"{dtype.kind}{itemsize // unit}")
    if dtype.itemsize != itemsize:
        raise ValueError(f"its footer tells of {itemsize} bytes for a {dtype}")
    if math.prod(shape) * itemsize != nbytes:
        raise ValueError(f"its footer tells of {nbytes} bytes for shape {shape} of {dtype}")
    return shape, dtype


def load() -> SharedArray:
    """Import SharedArray.

    Raises
    ------
    DSMError
        It lays arrays out in another way than we do.
    """
    import SharedArray as module

    shared_array = cast(SharedArray, module)
    _verify(shared_array)
    return shared_array


def _verify(module: SharedArray) -> None:
    """Have SharedArray read a footer of ours, and see whether it finds what we wrote.

    In a file without a name: its own ``create`` would make one that others could find. A footer
    of another size has its magic elsewhere, so what is no footer to SharedArray is refused by it.
    """
    values = np.array([[1, -2, 3], [4, 5, -6]], np.int16)
    fd = os.memfd_create("dsmfor probe", os.MFD_CLOEXEC)
    try:
        os.fchmod(fd, 0o600)
        os.write(fd, values.tobytes() + pack(values.shape, values.dtype))
        found = module.attach(f"file:///proc/self/fd/{fd}")
    except OSError as error:
        if error.errno is not None:  # no /proc: told with the first segment
            return
        fault = f"does not find ({error})"
    else:
        if found.dtype == values.dtype and np.array_equal(found, values):
            return
        fault = f"takes for one of shape {found.shape} and dtype {found.dtype}"
    finally:
        os.close(fd)
    raise DSMError(
        f"the installed SharedArray reads arrays otherwise than dsmfor writes them: one of "
        f"shape (2, 3), dtype int16 and {FOOTER.size} bytes of footer it {fault}; install "
        "SharedArray 3.2 built for NumPy 2 (pip install --force-reinstall SharedArray)"
    )
