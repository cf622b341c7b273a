"""The machine as the doctor asks it: files, limits, and system calls that are really made.

Every question is a field, so that another machine can be put in its place: a tree of files, limits
that are told, system calls that are refused.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import os
import platform
import resource
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import threadpoolctl

from dsmfor import footer, limits

__all__ = ["PROBES", "Machine"]

_SEALS = {"seals": 0x1 | 0x2 | 0x4, "future-write seal": 0x1 | 0x2 | 0x4 | 0x10}
_F_ADD_SEALS = 1033


@contextlib.contextmanager
def _anonymous() -> Iterator[int]:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        fd = os.memfd_create("dsmfor doctor", flags | 0x8)  # MFD_NOEXEC_SEAL, as segments have it
    except OSError:
        fd = os.memfd_create("dsmfor doctor", flags)
    try:
        yield fd
    finally:
        os.close(fd)


def _memfd() -> None:
    with _anonymous():
        pass


def _fallocate() -> None:
    with _anonymous() as fd:
        os.posix_fallocate(fd, 0, 1 << 20)


def _seals() -> None:
    with _anonymous() as fd:
        fcntl.fcntl(fd, _F_ADD_SEALS, _SEALS["seals"])


def _future_write() -> None:
    with _anonymous() as fd:
        os.posix_fallocate(fd, 0, 4096)
        fcntl.fcntl(fd, _F_ADD_SEALS, _SEALS["future-write seal"])


def _pidfd() -> None:
    os.close(os.pidfd_open(os.getpid()))


def _eventfd() -> None:
    os.close(os.eventfd(0, os.EFD_CLOEXEC))


def _proc() -> None:
    with _anonymous() as fd:
        os.stat(f"/proc/self/fd/{fd}")


PROBES: dict[str, Callable[[], None]] = {
    "memfd_create": _memfd,
    "fallocate": _fallocate,
    "seals": _seals,
    "future-write seal": _future_write,
    "pidfd_open": _pidfd,
    "eventfd": _eventfd,
    "/proc/self/fd": _proc,
}
"""What dsmfor asks of the kernel, by name; each raises an OSError where it is refused."""


def _try(name: str) -> OSError | None:
    try:
        PROBES[name]()
    except OSError as error:
        return error
    return None


def _writable(path: str) -> OSError | None:
    """Why no file can be made in a directory; None if one can."""
    name = f"{path}/dsmfor-doctor-{os.urandom(8).hex()}"
    try:
        os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        os.unlink(name)
    except OSError as error:
        return error
    return None


def _room(path: str) -> tuple[int, int]:
    """Bytes that a file system has, and has free."""
    found = os.statvfs(path)
    return found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _limit(name: str) -> tuple[int, int]:
    return resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))


def _layout() -> Exception | None:
    """Why SharedArray cannot be used; None if it can."""
    try:
        footer.load()
    except Exception as error:  # noqa: BLE001  # whatever its import raises is what is wrong
        return error
    return None


@dataclass(frozen=True, slots=True)
class Machine:
    """Questions, and how they are answered here.

    Attributes
    ----------
    root : str
        Directory in which ``proc``, ``sys`` and ``dev`` are looked for.
    release, python : str
        Versions of the kernel and of Python.
    executable : str
        Path of the interpreter.
    uid : int
        Of this process's user.
    cores, usable : int
        Of the machine; those that this process may run on.
    limit : callable
        Soft and hard limit by name (without RLIMIT_).
    refused : callable
        By name of a probe: the error with which the kernel refuses it, or None.
    unwritable : callable
        Why no file can be made in a directory, or None.
    room : callable
        Bytes of the file system at a path: in all, free.
    version : callable
        Of an installed package, or None.
    layout : callable
        Why SharedArray cannot be used, or None.
    pools : callable
        What threadpoolctl knows of BLAS and OpenMP libraries in this process.
    """

    root: str = "/"
    release: str = platform.release()
    python: str = platform.python_version()
    executable: str = sys.executable
    uid: int = os.getuid()
    cores: int = os.cpu_count() or 1
    usable: int = len(os.sched_getaffinity(0))
    limit: Callable[[str], tuple[int, int]] = _limit
    refused: Callable[[str], OSError | None] = _try
    unwritable: Callable[[str], OSError | None] = _writable
    room: Callable[[str], tuple[int, int]] = _room
    version: Callable[[str], str | None] = _version
    layout: Callable[[], Exception | None] = _layout
    pools: Callable[[], list[dict[str, Any]]] = threadpoolctl.threadpool_info

    def read(self, path: str) -> str:
        """A small file of the system, or nothing."""
        return limits.read(self.root, path).strip()

    def there(self, path: str) -> str | None:
        """A directory of this machine by its usual path, if it is there."""
        found = self.root.rstrip("/") + path
        return found if os.path.isdir(found) else None
