"""``python -m dsmfor doctor``: examine the machine. Exits with 0 if dsmfor will work, else 1."""

from __future__ import annotations

import argparse
import shutil
import sys

from dsmfor import doctor

__all__ = ["main"]


def main(words: list[str] | None = None) -> int:
    """Do what the command line says.

    Parameters
    ----------
    words : list of str, optional
        The words after ``python -m dsmfor``; by default those of this program.

    Returns
    -------
    int
        The exit code.
    """
    parser = argparse.ArgumentParser("python -m dsmfor", description="Parallel loops over arrays.")
    commands = parser.add_subparsers(title="commands", required=True)
    command = commands.add_parser(
        "doctor",
        help="examine this machine: will dsmfor work, and what should be changed",
        description="Look at kernel, memory, limits, cores and libraries, run a region of two "
        "workers, kill one, and say what was found. Exits with 0 if dsmfor will work, else with 1.",
    )
    command.add_argument("--json", action="store_true", help="for machines, instead of a table")
    command.add_argument(
        "--no-trial", action="store_true", help="only look: start no process, kill none"
    )
    chosen = parser.parse_args(words)
    findings = doctor.examine(doctor.Machine())
    if not chosen.no_trial and doctor.sound(findings):
        findings += doctor.trial()
    width = min(shutil.get_terminal_size((100, 24)).columns, 120)
    shown = doctor.as_json(findings) if chosen.json else doctor.as_table(findings, width)
    sys.stdout.write(shown + "\n")
    return 0 if doctor.sound(findings) else 1


if __name__ == "__main__":
    sys.exit(main())
