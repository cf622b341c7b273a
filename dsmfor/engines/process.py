"""The process engine: crews of persistent workers, and one region on a crew from start to end.

The caller's side of PROTOCOL.md. `launch.py` starts the warden and holds the line to it; what is
sent is payload.py's; who calls, and what becomes of the results, is region.py's.

Guarantees
----------
- `run` returns only when every rank has acknowledged its region or has been reaped.
- Two threads that call at once have two crews; `_guard` guards the list of crews and all letters
  to the warden, a crew itself belongs to the thread that has taken it.
- A failure costs the crew at most its broken workers: they are replaced at its next region.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import pickle
import signal
import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from dsmfor import segments
from dsmfor._native.block import BROKEN, DEAD, DONE, LATE, REASONS, Block, Page
from dsmfor.engines.channel import MOST_DESCRIPTORS, contents, envelope, send
from dsmfor.engines.launch import Recruit, WardenGone, WardenLine
from dsmfor.engines.pages import MAILBOX, PAGE, fits_mailbox, post
from dsmfor.engines.worker import ELSEWHERE, STOP_SIGNAL
from dsmfor.errors import DSMError, WorkerDied
from dsmfor.payload import Outcome, open_outcome

__all__ = ["Ended", "Message", "housekeep", "run", "shutdown", "team_pids"]

_GRACE = 1.0  # seconds that a stopped rank has to acknowledge before it is killed
_MOST_RANKS = 1024
_INTERRUPTED, _TIMEOUT = REASONS.index("interrupted"), REASONS.index("timeout")


class Message(NamedTuple):
    """What a region sends to its workers."""

    serial: int  # of the skeleton
    skeleton: bytes
    settings: tuple[Any, ...]  # of team.Settings
    blas_threads: int | None
    environment: bytes
    segments: set[int]  # that the environment names
    retired: list[int]  # serials that workers may forget


class Ended(NamedTuple):
    """How a region ended, before anybody is told."""

    outcomes: list[Outcome | None]  # by rank, None for one that returned None or died; [] if all did
    reason: str  # "none", or why the region failed: one of `REASONS`
    died: list[WorkerDied]
    slow: list[str]  # the ranks that ran when the time was over, in words


_NOTHING = Ended([], "none", [], [])


@dataclass(slots=True)
class _Worker:
    """What the caller holds of a living worker."""

    recruit: Recruit
    page: Page
    skeletons: set[int] = field(default_factory=set)
    segments: set[int] = field(default_factory=set)
    settings: int = 0  # version of the settings that it follows


class _Crew:
    """A control block, a mailbox and the workers of ranks 0, 1, ...; used by one thread."""

    def __init__(self, line: WardenLine, number: int) -> None:
        self.line = line
        self.number = number
        self.epoch = 1
        self.at_rest = True  # no rank is in a region
        self.workers: list[_Worker | None] = []
        self.version = 0  # of the settings that all workers follow
        self.segments: set[int] = set()  # known to all workers
        self.skeletons: set[int] = set()
        fd = Block.descriptor()
        try:
            self.block = Block(fd)
            self.block.repair()
            self.mailbox = Page(MAILBOX)
            line.tell("crew", number, fds=[fd, self.mailbox.fd])
            self.mailbox.release()
        finally:
            os.close(fd)

    # -- the team ------------------------------------------------------------------------------

    def muster(self, size: int) -> None:
        """Have `size` living workers and a clean block, replacing whoever has died."""
        self.line.read_obituaries(block=False)
        self.bury()
        if self.block.reason()[0]:
            self.block.repair()
            self.line.read_obituaries(block=False)
            self.bury()
        wanted = [r for r in range(size) if r >= len(self.workers) or self.workers[r] is None]
        if not wanted:
            return
        for rank in wanted:
            self.block.enlist(rank, self.epoch)
        recruits = self.line.spawn(self.number, wanted, self.epoch)
        for rank, (recruit, page_fd) in recruits.items():
            worker = _Worker(recruit, Page(PAGE, page_fd))
            os.close(page_fd)
            worker.settings = self.line.version
            while len(self.workers) <= rank:
                self.workers.append(None)
            self.workers[rank] = worker
        self.segments.clear()
        self.skeletons.clear()
        self.watch()

    def watch(self) -> None:
        self.block.watch([self.line.pidfd, *(w.recruit.pidfd for w in self.workers if w)])

    def bury(self) -> list[WorkerDied]:
        """Give up the workers whose death the warden has told; an error for each."""
        died = []
        for rank, worker in enumerate(self.workers):
            if worker is None or worker.recruit.pid not in self.line.obituaries:
                continue
            code = self.line.obituaries.pop(worker.recruit.pid)
            died.append(self.obituary(rank, worker.recruit.pid, code))
            worker.recruit.close()
            self.workers[rank] = None
            self.block.enlist(rank, self.epoch)
        if died:
            self.watch()
        return died

    def obituary(self, rank: int, pid: int, code: int | None) -> WorkerDied:
        place = self.block.place(rank)
        if code is None:
            how = "ended for an unknown reason"
        elif code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
            if -code == signal.SIGKILL:
                how += " (memory may have run out: see the kernel's log)"
        else:
            how = f"exited with code {code}"
        where = place["phase"]
        if place["at"] == "prange":
            where += f", last chunk [{place['low']}, {place['high']}) of line {place['line']}"
        return WorkerDied(
            f"worker {rank} (pid {pid}) {how} while {where}; plain arrays of this call are as they "
            "were before it, shared ones as the workers left them. The next call has a full team",
            rank=rank,
            pid=pid,
            exitcode=code,
        )

    def disband(self) -> None:
        """End every worker; the warden reaps them."""
        pids = [worker.recruit.pid for worker in self.workers if worker]
        self.close()
        with contextlib.suppress(WardenGone):
            self.line.tell("kill", pids)
            self.line.tell("disband", self.number)

    def close(self) -> None:
        """Let go of the workers' descriptors."""
        self.block.watch([])
        for worker in self.workers:
            if worker:
                worker.recruit.close()
        self.workers.clear()

    # -- letters -------------------------------------------------------------------------------

    def letter(self, rank: int, verb: str, body: object, fds: Iterable[int] = ()) -> None:
        """Send a letter to a rank; it reads it when the bell rings."""
        worker = self.workers[rank]
        assert worker is not None
        if self.block.unread(rank) >= 32:
            self.await_read(rank)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # found by its pidfd
            send(worker.recruit.end, (verb, body), list(fds))
            self.block.mailed(rank, 1)

    def await_read(self, rank: int) -> None:
        """Have an idle worker read what was sent; one that does not is no worker any more."""
        self.block.ring()
        if self.block.await_read(rank, 10.0) == LATE:
            worker = self.workers[rank]
            assert worker is not None
            with _guard:
                self.line.tell("kill", [worker.recruit.pid])
                self.line.read_obituaries(block=True, pids=[worker.recruit.pid])

    def supply(self, size: int, message: Message) -> bool:
        """Send the ranks what they lack for a message; whether they lack its skeleton."""
        self.line.follow()
        if (
            message.serial in self.skeletons
            and message.segments <= self.segments
            and self.version == self.line.version
            and not message.retired
        ):
            return False
        missing = False
        for rank in range(len(self.workers)):
            worker = self.workers[rank]
            if worker is None:
                continue
            if worker.settings != self.line.version:
                self.letter(rank, "settings", self.line.settings)
                worker.settings = self.line.version
            if message.retired:
                self.letter(rank, "forget", message.retired)
                worker.skeletons.difference_update(message.retired)
            if rank >= size:
                continue
            new = sorted(message.segments - worker.segments)
            for start in range(0, len(new), MOST_DESCRIPTORS):
                batch = new[start : start + MOST_DESCRIPTORS]
                self.letter(
                    rank,
                    "segments",
                    [(segment, segments.size(segment)) for segment in batch],
                    [segments.descriptor(segment) for segment in batch],
                )
                if start + MOST_DESCRIPTORS < len(new):
                    self.await_read(rank)
            worker.segments.update(new)
            missing = missing or message.serial not in worker.skeletons
            worker.skeletons.add(message.serial)
        self.version = self.line.version
        self.skeletons.difference_update(message.retired)
        if size >= len(self.workers):
            self.skeletons.add(message.serial)
            self.segments |= message.segments
        return missing

    def let_go(self, freed: set[int]) -> bool:
        """Tell the workers that know them that segments are gone; whether any was told."""
        told = False
        for rank, worker in enumerate(self.workers):
            if worker is not None and (known := worker.segments & freed):
                self.letter(rank, "free", sorted(known))
                worker.segments -= known
                told = True
        self.segments -= freed
        return told

    # -- a region ------------------------------------------------------------------------------

    def region(self, size: int, message: Message, timeout: float | None) -> Ended:
        """Run a region and bring the crew to rest, whatever happens."""
        self.at_rest = False
        until = 0.0 if timeout is None else time.monotonic() + timeout
        missing = self.supply(size, message)
        data = pickle.dumps(
            (
                message.serial,
                message.skeleton if missing else None,
                message.settings,
                message.blas_threads,
                message.environment,
            ),
            pickle.HIGHEST_PROTOCOL,
        )
        self.epoch += 1
        if fits_mailbox(data):
            post(self.mailbox, self.epoch, data)
        else:
            post(self.mailbox, self.epoch, None)
            bulk = envelope(data)
            try:
                for rank in range(size):
                    self.letter(rank, "message", None, [bulk])
            finally:
                os.close(bulk)
        if self.block.launch(size, self.epoch):
            status = BROKEN
        else:
            try:
                status = self.block.wait(size, self.epoch, until)
            except BaseException:
                self.block.poison(_INTERRUPTED, -1)
                self.wind_up(size, at_once=True)
                raise
        if status == DONE:
            self.at_rest = True
            if self.block.all_quiet(size):
                return _NOTHING
            return Ended(self.collect(size), "none", [], [])
        slow = []
        if status == LATE:
            slow = [self.whereabouts(rank) for rank in self.running(size)]
            self.block.poison(_TIMEOUT, -1)
        died = self.wind_up(size, at_once=status != BROKEN)
        reason = REASONS[self.block.reason()[0]]
        if died and reason != "timeout":
            reason = "died"
        return Ended(self.collect(size), reason, died, slow)

    def wind_up(self, size: int, *, at_once: bool) -> list[WorkerDied]:
        """Bring a failed region to rest; the workers that died by themselves.

        A second Ctrl-C ends the grace of those that still run.
        """
        died: list[WorkerDied] = []
        stopped = False
        patient = True
        while True:
            try:
                if at_once or died:
                    if not stopped:
                        self.stop(size)
                        stopped = True
                status = self.block.settle(size, self.epoch, _GRACE if patient else 0.0)
                if status == DONE:
                    self.at_rest = True
                    return died
                if status == DEAD:
                    with _guard:
                        self.line.read_obituaries(block=True, pids=self.ended())
                    died += self.bury()
                elif not stopped:
                    self.stop(size)  # ranks that compute on although another one has failed
                    stopped = True
                elif at_once or died or not patient:
                    self.kill(size)
                    self.bury()
            except KeyboardInterrupt:
                patient = False
                at_once = True

    def ended(self) -> list[int]:
        """Pids of the workers that have ended, or `WardenGone` if they all have."""
        if self.line.gone():
            raise WardenGone
        return [
            worker.recruit.pid
            for worker in self.workers
            if worker is not None and worker.recruit.ended()
        ]

    def running(self, size: int) -> list[int]:
        return [
            rank
            for rank in range(size)
            if self.workers[rank] is not None and self.block.done(rank) != self.epoch
        ]

    def stop(self, size: int) -> None:
        """Ask the ranks that still run to stop: raises in their kernels."""
        for rank in self.running(size):
            worker = self.workers[rank]
            assert worker is not None
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(worker.recruit.pidfd, STOP_SIGNAL)

    def kill(self, size: int) -> None:
        """End the ranks that still run."""
        running = [self.workers[rank] for rank in self.running(size)]
        pids = [worker.recruit.pid for worker in running if worker is not None]
        with _guard:
            self.line.tell("kill", pids)
            self.line.read_obituaries(block=True, pids=pids)

    def whereabouts(self, rank: int) -> str:
        place = self.block.place(rank)
        line = f" (line {place['line']})" if place["line"] else ""
        return f"rank {rank} was {place['phase']}{line}"

    def collect(self, size: int) -> list[Outcome | None]:
        """The outcomes of the ranks that live."""
        outcomes: list[Outcome | None] = []
        for rank in range(size):
            worker = self.workers[rank]
            code, length = self.block.outcome(rank)
            if worker is None or code == 0:
                outcomes.append(None)
                continue
            if code & ELSEWHERE:
                fd, length = worker.recruit.receive_outcome()
                try:
                    data = contents(fd, length)
                finally:
                    os.close(fd)
            else:
                data = worker.page.read(0, length)
            outcomes.append(open_outcome(data, rank, size))
        return outcomes


