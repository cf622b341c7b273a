"""Warnings about loops that a kernel uses as if they were a `range`, from its source.

``zip(prange(n), X)`` runs and pairs wrongly, ``any(... for i in prange(n))`` works until it finds
something: no error at run time could come in time. `warn` reads the kernel once, when it is
decorated, and points to the line. What is read is only what can be told from the text: names are
looked up where the kernel would look them up, and one that is bound in more than one place means
nothing. That a loop was left early is seen for certain by the iterators (``_native/loops.pyx``).

Guarantees
----------
- A kernel that names no loop costs a look at its names; its source is not read.
- No source, or one that is not what was compiled, is no warning, and never an error.
"""

from __future__ import annotations

import ast
import builtins
import collections
import itertools
import sys
import warnings
from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

import numpy as np

from dsmfor import loops
from dsmfor.errors import MisuseWarning
from dsmfor.source import codes, read, short

__all__ = ["warn"]

_LOOPS: dict[int, str] = {
    id(loops.prange): "index",
    id(loops.pslices): "slice",
    id(loops.ptiles): "tile",
}
"""What a loop function yields, by the function's id."""
_NAMES = frozenset({"prange", "pslices", "ptiles"})
_UNKNOWN = object()


def _ids(*functions: Any) -> frozenset[int]:
    return frozenset(map(id, functions))


_PAIRS = _ids(zip, itertools.zip_longest, map)
_COLLECTS = _ids(list, tuple, set, frozenset, sorted, collections.deque, np.fromiter)
_WRAPS = _ids(np.array, np.asarray)
_STOPS = _ids(any, all)
_TAKES = _ids(itertools.islice, itertools.takewhile)
_STREAMS = _ids(map, filter)
# `sum`, `min`, `max`, `functools.reduce` fold this worker's part, as they should for `reduce=`.


_CHECKED = frozenset(
    {ast.Call, ast.Subscript, ast.Compare, ast.List, ast.Tuple, ast.Set, ast.Assign}
)
_LEAVES = frozenset({ast.Name, ast.Constant, ast.Load, ast.Store})
_BINDS_NOTHING = frozenset(
    {ast.Constant, ast.Load, ast.Store, ast.Call, ast.Attribute, ast.Subscript, ast.BinOp, ast.Expr}
)
# For speed alone: most of a kernel is made of these.


class _Found(NamedTuple):
    """A misuse: where, and in words."""

    node: Any
    text: str  # what it does, and what to write instead


def warn(function: FunctionType) -> None:
    """Issue a `MisuseWarning` for each line of a kernel that uses a loop wrongly.

    Parameters
    ----------
    function : function
        The kernel. Functions defined inside it are read with it, those that it calls are not.
    """
    if not _names_a_loop(function):
        return
    space = function.__globals__
    for line, text in _findings(function):
        warnings.warn_explicit(
            text,
            MisuseWarning,
            function.__code__.co_filename,
            line,
            module=function.__module__,
            registry=space.setdefault("__warningregistry__", {}),
            module_globals=space,
        )


def _names_a_loop(function: FunctionType) -> bool:
    """Whether any name in the kernel's code is, or may be, that of a loop function."""
    space = function.__globals__
    for code in codes(function.__code__):
        for name in code.co_names:
            if name in _NAMES or id(space.get(name)) in _LOOPS:
                return True
    return any(id(value) in _LOOPS for value in _cells(function).values())


def _cells(function: FunctionType) -> dict[str, Any]:
    """Contents of the closure's cells; those that are empty yet are left out."""
    found = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        try:
            found[name] = cell.cell_contents
        except ValueError:
            continue
    return found


def _findings(function: FunctionType) -> list[tuple[int, str]]:
    """Line and words of each misuse, in the order of the lines."""
    try:
        source = read(function)
        if source is None:
            return []
        found = {
            (node.lineno - source.shift, f"you wrote {source.segment(node)}, {text}")
            for node, text in _Reader(function, source.body).found
            if source.compiled(node)
        }
    except Exception:  # noqa: BLE001  # a source of any kind must not stop a decoration
        return []
    return sorted(found)


# -- The meaning --------------------------------------------------------------------------------


