"""An actor as a table: its local states, as a search meets them, and what follows each answer.

The generator that an actor is runs only to find a state that is not in the table yet: anew from its
beginning, with all the answers that have led there.
"""

from __future__ import annotations

import linecache
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from model.operations import CHANGED, TIMEOUT, Actor, Op

if TYPE_CHECKING:
    from model.search import Search


class Local:
    """A local state of an actor: what it does next, and where that has led."""

    __slots__ = ("bits", "heir", "history", "instant", "kind", "memo", "op", "slot", "text")

    def __init__(self, op: Op, text: str, history: tuple[Local, Any] | None) -> None:
        self.op = op
        self.kind = op.kind
        self.text = text
        self.history = history
        self.memo: dict[Any, Any] = {}
        self.instant = op.kind == "note"
        self.slot = -1  # of the word in a state
        self.bits = 0
        self.heir: dict[int, int] = {}  # of one asleep: the answer -> what it is then


class Automaton:
    """The local states of one actor, found as the search meets them. Number 0 is its beginning."""

    def __init__(self, name: str, make: Callable[[], Actor], search: Search, fused: bool) -> None:
        self.name = name
        self.make = make
        self.search = search
        self.fused = fused  # a store and the wake after it are one step
        self.locals: list[Local] = []
        self.numbers: dict[Any, int] = {}
        self.shift = 0
        self.add(make(), None, None)

    def add(self, actor: Actor, history: tuple[Local, Any] | None, answer: Any) -> int:
        """The number of the state that an actor is in after this answer."""
        try:
            op = self.search.heed(actor, actor.send(answer))
        except StopIteration:
            return self.intern("end", Op("end", ""), "", history)
        key: list[Any] = []
        text = ""
        frame: Any = actor
        while frame is not None:
            f = frame.gi_frame
            key.append((f.f_code, f.f_lasti, tuple(f.f_locals.items())))
            line = linecache.getline(f.f_code.co_filename, f.f_lineno).strip()
            text = f"{f.f_code.co_name:<10} {line}"
            frame = frame.gi_yieldfrom
        return self.intern(tuple(key), op, text, history)

    def intern(self, key: Any, op: Op, text: str, history: tuple[Local, Any] | None) -> int:
        number = self.numbers.get(key)
        if number is None:
            number = self.numbers[key] = len(self.locals)
            local = Local(op, text, history)
            if op.word:
                local.slot = self.search.slots[op.word]
            if self.fused and op.kind == "wake":
                local.instant = True
            if op.kind == "asleep":
                local.bits = op.args[1]
            self.locals.append(local)
        return number

    def after(self, local: Local, answer: Any) -> int:
        """The state that follows: the actor is run again from its beginning, with all answers."""
        answers = [answer]
        place: Local | None = local
        while place is not None and place.history is not None:
            place, past = place.history
            answers.append(past)
        actor = self.make()
        send = actor.send
        told: Any = None
        for following in reversed(answers):
            self.search.heed(actor, send(told))
            told = following
        return self.add(actor, (local, answer), told)

    def fall_asleep(self, number: int) -> int:
        """The sleeping twin of a state that is about to sleep."""
        local = self.locals[number]
        asleep = self.intern(("asleep", number), Op("asleep", *local.op[1:]), local.text, None)
        twin = self.locals[asleep]
        if not twin.heir:
            for answer in (CHANGED, TIMEOUT):
                twin.heir[answer] = self.after(local, answer)
        return asleep
