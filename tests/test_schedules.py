"""Laws of schedules: pure arithmetic, so no process is started here."""

from __future__ import annotations

import pickle
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsmfor._native.plan import Plan
from dsmfor.schedules import Auto, Dynamic, Guided, Random, Runtime, Static, parse, plan, runtime

if TYPE_CHECKING:
    from dsmfor.schedules import Schedule

KINDS = ["static", "random", "dynamic", "guided", "auto"]
DEALING = ["static", "random"]
HUGE = 2**62

small_n = st.integers(0, 3000)
sizes = st.integers(1, 70)
chunks = st.integers(1, 3500)
keys = st.integers(0, 2**64 - 1)


@st.composite
def plans(draw: st.DrawFn, kinds: list[str] = KINDS) -> Plan:
    kind = draw(st.sampled_from(kinds))
    chunk = None if kind == "auto" else draw(st.none() | st.integers(1, 20) | chunks)
    return Plan(kind, draw(small_n), draw(sizes), chunk, draw(keys))


def lengths(p: Plan) -> list[int]:
    return [hi - lo for lo, hi in p.chunks()]


def permutation(n: int, key: int, chunk: int = 1) -> list[int]:
    return list(Plan("random", n, 1, chunk, key).numbers(0))


# --- the table by hand --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "n", "size", "chunk", "expected"),
    [
        ("static", 10, 1, None, [(0, 10)]),
        ("static", 10, 4, None, [(0, 3), (3, 6), (6, 8), (8, 10)]),
        ("static", 2, 4, None, [(0, 1), (1, 2)]),
        ("static", 7, 2, 3, [(0, 3), (3, 6), (6, 7)]),
        ("static", 6, 2, 3, [(0, 3), (3, 6)]),
        ("dynamic", 3, 2, None, [(0, 1), (1, 2), (2, 3)]),
        ("dynamic", 10, 8, 4, [(0, 4), (4, 8), (8, 10)]),
        ("dynamic", 3, 2, 100, [(0, 3)]),
        ("random", 5, 3, 2, [(0, 2), (2, 4), (4, 5)]),
        ("guided", 20, 2, 2, [(0, 5), (5, 9), (9, 12), (12, 14), (14, 16), (16, 18), (18, 20)]),
        ("guided", 20, 2, 3, [(0, 5), (5, 9), (9, 12), (12, 15), (15, 18), (18, 20)]),
        ("guided", 5, 1, None, [(0, 3), (3, 4), (4, 5)]),
        ("auto", 3, 2, None, [(0, 1), (1, 2), (2, 3)]),
    ],
)
def test_chunks_are_as_worked_out_by_hand(
    kind: str, n: int, size: int, chunk: int | None, expected: list[tuple[int, int]]
) -> None:
    assert Plan(kind, n, size, chunk).chunks() == expected


def test_guided_needs_288_chunks_for_a_billion_iterations_and_8_ranks() -> None:
    assert Plan("guided", 10**9, 8).count == 288


def test_static_chunks_go_to_the_ranks_in_turn() -> None:
    p = Plan("static", 7, 2, 2)
    assert [list(p.numbers(rank)) for rank in range(2)] == [[0, 2], [1, 3]]
    assert [p.indices(rank).tolist() for rank in range(2)] == [[0, 1, 4, 5], [2, 3, 6]]


def test_a_rank_beyond_the_iterations_gets_nothing() -> None:
    p = Plan("static", 2, 4)
    assert [list(p.numbers(rank)) for rank in range(4)] == [[0], [1], [], []]
    assert [p.indices(rank).tolist() for rank in range(4)] == [[0], [1], [], []]


