"""What we show runs: the programs in examples/, and every example in a docstring or a document."""

from __future__ import annotations

import doctest
import importlib
import os
import pkgutil
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import dsmfor as dsm

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
SMALL = {
    "vec_add": ["--size", "1000"],
    "matmul": ["--size", "100"],
    "primes": ["--limit", "3_000_000"],
    "pairwise_distances": ["--size", "60"],
    "mandelbrot": ["--width", "60"],
}
TIMES = re.compile(r"serial \d+\.\d+ s, parallel \d+\.\d+ s, speed-up \d+\.\d")


def run(example: Path, *arguments: str, cwd: Path) -> list[str]:
    """Lines that an example prints; it must end well and say nothing on stderr."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(example), *arguments],
        cwd=cwd,
        env={**os.environ, "MPLCONFIGDIR": str(cwd)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), f"{done.stdout}\n{done.stderr}"
    return done.stdout.splitlines()


@pytest.mark.parametrize("workers", ["1", "3"])
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_checks_its_result_and_tells_its_times(
    example: Path, workers: str, tmp_path: Path
) -> None:
    *_, last = run(example, *SMALL[example.stem], "--workers", workers, cwd=tmp_path)
    assert last.startswith(example.stem)
    assert TIMES.search(last)


def test_the_vectors_of_the_seed_are_added(tmp_path: Path) -> None:
    lines = run(ROOT / "examples/vec_add.py", "--size", "1000", "--workers", "4", cwd=tmp_path)
    assert lines[0] == "vec_add: the last worker sees [ 1  3  5  7  9 11 13 15 17 19]"


def test_the_picture_is_left_where_it_was_asked_for(tmp_path: Path) -> None:
    picture = tmp_path / "deep" / "picture.png"
    run(ROOT / "examples/mandelbrot.py", "--width", "30", "--out", str(picture), cwd=tmp_path)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_live_run_is_watched_and_steered_by_a_program_without_dsmfor(tmp_path: Path) -> None:
    watch = ROOT / "examples/live/watch.py"
    assert "dsmfor" not in re.sub(r'"""[^"]*"""', "", watch.read_text())
    name = f"heat-{os.urandom(4).hex()}"
    live = subprocess.Popen(
        [
            *(sys.executable, ROOT / "examples/live/run.py", "--size", "50"),
            *("--steps", "1_000_000_000", "--workers", "2", "--name", name),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while not Path(f"/dev/shm/{name}-panel").exists():
            assert live.poll() is None
            time.sleep(0.001)
        arguments = ["--looks", "2", "--pause", "0", "--heat", "80", "--name", name]
        lines = run(watch, *arguments, cwd=tmp_path)
        out, err = live.communicate(timeout=60)
    finally:
        live.kill()
        live.communicate()
    assert (live.returncode, err) == (0, "")
    assert re.fullmatch(r"run: [\d,]+ steps, .* degrees; it was told to stop\n", out)
    heads = [line for line in lines if not line.startswith("    ")]
    assert len(heads) == 2
    assert len(lines) == 2 * 9
    assert all(line.endswith("the edge at 80 degrees") for line in heads)
    assert not Path(f"/dev/shm/{name}-plate").exists()


@pytest.mark.parametrize(
    "example", [*EXAMPLES, *ROOT.glob("examples/live/*.py")], ids=lambda path: path.stem
)
def test_an_example_is_read_in_one_go(example: Path) -> None:
    assert len(example.read_text().splitlines()) <= 60


def modules() -> list[str]:
    """All Python modules of the package; the native ones are explained by their callers."""
    found = pkgutil.walk_packages(dsm.__path__, "dsmfor.")
    return [
        "dsmfor",
        *(m.name for m in found if "_native" not in m.name and "__main__" not in m.name),
    ]


@pytest.mark.parametrize("name", modules())
def test_the_examples_in_docstrings_hold(name: str) -> None:
    # `__main__`, since that is where a reader's own kernels live.
    names = {"np": np, "dsm": dsm, "__name__": "__main__"}
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for test in doctest.DocTestFinder().find(importlib.import_module(name), extraglobs=names):
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_the_examples_in_documents_hold(document: Path) -> None:
    names = {"np": np, "dsm": dsm, "__name__": "__main__"}
    result = doctest.testfile(
        str(document), module_relative=False, globs=names, optionflags=doctest.ELLIPSIS
    )
    assert result.failed == 0
