"""Letters from the caller to the workers of a crew: what each of them has been sent, and lacks.

A letter lies on the worker's socket and is counted in its `mailed` word; the worker reads it before
its next region, or at once when the bell rings. PROTOCOL.md, sections 3 and 7.

Guarantees
----------
- A worker has read, before a region begins, every descriptor, skeleton and setting that the
  region's message needs, and everything that it is to forget.
- No more than a few letters lie unread: nobody blocks on a full socket.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field

from dsmfor import segments
from dsmfor._native.block import LATE, Block, Page
from dsmfor.engines.channel import MOST_DESCRIPTORS, send
from dsmfor.engines.launch import WardenLine
from dsmfor.engines.pages import read_lacks
from dsmfor.engines.recruits import Recruit
from dsmfor.modules import specs
from dsmfor.payload import Message
from dsmfor.skeleton import Skeleton

__all__ = ["Letters", "Worker"]

_MOST_UNREAD = 32
_MOST_FREED = 2000  # in a letter, which so needs no descriptor and cannot be lost
_PATIENCE = 10.0  # seconds in which an idle worker must read its letters


@dataclass(slots=True)
class Worker:
    """What the caller holds of a living worker."""

    recruit: Recruit
    page: Page
    skeletons: set[int] = field(default_factory=set)
    segments: set[int] = field(default_factory=set)  # of the caller's that it maps
    made: set[int] = field(default_factory=set)  # that it made, and the caller has now
    settings: int = 0  # version of the settings that it follows
    lacks: tuple[int, int] = (0, 0)  # letters it could not take, as far as we have heard
    doubted: set[int] = field(default_factory=set)  # of `segments`, those it may not map


class Letters:
    """The letters of a crew.

    Parameters
    ----------
    block : Block
    workers : list of Worker or None
        The crew's, by rank; it changes as they come and go.
    line : WardenLine
    guard : lock
        Held for every use of `line`.
    """

    def __init__(
        self,
        block: Block,
        workers: list[Worker | None],
        line: WardenLine,
        guard: threading.RLock,
    ) -> None:
        self.block = block
        self.workers = workers
        self.line = line
        self.guard = guard
        self.spoilt = False  # a letter was interrupted: nobody knows whether it was counted
        self.version = 0  # of the settings that all workers follow
        self.segments: set[int] = set()  # known to all workers
        self.skeletons: set[int] = set()
        self.retired: set[int] = set()  # skeletons for all to forget
        # The user's modules, with their __spec__, as workers may have imported them.
        self.modules = specs()

    def newcomers(self) -> None:
        """There are workers who have been sent nothing."""
        self.segments.clear()
        self.skeletons.clear()

    def send(self, rank: int, verb: str, body: object, fds: Iterable[int] = ()) -> None:
        """Send a letter to a rank; it reads it when the bell rings."""
        worker = self.workers[rank]
        assert worker is not None
        if self.block.unread(rank) >= _MOST_UNREAD:
            self.await_read(rank)
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # found by its pidfd
                send(worker.recruit.end, (verb, body), list(fds))
                self.block.mailed(rank, 1)
        except TimeoutError:  # it is stopped, and its socket full
            self.replace(worker)
        except BaseException:
            self.spoilt = True
            raise

    def await_read(self, rank: int) -> None:
        """Have an idle worker read what was sent; one that does not is no worker any more."""
        self.block.ring()
        if self.block.await_read(rank, _PATIENCE) == LATE:
            worker = self.workers[rank]
            assert worker is not None
            self.replace(worker)

    def replace(self, worker: Worker) -> None:
        """End a worker that reads no letters; the launch finds it dead, and has a new one made."""
        worker.recruit.kill()
        with self.guard:
            self.line.read_obituaries([worker.recruit.incarnation])

    def supply(self, size: int, message: Message) -> None:
        """Send the ranks what they lack for a message."""
        self.line.lookout.flush()
        with self.guard:
            self.line.follow()
            if self.version != self.line.version:
                self.update()
        skeleton = message.skeleton
        if (
            skeleton.serial in self.skeletons
            and message.segments <= self.segments
            and not self.retired
        ):
            return
        for rank, worker in enumerate(self.workers):
            if worker is None:
                continue
            retired = self.retired & worker.skeletons
            if rank < size and skeleton.serial not in worker.skeletons:
                self.send(rank, "skeleton", (skeleton.serial, skeleton.data, sorted(retired)))
                worker.skeletons.add(skeleton.serial)
                self.modules |= skeleton.modules
            elif retired:
                self.send(rank, "forget", sorted(retired))
            worker.skeletons -= retired
            if rank >= size:
                continue
            new = message.segments - (worker.segments - worker.doubted)
            self.introduce(rank, worker, sorted(new))
        self.skeletons -= self.retired
        self.retired.clear()
        if size >= len(self.workers):
            self.skeletons.add(skeleton.serial)
            self.segments |= message.segments

    def update(self) -> None:
        """Tell the workers what has changed of the caller's surroundings."""
        for rank, worker in enumerate(self.workers):
            if worker is not None and worker.settings != self.line.version:
                self.send(rank, "settings", *self.line.lookout.since(worker.settings))
                worker.settings = self.line.version
        self.version = self.line.version

    def outdated(self, skeleton: Skeleton) -> bool:
        """Whether workers may have imported what the caller has reloaded since."""
        if skeleton.serial in self.skeletons:
            return False
        known = self.modules
        return any(known.get(name, spec) is not spec for name, spec in skeleton.modules.items())

    def introduce(self, rank: int, worker: Worker, new: list[int]) -> None:
        """Give a worker the descriptors of segments that it does not know."""
        for start in range(0, len(new), MOST_DESCRIPTORS):
            batch = new[start : start + MOST_DESCRIPTORS]
            self.send(
                rank,
                "segments",
                [(segment, segments.size(segment)) for segment in batch],
                [segments.descriptor(segment) for segment in batch],
            )
            if start + MOST_DESCRIPTORS < len(new):
                self.await_read(rank)
        worker.segments.update(new)
        worker.doubted.difference_update(new)

    def review(self) -> None:
        """After a failure: write again what workers had no descriptors to take."""
        for worker in self.workers:
            if worker is not None and (lacks := read_lacks(worker.page)) != worker.lacks:
                if lacks[0] != worker.lacks[0]:
                    worker.doubted |= worker.segments  # sent again before they are next needed
                if lacks[1] != worker.lacks[1]:
                    worker.settings = self.version = 0
                    worker.skeletons.clear()
                worker.lacks = lacks
                self.newcomers()

    def know(self, freed: set[int]) -> bool:
        """Whether a worker knows one of these segments."""
        return any(w is not None and (w.segments | w.made) & freed for w in self.workers)

    def let_go(self, freed: set[int]) -> bool:
        """Tell the workers that know them that segments are gone; whether any was told."""
        told = False
        for rank, worker in enumerate(self.workers):
            if worker is not None and (known := (worker.segments | worker.made) & freed):
                freed_here = sorted(known)
                for start in range(0, len(freed_here), _MOST_FREED):
                    self.send(rank, "free", freed_here[start : start + _MOST_FREED])
                worker.segments -= known
                worker.doubted -= known
                worker.made -= known
                told = True
        self.segments -= freed
        return told
