"""How much memory may still be taken, and the words for when it is not enough.

Three things bound the memory of this process: what the machine has left, what each control group
above the process allows, and the process's own limits (ulimit). A control group must be asked
beforehand, because beyond its limit the kernel kills instead of refusing. Taking the memory is the
business of `dsmfor.segments`, and of whoever carries messages and results. This room reads, words
the refusal, and changes one thing: it raises the limit on descriptors as far as this process may.

Guarantees
    What cannot be read does not bound. `check` reads the limits anew for everything from 1 MiB up;
    smaller requests together take a sixteenth of what was found, for a second at the most, before
    they are read again.

Assumes
    Others take memory too: what `check` lets pass may still be refused by the system. `refusal`
    words that as well.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import resource
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from dsmfor.errors import DSMError, SharedMemoryFull

__all__ = [
    "LARGE",
    "Room",
    "check",
    "control_groups",
    "exhausted",
    "raise_descriptor_limit",
    "read",
    "refusal",
    "room",
    "scarce",
    "set_queue",
    "unstartable",
]

LARGE = 1 << 20
"""From this size on, in bytes, the limits are read for every request."""

_PAGE = 4096
"""What a request takes beyond its bytes, at most."""

_NO_LIMIT = 1 << 62
"""A cgroup v1 without a limit says nearly 2**63."""


class Room(NamedTuple):
    """How many bytes of memory may still be taken, and what sets the bound."""

    free: int
    where: str


class _Mount(NamedTuple):
    """A hierarchy of control groups, as this process sees it."""

    version: int
    controllers: frozenset[str]  # of version 1; empty in version 2, which has them all
    root: str  # the group that is mounted
    point: str


# _lock guards the two fields below it. Re-entrant, because a collection may run a finalizer that
# makes a shared array in the very thread that holds it.
_lock = threading.RLock()
_allowance = 0  # bytes that small requests may take before the limits are read again ...
_allowed_until = 0.0  # ... if that is before this time (monotonic, seconds)

# What waits for its turn before the limits are read for something large; None in most processes.
_queue: Callable[[], object] | None = None

# Where /proc and the control groups are looked for; another place in tests.
_system = "/"


# ---------------------------------------------------------------------------------------------
# Reading


def room(system: str = "/") -> Room:
    """How many bytes of memory may still be taken.

    Parameters
    ----------
    system : str
        Directory in which ``proc`` and the mount points of the control groups are looked for.

    Returns
    -------
    Room
        The least of what the machine has available and what each control group above this process
        leaves, in bytes, and where that bound comes from.
    """
    free = Room(_NO_LIMIT, "the system")
    for line in read(system, "/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            free = Room(int(line.split()[1]) << 10, "this machine (MemAvailable)")
            break
    groups = (_group_room(system, *group) for group in control_groups("memory", system))
    return min([free, *filter(None, groups)], key=lambda each: each.free)


def control_groups(controller: str, system: str = "/") -> Iterator[tuple[int, str]]:
    """The control groups that bound this process, from its own up to the root it can see.

    Parameters
    ----------
    controller : str
        What is bounded: 'memory' or 'cpu'.
    system : str
        As of `room`.

    Yields
    ------
    version : int
        1 or 2. They name their files differently; a machine may have both mounted.
    directory : str
        Of the group; `read` finds its files there.
    """
    for line in read(system, "/proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        version = 1 if controller in controllers.split(",") else 2 if number == "0" else 0
        for mount in _mounts(system):
            if mount.version != version or (version == 1 and controller not in mount.controllers):
                continue
            # A container sees its own subtree mounted, maybe under the host's longer name for it.
            top = mount.root.rstrip("/")
            inside = path.removeprefix(top) if f"{path}/".startswith(f"{top}/") else ""
            parts = [part for part in inside.split("/") if part not in ("", "..")]
            for depth in range(len(parts), -1, -1):
                yield version, "/".join([mount.point, *parts[:depth]])
            break


def read(system: str, path: str) -> str:
    """A small file of the system, or nothing."""
    try:
        with open(system.rstrip("/") + path, "rb", buffering=0) as file:
            return file.read().decode("ascii", "replace")
    except OSError:
        return ""


@functools.lru_cache(maxsize=8)
def _mounts(system: str) -> list[_Mount]:
    found = []
    for line in read(system, "/proc/self/mountinfo").splitlines():
        place, _, kind = line.partition(" - ")
        fields, kinds = place.split(), kind.split()
        if len(fields) < 5 or not kinds:
            continue
        if kinds[0] == "cgroup2":
            found.append(_Mount(2, frozenset(), fields[3], fields[4]))
        elif kinds[0] == "cgroup":
            found.append(_Mount(1, frozenset(kinds[-1].split(",")), fields[3], fields[4]))
    return found


def _group_room(system: str, version: int, directory: str) -> Room | None:
    """What one control group leaves; None if it sets no limit."""
    limit_file, usage_file, prefix = (
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
        if version == 1
        else ("memory.max", "memory.current", "")
    )
    limit = read(system, f"{directory}/{limit_file}").strip()
    if not limit.isdigit() or int(limit) >= _NO_LIMIT:
        return None
    usage = read(system, f"{directory}/{usage_file}").strip()
    used = int(usage) if usage.isdigit() else 0
    # Cached files count as used and are given up when memory is asked for.
    cached = 0
    for line in read(system, f"{directory}/memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name == f"{prefix}inactive_file":
            cached += int(value)
        elif name == f"{prefix}active_file":
            cached += int(value) // 2
    return Room(max(int(limit) - max(used - cached, 0), 0), f"the control group {directory}")


# ---------------------------------------------------------------------------------------------
# Deciding


def check(nbytes: int, what: str = "a shared array of {}") -> None:
    """Refuse what would not fit.

    Reading the limits costs as much as making a small segment, hence the allowance.

    Parameters
    ----------
    nbytes : int, bytes
        How much is about to be taken.
    what : str
        For what, with ``{}`` for the amount.

    Raises
    ------
    SharedMemoryFull
        More than is left.
    """
    global _allowance, _allowed_until
    if nbytes >= LARGE and _queue is not None:
        _queue()
    now = time.monotonic()
    if nbytes < LARGE:
        with _lock:
            if now < _allowed_until and nbytes <= _allowance:
                _allowance -= nbytes + _PAGE
                return
    free, where = room(_system)
    # A little stays free for page tables, and for what others take between this look and theirs.
    free -= min(free // 16, 32 << 20)
    if nbytes > free:
        raise SharedMemoryFull(
            f"{what.format(_amount(nbytes))} does not fit: {where} has {_amount(free)} left; "
            "drop arrays that are no longer needed, use a smaller dtype or raise the limit"
        )
    with _lock:
        _allowance, _allowed_until = free // 16, now + 1.0


def set_queue(queue: Callable[[], object] | None) -> None:
    """Have ``queue()`` called before the limits are read for something large.

    It returns when no other process of ours stands between its look and its taking.
    """
    global _queue
    _queue = queue


def raise_descriptor_limit() -> int:
    """Let this process open as many descriptors as the system allows; how many, -1 for any."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    return soft


