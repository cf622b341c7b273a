"""The source of a function as a syntax tree, and proof that it is what was compiled.

`inspect.getsource` believes the file; it may have been edited since, and it cannot tell the lambdas
of a line apart. Here, the places of the tree are compared with those of the instructions.

Guarantees
----------
- A source that is missing or is another's is None; one that is no Python may raise anything.
"""

from __future__ import annotations

import ast
import linecache
import warnings
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any, NamedTuple

__all__ = ["Source", "codes", "read", "short"]

_MOST_LINES = 20  # of a function's end that leave no code behind
_MOST_TEXT = 60

Place = tuple[int, int, int, int]  # first line, column in bytes, last line, column


class Source(NamedTuple):
    """A function's source."""

    text: str  # what was parsed
    body: list[ast.stmt]
    shift: int  # by which line numbers in `body` are higher than those of the file
    places: set[Place]  # where the code object has instructions

    def segment(self, node: Any) -> str:
        """A node as it was written, on one line."""
        return short(" ".join((ast.get_source_segment(self.text, node) or "").split()))

    def compiled(self, node: ast.AST) -> bool:
        """Whether what `node` calls stands where the code has instructions for it.

        A file that was edited after its import, and the other lambdas of a line, have it elsewhere.
        """
        calls = [part for part in ast.walk(node) if isinstance(part, ast.Call)]
        return self._seen(node) and all(self._seen(c) or self._seen(_leftmost(c)) for c in calls)

    def _seen(self, node: Any) -> bool:
        first, last = node.lineno - self.shift, node.end_lineno - self.shift
        return (first, node.col_offset, last, node.end_col_offset) in self.places


def read(function: FunctionType) -> Source | None:
    """The source of a function, None if there is none or it is another's."""
    code = function.__code__
    places = {
        (line, column, end, end_column)
        for part in codes(code)
        for line, end, column, end_column in part.co_positions()
        if line and end and column is not None and end_column
    }
    filename = code.co_filename
    linecache.checkcache(filename)
    lines = linecache.getlines(filename, function.__globals__)
    first, last = code.co_firstlineno, max((end for _, _, end, _ in places), default=0)
    if not places or last > len(lines):
        return None
    if code.co_name == "<lambda>":
        return _of_lambda(lines, places)
    indented = lines[first - 1][:1].isspace()
    for end in range(last, min(last + _MOST_LINES, len(lines)) + 1):
        text = ("if 1:\n" if indented else "") + "".join(lines[first - 1 : end])
        tree = _tree(text)
        if tree is not None:
            break
    else:
        return None
    statement: Any = tree.body[0]
    if indented:
        statement = statement.body[0]
    if not isinstance(statement, ast.FunctionDef) or statement.name != code.co_name:
        return None
    return Source(text, statement.body, indented + 1 - first, places)


def _of_lambda(lines: list[str], places: set[Place]) -> Source | None:
    """The body of a lambda, cut out by the columns of its code."""
    wide = [place for place in places if place[:2] != place[2:]]
    line, column = min(place[:2] for place in wide)
    end, end_column = max(place[2:] for place in wide)
    cut = [text.encode() for text in lines[line - 1 : end]]
    cut[-1] = cut[-1][:end_column]
    cut[0] = b" " * column + cut[0][column:]  # the columns stay what they are
    text = "(\n" + b"".join(cut).decode() + "\n)"
    tree = _tree(text)
    return None if tree is None else Source(text, tree.body, 2 - line, places)


def _leftmost(node: Any) -> ast.AST:
    """The name that a call or a dotted name begins with."""
    while isinstance(node, (ast.Call, ast.Attribute)):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node  # type: ignore[no-any-return]


def _tree(text: str) -> ast.Module | None:
    try:
        if "\\" not in text:
            return ast.parse(text)
        with warnings.catch_warnings():  # about escapes: they were said when it was compiled
            warnings.simplefilter("ignore")
            return ast.parse(text)
    except SyntaxError:
        return None


def codes(code: CodeType) -> Iterator[CodeType]:
    """A code object and those of the functions that are defined in it."""
    yield code
    for value in code.co_consts:
        if type(value) is CodeType:
            yield from codes(value)


def short(text: str) -> str:
    """A text that leaves room for others on its line."""
    return text if len(text) <= _MOST_TEXT else text[: _MOST_TEXT - 3] + "..."
