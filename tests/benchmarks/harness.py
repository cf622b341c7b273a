"""How a row is measured: interleaved rounds, and what is said about them.

The machines switch between regimes of speed, for seconds or minutes, and a figure
means something only beside another that was taken in the same seconds. So every
round asks every contender once, in turn; a ratio is taken within its round; and what
is reported is the median over the rounds.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.lane import Lane, LaneFailed, LaneMissing

Round = dict[str, float]
"""What one round measured, by the label of the contender."""


@dataclass(frozen=True, slots=True)
class Contender:
    """One line of a row.

    Parameters
    ----------
    label : str
        How it is called, unique in its row.
    peer : str
        The lane that it lives in; contenders of one row share lanes.
    measure : callable
        Takes the lane, returns one sample; see `asking`.
    """

    label: str
    peer: str
    measure: Callable[[Lane], float]


def asking(measure: str, *arguments: float | str) -> Callable[[Lane], float]:
    """The plain way to take a sample: one question to the lane."""
    return lambda lane: lane.ask(measure, *arguments)


@dataclass(frozen=True, slots=True)
class Bar:
    """A figure to reach.

    Parameters
    ----------
    text : str
        What is asked for, in words.
    value : callable
        What was reached in one round; KeyError where a contender is missing.
    limit : float
        What it is compared with.
    at_most : bool
        Whether `limit` is the highest value that passes, or the lowest.
    show : callable
        How the value is written.
    """

    text: str
    value: Callable[[Round], float]
    limit: float
    at_most: bool = True
    show: Callable[[float], str] = "{:.3g}".format

    def reached(self, rounds: list[Round]) -> float | None:
        """Median over the rounds that can tell, or None."""
        values = []
        for measured in rounds:
            try:
                values.append(self.value(measured))
            except KeyError:
                continue
        return statistics.median(values) if values else None

    def met(self, reached: float) -> bool:
        """Whether this value passes."""
        return reached <= self.limit if self.at_most else reached >= self.limit


def ratio(of: str, to: str) -> Callable[[Round], float]:
    """`of` as a multiple of `to`."""
    return lambda measured: measured[of] / measured[to]


@dataclass(frozen=True, slots=True)
class Row:
    """What is measured side by side.

    Parameters
    ----------
    name : str
        How it is chosen on the command line.
    title, account : str
        A headline, and what is measured and how.
    contenders : tuple of Contender
        The first is ours; the others are compared with it.
    bars : tuple of Bar
        The figures to reach.
    rounds : int
        How often every contender is asked.
    show : callable
        How a value is written.
    warm : bool
        Whether a round goes before that does not count.
    """

    name: str
    title: str
    account: str
    contenders: tuple[Contender, ...]
    bars: tuple[Bar, ...]
    rounds: int
    show: Callable[[float], str]
    warm: bool = True


@dataclass(slots=True)
class Result:
    """What was seen of a row.

    Attributes
    ----------
    rounds : list of Round
        In the order of time.
    failures : dict
        Why a contender is not in them, by its label.
    complaints : list of str
        Processes that were left behind.
    """

    row: Row
    rounds: list[Round] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)

    def samples(self, label: str) -> list[float]:
        """All samples of a contender."""
        return [measured[label] for measured in self.rounds if label in measured]


def measure(row: Row, directory: Path, say: Callable[[str], None]) -> Result:
    """Measure a row; a contender that fails is left out from there on, and named aloud."""
    result = Result(row)
    lanes: dict[str, Lane] = {}

    def sample(contender: Contender) -> float | None:
        name = contender.peer
        try:
            if name not in lanes:
                lanes[name] = Lane(name, directory)
            return contender.measure(lanes[name])
        except LaneMissing as error:
            reason = f"not installed ({error})"
        except LaneFailed as error:
            reason = f"failed: {error}"
            if error.dead and name in lanes:
                lanes.pop(name).close(grace=0)
        result.failures[contender.label] = reason
        say(f"*** {row.name}: {contender.label} {reason} ***")
        return None

    try:
        for k in range(-row.warm, row.rounds):
            # A contender's neighbours stay the same; who begins does not.
            turn = k % len(row.contenders)
            measured: Round = {}
            for contender in row.contenders[turn:] + row.contenders[:turn]:
                if contender.label not in result.failures:
                    value = sample(contender)
                    if value is not None:
                        measured[contender.label] = value
            if k >= 0:
                result.rounds.append(measured)
    finally:
        for lane in lanes.values():
            complaint = lane.close()
            if complaint:
                result.complaints.append(complaint)
                say(f"*** {row.name}: {complaint} ***")
    return result
