"""The programs of examples/pydsm run on dsmfor, and on py-dsm itself but for one import."""

from __future__ import annotations

import fcntl
import functools
import importlib.util
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "examples" / "pydsm"
PROGRAMS = sorted(FOLDER.glob("*.py"))
OURS, THEIRS = "from dsmfor import pydsm\n", "import pydsm\n"
SMALL = {
    "vec_add": ["--size", "1000"],
    "primes": ["--limit", "2_000_000"],
    "matmul": ["--size", "60"],
    "pairwise_distances": ["--size", "60"],
}
SHM = Path("/dev/shm")
LEFT = ("numThread2048", "sense2048", "counter2048", "spInd2048", "next base", "found", *"ABCDY")
SECONDS = re.compile(r": \d+\.\d+ s$", re.MULTILINE)
KNOWN = {
    "vec_add": "process 1 sees [ 1  3  5  7  9 11 13 15 17 19]\n"
    "vec_add, 10 elements, sum 100\nvec_add, 1,000 elements, sum 1,000,000\n",
    "primes": "primes, 148,933 below 2,000,000\n",
}


@functools.cache
def output(program: Path, processes: int) -> str:
    """What a program prints, without its seconds; it must end well and leave no files."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, str(program), *SMALL[program.stem], "--processes", str(processes)],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, ""), f"{done.stdout}\n{done.stderr}"
        assert list(Path(folder).iterdir()) == []
    text, found = SECONDS.subn("", done.stdout)
    assert found, done.stdout
    return text


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_a_program_computes_the_same_with_any_number_of_processes(program: Path) -> None:
    text = output(program, 3)
    assert text == KNOWN.get(program.stem, text)
    alone = output(program, 1)
    assert alone == "".join(line for line in text.splitlines(True) if "process 1" not in line)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_a_program_prints_the_same_on_py_dsm_with_another_import(
    program: Path, tmp_path: Path
) -> None:
    if importlib.util.find_spec("pydsm") is None:
        pytest.skip("py-dsm is not installed: it comes with the extra 'bench'")
    source = program.read_text()
    assert source.count("pydsm\n") == source.count(OURS) == 1
    theirs = tmp_path / program.name
    theirs.write_text(source.replace(OURS, THEIRS))
    # Its names are those of the machine: one program at a time, in this and other test runs.
    with open(Path(tempfile.gettempdir()) / "dsmfor-tests-pydsm.lock", "w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        if (SHM / LEFT[0]).exists():  # a run was killed, and would stop every later one
            for name in LEFT:
                (SHM / name).unlink(missing_ok=True)
        assert output(theirs, 3) == output(program, 3)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_a_program_has_a_twin_and_a_line_in_the_table(program: Path) -> None:
    assert (FOLDER.parent / program.name).exists()
    assert f"| [{program.name}]({program.name}) |" in (FOLDER / "README.md").read_text()
    assert len(program.read_text().splitlines()) <= 60
