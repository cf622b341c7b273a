"""Files in memory by which the processes of a team speak: reserved, private, sealed.

Those that hold arrays are made by `dsmfor.memfiles`.
"""

import fcntl
import os

from dsmfor._native.interrupts cimport hear
from dsmfor._native.interrupts import Unsignalled

cdef extern from "<fcntl.h>" nogil:
    int F_ADD_SEALS

# Python's fcntl does not have all of these; the kernel's numbers are for ever.
cdef int SEAL_SEAL = 1, SEAL_SHRINK = 2, SEAL_GROW = 4, SEAL_WRITE = 8, SEAL_FUTURE_WRITE = 16
cdef int NOEXEC = 8  # MFD_NOEXEC_SEAL, Linux 6.3

cdef Py_ssize_t PIECE = 64 << 20  # bytes reserved by one call: between two of them Ctrl-C is heard


def memfd(str name, Py_ssize_t nbytes):
    """A descriptor of `nbytes` reserved, sealable, unnamed bytes, closed on exec."""
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        fd = os.memfd_create(name, flags | NOEXEC)
    except OSError:
        fd = os.memfd_create(name, flags)
    try:
        os.fchmod(fd, 0o600)
        for at in range(0, nbytes, PIECE):
            with Unsignalled():
                os.posix_fallocate(fd, at, min(PIECE, nbytes - at))
            hear()
    except BaseException:
        os.close(fd)
        raise
    return fd


def seal(int fd, bint now=False, bint shared=False):
    """Nobody may resize `fd` any more, nor map it for writing.

    With `now`, nobody may write it, however it is mapped; with `shared`, everybody still may.
    """
    seals = SEAL_SHRINK | SEAL_GROW | SEAL_SEAL
    if not shared:
        seals |= SEAL_WRITE if now else SEAL_FUTURE_WRITE
    fcntl.fcntl(fd, F_ADD_SEALS, seals)
