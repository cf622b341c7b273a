"""Reads a document as its reader would: runs the code in it, block by block, and tells what came.

    python tests/reader.py docs/calls.md outcome.json

Run in an empty folder, since documents may write files. What a fence says decides what is done:

- ``python`` is run in `__main__`, in one namespace for the whole document, as ``example.py``; so a
  line number in a message counts from the top of its block;
- ``python name.py`` is saved as that file;
- ``sh`` is run by the shell;
- ``text`` right after one of these is all that it prints, on stdout and stderr; a block without it
  prints nothing;
- ``pytb`` right after it is how the traceback ends that it raises: the exception and its notes.
  Lines may be broken anywhere.
- ``diff`` is what `diff` says of two files of examples/: see test_embedding.py.

In ``text`` and ``pytb``, ``...`` stands for anything.
"""

from __future__ import annotations

import contextlib
import io
import json
import linecache
import re
import subprocess
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

CODE, OUTCOMES, QUOTES = ("python", "sh"), ("text", "pytb"), ("diff",)
FENCE = re.compile(r"^```(\S*)[ ]*(.*)\n((?:.*\n)*?)```$", re.MULTILINE)


@dataclass
class Block:
    """A fenced block: where it stands, what its fence says, what is in it."""

    line: int  # of the fence, from 1
    kind: str
    name: str  # of the file that it is, or empty
    text: str
    outcome: Block | None = None  # what the document says comes of it


def blocks(document: Path) -> list[Block]:
    """The blocks of a document; what is an outcome hangs on the block that it belongs to."""
    source = document.read_text()
    found: list[Block] = []
    end = 0
    for match in FENCE.finditer(source):
        kind, name, text = match.groups()
        block = Block(source.count("\n", 0, match.start()) + 1, kind, name, text)
        if kind in OUTCOMES:
            assert found, f"{document.name}:{block.line}: an outcome of nothing"
            code, between = found[-1], source[end : match.start()]
            assert code.kind in CODE, f"{document.name}:{block.line}: an outcome of no code"
            assert not between.strip(), f"{document.name}:{block.line}: not right after its code"
            assert code.outcome is None, f"{document.name}:{block.line}: a second outcome"
            code.outcome = block
        else:
            assert kind in CODE + QUOTES, f"{document.name}:{block.line}: nobody runs {kind!r}"
            found.append(block)
        end = match.end()
    assert source.count("\n```") % 2 == 0, f"{document.name}: a fence is not closed"
    return found


def run(block: Block, names: dict[str, object]) -> dict[str, str]:
    """What a block prints, and how the traceback ends if it raises."""
    if block.kind == "sh":
        done = subprocess.run(
            ["sh", "-e", "-c", block.text], capture_output=True, text=True, check=False
        )
        failed = f"exit status {done.returncode}" if done.returncode else ""
        return {"text": done.stdout + done.stderr, "pytb": failed}
    if block.name:
        Path(block.name).write_text(block.text)
        return {"text": "", "pytb": ""}
    Path("example.py").write_text(block.text)
    linecache.checkcache()
    printed, error = io.StringIO(), ""
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            exec(compile(block.text, "example.py", "exec"), names)
        except BaseException as raised:
            error = "".join(traceback.format_exception_only(raised))
    return {"text": printed.getvalue(), "pytb": error}


if __name__ == "__main__":
    sys.modules["__main__"] = ModuleType("__main__")
    sys.path[0] = ""  # the empty folder, not that of this file
    results = {
        block.line: run(block, vars(sys.modules["__main__"]))
        for block in blocks(Path(sys.argv[1]))
        if block.kind in CODE
    }
    Path(sys.argv[2]).write_text(json.dumps(results))
