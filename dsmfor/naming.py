"""Arrays under a name, for other programs of this user: publish, attach, delete, list.

The program that makes an array with ``name=`` owns the name, which lives until that program lets
go of the array, deletes the name or ends, however it ends. Who has attached the array keeps its
memory, as it was and shared, for as long as they like. The files are `dsmfor.shmfiles`', what is
written in them `dsmfor.labels`'; in this process, a named array is a segment like any other.

Guarantees
    A name of this process goes with the last reference to its array, at the interpreter's end at
    the latest. Should it be killed, the warden takes the name away (`set_guardian`); should that
    be killed as well, whoever next publishes, attaches, lists or starts a team does. A forked
    child owns none of its parent's names, and takes none away.

Assumes
    `_own` is changed by single operations of dict alone. A collection may let go of an array, and
    so take its name away, in any thread at any bytecode: what is left in `_own` has no title.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dsmfor import labels, segments, shmfiles, team
from dsmfor._native.farewell import Descriptor
from dsmfor._native.mapping import Title
from dsmfor.errors import DSMError, NameTaken, NameUnknown
from dsmfor.labels import Label
from dsmfor.memfiles import prepare
from dsmfor.shmfiles import Identity

__all__ = ["NamedArray", "attach", "delete", "names", "publish", "published", "set_guardian"]

_ATTEMPTS = 100  # to give a name that dead owners have; each takes one away


class _Own(NamedTuple):
    """A name that this process has given; gone when its title is."""

    name: str
    file: Identity
    title: weakref.ref[Title]  # kept by the mapping, so that it goes with the memory
    label: Label


@dataclass(frozen=True, slots=True)
class NamedArray:
    """An array that some program of this user has published.

    Attributes
    ----------
    name : str
    shape : tuple of int
    dtype : dtype
    nbytes : int, bytes
    pid : int or None
        The process that owns the name; None if SharedArray made the array, which does not tell.
    created : datetime or None
        When it was made, in local time; None likewise.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    nbytes: int
    pid: int | None
    created: datetime | None


_own: dict[int, _Own] = {}  # by segment
_guardian: Callable[[], object] | None = None


def publish(
    name: str, shape: tuple[int, ...], dtype: np.dtype[Any], axes: tuple[int, ...]
) -> NDArray[Any]:
    """A new array of zeros under a name of this process.

    Parameters
    ----------
    name : str
    shape : tuple of int
    dtype : dtype
        Of fixed size, without references.
    axes : tuple of int
        In the order of their strides, the widest first.

    Raises
    ------
    NameTaken
        Somebody who lives has it, or something else is there.
    SharedMemoryFull
        There is no room for it in /dev/shm or in memory; nothing was taken.
    TypeError, ValueError
        It is no name, or the dtype means nothing to other programs.
    OSError
        /dev/shm cannot be written.
    """
    shmfiles.check_name(name)
    prepare()
    size = max(int(np.prod(shape, dtype=object)) * dtype.itemsize, 1)
    label = Label(dtype, shape, axes, size, shmfiles.myself(), time.time())
    _ensure_free(name)  # before memory is taken for nothing
    held = segments.relieved(lambda: shmfiles.make(label))
    with held:
        title = shmfiles.title(name, held)
        file = shmfiles.identity(held)
        root = segments.enter(held, size, title)
    segment = segments.number(root)
    for gone in [segment for segment, own in list(_own.items()) if own.title() is None]:
        _own.pop(gone, None)
    _own[segment] = _Own(name, file, weakref.ref(title), label)
    # The guardian hears of a name before it can be seen: a SIGKILL in between leaves no name.
    if _guardian is not None:
        _guardian()
    for _ in range(_ATTEMPTS):
        with contextlib.suppress(FileExistsError):
            shmfiles.link(segments.descriptor(segment), name)
            break
        _ensure_free(name)
    else:
        raise NameTaken(f"the name {name!r} was given to others {_ATTEMPTS} times; choose another")
    return labels.arrange(label, root)


