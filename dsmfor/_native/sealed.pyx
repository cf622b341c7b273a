"""Files in memory by which the processes of a team speak: reserved, private, sealed.

Those that hold arrays are made by `dsmfor.memfiles`. Compiled, so that Ctrl-C never strikes between
a descriptor and its name.

Guarantees
    What `memfd` returns is reserved, or `SharedMemoryFull` is raised and nothing is taken.
"""

import fcntl
import os

from libc.errno cimport EINVAL

from dsmfor import limits
from dsmfor._native.interrupts cimport hear
from dsmfor._native.interrupts import Unsignalled

cdef extern from "<fcntl.h>" nogil:
    int F_ADD_SEALS

# Python's fcntl does not have all of these; the kernel's numbers are for ever.
cdef int SEAL_SEAL = 1, SEAL_SHRINK = 2, SEAL_GROW = 4, SEAL_FUTURE_WRITE = 16
cdef int NOEXEC = 8  # MFD_NOEXEC_SEAL, Linux 6.3

cdef Py_ssize_t PIECE = 64 << 20  # bytes reserved by one call: between two of them Ctrl-C is heard


def memfd(str name, Py_ssize_t nbytes, str what="control memory of {} for a team"):
    """A descriptor of `nbytes` reserved, sealable, unnamed bytes, closed on exec.

    Where there is no room for them, or no descriptor, `SharedMemoryFull` says so, and for `what`.
    """
    limits.check(nbytes, what)
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    fd = -1
    try:
        try:
            fd = os.memfd_create(name, flags | NOEXEC)
        except OSError as error:
            if error.errno != EINVAL:
                raise
            fd = os.memfd_create(name, flags)
        os.fchmod(fd, 0o600)
        for at in range(0, nbytes, PIECE):
            with Unsignalled():
                os.posix_fallocate(fd, at, min(PIECE, nbytes - at))
            hear()
    except BaseException as error:
        if fd >= 0:
            os.close(fd)
        if isinstance(error, OSError):
            raise limits.refusal(error, "make", nbytes, live=0, what=what) from error
        raise
    return fd


def seal(int fd, bint shared=False):
    """Nobody may resize `fd` any more, nor write it but through mappings that are there already.

    With `shared`, everybody still may write it. SEAL_WRITE would not do more for what has no such
    mapping, and it fails with EBUSY while the kernel itself holds one of the pages.
    """
    seals = SEAL_SHRINK | SEAL_GROW | SEAL_SEAL
    if not shared:
        seals |= SEAL_FUTURE_WRITE
    try:
        fcntl.fcntl(fd, F_ADD_SEALS, seals)
    except OSError as error:
        raise OSError(error.errno, f"cannot seal memory against later writers: {error.strerror}; "
                      "this takes Linux 5.1, and `python -m dsmfor doctor` says what this machine "
                      "lacks") from error
