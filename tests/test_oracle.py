"""Random calls against a serial oracle: what a caller's memory is after a call, bit for bit.

A case is a few base arrays, views of them that overlap in every way that NumPy knows, a route by
which each view reaches the kernel (argument, default, captured variable, ...), what `shared` says,
and a program: steps that a team shares out by some loop and schedule. Programs are free of races by
construction: in a step, an element that one iteration writes is touched by no other. So one result
is right, and the oracle computes it by running the program serially on copies of the bases.

The oracle knows dsmfor's rules (which view arrives read-only, zeroed or private) from the words of
the documentation alone, and NumPy; it shares no code with dsmfor. What must agree: every byte of
every base, those between and around the views too; what each rank saw and returned; the type of the
error; and that the caller's own array objects are as they were.

``make soak`` runs 10,000 cases (``DSM_SOAK_CASES``) from a seed that it prints (``DSM_SOAK_SEED``).
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import math
import os
import random
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable
from itertools import combinations, product
from typing import Any, NamedTuple

import hypothesis
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import as_strided, sliding_window_view

import dsmfor as dsm

DEADLINE = 20.0
MARGIN = 16  # bytes around a base, which must stay what they are
MOST_ROWS = 24  # iterations of a step

DTYPES = [
    "?", "i1", "u2", "<i4", ">i4", "i8", "f2", "f4", ">f8", "f8", "c8", ">c16", "M8[s]", ">M8[D]",
    "m8[ms]", "S3", "U2", ">U1", "V5",
    [("x", "f8"), ("y", ">i2"), ("z", "S2")],
    [("p", "f4", (2,)), ("q", "?"), ("r", [("s", "u1"), ("t", "M8[D]")])],
    {"names": ["a", "b"], "formats": ["u1", ">i4"], "offsets": [1, 4], "itemsize": 12},
]  # fmt: skip

SCHEDULES: list[dict[str, Any]] = [
    {}, {}, {"schedule": "static"}, {"schedule": "static", "chunk": 2}, {"chunk": 3},
    {"schedule": "random"}, {"schedule": "random,3", "seed": 4}, {"schedule": "dynamic"},
    {"schedule": dsm.Dynamic(5)}, {"schedule": "guided"}, {"schedule": "guided,2"},
    {"schedule": "auto"}, {"schedule": "runtime"},
]  # fmt: skip

LOOPS = [
    "prange",
    "stepped",
    "down",
    "shape",
    "pslices",
    "ptiles",
    "split",
    "comprehension",
    "nested",
]


class CaseError(Exception):
    """What a kernel of a case raises."""


# -- Programs: what kernel and oracle both run --------------------------------------------------
#
# A step is (loop, choices, extent, rows); iteration i of its loop performs rows[i], which is
# (what, target, at, source, from, k): arrays by name, positions as tuples.

Row = tuple[str, str, tuple[int, ...], str, tuple[int, ...], int]
Step = tuple[str, dict[str, Any], tuple[int, int], tuple[Row, ...]]


def perform(row: Row, arrays: dict[str, Any]) -> int:
    """One iteration."""
    what, target, at, source, where, k = row
    if what == "nothing":
        return 0
    if what == "raise":
        raise CaseError(k)
    if what == "cancel":
        dsm.cancel(k)
        return 0
    if what == "copy":
        arrays[target][at] = arrays[source][where]
    else:
        if what == "digest":
            k += digest(arrays[source][where]) % 97
        arrays[target][at] = value_of(arrays[target].dtype, k)
    return 1


def digest(value: Any) -> int:
    """A number for what an array holds, whatever lies between its fields and elements."""
    array = np.asarray(value)
    if array.dtype.names:
        return zlib.crc32(repr([digest(array[name]) for name in array.dtype.names]).encode())
    return zlib.crc32(array.tobytes())


def value_of(dtype: np.dtype, k: int) -> Any:
    """A value of a dtype, another for most other k."""
    if dtype.names:
        return tuple(value_of(dtype[name], k + n) for n, name in enumerate(dtype.names))
    if dtype.subdtype:
        base, shape = dtype.subdtype
        return np.full(shape, value_of(base, k), base)
    kind = dtype.kind
    if kind == "b":
        return k % 2 == 1
    if kind in "Mm":
        return np.array(k, "i8").view(f"{kind}8[{np.datetime_data(dtype)[0]}]")[()]
    if kind == "S":
        return str(k).encode()
    if kind == "U":
        return str(k)
    if kind == "V":
        return np.void(bytes([k % 256] * dtype.itemsize))
    return k % 101 + (0.5j if kind == "c" else 0.5 if kind == "f" else 0)


def work(arrays: dict[str, Any], steps: tuple[Step, ...], slots: Any, ending: str) -> Any:
    """The kernels' body: each step by its loop, then what this rank has seen."""
    mine, heard = 0, []
    for loop, choices, extent, rows in steps:
        n = len(rows)
        if loop == "prange":
            for i in dsm.prange(n, **choices):
                if rows[i][0] == "break":
                    break
                mine += perform(rows[i], arrays)
        elif loop == "stepped":
            for i in dsm.prange(7, 7 + 3 * n, 3, **choices):
                mine += perform(rows[i // 3 - 2], arrays)
        elif loop == "down":
            for i in dsm.prange(n - 1, -1, -1, **choices):
                mine += perform(rows[i], arrays)
        elif loop == "shape":
            for a, b in dsm.prange(extent, **choices):
                if a * extent[1] + b < n:
                    mine += perform(rows[a * extent[1] + b], arrays)
        elif loop == "pslices":
            for s in dsm.pslices(n, **choices):
                mine += sum(perform(row, arrays) for row in rows[s])
        elif loop == "ptiles":
            for s, t in dsm.ptiles(extent, (2, 3), **choices):
                for a, b in product(range(extent[0])[s], range(extent[1])[t]):
                    if a * extent[1] + b < n:
                        mine += perform(rows[a * extent[1] + b], arrays)
        elif loop == "split":
            for i in dsm.split(n, **choices):
                mine += perform(rows[i], arrays)
        elif loop == "comprehension":
            mine += sum([perform(rows[i], arrays) for i in dsm.prange(n, **choices)])
        elif loop == "nested":
            for i in dsm.prange(n, **choices):
                for j in dsm.prange(i, i + 1):
                    mine += perform(rows[j], arrays)
        else:  # every rank does it all, each in its own copy
            for row in rows:
                perform(row, arrays)
        if choices.get("nowait") or loop in ("split", "each"):
            dsm.barrier()
        if any(row[0] == "cancel" for row in rows):
            heard.append(dsm.cancelled())
    if ending == "diverge" and dsm.rank() == 0:
        dsm.barrier()
    slots[dsm.rank()] += mine
    with dsm.critical("count"):
        slots[-1] += 1
    dsm.barrier()
    if ending == "none":
        return None
    return report(arrays), heard


def report(arrays: dict[str, np.ndarray]) -> list[Any]:
    """What arrays are, and hold."""
    return [
        (name, a.shape, *((a.flags.writeable, repr(a.dtype), digest(a)) if a.size else ()))
        for name, a in sorted(arrays.items())
    ]


# -- Views ----------------------------------------------------------------------------------------

Op = tuple[Any, ...]


def apply(view: np.ndarray, op: Op) -> np.ndarray:
    """One step from a view to a view of it."""
    what, *args = op
    if what == "index":
        return view[args[0]]
    if what == "field":
        return view[args[0]]
    if what == "transpose":
        return view.transpose(args[0])
    if what == "reshape":
        return view.reshape(args[0])
    if what == "broadcast":
        return np.broadcast_to(view, args[0])
    if what == "windows":
        return sliding_window_view(view, args[0], axis=-1, writeable=args[1])
    if what == "strided":
        start, shape, strides = args
        return as_strided(view[start:], shape, strides)
    if what == "part":
        return getattr(view, args[0])
    if what == "bytes":
        return view.view("u1")
    assert what == "locked"
    view = view.view()
    view.flags.writeable = False
    return view


@st.composite
def ops(draw: st.DrawFn, view: np.ndarray) -> Op:
    """An operation that gives a view of `view`, which is an array and not too large."""
    choices: list[str] = ["index", "index", "transpose", "newaxis", "locked"]
    if view.flags.c_contiguous and view.size:
        choices += ["reshape"]
    if view.size <= 60:
        choices += ["broadcast"]
    if view.ndim and view.shape[-1] >= 2 and view.size <= 100:
        choices += ["windows"] * 2
    if view.ndim == 1 and view.size >= 3:
        choices += ["strided"] * 2
    if view.dtype.names:
        choices += ["field"] * 4
    if view.dtype.kind == "c":
        choices += ["part"] * 3
    if view.dtype.kind in "iu" and view.ndim and view.flags.c_contiguous:
        choices += ["bytes"]
    what = draw(st.sampled_from(choices))
    integers = st.integers
    if what == "index":
        index: list[Any] = []
        for extent in view.shape:
            low = draw(integers(0, extent))
            step = draw(st.sampled_from([1, 1, 2, 3, -1, -2]))
            high = draw(integers(low, extent))
            cut = slice(low, high, step)
            if step < 0:
                cut = slice(high - 1 if high else 0, low - 1 if low else None, step)
            if extent and draw(integers(0, 9)) == 0:
                cut = draw(integers(0, extent - 1))
            index.append(cut)
        return what, (*index, ...)
    if what == "newaxis":
        at = draw(integers(0, view.ndim))
        return "index", (*[slice(None)] * at, None, ...)
    if what == "transpose":
        return what, tuple(draw(st.permutations(range(view.ndim))))
    if what == "reshape":
        factor = draw(st.sampled_from([k for k in range(1, view.size + 1) if not view.size % k]))
        return what, draw(st.sampled_from([(-1,), (factor, -1), (-1, 1, factor)]))
    if what == "broadcast":
        return what, (draw(integers(1, 3)), *view.shape)
    if what == "windows":
        return what, draw(integers(1, min(4, view.shape[-1]))), draw(st.booleans())
    if what == "strided":
        inner = draw(integers(1, 3))
        most = view.size - inner
        steps, start = draw(integers(0, 3)), draw(integers(0, most))
        outer = draw(integers(1, 1 + min(5, (most - start) // steps if steps else 5)))
        stride = view.strides[0]
        if draw(st.booleans()):
            return what, start, (outer, inner), (steps * stride, stride)
        return what, start, (inner, outer), (stride, steps * stride)
    if what == "field":
        names = view.dtype.names
        if draw(integers(0, 4)) == 0:
            return what, list(draw(st.permutations(names)))[: draw(integers(1, len(names)))]
        return what, draw(st.sampled_from(names))
    if what == "part":
        return what, draw(st.sampled_from(["real", "imag"]))
    return (what,)


class Base(NamedTuple):
    """A base array: the whole memory of some views."""

    dtype: Any
    shape: tuple[int, ...]
    order: str
    offset: int  # of the array in its bytes; not always aligned
    where: str  # "plain", "shared" or "map"
    seed: int

    def make(self, where: str = "plain", path: str = "") -> tuple[np.ndarray, np.ndarray]:
        """All bytes, and the array in them."""
        dtype = np.dtype(self.dtype)
        count = math.prod(self.shape)
        rng = np.random.default_rng(self.seed)
        raw = rng.integers(0, 256, 2 * MARGIN + count * dtype.itemsize, "u1")
        if where == "shared":
            raw = dsm.array(raw)
        elif where == "map":
            mapped = np.memmap(path, "u1", "w+", shape=raw.shape)
            mapped[:] = raw
            raw = mapped
        order: Any = self.order
        array = np.ndarray(self.shape, dtype, raw, self.offset, order=order)
        for position, k in zip(np.ndindex(self.shape), rng.integers(0, 999, count), strict=True):
            array[position] = value_of(dtype, int(k))
        return raw, array


class View(NamedTuple):
    """A view of a base, as it is given to the kernel."""

    base: int
    chain: tuple[Op, ...]
    twin: str  # the name of the view that is the same object; "" for none

    def make(self, array: np.ndarray) -> np.ndarray:
        array = array[...]  # an object of its own
        for op in self.chain:
            array = apply(array, op)
        return array


def places(view: np.ndarray, raw: np.ndarray) -> np.ndarray:
    """Offset in `raw` of each element of a view."""
    at = np.array(view.__array_interface__["data"][0] - raw.__array_interface__["data"][0])
    for extent, stride in zip(view.shape, view.strides, strict=True):
        at = np.add.outer(at, np.arange(extent) * stride)
    return at


def overlap(a: np.ndarray, b: np.ndarray) -> bool:
    return a is b or np.shares_memory(a, b)


def covered(at: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The bytes of elements, without what lies between their fields."""
    return (at.reshape(-1, 1) + bytes_of(dtype)).reshape(-1)


def bytes_of(dtype: np.dtype) -> np.ndarray:
    """Offsets within an element."""
    if not dtype.names:
        return np.arange(dtype.itemsize)
    fields = [dtype.fields[name] for name in dtype.names]
    return np.concatenate([field[1] + bytes_of(field[0]) for field in fields])


# -- Cases ----------------------------------------------------------------------------------------


class Case(NamedTuple):
    """A kernel, its arguments and captures, and how it is called."""

    bases: tuple[Base, ...]
    views: dict[str, View]  # by the name that the kernel knows it by, which tells its route
    steps: tuple[Step, ...]
    shared: Any
    private: Any
    options: dict[str, Any]
    ending: str  # "values", "none", "diverge", "lose"
    calls: int


NAMES = [
    "p0", "p1", "p2", "rest0", "rest1", "k0", "k1", "d0", "d1", "x0", "c0", "c1", "G0", "G1", "H0",
    "items0", "items1", "pair0", "table0", "box0", "box1", "model0", "HELD0",
]  # fmt: skip
"""Positional, ``*args``, keyword-only, default, ``**extra``, closure cell, global of the kernel,
global of a helper; and inside a list, a tuple, a dict, a dataclass, an object in an object, and an
object that is a global."""

DOTTED = {"box0": "box.a", "box1": "box.b", "model0": "model.inner.a", "HELD0": "HELD.a"}
CAPTURED = ("c", "G", "H")


def is_inside(name: str) -> bool:
    """Whether a container or object has it."""
    return name.startswith(("items", "pair", "table", "box", "model", "HELD"))


def spoken(name: str) -> str | None:
    """What `shared` calls a name; None if it cannot."""
    if name.startswith("rest"):
        return "rest"
    if is_inside(name):
        return DOTTED.get(name)
    return None if name == "x0" else name


def root_of(name: str) -> str:
    """The variable that leads to an array."""
    return name.rstrip("0123456789") if is_inside(name) or name.startswith("rest") else name


@dataclasses.dataclass
class Box:
    """What users put arrays into."""

    a: Any = None
    b: Any = None


class Model:
    """As users write them."""

    def __init__(self, a: Any) -> None:
        self.inner = Box(a)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    integers, sampled = st.integers, st.sampled_from
    bases = tuple(
        Base(
            draw(sampled(DTYPES)),
            tuple(draw(st.lists(integers(1, 7), min_size=1, max_size=3)))
            if draw(integers(0, 11))
            else draw(sampled([(), (0,), (3, 0), (150,), (1, 1, 1, 2)])),
            draw(sampled("CCF")),
            draw(sampled([MARGIN, MARGIN, 8, 5])),
            draw(sampled(["plain"] * 5 + ["shared"] * 2 + ["map"])),
            draw(integers(0, 1 << 30)),
        )
        for _ in range(draw(integers(1, 3)))
    )
    made = [base.make() for base in bases]
    views: dict[str, View] = {}
    arrays: dict[str, np.ndarray] = {}
    names = draw(st.lists(sampled(NAMES), min_size=1, max_size=6, unique=True))
    if "rest1" in names and "rest0" not in names:
        names[names.index("rest1")] = "rest0"
    for name in names:
        if views and draw(integers(0, 5)) == 0:
            twin = draw(sampled(sorted(views)))
            views[name] = View(views[twin].base, views[twin].chain, views[twin].twin or twin)
            arrays[name] = arrays[twin]
            continue
        b = draw(integers(0, len(bases) - 1))
        array, chain = made[b][1], []
        for _ in range(draw(integers(0, 4))):
            op = draw(ops(array))
            array = apply(array, op)
            chain.append(op)
        views[name], arrays[name] = View(b, tuple(chain), ""), array
    shared: Any = None
    private: Any = ()
    if draw(integers(0, 2)) == 0:
        private = draw(privates(views, arrays))
    if kind := draw(sampled([None, None, list, dict, dict])):
        known = {s for name in views if root_of(name) not in private and (s := spoken(name))}
        known = sorted({*known, "slots"} - {*private})
        intents = ["out", "inout", "in", "out", "inout", ""]  # "": is left out
        shared = {s: "inout" if s == "slots" else draw(sampled(intents)) for s in known}
        shared = {s: intent for s, intent in shared.items() if intent}
        shared = shared if kind is dict else list(shared)
    options: dict[str, Any] = {"workers": draw(sampled([1, 2, 2, 3, 4])), "timeout": DEADLINE}
    if draw(st.booleans()):
        options |= draw(sampled(SCHEDULES[2:-2]))  # a loop may add a chunk, which auto refuses
    ending = draw(sampled(["values"] * 6 + ["none", "none", "diverge", "lose"]))
    if ending == "lose" and private and private != "*" and draw(st.booleans()):
        private = [*private, "scratch"]
    case = Case(bases, views, (), shared, private, options, ending, draw(sampled([1, 1, 2, 3])))
    steps = [draw(programs(case, arrays, made)) for _ in range(draw(integers(1, 3)))]
    for number, (loop, choices, extent, rows) in enumerate(steps[:-1]):
        if any(row[0] == "break" for row in rows):  # its rank goes on, to the next barrier
            steps[number] = loop, choices, extent, tuple(("nothing", *row[1:]) for row in rows)
    return case._replace(steps=tuple(steps))


@st.composite
def privates(draw: st.DrawFn, views: dict[str, View], arrays: dict[str, np.ndarray]) -> Any:
    """What `private` says: copies of no two arrays that overlap, for copies do not."""
    everything = draw(st.integers(0, 2)) == 0
    chosen: list[str] = []
    taken: list[str] = []
    for name in sorted(views):
        word = root_of(name) if name.startswith(("items", "pair", "table")) else spoken(name)
        if word is None or not (everything or draw(st.booleans())):
            continue
        group = [n for n in views if root_of(n) == word or spoken(n) == word]
        others = views if is_inside(name) else taken
        clash = any(overlap(arrays[n], arrays[m]) for n in group for m in others if n != m)
        clash |= any(overlap(arrays[n], arrays[m]) for n, m in combinations(group, 2))
        if not clash and word not in chosen:
            chosen.append(word)
            taken += group
    return "*" if everything and len(taken) == len(views) else chosen


@st.composite
def programs(
    draw: st.DrawFn,
    case: Case,
    arrays: dict[str, np.ndarray],
    made: list[tuple[np.ndarray, np.ndarray]],
) -> Step:
    """A step without races: no element that an iteration writes is touched by another."""
    integers, sampled = st.integers, st.sampled_from
    views, names = case.views, sorted(case.views)
    oracle = Oracle(case)
    intents = oracle.intents()
    writable = [name for name in names if intents.get(name) != "in"]
    target = draw(sampled(writable if writable and draw(integers(0, 7)) else names))
    alone = intents.get(target) == "private"  # every rank has its own, and does it all
    array, raw = arrays[target], made[views[target].base][0]
    depth = draw(integers(0, array.ndim)) if draw(st.booleans()) else array.ndim
    units = list(np.ndindex(array.shape[:depth]))[:200] if array.size else []
    rng = random.Random(draw(integers(0, 1 << 20)))
    rng.shuffle(units)
    del units[rng.randrange(MOST_ROWS) if draw(st.booleans()) else MOST_ROWS :]

    at = places(array, raw)
    owner = np.full(len(raw), -1)
    rows: list[Row] = []
    for i, unit in enumerate(units):
        touched = covered(at[unit], array.dtype)
        free = alone or ((owner[touched] == -1) | (owner[touched] == i)).all()
        if free:
            owner[touched] = i
        rows.append(("set" if free else "nothing", target, unit, target, unit, rng.randrange(500)))
    for i, (what, _, unit, _, _, k) in enumerate(rows):
        if what == "set" and rng.randrange(4):
            source = rng.choice(names)
            other = arrays[source]
            if not other.size:
                continue
            where = tuple(rng.randrange(extent) for extent in other.shape)
            detached = alone or intents.get(source) == "private"
            if views[source].base == views[target].base and not detached:
                owners = owner[covered(places(other, raw)[where], other.dtype)]
                if not ((owners == -1) | (owners == i)).all():
                    continue
            what = "copy" if other.dtype == array.dtype else "digest"
            rows[i] = (what, target, unit, source, where, k)
    loop = "each" if alone else draw(sampled(LOOPS))
    special = draw(integers(0, 60))
    if rows and special in (7, 23, 31):
        event = draw(
            sampled(["raise", "cancel", "break"] if loop == "prange" else ["raise", "cancel"])
        )
        if loop not in ("split", "each") or event == "raise":
            at_row = draw(integers(0, len(rows) - 1))
            rows = (
                [("nothing", *row[1:]) for row in rows]
                if event != "raise" or special == 7
                else rows
            )
            rows[at_row] = (event, *rows[at_row][1:])
    choices = dict(draw(sampled(SCHEDULES)))
    if loop == "each":
        choices = {}
    elif loop == "split":
        choices = dict(draw(sampled([c for c in SCHEDULES if not is_claimed(c)])))
        choices.setdefault("schedule", "static")
    elif draw(integers(0, 3)) == 0 and all(row[0] != "cancel" for row in rows):
        choices["nowait"] = True
    width = draw(integers(1, 5))
    return loop, choices, (-(-len(rows) // width), width), tuple(rows)


def is_claimed(choices: dict[str, Any]) -> bool:
    schedule = choices.get("schedule", "static")
    return not isinstance(schedule, str) or schedule.startswith(("dyn", "gui", "auto", "run"))


# -- The oracle -----------------------------------------------------------------------------------


class Verdict(NamedTuple):
    """What one call must come to."""

    errors: set[type[BaseException]]  # any of them; none: it returns
    seen: list[Any]
    heard: list[Any]
    count: int
    loose: list[np.ndarray]  # per base: bytes before the step that raised; either value is right


class Refused(Exception):
    """The call is refused before anything runs."""


class Oracle:
    """The caller's memory, in a world where kernels run serially.

    Parameters
    ----------
    case : Case
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        self.made = [base.make() for base in case.bases]
        self.views = {name: v.make(self.made[v.base][1]) for name, v in case.views.items()}

    def said(self, name: str) -> str:
        """What the user says of an array, by its name; "" for nothing."""
        case, word = self.case, spoken(name)
        if case.private != "*" and (word in case.private or root_of(name) in case.private):
            return "private"
        if case.shared is None:
            if is_inside(name) or name.startswith(CAPTURED):
                return ""
            return "inout" if self.views[name].flags.writeable else "in"
        if word is None or word not in case.shared:
            return ""
        wanted = case.shared[word] if isinstance(case.shared, dict) else "inout"
        if wanted != "in" and not self.views[name].flags.writeable:
            raise Refused
        return wanted

    def intents(self) -> dict[str, str]:
        """How the kernel gets each array."""
        try:
            said = {name: self.said(name) for name in self.views}
        except Refused:
            return {}
        found = {}
        for name, view in self.views.items():
            twin = self.case.views[name].twin or name
            same = [n for n, v in self.case.views.items() if twin in {n, v.twin}]
            theirs = {said[n] for n in same} - {"", "private"}  # one object has one intent
            if said[name] == "private":
                found[name] = "private"
            elif theirs:
                found[name] = theirs.pop() if len(theirs) == 1 else "inout"
            elif self.case.bases[self.case.views[name].base].where != "plain":
                found[name] = "inout" if view.flags.writeable else "in"
            else:
                found[name] = "private" if self.case.private == "*" else "in"
        return found

    def call(self) -> Verdict:
        """Run the program once."""
        intents = self.intents()
        if not intents:
            return Verdict({ValueError}, [], [], 0, [])
        arrays = {n: v.copy() for n, v in self.views.items() if intents[n] == "private"}
        self.zero(intents)
        for name, view in self.views.items():
            if name not in arrays:
                arrays[name] = view.view()
                if intents[name] == "in":
                    arrays[name].flags.writeable = False
        return self.run(arrays)

    def zero(self, intents: dict[str, str]) -> None:
        """What "out" arrays cover starts zeroed, but for what another view brings in."""
        before = [raw.copy() for raw, _ in self.made]
        kept = [np.zeros(len(raw), bool) for raw, _ in self.made]
        for name, intent in intents.items():
            view, b = self.views[name], self.case.views[name].base
            if intent == "private":
                continue
            if intent == "out":
                view[...] = np.zeros((), view.dtype)
            else:
                kept[b][covered(places(view, self.made[b][0]), view.dtype)] = True
        for (raw, _), old, keep in zip(self.made, before, kept, strict=True):
            raw[keep] = old[keep]

    def run(self, arrays: dict[str, np.ndarray]) -> Verdict:
        heard, count, errors = [], 0, set()
        for loop, _, _, rows in self.case.steps:
            before = [raw.copy() for raw, _ in self.made]
            for row in rows:
                if row[0] == "raise":
                    errors.add(CaseError)
                elif row[0] == "break":
                    errors.add(dsm.RegionError)
                elif row[0] == "cancel":
                    heard.append(row[-1])
                else:
                    try:
                        done = perform(row, arrays)
                        count += done if loop != "each" else 0
                    except ValueError:
                        errors.add(ValueError)
            if errors:
                return Verdict(errors, [], [], 0, before)
        if self.case.ending == "diverge" and self.case.options["workers"] > 1:
            return Verdict({dsm.RegionError}, [], [], 0, [])
        if self.case.ending == "lose" and self.case.private != "*":
            if "scratch" not in self.case.private:
                return Verdict({dsm.LostWriteError}, [], [], 0, [])
        return Verdict(set(), report(arrays), heard, count, [])


# -- The real thing -------------------------------------------------------------------------------

G0 = G1 = H0 = HELD = None


def of_the_helper() -> Any:
    return H0


def make_kernel(case: Case, values: dict[str, Any]) -> Callable[..., Any]:
    """A kernel to which each value comes by the route that its name tells."""
    c0, c1 = values.get("c0"), values.get("c1")
    default0, default1 = values.get("d0"), values.get("d1")
    steps, ending, names = case.steps, case.ending, tuple(case.views)
    scratch: list[int] = []
    globals().update({name: values.get(name) for name in ("G0", "G1", "H0")})
    globals().update(HELD=Box(values.get("HELD0")))

    def kernel(
        p0, p1, p2, *rest, slots, items, pair, table, box, model,
        k0=None, k1=None, d0=default0, d1=default1, **extra,
    ):  # fmt: skip
        found = {
            "p0": p0, "p1": p1, "p2": p2, "k0": k0, "k1": k1, "d0": d0, "d1": d1,
            "c0": c0, "c1": c1, "G0": G0, "G1": G1, "H0": of_the_helper(),
            "items0": items[0], "items1": items[1],
            "pair0": pair[0], "table0": table["a"], "box0": box.a, "box1": box.b,
            "model0": model.inner.a, "HELD0": HELD.a, **extra,
            **{f"rest{n}": value for n, value in enumerate(rest)},
        }  # fmt: skip
        if ending == "lose":
            scratch.append(dsm.rank())
        return work({name: found[name] for name in names}, steps, slots, ending)

    return dsm.parallel(shared=case.shared, private=case.private, **case.options)(kernel)


def call(kernel: Callable[..., Any], values: dict[str, Any], slots: Any) -> Any:
    positional = [values.get(name) for name in ("p0", "p1", "p2")]
    positional += [values[name] for name in ("rest0", "rest1") if name in values]
    keywords = {name: values[name] for name in ("k0", "k1", "x0") if name in values}
    return kernel(
        *positional,
        slots=slots,
        items=[values.get("items0"), values.get("items1")],
        pair=(values.get("pair0"), 1),
        table={"a": values.get("table0")},
        box=Box(values.get("box0"), values.get("box1")),
        model=Model(values.get("model0")),
        **keywords,
    )


def identity(values: dict[str, np.ndarray]) -> list[Any]:
    """What a call must leave alone in the caller's array objects."""
    return [
        (name, id(a), a.__array_interface__["data"], a.shape, a.strides, str(a.dtype), str(a.flags))
        for name, a in values.items()
    ]


def check(case: Case) -> None:
    """Call the kernel, and the oracle, as often as the case says; compare."""
    with contextlib.ExitStack() as stack:
        stack.callback(globals().update, G0=None, G1=None, H0=None, HELD=None)
        paths = [""] * len(case.bases)
        if any(base.where == "map" for base in case.bases):
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            paths = [f"{folder}/{number}" for number in range(len(case.bases))]
        made = [base.make(base.where, path) for base, path in zip(case.bases, paths, strict=True)]
        values: dict[str, Any] = {}
        for name, view in case.views.items():
            values[name] = values[view.twin] if view.twin else view.make(made[view.base][1])
        kernel = make_kernel(case, values)
        oracle = Oracle(case)
        for _ in range(case.calls):
            check_call(case, oracle, kernel, values, [raw for raw, _ in made])


def check_call(
    case: Case, oracle: Oracle, kernel: Any, values: dict[str, Any], memory: list[np.ndarray]
) -> None:
    slots = np.zeros(case.options["workers"] + 1, int)
    before = identity(values)
    verdict = oracle.call()
    result, error = None, None
    try:
        result = call(kernel, values, slots)
    except Exception as caught:
        error = caught
    compare(case, verdict, result, error, slots)
    for number, (raw, (right, _)) in enumerate(zip(memory, oracle.made, strict=True)):
        wrong = raw != right
        if verdict.loose:
            wrong &= raw != verdict.loose[number]
        assert not wrong.any(), (
            f"base {number}: bytes {np.flatnonzero(wrong)} are {raw[wrong]}, not {right[wrong]}"
        )
        right[...] = raw
    assert identity(values) == before


def compare(case: Case, verdict: Verdict, result: Any, error: Any, slots: np.ndarray) -> None:
    workers = case.options["workers"]
    if error is not None and not verdict.errors:
        raise error
    if verdict.errors:
        assert type(error) in verdict.errors, f"{error!r} instead of {verdict.errors}"
        return
    assert slots[:-1].sum() == verdict.count
    assert slots[-1] == workers
    if case.ending == "none":
        assert result is None
        return
    assert len(result) == workers
    for seen, heard in result:
        if case.options.get("engine") == "serial":  # more may be written there
            assert [(n, *rest[:1], *rest[2:]) for n, *rest in seen] == [
                (n, *rest[:1], *rest[2:]) for n, *rest in verdict.seen
            ]
        else:
            assert seen == verdict.seen
        assert heard == verdict.heard


# -- The law ------------------------------------------------------------------------------------

SEED = int(os.environ.get("DSM_SOAK_SEED", random.SystemRandom().randrange(1 << 32)))
CASES = int(os.environ.get("DSM_SOAK_CASES", "10000"))


def some(number: int, **choices: Any) -> settings:
    """As many cases; the engine and its team live on from one to the next."""
    return settings(
        max_examples=number,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        **choices,
    )


@some(300, derandomize=True)
@given(cases())
def test_a_call_does_what_the_serial_oracle_does(case: Case) -> None:
    check(case)


@some(150, derandomize=True)
@given(cases())
def test_a_program_that_is_right_on_workers_is_right_in_this_process(case: Case) -> None:
    """But for captured variables, which are the caller's own there."""
    oracle = Oracle(case)
    intents = oracle.intents()
    captured = [n for n in case.views if is_inside(n) or n.startswith(CAPTURED)]
    assume(all(intents.get(name) in {"in", "inout"} for name in captured))
    outs = [name for name, intent in intents.items() if intent == "out"]
    assume(not any(overlap(oracle.views[n], oracle.views[m]) for n in outs for m in captured))
    assume(not any(case.views[name].twin for name in case.views) or not captured)
    assume(case.private != "*" or not any(map(is_inside, captured)))
    assume(case.ending not in {"diverge", "lose"} and not Oracle(case).call().errors)
    check(case._replace(options={**case.options, "engine": "serial", "workers": 1}))


@pytest.mark.soak
def test_thousands_of_calls_do_what_the_serial_oracle_does() -> None:
    # In place of pytest's, which allows a test three minutes.
    faulthandler.dump_traceback_later(CASES + 120, exit=True, file=sys.__stderr__)
    print(f"\nDSM_SOAK_SEED={SEED} DSM_SOAK_CASES={CASES}")
    tally: Counter[str] = Counter()

    @hypothesis.seed(SEED)
    @some(CASES)
    @given(cases())
    def law(case: Case) -> None:
        tally["cases"] += 1
        tally["calls"] += case.calls
        tally["iterations"] += sum(len(rows) for _, _, _, rows in case.steps) * case.calls
        check(case)

    try:
        law()
    finally:
        print(dict(tally))
    assert tally["cases"] >= CASES
