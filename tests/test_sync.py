"""Laws of barrier, critical, single and rank, over every engine.

A kernel that must force an order waits at a gate, a word of a shared array, with a deadline; every
region has a timeout, so what would hang fails by name.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import product
from typing import Any

import numpy as np
import pytest

import dsmfor as dsm

DEADLINE = 20.0  # seconds for whatever must not hang
SOON = 5.0  # the same, where a hang is what is looked for

TEAMS = [("serial", "1"), *(("process", workers) for workers in "1235")]

Call = Callable[..., Any]


@pytest.fixture(params=TEAMS, ids="-".join)
def on(request: pytest.FixtureRequest) -> Call:
    """Puts a kernel on an engine and a team size: a test that takes it holds on all of them."""
    engine, workers = request.param
    return lambda kernel: kernel.using(engine=engine, workers=int(workers))


@pytest.fixture
def everywhere() -> Call:
    """As `on`, one after the other: for tests after which workers take a second to let go."""
    return lambda kernel: [kernel.using(engine=e, workers=int(n)) for e, n in TEAMS]


@pytest.fixture(params=[2, 5], ids="{}w".format)
def crowd(request: pytest.FixtureRequest) -> int:
    """Size of a team of several ranks."""
    return int(request.param)


@pytest.fixture
def team(crowd: int) -> Iterator[Call]:
    """Puts a kernel on a team of several ranks, for what takes two; the team outlives it."""
    yield lambda kernel: kernel.using(engine="process", workers=crowd)
    assert roll_call.using(engine="process", workers=crowd)() == [(r, crowd) for r in range(crowd)]


def until(condition: Callable[[], object]) -> None:
    """Wait at a gate."""
    end = time.monotonic() + DEADLINE / 2
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("the gate did not open")
        os.sched_yield()


@dsm.parallel(timeout=DEADLINE)
def roll_call() -> tuple[int, int]:
    return dsm.rank(), dsm.size()


# -- rank, size ---------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 5, 9])
def test_ranks_count_from_0_to_size(n: int) -> None:
    assert roll_call.using(workers=n)() == [(r, n) for r in range(n)]
    assert roll_call.using(workers=n, engine="serial")() == [(0, 1)]


def test_outside_a_region_there_is_a_team_of_one() -> None:
    assert (dsm.rank(), dsm.size()) == (0, 1)
    assert roll_call.using(workers=2)() == [(0, 2), (1, 2)]
    assert (dsm.rank(), dsm.size()) == (0, 1)


# -- barrier ------------------------------------------------------------------------------------


def test_what_was_written_before_a_barrier_is_seen_after_it(on: Call) -> None:
    @dsm.parallel(timeout=DEADLINE)
    def kernel(a: Any) -> bool:
        ok = True
        for k in range(1, 300):
            a[dsm.rank()] = k
            dsm.barrier()
            ok &= bool((a[: dsm.size()] == k).all())
            dsm.barrier()
        return ok

    assert all(on(kernel)(dsm.zeros(8, int)))


def test_nobody_passes_a_barrier_before_the_last_has_come(team: Call, crowd: int) -> None:
    @dsm.parallel(timeout=DEADLINE)
    def kernel(came: Any, passed: Any) -> None:
        me = dsm.rank()
        for k in range(1, 30):
            if me == k % dsm.size():  # another one is the last each time
                until(lambda k=k: (np.delete(came, me) == k).all())
                for _ in range(20):
                    os.sched_yield()
                assert (passed < k).all()
            came[me] = k
            dsm.barrier()
            passed[me] = k

    team(kernel)(dsm.zeros(crowd, int), dsm.zeros(crowd, int))


def test_a_barrier_in_a_helper_of_all_ranks_is_one_place(on: Call) -> None:
    @dsm.parallel(timeout=DEADLINE)
    def kernel() -> None:
        def meet() -> None:
            dsm.barrier()

        for _ in range(3):
            meet()

    on(kernel)()


@pytest.mark.parametrize("timeout", [10, 1e300, float("inf")])
def test_a_barrier_with_time_enough_is_a_barrier(team: Call, crowd: int, timeout: float) -> None:
    @dsm.parallel(timeout=DEADLINE)
    def kernel(came: Any) -> None:
        if dsm.rank() == 0:
            until(lambda: came[1:].all())
            for _ in range(100):
                os.sched_yield()
        came[dsm.rank()] = 1
        dsm.barrier(timeout)

    team(kernel)(dsm.zeros(crowd))


def test_a_barrier_that_waits_too_long_says_who_did_not_come(team: Call, crowd: int) -> None:
    @dsm.parallel(timeout=DEADLINE)
    def kernel(gate: Any) -> None:
        if dsm.rank() == 1:
            until(lambda: gate[0])
        else:
            try:
                dsm.barrier(timeout=0.05)
            finally:
                gate[0] = 1

    with pytest.raises(dsm.RegionTimeout, match=r"0\.05 s at the barrier.*rank 1") as caught:
        team(kernel)(dsm.zeros(1))
    assert isinstance(caught.value, TimeoutError)


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), "x", [1]])
def test_a_barriers_timeout_must_be_positive(timeout: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=r"timeout must be .*got"):
        dsm.barrier(timeout)


@pytest.mark.parametrize("what", ["barrier", "single", "loop"])
def test_a_rank_that_ends_the_kernel_is_missed_at_once(team: Call, what: str) -> None:
    @dsm.parallel(timeout=SOON)
    def kernel() -> None:
        if dsm.rank() != 1:
            return
        if what == "barrier":
            dsm.barrier()
        elif what == "single":
            dsm.single(int)
        else:
            for _ in dsm.prange(3):
                pass

    with pytest.raises(dsm.RegionError, match=r"went different ways.*rank 0 of.*rank 1 of"):
        team(kernel)()


def test_the_end_is_missed_by_ranks_that_wait_already(team: Call, crowd: int) -> None:
    """The other order: all others stand at the barrier when the last rank ends."""

    @dsm.parallel(timeout=SOON)
    def kernel(came: Any) -> None:
        if dsm.rank() == 0:
            until(lambda: came[1:].all())
            return
        came[dsm.rank()] = 1
        dsm.barrier()

    with pytest.raises(dsm.RegionError, match=r"went different ways.*end of the kernel"):
        team(kernel)(dsm.zeros(crowd))


def test_barriers_on_different_lines_do_not_meet(team: Call) -> None:
    @dsm.parallel(timeout=SOON)
    def kernel() -> None:
        if dsm.rank() == 0:
            dsm.barrier()
        else:
            dsm.barrier()

    with pytest.raises(dsm.RegionError, match=r"went different ways.*rank 0 of.*rank 1 of"):
        team(kernel)()


def test_barrier_and_single_do_not_meet(team: Call) -> None:
    @dsm.parallel(timeout=SOON)
    def kernel() -> None:
        dsm.barrier() if dsm.rank() == 0 else dsm.single(int)

    with pytest.raises(dsm.RegionError, match=r"went different ways.*rank 0 of.*rank 1 of"):
        team(kernel)()


def test_different_numbers_of_barriers_do_not_end_a_region(team: Call) -> None:
    @dsm.parallel(timeout=SOON)
    def kernel() -> None:
        for _ in range(3 + (dsm.rank() == 1)):
            dsm.barrier()

    with pytest.raises(dsm.RegionError, match=r"went different ways.*rank 0 of.*rank 1 of"):
        team(kernel)()


@pytest.mark.parametrize("what", ["barrier", "single"])
def test_collectives_inside_a_loops_body_are_refused(on: Call, what: str) -> None:
    @dsm.parallel(timeout=SOON)
    def kernel() -> None:
        for _ in dsm.prange(2 * dsm.size()):
            dsm.barrier() if what == "barrier" else dsm.single(int)

    with pytest.raises(dsm.RegionError, match=rf"{what}.* inside the loop of line \d+"):
        on(kernel)()


def test_an_exception_elsewhere_releases_who_waits(team: Call, crowd: int) -> None:
    """The caller sees the exception; the ranks that waited see BarrierBroken."""

    @dsm.parallel(timeout=SOON)
    def kernel(came: Any, seen: Any) -> None:
        me = dsm.rank()
        if me == 1:
            until(lambda: np.delete(came, 1).all())
            raise ArithmeticError("the real reason")
        came[me] = 1
        try:
            dsm.barrier()
        except dsm.BarrierBroken:
            seen[me] = 1
            raise

    seen = dsm.zeros(crowd)
    with pytest.raises(ArithmeticError, match="the real reason"):
        team(kernel)(dsm.zeros(crowd), seen)
    assert np.delete(seen, 1).all()


def test_a_broken_region_stays_broken_for_who_catches_it(team: Call, crowd: int) -> None:
    @dsm.parallel(timeout=SOON)
    def kernel(came: Any, broken: Any) -> None:
        came[dsm.rank()] = 1
        if dsm.rank() == 0:
            until(lambda: came.all())
            raise ArithmeticError("the real reason")
        for k in range(3):
            try:
                dsm.barrier()
            except dsm.BarrierBroken:
                broken[dsm.rank(), k] = 1
        try:
            for _ in dsm.prange(10):
                pass
        except dsm.BarrierBroken:
            broken[dsm.rank(), 3] = 1
        try:
            with dsm.critical():
                pass
        except dsm.BarrierBroken:
            broken[dsm.rank(), 4] = 1

    broken = dsm.zeros((crowd, 5))
    with pytest.raises(ArithmeticError, match="the real reason"):
        team(kernel)(dsm.zeros(crowd), broken)
    # Verbs that came before the exception may have passed; the barriers cannot.
    assert broken[1:, :4].all()


# -- critical -----------------------------------------------------------------------------------


def test_one_rank_at_a_time_is_in_a_critical_block(on: Call) -> None:
    """Read, yield the core, write: without exclusion counts are lost at once."""

    @dsm.parallel(timeout=DEADLINE)
    def kernel(count: Any, inside: Any) -> bool:
        alone = True
        for k in range(200):
            with dsm.critical("count"):
                inside[0] += 1
                alone &= inside[0] == 1
                value = count[0]
                if k % 8 == 0:
                    os.sched_yield()
                count[0] = value + 1
                alone &= inside[0] == 1
                inside[0] -= 1
        return bool(alone)

    count = dsm.zeros(1, int)
    alone = on(kernel)(count, dsm.zeros(1, int))
    assert all(alone)
    assert count[0] == 200 * len(alone)


def test_a_lock_that_is_kept_excludes_like_a_new_one(on: Call) -> None:
    @dsm.parallel(timeout=DEADLINE)
    def kernel(count: Any) -> None:
        lock = dsm.critical()
        for k in range(500):
            with lock if k % 2 else dsm.critical():
                count[0] += 1

    count = dsm.zeros(1, int)
    on(kernel)(count)
    assert count[0] == 500 * len(on(roll_call)())


def test_blocks_of_different_names_do_not_exclude_each_other(team: Call, crowd: int) -> None:
    """All ranks are inside at once, each under a name of its own."""

    @dsm.parallel(timeout=DEADLINE)
    def kernel(inside: Any) -> None:
        me = dsm.rank()
        names = [None, "", "a", "b", "n"]  # no name is a name of its own, too
        with dsm.critical(names[me]):
            inside[me] = 1
            until(lambda: inside.all())

    team(kernel)(dsm.zeros(crowd))


def test_locks_of_different_names_nest(on: Call) -> None:
    @dsm.parallel(timeout=DEADLINE)
    def kernel(count: Any) -> None:
        for _ in range(100):
            with dsm.critical("outer"):
                with dsm.critical("inner"), dsm.critical():
                    count[0] += 1

    count = dsm.zeros(1, int)
    on(kernel)(count)
    assert count[0] == 100 * len(on(roll_call)())


def test_the_waiter_gets_the_lock_when_it_is_given_up(team: Call, crowd: int) -> None:
    @dsm.parallel(timeout=DEADLINE)
    def kernel(came: Any, order: Any) -> None:
        me = dsm.rank()
        if me == 0:
            with dsm.critical("gate"):
                came[0] = 1
                until(lambda: came.all())
                for _ in range(200):
                    os.sched_yield()  # the others are asleep by now, or nearly
                assert order[0] == 0
                order[0] += 1
        else:
            until(lambda: came[0])
            came[me] = 1
            with dsm.critical("gate"):
                assert order[0] > 0
                order[0] += 1

    order = dsm.zeros(1, int)
    team(kernel)(dsm.zeros(crowd), order)
    assert order[0] == crowd


def test_a_lock_is_given_up_when_its_block_raises(on: Call) -> None:
    @dsm.parallel(timeout=DEADLINE)
    def kernel() -> None:
        for _ in range(50):
            try:
                with dsm.critical("x"):
                    raise KeyError
            except KeyError:
                pass

    on(kernel)()


def test_locks_inside_loops_are_what_they_are_outside(on: Call) -> None:
    @dsm.parallel(timeout=DEADLINE)
    def kernel(total: Any) -> None:
        for i in dsm.prange(300, schedule="dynamic"):
            with dsm.critical("total"):
                total[0] += i

    total = dsm.zeros(1, int)
    on(kernel)(total)
    assert total[0] == sum(range(300))


@pytest.mark.parametrize("name", [None, "x"])
def test_a_rank_that_would_wait_for_itself_is_told(on: Call, name: str | None) -> None:
    @dsm.parallel(timeout=SOON)
    def kernel() -> None:
        with dsm.critical(name):
            with dsm.critical(name):
                pass

    shown = r"critical\('x'\)" if name else r"critical\((None)?\)"
    with pytest.raises(dsm.RegionError, match=rf"holds {shown} already.* another name"):
        on(kernel)()
    with pytest.raises(dsm.RegionError, match="holds"):  # the next region starts with it free
        on(kernel)()


@pytest.mark.parametrize("what", ["barrier", "single", "loop"])
def test_waiting_for_all_while_holding_a_lock_is_refused(on: Call, what: str) -> None:
    """Another rank may wait for the lock, and would never come."""

    @dsm.parallel(timeout=SOON)
    def kernel() -> None:
        with dsm.critical("x"):
            if what == "barrier":
                dsm.barrier()
            elif what == "single":
                dsm.single(int)
            else:
                for _ in dsm.prange(4):
                    pass

    with pytest.raises(dsm.RegionError, match="critical"):
        on(kernel)()


def test_a_lock_that_is_held_at_the_end_of_the_kernel_is_an_error(on: Call) -> None:
    @dsm.parallel(timeout=SOON)
    def kernel() -> None:
        ExitStack().enter_context(dsm.critical("x"))

    with pytest.raises(dsm.RegionError, match="critical"):
        on(kernel)()


def test_a_lock_held_at_the_end_releases_who_waits_for_it(team: Call) -> None:
    @dsm.parallel(timeout=SOON)
    def kernel(gate: Any) -> None:
        lock = dsm.critical("x")
        if dsm.rank() == 0:
            lock.__enter__()
            gate[0] = 1
        else:
            until(lambda: gate[0])
            with lock:
                pass

    with pytest.raises(dsm.RegionError, match="critical"):
        team(kernel)(dsm.zeros(1))


def test_a_lock_of_an_ended_region_is_refused(on: Call) -> None:
    @dsm.parallel(timeout=SOON)
    def keep() -> None:
        sys.kept = dsm.critical("x")  # type: ignore[attr-defined]

    @dsm.parallel(timeout=SOON)
    def use(forget: bool) -> None:
        lock = sys.kept  # type: ignore[attr-defined]
        if forget:
            del sys.kept  # type: ignore[attr-defined]
            return
        with lock:
            pass

    on(keep)()
    with pytest.raises(dsm.RegionError, match=r"critical\('x'\).* region that has ended"):
        on(use)(False)
    on(use)(True)


def test_an_exception_elsewhere_releases_who_waits_for_a_lock(team: Call, crowd: int) -> None:
    @dsm.parallel(timeout=SOON)
    def kernel(came: Any, broken: Any) -> None:
        me = dsm.rank()
        if me == 0:
            with dsm.critical("x"):
                came[0] = 1
                until(lambda: came.all())
                raise ArithmeticError("raised with the lock held")
        until(lambda: came[0])
        came[me] = 1
        try:
            with dsm.critical("x"):
                pass
        except dsm.BarrierBroken:
            broken[me] = 1
            raise

    @dsm.parallel(timeout=SOON)
    def again(count: Any) -> None:
        with dsm.critical("x"):
            count[0] += 1

    broken = dsm.zeros(crowd)
    with pytest.raises(ArithmeticError, match="lock held"):
        team(kernel)(dsm.zeros(crowd), broken)
    # Its owner gives the lock up on the way out: who gets it before the poison is not broken.
    assert broken[0] == 0
    count = dsm.zeros(1, int)
    team(again)(count)
    assert count[0] == crowd


@dsm.parallel(timeout=DEADLINE)
def take(first: int, last: int) -> None:
    for k in range(first, last):
        with dsm.critical(f"item {k}"):
            pass


def test_a_team_has_1024_names(on: Call) -> None:
    on(take)(0, 1024)
    with pytest.raises(dsm.RegionError, match=r"1025th.*1024.*per group"):
        on(take)(0, 1025)


def test_names_of_past_regions_do_not_count(on: Call) -> None:
    for start in (0, 500, 10_000, 20_000):
        on(take)(start, start + 600)


def test_a_name_is_text(on: Call) -> None:
    with pytest.raises(TypeError, match="must be a str, got 3"):
        dsm.critical(3)  # type: ignore[arg-type]
    for name in ("", "ä€😀", "\ud800", "a" * 10_000):
        with dsm.critical(name):
            pass


def test_outside_a_region_critical_is_a_team_of_ones() -> None:
    lock = dsm.critical("x")
    with lock, dsm.critical("y"):
        with pytest.raises(dsm.RegionError, match="holds"), lock:
            pass
    with lock:
        pass


# -- single -------------------------------------------------------------------------------------


def test_one_rank_calls_and_all_get_the_value(on: Call) -> None:
    @dsm.parallel(timeout=DEADLINE)
    def kernel(calls: Any) -> Any:
        def make(a: int, *, b: int) -> dict[str, Any]:
            calls[0] += 1
            return {"sum": a + b, "rank": dsm.rank()}

        return dsm.single(make, 2, b=3)

    calls = dsm.zeros(1, int)
    assert all(value == {"sum": 5, "rank": 0} for value in on(kernel)(calls))
    assert calls[0] == 1


def test_none_is_a_value(on: Call) -> None:
    @dsm.parallel(timeout=DEADLINE)
    def kernel() -> list[Any]:
        return [dsm.single(lambda: None), dsm.single(lambda: 1), dsm.single(lambda: None)]

    assert all(values == [None, 1, None] for values in on(kernel)())


def test_the_value_may_be_large(everywhere: Call) -> None:
    @dsm.parallel(timeout=DEADLINE)
    def kernel(size: int) -> bool:
        value = dsm.single(lambda: np.arange(size, dtype=np.uint8))
        return bool((value == np.arange(size, dtype=np.uint8)).all()) and len(value) == size

    for call, size in product(everywhere(kernel), (0, 8 << 10, (8 << 10) - 60, 1 << 17, 3 << 20)):
        assert all(call(size)), size


def test_many_values_in_a_row_arrive_in_order(everywhere: Call) -> None:
    """Half of them alternate with the other half in the same two areas of a page."""

    @dsm.parallel(timeout=DEADLINE)
    def kernel(large: bool) -> bool:
        weight = 10_000 if large else 1
        ok = True
        for k in range(60):
            value = dsm.single(lambda k=k: (k, bytes([k]) * weight))
            ok &= value == (k, bytes([k]) * weight)
        return ok

    for call, large in product(everywhere(kernel), [False, True]):
        assert all(call(large))


class Slow:
    """A value that rank 1 takes its time to unpickle: until rank 0 has made the next one."""

    def __init__(self, k: int, made: Any) -> None:
        self.k = k
        self.made = made

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if dsm.rank() == 1:
            until(lambda: self.made[0] >= min(self.k + 1, 9))
            for _ in range(20):
                os.sched_yield()


def test_a_slow_reader_gets_its_own_value(team: Call) -> None:
    """While rank 1 unpickles value k, rank 0 has made value k + 1: it lies in the other area."""

    @dsm.parallel(timeout=DEADLINE)
    def kernel(made: Any) -> list[int]:
        def make(k: int) -> Slow:
            made[0] = k
            return Slow(k, made)

        return [dsm.single(make, k).k for k in range(10)]

    assert all(ks == list(range(10)) for ks in team(kernel)(dsm.zeros(1, int)))


def test_an_exception_in_single_is_the_kernels(on: Call) -> None:
    @dsm.parallel(timeout=SOON)
    def kernel() -> Any:
        return dsm.single(lambda: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        on(kernel)()


def test_a_value_that_cannot_be_pickled_says_so(team: Call) -> None:
    @dsm.parallel(timeout=SOON)
    def kernel() -> None:
        dsm.single(lambda: (i for i in range(3)))

    with pytest.raises(Exception, match="generator") as caught:
        team(kernel)()
    assert isinstance(caught.value, TypeError)


def test_arrays_made_in_single_are_shared(everywhere: Call) -> None:
    @dsm.parallel(timeout=DEADLINE)
    def kernel() -> float:
        a = dsm.single(dsm.zeros, 1000)
        b = dsm.single(lambda: {"b": dsm.ones((3, 4), int)})["b"]
        for i in dsm.prange(len(a)):
            a[i] += i
        with dsm.critical():
            b += 1
        dsm.barrier()
        assert (b == 1 + dsm.size()).all()
        dsm.barrier()
        return float(a.sum())

    for call in everywhere(kernel) * 3:
        assert set(call()) == {999 * 500.0}


def test_an_array_made_by_every_rank_is_refused(team: Call) -> None:
    @dsm.parallel(timeout=SOON)
    def kernel() -> None:
        dsm.zeros(3)

    with pytest.raises(dsm.RegionError, match=r"dsm\.single\(dsm\.zeros, \.\.\.\)"):
        team(kernel)()


def test_ranks_but_the_first_have_a_copy_of_the_value(on: Call) -> None:
    @dsm.parallel(timeout=DEADLINE)
    def kernel() -> list[int]:
        value = dsm.single(lambda: [0])
        value.append(dsm.rank())
        dsm.barrier()
        return value

    assert on(kernel)() == [[0, r] for r in range(len(on(kernel)()))]


@pytest.mark.parametrize("what", ["single", "barrier", "loop"])
def test_collectives_inside_singles_function_are_refused(team: Call, what: str) -> None:
    """One rank runs it. All on one line, so that places alone do not tell them apart."""

    @dsm.parallel(timeout=SOON)
    def kernel() -> Any:
        inner = {
            "single": lambda: dsm.single(int),
            "barrier": dsm.barrier,
            "loop": lambda: sum(dsm.prange(3)),
        }[what]
        return [dsm.single(lambda: (inner(), k)) for k in range(3)]  # noqa: B023

    with pytest.raises(dsm.RegionError):
        team(kernel)()


def test_single_takes_a_function() -> None:
    with pytest.raises(TypeError, match=r"got 5.* you want single\(f, x\)"):
        dsm.single(5)  # type: ignore[arg-type]


def test_outside_a_region_single_calls() -> None:
    value = [1]
    assert dsm.single(lambda: value) is value
    with pytest.raises(KeyError):
        dsm.single({}.__getitem__, 1)
    assert dsm.single(int) == 0
