"""What strangers can do: nothing.

Strangers are other users of the machine, files that somebody has put where a name would go, and
bytes that somebody has written where a description would be. A process of the same user can always
look into our memory (``/proc/PID/mem``); that is the system's rule and not ours to change.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import random
import socket
import stat
import struct
import subprocess
import sys
import textwrap
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SharedArray
from dialogues import PACKAGE, Program

import dsmfor as dsm
from dsmfor import footer, labels, naming, segments, shmfiles
from dsmfor._native.block import Page
from dsmfor.engines import process
from dsmfor.engines.channel import contents, envelope

SHM = Path("/dev/shm")
NOBODY = 65534
F_GET_SEALS, F_SEAL_FUTURE_WRITE = 1034, 0x10
as_another_user = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


def fresh() -> str:
    """A name that nobody has."""
    return f"dsmfor-test-{os.urandom(8).hex()}"


def family(pid: int) -> list[int]:
    """A program, its warden and its workers."""
    found = [pid]
    for each in found:
        with contextlib.suppress(OSError):
            children = Path(f"/proc/{each}/task/{each}/children").read_text()
            found += map(int, children.split())
    return found


BUSY = """
import threading, time, warnings
import dsmfor as dsm
warnings.simplefilter("ignore")
secret = os.environ.get("SECRET", "")
named = dsm.zeros(10, name=os.environ["NAME"])
small, large, plain = dsm.zeros(10), dsm.zeros(1 << 18), np.zeros(1000)
captured = np.arange(200_000)
stop = False

@dsm.parallel(workers=2)
def kernel(named, small, large, plain, big):
    made = dsm.single(dsm.ones, 1 << 17)
    told = dsm.single(lambda: "x" * 100_000)
    for i in dsm.prange(10, schedule="dynamic"):
        with dsm.critical("a"):
            named[i] += made[i]
        if i == 5:
            dsm.cancel(secret)
    dsm.barrier()
    return made if len(big) < 10 else big, told

def run():
    big = "y" * 300_000
    while not stop:
        kernel(named, small, large, plain, big)
        kernel(named, dsm.zeros(10), dsm.zeros(1 << 18), plain, [])
        @dsm.parallel(workers=2, private="*")
        def other():
            return captured.sum()
        other()

def begin():
    global thread
    kernel(named, small, large, plain, [])
    thread = threading.Thread(target=run)
    thread.start()

def end():
    global stop
    stop = True
    thread.join()
"""


STRANGER = """
import os, sys, signal
name, *pids = sys.argv[1:]
def refused(act, *args):
    try:
        act(*args)
    except (PermissionError, FileNotFoundError):
        return True
    except Exception as error:
        return type(error).__name__
    return False
import SharedArray
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
print(refused(SharedArray.attach, "shm://" + name), refused(SharedArray.delete, name))
print(refused(os.unlink, "/dev/shm/" + name), refused(os.open, "/dev/shm/" + name, os.O_RDONLY))
for pid in map(int, pids):
    assert refused(os.listdir, f"/proc/{pid}/fd"), "descriptors"
    assert refused(os.open, f"/proc/{pid}/mem", os.O_RDONLY), "memory"
    assert refused(os.open, f"/proc/{pid}/environ", os.O_RDONLY), "environment"
    assert refused(os.listdir, f"/proc/{pid}/map_files"), "mappings"
    for fd in range(3, 40):
        assert refused(os.open, f"/proc/{pid}/fd/{fd}", os.O_RDONLY), "a descriptor"
    for number in (0, signal.SIGTERM, signal.SIGRTMAX):
        assert refused(os.kill, pid, number), "signals"
    assert refused(signal.pidfd_send_signal, os.pidfd_open(pid), 0), "signals"
