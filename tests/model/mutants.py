"""Protocols with one mistake each, which the checker must find.

Most are what somebody would write who has not read PROTOCOL.md; some were the code once.
"""

from __future__ import annotations

from model.crew import BREAK, OVER, Crew
from model.laws import ALIVE
from model.operations import Add, Cas, Load, Note, Or, See, Sleep, Store, Wake
from model.search import View
from model.words import BROKEN, CLASH, DIED, DIVERGED, PASS, WAIT, Steps, bits, tag


class PoisonBeside(Crew):
    """Poison is a flag of its own, looked at before each sleep."""

    def brk(self, word: str) -> Steps:
        yield Wake(word)

    def wait(self, size: int, epoch: int, late: bool) -> Steps:
        while True:
            reason = yield Load("reason")
            if reason:
                return BREAK
            v = yield Load("left")
            if v == tag(epoch):
                over = yield from self.ended(size, epoch)
                if over:
                    return OVER
            yield Sleep("left", v)


class LeftWithoutTag(Crew):
    """The count of running ranks does not say of which region."""

    def done(self, rank: int, epoch: int) -> Steps:
        yield Store(f"done{rank}", epoch)
        yield from self.acknowledged(rank)
        v = yield Add("left", -2)
        yield from self.counted(rank, epoch)
        if v & 0x1FFE == 2:
            yield Wake("left")


class BellBeforeLaunch(Crew):
    """The bell rings before there is anything to see."""

    def launch(self, size: int, epoch: int, deaths: int) -> Steps:
        yield from self.prepare(size)
        yield Store("left", tag(epoch) | size << 1)
        reason = yield Load("reason")
        if reason:
            return reason
        yield Add("bell", 2)
        yield Wake("bell", bits(size))
        for r in range(size):
            yield Store(f"launch{r}", epoch)
        return 0


class CountKept(Crew):
    """Launch leaves the last region's arrivals and finishers in `count`."""

    def launch(self, size: int, epoch: int, deaths: int) -> Steps:
        yield Store("size", size)
        yield Store("ending", 0)
        yield Store("left", tag(epoch) | size << 1)
        reason = yield Load("reason")
        if reason:
            return reason
        for r in range(size):
            yield Store(f"launch{r}", epoch)
        yield Add("bell", 2)
        yield Wake("bell", bits(size))
        return 0


class CountBeforeDone(Crew):
    """A rank counts down before it has stored what the count is about."""

    def done(self, rank: int, epoch: int) -> Steps:
        v = yield Load("left")
        while v & ~0x1FFF == tag(epoch) and v & 0x1FFE:
            found = yield Cas("left", v, v - 2)
            if found == v:
                if v & 0x1FFE == 2:
                    yield Wake("left")
                break
            v = found
        yield Store(f"done{rank}", epoch)
        yield from self.acknowledged(rank)


class SeqStored(Crew):
    """The last to leave a loop stores `seq`, and a broken bit is gone."""

    def move_on(self, number: int) -> Steps:
        i = number % self.ring
        yield Store(f"seq{i}", number + self.ring << 1)
        sleepers = yield Load(f"sleepers{i}")
        if sleepers:
            yield Wake(f"seq{i}")


class SeqBeforeZeroing(Crew):
    """The last to leave a loop opens its slot before it is clean."""

    def leave(self, number: int, size: int, stealing: bool) -> Steps:
        i = number % self.ring
        old = yield Add(f"gone{i}", 1)
        if old + 1 < size:
            return
        yield from self.move_on(number)
        yield from self.remake(i, size, stealing)


class SleepersCleared(Crew):
    """The last to leave clears the mark of those who sleep, maybe one that was set since."""

    def move_on(self, number: int) -> Steps:
        i = number % self.ring
        found = yield Cas(f"seq{i}", number << 1, number + self.ring << 1)
        if found != number << 1:
            return
        sleepers = yield Load(f"sleepers{i}")
        if sleepers:
            yield Store(f"sleepers{i}", 0)
            yield Wake(f"seq{i}")

    def await_slot(self, i: int, number: int) -> Steps:
        yield Store(f"sleepers{i}", 1)
        now = yield Load(f"seq{i}")
        if now != number << 1 and not now & BROKEN:
            yield Sleep(f"seq{i}", now)


class SleepersBeforeSeq(Crew):
    """The last to leave looks for sleepers, and moves `seq` then."""

    def move_on(self, number: int) -> Steps:
        i = number % self.ring
        sleepers = yield Load(f"sleepers{i}")
        found = yield Cas(f"seq{i}", number << 1, number + self.ring << 1)
        if found == number << 1 and sleepers:
            yield Wake(f"seq{i}")


