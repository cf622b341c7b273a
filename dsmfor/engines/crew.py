"""A crew: the workers of a team, and one region on them from launch to rest.

The caller's side of PROTOCOL.md, sections 3 and 6, for one crew, which is used by one thread at a
time. What workers are sent besides a region is letters.py's; which crew serves which call is
process.py's; the line to the warden, through which workers are forked, killed and mourned, is
launch.py's.

Guarantees
----------
- `region` returns only when every rank has acknowledged or has been reaped.
- A failure costs the crew its broken workers alone: `muster` replaces them.
- A death of a rank that is not in the region, or has acknowledged it, is no failure of the region.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from typing import NamedTuple

from dsmfor._native.block import BROKEN, DEAD, DONE, LATE, REASONS, SPOKEN, Block, Page
from dsmfor._native.interrupts import undisturbed
from dsmfor._native.relay import Relay
from dsmfor.engines.bulk import send_message
from dsmfor.engines.channel import lift, pair
from dsmfor.engines.launch import SPAWNS, WardenGone, WardenLine
from dsmfor.engines.letters import Letters, Worker
from dsmfor.engines.obituaries import obituary, whereabouts
from dsmfor.engines.outcomes import collect
from dsmfor.engines.pages import PAGE, Mailbox
from dsmfor.engines.recruits import leaving
from dsmfor.engines.worker import STOP_SIGNAL
from dsmfor.errors import SharedMemoryFull, WorkerDied
from dsmfor.outcome import Bereft, Outcome
from dsmfor.payload import Message

__all__ = ["Crew", "Ended"]

_GRACE = 0.8  # seconds that a stopped rank has to acknowledge before it is killed
_PARTING = 5.0  # seconds that a worker may take to end when it is killed
_ATTEMPTS = 3  # to launch a region whose crew breaks before it starts
_LINGER = 100  # microseconds that whoever waits yields its core before it sleeps
_DIED, _INTERRUPTED, _TIMEOUT = map(REASONS.index, ("died", "interrupted", "timeout"))


class Ended(NamedTuple):
    """How a region ended, before anybody is told."""

    outcomes: list[Outcome | None]  # by rank, None for one that returned it or died; [] if all did
    reason: str  # "none", or why the region failed: one of `REASONS`
    died: list[WorkerDied]
    slow: list[str]  # the ranks that ran when the time was over, in words


_NOTHING = Ended([], "none", [], [])


class Crew:
    """A control block, a mailbox and the workers of ranks 0, 1, ...

    Parameters
    ----------
    line : WardenLine
    guard : lock
        Held for every use of `line`, which crews share.
    number : int
        The crew's among all of this caller.
    """

    def __init__(self, line: WardenLine, guard: threading.RLock, number: int) -> None:
        self.line = line
        self.guard = guard
        self.number = number
        self.epoch = 1
        self.closed = True  # until it has a block and a mailbox
        self.at_rest = True  # no rank is in a region
        self.holder: object | None = None  # the call that has taken it
        self.expected = False  # in quarantine.py, when it is idle
        self.workers: list[Worker | None] = []
        self.past: list[Worker] = []  # seen to have ended at rest: the next call replaces them
        with contextlib.ExitStack() as passed:  # to the warden, which has copies
            fd = Block.descriptor()
            passed.callback(os.close, fd)
            ours, theirs = pair()
            passed.callback(ours.close)
            passed.callback(theirs.close)
            self.block = Block(fd)
            self.block.repair()
            self.relay = Relay(self.block, lift(ours.detach()))
            self.letters = Letters(self.block, self.workers, line, guard)
            self.mailbox = Mailbox()
            self.closed = False
            line.tell("crew", number, fds=[fd, self.mailbox.page.fd, theirs.fileno()])
            self.mailbox.page.release()

    # -- the team ------------------------------------------------------------------------------

    def muster(self, size: int) -> None:
        """Have `size` living workers and a clean block, replacing whoever has died."""
        for _ in range(_ATTEMPTS + 1):  # the last time round only looks
            self.mend()
            crowd = max(size, len(self.workers))
            self.workers += [None] * (crowd - len(self.workers))
            wanted = [rank for rank in range(crowd) if self.workers[rank] is None]
            if not wanted:
                break
            self.recruit(wanted)
        else:
            raise WorkerDied(
                f"workers for ranks {wanted} ended {_ATTEMPTS} times while they started; something "
                "ends them: see stderr and the kernel's log",
                rank=wanted[0],
            )
        cores = len(os.sched_getaffinity(0))
        self.block.linger(_LINGER if len(self.workers) <= cores else 0)

    def mend(self) -> None:
        """Bury the dead and re-make the words that their deaths have broken."""
        damaged = self.block.reason()[0] != 0
        while True:
            # A death is counted, then poison, then an obituary: after that no poison can follow,
            # and whoever was counted before we look is seen to have ended.
            deaths = self.block.deaths()
            gone = self.ended()
            self.line.read_obituaries(worker.recruit.incarnation for _, worker in gone)
            self.bury(gone)
            if not damaged and not gone:
                self.block.note_deaths(deaths)
                return
            damaged = False
            self.block.repair()

    def recruit(self, ranks: list[int]) -> None:
        """Fork workers for these ranks; some may not live to take their place."""
        for rank in ranks:
            self.block.enlist(rank, self.epoch)
        for start in range(0, len(ranks), SPAWNS):
            recruits = self.line.spawn(self.number, ranks[start : start + SPAWNS], self.epoch)
            for rank, (recruit, page_fd) in recruits.items():
                worker = Worker(recruit, Page(PAGE, page_fd))
                os.close(page_fd)
                worker.settings = self.line.version
                self.workers[rank] = worker
        self.letters.newcomers()
        self.mailbox.forget()
        self.watch()

    def ready(self) -> bool:
        """Whether nobody of the crew is known to have failed."""
        whole = None not in self.workers and not self.past
        return whole and self.block.sound() and not self.letters.spoilt

    def watch(self) -> None:
        """Have waits of the caller look at the warden and every worker not known to be past.

        Also at one that has ended since the caller looked: it may have a part in the region.
        """
        living = [w.recruit for w in self.workers if w is not None and w not in self.past]
        self.block.watch([self.line.pidfd, *(recruit.pidfd for recruit in living)])

    def bury(self, gone: list[tuple[int, Worker]]) -> list[WorkerDied]:
        """Give up workers whose death the warden has told; an error for each."""
        died = [self.obituary(rank, worker) for rank, worker in gone]
        for rank, _ in gone:
            self.workers[rank] = None
            self.block.enlist(rank, self.epoch)
        self.past = [worker for worker in self.past if worker in self.workers]
        if gone:
            self.watch()
        for _, worker in gone:
            self.line.dismiss(worker.recruit)
        return died

    def obituary(self, rank: int, worker: Worker) -> WorkerDied:
        """The error for a worker that has ended."""
        code = self.line.obituaries.get(worker.recruit.incarnation)
        return obituary(rank, worker.recruit.pid, code, self.block.place(rank))

    def disband(self) -> None:
        """End every worker; the warden reaps them."""
        with contextlib.suppress(WardenGone):
            self.line.tell("disband", self.number)
        self.close()

    def break_up(self) -> None:
        """Disband in the middle of a region: when this returns, no rank runs any more."""
        with contextlib.suppress(WardenGone):
            self.line.tell("disband", self.number)
        try:
            self.outlive()
        finally:
            self.close()

    def close(self) -> None:
        """Let go of the workers' descriptors."""
        self.block.watch([])
        for worker in self.workers:
            if worker:
                leaving.append(worker.recruit.part())
                self.line.dismiss(worker.recruit)
        self.workers.clear()
        self.relay.close()
        self.closed = True

    def outlive(self) -> None:
        """End the workers without the warden, and wait until none can write any more."""
        for worker in self.workers:
            if worker is not None:
                worker.recruit.kill()
        for worker in self.workers:
            if worker is not None:
                worker.recruit.ended(_PARTING)

    # -- a region ------------------------------------------------------------------------------

    def region(self, size: int, message: Message, seed: int, timeout: float | None) -> Ended:
        """Run a region and bring the crew to rest, whatever happens."""
        self.at_rest = False
        self.relay.complaint = None
        before = self.epoch
        until = 0.0 if timeout is None else self.block.clock() + timeout
        try:
            for _ in range(_ATTEMPTS):
                if not self.launch(size, message, seed):
                    break
                with undisturbed, self.guard:  # somebody died while idle, nothing has begun:
                    self.muster(size)  # begin anew
            else:
                self.at_rest = True
                raise WorkerDied(
                    f"workers died {_ATTEMPTS} times before a region could start; something ends "
                    "them: see the kernel's log for the out-of-memory killer"
                )
            status = self.block.wait(size, self.epoch, until)
            if status != DONE:
                status = self.attend(status, size, until)
        except BaseException as error:
            begun = self.epoch != before and self.block.launched(self.epoch)
            if isinstance(error, WardenGone) or not begun:
                raise  # what was sent half spoils the crew
            with undisturbed:
                self.block.poison(_INTERRUPTED, -1)
            try:
                self.wind_up(size, at_once=True)
            except WardenGone as gone:
                gone.instead_of = error
                raise
            raise
        if status == DONE:
            self.at_rest = True
            self.complain()
            if self.block.all_quiet(size):
                return _NOTHING
            died: list[WorkerDied] = []
            return Ended(self.told(size, died), "died" if died else "none", died, [])
        slow = []
        if status == LATE:
            slow = [whereabouts(rank, self.block.place(rank)) for rank in self.running(size)]
            self.block.poison(_TIMEOUT, -1)
        died = self.wind_up(size, at_once=status != BROKEN, until=until)
        reason = REASONS[self.block.reason()[0]]
        outcomes = self.told(size, died)
        failures = [o.failure for o in outcomes if o is not None and o.failure is not None]
        if failures:
            self.letters.review()
        if not died and any(failure.name == Bereft.__name__ for failure in failures):
            died = self.departed(size)
        if died and reason != "timeout":
            reason = "died"
        return Ended(outcomes, reason, died, slow)

    def attend(self, status: int, size: int, until: float) -> int:
        """Wait on until the region is over, and write what workers print.

        As `Block.wait`, whose `status` it was, but never SPOKEN, and DEAD only if a rank of the
        region has died before it had acknowledged.
        """
        heard = False
        while True:
            if status == SPOKEN:
                heard = True
                over = self.block.acknowledged(size, self.epoch)
                self.relay.deliver(over)
                if over:
                    return BROKEN if self.block.reason()[0] else DONE
            elif status == DEAD:
                if fallen := self.fallen(size):
                    self.block.poison(_DIED, fallen[0][0])
                    return DEAD
                self.watch()  # whoever it was is replaced at the next call
            else:
                if status == DONE and heard:
                    self.relay.deliver(True)  # lines that have no end, of which we heard before
                return status
            status = self.block.wait(size, self.epoch, until)

    def complain(self) -> None:
        """Nothing else is to be raised: raise what the caller's own stream has raised."""
        if (error := self.relay.complaint) is not None:
            self.relay.complaint = None
            try:
                raise error
            finally:
                del error  # its traceback holds this frame

    def launch(self, size: int, message: Message, seed: int) -> int:
        """Send a region to its ranks and wake them; not zero if the crew is broken."""
        self.letters.supply(size, message)
        if not self.mailbox.fits(message):
            try:
                send_message(self.letters, message, size)
            except (SharedMemoryFull, OSError):
                self.at_rest = not self.letters.spoilt  # nothing has begun
                raise
        self.epoch += 1
        self.mailbox.post(self.epoch, seed, message)
        return self.block.launch(size, self.epoch)

    def wind_up(self, size: int, *, at_once: bool, until: float = 0.0) -> list[WorkerDied]:
        """Bring a failed region to rest; the workers that died by themselves.

        Parameters
        ----------
        size : int
        at_once : bool
            Stop the ranks that still run, and kill those that do not stop. Otherwise they get time
            to find out by themselves that the region has failed, as much as they want or `until`.
        until : float, seconds of the block's clock
            0 for never.

        Raises
        ------
        KeyboardInterrupt
            Ctrl-C, once the crew is at rest; it ends the grace of those that still run.
        """
        died: list[WorkerDied] = []
        stopped = False
        interrupt: KeyboardInterrupt | None = None
        grace = self.block.clock() + _GRACE
        while not self.at_rest:
            try:
                with undisturbed:
                    at_once = at_once or bool(died) or 0.0 < until <= self.block.clock()
                    if at_once and not stopped:
                        self.stop(size)
                        stopped = True
                        grace = self.block.clock() + _GRACE
                    patience = 0.0 if interrupt else max(0.0, grace - self.block.clock())
                    status = self.block.settle(size, self.epoch, patience)
                    if status != SPOKEN:
                        grace = self.block.clock() + _GRACE
                    if status == DONE:
                        self.at_rest = True
                    elif status == DEAD:
                        fallen = self.fallen(size)
                        with self.guard:
                            self.line.read_obituaries(w.recruit.incarnation for _, w in fallen)
                            died += self.bury(fallen)
                        if not fallen:
                            self.watch()
                    elif status == SPOKEN:
                        pass
                    elif not stopped:
                        self.stop(size)  # ranks that compute on although another one has failed
                        stopped = True
                    elif at_once:
                        self.kill(size)
                if status == SPOKEN:  # not in the block: it calls what the user wrote
                    self.relay.deliver(False)
            except KeyboardInterrupt as error:
                interrupt = error
                at_once = True
            except WardenGone as gone:
                gone.instead_of = interrupt
                raise
        self.relay.deliver(True)
        if interrupt is not None:
            raise interrupt
        return died

    def ended(self) -> list[tuple[int, Worker]]:
        """Rank and worker of all that have ended, or `WardenGone` if they all have."""
        if self.line.gone():
            raise WardenGone
        return [
            (rank, worker)
            for rank, worker in enumerate(self.workers)
            if worker is not None and worker.recruit.ended()
        ]

    def fallen(self, size: int) -> list[tuple[int, Worker]]:
        """Of those that have ended, the ranks that had not acknowledged the region."""
        gone = self.ended()
        fallen = [(r, w) for r, w in gone if r < size and self.block.done(r) != self.epoch]
        self.past = [worker for rank, worker in gone if (rank, worker) not in fallen]
        return fallen

    def departed(self, size: int) -> list[WorkerDied]:
        """Errors for those that have ended after they had acknowledged."""
        gone = [(rank, worker) for rank, worker in self.ended() if rank < size]
        with self.guard:
            self.line.read_obituaries(worker.recruit.incarnation for _, worker in gone)
            return [self.obituary(rank, worker) for rank, worker in gone]

    def running(self, size: int) -> list[int]:
        """Ranks of the region that live and have not acknowledged."""
        there = [rank for rank in range(size) if self.workers[rank] is not None]
        return [rank for rank in there if self.block.done(rank) != self.epoch]

    def stop(self, size: int) -> None:
        """Ask the ranks that still run to stop: raises in their kernels."""
        for rank in self.running(size):
            worker = self.workers[rank]
            assert worker is not None
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(worker.recruit.pidfd, STOP_SIGNAL)

    def kill(self, size: int) -> None:
        """End the ranks that still run."""
        victims = [(r, w) for r in self.running(size) if (w := self.workers[r]) is not None]
        for _, worker in victims:
            worker.recruit.kill()
        with self.guard:
            self.line.read_obituaries(worker.recruit.incarnation for _, worker in victims)
            self.bury(victims)

    def told(self, size: int, died: list[WorkerDied]) -> list[Outcome | None]:
        """The outcomes; an array in one that has gone with its worker makes that one `died`."""
        outcomes, bereft = collect(self.block, self.workers[:size], self.epoch)
        if bereft:
            died += self.departed(size)
        return outcomes
