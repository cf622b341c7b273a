"""What workers print, warn of and round comes out as if the caller's own process did it."""

from __future__ import annotations

import collections
import contextlib
import ctypes
import io
import json
import logging
import os
import pty
import re
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import dsmfor as dsm
from dsmfor.engines import process

PACKAGE = str(Path(dsm.__file__).parent.parent)
PATIENCE = 20.0


@dsm.parallel(workers=2)
def say(*texts):
    for text in texts:
        print(dsm.rank(), text)


def wait_for(flags: np.ndarray) -> None:
    """In a kernel: until the caller has raised the flag."""
    deadline = time.monotonic() + PATIENCE
    while not flags[0]:
        if time.monotonic() > deadline:
            raise TimeoutError("the caller has not seen the line")
        time.sleep(0.001)


class Sink(io.TextIOBase):
    """A stream of the user's that does something at each write."""

    def __init__(self, act=None):
        self.texts: list[str] = []
        self.act = act
        self.flushes = 0

    def write(self, text: str) -> int:
        self.texts.append(text)
        if self.act is not None:
            self.act(self)
        return len(text)

    def flush(self) -> None:
        self.flushes += 1

    @property
    def text(self) -> str:
        return "".join(self.texts)


def run(
    body: str, *flags: str, code: int = 0, variables: dict[str, str] | None = None
) -> tuple[bytes, bytes]:
    """Standard output and error of a program that imports sys, os, np and dsm."""
    head = "import contextlib, io, os, sys\nimport numpy as np\nimport dsmfor as dsm\n"
    path = os.pathsep.join([PACKAGE, *filter(None, [os.environ.get("PYTHONPATH")])])
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("DSM_", "PYTHONUNB"))}
    done = subprocess.run(
        [sys.executable, *flags, "-c", head + textwrap.dedent(body)],
        capture_output=True,
        timeout=120,
        check=False,
        env=environ | {"PYTHONPATH": path} | (variables or {}),
    )
    assert done.returncode == code, done.stderr.decode()
    return done.stdout, done.stderr


# -- To whatever sys.stdout and sys.stderr are ----------------------------------------------------


def test_capsys_sees_what_workers_print(capsys):
    @dsm.parallel(workers=2)
    def kernel():
        print("out", dsm.rank())
        print("err", dsm.rank(), file=sys.stderr)

    kernel()
    out, err = capsys.readouterr()
    assert sorted(out.splitlines()) == ["out 0", "out 1"]
    assert sorted(err.splitlines()) == ["err 0", "err 1"]
    print("between")
    say("again")
    assert sorted(capsys.readouterr().out.splitlines()) == ["0 again", "1 again", "between"]


@pytest.mark.parametrize("round_", range(3))
def test_capfd_sees_what_workers_print_and_what_their_c_code_and_programs_do(capfd, round_):
    @dsm.parallel(workers=2)
    def kernel():
        print("python", dsm.rank())
        libc = ctypes.CDLL(None)
        libc.printf(b"c line %d\n", dsm.rank())
        os.write(2, b"descriptor %d\n" % dsm.rank())
        subprocess.run(["echo", f"program {dsm.rank()}"], check=True)
        libc.printf(b"c rest %d", dsm.rank())

    kernel()
    out, err = capfd.readouterr()
    for rank in range(2):
        for what in (f"python {rank}\n", f"c line {rank}\n", f"c rest {rank}", f"program {rank}\n"):
            assert out.count(what) == 1
        assert err.count(f"descriptor {rank}\n") == 1


def test_redirect_stdout_holds_for_its_calls_and_no_longer(capsys):
    for n in range(3):
        mine = io.StringIO()
        with contextlib.redirect_stdout(mine):
            say(f"inside {n}")
        say("outside")
        assert sorted(mine.getvalue().splitlines()) == [f"0 inside {n}", f"1 inside {n}"]
    assert capsys.readouterr().out.count("outside") == 6


