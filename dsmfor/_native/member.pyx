"""One rank's part in a region: barrier, locks, exchange, cancel; the Team that engines supply.

The `process` engine gives every worker a Member over the crew's shared block, the `serial` engine
one over private memory. Loops are loops.pyx; what a word means is control.h; the argument is
engines/PROTOCOL.md, sections 4 to 6.

Assumes
-------
A Member is used by one thread, the one that runs the kernel.
"""

import os

from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from _blake2 import blake2b  # as hashlib does; that loads OpenSSL, which takes 3 to 7 ms

from dsmfor.errors import BarrierBroken, RegionError, RegionTimeout
from dsmfor._native.block cimport *
from dsmfor._native.block import PHASES, SCHEDULES

# What a rank is at; indices into PLACES of block.pyx.
cdef enum:
    AT_NOTHING, AT_LOOP, AT_BARRIER, AT_SINGLE, AT_CRITICAL, AT_CANCEL

cdef int64_t SLICE = 100_000  # us

_MISSING = object()


cdef class Lock:
    """A named lock of the team, held in a ``with`` block; see `dsmfor.critical`."""

    cdef Member member
    cdef dsm_lock *entry
    cdef uint32_t *word
    cdef readonly str name
    cdef uint64_t epoch

    def __enter__(self):
        self.take(True, 0.0)
        return self

    def acquire(self, bint block=True, double timeout=0.0):
        """Take the lock without a ``with``, if it is free or becomes so in time; whether."""
        return self.take(block, timeout > 0 and dsm_clock(self.member.block.b) + timeout) == 1

    def release(self):
        """Give the lock back outside a ``with`` block."""
        if not self.mine():
            raise RegionError(f"rank {self.member.rank} releases {self!r} and does not hold it: "
                              "release a lock once, in the worker that acquired it")
        self.__exit__()

    cdef bint mine(self) noexcept:
        cdef Member m = self.member
        return self.epoch == m.epoch and LOAD(self.word) >> 2 == <uint32_t>(m.rank + 1)

    cdef int take(self, bint block, double until) except -1:
        """1 if the lock was taken; 0 if it is not free, `until` that time (0: without end)."""
        cdef Member m = self.member
        cdef uint32_t seen = 0
        cdef bint late = False
        if self.epoch != m.epoch:
            raise RegionError(f"{self!r} belongs to a region that has ended: call dsm.critical inside "
                              "the kernel that uses it")
        cdef int r = dsm_take(self.word, m.rank, 0, &seen)
        if r > 0 or r == 0 and not block:
            m.held += r
            return r
        if self.mine():
            raise RegionError(f"rank {m.rank} holds {self!r} already and would wait for itself: "
                              "leave the outer block first, or give the inner one another name")
        m.place(DSM_AT_LOCK, AT_CRITICAL, 0)
        STORE(&m.block.b.ranks[m.rank].waits, 0 if until else self.number())
        try:
            while r == 0 and not late:
                late = m.wait(self.word, seen, until)
                r = dsm_take(self.word, m.rank, 1, &seen)
                if r == 0 and not until:  # who gives up after a while ties no knot
                    self.check_knot()
        finally:
            STORE(&m.block.b.ranks[m.rank].waits, 0)
        if r < 0:
            m.released()
        m.held += r
        m.block.b.ranks[m.rank].phase = DSM_COMPUTING
        return r

    cdef check_knot(self):
        """Fail the region if ranks wait for each other's locks."""
        cdef Member m = self.member
        cdef dsm_control *b = m.block.b
        cdef int32_t knot[1024]
        cdef int n = dsm_knotted(b, m.rank, knot)
        cdef int i
        if n == 0:
            return
        ring = [knot[i] for i in range(n)]
        names = {(<Lock>lock).number(): repr(lock) for lock in m.locks.values()}
        waits = "; ".join(
            f"rank {r} waits for {names.get(b.ranks[r].waits, 'a critical block')}"
            f", which rank {o} holds" for r, o in zip(ring, [*ring[1:], ring[0]]))
        dsm_poison(b, DSM_RAISED, m.rank)
        raise RegionError("critical blocks are entered in different orders, and would wait for each "
                          f"other for ever: {waits}. Enter nested ones in the same order everywhere")

    cdef uint32_t number(self):
        return <uint32_t>(self.entry - self.member.block.b.locks) + 1

    def __exit__(self, *exc):
        if self.mine():
            self.member.held -= 1
            dsm_give(self.word)

    def __repr__(self):
        return f"critical({'' if self.name is None else repr(self.name)})"


