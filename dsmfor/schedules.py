"""Schedules: how the iterations of a loop are to be dealt out, as values.

A schedule is what a user names, by a string (``"guided,8"``) or an object (``Guided(chunk=8)``).
This room reads spellings, checks them and turns a schedule into a `Plan`, the numbered chunks of
one loop for one team. The arithmetic of the chunks is in ``_native/schedule.h``; who claims a
chunk, and when, is left to the loops and the engines.

Everything here is pure: integers and strings in, values out. Only `plan` looks at the
environment, and only to resolve `Runtime`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from operator import index
from typing import TYPE_CHECKING, ClassVar, SupportsIndex, TypeAlias

from dsmfor._native.plan import Plan

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "Auto",
    "Dynamic",
    "Guided",
    "Plan",
    "Random",
    "Runtime",
    "Schedule",
    "Static",
    "parse",
    "plan",
    "runtime",
]

VARIABLE = "DSM_SCHEDULE"

_WORD = 2**64 - 1


@dataclass(frozen=True, slots=True)
class Static:
    """Each rank runs a share that is fixed beforehand; the cheapest, for even work.

    Parameters
    ----------
    chunk : int, optional
        Without it, one block per rank, lengths that differ by at most one. With it, chunks of this
        many iterations go to the ranks in turn.

    Examples
    --------
    >>> str(Static()), str(Static(chunk=16))
    ('static', 'static,16')
    """

    kind: ClassVar[str] = "static"
    chunk: int | None = None

    def __post_init__(self) -> None:
        if self.chunk is not None:
            object.__setattr__(self, "chunk", _positive(self.chunk))

    def __str__(self) -> str:
        return self.kind if self.chunk is None else f"{self.kind},{self.chunk}"


@dataclass(frozen=True, slots=True)
class Random:
    """Chunks are permuted and dealt evenly; for uneven work whose cost follows the index.

    The permutation is computed, not stored: memory does not grow with the loop. The same seed
    gives the same permutation.

    Parameters
    ----------
    chunk : int
        Iterations per chunk.

    Examples
    --------
    >>> str(Random(chunk=4))
    'random,4'
    """

    kind: ClassVar[str] = "random"
    chunk: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "chunk", _positive(self.chunk))

    def __str__(self) -> str:
        return self.kind if self.chunk == 1 else f"{self.kind},{self.chunk}"


@dataclass(frozen=True, slots=True)
class Dynamic:
    """Whoever is free takes the next chunk; for uneven work.

    Parameters
    ----------
    chunk : int
        Iterations per chunk.

    Examples
    --------
    >>> str(Dynamic(chunk=4))
    'dynamic,4'
    """

    kind: ClassVar[str] = "dynamic"
    chunk: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "chunk", _positive(self.chunk))

    def __str__(self) -> str:
        return self.kind if self.chunk == 1 else f"{self.kind},{self.chunk}"


@dataclass(frozen=True, slots=True)
class Guided:
    """Whoever is free takes the next chunk, and chunks shrink; few claims, and an even end.

    Each chunk is half of an even share of what remains: ``ceil(remaining / (2 * size))``.

    Parameters
    ----------
    chunk : int
        The least length of a chunk.

    Examples
    --------
    >>> str(Guided(chunk=8))
    'guided,8'
    """

    kind: ClassVar[str] = "guided"
    chunk: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "chunk", _positive(self.chunk))

    def __str__(self) -> str:
        return self.kind if self.chunk == 1 else f"{self.kind},{self.chunk}"


@dataclass(frozen=True, slots=True)
class Auto:
    """Each rank starts on its own block, in up to 64 pieces; who is done helps the others.

    Examples
    --------
    >>> str(Auto())
    'auto'
    """

    kind: ClassVar[str] = "auto"

    def __str__(self) -> str:
        return self.kind


@dataclass(frozen=True, slots=True)
class Runtime:
    """Whatever ``DSM_SCHEDULE`` names when the loop begins; static when it is not set.

    Examples
    --------
    >>> str(Runtime())
    'runtime'
    """

    kind: ClassVar[str] = "runtime"

    def __str__(self) -> str:
        return self.kind


Schedule: TypeAlias = Static | Random | Dynamic | Guided | Auto | Runtime

_KINDS: dict[str, type[Schedule]] = {
    kind.kind: kind for kind in (Static, Random, Dynamic, Guided, Auto, Runtime)
}
_EXPECTED = f"schedule must be one of {', '.join(map(repr, _KINDS))} or a Schedule"


def parse(schedule: object, chunk: SupportsIndex | None = None) -> Schedule:
    """Read a schedule from its spelling.

    Parameters
    ----------
    schedule : str or Schedule
        A kind ('guided'), a kind and its chunk ('guided,8'), or a schedule object, which is
        returned as it is.
    chunk : int, optional
        Iterations per chunk, for a spelling that gives none.

    Returns
    -------
    Schedule

    Raises
    ------
    ValueError
        The kind is unknown, the chunk is not positive, is given twice, or the kind takes none.
    TypeError
        `schedule` is neither a string nor a Schedule, or the chunk is not an integer.

    Examples
    --------
    >>> parse("guided,8")
    Guided(chunk=8)
    >>> parse("static", chunk=16)
    Static(chunk=16)
    >>> parse("guidd")
    Traceback (most recent call last):
    ValueError: schedule must be one of 'static', 'random', 'dynamic', 'guided', 'auto', 'runtime' \
