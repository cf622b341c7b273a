"""Programs that cannot go on: each ends in an error that names the line, soon, and never in a hang.

The commonest routes out of a loop and ways to diverge are in test_loops.py and test_sync.py; here
are the devious ones. A line that the error must name ends in ``# HERE``. Every region has a
timeout far below what a hang takes, so a hang is a `RegionTimeout` here and fails by name.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import inspect
import itertools
import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import dsmfor as dsm

SOON = 3.0  # seconds: a rank that waits looks around every 0.1
N = 12

TEAMS = [("serial", 1), ("process", 1), ("process", 2), ("process", 5)]

Call = Callable[..., Any]

pytestmark = pytest.mark.filterwarnings("ignore::dsmfor.MisuseWarning")  # they are, on purpose


@pytest.fixture(params=TEAMS, ids="{0[0]}-{0[1]}".format)
def on(request: pytest.FixtureRequest) -> Iterator[Call]:
    """Puts a function on an engine and a team size, as a kernel; the team outlives it."""
    engine, workers = request.param
    yield lambda f: dsm.parallel(engine=engine, workers=workers, timeout=SOON)(f)
    assert dsm.parallel(engine=engine, workers=workers)(forget)() == list(range(workers))


@pytest.fixture(params=[2, 5], ids="{}w".format)
def team(request: pytest.FixtureRequest) -> Iterator[Call]:
    """Puts a function on a team of several ranks, for what takes two."""
    workers = request.param
    yield lambda f: dsm.parallel(engine="process", workers=workers, timeout=SOON)(f)
    assert dsm.parallel(engine="process", workers=workers)(forget)() == list(range(workers))


def forget() -> int:
    """What kernels of a test have kept in their process."""
    vars(sys).pop("kept_by_test", None)
    dsm.barrier()
    return dsm.rank()


def keep(value: Any) -> None:
    sys.kept_by_test = value  # type: ignore[attr-defined]


def kept() -> Any:
    return sys.kept_by_test  # type: ignore[attr-defined]


def here(function: Call) -> int:
    """The line that is marked in a function."""
    lines, first = inspect.getsourcelines(function)
    return first + next(k for k, line in enumerate(lines) if "# HERE" in line)


def until(condition: Callable[[], object]) -> None:
    """Wait at a gate."""
    end = time.monotonic() + SOON / 2
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("the gate did not open")


# -- Out of a loop before its end -----------------------------------------------------------------

LEFT = (
    r"rank \d of \d left the loop at .*test_discipline\.py:{here} early \(its last was p.*dsm\.ca"
)
INSIDE = (
    r"reached inside the loop of line {here}, which has not ended \(p.*test_discipline\.py:{here}"
)


def a_generator_that_is_closed() -> None:
    squares = (i * i for i in dsm.prange(N))  # HERE
    next(squares)
    squares.close()


def a_generator_that_is_thrown_into() -> None:
    def each() -> Iterator[int]:
        for i in dsm.prange(N):  # HERE
            yield 2 * i

    generator = each()
    next(generator)
    with pytest.raises(KeyError):
        generator.throw(KeyError())


def an_iterator_that_is_deleted() -> None:
    loop = dsm.prange(N)  # HERE
    next(loop)
    del loop


def an_iterator_that_is_dropped_after_another_loop() -> None:
    held = [dsm.prange(N)]  # HERE
    next(held[0])
    for _ in dsm.prange(N):
        pass
    held.clear()
    dsm.barrier()


def an_iterator_that_is_bound_anew() -> None:
    loop = dsm.prange(N)  # HERE
    next(loop)
    loop = range(3)
    sum(loop)


def a_comprehension_that_raises() -> None:
    with contextlib.suppress(ZeroDivisionError):
        [1 // 0 for i in dsm.prange(N)]  # HERE


def a_return_from_finally() -> int:
    for i in dsm.prange(N):  # HERE
        try:
            raise KeyError(i)
        finally:
            return i  # noqa: B012
    return 0


def a_break_of_a_helper() -> None:
    def search() -> int:
        for i in dsm.ptiles((N, N), 2):  # HERE
            return i
        return 0

    search()


def a_break_after_recursion() -> None:
    def dive(depth: int) -> None:
        for _ in dsm.prange(N):
            if depth:
                dive(depth - 1)

    dive(2)
    for _ in dsm.prange(N):  # HERE
        dive(1)
        break


def a_break_in_a_coroutine() -> None:
    async def each() -> None:
        for _ in dsm.prange(N):  # HERE
            await asyncio.sleep(0)
            break

    asyncio.run(each())


def a_map_that_is_not_exhausted() -> None:
    next(map(abs, dsm.prange(N)))  # HERE


def a_chain_that_is_not_exhausted() -> None:
    next(itertools.chain(dsm.pslices(N), [1]))  # HERE


def a_tee_that_is_not_exhausted() -> None:
    one, _ = itertools.tee(dsm.prange(N))  # HERE
    next(one)


def an_unpacking_that_is_too_short() -> None:
    with contextlib.suppress(ValueError):
        _a, _b = dsm.prange(N * dsm.size())  # HERE


def a_break_of_the_last_rank_in_a_nowait_loop() -> None:
    for _ in dsm.prange(N, nowait=True):  # HERE
        if dsm.rank() == dsm.size() - 1:
            break
    dsm.barrier()


def an_exception_group() -> None:
    try:
        for i in dsm.prange(N):  # HERE
            raise ExceptionGroup("several", [KeyError(i)])
    except* KeyError:
        pass


LEAVING = [a_generator_that_is_closed, a_generator_that_is_thrown_into, an_iterator_that_is_deleted,
           an_iterator_that_is_dropped_after_another_loop, an_iterator_that_is_bound_anew,
           a_comprehension_that_raises, a_return_from_finally, a_break_of_a_helper,
           a_break_after_recursion, a_break_in_a_coroutine, a_map_that_is_not_exhausted,
           a_chain_that_is_not_exhausted, a_tee_that_is_not_exhausted,
           an_unpacking_that_is_too_short, a_break_of_the_last_rank_in_a_nowait_loop,
           an_exception_group]  # fmt: skip


@pytest.mark.parametrize("route", LEAVING, ids=lambda f: f.__name__)
def test_a_loop_that_is_left_early_is_named(on: Call, route: Call) -> None:
    with pytest.raises(dsm.RegionError, match=LEFT.format(here=here(route))) as caught:
        on(route)()
    assert type(caught.value) is dsm.RegionError


def kept_to_the_end_of_the_kernel() -> None:
    keep(dsm.prange(N))  # HERE
    next(kept())


def kept_by_a_traceback() -> None:
    def each() -> None:
        loop = dsm.prange(N)  # HERE
        for i in loop:
            raise KeyError(i)

    try:
        each()
    except KeyError as error:
        keep(error)


def kept_over_a_barrier() -> None:
    squares = (i * i for i in dsm.prange(N))  # HERE
    next(squares)
    dsm.barrier()


def kept_over_single() -> None:
    loop = dsm.pslices(N)  # HERE
    next(loop)
    dsm.single(int)


def kept_by_a_cycle_of_references() -> None:
    class Node:
        pass

    node = Node()
    node.itself, node.loop = node, dsm.prange(N)  # HERE
    next(node.loop)


def a_barrier_in_a_comprehension() -> None:
    [dsm.barrier() for _ in dsm.prange(N)]  # HERE


def a_barrier_in_a_plain_inner_loop() -> None:
    for _ in dsm.prange(N):  # HERE
        for _ in dsm.prange(2):
            dsm.barrier()


KEEPING = [kept_to_the_end_of_the_kernel, kept_by_a_traceback, kept_over_a_barrier,
           kept_over_single, kept_by_a_cycle_of_references, a_barrier_in_a_comprehension,
           a_barrier_in_a_plain_inner_loop]  # fmt: skip


@pytest.mark.parametrize("route", KEEPING, ids=lambda f: f.__name__)
def test_a_loop_that_is_still_open_is_named(on: Call, route: Call) -> None:
    with pytest.raises(dsm.RegionError, match=INSIDE.format(here=here(route))):
        on(route)()


def interleaved_by_zip() -> None:
    for _ in zip(dsm.prange(N), dsm.prange(N), strict=False):  # HERE
        pass


def interleaved_by_hand() -> None:
    first, second = dsm.prange(N), dsm.pslices(N)  # HERE
    next(first)
    next(second)


def made_before_and_used_inside() -> None:
    inner = dsm.ptiles((N, N), 3)  # HERE
    for _ in dsm.prange(N):
        for _ in inner:
            pass


@pytest.mark.parametrize(
    "route",
    [interleaved_by_zip, interleaved_by_hand, made_before_and_used_inside],
    ids=lambda f: f.__name__,
)
def test_two_loops_at_a_time_are_refused(on: Call, route: Call) -> None:
    message = rf"the loop of line {here(route)} was made before the one that it is used in"
    with pytest.raises(dsm.RegionError, match=message):
        on(route)()


@pytest.mark.parametrize("begun", [0, 1, N + 1], ids=["new", "begun", "ended"])
def test_a_loop_of_a_past_region_is_refused_and_never_ends_in_silence(on: Call, begun: int) -> None:
    def make(n: int) -> None:
        loop = dsm.prange(N)  # HERE
        keep(loop)
        dsm.barrier()
        for _ in range(n):
            if next(loop, None) is None:
                break

    def use() -> None:
        for _ in kept():
            pass

    try:
        on(make)(begun)
    except dsm.RegionError:
        assert begun == 1
    message = rf"the loop of line {here(make)} belongs to a region that has ended: call prange"
    with pytest.raises(dsm.RegionError, match=message):
        on(use)()


def test_all_of_a_loop_may_be_had_by_any_route(on: Call) -> None:
    """What is no early leave: every iteration is drawn, in one way or another."""

    def kernel() -> int:
        count = 0
        loop = dsm.prange(N)
        while next(loop, None) is not None:
            count += 1
        one, two = itertools.tee(dsm.prange(N))
        count += sum(1 for _ in one) + sum(1 for _ in two)
        count += sum(1 for _ in itertools.chain(dsm.prange(N), dsm.prange(N)))
        count += len([i for i in dsm.prange(N)])  # noqa: C416
        count += sum(1 for _ in filter(lambda _: True, map(abs, dsm.prange(N))))
        return count

    assert sum(on(kernel)()) == 7 * N


# -- Ranks that are not of one mind ---------------------------------------------------------------


def another_start() -> None:
    for _ in dsm.prange(dsm.rank(), N + dsm.rank()):  # HERE
        pass


def another_step() -> None:
    for _ in dsm.prange(0, N * (1 + dsm.rank()), 1 + dsm.rank()):  # HERE
        pass


def another_shape() -> None:
    for _ in dsm.prange((3, 4) if dsm.rank() == 0 else (4, 3)):  # HERE
        pass


def another_tile() -> None:
    for _ in dsm.ptiles((4, 4), (2, 2) if dsm.rank() == 0 else (1, 4)):  # HERE
        pass


def another_kind() -> None:
    for _ in (dsm.pslices if dsm.rank() == 0 else dsm.prange)(N):  # HERE
        pass


@pytest.mark.parametrize(
    ("way", "one", "other"),
    [
        (another_start, "prange, n=12, schedule", "prange, n=12, range(1, 13), schedule"),
        (another_step, "prange, n=12, schedule", "prange, n=12, range(0, 24, 2), schedule"),
        (another_shape, "n=12, shape (3, 4)", "n=12, shape (4, 3)"),
        (another_tile, "n=4, shape (4, 4) in tiles of (2, 2)", "shape (4, 4) in tiles of (1, 4)"),
        (another_kind, "its loop 1: pslices, n=12", "its loop 1: prange, n=12"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_ranks_that_loop_over_different_things_of_one_length_diverge(
    way: Call, one: str, other: str
) -> None:
    """Each would do a part of its own whole: iterations would be lost or done twice."""

    def kernel(began: Any) -> None:
        began[dsm.rank()] = 1
        until(began.all)
        way()

    with pytest.raises(dsm.RegionError, match="went different ways") as caught:
        dsm.parallel(workers=2, timeout=SOON)(kernel)(dsm.zeros(2))
    assert one in str(caught.value)
    assert other in str(caught.value)
    assert f"line {here(way)}" in str(caught.value)


def only_one_rank_splits() -> None:
    if dsm.rank() == 0:
        dsm.split(N)


def test_split_waits_for_nobody(on: Call) -> None:
    on(only_one_rank_splits)()


# -- Critical blocks ------------------------------------------------------------------------------


def test_a_block_that_is_held_at_a_loops_end_is_refused(on: Call) -> None:
    """The others wait for the block, in their iterations, and would never come."""

    def kernel() -> None:
        lock = dsm.critical("x")
        for _ in dsm.prange(dsm.size()):  # HERE
            lock.__enter__()

    message = rf"the end of the loop of line {here(kernel)} was reached while .* critical block"
    with pytest.raises(dsm.RegionError, match=message):
        on(kernel)()


def test_a_block_that_is_held_at_the_end_after_a_nowait_loop_is_refused(on: Call) -> None:
    def kernel() -> None:
        lock = dsm.critical("x")
        for _ in dsm.prange(dsm.size(), nowait=True):
            lock.__enter__()

    with pytest.raises(dsm.RegionError, match="the end of the kernel was reached while this rank"):
        on(kernel)()


@pytest.mark.parametrize("workers", [2, 3, 5])
def test_ranks_that_wait_for_each_others_blocks_are_named(workers: int) -> None:
    """A ring: each holds one and wants the next one's."""

    def kernel(held: Any) -> None:
        me, size = dsm.rank(), dsm.size()
        with dsm.critical(f"block {me}"):
            held[me] = 1
            until(held.all)
            with dsm.critical(f"block {(me + 1) % size}"):
                pass

    with pytest.raises(dsm.RegionError, match="entered in different orders") as caught:
        dsm.parallel(workers=workers, timeout=SOON)(kernel)(dsm.zeros(workers))
    text = str(caught.value)
    for rank in range(workers):
        assert f"rank {rank} waits for " in text
        assert f", which rank {rank} holds" in text
    assert "critical('block " in text
    assert "in the same order everywhere" in text