# -- all crews of this process ---------------------------------------------------------------------

_guard = threading.RLock()
_idle: list[_Crew] = []
_busy: list[_Crew] = []
_numbers = iter(range(1, 1 << 62))
_line: WardenLine | None = None
_freed: deque[int] = deque()  # segments whose last reference went: filled by the collector
_wake = -1  # eventfd: somebody appended to _freed
_owner = os.getpid()


def run(size: int, message: Message, timeout: float | None = None) -> Ended:
    """Run a region on a crew of at least `size` workers.

    Parameters
    ----------
    size : int
        Ranks.
    message : Message
    timeout : float, seconds, optional

    Returns
    -------
    Ended

    Raises
    ------
    WorkerDied
        The warden died, and the crews with it.
    KeyboardInterrupt
        Or whatever a signal handler of the caller raises; the region has been stopped.
    """
    if size > _MOST_RANKS:
        raise ValueError(f"a team has at most {_MOST_RANKS} workers, got workers={size}")
    crew = _take(size)
    try:
        return crew.region(size, message, timeout)
    except WardenGone:
        with _guard:
            _forget(crew)
        raise WorkerDied(
            "the warden process of the workers was killed, and the workers with it; plain arrays "
            "of this call are as they were before it. The next call starts a new team"
        ) from None
    finally:
        _give_back(crew)


