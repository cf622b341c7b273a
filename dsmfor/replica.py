"""A kernel in a worker: the skeleton that was received, bound to an environment for every run.

What a skeleton is and when the caller sends a new one is payload.py's. Here is kept that a kernel
finds, run after run, what it would find in a new process.

Guarantees
----------
- Every slot is bound before a run and emptied after it.
- What a kernel left in its globals, closures, defaults, attributes or code is gone before the next.
"""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from types import CellType, FunctionType
from typing import Any, NamedTuple

from dsmfor.payload import (
    MISSING,
    Design,
    FunctionNumber,
    Slot,
    assigns_globals,
    contents,
)
from dsmfor.pickling import load, load_classes_anew
from dsmfor.transit import Table

__all__ = ["Bound", "Replica"]


class Bound(NamedTuple):
    """A kernel that is ready to be called, and the values of its skeleton's slots."""

    kernel: FunctionType
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    slots: list[Slot]
    values: list[Any]

    def named(self) -> Iterator[tuple[str, Any]]:
        """Arguments and captured variables, by the names that the user gave them."""
        code = self.kernel.__code__
        names = code.co_varnames[: code.co_argcount]
        yield from zip(names, self.args)  # noqa: B905  # *args follow
        if rest := self.args[len(names) :]:
            at = code.co_argcount + code.co_kwonlyargcount
            yield code.co_varnames[at] if len(code.co_varnames) > at else "args", rest
        yield from self.kwargs.items()
        for slot, value in zip(self.slots, self.values, strict=True):
            if slot.kind in ("global", "cell"):
                yield slot.name, value
            elif slot.kind == "__defaults__" and value and slot.owner == 0:
                yield from zip(names[-len(value) :], value, strict=True)
            elif slot.kind == "__kwdefaults__" and value and slot.owner == 0:
                yield from value.items()


class Replica:
    """A skeleton in a worker: functions of its own that are bound anew for every run."""

    def __init__(self, data: bytes) -> None:
        design = Design(*load(data))
        self._spaces = [{"__builtins__": builtins.__dict__} for _ in design.namespaces]
        self._templates: list[dict[str, Any]] = [
            {"__builtins__": builtins.__dict__, **space} for space in design.namespaces
        ]
        self._pairs = list(zip(self._spaces, self._templates, strict=True))
        self._assigns = any(assigns_globals(code) for code, *_ in design.functions)
        self._cells = [CellType() for _ in range(design.cells)]
        self._slots = design.slots
        self.functions = []
        for code, space, name, qualname, cells in design.functions:
            closure = None if cells is None else tuple(self._cells[c] for c in cells)
            function = FunctionType(code, self._spaces[space], name, None, closure)
            function.__qualname__ = qualname
            function.__module__ = self._templates[space].get("__name__", "__main__")
            self.functions.append(function)
        self._codes = [code for code, *_ in design.functions]
        for slot, value in design.fixed:
            if isinstance(value, FunctionNumber):
                value = self.functions[value.number]
            if value is not MISSING:
                self._templates[slot.owner][slot.name] = value
        self.empty()

    def bind(self, environment: bytes | None, table: Table) -> Bound:
        """Fill every slot.

        Without an environment there are neither slots nor arguments.
        """
        if environment is None:
            return Bound(self.functions[0], (), {}, [], [])
        values, args, kwargs = load_classes_anew(environment, self.functions, table)
        for slot, value in zip(self._slots, values, strict=True):
            if slot.kind == "global":
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
        return Bound(self.functions[0], args, kwargs, self._slots, values)

    def reset(self) -> None:
        """The globals as they are before binding."""
        for space, template in self._pairs:
            if self._assigns or len(space) != len(template):
                space.clear()
                space.update(template)

    def empty(self) -> None:
        """Let go of everything that the last run was bound to, or has bound."""
        for function, code in zip(self.functions, self._codes, strict=True):
            if function.__code__ is not code:
                function.__code__ = code
            if function.__defaults__ is not None or function.__kwdefaults__ is not None:
                function.__defaults__ = function.__kwdefaults__ = None
            if function.__dict__:
                function.__dict__.clear()
        self.reset()
        for cell in self._cells:
            if contents(cell) is not MISSING:
                del cell.cell_contents

    def dissolve(self) -> None:
        """Fall apart: functions and their globals refer to each other."""
        for space, template in self._pairs:
            space.clear()
            template.clear()
        self.functions.clear()