class _Reader:
    """What is wrong in a kernel's body.

    Parameters
    ----------
    function : function
    body : list of statements
        Of it.

    Attributes
    ----------
    found : list of _Found
    """

    def __init__(self, function: FunctionType, body: list[ast.stmt]) -> None:
        code = function.__code__
        taken = code.co_argcount + code.co_kwonlyargcount
        taken += bool(code.co_flags & 4) + bool(code.co_flags & 8)  # *args, **kwargs
        self.found: list[_Found] = []
        self._cells = _cells(function)
        self._space = function.__globals__
        self._bound: dict[str, list[Any]] = {name: [None] for name in code.co_varnames[:taken]}
        for statement in body:
            for node in ast.walk(statement):
                if type(node) not in _BINDS_NOTHING:
                    for name, value in _bindings(node):
                        self._bound.setdefault(name, []).append(value)
        for statement in body:
            self._read(statement, False)

    def _read(self, node: ast.AST, inner: bool) -> None:
        """Look at a node and all below it; `inner`: in the body of a loop, where all are plain."""
        if type(node) in _CHECKED:
            self._check(node, inner)
        if isinstance(node, ast.For) and self._loop(node.iter):
            self._read(node.iter, inner)
            for statement in node.body:
                self._read(statement, True)
            for statement in node.orelse:
                self._read(statement, inner)
            return
        if isinstance(node, (ast.ListComp, ast.SetComp, ast.GeneratorExp, ast.DictComp)):
            first = node.generators[0]
            self._read(first.iter, inner)
            inner = inner or self._loop(first.iter) is not None
            for child in ast.iter_child_nodes(node):
                for part in ast.iter_child_nodes(child) if child is first else [child]:
                    if part is not first.iter:
                        self._read(part, inner)
            return
        for child in ast.iter_child_nodes(node):
            if type(child) not in _LEAVES:
                self._read(child, inner)

    # -- names

    def _means(self, node: ast.AST) -> Any:
        """The object that a dotted name stands for, or `_UNKNOWN`."""
        if isinstance(node, ast.Attribute):
            owner = self._means(node.value)
            return vars(owner).get(node.attr, _UNKNOWN) if type(owner) is ModuleType else _UNKNOWN
        if not isinstance(node, ast.Name):
            return _UNKNOWN
        name = node.id
        if name in self._bound:
            value = self._only(name)
            return value.object if isinstance(value, _Imported) else _UNKNOWN
        for space in (self._cells, self._space, vars(builtins)):
            if name in space:
                return space[name]
        return _UNKNOWN

    def _only(self, name: str) -> Any:
        """What a name of the kernel is bound to, if that is done in one place alone."""
        values = self._bound.get(name, [])
        return values[0] if len(values) == 1 else None

    def _call(self, node: ast.AST) -> int:
        """The id of the function that `node` calls; 0 if it is no call or cannot be told."""
        if not isinstance(node, ast.Call):
            return 0
        called = self._means(node.func)
        return 0 if called is _UNKNOWN else id(called)

    def _loop(self, node: ast.AST) -> ast.Call | None:
        """The loop that an expression is, directly or by the one name that it was given."""
        if isinstance(node, ast.Name):
            value = self._only(node.id)
            node = value if isinstance(value, ast.AST) else node
        if isinstance(node, ast.NamedExpr):
            node = node.value
        if isinstance(node, ast.Call):
            called = self._call(node)
            if called in _LOOPS:
                return node
            if called == id(iter) and len(node.args) == 1:
                return self._loop(node.args[0])
        return None

    def _stream(self, node: ast.AST) -> ast.Call | None:
        """The loop that an expression draws from: the loop itself, or a generator over it."""
        loop = self._loop(node)
        if loop is not None:
            return loop
        if isinstance(node, ast.GeneratorExp):
            return self._stream(node.generators[0].iter)
        if self._call(node) in _STREAMS and isinstance(node, ast.Call) and len(node.args) == 2:
            return self._stream(node.args[1])
        return None

    # -- rules

    def _check(self, node: ast.AST, inner: bool) -> None:
        """Append what is wrong with this node."""
        text: str | None = None
        if isinstance(node, ast.Call):
            text = self._check_call(node, inner)
        elif isinstance(node, ast.Subscript) and (loop := self._loop(node.value)):
            text = (
                f"and {_text(loop.func)} cannot be indexed; you want "
                f"{_text_of_range(loop)}[{_text(node.slice)}]"
            )
        elif inner:
            return
        elif isinstance(node, ast.Compare) and isinstance(node.ops[0], (ast.In, ast.NotIn)):
            if loop := self._stream(node.comparators[0]):
                text = _leaving(f"... in {_text_of_range(loop)}")
        elif isinstance(node, (ast.List, ast.Tuple, ast.Set)):
            for part in node.elts:
                if isinstance(part, ast.Starred) and (loop := self._loop(part.value)):
                    text = self._collecting(loop)
        elif isinstance(node, ast.Assign) and (loop := self._loop(node.value)):
            if any(isinstance(target, (ast.Tuple, ast.List)) for target in node.targets):
                text, node = self._collecting(loop), node.value
        if text is not None:
            self.found.append(_Found(node, text))

    def _check_call(self, node: ast.Call, inner: bool) -> str | None:
        called, args = self._call(node), node.args
        if called in (id(len), id(reversed)) and args and (loop := self._loop(args[0])):
            name = _text(loop.func)
            if called == id(len):
                return (
                    f"and {name} has no len, for each worker gets a share of its own; you want "
                    f"{_text_of_length(loop)} for all, or len(dsm.split(...)) for this worker"
                )
            return f"and {name} cannot be reversed; you want {name} with a negative step"
        if inner or not called or not args:
            return None
        if called in _PAIRS:
            return self._check_pairs(args[1:] if called == id(map) else args)
        if called == id(itertools.pairwise) and (loop := self._stream(args[0])):
            return (
                "which pairs neighbours among what this worker happens to get; you want "
                f"`for i in {_text(loop)}:` with i and i + 1 in its body"
            )
        if called == id(enumerate) and (loop := self._stream(args[0])):
            return (
                "which counts what this worker happens to get, from 0 on every worker; you want "
                f"`for i in {_text(loop)}:` and i itself, which says which iteration it is"
            )
        if called in _COLLECTS and (loop := self._loop(args[0])):
            return self._collecting(loop)
        if called in _WRAPS and (loop := self._loop(args[0])):
            return (
                f"which makes an array of one object, the loop itself; you want {self._share(loop)}"
            )
        if called == id(next) and isinstance(args[0], ast.Name):
            return None  # one step of many, perhaps
        if called in (id(next), *_STOPS) and (loop := self._stream(args[0])):
            return _leaving(_searching(loop))
        if called in _TAKES and (loop := self._stream(args[called == id(itertools.takewhile)])):
            return _leaving(_searching(loop))
        for part in args:
            if isinstance(part, ast.Starred) and (loop := self._loop(part.value)):
                return self._collecting(loop)
        return None

    def _check_pairs(self, args: list[ast.expr]) -> str | None:
        drawn = [(part, self._stream(part)) for part in args]
        loop = next((loop for _, loop in drawn if loop is not None), None)
        if loop is None or len(args) < 2:
            return None
        others = [_text(part) for part, other in drawn if other is None]
        noun = _LOOPS[self._call(loop)]
        return (
            f"which pairs the k-th {noun} that this worker happens to get with item k of "
            f"{' and '.join(others) or 'the other loop'}, whatever the {noun} is; you want "
            f"`for i in {_text(loop)}:` with {' and '.join(o + '[i]' for o in others) or 'i'} "
            "in its body"
        )

    def _collecting(self, loop: ast.Call) -> str:
        return (
            f"which takes what this worker happens to get, all of it before any is worked on; you "
            f"want `for i in {_text(loop)}:`, or {self._share(loop)}"
        )

    def _share(self, loop: ast.Call) -> str:
        """How to write a share, and the whole, as a value."""
        noun = _LOOPS[self._call(loop)]
        if noun != "index" or _is_shape(loop):
            return f"[... for i in {_text(loop)}] for one value of each {noun}"
        return (
            f"dsm.split({_text_of_length(loop)}) for this worker's share as an array, or "
            f"{_text_of_range(loop)} for all indices"
        )