print("done")
"""


@dataclass
class Seen:
    """A descriptor of a process of the busy program, at one moment."""

    moment: int  # number of the look
    role: str  # "caller", "warden" or "worker"
    fd: int
    target: str
    inode: int
    mode: int
    uid: int
    flags: int
    seals: int | None  # of shared memory


@dataclass
class Facts:
    """What was seen of a program with a busy team from outside."""

    name: str  # of its named array
    name_inode: int
    descriptors: list[Seen]
    writers: list[dict[int, set[int]]]  # at each look: by inode of a page, who maps it for writing
    letters: dict[int, set[int]]  # by inode of a letter, who maps it for writing
    unix: set[str]  # lines of /proc/net/unix
    net: set[str]  # of the other tables of sockets
    command_lines: list[bytes]
    environ_modes: set[int]
    inherited: list[list[str]]  # what programs inherit from the caller, and from its workers
    stranger: tuple[str, str] | None


ROLES = ["caller", "warden", "worker", "worker"]


def look(facts: Facts, pids: list[int]) -> None:
    """Add what there is to see now."""
    writers: dict[int, set[int]] = {}
    for role, pid in zip(ROLES, pids, strict=True):
        for fd in map(int, os.listdir(f"/proc/{pid}/fd")):
            place = f"/proc/{pid}/fd/{fd}"
            with contextlib.suppress(OSError):  # closed meanwhile
                info = Path(f"/proc/{pid}/fdinfo/{fd}").read_text().split()
                target, status, seals = os.readlink(place), os.stat(place), None
                if target.startswith("/memfd:"):
                    again = os.open(place, os.O_RDONLY)
                    try:
                        if os.fstat(again).st_ino == status.st_ino:
                            seals = fcntl.fcntl(again, F_GET_SEALS)
                    finally:
                        os.close(again)
                if os.readlink(place) == target and os.stat(place).st_ino == status.st_ino:
                    flags = int(info[info.index("flags:") + 1], 8)
                    facts.descriptors.append(
                        Seen(
                            len(facts.writers),
                            role,
                            fd,
                            target,
                            status.st_ino,
                            status.st_mode,
                            status.st_uid,
                            flags,
                            seals,
                        )
                    )
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            _, rights, _, _, inode, *names = line.split(maxsplit=5)
            for kind, found in (("page", writers), ("letter", facts.letters)):
                if names and names[0].startswith(f"/memfd:dsmfor {kind}"):
                    found.setdefault(int(inode), set()).update({pid} if "w" in rights else ())
    facts.writers.append(writers)
    for path in Path("/proc/net").iterdir():
        if path.name == "unix":
            facts.unix.update(path.read_text().splitlines()[1:])
        elif path.name in TABLES:
            facts.net.update(path.read_text().splitlines()[1:])


TABLES = {"tcp", "tcp6", "udp", "udp6", "udplite", "raw", "raw6", "packet", "netlink"}


@pytest.fixture(scope="module")
def facts() -> Facts:
    """What a program shows that sends letters of all kinds to its workers, without a pause."""
    name = fresh()
    listing = "subprocess.run(['ls', '/proc/self/fd'], close_fds=False, capture_output=True).stdout"
    with Program(BUSY, {"NAME": name, "SECRET": "s3cret-f00"}) as program:
        program.ask("begin()")
        pids = family(program.pid)
        inode = (SHM / name).stat().st_ino
        facts = Facts(name, inode, [], [], {}, set(), set(), [], set(), [], None)
        for pid in pids[1:]:
            facts.command_lines.append(Path(f"/proc/{pid}/cmdline").read_bytes())
        for pid in pids:
            facts.environ_modes.add(stat.S_IMODE(os.stat(f"/proc/{pid}/environ").st_mode))
        end = time.monotonic() + 0.8
        while time.monotonic() < end or len(facts.writers) < 10:
            look(facts, pids)
        if os.geteuid() == 0:
            done = subprocess.run(
                [sys.executable, "-c", STRANGER, name, *map(str, pids)],
                cwd="/",
                capture_output=True,
                text=True,
                check=False,
            )
            facts.stranger = done.stdout, done.stderr
        program.ask("end()")
        program.ask("import subprocess")
        facts.inherited.append(program.ask(f"{listing}.decode().split()"))
        program.ask(f"def starts():\n import subprocess\n return {listing}.decode().split()")
        facts.inherited += program.ask("dsm.parallel(workers=2)(starts)()")
        program.process.stdin.close()
        assert program.process.wait(20) == 0
    return facts


# -- Memory -------------------------------------------------------------------------------------


def test_all_memory_that_is_shared_is_this_users_alone(facts: Facts) -> None:
    kinds = set()
    for seen in facts.descriptors:
        if seen.target.startswith(("/memfd:", "/dev/shm/")):
            assert (seen.mode, seen.uid) == (0o100600, os.geteuid()), seen
            kinds.add(seen.target.removesuffix(" (deleted)"))
            if seen.target.startswith("/dev/shm/"):
                assert seen.inode == facts.name_inode
    assert {"/memfd:dsmfor segment", "/memfd:dsmfor page", "/memfd:dsmfor letter"} <= kinds
    assert any(kind.startswith("/dev/shm/") for kind in kinds)


def test_memory_has_no_name_unless_asked_for() -> None:
    before = set(os.listdir(SHM))
    small, large = dsm.ones(10), dsm.ones(1 << 18)

    @dsm.parallel(workers=2)
    def kernel(small: np.ndarray, large: np.ndarray, plain: np.ndarray) -> list[str]:
        made = dsm.single(dsm.ones, 1 << 18)
        plain += made[: len(plain)]
        return os.listdir("/dev/shm")

    for listed in kernel(small, large, np.zeros(1000)):
        assert set(listed) == before


def test_new_memory_reads_zero_however_it_was_used_before() -> None:
    @dsm.parallel(workers=2)
    def fill(a: np.ndarray) -> None:
        a[...] = 255

    @dsm.parallel(workers=2, shared={"out": "out"})
    def clean(out: np.ndarray) -> bool:
        return not out.any()

    sizes = random.Random(4).choices([1, 100, 5_000, 900_000, 1_100_000], k=60)
    name = fresh()
    for number, size in enumerate(sizes):
        a = dsm.zeros(size, "u1") if number % 3 else dsm.empty(size, "u1", name=name)
        assert not a.any()
        if number % 2:
            fill(a)
        else:
            a[...] = 255
        del a
        if number % 10 == 9:
            process.housekeep()
    dirty = np.full(100_000, 255, "u1")
    fill(dirty)
    assert clean(dirty) == [True, True]


# -- What is unpickled --------------------------------------------------------------------------


def test_nobody_but_its_owner_can_write_what_is_unpickled(facts: Facts) -> None:
    for writers in facts.writers:
        assert len(writers) >= 3  # the mailbox, and a page for each worker
        assert all(len(pids) == 1 for pids in writers.values()), writers
    assert not any(facts.letters.values())
    sealed: dict[str, set[int]] = {}
    for seen in facts.descriptors:
        if seen.seals is not None:
            sealed.setdefault(seen.target.removesuffix(" (deleted)"), set()).add(seen.seals)
    assert all(seals & F_SEAL_FUTURE_WRITE for seals in sealed["/memfd:dsmfor page"])
    # A letter is sealed before it is sent: only who is writing it has it without.
    for seen in facts.descriptors:
        if seen.target.startswith("/memfd:dsmfor letter") and seen.role == "warden":
            assert seen.seals is None or seen.seals & F_SEAL_FUTURE_WRITE
    assert any(seals & F_SEAL_FUTURE_WRITE for seals in sealed["/memfd:dsmfor letter"])


def test_nobody_can_change_a_letter_not_even_who_wrote_it() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    fd = envelope(b"letter" * 2000)
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
    try:
        for number in (fd, again):
            for write in (
                lambda number=number: os.pwrite(number, b"x", 0),
                lambda number=number: mmap.mmap(number, 4096),
                lambda number=number: os.ftruncate(number, 0),
                lambda number=number: os.ftruncate(number, 1 << 20),
            ):
                with pytest.raises(PermissionError):
                    write()
            hole = libc.fallocate(number, 0x3, ctypes.c_long(0), ctypes.c_long(4096))
            assert (hole, ctypes.get_errno()) == (-1, errno.EPERM)
        assert bytes(contents(fd)) == b"letter" * 2000
        with pytest.raises(TypeError):
            contents(fd)[0] = 0
    finally:
        os.close(fd)
        os.close(again)


def test_what_is_read_from_a_page_is_a_copy() -> None:
    owner = Page(4096)
    reader = Page(4096, owner.fd)
    owner.write(0, b"before")
    data = reader.read(0, 6)
    owner.write(0, b"after!")
    assert (type(data), data) == (bytes, b"before")
    assert reader.read(0, 6) == b"after!"
    with pytest.raises(PermissionError):
        os.pwrite(owner.fd, b"x", 0)


# -- Other ways in ------------------------------------------------------------------------------


def test_nobody_listens(facts: Facts) -> None:
    sockets = {
        seen.target.removeprefix("socket:[").removesuffix("]")
        for seen in facts.descriptors
        if seen.target.startswith("socket:[")
    }
    ours = [fields for line in facts.unix if (fields := line.split())[6] in sockets]
    assert len(ours) >= len(sockets) > 0
    for fields in ours:
        assert not int(fields[3], 16) & 0x10000, "it listens"
        assert len(fields) == 7, "it has an address"
    assert not [line for line in facts.net if sockets & set(line.split())]


def test_a_listening_socket_would_be_found() -> None:
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(f"\0{fresh()}")
        end.listen()
        inode = os.readlink(f"/proc/self/fd/{end.fileno()}")[8:-1]
        (row,) = [
            line.split()
            for line in Path("/proc/net/unix").read_text().splitlines()
            if inode in line.split()
        ]
        assert int(row[3], 16) & 0x10000
        assert len(row) == 8


def test_no_descriptor_survives_an_exec(facts: Facts) -> None:
    ours = [seen for seen in facts.descriptors if seen.fd > 2]
    assert {seen.role for seen in ours} == set(ROLES)
    # SharedArray's `attach` opens a file by itself, maps and closes it. That it may be seen at one
    # moment does no harm: it has the GIL meanwhile, which whoever execs from Python needs, too.
    brief: dict[tuple[str, int, int], set[int]] = {}
    for seen in ours:
        if not seen.flags & os.O_CLOEXEC:
            assert seen.target.startswith("/memfd:dsmfor segment"), seen
            brief.setdefault((seen.role, seen.fd, seen.inode), set()).add(seen.moment)
    assert all(len(moments) == 1 for moments in brief.values()), brief


def test_programs_that_caller_or_kernel_start_get_the_three_streams_only(facts: Facts) -> None:
    assert facts.inherited == [["0", "1", "2", "3"]] * 3  # 3 is the listing's own


def test_the_warden_is_started_without_a_moment_in_which_others_inherit_its_line() -> None:
    program = """
        import os, sys, threading
        import dsmfor as dsm
        real, found = os.posix_spawn, []
        def spawn(*args, **kwargs):
            for fd in map(int, os.listdir("/proc/self/fd")):
                if fd > 2 and os.path.exists(f"/proc/self/fd/{fd}") and os.get_inheritable(fd):
                    found.append(fd)
            return real(*args, **kwargs)
        os.posix_spawn = spawn
        dsm.parallel(workers=1)(lambda: None)()
        print(found)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(PACKAGE)},
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_nothing_is_written_to_temporary_home_or_working_folders(tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in ("TMPDIR", "HOME", "cwd")}
    for folder in folders.values():
        folder.mkdir(0o700)
    home = {name: str(folders[name]) for name in ("TMPDIR", "HOME")}
    before = {path: set(os.listdir(path)) for path in ("/tmp", "/var/tmp", "/dev/shm")}
    name = fresh()
    done = subprocess.run(
        [sys.executable, "-c", "import os\nimport numpy as np\n" + BUSY + "begin()\nend()\n"],
        cwd=folders["cwd"],
        env=os.environ | home | {"PYTHONPATH": str(PACKAGE), "NAME": name},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [list(folder.iterdir()) for folder in folders.values()] == [[], [], []]
    for path, names in before.items():
        new = set(os.listdir(path)) - names
        assert not [each for each in new if "dsm" in each.lower() or each == name], path


def test_command_lines_tell_nothing(facts: Facts) -> None:
    for words in facts.command_lines:
        assert b"s3cret-f00" not in words
        assert facts.name.encode() not in words
    assert facts.environ_modes == {0o400}


@as_another_user
def test_another_user_can_neither_attach_nor_look_nor_signal(facts: Facts) -> None:
    assert facts.stranger == ("True True\nTrue True\ndone\n", "")


# -- Squatters ----------------------------------------------------------------------------------


def squat_file(path: Path) -> None:
    path.write_bytes(b"somebody's")
    path.chmod(0o600)


def squat_empty(path: Path) -> None:
    path.touch(0o600)


def squat_open_mode(path: Path) -> None:
    SharedArray.create(f"shm://{path.name}", (3,))
    path.chmod(0o622)


def squat_link(path: Path) -> None:
    squat_target(path)
    path.symlink_to(path.with_name(path.name + "-target"))


def squat_dangling(path: Path) -> None:
    path.symlink_to(path.with_name(path.name + "-target"))


def squat_hard_link(path: Path) -> None:
    squat_target(path)
    os.link(path.with_name(path.name + "-target"), path)


def squat_target(path: Path) -> None:
    target = path.with_name(path.name + "-target")
    SharedArray.create(f"shm://{target.name}", (3,))
    target.chmod(0o600)


def squat_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(str(path))


def squat_device(path: Path) -> None:
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))


