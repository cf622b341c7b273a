"""Programs written for py-dsm: dsmfor's own idiom."""

from __future__ import annotations

from benchmarks.seed import Natives


def peer() -> Natives:
    """The contender."""
    return Natives()
