"""A warden and workers that die or stop at exact points of dsmfor's own code.

`rigged` starts wardens whose code calls `_point(name)` at the places listed in `POINTS`. There, one
process finds the order of that name that a test has laid out (`Rig.arm`), takes it, and dies by a
real signal, exits, stops itself or dozes for a second. Nothing else is changed.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

STOP, DOZE = 1000, 1001  # in place of an exit code; DOZE + n dozes n seconds longer

WORKER_POINTS = (
    "worker forked",
    "worker maps its pages",
    "worker before its hello",
    "worker after its hello",
    "worker reads a letter",
    "worker publishes a value",
    "worker collects a value",
    "worker hands over its result",
    "worker has handed over its result",
    "worker has acknowledged",
)
WARDEN_POINTS = (
    "warden starts",
    "warden has a letter",
    "warden before a fork",
    "warden after a fork",
    "warden has a worker's question",
    "warden sees a death",
    "warden has poisoned",
    "warden before an obituary",
)


class Rig:
    """The orders that lie out, as files of a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def arm(self, point: str, code: int) -> None:
        """Who comes to `point` next exits with `code`, dies of signal ``-code``, or as it says."""
        assert point in WORKER_POINTS + WARDEN_POINTS
        (self.folder / "order").write_text(str(code))
        (self.folder / "order").rename(self.folder / point)

    def victim(self, point: str) -> int | None:
        """The pid of who took the order, if somebody has."""
        try:
            return int((self.folder / f"{point}.taken").read_text() or 0)
        except FileNotFoundError:
            return None

    def disarm(self) -> None:
        for path in self.folder.iterdir():
            path.unlink()


@contextmanager
def rigged(folder: Path) -> Iterator[Rig]:
    """Every warden that is started in the body is rigged."""
    from dsmfor.engines import process, spawning

    source = spawning._SOURCE
    process.shutdown()
    spawning._SOURCE = source.replace(
        "main({fd}",
        f"sys.path.append({str(Path(__file__).parent)!r})\n"
        f"import rigging\nrigging.rig({str(folder)!r})\nmain({{fd}}",
    )
    try:
        yield Rig(folder)
    finally:
        spawning._SOURCE = source
        process.shutdown()


# -- in the warden, and in the workers that it forks --------------------------------------------


def rig(folder: str) -> None:
    """Lay the points."""
    from dsmfor.engines import pages, warden, worker

    def point(name: str) -> None:
        order = f"{folder}/{name}"
        if not os.path.exists(order):
            return
        try:
            os.rename(order, f"{order}.{os.getpid()}")
        except FileNotFoundError:  # another one was faster
            return
        code = int(Path(f"{order}.{os.getpid()}").read_text())
        Path(f"{order}.{os.getpid()}").write_text(str(os.getpid()))
        os.rename(f"{order}.{os.getpid()}", f"{order}.taken")
        if code == STOP:
            os.kill(os.getpid(), signal.SIGSTOP)
        elif code >= DOZE:
            time.sleep(code - STOP)
        elif code >= 0:
            os._exit(code)
        else:
            os.kill(os.getpid(), -code)

    def around(
        owner: Any,
        name: str,
        before: str | None = None,
        after: str | None = None,
        when: Callable[..., bool] = lambda *_, **__: True,
    ) -> None:
        inner = getattr(owner, name)

        def outer(*args: Any, **kwargs: Any) -> Any:
            here = when(*args, **kwargs)
            if before and here:
                point(before)
            value = inner(*args, **kwargs)
            if after and here:
                point(after)
            return value

        setattr(owner, name, outer)

    me = os.getpid()
    around(worker, "main", before="worker forked")
    around(worker, "Page", before="worker maps its pages")
    around(
        worker,
        "send",
        before="worker before its hello",
        after="worker after its hello",
        when=lambda _end, message, *_: message[0] == "hello",
    )
    around(worker.Worker, "read_letter", before="worker reads a letter")
    around(
        worker.Worker,
        "hand_over",
        before="worker hands over its result",
        after="worker has handed over its result",
    )
    around(worker.Worker, "run", after="worker has acknowledged")
    around(pages.Areas, "_publish", before="worker publishes a value")
    around(pages.Areas, "_collect", before="worker collects a value")

    def here(*_: Any, **__: Any) -> bool:
        return os.getpid() == me

    around(warden, "receive", after="warden has a letter", when=here)
    around(warden.Warden, "on_worker", before="warden has a worker's question")
    around(warden.Warden, "bury", before="warden sees a death")
    around(warden.Warden, "spawn", before="warden before a fork")
    inner = os.fork

    def fork() -> int:
        pid = inner()
        if pid and here():
            point("warden after a fork")
        return pid

    os.fork = fork
    around(os, "waitpid", before="warden has poisoned", when=here)
    around(
        warden.Warden,
        "tell",
        before="warden before an obituary",
        when=lambda _self, *message, **_: message[0] == "died",
    )
    point("warden starts")
