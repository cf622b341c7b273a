"""The notebook runs from top to bottom, and what it shows is what comes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
TOUR = ROOT / "examples/notebooks/tour.ipynb"


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The notebook as it is after nbclient has run it in a kernel of its own."""
    folder = tmp_path_factory.mktemp("notebook")
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/notebook.py"), str(TOUR), "out.ipynb"],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path),
            "IPYTHONDIR": str(folder / "ipython"),
            "MPLCONFIGDIR": str(folder / "matplotlib"),
            "JUPYTER_RUNTIME_DIR": str(folder / "jupyter"),
        },
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return nbformat.read(folder / "out.ipynb", as_version=4)


def shown(cell: Any) -> list[str]:
    """The texts under a cell; those of one stream as one."""
    texts: list[str] = []
    last = None
    for output in cell.outputs:
        name = output.get("name", output.output_type)
        text = output.text if "text" in output else output.data["text/plain"]
        if name == last == "stdout":
            texts[-1] += text
        else:
            texts.append(text)
        last = name
    return texts


def test_the_notebook_shows_what_comes(executed: Any) -> None:
    stored = nbformat.read(TOUR, as_version=4)
    for old, new in zip(stored.cells, executed.cells, strict=True):
        if old.cell_type != "code":
            continue
        tags = old.metadata.get("tags", [])
        before, after = shown(old), shown(new)
        if "varies" in tags:
            before, after = (
                [re.sub(r"[ \d.]+", " ", t) for t in texts] for texts in (before, after)
            )
        if "any-order" in tags:
            before, after = (
                ["\n".join(sorted(t.splitlines())) for t in x] for x in (before, after)
            )
        assert before == after, old.source
        assert not any(output.get("name") == "stderr" for output in new.outputs), old.source


def test_the_notebook_is_small() -> None:
    assert TOUR.stat().st_size < 60_000
