"""The quarantine of arena blocks: PROTOCOL.md, section 7, as a model of its own.

One block, which a first region has named. Workers keep it or not, hand it to each other in later
regions, drop it, die and are replaced; the caller lets it go, asks idle workers, hears them, and
uses it again. What the regions themselves do is the other model's.
"""

from __future__ import annotations

from functools import partial

from model.laws import hold
from model.operations import Load, Note, Pick, See, Store
from model.search import Hazard, Search, View
from model.words import Steps


class Quarantine:
    """A crew of `size` workers, `regions` regions after the block was let go."""

    def __init__(self, size: int, regions: int) -> None:
        self.size = size
        self.regions = regions

    # -- a worker ------------------------------------------------------------------------------

    def stir(self, m: View, rank: int, last: int) -> tuple[int, int] | None:
        """`standby`: the region to be run or 0, and the question to be answered or 0."""
        launch, question = m[f"launch{rank}"], m[f"asked{rank}"]
        new = launch if launch != last else 0
        ask = question if question != m[f"read{rank}"] else 0
        return (new, ask) if new or ask else None

    def answer(self, m: View, rank: int, question: int) -> bool:
        """Whether it holds the block goes to its page; then the letter counts as read."""
        m[f"answer{rank}"] = question, m[f"holds{rank}"]
        m[f"read{rank}"] = question
        return True

    def hand_over(self, m: View, rank: int) -> bool:
        if m[f"holds{rank}"]:
            m["between"] = 1
        return True

    def take(self, m: View, rank: int) -> bool:
        if m["between"]:
            self.sees(m)
            m[f"holds{rank}"] = 1
        return True

    def sees(self, m: View) -> None:
        hold(m["block"] != "free", "a worker sees a block that is used again")

    def drop(self, m: View, rank: int) -> bool:
        m[f"holds{rank}"] = 0
        return True

    def serve(self, rank: int, epoch: int, question: int) -> Steps:
        if question:
            yield See(self.answer, rank, question)
        if epoch:
            yield from self.run(rank, epoch)

    def run(self, rank: int, epoch: int) -> Steps:
        """A kernel does with the block what it can, in any order."""
        for _ in range(2):
            what = yield Pick("nothing", "give", "take", "drop")
            if what == "give":
                yield See(self.hand_over, rank)
            elif what == "take":
                yield See(self.take, rank)
            elif what == "drop":
                yield See(self.drop, rank)
        what = ""
        yield Store(f"done{rank}", epoch)

    def worker(self, rank: int) -> Steps:
        last = yield See(self.arise, rank)
        while True:
            epoch, question = yield See(self.stir, rank, last)
            yield from self.serve(rank, epoch, question)
            if epoch:
                last = epoch

    def arise(self, m: View, rank: int) -> int | None:
        return int(m[f"birth{rank}"]) if m[f"alive{rank}"] else None

    # -- the caller ----------------------------------------------------------------------------

    def rest(self, m: View) -> bool | None:
        """All have ended the region, or have died and are replaced, knowing nothing."""
        for r in range(self.size):
            if not m[f"alive{r}"]:
                m[f"alive{r}"] = 1
                m[f"born{r}"] += 1
                m[f"done{r}"] = m[f"birth{r}"] = m[f"launch{r}"]
                m[f"asked{r}"] = m[f"read{r}"] = 0
                m[f"answer{r}"] = 0, 0
        if any(m[f"done{r}"] != m[f"launch{r}"] for r in range(self.size)):
            return None
        m["between"] = 0  # pages are read only after they were written anew
        return True

    def ask(self, m: View, question: int) -> tuple[int, ...]:
        """The letter to every worker; whom it went to: their incarnations."""
        for r in range(self.size):
            if m[f"alive{r}"]:
                m[f"asked{r}"] = question
        return tuple(m[f"born{r}"] for r in range(self.size))

    def hear(self, m: View, question: int, whom: tuple[int, ...], since: bool) -> str:
        """`since`: there was a region after the question; who died in it may have handed it on."""
        there = [r for r in range(self.size) if m[f"alive{r}"] and m[f"born{r}"] == whom[r]]
        if any(m[f"read{r}"] != m[f"asked{r}"] for r in there):
            return "unread"
        void = since and len(there) < self.size
        held = [m[f"answer{r}"] != (question, 0) for r in there]
        return "held" if void or any(held) else "gone"

    def release(self, m: View) -> None:
        holders = [r for r in range(self.size) if m[f"alive{r}"] and m[f"holds{r}"]]
        hold(not holders, f"the block is used again, and ranks {holders} see it")
        m["block"] = "free"

    def turn(self, epoch: int, question: int, whom: tuple[int, ...] | None, asked: int) -> Steps:
        """Hear and ask an idle crew; (question, whom, asked) of the round that is under way."""
        if whom is not None:
            how = yield See(self.hear, question, whom, asked != epoch)
            if how == "unread":
                return question, whom, asked
            whom = None
            if how == "gone":
                yield Note(self.release)
                return -1, None, asked
        if asked != epoch:
            question += 1
            whom = yield See(self.ask, question)
            asked = epoch
        return question, whom, asked

    def caller(self) -> Steps:
        question, whom, asked = 0, None, 0
        for epoch in range(2, 2 + self.regions + 1):
            yield See(self.rest)
            turns = yield Pick(0, 1, 2)
            for _k in range(turns):
                question, whom, asked = yield from self.turn(epoch, question, whom, asked)
                if question < 0:
                    break
            turns = 0
            if question < 0:
                break
            for r in range(self.size):
                yield Store(f"launch{r}", epoch)
        yield Load("block")

    def search(self, deaths: int = 0) -> Search:
        words: dict[str, object] = {"block": "quarantined", "between": 0, "deaths": 0}
        for r in range(self.size):
            words |= {f"{w}{r}": 0 for w in ("asked", "read", "born")}
            words |= {f"answer{r}": (0, 0), f"alive{r}": 1}
            words |= {f"holds{r}": int(r == 0), f"launch{r}": 1, f"done{r}": 1, f"birth{r}": 1}
        search = Search(words, set(), set(), False)
        search.actor("caller", self.caller)
        for r in range(self.size):
            search.actor(f"rank {r}", partial(self.worker, r))

        def may_die(rank: int, m: View) -> bool:
            return m["deaths"] < deaths and bool(m[f"alive{rank}"])

        def die(rank: int, m: View) -> None:
            m["deaths"] += 1
            m[f"alive{rank}"] = m[f"holds{rank}"] = 0
            m.kill(f"rank {rank}")

        if deaths:
            for r in range(self.size):
                search.hazards.append(
                    Hazard(f"rank {r} is killed", partial(may_die, r), partial(die, r))
                )
        search.done = lambda m: m.ended("caller")
        return search


