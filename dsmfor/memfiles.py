"""Anonymous files in memory: made, reserved, sealed, examined, and numbered out of the user's way.

A segment is such a file, mapped; that and its life are the business of `dsmfor.segments`.

Guarantees
    What `make` reserves is taken, or a `SharedMemoryFull` is raised and nothing is. Sealed against
    shrinking and growing, a file stays whole whatever another process does. Descriptors are
    numbered from 1024 up where the limit allows, so ``select`` keeps working on the user's, and
    they are closed on exec.
"""

from __future__ import annotations

import errno
import fcntl
import os

from dsmfor import footer, limits
from dsmfor._native.farewell import Descriptor, memory_file
from dsmfor._native.interrupts import Unsignalled, hear
from dsmfor.errors import DSMError
from dsmfor.footer import FOOTER

__all__ = ["examine", "lift", "make", "prepare", "reserve", "take"]

# Linux numbers that Python 3.11 does not name.
_MFD_NOEXEC_SEAL = 0x0008
_F_ADD_SEALS = 1033
_F_GET_SEALS = 1034
_SEALS = 0x1 | 0x2 | 0x4  # against more seals, shrinking, growing

_PIECE = 64 << 20
"""Bytes reserved by one system call: between two of them Ctrl-C is seen."""

_SELECTABLE = 1024
"""``select`` takes descriptors below this one; they are left to the user."""

# Learnt when the first file is made.
_memfd_flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | _MFD_NOEXEC_SEAL
_lowest_descriptor = _SELECTABLE


def prepare() -> None:
    """Before the first file: let descriptors lie above the user's, if that many are allowed."""
    global _lowest_descriptor
    allowed = limits.raise_descriptor_limit()
    _lowest_descriptor = _SELECTABLE if allowed == -1 or allowed >= 2 * _SELECTABLE else 0


def make(nbytes: int, *, sparse: bool = False, live: int = 0) -> Descriptor:
    """A new sealed file of `nbytes` zeros and a footer.

    Parameters
    ----------
    nbytes : int, bytes
    sparse : bool
        Take no pages but the footer's: they come with `reserve`.
    live : int
        Segments that this process holds, for the message.

    Raises
    ------
    SharedMemoryFull
        There is no room for it, or no descriptor.
    OSError
        The system refuses anonymous files in memory.
    """
    limits.check(FOOTER.size if sparse else nbytes)
    try:
        with _anonymous_file() as held:
            fd = held.number
            os.fchmod(fd, 0o600)  # whoever got it could else open it anew with more rights
            if sparse:
                os.ftruncate(fd, nbytes + FOOTER.size)
                os.posix_fallocate(fd, nbytes, FOOTER.size)
            else:
                take(fd, 0, nbytes + FOOTER.size)
            os.pwrite(fd, footer.footer(nbytes), nbytes)
            fcntl.fcntl(fd, _F_ADD_SEALS, _SEALS)
            return lift(held)
    except OSError as error:
        raise limits.refusal(error, "make", nbytes, live=live) from error


def reserve(fd: int, start: int, nbytes: int) -> None:
    """Take the pages of a part of a sparse file.

    Raises
    ------
    SharedMemoryFull
        There is no room for them.
    """
    limits.check(nbytes)
    try:
        take(fd, start, start + nbytes)
    except OSError as error:
        raise limits.refusal(error, "make", nbytes, live=0) from error


def take(fd: int, start: int, end: int) -> None:
    """Take the pages of a file from one byte to another; an OSError if there is no room."""
    for at in range(start, end, _PIECE):
        with Unsignalled():  # the system undoes what a signal interrupts, and a timer is faster
            os.posix_fallocate(fd, at, min(_PIECE, end - at))
        hear()


def _anonymous_file() -> Descriptor:
    global _memfd_flags
    try:
        return memory_file("dsmfor segment", _memfd_flags)
    except OSError as error:
        if error.errno != errno.EINVAL or not _memfd_flags & _MFD_NOEXEC_SEAL:
            raise
    _memfd_flags &= ~_MFD_NOEXEC_SEAL  # before Linux 6.3
    return memory_file("dsmfor segment", _memfd_flags)


def lift(held: Descriptor) -> Descriptor:
    """The same file under a number that ``select`` does not need, closed on exec."""
    if held.number >= _lowest_descriptor:
        os.set_inheritable(held.number, False)
        return held
    lifted = held.duplicate(_lowest_descriptor)
    held.close()
    return lifted


def examine(segment: int, fd: int, nbytes: int, *, named: bool = False) -> None:
    """Refuse what SharedArray would crash on, or what its maker could still cut short.

    A named file is not mapped by SharedArray, and cannot be sealed.
    """
    total = os.fstat(fd).st_size
    if named and 1 <= nbytes <= total - FOOTER.size:
        return
    if total != nbytes + FOOTER.size or nbytes < 1:
        fault = f"it has {total} bytes instead of {nbytes} and a footer of {FOOTER.size}"
    elif os.pread(fd, FOOTER.size, nbytes) != footer.footer(nbytes):
        fault = "its footer is not that of a segment of dsmfor"
    elif _seals(fd) & _SEALS != _SEALS:
        fault = "it is not sealed against shrinking and growing"
    else:
        return
    raise DSMError(
        f"descriptor {fd} is not segment {segment} of {nbytes} bytes: {fault}; "
        "hand over the descriptor that segments.descriptor() gives"
    )


def _seals(fd: int) -> int:
    try:
        return fcntl.fcntl(fd, _F_GET_SEALS)
    except OSError:  # not a file in memory
        return 0
