"""What crosses to a worker: a kernel and its environment.

The worker's side is replica.py, what comes back is outcome.py.

A kernel is split in two. The *skeleton* (skeleton.py) is what rarely changes: the code of the
kernel and of every function of the user that it uses, the modules and importable functions that
they name, and a list of slots. The *environment* is a value for every slot: captured variables,
globals that are data, defaults. The skeleton is sent once, the environment with every call, and the
worker binds every slot before every run and empties it afterwards: a kept skeleton and a new one
cannot be told apart by the kernel.

Guarantees
----------
- A skeleton is reused only while every function in it has the code it had, and every name that it
  resolved to a function, class or module resolves to the same one.
- Values that alias each other in the environment or the arguments still do in the worker: they
  are pickled in one dump.
- What a kernel left in its globals, closures or defaults is gone before the next run.

Names that code builds at run time (``eval``, ``globals()["x"]``) cannot be seen from outside: those
of the kernel's own module raise NameError in the worker, those of others are as the worker's
import made them.
"""

from __future__ import annotations

import pickle
import struct
from collections import deque
from operator import is_
from types import CellType, FunctionType
from typing import Any, NamedTuple

import numpy as np

from dsmfor import limits
from dsmfor.arrivals import Table
from dsmfor.errors import RegionError
from dsmfor.handlers import by_handler
from dsmfor.modules import IMPORTED, home, kind
from dsmfor.pickling import importable
from dsmfor.reachable import ATOMS
from dsmfor.skeleton import Skeleton
from dsmfor.staging import Stage
from dsmfor.transit import Outward

__all__ = [
    "Claims",
    "Heading",
    "Kernel",
    "Message",
    "open_message",
]
_MOST_ROOTS = 256  # a call with more of them surveys them again and again
_MOST_ROUNDS = 8
_MOST_SURVEYS = 100  # of a program whose threads redefine it all the time


def _bare(value: Any, own: frozenset[str]) -> Any:
    """A function without what it holds: of one that goes by value, only the code is of interest."""
    if type(value) is not FunctionType or importable(value, own):
        return value
    where = home(value.__globals__)
    if where is not None and where not in own and kind(where) == IMPORTED:
        return value
    cells = tuple(CellType() for _ in value.__code__.co_freevars)
    return FunctionType(value.__code__, value.__globals__, value.__name__, None, cells)


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
    data: bytes  # a heading and an environment's pickle: see `open_message`
    buffers: list[memoryview]  # of the environment
    segments: set[int]  # that it names
    arrays: list[np.ndarray]  # that it names: they live for as long as the message

    @property
    def nbytes(self) -> int:
        """Bytes that are sent."""
        nbytes = len(self.data)
        for buffer in self.buffers:
            nbytes += buffer.nbytes
        return nbytes


class Heading(NamedTuple):
    """What a message says besides the environment; often it says the same as the last one's."""

    serial: int  # of the skeleton
    choices: tuple[Any, ...]
    staged: int = 0  # segment of the staged arrays, 0 if there are none; it will not last
    table: Table = []  # noqa: RUF012  # of the staged arrays; never changed
    fixed: frozenset[int] = frozenset()  # offsets of those that are read-only in the caller


_LENGTH = struct.Struct("=I")  # of a heading, which comes first


def open_message(data: bytes | memoryview) -> tuple[bytes, memoryview]:
    """The heading and the environment's pickle of a message; empty if there is none."""
    (length,) = _LENGTH.unpack_from(data)
    end = _LENGTH.size + length
    return bytes(data[_LENGTH.size : end]), memoryview(data)[end:]


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
        self._rounds = 0  # of surveys for one call
        self._roots: deque[Any] = deque(maxlen=_MOST_ROOTS)  # met when something was pickled
        self._heading: tuple[Heading, bytes] | None = None
        self._last: tuple[list[Any], tuple[Any, ...], Message] | None = None

    def refresh(self) -> tuple[Skeleton, list[Any]]:
        """The skeleton, surveyed anew if anything in it has changed, and its slots' values."""
        skeleton = self.skeleton
        values = skeleton.values() if skeleton is not None else None
        for _ in range(_MOST_SURVEYS):
            if skeleton is not None and values is not None:
                return skeleton, values
            self._last = None
            skeleton = self.skeleton = Skeleton(self.function, self._roots)
            values = skeleton.values()  # None if another thread has changed something meanwhile
        raise RegionError(
            f"the functions that {self.function.__qualname__} uses are being redefined "
            "while it is called; wait until they are"
        )

    def _acquainted(self, strangers: list[Any], skeleton: Skeleton) -> Skeleton | None:
        """Take up what no name had led to: the skeleton in this one's place, if it says the same.

        None if it does not, so that the call begins anew.
        """
        self._roots.extend(_bare(value, skeleton.own) for value in strangers)
        self.skeleton = found = Skeleton(self.function, self._roots)
        self._rounds += 1
        if found.succeed(skeleton) or self._rounds > _MOST_ROUNDS:
            self._rounds = 0
            return skeleton
        self._last = None
        return None

    def _written(self, heading: Heading) -> bytes:
        """A heading with its length before it."""
        last = self._heading
        if last is not None and last[0] == heading:
            return last[1]
        data = pickle.dumps(tuple(heading), pickle.HIGHEST_PROTOCOL)
        written = _LENGTH.pack(len(data)) + data
        if not heading.staged:
            self._heading = heading, written
        return written

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
    ) -> tuple[Message | None, Stage | None]:
        """Pickle what the workers need for a call: slots' values and arguments, in one dump.

        Plain arrays that were met on the way are staged. None if functions, classes or modules of
        the user were met on the way that change the skeleton: begin anew with `refresh`.
        """
        args, kwargs, values = claims.args, claims.kwargs, claims.values
        alone = not args and not kwargs
        environment, stage = b"", None
        heading = Heading(skeleton.serial, choices)
        if not alone or not skeleton.constant:
            try:
                environment = skeleton.pack(values, args, kwargs, transit)
            except Exception as error:  # perhaps in vain: what the skeleton knows goes by number
                known = by_handler(error) or not transit.strangers
                if known or self._acquainted(transit.strangers, skeleton):
                    raise
                return None, None
            if transit.strangers and not self._acquainted(transit.strangers, skeleton):
                return None, None
            if transit.plain:
                stage = Stage(transit.plain.values())
                heading = Heading(*heading[:2], stage.segment, stage.table, stage.fixed)
                transit.segments.add(stage.segment)
        data = self._written(heading)
        if len(environment) >= limits.LARGE:
            limits.check(len(environment), "a message of {}")
        data += environment
        del environment
        message = Message(skeleton, data, transit.buffers, transit.segments, transit.shared)
        if alone and all(type(value) in ATOMS for value in values):
            self._last = values, choices, message
        return message, stage
