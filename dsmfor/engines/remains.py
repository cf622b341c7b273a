"""What a warden that was killed has left behind: the processes of its session.

Its workers end with it, for the kernel does that (`die_with_parent`), but for one that was stopped
in the first instants of its life, before it had asked for that; and what kernels have started is
then nobody's. All are of the session that the warden leads, unless they have left it.
"""

from __future__ import annotations

import contextlib
import os
import signal

__all__ = ["clear_away"]


def clear_away(session: int) -> None:
    """Kill every process of a session whose leader has ended."""
    killed: set[int] = set()
    while found := {pid for pid in _processes() if _session(pid) == session} - killed:
        killed |= found
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                pidfd = os.pidfd_open(pid)
                try:
                    if _session(pid) == session:  # it is the process that we have looked at
                        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                finally:
                    os.close(pidfd)


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def _session(pid: int) -> int:
    """The session of a process; 0 if it has ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            state, _, _, session, *_ = file.read().rpartition(b")")[2].split()
    except OSError:
        return 0
    return 0 if state in (b"Z", b"X") else int(session)
