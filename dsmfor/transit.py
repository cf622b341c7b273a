"""How each array, and each object that holds arrays, crosses to another process.

The picklers of pickling.py ask here. On the way out, to the workers, the rules are those of the
user: an array in shared memory goes by handle, a plain one is noted down to be staged once for all
workers, a memory map goes by its file. Nobody loses a write unseen: what is not to be written back
arrives read-only, unless it is private or belongs to an object of an installed package, whose own
code may need to write there. Large ones of those stay out of the pickle (PEP 574): all workers map
the same bytes, and a page is copied when a worker writes it. On the way home, results go by handle
or by value.

Guarantees
----------
- An array object that is met twice in a dump is one object on the other side.
- What is noted down in `Outward.plain` is kept alive, and its id with it.
"""

from __future__ import annotations

import ctypes
import pickle
from collections.abc import Callable, Mapping
from types import FunctionType, ModuleType
from typing import Any, Literal, NamedTuple, Protocol, cast

import numpy as np

from dsmfor import arrays, arrivals, filemaps, limits
from dsmfor._native import registry
from dsmfor.modules import INSTALLED, kind, space_of
from dsmfor.origin import installed

__all__ = [
    "Homeward",
    "Outward",
    "Plain",
    "Private",
    "Transit",
    "clear",
    "is_live",
]

_SCALARS = (np.generic, np.dtype, np.ufunc)
_APART = 2 << 20  # bytes from which on mapping a buffer is faster than copying it


class Plain(NamedTuple):
    """A plain array, and what the kernel does with it."""

    array: np.ndarray
    intent: str  # "in" | "out" | "inout"


class Private:
    """Stands for a value of which every worker gets a copy of its own."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value


class Transit(Protocol):
    """What a pickler asks about arrays and objects. Answers are those of `reducer_override`."""

    segments: set[int]  # whose arrays were met
    numbers: Mapping[int, int]  # id of a function that the other side has -> its number there

    def reset(self) -> None:
        """The dump begins anew."""

    def refer(self, value: Any) -> None:
        """A function, class or module goes: one that the skeleton does not know is noted."""

    def array(self, value: np.ndarray) -> Any:
        """How an object that is exactly an ndarray crosses."""

    def other(self, value: Any, kind: type, table: Mapping[type, Callable[[Any], Any]]) -> Any:
        """How any other object crosses; `table` holds reducers by type."""

    def inline(self, buffer: pickle.PickleBuffer) -> bool:
        """Whether bytes that may stay out of the pickle go into it nevertheless."""


def is_live(array: np.ndarray) -> bool:
    """Whether workers see the very memory of an array: it is shared, or a mapped file's."""
    return arrays.is_shared(array) or filemaps.by_file(array, None) is not None


def clear(outs: list[np.ndarray], others: list[np.ndarray]) -> None:
    """Zero arrays of intent 'out', but for what others bring in."""
    kept = [
        (array, array.copy())
        for array in others
        if any(np.may_share_memory(array, out) for out in outs)
    ]
    for array in outs:
        array[...] = np.zeros((), array.dtype)
    for array, values in kept:
        np.copyto(_writable(array), values)


class Homeward:
    """From a worker to the caller or to its peers.

    Parameters
    ----------
    copied : frozenset of int
        Segments whose arrays go by value: they will not last.
    """

    numbers: Mapping[int, int] = {}

    def __init__(self, copied: frozenset[int] = frozenset()) -> None:
        self.copied = copied
        self.segments: set[int] = set()

    def reset(self) -> None:
        """The dump begins anew."""
        self.segments.clear()

    def refer(self, value: Any) -> None:
        """The caller knows its own."""

    def array(self, value: np.ndarray) -> Any:
        """By handle if it lies in shared memory that lasts."""
        handle = arrays.handle(value)
        if handle is None or handle[0] in self.copied:
            _check(value)
        if handle is None or (handle[0] in self.copied and value.flags.writeable):
            return _plainly(value)
        if handle[0] in self.copied:
            return arrivals.same, (value.copy(order="K"),)
        self.segments.add(handle[0])
        return arrays.rebuild, (handle,)

    def other(self, value: Any, kind: type, table: Mapping[type, Callable[[Any], Any]]) -> Any:  # noqa: ARG002  # the protocol's
        """As it pickles itself."""
        return NotImplemented

    def inline(self, buffer: pickle.PickleBuffer) -> bool:  # noqa: ARG002  # the protocol's
        """A result is one piece."""
        return True


