"""What a worker does in a region: the twin of member.pyx, loops.pyx and worker.py.

A kernel is a tuple of steps: named tuples below. Places, messages and values are left out; of what
ranks hand to each other (`cancel`, `single`), only whose it is.
"""

from __future__ import annotations

from typing import Any, NamedTuple
from zlib import crc32

from model.laws import ALIVE, Laws
from model.operations import Add, Await, Cas, Load, Note, Pick, See, Sleep, Store, Value
from model.search import View
from model.words import BROKEN, CLASH, DIVERGED, FINISHED, LEFT, RAISED, WAIT, Control, Steps, mix


class Loop(NamedTuple):
    """A prange: chunks are numbered over the team; those in `cancel` end it."""

    kind: str  # static, dynamic or auto, of which each rank's share has `chunks` chunks
    chunks: int
    nowait: bool = False
    cancel: tuple[int, ...] = ()
    leave: int = -1  # the chunk in which the kernel breaks out of the loop


class Barrier(NamedTuple):
    line: int = 1


class Critical(NamedTuple):
    """Nested critical blocks, the outermost first."""

    names: tuple[int, ...] = (0,)


class Single(NamedTuple):
    """Rank 0 makes a value, all get it."""


class Raise(NamedTuple):
    """The kernel raises."""


class Spin(NamedTuple):
    """The kernel computes for ever, or until the stop signal."""

    deaf: bool = False


Kernel = tuple[Any, ...]


class Failed(Exception):
    """A rank leaves its kernel."""


