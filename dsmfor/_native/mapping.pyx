"""Bytes of a file that processes map together: the memory of a named array.

Which file that may be, and what is in it, is the business of `dsmfor.shmfiles` and
`dsmfor.labels`; segments without a name are mapped by SharedArray (`dsmfor.segments`).

Guarantees
    The bytes stay mapped for as long as anything refers to their buffer. What was mapped
    read-only cannot be written through it, whatever is done to the flags of arrays over it.
"""

import os

from cpython.buffer cimport PyBuffer_FillInfo
from libc.errno cimport errno

cdef extern from "<sys/mman.h>" nogil:
    void *mmap(void *address, size_t length, int protection, int flags, int fd, long offset)
    int munmap(void *address, size_t length)
    void *MAP_FAILED
    enum: PROT_READ, PROT_WRITE, MAP_SHARED


cdef class Mapping:
    """The first `nbytes` bytes of a file, as a buffer.

    Parameters
    ----------
    fd : int
        A descriptor of it; it may be closed afterwards.
    nbytes : int, bytes, >= 1
        The file has so many; what is beyond its end is a SIGBUS to touch.
    writeable : bool

    Raises
    ------
    OSError
        There is no mapping or address space left, or the descriptor does not allow it.
    """

    cdef void *p
    cdef readonly Py_ssize_t nbytes
    cdef readonly bint writeable

    def __cinit__(self, int fd, Py_ssize_t nbytes, bint writeable):
        if nbytes < 1:
            raise ValueError(f"a mapping has at least one byte, got {nbytes}")
        self.p = mmap(NULL, nbytes, PROT_READ | (PROT_WRITE if writeable else 0), MAP_SHARED, fd, 0)
        if self.p == MAP_FAILED:
            self.p = NULL
            raise OSError(errno, os.strerror(errno))
        self.nbytes = nbytes
        self.writeable = writeable

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.p, self.nbytes, not self.writeable, flags)

    @property
    def data(self):
        """The bytes, as ndarray.data is an array's."""
        return memoryview(self)

    def __dealloc__(self):
        if self.p != NULL:
            munmap(self.p, self.nbytes)
