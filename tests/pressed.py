"""A program under limits: takes memory, descriptors and processes wherever dsmfor does.

    python tests/pressed.py LIMIT...

Meets one limit after the other and prints a JSON object of what happened under each. By place,
what came, "ok" or an error: `places`, and `lifted`, for those that had failed, once the limit was
gone. `kept` says whether earlier arrays had their values, `held` what there was before and after.
A limit that cannot be made here says why: `impossible`. What must happen says test_pressure.py.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import resource
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

import dsmfor as dsm
from dsmfor import arenas, limits, segments
from dsmfor.engines import process

MiB = 1 << 20
N = 24 * MiB
FREE = 32 * MiB  # where memory is limited: N fits once, not twice
PAGE = os.sysconf("SC_PAGE_SIZE")


# -- Places ---------------------------------------------------------------------------------------


@dsm.parallel(workers=2)
def nothing() -> int:
    return dsm.rank()


@dsm.parallel(workers=2)
def touch(a: np.ndarray) -> None:
    for part in dsm.pslices(len(a)):
        a[part] += 1


@dsm.parallel(workers=2, private=["a"])
def own(a: np.ndarray) -> int:
    a[0] += 1
    return int(a[0])


@dsm.parallel(workers=2)
def make(nbytes: int) -> int:
    a = dsm.single(dsm.zeros, nbytes, np.uint8)
    a[dsm.rank()] = 1
    dsm.barrier()
    return int(a[:2].sum())


@dsm.parallel(workers=2)
def give(nbytes: int) -> object:
    return np.ones(nbytes, np.uint8) if dsm.rank() == 1 else None


@dsm.parallel(workers=2)
def take(data: bytes) -> int:
    return len(data)


@dsm.parallel(workers=2)
def hand_round(nbytes: int) -> int:
    return len(dsm.single(bytes, nbytes))


@dsm.parallel(workers=2)
def totals(many: list[np.ndarray]) -> float:
    return sum(float(a[0]) for a in many)


class Places:
    """Everything that takes something. What is needed beforehand is made without a limit."""

    def __init__(self) -> None:
        self.plain = np.ones(N, np.uint8)  # its pages are there
        self.data = bytes(bytearray(N))
        self.before = dsm.full(N, 3, np.uint8)  # no worker has seen it
        self.many = [dsm.full(MiB, n, np.uint8) for n in range(3)]

    def small(self) -> None:
        kept = [dsm.full(1000, n) for n in range(3)]
        assert [a[-1] for a in kept] == [0, 1, 2]

    def large(self) -> None:
        a = dsm.full(2 * N, 7, np.uint8)
        assert a[-1] == 7

    def region(self) -> None:
        assert nothing() == [0, 1]

    def made_in_a_kernel(self) -> None:
        assert make(2 * N) == [2, 2]

    def plain_argument(self) -> None:
        before = int(self.plain[-1])
        touch(self.plain)
        assert self.plain[-1] == before + 1

    def private_copies(self) -> None:
        before = int(self.plain[0])
        assert own(self.plain) == [before + 1] * 2
        assert self.plain[0] == before

    def payload(self) -> None:
        assert take(self.data) == [N, N]

    def result(self) -> None:
        one, two = give(N)
        assert one is None
        assert two[-1] == 1

    def exchange(self) -> None:
        assert hand_round(N) == [N, N]

    def mapping(self) -> None:
        first = int(self.before[0])
        touch(self.before)
        assert self.before[0] == first + 1
        self.before[:] = 3

    def several(self) -> None:
        assert totals(self.many) == [3.0, 3.0]

    def growth(self) -> None:
        assert nothing.using(workers=5)() == list(range(5))

    def start(self) -> None:
        process.shutdown()
        assert nothing() == [0, 1]

    def fresh(self) -> None:
        """An interpreter that has not yet looked at how SharedArray lays arrays out."""
        program = "import dsmfor; print(dsmfor.ones(10).sum())"
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=False
        )
        assert (done.stdout, done.stderr) == ("10.0\n", "")


ALL = [
    "small",
    "large",
    "region",
    "made_in_a_kernel",
    "plain_argument",
    "private_copies",
    "payload",
    "result",
    "exchange",
    "mapping",
    "several",
    "growth",
    "start",
]

# -- Limits ---------------------------------------------------------------------------------------


class Impossible(Exception):
    """This machine, or this user, cannot make the limit."""


Limit = Iterator[None]
"""Advanced once, the limit is there; advanced again, it is gone."""


def none() -> Limit:
    yield
    yield


def settle() -> None:
    """A team is there, and nothing that is kept for speed."""
    process.shutdown()
    gc.collect()
    nothing()


def group_of(version: int) -> Path:
    """The outer of two nested control groups that this process is in, made by test_pressure.py."""
    path = os.environ.get(f"PRESSED_GROUP{version}")
    if path is None:
        raise Impossible("control groups cannot be made here")
    return Path(path)


def cgroup() -> Limit:
    """A control group, version 1, two levels up."""
    outer = group_of(1)
    limit = outer / "memory.limit_in_bytes"
    settle()
    used = int((outer / "memory.usage_in_bytes").read_text())
    limit.write_text(str(used + FREE))
    yield
    limit.write_text("-1")
    yield


def shrinking() -> Limit:
    """It was larger when small arrays were given their allowance."""
    (group_of(1) / "memory.limit_in_bytes").write_text(str(8 << 30))
    dsm.zeros(10)
    yield from cgroup()


def mounted(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)


def unmounted(place: str) -> None:
    subprocess.run(["umount", place], check=True)


def need_namespace() -> None:
    if "PRESSED_NAMESPACE" not in os.environ:
        raise Impossible("mount namespaces cannot be made here")


def version_2() -> Limit:
    """A real limit, under the names of version 2.

    One controller is in one hierarchy of the machine alone: where that is version 1's, the files of
    its group are mounted where those of version 2's are looked for, under their names.
    """
    need_namespace()
    outer = group_of(1)
    points = [m for m in limits._mounts("/") if m.version == 2]
    (first, *others) = (m for m in limits._mounts("/") if "memory" in m.controllers)
    if not points or others:
        raise Impossible("there are no control groups of version 2")
    point = points[0].point
    mounted("-t", "tmpfs", "none", point)
    for name, file in (
        ("memory.max", "memory.limit_in_bytes"),
        ("memory.current", "memory.usage_in_bytes"),
        ("memory.stat", "memory.stat"),
    ):
        Path(point, name).touch()
        mounted("--bind", str(outer / file), f"{point}/{name}")
    mounted("-t", "tmpfs", "none", first.point)  # so that only version 2 is read
    real = fake_group(point)
    next(real)
    yield
    next(real)
    subprocess.run(["umount", first.point], check=True)
    for name in ("memory.max", "memory.current", "memory.stat"):
        unmounted(f"{point}/{name}")
    unmounted(point)
    yield


def fake_group(point: str) -> Limit:
    settle()
    used = int(Path(point, "memory.current").read_text())
    Path(point, "memory.max").write_text(str(used + FREE))
    yield
    Path(point, "memory.max").write_text("-1")
    yield


def available() -> Limit:
    """MemAvailable says so, in a file in place of /proc/meminfo."""
    need_namespace()
    text = Path("/proc/meminfo").read_text().splitlines()
    with tempfile.NamedTemporaryFile("w", suffix=".meminfo") as fake:
        for line in text:
            few = line.startswith("MemAvailable")
            print("MemAvailable: 8192 kB" if few else line, file=fake)
        fake.flush()
        mounted("--bind", fake.name, "/proc/meminfo")
        yield
        unmounted("/proc/meminfo")
    yield


def shm(how: str) -> Callable[[], Limit]:
    """/dev/shm is of no use."""

    def limit() -> Limit:
        need_namespace()
        if how == "missing":  # all of /dev is another, with what programs cannot do without
            with tempfile.TemporaryDirectory() as new:
                mounted("-t", "tmpfs", "none", new)
                for name in ("null", "zero", "full", "random", "urandom", "tty"):
                    Path(new, name).touch()
                    mounted("--bind", f"/dev/{name}", f"{new}/{name}")
                mounted("--move", new, "/dev")
            yield
            subprocess.run(["umount", "--lazy", "/dev"], check=True)
        else:
            mounted("-t", "tmpfs", "-o", "size=64k", "none", "/dev/shm")
            room = os.statvfs("/dev/shm")
            full = room.f_bavail * room.f_frsize - (PAGE if how == "page short" else 0)
            Path("/dev/shm/full").write_bytes(bytes(full if how != "read-only" else 0))
            if how == "read-only":
                mounted("-o", "remount,ro", "/dev/shm")
            yield
            assert os.listdir("/dev/shm") == ["full"]
            unmounted("/dev/shm")
        yield

    return limit


def rlimit(which: int, value: Callable[[int], int], who: str) -> Callable[[], Limit]:
    """A limit of the caller, of the team (warden and workers), or of all of them."""

    def limit() -> Limit:
        if which == resource.RLIMIT_AS:
            settle()  # what earlier places took and gave back, a process may still have
        team = process.team_pids()
        pids = {"caller": {os.getpid()}, "team": team, "all": team | {os.getpid()}}[who]
        old = resource.getrlimit(which)
        for pid in pids:
            resource.prlimit(pid, which, (value(pid), old[1]))
        yield
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(pid, which, old)
        process.shutdown()  # workers that came meanwhile have inherited it
        yield

    return limit


def address_space(pid: int) -> int:
    """8 MiB more than is mapped."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * PAGE + 8 * MiB


