"""The twin of control.h and locks.h: the words of a control block, and what is done to them.

Each method is the C function of that name, operation by operation; `tests/test_model.py` holds the
two together. Names of words: "left", "seq0" of slot 0, "done1" of rank 1, "steal1.0" of rank 1 and
slot 0. The numbers in them are those of the C code.

Assumes
-------
Plain stores of the C code (`dsm_launch`, `dsm_repair`, `dsm_leave`) are in this order; that others
see them in any order up to the next releasing store is shown by a variant of its own.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from model.operations import Add, And, Cas, Load, Op, Or, Store, Value, Wake

BROKEN = 1
NONE, RAISED, DIVERGED, LEFT, DIED, INTERRUPTED, LATE = range(7)
PASS, WAIT, CLASH = range(3)
FINISHED = 0xFFFFFFFF
MASK = (1 << 64) - 1

Steps = Generator[Op, Any, Any]


def mix(h: int, v: int) -> int:
    """dsm_mix."""
    h = (h ^ v) * 0x9E3779B97F4A7C15 & MASK
    h ^= h >> 32
    h = h * 0xD6E8FEB86659FD93 & MASK
    return h ^ h >> 29


def tag(epoch: int) -> int:
    """dsm_tag."""
    return (epoch & 0x7FFFF) << 13


def bits(size: int) -> int:
    """dsm_bits: those of ranks 0 to size - 1."""
    return 0xFFFFFFFF if size > 31 else (1 << size) - 1


class Control:
    """The transitions of a block with `ring` slots, `locks` locks and `ranks` ranks."""

    def __init__(self, ring: int = 8, locks: int = 1, ranks: int = 2) -> None:
        self.ring = ring
        self.locks = locks
        self.ranks = ranks

    def words(self) -> dict[str, Value]:
        """Every word, as `dsm_repair` leaves them in new memory."""
        words: dict[str, Value] = dict.fromkeys(
            ["bell", "left", "spoken", "deaths", "reason", "gen", "count", "signature", "ending"], 0
        )
        words |= {"size": 0, "base": 0, "table": 0, "used": 0}
        for i in range(self.ring):
            words |= {f"seq{i}": i << 1}
            words |= dict.fromkeys([f"cancel{i}", f"gone{i}", f"sleepers{i}", f"next{i}"], 0)
        for k in range(self.locks):
            words[f"lock{k}"] = 0
        for r in range(self.ranks):
            own = ["launch", "done", "outcome", "loops", "stopped", "through", "waits"]
            words |= {f"{name}{r}": 0 for name in own}
            words |= {f"steal{r}.{i}": 0 for i in range(self.ring)}
        return words

    # -- failing -------------------------------------------------------------------------------

    def brk(self, word: str) -> Steps:
        yield Or(word, BROKEN)
        yield Wake(word)

    def poison(self, reason: int, rank: int) -> Steps:
        yield Cas("reason", 0, (rank & 0xFFFFFFFF) << 32 | reason)
        yield from self.brk("gen")
        for i in range(self.ring):
            yield from self.brk(f"seq{i}")
        for k in range(self.locks):
            yield from self.brk(f"lock{k}")  # each of them has a name here
        yield from self.brk("table")
        yield from self.brk("left")

    def repair(self) -> Steps:
        for i in range(self.ring):
            yield Store(f"cancel{i}", 0)
            yield Store(f"gone{i}", 0)
            yield Store(f"sleepers{i}", 0)
            yield Store(f"next{i}", 0)
            yield Store(f"seq{i}", i << 1)
        for r in range(self.ranks):
            for i in range(self.ring):
                yield Store(f"steal{r}.{i}", 0)
        for k in range(self.locks):
            yield Store(f"lock{k}", 0)
        yield Store("used", 0)
        yield Store("table", 0)
        yield Store("loops0", 0)
        yield Store("count", 0)
        yield Store("signature", 0)
        yield Store("ending", 0)
        yield Store("gen", 0)
        yield Store("left", 0)
        yield Store("reason", 0)

    # -- a region ------------------------------------------------------------------------------

    def prepare(self, size: int) -> Steps:
        """The plain stores of dsm_launch."""
        yield Store("size", size)
        base = yield Load("loops0")
        yield Store("base", base)
        yield Store("count", 0)
        yield Store("ending", 0)
        for k in range(self.locks):
            yield Store(f"lock{k}", 0)
        yield Store("used", 0)
        return base

    def mourn(self, rank: int) -> Steps:
        yield Add("deaths", 1)
        launch = yield Load(f"launch{rank}")
        done = yield Load(f"done{rank}")
        if launch != done:
            yield from self.poison(DIED, rank)

    def over(self) -> Steps:
        size = yield Load("size")
        for r in range(size):
            launch = yield Load(f"launch{r}")
            done = yield Load(f"done{r}")
            if launch != done:
                return False
        return True

    def launch(self, size: int, epoch: int, deaths: int) -> Steps:
        base = yield from self.prepare(size)
        yield Store("left", tag(epoch) | size << 1)
        reason = yield Load("reason")
        if reason:
            return reason
        now = yield Load("deaths")
        if now != deaths:
            return DIED
        for r in range(size):
            yield Store(f"stopped{r}", 0)
            yield Store(f"through{r}", base)
        for r in range(size):
            yield Store(f"launch{r}", epoch)
        yield Add("bell", 2)
        yield Wake("bell", bits(size))
        return 0

    def done(self, rank: int, epoch: int) -> Steps:
        yield Store(f"done{rank}", epoch)
        yield from self.acknowledged(rank)
        v = yield Load("left")
        while True:
            if v & ~0x1FFF != tag(epoch) or v & 0x1FFE == 0:
                return
            found = yield Cas("left", v, v - 2)
            if found == v:
                break
            v = found
        yield from self.counted(rank, epoch)
        if v & 0x1FFE == 2:
            yield Wake("left")

    def acknowledged(self, rank: int) -> Steps:
        """Nothing, but for the laws."""
        yield from ()

    def counted(self, rank: int, epoch: int) -> Steps:
        """Likewise."""
        yield from ()

    # -- barriers ------------------------------------------------------------------------------

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
        yield Store("signature", 0)
        yield Store("count", 0)
        yield Add("gen", 2)
        if size > 1:
            yield Wake("gen")
        return PASS

    def finish(self, rank: int, history: int) -> Steps:
        first = yield Cas("ending", 0, history)
        same = first in (0, history)
        old = yield Add("count", 1 << 32)
        if same and old & 0xFFFFFFFF == 0:
            return PASS
        yield from self.poison(DIVERGED, rank)
        return CLASH

    # -- loops ---------------------------------------------------------------------------------

    def stuck(self, size: int, number: int) -> Steps:
        for r in range(size):
            stopped = yield Load(f"stopped{r}")
            if not stopped:
                continue
            through = yield Load(f"through{r}")
            if through > number:
                continue
            if stopped == FINISHED:
                return True
            gen = yield Load("gen")
            if gen == stopped & ~1:
                return True
        return False

    def leave(self, number: int, size: int, stealing: bool) -> Steps:
        i = number % self.ring
        old = yield Add(f"gone{i}", 1)
        if old + 1 < size:
            return
        yield from self.remake(i, size, stealing)
        yield from self.move_on(number)

    def remake(self, i: int, size: int, stealing: bool) -> Steps:
        """The plain stores of dsm_leave."""
        if stealing:
            for r in range(size):
                yield Store(f"steal{r}.{i}", 0)
        yield Store(f"gone{i}", 0)
        yield Store(f"next{i}", 0)
        yield Store(f"cancel{i}", 0)

    def move_on(self, number: int) -> Steps:
        i = number % self.ring
        found = yield Cas(f"seq{i}", number << 1, number + self.ring << 1)
        if found != number << 1:
            return
        sleepers = yield Load(f"sleepers{i}")
        if sleepers:
            yield Wake(f"seq{i}")

    def steal(self, victim: int, i: int, length: int, owner: bool) -> Steps:
        v = yield Load(f"steal{victim}.{i}")
        if (v & 0xFFFFFFFF) + (v >> 32) >= length:
            return -1
        v = yield Add(f"steal{victim}.{i}", 1 if owner else 1 << 32)
        front, back = v & 0xFFFFFFFF, v >> 32
        if front + back >= length:
            return -1
        return front if owner else length - 1 - back

    # -- locks ---------------------------------------------------------------------------------

    def take(self, word: str, rank: int, waited: bool) -> Steps:
        """(1, 0) taken, (0, the word to sleep on) not, (-1, 0) broken."""
        mine = rank + 1 << 2 | (2 if waited else 0)
        while True:
            v = yield Cas(word, 0, mine)
            if v == 0:
                return 1, 0
            if v & BROKEN:
                return -1, 0
            if v & 2:
                return 0, v
            found = yield Cas(word, v, v | 2)
            if found == v:
                return 0, v | 2

    def give(self, word: str) -> Steps:
        v = yield And(word, BROKEN)
        if v & 2:
            yield Wake(word, many=False)

    def knotted(self, rank: int) -> Steps:
        """The ranks that wait for each other, `rank` first; () if there is no such ring."""
        knot: tuple[int, ...] = ()
        r = rank
        while True:
            k = yield Load(f"waits{r}")
            if k == 0 or len(knot) == self.ranks:
                return ()
            knot += (r,)
            word = yield Load(f"lock{k - 1}")
            if word >> 2 == 0:
                return ()
            r = (word >> 2) - 1
            if r == rank:
                break
        for i in reversed(range(len(knot))):
            k = yield Load(f"waits{knot[i]}")
            following = knot[i + 1] if i + 1 < len(knot) else rank
            if k == 0:
                return ()
            word = yield Load(f"lock{k - 1}")
            if word >> 2 != following + 1:
                return ()
            again = yield Load(f"waits{knot[i]}")
            if again != k:
                return ()
        return knot