def _take(size: int) -> _Crew:
    """An idle crew, made ready for a region of `size` ranks."""
    global _line
    with _guard:
        if _line is not None and _line.gone():
            _forget()
        if _line is None:
            _start()
        assert _line is not None
        fitting = sorted(_idle, key=lambda c: (len(c.workers) < size, abs(len(c.workers) - size)))
        crew = fitting[0] if fitting else _Crew(_line, next(_numbers))
        if crew in _idle:
            _idle.remove(crew)
        _busy.append(crew)
        try:
            if _freed:
                _spread()
            if (
                len(crew.workers) < size
                or crew.block.reason()[0]
                or None in crew.workers[:size]
            ):
                crew.muster(size)
        except BaseException:
            crew.at_rest = False
            _give_back(crew)
            raise
        return crew


def _give_back(crew: _Crew) -> None:
    """A crew at rest serves again; one that was interrupted at a bad moment is ended."""
    with _guard:
        if crew not in _busy:
            return  # the warden's end took it
        _busy.remove(crew)
        if not crew.at_rest:
            crew.disband()
            return
        _idle.append(crew)
        if _freed:
            os.eventfd_write(_wake, 1)


def _start() -> None:
    global _line, _wake
    _line = WardenLine()
    segments.set_reclaimer(housekeep)
    segments.set_resolver(_resolve)
    if _wake < 0:
        _wake = os.eventfd(0, os.EFD_CLOEXEC)
        segments.on_free(_note_freed)
        threading.Thread(target=_keep_house, name="dsmfor housekeeping", daemon=True).start()


