"""The doctor: each verdict on a machine that is made up so, and on real ones that are broken so."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dsmfor
from dsmfor import __main__ as command
from dsmfor import doctor, limits
from dsmfor.doctor.machine import PROBES
from dsmfor.engines import process

MiB, GiB = 1 << 20, 1 << 30
V1 = "35 31 0:32 / /cg/{0} rw - cgroup cgroup rw,{0}\n"


def write(root: Path, path: str, text: object) -> None:
    file = root / path.lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{text}\n")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Files of a machine with whom all is well."""
    limits._mounts.cache_clear()
    write(tmp_path, "/proc/meminfo", "MemAvailable: 8000000 kB")
    write(tmp_path, "/proc/self/mountinfo", "".join(map(V1.format, ("memory", "pids", "cpu"))))
    write(tmp_path, "/proc/self/cgroup", "1:memory:/job\n2:pids:/job\n3:cpu:/job")
    write(tmp_path, "/proc/sys/vm/overcommit_memory", 0)
    write(tmp_path, "/proc/sys/vm/max_map_count", 65530)
    write(tmp_path, "/proc/sys/vm/memfd_noexec", 0)
    write(tmp_path, "/sys/kernel/mm/transparent_hugepage/shmem_enabled", "always [never] force")
    (tmp_path / "dev/shm").mkdir(parents=True)
    return tmp_path


@pytest.fixture
def well(root: Path) -> doctor.Machine:
    """A made-up machine with whom all is well, whatever is the matter with this one."""
    unlimited = {"CORE": (0, 0)}
    return doctor.Machine(
        root=str(root),
        release="6.1.0",
        python="3.12.1",
        executable="/usr/bin/python3",
        uid=1000,
        cores=8,
        usable=8,
        limit=lambda name: unlimited.get(name, (-1, -1)),
        refused=lambda name: None,
        unwritable=lambda path: None,
        room=lambda path: (8 * GiB, 4 * GiB),
        version=lambda package: "99.0",
        layout=lambda: None,
        pools=lambda: [{"internal_api": "openblas", "version": "0.3", "num_threads": 8}],
    )


def refusing(which: str, code: int) -> Callable[[str], OSError | None]:
    return lambda name: OSError(code, os.strerror(code)) if name == which else None


def limited(which: str, soft: int, hard: int | None = None) -> Callable[[str], tuple[int, int]]:
    bounds = {"CORE": (0, 0), which: (soft, soft if hard is None else hard)}
    return lambda name: bounds.get(name, (-1, -1))


def test_a_machine_with_whom_all_is_well_gets_no_advice(well: doctor.Machine) -> None:
    findings = doctor.examine(well)
    assert {finding.verdict for finding in findings} == {"ok"}
    assert all(finding.found and not finding.remedy for finding in findings)
    assert doctor.sound(findings)


