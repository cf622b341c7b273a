"""Shared arrays: NumPy's own in all but memory, and found again from any view of them."""

from __future__ import annotations

import gc
import itertools
import os
import pickle
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.lib.stride_tricks import as_strided, sliding_window_view

from dsmfor import arenas, arrays, segments, team
from dsmfor._native import registry
from dsmfor.engines import process
from dsmfor.errors import DSMError, RegionError, SharedMemoryFull

PLACE = struct.Struct("=4IQ")  # of an array in an arena: block, its size, offset, 0, serial
TWINS = ["zeros", "empty", "ones"]
LIKE_TWINS = ["zeros_like", "empty_like", "ones_like"]

DTYPES = [
    *"?bBhHiIlLqQefdgFDG",
    ">i4",
    ">c16",
    "M8[s]",
    ">m8[us]",
    "M8",
    "S7",
    "U3",
    ">U3",
    "V5",
    [("a", "i1"), ("b", ">f8", (2, 3))],
    [("a", [("x", "f4"), ("y", "S3")]), ("b", "?")],
    np.dtype([("a", "i1"), ("b", "f8")], align=True),
    np.dtype({"names": ["a", "b"], "formats": ["i4", "f8"], "offsets": [0, 2]}),  # overlapping
    np.dtype("f8", metadata={"unit": "m"}),
]

shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
dtypes = st.sampled_from(DTYPES).map(np.dtype)


def look(a: np.ndarray) -> tuple[object, ...]:
    """All of an array but its values and where they are."""
    f = a.flags
    return (
        type(a),
        a.dtype,
        a.dtype.metadata,
        a.shape,
        a.strides,
        (f.c_contiguous, f.f_contiguous, f.aligned, f.writeable),
    )


def place(a: np.ndarray) -> int:
    return a.__array_interface__["data"][0]


def memory_of(a: np.ndarray) -> np.ndarray:
    """The bytes of the shared array that an array is a view of."""
    segment, where, *_ = arrays.handle(a)
    if isinstance(where, int):
        return segments.root(segment)
    start, nbytes, _, zero, serial = PLACE.unpack(where)
    where = PLACE.pack(start, nbytes, 0, zero, serial)
    return arrays.rebuild((segment, where, (nbytes,), (1,), "B", True))


def moved(handle: Any, offset: int) -> Any:
    """The place of a handle with another offset in the same array."""
    if isinstance(handle[1], int):
        return offset
    start, nbytes, _, zero, serial = PLACE.unpack(handle[1])
    return PLACE.pack(start, nbytes, offset & 0xFFFFFFFF, zero, serial)


@pytest.fixture(params=["block", "segment"])
def ten(request: pytest.FixtureRequest) -> np.ndarray:
    """Ten zeros, in an arena or in a segment of their own."""
    return arrays.zeros(10) if request.param == "block" else segments.create(80).view("f8")


def assert_twin(shared: np.ndarray, plain: np.ndarray) -> None:
    assert look(shared) == look(plain)
    assert arrays.is_shared(shared) == (plain.nbytes > 0)
    if shared.nbytes:
        assert memory_of(shared).nbytes == plain.nbytes
        assert place(memory_of(shared)) == place(shared)
        assert place(shared) % 64 == 0


# -- Twins --------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(TWINS), shapes, dtypes, st.sampled_from("CF"))
def test_creation_is_numpys(name: str, shape: tuple[int, ...], dtype: Any, order: Any) -> None:
    if name == "ones" and dtype.kind in "VmM":
        name = "zeros"
    shared = getattr(arrays, name)(shape, dtype, order)
    plain = getattr(np, name)(shape, dtype, order)
    assert_twin(shared, plain)
    if name == "ones":
        assert (shared == plain).all()
    elif shared.nbytes:
        assert not memory_of(shared).any()


@pytest.mark.parametrize("dtype", ["S", "U", "V", [], ("f8", (2,)), (("f8", (2,)), 3), None, int])
def test_what_numpy_makes_of_unusual_arguments_we_make_too(dtype: Any) -> None:
    for shape in (5, (3, 2), [3, 2], np.array([2, 1]), np.int16(2), (), (0, 3)):
        for order in ("C", "F", "c", "f", None):
            assert_twin(arrays.zeros(shape, dtype, order), np.zeros(shape, dtype, order))


