"""What happens when the last reference goes: in C, where no signal handler can strike.

Python runs signal handlers between two bytecodes of the main thread. What one raises inside a
finalizer is printed and dropped: a Ctrl-C would be lost, and with it the rest of the finalizer,
hence a descriptor or a mapping. So what ends a segment, closes its descriptor and tells those who
want to know runs no bytecode. Which segments there are is the business of `dsmfor.segments`, who
listens that of the engines.

Guarantees
    `Descriptor`, `Doorbell` and `Farewell` run no Python function, unless somebody put one among
    the callbacks. They take no lock and wait for nothing. A file descriptor is closed once.
"""

cimport cython
from cpython.exc cimport PyErr_SetFromErrno
from libc.stdint cimport uint64_t

from dsmfor._native.registry cimport take_out

from collections import deque

from dsmfor._native.arena import CROWDED
from dsmfor._native.registry import add

__all__ = ["Descriptor", "Doorbell", "Farewell", "memory_file"]

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <fcntl.h>
    #include <sys/mman.h>
    """
    int memfd_create(const char *name, unsigned int flags)
    int fcntl(int fd, int command, int lowest)
    int F_DUPFD_CLOEXEC

cdef extern from "<unistd.h>":
    int close(int fd) nogil
    ssize_t write(int fd, const void *bytes, size_t n) nogil

cdef int _crowded = CROWDED


@cython.final
cdef class Descriptor:
    """Owns a file descriptor: closed with its last reference, or at once by an exception.

    The ``with`` block is for the exception alone, whose traceback may be kept for long and every
    local variable with it (``sys.last_traceback``); left normally, the descriptor stays open.

    Parameters
    ----------
    number : int
        The descriptor.
    """

    cdef readonly int number  # -1: closed

    def __cinit__(self, int number):
        self.number = number

    def duplicate(self, int lowest):
        """The same file under a number from `lowest` up, closed on exec, with an owner of its own.

        Raises
        ------
        OSError
            As `fcntl.fcntl`.
        """
        cdef Descriptor made = Descriptor.__new__(Descriptor, -1)
        made.number = fcntl(self.number, F_DUPFD_CLOEXEC, lowest)
        if made.number < 0:
            PyErr_SetFromErrno(OSError)
        return made

    def close(self):
        """Close it, if it is still open."""
        cdef int number = self.number
        self.number = -1
        if number >= 0:
            close(number)

    def __dealloc__(self):
        if self.number >= 0:
            close(self.number)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if kind is not None:
            self.close()


def memory_file(str name not None, unsigned int flags):
    """A new anonymous file in memory: no signal handler comes before it has an owner.

    Raises
    ------
    OSError
        As `os.memfd_create`.
    """
    cdef Descriptor made = Descriptor.__new__(Descriptor, -1)
    cdef bytes text = name.encode()
    made.number = memfd_create(text, flags)
    if made.number < 0:
        PyErr_SetFromErrno(OSError)
    return made


@cython.final
cdef class Doorbell:
    """An eventfd that is rung when memory was freed, and what was.

    Without a descriptor nobody is behind the door: nothing is noted.
    """

    cdef readonly object freed
    """deque of int: segments that are gone, and nobody has been told yet."""
    cdef public bint crowded
    """Very many blocks of arenas wait in quarantine."""
    cdef int fd

    def __cinit__(self):
        self.freed = deque()
        self.fd = -1

    def hang(self, int fd):
        """Ring by this eventfd from now on; it stays the caller's to close."""
        self.fd = fd

    def take_down(self):
        """Ring no more; what was freed is of no interest."""
        self.fd = -1
        self.crowded = False
        self.freed.clear()

    def ring(self):
        """Wake whoever waits."""
        cdef uint64_t one = 1
        if self.fd >= 0:
            write(self.fd, &one, sizeof(one))

    def note(self, segment):
        """A segment is gone."""
        if self.fd >= 0:
            self.freed.append(segment)
            self.ring()

    def hear(self, int what):
        """What an arena tells (`dsmfor._native.arena.listen`)."""
        if self.fd >= 0:
            if what & _crowded:
                self.crowded = True
            self.ring()


@cython.final
cdef class Farewell:
    """The callback of the weak references by which `dsmfor.segments` knows its roots.

    Parameters
    ----------
    live : dict of int to weakref
        The live segments.
    """

    cdef dict live
    cdef public list callbacks
    """Called with the number of each segment that is gone, in order."""

    def __cinit__(self, dict live not None):
        self.live = live
        self.callbacks = []

    def enter(self, kind, root not None, long long segment, mapping, Descriptor held not None,
              nbytes):
        """Make a segment live: ``kind(root, self)``, with all that it knows, and enter it.

        Raises
        ------
        ValueError
            A live segment lies there already.
        """
        record = kind(root, self)
        record.segment = segment
        record.mapping = mapping
        record.descriptor = held
        record.nbytes = nbytes
        record.low = add(root, segment)
        self.live[segment] = record

    def __call__(self, gone):
        """The last reference to a root has gone; its memory is unmapped with `gone`, after this.

        Called by the interpreter, in any thread. The address goes from the registry first, so that
        an array which comes to lie there is not taken for a shared one.
        """
        cdef Descriptor held = gone.descriptor
        cdef bint last
        segment = gone.segment
        take_out(gone.low)
        # Thread 1 drops the root, thread 2 adopts the same segment anew, thread 1 comes here: the
        # segment is live again, under a record that is not ours.
        with cython.critical_section(self.live):
            last = self.live.get(segment) is gone
            if last:
                del self.live[segment]
        held.close()
        if last:
            for callback in list(self.callbacks):
                callback(segment)
