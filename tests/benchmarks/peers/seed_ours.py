"""Programs written for py-dsm: dsmfor.pydsm, the drop-in."""

from __future__ import annotations

from benchmarks.seed import OURS, Programs


def peer() -> Programs:
    """The contender."""
    return Programs(OURS)