def views(a: np.ndarray, data: st.DataObject, steps: int = 4) -> np.ndarray:
    """A random chain of views."""
    for _ in range(data.draw(st.integers(0, steps))):
        move = data.draw(
            st.sampled_from(["slice", "T", "reverse", "new", "broadcast", "flat", "bytes", "lock"])
        )
        if move == "slice":
            a = a[data.draw(hnp.basic_indices(a.shape, allow_newaxis=False))]
        elif move == "T":
            a = a.transpose(data.draw(st.permutations(range(a.ndim))))
        elif move == "reverse":
            a = a[(slice(None, None, -1),) * a.ndim]
        elif move == "new":
            a = a[np.newaxis]
        elif move == "broadcast":
            a = np.broadcast_to(a, (data.draw(st.integers(1, 3)), *a.shape))
        elif move == "flat" and a.flags.c_contiguous:
            a = a.reshape(-1)
        elif move == "bytes" and a.flags.c_contiguous and a.ndim and a.dtype.itemsize:
            a = a.view(np.uint8)
        elif move == "lock":
            a = a.view()
            a.flags.writeable = False
        if not isinstance(a, np.ndarray):  # an index of every dimension gives a scalar
            return np.zeros(0)
    return a


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from(LIKE_TWINS),
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3),
    st.sampled_from("CFAK"),
    st.sampled_from([None, "f4", ">i2"]),
    st.sampled_from([None, 3, (2, 2), (2, 1, 3), (4, 3, 2, 1), (2, 0)]),
    st.data(),
)
def test_creation_after_a_model_is_numpys(
    name: str, model_shape: Any, order: Any, dtype: Any, shape: Any, data: st.DataObject
) -> None:
    model = views(np.ones(model_shape, "i8"), data)
    keywords = {"dtype": dtype, "order": order, "shape": shape}
    shared = getattr(arrays, name)(model, **keywords)
    plain = getattr(np, name)(model, **keywords)
    assert_twin(shared, plain)
    if name != "empty_like":
        assert (shared == plain).all()


@settings(deadline=None, max_examples=150)
@given(
    hnp.array_shapes(min_dims=0, max_dims=4, max_side=3), dtypes, st.sampled_from("CFAK"), st.data()
)
def test_a_copy_is_numpys(shape: Any, dtype: Any, order: Any, data: st.DataObject) -> None:
    filling = np.zeros(int(np.prod(shape)) * dtype.itemsize, np.uint8)
    if dtype.char not in "gG":  # any other dtype has a valid value with these bytes
        filling[3 if dtype.str.startswith(">U") else 0 :: 12] = 1
    model = views(np.ndarray(shape, dtype, filling), data)
    shared, plain = arrays.array(model, order=order), np.array(model, order=order)
    assert_twin(shared, plain)
    assert (shared == plain).all()


@pytest.mark.parametrize(
    "arguments",
    [
        ([[1, 2], [3, 4]],),
        (3.5,),
        ([],),
        (["a", "bcd"],),
        ([1, 2], "S"),
        (np.arange(12), "S"),
        (np.arange(12), "U"),
        (np.arange(3) + 0.5, int),
        (np.arange(3), ">f4"),
        (["2020-01-01"], "M8"),
        (np.array(["2020-01-01"]), "M8"),
        (np.array(["2020-01-01"], "M8[D]"), "M8"),
        (np.array(["2020-01-01"], "M8[D]"), "M8[s]"),
        (np.arange(3), ("f8", (2,))),
        (np.ma.array([1, 2], mask=[False, True]),),
        (range(5),),
    ],
)
def test_array_holds_what_numpys_array_holds(arguments: tuple[Any, ...]) -> None:
    shared, plain = arrays.array(*arguments), np.array(*arguments)
    assert_twin(shared, plain)
    assert shared.tobytes() == plain.tobytes()


def test_array_copies() -> None:
    first = arrays.array([1, 2, 3])
    second = arrays.array(first)
    second[0] = 9
    assert first[0] == 1
    assert not np.shares_memory(memory_of(first), memory_of(second))


