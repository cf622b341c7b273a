"""A contender in a process of its own, asked over a pipe.

Every contender lives in its lane for as long as a row is measured, with its
workers warm, and works only while it is asked; so rounds of all contenders
alternate within the same seconds, none can disturb another, and one that
hangs, exits or leaves processes behind is named, ended and left out.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks import processes

PATIENCE = 60.0
"""Seconds after which a contender that has not answered has failed."""

FOLDER = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Peer:
    """What a lane runs.

    Parameters
    ----------
    distribution : str
        The name by which it is installed, and its version found; empty for the standard library.
    debris : tuple of str
        Files that it leaves when it is killed, and that would break its next start.
    """

    distribution: str = ""
    debris: tuple[str, ...] = ()


SEED_NAMES = (
    "numThread2048",
    "sense2048",
    "counter2048",
    "spInd2048",
    "next base",
    "found",
    *"ABCDY",
)
"""What py-dsm calls its shared memory in the programs of examples/pydsm, and besides."""

PEERS = {
    "dsmfor": Peer("dsmfor"),
    "openmp": Peer(),
    "pool": Peer(),
    "futures": Peer(),
    "joblib": Peer("joblib"),
    "mpire": Peer("mpire"),
    "pymp": Peer("pymp-pypi"),
    "pydsm": Peer(
        "py-dsm",
        ("/dev/shm/numThread2048", "/dev/shm/sense2048", "/dev/shm/counter2048"),
    ),
    "seed_ours": Peer(),
    "seed_native": Peer(),
    "seed_theirs": Peer("", tuple(f"/dev/shm/{name}" for name in SEED_NAMES)),
    "numba": Peer("numba"),
    "primitives": Peer(),
    "onecore": Peer(),
    "fresh": Peer(),
}


class LaneMissing(Exception):
    """What the lane needs is not installed."""


class LaneFailed(Exception):
    """The lane answered with an error; or it is `dead`: it has ended, or did not answer."""

    def __init__(self, reason: str, dead: bool = False) -> None:
        super().__init__(reason)
        self.dead = dead


class Lane:
    """One contender's process, started at once.

    Parameters
    ----------
    name : str
        A key of `PEERS`.
    directory : Path
        Where its log and its temporary files go; removed by the owner of the run.

    Raises
    ------
    LaneMissing
        If it needs something that is not installed.
    LaneFailed
        If it does not start.
    """

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.mark = uuid.uuid4().hex
        home = directory / self.mark
        home.mkdir()
        self._log = home / "log"
        command = (
            [str(openmp_program(directory))]
            if name == "openmp"
            else [sys.executable, "-m", "benchmarks.host", name]
        )
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=home,
                env={**environment(directory), processes.MARK: self.mark},
                start_new_session=True,
            )
        self._pending = b""
        try:
            self._answer(PATIENCE)
        except BaseException:
            self.close()
            raise

    def ask(self, measure: str, *arguments: float | str, patience: float = PATIENCE) -> float:
        """The number that the lane measures when asked for `measure`."""
        assert self._process.stdin is not None
        question = " ".join([measure, *map(str, arguments)]) + "\n"
        try:
            self._process.stdin.write(question.encode())
            self._process.stdin.flush()
        except BrokenPipeError:
            raise LaneFailed(self._last_words(), dead=True) from None
        return self._answer(patience)

    def family(self) -> set[int]:
        """All processes of the lane."""
        return processes.family(self.mark)

    def close(self, grace: float = 10.0) -> str:
        """End the lane within `grace` seconds.

        Returns a complaint if processes had to be killed, else an empty string.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        deadline = time.monotonic() + grace
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(grace)
        while (left := self.family()) and time.monotonic() < deadline:
            time.sleep(0.02)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        self._process.stdout.close()
        if not left:
            return ""
        for path in PEERS[self.name].debris:
            Path(path).unlink(missing_ok=True)
        return f"{len(left)} process(es) of {self.name} had to be killed {grace:g} s after its end"

    def _answer(self, patience: float) -> float:
        kind, _, rest = self._line(patience).partition(" ")
        if kind == "missing":
            raise LaneMissing(rest)
        if kind != "ok":
            raise LaneFailed(rest or kind)
        return float(rest)

    def _line(self, patience: float) -> str:
        assert self._process.stdout is not None
        deadline = time.monotonic() + patience
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._pending:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise LaneFailed(f"no answer within {patience:g} s", dead=True)
                received = os.read(self._process.stdout.fileno(), 65536)
                if not received:
                    raise LaneFailed(self._last_words(), dead=True)
                self._pending += received
        line, _, self._pending = self._pending.partition(b"\n")
        return line.decode()

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").split("\n")
        return "it ended: " + next((line for line in reversed(lines) if line.strip()), "no reason")


def environment(directory: Path) -> Mapping[str, str]:
    """The environment of every lane.

    OpenBLAS chooses its own kernels, OpenMP does not spin, modules are compiled once, and the
    package that is measured is the one that this process would import.
    """
    chosen = {
        name: value
        for name, value in os.environ.items()
        if name not in {"OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "PYTHONDONTWRITEBYTECODE"}
    }
    paths = [str(FOLDER.parent)]
    measured = importlib.util.find_spec("dsmfor")
    if measured is not None and measured.origin is not None:
        paths.append(str(Path(measured.origin).parents[1]))
    return chosen | {
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_WAIT_POLICY": "passive",
        "OMP_NUM_THREADS": "2",
        "NUMBA_NUM_THREADS": "2",
        "NUMBA_CACHE_DIR": str(directory),
    }


def openmp_program(directory: Path) -> Path:
    """The C program, compiled at its first use."""
    program = directory / "openmp"
    if program.exists():
        return program
    compiler = shutil.which("gcc")
    if compiler is None:
        raise LaneMissing("gcc")
    compiled = subprocess.run(
        [
            *(compiler, "-O3", "-march=native", "-fopenmp"),
            *(str(FOLDER / "peers" / "openmp.c"), "-o", str(program)),
        ],
        capture_output=True,
        text=True,
    )
    if compiled.returncode:
        raise LaneFailed("gcc: " + compiled.stderr.strip().replace("\n", " "))
    return program