@pytest.mark.parametrize("kind", KINDS)
def test_no_iterations_make_no_chunks(kind: str) -> None:
    p = Plan(kind, 0, 3)
    assert (p.count, p.chunks()) == (0, [])
    if kind in DEALING:
        assert [len(p.indices(rank)) for rank in range(3)] == [0, 0, 0]
        assert [list(p.numbers(rank)) for rank in range(3)] == [[], [], []]
    if kind == "auto":
        assert [p.share(rank) for rank in range(3)] == [(0, 0), (64, 64), (128, 128)]


# --- laws of every kind -------------------------------------------------------------------------


@given(plans())
def test_chunks_are_disjoint_ascending_and_cover_the_range(p: Plan) -> None:
    cut = p.chunks()
    assert all(lo < hi for lo, hi in cut)
    assert [edge for chunk in cut for edge in chunk] == sorted(e for chunk in cut for e in chunk)
    assert all(before[1] == after[0] for before, after in pairwise(cut))
    assert (cut[0][0], cut[-1][1]) == (0, p.n) if cut else p.n == 0


@given(plans(), st.randoms(use_true_random=False))
def test_bounds_agree_whatever_order_they_are_asked_in(p: Plan, random: Any) -> None:
    numbers = list(range(p.count))
    rising = p._walk(numbers)
    assert rising == [p.bounds(k) for k in numbers]
    random.shuffle(numbers)
    assert p._walk(numbers) == [rising[k] for k in numbers]


@given(plans())
def test_only_auto_has_numbers_without_a_chunk(p: Plan) -> None:
    empty = sum(lo == hi for lo, hi in p._walk(range(p.count)))
    assert empty == p.count - len(p.chunks())
    assert empty == 0 or p.kind == "auto"


@given(plans())
def test_a_plan_travels_by_pickle(p: Plan) -> None:
    twin = pickle.loads(pickle.dumps(p))
    assert repr(twin) == repr(p)
    assert twin.chunks() == p.chunks()


# --- kinds that deal beforehand -----------------------------------------------------------------


@given(plans(DEALING))
def test_every_index_is_dealt_exactly_once(p: Plan) -> None:
    dealt = np.concatenate([p.indices(rank) for rank in range(p.size)])
    assert dealt.dtype == np.int64
    assert np.array_equal(np.sort(dealt), np.arange(p.n))


@given(plans(DEALING))
def test_indices_are_those_of_the_numbers_in_their_order(p: Plan) -> None:
    for rank in range(p.size):
        expected = [i for k in p.numbers(rank) for i in range(*p.bounds(k))]
        assert p.indices(rank).tolist() == expected


@given(plans(DEALING))
def test_ranks_are_dealt_chunks_evenly_and_larger_shares_first(p: Plan) -> None:
    counts = [len(list(p.numbers(rank))) for rank in range(p.size)]
    assert sum(counts) == p.count
    assert max(counts) - min(counts) <= 1
    assert counts == sorted(counts, reverse=True)


@given(small_n, sizes)
def test_static_blocks_differ_by_one_at_most_and_larger_come_first(n: int, size: int) -> None:
    p = Plan("static", n, size)
    shares = [len(p.indices(rank)) for rank in range(size)]
    assert max(shares) - min(shares) <= 1
    assert shares == sorted(shares, reverse=True)
    assert p.count == min(n, size)


