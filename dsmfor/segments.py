"""The memory of this process's shared arrays: make, reserve, map, hand over and free segments.

A *segment* is an anonymous file in memory (``memfd_create``) that processes map together. It has
no name, so the kernel frees it when the last process that holds it goes, however it goes, and the
size of /dev/shm does not limit it. Each segment of this process is known by its *root*, a uint8
array over all its bytes; every shared array is a view that keeps the root alive through ``.base``,
and when the last of them goes the segment goes. The file of a *named* segment lies in /dev/shm
(`dsmfor.shmfiles`) and is otherwise a segment like any other.

What else there is to know about a segment is elsewhere: the file that it is in `dsmfor.memfiles`,
the footer by which ``SharedArray.attach`` maps it in `dsmfor.footer`, how much memory there is in
`dsmfor.limits`, which array lies where in `dsmfor._native.registry`, segments that many small
arrays share in `dsmfor.arenas`, dtypes and shapes in `dsmfor.arrays`. Carrying descriptors between
processes is the engines'.

Guarantees
    A segment's pages are reserved before anyone sees it: no later touch is a SIGBUS. What does
    not fit is a `SharedMemoryFull` and takes nothing. Sealed against shrinking and growing, it
    stays whole whatever another process does. A fresh segment reads zero. Its number is never
    used again.

Assumes
    The hooks (`on_free`, `set_resolver`, `set_reclaimer`) belong to the process that installed
    them; a forked child starts with none, so nothing freed there reaches the parent's workers. The
    segments it inherited stay readable, and it closes only its own copies of their descriptors.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from dsmfor import footer, limits, memfiles
from dsmfor._native import registry
from dsmfor._native.farewell import Descriptor, Farewell
from dsmfor._native.interrupts import undisturbed
from dsmfor._native.mapping import Mapping
from dsmfor.errors import DSMError, SharedMemoryFull
from dsmfor.footer import FOOTER

__all__ = [
    "ARENA",
    "FOOTER",
    "NAMED",
    "adopt",
    "create",
    "creator",
    "descriptor",
    "enter",
    "fetch",
    "live",
    "nbytes_live",
    "number",
    "on_free",
    "reclaim",
    "relieved",
    "root",
    "set_creator",
    "set_reclaimer",
    "set_resolver",
    "size",
]

Root = NDArray[np.uint8]
T = TypeVar("T")

ARENA = 1 << 39
"""Set in the numbers of segments that are arenas."""

NAMED = 1 << 38
"""Set in the numbers of segments whose file has, or had, a name. It cannot be sealed."""


class _Record(weakref.ref[Root]):
    """A live segment: the weak reference to its root, whose callback frees it.

    What keeps the memory mapped is `mapping`, not the root: NumPy 2.5 lets go of an array's base
    before it calls back, NumPy 2.4 after, and the address must leave the registry while nothing
    else can lie there.
    """

    __slots__ = ("descriptor", "low", "mapping", "nbytes", "segment")

    segment: int
    mapping: NDArray[Any] | Mapping
    descriptor: Descriptor
    nbytes: int
    low: int


# _lock guards adding to the two fields below it. Re-entrant, because a collection may run a user's
# finalizer, which may adopt or make a segment, in the very thread that holds it.
_lock = threading.RLock()
_live: dict[int, _Record] = {}
_release = Farewell(_live)  # ends what is live; takes no lock
_made = 0  # segments numbered so far; only rises

# Hooks and settings, each written whole by one assignment.
_creator = 0
_resolver: Callable[[int], tuple[int, int]] | None = None
_reclaimer: Callable[[], object] | None = None

# Imported when the first segment is made.
_shared_array: footer.SharedArray | None = None


# ---------------------------------------------------------------------------------------------
# Making, mapping and finding segments


def create(nbytes: int, *, arena: bool = False) -> Root:
    """Make a segment and map it.

    Parameters
    ----------
    nbytes : int, bytes, >= 1
        Size of its data.
    arena : bool
        Number it as an arena, and take no pages yet: that is left to `dsmfor.memfiles.reserve`.

    Returns
    -------
    ndarray of uint8, shape (nbytes,)
        The root: zeros. The segment lives as long as this array or any view of it.

    Raises
    ------
    SharedMemoryFull
        It does not fit into the machine's or the control group's memory, or no descriptor or
        mapping is left, also after idle workers have let go of what they could. Nothing was taken.
    OSError
        The system refuses anonymous files in memory.
    """
    if nbytes < 1:
        raise ValueError(f"a segment holds at least one byte, got {nbytes}; use a plain array")
    with undisturbed:
        _prepare()
        return relieved(lambda: _create(nbytes, arena))


def _create(nbytes: int, arena: bool) -> Root:
    held = memfiles.make(nbytes, sparse=arena, live=len(_live))
    return _map(_number(ARENA if arena else 0), held, nbytes)


def enter(held: Descriptor, nbytes: int, kept: object = None) -> Root:
    """Map a file that has a name, or is to get one, as a segment of this process.

    Parameters
    ----------
    held : Descriptor
        The file, open for reading or for both; it belongs to the segment from now on.
    nbytes : int, bytes, >= 1
        Size of its data. The file has them.
    kept : object
        Goes when the memory does.

    Returns
    -------
    ndarray of uint8, shape (nbytes,)
        The root, read-only if the descriptor is.

    Raises
    ------
    SharedMemoryFull
        There is no mapping left for it.
    """
    return _map(_number(NAMED), held, nbytes, kept)


def _number(kind: int) -> int:
    global _made
    with _lock:
        _made += 1
        return _creator << 40 | kind | _made


def relieved(take: Callable[[], T]) -> T:
    """What `take` returns, which gets a second chance when memory is short and some is let go."""
    if _reclaimer is not None:
        with contextlib.suppress(SharedMemoryFull):
            return take()
        _reclaimer()
    return take()


def reclaim() -> None:
    """Let idle workers let go of what they can, and give back what is kept for speed."""
    if _reclaimer is not None:
        _reclaimer()


def adopt(segment: int, fd: int, nbytes: int) -> Root:
    """Map a segment that another process of ours made.

    Parameters
    ----------
    segment : int
        Its number.
    fd : int
        A descriptor of it, owned by this function from now on, also when it fails.
    nbytes : int, bytes
        Size of its data.

    Returns
    -------
    ndarray of uint8, shape (nbytes,)
        The root. If the segment is live here already, the live root.

    Raises
    ------
    DSMError
        The descriptor is not such a segment: wrong size, no footer, or not sealed.
    SharedMemoryFull
        There is no mapping or descriptor left for it.
    """
    held = Descriptor(fd)
    known = root(segment)
    if known is not None:
        held.close()
        return known
    with held:
        _prepare()
        memfiles.examine(segment, fd, nbytes, named=bool(segment & NAMED))
        try:
            held = memfiles.lift(held)
        except OSError as error:
            raise limits.refusal(error, "map", nbytes, live=len(_live)) from error
    return _map(segment, held, nbytes)


def root(segment: int) -> Root | None:
    """The root of a segment, or None if it is not live in this process."""
    record = _live.get(segment)
    return None if record is None else record()


def fetch(segment: int) -> Root:
    """The root of a segment, asking the resolver for its descriptor if need be.

    Raises
    ------
    DSMError
        The segment is not live here and there is nobody to ask.
    """
    record = _live.get(segment)
    found = None if record is None else record()
    if found is not None:
        return found
    if _resolver is None:
        raise DSMError(
            f"segment {segment} is not mapped in this process and no engine is there to ask for "
            "it: its array was freed, or its handle came from a program that is not this one's "
            "team; keep a reference to the array for as long as its handle travels"
        )
    with undisturbed:
        fd, nbytes = _resolver(segment)
        return adopt(segment, fd, nbytes)


def descriptor(segment: int) -> int:
    """The descriptor of a live segment; it stays this module's own."""
    return _record(segment).descriptor.number


