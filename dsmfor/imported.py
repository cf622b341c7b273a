"""The user's modules in a worker: imported as anywhere, and for a run as the caller has them.

Where a module of the caller's comes from is said by its file: a worker whose path leads elsewhere,
or nowhere, loads that file. What is set for a run is replica.py's; here is how one place in such
a module is set and put back.
"""

from __future__ import annotations

import contextlib
import os
import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from types import ModuleType
from typing import Any

from dsmfor.design import MISSING, Path, Stays, contents, kind_of, state_of
from dsmfor.errors import RegionError
from dsmfor.modules import place_of, space_of

__all__ = ["Absent", "Spot", "bring_in", "edited", "find"]


def edited(where: object, what: str) -> RegionError:
    """The error for a module that workers import otherwise than the caller has it."""
    module = where.module if isinstance(where, Path) else str(where)
    return RegionError(
        f"{where} is not in the workers what it is in the caller: {what}. Its file was edited, or "
        f"it was patched, after this program had imported it; reload it (importlib.reload of "
        f"{module}) and what imports from it, or restart the program"
    )


def bring_in(modules: list[tuple[str, str | None]], others: list[str]) -> None:
    """Import modules from where the caller has them.

    Parameters
    ----------
    modules : list of (str, str or None)
        Name, and file or folder, in the order in which the caller has finished to import them.
    others : list of str
        All modules of the user, in that order. Modules that import each other in a circle may
        import in one order alone, and the one that was begun with was finished last.
    """
    for name, place in modules:
        if name not in sys.modules:
            try:
                import_module(name)
            except ModuleNotFoundError as error:
                if place is None or error.name is None or not _is_part(error.name, name):
                    raise
            except Exception:  # noqa: BLE001  # the import below says what it is
                for other in others[others.index(name) + 1 :] if name in others else []:
                    with contextlib.suppress(Exception):  # if it matters, it is said below
                        import_module(other)
                    if name in sys.modules:
                        break
                else:
                    import_module(name)
        module = sys.modules.get(name)
        found = None if module is None else place_of(space_of(module))
        if place is None or found == place:
            continue
        if module is not None and (
            found is None
            or not os.path.exists(place)
            or os.path.realpath(found) == os.path.realpath(place)
        ):
            continue
        _load(name, place)


def _is_part(missing: str, name: str) -> bool:
    """Whether it is the module itself, or a package around it, that is not found."""
    return name == missing or name.startswith(f"{missing}.")


def _load(name: str, place: str) -> None:
    """Load a module from a file that no path leads to."""
    inner = [os.path.dirname(place)] if os.path.basename(place).startswith("__init__.") else None
    spec = spec_from_file_location(name, place, submodule_search_locations=inner)
    if spec is None or spec.loader is None:
        raise edited(name, f"{place} cannot be imported here")
    module = module_from_spec(spec)
    before = sys.modules.get(name)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        if before is not None:
            sys.modules[name] = before
        raise
    parent, _, last = name.rpartition(".")
    if parent in sys.modules:
        setattr(sys.modules[parent], last, module)


def find(path: Path) -> Any:
    """What is there, or `MISSING`."""
    found: Any = sys.modules.get(path.module, MISSING)
    for how, name in path.steps:
        try:
            if how == "get":
                found = getattr(found, name)
            elif how == "of":
                found = _names(found)[name]
            elif how == "attr":
                found = getattr(found, name)
            else:
                found = contents(found.__closure__[name])
        except (AttributeError, KeyError, IndexError, TypeError):
            return MISSING
    return found


def _names(holder: Any) -> Any:
    return space_of(holder) if isinstance(holder, ModuleType) else vars(holder)


class Spot:
    """One place that is set for a run, and how it was before.

    Parameters
    ----------
    kind : str
        "global" in a namespace or class; "cell"; "__code__", "__defaults__", "__kwdefaults__" or
        "__dict__" of a function.
    holder : dict, type, cell or function
    name : str
    label : str
        For messages.
    """

    __slots__ = ("before", "holder", "kind", "label", "name", "original")

    def __init__(self, kind: str, holder: Any, name: str, label: str) -> None:
        self.kind = kind
        self.holder = holder
        self.name = name
        self.label = label
        self.original = self.get()
        self.before: dict[Any, Any] | None = None  # of the original's keys or attributes

    def get(self) -> Any:
        """What is there."""
        if self.kind == "global":
            space = vars(self.holder) if isinstance(self.holder, type) else self.holder
            return space.get(self.name, MISSING)
        if self.kind == "cell":
            return contents(self.holder)
        if self.kind == "__dict__":
            return dict(self.holder.__dict__)
        return getattr(self.holder, self.kind)

    def put(self, value: Any) -> Any:
        """Set it; what is there then."""
        if type(value) is Stays:
            if kind_of(self.original) == value.kind:
                self.graft(value)
                value = self.original
            else:
                value = Absent(self.label, value, self.original)
        if self.kind == "cell":
            if value is not MISSING:
                self.holder.cell_contents = value
            elif contents(self.holder) is not MISSING:
                del self.holder.cell_contents
        elif self.kind == "__dict__":
            self.holder.__dict__.clear()
            self.holder.__dict__.update(value or {})
        elif self.kind != "global":
            setattr(self.holder, self.kind, value)
        elif isinstance(self.holder, type):
            if value is not MISSING:
                type.__setattr__(self.holder, self.name, value)
            elif self.name in vars(self.holder):
                type.__delattr__(self.holder, self.name)
        elif value is not MISSING:
            self.holder[self.name] = value
        else:
            self.holder.pop(self.name, None)
        return value

    def graft(self, stays: Stays) -> None:
        """Give the import's own object what can come of the caller's."""
        state = state_of(self.original)
        if state is not None and stays.parts is not None and stays.names is not None:
            if self.before is None:
                self.before = dict(state)
            for name in state.keys() - set(stays.names):
                del state[name]
            state.update(stays.parts)

    def restore(self) -> None:
        """Put back what was there."""
        if self.before is not None and (state := state_of(self.original)) is not None:
            state.clear()
            state.update(self.before)
            self.before = None
        if self.kind == "__dict__" or self.get() is not self.original:
            self.put(self.original)


class Absent:
    """Stands for a value that could not come: whoever uses it is told."""

    def __init__(self, label: str, value: Stays, own: Any) -> None:
        here = "nothing" if own is MISSING else f"a {kind_of(own)}"
        text = (
            f"{label} is a {value.kind} in the caller that cannot be pickled ({value.why}), and "
            f"the workers' own import has {here} there; make it inside the kernel, or where the "
            "module is imported"
        )
        object.__setattr__(self, "_text", text)

    def __getattribute__(self, name: str) -> Any:
        if name in ("__class__", "_text"):
            return object.__getattribute__(self, name)
        raise RegionError(object.__getattribute__(self, "_text"))


def _refuse(self: Absent, *_: Any, **__: Any) -> Any:
    raise RegionError(self._text)


_REFUSED = """
add and bool bytes call contains delitem divmod enter eq exit float floordiv format ge getitem gt
hash index int invert iter le len lt matmul mod mul ne neg next or pos pow radd reduce rmul rsub
rtruediv setattr setitem str sub truediv xor
"""
for _name in _REFUSED.split():
    setattr(Absent, f"__{_name}__", _refuse)
