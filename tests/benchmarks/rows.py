"""What is measured: one function a row of the figures in the project's design.

The docstring of a row says what is measured and how, and is printed above its table.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks import processes, programs
from benchmarks.harness import Bar, Contender, Round, Row, asking, ratio
from benchmarks.lane import Lane
from benchmarks.units import bandwidth, duration, share, size, times
from benchmarks.work import WORKERS

OURS = "dsmfor"
OPENMP = "C OpenMP, passive"
POOL = "multiprocessing.Pool"
FUTURES = "concurrent.futures"
JOBLIB = "joblib"
MPIRE = "mpire"
PYMP = "pymp"
PYDSM = "py-dsm"
NUMBA = "numba prange"


@dataclass(frozen=True, slots=True)
class Settings:
    """How much is measured.

    Parameters
    ----------
    rounds : int
        How often each contender is asked.
    seconds : float
        Time for a sample that is repeated for so long.
    scale : float
        Factor on the counts and sizes of the other samples.
    memory : int
        Bytes of the array of row ``memory``.
    """

    rounds: int = 21
    seconds: float = 0.05
    scale: float = 1.0
    memory: int = 4 * 10**9

    def scaled(self, count: float) -> int:
        """A count as this run has it."""
        return max(1, round(count * self.scale))


QUICK = Settings(rounds=5, seconds=0.02, scale=0.25, memory=256 * 10**6)


def at_most(limit: float, of: str, subject: str = OURS) -> Bar:
    """`subject` takes at most `limit` times what `of` takes."""
    return Bar(f"at most {limit:g} x {of}", ratio(subject, of), limit, show=times)


def faster(limit: float, than: str) -> Bar:
    """We are at least `limit` times faster than a peer."""
    return Bar(f"at least {limit:g} x faster than {than}", ratio(than, OURS), limit, False, times)


def account(function: Callable[..., object]) -> str:
    """What the docstring of a row says."""
    return inspect.getdoc(function) or ""


def region(settings: Settings) -> Row:
    """Start and end of an empty region with two workers, everything warm.

    The median over the calls of about 50 ms makes one sample. For the pools a region is a map
    of a function that does nothing over one item a worker, in a pool that is kept; pymp and
    py-dsm start their processes at every region.
    """
    arguments = ("empty_region", settings.seconds, WORKERS)
    peers = {
        OURS: "dsmfor",
        OPENMP: "openmp",
        POOL: "pool",
        FUTURES: "futures",
        JOBLIB: "joblib",
        MPIRE: "mpire",
        PYMP: "pymp",
        PYDSM: "pydsm",
        NUMBA: "numba",
    }
    return Row(
        "region",
        "An empty region",
        account(region),
        tuple(Contender(label, peer, asking(*arguments)) for label, peer in peers.items()),
        (at_most(1.5, OPENMP), faster(10, POOL), faster(300, PYDSM)),
        settings.rounds,
        duration,
    )


def call(settings: Settings) -> Row:
    """A warm call with three shared arrays and a captured scalar.

    Each array has 100,000 float64 elements; the kernel reads one of each. The pools are given
    the arrays as arguments, as their users do, and copy or map them.
    """
    empty = "dsmfor, empty region"
    arguments = (settings.seconds, 100_000)
    return Row(
        "call",
        "A call with three arrays and a captured scalar",
        account(call),
        (
            Contender(OURS, "dsmfor", asking("warm_call", *arguments)),
            Contender(empty, "dsmfor", asking("empty_region", settings.seconds, WORKERS)),
            Contender(
                "dsmfor, plain arrays copied in and out",
                "dsmfor",
                asking("warm_call_plain", *arguments),
            ),
            Contender(POOL, "pool", asking("warm_call", *arguments)),
            Contender(FUTURES, "futures", asking("warm_call", *arguments)),
            Contender(JOBLIB, "joblib", asking("warm_call", *arguments)),
            Contender(MPIRE, "mpire", asking("warm_call", *arguments)),
        ),
        (at_most(3, empty),),
        settings.rounds,
        duration,
    )


def changed(settings: Settings) -> Row:
    """A call of a kernel whose captured values have changed since the last one.

    The kernel captures a number, a list and a function of its module; one of them is another
    one at every call. The region takes one worker.
    """
    same, number = "nothing changed", "another number"
    cases = {same: "nothing", number: "number", "another list": "list", "another function": "code"}
    return Row(
        "changed",
        "A call whose captures changed",
        account(changed),
        tuple(
            Contender(label, "dsmfor", asking("changed_call", settings.seconds, what))
            for label, what in cases.items()
        ),
        tuple(
            Bar(f"{label}: at most 150 us more", beyond(label, same), 150e-6, show=duration)
            for label in list(cases)[1:]
        ),
        settings.rounds,
        duration,
    )


def beyond(label: str, base: str) -> Callable[[Round], float]:
    """What one contender takes longer than another."""
    return lambda seen: seen[label] - seen[base]


def copies(settings: Settings) -> Row:
    """A plain array of 80 MB, copied into shared memory for a call and back after it.

    Bytes copied per second, both ways together; the kernel does nothing. `numpy.copyto` copies
    the same bytes to another array and back.
    """
    n = settings.scaled(10_000_000)
    arguments = ("copies", n, 3 * settings.seconds)
    copyto = "numpy.copyto"
    return Row(
        "copies",
        "A plain array in and out",
        account(copies),
        (
            Contender(OURS, "dsmfor", asking(*arguments)),
            Contender(copyto, "onecore", asking(*arguments)),
        ),
        (
            Bar(
                f"at least 0.8 x {copyto}'s speed",
                ratio(OURS, copyto),
                0.8,
                at_most=False,
                show=times,
            ),
        ),
        settings.rounds,
        bandwidth,
    )


def loop(settings: Settings) -> Row:
    """One iteration of `prange`, with one worker, against a plain `range`.

    The body is ``total += i``; kernel and plain loop are timed inside the same worker. A
    multiprocessing.Value is claimed under its lock; pymp's `xrange` is its dynamic schedule.
    """
    plain = "range, same worker"
    n = settings.scaled(400_000)
    return Row(
        "loop",
        "One iteration of a dynamic loop",
        account(loop),
        (
            Contender("prange, dynamic", "dsmfor", asking("prange_loop", n, "dynamic")),
            Contender(plain, "dsmfor", asking("range_loop", n)),
            Contender("prange, dynamic,64", "dsmfor", asking("prange_loop", n, "dynamic,64")),
            Contender("prange, static", "dsmfor", asking("prange_loop", n, "static")),
            Contender(
                "multiprocessing.Value", "primitives", asking("claim_loop", settings.scaled(20_000))
            ),
            Contender("pymp xrange", "pymp", asking("claim_loop", settings.scaled(200))),
        ),
        (at_most(1.3, plain, "prange, dynamic"),),
        settings.rounds,
        duration,
    )


def barrier(settings: Settings) -> Row:
    """A barrier of two workers, many in a row inside one region.

    The time of all, by rank 0, over their number.
    """
    count = settings.scaled(4000)
    standard = "multiprocessing.Barrier"
    return Row(
        "barrier",
        "A barrier",
        account(barrier),
        (
            Contender(OURS, "dsmfor", asking("barrier", count, WORKERS)),
            Contender(OPENMP, "openmp", asking("barrier", count, WORKERS)),
            Contender(standard, "primitives", asking("barrier", count // 8, WORKERS)),
            Contender(PYDSM, "pydsm", asking("barrier", settings.scaled(8), WORKERS)),
        ),
        (at_most(2, OPENMP), faster(10, standard)),
        settings.rounds,
        duration,
    )


def lock(settings: Settings) -> Row:
    """An uncontended lock and unlock.

    ``with lock: pass`` in a loop, less the loop; ours is ``dsmfor.critical("x")``.
    """
    count = settings.scaled(200_000)
    return Row(
        "lock",
        "Lock and unlock",
        account(lock),
        (
            Contender(OURS, "dsmfor", asking("lock", count)),
            Contender("multiprocessing.Lock", "primitives", asking("lock", count)),
            Contender("threading.Lock", "primitives", asking("thread_lock", count)),
            Contender("C OpenMP", "openmp", asking("lock", count)),
        ),
        (Bar("at most 150 ns", lambda seen: seen[OURS], 150e-9, show=duration),),
        settings.rounds,
        duration,
    )


def triad(settings: Settings) -> Row:
    """Bandwidth of ``A = B + s * C`` with two workers.

    24 bytes an element are counted, for all alike: two arrays read, one written (the hardware
    reads the written one too). Each array is far larger than the caches. Ours is NumPy on
    `pslices` short enough that the product stays in a core's cache, written with ``out=``. C
    is compiled with -O3 -march=native, its arrays on the heap and in shared memory.
    """
    n = 20_000_000 if settings.scale >= 1 else 10_000_000
    arguments = ("triad", n, 3 * settings.seconds)
    return Row(
        "triad",
        "Bandwidth of a triad",
        account(triad),
        (
            Contender(OURS, "dsmfor", asking(*arguments)),
            Contender(OPENMP, "openmp", asking(*arguments)),
            Contender(
                "C OpenMP, shared memory", "openmp", asking("triad_shared", n, 3 * settings.seconds)
            ),
            Contender(NUMBA, "numba", asking(*arguments)),
            Contender("NumPy, one core, A[:] = B + s * C", "onecore", asking(*arguments)),
        ),
        (
            Bar(
                f"at least 0.95 x {OPENMP}'s bandwidth",
                ratio(OURS, OPENMP),
                0.95,
                at_most=False,
                show=times,
            ),
        ),
        settings.rounds,
        bandwidth,
    )


def triangle(settings: Settings) -> Row:
    """A triangular loop: iteration i costs i turns of pure Python arithmetic.

    Its duration with two workers over half of its duration on one core, which is taken just
    before; 1 is ideal. What C OpenMP reaches with the same loop in C says what the machine
    allows. Pools get 16 iterations at a time.
    """
    n = 4000 if settings.scale >= 1 else 3000
    peers = {POOL: "pool", FUTURES: "futures", JOBLIB: "joblib", MPIRE: "mpire"}
    dynamic, guided = "dsmfor, dynamic", "dsmfor, guided"
    return Row(
        "triangle",
        "A triangular loop",
        account(triangle),
        (
            Contender(dynamic, "dsmfor", asking("triangle", n, "dynamic")),
            Contender(guided, "dsmfor", asking("triangle", n, "guided")),
            Contender("C OpenMP, dynamic", "openmp", asking("triangle", n)),
            *(Contender(label, peer, asking("triangle", n, 16)) for label, peer in peers.items()),
        ),
        tuple(
            Bar(f"{label}: at most 1.05 x ideal", reading(label), 1.05, show=times)
            for label in (dynamic, guided)
        ),
        settings.rounds // 2,
        times,
    )


def reading(label: str) -> Callable[[Round], float]:
    """The value of one contender itself."""
    return lambda seen: seen[label]


def growth(nbytes: int) -> Callable[[Lane], float]:
    """PSS that caller and workers grow by when they have the array, in arrays."""

    def sample(lane: Lane) -> float:
        lane.ask("start_team", WORKERS)
        before = processes.proportional_bytes(lane.family())
        lane.ask("hold", nbytes)
        return (processes.proportional_bytes(lane.family()) - before) / nbytes

    return sample


def memory(settings: Settings) -> Row:
    """Memory that a large array takes when two workers have read it everywhere.

    The proportional set sizes of the caller and all workers are summed, so that a page that
    several have counts once, and compared with those of the warm team before; in multiples
    of the array's size. 1 means that nothing was copied. The pools get an array of 256 MB.
    """
    small = min(settings.memory, 256 * 10**6)
    return Row(
        "memory",
        f"An array of {size(settings.memory)} in two workers",
        account(memory),
        (
            Contender(OURS, "dsmfor", growth(settings.memory)),
            Contender("joblib, memory-mapped", "joblib", growth(small)),
            Contender("multiprocessing.Pool, pickled", "pool", growth(small)),
        ),
        (Bar("at most 1.02 x the array", reading(OURS), 1.02, show=times),),
        1,
        times,
        warm=False,
    )


def random_start(settings: Settings) -> Row:
    """Seconds to the first index of ``prange(10**9, schedule="random")``, two workers.

    py-dsm shuffles an array of all indices and makes a list of it in every worker; it is
    asked for 10**6 only.
    """
    return Row(
        "random-start",
        "Start of a random loop over 10**9 indices",
        account(random_start),
        (
            Contender(OURS, "dsmfor", asking("random_start", 10**9)),
            Contender("py-dsm, 10**6 indices", "pydsm", asking("random_start", 10**6)),
        ),
        (Bar("at most 1 ms", reading(OURS), 1e-3, show=duration),),
        max(3, settings.rounds // 4),
        duration,
    )


def random_memory(settings: Settings) -> Row:
    """Memory that a worker grows by in the first 10**6 indices of that loop.

    Then the loop is cancelled. py-dsm as above; what its list takes in each worker.
    """
    n = 10**7 if settings.scale >= 1 else 10**6
    return Row(
        "random-memory",
        "Memory of a random loop over 10**9 indices",
        account(random_memory),
        (
            Contender(OURS, "dsmfor", asking("random_memory", 10**9)),
            Contender(f"py-dsm, {n:,} indices", "pydsm", asking("random_memory", n)),
        ),
        (Bar("at most 1 MB", reading(OURS), 1e6, show=size),),
        1,
        size,
    )


def first(settings: Settings) -> Row:
    """The first region of a new interpreter.

    Time inside ``python -c``, from before ``import numpy`` to the end of the first region
    with two workers; the interpreter's own start and end are not in it. numba compiles anew.
    """
    alone = "import numpy alone"
    peers = {alone: "numpy", POOL: "pool", JOBLIB: "joblib", NUMBA: "numba"}
    return Row(
        "first",
        "The first region of a new interpreter",
        account(first),
        (
            Contender(OURS, "fresh", asking("first", "dsmfor")),
            *(Contender(label, "fresh", asking("first", peer)) for label, peer in peers.items()),
        ),
        (
            Bar(
                f"at most 0.35 s above {alone}",
                lambda seen: seen[OURS] - seen[alone],
                0.35,
                show=duration,
            ),
        ),
        max(3, settings.rounds // 4),
        duration,
    )


CROWD = 64


def idling(seconds: float) -> Callable[[Lane], float]:
    """CPU time that an idle team uses, as a share of one core."""

    def sample(lane: Lane) -> float:
        lane.ask("start_team", CROWD)
        team = lane.family()
        before = processes.cpu_seconds(team)
        time.sleep(seconds)
        return (processes.cpu_seconds(team) - before) / seconds

    return sample


def idle(settings: Settings) -> Row:
    """CPU time of an idle team of 64 workers on these cores, after it has run a region.

    User and system time of all processes of the team over two seconds, as a share of a core.
    """
    peers = {OURS: "dsmfor", OPENMP: "openmp", POOL: "pool"}
    sample = idling(2 * max(0.5, settings.scale))
    return Row(
        "idle",
        "An idle team of 64",
        account(idle),
        tuple(Contender(label, peer, sample) for label, peer in peers.items()),
        (Bar("at most 0.01 of a core", reading(OURS), 0.01, show=share),),
        3,
        share,
        warm=False,
    )


def crowd(settings: Settings) -> Row:
    """An empty region of 64 workers on these cores."""
    arguments = ("empty_region", 2 * settings.seconds, CROWD)
    peers = {OURS: "dsmfor", OPENMP: "openmp", POOL: "pool"}
    return Row(
        "crowd",
        "An empty region of 64",
        account(crowd),
        tuple(Contender(label, peer, asking(*arguments)) for label, peer in peers.items()),
        (),
        max(3, settings.rounds // 3),
        duration,
    )


def crowd_barrier(settings: Settings) -> Row:
    """A barrier of 64 workers on these cores, as above for two."""
    count = settings.scaled(100)
    standard = "multiprocessing.Barrier"
    return Row(
        "crowd-barrier",
        "A barrier of 64",
        account(crowd_barrier),
        (
            Contender(OURS, "dsmfor", asking("barrier", count, CROWD)),
            Contender(OPENMP, "openmp", asking("barrier", count, CROWD)),
            Contender(standard, "primitives", asking("barrier", count // 5, CROWD)),
        ),
        (),
        max(3, settings.rounds // 3),
        duration,
    )


ROWS = (
    region,
    call,
    changed,
    copies,
    loop,
    barrier,
    lock,
    triad,
    triangle,
    memory,
    random_start,
    random_memory,
    first,
    idle,
    crowd,
    crowd_barrier,
    *programs.rows(),
)