def descriptors(pid: int) -> int:
    """So many that none can be opened."""
    taken = set(map(int, os.listdir(f"/proc/{pid}/fd")))
    return next(number for number in range(1 << 20) if number not in taken)


def tasks() -> int:
    """Processes and threads of this user."""
    count = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                if entry.stat().st_uid == os.getuid():
                    count += len(os.listdir(entry / "task"))
    return count


def nproc(more: int, *, cold: bool) -> Callable[[], Limit]:
    """So many more processes and threads; with a team there, or without."""

    def limit() -> Limit:
        if os.getuid() == 0:
            raise Impossible("root's processes are not limited")
        nothing()
        if cold:
            process.shutdown()
            while (
                len(os.listdir("/proc/self/task")) > 1
            ):  # threads that have ended count for a moment
                time.sleep(0.001)
        yield from rlimit(resource.RLIMIT_NPROC, lambda _: tasks() + more, "all")()

    return limit


def pids() -> Limit:
    """The control group has as many processes as it may."""
    outer = os.environ.get("PRESSED_PIDS")
    if outer is None:
        raise Impossible("control groups cannot be made here")
    settle()
    most = Path(outer, "pids.max")
    most.write_text("0")  # those that are there stay
    yield
    most.write_text("max")
    yield


def seccomp(numbers: dict[str, int], code: int) -> Callable[[], Limit]:
    """A system call is refused from now on, for good, to children too."""

    def limit() -> Limit:
        libc = ctypes.CDLL(None, use_errno=True)
        filters = [  # load the number; if it is that one, ...
            (0x20, 0, 0, 0),
            (0x15, 0, 1, numbers[os.uname().machine]),
            (0x06, 0, 0, 0x00050000 | code),
            (0x06, 0, 0, 0x7FFF0000),
        ]
        program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *f) for f in filters))
        pointer = struct.pack("HxxxxxxP", len(filters), ctypes.addressof(program))
        libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
        if libc.prctl(22, 2, ctypes.c_char_p(pointer), 0, 0):  # PR_SET_SECCOMP
            raise Impossible(f"seccomp: {os.strerror(ctypes.get_errno())}")
        yield
        raise Impossible("a filter stays for ever")

    return limit