def test_a_queue_for_a_block_is_no_ring(team: Call) -> None:
    """Its owner computes on while all others wait, longer than they look around; some hold more."""

    def kernel(waiting: Any) -> None:
        me = dsm.rank()
        if me == 0:
            with dsm.critical("a"):
                until(lambda: waiting[1:].all())
                end = time.monotonic() + 0.35
                while time.monotonic() < end:
                    pass
        else:
            with dsm.critical(f"own {me}"):
                waiting[me] = 1
                with dsm.critical("a"):
                    pass

    workers = 5
    dsm.parallel(workers=workers, timeout=SOON)(kernel)(dsm.zeros(workers))


# -- Loops that are sent away ---------------------------------------------------------------------

SENT = "prange cannot be copied, captured, passed or returned: every worker has a share of its own"
outer_loop = dsm.prange(N)


@pytest.mark.parametrize(
    "route",
    [
        lambda on: on(lambda loop: sum(loop))(dsm.prange(N)),
        lambda on: on(lambda: sum(outer_loop))(),
        lambda on: on(lambda: dsm.prange(N))(),
        lambda on: on(lambda: copy.copy(dsm.prange(N)))(),
        lambda on: on(lambda: pickle.dumps(dsm.prange(N)))(),
    ],
    ids=["passed", "captured", "returned", "copied", "pickled"],
)
def test_a_loop_stays_where_it_was_made(team: Call, route: Call) -> None:
    with pytest.raises(TypeError, match=SENT):
        route(team)


