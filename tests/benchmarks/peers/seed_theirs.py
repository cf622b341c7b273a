"""Programs written for py-dsm: py-dsm itself."""

from __future__ import annotations

from benchmarks.seed import THEIRS, Programs


def peer() -> Programs:
    """The contender."""
    return Programs(THEIRS)
