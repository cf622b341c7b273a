"""Limits: every bound on memory is found, the tightest holds, and what exceeds it is refused."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path
from types import SimpleNamespace

import pytest

from dsmfor import limits, segments
from dsmfor.errors import SharedMemoryFull

MiB = 1 << 20


def write(root: Path, path: str, text: object) -> None:
    file = root / path.lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{text}\n")


@pytest.fixture
def system(tmp_path: Path) -> Path:
    """The root of a made-up machine with 1000 MiB to spare and no control groups."""
    limits._mounts.cache_clear()
    write(tmp_path, "/proc/meminfo", "MemTotal: 9999999 kB\nMemAvailable:  1024000 kB\n")
    return tmp_path


V1 = "31 23 0:28 / /sys rw - sysfs s rw\n35 31 0:32 {root} /cg/memory rw - cgroup cgroup rw,memory"
V2 = "35 31 0:32 {root} /cg rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate"


def test_without_control_groups_the_machine_is_the_bound(system: Path) -> None:
    assert limits.room(str(system)) == (1000 * MiB, "this machine (MemAvailable)")


def test_a_system_that_tells_nothing_bounds_nothing(tmp_path: Path) -> None:
    assert limits.room(str(tmp_path)).free >= 1 << 60


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("tightest", ["/a/b/c", "/a/b", "/a", ""])
def test_the_tightest_group_on_the_way_up_is_the_bound(
    system: Path, version: int, tightest: str
) -> None:
    base, limit, usage = (
        ("/cg/memory", "memory.limit_in_bytes", "memory.usage_in_bytes")
        if version == 1
        else ("/cg", "memory.max", "memory.current")
    )
    write(system, "/proc/self/mountinfo", (V1 if version == 1 else V2).format(root="/"))
    write(
        system,
        "/proc/self/cgroup",
        "5:devices:/elsewhere\n4:cpu,memory:/a/b/c\n0::/\n" if version == 1 else "0::/a/b/c",
    )
    for group in ("/a/b/c", "/a/b", "/a", ""):
        unlimited = 9223372036854771712 if version == 1 else "max"
        write(system, f"{base}{group}/{limit}", unlimited)
        write(system, f"{base}{group}/{usage}", 50 * MiB)
    write(system, f"{base}/x/{limit}", 1)  # not on the way
    assert limits.room(str(system)).free == 1000 * MiB
    write(system, f"{base}{tightest}/{limit}", 150 * MiB)
    assert limits.room(str(system)) == (100 * MiB, f"the control group {base}{tightest}")


@pytest.mark.parametrize(
    ("mount_root", "path", "group"),
    [
        ("/docker/1234", "/docker/1234", ""),  # v1 without a namespace: the host's name for it
        ("/docker/1234", "/docker/1234/inner", "/inner"),
        ("/docker/1234", "/unknown", ""),
        ("/docker/1234", "/docker/12345/other", ""),
        ("/", "/../../other", "/other"),
        ("/", "/gone/from/here", ""),
    ],
)
def test_a_container_finds_its_own_group(
    system: Path, mount_root: str, path: str, group: str
) -> None:
    write(system, "/proc/self/mountinfo", V1.format(root=mount_root))
    write(system, "/proc/self/cgroup", f"4:memory:{path}")
    write(system, f"/cg/memory{group}/memory.limit_in_bytes", 10 * MiB)
    write(system, f"/cg/memory{group}/memory.usage_in_bytes", 4 * MiB)
    assert limits.room(str(system)) == (6 * MiB, f"the control group /cg/memory{group}")


def test_each_controller_has_the_groups_of_its_own_hierarchy(system: Path) -> None:
    cpu = "36 31 0:33 / /cg/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct"
    unified = "37 31 0:34 / /cg/unified rw - cgroup2 cgroup2 rw"
    write(system, "/proc/self/mountinfo", "\n".join([V1.format(root="/"), cpu, unified]))
    write(system, "/proc/self/cgroup", "5:cpu,cpuacct:/job\n4:memory:/a/b\n0::/u")
    both = [(2, "/cg/unified/u"), (2, "/cg/unified")]
    assert list(limits.control_groups("cpu", str(system))) == [
        (1, "/cg/cpu,cpuacct/job"),
        (1, "/cg/cpu,cpuacct"),
        *both,
    ]
    assert list(limits.control_groups("memory", str(system))) == [
        (1, "/cg/memory/a/b"),
        (1, "/cg/memory/a"),
        (1, "/cg/memory"),
        *both,
    ]


def test_a_machine_without_proc_has_no_groups(tmp_path: Path) -> None:
    assert list(limits.control_groups("cpu", str(tmp_path))) == []


@pytest.mark.parametrize("version", [1, 2])
def test_cached_files_count_as_room_because_they_are_given_up(system: Path, version: int) -> None:
    base, limit, usage, prefix = (
        ("/cg/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
        if version == 1
        else ("/cg", "memory.max", "memory.current", "")
    )
    write(system, "/proc/self/mountinfo", (V1 if version == 1 else V2).format(root="/"))
    write(system, "/proc/self/cgroup", "4:memory:/" if version == 1 else "0::/")
    write(system, f"{base}/{limit}", 100 * MiB)
    write(system, f"{base}/{usage}", 100 * MiB)
    write(
        system,
        f"{base}/memory.stat",
        f"anon {MiB}\n{prefix}inactive_file {30 * MiB}\n{prefix}active_file {20 * MiB}",
    )
    assert limits.room(str(system)).free == 40 * MiB


@pytest.fixture
def ten_mib_left(system: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file whose number is what this process's control group has used, of 100 MiB."""
    write(system, "/proc/self/mountinfo", V2.format(root="/"))
    write(system, "/proc/self/cgroup", "0::/job")
    write(system, "/cg/job/memory.max", 100 * MiB)
    write(system, "/cg/job/memory.current", 90 * MiB)
    monkeypatch.setattr(limits, "_system", str(system))
    monkeypatch.setattr(limits, "_allowance", 0)
    monkeypatch.setattr(limits, "_allowed_until", 0.0)
    monkeypatch.setattr(segments, "_reclaimer", None)
    return system / "cg/job/memory.current"


