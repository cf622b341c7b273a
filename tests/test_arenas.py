"""Small arrays: their memory is their own for as long as anybody sees it, and comes back after."""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from numpy.lib.stride_tricks import as_strided

import dsmfor as dsm
from dsmfor import arenas, arrays, segments
from dsmfor._native import arena as native
from dsmfor._native import registry
from dsmfor._native.arena import Arena
from dsmfor.engines import process, quarantine
from dsmfor.engines.recruits import leaving
from dsmfor.errors import DSMError, SharedMemoryFull

MiB = 1 << 20
PACKAGE = Path(dsm.__file__).parent.parent
PATIENCE = 10.0


@contextlib.contextmanager
def heard() -> Iterator[list[int]]:
    """Blocks of which a handle was made wait in quarantine; what a listener is told."""
    told: list[int] = []
    native.listen(told.append, True)
    try:
        yield told
    finally:
        native.listen(None, False)
        if process._keeper is not None:
            arenas.listen(process._bell.hear)


class Ground:
    """An arena over private memory, known to the registry under a number of its own."""

    def __init__(self, nbytes: int) -> None:
        buffer = np.zeros(nbytes + 64, np.uint8)
        start = -buffer.__array_interface__["data"][0] % 64
        self.memory = buffer[start : start + nbytes]
        self.memory[:] = 0xEE  # what the last user of the pages left
        self.low = registry.add(self.memory, 1 << 62)
        self.arena = Arena(self.memory, 1 << 62, -1)

    def take(self, nbytes: int) -> np.ndarray | None:
        hold = native.take((self.arena,), nbytes)
        return None if hold is None else hold.array((nbytes,), np.dtype(np.uint8))

    def close(self) -> None:
        del self.arena
        registry.remove(self.low)


def place(a: np.ndarray) -> int:
    return a.__array_interface__["data"][0]


# -- The division of an arena ---------------------------------------------------------------------


class Division(RuleBasedStateMachine):
    """Blocks come, are named, go, are asked about, come to life again: no byte is ever two's."""

    size = 1 << 16

    @initialize()
    def begin(self) -> None:
        self.around = contextlib.ExitStack()
        self.around.enter_context(heard())
        self.ground = Ground(self.size)
        self.ground.arena.release_all()
        self.memory = self.ground.memory.view()
        self.memory[:] = 0
        self.live: dict[int, np.ndarray] = {}  # mark -> array full of it
        self.handles: dict[int, Any] = {}
        self.waiting: dict[int, tuple[int, int]] = {}  # mark -> its bytes in the arena
        self.tickets: list[bytes] = []
        self.released: list[Any] = []
        self.marks = iter(range(1, 1 << 30))

    def bounds(self, a: np.ndarray) -> tuple[int, int]:
        low = place(a) - self.ground.low
        return low, low + a.nbytes

    @rule(nbytes=st.one_of(st.integers(1, 300), st.integers(1, 1 << 15)))
    def make(self, nbytes: int) -> None:
        a = self.ground.take(nbytes)
        if a is None:
            return
        assert not a.any()
        low, high = self.bounds(a)
        assert low % 64 == 0
        assert 0 <= low < high <= self.size
        for first, last in [*map(self.bounds, self.live.values()), *self.waiting.values()]:
            assert high <= first or last <= low
        mark = next(self.marks)
        a[:] = mark % 255 + 1
        self.live[mark] = a

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def name(self, data: st.DataObject) -> None:
        mark = data.draw(st.sampled_from(sorted(self.live)))
        self.handles[mark] = registry.handle(self.live[mark])

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def let_go(self, data: st.DataObject) -> None:
        mark = data.draw(st.sampled_from(sorted(self.live)))
        a = self.live.pop(mark)
        if mark in self.handles:
            self.waiting[mark] = self.bounds(a)

    @rule()
    def look(self) -> None:
        self.tickets.append(self.ground.arena.tickets())

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def revive(self, data: st.DataObject) -> None:
        mark = data.draw(st.sampled_from(sorted(self.waiting)))
        again = self.ground.arena.view(*self.handles[mark][1:])
        assert (again == mark % 255 + 1).all()
        assert self.bounds(again) == self.waiting.pop(mark)
        self.live[mark] = again

    @precondition(lambda self: self.tickets)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        tickets = self.tickets.pop(data.draw(st.integers(0, len(self.tickets) - 1)))
        before = self.ground.arena.quarantined
        self.ground.arena.release(tickets)
        self.ground.arena.release(tickets)  # a ticket counts once
        assert before - self.ground.arena.quarantined <= len(tickets) // 8
        # Which of those waiting that were is for their handles to say: they are found, or gone.
        for mark in list(self.waiting):
            again = self.ground.arena.view(*self.handles[mark][1:])
            if again is None:
                del self.waiting[mark]
            else:
                self.live[mark] = again
                del self.waiting[mark]

    @invariant()
    def whoever_lives_keeps_his_bytes(self) -> None:
        if not hasattr(self, "live"):
            return
        for mark, a in self.live.items():
            assert (a == mark % 255 + 1).all()
        for mark, (low, high) in self.waiting.items():
            assert (self.memory[low:high] == mark % 255 + 1).all()
        assert self.ground.arena.blocks == len(self.live) + len(self.waiting)
        assert self.ground.arena.quarantined == len(self.waiting)

    def teardown(self) -> None:
        if not hasattr(self, "live"):
            return
        self.live.clear()
        self.ground.arena.release_all()
        assert self.ground.arena.blocks == 0
        whole = self.ground.take(self.size)  # everything has become one again
        assert whole is not None
        assert not whole.any()
        del whole
        self.around.close()
        self.ground.close()


