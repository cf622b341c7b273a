"""dsmfor: a decorated NumPy loop runs on every core, over truly shared memory.

>>> import numpy as np
>>> import dsmfor as dsm
>>> @dsm.parallel(workers=2, shared=["A", "B", "C"])
... def add(A, B, C):
...     for i in dsm.prange(len(A), schedule="dynamic"):
...         C[i] = A[i] + B[i]
>>> A, B, C = np.arange(4), np.arange(4) + 1, np.zeros(4, dtype=int)
>>> add(A, B, C)
>>> C
array([1, 3, 5, 7])
"""

from dsmfor.arrays import (
    array,
    empty,
    empty_like,
    full,
    full_like,
    ones,
    ones_like,
    zeros,
    zeros_like,
)
from dsmfor.errors import (
    BarrierBroken,
    DSMError,
    LostWriteError,
    MisuseWarning,
    NameTaken,
    NameUnknown,
    PerformanceWarning,
    RegionError,
    RegionTimeout,
    SharedMemoryFull,
    WorkerDied,
)
from dsmfor.loops import prange, pslices, ptiles, split
from dsmfor.naming import NamedArray, attach, delete, names
from dsmfor.options import options
from dsmfor.parallel import Parallel, parallel
from dsmfor.report import Report
from dsmfor.schedules import Auto, Dynamic, Guided, Random, Runtime, Schedule, Static
from dsmfor.sync import barrier, cancel, cancelled, critical, rank, single, size

__version__ = "0.1.0"

__all__ = [
    "Auto",
    "BarrierBroken",
    "DSMError",
    "Dynamic",
    "Guided",
    "LostWriteError",
    "MisuseWarning",
    "NameTaken",
    "NameUnknown",
    "NamedArray",
    "Parallel",
    "PerformanceWarning",
    "Random",
    "RegionError",
    "RegionTimeout",
    "Report",
    "Runtime",
    "Schedule",
    "SharedMemoryFull",
    "Static",
    "WorkerDied",
    "array",
    "attach",
    "barrier",
    "cancel",
    "cancelled",
    "critical",
    "delete",
    "empty",
    "empty_like",
    "full",
    "full_like",
    "names",
    "ones",
    "ones_like",
    "options",
    "parallel",
    "prange",
    "pslices",
    "ptiles",
    "rank",
    "single",
    "size",
    "split",
    "zeros",
    "zeros_like",
]
