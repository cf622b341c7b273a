"""The warden: one clean process per caller that forks workers, reaps them and keeps watch.

It is exec'd, so it has one thread and none of the user's locks; it imports everything once, so a
worker is a fork of a third of a millisecond. It lives in a session of its own: a Ctrl-C of the
terminal and the death of the caller's process group pass it by. It knows nothing of kernels.

Guarantees
----------
- When a worker dies, its death is counted within a millisecond, and its crew's words are poisoned
  if it was in a region; then it is reaped, then the caller is told. Nobody else reaps, so a pid
  that the warden kills is the worker's.
- When the caller dies, however, every worker and the warden are gone: pidfd, end of file, or a
  look at its memory.
- Workers that run a region stop and go on with the caller (halting.py).
- The names of the caller's arrays go with it (`dsmfor.shmfiles`), and with the start of a warden
  those of any dead program.
- A descriptor that was put here is had by whoever asks for it, until its owner drops it or dies.
"""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dsmfor import segments, shmfiles
from dsmfor._native.block import LAYOUT, Block
from dsmfor._native.kinship import adopt_orphans
from dsmfor.engines import worker
from dsmfor.engines.channel import pair, receive, send, unfit
from dsmfor.engines.halting import Halting
from dsmfor.engines.surroundings import redirect
from dsmfor.engines.turns import turnstile
from dsmfor.errors import SharedMemoryFull

__all__ = ["main"]

_EXEC = 0.3  # seconds between the end of the line and that of the caller's locks, when it execs


@dataclass(slots=True)
class _Crew:
    """What new workers of a crew are given."""

    block: Block
    block_fd: int
    mailbox_fd: int
    relay_fd: int

    def close(self) -> None:
        """Let go of the descriptors."""
        for fd in (self.block_fd, self.mailbox_fd, self.relay_fd):
            os.close(fd)


@dataclass(slots=True)
class _Ward:
    """A living worker."""

    crew: int
    rank: int
    incarnation: int
    pid: int
    pidfd: int
    end: socket.socket
    puts: dict[Any, int] = field(default_factory=dict)  # key -> descriptor kept for others


