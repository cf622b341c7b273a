"""SharedArray's footer, by which ``SharedArray.attach`` maps a segment, here and anywhere.

::

    a segment   | data: nbytes, from a page boundary | footer: 548 bytes |
    the footer  magic[16]  size u64  type i32  item size i32  ndims i32  dims i64[64]

We write the footer ourselves, since SharedArray's own ``create`` insists on a name and reserves
nothing. So the installed SharedArray is asked once whether it would have written the same. It is
imported as late as can be, with the first segment: that import would switch the GIL back on in a
free-threaded Python. Making and mapping segments is the business of `dsmfor.segments`.
"""

from __future__ import annotations

import contextlib
import os
import struct
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from dsmfor.errors import DSMError

__all__ = ["FOOTER", "SharedArray", "footer", "load"]

FOOTER = struct.Struct("<16sQiii64q")
"""Magic, size, NumPy type number, item size, dimensions, their lengths."""

_MAGIC = b"[SharedArray]"
_UINT8 = int(np.dtype(np.uint8).num)

_PUBLIC = ("/dev/shm", "/tmp", "/var/tmp")  # noqa: S108  # only a private directory in one of them
"""Where SharedArray may make its one named array, the probe."""

_SPARE = 1 << 20
"""Bytes that a file system must have left to be used for the probe."""


class SharedArray(Protocol):
    """The two functions of the SharedArray module that are used."""

    def create(self, name: str, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """Make a new array under a name."""

    def attach(self, name: str) -> NDArray[Any]:
        """Map the array of that name, or of a file: ``file://path``."""


def footer(nbytes: int) -> bytes:
    """The footer of a one-dimensional array of `nbytes` uint8."""
    return FOOTER.pack(_MAGIC, nbytes, _UINT8, 1, 1, nbytes, *[0] * 63)


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
    """Compare an array made by SharedArray itself with what we would write.

    ``create`` insists on making a new name, so it gets one in a directory that nobody else can
    enter, and both are gone before this returns. Where no directory can be written, the proof is
    left to ``attach``, which refuses a footer whose magic is not where it looks for it.
    """
    length = 3
    for directory in _PUBLIC:
        private = os.path.join(directory, f"dsmfor-probe-{os.urandom(8).hex()}")
        path = os.path.join(private, "probe")
        try:
            room = os.statvfs(directory)
            # On a full file system SharedArray dies of SIGBUS instead of raising.
            if room.f_bavail * room.f_frsize < _SPARE:
                continue
            os.mkdir(private, 0o700)
        except OSError:
            continue
        try:
            module.create(f"file://{path}", (length,), np.uint8)
            with open(path, "rb") as file:
                found = file.read()
        except OSError:
            continue
        finally:
            with contextlib.suppress(OSError):
                os.unlink(path)
            with contextlib.suppress(OSError):
                os.rmdir(private)
        if found[length:] != footer(length):
            raise DSMError(
                f"the installed SharedArray ends an array with {len(found) - length} bytes that "
                f"are not the {FOOTER.size} dsmfor writes; install SharedArray 3.2 built for "
                "NumPy 2 (pip install --force-reinstall SharedArray)"
            )
        return
