"""Python programs of their own for tests: what is done to them, or they do, ends them.

A program tells facts, one JSON object a line; the test hears them in order, and may do something
to it, or to its terminal, between two of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

PROMPT = 2.0  # seconds that something may take after its cause
DEADLINE = 30.0  # seconds after which a test gives up waiting for what should come at once

PRELUDE = """\
import ctypes, gc, json, os, signal, subprocess, sys, threading, time, warnings
import numpy as np
import dsmfor as dsm
from dsmfor.engines import process

warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup, if the tests run under it, ignores it

def tell(**facts):
    print(json.dumps(facts), flush=True)

def when(condition, **facts):
    def watch():
        while not condition():
            time.sleep(0.001)
        tell(**facts)
    threading.Thread(target=watch, daemon=True).start()

def children(pid):
    return set(map(int, open(f"/proc/{pid}/task/{pid}/children").read().split()))

def settled(seconds=5.0):
    \"\"\"Whether our processes are the team alone, once those that end have ended.\"\"\"
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ours = set()
        for pid in children(os.getpid()):
            ours |= {pid} | children(pid)
        if ours == process.team_pids():
            return True
        process.housekeep()
    return False

@dsm.parallel(workers=2)
def roll_call():
    dsm.barrier()
    return dsm.rank()
"""

SHELL = """\
import os, signal, sys
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
pid = os.fork()
if pid == 0:
    os.setpgid(0, 0)
    os.tcsetpgrp(0, os.getpid())
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    os.execv(sys.argv[2], sys.argv[2:])
while True:
    _, status = os.waitpid(pid, os.WUNTRACED)
    if not os.WIFSTOPPED(status):
        sys.exit(0)
    os.tcsetpgrp(0, os.getpgrp())
    os.read(int(sys.argv[1]), 1)
    os.tcsetpgrp(0, pid)
    os.killpg(pid, signal.SIGCONT)
"""


class Program:
    """A Python program in a process of its own, that tells facts line by line.

    Parameters
    ----------
    body : str
        What follows `PRELUDE`.
    *words : str
        Its ``sys.argv[1:]``.
    terminal : bool
        Run it as a shell runs a job: in the foreground of a terminal of its own.
    """

    def __init__(self, body: str, *words: str, terminal: bool = False) -> None:
        command = [sys.executable, "-c", PRELUDE + textwrap.dedent(body), *words]
        self.terminal = self._foreground = -1
        if terminal:
            self.terminal, slave = pty.openpty()
            wake, self._foreground = os.pipe()
            shell = [sys.executable, "-I", "-S", "-c", SHELL, str(wake)]
            # The one who opens a terminal first, in a new session, has it for controlling terminal.
            self.process = subprocess.Popen(
                shell + command,
                stdin=slave,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
                pass_fds=[wake],
                preexec_fn=lambda: os.close(os.open(os.ttyname(0), os.O_RDWR)),  # noqa: PLW1509
            )
            os.close(slave)
            os.close(wake)
        else:
            self.process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        self.lines = iter(self.process.stdout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(IndexError, OSError):
            os.kill(self.pid, signal.SIGKILL)
        self.process.kill()
        self.process.communicate()
        self.hang_up()

    @property
    def pid(self) -> int:
        """Of the program, which is not the shell's."""
        shell = self.process.pid
        return shell if self._foreground < 0 else children(shell)[0]

    def hear(self) -> dict[str, Any]:
        """The next facts."""
        for line in self.lines:
            return json.loads(line)
        raise EOFError(f"the program ended: {self.process.stderr.read()}")

    def send(self, signum: int) -> None:
        """Signal the program alone."""
        os.kill(self.pid, signum)

    def press(self, key: str) -> None:
        """Type Ctrl and a key at the terminal."""
        os.write(self.terminal, bytes([ord(key) & 0x1F]))

    def foreground(self) -> None:
        """``fg`` in the shell."""
        os.write(self._foreground, b"f")

    def hang_up(self) -> None:
        """Close the terminal."""
        terminal, self.terminal = self.terminal, -1
        foreground, self._foreground = self._foreground, -1
        for fd in (terminal, foreground):
            if fd >= 0:
                os.close(fd)

    def end(self) -> str:
        """Wait for its end; what it wrote to stderr."""
        _, errors = self.process.communicate(timeout=DEADLINE)
        return errors


def children(pid: int) -> list[int]:
    """Processes that a process has started."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def until(condition: Callable[[], object]) -> None:
    """Look until it is so."""
    end = time.monotonic() + DEADLINE
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("what the test waits for did not come")
        time.sleep(0.001)


@contextmanager
def prompt(seconds: float = PROMPT) -> Iterator[None]:
    """The body takes no longer than `seconds`."""
    began = time.monotonic()
    yield
    took = time.monotonic() - began
    assert took < seconds, f"took {took:.2f} s"
