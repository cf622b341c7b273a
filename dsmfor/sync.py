"""Who am I, and how do we wait for each other: rank, size, barrier, critical, single, cancel.

Each asks the current team (`team.current`); outside any region that is a team of one, so all of
them can stand in functions that are also called serially.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from dsmfor.team import current

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

__all__ = ["barrier", "cancel", "cancelled", "critical", "rank", "single", "size"]

P = ParamSpec("P")
T = TypeVar("T")


def rank() -> int:
    """The number of this worker in its team, 0 to ``size() - 1``; 0 outside any region.

    Returns
    -------
    int

    Examples
    --------
    >>> import dsmfor as dsm
    >>> dsm.rank()
    0
    """
    return current().rank


def size() -> int:
    """The number of workers in this team; 1 outside any region.

    Returns
    -------
    int

    Examples
    --------
    >>> import dsmfor as dsm
    >>> dsm.size()
    1
    """
    return current().size


def barrier(timeout: float | None = None) -> None:
    """Wait until every worker of the team is here; writes before it are seen after it.

    Parameters
    ----------
    timeout : float, seconds, optional
        Give up after this long. Default: wait as long as it takes.

    Raises
    ------
    RegionError
        Called inside a loop's body, or other ranks are at another place: they would wait for
        ever.
    BarrierBroken
        The region failed in another rank.
    RegionTimeout
        `timeout` is over.

    Examples
    --------
    >>> import dsmfor as dsm
    >>> dsm.barrier()
    """
    if timeout is not None:
        if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
            raise TypeError(f"timeout must be a number of seconds or None, got {timeout!r}")
        if not timeout > 0:
            raise ValueError(f"timeout must be a positive number of seconds or None, got {timeout}")
    current().barrier(sys._getframe(1).f_lineno, timeout or 0.0)


def critical(name: str | None = None) -> AbstractContextManager[object]:
    """A lock of the team: one worker at a time runs the ``with`` block.

    Parameters
    ----------
    name : str, optional
        Blocks with different names do not exclude each other. All without a name share one lock.

    Returns
    -------
    context manager
        May be kept and entered many times within the region.

    Raises
    ------
    RegionError
        On entering: this worker holds the lock already, or the region has ended.
    BarrierBroken
        On entering: the region failed in another rank.

    Examples
    --------
    >>> import dsmfor as dsm
    >>> with dsm.critical("total"):
    ...     pass
    """
    if name is not None and not isinstance(name, str):
        raise TypeError(f"the name of a critical block must be a str, got {name!r}")
    return current().lock(name)


def single(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """One worker calls `function`; all get its value, after a barrier.

    Parameters
    ----------
    function : callable
        Called by rank 0.
    *args, **kwargs
        Its arguments.

    Returns
    -------
    object
        What it returned. Shared arrays are shared by all ranks: ``dsm.single(dsm.zeros, n)``;
        anything else reaches the other ranks as a copy.

    Raises
    ------
    RegionError
        Called inside a loop's body, or ranks diverge.

    Examples
    --------
    >>> import dsmfor as dsm
    >>> dsm.single(sum, [1, 2])
    3
    """
    if not callable(function):
        raise TypeError(
            f"single takes a function and its arguments, got {function!r}; "
            "you wrote single(f(x)), you want single(f, x)"
        )
    line = sys._getframe(1).f_lineno
    return cast(T, current().exchange(line, lambda: function(*args, **kwargs)))


def cancel(value: object = True) -> None:
    """End the innermost loop for the whole team.

    Every worker leaves the loop at its next iteration, under every schedule; the loop's barrier
    still happens. The first to cancel is heard.

    Parameters
    ----------
    value : object
        What `cancelled` tells afterwards; not None.

    Raises
    ------
    RegionError
        Called outside any loop.

    Examples
    --------
    >>> import dsmfor as dsm
    >>> for i in dsm.prange(10):
    ...     if i == 3:
    ...         dsm.cancel(i)
    >>> dsm.cancelled()
    3
    """
    if value is None:
        raise ValueError("cancel(None) could not be told from no cancel; leave the value out")
    current().cancel(value)


def cancelled() -> Any:
    """What this worker's loop was cancelled with: the one it is in, else its last one.

    Returns
    -------
    object
        The value given to `cancel`, True if it was given none, None if nobody cancelled.

    Examples
    --------
    >>> import dsmfor as dsm
    >>> for i in dsm.prange(3):
    ...     pass
    >>> dsm.cancelled() is None
    True
    """
    return current().cancelled()