@given(st.sampled_from(["random", "dynamic"]), small_n, sizes, chunks)
def test_fixed_chunks_have_their_length_but_for_the_last(
    kind: str, n: int, size: int, chunk: int
) -> None:
    cut = lengths(Plan(kind, n, size, chunk))
    assert len(cut) == -(-n // chunk)
    assert all(length == chunk for length in cut[:-1])
    assert all(1 <= length <= chunk for length in cut[-1:])


# --- random -------------------------------------------------------------------------------------


@given(st.integers(1, 3000), keys)
def test_random_is_a_permutation(n: int, key: int) -> None:
    assert sorted(permutation(n, key)) == list(range(n))


@pytest.mark.parametrize("power", range(1, 17))
def test_random_is_a_permutation_beside_every_power_of_two(power: int) -> None:
    for n in (2**power - 1, 2**power, 2**power + 1):
        found = Plan("random", n, 1, key=power).indices(0)
        assert np.array_equal(np.sort(found), np.arange(n))


@given(st.integers(1, 500), keys)
def test_random_is_the_same_for_the_same_key(n: int, key: int) -> None:
    assert permutation(n, key) == permutation(n, key)


@given(small_n, sizes, keys)
def test_random_shares_put_together_do_not_depend_on_the_team(n: int, size: int, key: int) -> None:
    p = Plan("random", n, size, key=key)
    assert [k for rank in range(size) for k in p.numbers(rank)] == permutation(n, key)


@given(keys, st.integers(0, 63))
def test_random_differs_between_keys_that_differ_by_one_bit(key: int, bit: int) -> None:
    assert permutation(100, key) != permutation(100, key ^ (1 << bit))


def test_random_reaches_every_order_of_four_evenly() -> None:
    orders: dict[tuple[int, ...], int] = {}
    for key in range(4800):
        order = tuple(permutation(4, key))
        orders[order] = orders.get(order, 0) + 1
    assert len(orders) == 24
    # Chi square with 23 degrees of freedom: above 55 once in 5000 for a fair deal (keys are fixed).
    assert sum((count - 200) ** 2 / 200 for count in orders.values()) < 55


@pytest.mark.parametrize("n", [256, 257, 1000, 2**16, 10**6])
def test_random_has_no_plain_pattern(n: int) -> None:
    found = Plan("random", n, 1, key=2024).indices(0)
    # Position and image do not go together: the correlation of n fair pairs is 1 / sqrt(n) wide.
    assert abs(np.corrcoef(np.arange(n), found)[0, 1]) < 4 / np.sqrt(n)
    # Steps from image to image: 16 equal classes; chi square of 15 is above 45 once in 10000.
    steps = np.bincount(np.diff(found) % n * 16 // n, minlength=16)
    assert ((steps - n / 16) ** 2 / (n / 16)).sum() < 45


@pytest.mark.parametrize("n", [256, 1024])
def test_random_neighbours_are_unrelated_over_many_keys(n: int) -> None:
    # Four rounds of the network fail here (17 per degree of freedom), the six in use do not.
    steps = np.zeros(n)
    for key in range(2000):
        steps += np.bincount(np.diff(Plan("random", n, 1, key=key).indices(0)) % n, minlength=n)
    expected = 2000.0
    assert ((steps[1:] - expected) ** 2 / expected).sum() / (n - 2) < 1.5


def test_a_random_share_holds_of_each_part_of_the_range_what_is_due() -> None:
    n, size = 80_000, 4
    for rank in range(size):
        parts = np.bincount(Plan("random", n, size, key=7).indices(rank) * 20 // n, minlength=20)
        # Drawn without replacement: narrower than chi square of 19, above 45 once in 1000.
        assert ((parts - 1000.0) ** 2 / 1000.0).sum() < 45


# --- guided -------------------------------------------------------------------------------------


@given(small_n, sizes, chunks | st.integers(1, 20))
def test_guided_lengths_follow_their_formula(n: int, size: int, chunk: int) -> None:
    expected: list[int] = []
    while n - sum(expected) > 0:
        remaining = n - sum(expected)
        expected.append(min(remaining, max(chunk, -(-remaining // (2 * size)))))
    p = Plan("guided", n, size, chunk)
    assert lengths(p) == expected
    assert p.count == len(expected)


@given(st.integers(0, HUGE), st.integers(1, 64), st.integers(1, 10**6))
def test_guided_lengths_never_rise_nor_fall_below_the_least(n: int, size: int, chunk: int) -> None:
    cut = lengths(Plan("guided", n, size, chunk))
    assert sum(cut) == n
    assert all(before >= after for before, after in pairwise(cut))
    assert all(length >= chunk for length in cut[:-1])


# --- auto ---------------------------------------------------------------------------------------


@given(st.integers(0, 20_000), sizes)
def test_auto_shares_are_the_static_blocks_in_up_to_64_even_pieces(n: int, size: int) -> None:
    p = Plan("auto", n, size)
    static = Plan("static", n, size)
    assert p.count == (64 * size if n else 0)
    for rank in range(size):
        first, last = p.share(rank)
        block = static.indices(rank)
        assert (first, last - first) == (64 * rank, min(64, len(block)))
        pieces = p._walk(range(first, last))
        assert [i for lo, hi in pieces for i in range(lo, hi)] == block.tolist()
        even = [hi - lo for lo, hi in pieces]
        assert not even or (min(even) >= 1 and max(even) - min(even) <= 1)


# --- huge ranges --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 4096, 65536])
@pytest.mark.parametrize("kind", ["static", "random", "dynamic", "auto"])
def test_huge_ranges_end_where_they_should(kind: str, size: int) -> None:
    some = [None] if kind == "auto" else [None, 1, 7, 2**61, 2**63 - 1, 2**70]
    for n, chunk in product([HUGE, HUGE - 1, 2**53 + 1], some):
        p = Plan(kind, n, size, chunk)
        last = p.count - 1
        assert p.bounds(0)[0] == 0
        assert p.bounds(last)[1] == n
        for k in {min(last, 1), last // 3, last // 2, last}:
            lo, hi = p.bounds(k)
            assert lo < hi
            if k:
                assert p.bounds(k - 1)[1] == lo
            if chunk is not None:
                assert (lo, hi) == (k * chunk, min(n, (k + 1) * chunk))


@pytest.mark.parametrize("chunk", [1, 1000, 2**63 - 1])
def test_huge_guided_ranges_are_covered(chunk: int) -> None:
    for size in (1, 4096):
        p = Plan("guided", HUGE, size, chunk)
        cut = p.chunks()
        assert len(cut) == p.count
        assert (cut[0][0], cut[-1][1]) == (0, HUGE)
        assert all(before[1] == after[0] for before, after in pairwise(cut))
        assert cut[0][1] == max(min(chunk, HUGE), HUGE // (2 * size))


@pytest.mark.parametrize("size", [1, 3, 4096])
def test_huge_random_starts_at_once_and_stays_in_range(size: int) -> None:
    p = Plan("random", HUGE, size, key=1)
    for rank in {0, size // 2, size - 1}:
        numbers = p.numbers(rank)
        some = [next(numbers) for _ in range(100)]
        assert len(set(some)) == 100
        assert all(0 <= k < HUGE for k in some)


# --- what plans refuse --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("static", -1, 2), "n must be between 0 and 2\\*\\*62, got -1"),
        (("static", HUGE + 1, 2), "n must be between"),
        (("static", 10**40, 2), "n must be between"),
        (("static", 5, 0), "size must be between 1 and 65536, got 0"),
        (("static", 5, 65537), "size must be between"),
        (("dynamic", 5, 2, 0), "chunk must be at least 1, got 0"),
        (("static", 5, 2, -3), "chunk must be at least 1, got -3"),
        (("auto", 5, 2, 3), "auto takes no chunk, got 3"),
        (("guidd", 5, 2), "kind must be one of 'static', .*, got 'guidd'"),
        (("random", 5, 2, 1, -1), "key must be between"),
        (("random", 5, 2, 1, 2**64), "key must be between"),
    ],
)
def test_a_plan_refuses_numbers_out_of_range(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Plan(*arguments)


@pytest.mark.parametrize(
    "arguments", [("static", 1.5, 2), ("static", 5, "2"), ("static", 5, 2, 1.0)]
)
def test_a_plan_refuses_what_is_no_integer(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError):
        Plan(*arguments)


def test_a_plan_refuses_ranks_and_numbers_that_it_does_not_have() -> None:
    p = Plan("static", 10, 2)
    for rank in (-1, 2):
        with pytest.raises(ValueError, match=r"rank must be in range\(2\)"):
            p.indices(rank)
        with pytest.raises(ValueError, match=r"rank must be in range\(2\)"):
            p.numbers(rank)
    for k in (-1, 2, 2**80):
        with pytest.raises(IndexError, match=r"chunk number must be in range\(2\)"):
            p.bounds(k)


@pytest.mark.parametrize("kind", ["dynamic", "guided", "auto"])
def test_what_is_claimed_is_not_dealt(kind: str) -> None:
    p = Plan(kind, 10, 2)
    for ask in (p.numbers, p.indices):
        with pytest.raises(ValueError, match="only static and random"):
            ask(0)


@pytest.mark.parametrize("kind", ["static", "random", "dynamic", "guided"])
def test_only_auto_has_shares(kind: str) -> None:
    with pytest.raises(ValueError, match="only auto"):
        Plan(kind, 10, 2).share(0)


def test_a_plan_tells_what_it_was_made_of() -> None:
    p = Plan("random", np.int32(10), np.int64(2), np.uint8(3), key=2**64 - 1)
    assert (p.kind, p.n, p.size, p.chunk, p.count, p.key) == ("random", 10, 2, 3, 4, 2**64 - 1)
    assert [Plan(kind, 10, 2).chunk for kind in KINDS] == [None, 1, 1, 1, None]
    assert repr(Plan("static", 10, 2)) == "Plan('static', 10, 2)"
    with pytest.raises(AttributeError):
        p.n = 3  # type: ignore[misc]


# --- spellings ----------------------------------------------------------------------------------

SPELLINGS: list[tuple[str, Schedule]] = [
    ("static", Static()),
    ("static,1", Static(1)),
    ("static,16", Static(chunk=16)),
    ("random", Random()),
    ("random,4", Random(chunk=4)),
    ("dynamic", Dynamic()),
    ("dynamic,4", Dynamic(chunk=4)),
    ("guided", Guided()),
    ("guided,8", Guided(chunk=8)),
    ("auto", Auto()),
    ("runtime", Runtime()),
]


@pytest.mark.parametrize(("text", "schedule"), SPELLINGS)
def test_a_spelling_and_its_object_are_one(text: str, schedule: Schedule) -> None:
    assert parse(text) == schedule
    assert str(schedule) == text
    assert parse(schedule) is schedule
    assert parse(f"  {text.replace(',', ' , ')} ") == schedule
    assert pickle.loads(pickle.dumps(schedule)) == schedule


@pytest.mark.parametrize("name", ["static", "random", "dynamic", "guided"])
def test_a_chunk_may_stand_beside_the_name(name: str) -> None:
    assert parse(name, 8) == parse(name, chunk=np.int64(8)) == parse(f"{name},8")


def test_reading_a_spelling_again_gives_the_same_object() -> None:
    assert parse("guided,8") is parse("guided,8")


@pytest.mark.parametrize(
    ("schedule", "chunk", "message"),
    [
        (
            "guidd",
            None,
            (
                "^schedule must be one of 'static', 'random', 'dynamic', 'guided', 'auto', "
                "'runtime' or a Schedule, got 'guidd'; did you mean 'guided'\\?$"
            ),
        ),
        ("GUIDED", None, "did you mean 'guided'"),
        ("xyz", None, "got 'xyz'$"),
        ("", None, "got ''$"),
        ("guided,", None, "positive integer, got '' in 'guided,'; write 'guided' or 'guided,8'"),
        ("guided,x", None, "positive integer, got 'x'"),
        ("guided,1.5", None, "positive integer, got '1.5'"),
        ("guided,8,9", None, "positive integer, got '8,9'"),
        ("guided,0", None, "positive integer, got 0"),
        ("guided,-4", None, "positive integer, got -4"),
        ("guided,8", 8, "chunk=8 is given beside schedule='guided,8'"),
        ("guided", 0, "positive integer, got 0"),
        ("auto,4", None, "auto takes no chunk, got 4"),
        ("auto", 4, "auto takes no chunk, got 4"),
        ("runtime,4", None, "runtime takes no chunk, got 4"),
        ("runtime", 4, "runtime takes no chunk, got 4"),
        (Guided(8), 8, r"chunk=8 is given beside Guided\(chunk=8\)"),
        (Auto(), 8, "auto takes no chunk, got 8"),
    ],
)
def test_a_wrong_spelling_is_told_with_its_remedy(schedule: Any, chunk: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(schedule, chunk)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (3, "got 3$"),
        (None, "got None$"),
        (Guided, r"got the class Guided; you wrote Guided, you want Guided\(\)$"),
    ],
)
def test_what_is_no_schedule_is_a_type_error(schedule: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        parse(schedule)


@pytest.mark.parametrize("kind", [Static, Random, Dynamic, Guided])
def test_objects_check_their_chunk(kind: Any) -> None:
    for wrong in (True, 1.0, "8", [8], np.float64(2), np.True_):
        with pytest.raises(TypeError, match="chunk must be a positive integer, got "):
            kind(wrong)
        with pytest.raises(TypeError, match="chunk must be a positive integer, got "):
            parse(kind.kind, wrong)  # type: ignore[arg-type]
    for chunk in (0, -1, np.int64(-5)):
        with pytest.raises(ValueError, match="chunk must be a positive integer, got "):
            kind(chunk)
    assert type(kind(np.uint16(8)).chunk) is int


def test_schedules_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Guided(8).chunk = 9  # type: ignore[misc]


# --- the environment, and plans of schedules ----------------------------------------------------


@pytest.mark.parametrize(("text", "schedule"), SPELLINGS[:-1])
def test_the_variable_takes_every_spelling(text: str, schedule: Schedule) -> None:
    assert runtime({"DSM_SCHEDULE": text}) == schedule


@pytest.mark.parametrize("environ", [{}, {"DSM_SCHEDULE": ""}, {"DSM_SCHEDULE": " "}])
def test_without_the_variable_runtime_is_static(environ: dict[str, str]) -> None:
    assert runtime(environ) == Static()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("guidd", "^DSM_SCHEDULE='guidd' in the environment: .* did you mean 'guided'"),
        ("guided,0", "^DSM_SCHEDULE='guided,0' in the environment: .*got 0"),
        ("runtime", "^DSM_SCHEDULE='runtime' in the environment names itself"),
    ],
)
def test_a_bad_variable_is_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        runtime({"DSM_SCHEDULE": text})


@pytest.mark.parametrize(("text", "schedule"), SPELLINGS[:-1])
def test_a_plan_has_the_kind_and_chunk_of_its_schedule(
    text: str, schedule: Schedule, monkeypatch: pytest.MonkeyPatch
) -> None:
    direct = plan(schedule, 100, 3)
    assert direct.kind == schedule.kind
    assert direct.chunk == getattr(schedule, "chunk", None)
    monkeypatch.setenv("DSM_SCHEDULE", text)
    assert repr(plan(Runtime(), 100, 3)) == repr(direct)


def test_a_seed_of_any_size_chooses_the_permutation() -> None:
    seeds = [0, 1, 2**64 - 1, 2**64, 2**64 + 1, 2**128 - 1, 2**200]
    orders = [tuple(plan(Random(), 100, 1, seed).indices(0)) for seed in seeds]
    assert len(set(orders)) == len(seeds)
    assert plan(Random(), 100, 1, 2**64 - 1).key == 2**64 - 1
    with pytest.raises(ValueError, match="seed must not be negative, got -1"):
        plan(Random(), 100, 1, -1)
