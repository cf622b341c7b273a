"""Objects to bytes and back, with every shared array by handle.

Two picklers, a cheap and a general one. A tuple of numbers and shared arrays goes through the C
pickler with a small `reducer_override`; as soon as that meets what only cloudpickle can carry (a
function or class that the other side cannot import), the whole dump is done again by cloudpickle.
How arrays cross is transit.py's, what the bytes are for is payload.py's.

Guarantees
----------
- Nothing that is pickled is changed, nor is the user's own use of cloudpickle.
"""

from __future__ import annotations

import copyreg
import functools
import gc
import itertools
import marshal
import os
import pickle
import sys
import threading
from collections.abc import MutableMapping, Sequence
from importlib import import_module
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any, NoReturn

import cloudpickle
import numpy as np

from dsmfor import arrays, limits
from dsmfor.arrivals import Table, arriving
from dsmfor.errors import SharedMemoryFull
from dsmfor.handlers import by_handler
from dsmfor.modules import MADE, kind, registered, space_of
from dsmfor.transit import Homeward, Transit

__all__ = ["UNREMARKABLE", "dump", "importable", "load", "load_classes_anew"]

_PROTOCOL = 5
_CACHED = type(functools.lru_cache(len))
# Register-by-value is a global switch of cloudpickle: one dump at a time may flip it.
_switch = threading.Lock()

# cloudpickle numbers every class that it sends by value, and knows it again by that number.
_by_class: MutableMapping[type, str] = cloudpickle.cloudpickle._DYNAMIC_CLASS_TRACKER_BY_CLASS
_by_number: MutableMapping[str, type] = cloudpickle.cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID
_made_anew = itertools.count(1)  # loads that made classes
_COLLECT_EVERY = 32
_received: set[str] = set()  # numbers of classes that came by value from the caller


def _class_by_number(value: type) -> Any:
    """How a class that was received by value goes back: as the number that its owner gave it.

    By value it would overwrite the owner's: its functions with others of the same name, its
    attributes with those that it was sent with.
    """
    number = _by_class.get(value)
    return (_known_class, (number,)) if number in _received else None


def _known_class(number: str) -> type:
    try:
        return _by_number[number]
    except KeyError:
        raise pickle.UnpicklingError(
            "a class of this kernel is gone from the process that defined it"
        ) from None


class _NeedsCloudpickle(Exception):
    """The cheap pickler met something that cannot be imported elsewhere."""


class _Sheet:
    """What a pickler writes to: the parts, of which large ones are the objects' own bytes."""

    __slots__ = ("parts",)

    def __init__(self) -> None:
        self.parts: list[bytes | pickle.PickleBuffer] = []

    def write(self, part: bytes | pickle.PickleBuffer) -> None:
        """Take the next bytes."""
        self.parts.append(part)

    def text(self) -> bytes:
        """All of it in one piece, refused if there is no room for that."""
        parts = self.parts
        if len(parts) == 1:
            return bytes(parts[0])
        nbytes = sum(memoryview(part).nbytes for part in parts)
        if nbytes >= limits.LARGE:
            limits.check(nbytes, "a pickle of {}")
        return b"".join(parts)


class _Cheap(pickle.Pickler):
    """For data: exact about arrays, refuses what would be looked up by name in vain."""

    def __init__(self, file: _Sheet, transit: Transit, own: frozenset[str]) -> None:
        super().__init__(file, _PROTOCOL, buffer_callback=transit.inline)
        self.transit = transit
        self.own = own

    def reducer_override(self, value: Any) -> Any:
        kind = type(value)
        if kind is np.ndarray:
            return self.transit.array(value)
        if kind is FunctionType:
            if value is arrays.rebuild:
                return NotImplemented
            number = self.transit.numbers.get(id(value))
            if number is not None:
                return _recall, (number,)
        elif issubclass(kind, ModuleType):  # isinstance makes a lazy one load
            return _module(value, self.transit) or _need_cloudpickle()
        elif isinstance(value, type):
            if _received and (reduced := _class_by_number(value)) is not None:
                return reduced
        elif kind is _CACHED:
            raise _NeedsCloudpickle
        elif kind is CodeType:
            # Version 0 marks no string as interned: from Python 3.12 on those live for ever.
            return marshal.loads, (marshal.dumps(value, 0),)
        elif (travel := getattr(kind, "_travel", None)) is not None:
            return travel(value)
        else:
            return self.transit.other(value, kind, copyreg.dispatch_table)
        if not importable(value, self.own):
            raise _NeedsCloudpickle
        self.transit.refer(value)
        return NotImplemented