# What is changed, the topic that is another one then, its verdict, and words of it.
FIELDS: list[tuple[dict[str, Any], str, str, str]] = [
    ({"release": "4.18.0-el8"}, "kernel", "problem", "4.18.0.*5.3 or later"),
    ({"release": "5.2.9"}, "kernel", "problem", "5.2.9.*5.3 or later"),
    ({"executable": ""}, "interpreter", "problem", "embedded.*set sys.executable"),
    ({"version": lambda p: None if p == "SharedArray" else "99"}, "SharedArray", "problem",
     "not installed.*pip install 'SharedArray>=3.2.4'"),
    ({"version": lambda p: "1.26.4" if p == "numpy" else "99"}, "numpy", "problem",
     r"1\.26\.4.*pip install 'numpy>=2\.0'"),
    ({"version": lambda p: "2.2.1" if p == "cloudpickle" else "99"}, "cloudpickle", "problem",
     "2.2.1"),
    ({"version": lambda p: None if p == "threadpoolctl" else "99"}, "threadpoolctl", "problem", ""),
    ({"layout": lambda: ImportError("no such thing")}, "array layout", "problem",
     "no such thing.*force-reinstall"),
    ({"limit": limited("NOFILE", 60)}, "ulimit -n (files)", "problem", "60.*LimitNOFILE"),
    ({"limit": limited("NOFILE", 256, 1024)}, "ulimit -n (files)", "advice",
     "256, which dsmfor raises to 1,024.*ulimit -Hn"),
    ({"limit": limited("NPROC", 3)}, "processes", "problem", "ulimit -u is 3.*ulimit -u 4096"),
    ({"limit": limited("AS", 100 * MiB)}, "ulimit -v (addresses)", "problem",
     "100 MiB.*ulimit -v unlimited"),
    ({"limit": limited("AS", 4 * GiB)}, "ulimit -v (addresses)", "advice", "all of them together"),
    ({"limit": limited("FSIZE", 4096)}, "ulimit -f (file size)", "problem", "4 KiB.*ulimit -f"),
    ({"limit": limited("FSIZE", GiB)}, "ulimit -f (file size)", "advice", "1 GiB.*no array"),
    ({"limit": limited("CORE", -1)}, "ulimit -c (cores)", "advice", "core file.*coredump_filter"),
    ({"usable": 1}, "cores", "advice", "8 in the machine, 1 by affinity.*--cpus=4"),
    ({"unwritable": lambda _: OSError(errno.EROFS, "Read-only file system")}, "/dev/shm", "advice",
     "Read-only.*remount,rw"),
    ({"unwritable": lambda _: OSError(errno.EACCES, "denied")}, "/dev/shm", "advice", "chmod 1777"),
    ({"unwritable": lambda _: OSError(errno.ENOSPC, "full")}, "/dev/shm", "advice", "remove files"),
    ({"room": lambda _: (64 * MiB, MiB)}, "/dev/shm", "advice", "1 MiB of 64 MiB.*--shm-size"),
    *[
        ({"refused": refusing(name, errno.EPERM)}, name, "problem", "not permitted.*" + (
            "mount -t proc" if name.startswith("/proc") else "seccomp"))
        for name in PROBES
    ],
]  # fmt: skip


@pytest.mark.parametrize(("change", "topic", "verdict", "words"), FIELDS)
def test_what_is_amiss_is_found_told_and_remedied(
    well: doctor.Machine, change: dict[str, Any], topic: str, verdict: str, words: str
) -> None:
    judged(dataclasses.replace(well, **change), topic, verdict, words)


FILES: list[tuple[str, str | None, str, str, str]] = [
    (
        "/proc/meminfo",
        "MemAvailable: 9000 kB",
        "memory",
        "problem",
        "9 MiB.*this machine.*end other",
    ),
    ("/proc/meminfo", "MemAvailable: 99000 kB", "memory", "advice", "97 MiB.*raise the limit"),
    ("/proc/meminfo", None, "memory", "advice", "kills instead.*mount -t proc"),
    ("/cg/memory/memory.limit_in_bytes", str(10 * MiB), "memory", "problem", "10 MiB.*/cg/memory "),
    ("/proc/sys/vm/overcommit_memory", "2", "overcommit", "advice", "overcommit_memory=0"),
    ("/proc/sys/vm/max_map_count", "1000", "vm.max_map_count", "advice", "1,000.*sysctl"),
    ("/proc/sys/kernel/yama/ptrace_scope", "2", "ptrace", "advice", "ptrace_scope=1"),
    ("/cg/pids/job/pids.max", "4", "processes", "problem", "/cg/pids/job allows 4.*--pids-limit"),
    ("/cg/cpu/cpu.cfs_quota_us", "100000", "cores", "advice", "1 by quota: 1 worker by.*--cpus"),
]


@pytest.mark.parametrize(("path", "text", "topic", "verdict", "words"), FILES)
def test_what_the_systems_files_say_is_judged(
    well: doctor.Machine,
    root: Path,
    path: str,
    text: str | None,
    topic: str,
    verdict: str,
    words: str,
) -> None:
    write(root, "/cg/cpu/cpu.cfs_period_us", 100000)
    if text is None:
        (root / path.lstrip("/")).unlink()
    else:
        write(root, path, text)
    judged(well, topic, verdict, words)


def judged(machine: doctor.Machine, topic: str, verdict: str, words: str) -> None:
    """Exactly this topic is not in order, with that verdict and those words."""
    findings = doctor.examine(machine)
    amiss = [finding for finding in findings if finding.verdict != "ok"]
    assert [(finding.topic, finding.verdict) for finding in amiss] == [(topic, verdict)]
    assert re.search(words, f"{amiss[0].found} {amiss[0].remedy}", re.DOTALL)
    assert amiss[0].remedy
    assert doctor.sound(findings) == (verdict != "problem")


