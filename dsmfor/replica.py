"""A kernel in a worker: the skeleton that was received, bound to an environment for every run.

What a skeleton is and when the caller sends a new one is skeleton.py's and payload.py's. Here is
kept that a kernel finds, run after run, what it would find in the caller.

Guarantees
----------
- Every slot is bound before a run and emptied after it.
- What a kernel left in its globals, closures, defaults, attributes or code is gone before the next.
- The user's modules that are imported here are put back, after each run, to what the import made
  of them, wherever they were set for it and wherever surveyed code may have set them.

A function of an imported module is kept, so that whoever has it in this process has the right one:
if the caller's has other code, it gets that for the run. Only one that is not there, or does not
fit, is made by value and put in its place. A class is kept likewise and set name by name; only
what cannot be set (bases, slots, metaclass) makes an error.
"""

from __future__ import annotations

import builtins
import functools
import pickle
import sys
from collections.abc import Iterator
from importlib import import_module
from types import CellType, FunctionType, ModuleType
from typing import Any, NamedTuple

from dsmfor import limits
from dsmfor.arrivals import Table
from dsmfor.bytecode import read
from dsmfor.design import (
    MISSING,
    Design,
    Environment,
    FunctionNumber,
    Imported,
    Made,
    ModuleNumber,
    Outlined,
    Plan,
    Slot,
    Stays,
    Wrapped,
    contents,
    outline,
    parts_of,
)
from dsmfor.errors import SharedMemoryFull
from dsmfor.imported import Absent, Spot, bring_in, edited, find
from dsmfor.modules import space_of
from dsmfor.pickling import load, load_classes_anew
from dsmfor.snapshots import QUIET

__all__ = ["Bound", "Replica"]

_BOOKKEEPING = {  # of classes, which nobody sets by hand
    "__abstractmethods__",
    "__annotations__",
    "__dict__",
    "__doc__",
    "__firstlineno__",
    "__module__",
    "__static_attributes__",
    "__weakref__",
    "_abc_impl",
}


class Bound(NamedTuple):
    """A kernel that is ready to be called, and the values of its skeleton's slots."""

    kernel: FunctionType
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    slots: list[Slot]
    values: list[Any]
    spots: list[Spot | None]  # of the slots in imported modules

    def may_change(self) -> bool:
        """Whether any of it is of a kind that a kernel may change in vain."""
        kinds = {*map(type, self.args), *map(type, self.kwargs.values()), *map(type, self.values)}
        return not kinds <= QUIET

    def named(self, *, everywhere: bool = True) -> Iterator[tuple[str, Any]]:
        """Arguments and captured variables, by the names that the user gave them.

        Parameters
        ----------
        everywhere : bool
            Also those of other modules, which may keep caches and the like.
        """
        code = self.kernel.__code__
        names = code.co_varnames[: code.co_argcount]
        yield from zip(names, self.args)  # noqa: B905  # *args follow
        if rest := self.args[len(names) :]:
            at = code.co_argcount + code.co_kwonlyargcount
            yield code.co_varnames[at] if len(code.co_varnames) > at else "args", rest
        yield from self.kwargs.items()
        for slot, value, spot in zip(self.slots, self.values, self.spots, strict=True):
            if type(value) is Absent:
                continue
            if spot is not None:
                if everywhere and slot.kind in ("global", "cell"):
                    yield spot.label, value
            elif slot.kind in ("global", "cell"):
                yield slot.name, value
            elif slot.kind == "__defaults__" and value and slot.owner == 0:
                yield from zip(names[-len(value) :], value, strict=True)
            elif slot.kind == "__kwdefaults__" and value and slot.owner == 0:
                yield from value.items()


