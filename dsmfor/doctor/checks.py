"""What the doctor looks at, one function a topic: kernel, memory, limits, cores, software.

Thresholds are those of what dsmfor takes (engines/PROTOCOL.md, section 7): a descriptor and a
mapping for each array from 1 MiB up, a process for each worker and one more, control memory of
some hundred KiB, small arrays in arenas of 64 MiB that are files of that size.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator

from dsmfor import limits
from dsmfor.doctor.findings import Finding, Verdict
from dsmfor.doctor.machine import PROBES, Machine
from dsmfor.options import cpu_quota

__all__ = ["examine"]

MIB = 1 << 20
_UNLIMITED = -1
_DIRECTORY = "/dev/shm"  # noqa: S108  # it is what is looked at
_NEEDED = {"numpy": "2.0", "SharedArray": "3.2.4", "cloudpickle": "3.0", "threadpoolctl": "3.1"}

_LACKS = {  # what is lost without a system call, and since when Linux has it
    "memfd_create": ("no shared memory can be made", "3.17"),
    "fallocate": ("no memory can be reserved before it is used", "2.6.23"),
    "seals": ("another process could cut shared memory short", "3.17"),
    "future-write seal": ("messages between processes could not be made read-only", "5.1"),
    "pidfd_open": ("the death of a worker could not be seen", "5.3"),
    "eventfd": ("freed memory could not be told of", "2.6.22"),
    "/proc/self/fd": ("shared memory could not be mapped", "2.2"),
}


def examine(machine: Machine, workers: int = 2) -> list[Finding]:
    """Look at everything that can be looked at without starting a team.

    Parameters
    ----------
    machine : Machine
    workers : int
        For how many the limits must suffice.
    """
    return [
        *_kernel(machine),
        *_software(machine),
        *_memory(machine),
        *_shared_memory_directory(machine),
        *_limits(machine, workers),
        *_cores(machine),
        *_blas(machine),
    ]


def _kernel(machine: Machine) -> Iterator[Finding]:
    number = re.match(r"(\d+)\.(\d+)", machine.release)
    old = number is None or (int(number[1]), int(number[2])) < (5, 3)
    yield Finding(
        "kernel",
        "problem" if old else "ok",
        f"Linux {machine.release}",
        "dsmfor needs Linux 5.3 or later: update the kernel, or the machine" if old else "",
    )
    for name in PROBES:
        error = machine.refused(name)
        if error is None:
            continue
        lost, since = _LACKS[name]
        if name == "/proc/self/fd":
            remedy = "mount /proc: mount -t proc proc /proc"
        elif error.errno in (errno.EPERM, errno.EACCES) or not old:
            remedy = (
                f"Linux has it since {since}, so a filter refuses it: allow it in the container's "
                "seccomp profile (newer Dockers and Podmans do) or the unit's SystemCallFilter="
            )
        else:
            remedy = f"Linux has it since {since}: update the kernel"
        yield Finding(name, "problem", f"{error.strerror or error}: {lost}", remedy)
    noexec = machine.read("/proc/sys/vm/memfd_noexec") or "not known to this kernel"
    yield Finding("vm.memfd_noexec", "ok", f"{noexec}; dsmfor asks for memory that cannot run")
    yama = machine.read("/proc/sys/kernel/yama/ptrace_scope")
    if yama in ("2", "3"):
        yield Finding(
            "ptrace",
            "advice",
            f"kernel.yama.ptrace_scope is {yama}: debuggers and profilers cannot attach to workers",
            "sysctl kernel.yama.ptrace_scope=1, or debug with kernel.serial(...)",
        )
    else:
        yield Finding("ptrace", "ok", f"kernel.yama.ptrace_scope is {yama or 'not there'}")


def _software(machine: Machine) -> Iterator[Finding]:
    if not machine.executable:
        yield Finding(
            "interpreter",
            "problem",
            "sys.executable is empty: Python is embedded in another program",
            "set sys.executable to the path of a Python interpreter before the first call",
        )
    else:
        yield Finding("interpreter", "ok", f"Python {machine.python}, {machine.executable}")
    for package, needed in _NEEDED.items():
        version = machine.version(package)
        low = version is None or _numbers(version) < _numbers(needed)
        yield Finding(
            package,
            "problem" if low else "ok",
            version or "is not installed",
            f"pip install '{package}>={needed}'" if low else "",
        )
    error = machine.layout()
    if error is None:
        yield Finding("array layout", "ok", "SharedArray lays arrays out as dsmfor does")
    else:
        text = f"SharedArray cannot be used: {error}"
        yield Finding(
            "array layout", "problem", text, "pip install --force-reinstall 'SharedArray>=3.2.4'"
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])


def _memory(machine: Machine) -> Iterator[Finding]:
    free, where = limits.room(machine.root)
    if free >= 1 << 60:
        yield Finding(
            "memory",
            "advice",
            "neither /proc/meminfo nor a control group says how much is left, so an array that is "
            "too large is not refused: the system kills instead",
            "mount /proc: mount -t proc proc /proc",
        )
    else:
        verdict: Verdict = (
            "ok" if free >= 256 * MIB else "advice" if free >= 32 * MIB else "problem"
        )
        yield Finding(
            "memory",
            verdict,
            f"{_size(free)} may still be taken: that is what {where} leaves",
            "" if verdict == "ok" else "end other programs, or raise the limit that is named",
        )
    groups = list(limits.control_groups("memory", machine.root))
    versions = " and ".join(sorted({f"version {version}" for version, _ in groups}))
    bounds = []
    for version, directory in groups:
        files = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        files = files if version == 1 else ("memory.max", "memory.current")
        most, used = (machine.read(f"{directory}/{name}") for name in files)
        if most.isdigit() and int(most) < 1 << 62:
            bounds.append(f"{directory} allows {_size(int(most))} and has {_size(int(used or 0))}")
    found = f"{versions}; " if groups else ""
    yield Finding("control groups", "ok", found + ("; ".join(bounds) or "no limit on memory"))
    if machine.read("/proc/sys/vm/overcommit_memory") == "2":
        yield Finding(
            "overcommit",
            "advice",
            "vm.overcommit_memory is 2: each worker's address space counts as if it were used",
            "sysctl vm.overcommit_memory=0, or raise vm.overcommit_ratio",
        )
    else:
        yield Finding("overcommit", "ok", "address space does not count as memory")
    pages = re.search(
        r"\[(\w+)\]", machine.read("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
    )
    state = pages[1] if pages else "not there"
    yield Finding("huge pages", "ok", f"transparent huge pages for shared memory: {state}")


def _shared_memory_directory(machine: Machine) -> Iterator[Finding]:
    needed = "needed for arrays under a name alone"
    path = machine.there(_DIRECTORY)
    if path is None:
        yield Finding(
            _DIRECTORY,
            "advice",
            f"is not there ({needed})",
            "mount -t tmpfs -o mode=1777 tmpfs /dev/shm",
        )
        return
    error = machine.unwritable(path)
    total, free = machine.room(path)
    if error is not None:
        remedy = "mount -o remount,rw /dev/shm"
        if error.errno in (errno.EACCES, errno.EPERM):
            remedy = "chmod 1777 /dev/shm"
        elif error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "remove files that nobody uses from /dev/shm"
        found = f"no file can be made there: {error.strerror} ({needed})"
        yield Finding(_DIRECTORY, "advice", found, remedy)
    elif free < 64 * MIB:
        yield Finding(
            _DIRECTORY,
            "advice",
            f"{_size(free)} of {_size(total)} are free ({needed})",
            "docker run --shm-size=1g ..., or mount -o remount,size=50% /dev/shm",
        )
    else:
        yield Finding(_DIRECTORY, "ok", f"{_size(free)} of {_size(total)} are free ({needed})")


def _limits(machine: Machine, workers: int) -> Iterator[Finding]:
    soft, hard = machine.limit("NOFILE")
    found = _bound(soft) + ("" if soft == hard else f", which dsmfor raises to {_bound(hard)}")
    found += ": one for each array from 1 MiB up"
    few = hard != _UNLIMITED and hard < 64 + 8 * workers
    many = hard == _UNLIMITED or hard >= 4096
    yield Finding(
        "ulimit -n (files)",
        "problem" if few else "ok" if many else "advice",
        found,
        "" if many else "raise the hard limit: ulimit -Hn 65536, LimitNOFILE= or limits.conf",
    )
    yield _processes(machine, workers)
    yield _sized(machine, "AS", "ulimit -v (addresses)", 8 << 30, 512 * MIB)
    yield _sized(machine, "FSIZE", "ulimit -f (file size)", 1 << 40, MIB)
    soft, _ = machine.limit("CORE")
    yield Finding(
        "ulimit -c (cores)",
        "ok" if soft == 0 else "advice",
        _bound(soft)
        + ("" if soft == 0 else ": a worker that crashes writes all shared arrays to a core file"),
        "" if soft == 0 else "ulimit -c 0, or echo 0x31 > /proc/self/coredump_filter",
    )
    text = machine.read("/proc/sys/vm/max_map_count")
    most = int(text) if text.isdigit() else 65530
    yield Finding(
        "vm.max_map_count",
        "ok" if most >= 16384 else "advice",
        f"{most:,} mappings for each process: one for each array from 1 MiB up",
        "" if most >= 16384 else "sysctl vm.max_map_count=65530",
    )


def _processes(machine: Machine, workers: int) -> Finding:
    """How many processes may still be started, by ulimit and control groups."""
    needed = workers + 3  # the warden, a thread, and one that takes a dead worker's place
    soft, _ = machine.limit("NPROC")
    left: list[tuple[int, str, str]] = []
    if machine.uid != 0 and soft != _UNLIMITED:
        left.append((soft, f"ulimit -u is {soft:,}", "ulimit -u 4096"))
    for version, group in limits.control_groups("pids", machine.root):
        most, now = (machine.read(f"{group}/pids.{what}") for what in ("max", "current"))
        if most.isdigit():
            found = f"{group} allows {int(most):,} and has {int(now or 0):,}"
            remedy = "docker run --pids-limit=512 ..., or raise TasksMax="
            left.append((int(most) - int(now or 0), found, remedy if version else ""))
    if not left:
        return Finding("processes", "ok", "no limit of this user or of a control group")
    fewest, found, remedy = min(left)
    bad = fewest < needed
    return Finding("processes", "problem" if bad else "ok", found, remedy if bad else "")


def _sized(machine: Machine, name: str, topic: str, enough: int, least: int) -> Finding:
    """A limit in bytes: below `least` no team starts, below `enough` large arrays do not fit."""
    soft, _ = machine.limit(name)
    if soft == _UNLIMITED or soft >= enough:
        return Finding(topic, "ok", _bound(soft, in_bytes=True))
    verdict: Verdict = "problem" if soft < least else "advice"
    found = f"{_size(soft)}: no array can be larger"
    found += ", nor all of them together" if name == "AS" else ""
    return Finding(topic, verdict, found, " ".join(topic.split()[:2]) + " unlimited")


def _cores(machine: Machine) -> Iterator[Finding]:
    quota = cpu_quota(machine.root)
    default = max(1, min(machine.usable, quota))
    found = f"{machine.cores} in the machine, {machine.usable} by affinity"
    found += f", {quota} by quota" if quota < 1 << 30 else ", no quota"
    found += f": {default} worker{'s' if default > 1 else ''} by default"
    remedy = ""
    if default == 1:
        remedy = (
            "with one core nothing runs at the same time: raise the quota (docker run --cpus=4)"
        )
        remedy += " or the affinity (taskset)"
    yield Finding("cores", "advice" if default == 1 else "ok", found, remedy)


def _blas(machine: Machine) -> Iterator[Finding]:
    pools = machine.pools()
    if not pools:
        yield Finding("BLAS", "ok", "no library with threads of its own is loaded")
        return
    found = "; ".join(
        f"{pool.get('internal_api')} {pool.get('version') or ''} with {pool.get('num_threads')} "
        "threads".replace("  ", " ")
        for pool in pools
    )
    yield Finding(
        "BLAS",
        "ok",
        f"{found}, in this process. In workers 1 (blas_threads=), so that they do not multiply",
    )


def _bound(number: int, *, in_bytes: bool = False) -> str:
    if number == _UNLIMITED:
        return "unlimited"
    return _size(number) if in_bytes else f"{number:,}"


def _size(nbytes: int) -> str:
    value = float(nbytes)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
