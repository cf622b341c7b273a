"""Memory: what is dropped is gone everywhere, what goes on for long stays flat."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import resource
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dsmfor as dsm
from dsmfor import arenas, staging
from dsmfor.engines import process

MiB = 1 << 20
PATIENCE = 10.0
PAGE = os.sysconf("SC_PAGE_SIZE")


@dsm.parallel(workers=2)
def touch(a: np.ndarray) -> None:
    for s in dsm.pslices(len(a)):
        a[s] += 1


@dsm.parallel(workers=2)
def nothing() -> None:
    pass


@dsm.parallel(workers=2)
def ranks() -> int:
    return dsm.rank()


@pytest.fixture(autouse=True, scope="module")
def a_team_of_our_own() -> None:
    process.shutdown()


@pytest.fixture(autouse=True)
def old() -> Iterator[set[str]]:
    """Segments that were there before the test: frames of failed tests hold arrays."""
    staging.drop_spares()
    gc.collect()
    process.housekeep()
    yield set().union(*map(segments_mapped, workers()))
    staging.drop_spares()


def workers() -> list[int]:
    """Pids of the team's processes, the warden among them, and of this one."""
    return [os.getpid(), *sorted(process.team_pids())]


def segments_mapped(pid: int) -> set[str]:
    """Inodes of the segments that a process maps or has open."""
    found = set()
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            if "/memfd:dsmfor segment" in line:
                found.add(line.split()[4])
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if os.readlink(fd).startswith("/memfd:dsmfor segment"):
                    found.add(str(os.stat(fd).st_ino))
    return found


