"""What crosses to a worker: a kernel and its environment.

The worker's side is replica.py, what comes back is outcome.py.

A kernel is split in two. The *skeleton* is what rarely changes: the code of the kernel and of
every function of its own module that it uses, the modules and importable functions that they name,
and a list of slots. The *environment* is a value for every slot: captured variables, globals that
are data, defaults. The skeleton is sent once, the environment with every call, and the worker
binds every slot before every run and empties it afterwards: a kept skeleton and a new one cannot
be told apart by the kernel.

Guarantees
----------
- A skeleton is reused only while every function in it has the code it had, and every name that it
  resolved to a function, class or module resolves to the same one.
- Values that alias each other in the environment or the arguments still do in the worker: they
  are pickled in one dump.
- What a kernel left in its globals, closures or defaults is gone before the next run.

Names that code builds at run time (``eval``, ``globals()["x"]``) cannot be seen from outside and
raise NameError in the worker.
"""

from __future__ import annotations

import builtins
import dis
import itertools
import pickle
import sys
from collections import deque
from collections.abc import Iterator
from operator import is_
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple

import numpy as np

from dsmfor.errors import RegionError
from dsmfor.pickling import dump, importable
from dsmfor.reachable import ATOMS
from dsmfor.staging import Stage
from dsmfor.transit import Outward, Table

__all__ = [
    "MISSING",
    "Claims",
    "Design",
    "FunctionNumber",
    "Kernel",
    "Message",
    "Parcel",
    "Skeleton",
    "Slot",
    "assigns_globals",
    "contents",
    "global_names",
    "own_modules",
    "reach",
    "retired",
]

_serials = itertools.count(1)
retired: deque[int] = deque()  # serials of skeletons that are gone, for workers to forget
_GLOBAL_OPS = {
    "LOAD_GLOBAL",
    "LOAD_NAME",
    "LOAD_FROM_DICT_OR_GLOBALS",  # of annotations and class bodies, from Python 3.12 on
    "STORE_GLOBAL",
    "DELETE_GLOBAL",
}
_CONSTANTS = {
    "None",
    "True",
    "False",
    "Ellipsis",
    "NotImplemented",
    "__debug__",
    "copyright",
    "credits",
    "exit",
    "quit",
    "license",
    "help",
}
_BACKDOORS = {"globals", "exec", "eval", "vars", "__dict__", "__globals__"}


class _Missing:
    """Stands for a name that is not bound; one per process."""

    def __reduce__(self) -> str:
        return "MISSING"


MISSING = _Missing()


