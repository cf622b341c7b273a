"""A warden that was started ahead of the first call: it serves that, or is ended without it."""

from __future__ import annotations

import os
import signal

import pytest
from faults import gone, outcome, prompt, state, until, warm
from programs import Program

from dsmfor import pydsm
from dsmfor.engines import process


@pytest.fixture
def ahead() -> int:
    """The pid of a warden for whom nobody has waited."""
    process.shutdown()
    process.anticipate()
    (pid,) = process.team_pids()
    return pid


def test_a_cluster_has_its_warden_come_up():
    process.shutdown()
    with pydsm.Cluster(2) as cluster:
        (pid,) = process.team_pids()
        cluster.createShared("A", 10)
        cluster.runProcesses(lambda _: None)
        assert pid in process.team_pids()
        assert len(process.team_pids()) == 3


def test_it_is_started_once(ahead):
    process.anticipate()
    assert process.team_pids() == {ahead}
    pids = warm(2)
    process.anticipate()
    assert process.team_pids() == {ahead, *pids}


def test_no_call_comes(ahead):
    with prompt():
        process.shutdown()
    assert gone(ahead)
    assert process.team_pids() == set()


def test_it_is_killed_before_the_call(ahead):
    os.kill(ahead, signal.SIGKILL)
    until(lambda: gone(ahead))
    with prompt(5.0):
        pids, error = outcome(warm, 2)
    assert error is None
    assert process.team_pids() > set(pids)
    assert ahead not in process.team_pids()


def test_it_is_stopped_before_the_call(ahead):
    os.kill(ahead, signal.SIGSTOP)
    until(lambda: state(ahead) == "T")
    with prompt(5.0):
        assert len(warm(2)) == 2
    assert ahead in process.team_pids()


AHEAD = """
process.anticipate()
tell(pid=min(process.team_pids()))
match sys.argv[1]:
    case "return": pass
    case "raise": raise SystemExit("as it was told")
    case "_exit": os._exit(0)
    case "execv": os.execv("/bin/true", ["true"])
    case "wait": time.sleep(600)
"""


@pytest.mark.parametrize("how", ["return", "raise", "_exit", "execv", "wait"])
def test_the_program_ends_before_a_call(how):
    with Program(AHEAD, how) as program:
        pid = program.hear()["pid"]
        with prompt():
            if how == "wait":
                program.send(signal.SIGKILL)
            until(lambda: gone(pid))
        assert program.end() == ("as it was told\n" if how == "raise" else "")


FORK = """
process.anticipate()
(pid,) = process.team_pids()
child = os.fork()
if child == 0:
    assert process.team_pids() == set()
    assert roll_call() == [0, 1] and pid not in process.team_pids()
    process.shutdown()
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert roll_call() == [0, 1] and pid in process.team_pids()
tell(settled=settled())
"""


def test_the_program_forks_before_a_call():
    with Program(FORK) as program:
        assert program.hear() == {"settled": True}
        assert program.end() == ""


FEW = """
import resource
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
used = max(map(int, os.listdir("/proc/self/fd")))
resource.setrlimit(resource.RLIMIT_NOFILE, (used, hard))
process.anticipate()
try:
    roll_call()
except (dsm.DSMError, OSError) as error:
    tell(kind=type(error).__name__, text=str(error))
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
tell(ranks=roll_call())
"""


def test_the_call_says_why_there_is_no_warden():
    with Program(FEW) as program:
        told = program.hear()
        assert "open files" in told["text"] or "descriptor" in told["text"]
        assert program.hear() == {"ranks": [0, 1]}
        assert program.end() == ""
