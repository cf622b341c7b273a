"""Files in /dev/shm by which programs share memory under a name: made, found, owned, removed.

/dev/shm is open to every user and anybody may put anything there, so nothing in it is trusted. What
is behind the data of such a file is the business of `dsmfor.labels`; the arrays in this process,
of `dsmfor.names`.

Guarantees
    A name appears with a whole file behind it: private to this user from its first moment, its
    pages reserved, its label written. A name that is there is never taken over, followed or
    changed, whatever it is. What is opened is looked at first: a plain file of this user's, which
    no other user may open and which has no second name.

    A name lives as long as its owner: the process that made it, which holds a lock on its first
    byte until it ends, however it ends. The lock belongs to a descriptor of its own that no other
    process is given; a forked child that has it all the same (of C code's `fork`) does not keep
    the name alive, since the owner is known by pid and start as well.

    Who removes the name of a dead owner holds a lock on the file's second byte meanwhile, so two
    of them cannot both find the old file there and the later one take away a name that has been
    given anew in between.

Assumes
    Programs of this user do not cut a file short that others map: touching what is gone is a
    SIGBUS, and no seal can be put on a file in /dev/shm.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
import time
from collections.abc import Iterable, Iterator

from dsmfor import labels, limits, memfiles
from dsmfor._native.farewell import Descriptor
from dsmfor._native.mapping import Title, open_file
from dsmfor.errors import SharedMemoryFull
from dsmfor.labels import Label, Owner

__all__ = [
    "FOLDER",
    "Identity",
    "check_name",
    "find",
    "hold",
    "identity",
    "is_dead",
    "is_there",
    "link",
    "living",
    "make",
    "myself",
    "present",
    "remove",
    "sweep",
    "title",
]

FOLDER = "/dev/shm"  # noqa: S108  # where SharedArray and shm_open look for names

Identity = tuple[int, int]
"""Device and inode of a file: what its name stands for at this moment."""

_NAME_MAX = 255
_ALIVE, _REMOVAL = 0, 1  # bytes of a file that are locked, for what
_PATIENCE = 1.0  # seconds that another process may take to remove a name
_LOCK = struct.Struct("hhqqi4x")  # struct flock, where an off_t has 64 bits


# ---------------------------------------------------------------------------------------------
# Names


def check_name(name: str) -> None:
    """Refuse what cannot be a name.

    Raises
    ------
    TypeError, ValueError
    """
    if not isinstance(name, str):
        raise TypeError(f"the name of an array is a str, got {name!r}")
    fault = ""
    if not name or name in (".", ".."):
        fault = "it names no file"
    elif "/" in name:
        fault = "'/' has a meaning to the system; use '.' or '-' in its stead"
    elif not name.isprintable():
        fault = "it has characters that cannot be printed"
    elif len(os.fsencode(name)) > _NAME_MAX:
        fault = f"it has {len(os.fsencode(name))} bytes, and {_NAME_MAX} are possible"
    elif name.startswith("sem."):
        fault = "names that begin with 'sem.' are the system's, for semaphores"
    if fault:
        raise ValueError(f"an array cannot be named {name!r}: {fault}")


def present() -> list[str]:
    """Names of everything in the folder, of whatever kind."""
    try:
        return sorted(os.listdir(FOLDER))
    except OSError:
        return []


# ---------------------------------------------------------------------------------------------
# Files


def make(label: Label) -> Descriptor:
    """A file with no name yet: `label.nbytes` zeros and what belongs behind them.

    Raises
    ------
    SharedMemoryFull
        There is no room for it; nothing was taken.
    OSError
        The folder is missing, or cannot be written.
    """
    nbytes = label.nbytes
    ending = labels.write(label)
    limits.check(nbytes)
    try:
        with open_file(FOLDER, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600) as held:
            os.fchmod(held.number, 0o600)  # whatever the umask has left of it
            memfiles.take(held.number, 0, nbytes + len(ending))
            os.pwrite(held.number, ending, nbytes)
            return memfiles.lift(held)
    except OSError as error:
        raise _refusal(error, nbytes) from error


def link(fd: int, name: str) -> None:
    """Give a file its name.

    Raises
    ------
    FileExistsError
        Something of that name is there, of whatever kind.
    """
    with _folder() as folder:
        os.link(f"/proc/self/fd/{fd}", name, dst_dir_fd=folder.number)
        folder.close()


def find(name: str, *, readonly: bool) -> tuple[Descriptor, Label]:
    """The file of that name, and what it holds.

    It is examined before it is opened, and opened without its name, so that it is the one examined.

    Raises
    ------
    FileNotFoundError
    ValueError
        What is there is no array of this user's alone.
    """
    path = os.path.join(FOLDER, name)
    with open_file(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC) as seen:
        _examine(os.fstat(seen.number))
        mode = os.O_RDONLY if readonly else os.O_RDWR
        with _reopen(seen, mode) as held:
            seen.close()
            label = labels.read(held.number)
            return memfiles.lift(held), label


def _reopen(held: Descriptor, mode: int) -> Descriptor:
    return open_file(f"/proc/self/fd/{held.number}", mode | os.O_CLOEXEC | os.O_NONBLOCK)


def _examine(status: os.stat_result) -> None:
    """Refuse a file that others may have put there, or may look into."""
    mode = status.st_mode
    if stat.S_ISLNK(mode):
        raise ValueError("it is a symbolic link")
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "directory", stat.S_IFIFO: "named pipe", stat.S_IFSOCK: "socket"}
        raise ValueError(f"it is a {kinds.get(stat.S_IFMT(mode), 'device')}")
    if status.st_uid != os.geteuid():
        raise ValueError(f"it belongs to user {status.st_uid}, and you are {os.geteuid()}")
    if mode & 0o077:
        raise ValueError(
            f"its mode is {stat.S_IMODE(mode):04o}, so other users may look into it or change it "
            "(chmod 600 would end that)"
        )
    if status.st_nlink != 1:
        raise ValueError(f"it has {status.st_nlink} names (hard links)")


def identity(held: Descriptor) -> Identity:
    """Which file a descriptor is of."""
    status = os.fstat(held.number)
    return status.st_dev, status.st_ino


def _folder() -> Descriptor:
    return open_file(FOLDER, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def _refusal(error: OSError, nbytes: int) -> Exception:
    """What to raise when there is no place for a file."""
    what = f"cannot make a named array of {nbytes:,} bytes"
    code = error.errno or 0
    if code in (errno.ENOSPC, errno.EDQUOT):
        room = os.statvfs(FOLDER)
        return SharedMemoryFull(
            f"{what}: {FOLDER} has {room.f_bavail * room.f_frsize:,} of "
            f"{room.f_blocks * room.f_frsize:,} bytes left; drop named arrays, enlarge it "
            "(docker run --shm-size, mount -o remount,size=), or make the array without a name, "
            "which takes nothing there"
        )
    if code in (errno.ENOMEM, errno.EFBIG, errno.EMFILE, errno.ENFILE):
        return limits.refusal(error, "make", nbytes, live=0)
    return type(error)(
        code,
        f"{what}: {FOLDER} cannot hold it ({os.strerror(code)}). Names need a writable tmpfs "
        "there; mount one, or make the array without a name",
    )


# ---------------------------------------------------------------------------------------------
# Owners


def myself() -> Owner:
    """This process, as owner."""
    pid = os.getpid()
    started = _started(pid)
    return Owner(pid, 0 if started is None else started, _space())


def hold(held: Descriptor) -> Descriptor:
    """The sign of life of this process on a file of its own: the name lives until it is closed.

    On a descriptor of its own, since workers are sent the other one and would go on holding it.
    """
    with _reopen(held, os.O_RDWR) as lock:
        fcntl.fcntl(lock.number, fcntl.F_OFD_SETLK, _range(_ALIVE))
        return memfiles.lift(lock)


def title(name: str, held: Descriptor) -> Title:
    """The name that a file of this process is to get, and the sign of life that goes with it."""
    return Title(os.path.join(FOLDER, name), *identity(held), hold(held))


def is_dead(held: Descriptor, owner: Owner) -> bool:
    """Whether the owner of a file has ended."""
    answer = fcntl.fcntl(held.number, fcntl.F_OFD_GETLK, _range(_ALIVE))
    if _LOCK.unpack(answer)[0] == fcntl.F_UNLCK:
        return True
    return owner.space == _space() and _started(owner.pid) != owner.started


def _space() -> int:
    """The namespace that pids of this process are of."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:  # a kernel that has but one
        return 0


