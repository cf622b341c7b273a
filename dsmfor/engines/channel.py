"""Messages with descriptors over a SEQPACKET socket: one `send` is one `receive`.

Used between caller, warden and workers, all of one user and started by one another. Bulk goes
through shared pages; these letters are small, and one that is not travels in a memfd.
"""

from __future__ import annotations

import array
import fcntl
import mmap
import os
import pickle
import resource
import socket
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from dsmfor import limits
from dsmfor._native.interrupts import hear
from dsmfor._native.mapping import Mapping
from dsmfor._native.sealed import memfd, seal
from dsmfor.errors import SharedMemoryFull

__all__ = [
    "MOST_DESCRIPTORS",
    "Lost",
    "contents",
    "envelope",
    "lift",
    "pair",
    "parts",
    "receive",
    "send",
    "spread",
    "unfit",
]

MOST_DESCRIPTORS = 200  # in one letter; the kernel refuses more than 253
_FIRST = 1024
_PIECE = 64 << 20  # bytes between two looks at signals
_INLINE = 32 * 1024
_ANCILLARY = socket.CMSG_SPACE((MOST_DESCRIPTORS + 1) * array.array("i").itemsize)


class Lost(SharedMemoryFull):
    """A message came without all of its descriptors."""

    def __init__(self, text: str, message: Any) -> None:
        super().__init__(text)
        self.message = message  # None if that was in a descriptor, too


def lift(fd: int) -> int:
    """The same file under a number that the user's `select` does not need; closes `fd`."""
    if fd >= _FIRST:
        return fd
    try:
        lifted = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST)
    except OSError:  # the limit on descriptors is lower than that
        return fd
    os.close(fd)
    return lifted


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected ends; neither survives an exec unless made inheritable."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(end: socket.socket, message: object, descriptors: Sequence[int] = ()) -> None:
    """Send a message of plain data and up to `MOST_DESCRIPTORS` descriptors.

    Raises
    ------
    OSError
        The other end is gone.
    """
    data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    if len(data) <= _INLINE:
        socket.send_fds(end, [b"\0" + data], descriptors)
        return
    bulk = envelope(data)
    try:
        socket.send_fds(end, [b"\1"], [*descriptors, bulk])
    finally:
        os.close(bulk)


def unfit(error: Exception) -> tuple[str, bool, str]:
    """The message of a process that cannot serve, for want of memory or of something else."""
    return "unfit", isinstance(error, MemoryError), str(error)


def spread(sizes: Sequence[int]) -> list[int]:
    """Where the parts of an `envelope` begin, each on a page of its own, and where it ends."""
    return list(
        accumulate((-(-size // mmap.PAGESIZE) * mmap.PAGESIZE for size in sizes), initial=0)
    )


def envelope(data: bytes, what: str = "a message of {}", buffers: Sequence[memoryview] = ()) -> int:
    """A descriptor of bytes that nobody can change any more.

    Parameters
    ----------
    data : bytes
    what : str
        What they are, for the message; ``{}`` for the amount.
    buffers : sequence of memoryview
        More of them, at the places of `spread`.

    Raises
    ------
    SharedMemoryFull
        There is no room for it all.
    """
    parts = [memoryview(data), *buffers]
    *starts, end = spread([part.nbytes for part in parts])
    fd = memfd("dsmfor letter", end if buffers else max(len(data), 1), what)
    try:
        for part, start in zip(parts, starts, strict=True):
            written = 0
            while written < part.nbytes:
                written += os.pwrite(fd, part[written : written + _PIECE], start + written)
                hear()
        seal(fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def contents(fd: int, what: str = "a message of {}", *, checked: bool = False) -> memoryview:
    """The bytes of an `envelope`, where they are: nobody can change them.

    Parameters
    ----------
    fd : int
    what : str
        What they are, for the message; ``{}`` for the amount.
    checked : bool
        It is known already that there is room for what will be made of them.

    Raises
    ------
    SharedMemoryFull
        There is no room for as many bytes again, or for the mapping.
    """
    total = os.fstat(fd).st_size
    if not checked:
        limits.check(total, what)
    try:
        return memoryview(mmap.mmap(fd, total, prot=mmap.PROT_READ))
    except OSError as error:
        raise limits.refusal(error, "map", total, live=0, what=what) from error


def parts(fd: int, sizes: Sequence[int]) -> tuple[memoryview, list[memoryview]]:
    """The bytes of an `envelope`, and its buffers: these may be written.

    What is written is seen by nobody else, and takes memory page by page.

    Raises
    ------
    SharedMemoryFull
        There is no room for the mappings.
    """
    first, *rest = sizes
    try:
        data = Mapping(fd, first, writeable=False)
        buffers = [
            Mapping(fd, size, writeable=True, start=start, private=True)
            for size, start in zip(rest, spread(sizes)[1:], strict=False)
        ]
    except OSError as error:
        what = "a message of {}"
        raise limits.refusal(error, "map", sum(sizes), live=0, what=what) from error
    return data.data, [buffer.data for buffer in buffers]


def receive(end: socket.socket) -> tuple[Any, list[int]] | None:
    """The next message and its descriptors, or None when the other end is gone.

    Raises
    ------
    Lost
        Descriptors were lost because this process may open no more; the message cannot be used.
    """
    try:
        data, ancillary, flags, _ = end.recvmsg(2 * _INLINE, _ANCILLARY, socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        return None
    numbers = array.array("i")
    for level, kind, body in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers.frombytes(body[: len(body) - len(body) % numbers.itemsize])
    descriptors = list(numbers)
    if flags & socket.MSG_CTRUNC:
        for fd in descriptors:
            os.close(fd)
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        raise Lost(
            f"process {os.getpid()} cannot take the shared arrays, or workers, that it is sent: it "
            f"may open {limit} descriptors and has not enough of them left; raise ulimit -n, close "
            "files or use fewer arrays at a time (those below 1 MiB share a descriptor)",
            None if not data or data[0] else pickle.loads(data[1:]),
        )
    if not data:
        return None
    if data[0] == 0:
        return pickle.loads(data[1:]), descriptors
    bulk = descriptors.pop()
    try:
        return pickle.loads(contents(bulk)), descriptors
    finally:
        os.close(bulk)