def squat_other_owner(path: Path) -> None:
    squat_target(path)
    path.with_name(path.name + "-target").rename(path)
    os.chown(path, NOBODY, NOBODY)


SQUATS: dict[str, tuple[Callable[[Path], object], str]] = {
    "file": (squat_file, "too short for SharedArray's footer"),
    "empty file": (squat_empty, "too short for SharedArray's footer"),
    "mode": (squat_open_mode, "mode is 0622"),
    "symbolic link": (squat_link, "a symbolic link"),
    "dangling link": (squat_dangling, "a symbolic link"),
    "hard link": (squat_hard_link, r"2 names \(hard links\)"),
    "pipe": (lambda path: os.mkfifo(path, 0o600), "a named pipe"),
    "directory": (lambda path: path.mkdir(0o700), "a directory"),
    "socket": (squat_socket, "a socket"),
    "device": (squat_device, "a device"),
    "owner": (squat_other_owner, f"belongs to user {NOBODY}"),
}


def looks(path: Path) -> tuple[Any, ...]:
    """What must stay the same of a thing that is not ours."""
    status = os.lstat(path)
    kept = status.st_mode, status.st_ino, status.st_uid, status.st_nlink, status.st_mtime_ns
    regular = stat.S_ISREG(status.st_mode)
    return *kept, path.read_bytes() if regular else None


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=[as_another_user] if kind in ("device", "owner") else [])
        for kind in SQUATS
    ],
)
def test_what_somebody_put_in_the_place_of_a_name_is_refused_and_left(kind: str) -> None:
    squat, told = SQUATS[kind]
    path = SHM / fresh()
    target = path.with_name(path.name + "-target")
    before = dsm.names()
    try:
        squat(path)
        seen = looks(path)
        with pytest.raises(dsm.NameTaken, match=told) as taken:
            dsm.zeros(3, name=path.name)
        assert taken.value.pid is None
        for use in (dsm.attach, dsm.delete, lambda name: dsm.attach(name, readonly=True)):
            with pytest.raises(dsm.DSMError, match=told):
                use(path.name)
        shmfiles.sweep()
        assert path.name not in dsm.names().keys() - before.keys()
        assert looks(path) == seen
        assert target.exists() == (kind in ("symbolic link", "hard link"))
    finally:
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
        target.unlink(missing_ok=True)


