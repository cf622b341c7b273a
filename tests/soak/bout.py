"""One bout: a caller under fire from outside, watched until nothing of it is left.

A bout is known by its seed and its number: they choose the caller's settings, its acts, the faults
and its end. Moments are the machine's, so the same bout again makes the same faults at nearly the
same times.

What is asserted: every act of the caller was right or ended by the error of a fault that was
really made; every death that it was told of is one of a process that was killed; no call took long,
unless a worker had been stopped for good; the caller holds no more at its end than after its first
half second; it ended as it was told, with nothing on stderr; no process, no name in /dev/shm
outlives it.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CALLER = Path(__file__).with_name("caller.py")
PATIENCE = 30.0  # seconds that the last process may take to be gone
SLOW = 10.0  # seconds of a call that waits for nobody; wardens may be killed as they start
HANG = 90.0  # seconds after its time that a caller may take to come to its end
GROWTH = {
    "descriptors": 0,
    "shared mappings": 0,
    "children": 0,
    "threads": 0,
    "mappings": 40,
    "resident KiB": 32 * 1024,
}
SETTINGS = ["timer", "matmul", "SIGCHLD ignored", "short-lived thread"]
DEADLY = [signal.SIGKILL, signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT]
FAULTS = {
    "worker killed": 60,
    "two workers killed": 10,
    "all workers killed": 4,
    "warden killed": 4,
    "worker stopped, goes on": 10,
    "worker stopped for good": 1,
    "warden stopped, goes on": 4,
    "caller stopped, goes on": 4,
    "Ctrl-C": 12,
}
ENDINGS = {
    "return": 4,
    "error": 1,
    "os._exit": 2,
    "exec": 1,
    "SIGTERM": 1,
    "SIGHUP": 1,
    "SIGKILL": 2,
    "SIGKILL in a region": 4,
    "SIGKILL of its group": 2,
    "SIGTERM in a region": 2,
}


STUCK = ", stuck"  # of figures of bouts in which a call waits for its timeout


class Finding(Exception):
    """A promise was broken; the text says which, and how to make it happen again."""


@dataclass
class Figures:
    """What bouts have survived."""

    faults: Counter[str] = field(default_factory=Counter)
    acts: Counter[str] = field(default_factory=Counter)
    slowest: dict[str, float] = field(default_factory=dict)

    def longest(self, what: str, seconds: float) -> None:
        self.slowest[what] = max(self.slowest.get(what, 0.0), seconds)

    def add(self, other: Figures) -> None:
        self.faults += other.faults
        self.acts += other.acts
        for what, seconds in other.slowest.items():
            self.longest(what, seconds)


class Bout:
    """A caller, who shoots at it, and what is seen."""

    def __init__(self, seed: int, number: int, seconds: float | None = None) -> None:
        self.rng = random.Random(seed * 1_000_003 + number)
        self.seconds = seconds or self.rng.choice([3.0, 3.0, 6.0, 6.0, 12.0, 24.0])
        self.threads = self.rng.choice([1, 1, 2, 3])
        self.settings = [one for one in SETTINGS if self.rng.random() < 0.25]
        self.ending = self.pick(ENDINGS)
        self.haste = self.rng.choice([0.02, 0.1, 0.3])  # seconds between faults, about
        self.choice = {one: w for one, w in FAULTS.items() if self.rng.random() < 0.6}
        self.caller_seed = self.rng.randrange(1 << 32)
        self.mark = f"DSMFOR_SOAK_BOUT={uuid.uuid4()}"
        self.figures = Figures()
        self.killed: dict[int, float] = {}
        self.warden_killed = False
        self.stopped_for_good = False
        self.ready = threading.Event()
        self.over = threading.Event()
        self.heard: dict[str, Any] = {}
        self.told: list[dict[str, Any]] = []

    def pick(self, weights: dict[str, int]) -> str:
        return self.rng.choices(list(weights), list(weights.values()))[0]

    def __str__(self) -> str:
        faults = ", ".join(self.choice) or "no faults"
        settings = f" ({', '.join(self.settings)})" if self.settings else ""
        return (
            f"{self.seconds:g} s, {self.threads} threads{settings}; {faults} "
            f"about every {self.haste:g} s; ends by {self.ending}"
        )

    def run(self) -> Figures:
        """The whole bout; raises `Finding`."""
        names = set(os.listdir("/dev/shm"))
        name, _, value = self.mark.partition("=")
        command = [sys.executable, str(CALLER), "--seed", str(self.caller_seed)]
        command += ["--seconds", str(self.seconds), "--threads", str(self.threads)]
        command += ["--end", self.ending if not self.ending.startswith("SIG") else "signal"]
        for setting in self.settings:
            command += ["--setting", setting]
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, name: value},
            start_new_session=True,
        ) as caller:
            try:
                self.watch(caller)
            finally:
                self.over.set()
                if caller.poll() is None:
                    caller.kill()
        self.nothing_left(names)
        self.judge_deaths()
        return self.figures

    def watch(self, caller: subprocess.Popen[str]) -> None:
        """From the start of the caller to its end."""
        words: list[str] = []
        listener = threading.Thread(target=self.listen, args=(caller.stdout,), daemon=True)
        complaints = threading.Thread(target=lambda: words.extend(caller.stderr), daemon=True)
        listener.start()
        complaints.start()
        deadline = time.monotonic() + HANG
        while not self.ready.wait(0.02) and caller.poll() is None:
            if time.monotonic() > deadline:
                raise Finding("the caller did not become ready" + self.complaint(caller, words))
        shooter = threading.Thread(target=self.shoot, args=(caller.pid,), daemon=True)
        shooter.start()
        self.finish(caller, words)
        self.over.set()
        shooter.join()
        complaints.join()
        listener.join()
        self.judge_end(caller, "".join(words))

    def finish(self, caller: subprocess.Popen[str], words: list[str]) -> None:
        """Wait for the caller's end, or make it."""
        if self.ending.endswith(" in a region"):
            time.sleep(self.rng.random() * self.seconds)
        else:
            deadline = time.monotonic() + self.seconds + HANG
            while "settling" not in self.heard and caller.poll() is None:
                if time.monotonic() > deadline:
                    raise Finding("the caller hangs" + self.complaint(caller, words))
                time.sleep(0.01)
            self.over.set()
            if self.ending.startswith("SIG"):
                while "waiting" not in self.heard and caller.poll() is None:
                    if time.monotonic() > deadline:
                        raise Finding("the caller hangs at its end")
                    time.sleep(0.01)
        if self.ending.startswith("SIG"):
            signum = signal.Signals[self.ending.split()[0]]
            if self.ending.endswith("group"):
                os.killpg(caller.pid, signum)
            else:
                caller.send_signal(signum)
            self.figures.faults[f"caller: {self.ending}"] += 1
        else:
            self.figures.faults[f"caller: ends by {self.ending}"] += 1
        try:
            caller.wait(HANG)
        except subprocess.TimeoutExpired:
            raise Finding("the caller does not end" + self.complaint(caller, words)) from None
        self.ended = time.monotonic()

    def listen(self, lines: object) -> None:
        """What the caller tells."""
        for line in lines:
            with contextlib.suppress(json.JSONDecodeError):  # cut off by its death
                facts = json.loads(line)
                if "disturbed" in facts:
                    self.told.append(facts)
                if "ready" in facts:
                    self.ready.set()
                self.heard.update(facts)

    # -- Faults -------------------------------------------------------------------------------

    def shoot(self, caller: int) -> None:
        """Make faults until the bout is over."""
        if not self.choice:
            return
        while not self.over.wait(self.rng.random() ** 2 * 3 * self.haste):
            what = self.pick(self.choice)
            with contextlib.suppress(ProcessLookupError):
                if self.make(what, caller):
                    self.figures.faults[what] += 1

    def make(self, what: str, caller: int) -> bool:
        """One fault; whether there was somebody to meet it."""
        if what == "Ctrl-C":
            os.kill(caller, signal.SIGINT)
            return True
        wardens = [pid for pid in children(caller) if is_warden(pid)]
        if what == "caller stopped, goes on":
            return self.stop(caller)
        if not wardens:
            return False
        workers = children(wardens[-1])
        if what == "warden stopped, goes on":
            return self.stop(wardens[-1])
        if what == "warden killed":
            self.warden_killed = True
            self.kill(wardens[-1])
            return True
        if not workers:
            return False
        self.rng.shuffle(workers)
        if what == "worker stopped, goes on":
            return self.stop(workers[0])
        if what == "worker stopped for good":
            self.killed[workers[0]] = time.monotonic()  # will be, after the timeout
            self.stopped_for_good = True
            os.kill(workers[0], signal.SIGSTOP)
            return True
        many = {"worker killed": 1, "two workers killed": 2}.get(what, len(workers))
        for pid in workers[:many]:
            self.kill(pid)
        return len(workers) >= many

    def kill(self, pid: int) -> None:
        self.killed[pid] = time.monotonic()
        os.kill(pid, self.rng.choice(DEADLY))

    def stop(self, pid: int) -> bool:
        """Stop a process for a moment."""
        os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(self.rng.random() ** 2 * 0.5)
        finally:
            os.kill(pid, signal.SIGCONT)
        return True

    # -- Judgement ----------------------------------------------------------------------------

    def judge_deaths(self) -> None:
        """Every death that was told of was made here, or by the acts themselves."""
        for told in self.told:
            pid = told["pid"]
            if pid in self.killed:
                self.figures.longest("death told", told["at"] - self.killed[pid])
            elif told["disturbed"] == "WorkerDied" and not self.explained(told["words"]):
                raise Finding(f"a death of nobody that was killed here: {told}")
            elif told["disturbed"] == "RegionTimeout" and not self.stopped_for_good:
                raise Finding(f"a call waited for nobody until its timeout: {told}")

    def explained(self, words: str) -> bool:
        """Whether kills of this bout explain a death that names nobody."""
        return self.warden_killed or (bool(self.killed) and "times" in words)

    def judge_end(self, caller: subprocess.Popen[str], words: str) -> None:
        """It ended as it was told, and said nothing."""
        acts = self.heard.get("acts", {})
        self.figures.acts.update(acts)
        stuck = STUCK if self.stopped_for_good else ""
        for what, seconds in self.heard.get("slowest", {}).items():
            self.figures.longest(what + stuck, seconds)
            if seconds > SLOW and not stuck:
                raise Finding(f"{what} took {seconds:.1f} s, and nobody was stopped: {self.told}")
        if self.heard.get("errors"):
            raise Finding("\n".join(self.heard["errors"]))
        code = {"return": 0, "error": 1, "os._exit": 3, "exec": 0}.get(self.ending)
        if code is None:
            code = -signal.Signals[self.ending.split()[0]]
        expected = "as it was told\n" if self.ending == "error" else ""
        if caller.returncode != code or words != expected:
            raise Finding(
                f"the caller ended with {caller.returncode} and not {code}; stderr:\n{words}"
            )
        if "after" in self.heard:
            before, after = self.heard["before"], self.heard["after"]
            for what, room in GROWTH.items():
                if after[what] > before[what] + room:
                    raise Finding(
                        f"{what} grew: before {before}, after {after}; {self.heard['files']}"
                    )
            grown = after["resident KiB"] - before["resident KiB"]
            self.figures.longest("resident MiB grown", grown / 1024)

    def nothing_left(self, names: set[str]) -> None:
        """All that the caller started is gone, and nothing has a name."""
        deadline = time.monotonic() + PATIENCE
        while left := marked(self.mark):
            if time.monotonic() > deadline:
                raise Finding(f"left behind: {left}")
            time.sleep(0.005)
        self.figures.longest("everything gone", time.monotonic() - self.ended)
        while new := {name for name in set(os.listdir("/dev/shm")) - names if is_ours(name)}:
            if time.monotonic() > deadline:  # those of programs beside this one come and go
                raise Finding(f"names left in /dev/shm: {sorted(new)}")
            time.sleep(0.05)

    def complaint(self, caller: subprocess.Popen[str], words: list[str]) -> str:
        return f" (return code {caller.poll()}); stderr:\n{''.join(words)}\n{self.heard}"


def is_ours(name: str) -> bool:
    """Whether a name in /dev/shm is this user's; one that has gone meanwhile is not."""
    try:
        return os.stat(f"/dev/shm/{name}").st_uid == os.geteuid()
    except FileNotFoundError:
        return False


def children(pid: int) -> list[int]:
    """Processes that any thread of a process has started and not yet waited for."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            text = Path(f"/proc/{pid}/task/{thread}/children").read_text()
            found += map(int, text.split())
    return found


def is_warden(pid: int) -> bool:
    """Whether a child is the team's, and not a fork of the caller, which has a team of its own."""
    with contextlib.suppress(OSError):
        return b"engines.warden" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def marked(mark: str) -> dict[int, str]:
    """Living processes that have inherited the mark in their environment, and their commands."""
    found: dict[int, str] = {}
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError, ValueError):
            pid = int(entry)
            if mark.encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
                found[pid] = command.decode(errors="replace")
    return found