class Outward:
    """From the caller to the workers.

    Parameters
    ----------
    numbers : mapping of int to int
        Ids of the skeleton's functions, and their numbers.
    intents : dict of int to str
        Ids of arrays that the user has named, or could have: 'in', 'out', 'inout', 'private', or
        'unnamed'. Whoever made it keeps the arrays alive.
    everything_private : bool
        Whether what is not named goes as a copy for each worker.
    watched : bool
        Whether `clear` will be called.

    Attributes
    ----------
    shared : list of ndarray
        The arrays that went by handle: who lets go of them lets go of their memory.
    plain : dict of int to Plain
        The plain arrays that were met, by id, in the order of their numbers.
    buffers : list of memoryview
        Large ones that stayed out of the pickle, in the order in which it takes them.
    strangers : list of object
        The user's functions, classes and modules that are none of the `known`, if that is given.
    """

    def __init__(
        self,
        numbers: Mapping[int, int],
        intents: dict[int, str],
        everything_private: bool = False,
        watched: bool = False,
    ) -> None:
        self.numbers = numbers
        self.intents = intents
        self.everything_private = everything_private
        self.segments: set[int] = set()
        self.shared: list[np.ndarray] = []
        self.plain: dict[int, Plain] = {}
        self.buffers: list[memoryview] = []
        self.met: set[int] = set()  # ids of named arrays
        self.known: set[int] | None = None  # ids of what the skeleton has surveyed
        self.strangers: list[Any] = []
        self._positions: dict[int, int] = {}
        self._watched = watched
        self._live: list[np.ndarray] = []  # that need no copy
        self._private = 0  # depth of objects whose arrays are theirs
        self._kept: list[Any] = []  # what was made for this dump: its ids must stay its own

    def reset(self) -> None:
        """The dump begins anew."""
        self.segments.clear()
        self.shared.clear()
        self.plain.clear()
        self.buffers.clear()
        self.met.clear()
        self.strangers.clear()
        self._positions.clear()
        self._kept.clear()
        self._live.clear()
        self._private = 0

    def refer(self, value: Any) -> None:
        """Note a function, class or module of the user's that the skeleton does not know."""
        known = self.known
        if known is None or id(value) in known:
            return
        if type(value) is FunctionType and id(value.__code__) in known:
            return
        named = space_of(value).get("__name__") if issubclass(type(value), ModuleType) else None
        module = named or value.__module__
        if isinstance(module, str) and kind(module) != INSTALLED:
            self.strangers.append(value)

    def array(self, value: np.ndarray) -> Any:
        """By handle, by the number of its staged copy, by file or by value."""
        handle = arrays.handle(value)
        intent = self.intents.get(id(value))
        if intent is not None:
            self.met.add(id(value))
        if handle is not None and intent != "private":
            if intent == "in":
                handle = (*handle[:5], False)
            if self._watched:
                self._live.append(value)
            self.segments.add(handle[0])
            self.shared.append(value)
            return arrays.rebuild, (handle,)
        free = intent is None or intent == "unnamed"
        if intent != "private" and (reduced := filemaps.by_file(value, intent)) is not None:
            self._live.append(value)
            return reduced
        if intent == "private" or (free and self.everything_private):
            return self._by_value(value)
        if intent is None and self._private:
            return self._by_value(value)
        if value.nbytes == 0 and value.dtype.kind != "T":
            return _plainly(value)
        if value.dtype.hasobject or value.dtype.kind == "T":
            return _frozen(cast("tuple[Any, ...]", value.__reduce__()))
        number = self._positions.setdefault(id(value), len(self._positions))
        self.plain[id(value)] = Plain(value, "in" if free else str(intent))
        return arrivals.staged, (number,)

    def other(self, value: Any, kind: type, table: Mapping[type, Callable[[Any], Any]]) -> Any:
        """Subclasses of ndarray, private values, and objects of installed packages."""
        if kind is Private:
            return self._copied(value.value)
        if kind is _Border:
            self._private += value.step
            return arrivals.nothing, ()
        module = kind.__module__
        if module == "builtins" or not isinstance(module, str):
            return NotImplemented
        if issubclass(kind, np.ndarray):
            return self._subclass(value, kind)
        if installed(module) and not issubclass(kind, _SCALARS):
            return self._enclosed(value, table.get(kind))
        return NotImplemented

    def inline(self, buffer: pickle.PickleBuffer) -> bool:
        """Small ones: what is large is kept in `buffers`."""
        try:
            data = buffer.raw()
        except BufferError:  # it is in pieces: pickle says so
            return True
        if data.nbytes < _APART or not isinstance(data.obj, np.ndarray):  # it would be a memoryview
            return True
        self.buffers.append(data)
        return False

    def clear(self, outs: list[np.ndarray]) -> None:
        """Zero the live arrays of intent 'out', but for what other views bring in."""
        outs = [
            array
            for array in outs
            if self.intents.get(id(array)) == "out" and id(array) not in self.plain
        ]
        elsewhere = any(filemaps.by_file(out, None) is not None for out in outs)  # mapped twice
        for n, buffer in enumerate(self.buffers):
            data = np.frombuffer(buffer, np.uint8)
            if elsewhere or any(np.may_share_memory(data, out) for out in outs):
                self.buffers[n] = data.copy().data
        clear(outs, [a for a in self._live if self.intents.get(id(a)) != "out"])

    def _by_value(self, value: np.ndarray) -> Any:
        """A copy that may be written, whatever the original says."""
        _check(value)
        if value.flags.writeable:
            return _plainly(value)
        return arrivals.same, (self._keep(value.copy(order="K")),)

    def _keep(self, array: np.ndarray) -> np.ndarray:
        """An array of this dump's own, to go by value."""
        self._kept.append(array)
        self.intents = {**self.intents, id(array): "private"}
        return array

    def _copied(self, value: Any) -> Any:
        """A private value, also if the same object is shared under another name."""
        if type(value) is np.ndarray:
            _check(value)
            value = value.view() if value.flags.writeable else value.copy()
            return arrivals.same, (self._keep(value),)
        return arrivals.inner, (self._border(1), value, self._border(-1))

    def _border(self, step: int) -> _Border:
        border = _Border(step)
        self._kept.append(border)
        return border

    def _subclass(self, value: np.ndarray, kind: type) -> Any:
        intent = self.intents.get(id(value))
        if intent is not None:
            self.met.add(id(value))
        if kind is np.memmap and intent != "private":
            reduced = filemaps.by_file(value, intent)
            if reduced is not None:
                self._live.append(value)
                return reduced
        if intent == "private" or (intent is None and (self._private or self.everything_private)):
            return NotImplemented
        return _frozen(cast("tuple[Any, ...]", value.__reduce_ex__(2)))

    def _enclosed(self, value: Any, reducer: Callable[[Any], Any] | None) -> Any:
        """An object as it pickles itself, its arrays marked as its own business.

        The marks are pickled before and after its parts, and change how arrays in between cross.
        """
        reduced = value.__reduce_ex__(5) if reducer is None else reducer(value)
        if isinstance(reduced, str):
            return reduced
        function, arguments, state, items, pairs, setter = (*reduced, *(None,) * 4)[:6]
        made = (arrivals.call, (self._border(1), function, arguments, self._border(-1)))
        if state is None and items is None and pairs is None:
            return made
        rest = (
            self._border(1),
            state,
            None if items is None else list(items),
            None if pairs is None else list(pairs),
            setter,
            self._border(-1),
        )
        return *made, rest, None, None, arrivals.complete


