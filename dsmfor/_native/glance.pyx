"""Has anything changed of the caller's process that its workers follow? Asked before every region.

In C because it is asked so often: about a microsecond, nearly all of it the environment and three
system calls. What a change means, and what is then sent, is engines/surroundings.py.
"""

import os
import sys
import warnings

from cpython.object cimport Py_EQ, PyObject, PyObject_RichCompareBool
from libc.stdint cimport uint64_t
from libc.string cimport strcmp
from posix.fcntl cimport fcntl
from posix.stat cimport fstat, struct_stat
from posix.unistd cimport close, getcwd

cdef extern from "Python.h":
    int PyContextVar_Get(object variable, PyObject *default, PyObject **value) except -1
    PyObject *PyDict_GetItem(object d, object key)
    int PyDict_Next(object d, Py_ssize_t *at, PyObject **key, PyObject **value)
    void *Py_TYPE(object o)
    void Py_XDECREF(PyObject *o)

cdef extern from "<fcntl.h>" nogil:
    int F_DUPFD_CLOEXEC

# What may have changed: bits of `Glance.changes`.
STREAMS, FILTERS, NUMERICS, ENVIRONMENT, PATH, DIRECTORY = 1, 2, 4, 8, 16, 32

cdef int QUERY = 1024 + 3      # F_DUPFD_QUERY, Linux 6.10: are two descriptors the same open file?
cdef int FIRST = 1024          # our own descriptors are numbered from here up
cdef enum:
    LONGEST = 4096


cdef class _Stream:
    """One of the two output streams, as it was noted."""

    cdef str name
    cdef int number            # of its descriptor
    cdef object seen           # what sys.<name> is, if it is `direct`: a user's is not kept alive
    cdef bint direct           # it is a text file over descriptor 1 or 2
    cdef void *place           # where it lies, and its type: known, and not held
    cdef void *kind
    cdef readonly int turns    # how often the descriptor has come to be another file
    cdef object encoding, errors
    cdef readonly int copy     # duplicate of the descriptor, -1 if that was closed
    cdef bint query            # the kernel knows F_DUPFD_QUERY
    cdef uint64_t device, inode

    def __cinit__(self, str name, int number):
        self.name = name
        self.number = number
        self.copy = -1

    def __dealloc__(self):
        self.drop()

    cdef void drop(self) noexcept:
        if self.copy >= 0:
            close(self.copy)
        self.copy = -1

    cdef bint same_file(self) noexcept:
        """Whether the descriptor is the open file that was noted."""
        cdef struct_stat s
        if self.query:
            return fcntl(self.number, QUERY, self.copy) == 1
        if fstat(self.number, &s):
            return self.copy < 0
        return self.copy >= 0 and s.st_dev == self.device and s.st_ino == self.inode

    cdef bint same(self, dict space) except -1:
        cdef PyObject *now = PyDict_GetItem(space, self.name)
        if now != self.place or (now != NULL and Py_TYPE(<object>now) != self.kind):
            return False
        if self.direct:
            if self.seen.encoding is not self.encoding or self.seen.errors is not self.errors:
                return False
        return self.same_file()

    cdef flush(self, dict space):
        stream = self.seen
        if self.direct and PyDict_GetItem(space, self.name) == <PyObject *>stream:
            try:
                stream.flush()
            except Exception:  # the caller hears of it at its own next flush
                if stream.closed:  # a change
                    self.direct = False
                    self.seen = None
                    self.place = NULL

    cdef watch(self, stream):
        if stream is not None and self.place == <void *>stream:  # else another thread has replaced it: the next look
            self.direct = True
            self.seen = stream
            self.encoding, self.errors = stream.encoding, stream.errors

    cdef note(self, dict space):
        cdef struct_stat s
        cdef PyObject *now = PyDict_GetItem(space, self.name)
        self.place = now
        self.kind = NULL if now == NULL else <void *>Py_TYPE(<object>now)
        self.direct = False
        self.seen = None
        if self.copy >= 0 and self.same_file():
            return
        self.drop()
        self.turns += 1
        self.query = False
        if fstat(self.number, &s):
            return
        self.copy = fcntl(self.number, F_DUPFD_CLOEXEC, FIRST)
        if self.copy < 0:  # the limit on descriptors is lower than that
            self.copy = fcntl(self.number, F_DUPFD_CLOEXEC, 3)
        self.device = s.st_dev
        self.inode = s.st_ino
        self.query = self.copy >= 0 and fcntl(self.number, QUERY, self.copy) == 1


