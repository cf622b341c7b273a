"""One call of a kernel on workers, from its arguments to its value or its error.

Which options hold is options.py's and parallel.py's; how workers run it is engines/. What happens
here, in order: the arguments are sorted into shared and plain arrays, plain ones are staged, the
kernel is packed, the region runs, arrays are copied back, and the outcomes become a value or the
one exception that says why there is none.
"""

from __future__ import annotations

import builtins
import inspect
import itertools
import os
import time
from collections.abc import Iterator, Sequence
from types import FunctionType
from typing import Any

import numpy as np

from dsmfor.engines import process
from dsmfor.engines.crew import Ended
from dsmfor.errors import RegionError, RegionTimeout, WorkerDied
from dsmfor.options import Options
from dsmfor.outcome import Failure, revive
from dsmfor.payload import MISSING, Kernel, Skeleton, global_names, own_modules, reach
from dsmfor.staging import Stage, stageable

__all__ = ["Sharing", "run"]

_NO_VIEWS: dict[int, np.ndarray] = {}
_MASK = (1 << 64) - 1
_MOST_NOTES = 4  # of other ranks' exceptions
# Seeds for calls that name none: consecutive numbers from a random one on. Not the `random` module,
# which a file of that name beside the user's script would hide.
_seeds = itertools.count(int.from_bytes(os.urandom(7), "little"))


