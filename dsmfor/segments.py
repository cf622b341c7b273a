"""The memory of this process's shared arrays: make, reserve, map, hand over and free segments.

A *segment* is an anonymous file in memory (``memfd_create``) that processes map together. It has
no name, so the kernel frees it when the last process that holds it goes, however it goes, and the
size of /dev/shm does not limit it. Each segment of this process is known by its *root*, a uint8
array over all its bytes; every shared array is a view that keeps the root alive through ``.base``,
and when the last of them goes the segment goes. Which array lies where is told by
`dsmfor._native.registry`; dtypes and shapes are the business of `dsmfor.arrays`; carrying
descriptors between processes is the engines'.

::

    a segment   | data: nbytes, from a page boundary | footer: 548 bytes |
    the footer  magic[16]  size u64  type i32  item size i32  ndims i32  dims i64[64]

The footer is SharedArray's own, so ``SharedArray.attach`` maps a segment, here and in any
process that was handed its descriptor. SharedArray itself is imported with the first segment:
that import would switch the GIL back on in a free-threaded Python.

Guarantees
    A segment's pages are reserved before anyone sees it: no later touch is a SIGBUS. What does
    not fit is a `SharedMemoryFull` and takes nothing. Sealed against shrinking and growing, it
    stays whole whatever another process does. A fresh segment reads zero. Its number is never
    used again. Own descriptors are numbered from 1024 up where the limit allows, so ``select``
    keeps working on the user's.

Assumes
    The hooks (`on_free`, `set_resolver`, `set_reclaimer`) belong to the process that installed
    them; a forked child starts with none, so nothing freed there reaches the parent's workers. The
    segments it inherited stay readable, and it closes only its own copies of their descriptors.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import resource
import struct
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, Self, cast

import numpy as np
from numpy.typing import NDArray

from dsmfor._native import registry
from dsmfor.errors import DSMError, SharedMemoryFull

__all__ = [
    "FOOTER",
    "Room",
    "adopt",
    "create",
    "descriptor",
    "fetch",
    "live",
    "nbytes_live",
    "on_free",
    "room",
    "root",
    "set_creator",
    "set_reclaimer",
    "set_resolver",
    "size",
]

Root = NDArray[np.uint8]

FOOTER = struct.Struct("<16sQiii64q")
"""SharedArray's footer: magic, size, NumPy type number, item size, dimensions, their lengths."""

_MAGIC = b"[SharedArray]"
_UINT8 = int(np.dtype(np.uint8).num)

# Linux numbers that Python 3.11 does not name.
_MFD_NOEXEC_SEAL = 0x0008
_F_ADD_SEALS = 1033
_F_GET_SEALS = 1034
_SEALS = 0x1 | 0x2 | 0x4  # against more seals, shrinking, growing

_PIECE = 64 << 20
"""Bytes reserved by one system call: between two of them Ctrl-C is seen."""

_LARGE = 1 << 20
"""From this size on, the limits are read for every segment."""

_SELECTABLE = 1024
"""``select`` takes descriptors below this one; they are left to the user."""

_PUBLIC = ("/dev/shm", "/tmp", "/var/tmp")  # noqa: S108  # only a private directory in one of them
"""Where SharedArray may make its one named array, the probe."""

_NO_LIMIT = 1 << 62
"""A cgroup v1 without a limit says nearly 2**63."""


class _SharedArray(Protocol):
    """The two functions of the SharedArray module that are used."""

    def create(self, name: str, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]: ...

    def attach(self, name: str) -> NDArray[Any]: ...


class Room(NamedTuple):
    """How much memory may still be taken, and what sets the bound."""

    free: int
    where: str


class _Descriptor:
    """Owns a file descriptor: closed with its last reference, or at once by an exception.

    The ``with`` block is for the exception alone, whose traceback may be kept for long and every
    local variable with it (``sys.last_traceback``); left normally, the descriptor stays open.
    """

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number

    def close(self, *, close: Callable[[int], None] = os.close) -> None:
        number, self.number = self.number, -1
        if number >= 0:
            close(number)

    __del__ = close

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.close()