def until(condition: Callable[[], bool]) -> bool:
    """Whether a condition comes true before the patience ends."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)  # between looks, not to order anything
    return True


def all_gone(old: set[str]) -> bool:
    """Whether no process of the team comes to hold any segment that is not old."""

    def gone() -> bool:
        arenas.drop_spares()  # once nothing lies in an arena, it is only kept for arrays to come
        return not any(segments_mapped(pid) - old for pid in workers())

    return until(gone)


def state() -> dict[str, list[int]]:
    """Private memory in MiB, descriptors and mappings of every process of the team."""
    gc.collect()
    process.housekeep()
    numbers: dict[str, list[int]] = {"private": [], "descriptors": [], "mappings": []}
    for pid in workers():
        fields = Path(f"/proc/{pid}/statm").read_text().split()
        numbers["private"].append((int(fields[1]) - int(fields[2])) * PAGE // MiB)
        numbers["descriptors"].append(len(os.listdir(f"/proc/{pid}/fd")))
        maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
        numbers["mappings"].append(sum("memfd:" in line for line in maps))
    return numbers


def assert_flat(before: dict[str, list[int]], *, private: int = 4) -> None:
    after = state()
    for what in ("descriptors", "mappings"):
        grown = [b - a for a, b in zip(before[what], after[what], strict=True)]
        assert max(grown) <= 0, f"{what} by which caller and team grew: {grown}"
    grown = [b - a for a, b in zip(before["private"], after["private"], strict=True)]
    assert max(grown) <= private, f"MiB by which caller, warden and workers grew: {grown}"


# -- Private copies ------------------------------------------------------------------------------


def test_a_private_array_takes_memory_where_it_is_written_alone() -> None:
    a = np.ones(64 * MiB // 8)

    @dsm.parallel(workers=2, private=["a"])
    def kernel(a: np.ndarray, written: int) -> tuple[float, float]:
        def own() -> float:
            lines = Path("/proc/self/status").read_text().splitlines()
            kib = next(line.split()[1] for line in lines if line.startswith("RssAnon"))
            return int(kib) / 1024

        before = own()
        total = float(a.sum())
        a[:written] = 2
        return total, own() - before

    for written, least, most in ((0, 0, 8), (len(a) // 2, 30, 40)):
        for total, grown in kernel(a, written):
            assert total == len(a)
            assert least <= grown <= most, f"{grown} MiB for {written} elements"


# -- The last reference -------------------------------------------------------------------------


@pytest.mark.parametrize("nbytes", [800, 4 * MiB])
def test_a_dropped_array_is_gone_from_the_caller_and_idle_workers(
    nbytes: int, old: set[str]
) -> None:
    pids = dsm.parallel(workers=2)(lambda: os.getpid())()
    a = dsm.zeros(nbytes, np.uint8)
    touch(a)
    (inode,) = segments_mapped(os.getpid()) - old
    assert all(inode in segments_mapped(pid) for pid in pids)
    del a
    assert all_gone(old)


def test_a_view_keeps_the_memory_and_its_end_frees_it(old: set[str]) -> None:
    a = dsm.zeros(4 * MiB, np.uint8)
    view = a[10:20]
    touch(a)
    del a
    touch(view)
    assert view.tolist() == [2] * 10
    del view
    assert all_gone(old)


def test_an_array_that_one_rank_of_a_larger_team_used_is_let_go_by_all(old: set[str]) -> None:
    touch.using(workers=4)(a := dsm.zeros(MiB, np.uint8))
    ranks.using(workers=1)()
    del a
    assert all_gone(old)


def test_arrays_in_containers_results_and_errors_are_let_go(old: set[str]) -> None:
    @dsm.parallel(workers=2)
    def give(box: dict[str, Any]) -> Any:
        return {"r": box["a"][1:]}

    @dsm.parallel(workers=2)
    def fail(a: np.ndarray) -> None:
        raise ValueError(a)

    box = {"a": dsm.zeros(MiB, np.uint8)}
    results = give(box)
    with pytest.raises(ValueError) as caught:
        fail(box["a"])
    assert caught.value.args[0].shape == (MiB,)
    results[0]["r"][0] = 3
    assert box["a"][1] == 3
    del box, results, caught
    gc.collect()
    assert all_gone(old)


def test_an_array_made_in_a_kernel_is_freed_when_the_caller_drops_it(old: set[str]) -> None:
    @dsm.parallel(workers=2)
    def make() -> np.ndarray:
        a = dsm.single(dsm.zeros, MiB)
        a[dsm.rank()] = 1
        dsm.barrier()
        return a

    for _ in range(5):
        first, second = make()
        assert first[:3].tolist() == [1, 1, 0]
        del first, second
    ranks()
    assert all_gone(old)


def test_an_array_made_in_a_kernel_and_dropped_there_is_freed(old: set[str]) -> None:
    @dsm.parallel(workers=2)
    def make() -> float:
        a = dsm.single(dsm.ones, MiB)
        dsm.barrier()
        return float(a.sum())

    for _ in range(5):
        assert make() == [MiB, MiB]
    ranks()
    assert all_gone(old)


def test_after_a_worker_died_nothing_of_it_is_kept(old: set[str]) -> None:
    a = dsm.zeros(4 * MiB, np.uint8)

    @dsm.parallel(workers=2)
    def die(a: np.ndarray) -> None:
        if dsm.rank() == 1:
            os._exit(1)
        dsm.barrier()

    with pytest.raises(dsm.WorkerDied):
        die(a)
    touch(a)
    del a
    gc.collect()  # what pytest keeps of the error
    assert all_gone(old)


def test_an_error_holds_the_arrays_of_its_call_no_longer_than_itself() -> None:
    """No cycle through the frames of dsmfor: they hold the arguments, and those may be large."""

    @dsm.parallel(workers=2)
    def fail(a: np.ndarray, how: str) -> None:
        if how == "raise":
            raise ValueError
        if dsm.rank() == 1:
            os._exit(1)
        dsm.barrier()

    gc.collect()
    gc.disable()
    try:
        for how in ("raise", "die"):
            a = dsm.zeros(100)
            gone = weakref.ref(a)
            with contextlib.suppress(ValueError, dsm.WorkerDied):
                fail(a, how)
            del a
            assert gone() is None, how
    finally:
        gc.enable()


# -- For long -----------------------------------------------------------------------------------


def test_ten_thousand_arrays_made_and_dropped_leave_nothing(old: set[str]) -> None:
    touch(dsm.zeros(10))
    for n in range(500):
        touch(dsm.full(10, n))
    before = state()
    for n in range(10_000):
        a = dsm.full(10, n, dtype=int)
        if n % 10 == 0:
            touch(a)
            assert a[9] == n + 1
    del a
    assert all_gone(old)
    assert_flat(before)


def churn(count: int) -> None:
    """Make arrays of mixed sizes; of some, workers see views; some live on for a while."""
    rng, kept = random.Random(count), deque[np.ndarray](maxlen=20)
    for n in range(count):
        large = n % 50 == 0
        a = dsm.zeros(rng.randrange(MiB, 2 * MiB) if large else rng.randrange(1, 5000), np.uint8)
        a[-1] = n % 100
        if n % 20 == 0:
            touch(a[a.size // 2 :])
            assert a[-1] == n % 100 + 1
        if n % 7 == 0:
            kept.append(a[:1])


def test_thousands_of_arrays_small_and_large_leave_memory_flat(old: set[str]) -> None:
    churn(1000)
    before = state()
    churn(5000)
    assert all_gone(old)
    assert_flat(before)


@pytest.mark.soak
def test_a_hundred_thousand_arrays_small_and_large_leave_memory_flat(old: set[str]) -> None:
    churn(5000)
    before = state()
    churn(100_000)
    assert all_gone(old)
    after = state()
    print(f"\n100,000 arrays, caller, warden and two workers: before {before}, after {after}")
    assert_flat(before)


def test_a_thousand_arrays_at_once_reach_the_workers_and_leave_them(old: set[str]) -> None:
    ranks()
    before = state()
    many = [dsm.full(4, n) for n in range(1000)]

    @dsm.parallel(workers=2)
    def total(many: list[np.ndarray]) -> float:
        return sum(float(a[0]) for a in many)

    assert total(many) == [999 * 500] * 2
    many.clear()
    assert all_gone(old)
    assert_flat(before, private=16)


def regions(count: int) -> None:
    shared, plain, data = dsm.zeros(100), np.zeros(100), [1, {"a": 2}]
    kernel = dsm.parallel(workers=2)(lambda a, b, c: (len(a), c[1]["a"], data[0]))

    def fail() -> None:
        with pytest.raises(ZeroDivisionError):
            dsm.parallel(workers=2)(lambda: 1 // 0)()

    for n in range(count):
        nothing()
        touch(shared)
        if n % 5 == 0:
            touch(plain)
            assert kernel(shared, plain, data) == [(100, 2, 1)] * 2
        if n % 500 == 0:
            fail()
    assert shared[50] == count
    assert plain[50] == -(-count // 5)


def test_five_thousand_small_regions_leave_memory_flat() -> None:
    regions(500)
    before = state()
    regions(2500)
    assert_flat(before)


@pytest.mark.soak
def test_a_hundred_thousand_small_regions_leave_memory_flat() -> None:
    regions(2000)
    before = state()
    regions(50_000)
    print(f"\n100,000 regions, caller, warden and two workers: before {before}, after {state()}")
    assert_flat(before)


def test_failing_regions_leave_memory_flat() -> None:
    def fail(count: int) -> None:
        big = dsm.zeros(100_000)
        kernel = dsm.parallel(workers=2)(lambda a: [bytearray(100_000), a][len(a)])
        for _ in range(count):
            with pytest.raises(IndexError):
                kernel(big)

    fail(50)
    before = state()
    fail(300)
    assert_flat(before)


def test_large_messages_and_results_leave_memory_flat() -> None:
    kernel = dsm.parallel(workers=2)(lambda data: data)
    data = os.urandom(3 * MiB)
    for _ in range(5):
        kernel(data)
    before = state()
    for _ in range(40):
        assert kernel(data) == [data, data]
    assert_flat(before, private=8)


def test_teams_of_many_sizes_leave_descriptors_flat() -> None:
    for size in (4, 1, 3, 2):
        ranks.using(workers=size)()
    before = state()
    for size in (1, 4, 2, 3, 1, 4):
        assert ranks.using(workers=size)() == list(range(size))
    assert_flat(before)


# -- Nothing is copied --------------------------------------------------------------------------


def proportional(pid: int) -> int:
    """PSS in bytes: memory of a process, shared pages divided among those who map them.

    Without the pages of files: libraries are divided among strangers too, who come and go.
    """
    fields = [line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()]
    sizes = {name: int(value) * 1024 for name, value, *_ in fields[1:]}
    return sizes["Pss_Anon:"] + sizes["Pss_Shmem:"]


@pytest.mark.parametrize("mebibytes", [4, 100])
def test_no_page_of_a_shared_array_is_copied(mebibytes: int) -> None:
    touch(dsm.zeros(100))
    process.housekeep()
    before = sum(map(proportional, workers()))
    a = dsm.zeros(mebibytes * MiB // 8)
    touch(a)
    touch(a[::2])
    assert a.sum() == a.size + a.size // 2
    grown = sum(map(proportional, workers())) - before
    assert (mebibytes - 1) * MiB <= grown < (mebibytes + 3) * MiB


def test_a_plain_array_is_held_once_more_and_not_per_worker() -> None:
    a = np.ones(4 * MiB)
    touch(np.ones(100))
    process.housekeep()
    before = sum(map(proportional, workers()))
    touch(a)
    grown = sum(map(proportional, workers())) - before
    assert grown < 32 * MiB + 4 * MiB
    assert a.sum() == 2 * a.size


def test_a_captured_plain_array_is_held_once_and_not_per_worker() -> None:
    table = np.ones(4 * MiB)
    kernel = dsm.parallel(workers=4)(lambda: float(table[::1000].sum()))
    with pytest.warns(dsm.PerformanceWarning, match="captures 'table'"):
        kernel()
    staging.drop_spares()
    process.housekeep()
    before = sum(map(proportional, workers()))
    kernel()
    assert sum(map(proportional, workers())) - before < 32 * MiB + 8 * MiB


# -- Many workers -------------------------------------------------------------------------------


def test_sixty_four_workers_on_few_cores() -> None:
    a = dsm.zeros(6400)

    @dsm.parallel(workers=64)
    def kernel(a: np.ndarray) -> int:
        for i in dsm.prange(len(a), schedule="dynamic,10"):
            a[i] += 1
        dsm.barrier()
        with dsm.critical():
            a[0] += 1
        return dsm.rank()

    for _ in range(3):
        assert kernel(a) == list(range(64))
    assert a[0] == 3 + 3 * 64
    assert (a[1:] == 3).all()


def processor_time() -> float:
    """Seconds of processor time that the team's processes have used."""
    total = 0
    for pid in workers()[1:]:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def test_an_idle_team_uses_no_processor_time() -> None:
    ranks.using(workers=64)()
    before = processor_time()
    waited = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    deadline = time.monotonic() + 1.0
    while time.monotonic() < deadline:
        time.sleep(0.1)  # idleness is what is measured
    assert processor_time() - before < 0.3
    assert resource.getrusage(resource.RUSAGE_SELF).ru_utime - waited < 0.3


def test_the_session_gives_the_memory_of_large_teams_back() -> None:
    process.shutdown()
    assert process.team_pids() == set()
    assert ranks() == [0, 1]
