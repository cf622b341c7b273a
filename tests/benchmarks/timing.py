"""The two ways in which contenders written in Python time a call."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from time import perf_counter


def typical(call: Callable[[], object], seconds: float) -> float:
    """Median duration of `call`, each timed alone, over about so many `seconds`.

    A fifth of the time goes before, uncounted: workers have slept while other
    contenders were measured, and their first calls say how fast they wake.
    """
    warm = perf_counter() + seconds / 5
    call()
    while perf_counter() < warm:
        call()
    durations = []
    end = perf_counter() + seconds
    while len(durations) < 3 or perf_counter() < end:
        began = perf_counter()
        call()
        durations.append(perf_counter() - began)
    return statistics.median(durations)


def once(call: Callable[[], object]) -> float:
    """Duration of one `call`, for those that are long."""
    began = perf_counter()
    call()
    return perf_counter() - began
