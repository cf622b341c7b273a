"""Options: who decides when several do, and what is refused."""

from __future__ import annotations

import itertools
import os
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dsmfor as dsm
from dsmfor.options import Options, cpu_quota, default_workers


@dsm.parallel
def team() -> int:
    return dsm.size()


@dsm.parallel(workers=2)
def pair() -> int:
    return dsm.size()


@dsm.parallel(workers=2)
def shares(n: int) -> list[int]:
    return list(dsm.split(n))


@dsm.parallel(workers=2)
def dealt(n: int) -> list[int]:
    return [i for i in dsm.prange(n)]  # noqa: C416 - `list` would ask for its length


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DSM_WORKERS", "DSM_SCHEDULE", "DSM_ENGINE"):
        monkeypatch.delenv(name, raising=False)


# -- Precedence ---------------------------------------------------------------------------------


def test_without_any_choice_a_team_is_as_large_as_the_cores_allow() -> None:
    assert team() == [default_workers()] * default_workers()


def test_the_environment_wins_over_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSM_WORKERS", "3")
    assert team() == [3, 3, 3]


def test_the_decorator_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSM_WORKERS", "3")
    assert pair() == [2, 2]


def test_the_options_block_wins_over_the_decorator() -> None:
    with dsm.options(workers=3):
        assert pair() == [3, 3, 3]
    assert pair() == [2, 2]


def test_using_wins_over_the_options_block() -> None:
    with dsm.options(workers=3):
        assert pair.using(workers=1)() == [1]


def test_none_leaves_the_choice_to_the_next_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSM_WORKERS", "3")
    assert pair.using(workers=None)() == [3, 3, 3]


def test_variants_do_not_change_the_kernel_they_come_from() -> None:
    three = pair.using(workers=3)
    one = three.using(workers=1)
    assert (pair(), three(), one()) == ([2, 2], [3, 3, 3], [1])


def test_choices_of_using_add_up() -> None:
    both = shares.using(workers=3).using(schedule="static,1")
    assert both(7) == [[0, 3, 6], [1, 4], [2, 5]]


def test_blocks_nest_and_the_inner_one_wins() -> None:
    with dsm.options(workers=3, schedule="static,1"):
        with dsm.options(workers=1):
            assert shares(4) == [[0, 1, 2, 3]]
        assert shares(4) == [[0, 3], [1], [2]]
    assert shares(4) == [[0, 1], [2, 3]]


def test_a_block_ends_with_an_exception_too() -> None:
    with pytest.raises(KeyError), dsm.options(workers=3):
        raise KeyError
    assert pair() == [2, 2]


def test_a_block_holds_for_its_own_thread_alone() -> None:
    seen: list[Any] = []
    with dsm.options(workers=3):
        other = threading.Thread(target=lambda: seen.append(pair()))
        other.start()
        other.join()
    assert seen == [[2, 2]]


# -- Schedules ----------------------------------------------------------------------------------


def test_a_new_schedule_drops_the_chunk_of_the_old_one() -> None:
    @dsm.parallel(workers=2, schedule="static", chunk=1)
    def kernel() -> list[int]:
        return list(dsm.split(4))

    assert kernel() == [[0, 2], [1, 3]]
    assert kernel.using(schedule="static")() == [[0, 1], [2, 3]]


@pytest.mark.parametrize("schedule", ["static,1", dsm.Static(chunk=1)])
def test_a_schedule_is_a_word_or_an_object(schedule: str | dsm.Schedule, engine: str) -> None:
    expected = [[0, 1, 2]] if engine == "serial" else [[0, 2], [1]]
    assert shares.using(schedule=schedule, engine=engine)(3) == expected
    assert dealt.using(schedule=schedule, engine=engine)(3) == expected


def test_the_environment_names_the_runtime_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shares.using(schedule="runtime")(4) == [[0, 1], [2, 3]]
    monkeypatch.setenv("DSM_SCHEDULE", "static,1")
    assert shares.using(schedule="runtime")(4) == [[0, 2], [1, 3]]
    assert shares(4) == [[0, 1], [2, 3]], "only 'runtime' asks the environment"


def test_one_seed_gives_one_permutation_and_no_seed_many() -> None:
    random = shares.using(schedule="random")
    assert random.using(seed=5)(1000) == random.using(seed=5)(1000)
    assert random.using(seed=5)(1000) != random.using(seed=6)(1000)
    assert random(1000) != random(1000)
    assert sorted(itertools.chain(*random(1000))) == list(range(1000))


@pytest.mark.parametrize("seed", [0, 2**63, 2**64 - 1, 2**64, 2**200, np.int64(7)])
def test_any_integer_from_zero_up_is_a_seed(seed: int, engine: str) -> None:
    random = shares.using(schedule="random", engine=engine, seed=seed)
    first = random(20)
    assert first == random(20)
    assert sorted(itertools.chain(*first)) == list(range(20))


# -- The environment ----------------------------------------------------------------------------