cdef class Glance:
    """What was noted, and whether it still holds.

    Parameters
    ----------
    variables : tuple of ContextVar
        Whose values are NUMERICS; with defaults.
    """

    cdef _Stream out, err
    cdef tuple variables
    cdef list values
    cdef list filters
    cdef dict space, theirs          # of the modules sys, warnings
    cdef int stale                   # bits that are to be looked at anew, whatever is found
    cdef object path
    cdef dict environment
    cdef list items                  # its keys and values by turns
    cdef char directory[LONGEST]

    def __cinit__(self, tuple variables):
        self.out = _Stream("stdout", 1)
        self.err = _Stream("stderr", 2)
        self.variables = variables
        self.space = vars(sys)
        self.theirs = vars(warnings)
        self.stale = 63
        self.directory[0] = 0

    def flush(self):
        """Write what the caller has printed before the region to where workers will write."""
        self.out.flush(self.space)
        self.err.flush(self.space)

    def changes(self):
        """Bits of what is not as it was noted; 0 if all of it is."""
        cdef int found = self.stale
        cdef char now[LONGEST]
        if not self.out.same(self.space) or not self.err.same(self.space):
            found |= 1
        if not self.same_filters():
            found |= 2
        if not self.same_values():
            found |= 4
        if not self.same_environment(os.environ._data):
            found |= 8
        if not PyObject_RichCompareBool(self.path, sys.path, Py_EQ):
            found |= 16
        if getcwd(now, LONGEST) != NULL and strcmp(now, self.directory):
            found |= 32
        return found

    def note(self, int what):
        """From now on, a change is a difference from how things are now.

        They are changes still until they are `heeded`: a Ctrl-C may come between.
        """
        self.stale |= what
        if what & 1:
            self.out.note(self.space)
            self.err.note(self.space)
        if what & 2:
            self.filters = list(warnings.filters)
        if what & 4:
            self.values = [variable.get() for variable in self.variables]
        if what & 8:
            self.environment = dict(os.environ._data)
            self.items = [part for item in self.environment.items() for part in item]
        if what & 16:
            self.path = list(sys.path)
        if what & 32:
            if getcwd(self.directory, LONGEST) == NULL:
                self.directory[0] = 0

    def heeded(self):
        """What was noted has been taken in."""
        self.stale = 0

    def watch(self, out, err):
        """What was noted are text files over the descriptors, if not None: look at more of them."""
        self.out.watch(out)
        self.err.watch(err)

    def turns(self):
        """How often the descriptors have come to be other files."""
        return self.out.turns + self.err.turns

    def copies(self):
        """Duplicates of descriptors 1 and 2 as they were noted; -1 for one that was closed."""
        return self.out.copy, self.err.copy

    def close(self):
        """Let go of the duplicates."""
        self.out.drop()
        self.err.drop()

    cdef bint same_filters(self) except -1:
        cdef PyObject *p = PyDict_GetItem(self.theirs, "filters")
        cdef Py_ssize_t i
        if p == NULL or self.filters is None:
            return self.filters is not None
        now = <object>p
        if type(now) is list and len(<list>now) == len(self.filters):
            for i in range(len(self.filters)):
                if (<list>now)[i] is not self.filters[i]:
                    break
            else:
                return True
        return now == self.filters

    cdef bint same_environment(self, dict now) except -1:
        """Whether it is equal; quickly so if it holds the very same objects in the same order."""
        cdef Py_ssize_t at = 0, i = 0
        cdef PyObject *key
        cdef PyObject *value
        if self.environment is None:
            return False
        if len(now) == len(self.environment):
            while PyDict_Next(now, &at, &key, &value):
                if (key != <PyObject *>(self.items[i])
                        or value != <PyObject *>(self.items[i + 1])):
                    break
                i += 2
            else:
                return True
        return now == self.environment

    cdef bint same_values(self) except -1:
        cdef PyObject *value
        cdef Py_ssize_t i
        if self.values is None:
            return False
        for i in range(len(self.values)):
            value = NULL
            PyContextVar_Get(self.variables[i], NULL, &value)
            same = value == <PyObject *>self.values[i]
            Py_XDECREF(value)
            if not same:
                return False
        return True
