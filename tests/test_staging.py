"""Arguments: plain arrays are written in place as a serial loop would, shared ones are live."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.lib.stride_tricks import as_strided, sliding_window_view

import dsmfor as dsm
from dsmfor import arrays, staging

DTYPES = [
    *"?bBhHiIlLqQefdgFDG",
    ">i4",
    ">f8",
    ">c16",
    "M8[s]",
    ">m8[us]",
    "S7",
    "U3",
    ">U3",
    "V5",
    [("a", "i1"), ("b", ">f8", (2, 3))],
    [("a", [("x", "f4"), ("y", "S3")]), ("b", "?")],
    np.dtype([("a", "i1"), ("b", "f8")], align=True),
    np.dtype({"names": ["a", "b"], "formats": ["i4", "f8"], "offsets": [0, 2]}),  # overlapping
]


@dsm.parallel(workers=2)
def reverse(a: np.ndarray, b: np.ndarray) -> None:
    """Write a backwards into b, element by element."""
    for i in dsm.prange(len(a)):
        b[i] = a[len(a) - 1 - i]


@dsm.parallel(workers=2)
def increment(a: np.ndarray) -> None:
    for i in dsm.prange(len(a)):
        a[i] += i + 1


@dsm.parallel(workers=2)
def touch(a: np.ndarray) -> None:
    """Add one to all, in one rank: any number of dimensions."""
    if dsm.rank() == dsm.size() - 1:
        a[...] += 1


def random_bytes(shape: tuple[int, ...], dtype: Any, seed: int = 0) -> np.ndarray:
    """An array of any dtype with values of that dtype that compare equal to themselves."""
    dtype = np.dtype(dtype)
    n = int(np.prod(shape, dtype=int))
    rng = np.random.default_rng(seed)
    if dtype.kind == "V":
        raw = np.zeros(n, dtype)
        raw.view(f"V{dtype.itemsize}")[...] = rng.integers(
            0, 2, (n, dtype.itemsize), np.uint8
        ).view(f"V{dtype.itemsize}")[:, 0]
        return raw.reshape(shape)
    if dtype.kind in "SU":
        return np.array([str(v) for v in rng.integers(0, 999, n)], dtype).reshape(shape)
    return rng.integers(0, 2 if dtype.kind == "b" else 99, n).astype(dtype).reshape(shape)


# -- In place -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_is_written_in_place(dtype: Any, engine: str) -> None:
    a = random_bytes((7,), dtype)
    b = np.zeros(7, dtype)
    reverse.using(engine=engine)(a, b)
    assert b.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(b, a[::-1])


SHAPES: dict[str, Callable[[], np.ndarray]] = {
    "contiguous": lambda: np.arange(24.0).reshape(4, 6),
    "Fortran": lambda: np.asfortranarray(np.arange(24.0).reshape(4, 6)),
    "every other": lambda: np.arange(48.0).reshape(8, 6)[::2],
    "columns": lambda: np.arange(48.0).reshape(4, 12)[:, 1::2],
    "backwards": lambda: np.arange(24.0)[::-1],
    "backwards both ways": lambda: np.arange(24.0).reshape(4, 6)[::-1, ::-2],
    "transposed": lambda: np.arange(24.0).reshape(2, 3, 4).transpose(2, 0, 1),
    "no dimension": lambda: np.array(5.0),
    "one element": lambda: np.full((1, 1, 1), 5.0),
    "a field": lambda: np.zeros(5, [("a", "i1"), ("b", "f8")])["b"],
    "the real part": lambda: np.arange(5.0).astype(complex).real,
    "unaligned": lambda: np.zeros(41, np.uint8)[1:].view(np.float64),
    "a broadcast that may be written": lambda: as_strided(np.zeros(3), (4, 3), (0, 8)),
    "a window that may be written": lambda: as_strided(np.zeros(6), (4, 3), (8, 8)),
    "a diagonal": lambda: as_strided(np.zeros((4, 4)), (4,), (40,)),
    "a large one": lambda: np.arange(300_000.0),
}


@pytest.mark.parametrize("name", SHAPES)
def test_every_layout_is_written_in_place(name: str, engine: str) -> None:
    a, expected = SHAPES[name](), SHAPES[name]()
    expected[...] += 1
    base = a if a.base is None else a.base
    touch.using(engine=engine)(a)
    np.testing.assert_array_equal(a, expected)
    assert np.shares_memory(a, base)


@pytest.mark.parametrize("name", SHAPES)
def test_workers_see_the_layout_or_a_packed_one(name: str) -> None:
    kernel = dsm.parallel(workers=2)(lambda a: (a.shape, a.dtype.str, a.flags.writeable, a.copy()))
    a = SHAPES[name]()
    for shape, dtype, writeable, values in kernel(a):
        assert (shape, dtype, writeable) == (a.shape, a.dtype.str, True)
        np.testing.assert_array_equal(values, a)


def test_what_lies_between_the_elements_is_left_alone() -> None:
    whole = np.arange(100.0)
    increment(whole[::2])
    np.testing.assert_array_equal(whole[1::2], np.arange(1, 100, 2))
    np.testing.assert_array_equal(whole[::2], np.arange(0, 100, 2) + np.arange(1, 51))


def test_fields_beside_the_written_one_are_left_alone() -> None:
    a = random_bytes((6,), [("a", "u1"), ("b", "f8"), ("c", "i2")])
    before = a.copy()
    increment(a["b"])
    np.testing.assert_array_equal(a["b"], before["b"] + np.arange(1, 7))
    np.testing.assert_array_equal(a["a"], before["a"])
    np.testing.assert_array_equal(a["c"], before["c"])


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 0, 5)])
def test_an_array_without_elements_arrives_with_its_shape(
    shape: tuple[int, ...], engine: str
) -> None:
    kernel = dsm.parallel(workers=2, engine=engine)(
        lambda a: (a.shape, a.dtype.str, list(dsm.split(len(a))))
    )
    for a in (np.zeros(shape, "f4"), dsm.zeros(shape, "f4")):
        result = kernel(a)
        assert [r[:2] for r in result] == [(shape, "<f4")] * len(result)
    assert dsm.parallel(workers=2, engine=engine, shared=["a"])(lambda a: a.size)(
        np.zeros(shape)
    ) == [0] * len(result)


def test_a_read_only_array_arrives_read_only(engine: str) -> None:
    a = np.arange(5.0)
    a.flags.writeable = False
    kernel = dsm.parallel(workers=2, engine=engine)(lambda a: (a.flags.writeable, a.sum()))
    assert set(kernel(a)) == {(False, 10.0)}
    shared = dsm.zeros(5)
    shared.flags.writeable = False
    assert set(kernel(shared)) == {(False, 0.0)}
    with pytest.raises(ValueError, match="read-only"):
        increment.using(engine=engine)(a)
    with pytest.raises(ValueError, match="read-only"):
        increment.using(engine=engine)(shared)
    assert a.tolist() == [0, 1, 2, 3, 4]


def test_a_broadcast_is_not_blown_up(engine: str) -> None:
    a = np.broadcast_to(np.arange(3.0), (1000, 1000, 3))
    kernel = dsm.parallel(workers=2, engine=engine)(lambda a: float(a[999].sum()))
    assert set(kernel(a)) == {3000.0}
    if engine == "process":
        assert kernel.last_report is not None
        assert kernel.last_report.bytes_in <= 1000


def test_segments_are_used_again() -> None:
    staging.drop_spares()
    increment(np.zeros(1000))
    roots = {id(root) for root in staging._spares._roots}
    assert roots
    for n in (1000, 900, 1000):
        increment(np.zeros(n))
    assert {id(root) for root in staging._spares._roots} == roots


def test_what_a_segment_held_before_is_never_seen() -> None:
    kernel = dsm.parallel(workers=2, shared={"a": "out", "b": "inout"})(
        lambda a, b: (a.sum(), a.shape, b.sum())
    )
    for n in (100, 50, 100, 3):
        increment(np.full(n, 7.0))
        a, b = np.full(n, 5.0), np.full(n, 2.0)
        assert kernel(a, b) == [(0.0, (n,), 2.0 * n)] * 2
        assert a.sum() == 0


# -- Overlap ------------------------------------------------------------------------------------


def test_the_same_array_twice_is_one_array(engine: str) -> None:
    @dsm.parallel(workers=2, engine=engine)
    def kernel(a: np.ndarray, b: np.ndarray) -> bool:
        if dsm.rank() == 0:
            a[0] = 5
        dsm.barrier()
        return bool(b[0] == 5) and a is b

    a = np.zeros(4)
    assert all(kernel(a, a))
    assert a.tolist() == [5, 0, 0, 0]


NINE = np.arange(9.0)
OVERLAPS: dict[str, tuple[np.ndarray, Callable[[np.ndarray], list[np.ndarray]]]] = {
    "shifted": (NINE, lambda x: [x[:-1], x[1:]]),
    "whole and part": (NINE, lambda x: [x, x[2:5]]),
    "forwards and backwards": (NINE, lambda x: [x, x[::-1]]),
    "interleaved": (NINE, lambda x: [x[::2][:4], x[1::2]]),
    "another dtype": (np.arange(9), lambda x: [x, x.view("i4")[::2]]),
    "transposed": (NINE.reshape(3, 3), lambda x: [x.ravel(), x.T[0]]),
    "windows": (NINE, lambda x: [x, sliding_window_view(x, 3, writeable=True)[:, 1]]),
    "unaligned": (np.zeros(73, np.uint8), lambda x: [x[1:65].view("f8"), x[9:73].view("f8")]),
    "chain": (NINE, lambda x: [x[:4], x[3:7], x[6:]]),
}


@pytest.mark.parametrize("name", OVERLAPS)
def test_views_that_overlap_here_overlap_there(name: str) -> None:
    base, take = OVERLAPS[name]

    @dsm.parallel(workers=2)
    def kernel(*, a: np.ndarray, b: np.ndarray, c: np.ndarray | None = None) -> None:
        arrays = [x for x in (a, b, c) if x is not None]
        for round_ in range(3):
            for n, x in enumerate(arrays):
                for i in dsm.prange(len(x)):
                    x[i] += 10 ** (n + round_)

    there, here = take(base.copy()), take(base.copy())
    kernel(**dict(zip("abc", there, strict=False)))
    kernel.serial(**dict(zip("abc", here, strict=False)))
    for x, y in zip(there, here, strict=True):
        np.testing.assert_array_equal(x, y)


def test_an_overlap_of_argument_and_capture_is_seen(engine: str) -> None:
    whole = np.arange(10.0)

    @dsm.parallel(workers=2, engine=engine)
    def kernel(part: np.ndarray) -> float:
        if dsm.rank() == 0:
            part[0] = 50
        dsm.barrier()
        return float(whole[3])

    assert set(kernel(whole[3:5])) == {50.0}
    assert whole.tolist() == [0, 1, 2, 50, 4, 5, 6, 7, 8, 9]


@st.composite
def views(draw: st.DrawFn) -> list[tuple[Any, ...]]:
    """Recipes of views of one 240-byte buffer: offset, dtype, count, stride, both signs."""
    recipes = []
    for _ in range(draw(st.integers(1, 4))):
        dtype = np.dtype(draw(st.sampled_from(["u1", "i2", "f4", "f8", "c16", ">i4", "S3"])))
        count = draw(st.integers(1, 8))
        stride = draw(st.sampled_from([dtype.itemsize, dtype.itemsize * 2, 1, 3, 8, 24, 0]))
        span = stride * (count - 1) + dtype.itemsize
        offset = draw(st.integers(0, 240 - min(span, 239)))
        if offset + span > 240:
            offset, count = 0, 1
        back = draw(st.booleans())
        intent = draw(st.sampled_from(["inout", "inout", "inout", "in"]))
        recipes.append((offset, dtype, count, stride, back, intent))
    return recipes


def build(recipes: list[tuple[Any, ...]], buffer: np.ndarray) -> list[np.ndarray]:
    made = []
    for offset, dtype, count, stride, back, _ in recipes:
        a = np.ndarray((count,), dtype, buffer, offset, (stride,))
        made.append(a[::-1] if back else a)
    return made


WRITES = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 7), st.binary(min_size=16, max_size=16)),
    max_size=12,
)


@settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
@given(views(), WRITES, st.booleans())
def test_random_views_and_writes_end_as_in_a_serial_run(
    recipes: list[tuple[Any, ...]], writes: list[tuple[int, int, bytes]], plain: bool
) -> None:
    """Rank 0 and rank 1 write in turn, with barriers between; byte for byte as in serial."""
    intents = {f"v{n}": recipe[-1] for n, recipe in enumerate(recipes)}
    names = ", ".join(f"v{n}=None" for n in range(4))
    space: dict[str, Any] = {"dsm": dsm, "np": np, "__name__": "__main__"}
    exec(
        f"def kernel(writes, {names}):\n"
        "    views = [v for v in (v0, v1, v2, v3) if v is not None]\n"
        "    for turn, (n, i, raw) in enumerate(writes):\n"
        "        if turn % dsm.size() == dsm.rank():\n"
        "            v = views[n % len(views)]\n"
        "            if v.flags.writeable:\n"
        "                v[i % len(v)] = np.frombuffer(raw, v.dtype, 1)[0]\n"
        "        dsm.barrier()\n"
        "    return [v.tobytes() for v in views]\n",
        space,
    )
    there = np.arange(240, dtype=np.uint8)
    here = there.copy()
    kernel = dsm.parallel(workers=2, shared=intents)(space["kernel"])
    writable = [r[-1] == "inout" for r in recipes]
    mine = build(recipes, here)
    for view, keep in zip(mine, writable, strict=True):
        view.flags.writeable = keep
    expected = kernel.serial(writes, *mine)[0]
    if not plain:  # the same, in shared memory
        shared = dsm.array(there)
        theirs = build(recipes, shared)
        for view, keep in zip(theirs, writable, strict=True):
            view.flags.writeable = keep
        assert kernel(writes, *theirs) == [expected] * 2
        np.testing.assert_array_equal(shared, here)
        return
    seen = kernel(writes, *build(recipes, there))
    assert seen == [expected] * 2
    np.testing.assert_array_equal(there, here)


# -- Shared arrays ------------------------------------------------------------------------------

VIEWS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "itself": lambda a: a,
    "slice": lambda a: a[1:3],
    "backwards": lambda a: a[::-1, ::-2],
    "transposed": lambda a: a.T,
    "reshaped": lambda a: a.reshape(-1),
    "as bytes": lambda a: a.view(np.uint8),
    "element": lambda a: a[2, 3:4].reshape(()),
    "windows": lambda a: sliding_window_view(a, 2, axis=0, writeable=True),
    "broadcast": lambda a: np.broadcast_to(a, (3, *a.shape)),
    "new axes": lambda a: a[None, :, None],
}


@pytest.mark.parametrize("name", VIEWS)
def test_any_view_of_a_shared_array_is_the_same_memory(name: str, engine: str) -> None:
    base = dsm.array(np.arange(24.0).reshape(4, 6))
    view = VIEWS[name](base)
    kernel = dsm.parallel(workers=2, engine=engine)(
        lambda v: (v.shape, v.strides, v.dtype, v.flags.writeable, v.tolist())
    )
    seen = kernel(view)
    assert seen == [
        (view.shape, view.strides, view.dtype, view.flags.writeable, view.tolist())
    ] * len(seen)
    if view.flags.writeable and view.dtype == float:
        expected = base.copy()
        VIEWS[name](expected)[...] = 1
        dsm.parallel(workers=2, engine=engine)(lambda v: v.fill(1) if dsm.rank() == 0 else None)(
            view
        )
        np.testing.assert_array_equal(base, expected)


def test_shared_arrays_are_live_wherever_they_are_met(engine: str) -> None:
    a, b, c, d, e, f, g = (dsm.zeros(3) for _ in range(7))

    class Box:
        def __init__(self, a: np.ndarray) -> None:
            self.a = a

    @dataclasses.dataclass
    class Data:
        a: np.ndarray

    def helper() -> None:
        g[0] = 1

    @dsm.parallel(workers=2, engine=engine)
    def kernel(
        first: np.ndarray, many: list[Any], *rest: np.ndarray, deep: Any = b, **named: np.ndarray
    ) -> None:
        if dsm.rank() == 0:
            for x in (first, many[0]["k"], rest[0], named["x"].a, named["y"].a, deep):
                x[0] = 1
            helper()

    kernel(a, [{"k": c}], d, x=Box(e), y=Data(f))
    assert [x[0] for x in (a, b, c, d, e, f, g)] == [1] * 7


def test_a_shared_array_is_live_while_the_region_runs() -> None:
    a = dsm.zeros(2, dtype=int)
    seen: list[int] = []

    @dsm.parallel(workers=1, timeout=30)
    def kernel(a: np.ndarray) -> None:
        a[0] = 1
        while not a[1]:
            pass

    thread = threading.Thread(target=kernel, args=(a,))
    thread.start()
    deadline = time.monotonic() + 30
    while not a[0] and time.monotonic() < deadline:
        pass
    seen.append(int(a[0]))
    a[1] = 1
    thread.join()
    assert seen == [1]


@given(
    hnp.arrays(np.float64, hnp.array_shapes(max_dims=3, max_side=5), elements=st.integers(-9, 9))
)
@settings(deadline=None, max_examples=30, suppress_health_check=list(HealthCheck))
def test_plain_and_shared_arrays_end_the_same(a: np.ndarray) -> None:
    plain, shared = a.copy(), dsm.array(a)
    increment(plain)
    increment(shared)
    np.testing.assert_array_equal(plain, shared)
    increment.serial(a)
    np.testing.assert_array_equal(plain, a)


# -- Arguments of every form --------------------------------------------------------------------


def test_plain_arrays_are_written_by_whatever_way_a_parameter_is_bound(engine: str) -> None:
    default = np.zeros(2)

    @dsm.parallel(workers=2, engine=engine)
    def kernel(a: np.ndarray, /, b: np.ndarray, *, c: np.ndarray, d: np.ndarray = default) -> None:
        if dsm.rank() == 0:
            for x in (a, b, c, d):
                x[0] += 1

    a, b, c = np.zeros(2), np.zeros(2), np.zeros(2)
    kernel(a, b, c=c)
    kernel(a, c=c, b=b)
    assert [x[0] for x in (a, b, c, default)] == [2.0] * 4


def test_values_arrive_by_every_form_of_argument(engine: str) -> None:
    @dsm.parallel(workers=2, engine=engine)
    def kernel(a: Any, b: Any = 2, *rest: Any, c: Any = 3, **more: Any) -> Any:
        return a, b, rest, c, more

    assert kernel(1)[0] == (1, 2, (), 3, {})
    assert kernel(1, 5, 6, 7, c=8, d=9)[0] == (1, 5, (6, 7), 8, {"d": 9})
    assert kernel(a=1, b=4)[-1] == (1, 4, (), 3, {})


def test_plain_arrays_in_star_arguments_arrive_with_their_values(engine: str) -> None:
    kernel = dsm.parallel(workers=2, engine=engine)(
        lambda *a, **k: float(a[0].sum() + k["x"].sum())
    )
    assert set(kernel(np.ones(3), x=np.ones(4))) == {7.0}


# -- shared -------------------------------------------------------------------------------------


def test_a_named_capture_is_written_in_place(engine: str) -> None:
    table = np.zeros(4)

    @dsm.parallel(workers=2, engine=engine, shared=["table"])
    def kernel() -> None:
        for i in dsm.prange(4):
            table[i] = i

    kernel()
    assert table.tolist() == [0, 1, 2, 3]


GLOBAL = np.zeros(4)


@pytest.mark.parametrize("called", ["write", "deeper"])
def test_what_a_helper_captures_can_be_named(called: str, engine: str) -> None:
    space: dict[str, Any] = {"dsm": dsm, "table": np.zeros(4), "__name__": "__main__"}
    exec(
        "def write(i): table[i] = i + 1\n"
        "def deeper(i): write(i)\n"
        f"@dsm.parallel(workers=2, engine={engine!r}, shared=['table'])\n"
        f"def kernel():\n    for i in dsm.prange(4): {called}(i)\n",
        space,
    )
    space["kernel"]()
    assert space["table"].tolist() == [1, 2, 3, 4]


def test_what_a_helper_in_a_closure_captures_can_be_named(engine: str) -> None:
    mine = np.zeros(4)

    def helper(i: int) -> None:
        mine[i] = i

    @dsm.parallel(workers=2, engine=engine, shared=["mine"])
    def kernel() -> None:
        for i in dsm.prange(4):
            helper(i)

    kernel()
    assert mine.tolist() == [0, 1, 2, 3]


def test_a_name_that_is_parameter_and_capture_means_the_parameter() -> None:
    space: dict[str, Any] = {"dsm": dsm, "np": np, "__name__": "__main__", "a": [1]}
    exec(
        "def helper(): return a\n"
        "@dsm.parallel(workers=2, shared=['a'])\n"
        "def kernel(a):\n    a[dsm.rank()] = 1\n    return helper()\n",
        space,
    )
    array = np.zeros(2)
    assert space["kernel"](array) == [[1], [1]]
    assert array.tolist() == [1, 1]


def test_an_unknown_name_is_refused_at_decoration_with_what_it_could_be() -> None:
    local = np.zeros(3)
    with pytest.raises(ValueError, match=r"'C'.*it could be 'A', 'B', 'local'"):

        @dsm.parallel(shared=["A", "C"])
        def kernel(A: Any, B: Any) -> None:
            local[0] = 1


@pytest.mark.parametrize(
    ("shared", "kind", "message"),
    [
        ("a", TypeError, r"shared=\['a'\]"),
        (5, TypeError, "list of names.*5"),
        ([5], TypeError, "names.*5"),
        ({"a": "read"}, ValueError, "'a'.*'in', 'out' or 'inout'.*'read'"),
        ({"a": None}, ValueError, "None"),
    ],
)
def test_a_bad_shared_is_refused_at_decoration(
    shared: Any, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        dsm.parallel(shared=shared)(lambda a: None)


@pytest.mark.parametrize("shared", [["a"], ("a",), {"a": "inout"}])
def test_shared_may_be_a_list_a_tuple_or_a_dict(shared: Any) -> None:
    a = np.zeros(2)
    dsm.parallel(workers=2, shared=shared)(lambda a: a.__setitem__(dsm.rank(), 1))(a)
    assert a.tolist() == [1, 1]


class Frame:
    """Looks like a DataFrame."""

    def to_numpy(self) -> np.ndarray:
        return np.zeros(3)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1, 2], r"'a' is a list.*np.array\(a\)"),
        ((1, 2), r"'a' is a tuple.*np.array\(a\)"),
        (Frame(), r"'a' is a Frame.*a.to_numpy\(\)"),
        (np.ma.masked_array([1, 2], [0, 1]), r"'a' is a MaskedArray.*\.data and \.mask"),
        (np.array([object()]), "'a' is an array of Python objects"),
        (np.zeros(2).view(np.recarray), r"'a' is a recarray.*np.asarray\(a\)"),
        (3.0, "'a' is a float"),
        (None, "'a' is a NoneType"),
        ({}, "'a' is a dict"),
    ],
    ids=lambda v: type(v).__name__,
)
def test_naming_what_cannot_be_shared_says_what_to_pass(value: Any, message: str) -> None:
    ran = dsm.zeros(1)
    kernel = dsm.parallel(workers=2, shared=["a"])(lambda a: ran.fill(1))
    with pytest.raises(TypeError, match=message):
        kernel(value)
    assert ran[0] == 0
    if not isinstance(value, np.ndarray):

        @dsm.parallel(workers=2, shared=["value"])
        def captured() -> Any:
            return value

        with pytest.raises(TypeError, match="'value' is a"):
            captured()


def test_naming_a_read_only_array_for_writing_is_refused() -> None:
    a = np.zeros(3)
    a.flags.writeable = False
    with pytest.raises(ValueError, match=r"'a' for writing.*read-only.*'in'"):
        dsm.parallel(workers=2, shared=["a"])(lambda a: None)(a)
    assert (
        dsm.parallel(workers=2, shared={"a": "in"})(lambda a: a.flags.writeable)(a) == [False] * 2
    )


def test_intents_in_out_and_inout() -> None:
    @dsm.parallel(workers=2, shared={"a": "in", "b": "out", "c": "inout"})
    def kernel(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> Any:
        seen = a.flags.writeable, b.tolist(), c.tolist()
        dsm.barrier()
        b[dsm.rank()] = 5
        c[dsm.rank()] += 5
        return seen

    a, b, c = np.arange(3.0), np.arange(3.0), np.arange(3.0)
    assert kernel(a, b, c) == [(False, [0, 0, 0], [0, 1, 2])] * 2
    assert (a.tolist(), b.tolist(), c.tolist()) == ([0, 1, 2], [5, 5, 0], [5, 6, 2])


def test_writing_what_is_named_in_is_an_error_in_the_kernel() -> None:
    a = np.zeros(3)
    with pytest.raises(ValueError, match="read-only"):
        dsm.parallel(workers=2, shared={"a": "in"})(lambda a: a.fill(1))(a)
    assert a.tolist() == [0, 0, 0]


def test_plain_arrays_that_are_not_named_arrive_read_only() -> None:
    captured = np.zeros(3)

    @dsm.parallel(workers=2, shared=["a"])
    def kernel(a: np.ndarray, b: np.ndarray) -> Any:
        return (
            a.flags.writeable,
            b.flags.writeable,
            captured.flags.writeable,
            GLOBAL.flags.writeable,
        )

    assert kernel(np.zeros(3), np.zeros(3)) == [(True, False, False, False)] * 2
    with pytest.raises(ValueError, match="read-only"):
        dsm.parallel(workers=2, shared=["a"])(lambda a, b: b.fill(1))(np.zeros(3), np.zeros(3))
    with pytest.raises(ValueError, match="read-only"):
        dsm.parallel(workers=2)(lambda: captured.fill(1))()


def test_one_read_only_view_does_not_make_its_writable_neighbour_so() -> None:
    whole = np.arange(6.0)
    fixed = whole[:4]
    fixed.flags.writeable = False

    @dsm.parallel(workers=2)
    def kernel(a: np.ndarray, b: np.ndarray) -> Any:
        if dsm.rank() == 0:
            b[0] = 9
        dsm.barrier()
        return a.flags.writeable, a.tolist()

    assert kernel(fixed, whole[3:]) == [(False, [0, 1, 2, 9])] * 2
    assert whole.tolist() == [0, 1, 2, 9, 4, 5]


# -- How a region ends --------------------------------------------------------------------------


def test_after_an_exception_arrays_are_as_a_serial_loop_leaves_them(engine: str) -> None:
    @dsm.parallel(workers=1, engine=engine)
    def kernel(a: np.ndarray) -> None:
        for i in dsm.prange(10):
            a[i] = i + 1
            if i == 5:
                raise KeyError(i)

    a = np.zeros(10)
    with pytest.raises(KeyError):
        kernel(a)
    assert a.tolist() == [1, 2, 3, 4, 5, 6, 0, 0, 0, 0]


@pytest.mark.parametrize("death", ["exit", "kill"])
def test_after_a_workers_death_plain_arrays_are_untouched(death: str) -> None:
    shared = dsm.zeros(3)

    @dsm.parallel(workers=2)
    def kernel(a: np.ndarray) -> None:
        a += 1
        shared[dsm.rank()] = 1
        dsm.barrier()
        if dsm.rank() == 1:
            if death == "exit":
                os._exit(3)
            os.kill(os.getpid(), signal.SIGKILL)
        dsm.barrier()

    a = np.zeros(3)
    with pytest.raises(dsm.WorkerDied) as caught:
        kernel(a)
    assert caught.value.rank == 1
    assert caught.value.exitcode == (3 if death == "exit" else -signal.SIGKILL)
    assert a.tolist() == [0, 0, 0]
    assert shared.tolist() == [1, 1, 0]
    increment(a)
    assert a.tolist() == [1, 2, 3]


def test_after_ctrl_c_arrays_are_as_the_workers_left_them() -> None:
    flag = dsm.zeros(1, dtype=int)

    @dsm.parallel(workers=2)
    def kernel(a: np.ndarray) -> None:
        a[dsm.rank()] = 1
        dsm.barrier()
        flag[0] = 1
        while True:
            pass

    def interrupt() -> None:
        deadline = time.monotonic() + 30
        while not flag[0] and time.monotonic() < deadline:
            pass
        os.kill(os.getpid(), signal.SIGINT)

    a = np.zeros(3)
    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        kernel(a)
    thread.join()
    assert a.tolist() == [1, 1, 0]
    increment(a)
    assert a.tolist() == [2, 3, 3]


def test_after_a_cancel_arrays_are_as_the_workers_left_them(engine: str) -> None:
    @dsm.parallel(workers=2, engine=engine)
    def kernel(a: np.ndarray) -> Any:
        for i in dsm.prange(10, schedule="static,1"):
            a[i] = 1
            if i == 0:
                dsm.cancel("enough")
        return dsm.cancelled()

    a = np.zeros(10)
    assert set(kernel(a)) == {"enough"}
    assert a[0] == 1


# -- A fork of the caller -----------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_forked_child_stages_in_memory_of_its_own() -> None:
    """Both fill the arrays of a call, then both wait for each other inside it."""
    increment(np.zeros(100))  # leaves a spare segment
    gate = dsm.zeros(2, dtype=int)

    @dsm.parallel(workers=1, timeout=60, shared=["a"])
    def meet(a: np.ndarray, gate: np.ndarray, me: int) -> float:
        gate[me] = 1
        while not gate.all():
            pass
        return float(a.sum())

    me = 0
    child = os.fork()
    try:
        if child == 0:
            me = 1
        a = np.full(100, float(me + 1))
        right = meet(a, gate, me) == [100.0 * (me + 1)] and bool((a == me + 1).all())
    except BaseException:
        if child == 0:
            os._exit(2)
        raise
    if child == 0:
        from dsmfor.engines import process

        process.shutdown()
        os._exit(0 if right else 1)
    _, status = os.waitpid(child, 0)
    assert right
    assert os.waitstatus_to_exitcode(status) == 0


def test_is_shared_tells_staged_arrays_in_a_kernel() -> None:
    kernel = dsm.parallel(workers=2)(lambda a: arrays.is_shared(a))
    assert kernel(np.zeros(3)) == [True, True]
