"""What a kernel is made of: the survey of its code, as it was, and how to see whether it still is.

From the kernel on, names lead to functions, classes and modules. What belongs to the kernel's own
module, to ``__main__`` or to a module that cannot be imported goes to the worker *by value*. Other
modules of the user (`modules.kind`) are *imported* by the worker, so that isinstance, registries
and extensions work, and then made to agree with the caller's: their functions are known by their
code, and every name in them that the surveyed code can name is a slot or a fixed value like those
of the kernel's own module. What a worker does with that is replica.py's and imported.py's.
Installed modules are looked into by nobody.

A name is followed however it is written: ``scale``, ``helpers.scale``, ``pkg.sub.scale``, an import
in a function's body, a method of a class. For a module, all names count that the code uses as
attributes of anything; a few too many are harmless. Classes and functions that no name leads to, but
arguments and captured values do, are met when those are pickled, and are surveyed then (`roots`).

Guarantees
----------
- `Skeleton.values` returns None as soon as a function has other code, or a name that was resolved to
  a function, class or module resolves to another one: also after importlib.reload, whose mark is
  a new ``__spec__``, and after a module was removed and imported again.
- A module that is to be loaded lazily is not made to load.
"""

from __future__ import annotations

import abc
import builtins
import importlib.util
import itertools
import pickle
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, ModuleType
from typing import Any

from dsmfor.bytecode import NOTHING, Reading, assigns_globals, global_names, read
from dsmfor.design import (
    MISSING,
    Design,
    FunctionNumber,
    Imported,
    Made,
    ModuleNumber,
    Outlined,
    Path,
    Plan,
    Slot,
    Stays,
    Wrapped,
    contents,
    fundamental,
    kind_of,
    outline,
    parts_of,
)
from dsmfor.modules import (
    IMPORTED,
    INSTALLED,
    MADE,
    home,
    kind,
    listing,
    place_of,
    registered,
    space_of,
)
from dsmfor.pickling import UNREMARKABLE, dump, importable
from dsmfor.reachable import ATOMS
from dsmfor.transit import Outward

__all__ = ["Skeleton", "own_modules", "reach", "retired"]

_serials = itertools.count(1)
retired: deque[int] = deque()  # serials of skeletons that are gone, for workers to forget
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


def own_modules(kernel: FunctionType) -> frozenset[str]:
    """The modules whose functions and classes travel with a kernel by value."""
    return frozenset({kernel.__module__ or "__main__", "__main__"})


