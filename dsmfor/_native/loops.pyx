"""The iterators behind `prange`, `pslices` and `ptiles`: they claim chunks and yield from them.

What a chunk number means is schedule.h; why every chunk is claimed exactly once is
engines/PROTOCOL.md, section 5. Arguments are checked in dsmfor/loops.py.

Guarantees
----------
- An iterator that has seen its end never claims again; one of another region is refused.
- One that dies before its end tells the team at once, with its line: nobody waits for it.
- Before every iteration two words are read, no lock is taken and no system call is made.
"""

cimport cython
from cpython.long cimport PyLong_FromLongLong
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from posix.unistd cimport getpid

from dsmfor.errors import RegionError
from dsmfor._native.block cimport *
from dsmfor._native.member cimport Member
from dsmfor._native.plan cimport (
    DSM_AUTO, DSM_DYNAMIC, DSM_GUIDED, Plan, dsm_cursor, dsm_plan, dsm_plan_bounds,
    dsm_plan_dealt, dsm_plan_share,
)

cdef enum:
    NEW, RUNNING, FINISHED


cdef class Span:
    """What a loop runs over, for messages: they may come when the loop is gone."""

    cdef str name
    cdef int64_t first, step
    cdef tuple shape, tile

    def text(self, n):
        text = f"{self.name}, n={n}"
        if self.tile is not None:
            return f"{text}, shape {self.shape} in tiles of {self.tile}"
        if self.shape is not None:
            return f"{text}, shape {self.shape}"
        if self.first == 0 and self.step == 1:
            return text
        return f"{text}, {range(self.first, self.first + n * self.step, self.step)}"


