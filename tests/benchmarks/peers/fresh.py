"""New interpreters: how long until the first region has run."""

from __future__ import annotations

import subprocess
import sys
import textwrap

SCRIPT = """
from time import perf_counter
began = perf_counter()
import numpy
{body}
print(perf_counter() - began)
"""

BODIES = {
    "numpy": "",
    "dsmfor": """
        import dsmfor

        @dsmfor.parallel(workers=2)
        def nothing():
            pass

        nothing()
    """,
    "pool": """
        import multiprocessing

        def nothing(_):
            pass

        pool = multiprocessing.get_context("fork").Pool(2)
        pool.map(nothing, range(2), 1)
    """,
    "joblib": """
        import joblib

        def nothing(_):
            pass

        joblib.Parallel(2)(joblib.delayed(nothing)(i) for i in range(2))
    """,
    "numba": """
        import numba

        @numba.njit(parallel=True)
        def region(ranks):
            for rank in numba.prange(len(ranks)):
                ranks[rank] += 1

        region(numpy.zeros(2))
    """,
}


class Fresh:
    """What is measured in an interpreter that ends at once."""

    def first(self, name: str) -> float:
        """Seconds from before ``import numpy`` to after the first region of `name`."""
        body = textwrap.dedent(BODIES[name])
        ended = subprocess.run(
            [sys.executable, "-c", SCRIPT.format(body=body)],
            capture_output=True,
            text=True,
            timeout=50,
        )
        if ended.returncode == 0:
            return float(ended.stdout)
        reason = ended.stderr.strip().rpartition("\n")[2]
        if reason.startswith("ModuleNotFoundError"):
            raise ModuleNotFoundError(reason, name=reason.split("'")[1])
        raise RuntimeError(reason)


def peer() -> Fresh:
    """The contender."""
    return Fresh()