def global_names(code: CodeType) -> Iterator[str]:
    """Names that the code, and code nested in it, looks up as globals."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in _GLOBAL_OPS:
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from global_names(constant)


def reach(kernel: FunctionType, own: frozenset[str]) -> list[FunctionType]:
    """The kernel and the functions that go with it, by value, as far as names lead to them now."""
    found = [kernel]
    for function in found:
        cells = [contents(cell) for cell in function.__closure__ or ()]
        names = global_names(function.__code__)
        for value in [*cells, *(function.__globals__.get(name) for name in names)]:
            if type(value) is FunctionType and not importable(value, own) and value not in found:
                found.append(value)
    return found


def assigns_globals(code: CodeType) -> bool:
    """Whether code may change its globals, by statement or by a function that can."""
    return (
        any(i.opname in ("STORE_GLOBAL", "DELETE_GLOBAL") for i in dis.get_instructions(code))
        or not _BACKDOORS.isdisjoint(code.co_names)
        or any(assigns_globals(c) for c in code.co_consts if isinstance(c, CodeType))
    )


def own_modules(kernel: FunctionType) -> frozenset[str]:
    """The modules whose functions and classes travel with a kernel by value."""
    return frozenset({kernel.__module__ or "__main__", "__main__"})


class Slot(NamedTuple):
    """A place that the worker binds: a global name, a cell, or an attribute of a function."""

    kind: str  # "global" | "cell" | "__defaults__" | "__kwdefaults__" | "__dict__"
    owner: int  # number of the namespace, cell or function
    name: str


class Design(NamedTuple):
    """The skeleton as it travels."""

    namespaces: list[dict[str, Any]]
    cells: int
    functions: list[tuple[CodeType, int, str, str, tuple[int, ...] | None]]
    fixed: list[tuple[Slot, Any]]
    slots: list[Slot]


class Skeleton:
    """A kernel's code as it was when it was surveyed, and how to see whether it still is."""

    def __init__(self, kernel: FunctionType) -> None:
        self.serial = next(_serials)
        self.own = own_modules(kernel)
        self.functions: list[FunctionType] = []
        self.codes: list[CodeType] = []
        self.namespaces: list[dict[str, Any]] = []
        self.cells: list[CellType] = []
        self._numbers: dict[int, int] = {}  # id of a function, namespace or cell -> its number
        self._globals: list[tuple[dict[str, Any], str, Any]] = []  # expected, or DATA
        self._hidden: list[tuple[dict[str, Any], str]] = []  # globals that must stay unbound
        self._fixed: list[tuple[Slot, Any]] = []
        self._data: list[Slot] = []  # globals whose values travel in the environment
        self._rest: list[Slot] = []  # cells, defaults, attributes
        self._add(kernel)
        for function in self.functions:  # grows while it is walked
            self._survey(function)
        self.slots = self._data + self._rest
        self._expected = [
            (f, code, _adorned(f)) for f, code in zip(self.functions, self.codes, strict=True)
        ]
        self.numbers = {id(f): n for n, f in enumerate(self.functions)}
        # With nothing to bind and no global assigned, the worker may skip binding.
        self.constant = not self.slots and not any(map(assigns_globals, self.codes))
        self.data = self._pickle()

    def __del__(self) -> None:
        retired.append(self.serial)

    def _add(self, function: FunctionType) -> None:
        if id(function) not in self._numbers:
            self._numbers[id(function)] = len(self.functions)
            self.functions.append(function)
            self.codes.append(function.__code__)

    def _number(self, thing: Any, things: list[Any]) -> tuple[int, bool]:
        new = id(thing) not in self._numbers
        if new:
            self._numbers[id(thing)] = len(things)
            things.append(thing)
        return self._numbers[id(thing)], new

    def _survey(self, function: FunctionType) -> None:
        """Find the slots of one function, and the functions behind them."""
        number = self._numbers[id(function)]
        space = function.__globals__
        owner, _ = self._number(space, self.namespaces)
        seen = {slot.name for slot, _ in self._fixed if slot[:2] == ("global", owner)}
        seen |= {slot.name for slot in self._data if slot.owner == owner}
        for name in dict.fromkeys(global_names(function.__code__)):
            if name in seen:
                continue
            source = space
            if name not in space and name in vars(builtins) and not _standard(name):
                source = vars(builtins)  # the user put it there, and no global hides it
                self._hidden.append((space, name))
            value = source.get(name, MISSING)
            fixed = self._place(Slot("global", owner, name), value)
            self._globals.append((source, name, value if fixed else _DATA))
        for name, cell in zip(
            function.__code__.co_freevars, function.__closure__ or (), strict=True
        ):
            owner, new = self._number(cell, self.cells)
            if new:
                value = contents(cell)
                if type(value) is FunctionType and not importable(value, self.own):
                    self._add(value)
                self._rest.append(Slot("cell", owner, name))
        for name in ("__defaults__", "__kwdefaults__", "__dict__"):
            if getattr(function, name):
                self._rest.append(Slot(name, number, ""))

    def _place(self, slot: Slot, value: Any) -> bool:
        """Sort one global: True if it belongs to the skeleton, False if it is data."""
        if type(value) is FunctionType and not importable(value, self.own):
            self._add(value)
        elif value is not MISSING and not (
            _importable_module(value)
            or (
                isinstance(value, (FunctionType, BuiltinFunctionType, type))
                and importable(value, self.own)
            )
        ):
            self._data.append(slot)
            return False
        self._fixed.append((slot, value))
        return True

    def _pickle(self) -> bytes:
        design = Design(
            [
                {k: space[k] for k in ("__name__", "__file__", "__package__") if k in space}
                for space in self.namespaces
            ],
            len(self.cells),
            [
                (
                    f.__code__,
                    self._numbers[id(f.__globals__)],
                    f.__name__,
                    f.__qualname__,
                    None
                    if f.__closure__ is None
                    else tuple(self._numbers[id(cell)] for cell in f.__closure__),
                )
                for f in self.functions
            ],
            [
                (
                    slot,
                    FunctionNumber(self.numbers[id(value)]) if id(value) in self.numbers else value,
                )
                for slot, value in self._fixed
            ],
            self.slots,
        )
        return dump(tuple(design), own=self.own)

    def values(self) -> list[Any] | None:
        """The present value of every slot, or None if the skeleton is out of date."""
        for function, code, adorned in self._expected:
            if function.__code__ is not code or _adorned(function) != adorned:
                return None
        if any(name in space for space, name in self._hidden):
            return None
        values = []
        for space, name, expected in self._globals:
            value = space.get(name, MISSING)
            if expected is _DATA:
                if type(value) is FunctionType or _importable_module(value):
                    return None
                values.append(value)
            elif value is not expected:
                return None
        for slot in self._rest:
            if slot.kind != "cell":
                values.append(getattr(self.functions[slot.owner], slot.kind))
                continue
            value = contents(self.cells[slot.owner])
            if type(value) is FunctionType and id(value) not in self.numbers:
                if not importable(value, self.own):
                    return None
            values.append(value)
        return values

    def captured(self, values: list[Any]) -> Iterator[tuple[str, Any]]:
        """(name, value) of every variable that the kernel or a helper of it captures."""
        for slot, value in zip(self.slots, values, strict=True):
            if slot.kind in ("global", "cell"):
                yield slot.name, value


