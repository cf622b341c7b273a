"""How values are written."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    for factor, unit in ((1, "s"), (1e3, "ms"), (1e6, "us")):
        if abs(seconds) * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def size(count: float) -> str:
    """Bytes in the unit that suits them."""
    for factor, unit in ((1e-9, "GB"), (1e-6, "MB"), (1e-3, "kB")):
        if abs(count) * factor >= 1:
            return f"{count * factor:.3g} {unit}"
    return f"{count:.0f} bytes"


def bandwidth(rate: float) -> str:
    """Bytes per second."""
    return f"{rate / 1e9:.3g} GB/s"


def times(factor: float) -> str:
    """A multiple."""
    return f"{factor:.3g} x"


def share(part: float) -> str:
    """A part of a core."""
    return f"{100 * part:.3g} %"