def test_a_name_that_is_squatted_just_before_it_is_given_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = SHM / fresh()
    real = shmfiles.link

    def link(fd: int, name: str) -> None:
        path.symlink_to("/etc/passwd")
        real(fd, name)

    monkeypatch.setattr(shmfiles, "link", link)
    try:
        with pytest.raises(dsm.NameTaken, match="a symbolic link"):
            dsm.zeros(3, name=path.name)
        assert os.readlink(path) == "/etc/passwd"
        assert naming.published() == []
    finally:
        path.unlink()


# -- Crafted files ------------------------------------------------------------------------------

MODELS = [
    ("f8", (2, 3), (0, 1)),
    (">i4", (5,), (0,)),
    ("M8[ns]", (2, 2, 2), (2, 1, 0)),
    (np.dtype([("a", ">i4"), ("b", "S3", (2,)), ("c", [("d", "M8[D]")])]), (3,), (0,)),
    ("U3", (), ()),
    ("u1", (0, 4), (1, 0)),
]


def image(dtype: Any, shape: tuple[int, ...], axes: tuple[int, ...]) -> bytes:
    """The bytes of a file that this process owns."""
    final = np.dtype(dtype)
    nbytes = max(int(np.prod(shape, dtype=object)) * final.itemsize, 1)
    label = labels.Label(final, shape, axes, nbytes, shmfiles.myself(), 1e9)
    return bytes(nbytes) + labels.write(label)


