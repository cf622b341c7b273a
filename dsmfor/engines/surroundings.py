"""What workers follow of the caller's process besides the call: seen there, set here.

Environment, module path and directory; which streams sys.stdout and sys.stderr are, and which files
descriptors 1 and 2; the filters of warnings; NumPy's error handling and print options. Whether any
of it has changed is asked before every region, in C (`_native/glance.pyx`); only what did is sent.
How a worker prints is streams.py's.
"""

from __future__ import annotations

import io
import os
import re
import sys
import warnings
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple, cast

import numpy as np

from dsmfor._native.glance import (
    DIRECTORY,
    ENVIRONMENT,
    FILTERS,
    NUMERICS,
    PATH,
    STREAMS,
    Glance,
)
from dsmfor.engines.channel import lift
from dsmfor.pickling import dump, load

__all__ = ["Lookout", "Stream", "redirect", "set_filters", "set_numerics"]


class Stream(NamedTuple):
    """How a worker is to print to one of its streams."""

    mode: str  # "direct", "relay", "none" (it is None), "closed"
    descriptor: int  # what its fileno() is: 1 or 2, 0 for the stream's own, -1 for none
    encoding: str
    errors: str


class Lookout:
    """The caller's side: what of its surroundings has changed, in numbered versions.

    Not thread-safe; whoever has the line to the warden has this.
    """

    def __init__(self) -> None:
        self.version = 0
        self._values: dict[str, Any] = {}
        self._since: dict[str, int] = {}  # version that brought the value
        self._glance = Glance(_variables())
        self.flush = self._glance.flush
        self.changes = self._glance.changes  # what there is to `take_in`; 0 if nothing

    def take_in(self, changes: int) -> None:
        """Look at what has changed; a new `version` if it is of any consequence."""
        self._glance.note(changes)
        news: dict[str, Any] = {}
        if changes & STREAMS:
            news["streams"] = self._classify()
        if changes & FILTERS:
            news["filters"] = _filters()
        if changes & NUMERICS:
            news["numerics"] = _numerics()
        if changes & ENVIRONMENT:
            news["environ"] = dict(os.environ)
        if changes & PATH:
            news["path"] = list(sys.path)
        if changes & DIRECTORY:
            try:
                news["cwd"] = os.getcwd()
            except FileNotFoundError:
                news["cwd"] = self._values.get("cwd", "")
        known = self._values
        news = {name: new for name, new in news.items() if name not in known or known[name] != new}
        if news:
            version = self.version + 1
            self._values |= news
            self._since |= dict.fromkeys(news, version)
            self.version = version
        self._glance.heeded()

    def since(self, version: int) -> tuple[dict[str, Any], list[int]]:
        """What has changed since that version, with the descriptors to send along."""
        changes = {name: self._values[name] for name, at in self._since.items() if at > version}
        files = self._glance.copies() if "streams" in changes else ()
        return changes, [fd for fd in files if fd >= 0]

    def copies(self) -> set[int]:
        """Our duplicates of the caller's descriptors 1 and 2."""
        return {fd for fd in self._glance.copies() if fd >= 0}

    def close(self) -> None:
        """Let go of the descriptors."""
        self._glance.close()

    def _classify(self) -> tuple[Stream, Stream, tuple[bool, bool], int]:
        streams = getattr(sys, "stdout", None), getattr(sys, "stderr", None)
        out, err = map(_stream, streams)
        self._glance.watch(
            streams[0] if out.mode == "direct" else None,
            streams[1] if err.mode == "direct" else None,
        )
        there = self._glance.copies()
        return out, err, (there[0] >= 0, there[1] >= 0), self._glance.turns()


def _stream(stream: Any) -> Stream:
    """How workers print to what is sys.stdout or sys.stderr of the caller."""
    if stream is None:
        return Stream("none", -1, "utf-8", "strict")
    try:
        descriptor = stream.fileno()
    except Exception:
        descriptor = -1
    if type(stream) is io.TextIOWrapper:
        try:
            closed = stream.closed
        except ValueError:  # detached
            closed = True
        if closed:
            return Stream("closed", -1, "utf-8", "strict")
        below: Any = stream.buffer
        raw = below.raw if type(below) in (io.BufferedWriter, io.BufferedRandom) else below
        encoding, errors = stream.encoding, stream.errors or "strict"
        if type(raw) is io.FileIO and descriptor in (1, 2) and _newline(encoding) == b"\n":
            return Stream("direct", descriptor, encoding, errors)
    # Text of any kind travels; what cannot be written is for the stream itself to say.
    return Stream("relay", -1 if descriptor < 0 else 0, "utf-8", "surrogatepass")