def number(root: Root) -> int:
    """The number of the segment that begins where a root does."""
    place = registry.handle(root)
    assert place is not None
    return place[0]


def size(segment: int) -> int:
    """Data bytes of a live segment."""
    return _record(segment).nbytes


def live() -> frozenset[int]:
    """Numbers of the segments that are live in this process."""
    return frozenset(_live)


def nbytes_live() -> int:
    """Data bytes of all live segments together."""
    return sum(record.nbytes for record in list(_live.values()))


def _record(segment: int) -> _Record:
    record = _live.get(segment)
    if record is None:
        raise DSMError(
            f"segment {segment} is not live in this process; "
            "keep a reference to its array for as long as it is used"
        )
    return record


# ---------------------------------------------------------------------------------------------
# Hooks


def set_creator(number: int) -> None:
    """Number the segments of this process as ``number << 40 | counter``; the caller's is 0."""
    global _creator
    if not 0 <= number < 1 << 22:
        raise ValueError(f"a creator is numbered from 0 to {(1 << 22) - 1}, got {number}")
    _creator = number


def creator() -> int:
    """The number of this process, as `set_creator` was told; 0 in the caller."""
    return _creator


def on_free(callback: Callable[[int], object]) -> None:
    """Have ``callback(segment)`` called when the last reference to a root has gone.

    Notes
    -----
    It may run in any thread at any bytecode, inside the garbage collector too, so it must take no
    lock and wait for nothing: append to a deque and let someone else act. What it raises is shown
    as an unraisable error, and the callbacks after it are not called; so that Ctrl-C is not lost
    there, it should be a function in C. A forked child has none.
    """
    if callback not in _release.callbacks:
        _release.callbacks.append(callback)


