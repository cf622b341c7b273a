"""Blocks of arenas that the caller has let go: held back until no worker can see them any more.

A worker may keep a view of an array in a module or a cache for as long as it likes; a new array
must not come to lie there. So every crew is asked, while it is idle, and PROTOCOL.md, section 7,
says why its answer is the truth. What a block is, is said in `dsmfor.arenas`.

Guarantees
----------
- A block is released only after every worker that could have been told of it, or could have got
  it from a peer, has said in one and the same idle time of its crew that it holds it no more, or
  has ended.
- A worker is asked again about what it held only if it has run a region since.

Assumes
-------
- Whoever calls holds the guard of process.py; a crew that is asked or heard is idle.
"""

from __future__ import annotations

import itertools
import os
import select
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dsmfor import arenas
from dsmfor.engines.crew import Crew
from dsmfor.engines.letters import Worker
from dsmfor.engines.pages import MOST_BLOCKS, read_held
from dsmfor.engines.recruits import leaving

__all__ = ["Quarantine", "see_off"]

Tickets = NDArray[np.uint64]


@dataclass(eq=False, slots=True)
class _Batch:
    """Blocks of one arena that wait for the same crews."""

    segment: int
    tickets: Tickets
    crews: set[int]  # by number: nobody's reference may keep a crew that has been lost
    asked: dict[int, int] = field(default_factory=dict)  # crew -> its last region when it was


@dataclass(slots=True)
class _Round:
    """What a crew has been asked: the letter's blocks in this order."""

    question: int  # its number among all
    epoch: int  # the crew's last region when it was asked
    batches: list[_Batch]
    workers: dict[int, Worker]  # by rank


class Quarantine:
    """The blocks that wait, and what was asked about them."""

    def __init__(self) -> None:
        self._batches: list[_Batch] = []
        self._rounds: dict[int, _Round] = {}  # by crew
        self._questions = itertools.count(1)

    @property
    def waiting(self) -> bool:
        """Whether some blocks wait for something."""
        return bool(self._batches)

    @property
    def asking(self) -> bool:
        """Whether a crew has not been heard yet."""
        return bool(self._rounds)

    def turn(self, idle: Collection[Crew], crews: Iterable[Crew]) -> list[Crew]:
        """Hear and ask the crews that are idle, and release what none can see.

        Parameters
        ----------
        idle : collection of Crew
        crews : iterable of Crew
            All that live.

        Returns
        -------
        list of Crew
            Those idle ones that have been asked, now or before, and have not answered.
        """
        crews = list(crews)
        living = {crew.number for crew in crews}
        self._admit(crews)
        for number in self._rounds.keys() - living:
            del self._rounds[number]
        for batch in self._batches:
            batch.crews &= living
        asked = []
        for crew in idle:
            if crew.number in self._rounds:
                self._hear(crew)
            if crew.number in self._rounds or self._ask(crew):
                asked.append(crew)
        if see_off():
            self._release()
        # Those that are busy now have their turn when they come back.
        wanted = set[int]().union(*(batch.crews for batch in self._batches))
        for crew in crews:
            crew.expected = crew not in idle and crew.number in wanted
        return asked

    def _admit(self, crews: list[Crew]) -> None:
        # With no batch left, none should wait; but a Ctrl-C may have struck in this very loop.
        for segment, tickets in arenas.condemned(anew=not self._batches).items():
            knowing = {
                crew.number
                for crew in crews
                if any(worker is not None and segment in worker.segments for worker in crew.workers)
            }
            numbers = np.frombuffer(tickets, np.uint64)
            for start in range(0, len(numbers), MOST_BLOCKS):
                part = numbers[start : start + MOST_BLOCKS]
                self._batches.append(_Batch(segment, part, set(knowing)))

    def _ask(self, crew: Crew) -> bool:
        """Send a crew's workers as many blocks as an answer has room for."""
        batches: list[_Batch] = []
        room = MOST_BLOCKS
        for batch in self._batches:
            if crew.number not in batch.crews or batch.asked.get(crew.number) == crew.epoch:
                continue
            if len(batch.tickets) <= room:
                batches.append(batch)
                room -= len(batch.tickets)
        if not batches:
            return False
        workers = {}
        question = next(self._questions)
        body = question, [(batch.segment, batch.tickets.tobytes()) for batch in batches]
        known = {batch.segment for batch in batches}
        for rank, worker in enumerate(crew.workers):
            if worker is not None and worker.segments & known:
                crew.letters.send(rank, "held?", body)
                workers[rank] = worker
        for batch in batches:
            batch.asked[crew.number] = crew.epoch
        self._rounds[crew.number] = _Round(question, crew.epoch, batches, workers)
        return True

    def _hear(self, crew: Crew) -> None:
        """Sort the blocks of a round by the crew's answers, if they are all there."""
        asked = self._rounds[crew.number]
        # A worker that has been replaced has ended before, and its views with it.
        workers = [
            (rank, worker)
            for rank, worker in asked.workers.items()
            if crew.workers[rank] is worker and not worker.recruit.ended()
        ]
        if any(crew.block.unread(rank) for rank, _ in workers):
            return
        del self._rounds[crew.number]
        count = sum(len(batch.tickets) for batch in asked.batches)
        # In a region since, one of the missing may have handed on what it held, to somebody who had
        # said no before: nobody's answer counts then, and all are asked anew.
        void = len(workers) < len(asked.workers) and crew.epoch != asked.epoch
        held = np.full(count, void)
        for _, worker in workers:
            held |= read_held(worker.page, asked.question, count)
        at = 0
        for batch in asked.batches:
            kept = held[at : at + len(batch.tickets)]
            at += len(kept)
            if kept.any():
                rest = _Batch(batch.segment, batch.tickets[kept], set(batch.crews))
                rest.asked.update(batch.asked)
                self._batches.append(rest)
                batch.tickets = batch.tickets[~kept]
            batch.crews.discard(crew.number)

    def _release(self) -> None:
        """Let the caller use again what waits for nobody."""
        for batch in self._batches:
            if not batch.crews:
                arenas.release(batch.segment, batch.tickets.tobytes())
        self._batches = [batch for batch in self._batches if batch.crews]


def see_off(seconds: float = 0.0) -> bool:
    """Whether every worker that was told to end, or lost its warden, has ended by then."""
    until = time.monotonic() + seconds
    while True:
        try:
            fd = leaving.popleft()  # not to be seen by another thread that does the same
        except IndexError:
            return True
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        if not poll.poll(max(0.0, until - time.monotonic()) * 1000):
            leaving.appendleft(fd)
            return False
        os.close(fd)