class _General(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    """For everything else."""

    def __init__(self, file: _Sheet, transit: Transit, own: frozenset[str]) -> None:
        super().__init__(file, _PROTOCOL, buffer_callback=transit.inline)
        self.transit = transit
        self.own = own

    def reducer_override(self, value: Any) -> Any:
        if type(value) is np.ndarray:
            return self.transit.array(value)
        if type(value) is FunctionType:
            number = self.transit.numbers.get(id(value))
            if number is not None:
                return _recall, (number,)
            self.transit.refer(value)
        elif issubclass(type(value), ModuleType):
            return _module(value, self.transit) or _module_by_value(value)
        elif isinstance(value, type):
            if _received and (reduced := _class_by_number(value)) is not None:
                return reduced
            self.transit.refer(value)
        elif (travel := getattr(type(value), "_travel", None)) is not None:
            return travel(value)
        elif type(value) is _CACHED and not importable(value, self.own):
            return _cached, (value.__wrapped__, value.cache_parameters())
        elif type(value) is functools.cached_property:  # it holds a lock, before Python 3.12
            return _cached_property, (value.func, value.attrname)
        reduced = super().reducer_override(value)
        if reduced is NotImplemented:
            return self.transit.other(value, type(value), self.dispatch_table)
        if isinstance(value, type) and vars(value).get("__slots__"):
            _make_slots(reduced, vars(value)["__slots__"])
        return reduced


def _need_cloudpickle() -> NoReturn:
    raise _NeedsCloudpickle


def _module(value: ModuleType, transit: Transit) -> Any:
    """How a module goes by its name, None if the other side cannot import this very one."""
    transit.refer(value)
    name = registered(value)
    if name is None or (kind(name) == MADE and name != "__main__"):
        return None
    return import_module, (name,)


def _module_by_value(value: ModuleType) -> Any:
    """One made by code, or of which `sys.modules` has another: cloudpickle goes by the name."""
    space = {name: item for name, item in space_of(value).items() if name != "__builtins__"}
    for name in ("__spec__", "__loader__"):
        space.pop(name, None)
    return cloudpickle.cloudpickle.dynamic_subimport, (space.get("__name__", ""), space)


def importable(value: Any, own: frozenset[str] = frozenset()) -> bool:
    """Whether another process gets this very function or class by importing it.

    Parameters
    ----------
    value : function, builtin or class
    own : frozenset of str
        Modules that travel by value although they may be importable.
    """
    module = getattr(value, "__module__", None)
    name = getattr(value, "__qualname__", None)
    if module is None and isinstance(value, BuiltinFunctionType):
        module = "builtins"
    if not isinstance(module, str) or not name or module in own or module == "__main__":
        return False
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is value


def dump(value: object, transit: Transit | None = None, own: frozenset[str] = frozenset()) -> bytes:
    """Pickle `value`.

    Parameters
    ----------
    value : object
    transit : Transit, optional
        How arrays cross; it knows afterwards which it has met, and has the buffers that stayed out
        of the pickle. Default: as results do.
    own : frozenset of str
        Names of modules whose functions and classes go by value.

    Raises
    ------
    SharedMemoryFull
        There is no memory for the pickle.
    Exception
        Whatever the object's own pickling raises.
    """
    try:
        return _dump(value, Homeward() if transit is None else transit, own)
    except MemoryError as error:
        if isinstance(error, SharedMemoryFull):
            raise
        raise limits.exhausted(f"the pickle of a {type(value).__qualname__}") from error


def _dump(value: object, transit: Transit, own: frozenset[str]) -> bytes:
    file = _Sheet()
    try:
        _Cheap(file, transit, own).dump(value)
    except (
        _NeedsCloudpickle,
        pickle.PicklingError,
        TypeError,
        ValueError,  # of code with constants that no compiler makes
        AttributeError,
        ImportError,
    ) as error:
        if by_handler(error):
            raise
        transit.reset()
        file = _Sheet()
        with _switch:
            registered = cloudpickle.list_registry_pickle_by_value()
            found = {module.__name__: module for name in own if (module := sys.modules.get(name))}
            flipped = [module for name, module in found.items() if name not in registered]
            for module in flipped:
                cloudpickle.register_pickle_by_value(module)
            try:
                _General(file, transit, own).dump(value)
            finally:
                for module in flipped:
                    cloudpickle.unregister_pickle_by_value(module)
    return file.text()


def _make_slots(reduced: Any, slots: Any) -> None:
    """Have cloudpickle make a class with its slots: set afterwards, they are an attribute."""
    if isinstance(reduced, tuple) and reduced[0] is cloudpickle.cloudpickle._make_skeleton_class:
        reduced[1][3]["__slots__"] = slots


def _cached(function: Any, parameters: dict[str, Any]) -> Any:
    """What functools.lru_cache makes of a function; the cache itself stays behind."""
    return functools.lru_cache(**parameters)(function)


def _cached_property(function: Any, name: str) -> Any:
    """A `functools.cached_property` in a class that has it by that name."""
    made = functools.cached_property(function)
    made.attrname = name
    return made


class _Loading(threading.local):
    functions: list[FunctionType] | None = None


_loading = _Loading()


def load(
    data: bytes | memoryview,
    functions: list[FunctionType] | None = None,
    table: Table | None = None,
    buffers: Sequence[memoryview] = (),
) -> Any:
    """What `dump` was given.

    Parameters
    ----------
    data : bytes
    functions : list of function, optional
        What the numbers of the dump's functions stand for here.
    table : Table, optional
        Where the dump's plain arrays have been staged.
    buffers : sequence of memoryview, optional
        What stayed out of the pickle.
    """
    _loading.functions = functions
    arriving.table = table or []
    try:
        return pickle.loads(data, buffers=buffers)
    finally:
        _loading.functions = None
        arriving.table = []


def load_classes_anew(
    data: bytes | memoryview,
    functions: list[FunctionType],
    table: Table,
    buffers: Sequence[memoryview],
) -> Any:
    """`load`, in a worker, of what came from the caller.

    Classes that travel by value are made anew, so that nothing is left of what an earlier kernel,
    or an earlier state of the caller, had made of them.
    """
    for number in _received:
        _by_number.pop(number, None)
    _received.clear()
    before = set(_by_number)
    try:
        return load(data, functions, table, buffers)
    finally:
        if len(_by_number) > len(before):
            _received.update(set(_by_number) - before)
            if next(_made_anew) % _COLLECT_EVERY == 0:
                gc.collect()  # a class is a cycle


def _recall(number: int) -> FunctionType:
    functions = _loading.functions
    if functions is None:
        _outside()
    return functions[number]


def _outside() -> NoReturn:
    raise pickle.UnpicklingError("a function of a kernel was unpickled outside its worker")


UNREMARKABLE = frozenset(map(id, (_recall, arrays.rebuild)))
"""Ids of functions of ours that most dumps refer to."""


def _own_switch() -> None:
    """In a forked child: the thread that was dumping is not here."""
    global _switch
    _switch = threading.Lock()


os.register_at_fork(after_in_child=_own_switch)