class Sharing:
    """What the decorator's `shared` says, checked against the kernel.

    Parameters
    ----------
    function : function
        The kernel.
    shared : sequence of str, dict of str to str, or None
        Names of parameters and captured variables, with intents in a dict.
    """

    def __init__(self, function: FunctionType, shared: Any) -> None:
        code = function.__code__
        self.function = function
        self.positional = code.co_varnames[: code.co_argcount]
        self.parameters = list(inspect.signature(function).parameters)
        at = code.co_argcount + code.co_kwonlyargcount
        self.variadic = code.co_varnames[at] if code.co_flags & inspect.CO_VARARGS else ""
        self.intents = _intents(shared)
        if self.intents is not None:
            self._check_names(function, self.intents)

    def _check_names(self, function: FunctionType, intents: dict[str, str]) -> None:
        parameters = self.parameters
        captured: set[str] = set()
        arrays: set[str] = set()
        unbound = False
        for helper in reach(function, own_modules(function)):
            space = helper.__globals__
            named = set(global_names(helper.__code__))
            captured |= named | set(helper.__code__.co_freevars)
            arrays |= {name for name in named if isinstance(space.get(name), np.ndarray)}
            arrays |= set(helper.__code__.co_freevars)
            unbound = unbound or any(n not in space and n not in vars(builtins) for n in named)
        for name in intents:
            if name in parameters or name in captured:
                continue
            if unbound:
                continue  # a helper that is defined later may capture it: seen at the call
            known = ", ".join(map(repr, [*parameters, *sorted(arrays)])) or "nothing"
            raise ValueError(
                f"shared names {name!r}, which is neither a parameter of "
                f"{function.__qualname__} nor a variable that it captures; it could be {known}"
            )

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments by parameter, those of ``*args`` by position.

        A call that does not fit is not refused here: the kernel does it, in Python's own words.
        """
        function = self.function
        arguments: dict[str, Any] = dict(zip(self.positional, args))  # noqa: B905  # may not fit
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

    def plain_arrays(
        self,
        arguments: dict[str, Any],
        skeleton: Skeleton,
        values: list[Any],
    ) -> Iterator[tuple[np.ndarray, str]]:
        """The plain arrays that the kernel is given by name, each with its intent.

        Raises
        ------
        TypeError
            What `shared` names cannot be shared.
        ValueError
            What `shared` names is nowhere, or is read-only.
        """
        intents = self.intents
        for name, value in arguments.items():
            if stageable(value):
                if intents is None:
                    yield value, "inout" if value.flags.writeable else "in"
                else:
                    yield value, _intent(name, value, intents.get(name.partition("[")[0], "in"))
            elif intents is not None and name in intents:
                _check_shareable(name, value)
        names = {*arguments, *self.parameters}
        for name, value in skeleton.captured(values):
            wanted = intents is not None and name in intents and name not in arguments
            names.add(name)
            if stageable(value):
                yield value, _intent(name, value, intents[name]) if wanted and intents else "in"
            elif wanted:
                _check_shareable(name, value)
        if intents is not None:
            for name in intents:
                if name not in names:
                    raise ValueError(
                        f"shared names {name!r}, which is neither a parameter nor captured by the "
                        f"kernel or a helper of its module; it could be "
                        f"{', '.join(map(repr, sorted(names))) or 'nothing'}"
                    )


def _intents(shared: Any) -> dict[str, str] | None:
    """`shared` as a dict of intents, or None for every array among the parameters."""
    if shared is None:
        return None
    if isinstance(shared, str):
        raise TypeError(
            f"shared must be a list of names, got the string {shared!r}; "
            f"you wrote shared={shared!r}, you want shared=[{shared!r}]"
        )
    if isinstance(shared, dict):
        intents = dict(shared)
    elif isinstance(shared, Sequence):
        intents = dict.fromkeys(shared, "inout")
    else:
        raise TypeError(
            f"shared must be a list of names, a dict of names to 'in', 'out' or "
            f"'inout', or None, got {shared!r}"
        )
    for name, intent in intents.items():
        if not isinstance(name, str):
            raise TypeError(
                f"shared must hold names, got {name!r}; write the parameter's name as a string"
            )
        if intent not in ("in", "out", "inout"):
            raise ValueError(
                f"the intent of {name!r} must be 'in', 'out' or 'inout', got {intent!r}"
            )
    return intents


def _intent(name: str, array: np.ndarray, intent: str) -> str:
    if intent != "in" and not array.flags.writeable:
        raise ValueError(
            f"shared names {name!r} for writing, and the array is read-only; "
            f"pass a writable one, or say shared={{{name!r}: 'in'}}"
        )
    return intent


def _check_shareable(name: str, value: object) -> None:
    """Refuse what `shared` names and cannot be written in place."""
    if type(value) is np.ndarray:
        if value.dtype.hasobject:
            raise TypeError(
                f"{name!r} is an array of Python objects, which cannot be shared; "
                "convert it to a numeric or fixed-size dtype"
            )
        return  # in shared memory already, or without elements
    kind = type(value).__qualname__
    if value is MISSING:
        raise NameError(f"shared names {name!r}, which has no value yet")
    if isinstance(value, np.ma.MaskedArray):
        remedy = "share its .data and .mask"
    elif isinstance(value, np.ndarray):
        remedy = f"pass np.asarray({name})"
    elif hasattr(value, "to_numpy"):
        remedy = f"pass {name}.to_numpy()"
    elif isinstance(value, (list, tuple)):
        remedy = f"pass np.array({name}), or leave it out of shared: workers get a copy"
    else:
        remedy = "leave it out of shared: workers get a copy"
    raise TypeError(f"{name!r} is a {kind}, and only NumPy arrays can be shared; {remedy}")


def run(
    kernel: Kernel,
    sharing: Sharing,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    size: int,
    options: Options,
) -> tuple[list[Any], tuple[int, float, int, int]]:
    """Call a kernel on a team of the process engine.

    Returns
    -------
    values : list
        What each rank returned, by rank; empty if all returned None.
    costs : tuple
        Workers, seconds, bytes copied in and out: what `Report` tells.

    Raises
    ------
    Exception
        The kernel's own, from the lowest rank that raised one.
    RegionError, WorkerDied, RegionTimeout
    """
    began = time.perf_counter()
    arguments = sharing.bind(args, kwargs) if args or kwargs or sharing.parameters else kwargs
    skeleton, values = kernel.refresh()
    stage = None
    if arguments or values:
        plain = list(sharing.plain_arrays(arguments, skeleton, values))
        if plain:
            stage = Stage(plain)
    try:
        message = kernel.message(
            skeleton,
            values,
            args,
            kwargs,
            stage.views if stage is not None else _NO_VIEWS,
            (options.schedule or "static", options.chunk, options.blas_threads),
        )
        seed = (next(_seeds) if options.seed is None else options.seed) & _MASK
        intact = False
        try:
            ended = process.run(size, message, seed, options.timeout)
            intact = ended.reason in ("died", "timeout")
        except WorkerDied:
            intact = True
            raise
        finally:
            if stage is not None and not intact:
                stage.copy_out()
    finally:
        if stage is not None:
            stage.close()
    copied = (0, 0) if stage is None else (stage.bytes_in, stage.bytes_out)
    seconds = time.perf_counter() - began
    if ended.reason == "none" and not ended.outcomes:
        return [], (size, seconds, *copied)
    result = _values(ended, size, kernel.function.__qualname__, options.timeout)
    if isinstance(result, BaseException):
        try:
            raise result
        finally:  # the traceback holds this frame, which must not hold the exception
            del result, ended
    return result, (size, seconds, *copied)


def _values(ended: Ended, size: int, name: str, timeout: float | None) -> list[Any] | BaseException:
    """The values of a region, or the error that it ended with."""
    failures = [
        (rank, outcome.failure)
        for rank, outcome in enumerate(ended.outcomes)
        if outcome is not None and outcome.failure is not None
    ]
    if ended.reason == "none" and not failures:
        return [None if outcome is None else outcome.value for outcome in ended.outcomes]
    own = [(r, f) for r, f in failures if not f.collateral and not _ours(f, ended)]
    if ended.reason == "died":
        error: BaseException = (
            ended.died[0]
            if ended.died
            else WorkerDied(
                f"a worker of {name} died, and it is not known which; the next call has a full team"
            )
        )
        for other in ended.died[1:]:
            error.add_note(f"also: {other}")
        _note_others(error, own)
    elif ended.reason == "timeout":
        error = RegionTimeout(
            f"{name} did not end within {timeout:g} s: {'; '.join(ended.slow) or 'it has since'}; "
            "its workers were stopped, and those that did not stop were replaced. Plain arrays are "
            "as they were before the call; raise timeout= or look at what these ranks wait for"
        )
    elif own:
        error = revive(own[0][1])
        _note_others(error, own[1:])
    elif ended.reason == "diverged":
        error = RegionError(_divergence(name, size, dict(failures)))
    else:
        error = RegionError(
            f"{name} failed ({ended.reason}): " + "; ".join(f.text for _, f in failures)
        )
    return error


def _ours(failure: Failure, ended: Ended) -> bool:
    """Whether a failure is one half of the message about ranks that diverge."""
    return ended.reason == "diverged" and failure.name == "RegionError"


def _divergence(name: str, size: int, failures: dict[int, Failure]) -> str:
    places = "; ".join(
        failures[rank].text if rank in failures else f"rank {rank} of {size} had ended the kernel"
        for rank in range(size)
    )
    return (
        f"the ranks of {name} went different ways and would have waited for each other for ever: "
        f"{places}. Every rank must come to the same loops and barriers, in the same order, with "
        "the same lengths and schedules: take a loop or barrier out of the `if` that only some "
        "ranks enter"
    )


def _note_others(error: BaseException, failures: list[tuple[int, Failure]]) -> None:
    for _, failure in failures[:_MOST_NOTES]:
        error.add_note(f"also {failure.note}: {failure.name}: {failure.text}")
    if len(failures) > _MOST_NOTES:
        error.add_note(f"and in {len(failures) - _MOST_NOTES} more workers")