cdef class Member:
    """A rank of a team; `orphan` is the team of one that acts outside any region."""

    def __init__(self, Block block, int rank, int size, bint orphan=False):
        self.block = block
        self.rank = rank
        self.orphan = orphan
        self.locks = {}
        self.begin(1, size)

    def begin(self, uint64_t epoch, int size):
        """Enter region `epoch`."""
        self.epoch = epoch
        self.size = size
        self.loops = self.block.b.base
        self.history = 1
        self.exchanges = 0
        self.forsake()
        self.making = False
        self.fault = self.last = self.value = None
        if self.locks:
            self.locks.clear()
        self.held = 0
        STORE(&self.block.b.ranks[self.rank].waits, 0)
        self.place(DSM_COMPUTING, AT_NOTHING, 0)

    def finish(self):
        """The kernel has returned: the region's end, which does not wait.

        Raises
        ------
        RegionError
            A loop was left early, or this rank and another ran different loops and barriers.
        """
        cdef int clash
        self.check("the end of the kernel")
        self.block.b.ranks[self.rank].loops = self.loops
        STORE(&self.block.b.ranks[self.rank].stopped, DSM_FINISHED)
        with nogil:
            clash = dsm_finish(self.block.b, self.rank, self.history)
        if clash == DSM_CLASH:
            self.clashed("the end of the kernel")

    def fail(self):
        """An exception leaves the kernel: release the others."""
        with nogil:
            dsm_poison(self.block.b, DSM_RAISED, self.rank)

    def end(self):
        """The region is over: whatever still refers to it is stale."""
        self.epoch = 0
        self.forsake()
        self.fault = self.last = self.value = self.settings = None

    cdef forsake(self):
        """Whatever loop is open still: it yields nothing any more."""
        if self.open != NULL:
            (<object>self.open).forsake()
        self.open = NULL

    # -- what others are told ------------------------------------------------------------------

    @property
    def in_loop(self):
        """Whether this rank is inside the body of a loop."""
        return self.open != NULL

    @property
    def broken(self):
        """Whether the region has failed."""
        return LOAD64(&self.block.b.reason) != 0

    def last_index(self):
        """(text, line, code) of the loop that was left last or is open, or None; for notes."""
        if self.open != NULL:
            return (<object>self.open).where()
        return self.last

    cdef int place(self, int phase, int at, int line) except -1:
        cdef dsm_rank *r = &self.block.b.ranks[self.rank]
        r.phase = phase
        r.at = at
        r.line = line
        return 0

    def diverged(self, str here):
        """This rank's part of the message about ranks that diverge."""
        cdef dsm_rank *r = &self.block.b.ranks[self.rank]
        return f"rank {self.rank} of {self.size} was at {here}{self.loop_text()}"

    def loop_text(self):
        cdef dsm_rank *r = &self.block.b.ranks[self.rank]
        if self.loops == self.block.b.base:
            return ""
        chunk = f", chunk={r.chunk}" if r.chunk > 1 else ""
        return (f" (its loop {r.number - <int64_t>self.block.b.base + 1}: {self.span.text(r.n)}, "
                f"schedule={SCHEDULES[r.schedule]!r}{chunk})")

    cdef str stop(self, int at, int line):
        """A place where ranks meet, in words."""
        return f"{('the end of the loop', 'the barrier', 'single')[at - AT_LOOP]} in line {line}"

    cdef clashed(self, str here):
        """Raise what a rank gets that finds the ranks diverge, unless the region had failed."""
        cdef uint64_t reason = LOAD64(&self.block.b.reason)
        if reason != (<uint64_t>self.rank << 32 | <uint64_t>DSM_DIVERGED):
            self.released()
        raise RegionError(self.diverged(here))

    cdef released(self):
        """Raise what a rank gets that waits in a region that has failed elsewhere."""
        cdef dsm_rank *r = &self.block.b.ranks[self.rank]
        if self.fault is not None:
            self.check("a wait")
        if r.phase == DSM_AT_BARRIER and LOAD64(&self.block.b.reason) & 0xffffffff == DSM_DIVERGED:
            raise BarrierBroken(self.diverged(self.stop(r.at, r.line)))
        raise BarrierBroken(f"rank {self.rank} of {self.size} was {PHASES[r.phase]}"
                            f"{f' (line {r.line})' if r.line else ''} when the region failed in "
                            f"another rank{self.loop_text()}")

    cdef int check(self, str what) except -1:
        """Refuse to go on after a loop that was left early, or within one."""
        if self.fault is not None:
            text, line, code = self.fault
            raise RegionError(text)
        if self.held:
            raise RegionError(
                f"{what} was reached while this rank holds a critical block: the others may wait "
                "for the block and would never come. Leave the block, or release the lock, before")
        if self.making:
            raise RegionError(
                f"{what} was reached inside the function that single calls: only one rank runs "
                "it, so the others would never come. Call it outside of single")
        if self.open != NULL:
            index, line, code = (<object>self.open).where()
            raise RegionError(
                f"{what} was reached inside the loop of line {line}, which has not ended ({index}): "
                "every rank must finish every loop before it. Leave a loop with "
                "dsm.cancel(), not with break or return, and put barriers between loops")
        return 0

    cdef void left_early(self, str text, str index, int line, object code) noexcept:
        """A loop's iterator died before its end: the region cannot be completed."""
        self.open = NULL
        self.last = (index, line, code)
        if self.fault is None:
            self.fault = (text, line, code)
        dsm_poison(self.block.b, DSM_LEFT, self.rank)

    # -- waiting -------------------------------------------------------------------------------

    cdef int wait(self, uint32_t *word, uint32_t seen, double until) except -1:
        """One slice of sleep on `word` while it is `seen`; signals are honoured."""
        cdef int64_t us = SLICE
        cdef int error
        cdef double left
        if until:
            left = (until - dsm_clock(self.block.b)) * 1e6
            if left <= 0:
                return 1
            if left < us:
                us = <int64_t>left + 1
        with nogil:
            error = dsm_rest(word, seen, self.block.b.linger, us, DSM_ANYONE)
        if error:
            PyErr_CheckSignals()
        return 0

    cdef int meet(self, int at, int line, double timeout, int64_t place=-1) except -1:
        """A barrier with all others; the line, or `place` if given, must be the same for all."""
        cdef dsm_control *b = self.block.b
        cdef double until = dsm_clock(b) + timeout if timeout > 0 else 0.0
        cdef int r
        cdef uint32_t now
        cdef uint32_t before = LOAD(&b.gen)
        cdef uint64_t stop = <uint64_t>at << 32 | <uint32_t>(line if place < 0 else place)
        cdef uint64_t signature = dsm_mix(self.history, stop) | 1
        self.place(DSM_AT_BARRIER, at, line)
        if before & DSM_BROKEN:
            self.released()
        STORE(&b.ranks[self.rank].stopped, before | 1)
        with nogil:
            r = dsm_arrive(b, self.rank, self.size, signature)
        if r == DSM_CLASH:
            self.clashed(self.stop(at, line))
        while r == DSM_WAIT:
            if self.wait(&b.gen, before, until):
                dsm_poison(b, DSM_RAISED, self.rank)
                raise RegionTimeout(
                    f"rank {self.rank} of {self.size} waited {timeout:g} s at the barrier of line "
                    f"{line} and the others did not come: {self.absent()}")
            now = LOAD(&b.gen)
            if (now ^ before) & ~<uint32_t>DSM_BROKEN:
                break
            if now & DSM_BROKEN:
                self.released()
        STORE(&b.ranks[self.rank].stopped, 0)
        b.ranks[self.rank].phase = DSM_COMPUTING
        return 0

    def absent(self):
        """The ranks that are not at a barrier, in words."""
        places = [(r, self.block.place(r)) for r in range(self.size)]
        return ", ".join(f"rank {r} is {p['phase']}" for r, p in places
                         if p["phase"] != PHASES[DSM_AT_BARRIER]) or "they have come just now"

    # -- the verbs -----------------------------------------------------------------------------

    def barrier(self, int line, double timeout=0.0, int64_t place=-1):
        """Wait until every rank is here: at this line, or in that `place`."""
        self.check(f"the barrier of line {line}")
        self.meet(AT_BARRIER, line, timeout, place)

    def lock(self, str name):
        """The team's lock of that name; None is a name of its own."""
        cdef Lock lock = self.locks.get(name)
        cdef dsm_control *b = self.block.b
        cdef dsm_lock *entry
        cdef uint32_t seen = 0
        cdef int r
        cdef uint64_t n0, n1
        if lock is not None:
            return lock
        spelled = b"" if name is None else b"n" + name.encode("utf-8", "surrogatepass")
        digest = blake2b(spelled, digest_size=16).digest()
        n0 = int.from_bytes(digest[:8], "little") | 1
        n1 = int.from_bytes(digest[8:], "little")
        r = dsm_take(&b.table, self.rank, 0, &seen)
        while r == 0:
            self.wait(&b.table, seen, 0.0)
            r = dsm_take(&b.table, self.rank, 1, &seen)
        if r < 0:
            self.released()
        entry = dsm_named(b, n0, n1)
        dsm_give(&b.table)
        if entry == NULL:
            raise RegionError(f"critical({name!r}) would be the 1025th name of a team, which has room "
                              "for 1024: take a lock per group of items, not one per item")
        lock = Lock.__new__(Lock)
        lock.member = self
        lock.entry = entry
        lock.word = &entry.word
        lock.name = name
        lock.epoch = self.epoch
        self.locks[name] = lock
        return lock

    def exchange(self, int line, make):
        """Rank 0 calls `make`; every rank returns its value, after a barrier."""
        self.check(f"single at line {line}")
        cdef uint32_t area = self.exchanges & 1
        value = None
        if self.rank == 0:
            self.making = True
            try:
                value = make()
            finally:
                self.making = False
            if self.size > 1:
                self.carrier.publish(area, value)
        self.exchanges += 1
        self.meet(AT_SINGLE, line, 0.0)
        if self.rank != 0:
            value = self.carrier.collect(0, area)
        return value

    # -- loops and cancelling ------------------------------------------------------------------

    cdef uint64_t enter_loop(self, void *loop, uint64_t digest, int line) except? 0:
        """Take the next loop number and wait until its slot is free."""
        cdef uint64_t number = self.loops
        cdef dsm_slot *s = &self.block.b.slots[number % DSM_RING]
        cdef uint32_t mine = <uint32_t>number << 1
        cdef uint32_t now
        self.check(f"the loop of line {line}")
        self.loops += 1
        self.history = dsm_mix(self.history, digest)
        while True:
            now = LOAD(&s.seq)
            if now == mine:
                break
            if now & DSM_BROKEN:
                self.released()
            self.block.b.ranks[self.rank].phase = DSM_AT_SLOT
            if number >= DSM_RING and dsm_stuck(self.block.b, self.size, number - DSM_RING):
                dsm_poison(self.block.b, DSM_DIVERGED, self.rank)
                self.clashed(f"the loop of line {line}, {DSM_RING} loops ahead of a rank that will not follow")
            ADD(&s.sleepers, 1)
            try:
                now = LOAD(&s.seq)
                if now != mine and not now & DSM_BROKEN:
                    self.wait(&s.seq, now, 0.0)
            finally:
                ADD(&s.sleepers, <uint32_t>-1)
        self.place(DSM_IN_LOOP, AT_LOOP, line)
        self.block.b.ranks[self.rank].low = self.block.b.ranks[self.rank].high = 0  # none yet
        self.open = loop
        self.value = None
        return number

    def cancel(self, value):
        """End the loop that this rank is in, for the whole team; the first value stands."""
        if self.open == NULL:
            raise RegionError("cancel() was called outside any prange, pslices or ptiles loop: it "
                              "ends the innermost loop of the team, so call it in the loop's body")
        cdef uint64_t number = (<object>self.open).number
        cdef dsm_slot *s = &self.block.b.slots[number % DSM_RING]
        cdef uint32_t nobody = 0
        cdef int area = 2 + <int>(number % DSM_RING)
        if LOAD(&s.cancel):
            return
        if self.size > 1:
            self.carrier.publish(area, value)
        if CAS(&s.cancel, &nobody, <uint32_t>(self.rank + 1)):
            self.value = value

    cdef int collect_cancel(self, uint64_t number) except -1:
        """Read the value that loop `number` was cancelled with, before leaving its slot."""
        cdef uint32_t who = LOAD(&self.block.b.slots[number % DSM_RING].cancel)
        if who == 0:
            self.value = None
        elif <int>who - 1 != self.rank:
            self.value = self.carrier.collect(<int>who - 1, 2 + <int>(number % DSM_RING))
        return 0

    def cancelled(self):
        """What this rank's loop was cancelled with: the one it is in, else its last; or None."""
        if self.open != NULL:
            self.collect_cancel((<object>self.open).number)
        return self.value