def craft(chance: random.Random, model: bytes) -> bytes:
    """A file that somebody may have written with malice, or that was damaged."""
    data = bytearray(model)
    end = len(data) - footer.FOOTER.size
    tail = end - labels.TAIL.size
    length = labels.TAIL.unpack_from(data, tail)[1]
    start = tail - length
    what = chance.randrange(8)
    if what == 0:  # bytes anywhere
        for _ in range(chance.randint(1, 8)):
            data[chance.randrange(len(data))] = chance.randrange(256)
    elif what == 1:  # a number of the footer
        at = end + 16 + 4 * chance.randrange((footer.FOOTER.size - 16) // 4)
        number = chance.choice([0, 1, -1, 2**31 - 1, -(2**31), chance.randrange(2**31)])
        struct.pack_into("<i", data, at, number)
    elif what == 2:  # a footer alone, as SharedArray writes it, of numbers large and small
        ndim = chance.choice([0, 1, 2, 3, 64, 65, -1])
        lengths = [chance.choice([0, 1, 2, 3, -1, 2**32, 2**62, 2**63 - 1]) for _ in range(64)]
        size = chance.choice([0, 1, 8, 48, 2**40, 2**64 - 1])
        words = b"[SharedArray]", size, chance.randrange(-2, 300), chance.randrange(-1, 20)
        data = bytearray(chance.randrange(100)) + footer.FOOTER.pack(*words, ndim, *lengths)
    elif what == 3:  # cut off, or longer
        cut = chance.randrange(len(data))
        data = data[:cut] if chance.random() < 0.5 else data[cut:]
    elif what == 4:
        data = bytearray(chance.randbytes(chance.randrange(2000)))
    else:  # a label that is damaged, with the right checksum
        text = bytearray(data[start:tail])
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(text))
            if what == 5:
                text[at] = chance.choice(b'0123456789-,[]{}"<>|OTVMSUfi.eE')
            elif what == 6:
                text[at : at + chance.randrange(4)] = chance.choice(
                    [b"", b"9" * 30, b"[", b"null", b'"O"', b"1e99", b"-1", b"NaN", b"true"]
                )
            else:
                del text[at : at + chance.randrange(20)]
                text = text or bytearray(b"{")
        whole = bytes(data[end:])
        packed = labels.TAIL.pack(b"[dsmfor array 1]", len(text), zlib.crc32(text))
        data = data[:start] + text + packed + whole
    return bytes(data)


