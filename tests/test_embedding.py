"""The package in examples/embedding: what it was, what it became, and what docs/ say of it."""

from __future__ import annotations

import filecmp
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import reader

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "examples/embedding"
BEFORE, AFTER = HERE / "before", HERE / "after"
CHANGED = ["anneal/plate.py", "anneal/kernels.py"]  # in the order of the document


def run(*arguments: str | Path, cwd: Path, **variables: str) -> str:
    """What Python prints on stdout; it must end well and say nothing on stderr."""
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    settings = {"PYTHONPATH": os.pathsep.join(path), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **settings, **variables},
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), f"{done.stdout}\n{done.stderr}"
    return done.stdout


def sources(version: Path) -> list[str]:
    return sorted(str(path.relative_to(version)) for path in version.rglob("*.py"))


@pytest.mark.parametrize(
    ("version", "variables"),
    [
        (BEFORE, {}),
        (AFTER, {"DSM_WORKERS": "1"}),
        (AFTER, {"DSM_WORKERS": "2"}),
        (AFTER, {"DSM_WORKERS": "3"}),
        (AFTER, {"DSM_ENGINE": "serial"}),
    ],
    ids=["before", "one", "two", "three", "serial"],
)
def test_the_packages_own_tests_pass(version: Path, variables: dict[str, str]) -> None:
    # Its own settings, not ours: no configuration, warnings are errors all the same.
    ours = ["-c", os.devnull, "--rootdir", ".", "-p", "no:cacheprovider", "-W", "error"]
    printed = run("-m", "pytest", *ours, "-q", "tests", cwd=version, **variables)
    assert re.search(r"^\d+ passed", printed, re.MULTILINE)


def test_before_is_as_its_authors_had_it() -> None:
    for name in sources(BEFORE):
        assert not re.search("dsm|parallel|worker", (BEFORE / name).read_text()), name


def test_only_what_the_documents_show_was_changed() -> None:
    assert sources(BEFORE) == sources(AFTER)
    different = filecmp.cmpfiles(BEFORE, AFTER, sources(BEFORE), shallow=False)[1]
    assert sorted(different) == sorted(CHANGED)


def test_the_documents_show_the_real_difference() -> None:
    shown = [b.text for b in reader.blocks(ROOT / "docs/embedding.md") if b.kind == "diff"]
    assert shown == [difference(name) for name in CHANGED]


def difference(name: str) -> str:
    """What ``diff -u`` says of a file, without the times."""
    labels = [f"--label={version}/{name}" for version in ("before", "after")]
    done = subprocess.run(
        ["diff", "-u", *labels, BEFORE / name, AFTER / name],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    return done.stdout


@pytest.mark.parametrize("workers", ["1", "3"])
def test_both_compute_the_same_bits(workers: str, tmp_path: Path) -> None:
    small = ["--size=37", "--pulses=20", "--steps=60"]
    printed = run(HERE / "compare.py", *small, f"--workers={workers}", cwd=tmp_path)
    assert printed.splitlines()[-1].endswith("largest difference 0.0 K")
