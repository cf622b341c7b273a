"""The caller and the warden: the twin of crew.py, of what it needs of block.pyx, and of warden.py.

Left out: letters, outcomes and what is printed; more than one crew; a worker that cannot be forked.
The caller's messages to the warden, the warden's to it, and pidfds are words that are read in one
step, as the kernel's are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from model.laws import ABSENT, ALIVE, DEAD
from model.operations import TIMEOUT, Await, Load, Note, Pick, Poll, See, Sleep, Store, Value
from model.ranks import Kernel, Loop, Ranks, Spin
from model.search import View
from model.words import BROKEN, DIED, LATE, NONE, Steps, tag

# How a wait of the caller ends.
OVER, BREAK, PAST, DEATH = "over", "break", "past", "death"


class Gone(Exception):
    """The warden has ended."""


class Region(NamedTuple):
    """A call: the kernel of each rank. `wrong`: it must fail even if nobody dies."""

    kernels: tuple[Kernel, ...]
    wrong: bool = False
    diverges: bool = False
    late: bool = False  # a timeout or Ctrl-C may strike at any moment

    @property
    def patient(self) -> bool:
        return not any(isinstance(step, Spin) for kernel in self.kernels for step in kernel)


def same(size: int, *kernel: Any) -> Region:
    """A right program: the same on every rank."""
    return Region((kernel,) * size)


class Crew(Ranks):
    """The actors outside a region."""

    def __init__(self, ring: int, locks: int, ranks: int) -> None:
        super().__init__(ring, locks, ranks)
        self.regions: tuple[Region, ...] = ()

    def words(self) -> dict[str, Value]:
        words = {"post": (), "warden": 1, "mourned": 0, "past": ()}
        words["watched"] = (True,) * self.ranks
        return super().words() | words

    # -- warden.py -----------------------------------------------------------------------------

    def attend(self, m: View) -> Iterator[tuple[str, int]]:
        if m["post"]:
            yield "letter", 0
        for r in range(self.ranks):
            if m[f"fate{r}"] == DEAD and m[f"ward{r}"]:
                yield "bury", r

    def warden(self) -> Steps:
        yield Await("warden", 1)
        while True:
            what, rank = yield Poll(self.attend)
            if what == "letter":
                yield See(self.obey)
            else:
                yield from self.bury_ward(rank)

    def bury_ward(self, rank: int) -> Steps:
        yield from self.mourn(rank)
        yield See(self.reap, rank)

    def reap(self, m: View, rank: int) -> bool:
        """waitpid, and the obituary."""
        m[f"ward{rank}"] = 0
        m[f"told{rank}"] = 1
        return True

    def obey(self, m: View) -> bool:
        """Fork a worker."""
        (rank, epoch), *rest = m["post"]
        m["post"] = tuple(rest)
        m[f"fate{rank}"] = m[f"ward{rank}"] = 1
        m[f"birth{rank}"] = epoch
        m[f"hello{rank}"] = m[f"stop{rank}"] = 0
        m[f"born{rank}"] += 1
        return True

    # -- block.pyx -----------------------------------------------------------------------------

    def ended(self, size: int, epoch: int) -> Steps:
        for r in range(size):
            done = yield Load(f"done{r}")
            if done != epoch:
                return False
        return True

    def someone_dead(self, m: View) -> bool:
        """`look`: the pidfds of the warden and of the workers that are watched."""
        return not m["warden"] or any(
            seen and m[f"fate{r}"] == DEAD for r, seen in enumerate(m["watched"])
        )

    def note_deaths(self, m: View, deaths: int) -> None:
        m["mourned"] = deaths
        self.laws.mended(m)

    def wait(self, size: int, epoch: int, late: bool) -> Steps:
        while True:
            v = yield Load("left")
            if v & BROKEN:
                yield Note(self.laws.breaks)
                return BREAK
            if v == tag(epoch):
                over = yield from self.ended(size, epoch)
                if over:
                    return OVER
            if late:
                past = yield Pick(False, True)
                if past:
                    return PAST
            how = yield Sleep("left", v)
            if how == TIMEOUT:
                over = yield from self.ended(size, epoch)
                if over:
                    return OVER
                dead = yield See(self.someone_dead)
                if dead:
                    return DEATH

    def unsettled(self, m: View, size: int, epoch: int) -> str | None:
        if all(m[f"done{r}"] == epoch for r in range(size)):
            return OVER
        return DEATH if self.someone_dead(m) else None

    def lasting(self, m: View, size: int, epoch: int) -> str:
        return self.unsettled(m, size, epoch) or PAST

    # -- crew.py -------------------------------------------------------------------------------

    def spawn(self, m: View, rank: int, epoch: int) -> bool:
        if m["warden"]:
            m["post"] += ((rank, epoch),)
        return True

    def watch(self, m: View, workers: tuple[bool, ...]) -> bool:
        """Look from now on at all that are not known to be past."""
        m["watched"] = tuple(known and r not in m["past"] for r, known in enumerate(workers))
        return True

    def attend_death(self, size: int, epoch: int, workers: tuple[bool, ...]) -> Steps:
        """Somebody watched has ended; whether the region fails by that."""
        fallen = yield See(self.fallen, size, epoch, workers)
        if fallen == "gone":
            raise Gone
        if fallen:
            yield from self.poison(DIED, fallen[0])
            return True
        yield See(self.watch, workers)
        return False

    def fallen(
        self, m: View, size: int, epoch: int, workers: tuple[bool, ...]
    ) -> tuple[int, ...] | str:
        """Of those that have ended, the ranks that had not acknowledged the region."""
        gone = self.gone_ranks(m, workers)
        if isinstance(gone, str):
            return gone
        fallen = tuple(r for r in gone if r < size and m[f"done{r}"] != epoch)
        m["past"] = tuple(r for r in gone if r not in fallen)
        return fallen

    def gone_ranks(self, m: View, workers: tuple[bool, ...]) -> tuple[int, ...] | str:
        if not m["warden"]:
            return "gone"
        return tuple(r for r, known in enumerate(workers) if known and m[f"fate{r}"] == DEAD)

    def obituaries(self, m: View, of: tuple[int, ...]) -> str | None:
        if all(m[f"told{r}"] for r in of):
            return "told"
        return None if m["warden"] else "gone"

    def bury(self, epoch: int, workers: tuple[bool, ...], gone: tuple[int, ...]) -> Steps:
        """Wait for the obituaries of these, and give them up; those who are left."""
        told = yield See(self.obituaries, gone)
        if told == "gone":
            raise Gone
        for r in gone:
            yield See(self.dismiss, r)
            workers = (*workers[:r], False, *workers[r + 1 :])
            yield from self.enlist(r, epoch)
        if gone:
            yield See(self.watch, workers)
        return workers

    def dismiss(self, m: View, rank: int) -> bool:
        m[f"told{rank}"] = 0
        m[f"fate{rank}"] = ABSENT
        m["past"] = tuple(r for r in m["past"] if r != rank)
        return True

    def enlist(self, rank: int, epoch: int) -> Steps:
        yield Store(f"launch{rank}", epoch)
        yield Store(f"outcome{rank}", 0)
        yield Store(f"done{rank}", epoch)

    def look_for_dead(self, workers: tuple[bool, ...]) -> Steps:
        gone = yield See(self.gone_ranks, workers)
        if gone == "gone":
            raise Gone
        return gone

    def mend(self, epoch: int, workers: tuple[bool, ...]) -> Steps:
        reason = yield Load("reason")
        damaged = reason != 0
        while True:
            deaths = yield Load("deaths")
            gone = yield from self.look_for_dead(workers)
            workers = yield from self.bury(epoch, workers, gone)
            if not damaged and not gone:
                yield Note(self.note_deaths, deaths)
                return workers
            deaths = 0
            damaged = False
            yield from self.repair()

    def muster(self, epoch: int, workers: tuple[bool, ...]) -> Steps:
        while True:
            workers = yield from self.mend(epoch, workers)
            if all(workers):
                return workers
            workers = yield from self.recruit(epoch, workers)

    def recruit(self, epoch: int, workers: tuple[bool, ...]) -> Steps:
        for r in range(len(workers)):
            if not workers[r]:
                yield from self.enlist(r, epoch)
        for r in range(len(workers)):
            if not workers[r]:
                yield See(self.spawn, r, epoch)
        for r in range(len(workers)):
            if not workers[r]:
                came = yield See(self.spawned, r)
                if came == "gone":
                    raise Gone
                if came == "dead":
                    told = yield See(self.obituaries, (r,))
                    if told == "gone":
                        raise Gone
                    yield See(self.dismiss, r)
                else:
                    workers = (*workers[:r], True, *workers[r + 1 :])
        yield See(self.watch, workers)
        return workers

    def spawned(self, m: View, rank: int) -> str | None:
        """The recruit's first words, or its end before them."""
        if m[f"hello{rank}"] and m[f"fate{rank}"] != ABSENT:
            return "hello"
        if m[f"fate{rank}"] == DEAD:
            return "dead"
        return None if m["warden"] else "gone"

    def start(self, size: int, epoch: int, which: int) -> Steps:
        """The message, then the launch."""
        yield Note(self.laws.posts, epoch)
        yield Store("mailbox", (epoch, which))
        mourned = yield Load("mourned")
        reason = yield from self.launch(size, epoch, mourned)
        return reason & 0xFFFFFFFF

    def sound(self) -> Steps:
        reason = yield Load("reason")
        if reason:
            return False
        deaths = yield Load("deaths")
        mourned = yield Load("mourned")
        past = yield Load("past")
        return deaths == mourned and not past

    def region(self, which: int, epoch: int, workers: tuple[bool, ...]) -> Steps:
        """(epoch, workers)"""
        region = self.regions[which]
        size = len(region.kernels)
        yield Note(self.laws.calls)
        sound = yield from self.sound()
        if not sound or not all(workers):
            workers = yield from self.muster(epoch, workers)
        while True:
            epoch += 1
            broken = yield from self.start(size, epoch, which)
            if not broken:
                break
            workers = yield from self.muster(epoch, workers)
        sound = False
        yield Note(self.laws.launched)
        how = yield from self.wait(size, epoch, region.late)
        while how == DEATH:
            fails = yield from self.attend_death(size, epoch, workers)
            if fails:
                break
            how = yield from self.wait(size, epoch, region.late)
        died = False
        if how == PAST:
            yield from self.poison(LATE, -1)
        reason = NONE
        if how != OVER:
            workers, died = yield from self.wind_up(
                size, epoch, workers, how != BREAK, region.patient
            )
            reason = yield Load("reason")
            reason &= 0xFFFFFFFF
        failed = yield from self.outcomes(size, workers)
        if died and reason != LATE:
            reason = DIED
        yield Note(self.judge, which, epoch, reason, failed)
        return epoch, workers

    def outcomes(self, size: int, workers: tuple[bool, ...]) -> Steps:
        failed = False
        for r in range(size):
            outcome = yield Load(f"outcome{r}")
            failed = failed or (workers[r] and outcome != 0)
        return failed

    def judge(self, m: View, which: int, epoch: int, reason: int, failed: bool) -> None:
        """What the user gets, held against the laws."""
        region = self.regions[which]
        size = len(region.kernels)
        if reason == NONE and not failed:
            loops = [step for step in region.kernels[0] if isinstance(step, Loop)]
            base = m["base"]
            counts = tuple(
                (base + i, loop.chunks * (size if loop.kind == "auto" else 1))
                for i, loop in enumerate(loops)
                if not loop.cancel
            )
            self.laws.succeeds(m, epoch, size, counts, wrong=region.wrong)
        else:
            wrong = region.wrong or region.late
            self.laws.fails(m, epoch, size, reason, wrong=wrong, diverges=region.diverges)

    def wind_up(
        self, size: int, epoch: int, workers: tuple[bool, ...], at_once: bool, patient: bool
    ) -> Steps:
        """`patient`: kernels end soon, so the second of grace is never over."""
        stopped = killed = died = False
        while True:
            if at_once and not stopped:
                yield See(self.stop, size, epoch, workers)
                stopped = True
            waits = patient or killed or (stopped and not at_once)
            look = self.unsettled if waits else self.lasting
            how = yield See(look, size, epoch)
            if how == OVER:
                return workers, died
            if how == DEATH:
                gone = yield See(self.fallen, size, epoch, workers)
                if gone == "gone":
                    raise Gone
                workers = yield from self.bury(epoch, workers, gone)
                if not gone:
                    yield See(self.watch, workers)
                died = died or bool(gone)
                at_once = at_once or died
                gone = ()
            elif not stopped:
                yield See(self.stop, size, epoch, workers)
                stopped = True
            elif at_once:
                running = yield See(self.running, size, epoch, workers)
                for r in running:
                    yield See(self.end_worker, r)
                workers = yield from self.bury(epoch, workers, running)
                killed = True

    def end_worker(self, m: View, rank: int) -> bool:
        """SIGKILL by its pidfd."""
        if m[f"fate{rank}"] == ALIVE:
            kill(m, rank)
        return True

    def running(self, m: View, size: int, epoch: int, workers: tuple[bool, ...]) -> tuple[int, ...]:
        return tuple(r for r in range(size) if workers[r] and m[f"done{r}"] != epoch)

    def stop(self, m: View, size: int, epoch: int, workers: tuple[bool, ...]) -> bool:
        for r in self.running(m, size, epoch, workers):
            m[f"stop{r}"] = 1
        return True

    def caller(self) -> Steps:
        epoch, workers = 1, (True,) * self.ranks
        gone = False
        try:
            for which in range(len(self.regions)):
                epoch, workers = yield from self.region(which, epoch, workers)
        except Gone:
            gone = True
        if gone:
            yield from self.outlive(workers)
            yield Note(self.laws.outlived, workers)

    def outlive(self, workers: tuple[bool, ...]) -> Steps:
        """The warden has gone: end those that the caller knew when the call began."""
        for r in range(len(workers)):
            if workers[r]:
                yield See(self.end_worker, r)


def kill(m: View, rank: int) -> None:
    m[f"fate{rank}"] = DEAD
    m[f"busy{rank}"] = 0
    m["killed"] += 1
    m.kill(f"rank {rank}")