def test_ten_thousand_crafted_files_give_errors_or_right_arrays() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    images = [image(*model) for model in MODELS]
    name = fresh()
    own = labels.Label(np.dtype("u1"), (1,), (0,), 1, shmfiles.myself(), 0.0)
    outcomes = dict.fromkeys(("array", "unknown", "refused"), 0)
    for number in range(10_000):
        model = chance.choice(images)
        data = craft(chance, model) if number % 50 else model
        if not (SHM / name).exists():  # at first, and when a crafted owner was taken for dead
            held = shmfiles.make(own)
            lock = shmfiles.hold(held)
            shmfiles.link(held.number, name)
        os.ftruncate(held.number, 0)
        os.pwrite(held.number, data, 0)
        try:
            a = dsm.attach(name, readonly=bool(number % 3))
        except dsm.NameUnknown:
            outcomes["unknown"] += 1
            continue
        except dsm.DSMError:
            outcomes["refused"] += 1
            continue
        outcomes["array"] += 1
        assert a.nbytes <= len(data) - footer.FOOTER.size
        assert not a.dtype.hasobject
        assert a.tobytes("A") == data[: a.nbytes]
        if data == model:
            dtype, shape, _ = MODELS[images.index(model)]
            assert (a.dtype, a.shape) == (dtype, shape)
        del a
    shmfiles.remove(name, shmfiles.identity(held), dead=False)
    lock.close()
    assert outcomes["array"] >= 200
    assert outcomes["refused"] >= 5000


