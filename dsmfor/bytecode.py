"""What a function's code says about the variables of others: which it names, assigns, imports.

What the names stand for is skeleton.py's.
"""

from __future__ import annotations

import dis
import sys
import weakref
from collections import deque
from collections.abc import Iterator
from types import CodeType
from typing import NamedTuple

__all__ = ["NOTHING", "Reading", "assigns_globals", "global_names", "read"]

_SMALL = 4096  # bytes of constants
_LOOKS_UP = {
    "LOAD_GLOBAL",
    "LOAD_NAME",
    "LOAD_FROM_DICT_OR_GLOBALS",  # of annotations and class bodies, from Python 3.12 on
    "STORE_GLOBAL",
    "DELETE_GLOBAL",
}
_ATTRIBUTE = {
    "LOAD_ATTR",
    "LOAD_METHOD",
    "LOAD_SUPER_ATTR",
    "STORE_ATTR",
    "DELETE_ATTR",
    "IMPORT_FROM",
}
_BY_STRING = {"getattr", "hasattr", "setattr", "delattr", "attrgetter"}
_BACKDOORS = {"globals", "exec", "eval", "vars", "__dict__", "__globals__"}
_GLOBAL = {"STORE_GLOBAL", "DELETE_GLOBAL"}
_CELL = {"STORE_DEREF", "DELETE_DEREF"}


def _assigned(code: CodeType, outer: frozenset[str]) -> Iterator[tuple[str, str, int | None]]:
    """Variables outside a function that it assigns or deletes, by statement.

    `outer`: names that belong to functions around the outermost one.
    """
    for instruction in dis.get_instructions(code):
        line = instruction.positions.lineno if instruction.positions else None
        if instruction.opname in _GLOBAL:
            yield instruction.argval, "global", line
        elif instruction.opname in _CELL and instruction.argval in outer:
            yield instruction.argval, "nonlocal", line
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _assigned(constant, outer.intersection(constant.co_freevars))


class Reading(NamedTuple):
    """Names in a piece of code and in the code nested in it."""

    globals: tuple[str, ...]  # looked up, assigned or deleted, in order
    attributes: frozenset[str]  # of whatever object; also strings that may be names of some
    imports: tuple[tuple[int, str], ...]  # level (the dots), dotted name
    assigned: frozenset[str]  # globals and attributes that it sets or deletes
    outside: tuple[tuple[str, str, int | None], ...]  # of variables: name, kind and line
    assigns_globals: bool  # by statement, or by a function that can


NOTHING = Reading((), frozenset(), (), frozenset(), (), False)


# Code that is equal names the same things, so whoever asks first asks for all. Entries go with
# their code, and small code that was read lately stays: a worker gets it anew with each skeleton.
_known: weakref.WeakKeyDictionary[CodeType, Reading] = weakref.WeakKeyDictionary()
_lately: deque[CodeType] = deque(maxlen=256)


def read(code: CodeType) -> Reading:
    """What the code, and code nested in it, names."""
    reading = _known.get(code)
    if reading is None:
        reading = _known[code] = _read(code)
        if sum(map(sys.getsizeof, code.co_consts)) <= _SMALL:
            _lately.append(code)
    return reading


def _read(code: CodeType) -> Reading:
    names: dict[str, None] = {}
    attributes: set[str] = set()
    imports: dict[tuple[int, str], None] = {}
    changed: set[str] = set()
    changes = not _BACKDOORS.isdisjoint(code.co_names)
    constants: list[object] = [None, None]
    for instruction in dis.get_instructions(code):
        operation, value = instruction.opname, instruction.argval
        if operation == "LOAD_CONST":
            constants.append(value)
        elif operation in _LOOKS_UP:
            names[value] = None
        elif operation in _ATTRIBUTE:
            attributes.add(value)
        elif operation == "IMPORT_NAME":
            level = constants[-2]  # below the names that are imported from it
            imports[level if isinstance(level, int) else 0, value] = None
        if operation in _GLOBAL:
            changes = True
            changed.add(value)
        elif operation in ("STORE_ATTR", "DELETE_ATTR"):
            changed.add(value)
    if not _BY_STRING.isdisjoint(code.co_names):
        words = {text for text in code.co_consts if isinstance(text, str) and text.isidentifier()}
        attributes |= words
        changed |= words
    for nested in code.co_consts:
        if isinstance(nested, CodeType):
            inner = read(nested)
            names.update(dict.fromkeys(inner.globals))
            attributes |= inner.attributes
            imports.update(dict.fromkeys(inner.imports))
            changed |= inner.assigned
            changes = changes or inner.assigns_globals
    return Reading(
        tuple(names),
        frozenset(attributes),
        tuple(imports),
        frozenset(changed),
        tuple(_assigned(code, frozenset(code.co_freevars))),
        changes,
    )


def global_names(code: CodeType) -> Iterator[str]:
    """Names that the code, and code nested in it, looks up as globals."""
    yield from read(code).globals


def assigns_globals(code: CodeType) -> bool:
    """Whether code may change its globals, by statement or by a function that can."""
    return read(code).assigns_globals