def attach(name: str, *, readonly: bool = False) -> NDArray[Any]:
    """The array that a program of this user has published under a name.

    Nothing is copied: what one program writes, the other reads. It stays there for as long as it is
    held here, also when its name is gone.

    Parameters
    ----------
    name : str
        As ``zeros(..., name=...)`` was told, or without ``shm://`` as ``SharedArray.create`` was.
    readonly : bool
        Map it so that this program, its kernels included, cannot write it.

    Returns
    -------
    ndarray
        With the dtype, shape and order that it was made with. A shared array like any other.

    Raises
    ------
    NameUnknown
        Nobody has published it, or its owner has ended; the message tells the names there are.
    DSMError
        What is there is no array of this user's alone.
    RegionError
        Called by a rank of a region: attach before the call, or use ``dsm.single``.

    Examples
    --------
    >>> import dsmfor as dsm
    >>> A = dsm.zeros(3, name="attach-example")
    >>> dsm.attach("attach-example")[1] = 7
    >>> A
    array([0., 7., 0.])
    """
    shmfiles.check_name(name)
    team.check_creation("attach")
    if not readonly:
        for segment, own in list(_own.items()):
            root = segments.root(segment)
            if own.name == name and root is not None and shmfiles.is_there(name, own.file):
                return labels.arrange(own.label, root)
    prepare()
    held, label = _found(name, readonly=readonly)
    root = segments.enter(held, label.nbytes)
    return labels.arrange(label, root)


def delete(name: str) -> None:
    """Take away a name of this program, or one whose owner has ended.

    The array lives on, without its name, for as long as somebody holds it.

    Parameters
    ----------
    name : str

    Raises
    ------
    NameTaken
        It belongs to another program that lives, or to none that can be told.
    NameUnknown
        Nobody has it; the message tells the names there are.
    DSMError
        What is there is no array of this user's alone.

    Examples
    --------
    >>> import dsmfor as dsm
    >>> A = dsm.ones(3, name="delete-example")
    >>> dsm.delete("delete-example")
    >>> A.sum()
    np.float64(3.0)
    """
    shmfiles.check_name(name)
    for segment, own in list(_own.items()):
        if own.name == name:
            _withdraw(segment)
            return
    held, label = _found(name, readonly=True, dead=True)
    if label.owner is None:
        raise NameTaken(
            f"the array {name!r} was made by SharedArray, which does not tell whether its program "
            f"still lives; SharedArray.delete('shm://{name}') takes the name away all the same"
        )
    if not shmfiles.is_dead(held, label.owner):
        raise NameTaken(
            f"the array {name!r} belongs to {_owner(label)}, which is running; end that program, "
            "or have it delete the name",
            pid=label.owner.pid,
        )
    shmfiles.remove(name, shmfiles.identity(held), dead=True)


def names() -> dict[str, NamedArray]:
    """The arrays that programs of this user have published.

    Returns
    -------
    dict of str to NamedArray
        By name, in alphabetic order. Names whose owner has ended are taken away first.

    Examples
    --------
    >>> import dsmfor as dsm
    >>> A = dsm.zeros((2, 3), name="names-example")
    >>> dsm.names()["names-example"].shape
    (2, 3)
    """
    found = {}
    for name, label in shmfiles.living():
        pid = created = None
        if label.owner is not None:
            pid = label.owner.pid
            with contextlib.suppress(ValueError, OverflowError, OSError):  # a clock gone astray
                created = datetime.fromtimestamp(label.created).astimezone()
        nbytes = int(np.prod(label.shape, dtype=object)) * label.dtype.itemsize
        found[name] = NamedArray(name, label.shape, label.dtype, nbytes, pid, created)
    return found


def published() -> list[tuple[str, Identity]]:
    """The names of this process and their files, as whoever guards them needs them."""
    return [(own.name, own.file) for own in list(_own.values()) if own.title() is not None]