def _started(pid: int) -> int | None:
    """When a living process began, in clock ticks; None if there is none."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _range(byte: int, kind: int = fcntl.F_WRLCK) -> bytes:
    return _LOCK.pack(kind, os.SEEK_SET, byte, 1, 0)


# ---------------------------------------------------------------------------------------------
# Removal


def is_there(name: str, file: Identity) -> bool:
    """Whether a name stands for that file."""
    try:
        status = os.lstat(os.path.join(FOLDER, name))
    except OSError:
        return False
    return (status.st_dev, status.st_ino) == file


def remove(name: str, file: Identity, *, dead: bool) -> bool:
    """Take a name away, if it stands for that file; whether it did.

    Parameters
    ----------
    name : str
    file : Identity
    dead : bool
        Only if its owner has ended. Otherwise the caller of this is the owner.
    """
    if not dead:
        with contextlib.suppress(OSError):
            if is_there(name, file):
                os.unlink(os.path.join(FOLDER, name))
                return True
        return False
    try:
        held, label = find(name, readonly=False)
    except (OSError, ValueError):
        return False
    until = time.monotonic() + _PATIENCE
    while identity(held) == file and label.owner is not None and is_dead(held, label.owner):
        with contextlib.suppress(BlockingIOError):
            fcntl.fcntl(held.number, fcntl.F_OFD_SETLK, _range(_REMOVAL))
            return remove(name, file, dead=False)
        if time.monotonic() > until:
            break
        time.sleep(0.001)  # somebody else is at it
    return False


def living(names: Iterable[str] | None = None) -> Iterator[tuple[str, Label]]:
    """Names of this user's arrays whose owner lives or is unknown; those of the dead go.

    Parameters
    ----------
    names : iterable of str, optional
        Where to look; by default everywhere.
    """
    for name in present() if names is None else names:
        with contextlib.suppress(OSError, ValueError):
            held, label = find(name, readonly=True)
            if label.owner is not None and is_dead(held, label.owner):
                remove(name, identity(held), dead=True)
            else:
                yield name, label


def sweep(names: Iterable[str] | None = None) -> None:
    """Take away the names of dead owners: these, or all that this user has."""
    for _ in living(names):
        pass