def set_resolver(resolver: Callable[[int], tuple[int, int]] | None) -> None:
    """Have `fetch` get ``(descriptor, nbytes)`` of an unknown segment from ``resolver(segment)``.

    The descriptor becomes this module's own.
    """
    global _resolver
    _resolver = resolver


def set_reclaimer(reclaimer: Callable[[], object] | None) -> None:
    """Have ``reclaimer()`` called once before a segment is refused, to let idle workers let go."""
    global _reclaimer
    _reclaimer = reclaimer


# ---------------------------------------------------------------------------------------------
# The life of a segment


def _map(segment: int, held: Descriptor, nbytes: int, kept: object = None) -> Root:
    """Map a sound descriptor and enter it as a live segment."""
    with held:
        try:
            mapping: NDArray[Any] | Mapping
            if segment & NAMED:
                mode = fcntl.fcntl(held.number, fcntl.F_GETFL) & os.O_ACCMODE
                mapping = Mapping(held.number, nbytes, mode == os.O_RDWR, kept)
            else:
                assert _shared_array is not None
                mapping = _shared_array.attach(f"file:///proc/self/fd/{held.number}")
        except OSError as error:
            raise limits.refusal(error, "map", nbytes, live=len(_live)) from error
        with _lock:
            known = root(segment)  # another thread may have been first
            if known is None:
                # Through a memoryview, lest views of the root take the mapping for their base.
                array: Root = np.frombuffer(mapping.data, np.uint8)
                _release.enter(_Record, array, segment, mapping, held, nbytes)
                return array
    held.close()
    return known


def _forget_parent() -> None:
    """In a forked child: no hook reaches the parent's workers, and nobody holds the lock."""
    global _lock, _resolver, _reclaimer
    _lock = threading.RLock()
    _release.callbacks.clear()
    _resolver = _reclaimer = None


os.register_at_fork(after_in_child=_forget_parent)


def _prepare() -> None:
    """Before the first segment: have SharedArray, and descriptors above the user's if they fit."""
    global _shared_array
    if _shared_array is None:
        memfiles.prepare()
        _shared_array = footer.load()
