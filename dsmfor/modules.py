"""Which modules are the user's own, and where a namespace is at home.

A module of the user's is one that the user may edit, reload or patch while the program runs:
neither the interpreter's, nor an installed package's (origin.py), nor dsmfor's. A file of the
user's counts although it is named as a module of the standard library. What follows from it is
survey.py's.

Nothing here makes a lazily loaded module load: namespaces are got past ``__getattribute__``.
"""

from __future__ import annotations

import os
import sys
from operator import is_
from types import ModuleType
from typing import Any

from dsmfor.origin import installed

__all__ = [
    "IMPORTED",
    "INSTALLED",
    "MADE",
    "home",
    "kind",
    "listing",
    "registered",
    "space_of",
    "specs",
]

INSTALLED = 0  # the interpreter's, a library's, ours; or no module at all
IMPORTED = 1  # the user's, and another process can import it
MADE = 2  # the user's, made by code (exec, types.ModuleType): there is nothing to import

_STANDARD = os.path.dirname(os.path.abspath(os.__file__)) + os.sep
_OURS = os.path.dirname(os.path.abspath(__file__)) + os.sep
_listed: tuple[list[str], list[Any], list[str]] = [], [], []  # all, and which are the user's
# Name -> (namespace, spec, kind): true as long as the first two are the module's.
_kinds: dict[str, tuple[Any, Any, int]] = {}


def space_of(module: ModuleType) -> dict[str, Any]:
    """The namespace of a module, also of one that is yet to be loaded, which it leaves so."""
    space: dict[str, Any] = object.__getattribute__(module, "__dict__")
    return space


def registered(module: ModuleType) -> str | None:
    """The name under which ``sys.modules`` has this very module."""
    name: object = space_of(module).get("__name__")
    if isinstance(name, str) and sys.modules.get(name) is module:
        return name
    return None


def kind(name: str) -> int:
    """Whose the module of that name is; ``__main__`` is made by code, whatever its file.

    Returns
    -------
    int
        `INSTALLED`, `IMPORTED` or `MADE`.
    """
    module = sys.modules.get(name)
    if not isinstance(module, ModuleType):
        return INSTALLED
    space = space_of(module)
    spec = space.get("__spec__")
    known = _kinds.get(name)
    if known is not None and known[0] is space and known[1] is spec:
        return known[2]
    found = MADE if name == "__main__" else _kind(name, space, spec)
    _kinds[name] = space, spec, found
    return found


def _kind(name: str, space: dict[str, Any], spec: Any) -> int:
    place = place_of(space)
    if place is not None:
        ours = (place + os.sep).startswith(_OURS)
        return INSTALLED if ours or place.startswith(_STANDARD) or installed(name) else IMPORTED
    if spec is not None or name.partition(".")[0] in sys.stdlib_module_names:
        return INSTALLED  # built in, or frozen
    parent = name.rpartition(".")[0]
    return INSTALLED if parent and kind(parent) == INSTALLED else MADE


def place_of(space: dict[str, Any]) -> str | None:
    """The file of a module, or the folder of a package that has none."""
    spec = space.get("__spec__")
    origin = getattr(spec, "origin", None) if getattr(spec, "has_location", False) else None
    for place in (space.get("__file__"), origin):
        if isinstance(place, str):
            return os.path.abspath(place)
    folders = list(getattr(spec, "submodule_search_locations", None) or ())
    return os.path.abspath(str(folders[0])) if folders else None


def home(space: dict[str, Any]) -> str | None:
    """Name of the module whose namespace this very dict is, if ``sys.modules`` has it."""
    name = space.get("__name__")
    if not isinstance(name, str):
        return None
    module = sys.modules.get(name)
    return name if isinstance(module, ModuleType) and space_of(module) is space else None


def listing() -> dict[str, int]:
    """The user's modules, in the order in which this program began to import them."""
    global _listed
    names, modules = list(sys.modules), list(sys.modules.values())
    if names != _listed[0] or not all(map(is_, modules, _listed[1])):
        _listed = names, modules, [name for name in names if kind(name) != INSTALLED]
    return {name: found for name in _listed[2] if (found := kind(name)) != INSTALLED}


def specs() -> dict[str, Any]:
    """The ``__spec__`` of each of the user's modules that can be imported.

    importlib.reload, IPython's autoreload, and importing a module again that was removed from
    ``sys.modules`` each leave a new one.
    """
    return {
        name: space_of(sys.modules[name]).get("__spec__")
        for name, found in listing().items()
        if found == IMPORTED
    }
