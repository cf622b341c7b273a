"""What `shared` and `private` say, and what it means for the arrays of one call.

Names are checked against the kernel when it is decorated; at each call they become intents of the
very arrays that they name then. How an array with an intent crosses is transit.py's.
"""

from __future__ import annotations

import builtins
import copy
import inspect
import itertools
from collections.abc import Iterator, Sequence
from types import FunctionType
from typing import Any, NamedTuple

import numpy as np

from dsmfor.bytecode import global_names, read
from dsmfor.design import MISSING
from dsmfor.errors import LostWriteError
from dsmfor.intents import check_shareable, names, parse
from dsmfor.payload import Claims
from dsmfor.reachable import reachable
from dsmfor.skeleton import Skeleton, own_modules, reach
from dsmfor.transit import Outward, Private, clear, is_live

__all__ = ["Sharing"]

EVERYTHING = "*"


class _Path(NamedTuple):
    """A dotted name: where it begins, and the attributes from there."""

    name: str
    root: str
    attributes: list[str]
    intent: str


class Sharing:
    """The decorator's `shared` and `private`, checked against the kernel.

    Parameters
    ----------
    function : function
        The kernel.
    shared : sequence of str, dict of str to str, or None
        Names of parameters and captured variables, with intents in a dict; dotted for attributes.
    private : sequence of str or "*"
        Names of what every worker gets a copy of.

    Raises
    ------
    TypeError, ValueError
        They hold anything else, or name what is not there.
    LostWriteError
        The kernel, or a function that travels with it, assigns a global or nonlocal variable.
    """

    def __init__(self, function: FunctionType, shared: Any, private: Any = ()) -> None:
        code = function.__code__
        self.function = function
        self.positional = code.co_varnames[: code.co_argcount]
        self.parameters = list(inspect.signature(function).parameters)
        self._fitting: set[tuple[Any, ...]] = set()  # forms of calls that are known to fit
        at = code.co_argcount + code.co_kwonlyargcount
        self.variadic = code.co_varnames[at] if code.co_flags & inspect.CO_VARARGS else ""
        intents = parse(shared)
        self.explicit = intents is not None
        self.everything_private = private == EVERYTHING
        chosen = dict(intents or {})
        for name in () if self.everything_private else names("private", private):
            if name in chosen:
                raise ValueError(
                    f"{name!r} is both shared and private; leave it in shared to write the "
                    "caller's array, or in private for a copy in every worker"
                )
            chosen[name] = "private"
        self.private = frozenset(name for name, intent in chosen.items() if intent == "private")
        self.inward = frozenset(name for name, intent in chosen.items() if intent == "in")
        self.intents = {name: intent for name, intent in chosen.items() if "." not in name}
        self.paths = [
            _Path(name, (parts := name.split("."))[0], parts[1:], intent)
            for name, intent in chosen.items()
            if "." in name
        ]
        self._silent = not chosen and not self.explicit
        self._checked: Skeleton | None = None
        helpers = reach(function, own_modules(function))
        if chosen:
            self._check_names(helpers, chosen)
        self._refuse_assignments(helpers)

    def _check_names(self, helpers: list[FunctionType], intents: dict[str, str]) -> None:
        captured: set[str] = set()
        likely: set[str] = set()
        unbound = False
        for helper in helpers:
            space = helper.__globals__
            named = set(global_names(helper.__code__))
            captured |= named | set(helper.__code__.co_freevars)
            likely |= {name for name in named if isinstance(space.get(name), np.ndarray)}
            likely |= set(helper.__code__.co_freevars)
            unbound = unbound or any(n not in space and n not in vars(builtins) for n in named)
        for name, intent in intents.items():
            root = name.partition(".")[0]
            if root in self.parameters or root in captured:
                continue
            if unbound:
                continue  # a helper that is defined later may capture it: seen at the call
            known = ", ".join(map(repr, [*self.parameters, *sorted(likely)])) or "nothing"
            raise ValueError(
                f"{_option(intent)} names {name!r}, and {root!r} is neither a parameter of "
                f"{self.function.__qualname__} nor a variable that it captures; it could be {known}"
            )

    def _refuse_assignments(self, functions: Sequence[FunctionType]) -> None:
        """Refuse functions of the kernel's module that assign variables of the caller."""
        if self.everything_private:
            return
        own = own_modules(self.function)
        for function in functions:
            if (function.__module__ or "__main__") not in own:
                continue
            for name, kind, line in read(function.__code__).outside:
                if name not in self.private:
                    raise LostWriteError(
                        f"{function.__qualname__} assigns the {kind} variable {name!r} in line "
                        f"{line} of {function.__code__.co_filename}: each worker would change a "
                        f"copy of its own, and the caller's would stay as it is. Return the value "
                        f"(with reduce= for one of all ranks), write into a shared array, or say "
                        f"private=[{name!r}] if a copy in every worker is meant"
                    )

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments by parameter, those of ``*args`` by position.

        Raises
        ------
        TypeError
            The call does not fit the kernel.
        """
        function = self.function
        form = (len(args), *kwargs)
        if form not in self._fitting:
            try:
                inspect.signature(function).bind(*args, **kwargs)
            except TypeError as error:
                raise TypeError(f"{function.__qualname__}(): {error}") from None
            self._fitting.add(form)
        arguments: dict[str, Any] = dict(zip(self.positional, args))  # noqa: B905  # *args follow
        for n, value in enumerate(args[len(self.positional) :]):
            arguments[f"{self.variadic}[{n}]"] = value
        arguments |= kwargs
        if defaults := function.__defaults__:
            for name, value in zip(self.positional[-len(defaults) :], defaults, strict=False):
                arguments.setdefault(name, value)
        if function.__kwdefaults__:
            for name, value in function.__kwdefaults__.items():
                arguments.setdefault(name, value)
        return arguments

    def claims(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        skeleton: Skeleton,
        values: list[Any],
    ) -> Claims:
        """What a call sends.

        Raises
        ------
        TypeError
            What is named cannot be shared.
        ValueError
            What is named is nowhere, is read-only, or is made anew at each access.
        """
        if skeleton is not self._checked:
            self._refuse_assignments(skeleton.functions)
            self._checked = skeleton
        intents: dict[int, str] = {}
        if self._silent:
            if not (args or kwargs or values or self.parameters):
                return Claims(args, kwargs, values, {}, [], [])
            given: Any = args
            if kwargs or len(args) != len(self.parameters):
                given = self.bind(args, kwargs).values()
            self._note_parameters(given, intents)
            for _, value in skeleton.captured(values):
                if type(value) is np.ndarray:
                    intents.setdefault(id(value), "unnamed")
            return Claims(args, kwargs, values, intents, [], [])
        arguments = self.bind(args, kwargs)
        captured = (
            [(n, v) for n, v in skeleton.captured(values) if n not in arguments] if values else []
        )
        if not self.explicit:
            self._note_parameters(
                (v for n, v in arguments.items() if _parameter(n) not in self.private), intents
            )
        cleared = []
        for name, value in itertools.chain(arguments.items(), captured):
            intent = self._intent_of(name)
            if intent is None:
                if type(value) is np.ndarray:
                    intents.setdefault(id(value), "unnamed")
            elif intent != "private" or type(value) is not np.ndarray:
                _claim(name, value, intent, intents)  # a private ndarray may be shared, too
                if intent == "out":
                    cleared.append(value)
        named = []
        for path in self.paths:
            for value in self._follow(path, arguments, captured):
                _claim(path.name, value, path.intent, intents)
                named.append((path.name, value))
                if path.intent == "out":
                    cleared.append(value)
        for name, intent in self.intents.items():
            if name not in arguments and name not in self._names_of(arguments, captured):
                raise self._unknown(name, intent, arguments, captured)
        if self.private:
            args, kwargs, values = self._privatise(args, kwargs, skeleton, values)
        return Claims(args, kwargs, values, intents, named, cleared)

    def here(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments for a run in this process, where the intents of parameters hold too.

        What would arrive read-only does, as a view; what starts as zeros does; what is private is
        a copy. Captured variables and attributes are those of the caller.
        """
        if not self.parameters or (self._silent and not self.everything_private):
            return args, kwargs
        arguments = self.bind(args, kwargs)
        intents: dict[int, str] = {}
        named = []
        for name, value in arguments.items():
            intent = self._intent_of(name)
            if intent is None and not self.explicit and isinstance(value, np.ndarray):
                named.append(value)  # all that are passed are shared
            elif intent not in (None, "private"):
                _claim(name, value, str(intent), intents)
                named.append(value)
        for path in self.paths:
            if path.root in arguments and path.intent != "private":
                for value in self._follow(path, arguments, []):
                    _claim(path.name, value, path.intent, intents)
                    named.append(value)
        given = [v for v in [*arguments.values(), *named] if isinstance(v, np.ndarray)]
        outs = [array for array in given if intents.get(id(array)) == "out"]
        clear(outs, [array for array in given if intents.get(id(array)) != "out"])
        kept = {id(array): array for array in named}  # what is shared is not copied with the rest
        there = {
            name: self._as_there(name, value, intents, kept) for name, value in arguments.items()
        }
        names = [*self.positional, *(n for n in arguments if n.startswith(f"{self.variadic}["))]
        args = tuple(there[name] for name, _ in zip(names, args, strict=False))
        defaults = {
            name: value
            for name, value in there.items()
            if value is not arguments[name] and name not in names[: len(args)]
        }
        return args, {**{name: there[name] for name in kwargs}, **defaults}

    def _as_there(
        self, name: str, value: Any, intents: dict[int, str], kept: dict[int, Any]
    ) -> Any:
        """One argument as a worker would have it."""
        named = self._intent_of(name)
        passed = isinstance(value, np.ndarray) and not self.explicit  # so it is shared
        if named == "private" or (self.everything_private and named is None and not passed):
            live = isinstance(value, np.ndarray) and is_live(value)
            memo = {} if named == "private" and isinstance(value, np.ndarray) else dict(kept)
            if named is None:
                inside = (item for _, item in reachable(name, value))
                memo |= {id(a): a for a in inside if isinstance(a, np.ndarray) and is_live(a)}
            return value if named is None and live else copy.deepcopy(value, memo)
        if type(value) is not np.ndarray:
            return value
        intent = intents.get(id(value), "inout" if not self.explicit else "unnamed")
        if intent == "in" or (intent == "unnamed" and not is_live(value)):
            value = value.view()
            value.flags.writeable = False
        return value

    def _intent_of(self, name: str) -> str | None:
        """What the user says of an argument; ``rest[2]`` is one of ``*rest``."""
        intent = self.intents.get(name)
        if intent is None and self.variadic and name.startswith(f"{self.variadic}["):
            intent = self.intents.get(self.variadic)
        return intent

    @staticmethod
    def check_met(claims: Claims, transit: Outward) -> None:
        """Refuse a dotted name whose array the workers have not been sent."""
        for name, value in claims.named:
            if isinstance(value, np.ndarray) and id(value) not in transit.met:
                raise ValueError(
                    f"{name!r} is named in shared or private, and no attribute holds that array: "
                    "a property made it, or a module has it. Name the attribute that it is made "
                    "of, or pass the array as an argument"
                )

    @staticmethod
    def _note_parameters(values: Any, intents: dict[int, str]) -> None:
        """Without `shared`, every parameter that is exactly an ndarray is."""
        for value in values:
            if type(value) is np.ndarray:
                intents[id(value)] = "inout" if value.flags.writeable else "in"

    def _names_of(self, arguments: dict[str, Any], captured: list[tuple[str, Any]]) -> set[str]:
        """All names that a call has something for, or could have."""
        return {*map(_parameter, arguments), *self.parameters, *(name for name, _ in captured)}

    def _unknown(
        self, name: str, intent: str, arguments: dict[str, Any], captured: list[tuple[str, Any]]
    ) -> ValueError:
        known = ", ".join(map(repr, sorted(self._names_of(arguments, captured)))) or "nothing"
        return ValueError(
            f"{_option(intent)} names {name!r}, and {name.partition('.')[0]!r} is neither a "
            "parameter nor captured by the kernel or a helper of its module; it could be "
            f"{known}"
        )

    def _follow(
        self, path: _Path, arguments: dict[str, Any], captured: list[tuple[str, Any]]
    ) -> Iterator[Any]:
        """What a dotted name means in this call."""
        if exact := [value for name, value in captured if name == path.name]:
            yield from exact  # of another module of the user
            return
        roots = [arguments[path.root]] if path.root in arguments else []
        roots = roots or [value for name, value in captured if name == path.root]
        if not roots and path.root not in self._names_of(arguments, captured):
            raise self._unknown(path.name, path.intent, arguments, captured)
        for root in roots:
            value, sofar = root, path.root
            for attribute in path.attributes:
                try:
                    value = getattr(value, attribute)
                except AttributeError:
                    if path.intent == "private":
                        return  # a kernel may make it
                    raise ValueError(
                        f"{_option(path.intent)} names {path.name!r}, and {sofar} is a "
                        f"{type(value).__qualname__} without an attribute {attribute!r}; "
                        "set it before the call, or correct the name"
                    ) from None
                sofar += f".{attribute}"
            yield value

    def _privatise(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        skeleton: Skeleton,
        values: list[Any],
    ) -> tuple[tuple[Any, ...], dict[str, Any], list[Any]]:
        """Arguments and slots with what is private by name marked as such."""
        order = [*self.positional, *[self.variadic] * (len(args) - len(self.positional))]
        private = self.private
        args = tuple(Private(v) if n in private else v for n, v in zip(order, args, strict=False))
        kwargs = {n: Private(v) if n in private else v for n, v in kwargs.items()}
        marked = []
        for slot, value in zip(skeleton.slots, values, strict=True):
            if slot.kind in ("global", "cell"):
                value = Private(value) if slot.name in private and value is not MISSING else value
            elif slot.kind == "__defaults__" and value and slot.owner == 0:
                tail = self.positional[-len(value) :]
                value = tuple(
                    Private(v) if n in private else v for n, v in zip(tail, value, strict=True)
                )
            elif slot.kind == "__kwdefaults__" and value and slot.owner == 0:
                value = {n: Private(v) if n in private else v for n, v in value.items()}
            marked.append(value)
        return args, kwargs, marked