@pytest.mark.parametrize("how", ["a line", "a flush"])
def test_it_can_be_read_while_the_region_runs(how):
    seen = dsm.zeros(1, dtype=int)

    @dsm.parallel(workers=2)
    def kernel(seen, how):
        if how == "a line":
            print("ready")
        else:
            print("ready", end="", flush=True)
        wait_for(seen)
        print("done")

    def act(sink):
        seen[0] = sink.text.count("ready") == 2

    sink = Sink(act)
    with contextlib.redirect_stdout(sink):
        kernel(seen, how)
    assert sink.text.count("done") == 2
    assert sink.flushes == (2 if how == "a flush" else 0)


def test_the_order_of_each_worker_is_kept_on_both_streams_together():
    both: list[tuple[str, str]] = []
    out, err = Sink(lambda s: both.append(("out", s.texts[-1]))), Sink()
    err.act = lambda s: both.append(("err", s.texts[-1]))

    @dsm.parallel(workers=3)
    def kernel():
        for i in range(200):
            print(dsm.rank(), i, file=(sys.stdout, sys.stderr)[i % 3 == 0])

    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        kernel()
    found = collections.defaultdict(list)
    for stream, text in both:
        for line in text.splitlines():
            rank, i = map(int, line.split())
            found[rank].append(i)
            assert stream == ("err" if i % 3 == 0 else "out")
    assert found == {rank: list(range(200)) for rank in range(3)}


def test_a_line_that_is_not_ended_comes_with_the_end_of_the_region():
    mine = io.StringIO()

    @dsm.parallel(workers=2)
    def kernel():
        print("line")
        print(dsm.rank(), end="")

    with contextlib.redirect_stdout(mine):
        kernel()
        say("y")
    assert mine.getvalue().startswith("line\nline\n")
    assert sorted(mine.getvalue()[10:12]) == ["0", "1"]
    assert sorted(mine.getvalue()[12:].splitlines()) == ["0 y", "1 y"]


def test_any_text_arrives_as_it_was():
    texts = ["é€😀", "\udc80 lone \ud800", "tab\tand\rreturn", "\0", "😀" * 40_000, ""]
    mine = io.StringIO()

    @dsm.parallel(workers=1)
    def kernel(texts):
        for text in texts:
            print(text)

    with contextlib.redirect_stdout(mine):
        kernel(texts)
    assert mine.getvalue() == "".join(f"{text}\n" for text in texts)


