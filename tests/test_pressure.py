"""Pressure: whatever runs out, at whatever place, is an error that names it, and no death.

A matrix of limits and places: a program (`pressed.py`) meets one limit after the other, and under
each goes to every place where dsmfor takes memory, a descriptor or a process. Every cell says what
must come: success, or an error with its words. The limits are real ones: control groups, mount
namespaces, rlimits, another user, seccomp filters. Where a machine, or whoever runs the tests, can
make none of a kind, the test is skipped and says so.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import dsmfor
from dsmfor.limits import control_groups

PROGRAM = Path(__file__).with_name("pressed.py")
PLACES = [
    *("small", "large", "region", "made_in_a_kernel", "plain_argument", "private_copies"),
    *("payload", "result", "exchange", "mapping", "several", "growth", "start"),
]
NAMESPACE = ["unshare", "--mount"] if os.getuid() == 0 else ["unshare", "-r", "--mount"]
SOMEBODY = "54321"  # a user who has no processes

# -- What must come -------------------------------------------------------------------------------

ONCE, TWICE, THRICE = r"25,16\d,\d+ bytes \(24\.0 MiB\)", r"50,331,648 bytes", r"75,\d+,\d+ bytes"
CALLER, RANK_0, RANK_1 = r"[^\[]*", r"[^\[]* \[in worker 0 of 2\].*", r"[^\[]* \[in worker 1\]"


def full(what: str, why: str, where: str = CALLER) -> str:
    return f"SharedMemoryFull: {what}{why}{where}"


def short_of_memory(owner: str) -> dict[str, str]:
    """Where there is room for one thing and not for its copies too."""
    why = rf" does not fit: {owner} has [\d,]+ bytes \(\d+\.\d MiB\) left; drop arrays"
    return {
        "large": full(f"a shared array of {TWICE}.*", why),
        "made_in_a_kernel": full(f"a shared array of {TWICE}.*", why, RANK_0),
        "private_copies": full(f"a message that takes {THRICE}.* in 2 workers", why),
        "payload": full(f"a message that takes {THRICE}.* in 2 workers", why),
        "result": full(f"rank 1 returned a ndarray.*: a result of {ONCE}", why, RANK_1),
        "exchange": full(f"a value of {THRICE}.* for every rank", why, RANK_0),
    }


nothing_left = r" does not fit: this machine \(MemAvailable\) has [\d,]+ bytes .* left; drop arrays"
files = r": files of this process are limited to {}.*; raise it with ulimit -f"
mapping = r": Cannot allocate memory; raise ulimit -v, which allows .* of address space"
private = r" does not fit into the memory of process \d+; raise ulimit -v, which allows .*"
descriptors = r": no descriptor is left: this process may open \d+ .*raise ulimit -n"
untaken = full(
    r"process \d+ cannot take the shared arrays.* may open \d+.*", "raise ulimit -n", ".*"
)
unstarted = "DSMError: the workers cannot be started: "
unforked = r"DSMError: worker 2 could not be started: .*\(ulimit -u\) and open files \(ulimit -n\)"


def small_files(limit: str) -> dict[str, str]:
    why = files.format(limit)
    return {
        "large": full(f"cannot make a shared array of {TWICE}.*", why),
        "made_in_a_kernel": full(f"cannot make a shared array of {TWICE}.*", why, RANK_0),
        "plain_argument": full(f"cannot make a shared array of {ONCE}", why),
        "private_copies": full(f"cannot make a message of {ONCE}", why),
        "payload": full(f"cannot make a message of {ONCE}", why),
        "result": full(f"rank 1 returned a ndarray.*a result of {ONCE}", why, RANK_1),
        "exchange": full(f"cannot make a message of {ONCE}", why, RANK_0),
    }


COLD = ["region", "plain_argument", "start"]


def no_files(error: str) -> dict[str, str]:
    """No anonymous file can be made: of a team that is there, only new memory is refused."""
    made = f"{error}cannot make {{}}.*memfd_create.*python -m dsmfor doctor.*"
    return {
        "large": made.format(f"a shared array of {TWICE}"),
        "plain_argument": made.format(f"a shared array of {ONCE}"),
        "private_copies": made.format(f"a message of {ONCE}"),
        "payload": made.format(f"a message of {ONCE}"),
        "start": "DSMError: the warden of the workers could not be started: .*doctor.*",
    }


EXPECTED: dict[str, dict[str, str]] = {
    # what is not named is "ok"
    "none": {},
    "cgroup": short_of_memory("the control group /.*"),
    "shrinking": short_of_memory("the control group /.*"),
    "version 2": short_of_memory("the control group /.*"),
    "available": {
        "large": full(f"a shared array of {TWICE}.*", nothing_left),
        "made_in_a_kernel": full(f"a shared array of {TWICE}.*", nothing_left, RANK_0),
        "plain_argument": full(f"a shared array of {ONCE}", nothing_left),
        "private_copies": full(f"a copy of an array of {ONCE}.*,", nothing_left),
        "payload": full(f"a pickle of {ONCE}", nothing_left),
        "result": full(f"rank 1 returned.*a copy of an array of {ONCE}.*,", nothing_left, RANK_1),
        "exchange": full(f"a pickle of {ONCE}", nothing_left, RANK_0),
    },
    "shm full": {},
    "shm page short": {},
    "shm read-only": {},
    "shm missing": {},
    "fsize": small_files("1,048,576 bytes"),
    "fsize tiny": {
        **small_files("4,096 bytes"),
        "growth": full("a worker could not be started: .*", files.format("4,096 bytes")),
        "start": full("cannot make control memory.*", files.format("4,096 bytes")),
    },
    "as caller": {
        "large": full(f"cannot map a shared array of {TWICE}.*", mapping),
        "plain_argument": full(f"cannot map a shared array of {ONCE}", mapping),
        "payload": full(".*", private),
        "result": full(
            "cannot map the result.* of rank 1", mapping, r".*in the caller, from .* 1 .*"
        ),
    },
    "as team": {
        "made_in_a_kernel": full(f"cannot map a shared array of {TWICE}.*", mapping, RANK_0),
        "plain_argument": full(f"cannot map a shared array of {ONCE}", mapping, RANK_0),
        "private_copies": full(f"cannot map a message of {ONCE}", mapping, RANK_0),
        "payload": full(f"cannot map a message of {ONCE}", mapping, RANK_0),
        "result": r"MemoryError: Unable to allocate .*\[in worker 1 of 2\]",  # the kernel's own
        "exchange": r"MemoryError: .*\[in worker 0 of 2\]",  # likewise
        "mapping": full(f"cannot map a shared array of {ONCE}", mapping, RANK_0),
    },
    "memlock": {},
    "nofile caller": {
        "large": full(f"cannot make a shared array of {TWICE}.*", descriptors),
        "plain_argument": full(f"cannot make a shared array of {ONCE}", descriptors),
        "result": full(
            "cannot map the result.* of rank 1", descriptors, r".*in the caller, from .*"
        ),
        "growth": untaken,
        "start": unstarted + r".*may open \d+ descriptors; close some, or raise ulimit -n",
    },
    "nofile team": {
        "made_in_a_kernel": full(f"cannot make a shared array of {TWICE}.*", descriptors, RANK_0),
        "plain_argument": untaken,
        "private_copies": untaken,
        "payload": untaken,
        "result": full("rank 1 returned a ndarray.*", descriptors, RANK_1),
        "exchange": full(f"cannot make a message of {ONCE}", descriptors, RANK_0),
        "mapping": untaken,
        "several": untaken,
        "growth": unforked,
    },
    "pids": {"growth": unforked, "start": unstarted + r".* pids\.max"},
    "nproc workers": {"growth": unforked},
    "nproc warden": dict.fromkeys(
        COLD, unstarted + r".* may have \d+ processes.* raise ulimit -u.*"
    ),
    "nproc thread": dict.fromkeys(
        COLD, unstarted + r"no thread can be started.* raise ulimit -u.*"
    ),
    "memfd_create EPERM": no_files("PermissionError: .Errno 1. "),
    "memfd_create ENOSYS": no_files("OSError: .Errno 38. "),
    "fallocate EOPNOTSUPP": {},
    "pidfd_open ENOSYS": {"start": unstarted + ".*python -m dsmfor doctor.*"},
}

TOGETHER = [name for name in EXPECTED if not re.search("nproc|memfd_create|fallocate|pidfd", name)]
PROCESSES = [name for name in EXPECTED if name.startswith("nproc")]
FILTERED = [name for name in EXPECTED if name not in {*TOGETHER, *PROCESSES}]


# -- Programs -------------------------------------------------------------------------------------


def tell(
    limits: list[str], *, before: tuple[str, ...] = (), environ: dict[str, str] | None = None
) -> dict[str, Any]:
    """What the program says of these limits."""
    package = str(Path(dsmfor.__file__).parent.parent)
    done = subprocess.run(
        [*before, sys.executable, str(PROGRAM), *limits],
        env=os.environ | {"PYTHONPATH": package, "OPENBLAS_NUM_THREADS": "1"} | (environ or {}),
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def works(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def own_group(controller: str) -> Path | None:
    """Where groups of a controller of version 1 may be made, if they may."""
    places = [Path(d) for version, d in control_groups(controller) if version == 1]
    return places[-1] if places and os.access(places[-1], os.W_OK) else None


@contextlib.contextmanager
def group(controller: str) -> Iterator[Path | None]:
    """An outer group with an inner one; both are gone afterwards, however long that takes."""
    home = own_group(controller)
    outer = None if home is None else home / f"dsmfor-pressure-{os.getpid()}"
    if outer is None:
        yield None
        return
    try:
        (outer / "inner").mkdir(parents=True)
    except OSError:
        yield None
        return
    try:
        yield outer
    finally:
        for each in (outer / "inner", outer):
            deadline = time.monotonic() + 20
            while each.exists():
                try:
                    each.rmdir()
                except OSError:  # its last process has not been reaped
                    assert time.monotonic() < deadline, f"{each} has {(each / 'tasks').read_text()}"
                    time.sleep(0.01)  # between looks, not to order anything


@functools.cache
def together() -> dict[str, Any]:
    """One program in control groups and a mount namespace of its own."""
    environ, before = (
        {},
        ["sh", "-c", 'for g in $GROUPS_; do echo $$ > $g/cgroup.procs; done; exec "$@"', "-"],
    )
    if works(*NAMESPACE, "sh", "-c", "mount -t tmpfs none /dev/shm"):
        environ["PRESSED_NAMESPACE"] = "1"
        before += NAMESPACE
    with group("memory") as memory, group("pids") as pids:
        entered = []
        for name, path in (("PRESSED_GROUP1", memory), ("PRESSED_PIDS", pids)):
            if path is not None:
                environ[name] = str(path)
                entered.append(str(path / "inner"))
        environ["GROUPS_"] = " ".join(entered)
        told = tell(TOGETHER, before=tuple(before), environ=environ)
        if memory is not None:
            for each in (memory, memory / "inner"):
                assert "oom_kill 0" in (each / "memory.oom_control").read_text().splitlines()
    return told


@functools.cache
def as_somebody() -> dict[str, Any]:
    """One program of a user who has no other processes, and may read what the tests may."""
    before: tuple[str, ...] = ()
    if os.getuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("setpriv is not there to become another user")
        may = "+dac_override,+dac_read_search"
        user = ("--reuid", SOMEBODY, "--regid", SOMEBODY, "--clear-groups")
        before = ("setpriv", *user, "--inh-caps", may, "--ambient-caps", may)
    return tell(PROCESSES, before=before)


def check(limit: str, told: dict[str, Any]) -> None:
    """Every cell of a row."""
    came = told[limit]
    if "impossible" in came:
        pytest.skip(came["impossible"])
    expected = dict.fromkeys(PLACES, "ok") | EXPECTED[limit]
    wrong = {
        place: text
        for place, text in came["places"].items()
        if not re.fullmatch(expected.get(place, "ok"), text, re.DOTALL)
    }
    assert wrong == {}
    assert (
        came["places"].keys() >= (expected if len(came["places"]) > 6 else EXPECTED[limit]).keys()
    )
    assert came["kept"]
    assert set(came.get("lifted", {}).values()) <= {"ok"}
    before, after = told["held"]
    assert after == before


@pytest.mark.parametrize("limit", TOGETHER)
def test_under_a_limit_every_place_works_or_says_what_ran_out(limit: str) -> None:
    check(limit, together())


@pytest.mark.parametrize("limit", PROCESSES)
def test_without_processes_to_start_every_place_works_or_says_so(limit: str) -> None:
    check(limit, as_somebody())


@pytest.mark.parametrize("limit", FILTERED)
def test_where_the_kernel_refuses_a_call_every_place_works_or_says_so(limit: str) -> None:
    check(limit, tell([limit]))