def test_a_footer_that_contradicts_the_label_is_refused() -> None:
    a = dsm.ones(10, name=(name := fresh()))
    with open(SHM / name, "r+b") as file:
        file.seek(-footer.FOOTER.size, os.SEEK_END)
        file.write(footer.pack((5, 2), a.dtype))
    with pytest.raises(dsm.DSMError, match="tell of different arrays"):
        dsm.attach(name, readonly=True)


def test_thousands_of_crafted_segments_are_refused_or_right() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    good = bytes(range(100)) + footer.footer(100)
    outcomes = [0, 0]
    for number in range(2_000):
        data = bytearray(good)
        if number % 10:
            for _ in range(chance.randint(1, 4)):
                data[chance.randrange(100, len(data))] = chance.randrange(256)
        if number % 7 == 0:
            data = data[: chance.randrange(len(data))]
        fd = os.memfd_create("dsmfor segment", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
        os.write(fd, data)
        fcntl.fcntl(fd, 1033, 0x7 if number % 11 else 0)
        try:
            root = segments.adopt((5 << 40) + number, fd, 100)
        except dsm.DSMError:
            assert data != good or not number % 11
            outcomes[0] += 1
        else:
            assert data == good
            assert root.tobytes() == good[:100]
            outcomes[1] += 1
            del root
    assert min(outcomes) > 100


def test_a_named_segment_that_is_shorter_than_told_is_refused() -> None:
    a = dsm.ones(10, name=(name := fresh()))
    fd = os.open(SHM / name, os.O_RDWR | os.O_CLOEXEC)
    with pytest.raises(dsm.DSMError, match="instead of"):
        segments.adopt(segments.NAMED | 9 << 40, fd, 10**9)
    assert a.all()