@pytest.mark.parametrize(
    "arguments",
    [((2, 3), 7), ((2, 3), [1, 2, 3]), (2, "abc"), (2, 1.5, int), ((2, 2), 1j, "F", "F")],
)
def test_full_is_numpys(arguments: tuple[Any, ...]) -> None:
    shared, plain = arrays.full(*arguments), np.full(*arguments)
    assert_twin(shared, plain)
    assert (shared == plain).all()
    assert_twin(arrays.full_like(plain, 1), np.full_like(plain, 1))
    assert (arrays.full_like(plain, 1) == np.full_like(plain, 1)).all()


def test_a_model_may_be_what_numpy_makes_an_array_of_and_its_subclass_is_not_kept() -> None:
    assert_twin(arrays.ones_like([[1, 2]]), np.ones_like([[1, 2]]))
    masked = np.ma.array([1, 2], mask=[False, True])
    assert type(arrays.zeros_like(masked)) is np.ndarray


# -- Refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "kind", "says"),
    [
        (lambda: arrays.zeros(-1), ValueError, "negative lengths, got -1"),
        (lambda: arrays.zeros((2, -3)), ValueError, r"got \(2, -3\)"),
        (lambda: arrays.zeros((0, -3)), ValueError, "negative"),
        (lambda: arrays.zeros(2.0), TypeError, "integer.*got 2.0"),
        (lambda: arrays.zeros((2, 2.0)), TypeError, r"//"),
        (lambda: arrays.zeros("3"), TypeError, "got '3'"),
        (lambda: arrays.zeros(None), TypeError, "got None"),
        (lambda: arrays.zeros((1,) * 65), ValueError, "64 dimensions, got 65"),
        (lambda: arrays.zeros(2**63), ValueError, "no address"),
        (lambda: arrays.zeros((2**40, 2**40)), ValueError, "no address"),
        (lambda: arrays.zeros((2**31, 2**31), "?"), SharedMemoryFull, "4.0 EiB"),
        (lambda: arrays.zeros((0, 2**62, 2**62)), ValueError, "too big"),
        (lambda: arrays.zeros_like([1], shape=-1), ValueError, "zeros_like"),
        (lambda: arrays.zeros(3, order="K"), ValueError, "'C', 'F', got 'K'"),
        (lambda: arrays.ones(3, order="CF"), ValueError, "ones"),
        (lambda: arrays.zeros(3, order=3), ValueError, "got 3"),
        (lambda: arrays.zeros_like([1], order="Q"), ValueError, "'C', 'F', 'A', 'K', got 'Q'"),
        (lambda: arrays.zeros(3, object), TypeError, "dtype object.*fixed size"),
        (lambda: arrays.empty(3, [("a", [("b", "O")])]), TypeError, "references"),
        (lambda: arrays.zeros(3, np.dtypes.StringDType()), TypeError, "'U20'"),
        (lambda: arrays.zeros(0, object), TypeError, "object"),
        (lambda: arrays.array([object()]), TypeError, "array cannot share"),
        (lambda: arrays.full(3, None), TypeError, "full cannot share"),
        (lambda: arrays.zeros_like(np.array([None])), TypeError, "zeros_like cannot share"),
        (lambda: arrays.zeros(3, "nope"), TypeError, "not understood"),
        (lambda: arrays.zeros(10**13), SharedMemoryFull, "does not fit"),
        (lambda: arrays.full(2, [1, 2, 3]), ValueError, "broadcast"),
        (lambda: arrays.array([[1], [1, 2]]), ValueError, "inhomogeneous"),
    ],
)
def test_what_cannot_be_made_is_refused_and_nothing_is_taken(
    make: Callable[[], object], kind: type[Exception], says: str
) -> None:
    live = segments.live()
    with pytest.raises(kind, match=says):
        make()
    gc.collect()
    arenas.drop_spares()
    assert segments.live() <= live


@pytest.mark.parametrize(
    "name", sorted({*arrays.__all__} - {"Handle", "handle", "is_shared", "rebuild"})
)
def test_an_array_per_rank_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def check(function: str, name: str | None = None) -> None:
        raise RegionError(f"refused {function}")

    monkeypatch.setattr(team, "check_creation", check)
    arguments = ([1, 2], 1) if "full" in name else ([1, 2],)
    live = segments.live()
    with pytest.raises(RegionError, match=f"^refused {name}$"):
        getattr(arrays, name)(*arguments)
    assert segments.live() == live


