"""Programs of py-dsm run on dsmfor.pydsm as they stand, without the defects of the original."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import types
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dsmfor as dsm
from dsmfor import pydsm
from dsmfor._native.shares import scattered
from dsmfor.pydsm import indices

Resource = dict[str, Any]


@pytest.fixture
def cluster() -> Iterator[pydsm.Cluster]:
    with pydsm.Cluster(2) as made:
        yield made


def fails(function: Any, *paras: Any, processes: int = 2) -> BaseException:
    """What runProcesses raises, in a Cluster with an array "A" and a lock "lock"."""
    with pydsm.Cluster(processes) as cluster:
        cluster.createShared("A", 4)
        cluster.createLock("lock")
        with pytest.raises(BaseException) as caught:
            cluster.runProcesses(function, paras)
        cluster.runProcesses(nothing)  # the Cluster goes on
    return caught.value


def nothing(resource: Resource) -> None:
    pass


# -- The seed's program ---------------------------------------------------------------------------


def add(resource: Resource, n: int) -> None:
    myid = resource["id"]
    A = pydsm.Cluster.getShared("A")
    B = pydsm.Cluster.getShared("B")
    C = pydsm.Cluster.getShared("C")
    myidxs = pydsm.Cluster.splitIndices(n, myid, random=False)
    C[myidxs] = A[myidxs] + B[myidxs]
    pydsm.Cluster.barrier()
    if myid == 1:
        print("Check out vector C in processes: ", np.array(C))


def test_the_vectors_of_the_seed_are_added_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pydsm.Cluster(4) as cluster:
        A = cluster.createShared(name="A", shape=10, dataType=int)
        B = cluster.createShared("B", 10, int)
        C = cluster.createShared("C", 10, int)
        A[:] = np.arange(10)
        B[:] = np.arange(10)
        B += 1
        cluster.runProcesses(add, paras=(10,))
        cluster.runProcesses(add, (10,))
    assert C.tolist() == list(range(1, 20, 2))
    line = "Check out vector C in processes:  [ 1  3  5  7  9 11 13 15 17 19]"
    assert capsys.readouterr().out.splitlines() == [line, line]


def test_rows_are_indexed_as_in_the_seed(cluster: pydsm.Cluster) -> None:
    A, Y = cluster.createShared("A", (100, 3), float), cluster.createShared("Y", (100, 2), float)
    X = np.arange(6.0).reshape(3, 2)
    A[:] = np.arange(300).reshape(100, 3)

    def rows(resource: Resource, X: Any) -> None:
        myidxs = pydsm.Cluster.splitIndices(100, resource["id"], random=True)
        resource["Y"][myidxs,] = np.matmul(resource["A"][myidxs,], X)

    cluster.runProcesses(rows, paras=(X,))
    np.testing.assert_array_equal(Y, A @ X)


# -- What is shared, what is a copy ---------------------------------------------------------------


def test_each_process_has_its_own_dictionary_with_all_that_is_shared() -> None:
    def look(resource: Resource, seen: Any) -> None:
        assert set(resource) == {"id", "A", "lock", "seen"}
        assert type(resource["id"]) is int
        assert (
            resource["A"].__array_interface__["data"]
            == (pydsm.Cluster.getShared("A").__array_interface__["data"])
        )
        seen[resource["id"]] += 1
        resource.clear()
        assert pydsm.Cluster.getShared("shm://A").shape == (2, 2)

    with pydsm.Cluster(3) as cluster:
        cluster.createShared("A", (2, 2))
        cluster.createLock("lock")
        seen = cluster.createShared("seen", 3)
        cluster.runProcesses(look, (seen,))
        assert seen.tolist() == [1, 1, 1]


table = np.zeros(4)
count = 0


def write_everywhere(
    resource: Resource, plain: Any, items: list[int], known: dict[str, Any]
) -> None:
    global count
    count += 1
    plain += 1
    table[:] = 7
    items.append(resource["id"])
    known["mine"] = resource["id"]
    resource["new"] = 1
    pydsm.Cluster.barrier()
    assert (count, plain[0], items, len(known)) == (1, 1, [resource["id"]], 1)


def test_each_process_writes_copies_of_its_own(cluster: pydsm.Cluster) -> None:
    plain, items, known = np.zeros(3), [], {}
    for _ in range(2):
        cluster.runProcesses(write_everywhere, (plain, items, known))
    assert (plain.sum(), items, known, count, table.sum()) == (0, [], {}, 0, 0)
    assert set(cluster.resources) == {"id"}


def test_shared_arrays_are_live_however_they_are_reached(cluster: pydsm.Cluster) -> None:
    A = cluster.createShared("A", (3, 4), float)
    box = types.SimpleNamespace(array=A)

    def write(resource: Resource, part: Any) -> None:
        with resource["lock"]:
            part += 1
            A[0] += 1
            box.array[1] += 1
            cluster.getShared("A")[2] += 1

    cluster.createLock("lock")
    cluster.runProcesses(write, (A.T,))
    assert (A == 4).all()


@pytest.mark.parametrize(
    "kind", [int, "float32", np.dtype(">i4"), [("x", "i4"), ("y", "f8")], "U5"]
)
def test_arrays_are_zero_and_of_any_fixed_type(cluster: pydsm.Cluster, kind: Any) -> None:
    A = cluster.createShared("A", (2, 3), kind)
    assert type(A) is np.ndarray
    assert (A.dtype, A.shape) == (np.dtype(kind), (2, 3))
    assert not A.tobytes().strip(b"\0")
    assert cluster.createShared("B", np.int64(0)).shape == (0,)
    assert cluster.createShared("C", [2, 1]).dtype == int


def test_functions_of_every_kind_run(cluster: pydsm.Cluster) -> None:
    A = cluster.createShared("A", 2)
    step = 5

    def closure(resource: Resource, k: int = 1) -> None:
        A[resource["id"]] += step * k

    class Model:
        k = 100

        def method(self, resource: Resource) -> None:
            self.deep()[resource["id"]] += self.k

        def deep(self) -> Any:
            return pydsm.Cluster.getShared("A")

        __call__ = method

    import functools

    cluster.runProcesses(closure)
    cluster.runProcesses(lambda resource: resource["A"].__setitem__(resource["id"], 1000 + step))
    cluster.runProcesses(functools.partial(closure, k=2))
    cluster.runProcesses(Model().method)
    cluster.runProcesses(Model())
    assert A.tolist() == [1215, 1215]


def test_functions_of_another_module_of_the_user_run(
    cluster: pydsm.Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pydsm_user.py").write_text(
        "from dsmfor import pydsm\nSTEP = 1\n"
        "def inner(i):\n    pydsm.Cluster.getShared('A')[i] = STEP\n"
        "def outer(resource):\n    inner(resource['id'])\n    pydsm.Cluster.barrier()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import pydsm_user

    A = cluster.createShared("A", 2)
    for step in (1, 3):
        pydsm_user.STEP = step
        cluster.runProcesses(pydsm_user.outer)
        assert A.tolist() == [step, step]
    del sys.modules["pydsm_user"]


# -- Splitting ------------------------------------------------------------------------------------

SIZES = st.integers(1, 70)


@given(n=st.integers(0, 700), size=SIZES, seed=st.integers(0, 2**64 - 1), turn=st.integers(0, 9))
@settings(deadline=None)
def test_shares_are_disjoint_covering_and_even(n: int, size: int, seed: int, turn: int) -> None:
    at_random = [indices.scatter(n, size, rank, seed, turn) for rank in range(size)]
    blocks = [indices.block(n, size, rank) for rank in range(size)]
    assert np.concatenate(blocks).tolist() == list(range(n))
    for shares in (at_random, blocks):
        assert sorted(np.concatenate(shares).tolist()) == list(range(n))
        lengths = [len(share) for share in shares]
        assert lengths == sorted(lengths)  # the longer ones last
        assert lengths[-1] - lengths[0] <= 1


@pytest.mark.parametrize(("n", "size"), [(7, 3), (10, 2), (200, 3), (5, 8)])
def test_every_index_falls_to_every_rank_with_the_same_chance(n: int, size: int) -> None:
    times, counts = 6000, np.zeros((size, n))
    for key in range(times):
        for rank in range(size):
            counts[rank, scattered(n, size, rank, key)] += 1
    lengths = counts.sum(axis=1, keepdims=True) / times
    chance = lengths / n  # of an index, to be that rank's
    spread = np.sqrt(np.maximum(times * chance * (1 - chance), 1e-9))
    assert (np.abs(counts - times * chance) <= 5.5 * spread).all()


def test_shares_depend_on_the_seed_and_on_the_turn() -> None:
    shares = {indices.scatter(50, 2, 0, *key).tobytes() for key in [(1, 1), (2, 1), (1, 2), (2, 2)]}
    assert len(shares) == 4
    assert indices.scatter(50, 2, 0, 1, 1).tolist() != sorted(indices.scatter(50, 2, 0, 1, 1))


@pytest.mark.parametrize("random", [True, False])
@pytest.mark.parametrize("n", [0, 1, 2, 10, 1001])
def test_processes_split_everything_among_them(n: int, random: bool) -> None:
    def split(resource: Resource, n: int) -> None:
        for _ in range(3):
            mine = pydsm.Cluster.splitIndices(n, resource["id"], random=random)
            assert mine.dtype == np.int64
            resource["A"][mine] += 1
            resource["lengths"][resource["id"]] = len(mine)

    with pydsm.Cluster(3) as cluster:
        A, lengths = cluster.createShared("A", n), cluster.createShared("lengths", 3)
        cluster.runProcesses(split, (n,))
        assert (A == 3).all()
        assert lengths.tolist() == [n // 3, (n + 1) // 3, (n + 2) // 3]


def record(resource: Resource, out: Any) -> None:
    for k in range(2):
        mine = pydsm.Cluster.splitIndices(out.shape[1], resource["id"])
        out[k, mine] = resource["id"]


def test_random_shares_follow_numpys_seed(cluster: pydsm.Cluster) -> None:
    state = np.random.get_state()  # noqa: NPY002
    try:
        seen = []
        for seed in (1, 2, 1):
            np.random.seed(seed)  # noqa: NPY002
            out = cluster.createShared(f"out{len(seen)}", (2, 64))
            cluster.runProcesses(record, (out,))
            seen.append(out.copy())
            assert np.random.random() == np.random.RandomState(seed).random_sample()  # noqa: NPY002
    finally:
        np.random.set_state(state)  # noqa: NPY002
    assert (seen[0] == seen[2]).all()
    assert (seen[0] != seen[1]).any()
    assert (seen[0][0] != seen[0][1]).any()


def test_a_share_is_a_list_where_an_array_would_differ_silently() -> None:
    share, none = indices.block(5, 2, 1), indices.block(1, 2, 0)
    assert share
    assert not none
    assert (share + [7]).tolist() == [2, 3, 4, 7]  # noqa: RUF005
    assert ([7] + share).tolist() == [7, 2, 3, 4]  # noqa: RUF005
    assert (share + indices.block(5, 2, 0)).tolist() == [2, 3, 4, 0, 1]
    assert (share + 1).tolist() == [3, 4, 5]
    assert 3 in share
    assert type(share * 2) is np.ndarray
    with pytest.raises(ValueError, match="ambiguous"):
        assert share == [2, 3, 4]
    assert share.sum() == 9


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((-1, 0), ValueError, "got -1"),
        ((4, 2), ValueError, "0 to 1, got 2"),
        ((4.0, 0), TypeError, "as length, got 4.0"),
        ((4,), TypeError, "as id, got None"),
    ],
)
def test_splits_of_nonsense_are_refused(arguments: Any, error: type, words: str) -> None:
    raised = fails(lambda resource: pydsm.Cluster.splitIndices(*arguments))
    assert type(raised) is error
    assert words in str(raised)


def test_splits_of_different_lengths_are_noticed() -> None:
    raised = fails(lambda resource: pydsm.Cluster.splitIndices(n=resource["id"], id=resource["id"]))
    assert isinstance(raised, dsm.RegionError)


# -- Locks and barriers ---------------------------------------------------------------------------


def raise_count(resource: Resource, n: int) -> None:
    lock, A = resource["foo_lock"], resource["A"]
    for _ in range(n):
        lock.apply()
        A[0] += 1
        lock.release()
        assert lock.acquire()
        raise_by_one(resource)
        with lock:
            A[2] += 1


def raise_by_one(resource: Resource) -> None:
    resource["A"][1] += 1
    resource["foo_lock"].release()


def test_a_lock_excludes_also_across_functions() -> None:
    with pydsm.Cluster(3) as cluster:
        A = cluster.createShared("A", 3)
        cluster.createdLock("foo_lock")
        cluster.runProcesses(raise_count, (200,))
        assert A.tolist() == [600] * 3


def test_a_lock_need_not_be_waited_for(cluster: pydsm.Cluster) -> None:
    def attempt(resource: Resource) -> None:
        lock, gate = resource["lock"], resource["gate"]
        if resource["id"] == 0:
            lock.acquire()
            gate[0] = 1
            while not gate[1]:
                pass
            assert not lock.acquire(False)
            lock.release()
        else:
            while not gate[0]:
                pass
            assert not lock.acquire(block=False)
            assert not lock.acquire(timeout=0.01)
            assert not lock.acquire(True, -1)
            gate[1] = 1
            assert lock.acquire(timeout=60)
            lock.release()

    cluster.createShared("gate", 2)
    cluster.createLock("lock")
    cluster.runProcesses(attempt)


def test_who_waits_for_some_time_only_ties_no_knot(cluster: pydsm.Cluster) -> None:
    def cross(resource: Resource) -> None:
        me, gate = resource["id"], resource["gate"]
        mine, other = (resource[name] for name in ("ab", "ba")[me])
        mine.acquire()
        gate[me] = 1
        while not gate.all():
            pass
        if me == 0:
            other.acquire()
            other.release()
        else:
            assert not other.acquire(timeout=0.3)  # rank 0 looks for a knot meanwhile
        mine.release()

    cluster.createShared("gate", 2)
    cluster.createLock("a")
    cluster.createLock("b")
    cluster.runProcesses(cross)


def acquire_twice(resource: Resource) -> None:
    resource["lock"].acquire()
    resource["lock"].acquire()


def release_of_another(resource: Resource) -> None:
    if resource["id"] == 1:
        resource["lock"].release()


def keep(resource: Resource) -> None:
    if resource["id"] == 1:
        resource["lock"].acquire()


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (acquire_twice, "holds critical('lock') already"),
        (release_of_another, "rank 1 releases critical('lock') and does not hold it"),
        (keep, "the end of the kernel was reached while this rank holds"),
    ],
)
def test_misuse_of_a_lock_is_an_error(function: Any, words: str) -> None:
    raised = fails(function)
    assert isinstance(raised, dsm.RegionError)
    assert words in str(raised)


def test_a_lock_of_the_program_excludes_threads_there(cluster: pydsm.Cluster) -> None:
    lock = cluster.createLock("lock")
    assert cluster.resources["lock"] is lock
    with lock:
        with pytest.raises(dsm.RegionError, match="already and would wait"):
            lock.acquire()
        seen: list[object] = []

        def other() -> None:
            seen.append(lock.acquire(timeout=0.01))
            try:
                lock.release()
            except dsm.RegionError as error:
                seen.append(type(error))

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert seen == [False, dsm.RegionError]
    with pytest.raises(dsm.RegionError, match="does not hold it"):
        lock.release()
    cluster.runProcesses(nothing)


def test_processes_meet_at_barriers_of_different_lines(cluster: pydsm.Cluster) -> None:
    def meet(resource: Resource) -> None:
        A = resource["A"]
        if resource["id"] == 0:
            A[0] = 1
            pydsm.Cluster.barrier()
        else:
            pydsm.Cluster.barrier()
            assert A[0] == 1
        cluster.barrier()

    cluster.createShared("A", 1)
    cluster.runProcesses(meet)


def test_a_process_that_fails_before_a_barrier_releases_the_others() -> None:
    def fail(resource: Resource) -> None:
        if resource["id"] == 1:
            raise KeyError("mine")
        pydsm.Cluster.barrier()

    raised = fails(fail, processes=3)
    assert isinstance(raised, KeyError)
    assert raised.args == ("mine",)


def test_a_process_that_never_comes_to_a_barrier_is_told() -> None:
    def skip(resource: Resource) -> None:
        if resource["id"] == 0:
            pydsm.Cluster.barrier()

    raised = fails(skip)
    assert isinstance(raised, dsm.RegionError)
    line = skip.__code__.co_firstlineno + 2
    assert f"the barrier in line {line}" in str(raised)


def test_a_killed_process_is_told() -> None:
    def die(resource: Resource) -> None:
        if resource["id"] == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        pydsm.Cluster.barrier()

    assert isinstance(fails(die), dsm.WorkerDied)


def test_exit_ends_a_process_and_not_the_program(cluster: pydsm.Cluster) -> None:
    cluster.runProcesses(lambda resource: sys.exit())
    raised = fails(lambda resource: sys.exit("no input"))
    assert type(raised) is RuntimeError
    assert "exit('no input')" in str(raised)


# -- Names, Clusters ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (
            lambda c: c.createShared("A", 3),
            ValueError,
            "'A' is taken: in this Cluster it is an arr",
        ),
        (lambda c: c.createLock("A"), ValueError, "it is an array"),
        (lambda c: c.createShared("lock", 3), ValueError, "it is a lock"),
        (lambda c: c.createShared("id", 3), ValueError, "it is the number of the process"),
        (lambda c: c.createShared(3, 3), TypeError, "must be a str, got 3"),
        (lambda c: c.createShared("B", -1), ValueError, "-1"),
        (lambda c: c.createShared("B", 1, object), TypeError, "dtype object"),
        (lambda c: c.runProcesses(nothing, 10), TypeError, "you want paras=(10,)"),
        (lambda c: c.runProcesses(nothing(c.resources)), TypeError, "takes a function, got None"),
        (lambda c: c.getShared("B"), FileNotFoundError, "named 'B' here, there is 'A'"),
        (lambda c: pydsm.Cluster.getShared("lock"), FileNotFoundError, "there is 'A'"),
        (lambda c: c.barrier(), dsm.RegionError, "called outside the processes"),
        (lambda c: c.splitIndices(3, 0), dsm.RegionError, "called outside the processes"),
    ],
)
def test_what_cannot_be_is_an_exception_and_the_arrays_stay(
    cluster: pydsm.Cluster, make: Any, error: type, words: str
) -> None:
    A = cluster.createShared("A", 2)
    cluster.createLock("lock")
    with pytest.raises(error) as caught:
        make(cluster)
    assert words in str(caught.value)
    assert cluster.getShared("A") is A
    assert cluster.sharedList == ["A"]


@pytest.mark.parametrize(
    ("number", "error"), [(0, ValueError), (-1, ValueError), (2.0, TypeError), (True, TypeError)]
)
def test_a_cluster_has_processes(number: Any, error: type) -> None:
    with pytest.raises(error):
        pydsm.Cluster(number)


def test_a_cluster_has_a_process_for_each_cpu() -> None:
    assert pydsm.Cluster().numThread == os.cpu_count()
    assert pydsm.Cluster(numThread=3).numThread == 3


def test_names_belong_to_their_cluster() -> None:
    def name(resource: Resource, value: int) -> None:
        pydsm.Cluster.getShared("A")[resource["id"]] = value
        pydsm.Cluster.barrier()
        assert (resource["A"] == value).all()

    with pydsm.Cluster(2) as one, pydsm.Cluster(3) as two:
        A, B = one.createShared("A", 2), two.createShared("A", 3)
        assert pydsm.Cluster.getShared("A") is B  # of the one made last
        one.runProcesses(name, (1,))
        two.runProcesses(name, (2,))
        assert (A.tolist(), B.tolist()) == ([1, 1], [2, 2, 2])
        assert one.getShared("A") is A


def test_clusters_of_several_threads_keep_out_of_each_others_way() -> None:
    errors: list[BaseException] = []

    def work(value: int) -> None:
        try:
            with pydsm.Cluster(2) as cluster:
                A = cluster.createShared("A", 2)
                assert pydsm.Cluster.getShared("A") is A
                for k in range(5):
                    cluster.runProcesses(fill, (value + k,))
                    assert A.tolist() == [value + k] * 2
        except BaseException as error:
            errors.append(error)

    def fill(resource: Resource, value: int) -> None:
        pydsm.Cluster.getShared("A")[resource["id"]] = value
        pydsm.Cluster.barrier()

    threads = [threading.Thread(target=work, args=(100 * k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_a_cluster_of_one_and_without_with() -> None:
    cluster = pydsm.Cluster(1)
    A = cluster.createShared("A", 5)
    cluster.runProcesses(record_all)
    assert A.tolist() == [1] * 5
    assert pydsm.Cluster.splitIndices(3, 0, random=False).tolist() == [0, 1, 2]
    cluster.barrier()
    cluster.terminate()
    cluster.terminate()
    with pytest.raises(FileNotFoundError, match="none at all"):
        pydsm.Cluster.getShared("A")
    for call in (
        lambda: cluster.createShared("B", 1),
        lambda: cluster.createLock("B"),
        lambda: cluster.runProcesses(nothing),
    ):
        with pytest.raises(dsm.RegionError, match="has been terminated"):
            call()
    assert A.tolist() == [1] * 5  # who has an array keeps it


def record_all(resource: Resource) -> None:
    resource["A"][pydsm.Cluster.splitIndices(5, resource["id"])] += 1


def test_deleted_names_are_free_again(cluster: pydsm.Cluster) -> None:
    A = cluster.createShared("A", 2)
    cluster.deleteShared()
    cluster.deleteShared()
    assert cluster.createShared("A", 3).shape == (3,)
    assert A.shape == (2,)
    cluster.runProcesses(nothing)


def test_what_a_process_cannot_do_is_told() -> None:
    with pydsm.Cluster(1) as cluster:
        calls = [
            lambda: cluster.createShared("B", 1),
            lambda: cluster.createLock("B"),
            lambda: cluster.runProcesses(nothing),
        ]
        for call in calls:
            with pytest.raises(dsm.RegionError, match="called in a process of a Cluster"):
                cluster.runProcesses(lambda resource, call=call: call())


def test_a_thread_of_a_process_finds_the_arrays(cluster: pydsm.Cluster) -> None:
    def start(resource: Resource) -> None:
        def write() -> None:
            pydsm.Cluster.getShared("A")[resource["id"]] = 1

        thread = threading.Thread(target=write)
        thread.start()
        thread.join()

    A = cluster.createShared("A", 2)
    cluster.runProcesses(start)
    assert A.tolist() == [1, 1]


def test_nothing_holds_a_cluster_or_its_arrays() -> None:
    cluster = pydsm.Cluster(2)
    cluster.runProcesses(nothing)
    gone = weakref.ref(cluster), weakref.ref(cluster.createShared("A", 2**18))
    cluster.runProcesses(nothing)
    del cluster
    gc.collect()
    assert [reference() for reference in gone] == [None, None]


def test_it_runs_serially_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSM_ENGINE", "serial")
    with pydsm.Cluster(4) as cluster:
        A, plain = cluster.createShared("A", 5), np.zeros(2)
        cluster.createLock("lock")

        def work(resource: Resource, plain: Any) -> None:
            record_all(resource)
            plain += os.getpid()
            with resource["lock"]:
                resource["A"][0] = 1
            pydsm.Cluster.barrier()

        cluster.runProcesses(work, (plain,))
        assert A.tolist() == [1] * 5
        assert plain.sum() == 0


# -- A whole program ------------------------------------------------------------------------------

KILLED = """
import os, signal
import dsmfor.pydsm as pydsm
cluster = pydsm.Cluster(2)
A = cluster.createShared("A", 10)
def run(resource):
    pydsm.Cluster.getShared("A")[resource["id"]] = 1
cluster.runProcesses(run)
print(A[:3], flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_program_does_not_block_the_next_run(tmp_path: Path) -> None:
    before = set(os.listdir("/dev/shm"))
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", KILLED],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert (done.returncode, done.stdout) == (-signal.SIGKILL, "[1 1 0]\n"), done.stderr
    assert list(tmp_path.iterdir()) == []  # no lock file
    assert set(os.listdir("/dev/shm")) <= before
