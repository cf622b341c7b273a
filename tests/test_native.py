"""The native words used directly: races and states that no kernel reaches on purpose.

Ranks are threads over a private block, or forked children over a shared one. A rank that would
wait for ever is released by poison after a deadline, and the test fails.
"""

from __future__ import annotations

import mmap
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from random import Random
from types import FrameType
from typing import Any

import numpy as np
import pytest

from dsmfor._native.block import BROKEN, DONE, LATE, PHASES, REASONS, Block, Page
from dsmfor._native.loops import Indices, Slices, Tiles, Tuples
from dsmfor._native.member import Member
from dsmfor._native.plan import Plan
from dsmfor.errors import BarrierBroken, RegionError, RegionTimeout

DEADLINE = 20.0  # seconds
KINDS = ["static", "random", "dynamic", "guided", "auto"]
RAISED, DIVERGED, LEFT, DIED = (REASONS.index(r) for r in ("raised", "diverged", "left", "died"))
CODE = (lambda: None).__code__

Body = Callable[[Member], Any]


class Board(dict[tuple[int, int], Any]):
    """A Carrier between threads."""

    def __init__(self, rank: int, values: dict[tuple[int, int], Any]) -> None:
        self.rank = rank
        self.values_ = values

    def publish(self, area: int, value: object) -> None:
        self.values_[self.rank, area] = value

    def collect(self, rank: int, area: int) -> Any:
        return self.values_[rank, area]


class Ranks:
    """A team of threads over one private block; regions follow each other as with a caller."""

    def __init__(self, size: int) -> None:
        self.block = Block()
        self.size = size
        self.epoch = 1
        self.members = [Member(self.block, rank, size) for rank in range(size)]
        values: dict[tuple[int, int], Any] = {}
        for member in self.members:
            member.carrier = Board(member.rank, values)

    def start(self, *bodies: Body) -> Callable[[], list[Any]]:
        """Run a region, a body for each rank; call what it returns for values or exceptions."""
        self.epoch += 1
        assert self.block.launch(self.size, self.epoch) == 0
        outcomes: list[Any] = [None] * self.size

        def run(member: Member, body: Body) -> None:
            member.begin(self.epoch, self.size)
            try:
                outcomes[member.rank] = body(member)
                member.finish()
            except BaseException as error:
                outcomes[member.rank] = error
                member.fail()
            finally:
                member.end()
                self.block.finish(member.rank, self.epoch, 0, 0)

        threads = [
            threading.Thread(target=run, args=pair, daemon=True)
            for pair in zip(self.members, bodies, strict=True)
        ]
        for thread in threads:
            thread.start()

        def join() -> list[Any]:
            end = time.monotonic() + DEADLINE
            for thread in threads:
                thread.join(max(0.0, end - time.monotonic()))
            hung = [r for r, thread in enumerate(threads) if thread.is_alive()]
            if hung:
                self.block.poison(RAISED, -1)
                places = [self.block.place(r) for r in hung]
                pytest.fail(f"ranks {hung} hang: {places}")
            return outcomes

        return join

    def run(self, *bodies: Body) -> list[Any]:
        return self.start(*bodies)()

    def reason(self) -> str:
        return str(REASONS[self.block.reason()[0]])


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "the gate did not open"
        os.sched_yield()


def loop(
    member: Member, n: int, *, kind: str = "static", line: int = 1, nowait: bool = False
) -> Iterator[int]:
    plan = Plan(kind, n, member.size, None if kind == "auto" else 1, 7)
    return Indices(member, plan, 0, 1, line, CODE, nowait)  # type: ignore[arg-type,return-value]


def consume(member: Member, n: int, **choices: Any) -> list[int]:
    return list(loop(member, n, **choices))


# -- Poison -------------------------------------------------------------------------------------


def wait_at_barrier(member: Member) -> None:
    member.barrier(1)


def wait_at_barrier_with_timeout(member: Member) -> None:
    member.barrier(1, 1000.0)


def wait_at_single(member: Member) -> None:
    member.exchange(1, lambda: 1)


def wait_at_loops_end(member: Member) -> None:
    consume(member, 4)


def wait_for_lock(member: Member) -> None:
    with member.lock("x"):
        pass


def wait_for_slot(member: Member) -> None:
    for _ in range(9):
        consume(member, 4, nowait=True)