def set_guardian(guardian: Callable[[], object] | None) -> None:
    """Have ``guardian()`` called when `published` has grown: it takes names away should we die."""
    global _guardian
    _guardian = guardian


# ---------------------------------------------------------------------------------------------


def _found(name: str, *, readonly: bool, dead: bool = False) -> tuple[Descriptor, Label]:
    """The array of that name, or what is wrong with it, in words."""
    try:
        held, label = shmfiles.find(name, readonly=readonly)
    except FileNotFoundError:
        raise NameUnknown(f"no array is named {name!r}; {_others()}") from None
    except ValueError as error:
        raise DSMError(
            f"{shmfiles.FOLDER}/{name} is no array that dsmfor may use: {error}; it is left as it "
            "is. Choose another name, or remove it if you know whose it is"
        ) from None
    except OSError as error:
        raise type(error)(
            error.errno, f"cannot open the array {name!r}: {error.strerror}; see its mode"
        ) from error
    if not dead and label.owner is not None and shmfiles.is_dead(held, label.owner):
        shmfiles.remove(name, shmfiles.identity(held), dead=True)
        raise NameUnknown(
            f"the array {name!r} is gone: {_owner(label)}, which made it, has ended; {_others()}"
        )
    return held, label


def _others() -> str:
    found = [name for name, _ in shmfiles.living()]
    if not found:
        return "there is no named array; start the program that makes it"
    listed = ", ".join(map(repr, found[:20])) + (", ..." if len(found) > 20 else "")
    return f"there are {listed}. Check the spelling, or start the program that makes it"


def _ensure_free(name: str) -> None:
    """Take the name away from a dead owner; refuse any other that has it."""
    for own in list(_own.values()):
        if own.name == name and shmfiles.is_there(name, own.file):
            raise NameTaken(
                f"the name {name!r} belongs to an array of this program already; "
                f"dsm.attach({name!r}) gives it, dsm.delete({name!r}) makes the name free",
                pid=os.getpid(),
            )
    try:
        held, label = shmfiles.find(name, readonly=True)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise NameTaken(
            f"the name {name!r} is taken by {shmfiles.FOLDER}/{name}, which is no array of "
            f"dsmfor's: {error}; it is left as it is. Choose another name"
        ) from None
    if label.owner is None:
        raise NameTaken(
            f"the name {name!r} is taken by an array that SharedArray made; choose another name, "
            f"use it by dsm.attach({name!r}), or end it by SharedArray.delete('shm://{name}')"
        )
    if not shmfiles.is_dead(held, label.owner):
        raise NameTaken(
            f"the name {name!r} is taken by {_owner(label)}, which is running; use its array by "
            f"dsm.attach({name!r}), end that program, or choose another name",
            pid=label.owner.pid,
        )
    shmfiles.remove(name, shmfiles.identity(held), dead=True)


def _owner(label: Label) -> str:
    """'process 123 (array made 5 minutes ago)'."""
    assert label.owner is not None
    seconds = max(time.time() - label.created, 0.0)
    for length, unit in ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second")):
        if seconds >= length or unit == "second":
            age = int(seconds // length)
            break
    return f"process {label.owner.pid} (array made {age} {unit}{'s' * (age != 1)} ago)"


def _withdraw(segment: int) -> None:
    """A name of ours goes, if it is still there."""
    own = _own.pop(segment, None)
    if own is not None and (title := own.title()) is not None:
        title.withdraw()


def _at_exit() -> None:
    for segment in list(_own):
        _withdraw(segment)


def _forget_parent() -> None:
    """In a forked child: the names are the parent's, and so must be the signs of its life."""
    for own in _own.values():
        if (title := own.title()) is not None:
            title.lock.close()
    _own.clear()


atexit.register(_at_exit)
os.register_at_fork(after_in_child=_forget_parent)