def _forget(*crews: _Crew) -> None:
    """The warden has gone, and all workers with it: forget idle crews, and `crews`.

    Crews that other threads are using are left to them; they see the same.
    """
    global _line
    for crew in [*_idle, *crews]:
        crew.close()
        if crew in _busy:
            _busy.remove(crew)
        if crew.line is _line:
            _line = None
        if not any(other.line is crew.line for other in _busy):
            crew.line.close()
    if _line is not None and not _busy:
        _line.close()
        _line = None
    _idle.clear()


def _resolve(segment: int) -> tuple[int, int]:
    """Descriptor and size of a segment that a worker made, and that an outcome names."""
    with _guard:
        if _line is None:
            raise DSMError(f"segment {segment} was made by a worker that has gone")
        fd = _line.get(("segment", segment))
        for crew in _idle + _busy:
            for worker in crew.workers:
                if worker is not None and worker.recruit.incarnation == segment >> 40:
                    worker.segments.add(segment)  # it hears when the caller lets go
    return fd, os.fstat(fd).st_size - segments.FOOTER.size


def _note_freed(segment: int) -> None:
    """Called by the garbage collector, in any thread: takes no lock."""
    _freed.append(segment)
    if _wake >= 0:
        os.eventfd_write(_wake, 1)


def _keep_house() -> None:
    """A thread of the caller: what was freed while it computes is freed in idle workers too."""
    wake = _wake
    while True:
        os.eventfd_read(wake)
        time.sleep(0.05)  # let more come: one letter tells of many
        with contextlib.suppress(WardenGone):
            housekeep(wait=False)