def test_what_exceeds_the_groups_limit_is_refused_before_it_is_taken(
    ten_mib_left: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segments.create(8 * MiB)
    monkeypatch.setattr(os, "memfd_create", None)  # no call of it may happen any more
    with pytest.raises(SharedMemoryFull, match=r"20\.0 MiB.*control group /cg/job has .* MiB"):
        segments.create(20 * MiB)
    with pytest.raises(SharedMemoryFull, match="raise the limit"):
        segments.create(10 * MiB)  # not to the last page


def test_before_refusing_the_reclaimer_is_asked_once(ten_mib_left: Path) -> None:
    asked = []

    def reclaim() -> None:
        asked.append(1)
        ten_mib_left.write_text(str(len(asked) * 40 * MiB))

    segments.set_reclaimer(reclaim)
    assert segments.create(9 * MiB).nbytes == 9 * MiB
    assert asked == []
    assert segments.create(30 * MiB).nbytes == 30 * MiB
    assert asked == [1]
    with pytest.raises(SharedMemoryFull):
        segments.create(200 * MiB)
    assert asked == [1, 1]


def test_small_segments_share_one_look_at_the_limits_and_are_bounded_all_the_same(
    ten_mib_left: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []
    real = limits.room
    monkeypatch.setattr(limits, "room", lambda system: looks.append(1) or real(system))
    monkeypatch.setattr(limits, "time", SimpleNamespace(monotonic=lambda: 1000.0))
    for _ in range(50):
        segments.create(1000)
    assert len(looks) == 1
    ten_mib_left.write_text(str(100 * MiB))

    def many() -> None:
        for _ in range(100):
            segments.create(100_000)

    with pytest.raises(SharedMemoryFull):
        many()
    assert len(looks) == 2
    ten_mib_left.write_text("0")
    monkeypatch.setattr(limits, "time", SimpleNamespace(monotonic=lambda: 1002.0))
    segments.create(1)
    assert len(looks) == 3


@pytest.mark.parametrize(
    ("code", "doing", "kind", "remedy"),
    [
        (errno.EFBIG, "make", SharedMemoryFull, "ulimit -f"),
        (errno.ENOSPC, "make", SharedMemoryFull, "drop arrays"),
        (errno.EDQUOT, "make", SharedMemoryFull, "drop arrays"),
        (errno.ENOMEM, "map", SharedMemoryFull, "max_map_count, which allows .* \\(7 segments"),
        (errno.EMFILE, "make", SharedMemoryFull, "holds 7 segments.*ulimit -n"),
        (errno.ENOENT, "map", OSError, "/proc must be mounted"),
        (errno.EPERM, "make", OSError, "memfd_create"),
    ],
)
def test_a_refusal_says_what_was_asked_for_and_what_to_do(
    code: int, doing: str, kind: type[Exception], remedy: str
) -> None:
    error = limits.refusal(OSError(code, os.strerror(code)), doing, 3 * MiB, live=7)
    assert isinstance(error, kind)
    with pytest.raises(kind, match=rf"cannot {doing}.*3,145,728 bytes \(3\.0 MiB\).*{remedy}"):
        raise error


@pytest.mark.parametrize("hard", [1000, resource.RLIM_INFINITY])
def test_the_limit_on_descriptors_is_raised_as_far_as_it_goes(
    monkeypatch: pytest.MonkeyPatch, hard: int
) -> None:
    wanted: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda which: (100, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda which, limits: wanted.append(limits))
    assert limits.raise_descriptor_limit() == hard
    assert wanted == [(hard, hard)]


def test_a_limit_on_descriptors_that_may_not_be_raised_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(which: int, limits: tuple[int, int]) -> None:
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "getrlimit", lambda which: (100, 200))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert limits.raise_descriptor_limit() == 100