or a Schedule, got 'guidd'; did you mean 'guided'?
    """
    if isinstance(schedule, str):
        return _spelled(schedule, None if chunk is None else _positive(chunk))
    if isinstance(schedule, Schedule):
        if chunk is None:
            return schedule
        if isinstance(schedule, Auto | Runtime):
            raise ValueError(f"{schedule} takes no chunk, got {chunk!r}; leave the chunk out")
        raise ValueError(
            f"chunk={chunk!r} is given beside {schedule!r}, which has its own; "
            "give the chunk in one of them"
        )
    if isinstance(schedule, type) and issubclass(schedule, Schedule):
        name = schedule.__name__
        raise TypeError(f"{_EXPECTED}, got the class {name}; you wrote {name}, you want {name}()")
    raise TypeError(f"{_EXPECTED}, got {schedule!r}")


@lru_cache(maxsize=256)
def _spelled(text: str, chunk: int | None) -> Schedule:
    """The schedule of a spelling and a checked chunk; cached, for it is read at every loop."""
    name, comma, inner = (part.strip() for part in text.partition(","))
    kind = _KINDS.get(name)
    if kind is None:
        from difflib import get_close_matches  # a millisecond of each start

        near = get_close_matches(name.lower(), _KINDS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{_EXPECTED}, got {text!r}{hint}")
    if comma and chunk is not None:
        raise ValueError(
            f"chunk={chunk} is given beside schedule={text!r}, which names a chunk; "
            "give the chunk in one of them"
        )
    if comma:
        try:
            chunk = int(inner)
        except ValueError:
            raise ValueError(
                f"the chunk of a schedule must be a positive integer, got {inner!r} in {text!r}; "
                f"write {name!r} or '{name},8'"
            ) from None
        chunk = _positive(chunk)
    if chunk is None:
        return kind()
    if issubclass(kind, Auto | Runtime):
        raise ValueError(f"{name} takes no chunk, got {chunk}; leave the chunk out")
    return kind(chunk)


def runtime(environ: Mapping[str, str]) -> Schedule:
    """The schedule that ``DSM_SCHEDULE`` names.

    Parameters
    ----------
    environ : mapping of str to str
        The environment, usually ``os.environ``.

    Returns
    -------
    Schedule
        Static when the variable is unset or blank. Never `Runtime`.

    Raises
    ------
    ValueError
        The variable's value is no schedule, or is 'runtime' itself.

    Examples
    --------
    >>> runtime({"DSM_SCHEDULE": "guided,8"})
    Guided(chunk=8)
    >>> runtime({})
    Static(chunk=None)
    """
    text = environ.get(VARIABLE, "")
    if not text or text.isspace():
        return _spelled("static", None)
    try:
        schedule = _spelled(text, None)
    except ValueError as error:
        raise ValueError(f"{VARIABLE}={text!r} in the environment: {error}") from None
    if isinstance(schedule, Runtime):
        raise ValueError(
            f"{VARIABLE}={text!r} in the environment names itself; "
            "set it to another schedule, such as 'guided,8'"
        )
    return schedule


def plan(schedule: Schedule, n: int, size: int, seed: int = 0) -> Plan:
    """The chunks of range(n) for a team, under a schedule.

    Parameters
    ----------
    schedule : Schedule
        `Runtime` is resolved from the environment of this process.
    n : int
        Iterations.
    size : int
        Ranks in the team.
    seed : int
        Chooses the permutation of `Random`; any size, not negative.

    Returns
    -------
    Plan

    Raises
    ------
    ValueError
        A number is out of range, or ``DSM_SCHEDULE`` is needed and names no schedule.

    Examples
    --------
    >>> plan(Guided(chunk=2), 20, 2).chunks()
    [(0, 5), (5, 9), (9, 12), (12, 14), (14, 16), (16, 18), (18, 20)]
    """
    if isinstance(schedule, Runtime):
        schedule = runtime(os.environ)
    key = 0
    if isinstance(schedule, Random):
        key = _key(seed)
    return Plan(schedule.kind, n, size, getattr(schedule, "chunk", None), key)


def _key(seed: int) -> int:
    """Fold a seed to 64 bits; one that fits is its own key."""
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    key = seed & _WORD
    while seed := seed >> 64:
        key = ((key * 0x9E3779B97F4A7C15 + 0xBF58476D1CE4E5B9) ^ seed) & _WORD
    return key


def _positive(chunk: SupportsIndex) -> int:
    """The chunk as an int, refused when it is no integer, a bool, or less than one."""
    if isinstance(chunk, bool):
        raise TypeError(f"chunk must be a positive integer, got {chunk}")
    try:
        number = index(chunk)
    except TypeError:
        raise TypeError(f"chunk must be a positive integer, got {chunk!r}") from None
    if number < 1:
        raise ValueError(f"chunk must be a positive integer, got {number}")
    return number
