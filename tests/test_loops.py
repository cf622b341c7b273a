"""Laws of loops, over every engine: every iteration once, barriers as promised, no early way out.

A kernel that waits for another rank does it at a gate, a word of a shared array, with a deadline;
every region has a timeout, so what would hang fails by name. The arithmetic of chunks is tested in
test_schedules.py, the races on single words in test_native.py.
"""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Callable, Iterator
from itertools import islice, pairwise, product
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dsmfor as dsm

DEADLINE = 20.0  # seconds for whatever must not hang
SCHEDULES = ["static", "static,3", "random", "random,4", "dynamic", "dynamic,5", "guided",
             "guided,3", "auto"]  # fmt: skip
CLAIMED = ["dynamic", "guided,2", "auto"]  # whose chunks go to whoever is free

TEAMS = [("serial", "1"), *(("process", workers) for workers in "1235")]

Call = Callable[..., Any]

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES)
lenient = settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
"""For laws over engines: the fixtures name an engine and hold no state of an example."""

schedules = st.sampled_from(["static", "random", "dynamic", "guided"])
chunks = st.none() | st.integers(1, 40)


@st.composite
def ranges(draw: st.DrawFn, low: int = -60, high: int = 60) -> range:
    step = draw(st.integers(-7, 7).filter(bool))
    return range(draw(st.integers(low, high)), draw(st.integers(low, high)), step)


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
def team(crowd: int) -> Call:
    """Puts a kernel on a team of several ranks, for what takes two."""
    return lambda kernel: kernel.using(engine="process", workers=crowd)


def until(condition: Callable[[], object]) -> None:
    """Wait at a gate."""
    end = time.monotonic() + DEADLINE / 2
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("the gate did not open")
        os.sched_yield()


def line_of(kernel: Any, text: str) -> int:
    """Number of the line of a kernel's source that holds `text`."""
    lines, first = inspect.getsourcelines(inspect.unwrap(kernel))
    return first + next(k for k, line in enumerate(lines) if text in line)


# -- Every iteration once -----------------------------------------------------------------------


@dsm.parallel(timeout=DEADLINE)
def indices(*args: Any, **choices: Any) -> list[int]:
    return [i for i in dsm.prange(*args, **choices)]  # noqa: C416


@dsm.parallel(timeout=DEADLINE)
def slices(*args: Any, **choices: Any) -> list[slice]:
    return [s for s in dsm.pslices(*args, **choices)]  # noqa: C416


@dsm.parallel(timeout=DEADLINE)
def tiles(*args: Any, **choices: Any) -> list[tuple[slice, ...]]:
    return [t for t in dsm.ptiles(*args, **choices)]  # noqa: C416


def together(shares: list[list[Any]]) -> list[Any]:
    return [item for share in shares for item in share]


@lenient
@given(whole=ranges(), schedule=schedules, chunk=chunks)
def test_a_team_visits_every_index_of_a_range_once(
    on: Call, whole: range, schedule: str, chunk: int | None
) -> None:
    shares = on(indices)(whole.start, whole.stop, whole.step, schedule=schedule, chunk=chunk)
    assert sorted(together(shares)) == sorted(whole)


def test_every_schedule_deals_every_index_once(on: Call) -> None:
    for schedule, n in product(SCHEDULES, [0, 1, 2, 7, 1000]):
        assert sorted(together(on(indices)(n, schedule=schedule))) == list(range(n)), (schedule, n)


@lenient
@given(whole=ranges(), schedule=schedules, chunk=st.integers(1, 9))
def test_indices_of_a_chunk_come_in_the_order_of_the_range(
    on: Call, whole: range, schedule: str, chunk: int
) -> None:
    place = {i: k for k, i in enumerate(whole)}
    for share in on(indices)(whole.start, whole.stop, whole.step, schedule=schedule, chunk=chunk):
        for before, after in pairwise(share):
            if before != whole[-1] and place[before] % chunk < chunk - 1 and schedule != "guided":
                assert place[after] == place[before] + 1


@pytest.mark.parametrize("schedule", ["static", "static,3", "dynamic", "guided", "auto"])
def test_one_rank_alone_runs_in_order(engine: str, schedule: str) -> None:
    if schedule == "auto":
        schedule = "static"  # auto may start anywhere
    one = indices.using(engine=engine, workers=1)
    assert one(5, 50, 4, schedule=schedule) == [list(range(5, 50, 4))]


def test_indices_are_python_ints(on: Call) -> None:
    for share in on(indices)(np.int64(2), np.uint8(9), np.int16(2)):
        assert {type(i) for i in share} <= {int}


@lenient
@given(
    shape=st.lists(st.integers(0, 6), max_size=4).map(tuple),
    schedule=schedules,
    chunk=chunks,
)
def test_a_shape_is_visited_as_its_index_tuples(
    on: Call, shape: tuple[int, ...], schedule: str, chunk: int | None
) -> None:
    shares = on(indices)(shape, schedule=schedule, chunk=chunk)
    assert sorted(together(shares)) == list(product(*map(range, shape)))


def test_static_shares_of_a_shape_are_runs_in_c_order(on: Call) -> None:
    assert together(on(indices)((3, 4, 5))) == list(product(range(3), range(4), range(5)))


