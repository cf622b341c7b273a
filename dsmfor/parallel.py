"""The decorator: a function with loops over NumPy arrays becomes a kernel that runs on every core.

What a call does is region.py's (on workers) and engines/serial.py's (here); what may be chosen is
options.py's. This room joins them behind an object that looks like the function.
"""

from __future__ import annotations

import functools
import inspect
import sys
import time
from collections.abc import Callable
from types import FunctionType
from typing import Any, Generic, ParamSpec, overload

from dsmfor import misuse, region
from dsmfor.engines import serial
from dsmfor.options import Options, check_names, engine, override, resolve, workers
from dsmfor.payload import Kernel
from dsmfor.reduction import Reduce, fold
from dsmfor.report import Report
from dsmfor.schedules import Schedule
from dsmfor.sharing import Sharing
from dsmfor.team import Settings, outside

__all__ = ["Parallel", "parallel"]

P = ParamSpec("P")


class _Core:
    """What every variant of one decorated function has in common."""

    def __init__(self, function: FunctionType, shared: Any, private: Any) -> None:
        self.function = function
        self.shared = shared
        self.private = private
        self.sharing = Sharing(function, shared, private)
        self.kernel = Kernel(function)
        self.costs: tuple[str, int, float, int, int] | None = None  # of the last call