class Replica:
    """A skeleton in a worker: functions that are bound anew for every run."""

    def __init__(self, data: bytes) -> None:
        modules, others, rest = pickle.loads(data)
        bring_in(modules, others)
        design = Design(*load(rest))
        self._slots = design.slots
        self._spaces: list[Any] = []  # dicts, and classes
        self._pairs: list[tuple[dict[str, Any], dict[str, Any]]] = []  # made ones, as unbound
        self._places = design.namespaces
        self._made_modules: dict[int, ModuleType] = {}
        self._borrowed: dict[tuple[int, str, str], Spot] = {}  # by id of the holder, kind, name
        self._patches: list[tuple[Spot, Any]] = []  # to be set for every run
        self._caches: list[Any] = []  # to be cleared for every run
        for number, place in enumerate(design.namespaces):
            self._spaces.append(self._enter(number, place))
        self._assigns = any(read(plan.code).assigns_globals for plan in design.functions)
        self._may_set = {name for plan in design.functions for name in read(plan.code).assigned}
        self._cells: list[CellType] = [None] * design.cells  # type: ignore[list-item]
        self.functions: list[FunctionType] = [None] * len(design.functions)  # type: ignore[list-item]
        self._kept: set[int] = set()  # numbers of functions that the import has made
        for number, plan in enumerate(design.functions):
            self._keep(number, plan)
        for number, plan in enumerate(design.functions):
            if number not in self._kept:
                self.functions[number] = self._make(plan)
        self._own = [
            (f, plan.code, None if plan.defaults is MISSING else plan.defaults)
            for n, (f, plan) in enumerate(zip(self.functions, design.functions, strict=True))
            if n not in self._kept
        ]
        for slot, value in design.fixed:
            self._fix(slot, value)
        self._spots = [self._spot_of(slot) for slot in design.slots]
        self._own_cells = [
            cell for cell in self._cells if (id(cell), "cell", "") not in self._borrowed
        ]
        self.empty()

    # -- made of a design ----------------------------------------------------------------------

    def _enter(self, number: int, place: Made | Imported | Outlined) -> Any:
        if isinstance(place, Imported):
            return space_of(import_module(place.name))
        if isinstance(place, Made):
            space: dict[str, Any] = {}
            if place.is_module:
                module = ModuleType(place.names.get("__name__", "?"))
                self._made_modules[number] = module
                space = space_of(module)
                name = module.__name__
                if name == "__main__" or name not in sys.modules:
                    self._patch(self._borrow("global", sys.modules, name, name), module)
            template = {**space, "__builtins__": builtins.__dict__, **place.names}
            self._pairs.append((space, template))
            return space
        found = find(place.where)
        if not isinstance(found, type):
            raise edited(place.where, "it is no class there")
        if outline(found) != place.shape:
            raise edited(place.where, "the class has other bases, slots or another metaclass")
        for name in vars(found).keys() - place.names - _BOOKKEEPING:
            self._patch(self._borrow("global", found, name, f"{place.where}.{name}"), MISSING)
        return found

    def _borrow(self, kind: str, holder: Any, name: str, label: str) -> Spot:
        """A place that is the import's, and is put back after each run."""
        key = id(holder), kind, name
        spot = self._borrowed.get(key)
        if spot is None:
            spot = self._borrowed[key] = Spot(kind, holder, name, label)
        return spot

    def _patch(self, spot: Spot, value: Any) -> None:
        self._patches.append((spot, value))

    def _keep(self, number: int, plan: Plan) -> None:
        """Take the function that the import has made, if it can be what the caller's is."""
        found = MISSING if plan.path is None else find(plan.path)
        if not (
            type(found) is FunctionType
            and found.__globals__ is self._spaces[plan.space]
            and found.__code__.co_freevars == plan.code.co_freevars
            and id(found) not in {id(self.functions[n]) for n in self._kept}
        ):
            return
        cells = list(zip(plan.cells or (), found.__closure__ or (), strict=True))
        if any(self._cells[n] is not None and self._cells[n] is not cell for n, cell in cells):
            return
        label = str(plan.path)
        for n, cell in cells:
            self._cells[n] = cell
            self._borrow("cell", cell, "", f"{label} (variable of its closure)")
        self.functions[number] = found
        self._kept.add(number)
        if found.__code__ != plan.code:
            self._patch(self._borrow("__code__", found, "", label), plan.code)
        wanted = None if plan.defaults is MISSING else plan.defaults
        if not _alike(found.__defaults__, wanted):
            self._patch(self._borrow("__defaults__", found, "", label), wanted)
        if found.__kwdefaults__ is not None:
            self._patch(self._borrow("__kwdefaults__", found, "", label), None)
        if found.__dict__:
            self._patch(self._borrow("__dict__", found, "", label), None)
            clear = found.__dict__.get("_clear_cache")  # functools.singledispatch has one
            if callable(clear):
                self._caches.append(clear)

    def _make(self, plan: Plan) -> FunctionType:
        for n in plan.cells or ():
            if self._cells[n] is None:
                self._cells[n] = CellType()
        closure = None if plan.cells is None else tuple(self._cells[n] for n in plan.cells)
        space = self._spaces[plan.space]
        function = FunctionType(plan.code, space, plan.name, None, closure)
        place = self._places[plan.space]
        names = place.names if isinstance(place, Made) else space
        function.__qualname__ = plan.qualname
        function.__module__ = names.get("__name__", "__main__")
        return function

    def _fix(self, slot: Slot, value: Any) -> None:
        """A name that the skeleton itself binds."""
        place = self._places[slot.owner]
        if isinstance(value, FunctionNumber):
            value = self.functions[value.number]
        elif isinstance(value, ModuleNumber):
            value = self._made_modules[value.number]
        elif isinstance(value, Wrapped):
            value = self._wrap(value)
        if isinstance(place, Made):
            if value is not MISSING:
                self._template(slot.owner)[slot.name] = value
            return
        label = f"{place.path()}.{slot.name}"
        fresh = Spot("global", self._spaces[slot.owner], slot.name, label)
        if fresh.original is not value or slot.name in self._may_set:
            self._borrowed[id(fresh.holder), "global", slot.name] = fresh
            if fresh.original is not value:
                self._patch(fresh, value)

    def _template(self, number: int) -> dict[str, Any]:
        space = self._spaces[number]
        return next(template for made, template in self._pairs if made is space)

    def _wrap(self, wrapped: Wrapped) -> Any:
        """What a decorator made: the import's if it is around the right functions."""
        found = find(wrapped.path)
        functions = {name: self.functions[n] for name, n in wrapped.parts.items()}
        if found is not MISSING and type(found).__qualname__ == wrapped.kind:
            parts = parts_of(found)
            if parts.keys() == functions.keys() and all(parts[n] is functions[n] for n in parts):
                if wrapped.parameters is not None:
                    self._caches.append(found.cache_clear)
                if wrapped.kind != "CPUDispatcher" or not self._codes_patched(functions):
                    return found
                raise edited(wrapped.path, "it is compiled from other code")
        if wrapped.parameters is not None:
            made = functools.lru_cache(**wrapped.parameters)(functions["__wrapped__"])
            self._caches.append(made.cache_clear)
            return made
        if wrapped.kind == "property":
            return property(**functions)  # type: ignore[arg-type]
        simple = {"staticmethod": staticmethod, "classmethod": classmethod}
        if wrapped.kind in simple:
            return simple[wrapped.kind](functions["__func__"])
        raise edited(wrapped.path, f"it is no {wrapped.kind} of the same function")

    def _codes_patched(self, functions: dict[str, FunctionType]) -> bool:
        return any((id(f), "__code__", "") in self._borrowed for f in functions.values())

    def _spot_of(self, slot: Slot) -> Spot | None:
        """Where a slot is, if an import has made that place."""
        if slot.kind == "global":
            place = self._places[slot.owner]
            if isinstance(place, Made):
                return None
            label = f"{place.path()}.{slot.name}"
            return self._borrow("global", self._spaces[slot.owner], slot.name, label)
        if slot.kind == "cell":
            return self._borrowed.get((id(self._cells[slot.owner]), "cell", ""))
        if slot.owner in self._kept:
            function = self.functions[slot.owner]
            return self._borrow(slot.kind, function, "", f"{slot.kind} of {function.__qualname__}")
        return None

    # -- run after run -------------------------------------------------------------------------

    def bind(self, environment: Environment, table: Table) -> Bound:
        """Fill every slot.

        Without an environment there are neither slots nor arguments.
        """
        for patched, wanted in self._patches:
            patched.put(wanted)
        for clear in self._caches:
            clear()
        for function, _, defaults in self._own:
            if defaults is not None:
                function.__defaults__ = defaults
        if not environment.pickle:
            return Bound(self.functions[0], (), {}, [], [], [])
        try:
            values, args, kwargs = load_classes_anew(
                environment.pickle, self.functions, table, environment.buffers
            )
        except MemoryError as error:
            if isinstance(error, SharedMemoryFull):
                raise
            what = f"a message of {len(environment.pickle):,} bytes, unpickled,"
            raise limits.exhausted(what) from error
        for n, (slot, value, spot) in enumerate(zip(self._slots, values, self._spots, strict=True)):
            if spot is not None:
                values[n] = spot.put(value)
            elif type(value) is Stays:  # of a function that the import has otherwise
                if slot.kind == "cell":
                    self._cells[slot.owner].cell_contents = Absent(slot.name, value, MISSING)
            elif slot.kind == "global":
                if value is not MISSING:
                    self._spaces[slot.owner][slot.name] = value
            elif slot.kind == "cell":
                cell = self._cells[slot.owner]
                if value is not MISSING:
                    cell.cell_contents = value
                elif contents(cell) is not MISSING:
                    del cell.cell_contents
            elif slot.kind == "__dict__":
                self.functions[slot.owner].__dict__.update(value)
            else:
                setattr(self.functions[slot.owner], slot.kind, value)
        return Bound(self.functions[0], args, kwargs, self._slots, values, self._spots)

    def reset(self) -> None:
        """The globals as they are before binding."""
        for space, template in self._pairs:
            if self._assigns or len(space) != len(template):
                space.clear()
                space.update(template)

    def empty(self) -> None:
        """Let go of everything that the last run was bound to, or has bound."""
        for function, code, _ in self._own:
            if function.__code__ is not code:
                function.__code__ = code
            if function.__defaults__ is not None or function.__kwdefaults__ is not None:
                function.__defaults__ = function.__kwdefaults__ = None
            if function.__dict__:
                function.__dict__.clear()
        for spot in self._borrowed.values():
            spot.restore()
        self.reset()
        for cell in self._own_cells:
            if contents(cell) is not MISSING:
                del cell.cell_contents

    def dissolve(self) -> None:
        """Fall apart: functions and their globals refer to each other."""
        for space, template in self._pairs:
            space.clear()
            template.clear()
        self.functions.clear()


def _alike(one: Any, other: Any) -> bool:
    """Whether two values that never change are the same ones."""
    if one is None or other is None:
        return one is other
    try:
        return pickle.dumps(one) == pickle.dumps(other)
    except Exception:  # noqa: BLE001  # one that cannot be pickled is not among what is fixed
        return False