class Ranks(Control):
    """The verbs of a rank, and the worker that runs them."""

    def __init__(self, ring: int, locks: int, ranks: int) -> None:
        super().__init__(ring, locks, ranks)
        self.laws = Laws(ranks, locks)
        self.kernels: dict[int, tuple[Kernel, ...]] = {}  # by what the mailbox says: one per rank

    def words(self) -> dict[str, Value]:
        words = super().words() | self.laws.words() | {"mailbox": (0, 0)}
        for r in range(self.ranks):
            own = ["fate", "birth", "hello", "ward", "told", "born", "stop"]
            words |= {f"{name}{r}": 0 for name in own}
            words |= {f"area{r}.{i}": 0 for i in range(self.ring)}
            words |= {f"half{i}": 0 for i in range(2)}
        return words

    # -- waiting -------------------------------------------------------------------------------

    def released(self, rank: int) -> Steps:
        yield Note(self.laws.meets_break, rank)
        raise Failed

    def meet(self, rank: int, size: int, at: int, history: int) -> Steps:
        before = yield Load("gen")
        if before & BROKEN:
            yield from self.released(rank)
        yield Store(f"stopped{rank}", before | 1)
        yield Note(self.laws.arrives, rank)
        how = yield from self.arrive(rank, size, mix(history, at) | 1)
        if how == CLASH:
            raise Failed
        while how == WAIT:
            yield Sleep("gen", before)
            now = yield Load("gen")
            if (now ^ before) & ~BROKEN:
                break
            if now & BROKEN:
                yield from self.released(rank)
        yield Note(self.laws.passes, rank, size)
        yield Store(f"stopped{rank}", 0)

    def enter_loop(self, rank: int, size: int, number: int) -> Steps:
        i = number % self.ring
        while True:
            now = yield Load(f"seq{i}")
            if now == number << 1:
                return
            if now & BROKEN:
                yield from self.released(rank)
            if number >= self.ring:
                stuck = yield from self.stuck(size, number - self.ring)
                if stuck:
                    yield from self.poison(DIVERGED, rank)
                    raise Failed
            yield from self.await_slot(i, number)

    def await_slot(self, i: int, number: int) -> Steps:
        yield Add(f"sleepers{i}", 1)
        now = yield Load(f"seq{i}")
        if now != number << 1 and not now & BROKEN:
            yield Sleep(f"seq{i}", now)
        yield Add(f"sleepers{i}", -1)

    def enter_lock(self, rank: int, k: int) -> Steps:
        word = f"lock{k}"
        got, seen = yield from self.take(word, rank, False)
        if got == 0:
            yield Store(f"waits{rank}", k + 1)
            while got == 0:
                yield Sleep(word, seen)
                got, seen = yield from self.take(word, rank, True)
                if got == 0:
                    knot = yield from self.knotted(rank)
                    if knot:
                        yield from self.poison(RAISED, rank)
                        yield Store(f"waits{rank}", 0)
                        raise Failed
            yield Store(f"waits{rank}", 0)
        if got < 0:
            yield from self.released(rank)
        yield Note(self.laws.enters, rank, k)

    def critical(self, rank: int, names: tuple[int, ...]) -> Steps:
        for k in names:
            yield from self.enter_lock(rank, k)
        yield Pick("the block's body")
        for k in reversed(names):
            yield Note(self.laws.leaves, k)
            yield from self.give(f"lock{k}")

    # -- loops ---------------------------------------------------------------------------------

    def glance(self, m: View, i: int) -> tuple[int, int]:
        return m[f"seq{i}"], m[f"cancel{i}"]

    def claim(self, rank: int, size: int, number: int, loop: Loop, dealt: int) -> Steps:
        i = number % self.ring
        if loop.kind == "static":
            k = rank + dealt * size
            return k if k < loop.chunks else -1
        if loop.kind == "dynamic":
            k = yield Add(f"next{i}", 1)
            return k if k < loop.chunks else -1
        k = yield from self.steal(rank, i, loop.chunks, True)
        if k >= 0:
            return rank * loop.chunks + k
        while True:
            most, richest = 0, -1
            for r in range(size):
                v = yield Load(f"steal{r}.{i}")
                left = loop.chunks - (v & 0xFFFFFFFF) - (v >> 32)
                if left > most:
                    most, richest = left, r
            if richest < 0:
                return -1
            k = yield from self.steal(richest, i, loop.chunks, False)
            if k >= 0:
                return richest * loop.chunks + k

    def run_loop(self, rank: int, size: int, number: int, history: int, loop: Loop) -> Steps:
        yield from self.enter_loop(rank, size, number)
        i = number % self.ring
        dealt = 0
        while True:
            seen = yield See(self.glance, i)
            if seen[0] & BROKEN:
                yield from self.released(rank)
            if seen != (number << 1, 0):
                break
            k = yield from self.claim(rank, size, number, loop, dealt)
            dealt += loop.kind == "static"
            if k < 0:
                break
            yield Note(self.laws.claims, number, k)
            if k in loop.cancel:
                yield from self.cancel(rank, i, number)
            if k == loop.leave:
                yield from self.poison(LEFT, rank)
                raise Failed
        k = seen = dealt = 0
        if not loop.nowait:
            yield from self.meet(rank, size, 2, history)
        yield from self.collect_cancel(rank, i, number)
        yield Store(f"through{rank}", number + 1)
        yield from self.leave(number, size, loop.kind == "auto")

    def cancel(self, rank: int, i: int, number: int) -> Steps:
        who = yield Load(f"cancel{i}")
        if who:
            return
        yield Store(f"area{rank}.{i}", (number, rank))
        who = yield Cas(f"cancel{i}", 0, rank + 1)
        if who == 0:
            yield Note(self.laws.hears, f"loop {number}", (number, rank))

    def collect_cancel(self, rank: int, i: int, number: int) -> Steps:
        who = yield Load(f"cancel{i}")
        if who == 0:
            yield Note(self.laws.hears, f"loop {number}", None)
        elif who - 1 != rank:
            value = yield Load(f"area{who - 1}.{i}")
            yield Note(self.laws.hears, f"loop {number}", value)

    def exchange(self, rank: int, size: int, epoch: int, k: int, history: int) -> Steps:
        if rank == 0:
            yield Store(f"half{k & 1}", (epoch, k))
        yield from self.meet(rank, size, 3, history)
        if rank:
            value = yield Load(f"half{k & 1}")
            yield Note(self.laws.hears, f"single {k}", value)
        else:
            yield Note(self.laws.hears, f"single {k}", (epoch, k))

    # -- a region ------------------------------------------------------------------------------

    def run_kernel(self, rank: int, size: int, epoch: int, number: int, kernel: Kernel) -> Steps:
        """The kernel and its end; `number` is of its first loop."""
        history = 1
        exchanges = 0
        for at in range(len(kernel)):
            step = kernel[at]
            if isinstance(step, Loop):
                history = mix(history, crc32(repr(step).encode()))
                number += 1
                yield from self.run_loop(rank, size, number - 1, history, step)
            elif isinstance(step, Barrier):
                yield from self.meet(rank, size, 4 + step.line, history)
            elif isinstance(step, Critical):
                yield from self.critical(rank, step.names)
            elif isinstance(step, Single):
                exchanges += 1
                yield from self.exchange(rank, size, epoch, exchanges - 1, history)
            elif isinstance(step, Spin):
                if step.deaf:
                    yield Await(f"stop{rank}", "never")
                yield Await(f"stop{rank}", 1)
                raise Failed
            else:
                raise Failed
        yield Store(f"loops{rank}", number)
        yield Store(f"stopped{rank}", FINISHED)
        how = yield from self.finish(rank, history)
        if how == CLASH:
            raise Failed

    def run_region(self, rank: int, epoch: int) -> Steps:
        mailbox, which = yield Load("mailbox")
        yield Note(self.laws.begins, rank, epoch, mailbox)
        size = yield Load("size")
        base = yield Load("base")
        reason = yield Load("reason")
        failed = True
        if not reason:
            try:
                kernel = self.kernels[which][rank]
                yield from self.run_kernel(rank, size, epoch, base, kernel)
                failed = False
            except Failed:
                pass
        base = 0
        if failed:
            yield from self.poison(RAISED, rank)
        else:
            yield Note(self.laws.has_ended, rank, epoch)
        yield Store(f"outcome{rank}", int(failed))
        yield from self.done(rank, epoch)

    def acknowledged(self, rank: int) -> Steps:
        yield Note(self.laws.acknowledges, rank)

    def counted(self, rank: int, epoch: int) -> Steps:
        yield Note(self.laws.counts, rank, epoch)

    def arise(self, m: View, rank: int) -> int | None:
        """A fork's first words; its last epoch, as it was told."""
        if m[f"fate{rank}"] != ALIVE:
            return None
        m[f"hello{rank}"] = 1
        return int(m[f"birth{rank}"])

    def worker(self, rank: int) -> Steps:
        last = yield See(self.arise, rank)
        while True:
            bell = yield Load("bell")
            epoch = yield Load(f"launch{rank}")
            if epoch == last:
                yield Sleep("bell", bell, 1 << rank)
                continue
            bell = 0
            yield from self.run_region(rank, epoch)
            last = epoch


__all__ = ["Barrier", "Critical", "Failed", "Kernel", "Loop", "Raise", "Ranks", "Single", "Spin"]