class Parallel(Generic[P]):
    """A decorated function. Call it as the function; made by `parallel`.

    Attributes
    ----------
    last_report : Report or None
        What the last call, by whatever variant, did and cost.
    """

    def __init__(
        self,
        core: _Core,
        options: Options,
        choices: dict[str, Any] | None = None,
        bound: tuple[Any, ...] = (),
        here: bool = False,
    ) -> None:
        functools.update_wrapper(self, core.function)
        if bound:
            self.__signature__ = inspect.signature(functools.partial(core.function, *bound))
        self._core = core
        self._options = options  # the decorator's
        self._choices = choices or {}  # of `using`: they win over those of `dsm.options`
        self._bound = bound
        self._here = here

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Run the kernel on its team."""
        options = resolve(self._options, self._choices)
        arguments = self._bound + args if self._bound else args
        core = self._core
        if self._here or not outside() or engine(options) == "serial":
            size = 1
            values = self._run_here(arguments, kwargs, options)
        else:
            size = workers(options)
            values, costs = region.run(core.kernel, core.sharing, arguments, kwargs, size, options)
            core.costs = "process", *costs
        if options.reduce is not None:
            return fold(options.reduce, values or [None] * size)
        return values if values and any(value is not None for value in values) else None

    def _run_here(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], options: Options
    ) -> list[Any]:
        """Run the body in this thread, as a team of one."""
        began = time.perf_counter()
        settings = Settings(options.schedule or "static", options.chunk)
        args, kwargs = self._core.sharing.here(args, kwargs)
        value = serial.run(self._core.function, args, kwargs, settings, options.seed or 0)
        self._core.costs = "serial", 1, time.perf_counter() - began, 0, 0
        return [value]

    @property
    def serial(self) -> Parallel[P]:
        """The same kernel, run by a team of one in this process: for a debugger."""
        return Parallel(self._core, self._options, self._choices, self._bound, True)

    def using(self, **choices: Any) -> Parallel[P]:
        """The same kernel with other options.

        Parameters
        ----------
        **choices
            workers, schedule, chunk, reduce, engine, timeout, blas_threads, seed: as of
            `parallel`. They win over everything else.

        Returns
        -------
        Parallel
            To be called, or kept.

        Examples
        --------
        >>> import dsmfor as dsm
        >>> @dsm.parallel
        ... def team():
        ...     return dsm.size()
        >>> team.using(workers=3)()
        [3, 3, 3]
        """
        override(self._options, **choices)
        chosen = {**self._choices, **choices}
        return Parallel(self._core, self._options, chosen, self._bound, self._here)

    @property
    def last_report(self) -> Report | None:
        """What the last call did and cost, by whatever variant of this function."""
        costs = self._core.costs
        return None if costs is None else Report(*costs)

    def __get__(self, instance: Any, owner: type | None = None) -> Parallel[Any]:
        if instance is None:
            return self
        return Parallel(self._core, self._options, self._choices, (instance,), self._here)

    def __reduce__(self) -> Any:
        module = sys.modules.get(self.__module__)
        name = self._core.function.__qualname__
        if getattr(module, name, None) is self:
            return name  # by name, as its function would be
        return self._travel()

    def _travel(self) -> tuple[Any, ...]:
        """How it goes to workers: by value, with its function."""
        core = self._core
        rest = (self._options, self._choices, self._bound, self._here)
        return _restore, (core.function, core.shared, core.private, *rest)

    def __repr__(self) -> str:
        return f"<dsm.parallel kernel {self._core.function.__qualname__}>"


def _restore(function: FunctionType, shared: Any, private: Any, *rest: Any) -> Parallel[...]:
    return Parallel(_Core(function, shared, private), *rest)


@overload
def parallel(function: Callable[P, Any], /) -> Parallel[P]: ...


@overload
def parallel(
    function: int | None = None,
    /,
    *,
    workers: int | None = None,
    shared: Any = None,
    private: Any = (),
    schedule: str | Schedule | None = None,
    chunk: int | None = None,
    reduce: Reduce = None,
    engine: str | None = None,
    timeout: float | None = None,
    blas_threads: int | None = 1,
    seed: int | None = None,
) -> Callable[[Callable[P, Any]], Parallel[P]]: ...


def parallel(
    function: Any = None,
    /,
    *,
    workers: int | None = None,
    shared: Any = None,
    private: Any = (),
    schedule: str | Schedule | None = None,
    chunk: int | None = None,
    reduce: Reduce = None,
    engine: str | None = None,
    timeout: float | None = None,
    blas_threads: int | None = 1,
    seed: int | None = None,
    **unknown: Any,
) -> Any:
    """Make a function run on every worker of a team.

    Every worker runs the whole body; `prange`, `pslices` and `ptiles` deal iterations out. NumPy
    arrays among the arguments are written in place.

    Parameters
    ----------
    function : function
        The kernel: a function, lambda or method. Given when the decorator stands bare.
    workers : int, optional
        Size of the team. Default: ``DSM_WORKERS``, else the smaller of the CPUs that this process
        may use and its cgroup's quota.
    shared : list of str, or dict of str to str, optional
        Names of parameters, and of variables that the kernel or a helper in its module captures,
        whose arrays the kernel writes; dotted for attributes (``"self.A"``). A dict gives intents:
        'in' arrives read-only, 'out' starts zeroed, 'inout' is both. Default: every parameter that
        is an ndarray. Other plain arrays arrive read-only. Arrays in shared memory, and memory
        maps, are live, named or not.
    private : list of str, or "*"
        Names of which each worker gets a copy of its own, which it may change, fresh at each call;
        "*" for everything that is not shared.
    schedule : str or Schedule, optional
        For loops that name none. Default: 'static'.
    chunk : int, optional
        Iterations per chunk, for loops that name neither schedule nor chunk.
    reduce : str or callable, optional
        Fold the ranks' return values, in rank order, to one: '+', '*', 'min', 'max', '&', '|',
        '^', 'and', 'or' or a function of two values; 'same' checks that they agree.
    engine : str, optional
        'process' or 'serial'. Default: ``DSM_ENGINE``, else 'process'.
    timeout : float, seconds, optional
        Stop the region after this long.
    blas_threads : int or None
        Threads of BLAS and OpenMP libraries in each worker; None for as many as there are cores.
    seed : int, optional
        Chooses the permutations of schedule 'random'. Default: a new one for every call; 0 on the
        serial engine.
    **unknown
        Refused, with what is known.

    Returns
    -------
    Parallel
        Called as the function. Returns None if every worker returned None, else the list by rank,
        or what `reduce` makes of it.

    Raises
    ------
    TypeError
        `function` is no function, or is a generator or coroutine.
    ValueError
        An option has no such value, or `shared` or `private` names what is not there.
    LostWriteError
        The kernel, or a helper in its module, assigns a global or nonlocal variable.

    Notes
    -----
    The call raises the kernel's own exception, from the lowest rank that raised one, with the
    worker's traceback as its cause; `RegionError` when the ranks diverge or a loop is left early;
    `LostWriteError` when it changed a list, dict, set or object of which workers have copies;
    `WorkerDied`, `RegionTimeout`, `SharedMemoryFull`. Called inside a kernel, it runs on that
    worker alone.

    Examples
    --------
    >>> import numpy as np
    >>> import dsmfor as dsm
    >>> @dsm.parallel(workers=2)
    ... def add(a, b, out):
    ...     for s in dsm.pslices(len(a)):
    ...         out[s] = a[s] + b[s]
    >>> total = np.zeros(4)
    >>> add(np.arange(4.0), np.ones(4), total)
    >>> total
    array([1., 2., 3., 4.])
    """
    if unknown:
        check_names("parallel", unknown, ["shared", "private"])
    options = Options(
        workers=workers,
        schedule=schedule,
        chunk=chunk,
        reduce=reduce,
        engine=engine,
        timeout=timeout,
        blas_threads=blas_threads,
        seed=seed,
    )

    def decorate(function: Any) -> Parallel[...]:
        kernel: Parallel[...] = Parallel(_Core(_check_kernel(function), shared, private), options)
        misuse.warn(function)
        return kernel

    if function is None:
        return decorate
    return decorate(function)


def _check_kernel(function: Any) -> FunctionType:
    """The function, if it can be a kernel."""
    if isinstance(function, (staticmethod, classmethod)):
        kind = type(function).__name__
        raise TypeError(
            f"dsm.parallel got a {kind}; you wrote @dsm.parallel above @{kind}, "
            f"you want @{kind} above @dsm.parallel"
        )
    if isinstance(function, Parallel):
        raise TypeError(
            f"{function!r} is a kernel already; decorate the function once, and use "
            ".using(...) for other options"
        )
    if not isinstance(function, FunctionType):
        hint = (
            f"; you wrote @dsm.parallel({function!r}), you want @dsm.parallel(workers={function!r})"
            if isinstance(function, int)
            else "; wrap it in a function"
        )
        raise TypeError(f"dsm.parallel decorates a Python function, got {function!r}{hint}")
    for test, what in (
        (inspect.isgeneratorfunction, "a generator"),
        (inspect.iscoroutinefunction, "a coroutine"),
        (inspect.isasyncgenfunction, "an asynchronous generator"),
    ):
        if test(function):
            raise TypeError(
                f"{function.__qualname__} is {what}, and a kernel must run to its end in one call; "
                "collect what it yields in an array and return that"
            )
    return function
