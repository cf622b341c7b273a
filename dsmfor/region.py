"""One call of a kernel on workers, from its arguments to its value or its error.

Which options hold is options.py's and parallel.py's; how workers run it is engines/. What happens
here, in order: names become intents of arrays (sharing.py), the kernel and what it is given are
packed and plain arrays staged (payload.py), the region runs, arrays are copied back, and the
outcomes become a value or the one exception that says why there is none.
"""

from __future__ import annotations

import itertools
import os
import time
import warnings
from typing import Any

from dsmfor import limits, segments
from dsmfor.engines import process
from dsmfor.engines.crew import Ended
from dsmfor.errors import (
    PerformanceWarning,
    RegionError,
    RegionTimeout,
    SharedMemoryFull,
    WorkerDied,
)
from dsmfor.options import Options
from dsmfor.outcome import Failure, add_note, revive, text_of
from dsmfor.payload import Kernel
from dsmfor.pickling import dump
from dsmfor.reachable import ATOMS, reachable
from dsmfor.sharing import Sharing
from dsmfor.skeleton import Skeleton
from dsmfor.transit import Outward

__all__ = ["run"]

_MUCH = 1 << 20  # bytes of captured data that a call should not copy
_MASK = (1 << 64) - 1
_MOST_NOTES = 4  # of other ranks' exceptions
# Seeds for calls that name none: consecutive numbers from a random one on. Not the `random` module,
# which a file of that name beside the user's script would hide.
_seeds = itertools.count(int.from_bytes(os.urandom(7), "little"))


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
    choices = (
        options.schedule or "static",
        options.chunk,
        options.blas_threads,
        None if sharing.everything_private else sharing.private,
        sharing.inward,
    )
    message = stage = None
    relieved = False
    try:
        while message is None:
            skeleton, values = kernel.refresh()
            claims = sharing.claims(args, kwargs, skeleton, values)
            message = kernel.again(claims, choices)
            if message is not None:
                break
            transit = Outward(
                skeleton.numbers, claims.intents, sharing.everything_private, bool(claims.cleared)
            )
            try:
                message, stage = kernel.message(skeleton, claims, transit, choices)
                if message is not None:
                    sharing.check_met(claims, transit)
                    if claims.cleared:
                        transit.clear(claims.cleared)
            except MemoryError as error:
                if relieved and isinstance(error, SharedMemoryFull):
                    raise
                if relieved:
                    name = kernel.function.__qualname__
                    raise limits.exhausted(f"what {name} sends to its workers") from error
                if stage is not None:
                    stage.close()
                message = stage = None
                segments.reclaim()  # what idle workers hold, and what is kept for speed
                relieved = True
                continue
            if message is None:
                continue
            if not kernel.warned and max(message.nbytes, stage.bytes_in if stage else 0) > _MUCH:
                _warn_of_captures(kernel, skeleton, values, transit)
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
        if message is not None:
            message.buffers.clear()  # a traceback may keep this frame
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


def _warn_of_captures(
    kernel: Kernel, skeleton: Skeleton, values: list[Any], transit: Outward
) -> None:
    """Tell once of what goes to the workers at every call and need not."""
    weigh = kernel.weighed is not skeleton
    kernel.weighed = skeleton
    for name, value in skeleton.captured(values):
        found = reachable(name, value)
        nbytes = sum(item.nbytes for _, item in found if id(item) in transit.plain)
        how = "copied for the workers at every call; make it once in shared memory: "
        how += f"{name} = dsm.array({name})"
        if nbytes <= _MUCH and weigh and type(value) not in ATOMS:
            try:
                private = Outward(skeleton.numbers, {}, True)
                nbytes = len(dump(value, private, skeleton.own))
                nbytes += sum(buffer.nbytes for buffer in private.buffers)
            except SharedMemoryFull:
                return  # there was room for it once; the region itself is what counts
            how = "sent to the workers at every call; hold what is large in it "
            how += "in shared arrays (dsm.array), or make it inside the kernel"
        if nbytes > _MUCH:
            kernel.warned = True
            warnings.warn(
                f"{kernel.function.__qualname__} captures {name!r} (type {type(value).__name__}), "
                f"{nbytes / 1e6:.1f} MB that are {how}",
                PerformanceWarning,
                stacklevel=4,
            )
            return


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
            add_note(error, f"also: {other}")
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
        failures[rank].text
        if rank in failures
        else f"rank {rank} of {size} was at the end of the kernel"
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
        same = failure.name == type(error).__qualname__ and failure.text == text_of(error)
        add_note(
            error, f"also {failure.note}" + ("" if same else f": {failure.name}: {failure.text}")
        )
    if len(failures) > _MOST_NOTES:
        add_note(error, f"and in {len(failures) - _MOST_NOTES} more workers")
