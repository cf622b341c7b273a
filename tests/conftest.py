"""What every test is held to: it leaves nothing behind.

After each test the machine is compared with what it was before: processes that this run started
(also orphans, which are known by a mark in their environment), names in /dev/shm, descriptors of
this process, and anonymous shared memory that this process or any of its workers still maps or
holds open. The engine's team of persistent workers may live on from test to test; at the end of
the session it is shut down, and then nothing at all may be left.

A test that fails keeps its frames for the report, and arrays in them; it has said enough, so what
it leaves is not judged.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import time
import uuid
from collections.abc import Hashable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from dsmfor import arenas, staging

PATIENCE = 5.0
"""Seconds that a dying process or a housekeeping message may take to be gone."""

OWN_DESCRIPTORS = 1024
"""dsmfor's own descriptors are numbered from here up (engines/PROTOCOL.md)."""

TEAM_MEMORY = ("dsmfor control", "dsmfor page")
"""The memfds by which a team runs; a segment, which holds arrays, has another name."""

MARK = f"DSMFOR_TEST_RUN={uuid.uuid4()}"
os.environ.update([MARK.split("=")])

# A shell ignores Ctrl-C for what it starts in the background, and so would every program from here.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

failed = pytest.StashKey[bool]()

Things = dict[tuple[Hashable, ...], str]
"""Whatever a test could leave: what identifies it, and how to tell of it."""


@pytest.fixture(params=["serial", "process"])
def engine(request: pytest.FixtureRequest) -> str:
    """Name of an engine; a test that takes it holds on every engine."""
    return request.param


@pytest.fixture(autouse=True, scope="session")
def nothing_left_by_the_session(request: pytest.FixtureRequest) -> Iterator[None]:
    gc.collect()
    gc.freeze()  # all that the tests import is there: what follows is collected in milliseconds
    before = everything()
    yield
    ask_engine("shutdown")
    left = what_is_left(before)
    if request.session.testsfailed:  # frames of failed tests still hold arrays, see above
        left = {thing: text for thing, text in left.items() if thing[0] in ("process", "name")}
    if left:
        pytest.fail(told("after the engine was shut down, the session left", left), pytrace=False)