class Warden:
    """The state and the loop of the process."""

    def __init__(self, caller: socket.socket, caller_pidfd: int) -> None:
        self.caller = caller
        self.crews: dict[int, _Crew] = {}
        self.wards: dict[int, _Ward] = {}  # by pid
        self.settings: dict[str, Any] = {}
        self.names: list[tuple[str, shmfiles.Identity]] = []  # the caller's
        self.turns_fd = turnstile()
        self.halting = Halting(os.getppid())
        self.poll = select.poll()
        self.handlers: dict[int, Callable[[], None]] = {}
        self.attend(caller.fileno(), self.on_caller)
        self.attend(caller_pidfd, self.end)

    def attend(self, fd: int, handler: Callable[[], None]) -> None:
        self.handlers[fd] = handler
        self.poll.register(fd, select.POLLIN)

    def ignore(self, fd: int) -> None:
        if self.handlers.pop(fd, None) is not None:
            self.poll.unregister(fd)

    def serve(self) -> None:
        """Until the caller goes."""
        while True:
            living = ((ward.crew, ward.pid) for ward in self.wards.values())
            seconds = self.halting.look(self.crews, living)
            events = self.poll.poll(None if seconds is None else seconds * 1000)
            if not events and self.halting.gone():
                self.end()
            for fd, _ in events:
                handler = self.handlers.get(fd)  # an earlier one of this round may have ended it
                if handler is not None:
                    handler()

    def end(self) -> None:
        """The caller has gone: take everything along."""
        for ward in self.wards.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(ward.pid, signal.SIGKILL)
        self.take_names_away()
        for ward in self.wards.values():
            with contextlib.suppress(ChildProcessError):
                os.waitpid(ward.pid, 0)
        self.wards.clear()
        while self.reap_orphans():  # one that ends hands its own children over
            pass
        os._exit(0)

    def take_names_away(self) -> None:
        """Unless the caller has only closed its end of the line: then it lives, and keeps them."""
        until = time.monotonic() + _EXEC
        for name, file in self.names:
            while not shmfiles.remove(name, file, dead=True):
                if not shmfiles.is_there(name, file) or time.monotonic() > until:
                    break
                time.sleep(0.005)

    # -- the caller ----------------------------------------------------------------------------

    def on_caller(self) -> None:
        try:
            letter = receive(self.caller)
        except SharedMemoryFull:  # a new crew's; who asks for its workers hears of it
            return
        if letter is None:
            self.end()
            return
        (verb, *rest), descriptors = letter
        if verb == "crew":
            number, *_ = rest
            self.crews[number] = _Crew(Block(descriptors[0]), *descriptors)
        elif verb == "disband":
            self.disband(rest[0])
        elif verb == "spawn":
            self.spawn(*rest)
        elif verb == "kill":
            for pid in rest[0]:
                if pid in self.wards:
                    os.kill(pid, signal.SIGKILL)
        elif verb == "settings":
            self.settings |= rest[0]
            if "streams" in rest[0]:
                redirect(rest[0]["streams"][2], descriptors)
        elif verb == "names":
            (self.names,) = rest
        elif verb == "get":
            self.tell("got", rest[0], fd=self.find(rest[0]))

    def disband(self, number: int) -> None:
        """End a crew, also workers of whom the caller has not heard."""
        crew = self.crews.pop(number, None)
        if crew is None:
            return
        crew.close()
        killed = [ward for ward in self.wards.values() if ward.crew == number]
        for ward in killed:
            os.kill(ward.pid, signal.SIGKILL)
        # The next crew comes right behind: where descriptors are few, it needs those of this one.
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if killed and 2 * len(os.listdir("/proc/self/fd")) > limit > 0:
            for ward in killed:
                self.bury(ward)

    def tell(self, *message: object, fd: int | None = None) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # seen by the poll
            send(self.caller, message, [] if fd is None else [fd])

    # -- workers -------------------------------------------------------------------------------

    def spawn(self, number: int, rank: int, incarnation: int, epoch: int) -> None:
        """Fork a worker for a rank of a crew, and send the caller its socket and pidfd."""
        crew = self.crews.get(number)
        if crew is None:
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            why = f"the warden may open {limit} descriptors, and has none left"
            self.tell("failed", incarnation, rank, why)
            return
        parent = os.getpid()
        ends: list[socket.socket] = []
        try:
            ends += pair()
            ends += pair()
            spare = os.open(os.devnull, os.O_RDONLY)  # room for the pidfd
            pid = os.fork()
        except OSError as error:
            for end in ends:
                end.close()
            self.tell("failed", incarnation, rank, f"{type(error).__name__}: {error}")
            return
        os.close(spare)
        to_caller, callers_end, to_warden, wardens_end = ends
        if pid == 0:
            status = 1
            try:
                callers_end.close()
                wardens_end.close()
                self.close_inherited(number)
                worker.main(
                    worker.Post(
                        crew=number,
                        rank=rank,
                        incarnation=incarnation,
                        epoch=epoch,
                        warden=parent,
                        block_fd=crew.block_fd,
                        mailbox_fd=crew.mailbox_fd,
                        relay_fd=crew.relay_fd,
                        turns_fd=self.turns_fd,
                        settings=self.settings,
                    ),
                    to_caller,
                    to_warden,
                )
                status = 0
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                os._exit(status)
        to_caller.close()
        to_warden.close()
        pidfd = os.pidfd_open(pid)
        ward = _Ward(number, rank, incarnation, pid, pidfd, wardens_end)
        self.wards[pid] = ward
        self.attend(pidfd, lambda: self.bury(ward))
        self.attend(wardens_end.fileno(), lambda: self.on_worker(ward))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            send(
                self.caller,
                ("spawned", number, rank, incarnation, pid),
                [callers_end.fileno(), pidfd],
            )
        callers_end.close()

    def close_inherited(self, number: int) -> None:
        """In a new worker of a crew: what is the warden's alone, or another crew's."""
        self.caller.close()
        self.halting.close()
        for other, crew in self.crews.items():
            if other != number:
                crew.close()
        for ward in self.wards.values():
            ward.end.close()
            os.close(ward.pidfd)
            for fd in ward.puts.values():
                os.close(fd)

    def bury(self, ward: _Ward) -> None:
        """A worker has ended: release its crew, reap it, tell the caller."""
        crew = self.crews.get(ward.crew)
        if crew is not None:
            crew.block.mourn(ward.rank)
        _, status = os.waitpid(ward.pid, 0)
        self.ignore(ward.pidfd)
        self.ignore(ward.end.fileno())
        ward.end.close()
        os.close(ward.pidfd)
        for fd in ward.puts.values():
            os.close(fd)
        del self.wards[ward.pid]
        self.tell("died", ward.incarnation, os.waitstatus_to_exitcode(status))
        self.reap_orphans()

    def reap_orphans(self) -> int:
        """End what dead workers left behind, which came to us, their subreaper; how many."""
        try:
            with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
                children = [int(pid) for pid in file.read().split()]
        except OSError:
            return 0
        orphans = [pid for pid in children if pid not in self.wards]
        for pid in orphans:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
        return len(orphans)

    def on_worker(self, ward: _Ward) -> None:
        """A worker puts a descriptor here for others, gets one, or drops its own."""
        try:
            letter = receive(ward.end)
        except SharedMemoryFull:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                send(ward.end, ("full", None))
            return
        if letter is None:  # it is dying: the pidfd says when
            self.ignore(ward.end.fileno())
            return
        (verb, key), descriptors = letter
        if verb == "put":
            old = ward.puts.pop(key, None)
            if old is not None:
                os.close(old)
            ward.puts[key] = descriptors[0]
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                send(ward.end, ("kept", key))
        elif verb == "drop":
            fd = ward.puts.pop(key, None)
            if fd is not None:
                os.close(fd)
        elif verb == "get":
            fd = self.find(key)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                send(ward.end, ("got", key), [] if fd is None else [fd])

    def find(self, key: Any) -> int | None:
        for ward in self.wards.values():
            if key in ward.puts:
                return ward.puts[key]
        return None