WAITS = {
    wait_at_barrier: "at a barrier",
    wait_at_barrier_with_timeout: "at a barrier",
    wait_at_single: "at a barrier",
    wait_at_loops_end: "at a barrier",
    wait_for_lock: "waiting for a lock",
    wait_for_slot: "waiting to enter a loop",
}


@pytest.mark.parametrize("wait", WAITS, ids=lambda f: f.__name__)
def test_poison_releases_every_kind_of_wait(wait: Body) -> None:
    ranks = Ranks(2)
    go = threading.Event()

    def hold(member: Member) -> None:
        with member.lock("x"):
            started.set()
            assert go.wait(DEADLINE)

    started = threading.Event()

    def come(member: Member) -> None:
        assert started.wait(DEADLINE)
        wait(member)

    join = ranks.start(hold, come)
    until(lambda: ranks.block.place(1)["phase"] == WAITS[wait])
    ranks.block.poison(DIED, 0)
    until(lambda: ranks.block.done(1) == ranks.epoch)  # released while rank 0 still holds the lock
    go.set()
    error = join()[1]
    assert isinstance(error, BarrierBroken)
    assert WAITS[wait] in str(error)
    assert ranks.block.reason() == (DIED, 0)


@pytest.mark.parametrize("wait", WAITS, ids=lambda f: f.__name__)
def test_who_comes_after_the_poison_does_not_wait(wait: Body) -> None:
    ranks = Ranks(2)
    ranks.epoch += 1
    ranks.block.launch(2, ranks.epoch)
    ranks.members[1].begin(ranks.epoch, 2)
    ranks.block.poison(DIED, 0)
    with pytest.raises(BarrierBroken):
        wait(ranks.members[1])


def test_poison_at_any_moment_loses_no_waiter() -> None:
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    random = Random(seed)
    for _ in range(60):
        ranks = Ranks(3)

        def work(member: Member) -> None:
            for k in range(10**9):
                if k % 3 == 0:
                    member.barrier(1)
                elif k % 3 == 1:
                    consume(member, 5, kind="dynamic", nowait=True)
                with member.lock("x"):
                    pass

        join = ranks.start(work, work, work)
        for _ in range(random.randrange(200)):
            os.sched_yield()
        ranks.block.poison(DIED, -1)
        assert all(isinstance(error, BarrierBroken) for error in join())


def test_the_first_reason_stands() -> None:
    block = Block()
    block.poison(LEFT, 3)
    block.poison(DIED, 1)
    assert block.reason() == (LEFT, 3)
    block.repair()
    assert block.reason() == (0, 0)


def test_a_broken_crew_is_not_launched() -> None:
    block = Block()
    block.poison(DIED, 1)
    assert block.launch(2, 5) == DIED
    assert block.launch(2, 5) == DIED
    block.repair()
    assert block.launch(2, 6) == 0


def test_poison_wakes_the_caller() -> None:
    block = Block()
    block.launch(1, 5)
    ended: list[int] = []
    caller = threading.Thread(
        target=lambda: ended.append(block.wait(1, 5, time.monotonic() + DEADLINE))
    )
    caller.start()
    block.poison(DIED, 0)
    caller.join(DEADLINE)
    assert ended == [BROKEN]


@pytest.mark.parametrize("wait", WAITS, ids=lambda f: f.__name__)
def test_after_repair_everything_is_as_new(wait: Body) -> None:
    ranks = Ranks(2)
    gate = threading.Event()

    def hold(member: Member) -> None:
        with member.lock("x"):
            gate.set()
            until(lambda: member.broken)

    def come(member: Member) -> None:
        assert gate.wait(DEADLINE)
        wait(member)

    join = ranks.start(hold, come)
    until(lambda: ranks.block.place(1)["phase"].startswith(("at a", "waiting")))
    ranks.block.poison(DIED, 0)
    join()
    ranks.block.repair()

    def all_of(member: Member) -> Any:
        found = [i for kind in KINDS * 4 for i in consume(member, 7, kind=kind, nowait=True)]
        member.barrier(5)
        with member.lock("x"):
            pass
        return found, member.exchange(6, lambda: "value")

    (a, x), (b, y) = ranks.run(all_of, all_of)
    assert sorted(a + b) == sorted(list(range(7)) * 20)
    assert (x, y) == ("value", "value")


