"""Seeded rounds of random kills, and killed owners of locks.

A round draws a region (size, schedule, length, large or small results, shared or plain arrays), the
victims (ranks, or the warden), the cause and the moment: a place of `scenes`, or a time. It ends
with the right results or with the error of a fault that was really made, and with a full team.

A round depends on its seed and its number alone, and a failure prints both::

    DSM_KILL_SEED=1234 DSM_KILL_ROUND=56 pytest tests/test_random_kills.py -k rounds

`make test` runs 200 rounds of a seed that stays, `make soak` 1,000 of one that it draws.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from faults import PROMPT, gone, meanwhile, outcome, phase, prompt, until, warden, warm
from scenes import CAUSES, PLACES, Stage, play

import dsmfor as dsm
from dsmfor import arenas, staging
from dsmfor.engines import process

SCHEDULES = ["static", "static,3", "random", "random,5", "dynamic", "dynamic,7", "guided", "auto"]
SIGNALS = [-code for code in CAUSES.values() if code < 0]


@dsm.parallel(timeout=60)
def mixed(data, counter, big, schedule, offset):
    """Every index once by a loop, once by slices; a lock; a barrier; a value for all; a result."""
    for i in dsm.prange(len(data), schedule=schedule):
        data[i] += i + offset
    for s in dsm.pslices(len(data), schedule=schedule, nowait=True):
        data[s] *= 2
    with dsm.critical("counter"):
        counter[0] += 1
    dsm.barrier()
    seen = dsm.single(lambda: [int(counter[0])] * big)
    return np.full(big, seen[-1] + dsm.rank())


def at_a_moment(rng: random.Random) -> None:
    """Kill at some time of an ordinary region, or just before or after it."""
    size = rng.randint(1, 4)
    n = rng.choice([1, 10, 1000, 20_000])
    big = rng.choice([1, 1, 20_000])
    offset = rng.randrange(1000)
    shared = rng.random() < 0.5
    schedule = rng.choice(SCHEDULES)
    pids = warm(size)
    targets = rng.sample(pids, rng.randint(1, size))
    the_warden = rng.random() < 0.04
    if the_warden:
        targets = [warden()]
    signum = rng.choice(SIGNALS)
    pause = rng.random() ** 2 * 0.02
    go = threading.Event()

    def kill() -> None:
        go.wait()
        time.sleep(pause)  # the random moment
        for pid in targets:
            os.kill(pid, signum)

    data = dsm.zeros(n, int) if shared else np.zeros(n, int)
    counter = dsm.zeros(1, int)
    with meanwhile(kill), prompt(PROMPT + 2):
        go.set()
        results, error = outcome(mixed.using(workers=size), data, counter, big, schedule, offset)
    expected = 2 * (np.arange(n) + offset)
    if error is None:
        assert (data == expected).all()
        assert [(len(a), a[0], a[-1]) for a in results] == [
            (big, size + rank, size + rank) for rank in range(size)
        ]
    elif shared:
        assert (data <= expected).all()
        assert 0 <= counter[0] <= size
    else:
        assert not data.any()
    if error is not None:
        assert error.pid in targets or (the_warden and "warden" in str(error))
    until(lambda: all(map(gone, targets)))
    data[:] = 0
    counter[:] = 0
    for _ in range(len(targets) + 1):  # one that fell after the region may fail the next
        results, error = outcome(mixed.using(workers=size), data, counter, big, schedule, offset)
        if error is None:
            break
        assert error.pid in targets or the_warden
        data[:] = 0
        counter[:] = 0
    assert error is None
    assert (data == expected).all()


def in_a_place(rng: random.Random) -> None:
    """Kill a worker or the warden in one of the places of the table."""
    name = rng.choice(list(PLACES))
    code = rng.choice(list(CAUSES.values()))
    the_warden = rng.random() < 0.04

    def kill(stage: Stage) -> None:
        if the_warden:
            os.kill(warden(), signal.SIGKILL)
        else:
            stage.flags[0] = 1

    error, pids, stage = play(name, code, kill)
    if the_warden:
        assert "warden" in str(error)
    else:
        victim = PLACES[name].victim
        assert (error.rank, error.pid, error.exitcode) == (victim, pids[victim], code)
    assert len(set(warm(3))) == 3
    assert stage.data.tolist() == [7, 7, 7]


def rounds(seed: int, numbers: range) -> None:
    for number in numbers:
        rng = random.Random(f"{seed}/{number}")
        try:
            rng.choice([at_a_moment, at_a_moment, in_a_place])(rng)
        except BaseException as error:
            error.add_note(f"again by itself: DSM_KILL_SEED={seed} DSM_KILL_ROUND={number}")
            raise


def holdings() -> dict[str, int]:
    """What this process holds, its team shut down."""
    gc.collect()
    process.shutdown()
    staging.drop_spares()
    arenas.drop_spares()
    status = Path("/proc/self/status").read_text()
    children = 0
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):
            children += len(Path(f"/proc/self/task/{thread}/children").read_text().split())
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "shared memory": Path("/proc/self/maps").read_text().count("/memfd:"),
        "mappings": Path("/proc/self/maps").read_text().count("\n"),
        "children": children,
        "threads": threading.active_count(),
        "resident KiB": int(status.partition("VmRSS:")[2].split()[0]),
    }


def many(seed: int, count: int) -> None:
    """Rounds that leave nothing behind (orphans and names are conftest.py's)."""
    if "DSM_KILL_ROUND" in os.environ:
        number = int(os.environ["DSM_KILL_ROUND"])
        rounds(seed, range(number, number + 1))
        return
    rounds(seed, range(count // 10))
    before = holdings()
    rounds(seed, range(count // 10, count))
    after = holdings()
    for what in ("descriptors", "shared memory", "children", "threads"):
        assert after[what] <= before[what], what
    assert after["mappings"] <= before["mappings"] + 40
    assert after["resident KiB"] <= before["resident KiB"] + 8 * 1024


def test_two_hundred_rounds():
    many(int(os.environ.get("DSM_KILL_SEED", "2026")), 200)


@pytest.mark.soak
def test_a_thousand_rounds():
    seed = os.environ.get("DSM_KILL_SEED") or random.SystemRandom().randrange(1 << 32)
    print(f"\nDSM_KILL_SEED={seed}")
    many(int(seed), 1000)


# -- owners of locks ----------------------------------------------------------------------------


@dsm.parallel(workers=3, timeout=60)
def contend(owner, counts):
    me = dsm.rank()
    while True:
        with dsm.critical("it"):
            owner[0] = me + 1
            counts[me] += 1
            counts[3] += 1
            owner[0] = 0


def kill_owners(times: int, seed: int) -> float:
    """Kill whoever holds the lock while others wait for it; seconds of the slowest call."""
    rng = random.Random(seed)
    slowest = 0.0
    for turn in range(times):
        pids = warm(3)
        owner, counts = dsm.zeros(1, int), dsm.zeros(4, int)
        struck = 0.0

        def kill(pids=pids, owner=owner, counts=counts):
            nonlocal struck
            until(lambda: counts[3] > 10)
            for _ in range(rng.randrange(50)):
                pass
            end = time.monotonic() + 5
            while time.monotonic() < end:
                rank = int(owner[0]) - 1
                if rank >= 0 and any(phase(r) == "waiting for a lock" for r in range(3)):
                    break
            struck = time.monotonic()
            os.kill(pids[rank], signal.SIGKILL)

        with meanwhile(kill), pytest.raises(dsm.WorkerDied) as caught:
            contend(owner, counts)
        slowest = max(slowest, time.monotonic() - struck)
        assert caught.value.pid in pids, turn
        assert abs(counts[:3].sum() - counts[3]) <= 1  # what the owner had half done
    return slowest


def test_sixty_owners_of_a_lock_are_killed_without_a_stall():
    assert kill_owners(60, 1) < PROMPT


@pytest.mark.soak
def test_two_thousand_owners_of_a_lock_are_killed_without_a_stall():
    slowest = kill_owners(2000, 2)
    print(f"\nslowest of 2000: {slowest:.3f} s")
    assert slowest < PROMPT
