"""Measure dsmfor with its peers beside it.

With rows named, only those are measured and printed; without, all are, and the document
is written too. Nothing is asserted: a bar that was missed is marked in the document.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
if sys.path[0] == str(TESTS / "benchmarks"):
    sys.path.pop(0)  # started as `python tests/benchmarks`
sys.path.insert(0, str(TESTS))

from benchmarks import harness, report, rows  # noqa: E402 (one name however it was started)

README = TESTS.parent / "README.md"
DOCUMENT = TESTS.parent / "docs" / "benchmarks.md"


def main() -> None:
    """The command line."""
    settings, chosen, output = options()
    mode = ", ".join(f"{name} {value:g}" for name, value in dataclasses.asdict(settings).items())
    results = []
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="dsmfor-benchmarks-") as directory:
        for row in chosen:
            say(f"[{time.monotonic() - began:5.1f} s] {row.name}: {row.title}")
            results.append(harness.measure(row, Path(directory), say))
    text = report.document(results, mode)
    print(text)
    say(f"[{time.monotonic() - began:5.1f} s] done")
    if output is not None:
        output.parent.mkdir(exist_ok=True)
        output.write_text(text)
        say(f"written to {output}")
    if output == DOCUMENT:
        into_readme("benchmarks", report.overview(results))
        into_readme("py-dsm", report.beside_pydsm(results))


def into_readme(name: str, table: str) -> None:
    """Put a table between the README's markers of that name."""
    text = README.read_text()
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    README.write_text(f"{before}{begin}\n{table}\n{end}{after}")
    say(f"overview written to {README}")


def options() -> tuple[rows.Settings, list[harness.Row], Path | None]:
    """Settings, rows and document that the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    known = {make(rows.QUICK).name: make for make in rows.ROWS}
    parser.add_argument("rows", nargs="*", metavar="ROW", help="one of " + ", ".join(known))
    parser.add_argument("--quick", action="store_true", help="fewer rounds, smaller sizes")
    parser.add_argument("--rounds", type=int, help="how often each contender is asked")
    parser.add_argument("--memory", type=float, help="bytes of the array of row `memory`")
    parser.add_argument("--output", type=Path, help=f"the document (all rows: {DOCUMENT})")
    given = parser.parse_args()
    for name in given.rows:
        if name not in known:
            parser.error(f"ROW must be one of {', '.join(known)}, got {name!r}")
    settings = rows.QUICK if given.quick else rows.Settings()
    if given.rounds is not None:
        settings = dataclasses.replace(settings, rounds=given.rounds)
    if given.memory is not None:
        settings = dataclasses.replace(settings, memory=int(given.memory))
    names = given.rows or list(known)
    output = given.output if given.rows or given.output else DOCUMENT
    return settings, [known[name](settings) for name in names], output


def say(line: str) -> None:
    """Progress, apart from the document."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