@pytest.fixture(autouse=True)
def nothing_left_by_the_test(request: pytest.FixtureRequest) -> Iterator[None]:
    before = everything()
    yield
    if request.node.stash.get(failed, False):
        return
    request.node.funcargs.clear()  # this fixture ends last: pytest alone still holds the values
    left = what_is_left(before)
    if left:
        pytest.fail(told("the test left", left), pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    if report.failed:
        item.stash[failed] = True
    return report


def what_is_left(before: Things) -> Things:
    """What is there now and was not before, once everything that is on its way out has gone."""
    deadline = time.monotonic() + PATIENCE
    give_up_spares()
    left = newer_than(before)
    while left and time.monotonic() < deadline:
        gc.collect()
        give_up_spares()
        left = newer_than(before)
        if left:
            time.sleep(0.02)
    return left


def give_up_spares() -> None:
    """What is kept for speed: segments for the next call, the last arena for arrays to come."""
    staging.drop_spares()
    ask_engine("housekeep")
    arenas.drop_spares()


def newer_than(before: Things) -> Things:
    left = {thing: text for thing, text in everything().items() if thing not in before}
    if any(thing[0] == "name" for thing in left):
        theirs = held_by_others()
        left = {thing: text for thing, text in left.items() if thing not in theirs}
    return left


def told(sentence: str, left: Things) -> str:
    first, *others = sorted(left.values())
    return "\n".join([f"{sentence} {first}", *(f"    and {other}" for other in others)])


# -- The engine, if it is there -----------------------------------------------------------------


def process_engine() -> ModuleType | None:
    return sys.modules.get("dsmfor.engines.process")


def ask_engine(verb: str) -> None:
    getattr(process_engine(), verb, lambda: None)()


def team() -> frozenset[int]:
    """Pids of the warden and the workers that may live on."""
    return frozenset(getattr(process_engine(), "team_pids", frozenset)())


def stream_copies() -> set[int]:
    """Duplicates of our standard output and error by which the team knows them."""
    line = getattr(process_engine(), "_line", None)
    return set() if line is None else line.lookout.copies()


# -- Looking around -----------------------------------------------------------------------------


def everything() -> Things:
    """All that a test could leave, without what belongs to the living team."""
    allowed = team()
    ours = our_processes()
    things: Things = {
        ("process", pid, start): f"process {pid}: {command_line(pid)}"
        for pid, start in ours.items()
        if pid not in allowed
    }
    for name in os.listdir("/dev/shm"):
        things["name", name] = f"name /dev/shm/{name} (or did a program beside this run make it?)"
    copies = stream_copies()
    for fd, target, inode in descriptors("self"):
        ours_too = fd in copies or is_the_teams(fd, target, allowed)
        if not (allowed and fd >= OWN_DESCRIPTORS and ours_too):
            things["descriptor", fd, inode] = f"descriptor {fd}: {target}"
    for pid in [os.getpid(), *ours]:
        for inode, name in shared_memory(pid):
            if not (allowed and name.startswith(TEAM_MEMORY)):
                things["memory", inode] = f"shared memory {name!r} (inode {inode}) in process {pid}"
    return things


def is_the_teams(fd: int, target: str, allowed: frozenset[int]) -> bool:
    """Whether one of our own descriptors serves the team: a line to it, not a segment."""
    if target.startswith("/memfd:"):
        return target.removeprefix("/memfd:").startswith(TEAM_MEMORY)
    if target == "anon_inode:[pidfd]":
        info = Path(f"/proc/self/fdinfo/{fd}").read_text().split()
        return int(info[info.index("Pid:") + 1]) in allowed
    return target.startswith(("socket:", "pipe:", "anon_inode:"))


def our_processes() -> dict[int, int]:
    """Start time by pid of all processes that descend from this one or bear its mark."""
    parents, starts = {}, {}
    for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))):
        with contextlib.suppress(OSError):
            # The command, in brackets, may hold anything: count the fields behind it.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            parents[pid], starts[pid] = int(fields[1]), int(fields[19])
    me = os.getpid()
    return {pid: start for pid, start in starts.items() if pid != me and is_ours(pid, parents, me)}


def is_ours(pid: int, parents: dict[int, int], me: int) -> bool:
    ancestor = pid
    while ancestor in parents:
        ancestor = parents[ancestor]
        if ancestor == me:
            return True
    try:
        return MARK.encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # somebody else's, or gone
        return False


def command_line(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return "(just gone)"
    return b" ".join(words).decode(errors="replace").strip()[:200] or "(a zombie: not waited for)"


def descriptors(pid: int | str) -> Iterator[tuple[int, str, int]]:
    """Number, target and inode of each open descriptor of a process."""
    with contextlib.suppress(OSError):
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):  # the one that lists the folder is closed by now
                path = f"/proc/{pid}/fd/{fd}"
                yield int(fd), os.readlink(path), os.stat(path).st_ino


def shared_memory(pid: int) -> Iterator[tuple[int, str]]:
    """Inode and name of each memfd that a process maps or, other than this one, has open."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            if "/memfd:" in line:
                inode, _, name = line.split(maxsplit=4)[4].partition("/memfd:")
                yield int(inode), name.removesuffix(" (deleted)")
    if pid != os.getpid():  # its own are told one by one
        for _, target, inode in descriptors(pid):
            if target.startswith("/memfd:"):
                yield inode, target.removeprefix("/memfd:").removesuffix(" (deleted)")


def held_by_others() -> frozenset[tuple[Hashable, ...]]:
    """Names in /dev/shm that programs beside this test run are using."""
    ours = {os.getpid(), *our_processes()}
    inodes = set()  # a file that was made without a name goes by another one in /proc
    for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))):
        if pid in ours:
            continue
        inodes |= {inode for _, target, inode in descriptors(pid) if target.startswith("/dev/shm/")}
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
                if "/dev/shm/" in line:
                    inodes.add(int(line.split(maxsplit=5)[4]))
    names: set[tuple[Hashable, ...]] = set()
    for name in os.listdir("/dev/shm"):
        with contextlib.suppress(OSError):
            if os.lstat(f"/dev/shm/{name}").st_ino in inodes:
                names.add(("name", name))
    return frozenset(names)