@cython.no_gc_clear  # the dealloc below needs the member
cdef class Loop:
    """One rank's way through one loop; the subclasses say what it yields.

    Parameters
    ----------
    member : Member
    plan : Plan
    first, step : int
        Iteration i stands for first + i * step.
    line, code : int, code object
        Where the loop stands; the line is compared between the ranks.
    nowait : bool
    """

    cdef Member m
    cdef dsm_plan plan
    cdef dsm_cursor cursor
    cdef dsm_slot *slot
    cdef readonly uint64_t number  # of the loop within its block's life
    cdef uint64_t epoch
    cdef uint64_t quiet            # seq and cancel while nothing has happened
    cdef int64_t dealt             # how many chunks arithmetic has dealt to this rank
    cdef int64_t i, end            # what is left of the current chunk
    cdef int64_t first, step
    cdef int line, state
    cdef bint nowait
    cdef object code
    # Of the subclasses, and declared here because the dealloc below still needs them.
    cdef readonly tuple shape, extent, tile

    name = "prange"

    def __init__(self, Member member not None, Plan plan not None, int64_t first, int64_t step,
                 int line, code, bint nowait):
        self.m = member
        self.plan = plan.c
        self.epoch = member.epoch
        self.first = first
        self.step = step
        self.line = line
        self.code = code
        self.nowait = nowait

    def __iter__(self):
        return self

    # What a range has and a loop has not. list() asks for a length too, and takes TypeError for none.

    def __len__(self):
        raise TypeError(f"{self.name} has no len(): its n={self.plan.n} iterations are dealt out "
                        f"to a team of {self.m.size}. Use n for all of them, or len(dsm.split(n)) "
                        "for this worker's share")

    def __getitem__(self, _):
        raise TypeError(f"{self.name} cannot be indexed: its n={self.plan.n} iterations are dealt "
                        f"out to a team of {self.m.size}. Use range(n)[i], or dsm.split(n)[i] for "
                        "the i-th of this worker's share")

    def __reversed__(self):
        raise TypeError(f"{self.name} cannot be reversed: its n={self.plan.n} iterations are dealt "
                        f"out to a team of {self.m.size}. Give it a negative step")

    def __bool__(self):
        return True

    def __reduce__(self):
        raise TypeError(f"{self.name} cannot be copied, captured, passed or returned: every worker "
                        f"has a share of its own. Call {self.name} in the kernel, where its for "
                        "stands")

    def forsake(self):
        """The region is over: yield nothing any more."""
        self.state = FINISHED
        self.i = self.end = 0

    def where(self):
        """(text, line, code): the index that was yielded last, and the loop's place."""
        return f"{self.index()} at {self.code.co_filename}:{self.line}", self.line, self.code

    def index(self):
        raise TypeError("a Loop yields nothing by itself")

    cdef int begin(self) except -1:
        cdef uint64_t digest = dsm_mix(<uint64_t>self.plan.n, <uint64_t>self.plan.chunk)
        cdef dsm_rank *r
        digest = dsm_mix(digest, <uint64_t>self.plan.kind << 40 | <uint64_t>self.nowait << 32
                         | <uint32_t>self.line)
        if self.m.open != NULL:
            raise RegionError(f"the loop of line {self.line} was made before the one that it is "
                              "used in: call prange where its for stands")
        r = &self.m.block.b.ranks[self.m.rank]
        r.n = self.plan.n
        r.chunk = self.plan.chunk
        r.schedule = self.plan.kind
        r.number = <int64_t>self.m.loops
        self.m.span = self.span()
        digest = dsm_mix(self.form(dsm_mix(digest, self.plan.key)), self.first)
        digest = dsm_mix(digest, self.step)
        self.number = self.m.enter_loop(<void *>self, digest, self.line)
        self.slot = &self.m.block.b.slots[self.number % DSM_RING]
        self.quiet = <uint32_t>self.number << 1
        self.state = RUNNING
        return 0

    cdef uint64_t form(self, uint64_t digest):
        """`digest` with all in it that the ranks must agree on besides numbers."""
        return digest

    cdef Span span(self):
        cdef Span span = Span.__new__(Span)
        span.name = self.name
        span.first = self.first
        span.step = self.step
        span.shape = self.shape if self.extent is None else self.extent
        span.tile = self.tile
        return span

    cdef int64_t claim(self) noexcept nogil:
        """The number of a chunk that is now this rank's, or -1."""
        cdef int64_t k
        if self.plan.kind == DSM_DYNAMIC or self.plan.kind == DSM_GUIDED:
            k = ADD64(&self.slot.next, 1)
            return k if k < self.plan.count else -1
        if self.plan.kind == DSM_AUTO:
            return self.claim_or_steal()
        k = dsm_plan_dealt(&self.plan, self.m.rank, self.dealt)
        self.dealt += 1
        return k

    cdef int64_t claim_or_steal(self) noexcept nogil:
        """auto: the front of the own share, then the back of the richest other's."""
        cdef dsm_rank *ranks = &self.m.block.b.ranks[0]
        cdef int slot = <int>(self.number % DSM_RING)
        cdef int32_t r, richest
        cdef int64_t first, last, k, left, most
        dsm_plan_share(&self.plan, self.m.rank, &first, &last)
        k = dsm_steal(&ranks[self.m.rank], slot, last - first, 1)
        if k >= 0:
            return first + k
        while True:
            most = 0
            richest = -1
            for r in range(self.plan.size):
                dsm_plan_share(&self.plan, r, &first, &last)
                left = last - first - dsm_taken(&ranks[r], slot)
                if left > most:
                    most = left
                    richest = r
            if richest < 0:
                return -1
            dsm_plan_share(&self.plan, richest, &first, &last)
            k = dsm_steal(&ranks[richest], slot, last - first, 0)
            if k >= 0:
                return first + k

    cdef int advance(self) except -1:
        """Take the next chunk: 1; or come to the loop's end, barrier and all: 0."""
        cdef int64_t k
        cdef uint64_t seen
        cdef dsm_rank *r
        if self.epoch != self.m.epoch:  # finished or not: a silent end would skip the body
            self.forsake()
            raise RegionError(f"the loop of line {self.line} belongs to a region that has ended: "
                              f"call {self.name} where its for stands")
        if self.state == FINISHED:
            return 0
        if self.state == NEW:
            self.begin()
        seen = dsm_glance(self.slot)
        if seen & DSM_BROKEN:
            self.forsake()
            self.m.open = NULL
            self.m.released()
        if seen != self.quiet:
            return self.complete()
        k = self.claim()
        if k < 0:
            return self.complete()
        dsm_plan_bounds(&self.plan, &self.cursor, k, &self.i, &self.end)
        r = &self.m.block.b.ranks[self.m.rank]
        r.low = self.i
        r.high = self.end
        return 1

    cdef int complete(self) except -1:
        """This rank has no more of the loop: latch, wait for the others, leave the slot."""
        cdef Member m = self.m
        self.state = FINISHED
        self.i = self.end = 0
        m.open = NULL
        m.last = None
        if not self.nowait:
            if m.held:
                m.check(f"the end of the loop of line {self.line}")
            m.meet(1, self.line, 0.0)
        m.collect_cancel(self.number)
        STORE64(&m.block.b.ranks[m.rank].through, self.number + 1)
        dsm_leave(m.block.b, <uint32_t>self.number, m.size, self.plan.kind == DSM_AUTO)
        m.block.b.ranks[m.rank].phase = DSM_COMPUTING
        return 0

    def __dealloc__(self):
        cdef Member m = self.m
        if self.state != RUNNING or m is None or m.epoch != self.epoch or m.open != <void *>self:
            return
        m.open = NULL
        if m.block.pid != getpid() and not m.block.private:
            return  # a forked child has no part in the team
        if m.orphan:
            STORE64(&m.block.b.ranks[m.rank].through, self.number + 1)
            dsm_leave(m.block.b, <uint32_t>self.number, m.size, self.plan.kind == DSM_AUTO)
            return
        m.left_early(
            f"rank {m.rank} of {m.size} left the loop at {self.code.co_filename}:{self.line} early "
            f"(its last was {self.index()}): every rank must finish every loop. Use dsm.cancel() "
            "to end a loop for the whole team, and continue instead of break to skip the rest",
            f"{self.index()} at {self.code.co_filename}:{self.line}", self.line, self.code)


