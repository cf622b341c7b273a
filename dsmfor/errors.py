"""The exceptions that dsmfor raises, and nothing else.

::

    DSMError
    ├── RegionError          a call out of place, ranks that diverge, a loop left early
    │   └── BarrierBroken    the region has failed elsewhere; this rank was released from a wait
    ├── LostWriteError       a kernel changed what the caller would never see changed
    ├── WorkerDied           a worker process ended before its region did
    ├── SharedMemoryFull     (also a MemoryError) no room for a segment; nothing was taken
    ├── RegionTimeout        (also a TimeoutError) the region's time ran out
    ├── NameTaken            (also a FileExistsError) somebody else has an array of that name
    └── NameUnknown          (also a KeyError) nobody has one

    PerformanceWarning       (a UserWarning) a call is right, and slower than it needs to be
    MisuseWarning            (a SyntaxWarning) a kernel's source uses a loop as if it were a range

An exception that the kernel raises is none of these: it comes back to the caller as itself.
Bad arguments raise Python's own ``TypeError`` and ``ValueError``.
Every message says what happened, with which value, and what to do.
"""

from __future__ import annotations

__all__ = [
    "BarrierBroken",
    "DSMError",
    "LostWriteError",
    "MisuseWarning",
    "NameTaken",
    "NameUnknown",
    "PerformanceWarning",
    "RegionError",
    "RegionTimeout",
    "RemoteTraceback",
    "SharedMemoryFull",
    "WorkerDied",
]


class DSMError(Exception):
    """Base of every error that dsmfor itself raises."""


class RegionError(DSMError):
    """The region broke a rule: a call out of place, ranks that diverge, a loop left early."""


class BarrierBroken(RegionError):
    """A wait ended because the region failed elsewhere.

    Seen inside kernels only. It is never what the caller is shown while another rank
    has the real reason.
    """


class LostWriteError(DSMError):
    """A kernel changed a variable, list, dict, set or object that workers have copies of."""


class PerformanceWarning(UserWarning):
    """A call does what it should, and takes longer than it needs to."""


class WorkerDied(DSMError):
    """A worker process ended before its region did.

    Attributes
    ----------
    rank : int
        Rank of the dead worker in its team.
    pid : int
        Its process id.
    exitcode : int or None
        Exit status, negative for a signal (``-9`` for SIGKILL), None when it is not known.
    """

    def __init__(
        self, message: str, *, rank: int = -1, pid: int = -1, exitcode: int | None = None
    ) -> None:
        super().__init__(message)
        self.rank = rank
        self.pid = pid
        self.exitcode = exitcode


class SharedMemoryFull(DSMError, MemoryError):
    """There is no room for a segment; nothing was taken and earlier arrays are untouched."""


class RegionTimeout(DSMError, TimeoutError):
    """The region did not end within its ``timeout``; its slow workers were replaced."""


class NameTaken(DSMError, FileExistsError):
    """A name is in use: by a program that lives, or by a file that is no array of dsmfor.

    Attributes
    ----------
    pid : int or None
        The program that owns the array, None when the file is not dsmfor's.
    """

    def __init__(self, message: str, *, pid: int | None = None) -> None:
        super().__init__(message)
        self.pid = pid


class NameUnknown(DSMError, KeyError):
    """Nobody who lives has an array of that name."""

    __str__ = Exception.__str__  # a KeyError shows its message quoted


class MisuseWarning(SyntaxWarning):
    """The source of a kernel uses a loop in a way that cannot do what it says.

    Issued when the function is decorated, for the line that it is about. It is a `SyntaxWarning`,
    as Python's own about ``"a" is b``: the text is doubtful whatever the data are, it is known
    before anything runs, and it is shown unless filters say otherwise.
    """


class RemoteTraceback(DSMError):
    """The traceback of a worker as text; the ``__cause__`` of what a kernel raised."""

    def __str__(self) -> str:
        return "\n" + str(self.args[0]) if self.args else ""


for _public in (
    DSMError,
    RegionError,
    BarrierBroken,
    LostWriteError,
    PerformanceWarning,
    WorkerDied,
    SharedMemoryFull,
    RegionTimeout,
    NameTaken,
    NameUnknown,
):
    _public.__module__ = __name__.partition(".")[0]  # as users know them, in tracebacks too
