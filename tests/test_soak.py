"""The soak itself (`tests/soak`): it survives, goes on where it stopped, and finds what is wrong.

An hour of it is `make soak`; here it runs for seconds.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import ModuleType

import pytest

SOAK = Path(__file__).with_name("soak")


def campaign(state: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(SOAK), "--state", str(state), "--length", "1", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_campaign_that_was_stopped_goes_on_and_ends_with_a_table(tmp_path: Path) -> None:
    state = tmp_path / "soak.json"
    first = campaign(state, "--seed", "7")
    while not state.exists() and first.poll() is None:
        time.sleep(0.01)
    first.send_signal(signal.SIGINT)
    output, said = first.communicate(timeout=120)
    assert first.returncode == 130, output + said
    kept = json.loads(state.read_text())
    assert (kept["seed"], kept["bouts"] >= 1) == (7, True)

    second = campaign(state, "--seconds", str(kept["seconds"] + 0.1))
    output, said = second.communicate(timeout=120)
    assert second.returncode == 0, output + said
    assert f"going on after {kept['bouts']} bouts" in said
    assert f"bout {kept['bouts']} of seed 7" in said
    assert f"{kept['bouts'] + 1} callers" in output
    assert "| whole |" in output
    assert not state.exists()  # the next campaign is a new one
    assert json.loads((tmp_path / "soak-last.json").read_text())["faults"]


@pytest.fixture
def bout(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SOAK))
    import bout

    monkeypatch.setattr(bout, "PATIENCE", 0.2)
    return bout


WRONG = {
    "left behind": "subprocess.Popen(['sleep', '1'], stdout=-3, stderr=-3)",
    "ended with 5 and not": "sys.stdout.flush(); os._exit(5)",
    "stderr:\nnoise": "print('noise', file=sys.stderr)",
    "descriptors grew": "facts['after']['descriptors'] += 1",
    "resident KiB grew": "facts['after']['resident KiB'] += 100_000",
    "it was wrong": "facts['errors'] = ['it was wrong']",
    "a death of nobody": "print(json.dumps("
    "{'disturbed': 'WorkerDied', 'pid': 1, 'at': 0, 'words': ''}))",
    "a call waited for nobody": "print(json.dumps("
    "{'disturbed': 'RegionTimeout', 'pid': None, 'at': 0, 'words': ''}))",
    "whole took 20.0 s": "facts['slowest'] = {'whole': 20.0}",
}


@pytest.mark.parametrize("finding", WRONG)
def test_what_is_wrong_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bout: ModuleType, finding: str
) -> None:
    """A caller that breaks one promise; the bout that it is in says which."""
    program = textwrap.dedent(
        """
        import json, os, subprocess, sys
        held = dict.fromkeys(["descriptors", "shared mappings", "children", "threads", "mappings",
                              "resident KiB"], 1)
        facts = {"ready": True, "settling": True, "waiting": True, "before": held,
                 "after": dict(held), "files": []}
        WRONG
        print(json.dumps(facts), flush=True)
        """
    )
    caller = tmp_path / "caller.py"
    monkeypatch.setattr(bout, "CALLER", caller)
    one = bout.Bout(seed=1, number=1, seconds=0.01)
    one.ending = "return"
    caller.write_text(program.replace("WRONG", "pass"))
    one.run()
    caller.write_text(program.replace("WRONG", WRONG[finding]))
    one = bout.Bout(seed=1, number=1, seconds=0.01)
    one.ending = "return"
    with pytest.raises(bout.Finding, match=finding):
        one.run()
