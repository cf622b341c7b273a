"""The process engine: which crew serves which call, and what happens between calls.

A region takes an idle crew for itself (`crew.py`), or a new one; between regions the workers sleep
and let go of the memory that the caller lets go. Who calls, and what becomes of the results, is
region.py's.

Guarantees
----------
- Two threads that call at once have two crews. `_guard` guards the lists of crews and the line to
  the warden; a crew itself belongs to the thread that has taken it.
- A forked child of the caller shares no crew with its parent.
- At the interpreter's end, and after `shutdown`, no process, thread or descriptor is left.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading

from dsmfor import arenas, limits, naming, segments, staging
from dsmfor._native.block import DONE
from dsmfor._native.farewell import Doorbell
from dsmfor._native.interrupts import hear, undisturbed
from dsmfor.engines.channel import Lost
from dsmfor.engines.crew import Crew, Ended
from dsmfor.engines.housekeeping import Housekeeper
from dsmfor.engines.launch import WardenGone, WardenLine, close_lines
from dsmfor.engines.quarantine import Quarantine, see_off
from dsmfor.engines.recruits import leaving
from dsmfor.errors import DSMError, SharedMemoryFull, WorkerDied
from dsmfor.payload import Message
from dsmfor.skeleton import Skeleton, retired

__all__ = ["housekeep", "run", "shutdown", "team_pids"]

_MOST_RANKS = 1024

_guard = threading.RLock()
_idle: list[Crew] = []
_crews: list[Crew] = []  # all that may have workers
_numbers = iter(range(1, 1 << 62))
_line: WardenLine | None = None
_bell = Doorbell()  # rung when memory was freed, and when the housekeeper has other work
_keeper: Housekeeper | None = None
_quarantine = Quarantine()
_SOON, _LATER = 0.05, 1.0  # seconds until an answer is there, and until held blocks are asked about
_PARTING = 5.0  # and that workers which have been killed may take to end
_owner = os.getpid()


def run(size: int, message: Message, seed: int = 0, timeout: float | None = None) -> Ended:
    """Run a region on a crew of at least `size` workers.

    Parameters
    ----------
    size : int
        Ranks.
    message : Message
    seed : int, below 2**64
        Of the loops' random schedules.
    timeout : float, seconds, optional

    Returns
    -------
    Ended

    Raises
    ------
    WorkerDied
        The warden died, and the crews with it.
    KeyboardInterrupt
        Or whatever a signal handler of the caller raises; the region has been stopped.
    """
    if size > _MOST_RANKS:
        raise ValueError(f"a team has at most {_MOST_RANKS} workers, got workers={size}")
    call = object()
    try:
        crew = _take(size, message.skeleton, call)
        if retired:
            _retire()
        ended = crew.region(size, message, seed, timeout)
        _give_back(crew)
        return ended
    except WardenGone as gone:
        with undisturbed:
            _recover(call, warden_gone=True)
        if gone.instead_of is not None:
            raise gone.instead_of from None
        raise WorkerDied(
            "the warden process of the workers was killed, and the workers with it; plain arrays "
            "of this call are as they were before it. The next call starts a new team"
        ) from None
    except BaseException:
        with undisturbed:
            _recover(call)
        raise


def _recover(call: object, *, warden_gone: bool = False) -> None:
    """A call has failed, or was interrupted anywhere: what it holds of crews is given back.

    A Ctrl-C may have struck between taking a crew and knowing that it was taken, and its traceback
    may keep every frame for long: so a crew knows its holder.
    """
    with _guard:
        held = [crew for crew in _living() if crew.holder is call]
        if warden_gone:
            _forget(held[0] if held else None)
        for crew in held:
            if crew in _idle:  # not yet taken out
                crew.holder = None
            elif not crew.closed:
                _give_back(crew)


def _living() -> list[Crew]:
    """All crews that have workers."""
    living = [crew for crew in _crews if not crew.closed]
    if len(living) < len(_crews):
        _crews[:] = living
    return living


def _busy() -> list[Crew]:
    """Crews that threads have taken for their regions."""
    return [crew for crew in _living() if crew not in _idle]


def _retire() -> None:
    """Have every crew forget the skeletons that are gone, at its next region."""
    with _guard:
        gone = set()
        while retired:
            gone.add(retired.popleft())
        for crew in _living():
            crew.letters.retired |= gone


def _take(size: int, skeleton: Skeleton, call: object) -> Crew:
    """An idle crew, made ready for a region of `size` ranks, and held by `call`."""
    with _guard:
        for crew in reversed(_idle):  # the one that was used last, first
            if (
                len(crew.workers) == size
                and crew.ready()
                and not _pending()
                and not crew.letters.outdated(skeleton)
            ):
                crew.holder = call
                _idle.remove(crew)
                return crew
        with undisturbed:
            try:
                return _prepare(size, skeleton, call)
            except Lost as error:
                raise SharedMemoryFull(str(error)) from None
            except OSError as error:  # no descriptor, process or system call that a team takes
                named = limits.unstartable(error)
                if named is None:
                    raise
                raise named from error


def _prepare(size: int, skeleton: Skeleton, call: object) -> Crew:
    """A crew for `size` ranks when none is just right: one that grows, or a new one."""
    if _line is not None and _line.gone():
        _forget()
    if _line is None:
        _start()
    assert _line is not None
    if _pending():
        _spread()
    see_off()
    for crew in [c for c in _idle if c.letters.spoilt or c.letters.outdated(skeleton)]:
        _idle.remove(crew)
        crew.disband()
    if _idle:
        crew = min(
            reversed(_idle),  # of equals, the one that was used last
            key=lambda crew: (len(crew.workers) < size, abs(len(crew.workers) - size)),
        )
        _idle.remove(crew)
    else:
        crew = Crew(_line, _guard, next(_numbers))
        _crews.append(crew)
    crew.holder = call
    if len(crew.workers) < size or not crew.ready():
        crew.at_rest = False
        crew.muster(size)
        crew.at_rest = True
    return crew


def _give_back(crew: Crew) -> None:
    """A crew at rest serves again; one that was interrupted at a bad moment is ended."""
    with _guard:
        if crew.closed:
            return  # the warden's end took it
        if crew.line is not _line or not crew.at_rest:
            if crew.at_rest:
                crew.disband()
            else:
                crew.break_up()
            _bell.ring()  # to see its workers off
            if crew.line is not _line and not _serving(crew.line):
                crew.line.stop()  # of a warden that has gone since
            return
        crew.holder = None
        _idle.append(crew)
        if crew.expected:
            _ring(_quarantine.turn([crew], _living()))
        if _pending():
            _bell.ring()


def _start() -> None:
    global _line, _keeper
    line = WardenLine.start()
    try:
        if _keeper is None:
            _keeper = Housekeeper(_bell, _keep)
            segments.on_free(_bell.note)
            arenas.listen(_bell.hear)
    except BaseException:
        line.stop()
        raise
    _line = line
    segments.set_reclaimer(_reclaim)
    segments.set_resolver(_resolve)
    if names := naming.published():
        _line.tell("names", names)


def _guard_names() -> None:
    """This process has got a name: a warden, started if need be, takes it away should we die."""
    with _guard:
        if _line is not None and _line.gone():
            _forget()
        with contextlib.suppress(WardenGone, DSMError):  # whoever comes next takes names away, too
            if _line is None:
                _start()
            else:
                _line.tell("names", naming.published())


def _reclaim() -> None:
    """Memory is short: let go of what is kept for speed."""
    staging.drop_spares()
    housekeep()


def _pending() -> bool:
    """Whether workers may hold much that the caller has freed."""
    return bool(_bell.freed) or _bell.crowded


def _forget(lost: Crew | None = None) -> None:
    """The warden has gone, and its workers with it: forget its idle crews, and `lost`.

    Crews of it that other threads are using are left to them; they see the same. A warden that was
    started since is another one.
    """
    global _line
    line = _line if lost is None else lost.line
    if line is None:
        return
    for crew in _living():
        if crew is lost or (crew.line is line and crew in _idle):
            try:
                crew.outlive()
            finally:
                crew.close()
            if crew in _idle:
                _idle.remove(crew)
    if _line is line:
        _line = None
    if not _serving(line):
        line.stop()


def _serving(line: WardenLine) -> bool:
    """Whether a crew of that warden is left."""
    return any(crew.line is line for crew in _living())


def _resolve(segment: int) -> tuple[int, int]:
    """Descriptor and size of a segment that a worker made, and that an outcome names."""
    with _guard:
        if _line is None:
            raise DSMError(f"segment {segment} was made by a worker that has gone")
        fd = _line.get(("segment", segment))
        for crew in _living():
            for worker in crew.workers:
                if worker is not None and worker.recruit.incarnation == segment >> 40:
                    worker.made.add(segment)  # it hears when the caller lets go
    return fd, os.fstat(fd).st_size - segments.FOOTER.size


def _keep() -> float | None:
    """What the housekeeper does; when to do it again."""
    housekeep(wait=False)
    if _quarantine.asking:
        return _SOON
    return _LATER if _quarantine.waiting else None


def housekeep(*, wait: bool = True) -> None:
    """Make idle workers let go of everything that the caller has let go, and free what none holds.

    Parameters
    ----------
    wait : bool
        Return when they have.
    """
    with undisturbed, _guard, contextlib.suppress(WardenGone):
        told = _spread()
        while told and wait:
            read = [
                crew.block.await_read(rank, 1.0) == DONE
                for crew in told
                for rank, worker in enumerate(crew.workers)
                if worker is not None
            ]
            told = _spread()  # what they have answered may free more
            if not all(read):  # somebody is stopped, or has died: the next region finds out
                break
        if arenas.tidy() and wait:
            _spread()


def _ring(crews: list[Crew]) -> None:
    for crew in crews:
        crew.block.ring()


def _spread() -> list[Crew]:
    """Tell idle crews what was freed. A busy one hears it when it is idle again."""
    _bell.crowded = False
    freed = set[int]()
    told: list[Crew] = []
    again = True  # unless all has gone well; a Ctrl-C may strike
    try:
        while _bell.freed:
            freed.add(_bell.freed.popleft())
        asked = _quarantine.turn(_idle, _living())
        for crew in _idle:
            if crew.letters.let_go(freed) or crew in asked:
                crew.block.ring()
                told.append(crew)
        again = any(crew.letters.know(freed) for crew in _busy())
    finally:
        if again:
            _bell.freed.extend(freed)
    return told


def team_pids() -> set[int]:
    """The processes of all teams of this process, the warden included."""
    with _guard:
        if _line is None:
            return set()
        return {_line.pid} | {
            worker.recruit.pid for crew in _living() for worker in crew.workers if worker
        }


def shutdown() -> None:
    """End every worker and the warden; the next region starts new ones.

    Raises
    ------
    DSMError
        A region is running in another thread.
    """
    global _keeper, _line
    with undisturbed:
        with _guard:
            if busy := _busy():
                raise DSMError(
                    f"{len(busy)} regions are running in other threads; let them end first"
                )
            staging.drop_spares()
            keeper, _keeper = _keeper, None
            for crew in _idle:
                crew.disband()
            _idle.clear()
            line, _line = _line, None
        try:
            if line is not None:
                line.stop(names=bool(naming.published()))
        finally:
            if keeper is not None:  # without the guard, for which its thread may be waiting
                keeper.stop()
            see_off(_PARTING)
            _quarantine.turn((), _living())  # what these crews were asked, they will not answer
            arenas.listen(None)  # nobody is left who could see what this process lets go


def _at_exit() -> None:
    if os.getpid() != _owner:
        return
    global _keeper
    keeper, _keeper = _keeper, None
    with contextlib.suppress(KeyboardInterrupt), undisturbed:  # the program ends as it is
        if _line is not None:
            _line.stop(names=bool(naming.published()))
        for crew in _idle:
            crew.close()
        if keeper is not None:
            keeper.stop()
        hear()


def _after_fork() -> None:
    """In a child of the caller: the crews are the parent's; what is called here starts others."""
    global _guard, _owner, _keeper, _line, _quarantine
    _guard = threading.RLock()
    _quarantine = Quarantine()
    _owner = os.getpid()
    if _keeper is not None:
        _keeper.close()
    _keeper = None
    for crew in _living():
        crew.close()
    close_lines()
    while leaving:
        os.close(leaving.popleft())
    _idle.clear()
    _crews.clear()
    _line = None


naming.set_guardian(_guard_names)
atexit.register(_at_exit)
os.register_at_fork(after_in_child=_after_fork)
