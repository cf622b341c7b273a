"""What a call of a kernel may choose, and where each choice comes from.

In order: `using` of the call, `dsm.options` around it, the decorator, the environment, the default.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields, replace
from operator import index
from typing import Any

from dsmfor import limits, reduction, schedules
from dsmfor.schedules import Schedule

__all__ = ["Options", "default_workers", "options", "override"]

_ENGINES = ("process", "serial")


@dataclass(frozen=True, slots=True)
class Options:
    """The checked options of a call; None where the next source decides."""

    workers: int | None = None
    schedule: str | Schedule | None = None
    chunk: int | None = None
    reduce: reduction.Reduce = None
    engine: str | None = None
    timeout: float | None = None
    blas_threads: int | None = 1
    seed: int | None = None

    def __post_init__(self) -> None:
        for name in ("workers", "chunk", "blas_threads"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, _count(name, value))
        if self.timeout is not None:
            _seconds(self.timeout)
        if self.seed is not None:
            object.__setattr__(self, "seed", _integer("seed", self.seed))
            if self.seed < 0:
                raise ValueError(f"seed must not be negative, got {self.seed}")
        if self.engine is not None:
            _check_engine(self.engine)
        reduction.check(self.reduce)
        if self.schedule is not None or self.chunk is not None:
            schedules.parse("static" if self.schedule is None else self.schedule, self.chunk)


def _integer(name: str, value: Any) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        return index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None


def _count(name: str, value: Any) -> int:
    number = _integer(name, value)
    if number < 1:
        raise ValueError(f"{name} must be at least 1, got {number}")
    return number


def _seconds(value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"timeout must be a number of seconds or None, got {value!r}")
    if not 0 < value < math.inf:
        raise ValueError(f"timeout must be a positive number of seconds or None, got {value!r}")


def _check_engine(name: Any, source: str = "engine") -> str:
    if name not in _ENGINES:
        known = ", ".join(map(repr, _ENGINES))
        raise ValueError(f"{source} must be one of {known}, got {name!r}")
    return str(name)


_overlay: ContextVar[dict[str, Any] | None] = ContextVar("dsmfor options", default=None)


@contextmanager
def options(**choices: Any) -> Iterator[None]:
    """Override options of every kernel that is called within the ``with`` block.

    Parameters
    ----------
    **choices
        workers, schedule, chunk, reduce, engine, timeout, blas_threads, seed: as of `parallel`.

    Raises
    ------
    TypeError, ValueError
        An unknown name, or a value that `parallel` would refuse.

    Examples
    --------
    >>> import dsmfor as dsm
    >>> @dsm.parallel
    ... def team():
    ...     return dsm.size()
    >>> with dsm.options(engine="serial"):
    ...     team()
    [1]
    """
    check_names("options", choices)
    Options(**choices)
    token = _overlay.set({**(_overlay.get() or {}), **choices})
    try:
        yield
    finally:
        _overlay.reset(token)


def override(base: Options, **choices: Any) -> Options:
    """`base` with some options replaced; a new schedule or chunk drops the other of base."""
    check_names("using", choices)
    choices = dict(choices)
    if "schedule" in choices and "chunk" not in choices:
        choices["chunk"] = None
    return replace(base, **choices)


def check_names(function: str, choices: dict[str, Any], others: Sequence[str] = ()) -> None:
    """Refuse what is no option of a function, which knows `others` besides."""
    known = [*(field.name for field in fields(Options)), *others]
    for name in choices:
        if name not in known:
            from difflib import get_close_matches  # a millisecond of each start

            near = get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise TypeError(
                f"{function}() got {name!r}, which is no option: it knows {', '.join(known)}{hint}"
            )


def resolve(chosen: Options, choices: dict[str, Any]) -> Options:
    """The decorator's choices, under those of `dsm.options`, under those of `using`."""
    overlay = _overlay.get()
    if overlay:
        chosen = override(chosen, **overlay)
    return override(chosen, **choices) if choices else chosen


def _variable(name: str) -> str | None:
    """An environment variable; `os.environ.get` is ten times slower, and this is every call."""
    value = os.environ._data.get(name.encode())  # type: ignore[attr-defined]
    return None if value is None else os.fsdecode(value)


def engine(chosen: Options) -> str:
    """The engine of a call: chosen, else ``DSM_ENGINE``, else 'process'."""
    if chosen.engine is not None:
        return chosen.engine
    name = _variable("DSM_ENGINE")
    return "process" if not name else _check_engine(name, "DSM_ENGINE in the environment")


def workers(chosen: Options) -> int:
    """The team's size: chosen, else ``DSM_WORKERS``, else as many as there are cores to use."""
    if chosen.workers is not None:
        return chosen.workers
    text = _variable("DSM_WORKERS")
    if not text:
        return default_workers()
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise ValueError(f"DSM_WORKERS in the environment must be a positive integer, got {text!r}")
    return number


_counted: tuple[float, int] = (-math.inf, 1)  # when, and how many


def default_workers() -> int:
    """The smaller of the CPUs that this process may run on and its cgroup's quota.

    Looked up once a second at the most.
    """
    global _counted
    now = time.monotonic()
    if now - _counted[0] > 1.0:
        _counted = now, max(1, min(len(os.sched_getaffinity(0)), cpu_quota()))
    return _counted[1]


def cpu_quota(system: str = "/") -> int:
    """Whole CPUs of the quota of this process's control groups (v1 and v2); many if there is none.

    Parameters
    ----------
    system : str
        The root directory under which ``proc`` and ``sys`` are found.
    """
    quota = math.inf
    for version, group in limits.control_groups("cpu", system):
        if version == 2:
            limit, _, period = limits.read(system, f"{group}/cpu.max").strip().partition(" ")
        else:
            limit = limits.read(system, f"{group}/cpu.cfs_quota_us").strip()
            period = limits.read(system, f"{group}/cpu.cfs_period_us").strip()
        if limit.isdecimal() and period.isdecimal() and int(period):
            quota = min(quota, int(limit) / int(period))
    return 1 << 30 if quota == math.inf else max(1, math.ceil(quota))
