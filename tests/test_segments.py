"""Segments: safe to touch when made, gone when dropped, refused when they do not fit."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import gc
import json
import os
import select
import signal
import subprocess
import sys
import textwrap
import threading
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import dsmfor
from dsmfor import footer, memfiles, segments
from dsmfor._native import registry
from dsmfor._native.farewell import Descriptor
from dsmfor.errors import DSMError, SharedMemoryFull

MiB = 1 << 20
PACKAGE = Path(dsmfor.__file__).parent.parent


def mappings() -> int:
    """Number of segments mapped in this process."""
    return Path("/proc/self/maps").read_text().count("/memfd:dsmfor segment")


def open_descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def run(program: str, *arguments: object, pass_fds: tuple[int, ...] = ()) -> str:
    """What a clean interpreter prints; its failure and any word on stderr are the test's."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)],
        capture_output=True,
        text=True,
        pass_fds=pass_fds,
        timeout=60,
        check=False,
        env=os.environ | {"PYTHONPATH": str(PACKAGE), "OPENBLAS_NUM_THREADS": "1"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


@pytest.fixture
def freed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of the segments freed during the test, in order; no engine hears of them."""
    numbers: list[int] = []
    monkeypatch.setattr(segments._release, "callbacks", [numbers.append])
    return numbers


# -- Making -------------------------------------------------------------------------------------


@pytest.mark.parametrize("nbytes", [1, 3, 800, 3548, 4096, MiB, 5 * MiB + 1])
def test_a_fresh_segment_is_of_its_size_and_reads_zero(nbytes: int) -> None:
    root = segments.create(nbytes)
    assert (root.shape, root.dtype, type(root)) == ((nbytes,), np.uint8, np.ndarray)
    assert root.flags.writeable
    assert not root.any()


def test_memory_that_was_written_and_freed_does_not_show_in_the_next_segment() -> None:
    for _ in range(20):
        root = segments.create(100_000)
        assert not root.any()
        root[:] = 255
        del root


@pytest.mark.parametrize("nbytes", [0, -1])
def test_a_segment_without_bytes_is_refused(nbytes: int) -> None:
    with pytest.raises(ValueError, match="at least one byte"):
        segments.create(nbytes)


def test_a_segment_is_known_by_its_number() -> None:
    before = segments.nbytes_live()
    root = segments.create(1000)
    segment, *_ = registry.handle(root)
    assert segment in segments.live()
    assert segments.root(segment) is root
    assert segments.fetch(segment) is root
    assert segments.size(segment) == 1000
    assert segments.nbytes_live() == before + 1000
    assert os.fstat(segments.descriptor(segment)).st_size == 1000 + segments.FOOTER.size


def test_numbers_are_never_used_again_and_tell_who_made_the_segment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(segments, "_creator", 0)
    numbers = [registry.handle(segments.create(10))[0] for _ in range(50)]
    assert numbers == sorted(set(numbers))
    assert {number >> 40 for number in numbers} == {0}
    segments.set_creator(7)
    assert registry.handle(segments.create(10))[0] >> 40 == 7
    with pytest.raises(ValueError, match="numbered from 0"):
        segments.set_creator(-1)


def test_a_segment_can_neither_shrink_nor_grow_nor_run() -> None:
    root = segments.create(5000)
    fd = segments.descriptor(registry.handle(root)[0])
    for size in (0, 100, 10_000_000):
        with pytest.raises(PermissionError):
            os.ftruncate(fd, size)
    assert root[-1] == 0


def test_all_pages_are_taken_before_anyone_can_touch_them() -> None:
    root = segments.create(3 * MiB)
    assert os.fstat(segments.descriptor(registry.handle(root)[0])).st_blocks * 512 >= 3 * MiB


def test_a_kernel_that_does_not_know_noexec_is_asked_without_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []
    real = memfiles.memory_file

    def before_linux_6_3(name: str, flags: int) -> Descriptor:
        asked.append(flags)
        if flags & 0x8:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(name, flags)

    monkeypatch.setattr(memfiles, "memory_file", before_linux_6_3)
    monkeypatch.setattr(memfiles, "_memfd_flags", memfiles._memfd_flags | 0x8)
    segments.create(10)
    segments.create(10)
    assert [bool(flags & 0x8) for flags in asked] == [True, False, False]


# -- Freeing ------------------------------------------------------------------------------------


def test_the_last_reference_frees_everything(freed: list[int]) -> None:
    segments.create(1)
    freed.clear()
    fds, maps, blocks = open_descriptors(), mappings(), registry.count()
    root = segments.create(10_000)
    segment = registry.handle(root)[0]
    fd = segments.descriptor(segment)
    view = root[100:200].view("f4")[::-1][:3]
    del root
    assert segment in segments.live()
    view[...] = 1
    assert freed == []
    del view
    assert freed == [segment]
    assert segment not in segments.live()
    assert segments.root(segment) is None
    assert (open_descriptors(), mappings(), registry.count()) == (fds, maps, blocks)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    for ask in (segments.descriptor, segments.size):
        with pytest.raises(DSMError, match="not live"):
            ask(segment)


def test_a_memoryview_keeps_the_segment_alive(freed: list[int]) -> None:
    view = memoryview(segments.create(10))
    assert freed == []
    view[0] = 7
    assert view[0] == 7
    view.release()
    assert len(freed) == 1


def test_the_registry_forgets_a_block_before_its_memory_is_unmapped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []
    root = segments.create(10_000)
    low, _ = registry.span(root)

    def look(segment: int) -> None:
        still_mapped = f"{low:x}-" in Path("/proc/self/maps").read_text()
        foreign = np.ctypeslib.as_array((ctypes.c_uint8 * 10).from_address(low))
        seen.append((still_mapped, registry.handle(foreign)))

    monkeypatch.setattr(segments._release, "callbacks", [look])
    del root
    assert seen == [(True, None)]


def test_two_thousand_arrays_leave_nothing(freed: list[int]) -> None:
    segments.create(1)
    freed.clear()
    fds, maps, blocks, live = open_descriptors(), mappings(), registry.count(), segments.live()
    kept = []
    for number in range(2000):
        kept.append(segments.create(1 + number))
        if number % 3:
            kept.pop(number % len(kept))
    kept.clear()
    assert len(freed) == len(set(freed)) == 2000
    assert (open_descriptors(), mappings(), registry.count()) == (fds, maps, blocks)
    assert segments.live() == live


def test_a_segment_in_a_cycle_is_freed_by_the_collector(freed: list[int]) -> None:
    cycle: list[object] = [segments.create(10)]
    cycle.append(cycle)
    del cycle
    gc.collect()
    assert len(freed) == 1


def test_a_segment_may_be_freed_by_another_thread(freed: list[int]) -> None:
    box = [segments.create(10)]
    segment = registry.handle(box[0])[0]
    thread = threading.Thread(target=box.clear)
    thread.start()
    thread.join()
    assert freed == [segment]


def test_many_threads_make_and_drop_segments_at_once(freed: list[int]) -> None:
    start = threading.Barrier(4)
    wrong: list[object] = []

    def churn(mark: int) -> None:
        start.wait()
        kept = []
        for _ in range(100):
            root = segments.create(100)
            root[:] = mark
            kept.append(root)
            if len(kept) > 5:
                kept.pop(0)
            if not all((each == mark).all() for each in kept):
                wrong.append(mark)

    threads = [threading.Thread(target=churn, args=(mark,)) for mark in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(set(freed)) == 400


def test_the_end_of_the_interpreter_is_silent() -> None:
    run(
        """
        import numpy as np
        from dsmfor import segments
        from dsmfor._native import registry
        kept = segments.create(10)
        class Holder: pass
        holder = Holder(); holder.me = holder; holder.array = segments.create(10)[3:]
        np.kept = segments.create(10)   # in a module that outlives ours
        segments.on_free(lambda segment: None)
        """
    )


def test_a_forked_child_reads_on_and_frees_only_its_own() -> None:
    told = run(
        """
        import json, os
        from dsmfor import segments
        from dsmfor._native import registry
        freed = []
        segments.on_free(freed.append)
        segments.set_resolver(lambda segment: 1 / 0)
        root = segments.create(1000)
        root[:] = 5
        segment = registry.handle(root)[0]
        fd = segments.descriptor(segment)
        pid = os.fork()
        if pid == 0:
            assert int(root.sum()) == 5000 and segments.fetch(segment) is root
            root[0] = 6
            del root
            assert freed == [] and segment not in segments.live()
            try:
                os.fstat(fd)
            except OSError:
                pass
            else:
                os._exit(3)
            try:
                segments.fetch(segment)
            except segments.DSMError:
                pass
            second = segments.create(10)
            assert registry.handle(second)[0] > segment
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os.fstat(fd)
        print(json.dumps([status, int(root[0]), int(root[1]), freed]))
        """
    )
    assert json.loads(told) == [0, 6, 5, []]


# -- Other processes ----------------------------------------------------------------------------


def test_another_process_adopts_a_segment_and_shares_its_bytes() -> None:
    root = segments.create(100_000)
    root[:] = 1
    segment = registry.handle(root)[0]
    fd = os.dup(segments.descriptor(segment))  # a low number, as a worker may receive it
    try:
        told = run(
            """
            import json, os, sys
            from dsmfor import segments
            segment, fd, nbytes = map(int, sys.argv[1:])
            freed = []
            segments.on_free(freed.append)
            root = segments.adopt(segment, fd, nbytes)
            total = int(root.sum())
            root[10] = 77
            own = segments.descriptor(segment)
            facts = [segments.root(segment) is root, os.get_inheritable(own), own >= 1024]
            again = segments.adopt(segment, os.dup(own), nbytes)
            facts.append(again is root)
            del root, again
            for gone in (fd, own):
                try:
                    os.fstat(gone)
                    facts.append("open")
                except OSError:
                    facts.append("closed")
            mapped = "memfd" in open("/proc/self/maps").read()
            print(json.dumps([total, facts, freed == [segment], mapped]))
            """,
            segment,
            fd,
            100_000,
            pass_fds=(fd,),
        )
    finally:
        os.close(fd)
    assert json.loads(told) == [
        100_000,
        [True, False, True, True, "closed", "closed"],
        True,
        False,
    ]
    assert root[10] == 77


def test_sharedarray_alone_attaches_a_segment() -> None:
    root = segments.create(5000)
    root[:] = 3
    fd = segments.descriptor(registry.handle(root)[0])
    told = run(
        """
        import json, sys
        import SharedArray
        array = SharedArray.attach(f"file:///proc/self/fd/{sys.argv[1]}")
        print(json.dumps([list(array.shape), str(array.dtype), int(array.sum())]))
        array[1] = 9
        """,
        fd,
        pass_fds=(fd,),
    )
    assert json.loads(told) == [[5000], "uint8", 15000]
    assert root[1] == 9


def test_adopting_what_is_live_gives_the_live_root_and_closes_the_descriptor() -> None:
    root = segments.create(10)
    segment = registry.handle(root)[0]
    fd = os.dup(segments.descriptor(segment))
    assert segments.adopt(segment, fd, 10) is root
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_an_adopted_descriptor_is_closed_on_exec() -> None:
    high = fcntl.fcntl(fd := crafted(100, ending(100)), fcntl.F_DUPFD, 1024)
    os.close(fd)
    root = segments.adopt(95 << 40, high, 100)
    assert segments.descriptor(95 << 40) == high
    assert not os.get_inheritable(high)
    assert root.base is not None


def crafted(nbytes: int, ending: bytes, *, seals: int = 0x7) -> int:
    fd = os.memfd_create("crafted", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, nbytes + len(ending))
    os.pwrite(fd, ending, nbytes)
    fcntl.fcntl(fd, 1033, seals)
    return fd


def ending(nbytes: int) -> bytes:
    return segments.FOOTER.pack(b"[SharedArray]", nbytes, 2, 1, 1, nbytes, *[0] * 63)


@pytest.mark.parametrize(
    ("make", "nbytes", "fault"),
    [
        (lambda: crafted(100, ending(100)), 101, "bytes instead of"),
        (lambda: crafted(100, ending(100)), 2**62, "bytes instead of"),
        (lambda: crafted(100, b""), 100, "bytes instead of"),
        (lambda: crafted(100, b"", seals=0), 0, "bytes instead of"),
        (lambda: crafted(100, bytes(548)), 100, "footer is not"),
        (lambda: crafted(100, ending(10**12)), 100, "footer is not"),
        (lambda: crafted(100, ending(100), seals=0x4), 100, "not sealed"),
        (lambda: os.open("/dev/null", os.O_RDWR), 100, "bytes instead of"),
    ],
)
def test_a_descriptor_that_is_no_segment_is_refused_before_it_is_mapped(
    make: object, nbytes: int, fault: str
) -> None:
    fds = open_descriptors()
    fd = make()  # type: ignore[operator]
    with pytest.raises(DSMError, match=fault) as caught:
        segments.adopt(99 << 40, fd, nbytes)
    assert open_descriptors() == fds  # while the traceback is still kept
    del caught
    assert segments.root(99 << 40) is None


def test_a_file_on_disk_is_no_segment(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(100) + ending(100))
    with pytest.raises(DSMError, match="not sealed"):
        segments.adopt(99 << 40, os.open(path, os.O_RDWR), 100)


def test_fetch_asks_the_resolver_once_for_what_it_does_not_know(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    segment = 98 << 40
    monkeypatch.setattr(segments, "_resolver", None)
    with pytest.raises(DSMError, match="no engine is there to ask"):
        segments.fetch(segment)
    asked = []

    def resolver(number: int) -> tuple[int, int]:
        asked.append(number)
        return crafted(100, ending(100)), 100

    segments.set_resolver(resolver)
    root = segments.fetch(segment)
    assert segments.fetch(segment) is root
    assert asked == [segment]
    assert registry.handle(root[3:])[:2] == (segment, 3)


def test_threads_that_adopt_one_segment_get_one_root(freed: list[int]) -> None:
    segment = 97 << 40
    source = crafted(100, ending(100))
    start = threading.Barrier(4)
    found: list[np.ndarray] = []

    def adopt() -> None:
        fd = os.dup(source)
        start.wait()
        found.append(segments.adopt(segment, fd, 100))

    threads = [threading.Thread(target=adopt) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.close(source)
    assert len(found) == 4
    assert all(each is found[0] for each in found)
    found.clear()
    assert freed == [segment]


def test_a_loser_of_the_race_to_map_gets_the_winners_root(
    monkeypatch: pytest.MonkeyPatch, freed: list[int]
) -> None:
    segments.create(1)
    freed.clear()
    segment = 96 << 40
    source = crafted(100, ending(100))
    real = segments._shared_array
    assert real is not None
    won: list[np.ndarray] = []

    def attach(name: str) -> np.ndarray:
        monkeypatch.setattr(segments, "_shared_array", real)
        won.append(segments.adopt(segment, os.dup(source), 100))
        return real.attach(name)

    monkeypatch.setattr(segments, "_shared_array", SimpleNamespace(attach=attach))
    fds = len(open_descriptors())
    assert segments.adopt(segment, os.dup(source), 100) is won[0]
    assert len(open_descriptors()) == fds + 1
    os.close(source)
    won.clear()
    assert freed == [segment]


def test_the_end_of_an_older_record_leaves_a_segment_that_was_adopted_anew_alone(
    freed: list[int],
) -> None:
    root = segments.create(100)
    segment = registry.handle(root)[0]
    late = SimpleNamespace(low=1, segment=segment, descriptor=Descriptor(os.dup(1)))
    segments._release(late)
    assert freed == []
    assert late.descriptor.number == -1
    assert segments.root(segment) is root
    assert registry.handle(root)[0] == segment
    del root
    assert freed == [segment]


def test_a_signal_handler_that_raises_cannot_strike_while_a_segment_goes(
    freed: list[int],
) -> None:
    """Two thousand of them while segments come and go: all are raised, and nothing is lost."""
    segments.create(1)
    fds, maps, live = open_descriptors(), mappings(), segments.live()
    armed = False
    raised = caught = 0

    def interrupt(*_: object) -> None:
        nonlocal armed, raised
        if armed:
            armed = False
            raised += 1
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 1e-4, 1e-4)
        while raised < 2000:
            try:
                armed = True
                while True:
                    segments.create(100)
            except KeyboardInterrupt:
                caught += 1
    finally:
        armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert caught == raised
    gc.collect()
    assert (open_descriptors(), mappings(), segments.live()) == (fds, maps, live)


# -- Descriptors --------------------------------------------------------------------------------


def test_select_works_beside_more_than_a_thousand_segments() -> None:
    roots = [segments.create(1) for _ in range(1100)]
    fds = [segments.descriptor(registry.handle(root)[0]) for root in roots]
    assert min(fds) >= 1024
    assert not any(os.get_inheritable(fd) for fd in fds)
    read, write = os.pipe()
    try:
        os.write(write, b"x")
        assert select.select([read], [], [], 0) == ([read], [], [])
    finally:
        os.close(read)
        os.close(write)


def test_running_out_of_descriptors_is_told_and_mended_by_dropping() -> None:
    told = run(
        """
        import resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, 60))
        from dsmfor import segments
        kept = []
        try:
            while True:
                kept.append(segments.create(10))
        except segments.SharedMemoryFull as error:
            print(len(kept), error)
        kept.clear()
        segments.create(10)
        """
    )
    count, message = told.split(maxsplit=1)
    assert 40 < int(count) < 60  # the soft limit was raised to the hard one
    assert "60 descriptors" in message
    assert "ulimit -n" in message


# -- Room ---------------------------------------------------------------------------------------


def test_ten_terabytes_are_refused_and_nothing_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "_reclaimer", None)  # an engine would give its own spares back
    segments.create(1)
    fds, maps, bytes_before = open_descriptors(), mappings(), segments.nbytes_live()
    with pytest.raises(SharedMemoryFull, match=r"9\.1 TiB.*does not fit.*drop arrays") as caught:
        segments.create(10**13)
    assert isinstance(caught.value, MemoryError)
    assert (open_descriptors(), mappings()) == (fds, maps)
    assert segments.nbytes_live() == bytes_before
    del caught


def test_a_segment_that_cannot_be_mapped_takes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    segments.create(1)
    fds, live = open_descriptors(), segments.live()

    def attach(name: str) -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr(segments, "_shared_array", SimpleNamespace(attach=attach))
    with pytest.raises(OSError, match="/proc must be mounted") as caught:
        segments.create(10)
    assert (open_descriptors(), segments.live()) == (fds, live)
    del caught


@pytest.mark.parametrize(
    ("code", "kind", "remedy"),
    [
        (errno.ENOSPC, SharedMemoryFull, "drop arrays"),
        (errno.ENOMEM, SharedMemoryFull, "drop arrays"),
        (errno.EPERM, OSError, "memfd_create"),
    ],
)
def test_a_reservation_that_fails_takes_nothing(
    monkeypatch: pytest.MonkeyPatch, code: int, kind: type[Exception], remedy: str
) -> None:
    segments.create(1)
    fds = open_descriptors()

    def fail(fd: int, start: int, length: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "posix_fallocate", fail)
    with pytest.raises(kind, match=remedy) as caught:
        segments.create(10)
    assert open_descriptors() == fds
    del caught


def test_ctrl_c_between_two_pieces_of_a_reservation_takes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    segments.create(1)
    fds = open_descriptors()
    pieces = []
    real = os.posix_fallocate

    def reserve(fd: int, start: int, length: int) -> None:
        pieces.append((start, length))
        if len(pieces) == 3:
            raise KeyboardInterrupt
        real(fd, start, length)

    monkeypatch.setattr(os, "posix_fallocate", reserve)
    monkeypatch.setattr(memfiles, "_PIECE", MiB)
    with pytest.raises(KeyboardInterrupt) as caught:
        segments.create(5 * MiB)
    assert pieces == [(0, MiB), (MiB, MiB), (2 * MiB, MiB)]
    assert open_descriptors() == fds  # while the traceback is still kept
    del caught


@pytest.mark.parametrize(
    ("limit", "remedy"), [("RLIMIT_FSIZE", "ulimit -f"), ("RLIMIT_AS", "ulimit -v")]
)
def test_a_limit_of_the_process_is_told_by_its_name(limit: str, remedy: str) -> None:
    told = run(
        """
        import os, resource, sys
        from dsmfor import segments
        kept = segments.create(10)
        used = int(open("/proc/self/statm").read().split()[0]) * 4096
        bound = 1 << 20 if sys.argv[1] == "RLIMIT_FSIZE" else used + (8 << 20)
        resource.setrlimit(getattr(resource, sys.argv[1]), (bound, bound))
        before = os.listdir("/proc/self/fd")
        try:
            segments.create(32 << 20)
        except segments.SharedMemoryFull as error:
            print(error)
        assert os.listdir("/proc/self/fd") == before
        kept[:] = 1
        segments.create(1000)
        """,
        limit,
    )
    assert remedy in told


# -- SharedArray --------------------------------------------------------------------------------


def test_sharedarray_is_imported_with_the_first_segment_and_asked_without_making_a_name() -> None:
    told = run(
        """
        import sys
        from dsmfor import segments
        made = []
        sys.addaudithook(lambda event, arguments: event in ("os.mkdir", "os.link", "open") and
                         made.append(str(arguments[0])))
        assert "SharedArray" not in sys.modules
        kept = segments.create(1)
        assert "SharedArray" in sys.modules
        print([name for name in made if name.startswith(("/dev/shm", "/tmp", "/var/tmp"))])
        """
    )
    assert told == "[]"


def reader(found: np.ndarray | Exception) -> SimpleNamespace:
    """A SharedArray that finds that, whatever is written."""

    def attach(name: str) -> np.ndarray:
        if isinstance(found, Exception):
            raise found
        return found

    return SimpleNamespace(attach=attach)


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (OSError("No SharedArray at this address"), "does not find"),
        (np.array([[1, -2, 3], [4, 5, -6]]), "dtype int64"),
        (np.array([[1, -2], [3, 4], [5, -6]], np.int16), r"shape \(3, 2\)"),
        (np.zeros((2, 3), np.int16), "takes for"),
    ],
)
def test_another_layout_of_sharedarray_is_refused(found: np.ndarray | Exception, told: str) -> None:
    with pytest.raises(DSMError, match=rf"548 bytes .*{told}.*install SharedArray"):
        footer._verify(reader(found))


def test_without_proc_the_first_segment_tells_and_not_the_probe() -> None:
    footer._verify(reader(FileNotFoundError(errno.ENOENT, "No such file or directory")))


def test_a_root_can_be_watched_by_others_too() -> None:
    root = segments.create(10)
    gone: list[object] = []
    watch = weakref.ref(root, gone.append)
    del root
    assert gone == [watch]