def test_bytes_reach_the_buffer_of_a_file(tmp_path):
    data = bytes(range(256)) + b"\n"
    with open(tmp_path / "log", "w", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        print("first")
        dsm.parallel(workers=1)(lambda: sys.stdout.buffer.write(data))()
        print("last")
    assert (tmp_path / "log").read_bytes() == b"first\n" + data + b"last\n"


def test_without_a_stream_nothing_is_printed(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)

    @dsm.parallel(workers=2)
    def kernel():
        print("nothing")
        return sys.stdout is None

    assert kernel() == [True, True]


def test_stdout_may_be_stderr(capsys):
    with contextlib.redirect_stdout(sys.stderr):
        say("x")
    out, err = capsys.readouterr()
    assert out == ""
    assert sorted(err.splitlines()) == ["0 x", "1 x"]
    say("y")
    assert sorted(capsys.readouterr().out.splitlines()) == ["0 y", "1 y"]


def test_lines_of_up_to_a_megabyte_stay_whole_and_longer_ones_in_order():
    mine = io.StringIO()

    @dsm.parallel(workers=4)
    def kernel(n):
        for _ in range(3):
            print(f"{dsm.rank()}" * n)

    with contextlib.redirect_stdout(mine):
        kernel(300_000)
    expected = collections.Counter({f"{rank}" * 300_000: 3 for rank in range(4)})
    assert collections.Counter(mine.getvalue().splitlines()) == expected
    mine.seek(0)
    mine.truncate()
    with contextlib.redirect_stdout(mine):
        dsm.parallel(workers=1)(lambda: print(*range(200_000)))()
    assert mine.getvalue() == " ".join(map(str, range(200_000))) + "\n"


def test_a_hundred_megabytes_neither_stop_nor_grow():
    size = [0, 0]

    def act(sink):
        text = sink.texts.pop()
        size[0] += len(text)
        size[1] = max(size[1], len(text))

    @dsm.parallel(workers=2)
    def kernel():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        text = "\n".join("x" * 99 for _ in range(1000))
        for _ in range(500):
            print(text)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with contextlib.redirect_stdout(Sink(act)):
        grown = kernel()
    grown.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert size[0] == 100_000_000
    assert size[1] < 1_000_000
    assert max(grown) < 20_000  # KiB


# -- Straight to the descriptors ------------------------------------------------------------------


def test_lines_of_many_workers_are_never_mixed_nor_lost():
    out, _ = run(
        """
        @dsm.parallel(workers=64)
        def kernel():
            for i in range(20):
                print(dsm.rank(), i, f"{dsm.rank() % 10}" * (37 if i % 5 else 9_000))
        kernel()
        mine = io.StringIO()
        with contextlib.redirect_stdout(mine):
            kernel()
        print("--")
        print(mine.getvalue(), end="")
        """
    )
    for text in out.decode().split("--\n"):
        found = collections.defaultdict(list)
        for line in text.splitlines():
            rank, i, filling = line.split()
            assert filling == f"{int(rank) % 10}" * (37 if int(i) % 5 else 9_000)
            found[int(rank)].append(int(i))
        assert found == {rank: list(range(20)) for rank in range(64)}


def test_what_the_caller_has_printed_before_comes_before():
    out, err = run(
        """
        @dsm.parallel(workers=1)
        def kernel():
            print("worker")
            print("worker", file=sys.stderr)
        for stream in (sys.stdout, sys.stderr):
            print("before ", end="", file=stream)
        kernel()
        print("after")
        print("after", file=sys.stderr)
        """
    )
    assert out == err == b"before worker\nafter\n"


def test_another_file_under_descriptor_1_is_followed(tmp_path):
    out, _ = run(
        f"""
        @dsm.parallel(workers=2)
        def kernel(n):
            print("python", n)
            os.write(1, b"c %d\\n" % n)
        kernel(0)
        saved = os.dup(1)
        path = {str(tmp_path / "log")!r}
        for n in (1, 2):     # the same file twice, but opened anew: its position is another
            os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND), 1)
            kernel(n)
        os.dup2(saved, 1)
        kernel(3)
        os.close(1)
        kernel(4)
        os.dup2(saved, 1)
        dsm.parallel(workers=5)(lambda: print("new workers"))()
        """
    )
    assert sorted(out.splitlines()) == sorted(
        [b"python 0", b"c 0", b"python 3", b"c 3"] * 2 + [b"new workers"] * 5
    )
    log = (tmp_path / "log").read_bytes().splitlines()
    assert sorted(log) == sorted([b"python 1", b"c 1", b"python 2", b"c 2"] * 2)


def test_a_file_that_is_opened_anew_is_another_one(tmp_path):
    path = tmp_path / "log"
    run(
        f"""
        say = dsm.parallel(workers=1)(lambda: print("worker"))
        for _ in range(3):
            fd = os.open({str(path)!r}, os.O_CREAT | os.O_WRONLY)
            os.lseek(fd, 0, os.SEEK_END)
            os.dup2(fd, 1)
            os.close(fd)
            print("caller")
            say()
        """
    )
    assert path.read_text() == "caller\nworker\n" * 3


@pytest.mark.parametrize("flags", [[], ["-u"]], ids=["buffered", "unbuffered"])
def test_encoding_and_errors_are_followed(flags):
    out, err = run(
        """
        @dsm.parallel(workers=1)
        def kernel():
            print("é€")
            return sys.stdout.encoding, sys.stdout.errors, sys.stdout.fileno()
        def like_here():
            return kernel() == [(sys.stdout.encoding, sys.stdout.errors, 1)]
        print(like_here())
        sys.stdout.reconfigure(encoding="ascii", errors="xmlcharrefreplace")
        print(like_here())
        sys.stdout.reconfigure(encoding="utf-16-le", errors="strict")
        kernel()
        sys.stdout.reconfigure(encoding="ascii")
        try:
            kernel()
        except UnicodeEncodeError:
            print("as here")
        """,
        *flags,
        variables={"PYTHONIOENCODING": "latin-1:replace"},
    )
    expected = b"\xe9?\nTrue\n&#233;&#8364;\nTrue\n" + "é€\n".encode("utf-16-le") + b"as here\n"
    assert out == expected
    assert err == b""


def test_a_closed_stream_is_closed_in_workers_too():
    _, err = run(
        """
        @dsm.parallel(workers=2)
        def kernel():
            print("x")
        kernel()
        sys.stdout.close()
        for call in (kernel, kernel.serial):
            try:
                call()
            except ValueError as error:
                print(error, file=sys.stderr)
        """
    )
    assert err == b"I/O operation on closed file.\n" * 2


def test_workers_are_at_the_terminal_where_the_caller_is():
    ours, theirs = pty.openpty()
    program = (
        "import contextlib, io, sys, dsmfor as dsm\n"
        "k = dsm.parallel(workers=1)(lambda: print('tty', sys.stdout.isatty()))\n"
        "k()\n"
        "with contextlib.redirect_stdout(io.StringIO()) as mine:\n"
        "    k()\n"
        "print(mine.getvalue())\n"
    )
    try:
        subprocess.run(
            [sys.executable, "-c", program],
            stdout=theirs,
            timeout=60,
            check=True,
            env=os.environ | {"PYTHONPATH": PACKAGE},
        )
        assert os.read(ours, 1000).split() == [b"tty", b"True", b"tty", b"False"]
    finally:
        os.close(ours)
        os.close(theirs)


def test_a_reader_who_has_gone_is_an_error_of_the_kernel():
    _, err = run(
        """
        @dsm.parallel(workers=2)
        def kernel():
            for i in range(100_000):
                print("line")
        reading, writing = os.pipe()
        os.dup2(writing, 1)
        os.close(writing)
        os.close(reading)
        try:
            kernel()
        except BrokenPipeError:
            print("broken", file=sys.stderr)
        os.dup2(2, 1)
        """
    )
    assert err == b"broken\n"


def test_a_pipe_that_nobody_reads_does_not_outlast_a_timeout():
    _, err = run(
        """
        @dsm.parallel(workers=3, timeout=0.5)
        def kernel():
            while True:
                print("x" * 5000)
        reading, writing = os.pipe()
        os.dup2(writing, 1)
        try:
            kernel()
        except dsm.RegionTimeout:
            print("timeout", file=sys.stderr)
        os.dup2(2, 1)
        dsm.parallel(workers=3)(lambda: print("on"))()
        """
    )
    assert err == b"timeout\n" + b"on\n" * 3


# -- When something goes wrong --------------------------------------------------------------------


def numbered(text: str) -> dict[int, list[int]]:
    """Numbers by rank; what is not a line of them fails."""
    found: dict[int, list[int]] = {0: [], 1: []}
    for line in text.splitlines(keepends=True):
        match = re.fullmatch(r"(\d) (\d+)\n", line)
        assert match, repr(line)
        found[int(match[1])].append(int(match[2]))
    return found


@dsm.parallel(workers=2)
def count(done):
    i = 0
    while True:
        sys.stdout.write(f"{dsm.rank()} {i}\n")  # print writes its end separately
        i += 1
        done[dsm.rank()] = i


def assert_all_there(text: str, done: np.ndarray) -> None:
    for rank, numbers in numbered(text).items():
        assert numbers == list(range(len(numbers)))
        assert done[rank] <= len(numbers) <= done[rank] + 1  # one may be printed and not counted


def test_ctrl_c_at_any_moment_loses_no_line_and_repeats_none():
    say("warm")
    for n in range(15):
        done = dsm.zeros(2, dtype=int)
        mine = io.StringIO()
        signal.setitimer(signal.ITIMER_REAL, 0.003 + 0.007 * n)
        before = signal.signal(signal.SIGALRM, signal.default_int_handler)
        try:
            with contextlib.redirect_stdout(mine), pytest.raises(KeyboardInterrupt):
                count(done)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert_all_there(mine.getvalue(), done)


def test_a_timeout_ends_a_kernel_that_prints_for_ever():
    done = dsm.zeros(2, dtype=int)
    mine = io.StringIO()
    with contextlib.redirect_stdout(mine), pytest.raises(dsm.RegionTimeout):
        count.using(timeout=0.3)(done)
    assert min(done) > 0
    assert_all_there(mine.getvalue(), done)


def test_a_kernel_that_prints_on_and_cannot_be_stopped_is_ended_after_the_grace():
    @dsm.parallel(workers=2, timeout=0.3)
    def deaf():
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGRTMAX])
        while True:
            print("still here")

    began = time.monotonic()
    sink = Sink(lambda s: s.texts.clear())
    with contextlib.redirect_stdout(sink), pytest.raises(dsm.RegionTimeout):
        deaf()
    assert time.monotonic() - began < 10
    say("and on")


