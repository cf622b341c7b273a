"""An hour of mixed faults: ``make soak``, or ``python tests/soak --seconds 600``.

The campaign is a row of bouts (`bout.py`). It is kept in a file after every bout, and a campaign
that was ended before its time goes on where it stopped. One that has ended, or ``--fresh``, makes
room for a new one. A finding ends the campaign: it prints seed and number of the bout, and
``--seed S --bout N`` makes that bout again, alone.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from bout import STUCK, Bout, Figures, Finding

ROOT = Path(__file__).resolve().parents[2]
STATE = ROOT / "out" / "soak.json"
DOCUMENT = ROOT / "docs" / "reliability.md"


@dataclass
class Campaign:
    """Bouts of one seed, as far as they have come."""

    seed: int
    bouts: int = 0
    seconds: float = 0.0
    figures: Figures = field(default_factory=Figures)

    @classmethod
    def load(cls, path: Path) -> Campaign:
        kept = json.loads(path.read_text())
        figures = Figures(Counter(kept["faults"]), Counter(kept["acts"]), kept["slowest"])
        return cls(kept["seed"], kept["bouts"], kept["seconds"], figures)

    def keep(self, path: Path) -> None:
        figures = vars(self.figures)
        kept = {"seed": self.seed, "bouts": self.bouts, "seconds": self.seconds, **figures}
        path.parent.mkdir(exist_ok=True)
        path.with_suffix(".new").write_text(json.dumps(kept, indent=1))
        path.with_suffix(".new").replace(path)

    def table(self) -> str:
        """What was survived, in Markdown."""
        rows = [
            f"{self.bouts} callers, {self.seconds / 60:.1f} minutes, seed {self.seed}",
            "",
            "| fault | survived |",
            "| --- | ---: |",
            *(f"| {what} | {n:,} |" for what, n in sorted(self.figures.faults.items())),
            "",
            "A worker that is stopped for good is waited for until the call's timeout, 20 s:",
            "what was slowest in programs with such a worker stands in a column of its own.",
            "",
            "| what callers did, and what they were told | times | slowest, s | stuck, s |",
            "| --- | ---: | ---: | ---: |",
        ]
        slowest = dict(self.figures.slowest)

        def cells(what: str) -> str:
            found = (slowest.pop(what, None), slowest.pop(what + STUCK, None))
            return " | ".join("" if seconds is None else f"{seconds:.2f}" for seconds in found)

        rows += [
            f"| {what} | {n:,} | {cells(what)} |" for what, n in sorted(self.figures.acts.items())
        ]
        told = ("death in a kernel told", "full team again")
        rows += [f"| {what} | | {cells(what)} |" for what in told]
        rows += ["", "| most of | |", "| --- | ---: |"]
        rows += [f"| {what} | {value:.2f} |" for what, value in sorted(slowest.items())]
        return "\n".join(rows)


def main() -> int:
    options = command_line()
    if options.bout is not None:
        if options.seed is None:
            sys.exit("--bout needs --seed: a bout is known by both")
        return fight(Campaign(options.seed, options.bout), options.length)
    campaign = begin(options)
    while campaign.seconds < options.seconds:
        if fight(campaign, options.length):
            return 1
        campaign.keep(options.state)
    print(campaign.table())
    if options.document:
        into_document(campaign.table())
    options.state.rename(options.state.with_name("soak-last.json"))
    return 0


def begin(options: argparse.Namespace) -> Campaign:
    """A new campaign, or the one that was not ended."""
    if options.state.exists() and not options.fresh and options.seed is None:
        campaign = Campaign.load(options.state)
        say(f"going on after {campaign.bouts} bouts, {campaign.seconds:.0f} s")
        return campaign
    seed = options.seed
    return Campaign(random.SystemRandom().randrange(1 << 32) if seed is None else seed)


def fight(campaign: Campaign, length: float | None) -> int:
    """The next bout; 1 if there was a finding."""
    bout = Bout(campaign.seed, campaign.bouts, length)
    say(f"bout {campaign.bouts} of seed {campaign.seed}: {bout}")
    began = time.monotonic()
    try:
        figures = bout.run()
    except Finding as finding:
        print(campaign.table())
        print(f"\nFINDING in bout {campaign.bouts} of seed {campaign.seed}: {finding}")
        print(f"Again: {sys.executable} tests/soak --seed {campaign.seed} --bout {campaign.bouts}")
        return 1
    campaign.bouts += 1
    campaign.seconds += time.monotonic() - began
    campaign.figures.add(figures)
    return 0


def into_document(table: str) -> None:
    """Put the table between the document's markers."""
    begin, end = "<!-- soak -->\n", "<!-- /soak -->"
    before, _, rest = DOCUMENT.read_text().partition(begin)
    DOCUMENT.write_text(f"{before}{begin}\n{table}\n\n{end}{rest.partition(end)[2]}")
    say(f"table written to {DOCUMENT}")


def command_line() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tests/soak", description="Mixed faults, and a table of those survived."
    )
    parser.add_argument("--seconds", type=float, default=3600.0, help="of the campaign (3600)")
    parser.add_argument(
        "--seed", type=int, help="of a new campaign; drawn and printed if not given"
    )
    parser.add_argument("--bout", type=int, help="make only this bout of --seed")
    parser.add_argument("--length", type=float, help="seconds of each bout (drawn for each)")
    parser.add_argument("--fresh", action="store_true", help="begin anew")
    parser.add_argument("--document", action="store_true", help=f"write the table into {DOCUMENT}")
    parser.add_argument("--state", type=Path, default=STATE, help=f"default {STATE}")
    return parser.parse_args()


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        say("stopped; without --seed and --fresh, the campaign goes on after its last whole bout")
        sys.exit(130)