MEMFD = {"x86_64": 319, "aarch64": 279}
FALLOCATE = {"x86_64": 285, "aarch64": 47}
PIDFD = {"x86_64": 434, "aarch64": 434}

LIMITS: dict[str, Callable[[], Limit]] = {
    "none": none,
    "cgroup": cgroup,
    "shrinking": shrinking,
    "version 2": version_2,
    "available": available,
    "shm full": shm("full"),
    "shm page short": shm("page short"),
    "shm read-only": shm("read-only"),
    "shm missing": shm("missing"),
    "fsize": rlimit(resource.RLIMIT_FSIZE, lambda _: MiB, "all"),
    "fsize tiny": rlimit(resource.RLIMIT_FSIZE, lambda _: PAGE, "all"),
    "as caller": rlimit(resource.RLIMIT_AS, address_space, "caller"),
    "as team": rlimit(resource.RLIMIT_AS, address_space, "team"),
    "memlock": rlimit(resource.RLIMIT_MEMLOCK, lambda _: 0, "all"),
    "nofile caller": rlimit(resource.RLIMIT_NOFILE, descriptors, "caller"),
    "nofile team": rlimit(resource.RLIMIT_NOFILE, descriptors, "team"),
    "nproc workers": nproc(0, cold=False),
    "nproc warden": nproc(0, cold=True),
    "nproc thread": nproc(1, cold=True),
    "pids": pids,
    "memfd_create EPERM": seccomp(MEMFD, 1),
    "memfd_create ENOSYS": seccomp(MEMFD, 38),
    "fallocate EOPNOTSUPP": seccomp(FALLOCATE, 95),
    "pidfd_open ENOSYS": seccomp(PIDFD, 38),
}