def test_the_finished_lines_of_a_killed_worker_arrive():
    mine = io.StringIO()

    @dsm.parallel(workers=2)
    def kernel():
        for i in range(1000):
            print(dsm.rank(), i)
        print("unfinished", end="")
        dsm.barrier()
        if dsm.rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        dsm.barrier()

    with contextlib.redirect_stdout(mine), pytest.raises(dsm.WorkerDied):
        kernel()
    assert numbered(mine.getvalue().replace("unfinished", "")) == {
        0: list(range(1000)),
        1: list(range(1000)),
    }


def test_the_lines_before_a_kernels_error_arrive():
    mine = io.StringIO()

    @dsm.parallel(workers=2)
    def kernel():
        for i in range(1000):
            print(dsm.rank(), i)
        raise ZeroDivisionError

    with contextlib.redirect_stdout(mine), pytest.raises(ZeroDivisionError):
        kernel()
    assert all(numbers[:1000] == list(range(1000)) for numbers in [numbered(mine.getvalue())[0]])


def test_the_lines_before_the_wardens_death_arrive():
    mine = io.StringIO()
    say("warm")
    assert process._line is not None
    warden = process._line.pid

    @dsm.parallel(workers=2)
    def kernel():
        print(dsm.rank(), 0)
        dsm.barrier()
        if dsm.rank() == 0:
            os.kill(warden, signal.SIGKILL)
        dsm.barrier()
        time.sleep(PATIENCE)

    with contextlib.redirect_stdout(mine), pytest.raises(dsm.WorkerDied):
        kernel()
    assert numbered(mine.getvalue()) == {0: [0], 1: [0]}
    say("and on")