# -- Handles ------------------------------------------------------------------------------------


def assert_same_memory(again: np.ndarray, view: np.ndarray) -> None:
    assert look(again) == look(view)
    assert place(again) == place(view)


@settings(deadline=None, max_examples=300)
@given(
    hnp.array_shapes(min_dims=0, max_dims=4, max_side=4),
    dtypes,
    st.sampled_from("CF"),
    st.data(),
)
def test_a_handle_gives_back_the_same_view_of_the_same_memory(
    shape: Any, dtype: Any, order: Any, data: st.DataObject
) -> None:
    a = arrays.zeros(shape, dtype, order)
    view = views(a, data, 6)
    handle = arrays.handle(view)
    assert (handle is None) == (view.nbytes == 0)
    if handle is None:
        return
    assert handle[0] == arrays.handle(a)[0]
    handle = pickle.loads(pickle.dumps(handle))
    again = arrays.rebuild(handle)
    assert_same_memory(again, view)
    low, high = registry.span(view)
    assert (low, high) == np.lib.array_utils.byte_bounds(view)


def test_a_rebuilt_array_keeps_its_block_alive_and_is_the_same_memory() -> None:
    process.housekeep()
    before = arenas.blocks()
    a = arrays.zeros((4, 5), "i4")
    again = arrays.rebuild(arrays.handle(a[::-2, 1:].T))
    low = place(a)
    del a
    again[...] = 7
    assert arenas.blocks() == before + 1
    assert place(memory_of(again)) == low
    assert memory_of(again).view("i4").sum() == 7 * again.size
    del again
    process.housekeep()  # a handle of it was made: idle workers of earlier tests are asked
    assert arenas.blocks() == before


def test_a_rebuilt_array_keeps_its_segment_alive_and_is_the_same_memory() -> None:
    a = segments.create(80).view("i4").reshape(4, 5)
    segment = arrays.handle(a)[0]
    again = arrays.rebuild(arrays.handle(a[::-2, 1:].T))
    assert again.base is segments.root(segment)
    del a
    again[...] = 7
    assert segment in segments.live()
    assert segments.root(segment).view("i4").sum() == 7 * again.size
    del again
    assert segment not in segments.live()


def test_plain_numbers_travel_as_a_letter_and_other_dtypes_as_themselves() -> None:
    for dtype in DTYPES:
        a = arrays.zeros(2, dtype)
        token = arrays.handle(a)[4]
        if isinstance(dtype, str) and len(dtype) == 1:
            assert token == dtype
        else:
            assert token == a.dtype
            assert isinstance(token, np.dtype)
    copied = pickle.loads(pickle.dumps(np.dtype("=f8").newbyteorder("S").newbyteorder("S")))
    assert arrays.handle(arrays.zeros(2, copied))[4] == "d"


def test_read_only_stays_read_only() -> None:
    a = arrays.zeros(3)
    a.flags.writeable = False
    assert arrays.handle(a)[5] is False
    again = arrays.rebuild(arrays.handle(a))
    with pytest.raises(ValueError, match="read-only"):
        again[0] = 1
    root = memory_of(a).view()
    root.flags.writeable = False
    assert not registry.view(root, 0, (3,), (8,), "d", True).flags.writeable


@pytest.mark.parametrize(
    "a", [np.zeros(3), np.zeros(()), np.zeros((0, 3)), np.array([None]), np.zeros(3, "V0")]
)
def test_an_array_elsewhere_has_no_handle(a: np.ndarray) -> None:
    kept = arrays.zeros(3)
    assert arrays.handle(a) is None
    assert not arrays.is_shared(a)
    assert arrays.is_shared(kept)


def test_an_array_without_elements_or_bytes_has_no_handle_wherever_it_lies() -> None:
    a = arrays.zeros((3, 3))
    assert arrays.handle(a[:0]) is None
    assert arrays.handle(a[3:, ::2]) is None
    assert arrays.handle(a.view("V8").view([("x", "V8")])[["x"]]) is not None


