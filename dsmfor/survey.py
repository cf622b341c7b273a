"""The walk through a kernel's code: what it names, and what that is in the caller.

What belongs to the kernel's own module, to ``__main__`` or to a module that cannot be imported goes
to the worker *by value*. Other modules of the user (modules.py) are *imported* by the worker, so
that isinstance, registries and extensions work, and then made to agree with the caller's: their
functions are known by their code, and every name in them that the code can name is a slot or a
fixed value like those of the kernel's own module. Installed modules are looked into by nobody.

A name is followed however it is written: ``scale``, ``helpers.scale``, ``pkg.sub.scale``, an import
in a function's body, a method of a class. Of a module, all names count that the code uses as
attributes of anything; a few too many are harmless. What no name leads to, but an argument or a
captured value does, is met when that is pickled, and is gone through then (`roots`).

No module that is to be loaded lazily is made to load.
"""

from __future__ import annotations

import abc
import builtins
import importlib.util
import sys
from collections.abc import Iterable, Mapping
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, ModuleType
from typing import Any

from dsmfor.bytecode import NOTHING, Reading, read
from dsmfor.design import (
    MISSING,
    FunctionNumber,
    Imported,
    Made,
    ModuleNumber,
    Outlined,
    Path,
    Slot,
    Wrapped,
    can_rebuild,
    contents,
    fundamental,
    outline,
    parts_of,
)
from dsmfor.modules import IMPORTED, INSTALLED, MADE, home, kind, listing, registered, space_of
from dsmfor.pickling import UNREMARKABLE, importable

__all__ = ["Survey", "own_modules"]

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
_PLAIN_METACLASSES = (type, abc.ABCMeta)


def own_modules(kernel: FunctionType) -> frozenset[str]:
    """The modules whose functions and classes travel with a kernel by value."""
    return frozenset({kernel.__module__ or "__main__", "__main__"})