TestDivision = Division.TestCase
TestDivision.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)


@pytest.fixture
def ground() -> Iterator[Ground]:
    made = Ground(MiB)
    made.memory[:] = 0
    yield made
    made.close()


def test_a_freed_block_waits_only_if_a_handle_of_it_was_made(ground: Ground) -> None:
    with heard() as told:
        a = ground.take(100)
        low = place(a)
        assert registry.is_shared(a)
        del a
        assert ground.arena.blocks == 0
        assert told == []
        a = ground.take(100)
        assert place(a) == low
        handle = registry.handle(a[3:])
        del a
        assert (ground.arena.blocks, ground.arena.quarantined) == (1, 1)
        assert told == [native.CONDEMNED]
        other = ground.take(100)
        assert place(other) != low
        ground.arena.release(ground.arena.tickets())
        assert ground.arena.view(*handle[1:]) is None
        assert place(ground.take(100)) == low


def test_a_block_that_came_to_life_again_is_not_released_by_its_old_ticket(ground: Ground) -> None:
    with heard():
        a = ground.take(100)
        a[:] = 7
        handle = registry.handle(a)
        del a
        old = ground.arena.tickets()
        a = ground.arena.view(*handle[1:])
        ground.arena.release(old)
        assert (a == 7).all()
        del a
        ground.arena.release(old)
        assert ground.arena.quarantined == 1
        ground.arena.release(ground.arena.tickets())
        assert ground.arena.blocks == 0


def test_tickets_that_were_lost_are_had_again(ground: Ground) -> None:
    with heard():
        for _ in range(10):
            a = ground.take(100)
            registry.handle(a)
            del a
        lost = ground.arena.tickets()
        assert (len(lost), ground.arena.tickets()) == (80, b"")
        again = ground.arena.tickets(anew=True)
        assert sorted(np.frombuffer(again, "u8")) == sorted(np.frombuffer(lost, "u8"))
        ground.arena.release(again)
        assert (ground.arena.blocks, ground.arena.tickets(anew=True)) == (0, b"")


def test_with_nobody_listening_nothing_waits(ground: Ground) -> None:
    native.listen(None, False)
    try:
        registry.handle(ground.take(100))
        assert ground.arena.blocks == 0
    finally:
        with heard():
            pass


def test_a_view_into_a_neighbour_is_refused(ground: Ground) -> None:
    a, b = ground.take(64), ground.take(64)
    assert place(b) == place(a) + 64
    for start, length, stride in ((a, 65, 1), (b, 2, -1), (a, 2, 64)):
        view = as_strided(start, (length,), (stride,))
        with pytest.raises(ValueError, match="beyond"):
            registry.handle(view)
        with pytest.raises(ValueError, match="beyond"):
            arrays.is_shared(view)