def test_what_the_users_stream_raises_is_raised_when_the_region_is_over():
    class Full(Exception):
        pass

    def act(sink):
        if "1" in sink.texts[-1] and len(sink.texts) < 10:
            raise Full

    @dsm.parallel(workers=1)
    def kernel(a, fails):
        for i in range(3):
            print(i, flush=True)
        a[:] = 7
        if fails:
            raise ZeroDivisionError

    a = np.zeros(3)
    sink = Sink(act)
    with contextlib.redirect_stdout(sink):
        with pytest.raises(Full):
            kernel(a, False)
        assert a.tolist() == [7, 7, 7]  # it has run to its end
        assert sink.text == "0\n1\n2\n"
        with pytest.raises(ZeroDivisionError):
            kernel(a, True)
        sink.texts = [""] * 10
        kernel(a, False)


def test_a_stream_may_call_kernels_itself():
    inner = io.StringIO()

    def act(sink):
        if "outer" in sink.texts[-1]:
            with contextlib.redirect_stdout(inner):
                say("inner")

    with contextlib.redirect_stdout(Sink(act)):
        dsm.parallel(workers=1)(lambda: print("outer"))()
    assert sorted(inner.getvalue().splitlines()) == ["0 inner", "1 inner"]


# -- Kernels that have to do with the streams themselves ------------------------------------------


