"""The loops that deal iterations out: `prange`, `pslices`, `ptiles`, and `split`.

Arguments are checked and turned into a plan of chunks here; the iterators that claim them are
``_native/loops.pyx``, the arithmetic is ``_native/schedule.h``.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from itertools import product
from operator import index
from typing import TYPE_CHECKING, Any, SupportsIndex, cast, overload

from dsmfor import schedules
from dsmfor._native.loops import Indices, Slices, Tiles, Tuples
from dsmfor._native.plan import Plan
from dsmfor.team import Settings, Team, current

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from dsmfor.schedules import Schedule

__all__ = ["prange", "pslices", "ptiles", "split"]

_DEFAULTS = Settings()
_MOST = 1 << 62


@overload
def prange(
    start: SupportsIndex,
    stop: SupportsIndex | None = None,
    step: SupportsIndex | None = None,
    *,
    schedule: str | Schedule | None = None,
    chunk: int | None = None,
    nowait: bool = False,
    seed: int | None = None,
) -> Iterator[int]: ...


@overload
def prange(
    start: Sequence[SupportsIndex],
    *,
    schedule: str | Schedule | None = None,
    chunk: int | None = None,
    nowait: bool = False,
    seed: int | None = None,
) -> Iterator[tuple[int, ...]]: ...


def prange(
    start: SupportsIndex | Sequence[SupportsIndex],
    stop: SupportsIndex | None = None,
    step: SupportsIndex | None = None,
    *,
    schedule: str | Schedule | None = None,
    chunk: int | None = None,
    nowait: bool = False,
    seed: int | None = None,
) -> Iterator[int] | Iterator[tuple[int, ...]]:
    """Iterate over this worker's part of a range; the team together covers it exactly once.

    Parameters
    ----------
    start, stop, step : int
        As of `range`. ``prange(n)`` is ``prange(0, n)``.
    start : tuple of int
        Alone: a shape; yields index tuples in C order (OpenMP's collapse).
    schedule : str or Schedule, optional
        'static', 'random', 'dynamic', 'guided', 'auto', 'runtime', with a chunk as in 'guided,8',
        or an object such as ``dsm.Guided(8)``. Default: the decorator's.
    chunk : int, optional
        Iterations per chunk. A loop that names a schedule ignores the decorator's chunk.
    nowait : bool
        Leave out the barrier at the loop's end.
    seed : int, optional
        Chooses the permutation of 'random'. Default: the decorator's seed.

    Yields
    ------
    int or tuple of int
        Python ints, ascending within a chunk.

    Raises
    ------
    TypeError, ValueError
        Arguments that `range` would refuse, an unknown schedule, a chunk below one.
    RegionError
        At the loop's end: another rank's loop differs in line, length or schedule.
    BarrierBroken
        The region failed in another rank.

    Notes
    -----
    The loop ends in a barrier unless `nowait`. Every rank must finish every loop: end one early
    with `cancel`, never with ``break`` or ``return``. A loop that begins inside the body of
    another one is a plain `range`. Outside any region it runs over everything.

    Examples
    --------
    >>> import dsmfor as dsm
    >>> [i for i in dsm.prange(2, 10, 3)]
    [2, 5, 8]
    >>> list(dsm.prange((2, 2)))
    [(0, 0), (0, 1), (1, 0), (1, 1)]
    """
    team = current()
    line, code = _place()
    if not hasattr(start, "__index__"):
        shape = _shape(start, "prange")
        if stop is not None or step is not None:
            raise TypeError(f"prange takes a shape alone, got prange({start!r}, {stop!r}, ...)")
        if team.in_loop:
            return product(*map(range, shape))
        plan = _plan(team, math.prod(shape), schedule, chunk, seed)
        return cast("Iterator[tuple[int, ...]]", Tuples(team, plan, shape, line, code, nowait))
    whole = _range("prange", cast("SupportsIndex", start), stop, step)
    if team.in_loop:
        return iter(whole)
    plan = _plan(team, len(whole), schedule, chunk, seed)
    return cast("Iterator[int]", Indices(team, plan, whole.start, whole.step, line, code, nowait))


def pslices(
    start: SupportsIndex,
    stop: SupportsIndex | None = None,
    step: SupportsIndex | None = None,
    *,
    schedule: str | Schedule | None = None,
    chunk: int | None = None,
    nowait: bool = False,
    seed: int | None = None,
) -> Iterator[slice]:
    """Iterate over this worker's part of a range as slices: the fast form for NumPy code.

    Parameters
    ----------
    start, stop, step : int
        As of `range`.
    schedule, chunk, nowait, seed
        As of `prange`. Each chunk is one slice: with 'static' every worker gets one.

    Yields
    ------
    slice
        ``A[s]`` are the elements that ``for i in range(start, stop, step)`` would visit, in order.

    Raises
    ------
    TypeError, ValueError, RegionError, BarrierBroken
        As `prange`.

    Examples
    --------
    >>> import dsmfor as dsm
    >>> list(dsm.pslices(10, schedule="dynamic", chunk=4))
    [slice(0, 4, None), slice(4, 8, None), slice(8, 10, None)]
    """
    team = current()
    line, code = _place()
    whole = _range("pslices", start, stop, step)
    if whole and (whole[0] < 0) != (whole[-1] < 0):
        raise ValueError(
            f"pslices got {whole}, which has negative and other indices, and no slice has both; "
            "loop over the two parts one after the other"
        )
    if team.in_loop:
        return iter([_slice(whole)] if whole else [])
    plan = _plan(team, len(whole), schedule, chunk, seed)
    return cast("Iterator[slice]", Slices(team, plan, whole.start, whole.step, line, code, nowait))


def ptiles(
    shape: SupportsIndex | Sequence[SupportsIndex],
    tile: SupportsIndex | Sequence[SupportsIndex],
    *,
    schedule: str | Schedule | None = None,
    chunk: int | None = None,
    nowait: bool = False,
    seed: int | None = None,
) -> Iterator[tuple[slice, ...]]:
    """Iterate over this worker's tiles of an array.

    Parameters
    ----------
    shape : tuple of int
        Of the array.
    tile : int or tuple of int
        Extents of a tile, one for every axis or one for all. Tiles at the edges are short.
    schedule, chunk, nowait, seed
        As of `prange`; `chunk` counts tiles, which are numbered in C order.

    Yields
    ------
    tuple of slice
        ``A[t]`` is the tile.

    Raises
    ------
    TypeError, ValueError, RegionError, BarrierBroken
        As `prange`; also when `tile` and `shape` differ in length.

    Examples
    --------
    >>> import dsmfor as dsm
    >>> list(dsm.ptiles((2, 3), (2, 2)))
    [(slice(0, 2, None), slice(0, 2, None)), (slice(0, 2, None), slice(2, 3, None))]
    """
    team = current()
    line, code = _place()
    extent = _shape(shape, "ptiles")
    size = (index(tile),) * len(extent) if hasattr(tile, "__index__") else _shape(tile, "ptiles")
    if len(size) != len(extent):
        raise ValueError(
            f"ptiles got {len(size)} tile extents {size} for a shape of "
            f"{len(extent)} axes {extent}; give one for each axis"
        )
    if min(size, default=1) < 1:
        raise ValueError(f"every extent of a tile must be positive, got {size}")
    grid = tuple(-(-n // t) for n, t in zip(extent, size, strict=True))
    if team.in_loop:
        return iter(
            [
                tuple(
                    slice(k * t, min(k * t + t, n))
                    for k, t, n in zip(at, size, extent, strict=True)
                )
                for at in product(*map(range, grid))
            ]
        )
    plan = _plan(team, math.prod(grid), schedule, chunk, seed)
    return cast(
        "Iterator[tuple[slice, ...]]", Tiles(team, plan, grid, extent, size, line, code, nowait)
    )


def split(
    n: SupportsIndex,
    schedule: str | Schedule | None = None,
    *,
    chunk: int | None = None,
    seed: int | None = None,
) -> npt.NDArray[np.int64]:
    """This worker's whole share of range(n), as an index array; no barrier.

    Parameters
    ----------
    n : int
    schedule : str or Schedule, optional
        'static' or 'random', whose shares are known beforehand. Default: the decorator's.
    chunk : int, optional
        Iterations per chunk.
    seed : int, optional
        As of `prange`.

    Returns
    -------
    ndarray of int64, shape (share,)
        ``Y[rows] = A[rows] @ X`` computes this worker's rows.

    Raises
    ------
    ValueError
        The schedule deals its chunks while the loop runs.

    Examples
    --------
    >>> import dsmfor as dsm
    >>> dsm.split(4)
    array([0, 1, 2, 3])
    """
    team = current()
    whole = _range("split", n, None, None)
    plan = _plan(team, len(whole), schedule, chunk, seed)
    if plan.kind not in ("static", "random"):
        raise ValueError(
            f"split needs a schedule whose shares are known beforehand, 'static' or "
            f"'random', got {plan.kind!r}; for the others loop over prange or pslices"
        )
    return plan.indices(team.rank)


def _place() -> tuple[int, Any]:
    """Line and code of the public function's caller."""
    frame = sys._getframe(2)
    return frame.f_lineno, frame.f_code


def _range(
    name: str, start: SupportsIndex, stop: SupportsIndex | None, step: SupportsIndex | None
) -> range:
    """The range of a loop's arguments."""
    if stop is None and step is not None:
        raise TypeError(f"{name} got a step and no stop; give start, stop and step")
    numbers = [_integer(name, value) for value in (start, stop, step) if value is not None]
    whole = range(*numbers)
    if whole and max(abs(whole[0]), abs(whole[-1]), abs(whole[-1] - whole[0])) > _MOST:
        raise ValueError(
            f"{name} counts from -2**62 to 2**62, got {whole}; "
            "loop over smaller numbers and add the rest in the body"
        )
    return whole


def _integer(name: str, value: SupportsIndex) -> int:
    try:
        return index(value)
    except TypeError:
        raise TypeError(
            f"{name} takes integers, as range does, got {value!r} of type "
            f"{type(value).__name__}; {_remedy(name, value)}"
        ) from None


def _remedy(name: str, value: object) -> str:
    """What to write instead of a value that is no integer."""
    if isinstance(value, str):
        return f"schedule is a keyword: {name}(n, schedule={value!r})"
    if isinstance(value, float):
        return "divide with // or round with int()"
    if hasattr(value, "__len__"):
        return f"you wrote {name}(x), you want {name}(len(x)), and x[i] in the body"
    return "convert it with int()"


def _shape(shape: object, name: str) -> tuple[int, ...]:
    try:
        items: Any = shape if isinstance(shape, (tuple, list)) else [shape]
        extents = tuple(index(n) for n in items)
    except TypeError:
        wrong = next((n for n in items if not hasattr(n, "__index__")), shape)
        raise TypeError(
            f"{name} takes integers or a tuple of integers, got {shape!r}; {_remedy(name, wrong)}"
        ) from None
    if any(n < 0 for n in extents):
        raise ValueError(f"{name} got a negative extent in {extents}; extents count from 0")
    return extents


def _slice(whole: range) -> slice:
    stop = whole.start + len(whole) * whole.step
    past = (whole.start < 0) != (stop < 0)
    return slice(whole.start, None if past else stop, None if whole.step == 1 else whole.step)


def _plan(
    team: Team, n: int, schedule: str | Schedule | None, chunk: int | None, seed: int | None
) -> Plan:
    settings = team.settings or _DEFAULTS
    if schedule is None:
        schedule = settings.schedule
        if chunk is None:
            chunk = settings.chunk
        elif isinstance(schedule, str):
            schedule = schedule.partition(",")[0]
        else:
            schedule = schedule.kind
    value = schedules.parse(schedule, chunk)
    return schedules.plan(value, n, team.size, team.seed if seed is None else index(seed))