def main(caller_fd: int, caller_pidfd: int, path: list[str]) -> None:
    """Serve until the caller goes; called in the exec'd interpreter.

    Parameters
    ----------
    caller_fd : int
        The warden's end of the socket to the caller.
    caller_pidfd : int
        The caller.
    path : list of str
        The caller's ``sys.path``.
    """
    signal.signal(signal.SIGINT, _stay)  # not SIG_IGN, which an exec inherits
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    adopt_orphans()
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd > 2 and fd not in (caller_fd, caller_pidfd):
            with contextlib.suppress(OSError):  # the listing's own
                os.close(fd)
    sys.path[:] = path
    caller = socket.socket(fileno=caller_fd)
    caller.set_inheritable(False)
    os.set_inheritable(caller_pidfd, False)
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        raise SystemExit(f"the warden has {threads} threads and must not fork")
    with contextlib.suppress(Exception):  # what is wrong is said to whoever needs an array
        segments.create(1)  # imports and verifies SharedArray, once for all workers
    gc.freeze()  # all of it lives for ever, in every worker
    gc.enable()  # it was off for the imports, which are a fifth faster so
    try:
        try:
            warden = Warden(caller, caller_pidfd)
        except (SharedMemoryFull, OSError) as error:
            send(caller, unfit(error))
            while receive(caller) is not None:  # until it has read that, and gone
                pass
            return
        send(caller, ("ready", LAYOUT))
    except ConnectionError:
        return  # the caller has gone meanwhile
    shmfiles.sweep()
    warden.serve()


def _stay(signum: int, frame: object) -> None:
    """Ctrl-C is the caller's."""
