"""Threads of BLAS and OpenMP libraries in a worker: few, for the workers share the cores.

Libraries that are loaded are told by threadpoolctl, those that a kernel loads later by variables of
the environment.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import threadpoolctl

__all__ = ["VARIABLES", "BlasLimit"]

VARIABLES = (
    "OPENBLAS_NUM_THREADS",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


class BlasLimit:
    """The limit that is in force; the warden, and so a new worker, has one thread."""

    def __init__(self) -> None:
        self.threads: int | None = 1  # None: no limit

    def follow(self, threads: int | None, environ: Mapping[str, str]) -> None:
        """Limit them otherwise; `environ` is the caller's."""
        self.threads = threads
        self.set_variables(environ)
        cores = len(os.sched_getaffinity(0))
        threadpoolctl.threadpool_limits(limits=cores if threads is None else threads)

    def set_variables(self, environ: Mapping[str, str]) -> None:
        """For libraries that a kernel loads later; without a limit, what the caller has."""
        for name in VARIABLES:
            value = environ.get(name) if self.threads is None else str(self.threads)
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
