"""Where a module comes from: Python itself, an installed package, or the user.

The rules of what crosses to a worker, and how, hang on it: what is the user's own is looked after
name by name, what is installed is left to itself.
"""

from __future__ import annotations

import os
import site
import sys
import sysconfig
from types import ModuleType

__all__ = ["installed", "users"]

_SELF = __name__.partition(".")[0]
_STANDARD = sys.stdlib_module_names | {_SELF}  # without __main__
_known: dict[str, bool] = {"__main__": False}  # top-level package -> whether it is installed
_FOLDERS = ("site-packages", "dist-packages")  # also of environments other than this one


def installed(module: str) -> bool:
    """Whether a module, by its dotted name, belongs to an installed package.

    Neither is what comes with Python, dsmfor itself, nor a package that is installed *editable*:
    its files are where its author works on them. ``__main__`` is the user's, whatever runs it: a
    notebook's is the kernel launcher's file.
    """
    top = module.partition(".")[0]
    known = _known.get(top)
    if known is None:
        found = sys.modules.get(top)
        known = top not in _STANDARD and found is not None and _below_packages(found)
        if found is not None or top in _STANDARD:
            _known[top] = known
    return known


def users(module: str) -> bool:
    """Whether a module, by its dotted name, is the user's own."""
    return module.partition(".")[0] not in _STANDARD and not installed(module)


def _below_packages(module: ModuleType) -> bool:
    """Whether a module's file lies in a folder for installed packages."""
    # By neither getattr nor vars: a lazy module would be loaded by them.
    spaces = object.__getattribute__(module, "__dict__")
    places = [spaces.get("__file__"), *(list(spaces.get("__path__") or ()))]
    for place in places:
        if not isinstance(place, str):
            continue
        path = os.path.abspath(place)
        if any(part in _FOLDERS for part in path.split(os.sep)):
            return True
        if any(path.startswith(folder + os.sep) for folder in _site_folders()):
            return True
    return False


def _site_folders() -> set[str]:
    """Folders that installers write to; never the folder of the standard library as a whole."""
    paths = sysconfig.get_paths()
    found = {paths["purelib"], paths["platlib"], *site.getsitepackages()}
    if user := site.getusersitepackages():
        found.add(user)
    return {os.path.abspath(folder) for folder in found} - {
        os.path.abspath(paths["stdlib"]),
        os.path.abspath(paths["platstdlib"]),
    }
