"""The Markdown document: what was seen, where and with which versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import statistics
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import programs
from benchmarks.harness import Contender, Result
from benchmarks.lane import PEERS

HEAD = """\
# Benchmarks

Made by `make bench`; not edited. Figures of one machine in one run: every contender lives in
processes of its own, warm where that is said, and all of them take turns in short rounds, so
that each is compared with what the others did in the same second. Given are medians over the
rounds; *to ours* is the contender's figure divided by that of the row's first line, as the
median of the ratios within each round.
"""


def document(results: Sequence[Result], settings: str) -> str:
    """All of it."""
    parts = [HEAD, table(("", ""), machine(settings)), "## Bars\n", bars(results)]
    for result in results:
        parts += [f"## {result.row.title}\n", result.row.account + "\n", contenders(result)]
        parts += [f"- {complaint}\n" for complaint in result.complaints]
    return "\n".join(parts)


def bars(results: Sequence[Result]) -> str:
    """Every figure to reach, and what was reached."""
    lines = []
    for result in results:
        for bar in result.row.bars:
            reached = bar.reached(result.rounds)
            if reached is None:
                seen, verdict = "", "not measured"
            else:
                seen, verdict = bar.show(reached), "met" if bar.met(reached) else "**missed**"
            lines.append((f"{result.row.title} (`{result.row.name}`)", bar.text, seen, verdict))
    return table(("what", "bar", "seen", ""), lines)


def overview(results: Sequence[Result]) -> str:
    """A line for every row: ours, and every other contender's median."""
    lines = []
    for result in results:
        if programs.is_program(result):
            continue  # in a table of their own
        seen = {
            one.label: result.row.show(statistics.median(result.samples(one.label)))
            for one in result.row.contenders
            if one.label not in result.failures and result.samples(one.label)
        }
        ours = result.row.contenders[0].label
        peers = ", ".join(f"{label} {value}" for label, value in seen.items() if label != ours)
        lines.append((result.row.title, seen.get(ours, "not measured"), peers))
    return table(("what", "dsmfor", "beside it"), lines)


def beside_pydsm(results: Sequence[Result]) -> str:
    """A line for every program of py-dsm."""
    return table(("what", *programs.LANES), programs.overview(results))


def contenders(result: Result) -> str:
    """One row's table."""
    heading = ("", "median", "lowest to highest", "to ours")
    return table(heading, [contender_line(result, one) for one in result.row.contenders])


def contender_line(result: Result, contender: Contender) -> tuple[str, ...]:
    """What one contender reached."""
    label, row = contender.label, result.row
    failure = result.failures.get(label)
    if failure is not None:
        return label, failure, "", ""
    samples = result.samples(label)
    ours = row.contenders[0].label
    ratios = [
        measured[label] / measured[ours]
        for measured in result.rounds
        if label in measured and measured.get(ours)
    ]
    return (
        label,
        row.show(statistics.median(samples)),
        f"{row.show(min(samples))} to {row.show(max(samples))}",
        f"{statistics.median(ratios):.3g}" if ratios else "",
    )


def machine(settings: str) -> list[tuple[str, str]]:
    """Where and with what the figures were taken."""
    packages = ["numpy", *filter(None, (peer.distribution for peer in PEERS.values()))]
    return [
        ("when", f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {settings}"),
        ("machine", f"{processor()}, {os.cpu_count()} CPUs, {memory()} of memory"),
        ("system", f"{platform.system()} {platform.release()}, {compiler()}"),
        ("load at the end", "{:.2f} {:.2f} {:.2f}".format(*os.getloadavg())),
        ("Python", f"{platform.python_implementation()} {platform.python_version()}"),
        *((package, version(package)) for package in packages),
    ]


def version(package: str) -> str:
    """The installed version of a package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def processor() -> str:
    """The name of the CPU."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def memory() -> str:
    """The size of the machine's memory."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return f"{pages / 2**30:.0f} GiB"


def compiler() -> str:
    """The C compiler's first words."""
    if shutil.which("gcc") is None:
        return "no gcc"
    asked = subprocess.run(["gcc", "--version"], capture_output=True, text=True, check=False)
    return asked.stdout.partition("\n")[0]


def table(heading: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    rule = ["---"] * len(heading)
    rows = [[cell.replace("|", "\\|") for cell in line] for line in (heading, rule, *lines)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
