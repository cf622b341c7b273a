"""The module `pydsm` of py-dsm, on dsmfor: its programs change one line, the import.

    import dsmfor.pydsm as pydsm

Everything is built on what dsmfor gives to anyone: a Cluster's processes are the workers of a
region, its arrays are `dsm.zeros`, its locks `dsm.critical`. What a program can see is as there:
names, the order of arguments, what is a copy and what is shared. What was a defect there is not.

Guarantees
----------
Names belong to their Cluster: several may be open at once, in a program and on a machine. Nothing
outlives the program. Ranks that would wait for each other for ever end in a `RegionError`.
"""

from __future__ import annotations

import operator
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Generic, Self, SupportsIndex, TypeVar

import numpy as np
import numpy.typing as npt

from dsmfor import arrays
from dsmfor.errors import RegionError
from dsmfor.parallel import Parallel
from dsmfor.pydsm import indices
from dsmfor.pydsm.lock import Lock
from dsmfor.pydsm.processes import here, kernel, meet, runs, seed
from dsmfor.team import Team, current

__all__ = ["Cluster"]

T = TypeVar("T")
Array = npt.NDArray[Any]

_clusters: list[weakref.ref[Cluster]] = []  # open ones, the oldest first


class _OnBoth(Generic[T]):
    """A method that may be called on the class as well; its `self` is None then."""

    def __init__(self, function: Callable[..., T]) -> None:
        self.function = function
        self.__doc__ = function.__doc__

    def __get__(self, instance: object, owner: type) -> Callable[..., T]:
        return partial(self.function, instance)


