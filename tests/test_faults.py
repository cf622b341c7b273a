"""What happens when processes die, stop, raise or are interrupted: an error that says so, no hang.

Laws: a call ends within two seconds of a death or a Ctrl-C, with the one error that tells of it;
the next call has a full team; shared arrays hold what was written; nothing is left behind (which
conftest.py holds every test to). Every death at every place is test_deaths.py's, random ones are
test_random_kills.py's; here are the deaths that are told apart from those, errors, and hangs.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from faults import (
    assert_full_team,
    await_flag,
    die,
    gone,
    meanwhile,
    outcome,
    phase,
    prompt,
    roll_call,
    state,
    until,
    warm,
)

import dsmfor as dsm
from dsmfor._native.interrupts import undisturbed
from dsmfor.engines import process

CALLER = os.getpid()


# -- a worker dies ------------------------------------------------------------------------------


def test_a_call_just_after_a_death_succeeds_or_says_so():
    for turn in range(20):
        pids = warm(2)
        os.kill(pids[turn % 2], signal.SIGKILL)
        with prompt():
            ranks, error = outcome(roll_call.using(workers=2))
            if error is None:
                assert [rank for rank, _ in ranks] == [0, 1]
            else:
                assert (error.rank, error.pid) == (turn % 2, pids[turn % 2])
        assert_full_team(2)


def test_death_just_after_a_worker_has_acknowledged():
    """The kernel leaves a thread that ends the process at about the region's end."""

    @dsm.parallel(workers=2)
    def kernel(delay):
        if dsm.rank() == 0:
            threading.Timer(delay, os._exit, (7,)).start()
        else:
            time.sleep(0.008)
        return dsm.rank()

    ends = set()
    for k in range(40):
        pid = warm(2)[0]
        value, error = outcome(kernel, 0.006 + k * 0.0001)
        ends.add(str(value))
        assert error is None or (error.rank, error.exitcode) == (0, 7)
        until(lambda pid=pid: not Path(f"/proc/{pid}").exists())
    assert ends <= {"None", "[0, 1]"}
    assert_full_team(2)


def test_death_by_a_signal_without_a_name():
    @dsm.parallel(workers=2)
    def kernel():
        if dsm.rank():
            os.kill(os.getpid(), 40)
        dsm.barrier()

    with prompt(5.0), pytest.raises(dsm.WorkerDied, match="40") as caught:
        kernel()
    assert caught.value.exitcode == -40
    assert_full_team(2)


def test_plain_arrays_are_untouched_after_a_death_and_shared_ones_keep_what_was_written():
    @dsm.parallel(workers=2)
    def kernel(plain, shared):
        plain[:] = 9
        shared[dsm.rank()] = 9
        dsm.barrier()
        if dsm.rank():
            die(7)
        dsm.barrier()

    plain, shared = np.arange(1000.0), dsm.zeros(2)
    with pytest.raises(dsm.WorkerDied):
        kernel(plain, shared)
    assert (plain == np.arange(1000.0)).all()
    assert shared.tolist() == [9, 9]


# -- kernels that raise -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place", ["at a barrier", "waiting for a lock", "in a loop", "computing", "sleeping"]
)
def test_one_raises_and_the_others_are_released(place):
    @dsm.parallel(workers=3)
    def kernel(flags, go):
        if dsm.rank() == 1:
            if place == "waiting for a lock":
                with dsm.critical():
                    flags[1] = 1
                    await_flag(go)
                    raise LookupError("mine")
            await_flag(go)
            raise LookupError("mine")
        flags[dsm.rank()] = 1
        if place == "at a barrier":
            dsm.barrier()
        elif place == "waiting for a lock":
            await_flag(flags, 1)
            with dsm.critical():
                pass
            dsm.barrier()
        elif place == "in a loop":
            for _ in dsm.prange(10**9, schedule="dynamic"):
                pass
        elif place == "computing":
            while True:
                pass
        else:
            time.sleep(60)

    flags, go = dsm.zeros(3, int), dsm.zeros(1, int)
    warm(3)

    def let_raise():
        expected = "computing" if place == "sleeping" else place
        until(lambda: flags[0] and phase(0) == phase(2) == expected)
        go[0] = 1

    with meanwhile(let_raise), prompt(), pytest.raises(LookupError, match="mine") as caught:
        kernel(flags, go)
    assert any("worker 1 of 3" in note for note in caught.value.__notes__)
    assert_full_team(3)


# -- hung workers -------------------------------------------------------------------------------


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def sleep() -> None:
    time.sleep(60)


def be_deaf() -> None:
    while True:
        with contextlib.suppress(BaseException):
            time.sleep(60)


def loop() -> None:
    while True:
        pass


def compute_in_c() -> None:
    sum(range(10**10))  # minutes with the GIL held, deaf to signals


def match() -> None:
    re.match("(a+)+$", "a" * 60 + "b")


def read() -> None:
    os.read(os.pipe()[0], 1)


def write() -> None:
    _, end = os.pipe()
    while True:
        os.write(end, bytes(1 << 16))