class _Record(weakref.ref[Root]):
    """A live segment: the weak reference to its root, whose callback frees it."""

    __slots__ = ("descriptor", "low", "nbytes", "segment")

    segment: int
    descriptor: _Descriptor
    nbytes: int
    low: int


# _lock guards the four fields below it. Re-entrant, because a collection may free a root (and so
# call _release) in the very thread that holds it.
_lock = threading.RLock()
_live: dict[int, _Record] = {}
_made = 0  # segments numbered so far; only rises
_allowance = 0  # bytes that small segments may take before the limits are read again ...
_allowed_until = 0.0  # ... if that is before this time (monotonic, seconds)

# Hooks and settings, each written whole by one assignment.
_creator = 0
_callbacks: list[Callable[[int], object]] = []
_resolver: Callable[[int], tuple[int, int]] | None = None
_reclaimer: Callable[[], object] | None = None

# Learnt when the first segment is made.
_shared_array: _SharedArray | None = None
_memfd_flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | _MFD_NOEXEC_SEAL
_lowest_descriptor = _SELECTABLE

# Where /proc and the control groups are looked for; another place in tests.
_system = "/"


# ---------------------------------------------------------------------------------------------
# Making, mapping and finding segments


def create(nbytes: int) -> Root:
    """Make a segment and map it.

    Parameters
    ----------
    nbytes : int, bytes, >= 1
        Size of its data.

    Returns
    -------
    ndarray of uint8, shape (nbytes,)
        The root: zeros. The segment lives as long as this array or any view of it.

    Raises
    ------
    SharedMemoryFull
        It does not fit into the machine's or the control group's memory, also after idle workers
        have let go of what they could. Nothing was taken.
    OSError
        No descriptor is left, or the system refuses anonymous files in memory.
    """
    global _made
    if nbytes < 1:
        raise ValueError(f"a segment holds at least one byte, got {nbytes}; use a plain array")
    _prepare()
    reserved = None
    if _reclaimer is not None:
        with contextlib.suppress(SharedMemoryFull):
            reserved = _reserve(nbytes)
        if reserved is None:
            _reclaimer()
    if reserved is None:
        reserved = _reserve(nbytes)
    with _lock:
        _made += 1
        segment = _creator << 40 | _made
    return _map(segment, reserved, nbytes)


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
    """
    held = _Descriptor(fd)
    known = root(segment)
    if known is not None:
        held.close()
        return known
    with held:
        _prepare()
        _examine(segment, fd, nbytes)
        held = _lift(held)
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
    fd, nbytes = _resolver(segment)
    return adopt(segment, fd, nbytes)


def descriptor(segment: int) -> int:
    """The descriptor of a live segment; it stays this module's own."""
    return _record(segment).descriptor.number


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


def on_free(callback: Callable[[int], object]) -> None:
    """Have ``callback(segment)`` called when the last reference to a root has gone.

    Notes
    -----
    It may run in any thread at any bytecode, inside the garbage collector too, so it must take no
    lock and wait for nothing: append to a deque and let someone else act. What it raises is shown
    as an unraisable error, and the callbacks after it are not called. A forked child has none.
    """
    _callbacks.append(callback)


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


def _reserve(nbytes: int) -> _Descriptor:
    """A new sealed segment, all its pages taken."""
    _check_room(nbytes)
    try:
        with _anonymous_file() as held:
            fd = held.number
            total = nbytes + FOOTER.size
            for start in range(0, total, _PIECE):
                os.posix_fallocate(fd, start, min(_PIECE, total - start))
            os.pwrite(fd, _footer(nbytes), nbytes)
            fcntl.fcntl(fd, _F_ADD_SEALS, _SEALS)
            return _lift(held)
    except OSError as error:
        raise _refusal(error, "make", nbytes) from error