def _newline(encoding: str) -> bytes:
    try:
        return "\n".encode(encoding)
    except LookupError:
        return b""


def _variables() -> tuple[ContextVar[Any], ...]:
    """Where NumPy keeps what it does about errors, and how it prints; private, and may move."""
    found = []
    for module, name in (
        ("numpy._core.umath", "_extobj_contextvar"),
        ("numpy._core.printoptions", "format_options"),
    ):
        variable = getattr(sys.modules.get(module), name, None)
        if isinstance(variable, ContextVar):
            found.append(variable)
    return tuple(found)


def _numerics() -> bytes:
    errors, report, options = dict(np.geterr()), np.geterrcall(), dict(np.get_printoptions())
    try:
        return dump((errors, report, options))
    except Exception:  # a function of the user's that cannot travel
        errors = {kind: "warn" if act in ("call", "log") else act for kind, act in errors.items()}
        for name in ("formatter", "override_repr"):
            if options.get(name) is not None:
                options[name] = None
        return dump((errors, None, options))


def _filters() -> list[tuple[Any, ...]]:
    """The filters of warnings as plain data, without those that are not such."""
    plain = []
    for entry in warnings.filters:
        try:
            plain.append(_plain(*entry))  # type: ignore[arg-type]  # typeshed: or a tuple
        except Exception:  # noqa: S112  # somebody's own: nobody can know what it would do there
            continue
    return plain


def _plain(action: str, message: Any, category: type, module: Any, line: int) -> tuple[Any, ...]:
    kind = (category.__module__, category.__qualname__)
    return str(action), _pattern(message), kind, _pattern(module), int(line)


def _pattern(value: Any) -> str | tuple[str, int] | None:
    if value is None or isinstance(value, str):
        return value
    return str(value.pattern), int(value.flags)


# -- the other side ---------------------------------------------------------------------------


def redirect(files: tuple[bool, bool], descriptors: Sequence[int]) -> None:
    """Make descriptors 1 and 2 of this process what the caller's are, as far as those are open."""
    come = [lift(fd) for fd in descriptors]  # a kernel may have closed 1 and 2
    for number, there in zip((1, 2), files, strict=True):
        fd = come.pop(0) if there else lift(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC))
        os.dup2(fd, number)
        os.close(fd)


class _Category(type):
    """The class of classes that stand for a category of warnings of that name.

    A user's own class is made anew in a worker whenever it travels, and one of a package may not
    be imported yet: its name is what it is known by.
    """

    def __subclasscheck__(cls, other: type) -> bool:
        name = vars(cls).get("stands_for")
        return any((base.__module__, base.__qualname__) == name for base in other.__mro__)


def set_filters(plain: list[tuple[Any, ...]]) -> None:
    """Filter warnings as the caller does."""
    filters = [
        (action, _compiled(message), _category(kind), _compiled(module), line)
        for action, message, kind, module, line in plain
    ]
    warnings.resetwarnings()  # tells the C code that what it has cached is over
    warnings.filters[:] = filters  # type: ignore[index]  # typeshed: a Sequence


def _compiled(pattern: Any) -> Any:
    return re.compile(*pattern) if isinstance(pattern, tuple) else pattern


def _category(kind: tuple[str, str]) -> type[Warning]:
    module, name = kind
    if module == "builtins":
        found = vars(sys.modules["builtins"]).get(name)
        if isinstance(found, type) and issubclass(found, Warning):
            return found
    stand_in: Any = _Category(name, (Warning,), {"__module__": module, "stands_for": kind})
    return cast("type[Warning]", stand_in)


def set_numerics(data: bytes) -> None:
    """Have NumPy treat floating-point errors, and print, as in the caller."""
    errors, report, options = load(data)
    np.seterrcall(report)
    np.seterr(**errors)
    np.set_printoptions(**options)