def scarce(nbytes: int) -> bool:
    """Whether less than that is left, so that it should not be kept for speed alone."""
    return room(_system).free < nbytes


def exhausted(what: str) -> SharedMemoryFull:
    """What to raise when this process was refused private memory.

    Parameters
    ----------
    what : str
        What it was for: the subject of the sentence.
    """
    return SharedMemoryFull(
        f"{what} does not fit into the memory of process {os.getpid()}; raise "
        f"{_mapping_limit(None)}, or drop arrays that are no longer needed"
    )


def refusal(
    error: OSError, doing: str, nbytes: int, *, live: int, what: str = "a shared array of {}"
) -> Exception:
    """What to raise when the system refuses a segment, or other shared memory.

    Parameters
    ----------
    error : OSError
        How the system said it.
    doing : str
        'make' or 'map'.
    nbytes : int, bytes
        Size of the array.
    live : int
        Segments that this process holds.
    what : str
        What the memory is for, with ``{}`` for the amount.

    Returns
    -------
    SharedMemoryFull or OSError
        It says what to do. SharedMemoryFull where there would be room if arrays were dropped or a
        limit raised.
    """
    what = f"cannot {doing} {what.format(_amount(nbytes))}"
    code = error.errno or 0
    if code == errno.EFBIG:
        return SharedMemoryFull(
            f"{what}: files of this process are limited to "
            f"{_amount(resource.getrlimit(resource.RLIMIT_FSIZE)[0])}; raise it with ulimit -f"
        )
    if code in (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM):
        if doing == "make":
            remedy = "drop arrays that are no longer needed"
        else:
            remedy = f"raise {_mapping_limit(live)}, or drop arrays that are no longer needed"
        return SharedMemoryFull(f"{what}: {os.strerror(code)}; {remedy}")
    if code == errno.ENFILE:
        return SharedMemoryFull(
            f"{what}: this machine has all the files open that it may, "
            f"{read(_system, '/proc/sys/fs/file-max').strip()}, {live} segments of this process "
            "among them; drop arrays that are no longer needed or raise sysctl fs.file-max"
        )
    if code in (errno.EMFILE, errno.EINVAL):
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return SharedMemoryFull(
            f"{what}: no descriptor is left: this process may open {limit} descriptors and holds "
            f"{live} segments; drop arrays that are no longer needed, make one array of many "
            "(those below 1 MiB share a descriptor) or raise ulimit -n"
        )
    if code in (errno.ENOENT, errno.EACCES):
        return OSError(code, f"{what}: {error.strerror}; /proc must be mounted and readable")
    return OSError(
        code,
        f"{what}: {error.strerror}; dsmfor needs Linux's memfd_create and seals: "
        "`python -m dsmfor doctor` says what this machine lacks",
    )