def _map(segment: int, held: _Descriptor, nbytes: int) -> Root:
    """Map a sound descriptor and enter it as a live segment."""
    assert _shared_array is not None
    with held:
        try:
            array = _shared_array.attach(f"file:///proc/self/fd/{held.number}")
        except OSError as error:
            raise _refusal(error, "map", nbytes) from error
        with _lock:
            known = root(segment)  # another thread may have been first
            if known is None:
                record = _Record(array, _release)
                record.segment = segment
                record.descriptor = held
                record.nbytes = nbytes
                # Known before the block is entered, should Ctrl-C fall between.
                record.low, _ = registry.span(array)
                registry.add(array, segment)
                _live[segment] = record
                return array
    held.close()
    return known


def _release(record: weakref.ref[Root]) -> None:
    """The last reference to a root has gone; its memory is unmapped after this returns.

    Called by the interpreter, in any thread. The address goes from the registry first, so that an
    array which comes to lie there is not taken for a shared one.
    """
    gone = cast(_Record, record)
    registry.remove(gone.low)
    with _lock:
        # Thread 1 drops the root, thread 2 adopts the same segment anew, thread 1 comes here: the
        # segment is live again, under a record that is not ours.
        last = _live.get(gone.segment) is gone
        if last:
            del _live[gone.segment]
    gone.descriptor.close()
    if last:
        for callback in tuple(_callbacks):
            callback(gone.segment)


def _forget_parent() -> None:
    """In a forked child: no hook reaches the parent's workers, and nobody holds the lock."""
    global _lock, _resolver, _reclaimer, _allowance
    _lock = threading.RLock()
    _callbacks.clear()
    _resolver = _reclaimer = None
    _allowance = 0


os.register_at_fork(after_in_child=_forget_parent)


# ---------------------------------------------------------------------------------------------
# Descriptors and the footer


def _anonymous_file() -> _Descriptor:
    global _memfd_flags
    try:
        return _Descriptor(os.memfd_create("dsmfor segment", _memfd_flags))
    except OSError as error:
        if error.errno != errno.EINVAL or not _memfd_flags & _MFD_NOEXEC_SEAL:
            raise
    _memfd_flags &= ~_MFD_NOEXEC_SEAL  # before Linux 6.3
    return _Descriptor(os.memfd_create("dsmfor segment", _memfd_flags))


def _lift(held: _Descriptor) -> _Descriptor:
    """The same file under a number that ``select`` does not need, closed on exec."""
    if held.number >= _lowest_descriptor:
        os.set_inheritable(held.number, False)
        return held
    lifted = _Descriptor(fcntl.fcntl(held.number, fcntl.F_DUPFD_CLOEXEC, _lowest_descriptor))
    held.close()
    return lifted


def _raise_descriptor_limit() -> None:
    """Allow as many descriptors as the system lets us, and begin ours at 1024 if that fits."""
    global _lowest_descriptor
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    _lowest_descriptor = _SELECTABLE if soft == -1 or soft >= 2 * _SELECTABLE else 0


def _footer(nbytes: int) -> bytes:
    return FOOTER.pack(_MAGIC, nbytes, _UINT8, 1, 1, nbytes, *[0] * 63)


def _examine(segment: int, fd: int, nbytes: int) -> None:
    """Refuse what SharedArray would crash on, or what its maker could still cut short."""
    total = os.fstat(fd).st_size
    if total != nbytes + FOOTER.size or nbytes < 1:
        fault = f"it has {total} bytes instead of {nbytes} and a footer of {FOOTER.size}"
    elif os.pread(fd, FOOTER.size, nbytes) != _footer(nbytes):
        fault = "its footer is not that of a segment of dsmfor"
    elif _seals(fd) & _SEALS != _SEALS:
        fault = "it is not sealed against shrinking and growing"
    else:
        return
    raise DSMError(
        f"descriptor {fd} is not segment {segment} of {nbytes} bytes: {fault}; "
        "hand over the descriptor that segments.descriptor() gives"
    )