# -- The program ----------------------------------------------------------------------------------


def attempt(place: Callable[[], None]) -> str:
    """What comes of it: "ok", or an error; a wrong result is none of them."""
    try:
        place()
    except AssertionError:
        raise
    except BaseException as error:
        kinds = [kind.__name__ for kind in type(error).__mro__]
        kind = next(k for k in kinds if k in ("SharedMemoryFull", "DSMError", *kinds[:1]))
        notes = "".join(f" [{note}]" for note in getattr(error, "__notes__", ()))
        return f"{kind}: {error}{notes}"
    return "ok"


def holdings() -> list[int]:
    """Descriptors, segments mapped, and children, without a team."""
    gc.collect()
    process.shutdown()
    arenas.drop_spares()
    return [
        len(os.listdir("/proc/self/fd")),
        Path("/proc/self/maps").read_text().count("/memfd:dsmfor segment"),
        len(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()),
    ]


def main(names: list[str]) -> None:
    earlier, small = dsm.full(3 * MiB, 5, np.uint8), dsm.full(10, 6)
    told = {}
    places = Places()
    for each in ALL:  # everything has run once
        getattr(places, each)()
    before = holdings()
    for name in names:
        segments.reclaim()
        nothing()
        now: dict[str, object] = {}
        told[name] = now
        try:
            limit = LIMITS[name]()
            next(limit)
        except Impossible as error:
            now["impossible"] = str(error)
            continue
        began = [earlier.sum(), small.sum()]
        tried = ALL
        if name.startswith("shm"):  # of the others, only the start knows that directory
            tried = ["small", "large", "region", "made_in_a_kernel", "start", "fresh"]
        elif name in ("nproc warden", "nproc thread"):  # the others begin with the same start
            tried = ["small", "large", "region", "plain_argument", "start"]
        came = {each: attempt(getattr(places, each)) for each in tried}
        now["places"] = came
        now["kept"] = bool(began == [earlier.sum(), small.sum()])
        with contextlib.suppress(Impossible):
            next(limit)
            failed = [each for each, what in came.items() if what != "ok"]
            now["lifted"] = {each: attempt(getattr(places, each)) for each in failed}
    print(json.dumps(told | {"held": [before, holdings()]}))


if __name__ == "__main__":
    main(sys.argv[1:])