class Skeleton:
    """A kernel's code as it was when it was surveyed, and how to see whether it still is.

    Parameters
    ----------
    kernel : function
    roots : iterable of object
        Functions, classes and modules that the kernel is given although no name leads to them.
    """

    def __init__(self, kernel: FunctionType, roots: Iterable[Any] = ()) -> None:
        self.serial = next(_serials)
        self._listing = listing()
        made = (name for name, found in self._listing.items() if found == MADE)
        self.own = own_modules(kernel) | frozenset(made)
        self.functions: list[FunctionType] = []
        self.codes: list[CodeType] = []
        self.cells: list[CellType] = []
        self.modules: dict[str, Any] = {}  # the user's that workers import -> their __spec__
        self.known: set[int] = set(UNREMARKABLE)  # ids of what need not be met again
        self._paths: list[Path | None] = []  # of the functions, where an import finds them
        self._owners: list[int] = []  # of the functions, their namespaces
        self._defaults: list[Any] = []  # of the functions, or MISSING if they are a slot
        self._spaces: list[Made | Imported | Outlined] = []
        self._numbers: dict[Any, int] = {}  # id of a function, cell or namespace -> its number
        self._placed: set[tuple[int, str]] = set()
        self._checks: list[tuple[Mapping[str, Any], str, Any]] = []  # must be this very object
        self._hidden: list[tuple[Mapping[str, Any], str]] = []  # globals that must stay unbound
        self._sizes: list[tuple[Mapping[str, Any], int]] = []  # a new name is seen by this
        self._fixed: list[tuple[Slot, Any]] = []
        self._sources: list[tuple[Mapping[str, Any], str]] = []  # of `_data`
        self._data: list[Slot] = []  # globals whose values travel in the environment
        self._rest: list[Slot] = []  # cells, defaults, attributes
        self._attributes: set[str] = set()  # named by any code
        self._seen: dict[Any, Any] = {}  # what has been gone through, with what keeps its id alive
        self._failed: dict[int, tuple[Any, Stays]] = {}  # by slot: what cannot be pickled
        self._survey_all(kernel, roots)
        self.slots = self._data + self._rest
        self._imported = [n for n, slot in enumerate(self.slots) if self._is_imported(slot)]
        self._labels = list(map(self._label, self.slots))
        self._expected = [
            (f, code, defaults, f.__kwdefaults__ is not None, bool(f.__dict__))
            for f, code, defaults in zip(self.functions, self.codes, self._defaults, strict=True)
        ]
        self.numbers = {id(f): n for n, f in enumerate(self.functions)}
        # With nothing to bind and no global assigned, the worker may skip binding.
        self.constant = not self.slots and not any(map(assigns_globals, self.codes))
        self.data = self._pickle()

    def __del__(self) -> None:
        if self.serial:
            retired.append(self.serial)

    def succeed(self, other: Skeleton) -> bool:
        """Take the place of a skeleton that workers may have, if that one says the same."""
        if self.data != other.data:
            return False
        self.serial, other.serial = other.serial, 0
        self._failed = other._failed
        return True

    # -- the survey ----------------------------------------------------------------------------

    def _survey_all(self, kernel: FunctionType, roots: Iterable[Any]) -> None:
        loose = []  # modules of which it is not known what code has them
        self._add(kernel, None)
        for root in roots:
            self.known.add(id(root))
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
        if id(function) in self._numbers:
            return
        self._numbers[id(function)] = len(self.functions)
        self.known.add(id(function))
        self.functions.append(function)
        self.codes.append(function.__code__)
        by_name = importable(function, self.own) and kind(function.__module__) == IMPORTED
        if by_name:
            path = Path.of(function)
        if path is not None:
            self._import(path.module)
        self._paths.append(path)

    def _number(self, thing: Any, things: list[Any]) -> tuple[int, bool]:
        new = id(thing) not in self._numbers
        if new:
            self._numbers[id(thing)] = len(things)
            things.append(thing)
        return self._numbers[id(thing)], new

    def _space(self, space: dict[str, Any], *, imported: bool) -> int:
        """Number of the namespace that stands for this one in the worker."""
        key = id(space), imported
        if key not in self._numbers:
            self._numbers[key] = len(self._spaces)
            if imported:
                name = space["__name__"]
                self._spaces.append(Imported(name))
                self._import(name)
            else:
                names = ("__name__", "__file__", "__package__")
                self._spaces.append(Made({k: space[k] for k in names if k in space}, False))
                self._seen[key] = space
        return self._numbers[key]

    def _import(self, name: str) -> None:
        """The worker imports this module: see to it that it stays the same one."""
        if name in self.modules or kind(name) == INSTALLED:
            return
        module = sys.modules[name]
        space = space_of(module)
        self.modules[name] = space.get("__spec__")
        self._checks.append((sys.modules, name, module))
        self._checks.append((space, "__spec__", space.get("__spec__", MISSING)))

    def _survey(self, function: FunctionType, number: int) -> None:
        """Find the slots of one function, and the functions behind them."""
        reading = self._read(function)
        space = function.__globals__
        path = self._paths[number]
        where = home(space)
        library = where is not None and kind(where) == INSTALLED
        imported = library or (where is not None and where not in self.own)
        owner = self._space(space, imported=imported)
        self._owners.append(owner)
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
                self._rest.append(Slot("cell", owner, name))
        fixed = fundamental(function.__defaults__)
        self._defaults.append(function.__defaults__ if fixed else MISSING)
        if not fixed:
            self._rest.append(Slot("__defaults__", number, ""))
        for name in ("__kwdefaults__", "__dict__"):
            if getattr(function, name):
                self._rest.append(Slot(name, number, ""))

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
        if isinstance(value, ModuleType):
            self._module(value, reading)  # each code names other attributes of it
        if (owner, name) in self._placed:
            return
        self._placed.add((owner, name))
        if source is not space:
            self._hidden.append((space, name))
        slot = Slot("global", owner, name)
        place = self._spaces[owner]
        path = None if isinstance(place, Made) else place.path().to("of", name)
        if self._place(slot, value, reading, path):
            self._checks.append((source, name, value))
        else:
            self._data.append(slot)
            self._sources.append((source, name))

    def _place(self, slot: Slot, value: Any, reading: Reading, path: Path | None) -> bool:
        """Sort one global: True if it belongs to the skeleton, False if it is data."""
        self._meet(value, reading, path)
        fixed = value
        if type(value) is FunctionType:
            if id(value) in self._numbers:
                fixed = FunctionNumber(self._numbers[id(value)])
        elif isinstance(value, ModuleType):
            name = registered(value)
            if name is None:
                return False
            if kind(name) == MADE:
                fixed = ModuleNumber(self._space(space_of(value), imported=False))
        elif isinstance(value, (BuiltinFunctionType, type)):
            if not importable(value, self.own):
                return False
        elif (wrapped := self._wrapped(value, path)) is not None:
            fixed = wrapped
        elif value is not MISSING:
            return False
        self._fixed.append((slot, fixed))
        return True

    def _wrapped(self, value: Any, path: Path | None) -> Wrapped | None:
        """How the worker knows again what a decorator has made of a function it imports."""
        parts = parts_of(value)
        if not parts:
            return None
        by_name = importable(value, self.own) and kind(value.__module__) == IMPORTED
        if by_name:
            path = Path.of(value)
        if path is None:
            return None
        numbers = {name: self._numbers.get(id(part)) for name, part in parts.items()}
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
        elif isinstance(value, ModuleType):
            self._module(value, reading)
        elif isinstance(value, type):
            for base in value.__mro__:
                found = kind(base.__module__) if isinstance(base.__module__, str) else INSTALLED
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
            self._spaces[owner] = self._spaces[owner]._replace(is_module=True)  # type: ignore
        if (owner, id(reading)) in self._seen:
            return
        if ("size", owner) not in self._seen:
            self._seen["size", owner] = True
            self._sizes.append((space, len(space)))
        self._seen[owner, id(reading)] = reading
        self.known.add(id(module))
        for name in [n for n in space if n in reading.attributes or n == "__getattr__"]:
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
                    self._checks.append((sys.modules, whole[:end], MISSING))

    def _adopt(self, cls: type) -> None:
        """A class that the worker imports: its functions, and its data, are as they are here."""
        if ("class", id(cls)) in self._seen:
            return
        self._seen["class", id(cls)] = cls
        self.known.add(id(cls))
        self._import(cls.__module__)
        space = vars(cls)
        owner = len(self._spaces)
        path = Path.of(cls)
        self._spaces.append(Outlined(path, outline(cls), frozenset(space)))
        self._sizes.append((space, len(space)))
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
            if isinstance(value, (FunctionType, ModuleType, type)):
                self._checks.append((space, name, value))
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

    # -- what is sent --------------------------------------------------------------------------

    def _pickle(self) -> bytes:
        names = sorted(self.modules, key=list(self._listing).index)
        modules = [(name, place_of(space_of(sys.modules[name]))) for name in names]
        design = Design(
            self._spaces,
            len(self.cells),
            [
                Plan(
                    f.__code__,
                    owner,
                    f.__name__,
                    f.__qualname__,
                    None
                    if f.__closure__ is None
                    else tuple(self._numbers[id(cell)] for cell in f.__closure__),
                    defaults,
                    path,
                )
                for f, owner, defaults, path in zip(
                    self.functions, self._owners, self._defaults, self._paths, strict=True
                )
            ],
            self._fixed,
            self.slots,
        )
        others = [name for name, found in self._listing.items() if found == IMPORTED]
        rest = dump(tuple(design), own=self.own)
        return pickle.dumps((modules, others if modules else [], rest))

    def _is_imported(self, slot: Slot) -> bool:
        """Whether a slot is filled, without us, by the worker's import."""
        if slot.kind == "global":
            return not isinstance(self._spaces[slot.owner], Made)
        if slot.kind == "cell":
            cell = self.cells[slot.owner]
            return all(
                path is not None
                for f, path in zip(self.functions, self._paths, strict=True)
                if cell in (f.__closure__ or ())
            )
        return self._paths[slot.owner] is not None

    def _label(self, slot: Slot) -> str:
        """The user's name for a slot."""
        if slot.kind != "global":
            return slot.name
        place = self._spaces[slot.owner]
        return slot.name if isinstance(place, Made) else f"{place.path()}.{slot.name}"

    # -- at each call --------------------------------------------------------------------------

    def values(self) -> list[Any] | None:
        """The present value of every slot, or None if the skeleton is out of date."""
        for function, code, defaults, keywords, adorned in self._expected:
            if (
                function.__code__ is not code
                or (function.__defaults__ is not defaults and defaults is not MISSING)
                or (function.__kwdefaults__ is not None) is not keywords
                or bool(function.__dict__) is not adorned
            ):
                return None
        for space, name in self._hidden:
            if name in space:
                return None
        for space, name, expected in self._checks:
            if space.get(name, MISSING) is not expected:
                return None
        for space, size in self._sizes:
            if len(space) != size:
                return None
        values = []
        for space, name in self._sources:
            value = space.get(name, MISSING)
            if type(value) is FunctionType or isinstance(value, ModuleType):
                if type(value) is FunctionType or registered(value) is not None:
                    return None
            values.append(value)
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
        """(name, value) of every variable that the kernel or a helper of it captures.

        Those of modules that are imported have their module's name before them.
        """
        for slot, label, value in zip(self.slots, self._labels, values, strict=True):
            if slot.kind in ("global", "cell"):
                yield label, value

    def pack(
        self, values: list[Any], args: tuple[Any, ...], kwargs: dict[str, Any], transit: Outward
    ) -> bytes:
        """Pickle values and arguments, in one dump.

        What other modules have that cannot be pickled, such as a lock or a connection, is left to
        the worker's own import.
        """
        transit.known = self.known
        values = self._without(values, self._failed)
        try:
            return dump((values, args, kwargs), transit, self.own)
        except Exception:
            if not (failed := self._unpicklable(values)):
                raise
        self._failed |= failed
        transit.reset()
        return dump((self._without(values, failed), args, kwargs), transit, self.own)

    def _unpicklable(self, values: list[Any]) -> dict[int, tuple[Any, Stays]]:
        failed = {}
        for n in self._imported:
            value = values[n]
            if type(value) not in ATOMS and type(value) is not Stays:
                try:
                    dump(value, Outward(self.numbers, {}, True), self.own)
                except Exception as error:
                    why = f"{type(error).__name__}: {error}"
                    failed[n] = value, Stays(kind_of(value), why)
        return failed

    @staticmethod
    def _without(values: list[Any], failed: dict[int, tuple[Any, Stays]]) -> list[Any]:
        """The values, but for those that are known not to be picklable."""
        if not failed:
            return values
        values = list(values)
        for n, (value, stays) in failed.items():
            if values[n] is value:
                values[n] = stays
        return values


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
