"""What workers print: PROTOCOL.md, section 8, as a model of its own.

Two workers print some lines into a socket with room for few and end their region; the caller sleeps
on `left` and writes what comes. The twin of `Block.wait`, `Block.speak`, `Relay.deliver` and
`Crew.listen`.
"""

from __future__ import annotations

from functools import partial

from model.laws import hold
from model.operations import Add, Load, Note, Op, See, Sleep, Store, Wake
from model.search import Search, View
from model.words import Steps

SPOKEN, DONE = "spoken", "done"


class Relay:
    """A region in which each of `size` workers prints `lines`; the socket has `room`."""

    def __init__(self, size: int, lines: int, room: int) -> None:
        self.size = size
        self.lines = lines
        self.room = room

    # -- a worker ------------------------------------------------------------------------------

    def send(self, m: View) -> str:
        if m["socket"] == self.room:
            return "full"
        m["socket"] += 1
        return "sent"

    def has_room(self, m: View) -> bool | None:
        return True if m["socket"] < self.room else None

    def speak(self, again: bool) -> Steps:
        old = yield Op("swap", "spoken", lambda v: (1, v))
        if not old or again:
            yield Wake("left")

    def worker(self, rank: int) -> Steps:
        for _k in range(self.lines):
            how = yield See(self.send)
            while how == "full":
                yield from self.ask_for_room()
                how = yield See(self.send)
            yield from self.speak(False)
        yield Store(f"done{rank}", 1)
        old = yield Add("left", -2)
        if old == 2:
            yield Wake("left")

    def ask_for_room(self) -> Steps:
        """Every 20 ms, until there is room."""
        yield from self.speak(True)

    # -- the caller ----------------------------------------------------------------------------

    def ended(self) -> Steps:
        for r in range(self.size):
            done = yield Load(f"done{r}")
            if not done:
                return False
        return True

    def wait(self) -> Steps:
        while True:
            v = yield Load("left")
            if v == 0:
                over = yield from self.ended()
                if over:
                    spoken = yield Load("spoken")
                    return SPOKEN if spoken else DONE
            spoken = yield Load("spoken")
            if not spoken:
                yield Sleep("left", v)
                spoken = yield Load("spoken")
            if spoken:
                return SPOKEN

    def receive(self, m: View) -> bool:
        if m["socket"] == 0:
            return False
        m["socket"] -= 1
        m["written"] += 1
        return True

    def deliver(self) -> Steps:
        yield Store("spoken", 0)
        some = True
        while some:
            some = yield See(self.receive)

    def over(self, m: View) -> None:
        written = m["written"]
        hold(written == self.size * self.lines, f"the region is over and {written} lines are there")

    def caller(self) -> Steps:
        while True:
            how = yield from self.wait()
            if how == DONE:
                break
            over = yield from self.ended()
            yield from self.deliver()
            if over:
                break
        yield Note(self.over)

    def search(self, *, timed: bool) -> Search:
        words = {"left": 2 * self.size, "spoken": 0, "socket": 0, "written": 0}
        words |= {f"done{r}": 0 for r in range(self.size)}
        search = Search(words, set(), set(), timed)
        search.actor("caller", self.caller, fused=False)
        for r in range(self.size):
            search.actor(f"rank {r}", partial(self.worker, r), fused=False)
        search.done = lambda m: m.ended("caller")
        return search


class EmptiedFirst(Relay):
    """The caller receives what is there, and clears `spoken` then."""

    def deliver(self) -> Steps:
        some = True
        while some:
            some = yield See(self.receive)
        yield Store("spoken", 0)


class DoneIsEnough(Relay):
    """When all are done, nobody looks whether something was said."""

    def wait(self) -> Steps:
        while True:
            v = yield Load("left")
            if v == 0:
                over = yield from self.ended()
                if over:
                    return DONE
            spoken = yield Load("spoken")
            if spoken:
                return SPOKEN
            yield Sleep("left", v)


class AskedOnce(Relay):
    """A worker that finds no room wakes the caller once, and waits."""

    def ask_for_room(self) -> Steps:
        yield from self.speak(False)
        yield See(self.has_room)