def _seals(fd: int) -> int:
    try:
        return fcntl.fcntl(fd, _F_GET_SEALS)
    except OSError:  # not a file in memory
        return 0


def _prepare() -> None:
    """Before the first segment: import SharedArray and see that it lays arrays out as we do."""
    global _shared_array
    if _shared_array is not None:
        return
    import SharedArray

    module = cast(_SharedArray, SharedArray)
    _raise_descriptor_limit()
    _verify_layout(module)
    _shared_array = module


def _verify_layout(module: _SharedArray) -> None:
    """Compare an array made by SharedArray itself with what we would write.

    ``create`` insists on making a new name, so it gets one in a directory that nobody else can
    enter, and both are gone before this returns. Where no directory can be written, the proof is
    left to ``attach``, which refuses a footer whose magic is not where it looks for it.
    """
    length = 3
    for directory in _PUBLIC:
        private = os.path.join(directory, f"dsmfor-probe-{os.urandom(8).hex()}")
        path = os.path.join(private, "probe")
        try:
            room = os.statvfs(directory)
            # On a full file system SharedArray dies of SIGBUS instead of raising.
            if room.f_bavail * room.f_frsize < _LARGE:
                continue
            os.mkdir(private, 0o700)
        except OSError:
            continue
        try:
            module.create(f"file://{path}", (length,), np.uint8)
            with open(path, "rb") as file:
                found = file.read()
        except OSError:
            continue
        finally:
            with contextlib.suppress(OSError):
                os.unlink(path)
            with contextlib.suppress(OSError):
                os.rmdir(private)
        if found[length:] != _footer(length):
            raise DSMError(
                f"the installed SharedArray ends an array with {len(found) - length} bytes that "
                f"are not the {FOOTER.size} dsmfor writes; install SharedArray 3.2 built for "
                "NumPy 2 (pip install --force-reinstall SharedArray)"
            )
        return