class StuckAtAnyBarrier(Crew):
    """A rank that is being released from an earlier barrier is taken for one that stands still."""

    def stuck(self, size: int, number: int) -> Steps:
        for r in range(size):
            stopped = yield Load(f"stopped{r}")
            through = yield Load(f"through{r}")
            if stopped and through <= number:
                return True
        return False


class StealByLoad(Crew):
    """A chunk is taken by a load and a store."""

    def steal(self, victim: int, i: int, length: int, owner: bool) -> Steps:
        v = yield Load(f"steal{victim}.{i}")
        front, back = v & 0xFFFFFFFF, v >> 32
        if front + back >= length:
            return -1
        yield Store(f"steal{victim}.{i}", v + (1 if owner else 1 << 32))
        return front if owner else length - 1 - back


class GenBeforeCount(Crew):
    """The last arrival releases the others before the barrier is empty again."""

    def arrive(self, rank: int, size: int, signature: int) -> Steps:
        first = yield Cas("signature", 0, signature)
        if first not in (0, signature):
            yield from self.poison(DIVERGED, rank)
            return CLASH
        old = yield Add("count", 1)
        if old >> 32:
            yield from self.poison(DIVERGED, rank)
            return CLASH
        if old + 1 < size:
            return WAIT
        yield Add("gen", 2)
        yield Wake("gen")
        yield Store("signature", 0)
        yield Store("count", 0)
        return PASS


class OneIsWoken(Crew):
    """A full barrier wakes one of its sleepers."""

    def arrive(self, rank: int, size: int, signature: int) -> Steps:
        yield Cas("signature", 0, signature)
        old = yield Add("count", 1)
        if old + 1 < size:
            return WAIT
        yield Store("signature", 0)
        yield Store("count", 0)
        yield Add("gen", 2)
        yield Wake("gen", many=False)
        return PASS


class AnySignature(Crew):
    """Nobody compares at which barrier the ranks are."""

    def arrive(self, rank: int, size: int, signature: int) -> Steps:
        how = yield from super().arrive(rank, size, 1)
        return how


class FinishUnseen(Crew):
    """Who ends the kernel does not look for ranks at a barrier."""

    def finish(self, rank: int, history: int) -> Steps:
        yield Cas("ending", 0, history)
        yield Add("count", 1 << 32)
        return PASS


class WakesInRow(Crew):
    """Who got a lock after a wait does not know that others still sleep."""

    def take(self, word: str, rank: int, waited: bool) -> Steps:
        how = yield from super().take(word, rank, False)
        return how


class MarkedAreWoken(Crew):
    """Poison wakes at a lock only if it is marked; who gave it up has died before its wake."""

    def poison(self, reason: int, rank: int) -> Steps:
        yield Cas("reason", 0, (rank & 0xFFFFFFFF) << 32 | reason)
        yield from self.brk("gen")
        for k in range(self.locks):
            old = yield Or(f"lock{k}", BROKEN)
            if old & 2:
                yield Wake(f"lock{k}")
        yield from self.brk("left")


class LockByLoad(Crew):
    """A lock is taken by a load and a store."""

    def take(self, word: str, rank: int, waited: bool) -> Steps:
        v = yield Load(word)
        if v & BROKEN:
            return -1, 0
        if v == 0:
            yield Store(word, rank + 1 << 2 | 2)
            return 1, 0
        return 0, v


class CancelStored(Crew):
    """The last cancel wins."""

    def cancel(self, rank: int, i: int, number: int) -> Steps:
        yield Store(f"area{rank}.{i}", (number, rank))
        yield Store(f"cancel{i}", rank + 1)
        yield Note(self.laws.hears, f"loop {number}", (number, rank))


class CancelReadLate(Crew):
    """The value of a cancelled loop is read after the loop was left."""

    def collect_cancel(self, rank: int, i: int, number: int) -> Steps:
        yield from ()

    def leave(self, number: int, size: int, stealing: bool) -> Steps:
        yield from super().leave(number, size, stealing)
        i = number % self.ring
        who = yield Load(f"cancel{i}")
        value = None
        if who:
            value = yield Load(f"area{who - 1}.{i}")
        yield Note(self.laws.hears, f"loop {number}", value)