def test_what_lies_in_no_block_of_an_arena_is_not_shared(ground: Ground) -> None:
    a = ground.take(64)
    assert registry.handle(ground.memory[128:256]) is None
    assert registry.handle(ground.memory[:64])[1] == registry.handle(a)[1]


def test_a_retired_arena_gives_nothing_and_uses_nothing_again(ground: Ground) -> None:
    a, b = ground.take(100), ground.take(100)
    a[:] = b[:] = 9
    low = place(b) - ground.low
    ground.arena.retire()
    assert ground.take(100) is None
    del b
    assert ground.take(100) is None
    assert (ground.memory[low : low + 100] == 9).all()
    assert ground.arena.blocks == 1
    del a
    assert ground.arena.blocks == 0


def test_another_process_knows_the_blocks_that_it_was_told_of() -> None:
    owner = Ground(MiB)
    a = owner.take(100)
    b = owner.take(1000)
    handles = [registry.handle(x) for x in (a, b)]
    mapped = owner.memory
    del a, b
    owner.close()
    registry.add(mapped, 5)
    other = Arena(mapped, 5, native.FOREIGN)
    tickets = np.array([0, 2, 4], np.uint64).tobytes()  # of granules 0, 2 and 4
    assert other.held(tickets) == b"\0\0\0"
    views = [other.view(*handle[1:]) for handle in handles]
    again = other.view(*handles[0][1:])
    assert other.held(tickets) == b"\1\1\0"
    assert registry.handle(again)[1:] == handles[0][1:]
    assert native.take((other,), 10) is None
    del again
    assert other.held(tickets) == b"\1\1\0"
    views.pop(0)
    assert other.held(tickets) == b"\0\1\0"
    with pytest.raises(ValueError, match="beyond"):
        registry.handle(as_strided(views[0], (1001,), (1,)))
    other.retire()  # as before a fork: the child may hold it for ever
    views.clear()
    assert other.held(tickets) == b"\0\1\0"
    del other
    registry.remove(place(mapped))


@pytest.mark.parametrize("nbytes", [0, 63, 65 * MiB])
def test_an_arena_is_of_a_sensible_size(nbytes: int) -> None:
    with pytest.raises(ValueError, match="an arena has 64 to"):
        Arena(np.zeros(nbytes, np.uint8), 1, -1)


# -- Arenas of this process -----------------------------------------------------------------------


@pytest.fixture(autouse=True)
def nothing_before() -> None:
    gc.collect()
    process.housekeep()
    arenas.drop_spares()


def pages(segment: int) -> int:
    """Bytes that a segment takes."""
    return os.fstat(segments.descriptor(segment)).st_blocks * 512


def taken() -> int:
    return sum(pages(segment) for segment in segments.live())


def mappings(pid: int | str = "self") -> int:
    return Path(f"/proc/{pid}/maps").read_text().count("memfd:dsmfor segment")


def descriptors(pid: int | str = "self") -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_from_a_mebibyte_up_an_array_has_a_segment_of_its_own() -> None:
    assert not arrays.handle(dsm.zeros(MiB, "u1"))[0] & segments.ARENA
    assert arrays.handle(dsm.zeros(MiB - 1, "u1"))[0] & segments.ARENA


@pytest.mark.parametrize("nbytes", [1, 64, 4096, 131_072, 131_073, MiB - 1])
def test_the_pages_of_a_block_are_there_before_it_is_touched(nbytes: int) -> None:
    a = dsm.zeros(nbytes, "u1")
    segment = arrays.handle(a)[0]
    before = pages(segment)
    assert nbytes <= before <= nbytes + 2 * native.PIECE + 4096
    a[:] = 1
    assert pages(segment) == before


def test_many_small_arrays_are_made_and_freed_and_everything_stays_flat() -> None:
    def churn(count: int) -> None:
        kept: list[np.ndarray] = []
        for n in range(count):
            a = dsm.zeros(n % 50 * 8 + 1)
            assert not a.any()
            a[:] = n
            kept.append(a)
            if len(kept) > 20:
                kept.pop(n % 20)

    churn(2000)
    before = mappings(), descriptors(), taken()
    churn(100_000)
    assert (mappings(), descriptors()) == before[:2]
    assert taken() <= before[2] + MiB