@pytest.mark.parametrize("hang", [stop, sleep, be_deaf, loop, compute_in_c, match, read, write])
def test_a_hung_worker_ends_with_the_timeout(hang):
    @dsm.parallel(workers=2, timeout=0.3)
    def kernel(pids):
        pids[dsm.rank()] = os.getpid()
        if dsm.rank() == 0:
            return
        hang()

    pids = dsm.zeros(2, int)
    warm(2)
    with prompt(3.0), pytest.raises(dsm.RegionTimeout, match="rank 1 was computing") as caught:
        kernel(pids)
    assert "rank 0 was" not in str(caught.value)
    assert hang not in (stop, be_deaf, compute_in_c) or gone(pids[1])
    assert_full_team(2)


@pytest.mark.parametrize("place", ["idle", "at a barrier"])
def test_a_worker_that_is_stopped_where_it_waits_ends_with_the_timeout(place):
    @dsm.parallel(workers=2, timeout=0.3)
    def kernel(go):
        if dsm.rank() == 0 and place == "at a barrier":
            await_flag(go)
        dsm.barrier()

    pids, go = warm(2), dsm.zeros(1, int)
    if place == "idle":
        os.kill(pids[1], signal.SIGSTOP)

    def strike():
        if place != "idle":
            until(lambda: phase(1) == place)
            os.kill(pids[1], signal.SIGSTOP)
            until(lambda: state(pids[1]) == "T")
            go[0] = 1

    with meanwhile(strike), prompt(3.0), pytest.raises(dsm.RegionTimeout, match="rank 1"):
        kernel(go)
    assert gone(pids[1])
    assert_full_team(2)


def test_a_timeout_holds_after_another_rank_has_raised():
    @dsm.parallel(workers=2, timeout=1.5)
    def kernel(pids):
        pids[dsm.rank()] = os.getpid()
        if dsm.rank():
            os.kill(os.getpid(), signal.SIGSTOP)
        await_flag(pids, 1)
        while state(pids[1]) != "T":
            time.sleep(0.0005)
        raise LookupError("mine")

    pids, ended = dsm.zeros(2, int), threading.Event()
    warm(2)

    def rescue():  # of this test, should the timeout not hold
        if not ended.wait(8):
            os.kill(pids[1], signal.SIGCONT)

    with meanwhile(rescue), prompt(5.0):
        with pytest.raises((LookupError, dsm.RegionTimeout)):
            kernel(pids)
        ended.set()
    assert gone(pids[1])
    assert_full_team(2)


def test_the_wait_for_a_killed_worker_is_not_given_up_for_a_signal():
    """Else Ctrl-C left a crew to nobody, while a call recovered from its warden's death."""

    def strike(*_: object) -> None:
        raise LookupError

    warm(2)
    recruit = process._idle[-1].workers[0].recruit
    before = signal.signal(signal.SIGALRM, strike)
    waited = []

    def wait() -> None:
        with undisturbed:
            signal.setitimer(signal.ITIMER_REAL, 0.02)
            waited.append(recruit.ended(0.2))

    try:
        with pytest.raises(LookupError):
            wait()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert waited == [False]


# -- what one region leaves to the next ---------------------------------------------------------


def test_a_large_result_of_a_stopped_region_is_not_taken_for_the_next_ones():
    @dsm.parallel(workers=2)
    def kernel(value, wait):
        if dsm.rank() and wait:
            time.sleep(60)
        return np.full(50_000, value)

    with pytest.raises(dsm.RegionTimeout):
        kernel.using(timeout=0.3)(1.0, True)
    warm(2)
    assert [v[0] for v in kernel(2.0, False)] == [2, 2]

    def interrupt():
        until(lambda: phase(0) == "idle")
        signal.raise_signal(signal.SIGALRM)

    class Alarm(Exception):
        pass

    def on_alarm(_signum: int, _frame: object) -> None:
        raise Alarm

    before = signal.signal(signal.SIGALRM, on_alarm)
    try:
        with meanwhile(interrupt), prompt(), pytest.raises(Alarm):
            kernel(3.0, True)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert [v[0] for v in kernel(4.0, False)] == [4, 4]


def test_a_stop_between_question_and_answer_of_a_worker_leaves_no_stale_answer():
    @dsm.parallel(workers=2)
    def spin():
        while True:
            dsm.single(lambda: [-1, "v" * 20_000])

    @dsm.parallel(workers=2)
    def check(n):
        for i in range(3):
            assert dsm.single(lambda i=i: [n, i, "v" * 20_000])[:2] == [n, i]

    rng = random.Random(7)
    for n in range(40):
        with pytest.raises(dsm.RegionTimeout):
            spin.using(timeout=0.01 + rng.random() * 0.02)()
        check(n)


def test_an_array_made_by_workers_can_go_back_to_them_again_and_again():
    @dsm.parallel(workers=2)
    def make():
        return dsm.single(dsm.zeros, 1000)

    @dsm.parallel(workers=2)
    def use(array):
        array[dsm.rank()] += 1

    array = make()[0]
    for _ in range(5):
        use(array)
    assert array[:2].tolist() == [5, 5]
