"""Other programs, for tests of what several of them see: they answer what they are asked.

Starting an interpreter costs more than most tests, so one program serves for many of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

PACKAGE = Path(__file__).resolve().parent.parent

_SERVER = """
import json, os, sys
import numpy as np
names = {"np": np, "os": os, "sys": sys}
exec(sys.argv[1], names)
for line in sys.stdin:
    code = json.loads(line)
    try:
        try:
            answer = ["value", eval(code, names)]
        except SyntaxError:
            exec(code, names)
            answer = ["value", None]
    except Exception as error:
        answer = ["error", type(error).__name__, str(error)]
    print(json.dumps(answer), flush=True)
"""


class Refused(Exception):
    """What the other program was asked has raised there: the name of the exception, its text."""


class Program:
    """A Python program of its own that runs what it is told and tells what comes of it.

    Parameters
    ----------
    beginning : str
        What it runs first.
    variables : dict of str to str, optional
        Of its environment, besides ours.
    """

    def __init__(
        self, beginning: str, variables: dict[str, str] | None = None, **options: Any
    ) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _SERVER, beginning],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "PYTHONPATH": str(PACKAGE),
                "OPENBLAS_NUM_THREADS": "1",
                **(variables or {}),
            },
            **options,
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def tell(self, code: str) -> None:
        """Have it run something; `hear` tells what came of it."""
        print(json.dumps(code), file=self.process.stdin, flush=True)

    def hear(self) -> Any:
        """The value of what it was told, or `Refused`."""
        line = self.process.stdout.readline()
        assert line, f"the program ended: {self.process.stderr.read()}"
        kind, *rest = json.loads(line)
        if kind == "error":
            raise Refused(*rest)
        return rest[0]

    def ask(self, code: str) -> Any:
        """`tell`, and `hear`."""
        self.tell(code)
        return self.hear()

    def end(self, timeout: float = 20.0) -> str:
        """Wait until it has ended by itself; what it wrote to stderr."""
        return self.process.communicate(timeout=timeout)[1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for end in (self.process.stdin, self.process.stdout, self.process.stderr):
            with contextlib.suppress(BrokenPipeError):
                end.close()