class OneHalf(Crew):
    """All values of `single` lie in one place."""

    def exchange(self, rank: int, size: int, epoch: int, k: int, history: int) -> Steps:
        if rank == 0:
            yield Store("half0", (epoch, k))
        yield from self.meet(rank, size, 3, history)
        value = yield Load("half0")
        yield Note(self.laws.hears, f"single {k}", value)


class ObituaryFirst(Crew):
    """The warden tells of a death, and poisons then."""

    def bury_ward(self, rank: int) -> Steps:
        yield See(self.reap, rank)
        yield from self.mourn(rank)


class BitsBeforeReason(Crew):
    """Poison breaks the words first and says why then."""

    def poison(self, reason: int, rank: int) -> Steps:
        yield from self.brk("gen")
        for i in range(self.ring):
            yield from self.brk(f"seq{i}")
        yield from self.brk("left")
        yield Cas("reason", 0, (rank & 0xFFFFFFFF) << 32 | reason)


class Impatient(Crew):
    """A failed region is over when the caller knows that it has failed."""

    def unsettled(self, m: View, size: int, epoch: int) -> str | None:
        return OVER


class EpochByItself(Crew):
    """A new worker reads by itself which region was the last."""

    def worker(self, rank: int) -> Steps:
        yield See(self.arise, rank)
        last = yield Load(f"launch{rank}")
        while True:
            bell = yield Load("bell")
            epoch = yield Load(f"launch{rank}")
            if epoch == last:
                yield Sleep("bell", bell, 1 << rank)
                continue
            bell = 0
            yield from self.run_region(rank, epoch)
            last = epoch


class NeverLooks(Crew):
    """The caller trusts in being woken."""

    def wait(self, size: int, epoch: int, late: bool) -> Steps:
        while True:
            v = yield Load("left")
            if v & BROKEN:
                return BREAK
            if v == tag(epoch):
                over = yield from self.ended(size, epoch)
                if over:
                    return OVER
            yield Sleep("left", v)


class EveryDeathPoisons(Crew):
    """The warden does not ask whether the dead had a part in the region."""

    def mourn(self, rank: int) -> Steps:
        yield Add("deaths", 1)
        yield from self.poison(DIED, rank)


class DeathsUncounted(Crew):
    """Whoever was at rest dies unnoticed."""

    def mourn(self, rank: int) -> Steps:
        launch = yield Load(f"launch{rank}")
        done = yield Load(f"done{rank}")
        if launch != done:
            yield from self.poison(DIED, rank)


class DeathsReadLate(Crew):
    """The caller reads how many have died after it has looked who."""

    def mend(self, epoch: int, workers: tuple[bool, ...]) -> Steps:
        reason = yield Load("reason")
        damaged = reason != 0
        while True:
            gone = yield from self.look_for_dead(workers)
            workers = yield from self.bury(epoch, workers, gone)
            if not damaged and not gone:
                deaths = yield Load("deaths")
                yield Note(self.note_deaths, deaths)
                return workers
            damaged = False
            yield from self.repair()


class AllHaveFallen(Crew):
    """The caller takes everybody who has ended for one that the region misses."""

    def fallen(
        self, m: View, size: int, epoch: int, workers: tuple[bool, ...]
    ) -> tuple[int, ...] | str:
        return self.gone_ranks(m, workers)


class WardenIsTrusted(Crew):
    """The caller leaves it to the warden to poison for the dead."""

    def attend_death(self, size: int, epoch: int, workers: tuple[bool, ...]) -> Steps:
        yield See(self.pass_by, workers)
        return False

    def pass_by(self, m: View, workers: tuple[bool, ...]) -> bool:
        m["past"] = self.gone_ranks(m, workers)
        return self.watch(m, workers)


class BuriedUntold(Crew):
    """Who has ended is replaced before the warden has said so: its poison comes later."""

    def obituaries(self, m: View, of: tuple[int, ...]) -> str | None:
        return "told"


class NotOutlived(Crew):
    """The warden has gone, and its workers will follow some time."""

    def outlive(self, workers: tuple[bool, ...]) -> Steps:
        yield from ()


class WhoeverHasEnded(Crew):
    """Nobody looks any more at those that have ended, be they seen to or not."""

    def watch(self, m: View, workers: tuple[bool, ...]) -> bool:
        m["watched"] = tuple(known and m[f"fate{r}"] == ALIVE for r, known in enumerate(workers))
        return True


class PastForgotten(Crew):
    """Who has been seen to have ended at rest is replaced when the warden has counted it."""

    def sound(self) -> Steps:
        reason = yield Load("reason")
        deaths = yield Load("deaths")
        mourned = yield Load("mourned")
        return reason == 0 and deaths == mourned