def _parameter(name: str) -> str:
    """The parameter of an argument: ``args[2]`` is one of ``args``."""
    return name.partition("[")[0]


def _option(intent: str) -> str:
    return "private" if intent == "private" else "shared"


_BOTH = "{!r} is {}, and the same array is {} by another name; name it in one of the two"


def _claim(name: str, value: Any, intent: str, intents: dict[int, str]) -> None:
    """Enter the intent of one array that is named, the widest if it has several names."""
    if intent == "private":
        for label, found in reachable(name, value):
            if isinstance(found, np.ndarray):
                if intents.get(id(found), "unnamed") not in ("unnamed", "private"):
                    raise ValueError(_BOTH.format(label, "private", "shared"))
                intents[id(found)] = intent
        return
    if type(value) is not np.ndarray or value.dtype.hasobject:
        check_shareable(name, value)
    if intent != "in" and not value.flags.writeable:
        raise ValueError(
            f"shared names {name!r} for writing, and the array is read-only; "
            f"pass a writable one, or say shared={{{name!r}: 'in'}}"
        )
    known = intents.get(id(value))
    if known == "private":
        raise ValueError(_BOTH.format(name, "shared", "private"))
    if known not in (None, "unnamed", intent):
        intent = "inout"
    intents[id(value)] = intent