# ---------------------------------------------------------------------------------------------
# Room


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
        leaves, in bytes, and where that bound comes from. What cannot be read does not bound.
    """
    free = Room(_NO_LIMIT, "the system")
    for line in _read(system, "/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            free = Room(int(line.split()[1]) << 10, "this machine (MemAvailable)")
            break
    return min(free, *_control_group_rooms(system), key=lambda each: each.free)


def _control_group_rooms(system: str) -> Iterator[Room]:
    """What each control group leaves, from this process's own up to the root."""
    yield Room(_NO_LIMIT, "the system")
    memory_mounts = _control_group_mounts(system)
    for line in _read(system, "/proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        version = 1 if "memory" in controllers.split(",") else 2 if number == "0" else 0
        for mounted, mount_root, mount_point in memory_mounts:
            if mounted != version:
                continue
            # A container sees its own subtree mounted, maybe under the host's longer name for it.
            inside = (
                path.removeprefix(mount_root.rstrip("/")) if path.startswith(mount_root) else ""
            )
            parts = [part for part in inside.split("/") if part not in ("", "..")]
            for depth in range(len(parts), -1, -1):
                yield from _one_group(system, version, "/".join([mount_point, *parts[:depth]]))
            break


def _one_group(system: str, version: int, directory: str) -> Iterator[Room]:
    limit_file, usage_file, prefix = (
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
        if version == 1
        else ("memory.max", "memory.current", "")
    )
    limit = _read(system, f"{directory}/{limit_file}").strip()
    if not limit.isdigit() or int(limit) >= _NO_LIMIT:
        return
    usage = _read(system, f"{directory}/{usage_file}").strip()
    used = int(usage) if usage.isdigit() else 0
    # Cached files count as used and are given up when memory is asked for.
    cached = 0
    for line in _read(system, f"{directory}/memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name == f"{prefix}inactive_file":
            cached += int(value)
        elif name == f"{prefix}active_file":
            cached += int(value) // 2
    yield Room(max(int(limit) - max(used - cached, 0), 0), f"the control group {directory}")


@functools.lru_cache(maxsize=8)
def _control_group_mounts(system: str) -> list[tuple[int, str, str]]:
    """(version, root, mount point) of each hierarchy that bounds memory."""
    found = []
    for line in _read(system, "/proc/self/mountinfo").splitlines():
        place, _, kind = line.partition(" - ")
        fields, kinds = place.split(), kind.split()
        if len(fields) < 5 or not kinds:
            continue
        if kinds[0] == "cgroup2":
            found.append((2, fields[3], fields[4]))
        elif kinds[0] == "cgroup" and "memory" in kinds[-1].split(","):
            found.append((1, fields[3], fields[4]))
    return found


def _read(system: str, path: str) -> str:
    """A small file of the system, or nothing."""
    try:
        with open(system.rstrip("/") + path, "rb", buffering=0) as file:
            return file.read().decode("ascii", "replace")
    except OSError:
        return ""


def _check_room(nbytes: int) -> None:
    """Refuse what would not fit: beyond a control group's limit the kernel kills, not refuses.

    Reading the limits costs as much as making a small segment. So each reading lets small ones
    take a sixteenth of what it found, for a second, before the next.
    """
    global _allowance, _allowed_until
    now = time.monotonic()
    if nbytes < _LARGE:
        with _lock:
            if now < _allowed_until and nbytes <= _allowance:
                _allowance -= nbytes + FOOTER.size
                return
    free, where = room(_system)
    # A little stays free for page tables, and for what others take between this look and ours.
    free -= min(free // 16, 32 << 20)
    if nbytes > free:
        raise SharedMemoryFull(
            f"a shared array of {_amount(nbytes)} does not fit: {where} has {_amount(free)} left; "
            "drop arrays that are no longer needed, use a smaller dtype or raise the limit"
        )
    with _lock:
        _allowance, _allowed_until = free // 16, now + 1.0


def _amount(nbytes: int) -> str:
    """Bytes, for people: '10,000,000 bytes (9.5 MiB)'."""
    value, unit = float(nbytes), "bytes"
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"):
        if value < 1024 or unit == "EiB":
            break
        value /= 1024
    return f"{nbytes:,} bytes" + (f" ({value:.1f} {unit})" if unit != "bytes" else "")


def _refusal(error: OSError, doing: str, nbytes: int) -> Exception:
    """What to raise when the system refuses to make or map a segment."""
    what = f"cannot {doing} a shared array of {_amount(nbytes)}"
    code = error.errno or 0
    if code == errno.EFBIG:
        return SharedMemoryFull(
            f"{what}: files of this process are limited to "
            f"{_amount(resource.getrlimit(resource.RLIMIT_FSIZE)[0])}; raise it with ulimit -f"
        )
    if code in (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM):
        remedy = (
            "drop arrays that are no longer needed"
            if doing == "make"
            else "raise ulimit -v, or sysctl vm.max_map_count if this process has very many arrays"
        )
        return SharedMemoryFull(f"{what}: {os.strerror(code)}; {remedy}")
    if code in (errno.EMFILE, errno.ENFILE, errno.EINVAL):
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return OSError(
            code,
            f"{what}: no descriptor is left ({len(_live)} shared arrays are live, this process may "
            f"open {limit} descriptors); drop arrays that are no longer needed or raise ulimit -n",
        )
    if code in (errno.ENOENT, errno.EACCES):
        return OSError(code, f"{what}: {error.strerror}; /proc must be mounted and readable")
    return OSError(code, f"{what}: {error.strerror}; dsmfor needs Linux's memfd_create and seals")
