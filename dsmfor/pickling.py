"""Objects to bytes and back, with every shared array by handle.

Three picklers, from cheap to general. A tuple of numbers and shared arrays goes through the C
pickler with a small `reducer_override`; as soon as that meets what only cloudpickle can carry (a
function or class that the other side cannot import), the whole dump is done again by cloudpickle.
What the bytes are for is payload.py's.

Guarantees
----------
- A shared array is pickled as (segment, offset, shape, strides, dtype, writeable) wherever it is
  met, never by value; `Dump.segments` names the segments that the reader must be able to map.
- Nothing that is pickled is changed, nor is the user's own use of cloudpickle.
"""

from __future__ import annotations

import functools
import gc
import io
import itertools
import os
import pickle
import sys
import threading
from collections.abc import MutableMapping
from importlib import import_module
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, NamedTuple, NoReturn

import cloudpickle
import numpy as np

from dsmfor import arrays

__all__ = ["Dump", "dump", "importable", "load", "load_classes_anew"]

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


class Dump(NamedTuple):
    """Pickled bytes, and the segments whose arrays they name."""

    data: bytes
    segments: set[int]


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


class _Context:
    """What the values of one dump are replaced by."""

    def __init__(
        self,
        functions: dict[int, int],
        staged: dict[int, np.ndarray],
        own: frozenset[str],
        copied: frozenset[int],
    ) -> None:
        self.functions = functions  # id of a function of the skeleton -> its number there
        self.staged = staged  # id of a plain array -> the shared view that stands for it
        self.own = own  # modules whose functions and classes go by value
        self.copied = copied
        self.segments: set[int] = set()

    def array(self, value: np.ndarray) -> Any:
        handle = arrays.handle(self.staged.get(id(value), value))
        if handle is None or handle[0] in self.copied:
            return NotImplemented
        self.segments.add(handle[0])
        return arrays.rebuild, (handle,)


class _Cheap(pickle.Pickler):
    """For data: exact about arrays, refuses what would be looked up by name in vain."""

    def __init__(self, file: io.BytesIO, context: _Context) -> None:
        super().__init__(file, _PROTOCOL)
        self.context = context

    def reducer_override(self, value: Any) -> Any:
        kind = type(value)
        if kind is np.ndarray:
            return self.context.array(value)
        if kind is FunctionType:
            number = self.context.functions.get(id(value))
            if number is not None:
                return _recall, (number,)
        elif kind is ModuleType:
            name: str = value.__name__
            if sys.modules.get(name) is not value:
                raise _NeedsCloudpickle
            return import_module, (name,)
        elif isinstance(value, type):
            if _received and (reduced := _class_by_number(value)) is not None:
                return reduced
        elif kind is _CACHED:
            raise _NeedsCloudpickle
        elif (travel := getattr(kind, "_travel", None)) is not None:
            return travel(value)
        else:
            return NotImplemented
        if not importable(value, self.context.own):
            raise _NeedsCloudpickle
        return NotImplemented


class _General(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    """For everything else."""

    def __init__(self, file: io.BytesIO, context: _Context) -> None:
        super().__init__(file, _PROTOCOL)
        self.context = context

    def reducer_override(self, value: Any) -> Any:
        if type(value) is np.ndarray:
            return self.context.array(value)
        if type(value) is FunctionType:
            number = self.context.functions.get(id(value))
            if number is not None:
                return _recall, (number,)
        elif isinstance(value, type):
            if _received and (reduced := _class_by_number(value)) is not None:
                return reduced
        elif (travel := getattr(type(value), "_travel", None)) is not None:
            return travel(value)
        elif type(value) is _CACHED and not importable(value, self.context.own):
            return _cached, (value.__wrapped__, value.cache_parameters())
        reduced = super().reducer_override(value)
        if isinstance(value, type) and "__slots__" in vars(value) and reduced is not NotImplemented:
            _make_slots(reduced, vars(value)["__slots__"])
        return reduced


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


def dump(
    value: object,
    *,
    functions: dict[int, int] | None = None,
    staged: dict[int, np.ndarray] | None = None,
    own: frozenset[str] = frozenset(),
    copied: frozenset[int] = frozenset(),
) -> Dump:
    """Pickle `value`.

    Parameters
    ----------
    value : object
    functions : dict of int to int, optional
        Ids of functions that the reader has already, and their numbers (see `load`).
    staged : dict of int to ndarray, optional
        Ids of plain arrays, and the shared arrays to send in their place.
    own : frozenset of str
        Names of modules whose functions and classes go by value.
    copied : frozenset of int, optional
        Segments whose arrays go by value: they will not last.

    Returns
    -------
    Dump

    Raises
    ------
    Exception
        Whatever the object's own pickling raises.
    """
    context = _Context(functions or {}, staged or {}, own, copied)
    file = io.BytesIO()
    try:
        _Cheap(file, context).dump(value)
    except (_NeedsCloudpickle, pickle.PicklingError, TypeError, AttributeError, ImportError):
        context.segments.clear()
        file = io.BytesIO()
        with _switch:
            registered = cloudpickle.list_registry_pickle_by_value()
            found = {module.__name__: module for name in own if (module := sys.modules.get(name))}
            flipped = [module for name, module in found.items() if name not in registered]
            for module in flipped:
                cloudpickle.register_pickle_by_value(module)
            try:
                _General(file, context).dump(value)
            finally:
                for module in flipped:
                    cloudpickle.unregister_pickle_by_value(module)
    return Dump(file.getvalue(), context.segments)


def _make_slots(reduced: Any, slots: Any) -> None:
    """Have cloudpickle make a class with its slots: set afterwards, they are an attribute."""
    if isinstance(reduced, tuple) and reduced[0] is cloudpickle.cloudpickle._make_skeleton_class:
        reduced[1][3]["__slots__"] = slots


def _cached(function: Any, parameters: dict[str, Any]) -> Any:
    """What functools.lru_cache makes of a function; the cache itself stays behind."""
    return functools.lru_cache(**parameters)(function)


class _Loading(threading.local):
    functions: list[FunctionType] | None = None


_loading = _Loading()


def load(data: bytes, functions: list[FunctionType] | None = None) -> Any:
    """What `dump` was given.

    Parameters
    ----------
    data : bytes
    functions : list of function, optional
        What the numbers of `dump`'s `functions` stand for here.
    """
    _loading.functions = functions
    try:
        return pickle.loads(data)
    finally:
        _loading.functions = None


def load_classes_anew(data: bytes, functions: list[FunctionType]) -> Any:
    """`load`, in a worker, of what came from the caller.

    Classes that travel by value are made anew, so that nothing is left of what an earlier kernel,
    or an earlier state of the caller, had made of them.
    """
    for number in _received:
        _by_number.pop(number, None)
    _received.clear()
    before = set(_by_number)
    try:
        return load(data, functions)
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


def _own_switch() -> None:
    """In a forked child: the thread that was dumping is not here."""
    global _switch
    _switch = threading.Lock()


os.register_at_fork(after_in_child=_own_switch)
