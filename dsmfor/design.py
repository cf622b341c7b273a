"""The parts of a skeleton, as they travel from skeleton.py to replica.py.

A worker has namespaces of three kinds: *made* for the skeleton (of the kernel's own module, and of
modules that cannot be imported), and those of modules and classes that it *imports*, which are
there with or without us. Functions and cells are numbered, and so are namespaces.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from types import CellType, CodeType, FunctionType
from typing import Any, NamedTuple

from dsmfor.modules import INSTALLED
from dsmfor.modules import kind as kind_of_module
from dsmfor.reachable import ATOMS

__all__ = [
    "MISSING",
    "Design",
    "Environment",
    "FunctionNumber",
    "Imported",
    "Made",
    "ModuleNumber",
    "Outlined",
    "Path",
    "Plan",
    "Slot",
    "Stays",
    "Wrapped",
    "can_rebuild",
    "contents",
    "fundamental",
    "kind_of",
    "outline",
    "parts_of",
    "state_of",
]

_CACHED = type(functools.lru_cache(len))


class _Missing:
    """Stands for a name that is not bound; one per process."""

    def __reduce__(self) -> str:
        return "MISSING"


MISSING = _Missing()


class Path(NamedTuple):
    """Where something is after an import: a module, and the way from there."""

    module: str
    steps: tuple[tuple[str, Any], ...] = ()  # ("get" | "of" | "attr" | "cell", name or number)

    @classmethod
    def of(cls, value: Any) -> Path:
        """Where the name of an importable function or class leads to it."""
        return cls(value.__module__, tuple(("get", p) for p in value.__qualname__.split(".")))

    def to(self, how: str, name: Any) -> Path:
        """One step further."""
        return Path(self.module, (*self.steps, (how, name)))

    def __str__(self) -> str:
        return ".".join([self.module, *(str(name) for _, name in self.steps)])


class Made(NamedTuple):
    """A namespace that is made for the skeleton."""

    names: dict[str, Any]  # ``__name__`` and the like
    is_module: bool  # whether code has the module itself, too


class Imported(NamedTuple):
    """The namespace of a module that the worker imports."""

    name: str

    def path(self) -> Path:
        """Where it is."""
        return Path(self.name)


class Outlined(NamedTuple):
    """The namespace of a class of such a module."""

    where: Path
    shape: tuple[Any, ...]
    names: frozenset[str]

    def path(self) -> Path:
        """Where it is."""
        return self.where


class Plan(NamedTuple):
    """A function."""

    code: CodeType
    space: int
    name: str
    qualname: str
    cells: tuple[int, ...] | None
    defaults: Any  # or `MISSING` if a slot has them
    path: Path | None  # where an import has it, None if it exists by value alone


class Slot(NamedTuple):
    """A place that the worker binds: a global name, a cell, or an attribute of a function."""

    kind: str  # "global" | "cell" | "__defaults__" | "__kwdefaults__" | "__dict__"
    owner: int  # number of the namespace, cell or function
    name: str


class FunctionNumber(NamedTuple):
    """In a skeleton: the function of that number."""

    number: int


class ModuleNumber(NamedTuple):
    """In a skeleton: the module over the namespace of that number."""

    number: int


class Wrapped(NamedTuple):
    """In a skeleton: what a decorator has made of a function."""

    path: Path
    kind: str
    parts: dict[str, int]  # attribute -> number of the function behind it
    parameters: dict[str, Any] | None  # of a functools.lru_cache


class Stays(NamedTuple):
    """In an environment: a value that cannot be pickled, so the worker's import must do.

    Of a dict, or an object of the user's own class, what can be pickled comes along.
    """

    kind: str
    why: str
    names: tuple[Any, ...] | None = None  # its keys or attributes
    parts: dict[Any, Any] | None = None  # those that can be pickled


class Environment(NamedTuple):
    """Values of a skeleton's slots and the arguments, pickled; empty where there are none."""

    pickle: bytes | memoryview = b""
    buffers: Sequence[memoryview] = ()  # that stayed out of it


class Design(NamedTuple):
    """The skeleton as it travels."""

    namespaces: list[Made | Imported | Outlined]
    cells: int
    functions: list[Plan]
    fixed: list[tuple[Slot, Any]]
    slots: list[Slot]


def contents(cell: CellType) -> Any:
    """What a closure cell holds, or `MISSING`."""
    try:
        return cell.cell_contents
    except ValueError:  # an empty cell
        return MISSING


def fundamental(value: Any) -> bool:
    """Whether a value never changes, nor anything in it."""
    if type(value) is tuple:
        return all(map(fundamental, value))
    return type(value) in ATOMS


def kind_of(value: Any) -> str:
    """Full name of a value's type."""
    kind = type(value)
    return f"{kind.__module__}.{kind.__qualname__}"


def outline(cls: type) -> tuple[Any, ...]:
    """What of a class cannot be changed once it is made."""
    return (
        kind_of(cls),
        tuple(f"{base.__module__}.{base.__qualname__}" for base in cls.__bases__),
        cls.__dictoffset__ != 0,
        tuple(
            sorted(n for n, v in vars(cls).items() if kind_of(v) == "builtins.member_descriptor")
        ),
    )


def parts_of(value: Any) -> dict[str, FunctionType]:
    """The functions behind what a decorator made, by attribute; without asking the object.

    Of a property, a static or class method, a cache, a kernel, or whatever else follows
    functools.update_wrapper; not of a plain function, whose cells say it.
    """
    kind = type(value)
    found: dict[str, Any] = {}
    if kind is property:
        found = {"fget": value.fget, "fset": value.fset, "fdel": value.fdel}
    elif kind in (staticmethod, classmethod):
        found = {"__func__": value.__func__}
    elif kind is functools.cached_property:
        found = {"func": value.func}
    elif kind is not FunctionType and not issubclass(type(value), type):
        try:
            space = object.__getattribute__(value, "__dict__")
        except (AttributeError, TypeError):
            return {}
        if type(space) is dict:
            found = {"__wrapped__": space.get("__wrapped__")}
    return {name: part for name, part in found.items() if type(part) is FunctionType}


def can_rebuild(value: Any) -> bool:
    """Whether what a decorator made can be made anew, given the functions behind it."""
    return type(value) in (property, staticmethod, classmethod, _CACHED)


def state_of(value: Any) -> dict[Any, Any] | None:
    """The keys and values of a dict, or the attributes of an object of the user's own class."""
    if type(value) is dict:
        return value
    if kind_of_module(str(type(value).__module__)) == INSTALLED:
        return None
    try:
        space = object.__getattribute__(value, "__dict__")
    except (AttributeError, TypeError):
        return None
    return space if type(space) is dict else None
