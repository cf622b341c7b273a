"""What the doctor says of one thing, and how a list of that is shown: as a table, as JSON."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

__all__ = ["Finding", "Verdict", "as_json", "as_table", "sound"]

Verdict: TypeAlias = Literal["ok", "advice", "problem"]
"""'problem': dsmfor cannot work. 'advice': it works, and something is slower, less, or at risk."""


class Finding(NamedTuple):
    """One thing that was looked at."""

    topic: str
    verdict: Verdict
    found: str
    remedy: str = ""  # a command or a setting; empty if nothing need change


def sound(findings: Sequence[Finding]) -> bool:
    """Whether dsmfor will work."""
    return all(finding.verdict != "problem" for finding in findings)


def as_json(findings: Sequence[Finding]) -> str:
    """For machines: whether dsmfor will work, and each finding."""
    listed = [finding._asdict() for finding in findings]
    return json.dumps({"sound": sound(findings), "findings": listed}, indent=2)


def as_table(findings: Sequence[Finding], width: int = 100) -> str:
    """For people: lines for each finding, what to change below them, and the sum at the end."""
    margin = max(len(finding.topic) for finding in findings) + 11
    lines = []
    for finding in findings:
        head = f"{finding.verdict:8} {finding.topic}".ljust(margin)
        lines += _wrapped(finding.found, head, margin, width)
        if finding.remedy:
            lines += _wrapped(finding.remedy, " " * (margin - 3) + "-> ", margin, width)
    counts = [
        sum(each.verdict == verdict for each in findings) for verdict in ("problem", "advice")
    ]
    if counts[0]:
        verdict = f"dsmfor will not work here: {_count(counts[0], 'problem')} to solve"
    else:
        verdict = "dsmfor will work here"
        if counts[1]:
            verdict += f"; {_count(counts[1], 'piece')} of advice"
    return "\n".join([*lines, "", verdict + "."])


def _wrapped(text: str, first: str, margin: int, width: int) -> list[str]:
    return textwrap.wrap(
        text,
        max(width, margin + 20),
        initial_indent=first,
        subsequent_indent=" " * margin,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number != 1 else ''}"