# -- The count of a region ----------------------------------------------------------------------


def test_a_late_countdown_of_an_old_region_does_nothing() -> None:
    block = Block()
    block.launch(2, 5)
    block.finish(0, 5, 0, 0)
    block.finish(1, 5, 0, 0)
    assert block.wait(2, 5) == DONE
    assert block.region_over()

    block.launch(2, 6)
    for _ in range(5):
        block.finish(7, 5, 0, 0)  # a survivor of region 5 counts down now
    block.finish(0, 6, 0, 0)
    assert not block.region_over()
    assert block.wait(2, 6, time.monotonic() + 0.01) == LATE
    block.finish(1, 6, 0, 0)
    assert block.region_over()
    assert block.wait(2, 6, time.monotonic() + DEADLINE) == DONE


def test_a_count_never_falls_below_zero() -> None:
    block = Block()
    block.launch(1, 5)
    for _ in range(3):
        block.finish(0, 5, 0, 0)
    assert block.wait(1, 5) == DONE
    block.launch(2, 6)
    assert block.wait(2, 6, time.monotonic() + 0.01) == LATE


def test_done_is_the_truth_and_the_count_a_hint() -> None:
    """Both have acknowledged, and the count was lost: the caller finds out all the same."""
    block = Block()
    block.launch(2, 5)
    block.enlist(0, 5)  # stores done without counting down, as a death between the two would
    block.enlist(1, 5)
    assert block.region_over()
    assert block.wait(2, 5, time.monotonic() + DEADLINE) == DONE


def test_epochs_may_be_as_large_as_they_like() -> None:
    block = Block()
    for epoch in (2**19 - 1, 2**19, 2**19 + 1, 2**32, 2**63):
        block.launch(2, epoch)
        assert not block.region_over()
        block.finish(0, epoch, 0, 0)
        block.finish(1, epoch, 0, 0)
        assert block.wait(2, epoch) == DONE


# -- Barriers -----------------------------------------------------------------------------------


def test_a_signature_clash_is_found_by_the_second_and_releases_the_first() -> None:
    for first in (0, 1):
        ranks = Ranks(2)

        def early(member: Member) -> None:
            member.barrier(10)

        def late(member: Member, ranks: Ranks = ranks, first: int = first) -> None:
            until(lambda: ranks.block.place(first)["phase"] == "at a barrier")
            until(lambda: ranks.block.place(first)["line"] == 10)
            member.barrier(11)

        bodies = [early, late] if first == 0 else [late, early]
        outcomes = ranks.run(*bodies)
        assert ranks.reason() == "diverged"
        assert all(isinstance(error, RegionError) for error in outcomes)
        assert any("line 11" in str(error) for error in outcomes)
        assert any("line 10" in str(error) for error in outcomes)


def test_the_history_of_loops_is_part_of_a_barriers_signature() -> None:
    ranks = Ranks(2)

    def body(member: Member) -> None:
        consume(member, 5 + member.rank, nowait=True)
        member.barrier(3)

    outcomes = ranks.run(body, body)
    assert ranks.reason() == "diverged"
    assert all(isinstance(error, RegionError) for error in outcomes)


@pytest.mark.parametrize("first", ["finish", "barrier"])
def test_end_against_barrier_is_found_whoever_comes_second(first: str) -> None:
    ranks = Ranks(2)

    def end(member: Member) -> None:
        if first == "barrier":
            until(lambda: ranks.block.place(1)["phase"] == "at a barrier")

    def stay(member: Member) -> None:
        if first == "finish":
            until(lambda: ranks.block.done(0) == ranks.epoch)
        member.barrier(1)

    outcomes = ranks.run(end, stay)
    assert ranks.reason() == "diverged"
    assert isinstance(outcomes[1], RegionError)


def test_thousands_of_barriers_let_nobody_pass_early() -> None:
    ranks = Ranks(3)
    came = [0, 0, 0]

    def body(member: Member) -> bool:
        ok = True
        for k in range(1, 1500):
            came[member.rank] = k
            member.barrier(1)
            ok &= min(came) >= k
            member.barrier(2)
            ok &= max(came) <= k + 1
        return ok

    assert ranks.run(body, body, body) == [True] * 3


