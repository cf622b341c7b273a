"""What a function's code says about the variables of others: which it assigns, and where."""

from __future__ import annotations

import dis
from collections.abc import Iterator
from types import CodeType

__all__ = ["assigned"]

_GLOBAL = {"STORE_GLOBAL", "DELETE_GLOBAL"}
_CELL = {"STORE_DEREF", "DELETE_DEREF"}


def assigned(
    code: CodeType, outer: frozenset[str] | None = None
) -> Iterator[tuple[str, str, int | None]]:
    """Variables outside a function that it assigns or deletes, by statement.

    Parameters
    ----------
    code : code
        Of a function; code nested in it counts.
    outer : frozenset of str, optional
        Names that belong to functions around the outermost one. Default: this one's free variables.

    Yields
    ------
    name : str
    kind : {"global", "nonlocal"}
    line : int
    """
    if outer is None:
        outer = frozenset(code.co_freevars)
    for instruction in dis.get_instructions(code):
        line = instruction.positions.lineno if instruction.positions else None
        if instruction.opname in _GLOBAL:
            yield instruction.argval, "global", line
        elif instruction.opname in _CELL and instruction.argval in outer:
            yield instruction.argval, "nonlocal", line
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from assigned(constant, outer.intersection(constant.co_freevars))
