"""Memory of small arrays: which arena gives a block, when arenas are made, trimmed and given back.

A segment costs a descriptor, a mapping, and a dozen system calls to make and free. An array of
less than a mebibyte is a *block* of an arena instead, a sparse segment of 64 MiB that many share.
How an arena is divided is the business of `dsmfor._native.arena`; when a block that workers may
have seen is free again, of the engine. Workers make no arenas: what they make, they make seldom,
and hand over whole.

Guarantees
    The pages of a block are reserved before anyone sees it, and a block reads zero. What does not
    fit is a `SharedMemoryFull` and takes nothing; where no arena can be made, the array gets a
    segment of its own. Pages of freed blocks go back to the system: at once when there are many,
    else with `tidy`. A forked child keeps what it inherited for as long as it likes: no arena in
    which something lay at the fork is used again by either.

Assumes
    Nobody changes `_open` in place: it is replaced as a whole by whoever has made or dropped an
    arena. If two do so at once, an arena may be missing in it until the next time, and rests.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsmfor import memfiles, segments
from dsmfor._native import arena as native
from dsmfor._native.arena import CONDEMNED, CROWDED, FREED, Arena, Hold
from dsmfor.errors import DSMError, SharedMemoryFull
from dsmfor.segments import ARENA

__all__ = [
    "CONDEMNED",
    "CROWDED",
    "FREED",
    "LARGE",
    "SIZE",
    "adopt",
    "blocks",
    "condemned",
    "drop_spares",
    "forget",
    "held",
    "listen",
    "release",
    "take",
    "tidy",
    "view",
]

LARGE = 1 << 20
"""Arrays from this size on, in bytes, are segments of their own."""

SIZE = native.MOST

_own: dict[int, Arena] = {}  # by number: those this process divides, or inherited by a fork
_others: dict[int, Arena] = {}  # those of the caller, in a worker
_open: tuple[Arena, ...] = ()  # of our own, those that give blocks
_forking = 0  # forks of this process that have begun and not ended

# Held to enter an arena in `_others`, so that there is one of each.
_lock = threading.RLock()


# ---------------------------------------------------------------------------------------------
# Blocks of our own


def take(nbytes: int) -> Hold | None:
    """A new block, or None if this process or this moment has no arenas.

    Parameters
    ----------
    nbytes : int, bytes, from 1 to `LARGE`

    Raises
    ------
    SharedMemoryFull
        There is no memory left for its pages.
    """
    hold = native.take(_open, nbytes)
    if hold is None or hold.bare is not None:
        del hold
        if segments.creator() or _forking:
            return None
        return segments.relieved(lambda: _take_anew(nbytes))
    return hold


def _take_anew(nbytes: int) -> Hold | None:
    """A new block, of a new arena or on new pages if need be."""
    hold = native.take(_open, nbytes) or _take_elsewhere(nbytes)
    if hold is not None and (bare := hold.bare) is not None:
        memfiles.reserve(segments.descriptor(hold.segment), *bare)
        hold.clothe()
    return hold


def _take_elsewhere(nbytes: int) -> Hold | None:
    """A block of a new arena, if one can be made."""
    tidy()
    try:
        root = segments.create(SIZE, arena=True)
    except SharedMemoryFull:  # be it for RLIMIT_FSIZE: a small segment may fit
        return None
    segment = segments.number(root)
    arena = Arena(root, segment, segments.descriptor(segment))
    _own[segment] = arena
    # Entered first, looked at afterwards: a fork that begins meanwhile retires it, or is seen here.
    if _forking:
        arena.retire()
    _reopen()
    return native.take((arena,), nbytes)


def _reopen() -> None:
    global _open
    _open = tuple([arena for arena in list(_own.values()) if not arena.retired])


def tidy(*, spares: int = 1) -> int:
    """Give pages that nothing lies in back to the system, and empty arenas; how many of those.

    Parameters
    ----------
    spares : int
        Empty arenas to keep, without pages, for arrays to come.
    """
    gone = 0
    for segment, arena in list(_own.items()):
        arena.trim()
        if arena.blocks:
            continue
        if not arena.retired and spares > 0:
            spares -= 1
            continue
        arena.retire()
        if not arena.blocks:  # nobody was given one just before
            _own.pop(segment, None)
            gone += 1
    if gone:
        _reopen()
    return gone


def drop_spares() -> None:
    """Give back every arena in which nothing lies."""
    tidy(spares=0)


def blocks() -> int:
    """Blocks in arenas of this process: held by arrays, or in quarantine."""
    return sum(arena.blocks for arena in list(_own.values()))


# ---------------------------------------------------------------------------------------------
# Blocks that other processes may have seen


def listen(listener: Callable[[int], object] | None) -> None:
    """Have a block of which a handle was made wait, when it is let go, until it gets its `release`.

    Parameters
    ----------
    listener : callable or None
        Called with `CONDEMNED` when there are such blocks, with `CROWDED` when there are very
        many, and with `FREED` when `tidy` would find something (the sum of these); in any thread
        at any bytecode, like the callbacks of `segments.on_free`. None: no other process can have
        seen any block, nor will.
    """
    native.listen(listener, listener is not None)
    if listener is None:
        for arena in list(_own.values()):
            arena.release_all()


def condemned(*, anew: bool = False) -> dict[int, bytes]:
    """By arena, tickets of the blocks that wait for their release since the last call, or of all.

    A ticket is a number of 64 bits. A block that comes to life again, because a result named it,
    and is let go once more gets another one.
    """
    found = {segment: arena.tickets(anew) for segment, arena in list(_own.items())}
    return {segment: tickets for segment, tickets in found.items() if tickets}


def release(segment: int, tickets: bytes) -> None:
    """No other process can see these blocks any more, nor come to see them."""
    arena = _own.get(segment)
    if arena is not None:
        arena.release(tickets)


# ---------------------------------------------------------------------------------------------
# Another process's


def adopt(segment: int, fd: int, nbytes: int) -> object:
    """Map a segment that another process made, arena or not: what keeps it mapped.

    See `segments.adopt`.
    """
    root = segments.adopt(segment, fd, nbytes)
    if not segment & ARENA:
        return root
    with _lock:
        if segment not in _others:
            _others[segment] = Arena(root, segment, native.FOREIGN)
        return _others[segment]


def forget(segment: int) -> None:
    """Unmap an arena of another process as soon as no array lies in it."""
    _others.pop(segment, None)


def held(blocks: Iterable[tuple[int, bytes]]) -> NDArray[np.bool_]:
    """Whether an array here lies in a block, for each ticket of some arenas of another process."""
    answers = [
        arena.held(tickets) if (arena := _others.get(segment)) else bytes(len(tickets) // 8)
        for segment, tickets in blocks
    ]
    return np.frombuffer(b"".join(answers), np.bool_)


def view(
    segment: int,
    place: bytes,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    token: str | np.dtype[Any],
    writeable: bool,
) -> NDArray[Any]:
    """The array that a handle describes.

    Raises
    ------
    DSMError
        Its arena is not known here, or its block is free again.
    """
    arena = _own.get(segment) or _others.get(segment)
    found = None if arena is None else arena.view(place, shape, strides, token, writeable)
    if found is None:
        raise DSMError(
            f"a shared array of shape {shape} is gone: it was freed in the process that made it, "
            "or its handle came from a program that is not this one's team; keep a reference to "
            "the array for as long as its handle travels"
        )
    return found


# ---------------------------------------------------------------------------------------------
# Forks


def _before_fork() -> None:
    """What either process lets go from now on, the other may still see."""
    global _forking
    _forking += 1
    for arena in [*_own.values(), *_others.values()]:
        arena.retire()


def _in_parent() -> None:
    global _forking
    _forking -= 1
    _reopen()


def _in_child() -> None:
    global _lock, _forking
    _lock = threading.RLock()
    _forking = 0
    _before_fork()  # an arena that was just being made is here all the same
    _forking = 0
    listen(None)
    tidy(spares=0)
    _reopen()


os.register_at_fork(before=_before_fork, after_in_parent=_in_parent, after_in_child=_in_child)
# What is let go while the interpreter ends is of no interest to anybody.
atexit.register(listen, None)
