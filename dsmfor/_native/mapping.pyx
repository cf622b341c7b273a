"""Bytes of a file that processes map together, the memory of a named array, and its name.

Which file that may be, and what is in it, is the business of `dsmfor.shmfiles` and
`dsmfor.labels`; segments without a name are mapped by SharedArray (`dsmfor.segments`).

Guarantees
    A `Title` is taken away in C, as `dsmfor._native.farewell` ends segments: no signal handler can
    strike there, and nothing is waited for. A forked child takes none of its parent's away.
    The bytes stay mapped for as long as anything refers to their buffer. What was mapped
    read-only cannot be written through it, whatever is done to the flags of arrays over it.
"""

import os

cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from libc.errno cimport errno
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from dsmfor._native.farewell import Descriptor

cdef extern from "<sys/mman.h>" nogil:
    void *mmap(void *address, size_t length, int protection, int flags, int fd, long offset)
    int munmap(void *address, size_t length)
    void *MAP_FAILED
    enum: PROT_READ, PROT_WRITE, MAP_SHARED, MAP_PRIVATE

cdef extern from "<sys/stat.h>" nogil:
    struct stat_t "stat":
        unsigned long long st_dev
        unsigned long long st_ino
    int lstat(const char *path, stat_t *status)

cdef extern from "<unistd.h>" nogil:
    int unlink(const char *path)
    int getpid()

cdef extern from "<fcntl.h>" nogil:
    int c_open "open"(const char *path, int flags, int mode)


def open_file(path not None, int flags, int mode=0):
    """A descriptor of a file, which has an owner before any signal handler can strike.

    Raises
    ------
    OSError
        As `os.open`.
    """
    cdef bytes text = os.fsencode(path)
    cdef int number = c_open(text, flags, mode)
    if number < 0:
        raise OSError(errno, os.strerror(errno), path)
    return Descriptor(number)


@cython.final
cdef class Title:
    """The name of a file of this process: goes with the last reference, if it is the file's still.

    Parameters
    ----------
    path : str
    device, inode : int
        Of the file.
    lock : Descriptor
        The sign of life: closed once the name is gone.
    """

    cdef char *path
    cdef unsigned long long device
    cdef unsigned long long inode
    cdef int owner
    cdef readonly object lock
    cdef object __weakref__

    def __cinit__(self, path not None, unsigned long long device, unsigned long long inode,
                  lock not None):
        cdef bytes text = os.fsencode(path)
        self.owner = getpid()
        self.device, self.inode, self.lock = device, inode, lock
        self.path = <char *>malloc(len(text) + 1)
        if self.path == NULL:
            raise MemoryError
        memcpy(self.path, <char *>text, len(text) + 1)

    cdef void take_away(self) noexcept:
        cdef stat_t status
        if self.path == NULL:
            return
        if (self.owner == getpid() and lstat(self.path, &status) == 0
                and status.st_dev == self.device and status.st_ino == self.inode):
            unlink(self.path)
        free(self.path)
        self.path = NULL

    def withdraw(self):
        """Take the name away now."""
        self.take_away()
        self.lock.close()

    def __dealloc__(self):
        self.take_away()


cdef class Mapping:
    """Bytes of a file, as a buffer.

    Parameters
    ----------
    fd : int
        A descriptor of it; it may be closed afterwards.
    nbytes : int, bytes, >= 1
        The file has so many; what is beyond its end is a SIGBUS to touch.
    writeable : bool
    kept : object
        Goes when the mapping does.
    start : int, bytes
        Offset of the first of them, a multiple of the size of a page.
    private : bool
        What is written is this process's alone: its own copy of the page.

    Raises
    ------
    OSError
        There is no mapping or address space left, or the descriptor does not allow it.
    """

    cdef void *p
    cdef readonly Py_ssize_t nbytes
    cdef readonly bint writeable
    cdef object kept

    def __cinit__(self, int fd, Py_ssize_t nbytes, bint writeable, kept=None, *,
                  long start=0, bint private=False):
        cdef int access = PROT_READ | (PROT_WRITE if writeable else 0)
        if nbytes < 1:
            raise ValueError(f"a mapping has at least one byte, got {nbytes}")
        self.p = mmap(NULL, nbytes, access, MAP_PRIVATE if private else MAP_SHARED, fd, start)
        if self.p == MAP_FAILED:
            self.p = NULL
            raise OSError(errno, os.strerror(errno))
        self.nbytes = nbytes
        self.writeable = writeable
        self.kept = kept

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.p, self.nbytes, not self.writeable, flags)

    @property
    def data(self):
        """The bytes, as ndarray.data is an array's."""
        return memoryview(self)

    def __dealloc__(self):
        if self.p != NULL:
            munmap(self.p, self.nbytes)