def test_a_timeout_fails_the_region_for_all() -> None:
    ranks = Ranks(2)

    def absent(member: Member) -> None:
        until(lambda: member.broken)
        member.barrier(1)

    outcomes = ranks.run(lambda m: m.barrier(1, 0.02), absent)
    assert isinstance(outcomes[0], RegionTimeout)
    assert isinstance(outcomes[1], BarrierBroken)


def test_a_signal_handlers_exception_ends_a_wait() -> None:
    class Alarm(Exception):
        pass

    def ring(number: int, frame: FrameType | None) -> None:
        raise Alarm

    member = Member(Block(), 0, 2)
    before = signal.signal(signal.SIGALRM, ring)
    try:
        for restart in (False, True):
            signal.siginterrupt(signal.SIGALRM, not restart)
            signal.setitimer(signal.ITIMER_REAL, 0.02)
            with pytest.raises(Alarm):
                member.barrier(1, DEADLINE)
            member.block.repair()
            member.begin(1, 2)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_timer_does_not_keep_an_idle_worker_from_its_second() -> None:
    """After which it tidies up: a kernel may leave a timer behind."""
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    began = time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        assert Block().standby(0, 0) == (0, 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - began >= 1.0


# -- Locks --------------------------------------------------------------------------------------


def test_giving_a_lock_up_keeps_its_broken_bit() -> None:
    ranks = Ranks(2)

    def owner(member: Member) -> None:
        with member.lock("x"):
            ranks.block.poison(DIED, -1)

    def other(member: Member) -> None:
        until(lambda: ranks.block.done(0) == ranks.epoch)  # given up by now
        with member.lock("x"):
            pytest.fail("a broken lock was taken")

    outcomes = ranks.run(owner, other)
    assert isinstance(outcomes[1], BarrierBroken)


def test_every_sleeper_is_woken_in_turn() -> None:
    """Four sleep on one lock; each hands on the mark that others wait, or the last sleeps on."""
    ranks = Ranks(5)
    order: list[int] = []
    taken = threading.Event()

    def owner(member: Member) -> None:
        with member.lock("x"):
            taken.set()
            until(
                lambda: all(
                    ranks.block.place(r)["phase"] == "waiting for a lock" for r in range(1, 5)
                )
            )

    def other(member: Member) -> None:
        assert taken.wait(DEADLINE)
        with member.lock("x"):
            order.append(member.rank)

    ranks.run(owner, other, other, other, other)
    assert sorted(order) == [1, 2, 3, 4]


def test_a_lock_under_contention_loses_neither_counts_nor_wakes() -> None:
    ranks = Ranks(4)
    count = [0]

    def body(member: Member) -> None:
        for k in range(500):
            with member.lock("x"):
                value = count[0]
                if k % 50 == member.rank:
                    os.sched_yield()
                count[0] = value + 1

    ranks.run(body, body, body, body)
    assert count == [2000]


def test_making_a_new_name_under_contention_makes_one_lock() -> None:
    ranks = Ranks(4)
    counts = [0] * 50

    def body(member: Member) -> None:
        for k in range(50):
            with member.lock(f"name {k}"):
                value = counts[k]
                os.sched_yield()
                counts[k] = value + 1

    ranks.run(body, body, body, body)
    assert counts == [4] * 50


# -- Iterators ----------------------------------------------------------------------------------


def iterators(member: Member) -> list[Any]:
    def plan(n: int) -> Plan:
        return Plan("static", n, member.size)

    return [
        Indices(member, plan(20), 0, 1, 5, CODE, False),  # type: ignore[arg-type]
        Slices(member, Plan("static", 20, member.size, 2), 0, 1, 5, CODE, False),  # type: ignore[arg-type]
        Tuples(member, plan(20), (4, 5), 5, CODE, False),  # type: ignore[arg-type]
        Tiles(member, plan(20), (4, 5), (8, 10), (2, 2), 5, CODE, False),  # type: ignore[arg-type]
    ]


@pytest.mark.parametrize("which", range(4))
@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("repaired", [False, True])
def test_a_stale_iterator_never_claims(which: int, begun: bool, repaired: bool) -> None:
    block = Block()
    member = Member(block, 0, 1)
    block.launch(1, 2)
    member.begin(2, 1)
    stale = iterators(member)[which]
    if begun:
        next(stale)
        with pytest.raises(RegionError, match="inside the loop of line 5"):
            member.finish()
    if repaired:
        member.fail()
    member.end()
    block.finish(0, 2, 0, 0)
    if repaired:
        block.repair()
    for epoch in (3, 4):
        block.launch(1, epoch)
        member.begin(epoch, 1)
        with pytest.raises((RegionError, StopIteration)):
            next(stale)
        with pytest.raises((RegionError, StopIteration)):
            next(stale)
        if repaired or not begun:
            assert consume(member, 3) == [0, 1, 2]
            member.finish()
        member.end()
        block.finish(0, epoch, 0, 0)
    del stale
    if repaired or not begun:
        assert block.reason() == (0, 0)


@pytest.mark.parametrize("which", range(4))
def test_an_iterator_that_dies_early_poisons_with_its_place(which: int) -> None:
    block = Block()
    member = Member(block, 0, 2)
    early = iterators(member)[which]
    next(early)
    assert block.reason() == (0, 0)
    del early
    assert block.reason() == (LEFT, 0)
    with pytest.raises(
        RegionError, match=r"rank 0 of 2 left the loop at .*:5 early .*its last was"
    ):
        member.barrier(1)


@pytest.mark.parametrize("which", range(4))
def test_an_iterator_never_begun_dies_in_silence(which: int) -> None:
    block = Block()
    member = Member(block, 0, 2)
    del iterators(member)[which]
    assert block.reason() == (0, 0)


def test_an_iterator_may_outlive_its_member() -> None:
    made = iterators(Member(Block(), 0, 1))
    assert [len(list(one)) for one in made] == [20, 10, 20, 20]
    begun = iterators(Member(Block(), 0, 1))
    next(begun[2])
    del begun


@pytest.mark.parametrize("kind", KINDS)
def test_an_iterator_at_its_end_claims_no_more(kind: str) -> None:
    """The slot is another loop's by then: one more claim would take its chunk."""
    member = Member(Block(), 0, 1)
    ended = [loop(member, 5, kind=kind) for _ in range(8)]
    for one in ended:
        assert sorted(one) == list(range(5))
    current = loop(member, 5, kind=kind)
    found = [next(current)]
    for one in ended:
        assert list(one) == []
    assert sorted(found + list(current)) == list(range(5))


def test_loops_go_on_where_the_region_before_ended() -> None:
    ranks = Ranks(2)

    def body(loops: int) -> Body:
        def run(member: Member) -> list[int]:
            return [
                i for _ in range(loops) for i in consume(member, 3, kind="dynamic", nowait=True)
            ]

        return run

    for loops in (1, 0, 3, 8, 9, 20, 1):
        a, b = ranks.run(body(loops), body(loops))
        assert sorted(a + b) == sorted(list(range(3)) * loops)


def test_a_region_at_once_after_another_is_not_taken_for_it() -> None:
    """Rank 0 runs eight loops ahead before rank 1 has begun: its old state must not count."""
    ranks = Ranks(2)
    for _ in range(10):
        gate = threading.Event()

        def fast(member: Member, gate: threading.Event = gate) -> int:
            total = 0
            for k in range(20):
                if k == 8:
                    gate.set()
                total += len(consume(member, 3, kind="dynamic", nowait=True))
            return total

        def slow(member: Member, gate: threading.Event = gate) -> int:
            assert gate.wait(DEADLINE)
            until(lambda: ranks.block.place(0)["phase"] == "waiting to enter a loop")
            return sum(len(consume(member, 3, kind="dynamic", nowait=True)) for _ in range(20))

        assert sum(ranks.run(fast, slow)) == 60


# -- Processes ----------------------------------------------------------------------------------


class Forks:
    """Ranks that are forked children of this process over one shared block."""

    def __init__(self, size: int, body: Callable[[Member], None]) -> None:
        fd = Block.descriptor()
        self.block = Block(fd, True)
        os.close(fd)
        self.block.repair()
        self.size = size
        self.block.launch(size, 2)
        self.pids = [self._fork(rank, body) for rank in range(size)]

    def _fork(self, rank: int, body: Callable[[Member], None]) -> int:
        pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            member = Member(self.block, rank, self.size)
            member.begin(2, self.size)
            try:
                body(member)
                member.finish()
                code = 0
            except BarrierBroken:
                code = 3
            except RegionError:
                code = 4
        finally:
            os._exit(code)

    def codes(self) -> list[int]:
        """Exit codes, minus the signal for the killed; those that hang are killed and told."""
        end = time.monotonic() + DEADLINE
        waiting = dict(enumerate(self.pids))
        codes: dict[int, int] = {}
        while waiting and time.monotonic() < end:
            for rank, pid in list(waiting.items()):
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    codes[rank] = os.waitstatus_to_exitcode(status)
                    del waiting[rank]
            os.sched_yield()
        for pid in waiting.values():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        assert not waiting, f"ranks {list(waiting)} hang"
        return [codes[rank] for rank in range(self.size)]


@pytest.fixture
def counts() -> Any:
    """Integers that forked children share."""
    memory = mmap.mmap(-1, 1 << 16)
    return np.frombuffer(memory, np.int64)


def test_processes_claim_every_chunk_once_whatever_the_loops(counts: Any) -> None:
    """Hundreds of nowait loops of every kind at full speed, each index counted by its owner."""
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")

    def body(member: Member) -> None:
        random = Random(seed)  # the same on every rank
        mine = counts[member.rank * 1000 :][:100]
        for _ in range(1500):
            kind, n, nowait = random.choice(KINDS), random.randrange(100), random.random() < 0.9
            for i in loop(member, n, kind=kind, nowait=nowait):
                mine[i] += 1

    random = Random(seed)
    expected = np.zeros(100, int)
    for _ in range(1500):
        _, n, _ = random.choice(KINDS), random.randrange(100), random.random()
        expected[:n] += 1
    assert Forks(3, body).codes() == [0, 0, 0]
    assert (counts[:3000].reshape(3, 1000)[:, :100].sum(axis=0) == expected).all()


def test_processes_exclude_each_other(counts: Any) -> None:
    def body(member: Member) -> None:
        for _ in range(5000):
            with member.lock("x"):
                counts[0] += 1

    assert Forks(4, body).codes() == [0] * 4
    assert counts[0] == 20_000


@pytest.mark.parametrize("wait", WAITS, ids=lambda f: f.__name__)
def test_a_rank_killed_with_a_lock_is_survived(counts: Any, wait: Body) -> None:
    def body(member: Member) -> None:
        if member.rank == 0:
            with member.lock("x"):
                counts[0] = 1
                signal.pause()
        until(lambda: counts[0])
        wait(member)

    forks = Forks(3, body)
    until(lambda: all(forks.block.place(r)["phase"] == WAITS[wait] for r in (1, 2)))
    os.kill(forks.pids[0], signal.SIGKILL)
    forks.block.poison(DIED, 0)  # as the warden does
    assert forks.codes() == [-signal.SIGKILL, 3, 3]


def test_a_child_of_a_rank_leaves_its_loop_alone() -> None:
    """A fork in a loop's body has the iterator too: its death is nothing to the team."""

    def body(member: Member) -> None:
        for _ in loop(member, 4):
            child = os.fork()
            if child == 0:
                break
            assert os.waitpid(child, 0)[1] == 0
        else:
            return
        os._exit(0)

    forks = Forks(2, body)
    assert forks.codes() == [0, 0]
    assert forks.block.reason() == (0, 0)


# -- Pages --------------------------------------------------------------------------------------


def test_a_page_is_written_by_its_owner_and_read_by_others() -> None:
    owner = Page(8192)
    reader = Page(8192, owner.fd)
    owner.write(100, b"abc")
    assert reader.read(99, 5) == b"\0abc\0"
    with pytest.raises(ValueError, match="do not fit"):
        owner.write(8190, b"abc")
    with pytest.raises(ValueError, match="not in a page"):
        reader.read(-1, 2)
    with pytest.raises(ValueError, match="not in a page"):
        reader.read(0, 8193)
    with pytest.raises(PermissionError):
        mmap.mmap(owner.fd, 8192)
    with pytest.raises(ValueError, match="was expected"):
        Page(1 << 20, owner.fd)


def test_phases_and_reasons_have_names() -> None:
    block = Block()
    for phase, name in enumerate(PHASES):
        block.phase(3, phase)
        assert block.place(3)["phase"] == name
