"""A program under fire: it runs random acts until its time is over, and ends as it was told.

It is started by `bout.py`, which makes the faults. It tells facts as lines of JSON: that it is
ready; every death that it was told of; sums now and then; what it holds at the beginning and at
the end, its team shut down.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import os
import random
import signal
import sys
import threading
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

import acts
import numpy as np

from dsmfor import arenas, staging
from dsmfor.engines import process


class Record:
    """Sums of one run."""

    def __init__(self) -> None:
        self.acts: Counter[str] = Counter()
        self.slowest: dict[str, float] = {}
        self.since: dict[int, tuple[str, float]] = {}  # thread -> its act and when it began

    def longest(self, what: str, seconds: float) -> None:
        self.slowest[what] = max(self.slowest.get(what, 0.0), seconds)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--setting", action="append", default=[], choices=list(SETTINGS))
    parser.add_argument("--end", required=True, choices=list(ENDS))
    options = parser.parse_args()
    for setting in options.setting:
        SETTINGS[setting]()
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    signal.signal(signal.SIGINT, acts.interrupts.handle)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever nohup has said
    record = Record()
    for warm_up in (acts.whole, acts.many_arrays, acts.large_messages, acts.error_in_kernel):
        for seed in range(4):
            warm_up(random.Random(seed))
    before = holdings()
    errors: list[str] = []
    act_until(time.monotonic() + options.seconds, options.threads, options.seed, record, errors)
    tell(acts=record.acts, slowest=record.slowest, errors=errors)
    tell(settling=True)
    raised, seen = acts.interrupts.raised, record.acts["KeyboardInterrupt"]
    if raised != seen:
        errors.append(f"{raised} Ctrl-C became {seen} KeyboardInterrupt")
        tell(errors=errors)
    tell(before=before, after=holdings(), files=held())
    acts.roll_call.using(workers=2)()  # its end finds a team
    signal.setitimer(signal.ITIMER_REAL, 0)  # Python ends without handlers, exec without Python
    ENDS[options.end]()


def act_until(end: float, threads: int, seed: int, record: Record, errors: list[str]) -> None:
    """Act in this thread and in others; tell sums meanwhile."""

    def act(number: int) -> None:
        rng = random.Random(seed * 64 + number)
        choice = dict(acts.ACTS)
        if threads == 1:
            choice |= acts.ALONE
        while time.monotonic() < end and not errors:
            perform(rng.choices(list(choice), list(choice.values()))[0], rng, number)

    def perform(this: object, rng: random.Random, number: int) -> None:
        name, began = this.__name__, time.monotonic()
        record.since[number] = name, began
        try:
            try:
                acts.interrupts.armed = number == 0 or acts.interrupts.armed
                late = this(rng)
                record.acts[name] += 1
                if late is not None:
                    record.longest("death in a kernel told", late)
                record.longest(name, time.monotonic() - began)
            except acts.Disturbed as fault:
                now = time.monotonic()
                tell(
                    disturbed=str(fault), pid=fault.pid, at=now, took=now - began, words=fault.words
                )
                record.acts[str(fault)] += 1
                record.longest(name, now - began)
                full_team(record)
        except KeyboardInterrupt:
            record.acts["KeyboardInterrupt"] += 1
        except BaseException:
            errors.append(f"{name}:\n{traceback.format_exc()}")
        if number == 0:
            acts.interrupts.armed = False

    others = [
        threading.Thread(target=act, args=(number,), daemon=True) for number in range(1, threads)
    ]
    others.append(threading.Thread(target=watch, args=(end, record, errors), daemon=True))
    for thread in others:
        thread.start()
    tell(ready=True)
    act(0)
    for thread in others:
        thread.join()


def full_team(record: Record) -> None:
    """After a fault: how long until a region has every rank again."""
    began = time.monotonic()
    while True:
        try:
            ranks = acts.call(acts.roll_call.using(workers=2))
        except acts.Disturbed as fault:
            now = time.monotonic()
            tell(disturbed=str(fault), pid=fault.pid, at=now, words=f"roll call: {fault.words}")
            began = now  # struck again: the promise is about the next call
            continue
        assert ranks == [0, 1]
        record.longest("full team again", time.monotonic() - began)
        return


def watch(end: float, record: Record, errors: list[str]) -> None:
    """Tell the sums twice a second; find acts that take for ever."""
    while time.monotonic() < end and not errors:
        time.sleep(0.5)
        tell(acts=record.acts, slowest=record.slowest, errors=errors)
        for name, since in list(record.since.values()):
            if time.monotonic() - since > 3 * acts.LONG:
                errors.append(f"{name} hangs")


def tell(**facts: object) -> None:
    os.write(1, json.dumps(facts).encode() + b"\n")


def children() -> list[str]:
    """Who has not been waited for: pid, command and state."""
    found = []
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):  # one that has just ended
            found += Path(f"/proc/self/task/{thread}/children").read_text().split()
    return [" ".join(Path(f"/proc/{pid}/stat").read_text().split()[:3]) for pid in found]


def held() -> list[str]:
    """All that `holdings` counts, by name."""
    found = children()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the listing's own
            found.append(f"{fd} -> {os.readlink(f'/proc/self/fd/{fd}')}")
    maps = Path("/proc/self/maps").read_text().splitlines()
    return found + [line for line in maps if "/memfd:" in line]


def holdings() -> dict[str, int]:
    """What this process holds, its team shut down."""
    process.shutdown()
    gc.collect()  # errors hold the frames that they passed through
    arenas.drop_spares()  # one is kept for the next small array
    staging.drop_spares()
    ctypes.CDLL(None).malloc_trim(0)  # so that what is resident is what is held
    maps = Path("/proc/self/maps").read_text()
    status = Path("/proc/self/status").read_text()
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "shared mappings": maps.count("/memfd:"),
        "mappings": maps.count("\n"),
        "children": len(children()),
        "threads": threading.active_count(),
        "resident KiB": int(status.partition("VmRSS:")[2].split()[0]),
    }


# -- Settings of the program, and its ends ------------------------------------------------------


def timer() -> None:
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)


def matmul() -> None:
    """BLAS threads that are there and wait."""
    np.ones((300, 300)) @ np.ones((300, 300))


def no_children() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)


def short_lived_thread() -> None:
    """The team is started by a thread that ends."""
    thread = threading.Thread(target=acts.roll_call.using(workers=3))
    thread.start()
    thread.join()


SETTINGS = {
    "timer": timer,
    "matmul": matmul,
    "SIGCHLD ignored": no_children,
    "short-lived thread": short_lived_thread,
}


def leave_by_error() -> None:
    raise SystemExit("as it was told")


def leave_by_exec() -> None:
    os.execv("/bin/true", ["true"])


def wait() -> None:
    """For the signal that ends it."""
    tell(waiting=True)
    while True:
        time.sleep(60)


ENDS = {
    "return": lambda: None,
    "error": leave_by_error,
    "os._exit": lambda: os._exit(3),
    "exec": leave_by_exec,
    "signal": wait,
}

if __name__ == "__main__":
    main()
    sys.stdout.flush()