def test_the_environment_names_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSM_ENGINE", "serial")
    assert pair() == [1]
    assert pair.last_report is not None
    assert pair.last_report.engine == "serial"
    assert pair.using(engine="process")() == [2, 2]


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", "2 3"])
def test_a_bad_number_of_workers_in_the_environment_is_named(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DSM_WORKERS", text)
    with pytest.raises(ValueError, match=f"DSM_WORKERS.*{text}"):
        team()
    assert pair() == [2, 2], "nobody asked the environment"


def test_a_bad_engine_in_the_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSM_ENGINE", "threads")
    with pytest.raises(ValueError, match=r"DSM_ENGINE.*'process', 'serial'.*'threads'"):
        pair()


@pytest.mark.parametrize("name", ["DSM_WORKERS", "DSM_ENGINE"])
def test_an_empty_variable_is_none_at_all(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "")
    assert team() == [default_workers()] * default_workers()


# -- What is refused ----------------------------------------------------------------------------

BAD = [
    ({"workers": 0}, ValueError, "workers.*at least 1.*0"),
    ({"workers": -2}, ValueError, "workers.*-2"),
    ({"workers": 2.0}, TypeError, "workers.*integer.*2.0"),
    ({"workers": True}, TypeError, "workers.*True"),
    ({"workers": "2"}, TypeError, "workers.*'2'"),
    ({"schedule": "guidd"}, ValueError, "guidd"),
    ({"schedule": 3}, TypeError, "3"),
    ({"chunk": 0}, ValueError, "chunk.*0"),
    ({"chunk": 1.5}, TypeError, "chunk.*1.5"),
    ({"reduce": "plus"}, ValueError, "reduce.*'plus'"),
    ({"reduce": 3}, TypeError, "reduce.*3"),
    ({"engine": "procces"}, ValueError, "'process', 'serial'.*'procces'"),
    ({"timeout": 0}, ValueError, "timeout.*0"),
    ({"timeout": -1.0}, ValueError, "timeout.*-1.0"),
    ({"timeout": float("nan")}, ValueError, "timeout.*nan"),
    ({"timeout": float("inf")}, ValueError, "timeout.*inf"),
    ({"timeout": "1 s"}, TypeError, "timeout.*'1 s'"),
    ({"blas_threads": 0}, ValueError, "blas_threads.*0"),
    ({"seed": -1}, ValueError, "seed.*-1"),
    ({"seed": 1.0}, TypeError, "seed.*1.0"),
]


@pytest.mark.parametrize(("choice", "kind", "message"), BAD, ids=[str(b[0]) for b in BAD])
def test_a_bad_value_is_refused_wherever_it_is_given(
    choice: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        dsm.parallel(**choice)
    with pytest.raises(kind, match=message):
        pair.using(**choice)
    with pytest.raises(kind, match=message), dsm.options(**choice):
        pass


def test_a_numpy_integer_is_an_integer() -> None:
    assert pair.using(workers=np.int32(3))() == [3, 3, 3]
    assert type(Options(workers=np.int32(3)).workers) is int  # type: ignore[arg-type]


def test_an_unknown_option_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(TypeError, match=r"'worker'.*did you mean 'workers'"):
        pair.using(worker=3)
    with pytest.raises(TypeError, match=r"'scedule'.*did you mean 'schedule'"):
        with dsm.options(scedule="static"):
            pass
    with pytest.raises(TypeError, match="worker"):
        dsm.parallel(worker=3)  # type: ignore[call-overload]


def test_what_belongs_to_the_kernel_alone_cannot_be_overridden() -> None:
    with pytest.raises(TypeError, match="shared"):
        pair.using(shared=["A"])


def test_a_team_that_no_block_can_hold_is_refused_with_the_bound() -> None:
    with pytest.raises(ValueError, match=r"at most \d+ workers.*100000"):
        pair.using(workers=100_000)()
    assert pair() == [2, 2]


# -- Cores --------------------------------------------------------------------------------------


def test_the_default_team_follows_the_affinity_of_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    room = sys.modules["dsmfor.options"]
    monkeypatch.setattr(room, "_counted", (-np.inf, 1))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3})
    assert default_workers() == 1


def system(root: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return str(root)


V2 = {"proc/self/mountinfo": "30 1 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"}
V1 = {"proc/self/mountinfo": "31 1 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"}


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 1 << 30),
        (V2 | {"proc/self/cgroup": "0::/\n"}, 1 << 30),
        (V2 | {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 1 << 30),
        (V2 | {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 2),
        (V2 | {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        (  # the tightest of the groups on the way up
            V2
            | {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/cpu.max": "800000 100000\n",
                "sys/fs/cgroup/a/cpu.max": "300000 100000\n",
            },
            3,
        ),
        (
            V1
            | {
                "proc/self/cgroup": "2:cpu,cpuacct:/x\n1:memory:/\n0::/\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "400000\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000\n",
            },
            4,
        ),
        (
            V1
            | {
                "proc/self/cgroup": "2:cpu,cpuacct:/x\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000\n",
            },
            1 << 30,
        ),
    ],
)
def test_a_quota_counts_in_whole_cores(files: dict[str, str], cores: int, tmp_path: Path) -> None:
    assert cpu_quota(system(tmp_path, files)) == cores