@lenient
@given(whole=ranges(low=0), schedule=schedules, chunk=chunks)
def test_slices_cut_an_array_as_its_range_does(
    on: Call, whole: range, schedule: str, chunk: int | None
) -> None:
    a = np.arange(100)
    cuts = together(on(slices)(whole.start, whole.stop, whole.step, schedule=schedule, chunk=chunk))
    pieces = [a[cut].tolist() for cut in cuts]
    assert sorted(together(pieces)) == sorted(whole)
    down = whole.step < 0
    assert all(piece == sorted(piece, reverse=down) and piece for piece in pieces)


@lenient
@given(whole=ranges(low=-12, high=12), chunk=chunks)
def test_slices_at_negative_indices_are_right_or_refused(
    on: Call, whole: range, chunk: int | None
) -> None:
    a = np.arange(20)
    try:
        cuts = together(on(slices)(whole.start, whole.stop, whole.step, chunk=chunk))
    except ValueError as error:
        assert "negative" in str(error)  # noqa: PT017
        assert any(i < 0 for i in whole)
    else:
        assert sorted(together([a[cut].tolist() for cut in cuts])) == sorted(a[i] for i in whole)


@lenient
@given(
    axes=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 5)), max_size=3),
    schedule=schedules,
    chunk=chunks,
)
def test_tiles_cover_a_shape_exactly(
    on: Call, axes: list[tuple[int, int]], schedule: str, chunk: int | None
) -> None:
    shape, tile = tuple(n for n, _ in axes), tuple(t for _, t in axes)
    covered = np.zeros(shape, int)
    for cut in together(on(tiles)(shape, tile, schedule=schedule, chunk=chunk)):
        assert all(0 < have <= most for have, most in zip(covered[cut].shape, tile, strict=True))
        covered[cut] += 1
    assert (covered == 1).all()


def test_one_number_is_the_extent_of_a_tile_along_every_axis(engine: str) -> None:
    one = tiles.using(engine=engine, workers=1)
    assert one((4, 3), 2) == one((4, 3), (2, 2))
    assert one(5, 2) == [[(slice(0, 2),), (slice(2, 4),), (slice(4, 5),)]]


@dsm.parallel(timeout=DEADLINE)
def shares(*args: Any, **choices: Any) -> Any:
    return dsm.split(*args, **choices)


@lenient
@given(n=st.integers(0, 200), schedule=st.sampled_from(["static", "random"]), chunk=chunks)
def test_split_is_the_share_that_prange_visits(
    on: Call, n: int, schedule: str, chunk: int | None
) -> None:
    found = on(shares)(n, schedule, chunk=chunk, seed=5)
    visited = on(indices)(n, schedule=schedule, chunk=chunk, seed=5)
    assert [share.tolist() for share in found] == visited
    assert all(share.dtype == np.int64 for share in found)


def test_split_refuses_schedules_without_fixed_shares(on: Call) -> None:
    for schedule in CLAIMED:
        with pytest.raises(ValueError, match=r"known beforehand.*got .*prange or pslices"):
            on(shares)(10, schedule)


# -- Which schedule holds -----------------------------------------------------------------------


@dsm.parallel(workers=1, engine="serial", timeout=DEADLINE)
def lengths(n: int, **choices: Any) -> list[int]:
    """Lengths of the chunks: a slice is one chunk."""
    return [s.stop - s.start for s in dsm.pslices(n, **choices)]


GUIDED_20 = [10, 5, 3, 1, 1]  # half of what is left, for a team of one
GUIDED_20_4 = [10, 5, 4, 1]


@pytest.mark.parametrize(
    ("options", "loop", "expected"),
    [
        ({}, {}, [20]),
        ({"schedule": "dynamic"}, {}, [1] * 20),
        ({"schedule": "dynamic", "chunk": 8}, {}, [8, 8, 4]),
        ({"schedule": "dynamic,8"}, {}, [8, 8, 4]),
        ({"schedule": dsm.Dynamic(8)}, {}, [8, 8, 4]),
        ({"chunk": 8}, {}, [8, 8, 4]),
        ({"schedule": "dynamic", "chunk": 8}, {"chunk": 5}, [5] * 4),
        ({"schedule": "dynamic,8"}, {"chunk": 5}, [5] * 4),
        ({"schedule": dsm.Dynamic(8)}, {"chunk": 5}, [5] * 4),
        ({"schedule": "static", "chunk": 8}, {"schedule": "dynamic"}, [1] * 20),
        ({"schedule": "static", "chunk": 8}, {"schedule": "static"}, [20]),
        ({"chunk": 8}, {"schedule": "guided"}, GUIDED_20),
        ({"chunk": 8}, {"schedule": "guided", "chunk": 4}, GUIDED_20_4),
        ({"chunk": 8}, {"schedule": dsm.Guided(chunk=4)}, GUIDED_20_4),
        ({"chunk": 8}, {"schedule": "guided , 4"}, GUIDED_20_4),
    ],
)
def test_a_loop_that_names_a_schedule_ignores_the_decorators_chunk(
    options: dict[str, Any], loop: dict[str, Any], expected: list[int]
) -> None:
    assert lengths.using(**options)(20, **loop) == [expected]


@pytest.mark.parametrize(
    ("spelling", "value"),
    [
        ("static", dsm.Static()),
        ("static,3", dsm.Static(chunk=3)),
        ("random,2", dsm.Random(chunk=2)),
        ("dynamic", dsm.Dynamic()),
        ("guided,2", dsm.Guided(chunk=2)),
        ("auto", dsm.Auto()),
        ("runtime", dsm.Runtime()),
    ],
)
def test_a_spelling_and_its_object_mean_the_same(engine: str, spelling: str, value: Any) -> None:
    one = slices.using(engine=engine, workers=1)
    assert one(30, schedule=spelling, seed=1) == one(30, schedule=value, seed=1)


