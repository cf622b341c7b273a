"""What a worker has been told to run: skeletons, and the message of the region that is on.

A message lies in the mailbox, or in a descriptor that came by letter. Of one that is posted again
what was made of it is kept. How the caller sends them is letters.py's and bulk.py's; what is in
them, payload.py's.
"""

from __future__ import annotations

import os
import pickle
import warnings
from dataclasses import dataclass

from dsmfor._native.block import Page
from dsmfor.design import Environment
from dsmfor.engines.channel import parts
from dsmfor.engines.pages import ELSEWHERE, read_body, read_head
from dsmfor.errors import DSMError
from dsmfor.payload import Heading, open_message
from dsmfor.replica import Bound, Replica
from dsmfor.team import Settings

__all__ = ["Order", "Orders"]


@dataclass(frozen=True, slots=True)
class Order:
    """The heading of a region's message, read."""

    replica: Replica
    settings: Settings
    blas: int | None
    private: frozenset[str] | None  # names whose values may be changed; None for all
    inward: frozenset[str]  # names of intent 'in'
    copied: frozenset[int]  # segments that the caller reuses after the call
    heading: Heading


class Orders:
    """The orders of a worker.

    Parameters
    ----------
    mailbox : Page
        The crew's.

    Attributes
    ----------
    last : Order or None
        The one that was read last, unless skeletons have been forgotten since.
    """

    def __init__(self, mailbox: Page) -> None:
        self.last: Order | None = None
        self._mailbox = mailbox
        self._skeletons: dict[int, bytes] = {}  # received, to be unpickled at their first region
        self._replicas: dict[int, Replica] = {}
        self._edition = 0  # of the message that `last` was made of
        self._heading = b""  # that `last` was made of
        self._environment = Environment()  # of the message
        # A message that did not fit the mailbox: its descriptor, and the sizes of its parts.
        self._bulk: tuple[int, list[int]] | None = None

    def learn(self, serial: int, skeleton: bytes) -> None:
        """A skeleton has come."""
        self._skeletons[serial] = skeleton

    def forget(self, serials: list[int]) -> None:
        """Drop skeletons that the caller has given up."""
        for serial in serials:
            self._skeletons.pop(serial, None)
            if (replica := self._replicas.pop(serial, None)) is not None:
                replica.dissolve()
        self._edition, self.last = 0, None  # what was read last may be among them

    def expect(self, fd: int, sizes: list[int]) -> None:
        """The next region's message has come by letter."""
        self._drop_bulk()
        self._bulk = fd, sizes

    def read(self, epoch: int) -> tuple[Order, int]:
        """The order of region `epoch`, and its seed."""
        length, edition, seed = read_head(self._mailbox, epoch)
        if self.last is None or edition != self._edition:
            self.last = self._order(length)
            self._edition = edition
        return self.last, seed

    def bind(self, order: Order) -> Bound:
        """The kernel of the order that was read last, ready to be called."""
        return order.replica.bind(self._environment, order.heading.table)

    def rest(self) -> None:
        """The region has been run: let go of what it alone needed."""
        if self.last is not None:
            self.last.replica.empty()
        if self._bulk is not None:  # it is sent each time
            self._environment, self._edition = Environment(), 0
            self._drop_bulk()

    def _order(self, length: int) -> Order:
        """Read a region's message."""
        message: bytes | memoryview
        buffers: list[memoryview] = []
        if length == ELSEWHERE:
            message, buffers = self._open_bulk()
        else:
            message = read_body(self._mailbox, length)
        data, environment = open_message(message)
        self._environment = Environment(environment, buffers)
        if self.last is not None and data == self._heading:
            return self.last
        heading = Heading(*pickle.loads(data))
        replica = self._replicas.get(heading.serial)
        if replica is None:
            with warnings.catch_warnings():  # the caller has imported it all, under other filters
                warnings.simplefilter("ignore")
                replica = self._replicas[heading.serial] = Replica(self._skeletons[heading.serial])
        schedule, chunk, blas, private, inward = heading.choices
        copied = frozenset({heading.staged} if heading.staged else ())
        settings = Settings(schedule, chunk)
        self._heading = data
        return Order(replica, settings, blas, private, inward, copied, heading)

    def _open_bulk(self) -> tuple[memoryview, list[memoryview]]:
        if self._bulk is None:
            raise DSMError("a region's message was to come by letter, and did not")
        return parts(*self._bulk)

    def _drop_bulk(self) -> None:
        bulk, self._bulk = self._bulk, None
        if bulk is not None:
            os.close(bulk[0])