def unstartable(error: OSError) -> DSMError | None:
    """What to raise when the system refuses what a team is made of; None if it is not that.

    Parameters
    ----------
    error : OSError
        How the system said it.
    """
    code = error.errno or 0
    if code in (errno.EMFILE, errno.ENFILE):
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        remedy = (
            f"this process may open {limit} descriptors; close some, or raise ulimit -n"
            if code == errno.EMFILE
            else "raise sysctl fs.file-max, or close files of other programs"
        )
    elif code == errno.EAGAIN:
        limit = resource.getrlimit(resource.RLIMIT_NPROC)[0]
        remedy = (
            f"this user may have {limit} processes and threads; lower workers=, or raise "
            "ulimit -u or the control group's pids.max"
        )
    elif code == errno.ENOMEM:
        remedy = f"raise {_mapping_limit(None)}, or drop arrays that are no longer needed"
    elif code in (errno.ENOSYS, errno.EPERM, errno.EINVAL):
        remedy = "`python -m dsmfor doctor` says what this machine lacks"
    else:
        return None
    text = error.strerror if remedy in str(error) else f"{error.strerror}; {remedy}"
    return DSMError(f"the workers cannot be started: {text}")


def _mapping_limit(live: int | None) -> str:
    """Which limit on this process's memory a mapping has met, in words."""
    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    if most != resource.RLIM_INFINITY:
        return f"ulimit -v, which allows {_amount(most)} of address space"
    if live is None:
        return "the memory of this machine"
    count = read(_system, "/proc/sys/vm/max_map_count").strip()
    return f"sysctl vm.max_map_count, which allows {count} mappings ({live} segments are mapped)"


def _amount(nbytes: int) -> str:
    """Bytes, for people: '10,000,000 bytes (9.5 MiB)'."""
    value, unit = float(nbytes), "bytes"
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"):
        if value < 1024 or unit == "EiB":
            break
        value /= 1024
    return f"{nbytes:,} bytes" + (f" ({value:.1f} {unit})" if unit != "bytes" else "")


def _forget_parent() -> None:
    """In a forked child: nobody holds the lock, and the parent's look is not ours."""
    global _lock, _allowance
    _lock = threading.RLock()
    _allowance = 0


os.register_at_fork(after_in_child=_forget_parent)
