"""The shape of the package: imports go down, names mean something, what is public is explained.

The floors are those of the table in CONTRIBUTING.md. A room that is not in `FLOORS` has no
place yet: give it one there, as low as it can stand.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from types import UnionType

import pytest

import dsmfor

PACKAGE = Path(dsmfor.__file__).parent

FLOORS = {
    "errors": 0,
    "handlers": 0,
    "bytecode": 0,
    "origin": 0,
    "modules": 1,
    "footer": 0,
    "limits": 0,
    "source": 0,
    "_native": 0,
    "schedules": 1,
    "arenas": 1,
    "memfiles": 1,
    "segments": 1,
    "shapes": 0,
    "labels": 1,
    "shmfiles": 1,
    "team": 1,
    "arrays": 2,
    "naming": 2,
    "filemaps": 2,
    "loops": 2,
    "sync": 2,
    "reduction": 2,
    "arrivals": 3,
    "transit": 3,
    "reachable": 3,
    "snapshots": 3,
    "hints": 3,
    "misuse": 3,
    "pickling": 3,
    "design": 3,
    "survey": 3,
    "skeleton": 3,
    "imported": 3,
    "payload": 3,
    "replica": 3,
    "outcome": 3,
    "staging": 3,
    "engines": 4,
    "report": 5,
    "options": 5,
    "intents": 5,
    "sharing": 5,
    "region": 5,
    "parallel": 5,
    "pydsm": 6,
    "doctor": 6,
    "__main__": 7,
    "__init__": 6,
}

SIDEWAYS = {
    "footer": {"errors"},
    "limits": {"errors"},
    "_native": {"_native", "errors", "limits"},
    "segments": {"memfiles"},
    "arenas": {"memfiles", "segments"},
    "arrays": {"naming"},
    "shmfiles": {"labels", "memfiles"},
    "team": {"schedules"},
    "snapshots": {"reachable"},
    "hints": {"outcome", "reachable"},
    "transit": {"arrivals"},
    "pickling": {"arrivals", "transit"},
    "staging": {"transit"},
    "design": {"reachable"},
    "survey": {"design", "pickling"},
    "skeleton": {"design", "pickling", "reachable", "survey", "transit"},
    "payload": {"arrivals", "pickling", "reachable", "skeleton", "staging", "transit"},
    "imported": {"design"},
    "replica": {"arrivals", "snapshots", "design", "imported", "pickling"},
    "outcome": {"pickling"},
    "engines": {"engines"},
    "pydsm": {"pydsm"},
    "doctor": {"doctor"},
    "sharing": {"intents"},
    "region": {"options", "sharing"},
    "parallel": {"options", "region", "report", "sharing"},
}
"""Rooms that may import these of their own floor, themselves included; never in a circle."""

MEANINGLESS = {"utils", "util", "helpers", "helper", "common", "core", "manager", "misc", "tools"}

SOURCES = sorted(
    path for suffix in ("py", "pyi", "pyx", "pxd", "h") for path in PACKAGE.rglob(f"*.{suffix}")
)
# A stub (.pyi) is not a module: it tells the type checker of the .pyx beside it, and never runs.
MODULES = [path for path in SOURCES if path.suffix in (".py", ".pyx", ".pxd")]


def name_of(path: Path) -> str:
    """Path inside the package: what a test is called by."""
    return path.relative_to(PACKAGE).as_posix()


def module_of(path: Path) -> str:
    """Dotted name inside the package: ``engines.process``; ``__init__`` for the face."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


ALL_MODULES = {module_of(path) for path in MODULES}


def resolved(name: str) -> str | None:
    """The module of this package that a dotted name ``dsmfor.x.y`` is, or is in."""
    first, *parts = name.split(".")
    if first != "dsmfor":
        return None
    while parts and ".".join(parts) not in ALL_MODULES:
        parts.pop()
    return ".".join(parts) or "__init__"


def dotted_imports(path: Path) -> Iterator[str]:
    """Absolute name of everything that a module imports, cimports included, wherever it does."""
    text = path.read_text()
    if path.suffix in (".pyx", ".pxd"):
        text = "\n".join(cython_imports(text))
    package = ["dsmfor", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*above, *filter(None, [node.module])])
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def cython_imports(text: str) -> Iterator[str]:
    """The imports and cimports of a Cython module, as Python."""
    statement = r"^[ \t]*((?:from[ \t]+\S+[ \t]+)?c?import[ \t]+(?:\([^)]*\)|[^\n#;]+))"
    for found in re.finditer(statement, text, re.MULTILINE):
        yield re.sub(r"\bcimport\b", "import", found[1])