cdef class Indices(Loop):
    """`prange(start, stop, step)`: Python ints."""

    def __next__(self):
        cdef int64_t i = self.i
        if i >= self.end or dsm_glance(self.slot) != self.quiet:
            if not self.advance():
                raise StopIteration
            i = self.i
        self.i = i + 1
        return PyLong_FromLongLong(self.first + i * self.step)

    def index(self):
        return f"prange index {self.first + (self.i - 1) * self.step}"


cdef class Slices(Loop):
    """`pslices(start, stop, step)`: one slice for each chunk."""

    name = "pslices"

    def __next__(self):
        if not self.advance():
            raise StopIteration
        return self.cut()

    cdef uint64_t form(self, uint64_t digest):
        return dsm_mix(digest, 1)

    cdef slice cut(self):
        cdef int64_t a = self.first + self.i * self.step
        cdef int64_t b = self.first + self.end * self.step
        cdef object stop = b
        if (self.first < 0) != (b < 0):  # past an end, where b would count from the other one
            stop = None
        return slice(a, stop, None if self.step == 1 else self.step)

    def index(self):
        s = self.cut()
        return f"pslices slice {s.start}:{'' if s.stop is None else s.stop}:{s.step or 1}"


cdef class Tuples(Loop):
    """`prange((ny, nx))`: index tuples, the last index running fastest."""

    def __init__(self, member, plan, tuple shape, line, code, nowait):
        Loop.__init__(self, member, plan, 0, 1, line, code, nowait)
        self.shape = shape

    cdef uint64_t form(self, uint64_t digest):
        cdef int64_t extent
        for extent in self.shape:
            digest = dsm_mix(digest, 2 + <uint64_t>extent)
        return dsm_mix(digest, 2)

    cdef tuple at(self, int64_t i):
        cdef list index = [0] * len(self.shape)
        cdef int64_t extent
        cdef int d
        for d in range(<int>len(self.shape) - 1, -1, -1):
            extent = self.shape[d]
            index[d] = i % extent
            i = i // extent
        return tuple(index)

    def __next__(self):
        cdef int64_t i = self.i
        if i >= self.end or dsm_glance(self.slot) != self.quiet:
            if not self.advance():
                raise StopIteration
            i = self.i
        self.i = i + 1
        return self.at(i)

    def index(self):
        return f"prange index {self.at(self.i - 1)}"


cdef class Tiles(Tuples):
    """`ptiles(shape, tile)`: tuples of slices over a grid of tiles; `shape` counts the tiles."""

    name = "ptiles"

    def __init__(self, member, plan, tuple grid, tuple extent, tuple tile, line, code, nowait):
        Tuples.__init__(self, member, plan, grid, line, code, nowait)
        self.extent = extent
        self.tile = tile

    cdef uint64_t form(self, uint64_t digest):
        cdef int64_t extent
        for extent in self.extent + self.tile:
            digest = dsm_mix(digest, 3 + <uint64_t>extent)
        return dsm_mix(digest, 3)

    cdef tuple cut(self, int64_t i):
        cdef list slices = []
        cdef int64_t k, size, extent
        for k, size, extent in zip(self.at(i), self.tile, self.extent):
            slices.append(slice(k * size, min((k + 1) * size, extent)))
        return tuple(slices)

    def __next__(self):
        cdef int64_t i = self.i
        if i >= self.end or dsm_glance(self.slot) != self.quiet:
            if not self.advance():
                raise StopIteration
            i = self.i
        self.i = i + 1
        return self.cut(i)

    def index(self):
        return f"ptiles tile {self.at(self.i - 1)}"