def test_one_small_array_that_stays_keeps_no_other_memory() -> None:
    stays = []
    for _ in range(3):
        many = [dsm.ones(100_000) for _ in range(150)]
        stays.append(dsm.ones(1))
        assert len(arenas._own) <= 2
        del many
    arenas.tidy()
    assert taken() < 2 * MiB
    assert all(a[0] == 1 for a in stays)
    again = [dsm.zeros(100_000) for _ in range(150)]
    assert not any(a.any() for a in again)
    assert len(arenas._own) <= 2


def test_memory_of_many_freed_arrays_returns_at_once() -> None:
    gc.collect()  # arrays that earlier tests have left in cycles
    process.housekeep()
    many = [dsm.ones(MiB // 16) for _ in range(1000)]
    assert taken() > 500 * MiB
    many.clear()
    assert taken() < 80 * MiB  # a few MiB in each of the arenas that are left
    arenas.tidy()
    assert taken() < MiB
    assert len(arenas._own) == 1
    arenas.drop_spares()
    assert mappings() == 0


def test_sixty_five_thousand_live_arrays_take_one_descriptor() -> None:
    before = descriptors()
    many = [dsm.full(4, n) for n in range(65_000)]
    assert descriptors() <= before + 1
    assert mappings() == 1
    assert all((a == n).all() for n, a in enumerate(many))
    assert len({place(a) for a in many}) == 65_000


def test_threads_never_share_a_block() -> None:
    start = threading.Barrier(4)
    wrong: list[object] = []

    def churn(mark: int) -> None:
        start.wait()
        kept: list[np.ndarray] = []
        for n in range(3000):
            a = dsm.zeros(n % 90 + 1)
            if a.any():
                wrong.append("dirty")
            a[:] = mark
            kept.append(a)
            if len(kept) > 8:
                kept.pop(0)
            if not all((each == mark).all() for each in kept):
                wrong.append(mark)

    threads = [threading.Thread(target=churn, args=(mark,)) for mark in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_block_in_a_cycle_is_freed_by_the_collector() -> None:
    cycle: list[object] = [dsm.zeros(10)]
    cycle.append(cycle)
    before = arenas.blocks()
    del cycle
    gc.collect()
    assert arenas.blocks() == before - 1


def run(program: str, *arguments: object) -> Any:
    """What a clean interpreter prints, as JSON; its failure is the test's."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
        env=os.environ | {"PYTHONPATH": str(PACKAGE), "OPENBLAS_NUM_THREADS": "1"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_a_forked_child_and_its_parent_never_write_into_each_others_arrays() -> None:
    told = run(
        """
        import json, os
        import numpy as np
        import dsmfor as dsm
        from dsmfor import arenas

        kept = [dsm.full(100, n) for n in range(50)]
        gone = [dsm.full(100, 77.0) for n in range(50)]
        to_child, to_parent = os.pipe(), os.pipe()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                own = [dsm.full(100, -1.0) for n in range(200)]
                kept[0][:] = 5
                del kept[1:]
                more = [dsm.full(100, -2.0) for n in range(200)]
                os.write(to_parent[1], b"x")
                os.read(to_child[0], 1)
                assert all((a == 77).all() for a in gone)
                assert all((a == -1).all() for a in own)
                assert all((a == -2).all() for a in more)
                code = 0
            finally:
                os._exit(code)
        os.read(to_parent[0], 1)
        gone.clear()
        fresh = [dsm.zeros(100) for n in range(500)]
        zero = not any(a.any() for a in fresh)
        for a in fresh:
            a[:] = 3
        os.write(to_child[1], b"x")
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        right = all((a == n).all() for n, a in enumerate(kept) if n) and (kept[0] == 5).all()
        count = len(arenas._own)
        kept.clear(), fresh.clear()
        del a
        arenas.drop_spares()
        print(json.dumps([status, zero, bool(right), count, len(arenas._own)]))
        """
    )
    assert told == [0, True, True, 2, 0]


def test_an_array_made_while_a_fork_is_under_way_gets_a_segment_of_its_own() -> None:
    spare = dsm.zeros(1)
    arenas._before_fork()
    try:
        a = dsm.ones(10)
        assert not arrays.handle(a)[0] & segments.ARENA
    finally:
        arenas._in_parent()
    assert arrays.handle(dsm.ones(10))[0] != arrays.handle(spare)[0]


@pytest.mark.parametrize("limit", ["RLIMIT_FSIZE", "RLIMIT_AS"])
def test_where_no_arena_can_be_made_small_arrays_are_segments(limit: str) -> None:
    assert run(
        """
        import json, resource, sys
        import dsmfor as dsm
        from dsmfor import arrays, segments
        segments.create(1)
        used = int(open("/proc/self/statm").read().split()[0]) * 4096
        bound = 1 << 20 if sys.argv[1] == "RLIMIT_FSIZE" else used + (16 << 20)
        resource.setrlimit(getattr(resource, sys.argv[1]), (bound, bound))
        kept = [dsm.full(100, n) for n in range(100)]
        right = all((a == n).all() for n, a in enumerate(kept))
        print(json.dumps([right, any(arrays.handle(a)[0] & segments.ARENA for a in kept)]))
        """,
        limit,
    ) == [True, False]


def test_without_memory_for_its_pages_a_block_is_refused_and_nothing_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept = dsm.ones(10)
    before = arenas.blocks()

    def refuse(nbytes: int) -> None:
        raise SharedMemoryFull("no room")

    monkeypatch.setattr("dsmfor.limits.check", refuse)
    with pytest.raises(SharedMemoryFull, match="no room"):
        dsm.zeros(MiB - 1, "u1")
    assert dsm.zeros(10).sum() == 0  # where pages are there already
    monkeypatch.undo()
    gc.collect()
    assert arenas.blocks() == before
    assert kept.sum() == 10


# -- Workers --------------------------------------------------------------------------------------


@dsm.parallel(workers=2)
def keep(a: Any, how: str, ranks: tuple[int, ...] = (0, 1)) -> Any:
    """Have workers hold a view between regions, where users do: in modules and caches."""
    import colorsys as module

    if dsm.rank() not in ranks:
        return None
    if how == "global":
        module.kept = a
    elif how == "cache":
        module.cached = functools.lru_cache(lambda: a[1:])
        module.cached()
    elif how == "cycle":
        cycle: list[object] = [a]
        cycle.append(cycle)
    elif how == "give":
        return module.kept
    elif how == "read":
        return module.kept.copy() if hasattr(module, "kept") else module.cached().copy()
    elif how == "raise":
        raise ValueError(module.kept)
    elif how == "drop":
        for name in ("kept", "cached"):
            vars(module).pop(name, None)
    return None


@dsm.parallel(workers=2)
def total(many: list[np.ndarray]) -> float:
    return sum(float(a[0]) for a in many)


@pytest.fixture
def clean() -> Iterator[None]:
    yield
    keep(None, "drop")


def settled(blocks: int) -> bool:
    process.housekeep()
    return arenas.blocks() == blocks


@pytest.mark.parametrize("how", ["global", "cache"])
@pytest.mark.usefixtures("clean")
def test_a_new_array_never_lies_where_a_worker_still_sees_an_old_one(how: str) -> None:
    keep(dsm.full(100, 7.0), how, (1,))
    assert settled(1)
    fresh = [dsm.zeros(100) for _ in range(2000)]
    for a in fresh:
        assert not a.any()
        a[:] = 3
    assert (keep(None, "read", (1,))[1] == 7).all()
    assert settled(2001)
    keep(None, "drop")
    assert settled(2000)


def test_what_a_cycle_in_a_worker_holds_is_collected_when_it_is_asked_for() -> None:
    keep(dsm.full(100, 7.0), "cycle")
    assert settled(0)


def test_a_block_that_no_message_named_is_used_again_without_asking(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    total([dsm.ones(1)])
    assert settled(0)
    monkeypatch.setattr(arenas, "condemned", None)  # nobody may ask
    low = place(dsm.zeros(100))
    assert {place(dsm.zeros(100)) for _ in range(100)} == {low}


def test_a_block_that_workers_have_let_go_is_used_again_while_they_are_idle() -> None:
    total([dsm.ones(1)])
    total([dsm.ones(100) for _ in range(10)])
    assert arenas.blocks() >= 10
    deadline = time.monotonic() + PATIENCE
    while arenas.blocks() and time.monotonic() < deadline:  # by the housekeeper alone
        time.sleep(0.005)  # between looks, not to order anything
    assert arenas.blocks() == 0


@pytest.mark.usefixtures("clean")
def test_what_one_rank_hands_to_another_is_asked_of_both() -> None:
    """Rank 0 holds it; then it hands it to rank 1 and drops it: neither "no" may count alone."""

    @dsm.parallel(workers=2)
    def hand_over() -> None:
        import colorsys as module

        a = dsm.single(lambda: module.kept)
        if dsm.rank() == 0:
            del module.kept
        else:
            module.kept = a

    keep(dsm.full(100, 7.0), "global", (0,))
    keep(dsm.ones(1), "none")  # rank 1 knows the arena
    assert settled(1)
    hand_over()
    assert settled(1)
    fresh = [dsm.full(100, 3.0) for _ in range(1000)]
    assert (keep(None, "read", (1,))[1] == 7).all()
    assert settled(1001)
    keep(None, "drop")
    assert settled(len(fresh))


@pytest.mark.usefixtures("clean")
def test_who_handed_a_view_on_and_died_before_it_was_heard_takes_no_secret_along() -> None:
    """Asked while idle, rank 0 holds it, rank 1 does not; then rank 0 hands it on, and dies."""

    @dsm.parallel(workers=2)
    def hand_over_and_die() -> None:
        import colorsys as module

        a = dsm.single(lambda: module.kept)
        if dsm.rank() == 1:
            module.kept = a
        dsm.barrier()
        if dsm.rank() == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    total([dsm.ones(1)])
    keep(dsm.full(100, 7.0), "global", (0,))
    with process._guard:  # the housekeeper hears nobody meanwhile
        process.housekeep(wait=False)
        assert process._quarantine.asking
        with pytest.raises(dsm.WorkerDied):
            hand_over_and_die()
    assert settled(1)
    fresh = [dsm.full(100, 3.0) for _ in range(1000)]
    assert (keep(None, "read", (1,))[1] == 7).all()
    keep(None, "drop")
    assert settled(len(fresh))


@pytest.mark.usefixtures("clean")
def test_a_result_brings_an_array_back_that_the_caller_has_let_go() -> None:
    keep(dsm.full(100, 7.0), "global")
    assert settled(1)
    first, second = keep(None, "give")
    assert np.shares_memory(first, second)
    first[3] = 8
    assert keep(None, "read")[1][3] == 8
    keep(None, "drop")
    assert settled(1)
    fresh = [dsm.full(100, 3.0) for _ in range(1000)]
    assert second.tolist() == [7.0] * 3 + [8.0] + [7.0] * 96
    del first, second
    assert settled(len(fresh))


@pytest.mark.usefixtures("clean")
def test_an_exception_brings_an_array_back_that_the_caller_has_let_go() -> None:
    keep(dsm.full(100, 7.0), "global", (0,))
    assert settled(1)
    with pytest.raises(ValueError) as caught:
        keep(None, "raise", (0,))
    assert (caught.value.args[0] == 7).all()
    keep(None, "drop")
    assert settled(1)
    del caught
    gc.collect()
    assert settled(0)


def test_a_handle_that_comes_too_late_is_refused() -> None:
    a = dsm.ones(10)
    handle = arrays.handle(a)
    del a
    assert settled(0)
    fresh = dsm.zeros(10)
    with pytest.raises(DSMError, match="gone"):
        arrays.rebuild(handle)
    assert arrays.handle(fresh)[0] == handle[0]


def test_a_dead_workers_views_are_gone() -> None:
    keep(dsm.full(100, 7.0), "global", (1,))
    assert settled(1)
    victim = process._idle[-1].workers[1]
    assert victim is not None
    os.kill(victim.recruit.pid, signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE
    while not settled(0) and time.monotonic() < deadline:
        with contextlib.suppress(dsm.WorkerDied):  # if it dies a moment later
            total([])
    assert arenas.blocks() == 0


def test_nothing_is_released_before_a_worker_that_was_told_to_end_has_ended() -> None:
    keep(dsm.full(100, 7.0), "global")
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(write)
        os.read(read, 1)
        os._exit(0)
    os.close(read)
    leaving.append(os.pidfd_open(pid))
    keep(None, "drop")
    assert settled(1)
    assert not quarantine.see_off()
    os.close(write)
    os.waitpid(pid, 0)
    assert settled(0)
    assert not leaving


def test_a_crew_that_is_disbanded_holds_nothing() -> None:
    keep(dsm.full(100, 7.0), "global")
    assert settled(1)
    process.shutdown()
    assert arenas.blocks() == 0
    assert not leaving
    assert total([dsm.ones(1)]) == [1, 1]


@pytest.mark.usefixtures("clean")
def test_a_kernel_that_forks_holds_its_arrays_for_its_child() -> None:
    @dsm.parallel(workers=2)
    def fork(a: np.ndarray) -> None:
        if dsm.rank() == 0:
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            os.waitpid(pid, 0)

    fork(dsm.full(100, 7.0))
    assert settled(1)
    process.shutdown()  # which ends the worker
    assert arenas.blocks() == 0


def test_an_array_that_goes_while_a_region_names_it_stays_until_the_region_ends() -> None:
    gate = dsm.zeros(3)
    box = [dsm.full(100, 7.0)]
    results: list[Any] = []

    @dsm.parallel(workers=2)
    def wait(box: list[np.ndarray], gate: np.ndarray) -> Any:
        gate[dsm.rank()] = 1
        while not gate[2]:
            time.sleep(0.001)  # for the gate
        assert (box[0] == 7).all()
        return box[0]

    thread = threading.Thread(target=lambda: results.append(wait(box, gate)))
    thread.start()
    while gate[:2].sum() < 2:
        time.sleep(0.001)
    box.clear()
    process.housekeep()
    fresh = [dsm.full(100, 3.0) for _ in range(500)]
    gate[2] = 1
    thread.join()
    assert (results[0][0] == 7).all()
    assert settled(len(fresh) + 2)
    results.clear()
    assert settled(len(fresh) + 1)


def test_an_array_that_is_made_while_it_is_pickled_lives_until_the_region_ends() -> None:
    class Maker:
        def __getstate__(self) -> dict[str, Any]:
            return {"a": dsm.full(100, 7.0)}

    @dsm.parallel(workers=2)
    def read(maker: Any) -> bool:
        return bool((maker.a == 7).all())

    for _ in range(5):
        assert read(Maker()) == [True, True]
        fresh = [dsm.full(100, 3.0) for _ in range(10)]
    assert settled(len(fresh))


def test_two_crews_are_both_asked() -> None:
    process.shutdown()  # so that both crews are of one worker
    box = [dsm.full(100, 7.0)]
    both = threading.Barrier(2)
    crews: set[int] = set()
    gate = dsm.zeros(4)

    def call(slot: int) -> None:
        @dsm.parallel(workers=1)
        def hold(a: np.ndarray, gate: np.ndarray) -> int:
            import colorsys as module

            module.kept = a
            gate[slot] = 1
            while not gate[2]:
                time.sleep(0.001)  # for the gate
            return os.getpid()

        both.wait()
        crews.add(hold(box[0], gate)[0])

    threads = [threading.Thread(target=call, args=(slot,)) for slot in range(2)]
    for thread in threads:
        thread.start()
    while gate[:2].sum() < 2:
        time.sleep(0.001)
    gate[2] = 1
    for thread in threads:
        thread.join()
    assert len(crews) == 2
    box.clear()
    assert settled(2)
    drop = keep.using(workers=1)
    holders = [c for c in process._idle if c.workers[0] and c.workers[0].recruit.pid in crews]
    for left, crew in ((2, holders[0]), (1, holders[1])):
        with process._guard:  # the one that was used last serves
            process._idle.remove(crew)
            process._idle.append(crew)
        drop(None, "drop")
        assert settled(left)


@pytest.mark.parametrize("batch", [65_000, 5_000])
def test_sixty_five_thousand_arrays_are_read_in_workers(batch: int) -> None:
    pids = dsm.parallel(workers=2)(own_pid)()
    total([dsm.ones(1)])
    before = [(descriptors(pid), mappings(pid)) for pid in pids]
    many = [dsm.full(4, n) for n in range(65_000)]
    for start in range(0, len(many), batch):
        part = many[start : start + batch]
        assert total(part) == [sum(range(start, start + len(part)))] * 2
    after = [(descriptors(pid), mappings(pid)) for pid in pids]
    assert all(b[0] <= a[0] + 2 and b[1] <= a[1] + 2 for a, b in zip(before, after, strict=True))
    many.clear()
    del part
    assert settled(0)


def own_pid() -> int:
    return os.getpid()


def test_a_thousand_rounds_of_named_arrays_leave_everything_flat() -> None:
    def rounds(count: int) -> None:
        for n in range(count):
            assert total([dsm.full(50_000, n)]) == [n, n]

    rounds(100)
    assert settled(0)
    arenas.tidy()
    before = mappings(), descriptors()
    rounds(1000)  # 400 MB pass through quarantine
    assert len(arenas._own) <= 3
    assert settled(0)
    arenas.tidy()
    assert (mappings(), descriptors()) == before
    assert taken() < MiB


# -- Limits ---------------------------------------------------------------------------------------


def test_a_caller_without_descriptors_hears_which_limit_and_goes_on() -> None:
    told = run(
        """
        import json, resource
        import numpy as np
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 160))
        import dsmfor as dsm
        total = dsm.parallel(workers=2)(lambda many: sum(float(a[0]) for a in many))
        total([dsm.ones(3)])
        kept, message = [], ""
        try:
            while True:
                kept.append(dsm.full(1 << 17, len(kept)))
        except dsm.SharedMemoryFull as error:
            message = str(error)
        count = len(kept)
        right = all(a[-1] == n for n, a in enumerate(kept))
        small = [dsm.full(3, n) for n in range(1000)]
        del kept[100:]
        sums = [total(kept), total(small)]
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        print(json.dumps([count, message, right, sums, soft]))
        """
    )
    count, message, right, sums, soft = told
    assert 100 < count < 160
    assert "160 descriptors" in message
    assert "ulimit -n" in message
    assert right
    assert sums == [[100 * 99 / 2] * 2, [1000 * 999 / 2] * 2]
    assert soft == 160


def test_a_worker_without_descriptors_says_so_and_goes_on_when_it_has_some() -> None:
    told = run(
        """
        import json, os, resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (300, 300))
        import dsmfor as dsm

        @dsm.parallel(workers=2)
        def total(many):
            return sum(float(a[0]) for a in many)

        @dsm.parallel(workers=2)
        def fill(rank, leave):
            import colorsys
            if dsm.rank() == rank:
                colorsys.files = []
                try:
                    while True:
                        colorsys.files.append(os.open("/dev/null", os.O_RDONLY))
                except OSError:
                    pass
                for _ in range(leave):
                    os.close(colorsys.files.pop())

        @dsm.parallel(workers=2)
        def close():
            import colorsys
            while vars(colorsys).get("files"):
                os.close(colorsys.files.pop())

        total([])
        close()
        messages = []
        for leave in (0, 3):
            fill(1, leave)
            many = [dsm.full(1 << 17, n) for n in range(50)]
            for _ in range(2):
                try:
                    total(many)
                    messages.append("nothing was said")
                except dsm.SharedMemoryFull as error:
                    messages.append(str(error))
            close()
            messages.append(total(many))
            del many
        print(json.dumps([messages, len({*map(str, messages)})]))
        """
    )
    messages, _ = told
    for n, message in enumerate(messages):
        if n % 3 == 2:
            assert message == [50 * 49 / 2] * 2
        else:
            assert "300 descriptors" in message
            assert "ulimit -n" in message


def test_select_works_beside_many_arrays_and_a_team() -> None:
    assert run(
        """
        import json, os, select
        import dsmfor as dsm
        many = [dsm.full(1 << 17, n) for n in range(300)] + [dsm.full(3, n) for n in range(3000)]
        dsm.parallel(workers=2)(lambda many: len(many))(many)
        read, write = os.pipe()
        os.write(write, b"x")
        numbers = [int(n) for n in os.listdir("/proc/self/fd")]
        numbers = [n for n in numbers if os.path.exists(f"/proc/self/fd/{n}")]
        select.select([read], [], [], 0)
        heirs = [n for n in numbers if n > 2 and os.get_inheritable(n)]
        print(json.dumps([sum(n < 1024 for n in numbers) < 20, len(numbers) > 300, heirs]))
        """
    ) == [True, True, []]