def test_a_kernel_may_replace_close_or_detach_its_stream(capsys):
    @dsm.parallel(workers=2)
    def kernel(how):
        print("kept", end=" ")
        if how == "redirect":
            with contextlib.redirect_stdout(io.StringIO()) as mine:
                print("inside")
            print("out", mine.getvalue() == "inside\n")
        elif how == "replace":
            sys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding="utf-8")
            print("out True")
        elif how == "detach":
            sys.stdout = io.TextIOWrapper(sys.stdout.detach(), encoding="utf-8")
            print("out True")
        elif how == "buffer":
            sys.stdout.reconfigure(write_through=False)
            print("out True")
        else:
            print("out True")
            sys.stdout.close()

    for how in ("redirect", "replace", "detach", "buffer", "close"):
        kernel(how)
        words = capsys.readouterr().out.split()  # reconfigure flushes: lines may be shown in parts
        assert sorted(words) == sorted(["kept", "out", "True"] * 2), how
        say("next")
        assert sorted(capsys.readouterr().out.splitlines()) == ["0 next", "1 next"], how


def test_a_handler_that_keeps_the_stream_keeps_the_right_one(capfd):
    @dsm.parallel(workers=1)
    def log(text, first=False):
        logger = logging.getLogger("kept")
        if first:
            logger.addHandler(logging.StreamHandler())
        logger.warning(text)

    log("one", first=True)
    assert capfd.readouterr().err == "one\n"
    mine = io.StringIO()
    with contextlib.redirect_stderr(mine):
        log("two")
    assert mine.getvalue() == "two\n"
    log("three")
    assert capfd.readouterr().err == "three\n"


