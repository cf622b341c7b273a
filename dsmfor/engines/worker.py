"""A worker: sleeps on the bell, runs its rank of a region, acknowledges, sleeps.

Forked by the warden. What it shares with the caller and its peers, and when it may touch what, is
PROTOCOL.md; this room follows it line by line. What a kernel is made of is payload.py's.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import sys
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np

from dsmfor import arenas, segments
from dsmfor._native.block import PHASES, Block, Page
from dsmfor._native.interrupts import Insistent
from dsmfor._native.kinship import die_with_parent
from dsmfor._native.member import Member
from dsmfor.engines.blas import BlasLimit
from dsmfor.engines.channel import Lost, envelope, receive, send, unfit
from dsmfor.engines.offspring import end_as_child
from dsmfor.engines.orders import Orders
from dsmfor.engines.pages import (
    MAILBOX,
    OUTCOME,
    PAGE,
    Areas,
    Broker,
    write_held,
    write_lacks,
)
from dsmfor.engines.streams import Streams
from dsmfor.engines.surroundings import redirect, set_filters, set_numerics
from dsmfor.engines.turns import MemoryTurn
from dsmfor.errors import SharedMemoryFull
from dsmfor.hints import note_read_only
from dsmfor.outcome import Outcome, Stop, describe_failure, refused, text_of
from dsmfor.pickling import dump
from dsmfor.snapshots import Snapshots
from dsmfor.team import confine, enter
from dsmfor.transit import Homeward

__all__ = ["STOP_SIGNAL", "Post", "main"]

STOP_SIGNAL = signal.SIGRTMAX
# What `done` was reached with; ELSEWHERE is added when the bytes went by letter.
NOTHING, BYTES, ELSEWHERE = 0, 1, 2

_UNPICKLING = PHASES.index("unpickling its arguments")
_COMPUTING = PHASES.index("computing")
_PICKLING = PHASES.index("pickling its result")


@dataclass(frozen=True, slots=True)
class Post:
    """What the warden tells a new worker."""

    crew: int
    rank: int
    incarnation: int  # unique among all workers of a caller
    epoch: int  # the last region that is over for this rank
    warden: int  # pid
    block_fd: int
    mailbox_fd: int
    relay_fd: int
    turns_fd: int
    settings: dict[str, Any]


def main(post: Post, caller: socket.socket, warden: socket.socket) -> None:
    """Serve as a rank of a crew until the caller goes."""
    die_with_parent(signal.SIGKILL)
    if os.getppid() != post.warden:
        return
    with contextlib.suppress(OSError), open("/proc/self/comm", "w", encoding="ascii") as comm:
        comm.write(f"dsmfor {post.crew}.{post.rank}")
    try:
        worker = Worker(post, caller, warden)
    except (SharedMemoryFull, OSError) as error:
        with contextlib.suppress(OSError):  # the caller has gone
            send(caller, unfit(error))
        return
    worker.serve()


class Worker:
    """The state of a worker process; there is one."""

    def __init__(self, post: Post, caller: socket.socket, warden: socket.socket) -> None:
        self.rank = post.rank
        self.last = post.epoch
        self.caller = caller
        self.block = Block(post.block_fd, True)
        self.orders = Orders(Page(MAILBOX, post.mailbox_fd))
        self.page = Page(PAGE)
        self.broker = Broker(warden, post.incarnation)
        bell = Block(post.block_fd, True)  # what a forked child prints wakes the caller, too
        self.streams = Streams(self.rank, bell, self.broker, post.relay_fd, post.turns_fd)
        os.close(post.block_fd)
        os.close(post.mailbox_fd)
        self.turn = MemoryTurn(post.turns_fd)
        self.member = Member(self.block, self.rank, 1)
        self.member.end()
        self.member.carrier = Areas(self.page, self.block, self.broker)
        self.mapped: dict[int, object] = {}  # what keeps the caller's segments mapped
        self.freed: deque[int] = deque()  # segments of ours that are gone
        self.lacking = ""  # why the last letter was not taken
        self.lacks = (0, 0)  # how many were not, with segments and with other things
        self.blas = BlasLimit()
        self.environ: dict[str, str] = {}  # the caller's
        self.running = False
        self.tidied = True  # since the last region
        os.register_at_fork(after_in_child=self.block.secede)

        confine()
        segments.set_creator(post.incarnation)
        segments.set_resolver(self.broker.resolve)
        segments.on_free(self.freed.append)
        stopping = Insistent(STOP_SIGNAL, Stop, self.on_stop, self.on_stop_dropped)
        signal.signal(STOP_SIGNAL, stopping.handle)
        sys.unraisablehook = stopping.hook
        if "numpy.random" in sys.modules:  # else the kernel's import seeds it, in every worker anew
            np.random.seed()  # noqa: NPY002  # forks of one process would draw the same numbers
        self.apply(post.settings)
        self.block.sign(self.rank, os.getpid())
        self.broker.put(("page", os.getpid()), self.page.fd)
        try:
            send(self.caller, ("hello", os.getpid()), [self.page.fd])
        except BrokenPipeError:  # the caller has changed its mind
            os._exit(0)
        self.page.release()

    def on_stop(self) -> None:
        if self.running and self.broker.shields:
            self.broker.stopped = True
        elif self.running:
            self.running = False
            raise Stop(f"the region was stopped in rank {self.rank}")

    def on_stop_dropped(self) -> None:
        self.running = True

    def serve(self) -> None:
        while True:
            epoch, letters = self.block.standby(self.rank, self.last)
            for _ in range(letters):
                self.read_letter()
            if epoch:
                self.run(epoch)
                self.last = epoch
                self.tidied = False
            elif not letters and not self.tidied and self.block.region_over():
                self.tidy()

    def tidy(self) -> None:
        """The region has been over for a second: let go of what only its ranks needed.

        The caller tells of its own segments when they are gone. Of those that workers made it may
        never have heard, and a cycle in a process that does nothing is not collected.
        """
        self.tidied = True
        self.broker.take_back()
        if any(segment >> 40 for segment in segments.live()):
            gc.collect()
        self.drop_freed()

    # -- letters -------------------------------------------------------------------------------

    def read_letter(self) -> None:
        try:
            letter = receive(self.caller)
        except Lost as error:
            verb, _ = error.message or ("", None)
            self.lack(error, segments=verb != "settings", others=verb in ("", "settings"))
        else:
            if letter is None:
                os._exit(0)
            (verb, body), descriptors = letter
            self.obey(verb, body, descriptors)
        self.block.letter_read(self.rank)

    def lack(self, error: SharedMemoryFull, *, segments: bool, others: bool) -> None:
        """A letter could not be taken: the next region says so, and the caller writes again."""
        self.lacking = str(error)
        self.lacks = (self.lacks[0] + segments, self.lacks[1] + others)
        write_lacks(self.page, self.lacks)

    def obey(self, verb: str, body: Any, descriptors: list[int]) -> None:
        if verb == "segments":
            for (segment, nbytes), fd in zip(body, descriptors, strict=True):
                try:
                    self.mapped[segment] = arenas.adopt(segment, fd, nbytes)
                except SharedMemoryFull as error:
                    self.lack(error, segments=True, others=False)
        elif verb == "free":
            for segment in body:
                self.mapped.pop(segment, None)
                arenas.forget(segment)
                self.broker.exported.pop(segment, None)
            if any(segments.root(segment) is not None for segment in body):
                gc.collect()  # held by a cycle, or by the user's own globals
            self.drop_freed()
        elif verb == "held?":
            question, blocks = body
            held = arenas.held(blocks)
            if held.any():
                gc.collect()  # likewise
                held = arenas.held(blocks)
            write_held(self.page, question, held)
        elif verb == "forget":
            self.orders.forget(body)
        elif verb == "settings":
            if "streams" in body:
                redirect(body["streams"][2], descriptors)
            self.apply(body)
        elif verb == "skeleton":
            serial, data, retired = body
            self.orders.forget(retired)
            self.orders.learn(serial, data)
        elif verb == "message":
            self.orders.expect(descriptors[0], body)

    def apply(self, settings: dict[str, Any]) -> None:
        """Follow what has changed of the caller's surroundings."""
        if "environ" in settings:
            self.environ = settings["environ"]
            os.environ.clear()
            os.environ.update(self.environ)
            self.blas.set_variables(self.environ)
        if "path" in settings:
            sys.path[:] = settings["path"]
        if "cwd" in settings:
            with contextlib.suppress(OSError):  # it may be gone; the caller is there no more either
                os.chdir(settings["cwd"])
        if "streams" in settings:
            out, err, *_ = settings["streams"]
            self.streams.follow(out, err)
        if "filters" in settings:
            set_filters(settings["filters"])
        if "numerics" in settings:
            set_numerics(settings["numerics"])

    # -- a region ------------------------------------------------------------------------------

    def run(self, epoch: int) -> None:
        """Run region `epoch` and acknowledge it.

        An exception here is ours, not the kernel's: it ends the process, which cannot be
        mistaken for success.
        """
        result = self.attempt(epoch)
        outcome, length = NOTHING, 0
        if result is not None:
            self.block.phase(self.rank, _PICKLING)
            outcome, length = self.report(epoch, result)
            del result
        self.orders.rest()  # after packing: what a result refers to is bound until then
        self.member.end()
        self.streams.rest()
        if self.freed:
            self.drop_freed()
        self.block.finish(self.rank, epoch, outcome, length)

    def drop_freed(self) -> None:
        """Have the warden let go of what this worker has let go."""
        while self.freed:
            self.broker.drop(self.freed.popleft())

    def report(self, epoch: int, result: Outcome) -> tuple[int, int]:
        """Pack and hand over an outcome; (code, length) for the acknowledgement."""
        try:
            with self.turn:
                return self.hand_over(epoch, self.pack(result))
        except (MemoryError, OSError) as error:
            self.member.fail()
            return self.hand_over(epoch, dump(refused(result, error, self.rank)))

    def hand_over(self, epoch: int, data: bytes) -> tuple[int, int]:
        """Place an outcome where the caller finds it: (code, length) for the acknowledgement."""
        if len(data) <= OUTCOME:
            self.page.write(0, data)
            return BYTES, len(data)
        bulk = envelope(data, "a result of {}")
        try:
            send(self.caller, ("outcome", epoch), [bulk])
        finally:
            os.close(bulk)
        return BYTES | ELSEWHERE, 0

    def attempt(self, epoch: int) -> Outcome | None:
        """Run the kernel: its value or failure, None for the commonest: it returned None."""
        order = bound = snapshots = value = None
        block, member = self.block, self.member
        size = block.region_size()
        member.begin(epoch, size)
        self.broker.stopped = False
        if self.broker.exported:
            self.broker.exported.clear()
        if self.broker.lending:
            self.broker.take_back()
        try:
            block.phase(self.rank, _UNPICKLING)
            if self.lacking:
                lacking, self.lacking = self.lacking, ""
                raise SharedMemoryFull(lacking)
            order, seed = self.orders.read(epoch)
            if order.blas != self.blas.threads:
                self.blas.follow(order.blas, self.environ)
            bound = self.orders.bind(order)
            member.settings = order.settings
            member.seed = seed
            block.phase(self.rank, _COMPUTING)
            enter(member)
            self.running = True
            try:
                if member.broken:  # a stop signal that came before `running` was not heard
                    raise Stop(
                        f"rank {self.rank} of {size} had not begun the kernel when the region "
                        "failed in another rank"
                    )
                if order.private is not None and bound.may_change():
                    snapshots = Snapshots(bound.named(everywhere=False), order.private)
                value = bound.kernel(*bound.args, **bound.kwargs)
                self.running = False
            finally:
                self.running = False
                enter(None)
                if self.block.pid_of(self.rank) != os.getpid():  # a process that it has forked
                    end_as_child()
            if snapshots is not None:
                snapshots.check(bound.kernel.__qualname__)
            member.finish()
            return None if value is None else Outcome(value=value)
        except BaseException as error:
            member.fail()
            block.phase(self.rank, _PICKLING)
            if bound is not None and order is not None:
                note_read_only(error, bound.named(), order.inward, order.heading.fixed)
            return Outcome(failure=describe_failure(error, self.note(size)))
        finally:
            del bound, snapshots, value

    def note(self, size: int) -> str:
        last = self.member.last_index()
        where = f", {last[0]}" if last is not None else ""
        return f"in worker {self.rank} of {size}{where}"

    def pack(self, outcome: Outcome) -> bytes:
        """Pickle what the caller gets; what cannot be pickled is a failure that says so."""
        last = self.orders.last
        try:
            transit = Homeward(last.copied if last is not None else frozenset())
            data = dump(outcome, transit)
            self.broker.export(transit.segments, self.broker.exported)
            return data
        except MemoryError:
            raise
        except BaseException as error:  # whatever the user's pickling raises
            kind = type(outcome.value).__qualname__
            self.member.fail()
            failure = TypeError(
                f"rank {self.rank} returned a {kind} that cannot be pickled "
                f"({type(error).__name__}: {text_of(error)}); return arrays, numbers or other "
                "plain data"
            )
            note = f"in worker {self.rank}, after the kernel had returned"
            return dump(Outcome(failure=describe_failure(failure, note)))
        finally:
            if outcome.failure is not None:
                gc.collect()