def test_runtime_reads_the_environment_at_each_loop(
    on: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DSM_SCHEDULE", raising=False)
    cuts = on(slices)(60, schedule="runtime")
    assert all(len(share) == 1 for share in cuts)  # static
    monkeypatch.setenv("DSM_SCHEDULE", "dynamic,7")
    cuts = together(on(slices)(60, schedule="runtime"))
    assert sorted(s.stop - s.start for s in cuts) == [4] + [7] * 8
    monkeypatch.setenv("DSM_SCHEDULE", "dynamik")
    with pytest.raises(ValueError, match=r"DSM_SCHEDULE.*'dynamik'.*did you mean 'dynamic'"):
        on(slices)(60, schedule="runtime")


def test_a_seed_fixes_the_random_shares(on: Call) -> None:
    def dealt(**choices: Any) -> Any:
        return on(indices)(500, schedule="random", **choices)

    assert dealt(seed=1) == dealt(seed=1)
    assert dealt(seed=1) != dealt(seed=2)
    assert on(indices.using(seed=1))(500, schedule="random") == dealt(seed=1)
    assert on(indices.using(seed=9))(500, schedule="random", seed=1) == dealt(seed=1)


def test_without_a_seed_the_ranks_of_one_call_agree_on_the_permutation(on: Call) -> None:
    for _ in range(3):
        assert sorted(together(on(indices)(100, schedule="random"))) == list(range(100))


def test_a_random_loop_over_a_billion_starts_at_once_in_flat_memory(on: Call) -> None:
    @dsm.parallel(timeout=DEADLINE)
    def sample() -> tuple[Any, bool]:
        def peak() -> int:
            import resource

            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

        before = peak()
        mine = 0
        for i in dsm.prange(10**9, schedule="random"):
            assert 0 <= i < 10**9
            mine += 1  # noqa: SIM113
            if mine == 1000 and dsm.rank() == 0:
                dsm.cancel("enough")
        return dsm.cancelled(), peak() - before < 8192  # KiB

    assert set(on(sample)()) == {("enough", True)}


# -- The barrier at a loop's end, and nowait ----------------------------------------------------


def test_what_a_loop_wrote_is_seen_after_it(on: Call) -> None:
    @dsm.parallel(timeout=DEADLINE)
    def kernel(a: Any, b: Any, schedule: str) -> bool:
        ok = True
        for k in range(1, 20):
            for i in dsm.prange(len(a), schedule=schedule):
                a[i] = k
            ok &= bool((a == k).all())
            for i in dsm.prange(len(a), schedule=schedule):
                b[i] = a[-1 - i]
        return ok and bool((b == 19).all())

    for schedule in SCHEDULES:
        assert all(on(kernel)(dsm.zeros(64), dsm.zeros(64), schedule)), schedule


def test_nobody_passes_a_loop_before_the_slowest(team: Call, crowd: int) -> None:
    @dsm.parallel(timeout=DEADLINE)
    def kernel(entered: Any, passed: Any) -> bool:
        for _ in dsm.prange(dsm.size()):
            entered[dsm.rank()] = 1
            if dsm.rank() == dsm.size() - 1:
                until(lambda: entered.all())  # all others are on their way to the barrier
                for _ in range(100):
                    os.sched_yield()
                assert not passed.any()
        passed[dsm.rank()] = 1
        return bool(entered.all())

    assert all(team(kernel)(dsm.zeros(crowd), dsm.zeros(crowd)))


def test_nowait_lets_a_rank_go_on_while_another_is_in_the_loop(team: Call, crowd: int) -> None:
    @dsm.parallel(timeout=DEADLINE)
    def kernel(after: Any) -> None:
        for i in dsm.prange(dsm.size(), nowait=True):
            if i == 0:
                until(lambda: after[1:].all())
        after[dsm.rank()] = 1

    team(kernel)(dsm.zeros(crowd))


@pytest.mark.parametrize("schedule", ["static", *CLAIMED])
def test_a_rank_eight_nowait_loops_ahead_waits_for_the_slowest(
    team: Call, crowd: int, schedule: str
) -> None:
    """The ring has 8 slots: loop 8 may begin when every rank has left loop 0, not before."""

    @dsm.parallel(timeout=DEADLINE)
    def kernel(reached: Any, counts: Any) -> int:
        loops, slowest = len(counts), dsm.size() - 1
        ahead = 0
        for k in range(loops):
            if k == 0 and dsm.rank() == slowest:
                until(lambda: (reached[:slowest] == 7).all())  # they stand before loop 8
                for _ in range(200):
                    os.sched_yield()
                ahead = int(reached[:slowest].max())
            for i in dsm.prange(counts.shape[1], schedule=schedule, nowait=True):
                counts[k, i] += 1
            reached[dsm.rank()] = k
        return ahead

    counts = dsm.zeros((40, 17), int)
    ahead = team(kernel)(dsm.full(crowd, -1), counts)
    # The slowest has not entered loop 0, so nobody can have passed loop 7.
    assert ahead[-1] == 7
    assert (counts == 1).all()


def test_many_nowait_loops_lose_nothing(on: Call) -> None:
    @dsm.parallel(timeout=DEADLINE)
    def kernel(counts: Any, schedule: str) -> None:
        for row in counts:
            for i in dsm.prange(len(row), schedule=schedule, nowait=True):
                row[i] += 1

    for schedule in SCHEDULES:
        counts = dsm.zeros((100, 13), int)
        on(kernel)(counts, schedule)
        on(kernel)(counts, schedule)
        assert (counts == 2).all(), schedule


def test_schedules_and_barriers_mix_in_any_order(on: Call) -> None:
    @dsm.parallel(timeout=DEADLINE)
    def kernel(counts: Any, order: Any) -> None:
        for row, (kind, nowait) in zip(counts, order, strict=True):
            for i in dsm.prange(len(row), schedule=SCHEDULES[kind], nowait=bool(nowait)):
                row[i] += 1
            if kind == 0:
                dsm.barrier()

    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    order = np.random.default_rng(seed).integers((0, 0), (len(SCHEDULES), 2), (200, 2))
    counts = dsm.zeros((200, 11), int)
    on(kernel)(counts, order)
    assert (counts == 1).all()


def test_a_nowait_loop_may_be_the_last_of_a_region(on: Call) -> None:
    @dsm.parallel(timeout=DEADLINE)
    def kernel(a: Any) -> None:
        for i in dsm.prange(len(a), schedule="dynamic", nowait=True):
            a[i] += 1

    a = dsm.zeros(10)
    for k in range(1, 30):
        on(kernel)(a)
        assert (a == k).all()


# -- Nesting ------------------------------------------------------------------------------------


def test_a_loop_inside_a_loops_body_is_a_plain_one(on: Call) -> None:
    @dsm.parallel(timeout=DEADLINE)
    def kernel(counts: Any) -> None:
        for i in dsm.prange(len(counts), schedule="dynamic"):
            assert list(dsm.prange(3, 9, 2)) == [3, 5, 7]
            assert list(dsm.prange((2, 2))) == [(0, 0), (0, 1), (1, 0), (1, 1)]
            assert list(dsm.pslices(7)) == [slice(0, 7)]
            assert [np.arange(8)[s].tolist() for s in dsm.pslices(7, 0, -2)] == [[7, 5, 3, 1]]
            assert list(dsm.pslices(0)) == []
            assert list(dsm.ptiles((2, 3), 2)) == list(
                product([slice(0, 2)], [slice(0, 2), slice(2, 3)])
            )
            for j in dsm.prange(counts.shape[1]):
                if j == 2:
                    break  # plain: may be left
                counts[i, j] += 1

    counts = dsm.zeros((20, 3), int)
    on(kernel)(counts)
    assert (counts == [1, 1, 0]).all()


def test_a_loop_made_before_another_cannot_be_used_inside_it(on: Call) -> None:
    @dsm.parallel(timeout=DEADLINE)
    def kernel() -> None:
        inner = dsm.prange(4)
        for _ in dsm.prange(dsm.size()):
            for _ in inner:
                pass

    with pytest.raises(dsm.RegionError, match=r"made before .* call prange where its for stands"):
        on(kernel)()


def test_a_loop_that_is_never_begun_is_none(on: Call) -> None:
    @dsm.parallel(timeout=DEADLINE)
    def kernel() -> int:
        if dsm.rank() == 0:
            dsm.prange(10)
        return sum(1 for _ in dsm.prange(10))

    assert sum(on(kernel)()) == 10


def test_an_ended_iterator_stays_ended(on: Call) -> None:
    @dsm.parallel(timeout=DEADLINE)
    def kernel(schedule: str) -> list[int]:
        loop = dsm.prange(10, schedule=schedule)
        mine = [i for i in loop]  # noqa: C416
        dsm.barrier()
        for _ in dsm.prange(10, schedule=schedule):
            assert next(loop, None) is None
        assert [i for i in loop] == []  # noqa: C416
        return mine

    for schedule in SCHEDULES:
        assert sorted(together(on(kernel)(schedule))) == list(range(10))


# -- auto ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", CLAIMED)
def test_others_take_the_chunks_of_a_slow_rank(team: Call, crowd: int, schedule: str) -> None:
    """Rank 0 holds its first chunk until all others are done: they must have done the rest."""

    @dsm.parallel(timeout=DEADLINE)
    def kernel(counts: Any, done: Any) -> int:
        mine = 0
        for i in dsm.prange(len(counts), schedule=schedule):
            if dsm.rank() == 0 and mine == 0:
                # At most one chunk is rank 0's; a chunk of guided is a quarter at the most.
                until(lambda: done.sum() >= len(counts) * 3 // 4)
            counts[i] += 1
            mine += 1
            done[dsm.rank()] += 1
        return mine

    counts = dsm.zeros(400, int)
    mine = team(kernel)(counts, dsm.zeros(crowd, int))
    assert (counts == 1).all()
    assert sum(mine) == 400
    assert mine[0] <= 100


def test_auto_leaves_one_chunk_only_to_a_rank_that_stands_still(team: Call) -> None:
    @dsm.parallel(timeout=DEADLINE)
    def kernel(owner: Any, left: Any) -> None:
        first = True
        for s in dsm.pslices(len(owner), schedule="auto"):
            if dsm.rank() == 0 and first:
                rest = s.stop - s.start
                until(lambda rest=rest: (owner >= 0).sum() == len(owner) - rest)
                left[0] = rest
            first = False
            assert (owner[s] == -1).all()
            owner[s] = dsm.rank()

    owner, left = dsm.full(6400, -1), dsm.zeros(1, int)
    team(kernel)(owner, left)
    assert (owner >= 0).all()
    assert (owner == 0).sum() in (0, left[0])  # 0: another rank was faster and took all


# -- Leaving early ------------------------------------------------------------------------------


def leave_by_break(n: int) -> None:
    for i in dsm.prange(n):  # LEFT
        if i >= 0:
            break


def leave_by_return(n: int) -> int:
    for i in dsm.prange(n, schedule="dynamic"):  # LEFT
        return i
    return -1


def leave_by_any(n: int) -> bool:
    return any(i >= 0 for i in dsm.prange(n))  # LEFT


def leave_by_in(n: int) -> bool:
    return 0 in dsm.prange(n, nowait=True) or True  # LEFT


def leave_by_next(n: int) -> int:
    return next(dsm.prange(n))  # LEFT


def leave_by_next_of_slices(n: int) -> slice:
    return next(dsm.pslices(n, schedule="dynamic"))  # LEFT


def leave_by_next_of_tiles(n: int) -> tuple[slice, ...]:
    return next(dsm.ptiles((n, n), 2))  # LEFT


def leave_by_next_of_tuples(n: int) -> tuple[int, ...]:
    return next(dsm.prange((n, n)))  # LEFT


def leave_by_zip(n: int) -> list[Any]:
    return list(zip(dsm.prange(n), [0, 1], strict=False))  # LEFT


def leave_by_islice(n: int) -> list[int]:
    return list(islice(dsm.prange(n), 2))  # LEFT


def leave_by_unpacking(n: int) -> int:
    first, *_ = islice(dsm.prange(n), 1)  # LEFT
    return int(first)


def leave_by_exception(n: int) -> None:
    try:
        for _ in dsm.prange(n):  # LEFT
            raise KeyError("caught outside")
    except KeyError:
        pass


def leave_by_variable(n: int) -> None:
    loop = dsm.prange(n)  # LEFT
    next(loop)


def leave_by_generator(n: int) -> None:
    def each() -> Iterator[int]:
        for i in dsm.prange(n):  # LEFT
            yield 2 * i

    for _ in each():
        break


def leave_by_kept_generator(n: int) -> None:
    squares = (i * i for i in dsm.prange(n))  # LEFT
    next(squares)


def leave_by_rank(n: int) -> None:
    for _ in dsm.prange(n):  # LEFT
        if dsm.rank() == dsm.size() - 1:
            break


ROUTES = [leave_by_break, leave_by_return, leave_by_any, leave_by_in, leave_by_next,
          leave_by_next_of_slices, leave_by_next_of_tiles, leave_by_next_of_tuples, leave_by_zip,
          leave_by_islice, leave_by_unpacking, leave_by_exception, leave_by_variable,
          leave_by_generator, leave_by_kept_generator, leave_by_rank]  # fmt: skip


@pytest.mark.filterwarnings("ignore::dsmfor.MisuseWarning")  # they are, and run all the same
@pytest.mark.parametrize("route", ROUTES, ids=lambda f: f.__name__.removeprefix("leave_by_"))
def test_leaving_a_loop_early_fails_the_region_and_names_the_line(on: Call, route: Call) -> None:
    kernel = dsm.parallel(timeout=DEADLINE)(route)
    line = line_of(kernel, "# LEFT")
    with pytest.raises(dsm.RegionError, match=rf"line {line}\b|\.py:{line}\b") as caught:
        on(kernel)(40)
    assert "every rank must finish every loop" in str(caught.value)
    assert "dsm.cancel()" in str(caught.value)
    assert not isinstance(caught.value, dsm.BarrierBroken)
    assert sorted(together(on(indices)(40))) == list(range(40))  # the team lives on


def test_peers_of_a_rank_that_leaves_early_are_released(team: Call, crowd: int) -> None:
    @dsm.parallel(timeout=DEADLINE)
    def kernel(waiting: Any) -> None:
        for i in dsm.prange(dsm.size()):
            if i == 0:
                until(lambda: waiting[1:].all())
                break
            waiting[i] = 1
        dsm.barrier()

    with pytest.raises(dsm.RegionError, match=r"rank 0 of .* left the loop"):
        team(kernel)(dsm.zeros(crowd))


def test_an_exception_that_leaves_the_kernel_comes_as_itself(on: Call) -> None:
    @dsm.parallel(timeout=DEADLINE)
    def kernel() -> None:
        for i in dsm.prange(0, 50, 5):
            if i == 5:
                raise LookupError("index five")

    line = line_of(kernel, "dsm.prange(0, 50, 5)")
    with pytest.raises(LookupError, match=r"^index five") as caught:
        on(kernel)()
    assert type(caught.value) is LookupError
    assert any(f"prange index 5 at {__file__}:{line}" in note for note in caught.value.__notes__)


def test_the_lowest_ranks_exception_is_raised_and_the_others_are_noted(
    team: Call, crowd: int
) -> None:
    @dsm.parallel(timeout=DEADLINE)
    def kernel(gate: Any) -> None:
        for i in dsm.prange(dsm.size()):
            gate[i] = 1
            until(lambda: gate.all())
            raise ValueError(f"from rank {i}")

    with pytest.raises(ValueError, match="from rank 0") as caught:
        team(kernel)(dsm.zeros(crowd))
    assert any("from rank 1" in note for note in caught.value.__notes__)


def test_an_exception_caught_inside_the_body_is_the_kernels_own_business(on: Call) -> None:
    @dsm.parallel(timeout=DEADLINE)
    def kernel(a: Any) -> None:
        for i in dsm.prange(len(a)):
            try:
                raise KeyError(i)
            except KeyError:
                a[i] += 1
                continue

    a = dsm.zeros(20)
    on(kernel)(a)
    assert (a == 1).all()


@pytest.mark.filterwarnings("ignore::dsmfor.MisuseWarning")
def test_exactly_enough_of_a_zip_is_no_early_leave(engine: str) -> None:
    @dsm.parallel(engine=engine, workers=1)
    def kernel() -> list[Any]:
        return list(zip(dsm.prange(3), "abcd", strict=False))

    assert kernel() == [[(0, "a"), (1, "b"), (2, "c")]]


# -- Ranks that diverge -------------------------------------------------------------------------


def ends_against_loop() -> None:
    if dsm.rank() == 0:
        for _ in dsm.prange(10):
            pass


def ends_against_nowait_loop() -> None:
    if dsm.rank() == 0:
        for _ in dsm.prange(10, nowait=True):
            pass


def different_lengths() -> None:
    for _ in dsm.prange(10 + dsm.rank()):
        pass


def different_lengths_nowait() -> None:
    for _ in dsm.prange(10 + dsm.rank(), nowait=True):
        pass


def different_schedules() -> None:
    for _ in dsm.prange(10, schedule="dynamic" if dsm.rank() else "guided"):
        pass


def different_chunks() -> None:
    for _ in dsm.prange(10, schedule="dynamic", chunk=1 + dsm.rank()):
        pass


def different_seeds() -> None:
    for _ in dsm.prange(10, schedule="random", seed=dsm.rank()):
        pass


def different_lines() -> None:
    if dsm.rank() == 0:
        for _ in dsm.prange(10):
            pass
    else:
        for _ in dsm.prange(10):
            pass


def barrier_against_loop() -> None:
    if dsm.rank() == 0:
        dsm.barrier()
    else:
        for _ in dsm.prange(10):
            pass


def one_nowait_and_one_not() -> None:
    for _ in dsm.prange(10, nowait=dsm.rank() == 0):
        pass
    dsm.barrier()


def numbers_of_nowait_loops() -> None:
    for _ in range(3 + dsm.rank()):
        for _ in dsm.prange(10, nowait=True):
            pass


def numbers_of_loops_before_a_barrier() -> None:
    for _ in range(3 + dsm.rank()):
        for _ in dsm.prange(10, nowait=True):
            pass
    dsm.barrier()


def more_nowait_loops_than_slots_against_the_end() -> None:
    if dsm.rank() == 0:
        for _ in range(20):
            for _ in dsm.prange(10, nowait=True):
                pass


def more_nowait_loops_than_slots_against_a_barrier() -> None:
    if dsm.rank() == 0:
        for _ in range(20):
            for _ in dsm.prange(10, nowait=True):
                pass
    dsm.barrier()


def more_nowait_loops_than_slots_after_a_region_of_the_same() -> None:
    for _ in range(5 if dsm.rank() else 14):
        for _ in dsm.prange(10, nowait=True):
            pass
    for _ in dsm.prange(3):
        pass


WAYS = [ends_against_loop, ends_against_nowait_loop, different_lengths, different_lengths_nowait,
        different_schedules, different_chunks, different_seeds, different_lines,
        barrier_against_loop, one_nowait_and_one_not, numbers_of_nowait_loops,
        numbers_of_loops_before_a_barrier, more_nowait_loops_than_slots_against_the_end,
        more_nowait_loops_than_slots_against_a_barrier,
        more_nowait_loops_than_slots_after_a_region_of_the_same]  # fmt: skip


@pytest.mark.parametrize("way", WAYS, ids=lambda f: f.__name__)
def test_ranks_that_diverge_are_named_and_never_hang(team: Call, way: Call) -> None:
    kernel = dsm.parallel(timeout=5)(way)
    with pytest.raises(dsm.RegionError) as caught:
        team(kernel)()
    text = str(caught.value)
    assert type(caught.value) is dsm.RegionError
    assert "rank 0 of" in text
    assert "rank 1 of" in text
    assert "went different ways" in text
    assert "Every rank must come to the same loops" in text
    assert sorted(together(team(indices)(40))) == list(range(40))


def test_divergence_of_loops_tells_both_lengths_and_schedules(team: Call) -> None:
    @dsm.parallel(timeout=5)
    def kernel() -> None:
        if dsm.rank() == 0:
            for _ in dsm.prange(10, schedule="dynamic", chunk=3):
                pass
        else:
            for _ in dsm.prange(77):
                pass

    with pytest.raises(dsm.RegionError) as caught:
        team(kernel)()
    for part in ("n=10", "'dynamic'", "chunk=3", "n=77", "'static'"):
        assert part in str(caught.value)


# -- cancel -------------------------------------------------------------------------------------


def test_cancel_ends_the_loop_for_the_whole_team(on: Call) -> None:
    """Every rank would loop for hours if one of them missed it."""

    @dsm.parallel(timeout=DEADLINE)
    def kernel(schedule: str, nowait: bool) -> tuple[bool, Any]:
        for _ in dsm.prange(10**12, schedule=schedule, nowait=nowait):
            if dsm.rank() == dsm.size() - 1:
                dsm.cancel("done")
        value = dsm.cancelled()
        for _ in dsm.prange(5):
            assert dsm.cancelled() is None
        return value == "done", dsm.cancelled()

    for schedule, nowait in product(SCHEDULES, [False, True]):
        assert set(on(kernel)(schedule, nowait)) == {(True, None)}, (schedule, nowait)


def test_cancel_ends_slices_tiles_and_shapes_too(on: Call) -> None:
    @dsm.parallel(timeout=DEADLINE)
    def kernel() -> list[Any]:
        values = []
        for _ in dsm.pslices(10**12, schedule="dynamic"):
            dsm.cancel("slices")
        values.append(dsm.cancelled())
        for _ in dsm.prange((10**6, 10**6)):
            dsm.cancel("shape")
        values.append(dsm.cancelled())
        for _ in dsm.ptiles((10**6, 10**6), (1, 1), schedule="guided"):
            dsm.cancel("tiles")
        values.append(dsm.cancelled())
        return values

    assert all(values == ["slices", "shape", "tiles"] for values in on(kernel)())


def test_after_cancel_its_own_rank_stops_at_the_next_iteration(on: Call) -> None:
    @dsm.parallel(timeout=DEADLINE)
    def kernel() -> int:
        bodies = 0
        for _ in dsm.prange(10**9):
            bodies += 1
            dsm.cancel()
            assert dsm.cancelled() is not None
        assert dsm.cancelled() is True
        return bodies

    assert max(on(kernel)()) == 1


def test_the_value_of_cancel_may_be_large(everywhere: Call) -> None:
    @dsm.parallel(timeout=DEADLINE)
    def kernel(size: int) -> int:
        for _ in dsm.prange(10**12):
            if dsm.rank() == 0:
                dsm.cancel(bytes(size))
        return len(dsm.cancelled())

    for call, size in product(everywhere(kernel), (100, 9 << 10, 3 << 20)):
        assert set(call(size)) == {size}


def test_the_first_to_cancel_is_heard_by_all(on: Call) -> None:
    @dsm.parallel(timeout=DEADLINE)
    def kernel() -> list[Any]:
        heard = []
        for k in range(200):
            for _ in dsm.prange(10**12, schedule="dynamic"):
                dsm.cancel((k, dsm.rank()))
                dsm.cancel("too late")
            heard.append(dsm.cancelled())
        return heard

    heard = on(kernel)()
    assert all(other == heard[0] for other in heard)
    assert [k for k, _ in heard[0]] == list(range(200))


def test_cancel_in_a_nowait_loop_harms_no_later_loop(on: Call) -> None:
    @dsm.parallel(timeout=DEADLINE)
    def kernel(counts: Any) -> None:
        for row in counts:
            for _ in dsm.prange(10**12, schedule="dynamic", nowait=True):
                dsm.cancel()
            for i in dsm.prange(len(row), schedule="dynamic", nowait=True):
                row[i] += 1

    counts = dsm.zeros((60, 9), int)
    on(kernel)(counts)
    assert (counts == 1).all()


def test_cancel_in_a_plain_inner_loop_ends_the_teams_loop(on: Call) -> None:
    @dsm.parallel(timeout=DEADLINE)
    def kernel() -> tuple[Any, int]:
        inner = 0
        for _ in dsm.prange(10**12):
            for j in dsm.prange(4):
                inner += 1
                if j == 1:
                    dsm.cancel("from within")
        return dsm.cancelled(), inner

    for value, inner in on(kernel)():
        assert value == "from within"
        assert inner % 4 == 0  # the inner loop is plain and runs to its end


def test_cancel_at_the_last_iteration_is_heard_after_the_loop(on: Call) -> None:
    @dsm.parallel(timeout=DEADLINE)
    def kernel() -> Any:
        for i in dsm.prange(7):
            if i == 6:
                dsm.cancel("late")
        return dsm.cancelled()

    assert set(on(kernel)()) == {"late"}


def test_cancel_outside_a_loop_is_refused(on: Call) -> None:
    @dsm.parallel(timeout=DEADLINE)
    def kernel() -> None:
        for _ in dsm.prange(3):
            pass
        dsm.cancel()

    with pytest.raises(dsm.RegionError, match=r"cancel\(\) was called outside any .* loop"):
        on(kernel)()


def test_cancel_with_none_is_refused(on: Call) -> None:
    @dsm.parallel(timeout=DEADLINE)
    def kernel() -> None:
        for _ in dsm.prange(dsm.size()):
            dsm.cancel(None)

    with pytest.raises(ValueError, match="leave the value out"):
        on(kernel)()


# -- Outside any region -------------------------------------------------------------------------


@every_schedule
def test_outside_a_region_a_loop_runs_over_everything(schedule: str) -> None:
    assert sorted(dsm.prange(50, schedule=schedule)) == list(range(50))
    assert sorted(s.start for s in dsm.pslices(9, schedule=schedule, seed=1) if s.start < s.stop)
    assert len(list(dsm.ptiles((4, 4), 2, schedule=schedule))) == 4


def test_outside_a_region_a_loop_may_be_left_early() -> None:
    for _ in range(30):  # more than there are slots
        for i in dsm.prange(10):
            if i == 3:
                break
        assert next(dsm.prange(5)) == 0
        assert any(i == 2 for i in dsm.prange(4, schedule="dynamic"))
        with pytest.raises(KeyError):
            next({}[i] for i in dsm.prange(3))
        dsm.barrier()
    assert list(dsm.prange(4)) == [0, 1, 2, 3]


def test_outside_a_region_cancel_ends_a_loop() -> None:
    seen = []
    for i in dsm.prange(10):
        seen.append(i)
        if i == 3:
            dsm.cancel(i)
    assert seen == [0, 1, 2, 3]
    assert dsm.cancelled() == 3
    for _ in dsm.prange(1):
        pass
    assert dsm.cancelled() is None
    with pytest.raises(dsm.RegionError, match="outside any"):
        dsm.cancel()


def test_a_child_forked_in_a_loop_outside_a_region_may_leave_it() -> None:
    for _ in dsm.prange(1):
        child = os.fork()
        if child == 0:
            break
        assert os.waitpid(child, 0)[1] == 0
    else:
        return
    try:  # the child
        dsm.barrier()
        os._exit(0 if list(dsm.prange(3)) == [0, 1, 2] else 1)
    except BaseException:
        os._exit(2)


# -- Arguments ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: dsm.prange(), TypeError, "start"),
        (lambda: dsm.prange(2.0), TypeError, r"integers.*got 2\.0.*divide with //"),
        (lambda: dsm.prange(0, 2.5), TypeError, r"integers.*got 2\.5 of type float.*int\(\)"),
        (lambda: dsm.prange([1.5, 2]), TypeError, r"got \[1\.5, 2\]; divide with //"),
        (lambda: dsm.prange(np.zeros(3)), TypeError, r"you want prange\(len\(x\)\)"),
        (
            lambda: dsm.pslices("ab"),
            TypeError,
            r"schedule is a keyword: pslices\(n, schedule='ab'\)",
        ),
        (lambda: dsm.prange("ab"), TypeError, "integers.*got 'ab'"),
        (lambda: dsm.prange(None), TypeError, "integers.*got None"),
        (lambda: dsm.prange(np.arange(3)), TypeError, "integers.*got array"),
        (lambda: dsm.prange(0, np.arange(3)), TypeError, "integers.*got array"),
        (lambda: dsm.pslices(np.zeros(3)), TypeError, "integers.*got array"),
        (lambda: dsm.prange(3, step=2), TypeError, "step and no stop"),
        (lambda: dsm.prange(0, 3, 0), ValueError, "zero"),
        (lambda: dsm.prange((2, -1)), ValueError, r"negative extent in \(2, -1\)"),
        (lambda: dsm.prange((2, 2), 3), TypeError, "shape alone"),
        (lambda: dsm.prange((2, 2.0)), TypeError, r"got \(2, 2\.0\)"),
        (lambda: dsm.prange(2**70), (ValueError, OverflowError), str(2**70)),
        (lambda: dsm.prange(2**70, 2**70 + 2), (ValueError, OverflowError), str(2**70)),
        (lambda: dsm.prange((2**40, 2**40)), ValueError, str(2**80)),
        (lambda: dsm.pslices(1.0), TypeError, "pslices takes integers"),
        (lambda: dsm.ptiles((3, 3), (2,)), ValueError, "1 tile extents.*2 axes.*one for each"),
        (lambda: dsm.ptiles((3, 3), 0), ValueError, r"positive, got \(0, 0\)"),
        (lambda: dsm.ptiles((3, -3), 1), ValueError, r"negative extent in \(3, -3\)"),
        (lambda: dsm.ptiles((3, 3), 1.5), TypeError, "integers.*got 1.5"),
        (lambda: dsm.prange(3, schedule="guidd"), ValueError, "'guidd'; did you mean 'guided'"),
        (lambda: dsm.prange(3, schedule=dsm.Guided), TypeError, r"you want Guided\(\)"),
        (lambda: dsm.prange(3, schedule=7), TypeError, "schedule must be one of.*got 7"),
        (lambda: dsm.prange(3, chunk=0), ValueError, "positive integer, got 0"),
        (lambda: dsm.prange(3, chunk=1.5), TypeError, r"positive integer, got 1\.5"),
        (lambda: dsm.prange(3, schedule="auto", chunk=2), ValueError, "auto takes no chunk, got 2"),
        (lambda: dsm.prange(3, schedule="dynamic,2", chunk=2), ValueError, "one of them"),
        (lambda: dsm.prange(3, schedule="random", seed=-1), ValueError, "negative, got -1"),
        (lambda: dsm.prange(3, schedule="random", seed=1.5), TypeError, r"1\.5|float"),
        (lambda: dsm.split(-1.5), TypeError, "split takes integers"),
        (lambda: len(dsm.prange(3)), TypeError, r"has no len\(\): its n=3 .*split"),  # type: ignore[arg-type]
        (lambda: dsm.prange(3)[0], TypeError, r"cannot be indexed: its n=3 .*split"),  # type: ignore[index]
        (lambda: dsm.prange(1, 2, 1, "static"), TypeError, "positional"),  # type: ignore[call-overload]
    ],
)
def test_wrong_arguments_are_named(call: Call, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_wrong_arguments_in_a_kernel_come_back_as_in_the_serial_run(on: Call) -> None:
    with pytest.raises(ValueError, match="did you mean 'dynamic'"):
        on(indices)(10, schedule="dynamc")
