"""A kernel's skeleton: its code as it was when it was surveyed, and whether it still is.

How code is surveyed is survey.py's, what a worker does with it replica.py's.

Guarantees
----------
- `Skeleton.values` returns None as soon as a function has other code, or a name that was resolved
  to a function, class or module resolves to another one: also after importlib.reload, whose mark is
  a new ``__spec__``, and after a module was removed and imported again.
"""

from __future__ import annotations

import itertools
import pickle
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from types import FunctionType, ModuleType
from typing import Any

from dsmfor._native.interrupts import Undisturbed
from dsmfor.bytecode import assigns_globals, global_names
from dsmfor.design import MISSING, Design, Made, Plan, Slot, Stays, contents, kind_of, state_of
from dsmfor.handlers import by_handler
from dsmfor.modules import IMPORTED, place_of, registered, space_of
from dsmfor.pickling import dump, importable
from dsmfor.reachable import ATOMS
from dsmfor.survey import Survey, own_modules
from dsmfor.transit import Outward

__all__ = ["Skeleton", "own_modules", "reach", "retired"]

_serials = itertools.count(1)
retired: deque[int] = deque()  # serials of skeletons that are gone, for workers to forget


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


class _Ticket:
    """A serial number, of one skeleton or of several that say the same."""

    def __init__(self) -> None:
        self.number = next(_serials)

    @Undisturbed
    def __del__(self, retire: Callable[[int], None] = retired.append) -> None:
        retire(self.number)  # at the program's end this module may be empty already


class Skeleton:
    """A kernel's code as it was when it was surveyed, and how to see whether it still is.

    Parameters
    ----------
    kernel : function
    roots : iterable of object
        Functions, classes and modules that the kernel is given although no name leads to them.
    """

    def __init__(self, kernel: FunctionType, roots: Iterable[Any] = ()) -> None:
        self._ticket = _Ticket()
        self.serial = self._ticket.number
        survey = Survey(kernel, roots)
        self._survey = survey  # keeps alive what ids stand for
        self.own = survey.own
        self.functions = survey.functions
        self.modules = survey.modules
        self.known = survey.known
        self.slots = survey.data + survey.rest
        self._cells = survey.cells
        self._rest = survey.rest
        self._sources = survey.sources
        self._checks = survey.checks
        self._hidden = survey.hidden
        self._sizes = survey.sizes
        self._imported = [n for n, slot in enumerate(self.slots) if self._is_imported(slot)]
        self._labels = list(map(self._label, self.slots))
        # By slot: what cannot be pickled, what goes instead, which parts of it cannot either.
        self._failed: dict[int, tuple[Any, Stays, frozenset[Any]]] = {}
        self._expected = [
            (f, code, defaults, f.__kwdefaults__ is not None, bool(f.__dict__))
            for f, code, defaults in zip(
                survey.functions, survey.codes, survey.defaults, strict=True
            )
        ]
        self.numbers = {id(f): n for n, f in enumerate(self.functions)}
        # With nothing to bind and no global assigned, the worker may skip binding.
        self.constant = not self.slots and not any(map(assigns_globals, survey.codes))
        self.data = self._pickle()

    def succeed(self, other: Skeleton) -> bool:
        """Take the place of a skeleton that workers may have, if that one says the same."""
        if self.data != other.data:
            return False
        self._ticket, self.serial = other._ticket, other.serial
        self._failed = other._failed
        return True

    # -- what is sent --------------------------------------------------------------------------

    def _pickle(self) -> bytes:
        survey = self._survey
        order = {name: n for n, name in enumerate(survey.listing)}
        names = sorted(self.modules, key=lambda name: order.get(name, len(order)))
        modules = [(name, place_of(space_of(sys.modules[name]))) for name in names]
        design = Design(
            survey.spaces,
            len(self._cells),
            [
                Plan(
                    f.__code__,
                    owner,
                    f.__name__,
                    f.__qualname__,
                    None
                    if f.__closure__ is None
                    else tuple(survey.numbers[id(cell)] for cell in f.__closure__),
                    defaults,
                    path,
                )
                for f, owner, defaults, path in zip(
                    self.functions, survey.owners, survey.defaults, survey.paths, strict=True
                )
            ],
            survey.fixed,
            self.slots,
        )
        others = [name for name, found in survey.listing.items() if found == IMPORTED]
        rest = dump(tuple(design), own=self.own)
        return pickle.dumps((modules, others if modules else [], rest))

    def _is_imported(self, slot: Slot) -> bool:
        """Whether a slot is filled, without us, by the worker's import."""
        survey = self._survey
        if slot.kind == "global":
            return not isinstance(survey.spaces[slot.owner], Made)
        if slot.kind == "cell":
            cell = self._cells[slot.owner]
            return all(
                path is not None
                for f, path in zip(self.functions, survey.paths, strict=True)
                if any(one is cell for one in f.__closure__ or ())
            )
        return survey.paths[slot.owner] is not None

    def _label(self, slot: Slot) -> str:
        """The user's name for a slot."""
        if slot.kind != "global":
            return slot.name
        place = self._survey.spaces[slot.owner]
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
            if type(value) is FunctionType or issubclass(type(value), ModuleType):
                if type(value) is FunctionType or registered(value) is not None:
                    return None
            values.append(value)
        for slot in self._rest:
            if slot.kind != "cell":
                values.append(getattr(self.functions[slot.owner], slot.kind))
                continue
            value = contents(self._cells[slot.owner])
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
        try:
            return dump((self._picklable(values), args, kwargs), transit, self.own)
        except MemoryError:
            raise
        except Exception as error:
            if by_handler(error) or not self._find_unpicklable(values):
                raise
        transit.reset()
        return dump((self._picklable(values), args, kwargs), transit, self.own)

    def _picklable(self, values: list[Any]) -> list[Any]:
        """The values, but for those that are known not to be picklable."""
        if not self._failed:
            return values
        values = list(values)
        for n, (value, stays, without) in self._failed.items():
            if values[n] is value:
                state = state_of(value)
                if state is not None:
                    parts = {key: part for key, part in state.items() if key not in without}
                    stays = stays._replace(names=tuple(state), parts=parts)
                values[n] = stays
        return values

    def _find_unpicklable(self, values: list[Any]) -> bool:
        """See which values cannot be pickled; whether they are others than before."""
        failed = {}
        for n in self._imported:
            value = values[n]
            if type(value) not in ATOMS and (why := self._objection(value)):
                state = state_of(value) or {}
                without = frozenset(key for key, part in state.items() if self._objection(part))
                failed[n] = value, Stays(kind_of(value), why), without
        before, self._failed = self._failed, failed
        return {(n, id(v), bad) for n, (v, _, bad) in failed.items()} != {
            (n, id(v), bad) for n, (v, _, bad) in before.items()
        }

    def _objection(self, value: Any) -> str:
        """Why a value cannot be pickled, or nothing."""
        try:
            dump(value, Outward(self.numbers, {}, True), self.own)
        except Exception as error:
            if by_handler(error):
                raise
            return f"{type(error).__name__}: {error}"
        return ""