class _Imported(NamedTuple):
    """What an import statement binds a name to."""

    object: Any


def _bindings(node: ast.AST) -> Iterator[tuple[str, Any]]:
    """The names that a node binds, each with its value where that is one expression, else None."""
    if isinstance(node, (ast.Assign, ast.AnnAssign, ast.NamedExpr)):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        for target in targets:
            if isinstance(target, ast.Name):
                # As a target it is met once more, as a Name that is stored to.
                target.ctx = ast.Load()
                yield target.id, node.value
    elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
        yield node.id, None
    elif isinstance(node, ast.arg):
        yield node.arg, None
    elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        yield node.name, None
    elif isinstance(node, ast.Import):
        for alias in node.names:
            whole = sys.modules.get(alias.name, _UNKNOWN)
            first = alias.name.partition(".")[0]
            bound = whole if alias.asname else sys.modules.get(first, _UNKNOWN)
            yield alias.asname or first, _Imported(bound)
    elif isinstance(node, ast.ImportFrom):
        module = None if node.level else sys.modules.get(node.module or "")
        for alias in node.names:
            value = vars(module).get(alias.name, _UNKNOWN) if module else _UNKNOWN
            yield alias.asname or alias.name, _Imported(value)
    else:
        for field in ("name", "rest"):  # of except clauses and patterns
            if isinstance(name := getattr(node, field, None), str):
                yield name, None


# -- Words --------------------------------------------------------------------------------------


def _text(node: ast.AST) -> str:
    return short(ast.unparse(node))


def _is_shape(loop: ast.Call) -> bool:
    """Whether a loop visibly runs over a shape: index tuples, no range says the same."""
    return len(loop.args) == 1 and (
        isinstance(loop.args[0], (ast.Tuple, ast.List))
        or (isinstance(loop.args[0], ast.Attribute) and loop.args[0].attr == "shape")
    )


def _text_of_range(loop: ast.Call) -> str:
    """The serial loop: all that the team's loop covers."""
    arguments = ", ".join(map(_text, loop.args)) or "..."
    if _is_shape(loop):
        return f"list(np.ndindex({arguments}))"
    return f"range({arguments})"


def _text_of_length(loop: ast.Call) -> str:
    if len(loop.args) == 1 and not _is_shape(loop):
        return _text(loop.args[0])
    return f"len({_text_of_range(loop)})"


def _searching(loop: ast.Call) -> str:
    return (
        f"`for i in {_text(loop)}:` with dsm.cancel(i) where the search is over, and "
        "dsm.cancelled() after the loop"
    )


def _leaving(remedy: str) -> str:
    return (
        "which may leave the loop before its end, and every worker must finish every loop "
        f"(RegionError); you want {remedy}"
    )