class Cluster:
    """A number of processes, and the arrays and locks that they share.

    Parameters
    ----------
    numThread : int, optional
        Processes. Default: one for each CPU of the machine.

    Attributes
    ----------
    numThread : int
    resources : dict
        Arrays and locks by name. Every process gets such a dictionary, with its own number as
        ``"id"``.
    sharedList : list of str
        Names of the arrays.

    Raises
    ------
    TypeError, ValueError
        `numThread` is no positive integer.

    Notes
    -----
    The processes are dsmfor's workers: they start at the first run, in any Cluster of their
    number, and stay. Arrays free themselves with their last reference, however the program ends.

    Examples
    --------
    >>> import dsmfor.pydsm as pydsm
    >>> def square(resource, factor):
    ...     A = pydsm.Cluster.getShared("A")
    ...     mine = pydsm.Cluster.splitIndices(len(A), resource["id"], random=False)
    ...     A[mine] = factor * A[mine] ** 2
    >>> with pydsm.Cluster(2) as cluster:
    ...     A = cluster.createShared(name="A", shape=4, dataType=int)
    ...     A[:] = [1, 2, 3, 4]
    ...     cluster.runProcesses(square, paras=(10,))
    >>> A
    array([ 10,  40,  90, 160])
    """

    def __init__(self, numThread: SupportsIndex | None = None) -> None:
        self.numThread = _processes(numThread)
        self.resources: dict[str, Any] = {"id": -1}
        self.sharedList: list[str] = []
        self._thread = threading.get_ident()  # that opened it
        self._open = True
        self._last: tuple[object, Parallel[...]] | None = None  # function that ran, its kernel
        self._reference = weakref.ref(self, _forget)
        if here.run is None:
            _clusters.append(self._reference)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.terminate()

    def createShared(
        self,
        name: str,
        shape: SupportsIndex | Sequence[SupportsIndex],
        dataType: npt.DTypeLike = int,
    ) -> Array:
        """Make a shared array of zeros.

        Parameters
        ----------
        name : str
            No other array or lock of this Cluster has it.
        shape : int or tuple of int
        dataType : dtype

        Returns
        -------
        ndarray
            An ordinary one. Processes find it in their dictionary, and by `getShared`.

        Raises
        ------
        ValueError
            The name is taken, or the shape has negative lengths.
        TypeError
            `name` is no str, or the dtype holds objects.
        RegionError
            Called in a process, or the Cluster has been terminated.
        SharedMemoryFull
            There is no room for it.
        """
        self._check("createShared")
        self._check_name(name)
        array = arrays.zeros(shape, dataType)
        self.resources[name] = array
        self.sharedList.append(name)
        return array

    def createLock(self, name: str) -> Lock:
        """Make a lock, which processes find in their dictionary.

        Parameters
        ----------
        name : str
            No other array or lock of this Cluster has it.

        Returns
        -------
        Lock

        Raises
        ------
        ValueError, TypeError, RegionError
            As `createShared`.
        """
        self._check("createLock")
        self._check_name(name)
        lock = Lock(name)
        self.resources[name] = lock
        return lock

    createdLock = createLock  # so it is called in py-dsm's README

    def runProcesses(self, func: Callable[..., object], paras: Sequence[Any] = ()) -> None:
        """Call a function in every process, and wait until all have returned.

        Parameters
        ----------
        func : callable
            Its first argument is the process's own dictionary: its number as ``"id"``, and the
            arrays and locks of the Cluster. What it returns is dropped.
        paras : tuple
            Its other arguments. Every process has copies of its own, which it may write; arrays
            made by `createShared`, and views of them, are shared.

        Raises
        ------
        Exception
            What the function raised, in the process of the lowest number that raised.
        RegionError
            Processes did not come to the same barriers; or called in a process, or after
            `terminate`.
        WorkerDied
            A process died.
        """
        self._check("runProcesses")
        if not callable(func):
            raise TypeError(
                f"runProcesses takes a function, got {func!r}; you wrote runProcesses(f(...)), "
                "you want runProcesses(f, paras=(...))"
            )
        if not isinstance(paras, (tuple, list)):
            raise TypeError(
                f"paras must be a tuple of the function's arguments, got {paras!r}; "
                f"you want paras=({paras!r},)"
            )
        last = self._last
        if last is None or last[0] is not func:
            last = self._last = func, kernel(func)
        resources = {name: value for name, value in self.resources.items() if name != "id"}
        size = self.numThread
        blas = max(1, (os.cpu_count() or 1) // size)
        call = last[1].using(workers=size, blas_threads=blas, seed=seed())
        call(resources, tuple(paras))

    @_OnBoth
    def getShared(self: Cluster | None, name: str) -> Array:
        """Find a shared array by its name.

        Parameters
        ----------
        name : str

        Returns
        -------
        ndarray
            In a process one of its Cluster; elsewhere one of this Cluster, or, called on the
            class, of the open one that was made last, this thread's before those of others.

        Raises
        ------
        FileNotFoundError
            There is no array of that name.
        """
        key = name.removeprefix("shm://")
        spaces = [self.resources] if self is not None else _spaces()
        for space in spaces:
            if isinstance(found := space.get(key), np.ndarray):
                return found
        known = sorted({n for s in spaces for n, a in s.items() if isinstance(a, np.ndarray)})
        raise FileNotFoundError(
            f"there is no shared array named {name!r} here, there is "
            f"{', '.join(map(repr, known)) or 'none at all'}; make it with "
            f"cluster.createShared({name!r}, shape) before runProcesses"
        )

    def deleteShared(self) -> None:
        """Forget all arrays of this Cluster: their names are free, who has one keeps it."""
        for name in self.sharedList:
            del self.resources[name]
        self.sharedList.clear()

    def terminate(self) -> None:
        """Forget all arrays and locks, and run no more. Again does nothing."""
        self._open = False
        self._last = None
        self.sharedList.clear()
        self.resources.clear()
        _forget(self._reference)

    @staticmethod
    def barrier() -> None:
        """Wait until every process is here; what was written before is seen after.

        Raises
        ------
        RegionError
            Another process has ended, so that it never comes; or called outside the processes.
        BarrierBroken
            Another process has failed.
        """
        meet(_team("barrier"), 0)

    @staticmethod
    def splitIndices(
        length: SupportsIndex | None = None,
        id: SupportsIndex | None = None,  # noqa: A002  # its name in py-dsm
        random: bool = True,
        *,
        n: SupportsIndex | None = None,
    ) -> Array:
        """One process's share of the indices 0 to n - 1; ends in a barrier.

        Parameters
        ----------
        length, n : int
            How many indices there are, by either name.
        id : int
            The number of the process.
        random : bool
            Deal single indices out at random, else a block to each process.

        Returns
        -------
        ndarray of int64
            The shares of all processes are disjoint and cover everything. Lengths differ by at
            most one, the longer ones last. It is true when it is not empty, as a list is.

        Raises
        ------
        TypeError, ValueError
            An argument is no integer, or out of range.
        RegionError
            As `barrier`; or processes split different lengths.

        Notes
        -----
        The random shares of a program that calls ``numpy.random.seed`` are the same every time.
        No process has a list of all indices.
        """
        team = _team("splitIndices")
        size = team.size
        count, mine = _index("length", n if length is None else length), _index("id", id)
        if count < 0:
            raise ValueError(f"splitIndices splits a length of 0 or more, got {count}")
        if not 0 <= mine < size:
            raise ValueError(
                f"id must be the number of a process, 0 to {size - 1}, got {mine}; "
                "pass resource['id']"
            )
        if random:
            turn = 0
            if here.run is not None:
                turn = here.run.splits = here.run.splits + 1
            share = indices.scatter(count, size, mine, team.seed, turn)
        else:
            share = indices.block(count, size, mine)
        meet(team, 1 + hash((count, bool(random))) % (2**32 - 1))
        return share

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrived, (self.numThread, self.resources, self.sharedList)

    def __repr__(self) -> str:
        state = "" if self._open else ", terminated"
        return f"<Cluster of {self.numThread} processes, arrays {self.sharedList}{state}>"

    def _check(self, what: str) -> None:
        """Refuse what a process, or a Cluster that is closed, cannot do."""
        if here.run is not None:
            raise RegionError(
                f"{what} was called in a process of a Cluster: make arrays and locks, and run "
                "processes, in the program that made the Cluster, before or after runProcesses"
            )
        if not self._open:
            raise RegionError(
                f"{what} was called on a Cluster that has been terminated; a Cluster ends with "
                "its `with` block or terminate(): make another one"
            )

    def _check_name(self, name: object) -> None:
        if not isinstance(name, str):
            raise TypeError(f"the name of a shared array or lock must be a str, got {name!r}")
        if name in self.resources:
            what = {"id": "the number of the process"}.get(name) or (
                "an array" if name in self.sharedList else "a lock"
            )
            raise ValueError(
                f"the name {name!r} is taken: in this Cluster it is {what}; choose another one"
            )


def _spaces() -> list[dict[str, Any]]:
    """Where the class looks for a name, in this order."""
    run = here.run or next(reversed(runs()), None)
    if run is not None:
        return [run.resources]
    found = [cluster for each in reversed(_clusters) if (cluster := each()) is not None]
    found.sort(key=lambda cluster: cluster._thread != threading.get_ident())
    return [cluster.resources for cluster in found]


def _team(what: str) -> Team:
    """The team of this process; outside any, that of a Cluster of one."""
    team = current()
    if team.orphan:
        sizes = [cluster.numThread for each in _clusters if (cluster := each()) is not None]
        if not sizes or sizes[-1] != 1:
            raise RegionError(
                f"Cluster.{what} was called outside the processes, where nobody else would come: "
                "call it in the function that runProcesses runs"
            )
    return team


def _arrived(size: int, resources: dict[str, Any], names: list[str]) -> Cluster:
    """A Cluster in a process that its function uses: the same arrays and locks."""
    cluster = Cluster.__new__(Cluster)
    cluster.numThread, cluster.resources, cluster.sharedList = size, resources, names
    cluster._thread, cluster._open, cluster._last = 0, True, None
    cluster._reference = weakref.ref(cluster)
    return cluster


def _forget(reference: weakref.ref[Cluster]) -> None:
    if reference in _clusters:
        _clusters.remove(reference)


def _processes(number: SupportsIndex | None) -> int:
    """How many processes a Cluster is to have."""
    if number is None:
        return os.cpu_count() or 1
    if isinstance(number, bool) or not hasattr(number, "__index__"):
        raise TypeError(f"a Cluster has a whole number of processes, got {number!r}")
    if operator.index(number) < 1:
        raise ValueError(f"a Cluster has at least one process, got {number}")
    return operator.index(number)


def _index(name: str, value: SupportsIndex | None) -> int:
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(
            f"splitIndices takes an integer as {name}, got {value!r}; you want "
            "splitIndices(n, resource['id'])"
        ) from None