def test_without_the_directory_for_names_there_is_advice(well: doctor.Machine, root: Path) -> None:
    (root / "dev/shm").rmdir()
    judged(well, "/dev/shm", "advice", "is not there.*mount -t tmpfs")


def test_an_old_kernel_is_told_since_when_linux_has_what_it_lacks(well: doctor.Machine) -> None:
    machine = dataclasses.replace(
        well, release="5.0.1", refused=refusing("future-write seal", errno.EINVAL)
    )
    findings = {f.topic: f for f in doctor.examine(machine) if f.verdict != "ok"}
    assert findings.keys() == {"kernel", "future-write seal"}
    assert "since 5.1: update the kernel" in findings["future-write seal"].remedy


def test_processes_of_root_are_not_limited_by_ulimit(well: doctor.Machine) -> None:
    machine = dataclasses.replace(well, uid=0, limit=limited("NPROC", 3))
    assert doctor.sound(doctor.examine(machine))


def test_the_table_has_every_finding_and_the_sum(well: doctor.Machine) -> None:
    good = doctor.examine(well)
    assert doctor.as_table(good).endswith("\n\ndsmfor will work here.")
    advised = [*good, doctor.Finding("x", "advice", "slow", "buy a faster one")]
    table = doctor.as_table(advised, 80)
    assert table.endswith("will work here; 1 piece of advice.")
    assert re.search(r"^advice   x +slow\n +-> buy a faster one$", table, re.MULTILINE)
    assert max(map(len, table.splitlines())) <= 80
    bad = [*advised, *[doctor.Finding("y", "problem", "broken " * 30, "mend it")] * 2]
    assert doctor.as_table(bad).endswith("will not work here: 2 problems to solve.")


def test_the_command_tells_machines_what_it_tells_people(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command.main(["doctor", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["sound"] is True
    topics = [finding["topic"] for finding in told["findings"]]
    assert topics[-3:] == ["region", "killed worker", "empty region"]
    assert command.main(["doctor"]) == 0
    table = capsys.readouterr().out
    assert all(f" {topic} " in table for topic in topics)
    process.shutdown()
    assert command.main(["doctor", "--no-trial"]) == 0
    assert process.team_pids() == set()


def test_a_trial_that_fails_is_a_problem_and_the_last_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail() -> str:
        raise dsmfor.WorkerDied("worker 1 is gone")

    monkeypatch.setattr("dsmfor.doctor.rehearsal._killed", fail)
    findings = list(doctor.trial())
    assert [finding.verdict for finding in findings] == ["ok", "problem"]
    assert "WorkerDied: worker 1 is gone" in findings[1].found


SECCOMP = """
import ctypes, os, struct, sys
number = {"x86_64": %s, "aarch64": %s}[os.uname().machine]
steps = [(32, 0, 0, 0), (21, 0, 1, number), (6, 0, 0, 0x50000 | %d), (6, 0, 0, 0x7FFF0000)]
program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
libc = ctypes.CDLL(None)
libc.prctl(38, 1, 0, 0, 0)
assert not libc.prctl(22, 2, struct.pack("HxxxxxxP", 4, ctypes.addressof(program)), 0, 0)
"""
RLIMIT = "import resource; resource.setrlimit(resource.RLIMIT_%s, (%d, %d))"


@pytest.mark.parametrize(
    ("how", "topic"),
    [
        (SECCOMP % (319, 279, errno.EPERM), "memfd_create"),
        (SECCOMP % (434, 434, errno.ENOSYS), "pidfd_open"),
        (RLIMIT % ("FSIZE", 4096, 4096), "ulimit -f (file size)"),
        (RLIMIT % ("NOFILE", 40, 40), "ulimit -n (files)"),
    ],
)
def test_on_a_machine_that_is_really_broken_the_doctor_says_so_and_exits_with_one(
    how: str, topic: str
) -> None:
    program = (
        f"{how}\nimport sys\nfrom dsmfor.__main__ import main\nsys.exit(main(['doctor', '--json']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": str(Path(dsmfor.__file__).parent.parent)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, "")
    told = json.loads(done.stdout)
    assert topic in [f["topic"] for f in told["findings"] if f["verdict"] == "problem"]
    assert not told["sound"]