def _adorned(function: FunctionType) -> tuple[bool, bool, bool]:
    """Which of the attributes that become slots a function has."""
    return (
        function.__defaults__ is not None,
        function.__kwdefaults__ is not None,
        bool(function.__dict__),
    )


def _standard(name: str) -> bool:
    """Whether a builtin is one that every interpreter has."""
    value = vars(builtins)[name]
    return name in _CONSTANTS or getattr(value, "__module__", None) == "builtins"


class _Data:
    """Marks a global whose value travels in the environment."""


_DATA = _Data()


class FunctionNumber(NamedTuple):
    """In a skeleton: the function of that number."""

    number: int


def _importable_module(value: Any) -> bool:
    return isinstance(value, ModuleType) and sys.modules.get(value.__name__) is value


def contents(cell: CellType) -> Any:
    """What a closure cell holds, or `MISSING`."""
    try:
        return cell.cell_contents
    except ValueError:  # an empty cell
        return MISSING


class Claims(NamedTuple):
    """What the workers are to be given, and what the user wants done with it."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    values: list[Any]  # of the skeleton's slots
    intents: dict[int, str]  # by id of an array
    named: list[tuple[str, Any]]  # by dotted names, and to be met on the way if they are arrays
    cleared: list[np.ndarray]  # of intent 'out'


class Message(NamedTuple):
    """What a region sends to its workers."""

    skeleton: Skeleton
    data: bytes  # of a `Parcel`
    segments: set[int]  # that it names
    arrays: list[np.ndarray]  # that it names: they live for as long as the message


class Parcel(NamedTuple):
    """The message as a worker reads it."""

    serial: int  # of the skeleton
    choices: tuple[Any, ...]
    staged: int  # segment of the staged arrays, 0 if there are none; it will not last
    table: Table  # of the staged arrays
    fixed: frozenset[int]  # offsets of those that are read-only in the caller
    environment: bytes | None  # slots' values and arguments; None if there are neither


class Kernel:
    """The caller's side of a kernel: its skeleton, kept as long as it is true.

    Parameters
    ----------
    function : function
        The kernel.
    """

    def __init__(self, function: FunctionType) -> None:
        self.function = function
        self.skeleton: Skeleton | None = None
        self.warned = False  # of captured data
        self.weighed: Skeleton | None = None  # whose captured data was weighed last
        self._last: tuple[list[Any], tuple[Any, ...], Message] | None = None

    def refresh(self) -> tuple[Skeleton, list[Any]]:
        """The skeleton, surveyed anew if anything in it has changed, and its slots' values."""
        skeleton = self.skeleton
        values = skeleton.values() if skeleton is not None else None
        if skeleton is None or values is None:
            self._last = None
            skeleton = self.skeleton = Skeleton(self.function)
            values = skeleton.values()
            if values is None:
                raise RegionError(
                    f"the functions that {self.function.__qualname__} uses are being redefined "
                    "while it is called; wait until they are"
                )
        return skeleton, values

    def again(self, claims: Claims, choices: tuple[Any, ...]) -> Message | None:
        """The last message, as the same object, if it says what this call has to say.

        It does when there are no arguments, every value is the same atom, and `choices` are equal.
        """
        last = self._last
        if last is None or claims.args or claims.kwargs or last[1] != choices:
            return None
        return last[2] if all(map(is_, last[0], claims.values)) else None

    def message(
        self, skeleton: Skeleton, claims: Claims, transit: Outward, choices: tuple[Any, ...]
    ) -> tuple[Message, Stage | None]:
        """Pickle what the workers need for a call: slots' values and arguments, in one dump.

        Plain arrays that were met on the way are staged.
        """
        args, kwargs, values = claims.args, claims.kwargs, claims.values
        alone = not args and not kwargs
        environment, stage, staged = None, None, 0
        table: Table = []
        fixed: frozenset[int] = frozenset()
        if not alone or not skeleton.constant:
            environment = dump((values, args, kwargs), transit, skeleton.own)
            if transit.plain:
                stage = Stage(transit.plain.values())
                table, staged, fixed = stage.table, stage.segment, stage.fixed
                transit.segments.add(staged)
        parcel = Parcel(skeleton.serial, choices, staged, table, fixed, environment)
        data = pickle.dumps(tuple(parcel), pickle.HIGHEST_PROTOCOL)
        message = Message(skeleton, data, transit.segments, transit.shared)
        if alone and all(type(value) in ATOMS for value in values):
            self._last = values, choices, message
        return message, stage