def test_a_loop_cannot_be_made_by_one_for_all(team: Call) -> None:
    def kernel() -> int:
        return sum(dsm.single(dsm.prange, N))

    with pytest.raises(TypeError, match=SENT):
        team(kernel)()


# -- Threads --------------------------------------------------------------------------------------


def in_a_thread(function: Call) -> Any:
    """What a function returns or raises in a thread of its own."""
    ended: list[Any] = []

    def run() -> None:
        try:
            ended.append((function(), None))
        except BaseException as error:
            ended.append((None, error))

    thread = threading.Thread(target=run, name="of-the-kernel")
    thread.start()
    thread.join()
    value, error = ended[0]
    if error is not None:
        raise error
    return value


VERBS: dict[str, Call] = {
    "prange": lambda: sum(dsm.prange(N)),
    "pslices": lambda: list(dsm.pslices(N)),
    "split": lambda: dsm.split(N),
    "barrier": lambda: dsm.barrier(),
    "rank": lambda: dsm.rank(),
    "size": lambda: dsm.size(),
    "critical": lambda: dsm.critical().__enter__(),
    "single": lambda: dsm.single(int),
    "cancelled": lambda: dsm.cancelled(),
    "zeros": lambda: dsm.zeros(3),
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_thread_of_a_kernel_is_no_rank(team: Call, verb: str) -> None:
    """It would be rank 0 of 1, in every worker: all would do all of it, and barriers nothing."""

    def kernel() -> None:
        for _ in dsm.prange(2 * dsm.size()):
            in_a_thread(VERBS[verb])

    message = r"thread 'of-the-kernel', which a kernel started, .* only the thread that runs the ke"
    with pytest.raises(dsm.RegionError, match=message):
        team(kernel)()


@dsm.parallel(workers=2)
def share(n: int) -> tuple[int, int, int]:
    return sum(dsm.prange(n)), dsm.rank(), dsm.size()


def test_a_kernel_that_is_called_by_a_thread_of_a_kernel_runs_there(team: Call) -> None:
    def kernel() -> Any:
        return in_a_thread(lambda: share(4)), share(4)

    assert all(value == ([(6, 0, 1)], [(6, 0, 1)]) for value in team(kernel)())


def test_threads_outside_any_kernel_are_teams_of_one() -> None:
    assert in_a_thread(lambda: (sum(dsm.prange(4)), dsm.rank(), dsm.size())) == (6, 0, 1)
    assert in_a_thread(lambda: share(4)) == [(1, 0, 2), (5, 1, 2)]


# -- Kernels inside kernels -----------------------------------------------------------------------


def test_a_loop_left_early_in_an_inner_kernel_is_named(on: Call) -> None:
    @dsm.parallel(workers=2)
    def inner() -> None:
        for _ in dsm.prange(N):  # HERE
            break

    def kernel() -> None:
        inner()

    with pytest.raises(dsm.RegionError, match=LEFT.format(here=here(inspect.unwrap(inner)))):
        on(kernel)()


def test_an_inner_kernel_that_fails_may_be_caught(on: Call) -> None:
    @dsm.parallel(workers=2)
    def inner() -> None:
        for _ in dsm.prange(N):
            break

    def kernel() -> int:
        for _ in dsm.prange(N):
            try:
                inner()
            except dsm.RegionError:
                continue
        return sum(1 for _ in dsm.prange(N))

    assert sum(on(kernel)()) == N


def test_an_inner_kernel_cannot_end_the_outer_ones_loop(on: Call) -> None:
    @dsm.parallel(workers=2)
    def inner() -> None:
        dsm.cancel()

    def kernel() -> None:
        for _ in dsm.prange(N):
            inner()

    with pytest.raises(dsm.RegionError, match=r"cancel\(\) was called outside any"):
        on(kernel)()


def test_an_inner_kernel_inside_a_loop_has_barriers_of_its_own(on: Call) -> None:
    @dsm.parallel(workers=2)
    def inner() -> int:
        dsm.barrier()
        return sum(dsm.prange(3)) + dsm.single(int)

    def kernel() -> list[Any]:
        return [inner() for _ in dsm.prange(N)]

    values = on(kernel)()
    assert [item for rank in values for item in rank] == [[3]] * N


# -- Arrays made inside ---------------------------------------------------------------------------

MAKERS: dict[str, Call] = {
    "zeros": lambda: dsm.zeros(3),
    "ones": lambda: dsm.ones((2, 2), int),
    "empty": lambda: dsm.empty(0),
    "full": lambda: dsm.full(3, 1.5),
    "array": lambda: dsm.array([1, 2]),
    "zeros_like": lambda: dsm.zeros_like(np.zeros(3)),
    "full_like": lambda: dsm.full_like(np.zeros(3), 2),
}


@pytest.mark.parametrize("name", MAKERS)
def test_an_array_in_a_kernel_is_made_by_one_for_all(on: Call, name: str) -> None:
    """The serial run says so too, where it would do no harm: it is there to find such things."""
    make = MAKERS[name]

    def each() -> None:
        make()

    def one() -> Any:
        return dsm.single(make)

    message = (
        rf"dsm\.{name} was called inside a kernel by rank .* dsm\.single\(dsm\.{name}, \.\.\.\)"
    )
    with pytest.raises(dsm.RegionError, match=message):
        on(each)()
    made = on(one)()
    assert all(np.array_equal(array, made[0]) for array in made) or name == "empty"
