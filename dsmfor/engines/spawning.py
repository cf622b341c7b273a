"""The process of the warden: a fresh interpreter of this program's kind.

It is exec'd with what it needs on its command line and nothing else: no guard in the user's
``__main__`` is needed, none of the user's threads or locks come along. It is handed the caller's
pidfd, so it learns of the caller's end from the kernel.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np

from dsmfor.engines.blas import VARIABLES
from dsmfor.errors import DSMError

__all__ = ["exec_warden"]

_SOURCE = """\
import gc, sys
gc.disable()
for place in {path!r}:
    if place not in sys.path: sys.path.append(place)
from dsmfor.engines.warden import main
main({fd}, {pidfd}, {path!r})
"""


def exec_warden(end: socket.socket) -> int:
    """Start the warden process with its end of the line; its pid."""
    if not sys.executable:
        raise DSMError(
            "sys.executable is empty: this Python is embedded in another program, which must set "
            "it to the path of a Python interpreter before dsmfor can start workers"
        )
    # Above the standard streams, which are made anew in the child where they are closed here.
    fds: list[int] = []
    try:
        fds.append(_above_streams(os.pidfd_open(os.getpid())))
        fds.append(_above_streams(os.dup(end.fileno())))
        pidfd, theirs = fds
        path = [os.path.abspath(place) if place else place for place in sys.path]
        here = str(Path(__file__).resolve().parent.parent.parent)
        if here not in path:  # dsmfor was found by an import hook, as editable installs are
            path.append(here)
        packages = str(Path(np.__file__).resolve().parent.parent)
        if packages not in path:
            path.append(packages)
        source = _SOURCE.format(path=path, fd=theirs, pidfd=pidfd)
        environ = dict(os.environ) | dict.fromkeys(VARIABLES, "1")
        actions: list[tuple[Any, ...]] = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)]
        # Copied onto themselves they survive the exec; here they never do, whoever else execs.
        actions += [(os.POSIX_SPAWN_DUP2, fd, fd) for fd in (theirs, pidfd)]
        actions += [
            (os.POSIX_SPAWN_OPEN, stream, os.devnull, os.O_WRONLY, 0)
            for stream in (1, 2)
            if _closed(stream)
        ]
        try:
            return os.posix_spawn(
                sys.executable,
                [sys.executable, *_interpreter_flags(), "-P", "-c", source],
                environ,
                file_actions=actions,
                setsid=True,
                setsigmask=[],
                # what the caller ignores would stay ignored: its SIGCHLD, our reaping
                setsigdef=[signal.SIGCHLD, signal.SIGPIPE, signal.SIGTERM, signal.SIGHUP],
            )
        except (FileNotFoundError, PermissionError) as error:
            raise DSMError(
                f"sys.executable is {sys.executable!r}, which cannot be run ({error.strerror}): "
                "set it to the path of this Python interpreter, which workers are to run"
            ) from None
    finally:
        for fd in fds:
            os.close(fd)


def _above_streams(fd: int) -> int:
    """The same file under a number above those of the standard streams; closes `fd`."""
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(fd)


def _closed(stream: int) -> bool:
    try:
        os.fstat(stream)
    except OSError:
        return True
    return False


def _interpreter_flags() -> list[str]:
    """The options of this interpreter that change how code runs."""
    flags = []
    for name, flag in (
        ("optimize", "-O"),
        ("dont_write_bytecode", "-B"),
        ("no_user_site", "-s"),
        ("no_site", "-S"),
        ("isolated", "-I"),
        ("ignore_environment", "-E"),
    ):
        flags += [flag] * int(getattr(sys.flags, name))
    flags += [f"-W{option}" for option in sys.warnoptions]
    for name, value in sys._xoptions.items():
        flags.append(f"-X{name}" if value is True else f"-X{name}={value}")
    return flags
