"""The caller's end of a crew's relay: what workers print, written to sys.stdout and sys.stderr.

What the worker sends, and when, is engines/streams.py; when the caller looks is engines/crew.py;
why nothing is lost or written twice is engines/PROTOCOL.md, section 8. It is compiled for the sake
of Ctrl-C: Python raises KeyboardInterrupt between any two bytecodes, and there are none between
taking a message off the socket and handing it to ``write``.

A message is a byte of flags, the rank in two bytes, and up to `PIECE` bytes of text in UTF-8.
"""

import os
import socket
import sys

from libc.stdint cimport uint8_t
from libc.stdlib cimport free, malloc
from libc.stdio cimport BUFSIZ, FILE, _IOLBF, fflush, setvbuf, stdout

from posix.unistd cimport close

from dsmfor._native.block cimport STORE, Block

cdef extern from "<sys/socket.h>" nogil:
    ssize_t recv(int fd, void *buffer, size_t n, int flags)
    int MSG_DONTWAIT

# Flags of a message. MORE: the line goes on in this rank's next message. SHOW: it was flushed.
STDERR, SHOW, MORE = 1, 2, 4
HEAD = 3
PIECE = 32 * 1024

cdef enum:
    _STDERR = 1
    _SHOW = 2
    _MORE = 4
    _HEAD = 3
    _PIECE = 32 * 1024
    _AT_ONCE = 64 * 1024    # bytes that are gathered for one write
    _BATCH = 1024 * 1024    # bytes after which the caller looks at the region again
    _LONGEST = 1024 * 1024  # of a line that is put together before it is written


cdef class Relay:
    """The reading end of the socket that all workers of a crew write to.

    Parameters
    ----------
    block : Block
        The crew's, where workers say that they have spoken.
    fd : int
        The socket; closed by `close`.
    """

    cdef Block block
    cdef readonly int fd
    cdef public object complaint  # the first exception that the user's write raised, or None
    cdef Py_ssize_t capacity      # bytes: more than can be under way
    cdef char *room
    cdef list run                 # pieces for `stream`, received and not yet written
    cdef Py_ssize_t gathered      # bytes of them
    cdef int stream
    cdef dict parts               # (rank, stream) -> [length, pieces...] of a line that goes on

    def __cinit__(self, Block block, int fd):
        self.block = block
        self.fd = fd
        self.run = []
        self.parts = {}
        self.room = <char *>malloc(_HEAD + _PIECE)
        if self.room == NULL:
            raise MemoryError
        end = socket.socket(fileno=os.dup(fd))
        # Both ends are alike. All workers send on one socket, whose buffer bounds them together.
        self.capacity = end.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) + 2 * (_HEAD + _PIECE)
        end.close()

    def __dealloc__(self):
        free(self.room)
        if self.fd >= 0:
            close(self.fd)

    def close(self):
        """Let go of the socket: nothing can be delivered any more, nor sent."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def deliver(self, bint over):
        """Write what has come to the streams that are sys.stdout and sys.stderr now.

        Parameters
        ----------
        over : bool
            The region is over: write everything that was sent before. Otherwise a part of it, so
            that the caller sees to the region too; the rest is announced again.

        Raises
        ------
        BaseException
            Whatever `write` raised that is no Exception. An Exception is kept as `complaint`.
        """
        cdef Py_ssize_t left = self.capacity if over else _BATCH
        cdef Py_ssize_t n
        STORE(&self.block.b.spoken, 0)
        while left > 0 and self.fd >= 0:
            n = recv(self.fd, self.room, _HEAD + _PIECE, MSG_DONTWAIT)
            if n < _HEAD:
                break
            left -= n
            self.take(n)
        if left <= 0 and not over:
            STORE(&self.block.b.spoken, 1)
        if over:
            for key in list(self.parts):
                self.add(key[1], b"".join(self.parts.pop(key)))
        self.put(False)

    cdef take(self, Py_ssize_t n):
        """Sort in the message that lies in `room`."""
        cdef int flags = <uint8_t>self.room[0]
        cdef int stream = flags & _STDERR
        cdef list pieces
        cdef bytes data = self.room[_HEAD:n]
        key = (<uint8_t>self.room[1] | <uint8_t>self.room[2] << 8, stream)
        if self.parts and key in self.parts:
            pieces = self.parts[key]
            pieces.append(data)
            if flags & _MORE and len(pieces) * _PIECE < _LONGEST:
                return
            data = b"".join(self.parts.pop(key))
        elif flags & _MORE:
            self.parts[key] = [data]
            return
        self.add(stream, data)
        if flags & _SHOW:
            self.put(True)

    cdef add(self, int stream, bytes data):
        if self.run and stream != self.stream:
            self.put(False)
        self.stream = stream
        self.run.append(data)
        self.gathered += len(data)
        if self.gathered >= _AT_ONCE:
            self.put(False)

    cdef put(self, bint show):
        """Write what is gathered; first it is ours no more, whatever becomes of it."""
        if not self.run:
            return
        cdef bytes data = b"".join(self.run)
        self.run = []
        self.gathered = 0
        target = getattr(sys, "stderr" if self.stream else "stdout", None)
        if target is None:
            return
        try:
            write(target, data)
            if show:
                target.flush()
        except Exception as error:
            if self.complaint is None:
                self.complaint = error


cdef write(object target, bytes data):
    if not data:
        return
    try:
        text = data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:  # the kernel wrote bytes of another kind
        below = getattr(target, "buffer", None)
        if below is None:
            target.write(data.decode("utf-8", "replace"))
        else:
            target.flush()
            below.write(data)
        return
    target.write(text)


# A buffer that glibc makes for a line-buffered stream by itself writes every part of a line alone.
cdef char[BUFSIZ] stdio_buffer


def line_buffered():
    """Have C code of this process write its stdout line by line, whatever the descriptor is."""
    setvbuf(stdout, stdio_buffer, _IOLBF, BUFSIZ)


def show_unfinished():
    """Write the line of C's stdout that has not ended."""
    fflush(stdout)
