"""Pages and the mailbox: how many bytes lie where in them, and the areas by which ranks share.

A page is written by one process and read by others (`_native.block.Page`). The mailbox is the
caller's: a head, then one region's message. Every worker has a page: its outcome, the two halves
that `single` alternates between, one area per loop slot for `cancel`, and what it has to tell the
caller about memory. When an area may be written again is PROTOCOL.md, sections 5 and 7.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsmfor import limits, segments
from dsmfor._native.block import Block, Page
from dsmfor.engines.channel import contents, envelope, receive, send
from dsmfor.errors import DSMError, SharedMemoryFull
from dsmfor.outcome import Bereft, Stop
from dsmfor.payload import Message
from dsmfor.pickling import dump, load
from dsmfor.transit import Homeward

__all__ = [
    "ELSEWHERE",
    "MAILBOX",
    "OUTCOME",
    "PAGE",
    "Areas",
    "Broker",
    "MOST_BLOCKS",
    "Mailbox",
    "read_body",
    "read_head",
    "read_held",
    "read_lacks",
    "write_held",
    "write_lacks",
]

MAILBOX = 128 * 1024
OUTCOME = 64 * 1024  # bytes of a page that belong to the outcome, from its start
_AREA = 8 * 1024
_AREAS = 2 + 8  # exchanges, loop slots
_LACKS = OUTCOME + _AREAS * _AREA  # how many letters were lost, for want of descriptors
_ANSWER = (
    _LACKS + 8
)  # number of the last question about blocks of arenas, and which of them it holds
MOST_BLOCKS = 8 * (_AREA - 16)  # in one question: a bit each
PAGE = _LACKS + _AREA

_HEAD = struct.Struct("=QQQQ")  # epoch, length of the message or ELSEWHERE, edition, seed
_LENGTH = struct.Struct("=Q")
_COUNTS = struct.Struct("=II")
ELSEWHERE = (1 << 64) - 1  # the bytes did not fit and travel in a memfd


class Mailbox:
    """The caller's side: one region's message at a time.

    A message that is the very object that was posted last is not written again: its *edition*
    stays, and a worker that has read that edition uses what it made of it.
    """

    def __init__(self) -> None:
        self.page = Page(MAILBOX)
        self._edition = 0
        self._posted: bytes | None = None

    @staticmethod
    def fits(message: Message) -> bool:
        """Whether there is room for a message; else it must go by letter, and the head says so."""
        return _HEAD.size + len(message.data) <= MAILBOX and not message.buffers

    def post(self, epoch: int, seed: int, message: Message) -> None:
        """Write a region's message, or only its head."""
        fits, data = self.fits(message), message.data
        if data is not self._posted:
            self._edition += 1
            self._posted = data if fits else None
            if fits:
                self.page.write(_HEAD.size, data)
        length = len(data) if fits else ELSEWHERE
        self.page.write(0, _HEAD.pack(epoch, length, self._edition, seed))

    def forget(self) -> None:
        """Write the next message whatever it is: workers are new."""
        self._posted = None


def read_head(mailbox: Page, epoch: int) -> tuple[int, int, int]:
    """(length, edition, seed) of the message of region `epoch`."""
    found, length, edition, seed = _HEAD.unpack(mailbox.read(0, _HEAD.size))
    if found != epoch:
        raise DSMError(f"the mailbox holds region {found}, region {epoch} was launched")
    return length, edition, seed


def read_body(mailbox: Page, length: int) -> bytes:
    """The message itself."""
    return mailbox.read(_HEAD.size, length)


def write_held(page: Page, question: int, held: NDArray[np.bool_]) -> None:
    """A worker's answer about blocks, in the order in which it was asked."""
    page.write(_ANSWER, _LENGTH.pack(question) + np.packbits(held).tobytes())