def test_only_arrays_are_shared() -> None:
    a = arrays.zeros(3)
    for other in ([a], memoryview(a), a[0], None):
        assert not arrays.is_shared(other)
        with pytest.raises(TypeError):
            arrays.handle(other)  # type: ignore[arg-type]


def test_a_subclass_over_shared_memory_is_found() -> None:
    a = arrays.zeros((2, 2))
    assert arrays.handle(a.view(np.recarray)) == arrays.handle(a)
    assert arrays.handle(a.view(np.ma.MaskedArray)) == arrays.handle(a)


def test_windows_inside_the_array_are_views_like_any_other() -> None:
    a = arrays.array(np.arange(10.0))
    view = sliding_window_view(a, 4, writeable=True)
    assert_same_memory(arrays.rebuild(arrays.handle(view)), view)


@pytest.mark.parametrize(
    ("start", "shape", "strides"),
    [
        (0, (11,), (8,)),
        (9, (2,), (8,)),
        (0, (2,), (-8,)),
        (9, (11,), (-8,)),
        (0, (2, 2), (8, 80)),
        (0, (2,), (2**40,)),
        (0, (2,), (-(2**40),)),
        (0, (2, 2), (2**62, 2**62)),
        (0, (3,), (-(2**62),)),
    ],
)
def test_a_view_beyond_its_array_is_refused_on_both_ways(
    ten: np.ndarray, start: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    view = as_strided(ten[start:], shape, strides)
    handle = arrays.handle(ten)
    with pytest.raises(ValueError, match="reach"):
        arrays.handle(view)
    with pytest.raises(ValueError, match="does not fit"):
        arrays.rebuild((handle[0], moved(handle, 8 * start), shape, strides, "d", True))


@pytest.mark.parametrize(
    ("rest", "kind"),
    [
        ((-8, (1,), (8,), "d", True), ValueError),
        ((81, (0,), (8,), "d", True), ValueError),
        ((2**63 - 1, (1,), (8,), "d", True), ValueError),
        ((0, (-1,), (8,), "d", True), ValueError),
        ((0, (1,), (), "d", True), ValueError),
        ((0, (1,) * 65, (8,) * 65, "d", True), ValueError),
        ((0, (2**70,), (8,), "d", True), OverflowError),
        ((0, (1.5,), (8,), "d", True), TypeError),
        ((0, (1,), (8,), "O", True), ValueError),
        ((0, (1,), (8,), "dd", True), ValueError),
        ((0, (1,), (8,), "", True), ValueError),
        ((0, (1,), (8,), "é", True), ValueError),
        ((0, (1,), (8,), np.dtype("O"), True), ValueError),
        ((0, (1,), (8,), np.dtype([("a", "O")]), True), ValueError),
        ((0, (1,), (8,), np.dtype(("f8", (2,))), True), ValueError),
        ((0, (1,), (8,), 12, True), TypeError),
        ((0, [1], (8,), "d", True), TypeError),
    ],
)
def test_a_handle_that_lies_is_refused(
    ten: np.ndarray, rest: tuple[Any, ...], kind: type[Exception]
) -> None:
    handle = arrays.handle(ten)
    with pytest.raises(kind):
        arrays.rebuild((handle[0], moved(handle, rest[0]), *rest[1:]))


def test_a_handle_that_lies_about_its_block_is_refused() -> None:
    a = arrays.zeros(10)
    segment, where, *rest = arrays.handle(a)
    start, nbytes, offset, zero, serial = PLACE.unpack(where)
    for lie in [
        (start + 1, nbytes, offset, zero, serial),
        (2**32 - 1, nbytes, offset, zero, serial),
        (start, nbytes + 8, offset, zero, serial),
        (start, 2**32 - 1, offset, zero, serial),
        (start, 0, offset, zero, serial),
        (start, nbytes, offset, zero, serial + 1),
    ]:
        with pytest.raises(DSMError, match="gone"):
            arrays.rebuild((segment, PLACE.pack(*lie), *rest))
    for wrong in (b"", where[:-1], where + b"x"):
        with pytest.raises(ValueError, match="24 bytes"):
            arrays.rebuild((segment, wrong, *rest))
    with pytest.raises(ValueError, match="names no block"):
        arrays.rebuild((segment, 0, *rest))


@pytest.mark.parametrize("nbytes", [80, 1 << 20])
def test_a_handle_of_a_freed_array_is_refused(nbytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "_resolver", None)
    handle = arrays.handle(arrays.zeros(nbytes, "u1"))
    process.housekeep()
    with pytest.raises(DSMError, match="freed"):
        arrays.rebuild(handle)


# -- The registry -------------------------------------------------------------------------------


@pytest.fixture
def memory() -> Iterator[np.ndarray]:
    """Bytes in which blocks may be entered at will."""
    blocks = registry.count()
    yield np.zeros(4096, np.uint8)
    assert registry.count() == blocks


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_the_registry_finds_what_a_search_by_hand_finds(data: st.DataObject) -> None:
    memory = np.zeros(256, np.uint8)
    origin = place(memory)
    cuts = sorted(data.draw(st.sets(st.integers(0, 256), min_size=2, max_size=20)))
    pairs = list(itertools.pairwise(cuts))
    chosen = data.draw(st.permutations(pairs))
    chosen = chosen[: data.draw(st.integers(0, len(chosen)))]
    lows = {}
    try:
        for number, (low, high) in enumerate(chosen):
            lows[low, high] = registry.add(memory[low:high], number)
        for low, high in chosen:
            if data.draw(st.booleans()):
                assert registry.remove(lows.pop((low, high)))
                assert not registry.remove(origin + low)
        for _ in range(10):
            low = data.draw(st.integers(0, 255))
            high = data.draw(st.integers(low + 1, 256))
            touched = [pair for pair in lows if pair[0] < high and low < pair[1]]
            inside = [pair for pair in touched if pair[0] <= low and high <= pair[1]]
            if touched and not inside:
                with pytest.raises(ValueError, match="reaches beyond"):
                    registry.handle(memory[low:high])
            elif inside:
                handle = registry.handle(memory[low:high])
                assert handle[:3] == (chosen.index(inside[0]), low - inside[0][0], (high - low,))
            else:
                assert registry.handle(memory[low:high]) is None
    finally:
        for address in lows.values():
            registry.remove(address)


def test_blocks_never_overlap(memory: np.ndarray) -> None:
    low = registry.add(memory[100:200], 1)
    for start, stop in [(100, 200), (50, 101), (199, 300), (120, 130), (0, 4096)]:
        with pytest.raises(ValueError, match="overlaps"):
            registry.add(memory[start:stop], 2)
    after = registry.add(memory[200:300], 3)
    assert registry.handle(memory[250:260])[:2] == (3, 50)
    assert registry.remove(low)
    assert registry.remove(after)


def test_only_the_bytes_of_an_array_are_a_block(memory: np.ndarray) -> None:
    for bad in (memory[:0], memory[::2]):
        with pytest.raises(ValueError, match="C-contiguous"):
            registry.add(bad, 1)
    with pytest.raises(TypeError):
        registry.add(b"bytes", 1)
    with pytest.raises(TypeError):
        registry.span(b"bytes")
    with pytest.raises(TypeError):
        registry.view(b"bytes", 0, (1,), (1,), "B", True)


def test_the_registry_keeps_no_reference() -> None:
    dtype = np.dtype([("a", ">i4")])
    a = arrays.zeros(10, dtype)
    root = segments.create(10)
    before = sys.getrefcount(dtype), sys.getrefcount(root), sys.getrefcount(a.dtype)
    for _ in range(1000):
        arrays.rebuild(arrays.handle(a[::-1]))
        arrays.rebuild(arrays.handle(root[::-1]))
    assert (sys.getrefcount(dtype), sys.getrefcount(root), sys.getrefcount(a.dtype)) == before


def test_two_thousand_arrays_leave_nothing() -> None:
    arrays.zeros(1)
    fds = os.listdir("/proc/self/fd")
    live = segments.live()
    for number in range(2000):
        a = arrays.ones((number % 7 + 1, 3), "i2", "F")
        assert arrays.rebuild(arrays.handle(a.T[1:])).all()
    del a
    assert segments.live() <= live
    assert len(os.listdir("/proc/self/fd")) <= len(fds)
    assert Path("/proc/self/maps").read_text().count("/memfd:dsmfor segment") <= len(live)
