"""Who may write what: names, private copies, read-only arrivals, and no write lost unseen."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import functools
import os
import pickle
import re
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from numpy.lib.stride_tricks import sliding_window_view
from sklearn.linear_model import LinearRegression

import dsmfor as dsm
from dsmfor import arrays, segments

READ_ONLY = "read-only"


class Grid:
    """A class with state, as users have them."""

    limit = np.arange(3.0)

    def __init__(self) -> None:
        self.t = np.zeros(6)
        self.source = np.arange(6.0)
        self.steps = 0
        self.history: list[int] = []
        self.options = {"a": 1}
        self.seen: set[int] = set()
        self.inner = types.SimpleNamespace(
            u=np.zeros(4), deeper=types.SimpleNamespace(v=np.ones(2))
        )

    @property
    def doubled(self) -> np.ndarray:
        return self.t * 2

    @property
    def temperature(self) -> np.ndarray:
        return self.t

    @dsm.parallel(workers=2, shared=["self.t"])
    def heat(self) -> None:
        for i in dsm.prange(len(self.t)):
            self.t[i] += self.source[i] + 1

    @dsm.parallel(workers=2)
    def heat_in_vain(self) -> None:
        for i in dsm.prange(len(self.t)):
            self.t[i] += self.source[i]


class Slotted:
    __slots__ = ("a", "n")

    def __init__(self) -> None:
        self.a = np.zeros(3)
        self.n = 0


@dataclasses.dataclass
class Box:
    a: np.ndarray
    items: list[Any] = dataclasses.field(default_factory=list)


class Pair(NamedTuple):
    left: np.ndarray
    right: np.ndarray


# -- Dotted names -------------------------------------------------------------------------------


def test_an_attribute_that_is_named_is_written_in_place(engine: str) -> None:
    grid = Grid()
    t = grid.t
    grid.heat.using(engine=engine)()
    assert grid.t is t
    assert t.tolist() == [1, 2, 3, 4, 5, 6]


CONFIG = types.SimpleNamespace(grid=np.zeros(4), inner=types.SimpleNamespace(u=np.zeros(3)))


def test_a_path_may_be_long_and_begin_at_a_captured_variable(engine: str) -> None:
    CONFIG.grid[:] = CONFIG.inner.u[:] = 0

    @dsm.parallel(
        workers=2, engine=engine, shared=["CONFIG.grid", "CONFIG.inner.u", "g.inner.deeper.v"]
    )
    def kernel(g: Grid) -> None:
        for i in dsm.prange(3):
            CONFIG.grid[i] = CONFIG.inner.u[i] = i
        if dsm.rank() == 0:
            g.inner.deeper.v[:] = 7

    grid = Grid()
    kernel(grid)
    assert CONFIG.grid.tolist() == [0, 1, 2, 0]
    assert CONFIG.inner.u.tolist() == [0, 1, 2]
    assert grid.inner.deeper.v.tolist() == [7, 7]


def test_a_path_may_have_an_intent() -> None:
    grid = Grid()
    grid.t[:] = 5

    @dsm.parallel(workers=2, shared={"g.t": "out", "g.source": "in"})
    def kernel(g: Grid) -> bool:
        before = g.t.any()
        dsm.barrier()
        if dsm.rank() == 0:
            g.t[0] = 1
        return bool(before) or g.source.flags.writeable

    assert kernel(grid) == [False, False]
    assert grid.t.tolist() == [1, 0, 0, 0, 0, 0]


def test_a_property_that_gives_the_attribute_itself_can_be_named() -> None:
    grid = Grid()
    dsm.parallel(workers=2, shared=["g.temperature"])(lambda g: g.t.__setitem__(0, 4.0))(grid)
    assert grid.t[0] == 4


def test_a_property_that_makes_an_array_is_refused_and_says_why() -> None:
    kernel = dsm.parallel(workers=2, shared=["g.doubled"])(lambda g: None)
    with pytest.raises(ValueError, match=r"'g.doubled' .* no attribute holds that array"):
        kernel(Grid())


def test_a_path_to_nowhere_says_what_is_missing() -> None:
    kernel = dsm.parallel(workers=2, shared=["g.nothing"])(lambda g: None)
    with pytest.raises(ValueError, match=r"'g.nothing', and g is a Grid without .* 'nothing'"):
        kernel(Grid())
    with pytest.raises(ValueError, match=r"names 'h.t', and 'h' is neither a parameter"):
        dsm.parallel(shared=["h.t"])(lambda g: None)
    with pytest.raises(
        TypeError, match=r"'g\.steps' is a int, and only NumPy arrays can be shared"
    ):
        dsm.parallel(workers=2, shared=["g.steps"])(lambda g: None)(Grid())


@pytest.mark.parametrize("name", ["a[0]", "", "a.", "a b"])
def test_what_is_no_name_is_refused(name: str) -> None:
    for option in ("shared", "private"):
        with pytest.raises(ValueError, match=f"{option} must hold names such as 'A' or 'self.A'"):
            dsm.parallel(**{option: [name]})(lambda a: None)  # type: ignore[arg-type]


def test_an_attribute_in_shared_memory_is_live_named_or_not() -> None:
    grid = Grid()
    grid.t = dsm.zeros(6)
    grid.heat_in_vain()
    grid.heat()
    assert grid.t.tolist() == [1, 3, 5, 7, 9, 11]


# -- What is not named --------------------------------------------------------------------------

HOLDERS: dict[str, Callable[[np.ndarray], Any]] = {
    "a list": lambda a: [a],
    "a tuple": lambda a: (1, a),
    "a dict": lambda a: {"a": a},
    "a dict in a list": lambda a: [{"x": [a]}],
    "a dataclass": lambda a: Box(a),
    "a named tuple": lambda a: Pair(a, a),
    "an own object": lambda a: _with(Grid(), "t", a),
    "an object with slots": lambda a: _with(Slotted(), "a", a),
    "a deque": lambda a: collections.deque([a]),
    "a namespace": lambda a: types.SimpleNamespace(a=a),
    "an array of objects": lambda a: _objects(a),
}


def _with(thing: Any, name: str, value: Any) -> Any:
    setattr(thing, name, value)
    return thing


def _objects(a: np.ndarray) -> np.ndarray:
    holder = np.empty(1, object)
    holder[0] = a
    return holder


def dig(thing: Any) -> np.ndarray:
    """The array in a holder."""
    while type(thing) is not np.ndarray or thing.dtype == object:
        if isinstance(thing, (Grid, Slotted, Box, types.SimpleNamespace)):
            thing = thing.t if isinstance(thing, Grid) else thing.a
        elif isinstance(thing, dict):
            thing = next(iter(thing.values()))
        else:
            thing = thing[-1]
    return thing


@pytest.mark.parametrize("name", HOLDERS, ids=lambda name: name.replace(" ", "_"))
@pytest.mark.parametrize("captured", [False, True], ids=["argument", "capture"])
def test_an_array_inside_anything_arrives_read_only_and_once_for_all(
    name: str, captured: bool
) -> None:
    a = np.arange(6.0)
    holder = HOLDERS[name](a)

    def look(thing: Any) -> Any:
        found = dig(thing)
        return found.tolist(), found.flags.writeable, arrays.handle(found)

    if captured:
        values = dsm.parallel(workers=2)(lambda: look(holder))()
    else:
        values = dsm.parallel(workers=2)(look)(holder)
    assert values[0] == values[1]  # one memory
    content, writeable, handle = values[0]
    assert content == a.tolist()
    assert not writeable
    assert handle is not None

    def write(thing: Any) -> None:
        dig(thing)[0] = 1

    with pytest.raises(ValueError, match=READ_ONLY):
        dsm.parallel(workers=2)(write)(holder)
    assert a.tolist() == [0, 1, 2, 3, 4, 5]


def test_many_arrays_in_a_list_take_one_segment() -> None:
    items = [np.full(n, n) for n in range(1, 200)]
    before = len(segments.live())
    total = dsm.parallel(workers=2)(lambda items: (sum(map(np.sum, items)), len(segments.live())))
    (here, live), (there, _) = total(items)
    assert here == there == sum(n * n for n in range(1, 200))
    assert live <= before + 1


def test_an_array_inside_something_that_overlaps_a_shared_one_sees_its_writes() -> None:
    base = np.zeros(10)
    box = Box(base[2:8], [base[::-1]])
    windows = sliding_window_view(base, 3)

    @dsm.parallel(workers=2, shared=["a"])
    def kernel(a: np.ndarray, box: Box, windows: list[np.ndarray]) -> Any:
        for i in dsm.prange(10):
            a[i] = i
        return box.a.tolist(), box.items[0].tolist(), windows[0][4].tolist()

    for inside, backwards, window in kernel(base, box, [windows]):
        assert inside == [2, 3, 4, 5, 6, 7]
        assert backwards == [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]
        assert window == [4, 5, 6]
    assert base.tolist() == list(range(10))


def test_objects_of_packages_arrive_as_copies_that_may_be_written() -> None:
    matrix = scipy.sparse.random(9, 9, 0.3, format="csr", random_state=1)
    frame = pd.DataFrame({"a": np.arange(3.0), "b": list("xyz")})
    model = LinearRegression().fit(np.arange(4.0)[:, None], np.arange(4.0))
    rng = np.random.default_rng(3)
    copies = matrix.copy(), frame.copy(), model.coef_.copy()

    @dsm.parallel(workers=2)
    def kernel(things: dict[str, Any], held: list[Any]) -> Any:
        matrix, frame, model, rng = things["m"], held[0], things["l"], held[1]
        assert held[2] is frame
        matrix.data[:] = dsm.rank() + 1
        frame.loc[0, "a"] = 9.0
        model.coef_[:] = 2
        return matrix.sum(), frame["a"].sum(), model.predict([[1.0]])[0], rng.random()

    results = kernel({"m": matrix, "l": model}, [frame, rng, frame])
    assert [r[0] for r in results] == [matrix.nnz, 2 * matrix.nnz]
    assert results[0][1:3] == (12.0, 2.0)
    assert results[0][3] == results[1][3] == np.random.default_rng(3).random()
    assert (matrix != copies[0]).nnz == 0
    pd.testing.assert_frame_equal(frame, copies[1])
    assert (model.coef_ == copies[2]).all()


def test_an_array_of_a_package_object_that_the_kernel_names_too_is_one_array() -> None:
    x = np.arange(4.0)
    matrix = scipy.sparse.csr_matrix((x, [0, 1, 2, 3], [0, 4]), copy=False)
    assert matrix.data is x or np.shares_memory(matrix.data, x)
    matrix.data = x
    values = dsm.parallel(workers=2, shared=["x"])(
        lambda m, x: (m.data is x, dsm.single(x.__setitem__, 0, 8.0), m.data[0])
    )(matrix, x)
    assert values == [(True, None, 8.0)] * 2
    assert x[0] == 8


class Tagged(np.ndarray):
    """A subclass, as units packages have them."""


KINDS: dict[str, Callable[[], Any]] = {
    "a masked array": lambda: np.ma.array([1.0, 2.0], mask=[0, 1]),
    "a masked array without a mask": lambda: np.ma.array([1.0, 2.0]),
    "a matrix": lambda: np.asmatrix([[1.0, 2.0]]),
    "a record array": lambda: np.rec.array([(1, 2.0)], dtype=[("a", int), ("b", float)]),
    "a subclass": lambda: np.arange(3.0).view(Tagged),
    "an array of objects": lambda: np.array([1, "a"], object),
}


@pytest.mark.filterwarnings("ignore:the matrix subclass")
@pytest.mark.parametrize("name", KINDS, ids=lambda name: name.replace(" ", "_"))
def test_other_kinds_of_arrays_arrive_read_only_and_whole(name: str) -> None:
    there = KINDS[name]()

    @dsm.parallel(workers=2)
    def look(x: Any) -> Any:
        return type(x), repr(x)

    if name != "a masked array without a mask":  # gets one, which is read-only too
        assert look(there) == [(type(there), repr(there))] * 2
    for where in (0, ...):
        write = lambda x, where=where: x.__setitem__(where, x[where])  # noqa: E731
        with pytest.raises(ValueError, match=READ_ONLY) as caught:
            dsm.parallel(workers=2)(write)(there)
        assert "'x' arrived read-only" in caught.value.__notes__[0]
        dsm.parallel(workers=2, private=["x"])(write)(there)
    assert repr(there) == repr(KINDS[name]())


def test_the_mask_of_a_masked_array_is_read_only_too() -> None:
    with pytest.raises(ValueError, match=READ_ONLY):
        dsm.parallel(workers=2)(lambda m: m.__setitem__(0, np.ma.masked))(np.ma.array([1.0, 2.0]))


# -- The word that names the array --------------------------------------------------------------

GLOBAL = np.zeros(4)


def write_global() -> None:
    GLOBAL[1] = 1


def write_into(target: np.ndarray) -> None:
    np.add(target, 1, out=target)


@dsm.parallel(workers=2, shared=[])
def writes(how: str, a: np.ndarray, b: np.ndarray, grid: Grid, box: dict[str, np.ndarray]) -> None:
    part = b[1:3]
    if how == "a":
        a[0] = 1
    elif how == "b":
        write_into(part)
    elif how == "GLOBAL":
        write_global()
    elif how == "grid.t":
        grid.t += 1
    elif how == "grid.inner.u":
        u = grid.inner.u
        u[0] = 1
    elif how == "box['x']":
        box["x"].sort()
    elif how == "nothing of this":
        np.broadcast_to(1.0, 3)[0] = 2


@pytest.mark.parametrize("how", ["a", "b", "GLOBAL", "grid.t", "grid.inner.u", "box['x']"])
def test_a_failed_write_names_the_array_and_the_remedy(how: str) -> None:
    with pytest.raises(ValueError, match=READ_ONLY) as caught:
        writes(how, np.zeros(3), np.zeros(4), Grid(), {"x": np.arange(3.0)})
    note = caught.value.__notes__[0]
    assert note.startswith(f"{how!r} arrived read-only")
    assert "in private for a copy in every worker" in note
    assert ("Name it in shared" in note) == ("[" not in how)


def test_other_errors_get_no_such_note() -> None:
    with pytest.raises(ValueError, match=READ_ONLY) as caught:
        writes("nothing of this", np.zeros(3), np.zeros(4), Grid(), {"x": np.arange(3.0)})
    assert not any("arrived" in note for note in caught.value.__notes__)
    with pytest.raises(ValueError, match="shape") as caught:
        dsm.parallel(workers=2)(lambda a: np.zeros(2) + np.zeros(3))([np.zeros(3)])
    assert not any("arrived" in note for note in caught.value.__notes__)


# -- Private ------------------------------------------------------------------------------------

TABLE = np.arange(4.0)


def test_private_gives_every_worker_a_copy_fresh_each_call() -> None:
    a, b, c, d = (np.arange(4.0) for _ in range(4))
    scratch: list[int] = []

    @dsm.parallel(workers=3, private=["a", "b", "d", "rest", "TABLE", "scratch"])
    def kernel(a: Any, b: Any = TABLE, *rest: Any, d: Any = c) -> Any:
        for x in (a, b, *rest, d, TABLE):
            x[:] += dsm.rank() + 1
        scratch.append(1)
        dsm.barrier()
        return [x.tolist() for x in (a, b, *rest, d, TABLE)], len(scratch)

    for _ in range(2):
        for rank, (values, length) in enumerate(kernel(a, b, d)):
            assert values == [(np.arange(4.0) + rank + 1).tolist()] * 5
            assert length == 1
    for x in (a, b, c, d, TABLE):
        assert x.tolist() == [0, 1, 2, 3]
    assert scratch == []


def test_private_of_what_is_read_only_or_shared_is_a_copy_that_may_be_written() -> None:
    frozen = np.arange(3.0)
    frozen.flags.writeable = False
    live = dsm.ones(3)

    @dsm.parallel(workers=2, private=["x"])
    def kernel(x: np.ndarray) -> float:
        x += dsm.rank()
        dsm.barrier()
        return float(x.sum())

    assert kernel(frozen) == [3.0, 6.0]
    assert kernel(live) == [3.0, 6.0]
    assert live.tolist() == [1, 1, 1]


def test_one_array_may_be_shared_by_one_name_and_private_by_another() -> None:
    a = np.zeros(4)

    @dsm.parallel(workers=2, shared=["a"], private=["mine"])
    def kernel(a: np.ndarray, mine: np.ndarray) -> list[float]:
        mine[:] = -1
        for i in dsm.prange(4):
            a[i] = i
        return mine.tolist()

    assert kernel(a, a) == [[-1, -1, -1, -1]] * 2
    assert a.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("private", ["box.a", "box.items", "box"])
def test_an_array_inside_what_is_private_is_not_shared_by_another_name(private: str) -> None:
    a = np.zeros(3)
    kernel = dsm.parallel(workers=2, private=[private])(lambda a, box: None)
    turned = dsm.parallel(workers=2, private=[private])(lambda box, a: None)
    box = Box(a, [a])
    for call in (lambda: kernel(a, box), lambda: turned(box, a)):
        with pytest.raises(ValueError, match="name it in one of the two"):
            call()


def test_private_reaches_into_objects_and_by_dotted_names() -> None:
    grid = Grid()

    @dsm.parallel(
        workers=2, shared=["grid.source"], private=["grid.t", "grid.inner", "grid.history"]
    )
    def kernel(grid: Grid) -> Any:
        grid.t[:] = grid.inner.u[0] = grid.inner.deeper.v[0] = dsm.rank()
        grid.history.append(1)
        if dsm.rank() == 0:
            grid.source[0] = 5
        dsm.barrier()
        return grid.t.sum(), grid.inner.deeper.v[0], grid.history, grid.source[0]

    assert kernel(grid) == [(0.0, 0.0, [1], 5.0), (6.0, 1.0, [1], 5.0)]
    assert (grid.t.sum(), grid.history, grid.inner.u.sum(), grid.source[0]) == (0, [], 0, 5)


def test_private_of_everything_but_what_is_shared() -> None:
    live, a, grid, words = dsm.zeros(2), np.zeros(2), Grid(), ["x"]

    @dsm.parallel(workers=2, shared=["a"], private="*")
    def kernel(a: np.ndarray, b: np.ndarray) -> Any:
        a[dsm.rank()] = live[dsm.rank()] = 1 + dsm.rank()
        b[:] = TABLE[:] = grid.t[:] = dsm.rank()
        grid.steps += 1
        words.append("y")
        dsm.barrier()
        return b.sum(), TABLE.sum(), grid.t.sum(), words

    b = np.zeros(3)
    assert kernel(a, b) == [(0, 0, 0, ["x", "y"]), (3, 4, 6, ["x", "y"])]
    assert (a.tolist(), live.tolist(), b.tolist()) == ([1, 2], [1, 2], [0, 0, 0])
    assert (grid.steps, words, TABLE.tolist()) == (0, ["x"], [0, 1, 2, 3])


LARGE = (1024, 1024)


class Apart:
    """It lets its bytes stay out of the pickle."""

    def __init__(self, data: bytearray) -> None:
        self.data = data

    def __reduce_ex__(self, _protocol: Any) -> Any:
        return Apart, (pickle.PickleBuffer(self.data),)


BIG = {
    "rows": np.ones(LARGE),
    "columns": np.ones(LARGE, order="F"),
    "apart": np.ones((1024, 2048))[:, ::2],
    "big-endian": np.ones(LARGE, ">f8"),
    "records": np.ones(LARGE, [("a", "f8"), ("b", "i2")]),
    "dates": np.ones(LARGE, "M8[s]"),
    "read-only": np.broadcast_to(1.0, LARGE),
}


@pytest.mark.parametrize("array", BIG.values(), ids=BIG)
def test_a_large_private_array_is_each_workers_own(array: np.ndarray) -> None:
    kept: list[np.ndarray] = []

    @dsm.parallel(workers=2, private="*")
    def kernel(pair: list[np.ndarray]) -> Any:
        a, again = pair
        whole = bool((a == a[0, 0]).all())
        a[dsm.rank()] = a[-1, -1] = np.zeros((), a.dtype)
        dsm.barrier()
        kept.append(a)
        return whole, a is again, (a == a[-1, -1]).all(1).nonzero()[0].tolist(), a.dtype.str

    for _ in range(2):
        expected = [(True, True, [rank], array.dtype.str) for rank in range(2)]
        assert kernel([array, array]) == expected
    assert (array == array[0, 0]).all()
    assert kept == []


def test_a_large_private_array_that_a_worker_keeps_stays_as_it_was() -> None:
    @dsm.parallel(workers=2, private=["a"])
    def keep(a: np.ndarray) -> float:
        kept = vars(np).setdefault("kept_by_a_test", [])  # of a module that is nobody's to restore
        kept.append(a)
        a[0, 0] = dsm.rank()
        return float(sum(one[0, 0] * one[-1, -1] for one in kept))

    @dsm.parallel(workers=2)
    def drop() -> None:
        del np.kept_by_a_test  # type: ignore[attr-defined]

    try:
        assert keep(np.full(LARGE, 2.0)) == [0, 2]
        assert keep(np.full(LARGE, 3.0)) == [0, 5]
    finally:
        drop()


def test_a_large_private_view_of_what_is_cleared_has_the_old_values() -> None:
    live = dsm.ones(LARGE)

    @dsm.parallel(workers=2, shared={"new": "out"}, private=["old"])
    def kernel(new: np.ndarray, old: np.ndarray) -> None:
        for i in dsm.prange(len(new)):
            new[i] = new[i] + 2 * old[i]

    kernel(live, live[:, :])
    assert (live == 2).all()


def test_a_large_private_map_of_a_file_that_is_cleared_has_the_old_values(tmp_path: Path) -> None:
    np.full(LARGE, 7.0).tofile(tmp_path / "sevens")
    new, old = (np.memmap(tmp_path / "sevens", float, "r+", shape=LARGE) for _ in range(2))

    @dsm.parallel(workers=2, shared={"new": "out"}, private=["old"])
    def kernel(new: np.ndarray, old: np.ndarray) -> None:
        for i in dsm.prange(len(new)):
            new[i] = old[i] + 1

    kernel(new, np.asarray(old))
    assert (new == 8).all()


def test_what_a_users_class_pickles_apart_arrives_as_in_small() -> None:
    @dsm.parallel(workers=2, private="*")
    def kernel(box: Apart) -> str:
        return type(box.data).__name__

    assert kernel(Apart(bytearray(100))) == kernel(Apart(bytearray(1 << 22))) == ["bytearray"] * 2


def test_a_large_private_frame_is_each_workers_own() -> None:
    frame = pd.DataFrame({"a": np.arange(1e6), "b": np.arange(1e6)})

    @dsm.parallel(workers=2, private=["frame"])
    def kernel(frame: pd.DataFrame) -> float:
        frame.loc[0, "a"] = 10.0 + dsm.rank()
        dsm.barrier()
        return float(frame["a"].iloc[:2].sum())

    assert kernel(frame) == [11, 12]
    assert frame["a"].iloc[0] == 0


def test_a_name_in_both_is_refused() -> None:
    with pytest.raises(ValueError, match="'a' is both shared and private"):
        dsm.parallel(shared=["a"], private=["a"])(lambda a: None)
    with pytest.raises(TypeError, match="private must be a list of names, got the string 'a'"):
        dsm.parallel(private="a")(lambda a: None)
    with pytest.raises(ValueError, match="private names 'b', and 'b' is neither a parameter"):
        dsm.parallel(private=["b"])(lambda a: None)


# -- Intents of arrays that need no copy --------------------------------------------------------


def test_intents_hold_for_shared_memory_too() -> None:
    a, b = dsm.ones(3), dsm.ones(3)

    @dsm.parallel(workers=2, shared={"a": "in", "b": "out"})
    def kernel(a: np.ndarray, b: np.ndarray, write: bool) -> Any:
        if write:
            a[0] = 2
        return a.flags.writeable, b.tolist()

    assert kernel(a, b, False) == [(False, [0, 0, 0])] * 2
    assert b.tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match=READ_ONLY):
        kernel(a, b, True)
    assert a.tolist() == [1, 1, 1]


# -- Memory maps --------------------------------------------------------------------------------


@pytest.fixture
def mapped(tmp_path: Path) -> np.memmap:
    a = np.memmap(tmp_path / "a.bin", float, "w+", shape=(4, 500))
    a[:] = np.arange(2000.0).reshape(4, 500)
    return a


@dsm.parallel(workers=2, shared=["m"])
def negate(m: np.ndarray) -> str:
    for i in dsm.prange(len(m)):
        m[i] = -m[i]
    return type(m).__name__


VIEWS: dict[str, Callable[[np.memmap], np.ndarray]] = {
    "itself": lambda m: m,
    "a slice": lambda m: m[1:3, 5:17],
    "backwards": lambda m: m[::-1, ::-3],
    "transposed": lambda m: m.T,
    "a plain view": lambda m: np.asarray(m)[2:],
    "a reopened part": lambda m: np.memmap(m.filename, float, "r+", 8 * 700, (3, 100)),
    "in a list": lambda m: m[2],
}


@pytest.mark.parametrize("name", VIEWS, ids=lambda name: name.replace(" ", "_"))
def test_a_memory_map_is_live_and_never_copied(name: str, mapped: np.memmap, engine: str) -> None:
    view = VIEWS[name](mapped)
    expected = -np.array(view)
    whole = negate.using(engine=engine)(view)
    assert whole == [type(view).__name__] * (2 if engine == "process" else 1)
    assert (view == expected).all()
    assert negate.last_report is not None
    assert negate.last_report.bytes_in == negate.last_report.bytes_out == 0
    del view


def test_a_memory_map_inside_something_is_live_too(mapped: np.memmap) -> None:
    dsm.parallel(workers=2)(lambda box: dsm.single(box["m"][0].__setitem__, 0, 9.0))({"m": mapped})
    assert mapped[0, 0] == 9


def test_a_memory_map_for_reading_or_of_intent_in_arrives_read_only(mapped: np.memmap) -> None:
    mapped.flush()
    reading = np.memmap(mapped.filename, float, "r", shape=(4, 500))
    look = dsm.parallel(workers=2)(lambda m: (m.flags.writeable, float(m[3, 499])))
    assert look(reading) == [(False, 1999.0)] * 2
    assert dsm.parallel(workers=2, shared={"m": "in"})(lambda m: m.flags.writeable)(mapped) == [
        False,
        False,
    ]


def test_a_memory_map_of_intent_out_starts_zeroed(mapped: np.memmap) -> None:
    seen = dsm.parallel(workers=2, shared={"m": "out"})(lambda m: float(np.abs(m).sum()))(mapped)
    assert seen == [0, 0]
    assert not mapped.any()


@pytest.mark.parametrize("view", [lambda m: m[:1], lambda m: np.broadcast_to(m, (2, 4, 500))])
def test_what_a_memory_map_of_intent_in_brings_is_not_zeroed_by_one_of_intent_out(
    mapped: np.memmap, view: Callable[[np.memmap], np.ndarray]
) -> None:
    @dsm.parallel(workers=2, shared={"a": "in", "c": "out"})
    def kernel(c: np.ndarray, a: np.ndarray) -> float:
        return float(a.sum())

    part = view(mapped)
    wanted = float(part.sum())
    assert kernel(mapped, part) == [wanted, wanted]


@pytest.mark.parametrize("fate", ["deleted", "replaced", "copy on write"])
def test_a_memory_map_without_its_file_is_copied_as_a_plain_array(
    fate: str, mapped: np.memmap, tmp_path: Path
) -> None:
    if fate == "deleted":
        os.unlink(mapped.filename)
    elif fate == "replaced":
        (tmp_path / "b.bin").write_bytes(bytes(mapped.nbytes))
        os.replace(tmp_path / "b.bin", mapped.filename)
    else:
        mapped.flush()
        mapped = np.memmap(mapped.filename, float, "c", shape=(4, 500))
        mapped[0, 0] = 3
    expected = -np.array(mapped)
    view = np.asarray(mapped)
    negate(view)
    assert (mapped == expected).all()
    assert dsm.parallel(workers=2)(lambda m: float(m[1, 1]))(mapped) == [expected[1, 1]] * 2


# -- Lost writes --------------------------------------------------------------------------------


def change_attribute(grid: Grid) -> None:
    grid.steps += 1


def new_attribute(grid: Grid) -> None:
    grid.extra = 1  # type: ignore[attr-defined]


def delete_attribute(grid: Grid) -> None:
    del grid.steps


def replace_array(grid: Grid) -> None:
    grid.t = grid.t + 1


def append(grid: Grid) -> None:
    grid.history.append(1)


def add_key(grid: Grid) -> None:
    grid.options["b"] = 2


def change_key(grid: Grid) -> None:
    grid.options["a"] = 2


def add_member(grid: Grid) -> None:
    grid.seen.add(1)


def deep_attribute(grid: Grid) -> None:
    grid.inner.deeper.w = 1


CHANGES: dict[Callable[[Grid], None], str] = {
    change_attribute: "the attribute 'grid.steps'",
    new_attribute: "the attribute 'grid.extra'",
    delete_attribute: "the attribute 'grid.steps'",
    replace_array: "the attribute 'grid.t'",
    append: "the list 'grid.history'",
    add_key: "the dict 'grid.options'",
    change_key: "the dict 'grid.options'",
    add_member: "the set 'grid.seen'",
    deep_attribute: "the attribute 'grid.inner.deeper.w'",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_that_nobody_would_see_is_an_error(change: Callable[[Grid], None]) -> None:
    grid = Grid()
    with pytest.raises(dsm.LostWriteError) as caught:
        dsm.parallel(workers=2, shared=["grid.t"])(lambda grid: change(grid))(grid)
    text = str(caught.value)
    assert f"changed {CHANGES[change]}, and the change would be lost" in text
    (remedy,) = re.findall(r"private=\['(.+?)'\]", text)
    for private in (remedy, "grid"):
        dsm.parallel(workers=2, private=[private])(lambda grid: change(grid))(grid)
    dsm.parallel(workers=2, private="*")(lambda: change(grid))()
    assert vars(grid).keys() == vars(Grid()).keys()
    assert (grid.steps, grid.history, grid.options, grid.seen) == (0, [], {"a": 1}, set())


@pytest.mark.parametrize(
    ("value", "change", "what"),
    [
        ([1, 2], lambda x: x.reverse(), "the list 'x'"),
        ({1: 2}, lambda x: x.clear(), "the dict 'x'"),
        ({1}, lambda x: x.discard(1), "the set 'x'"),
        (bytearray(b"ab"), lambda x: x.__setitem__(0, 1), "the bytearray 'x'"),
        (collections.deque([1]), lambda x: x.pop(), "the deque 'x'"),
        (collections.Counter("a"), lambda x: x.update("b"), "the dict 'x'"),
        (([1],), lambda x: x[0].append(2), r"the list 'x\[0\]'"),
        ({"k": [1]}, lambda x: x["k"].append(2), r"the list \"x\['k'\]\""),
        (Slotted(), lambda x: setattr(x, "n", 3), "the attribute 'x.n'"),
    ],
    ids=repr,
)
def test_every_container_is_watched(value: Any, change: Callable[[Any], Any], what: str) -> None:
    with pytest.raises(dsm.LostWriteError, match=what):
        dsm.parallel(workers=2)(lambda x: change(x))(value)
    captured = value
    with pytest.raises(dsm.LostWriteError):
        dsm.parallel(workers=2)(lambda: change(captured))()


def test_a_change_that_is_undone_or_in_place_is_none() -> None:
    grid = Grid()

    @dsm.parallel(workers=2, shared=["grid.t"])
    def kernel(grid: Grid) -> None:
        grid.history.append(1)
        grid.history.pop()
        grid.t += 0
        grid.steps += 0

    kernel(grid)


class Lazy:
    @functools.cached_property
    def norm(self) -> float:
        return 2.0


def test_caches_of_objects_are_no_lost_writes() -> None:
    lazy, path = Lazy(), Path("/a") / "b"

    @dsm.parallel(workers=2)
    def kernel(lazy: Lazy, path: Path) -> Any:
        return lazy.norm, str(path), path.parts, hash(path) == hash(Path("/a/b"))

    assert kernel(lazy, path) == [(2.0, "/a/b", ("/", "a", "b"), True)] * 2
    with pytest.raises(dsm.LostWriteError, match=r"the attribute 'args\.n'"):
        dsm.parallel(workers=2)(lambda args: setattr(args, "n", 1))(argparse.Namespace(n=0))


def test_an_error_of_the_kernel_comes_before_a_lost_write() -> None:
    def kernel(x: list[int]) -> None:
        x.append(1)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        dsm.parallel(workers=2)(kernel)([])


# -- Assignments --------------------------------------------------------------------------------

count = 0


def bump() -> None:
    global count
    count += 1


def nested() -> None:
    def inner() -> None:
        global count
        count = 5

    inner()


def delete() -> None:
    global count
    del count


@pytest.mark.parametrize("function", [bump, nested, delete, lambda: bump()])
def test_assigning_a_global_is_refused_at_decoration(function: Callable[[], None]) -> None:
    with pytest.raises(dsm.LostWriteError, match=r"assigns the global variable 'count' in line \d"):
        dsm.parallel(function)
    dsm.parallel(workers=2, private=["count"])(function)()
    dsm.parallel(workers=2, private="*")(function)()
    assert count == 0


def test_assigning_a_nonlocal_is_refused_and_what_is_the_kernels_own_is_not() -> None:
    n = 0

    def kernel() -> None:
        nonlocal n
        n += 1

    with pytest.raises(dsm.LostWriteError, match="assigns the nonlocal variable 'n' in line"):
        dsm.parallel(kernel)
    assert dsm.parallel(workers=2, private=["n"])(kernel)() is None

    def right() -> int:
        m = 0

        def inner() -> None:
            nonlocal m
            m += 1

        inner()
        return m

    assert dsm.parallel(workers=2)(right)() == [1, 1]


def test_a_helper_that_comes_to_assign_is_refused_at_the_call() -> None:
    space: dict[str, Any] = {"dsm": dsm, "__name__": "__main__"}
    exec("n = 0\ndef helper(): pass\nkernel = dsm.parallel(workers=2)(lambda: helper())", space)
    space["kernel"]()
    exec("def helper():\n    global n\n    n = 1", space)
    with pytest.raises(dsm.LostWriteError, match="helper assigns the global variable 'n'"):
        space["kernel"]()


# -- What costs without need --------------------------------------------------------------------


def warned(call: Callable[[], Any]) -> list[warnings.WarningMessage]:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        call()
        call()
    return found


def test_a_large_capture_is_told_once_with_the_line_of_the_call() -> None:
    table = np.zeros(200_000)
    kernel = dsm.parallel(workers=2)(lambda: float(table[0]))
    (warning,) = warned(lambda: kernel())
    assert warning.category is dsm.PerformanceWarning
    assert "captures 'table' (type ndarray), 1.6 MB that are copied" in str(warning.message)
    assert "table = dsm.array(table)" in str(warning.message)
    assert warning.filename == __file__


@pytest.mark.parametrize("kind", ["a list", "an object", "an array in a dict"])
def test_large_captures_of_other_kinds_are_told_too(kind: str) -> None:
    value: Any = {
        "a list": list(range(700_000)),
        "an object": scipy.sparse.eye(200_000, format="csr"),
        "an array in a dict": {"a": np.zeros(200_000)},
    }[kind]
    kernel = dsm.parallel(workers=2)(lambda: value is None)
    (warning,) = warned(lambda: kernel())
    assert "captures 'value'" in str(warning.message)


def test_small_captures_arguments_and_shared_memory_are_not_told() -> None:
    small, shared, large = np.zeros(1000), dsm.zeros(200_000), np.zeros(200_000)
    kernel = dsm.parallel(workers=2)(lambda a: small[0] + shared[0] + a[0])
    assert warned(lambda: kernel(large)) == []


# -- The same rules in this process -------------------------------------------------------------


def test_a_serial_run_follows_the_intents_of_parameters() -> None:
    a, b, c, d = np.ones(3), np.ones(3), np.ones(3), [1]

    @dsm.parallel(shared={"a": "out", "b": "in"}, private=["d"])
    def kernel(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: list[int]) -> Any:
        d.append(2)
        a += 1
        return b.flags.writeable, c.flags.writeable

    assert kernel.serial(a, b, c, d) == [(False, False)]
    assert a.tolist() == [1, 1, 1]
    assert d == [1]
    assert b.flags.writeable
    with pytest.raises(TypeError, match="'a' is a list"):
        kernel.serial([1], b, c, d)


def test_out_beside_an_overlapping_in_starts_zeroed_where_nothing_comes_in() -> None:
    base = np.arange(1.0, 7.0)

    @dsm.parallel(workers=2, shared={"a": "in", "b": "out"})
    def kernel(a: np.ndarray, b: np.ndarray) -> Any:
        return a.tolist(), b.tolist()

    assert kernel(base[:4], base[2:]) == [([1, 2, 3, 4], [3, 4, 0, 0])] * 2


def test_the_remedy_fits_the_array() -> None:
    frozen, masked = np.zeros(3), np.ma.array([1.0])
    frozen.flags.writeable = False

    def write(x: np.ndarray) -> None:
        x[0] = 1

    for value, shared, words in [
        (frozen, None, "it is read-only in the caller too; pass one that may be written"),
        (np.zeros(3), {"x": "in"}, "shared names 'x' as 'in'; say 'inout'"),
        (dsm.zeros(3), {"x": "in"}, "shared names 'x' as 'in'; say 'inout'"),
        (masked, None, "a MaskedArray is not copied back; share its .data and .mask"),
        (np.zeros(3).view(Tagged), None, r"a Tagged is not copied back; pass np.asarray\(x\)"),
        (np.array([None]), None, "an array of objects is not copied back; convert it"),
    ]:
        with pytest.raises(ValueError, match=READ_ONLY) as caught:
            dsm.parallel(workers=2, shared=shared)(write)(value)
        assert re.search(words, caught.value.__notes__[0])


@pytest.mark.parametrize("memory", ["plain", "shared", "mapped"])
def test_out_beside_an_overlapping_in_is_alike_in_every_memory(
    memory: str, mapped: np.memmap
) -> None:
    base = {"plain": np.empty(6), "shared": dsm.empty(6), "mapped": mapped[0, :6]}[memory]
    base[:] = np.arange(1.0, 7.0)

    @dsm.parallel(workers=2, shared={"a": "in", "b": "out"})
    def kernel(a: np.ndarray, b: np.ndarray) -> Any:
        return a.tolist(), b.tolist()

    assert kernel(base[:4], base[2:]) == [([1, 2, 3, 4], [3, 4, 0, 0])] * 2


def test_a_memory_map_stays_live_when_everything_is_private(mapped: np.memmap) -> None:
    whole, part = mapped, np.asarray(mapped)[1]

    @dsm.parallel(workers=2, private="*")
    def kernel(whole: np.ndarray) -> None:
        if dsm.rank() == 0:
            whole[0, 0] = part[0] = -5

    kernel(whole)
    assert mapped[0, 0] == mapped[1, 0] == -5


@pytest.mark.parametrize("dtype", [">f8", ">M8[s]", [("a", ">i4"), ("b", "S3")]])
def test_what_goes_by_value_keeps_its_bytes(dtype: Any) -> None:
    values = np.ones(12, "i8").astype(dtype) if isinstance(dtype, str) else np.ones(12, dtype)

    @dsm.parallel(workers=2, private=["x", "y"])
    def kernel(x: np.ndarray, y: np.ndarray) -> Any:
        return x.dtype, x.tobytes(), y.tobytes(), x[::2], y[:0]

    x, y = values[::-2], values.reshape(3, 4).T
    for found, xs, ys, back, none in kernel(x, y):
        assert found == back.dtype == none.dtype == values.dtype
        assert found.str == values.dtype.str
        assert (xs, ys) == (x.tobytes(), y.tobytes())
        assert back.tobytes() == x[::2].tobytes()


def test_a_serial_run_knows_arrays_by_several_names_and_by_default() -> None:
    a, b, out = np.arange(4.0), np.arange(4.0), np.ones(4)

    @dsm.parallel(shared={"x": "in", "z": "out", "w": "out"})
    def kernel(x: np.ndarray, y: np.ndarray, z: np.ndarray, w: np.ndarray = out) -> Any:
        return x.tolist(), z.tolist(), w.tolist(), y.flags.writeable, z.flags.writeable

    (twice,) = kernel.serial(a, b, a)  # in and out: both
    assert twice == ([0, 1, 2, 3], [0, 1, 2, 3], [0, 0, 0, 0], False, True)
    (beside,) = kernel.serial(a[:3], b, a[1:])
    assert beside[:2] == ([0, 1, 2], [1, 2, 0])
    assert out.tolist() == [0, 0, 0, 0]


def test_a_serial_run_shares_what_is_named_inside_what_is_private() -> None:
    box = Box(np.zeros(3), [1])

    @dsm.parallel(shared=["box.a"], private="*")
    def kernel(box: Box) -> None:
        box.a[0] = 5
        box.items.append(2)

    kernel.serial(box)
    assert (box.a.tolist(), box.items) == ([5, 0, 0], [1])