def read_held(page: Page, question: int, count: int) -> NDArray[np.bool_]:
    """The answer about `count` blocks; to a question that was lost: maybe all of them."""
    if _LENGTH.unpack(page.read(_ANSWER, _LENGTH.size)) != (question,):
        return np.ones(count, np.bool_)
    bits = np.frombuffer(page.read(_ANSWER + _LENGTH.size, -(-count // 8)), np.uint8)
    return np.unpackbits(bits, count=count).astype(np.bool_)


def write_lacks(page: Page, counts: tuple[int, int]) -> None:
    """How many letters a worker has not been able to take: with segments, with other things."""
    page.write(_LACKS, _COUNTS.pack(*counts))


def read_lacks(page: Page) -> tuple[int, int]:
    """How many letters the worker has not been able to take: with segments, with other things."""
    segments, others = _COUNTS.unpack(page.read(_LACKS, _COUNTS.size))
    return segments, others


class Broker:
    """A worker's line to the warden, where descriptors wait for whoever asks.

    Parameters
    ----------
    end : socket
        The worker's end.
    creator : int
        The number of this process in the ids of the segments that it makes.
    """

    def __init__(self, end: socket.socket, creator: int) -> None:
        self._end = end
        self._creator = creator
        self._put: set[int] = set()  # segments of ours that the warden holds
        self.exported: dict[int, Any] = {}  # roots that results name, until the caller lets go
        self.lent: dict[int, Any] = {}  # roots that peers were told of, until the region is over
        self._lent_keys: set[tuple[Any, ...]] = set()  # large values, likewise
        self.shields = 0  # how deep we are in what a stop signal must not tear apart
        self.stopped = False  # a stop signal came meanwhile

    @property
    def lending(self) -> bool:
        """Whether something is kept that only this region's peers need."""
        return bool(self.lent or self._lent_keys)

    def put(self, key: tuple[Any, ...], fd: int) -> None:
        """Leave a descriptor under `key`; when this returns, everybody can get it."""
        self._ask("put", key, [fd])

    def get(self, key: tuple[Any, ...]) -> int:
        """A descriptor that someone left under `key`."""
        descriptors = self._ask("get", key)
        if not descriptors:
            raise Bereft(f"no worker has left {key} with the warden; its owner has gone")
        return descriptors[0]

    def drop(self, segment: int) -> None:
        """Have the warden let go of a segment of ours."""
        if segment in self._put:
            self._put.discard(segment)
            send(self._end, ("drop", ("segment", segment)))

    def _ask(self, verb: str, key: tuple[Any, ...], fds: Sequence[int] = ()) -> list[int]:
        """Question and answer."""
        try:
            send(self._end, (verb, key), fds)
            letter = receive(self._end)
        except BrokenPipeError:
            letter = None
        if letter is None:
            os._exit(1)  # the warden has gone, and we go with it
        (answer, _), descriptors = letter
        if answer == "full":
            raise SharedMemoryFull(
                "the warden cannot keep the array that a worker made for its peers: it has no "
                "descriptor left; raise ulimit -n, or make fewer arrays in kernels"
            )
        return descriptors

    @contextlib.contextmanager
    def shielded(self) -> Iterator[None]:
        """Let a stop signal wait until what is begun is done.

        Between a question to the warden and its answer it would leave the answer to the next one
        who asks; between an answer and its use, a descriptor to nobody.
        """
        self.shields += 1
        try:
            yield
        finally:
            self.shields -= 1
            if self.stopped and not self.shields:
                self.stopped = False
                raise Stop("the region was stopped")

    def lend(self, key: tuple[Any, ...], fd: int) -> None:
        """`put`, until the region is over."""
        self._lent_keys.add(key)
        self.put(key, fd)

    def take_back(self) -> None:
        """The region is over, or another begins: nobody asks for what peers were lent."""
        self.lent.clear()
        for key in self._lent_keys:
            send(self._end, ("drop", key))
        self._lent_keys.clear()

    def export(self, used: set[int], keep: dict[int, Any]) -> None:
        """Let everybody get those segments among `used` that this worker made; `keep` them."""
        for segment in used:
            if segment >> 40 == self._creator:
                keep[segment] = segments.root(segment)
                if segment not in self._put:
                    self.put(("segment", segment), segments.descriptor(segment))
                    self._put.add(segment)

    def resolve(self, segment: int) -> tuple[int, int]:
        """Descriptor and size of a segment that another worker made; called by `segments.fetch`."""
        fd = self.get(("segment", segment))
        return fd, os.fstat(fd).st_size - segments.FOOTER.size


class Areas:
    """The `Carrier` of a worker: values for other ranks, in the areas of its page."""

    def __init__(self, page: Page, block: Block, broker: Broker) -> None:
        self._page = page
        self._block = block
        self._broker = broker
        self._others: dict[int, tuple[int, Page]] = {}  # rank -> (pid, page)

    def publish(self, area: int, value: object) -> None:
        """Write the value to this rank's area, or leave a large one with the warden."""
        with self._broker.shielded():
            self._publish(area, value)

    def _publish(self, area: int, value: object) -> None:
        transit = Homeward()
        data = dump(value, transit)
        self._broker.export(transit.segments, self._broker.lent)
        offset = OUTCOME + area * _AREA
        if _LENGTH.size + len(data) <= _AREA:
            self._page.write(offset, _LENGTH.pack(len(data)) + data)
            return
        # All ranks unpickle at once, so what they will take is asked for here, for all of them.
        what = "a value of {} in all for every rank"
        limits.check(len(data) * (1 + self._block.region_size()), what)
        bulk = envelope(data)
        try:
            self._broker.lend(("area", os.getpid(), area), bulk)
        finally:
            os.close(bulk)
        self._page.write(offset, _LENGTH.pack(ELSEWHERE))

    def collect(self, rank: int, area: int) -> Any:
        """Read the value in another rank's area."""
        with self._broker.shielded():
            return self._collect(rank, area)

    def _collect(self, rank: int, area: int) -> Any:
        page = self._page_of(rank)
        offset = OUTCOME + area * _AREA
        (length,) = _LENGTH.unpack(page.read(offset, _LENGTH.size))
        if length != ELSEWHERE:
            return load(page.read(offset + _LENGTH.size, length))
        bulk = self._broker.get(("area", self._block.pid_of(rank), area))
        try:
            return load(contents(bulk, checked=True))
        finally:
            os.close(bulk)

    def _page_of(self, rank: int) -> Page:
        pid = self._block.pid_of(rank)
        known = self._others.get(rank)
        if known is None or known[0] != pid:
            fd = self._broker.get(("page", pid))
            try:
                known = self._others[rank] = (pid, Page(PAGE, fd))
            finally:
                os.close(fd)
        return known[1]