class Survey:
    """What the code of a kernel leads to, as it is now.

    Parameters
    ----------
    kernel : function
    roots : iterable of object
        Functions, classes and modules that the kernel is given although no name leads to them.
    """

    def __init__(self, kernel: FunctionType, roots: Iterable[Any]) -> None:
        self.listing = listing()
        made = (name for name, found in self.listing.items() if found == MADE)
        self.own = own_modules(kernel) | frozenset(made)
        self.known: set[int] = set(UNREMARKABLE)  # ids of what need not be met again
        self.modules: dict[str, Any] = {}  # the user's that workers import -> their __spec__
        self.spaces: list[Made | Imported | Outlined] = []
        self.cells: list[CellType] = []
        # By number of the function:
        self.functions: list[FunctionType] = []
        self.codes: list[CodeType] = []
        self.paths: list[Path | None] = []  # where an import finds it
        self.owners: list[int] = []  # its namespace
        self.defaults: list[Any] = []  # or MISSING if they are a slot
        # Names, sorted:
        self.fixed: list[tuple[Slot, Any]] = []
        self.data: list[Slot] = []  # globals whose values travel in the environment
        self.sources: list[tuple[Mapping[str, Any], str]] = []  # of `data`
        self.rest: list[Slot] = []  # cells, defaults, attributes
        # By which it is seen that something has changed:
        self.checks: list[tuple[Mapping[str, Any], str, Any]] = []  # must be this very object
        self.hidden: list[tuple[Mapping[str, Any], str]] = []  # globals that must stay unbound
        self.sizes: list[tuple[Mapping[str, Any], int]] = []  # a new name is seen by this
        # Of the walk itself:
        self.numbers: dict[Any, int] = {}  # id of a function, cell or namespace -> its number
        self._placed: set[tuple[int, str]] = set()
        self._attributes: set[str] = set()  # named by any code
        self._seen: dict[Any, Any] = {}  # what has been gone through, with what keeps its id alive
        self._survey_all(kernel, roots)

    def _survey_all(self, kernel: FunctionType, roots: Iterable[Any]) -> None:
        loose = []  # modules of which it is not known what code has them
        self._add(kernel, None)
        for root in roots:
            self.known.add(id(root))
            self._seen["root", id(root)] = root
            if isinstance(root, ModuleType):
                loose.append(root)
            else:
                self._meet(root, NOTHING, None, scouting=True)
        surveyed = pooled = 0
        while surveyed < len(self.functions) or (loose and pooled < len(self._attributes)):
            while surveyed < len(self.functions):
                self._survey(self.functions[surveyed], surveyed)
                surveyed += 1
            pooled = len(self._attributes)
            for module in loose:
                self._module(module, NOTHING._replace(attributes=frozenset(self._attributes)))

    def _add(self, function: FunctionType, path: Path | None) -> None:
        """Take up a function. `path`: where else it is than where its own name leads to."""
        if id(function) in self.numbers:
            return
        self.numbers[id(function)] = len(self.functions)
        self.known.add(id(function))
        self.functions.append(function)
        self.codes.append(function.__code__)
        by_name = importable(function, self.own) and kind(function.__module__) == IMPORTED
        if by_name:
            path = Path.of(function)
        if path is not None:
            self._import(path.module)
        self.paths.append(path)

    def _number(self, thing: Any, things: list[Any]) -> tuple[int, bool]:
        new = id(thing) not in self.numbers
        if new:
            self.numbers[id(thing)] = len(things)
            things.append(thing)
        return self.numbers[id(thing)], new

    def _space(self, space: dict[str, Any], *, imported: bool) -> int:
        """Number of the namespace that stands for this one in the worker."""
        key = id(space), imported
        if key not in self.numbers:
            self.numbers[key] = len(self.spaces)
            if imported:
                name = space["__name__"]
                self.spaces.append(Imported(name))
                self._import(name)
            else:
                names = ("__name__", "__file__", "__package__")
                self.spaces.append(Made({k: space[k] for k in names if k in space}, False))
                self._seen[key] = space
        return self.numbers[key]

    def _import(self, name: str) -> None:
        """The worker imports this module: see to it that it stays the same one."""
        if name in self.modules or kind(name) == INSTALLED:
            return
        module = sys.modules[name]
        space = space_of(module)
        self.modules[name] = space.get("__spec__")
        self.checks.append((sys.modules, name, module))
        self.checks.append((space, "__spec__", space.get("__spec__", MISSING)))

    def _survey(self, function: FunctionType, number: int) -> None:
        """Find the slots of one function, and the functions behind them."""
        reading = self._read(function)
        space = function.__globals__
        path = self.paths[number]
        where = home(space)
        library = where is not None and kind(where) == INSTALLED
        imported = library or (where is not None and where not in self.own)
        owner = self._space(space, imported=imported)
        self.owners.append(owner)
        if not library:
            for name in reading.globals:
                self._look_up(owner, space, name, reading)
            self._follow_imports(space, reading)
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        for n, (name, cell) in enumerate(cells):
            owner, new = self._number(cell, self.cells)
            value = contents(cell)
            self._meet(value, reading, path and path.to("cell", n))
            if new:
                self.rest.append(Slot("cell", owner, name))
        fixed = fundamental(function.__defaults__)
        self.defaults.append(function.__defaults__ if fixed else MISSING)
        if not fixed:
            self.rest.append(Slot("__defaults__", number, ""))
        for name in ("__kwdefaults__", "__dict__"):
            if getattr(function, name):
                self.rest.append(Slot(name, number, ""))

    def _read(self, function: FunctionType) -> Reading:
        reading = read(function.__code__)
        self._attributes |= reading.attributes
        self._seen[id(reading)] = reading
        return reading

    def _look_up(
        self,
        owner: int,
        space: Mapping[str, Any],
        name: str,
        reading: Reading,
        *,
        bare: bool = True,
    ) -> None:
        """One name of a namespace. `bare`: looked up as a global, and so perhaps a builtin."""
        source = space
        if bare and name not in space and name in vars(builtins) and not _standard(name):
            source = vars(builtins)  # the user put it there, and no global hides it
        value = source.get(name, MISSING)
        if issubclass(type(value), ModuleType):
            self._module(value, reading)  # each code names other attributes of it
        if (owner, name) in self._placed:
            return
        self._placed.add((owner, name))
        if source is not space:
            self.hidden.append((space, name))
        slot = Slot("global", owner, name)
        place = self.spaces[owner]
        path = None if isinstance(place, Made) else place.path().to("of", name)
        if self._place(slot, value, reading, path):
            self.checks.append((source, name, value))
        else:
            self.data.append(slot)
            self.sources.append((source, name))

    def _place(self, slot: Slot, value: Any, reading: Reading, path: Path | None) -> bool:
        """Sort one global: True if it belongs to the skeleton, False if it is data."""
        self._meet(value, reading, path)
        fixed = value
        if type(value) is FunctionType:
            if id(value) in self.numbers:
                fixed = FunctionNumber(self.numbers[id(value)])
        elif issubclass(type(value), ModuleType):
            name = registered(value)
            if name is None:
                return False
            if kind(name) == MADE:
                fixed = ModuleNumber(self._space(space_of(value), imported=False))
        elif issubclass(type(value), (BuiltinFunctionType, type)):
            if not importable(value, self.own):
                return False
        elif (wrapped := self._wrapped(value, path)) is not None:
            fixed = wrapped
        elif value is not MISSING:
            return False
        self.fixed.append((slot, fixed))
        return True

    def _wrapped(self, value: Any, path: Path | None) -> Wrapped | None:
        """How the worker knows again what a decorator has made of a function it imports."""
        parts = parts_of(value)
        if not parts:
            return None
        by_name = importable(value, self.own) and kind(value.__module__) == IMPORTED
        if by_name:
            path = Path.of(value)
        if path is None or not (by_name or can_rebuild(value)):
            return None  # data: by value, if it can be pickled
        numbers = {name: self.numbers.get(id(part)) for name, part in parts.items()}
        if None in numbers.values():
            return None
        parameters = value.cache_parameters() if hasattr(value, "cache_parameters") else None
        return Wrapped(path, type(value).__qualname__, numbers, parameters)  # type: ignore[arg-type]

    def _meet(
        self, value: Any, reading: Reading, path: Path | None, *, scouting: bool = False
    ) -> None:
        """Go on from a value that code can get at.

        Parameters
        ----------
        value : object
        reading : Reading
            The code.
        path : Path or None
            Where a worker that imports the user's modules finds it, if there.
        scouting : bool
            The code goes by value with a class, not as one of the skeleton's functions.
        """
        if type(value) is FunctionType:
            if importable(value, self.own):
                if kind(value.__module__) != INSTALLED:
                    self._add(value, path)
            elif scouting and path is None and not self._lives_in_imported(value):
                self._scout(value)
            else:
                self._add(value, path)
        elif issubclass(type(value), ModuleType):
            self._module(value, reading)
        elif issubclass(type(value), type):
            for base in value.__mro__:
                found = kind(str(base.__module__))
                if found != INSTALLED or not importable(base, self.own):
                    if found == IMPORTED and importable(base, self.own):
                        self._adopt(base)
                    else:
                        self._scout_class(base)
        elif parts := parts_of(value):
            if importable(value, self.own):
                path = Path.of(value) if kind(value.__module__) == IMPORTED else None
                if path is None:
                    return
            for name, part in parts.items():
                self._meet(part, reading, path and path.to("attr", name), scouting=path is None)

    def _lives_in_imported(self, function: FunctionType) -> bool:
        """Whether a function's globals are a module's that the worker imports: an old one of it."""
        where = home(function.__globals__)
        return where is not None and where not in self.own and kind(where) == IMPORTED

    def _module(self, module: ModuleType, reading: Reading) -> None:
        """Every name of a module of the user's that code may use as an attribute of it."""
        name = registered(module)
        if name is None or (found := kind(name)) == INSTALLED:
            return
        space = space_of(module)
        owner = self._space(space, imported=found == IMPORTED)
        if found == MADE:
            place = self.spaces[owner]
            assert isinstance(place, Made)
            self.spaces[owner] = place._replace(is_module=True)
        if (owner, id(reading)) in self._seen:
            return
        if ("size", owner) not in self._seen:
            self._seen["size", owner] = True
            self.sizes.append((space, len(space)))
        self._seen[owner, id(reading)] = reading
        self.known.add(id(module))
        self._seen["module", id(module)] = module
        for name in [n for n in list(space) if n in reading.attributes or n == "__getattr__"]:
            self._look_up(owner, space, name, reading, bare=False)

    def _follow_imports(self, space: dict[str, Any], reading: Reading) -> None:
        """The modules that code imports where it runs."""
        for level, name in reading.imports:
            whole = name
            if level:
                package = space.get("__package__")
                if package is None:
                    package = getattr(space.get("__spec__"), "parent", None)
                try:
                    whole = importlib.util.resolve_name("." * level + name, package)
                except (ImportError, TypeError, ValueError):  # as it will where it runs
                    continue
            for end in [n for n, c in enumerate(whole) if c == "."] + [len(whole)]:
                module = sys.modules.get(whole[:end])
                if isinstance(module, ModuleType):
                    self._module(module, reading)
                elif module is None:
                    self.checks.append((sys.modules, whole[:end], MISSING))

    def _adopt(self, cls: type) -> None:
        """A class that the worker imports: its functions, and its data, are as they are here."""
        if ("class", id(cls)) in self._seen:
            return
        self._seen["class", id(cls)] = cls
        self.known.add(id(cls))
        self._import(cls.__module__)
        space = vars(cls)
        owner = len(self.spaces)
        path = Path.of(cls)
        self.spaces.append(Outlined(path, outline(cls), frozenset(space)))
        self.sizes.append((space, len(space)))
        for name, value in list(space.items()):
            if type(value) is FunctionType or parts_of(value) or _is_data(cls, name, value):
                self._look_up(owner, space, name, NOTHING, bare=False)

    def _scout(self, function: FunctionType) -> None:
        """Look, in code that cloudpickle sends by value, for modules that the worker imports."""
        if id(function.__code__) in self.known:
            return
        self.known.add(id(function))
        self.known.add(id(function.__code__))
        self._seen[id(function)] = function, function.__code__
        reading = self._read(function)
        space = function.__globals__
        where = home(space)
        if where is not None and kind(where) == INSTALLED:
            return
        for name in reading.globals:
            value = space.get(name, MISSING)
            self._meet(value, reading, None, scouting=True)
            if issubclass(type(value), (FunctionType, ModuleType, type)):
                self.checks.append((space, name, value))
        self._follow_imports(space, reading)
        for cell in function.__closure__ or ():
            self._meet(contents(cell), reading, None, scouting=True)

    def _scout_class(self, cls: type) -> None:
        if ("class", id(cls)) in self._seen:
            return
        self._seen["class", id(cls)] = cls
        self.known.add(id(cls))
        for value in list(vars(cls).values()):
            if type(value) is FunctionType or parts_of(value):
                self._meet(value, NOTHING, None, scouting=True)


def _is_data(cls: type, name: str, value: Any) -> bool:
    """Whether an attribute of a class is data that follows the caller's.

    Not what the interpreter or a metaclass keeps there, which may depend on its identity.
    """
    return (
        type(cls) in _PLAIN_METACLASSES
        and not (name.startswith("__") and name.endswith("__"))
        and name != "_abc_impl"
        and not hasattr(type(value), "__get__")
    )


def _standard(name: str) -> bool:
    """Whether a builtin is one that every interpreter has."""
    value = vars(builtins)[name]
    return name in _CONSTANTS or getattr(value, "__module__", None) == "builtins"
