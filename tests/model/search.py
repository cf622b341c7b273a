"""A small model checker: all interleavings of a few actors over shared words.

An actor is a generator function. Each `yield` is one atomic operation (`operations`);
what lies between two of them is the actor's own and takes no time. The checker runs an actor from
each of its local states once for each answer that it can get, remembers where that led, and from
then on only follows the table, so the search itself never runs the actors' code.

Guarantees
----------
- Every interleaving of the operations is looked at, up to states that are equal. A state is all
  words and, of each actor, the chain of its suspended frames with their local variables.
- A futex sleeper compares in the same step in which it falls asleep, and is woken by `Wake` alone,
  or at any later moment if its sleeps are timed.
- The trace of what breaks a law is a shortest one.

Assumes
-------
- Local variables of actors are hashable and never changed in place, no half-evaluated expression
  is kept over a `yield`, and no exception is being handled over one: what is not in the local
  variables would be missing from the state.
- Memory is sequentially consistent. PROTOCOL.md, section 10, says why that is enough here.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from model.automata import Automaton, Local
from model.operations import CHANGED, TIMEOUT, Actor, Op, Value, Words


class LawBroken(Exception):
    """What the laws raise."""


class Found(Exception):
    """A law does not hold. The message is the trace that shows it."""

    def __init__(self, law: str, trace: list[str]) -> None:
        self.law = law
        self.trace = trace
        super().__init__("\n".join([law, *trace]))


class View:
    """The words of a state, for laws; what they assign is part of the next state."""

    def __init__(self, search: Search, state: Any) -> None:
        self.search = search
        self.state = state  # bytes; a bytearray once something was assigned

    def __getitem__(self, word: str) -> Any:
        slot = self.search.slots.get(word)
        if slot is None:
            return self.search.fixed[word]
        return self.search.values[slot][self.state[slot]]

    def __setitem__(self, word: str, value: Value) -> None:
        slot = self.search.slots.get(word)
        if slot is not None:
            self.unfreeze()
            self.state[slot] = self.search.number(slot, value)
        else:
            assert word in self.search.unread or value == self.search.fixed[word], word

    def kill(self, name: str) -> None:
        """End the actor of that name: it is at its beginning again."""
        at = self.search.places[name]
        self.unfreeze()
        self.state[at] = self.state[at + 1] = 0

    def unfreeze(self) -> None:
        if type(self.state) is bytes:
            self.state = bytearray(self.state)

    def began(self, name: str) -> bool:
        at = self.search.places[name]
        return bool(self.state[at] or self.state[at + 1])

    def ended(self, name: str) -> bool:
        at = self.search.places[name]
        return self.search.local(name, self.state[at] | self.state[at + 1] << 8).kind == "end"


class Hazard(NamedTuple):
    """What may happen from outside while `may` says so. `sure`: it will, if nothing else does."""

    name: str
    may: Callable[[View], bool]
    happen: Callable[[View], None]
    sure: bool = False


class Search:
    """A breadth-first walk over all states that actors can bring words into.

    Parameters
    ----------
    words : dict
        Every shared word with its first value.
    unread : set of str
        Words that nobody loads in this search: stores to them are left out. A load is an error.
    constant : set of str
        Words that keep their first value, as whoever stores another one is told.
    timed : bool
        Sleeps may end by themselves, at any moment.
    """

    def __init__(self, words: Words, unread: set[str], constant: set[str], timed: bool) -> None:
        self.fixed = {word: words[word] for word in unread | constant}  # not in a state
        words = {word: value for word, value in words.items() if word not in self.fixed}
        self.slots = {word: i for i, word in enumerate(words)}
        self.unread = unread
        self.constant = {word: self.fixed[word] for word in constant}
        self.timed = timed
        self.values: list[list[Value]] = [[] for _ in words]
        self.known: list[dict[Value, int]] = [{} for _ in words]
        self.automata: list[Automaton] = []
        self.places: dict[str, int] = {}
        self.first = bytearray(self.number(i, value) for i, value in enumerate(words.values()))
        self.hazards: list[Hazard] = []
        self.settled: Callable[[View], None] = lambda _: None
        self.done: Callable[[View], bool] = lambda _: True
        self.looker = ""  # whose sleeps end by themselves when `may_look` says so
        self.may_look: Callable[[View], bool] = lambda _: False
        self.states = self.steps = 0
        self.moving: tuple[Automaton, Local] | None = None  # whose step a law is looking at

    def number(self, slot: int, value: Value) -> int:
        """The number by which a state holds the value of a word."""
        known = self.known[slot]
        if (number := known.get(value)) is None:
            number = known[value] = len(known)
            self.values[slot].append(value)
            assert number < 256, f"{list(self.slots)[slot]} takes too many values"
        return number

    def heed(self, actor: Actor, op: Op) -> Op:
        """The actor's next operation that is anybody's business: this one or a later one."""
        while True:
            word = op.word
            if word in self.constant:
                first = self.constant[word]
                if op.kind == "load":
                    op = actor.send(first)
                    continue
                assert op[::3] == ("store", (first,)), f"{word} is no constant: {op}"
                op = actor.send(None)
            elif word in self.unread:
                assert op.kind in ("store", "or", "wake"), f"{word} is read after all: {op}"
                op = actor.send(None)
            else:
                return op

    def actor(self, name: str, make: Callable[[], Actor], *, fused: bool = True) -> None:
        self.places[name] = len(self.first)
        automaton = Automaton(name, make, self, fused)
        automaton.shift = 8 * len(self.first)
        self.first += b"\0\0"
        self.automata.append(automaton)

    def local(self, name: str, number: int) -> Local:
        return next(a for a in self.automata if a.name == name).locals[number]

    # -- steps ---------------------------------------------------------------------------------

    def successors(self, state: int) -> Iterator[tuple[Any, int]]:
        """(who moves, the state that follows), for every possible next step."""
        b = state.to_bytes(len(self.first), "little")
        at = len(self.slots)
        for automaton in self.automata:
            number = b[at] | b[at + 1] << 8
            at += 2
            local = automaton.locals[number]
            kind = local.kind
            if kind == "asleep":
                if self.timed or (automaton.name == self.looker and self.may_look(View(self, b))):
                    yield automaton, state + (local.heir[TIMEOUT] - number << automaton.shift)
                continue
            if local.slot >= 0 and kind != "wake":
                value = b[local.slot]
                step = local.memo.get(value)
                if step is None:
                    step = local.memo[value] = self.step(automaton, number, local, value)
                delta, instant = step
                if delta is None:
                    continue
                yield (
                    automaton,
                    self.instantly(automaton, state + delta) if instant else state + delta,
                )
            elif kind != "end":
                for after in self.broad(automaton, number, local, state, b):
                    yield automaton, self.instantly(automaton, after)
        if self.hazards:
            now = View(self, b)
            for hazard in self.hazards:
                if hazard.may(now):
                    view = View(self, b)
                    hazard.happen(view)
                    yield hazard, int.from_bytes(view.state, "little")

    def step(
        self, automaton: Automaton, number: int, local: Local, value: int
    ) -> tuple[int | None, bool]:
        """What one operation adds to a state in which its word has this value."""
        held = self.values[local.slot][value]
        if local.kind == "sleep":
            if held == local.op.args[0]:
                return automaton.fall_asleep(number) - number << automaton.shift, False
            new, answer = held, CHANGED
        else:
            assert local.op.f is not None
            if (outcome := local.op.f(held)) is None:
                return None, False
            new, answer = outcome
        following = automaton.after(local, answer)
        delta = (self.number(local.slot, new) - value) << 8 * local.slot
        delta += following - number << automaton.shift
        return delta, automaton.locals[following].instant

    def broad(
        self, automaton: Automaton, number: int, local: Local, state: int, b: bytes
    ) -> Iterator[int]:
        """The states after an operation that is not on one word alone."""
        op = local.op

        def go(answer: Any) -> int:
            if answer not in local.memo:
                local.memo[answer] = automaton.after(local, answer)
            return int(local.memo[answer]) - number << automaton.shift

        if op.kind == "pick":
            for option in op.args:
                yield state + go(option)
        elif op.kind == "wake":
            bits, many = op.args
            woken = []
            at = len(self.slots)
            for other in self.automata:
                theirs = b[at] | b[at + 1] << 8
                at += 2
                sleeper = other.locals[theirs]
                if sleeper.kind == "asleep" and sleeper.slot == local.slot and sleeper.bits & bits:
                    woken.append(sleeper.heir[CHANGED] - theirs << other.shift)
            state += go(None)
            if many or not woken:
                yield state + sum(woken)
            else:
                yield from (state + one for one in woken)
        elif op.kind == "poll":
            assert op.f is not None
            for answer in op.f(View(self, b)):
                yield state + go(answer)
        else:
            assert op.f is not None
            self.moving = automaton, local
            view = View(self, b)
            answer = op.f(view, *op.args)
            if op.kind == "note":
                answer = None
            elif answer is None:
                return
            if view.state is not b:
                state = int.from_bytes(view.state, "little")
            yield state + go(answer)

    def instantly(self, automaton: Automaton, state: int) -> int:
        """Go on with an actor as long as its next steps belong to its last."""
        while True:
            number = state >> automaton.shift & 0xFFFF
            local = automaton.locals[number]
            if not local.instant:
                return state
            b = state.to_bytes(len(self.first), "little")
            if local.kind == "wake" and not local.op.args[1]:
                after = list(self.broad(automaton, number, local, state, b))
                if len(after) > 1:
                    return state  # which one is woken is a choice: a step of its own
                state = after[0]
                continue
            (state,) = self.broad(automaton, number, local, state, b)

    # -- the walk ------------------------------------------------------------------------------

    def run(self, *, live: bool = False, limit: int = 10**8) -> Search:
        """Look at every state.

        Parameters
        ----------
        live : bool
            Also prove that from each state one in which all is `done` can be reached.
        limit : int
            States after which to give up.

        Raises
        ------
        Found
            A law is broken, or there is a hang.
        """
        start = int.from_bytes(self.first, "little")
        came: dict[int, int | None] = {start: None}  # state -> the one that it was met from
        front = [start]
        sources, targets = array("q"), array("q")
        numbers = {start: 0} if live else {}
        good: list[int] = []
        while front:
            following: list[int] = []
            for state in front:
                moved = False
                try:
                    for who, after in self.successors(state):
                        chance = isinstance(who, Hazard) and not who.sure
                        moved = moved or not chance
                        self.steps += 1
                        if after not in came:
                            came[after] = state
                            following.append(after)
                            if live:
                                numbers[after] = len(numbers)
                        if live and not chance:
                            sources.append(numbers[state])
                            targets.append(numbers[after])
                except LawBroken as broken:
                    assert self.moving is not None
                    last = f"      and then {self.moving[0].name}: {self.moving[1].text}"
                    raise Found(str(broken), [*self.trace(came, state), last]) from None
                if not moved or live:
                    view = View(self, bytearray(state.to_bytes(len(self.first), "little")))
                    done = self.done(view)
                    if done and live:
                        good.append(numbers[state])
                    if not moved:
                        if not done:
                            raise Found("everybody waits for ever", self.trace(came, state))
                        try:
                            self.settled(view)
                        except LawBroken as broken:
                            raise Found(str(broken), self.trace(came, state)) from None
            front = following
            assert len(came) < limit, f"more than {limit} states"
        self.states = len(came)
        if live:
            self.check_live(came, sources, targets, good)
        return self

    def check_live(
        self, came: dict[int, int | None], sources: array[int], targets: array[int], good: list[int]
    ) -> None:
        """Every state leads to a good one: walk the steps backwards from those."""
        begin = array("q", bytes(8 * (len(came) + 1)))
        for target in targets:
            begin[target + 1] += 1
        for i in range(len(came)):
            begin[i + 1] += begin[i]
        fill = array("q", begin)
        before = array("q", bytes(8 * len(sources)))
        for source, target in zip(sources, targets, strict=True):
            before[fill[target]] = source
            fill[target] += 1
        seen = bytearray(len(came))
        for state in good:
            seen[state] = 1
        stack = list(good)
        while stack:
            target = stack.pop()
            for i in range(begin[target], begin[target + 1]):
                if not seen[before[i]]:
                    seen[before[i]] = 1
                    stack.append(before[i])
        if (lost := seen.find(0)) >= 0:
            state = next(s for i, s in enumerate(came) if i == lost)
            raise Found("no look and no wake leads out of this", self.trace(came, state))

    # -- telling -------------------------------------------------------------------------------

    def trace(self, came: dict[int, int | None], state: int) -> list[str]:
        """How a state is reached, a line for each step, and where everybody is then."""
        path = [state]
        while (before := came[path[-1]]) is not None:
            path.append(before)
        path.reverse()
        lines = []
        for k in range(len(path) - 1):
            who = next(w for w, after in self.successors(path[k]) if after == path[k + 1])
            lines.append(f"{k + 1:4d}  {self.tell(who, path[k], path[k + 1])}")
        lines.append("      then:")
        for automaton in self.automata:
            local = automaton.locals[state >> automaton.shift & 0xFFFF]
            mark = "asleep at " if local.kind == "asleep" else ""
            lines.append(f"      {automaton.name:<8} {mark}{local.text or local.kind}")
        words = self.words(state)
        lines.append("      " + ", ".join(f"{w}={show(v)}" for w, v in words.items() if v))
        return lines

    def words(self, state: int) -> Words:
        b = state.to_bytes(len(self.first), "little")
        return {word: self.values[i][b[i]] for word, i in self.slots.items()}

    def tell(self, who: Any, state: int, after: int) -> str:
        """One step in words: who, the line of the actor that it is, what it changed."""
        before, now = self.words(state), self.words(after)
        changes = ", ".join(
            f"{word}: {show(before[word])} -> {show(now[word])}"
            for word in now
            if before[word] != now[word]
        )
        if isinstance(who, Automaton):
            local = who.locals[state >> who.shift & 0xFFFF]
            over = "  (its time is over)" if local.kind == "asleep" else ""
            return f"{who.name:<8} {local.text:<72}{over} {changes}".rstrip()
        return f"{who.name:<81} {changes}"


def show(value: Value) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and value > 1 << 16:
        return f"{value:#x}"
    return str(value)