def imports(path: Path) -> set[str]:
    """Modules of this package that a module imports."""
    return {found for name in dotted_imports(path) if (found := resolved(name)) is not None}


def test_a_module_inside_the_package_is_seen_however_it_is_imported(tmp_path: Path) -> None:
    text = "from dsmfor.errors cimport a, b\nfrom . cimport plan\n  import dsmfor.schedules as s\n"
    assert list(cython_imports(text)) == [
        "from dsmfor.errors import a, b",
        "from . import plan",
        "import dsmfor.schedules as s",
    ]
    assert resolved("dsmfor.errors.DSMError") == "errors"
    assert resolved("dsmfor._native.nowhere") == "_native"
    assert resolved("dsmfor") == "__init__"
    assert resolved("numpy.random") is None


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_only_go_down(path: Path) -> None:
    room = module_of(path).partition(".")[0]
    assert room in FLOORS, f"{name_of(path)} is on no floor: give {room!r} one in {__file__}"
    for module in imports(path) - {module_of(path)}:
        other = module.partition(".")[0]
        assert other in FLOORS, f"{name_of(path)} imports {module}, which is on no floor"
        assert FLOORS[other] < FLOORS[room] or other in SIDEWAYS.get(room, ()), (
            f"{name_of(path)} (floor {FLOORS[room]}) imports {module} (floor {FLOORS[other]}); "
            "imports only go down: move what both need to a lower room"
        )


def test_no_imports_go_round_in_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for path in MODULES:
        name = module_of(path)
        graph.setdefault(name, set()).update(imports(path) - {name})
    TopologicalSorter(graph).prepare()  # raises a CycleError that names the circle


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_room_has_a_telling_name(path: Path) -> None:
    for word in path.relative_to(PACKAGE).with_suffix("").parts:
        assert word.strip("_").lower() not in MEANINGLESS, f"{name_of(path)}: what is in it?"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_room_fits_into_one_head(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= 450, f"{name_of(path)} has {lines} lines: it holds more than one idea"


@pytest.mark.parametrize("path", [p for p in SOURCES if p.suffix == ".py"], ids=name_of)
def test_a_room_opens_with_what_it_is_for(path: Path) -> None:
    text = path.read_text()
    assert not text or ast.get_docstring(ast.parse(text)), f"{name_of(path)} has no docstring"


# -- What is public is explained ----------------------------------------------------------------

PUBLIC = sorted(getattr(dsmfor, "__all__", []))
PARAMETERS = re.compile(
    r"^Parameters\n-{10}\n(.*?)(?:^\w[^\n]*\n-{3,}\n|\Z)", re.MULTILINE | re.DOTALL
)


HANDED_OUT = {"NamedArray", "Parallel", "Report"}
"""Classes that users are given and never call."""


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_is_explained(name: str) -> None:
    thing = getattr(dsmfor, name)
    if isinstance(thing, (str, UnionType)):  # __version__; Schedule, an alias for annotations
        return
    # Its own words: inspect.getdoc would fall back on those of a parent class.
    text = inspect.cleandoc(getattr(thing, "__doc__", None) or "")
    assert text, f"dsmfor.{name} has no docstring"
    summary = text.partition("\n\n")[0]
    assert summary.endswith("."), f"dsmfor.{name}: {summary!r} is no sentence"
    if inspect.isclass(thing) and issubclass(thing, BaseException):
        return  # made here and caught there: its class docstring tells what it means
    if name in HANDED_OUT:
        assert "\nAttributes\n----------\n" in text, f"dsmfor.{name} does not say what it holds"
        return
    section = PARAMETERS.search(text)
    for parameter in parameters(thing):
        assert section, f"dsmfor.{name} takes {parameter!r} and has no Parameters section"
        assert re.search(rf"^(?=\S)[^:\n]*\b{parameter}\b", section[1], re.MULTILINE), (
            f"dsmfor.{name}: parameter {parameter!r} is not explained"
        )


def parameters(thing: object) -> list[str]:
    """Names of what a callable takes."""
    if not callable(thing):
        return []
    return [name for name in inspect.signature(thing).parameters if name != "self"]
