"""Minutes of random kills while two threads of a caller run random regions; `make soak`.

``DSM_SOAK_SECONDS`` says for how long (600 if it is not set), ``DSM_SOAK_SEED`` repeats the choices
of a run. Each region checks its own results: a call returns the right values or raises the error of
a fault that was really made. At the end nothing is left, and memory, mappings and descriptors are
where they were after the first minute's twentieth part.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import dsmfor as dsm
from dsmfor import arenas
from dsmfor.engines import process

SECONDS = float(os.environ.get("DSM_SOAK_SECONDS", "600"))
SEED = int(os.environ.get("DSM_SOAK_SEED", random.SystemRandom().randrange(1 << 32)))

LONGEST = 30.0  # seconds that one call may take on a busy machine
SCHEDULES = ["static", "static,3", "random", "random,5", "dynamic", "dynamic,7", "guided", "auto"]
MEBIBYTE = 1 << 20


@dsm.parallel
def mixed(data, counter, big, schedule, offset):
    """Every index once by a loop, once by slices; a lock; a barrier; a value for all; a result."""
    for i in dsm.prange(len(data), schedule=schedule):
        data[i] += i + offset
    for s in dsm.pslices(len(data), schedule=schedule, nowait=True):
        data[s] *= 2
    with dsm.critical("counter"):
        counter[0] += 1
    dsm.barrier()
    seen = dsm.single(int, counter[0])
    return np.full(big, seen + dsm.rank()), os.getpid()


@dsm.parallel
def failing(victim):
    if dsm.rank() == victim:
        raise LookupError(victim)
    dsm.barrier()
    return dsm.rank()


class Soak:
    """Callers, killer and the figures of one run."""

    def __init__(self) -> None:
        self.until = time.monotonic() + SECONDS
        self.figures: Counter[str] = Counter()
        self.slowest = 0.0
        self.errors: list[BaseException] = []
        self.since: dict[int, float] = {}  # caller -> when its present call began

    def over(self) -> bool:
        return bool(self.errors) or time.monotonic() > self.until

    def call(self, number: int) -> None:
        """One thread of the caller."""
        rng = random.Random(SEED * 1000 + number)
        try:
            while not self.over():
                self.since[number] = time.monotonic()
                self.region(rng)
                self.slowest = max(self.slowest, time.monotonic() - self.since.pop(number))
        except BaseException as error:
            self.errors.append(error)

    def region(self, rng: random.Random) -> None:
        size = rng.randint(1, 4)
        n = rng.choice([1, 10, 100, 3000])
        big = rng.choice([1, 1, 1, 20_000])
        shared = rng.random() < 0.5
        offset = rng.randrange(1000)
        data = dsm.zeros(n, int) if shared else np.zeros(n, int)
        counter = dsm.zeros(1, int)
        self.figures["regions"] += 1
        try:
            if rng.random() < 0.1:
                victim = rng.randrange(size)
                with pytest.raises(LookupError, match=str(victim)):
                    failing.using(workers=size)(victim)
                return
            results = mixed.using(workers=size)(data, counter, big, rng.choice(SCHEDULES), offset)
        except dsm.WorkerDied:
            self.figures["WorkerDied"] += 1
            if not shared:
                assert not data.any()
            return
        assert (data == 2 * (np.arange(n) + offset)).all()
        assert counter[0] == size
        assert [(len(a), a[0], a[-1]) for a, _ in results] == [
            (big, size + rank, size + rank) for rank in range(size)
        ]
        assert len({pid for _, pid in results}) == size

    def kill(self) -> None:
        """A thread that kills a worker, or now and then the warden."""
        rng = random.Random(SEED)
        try:
            while not self.over():
                time.sleep(rng.random() ** 2 * 0.1)
                wardens = children(os.getpid())
                workers = children(wardens[-1]) if wardens else []
                if not workers:
                    continue  # a warden that cannot even start is no WorkerDied
                victim, what = rng.choice(workers), "workers killed"
                if rng.random() < 0.01:
                    victim, what = wardens[-1], "wardens killed"
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim, rng.choice([signal.SIGKILL, signal.SIGSEGV]))
                    self.figures[what] += 1
        except BaseException as error:
            self.errors.append(error)

    def watch(self) -> None:
        """Until the end: no call takes for ever."""
        while not self.over():
            time.sleep(0.05)
            for number, since in list(self.since.items()):
                if time.monotonic() - since > LONGEST:
                    self.errors.append(TimeoutError(f"caller {number} hangs"))


def children(pid: int) -> list[int]:
    """Processes that any thread of a process has started and not yet waited for."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            text = Path(f"/proc/{pid}/task/{thread}/children").read_text()
            found += map(int, text.split())
    return found


def holdings() -> dict[str, int]:
    """What this process holds, its team shut down."""
    gc.collect()  # errors hold the frames that they passed through
    process.shutdown()
    arenas.drop_spares()  # one is kept for the next small array
    status = Path("/proc/self/status").read_text()
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "memfd mappings": Path("/proc/self/maps").read_text().count("/memfd:"),
        "mappings": Path("/proc/self/maps").read_text().count("\n"),
        "children": len(children(os.getpid())),
        "threads": threading.active_count(),
        "resident KiB": int(status.partition("VmRSS:")[2].split()[0]),
    }


@pytest.mark.soak
def test_random_kills_for_minutes():
    # In place of pytest's, which allows a test three minutes.
    faulthandler.dump_traceback_later(1.05 * SECONDS + 120, exit=True, file=sys.__stderr__)
    print(f"\nDSM_SOAK_SEED={SEED} DSM_SOAK_SECONDS={SECONDS:g}")
    warm_up, measured = Soak(), Soak()
    warm_up.until = time.monotonic() + max(SECONDS / 20, 2)
    run(warm_up)
    before = holdings()
    measured.until = time.monotonic() + SECONDS
    run(measured)
    after = holdings()
    print(dict(measured.figures), f"slowest call {measured.slowest:.2f} s")
    print("before", before)
    print("after ", after)
    assert measured.figures["workers killed"] > SECONDS
    for what in ("descriptors", "memfd mappings", "children", "threads"):
        assert after[what] <= before[what], what
    assert after["mappings"] <= before["mappings"] + 40
    assert after["resident KiB"] <= before["resident KiB"] + 24 * 1024


def run(soak: Soak) -> None:
    """Two callers and a killer, to the end of the time."""
    acts = [lambda: soak.call(1), lambda: soak.call(2), soak.kill]
    threads = [threading.Thread(target=act, daemon=True) for act in acts]
    for thread in threads:
        thread.start()
    soak.watch()
    for thread in threads:
        thread.join(LONGEST)
        assert not thread.is_alive() or soak.errors, "a thread hangs"
    if soak.errors:
        raise soak.errors[0]
