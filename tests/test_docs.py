"""What docs/ shows is what happens: every block of code runs and does what is written under it.

How a document marks what is run and what comes of it: reader.py.
"""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import reader
from reader import Block

ROOT = Path(__file__).resolve().parent.parent
MADE = {"benchmarks.md"}  # by `make bench`
CHAPTERS = sorted(path for path in ROOT.glob("docs/*.md") if path.name not in MADE)
BLOCKS = [
    pytest.param(chapter, block, id=f"{chapter.name}:{block.line}")
    for chapter in CHAPTERS
    for block in reader.blocks(chapter)
    if block.kind in reader.CODE
]
LINKS = re.compile(r"(?<!!)\[[^]]*\]\(([^)\s]+)\)")


@functools.cache
def read(chapter: Path) -> dict[str, dict[str, str]]:
    """What came of each block of a chapter, by the line of its fence."""
    variables = {name: text for name, text in os.environ.items() if not name.startswith("DSM_")}
    variables |= {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    with TemporaryDirectory() as folder:
        (Path(folder) / "examples").symlink_to(ROOT / "examples")
        done = subprocess.run(
            [sys.executable, str(ROOT / "tests/reader.py"), str(chapter), "outcome.json"],
            cwd=folder,
            env=variables,
            capture_output=True,
            text=True,
            timeout=170,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads((Path(folder) / "outcome.json").read_text())


def agrees(kind: str, shown: str, real: str) -> bool:
    """Whether a document's words for an outcome are true."""
    if kind == "pytb":  # lines may be broken anywhere
        shown, real = " ".join(shown.split()), " ".join(real.split())
    else:
        shown, real = ("\n".join(map(str.rstrip, t.splitlines())).strip() for t in (shown, real))
    return re.fullmatch(re.escape(shown).replace(r"\.\.\.", ".*"), real, re.DOTALL) is not None


@pytest.mark.parametrize(("chapter", "block"), BLOCKS)
def test_a_block_does_what_is_written_under_it(chapter: Path, block: Block) -> None:
    if "import numba" in block.text:
        pytest.importorskip("numba")  # it comes to a new Python later than we do
    real = read(chapter)[str(block.line)]
    shown = {"text": "", "pytb": ""}
    if block.outcome is not None:
        shown[block.outcome.kind] = block.outcome.text
    for kind, text in shown.items():
        assert agrees(kind, text, real[kind]), (
            f"{chapter.name}:{block.line} shows\n{text}\nand what comes is\n{real[kind]}"
        )


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.name)
def test_links_lead_somewhere(chapter: Path) -> None:
    for link in LINKS.findall(chapter.read_text()):
        path, _, anchor = link.partition("#")
        if not path.startswith("https://"):
            target = (chapter.parent / path).resolve() if path else chapter
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def anchors(document: Path) -> set[str]:
    """The names that GitHub gives to the headings of a document."""
    headings = re.findall(r"^#+ +(.*)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def test_every_chapter_is_in_the_index() -> None:
    index = (ROOT / "docs/README.md").read_text()
    for path in ROOT.glob("docs/*.md"):
        assert path.name == "README.md" or f"({path.name})" in index, path.name


def test_an_outcome_that_is_not_so_is_noticed() -> None:
    assert agrees("text", "1 2\n", "1 2\n")
    assert agrees("text", "pid ...\n", "pid 17\n")
    assert not agrees("text", "", "1\n")
    assert not agrees("text", "1 2", "1\n2")
    assert agrees("pytb", "ValueError: a\nlong tale", "ValueError: a long\ntale\n")
    assert not agrees("pytb", "ValueError: a", "ValueError: b")