class OldAnswers(Quarantine):
    """Who has said no once is not asked any more: the answers are of different idle times."""

    def ask(self, m: View, question: int) -> tuple[int, ...]:
        for r in range(self.size):
            if m[f"alive{r}"] and m[f"answer{r}"] in ((0, 0), (question - 1, 1)):
                m[f"asked{r}"] = question
        return tuple(m[f"born{r}"] for r in range(self.size))

    def hear(self, m: View, question: int, whom: tuple[int, ...], since: bool) -> str:
        there = [r for r in range(self.size) if m[f"alive{r}"] and m[f"born{r}"] == whom[r]]
        if any(m[f"read{r}"] != m[f"asked{r}"] for r in there):
            return "unread"
        return "held" if any(m[f"answer{r}"][1] for r in there) else "gone"


class AnsweredLate(Quarantine):
    """A worker runs its region before it reads its letters."""

    def serve(self, rank: int, epoch: int, question: int) -> Steps:
        if epoch:
            yield from self.run(rank, epoch)
        if question:
            yield See(self.answer, rank, question)


class AnyAnswer(Quarantine):
    """A question that was lost counts as answered by what was said before."""

    def answer(self, m: View, rank: int, question: int) -> bool:
        if question != 1:
            m[f"answer{rank}"] = question, m[f"holds{rank}"]
        m[f"read{rank}"] = question
        return True

    def hear(self, m: View, question: int, whom: tuple[int, ...], since: bool) -> str:
        there = [r for r in range(self.size) if m[f"alive{r}"] and m[f"born{r}"] == whom[r]]
        if any(m[f"read{r}"] != m[f"asked{r}"] for r in there):
            return "unread"
        return "held" if any(m[f"answer{r}"][1] for r in there) else "gone"


class DeadLeftOut(Quarantine):
    """Who has died is left out of a round, whatever it did since it was asked."""

    def hear(self, m: View, question: int, whom: tuple[int, ...], since: bool) -> str:
        return super().hear(m, question, whom, False)