def housekeep(*, wait: bool = True) -> None:
    """Make idle workers let go of every segment that the caller has let go.

    Parameters
    ----------
    wait : bool
        Return when they have.
    """
    with _guard:
        told = _spread()
        if wait:
            for crew in told:
                for rank, worker in enumerate(crew.workers):
                    if worker is not None:
                        crew.block.await_read(rank, 1.0)


def _spread() -> list[_Crew]:
    """Tell idle crews what was freed. A busy one hears it when it is idle again."""
    freed = set()
    while _freed:
        freed.add(_freed.popleft())
    told = []
    for crew in _idle:
        if crew.let_go(freed):
            crew.block.ring()
            told.append(crew)
    for crew in _busy:
        if any(worker is not None and worker.segments & freed for worker in crew.workers):
            _freed.extend(freed)
            break
    return told


def team_pids() -> set[int]:
    """The processes of all teams of this process, the warden included."""
    with _guard:
        if _line is None:
            return set()
        return {_line.pid} | {
            worker.recruit.pid for crew in _idle + _busy for worker in crew.workers if worker
        }


def shutdown() -> None:
    """End every worker and the warden; the next region starts new ones.

    Raises
    ------
    DSMError
        A region is running in another thread.
    """
    with _guard:
        if _busy:
            raise DSMError(f"{len(_busy)} regions are running in other threads; let them end first")
        if _line is not None:
            for crew in _idle:
                crew.disband()
            _line.stop()
        _forget()


def _at_exit() -> None:
    if os.getpid() == _owner and _line is not None:
        _line.stop()


def _after_fork() -> None:
    """In a child of the caller: the crews are the parent's; what is called here starts others."""
    global _guard, _owner, _wake
    _guard = threading.RLock()
    _owner = os.getpid()
    _freed.clear()
    if _wake >= 0:
        os.close(_wake)
    _wake = -1
    _forget(*_busy)


atexit.register(_at_exit)
os.register_at_fork(after_in_child=_after_fork)