def _check(array: np.ndarray) -> None:
    """Refuse to send by value what has no room in a pickle, before it is copied for that."""
    if array.nbytes >= limits.LARGE:
        limits.check(array.nbytes, "a copy of an array of {}, which goes by value,")


def _writable(array: np.ndarray) -> np.ndarray:
    """The same elements, for memory that may be written though this view of it may not."""
    low, high = registry.span(array)
    raw = memoryview((ctypes.c_char * (high - low)).from_address(low))
    start = array.__array_interface__["data"][0] - low
    return np.ndarray(array.shape, array.dtype, raw, start, array.strides)


class _Border:
    """A mark in the stream of pickled objects: from here on, one level deeper or less deep."""

    __slots__ = ("step",)

    def __init__(self, step: int) -> None:
        self.step = step


def _plainly(value: np.ndarray) -> Any:
    """By value, as NumPy pickles it, but that it makes some big-endian arrays native."""
    if value.dtype.isnative or value.dtype.hasobject or value.dtype.kind == "T":
        return NotImplemented
    order: Literal["C", "F"] = "F" if value.flags.fnc else "C"
    return arrivals.of_bytes, (bytearray(value.tobytes(order)), value.dtype, value.shape, order)


def _frozen(reduced: tuple[Any, ...]) -> Any:
    """An array as it pickles itself, read-only."""
    function, arguments, state = (*reduced, None)[:3]
    if state is None:
        return arrivals.made_frozen, (function, arguments)
    return function, arguments, state, None, None, arrivals.set_frozen