def test_threads_and_children_of_a_kernel_print_too():
    mine = io.StringIO()

    @dsm.parallel(workers=2)
    def kernel():
        def lines(name):
            for i in range(100):
                sys.stdout.write(f"{name} {i}\n")

        threads = [threading.Thread(target=lines, args=(n,)) for n in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if (pid := os.fork()) == 0:
            lines("child")
            os._exit(0)
        os.waitpid(pid, 0)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 on: fork after threads
        with contextlib.redirect_stdout(mine):
            kernel()
    assert collections.Counter(mine.getvalue().splitlines()) == {
        f"{name} {i}": 2 for name in (0, 1, 2, "child") for i in range(100)
    }


# -- Several callers ------------------------------------------------------------------------------


class ByThread(io.TextIOBase):
    """As notebooks have it: whose output it is depends on who writes."""

    def __init__(self):
        self.texts: dict[str, str] = collections.defaultdict(str)

    def write(self, text: str) -> int:
        self.texts[threading.current_thread().name] += text
        return len(text)


def test_each_thread_writes_what_its_own_workers_print(monkeypatch):
    mine = ByThread()
    monkeypatch.setattr(sys, "stdout", mine)

    def call(name):
        for i in range(20):
            say(f"{name} {i}")

    threads = [threading.Thread(target=call, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n, thread in enumerate(threads):
        lines = mine.texts[thread.name].splitlines()
        assert sorted(lines) == sorted(f"{r} {n} {i}" for r in range(2) for i in range(20))


def test_a_forked_child_hears_its_own_workers():
    out, _ = run(
        """
        import warnings
        warnings.simplefilter("ignore")
        @dsm.parallel(workers=2)
        def kernel(name):
            print(name)
        mine = io.StringIO()
        with contextlib.redirect_stdout(mine):
            kernel("parent")
            if (pid := os.fork()) == 0:
                kernel("child")
                os.write(1, mine.getvalue().encode())
                os._exit(0)
            os.waitpid(pid, 0)
            kernel("parent")
        os.write(1, mine.getvalue().encode())
        """
    )
    assert out.split() == [b"parent"] * 2 + [b"child"] * 2 + [b"parent"] * 4


NOTEBOOK = [
    """
    import io, contextlib, sys, time, warnings
    import numpy as np
    import dsmfor as dsm

    @dsm.parallel(workers=2)
    def say(text):
        print(text)
        print("oops", text, file=sys.stderr)
    say("first")
    """,
    "say('second'); print('own')",
    """
    %%capture mine
    say("third")
    """,
    "print(mine.stdout.count('third'), mine.stderr.count('oops third'))",
    """
    class Mine(UserWarning):
        pass
    warnings.simplefilter("error", Mine)
    @dsm.parallel(workers=2)
    def warn():
        warnings.warn("now", Mine)
    try:
        warn()
    except Mine as error:
        print(repr(error))
    """,
    """
    import os
    dsm.parallel(workers=1)(lambda: os.system("echo from below"))()
    """,
    "say('last')",
]


EXECUTE = """
import json, sys, nbclient, nbformat
book = nbformat.v4.new_notebook()
book.cells = [nbformat.v4.new_code_cell(cell) for cell in json.load(sys.stdin)]
nbclient.NotebookClient(book, timeout=60).execute()
streams = [[o for o in cell.outputs if o.output_type == "stream"] for cell in book.cells]
names = "stdout", "stderr"
said = [{n: "".join(o.text for o in found if o.name == n) for n in names} for found in streams]
print("said:", json.dumps(said))
"""


def test_in_a_notebook_it_lands_in_the_cell_that_calls(tmp_path):
    cells = [textwrap.dedent(cell).strip() for cell in NOTEBOOK]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", EXECUTE],
        input=json.dumps(cells),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        # PYTEST_CURRENT_TEST would have ipykernel leave descriptor 1 alone.
        env={k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"}
        | {"PYTHONPATH": PACKAGE, "IPYTHONDIR": str(tmp_path), "JUPYTER_PLATFORM_DIRS": "1"},
        cwd=tmp_path,
    )
    said = json.loads(done.stdout.partition("said:")[2])
    assert said[0] == {"stdout": "first\n" * 2, "stderr": "oops first\n" * 2}
    assert said[1] == {"stdout": "second\n" * 2 + "own\n", "stderr": "oops second\n" * 2}
    assert said[2] == {"stdout": "", "stderr": ""}
    assert said[3]["stdout"] == "2 2\n"
    assert said[4] == {"stdout": "Mine('now')\n", "stderr": ""}
    assert said[6] == {"stdout": "last\n" * 2, "stderr": "oops last\n" * 2}
    assert "from below" in said[5]["stdout"] + said[6]["stdout"]


# -- Warnings and numbers -------------------------------------------------------------------------


class Mine(UserWarning):
    pass


class Derived(Mine):
    pass


@dsm.parallel(workers=2)
def warn(category, text="now"):
    warnings.warn(text, category)  # noqa: B028


@contextlib.contextmanager
def heard() -> Iterator[list[str]]:
    lines: list[str] = []
    mine = io.StringIO()
    with contextlib.redirect_stderr(mine):
        yield lines
    lines += [line for line in mine.getvalue().splitlines() if ": now" in line]


@pytest.mark.parametrize("category", [UserWarning, RuntimeWarning, Mine, Derived])
def test_the_filters_of_warnings_are_followed(category):
    for _ in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("error", Mine if category is Derived else category)
            with pytest.raises(category, match="now"):
                warn(category)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", category)
            with heard() as lines:
                warn(category)
            assert lines == []
            warnings.filterwarnings("error", "not.*now")
            with pytest.raises(category):
                warn(category, "not even now")
            with heard() as lines:
                warn(category)
            assert lines == []
            warnings.simplefilter("always", category)
            with heard() as lines:
                warn(category)
                warn(category)
            assert len(lines) == 4


def test_a_category_of_the_main_module_is_known_by_workers():
    out, err = run(
        """
        import warnings
        class Mine(UserWarning): pass
        class Other(UserWarning): pass
        @dsm.parallel(workers=2)
        def warn(kind):
            warnings.warn("now", kind)
        warnings.simplefilter("ignore", Other)
        warnings.simplefilter("error", Mine)
        warn(Other)
        try:
            warn(Mine)
        except Mine as error:
            print(repr(error))
        """
    )
    assert out == b"Mine('now')\n"
    assert err == b""


def test_filters_that_cannot_travel_are_left_out():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filters.insert(0, ("error", object(), UserWarning, None, 0))
        warnings.filters.insert(0, "no filter at all")  # type: ignore[arg-type]
        try:
            with heard() as lines:
                warn(UserWarning)
        finally:
            del warnings.filters[:2]
        assert lines == []


def test_the_command_lines_filters_are_followed():
    body = """
        import warnings
        @dsm.parallel(workers=1)
        def warn():
            warnings.warn("now", UserWarning)
        try:
            warn()
        except UserWarning:
            print("error")
        """
    assert run(body, "-W", "error::UserWarning") == (b"error\n", b"")
    assert run(body, "-W", "ignore") == (b"", b"")


def test_numpys_error_handling_and_print_options_are_followed():
    @dsm.parallel(workers=2)
    def divide():
        return repr(np.array([np.pi]) / np.zeros(1)), np.geterr()["divide"]

    @dsm.parallel(workers=2)
    def pi():
        return repr(np.array([np.pi]))

    for _ in range(2):
        with np.errstate(divide="raise"), pytest.raises(FloatingPointError):
            divide()
        with np.errstate(divide="ignore"):
            assert divide() == [("array([inf])", "ignore")] * 2
        with np.printoptions(precision=2):
            assert pi() == ["array([3.14])"] * 2
        with np.printoptions(formatter={"float": lambda x: f"<{x:.1f}>"}):
            assert pi() == ["array([<3.1>])"] * 2
        assert pi() == [repr(np.array([np.pi]))] * 2


def test_two_threads_have_the_error_handling_of_each():
    @dsm.parallel(workers=2)
    def handling():
        return np.geterr()["divide"]

    wrong = []

    def call(how):
        with np.errstate(divide=how):
            wrong.extend(found for _ in range(50) if (found := handling()) != [how] * 2)

    threads = [threading.Thread(target=call, args=(how,)) for how in ("raise", "ignore")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_nothing_is_sent_when_nothing_has_changed():
    with contextlib.redirect_stdout(io.StringIO()):
        say("warm")
    assert process._line is not None
    version = process._line.version
    for _ in range(3):
        with contextlib.redirect_stdout(io.StringIO()):
            say("another stream of the same kind")
            with warnings.catch_warnings():
                say("an equal list")
    assert process._line.version == version


def test_what_the_caller_has_imported_may_warn_when_workers_import_it(tmp_path):
    (tmp_path / "legacy.py").write_text(
        "import warnings\nwarnings.warn('old', UserWarning)\nclass Thing: pass\ndef f(): return 1\n"
    )
    out, err = run(
        f"""
        import warnings
        sys.path.insert(0, {str(tmp_path)!r})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import legacy
        warnings.simplefilter("error")
        @dsm.parallel(workers=2)
        def kernel(thing):
            return legacy.f()
        print(kernel(legacy.Thing()))
        """
    )
    assert (out, err) == (b"[1, 1]\n", b"")
