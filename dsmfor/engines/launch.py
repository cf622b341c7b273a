"""Starting a warden, and the caller's line to it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
import weakref
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NoReturn, Self

from dsmfor._native.block import LAYOUT
from dsmfor._native.interrupts import Undisturbed, ready, undisturbed
from dsmfor.engines.channel import lift, pair, receive, send
from dsmfor.engines.obituaries import signal_name
from dsmfor.engines.recruits import STUCK, Recruit
from dsmfor.engines.remains import clear_away
from dsmfor.engines.spawning import exec_warden
from dsmfor.engines.surroundings import Lookout
from dsmfor.errors import DSMError, SharedMemoryFull, WorkerDied
from dsmfor.outcome import Bereft

__all__ = ["SPAWNS", "WardenGone", "WardenLine", "close_lines"]

_STOP = 5.0  # seconds that a warden may take to end by itself
_START = 60.0  # seconds that a warden or worker may take to come up on a loaded machine
_NEWS = 20.0  # seconds that a warden may take to tell of a death; one that takes longer is ended
_SLICE = 0.1  # seconds after which a warden that does not answer is told to go on
SPAWNS = 64  # at a time: neither side's socket is full while the other one sends
_ATTEMPTS = 3  # to start a warden that something kills


class WardenGone(Exception):
    """The warden process has ended; its workers end with it."""

    instead_of: BaseException | None = None  # Ctrl-C, say, which the caller is to have all the same


class _StillBorn(Exception):
    """The warden has ended before it could serve, by a signal or for a cause that nobody knows."""

    def __init__(self, error: DSMError) -> None:
        super().__init__()
        self.error = error  # if no other one lives either


_lines: weakref.WeakSet[WardenLine] = weakref.WeakSet()


class WardenLine:
    """A warden, and the messages to and from it. Not thread-safe; process.py guards it."""

    def __init__(self) -> None:
        self.living: set[int] = set()  # incarnations of the recruits that somebody holds
        self.obituaries: dict[int, int] = {}  # incarnation of a dead one of them -> exit code
        self._incarnation = 0
        self.lookout = Lookout()
        self.version = 0  # of the surroundings that the warden, and so a new worker, follows
        self.pidfd = -1
        self.end, theirs = pair()
        _lines.add(self)
        try:
            self.pid = exec_warden(theirs)
        except BaseException:
            self.end.close()
            raise
        finally:
            theirs.close()
        try:
            try:
                self.pidfd = os.pidfd_open(self.pid)
            except ProcessLookupError:  # it has ended, and the program ignores its children
                raise WardenGone from None
            except OSError:  # another thread has taken the descriptor that was left
                with contextlib.suppress(ProcessLookupError, ChildProcessError):
                    os.kill(self.pid, signal.SIGKILL)
                    os.waitpid(self.pid, 0)
                raise
            # In a program with threads the first high number takes Linux 10 ms, which the warden
            # needs to come up.
            self.pidfd = lift(self.pidfd)
            self.end = socket.socket(fileno=lift(self.end.detach()))
            self.end.settimeout(STUCK)
            self.follow()
            (_, layout), _ = self._await("ready")
            if layout != LAYOUT:
                raise DSMError(
                    "dsmfor was installed anew while this program ran, and its new workers do not "
                    "fit; restart the program"
                )
        except WardenGone:
            killer = self.stop()
            if killer:
                raise _StillBorn(
                    WorkerDied(
                        f"the warden of the workers (pid {self.pid}) was killed by "
                        f"{signal_name(killer)} while it started; something ends it: see the "
                        "kernel's log for the out-of-memory killer. The next call starts a new one"
                    )
                ) from None
            error = DSMError(
                f"the warden of the workers (pid {self.pid}) ended while it started: it was "
                f"killed, or its message is on stderr. It runs {sys.executable!r} with this "
                "program's sys.path"
            )
            raise (_StillBorn(error) if killer is None else error) from None
        except BaseException:
            self.stop(patience=0.0)  # it has no workers yet
            raise

    def gone(self) -> bool:
        """Whether the warden has ended."""
        return self.pidfd < 0 or bool(ready([self.pidfd], 0.0))

    @classmethod
    def start(cls) -> Self:
        """A warden that serves; if something kills it at once, another one."""
        for _ in range(_ATTEMPTS):
            try:
                return cls()
            except _StillBorn as dead:
                error = dead.error
        try:
            raise error
        finally:  # its traceback holds this frame
            del error

    def heed(self, fds: list[int], seconds: float, of: int = -1) -> set[int]:
        """As `ready`, but a warden that somebody has stopped goes on, and the worker `of` too."""
        until = time.monotonic() + seconds
        while True:
            patience = max(0.0, until - time.monotonic())
            found = ready(fds, min(patience, _SLICE))
            if found or patience <= _SLICE:
                return found
            for pidfd in (self.pidfd, of):  # not ours any more if the program has changed its user
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    if pidfd >= 0:
                        signal.pidfd_send_signal(pidfd, signal.SIGCONT)

    def give_up(self) -> NoReturn:
        """The warden does not answer: end it, so that the next call starts a new one."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        raise WardenGone

    def tell(self, *message: object, fds: Sequence[int] = ()) -> None:
        """Send the warden a message."""
        try:
            send(self.end, message, fds)
        except OSError:
            raise WardenGone from None

    def _next(self, seconds: float) -> tuple[Any, list[int]] | None:
        """The next message, or None after `seconds`. Obituaries are filed, not returned."""
        while True:
            found = self.heed([self.end.fileno(), self.pidfd], seconds)
            if not found:
                return None
            letter = receive(self.end) if self.end.fileno() in found else None
            if letter is None:
                raise WardenGone
            message, descriptors = letter
            if message[0] != "died":
                return message, descriptors
            incarnation, code = message[1:]
            if incarnation in self.living:
                self.living.discard(incarnation)
                self.obituaries[incarnation] = code
            return letter

    def _await(self, verb: str, of: Collection[int] = ()) -> tuple[Any, list[int]]:
        """The next answer of that kind; the failure to fork one `of` these incarnations raises."""
        while True:
            letter = self._next(_START)
            if letter is None:
                self.give_up()
            if letter[0][0] == verb:
                return letter
            if letter[0][0] == "unfit":
                raise _misfit("the warden of the workers", *letter[0][1:])
            if letter[0][0] == "failed" and letter[0][1] in of:
                _, _, rank, error = letter[0]
                raise DSMError(
                    f"worker {rank} could not be started: {error}; lower workers= or raise the "
                    "limits on processes (ulimit -u) and open files (ulimit -n)"
                )

    def read_obituaries(self, of: Iterable[int] = ()) -> None:
        """File what has come, and wait for the obituaries of these incarnations."""
        wanted = set(of)
        while True:
            settled = wanted <= self.obituaries.keys()
            letter = self._next(0.0 if settled else _NEWS)
            if letter is not None:
                for fd in letter[1]:  # an answer to a question that was interrupted
                    os.close(fd)
            elif settled:
                return
            else:
                self.give_up()

    def spawn(self, crew: int, ranks: Sequence[int], epoch: int) -> dict[int, tuple[Recruit, int]]:
        """Fork workers for ranks of a crew: by rank, the recruit and its page's descriptor.

        A worker that ended before it was ready is left out. At most `SPAWNS` ranks at a time.
        """
        self.follow()
        incarnations = {}
        for rank in ranks:
            self._incarnation += 1
            incarnations[rank] = self._incarnation
            self.tell("spawn", crew, rank, self._incarnation, epoch)
        recruits: dict[int, Recruit] = {}
        pages: dict[int, tuple[Recruit, int]] = {}
        try:
            while len(recruits) < len(ranks):
                (_, _, rank, incarnation, pid), (end, pidfd) = self._await(
                    "spawned", incarnations.values()
                )
                if incarnations.get(rank) != incarnation:  # of a call that was interrupted
                    os.close(end)
                    os.close(pidfd)
                    self.tell("kill", [pid])
                    continue
                recruits[rank] = Recruit(pid, incarnation, pidfd, end)
                self.living.add(incarnation)
            for rank, recruit in recruits.items():
                page = self._hello(recruit)
                if page is None:
                    self.tell("kill", [recruit.pid])
                    self.read_obituaries([recruit.incarnation])  # its poison comes before that
                    self.dismiss(recruit)
                else:
                    pages[rank] = recruit, page
        except BaseException:
            with contextlib.suppress(WardenGone):
                self.tell("kill", [recruit.pid for recruit in recruits.values()])
            for recruit in recruits.values():
                self.dismiss(recruit)
            for _, page in pages.values():
                os.close(page)
            raise
        return pages

    def _hello(self, recruit: Recruit) -> int | None:
        """Wait for a new worker's first words; the descriptor of its page."""
        found = self.heed([recruit.end.fileno(), recruit.pidfd], _START, recruit.pidfd)
        letter = receive(recruit.end) if recruit.end.fileno() in found else None
        if letter is None:
            return None
        (verb, *rest), descriptors = letter
        if verb == "unfit":
            raise _misfit("a worker", *rest)
        return descriptors[0]

    def dismiss(self, recruit: Recruit) -> None:
        """Nobody holds a recruit any more; its obituary, if it comes, is nobody's."""
        recruit.close()
        self.living.discard(recruit.incarnation)
        self.obituaries.pop(recruit.incarnation, None)

    def get(self, key: tuple[Any, ...]) -> int:
        """A descriptor that a worker left with the warden."""
        self.tell("get", key)
        while True:
            (_, found), descriptors = self._await("got")
            if found == key:
                break
            for fd in descriptors:  # of a call that was interrupted
                os.close(fd)
        if not descriptors:
            raise Bereft(f"no worker has left {key} with the warden; its owner has gone")
        return descriptors[0]

    def follow(self) -> None:
        """See whether what workers follow of this process has changed since the last look.

        A new `version` is for every worker, those to come included.
        """
        lookout = self.lookout
        if changes := lookout.changes():
            with undisturbed:
                lookout.take_in(changes)
        if self.version != lookout.version:
            with undisturbed:
                news, fds = lookout.since(self.version)
                self.tell("settings", news, fds=fds)
                self.version = lookout.version

    def close(self) -> None:
        """Let go of our ends alone: in a forked child, whose parent has the warden."""
        self.end.close()
        self.lookout.close()
        fd, self.pidfd = self.pidfd, -1
        if fd >= 0:
            os.close(fd)

    @Undisturbed
    def __del__(self) -> None:
        """Nobody holds the line any more."""
        if getattr(self, "pidfd", -1) >= 0:
            self.close()

    def stop(self, *, names: bool = False, patience: float = _STOP) -> int | None:
        """End the warden, and by that its workers, and wait until they are gone.

        Parameters
        ----------
        names : bool
            This process has names, which it keeps: they are no business of the warden's any more.
        patience : float, seconds
            Until it is killed; a Ctrl-C ends it.

        Returns
        -------
        int or None
            The signal that somebody else has killed it by, or 0; None if that is not known, because
            the user's program has reaped it.
        """
        if names:
            with contextlib.suppress(WardenGone):
                self.tell("names", [])
        self.end.close()
        if self.pidfd < 0:
            return None
        with undisturbed:
            try:
                ended = bool(self.heed([self.pidfd], patience))
            except BaseException:
                self._reap(kill=True)
                raise
            killer = self._reap(kill=not ended)
        return killer if ended else 0

    def _reap(self, *, kill: bool) -> int | None:
        if kill:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        found = None
        with contextlib.suppress(ChildProcessError):  # the user may have reaped all children
            found = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOWAIT)
        orderly = found is not None and (found.si_code, found.si_status) == (os.CLD_EXITED, 0)
        # While it is a zombie, nobody else can have its pid and lead a session of that number.
        try:
            if not orderly and (found is not None or not os.path.exists(f"/proc/{self.pid}")):
                clear_away(self.pid)
        finally:
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)
            self.close()
        if found is None:
            return None
        return found.si_status if found.si_code != os.CLD_EXITED else 0


def _misfit(who: str, full: bool, why: str) -> DSMError:
    return (SharedMemoryFull if full else DSMError)(f"{who} could not be started: {why}")


def close_lines() -> None:
    """In a forked child: let go of our ends of all lines, also of one whose warden comes up."""
    for line in list(_lines):
        line.close()
