"""The control block as the caller, the warden and a waiting worker see it, and one-way pages.

What the words mean is control.h, why it is right is engines/PROTOCOL.md. What a rank does inside
a region is member.pyx and loops.pyx. No policy here: who is replaced, and when, is the engine's.

Guarantees
----------
- A wait gives up the GIL, honours signals, and returns at its deadline; it never spins.
- Mappings of the caller are not inherited by a fork and are unmapped by their own process alone.
"""

import os

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport errno
from libc.limits cimport INT_MAX
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from posix.unistd cimport _exit, close, getpid

cdef extern from "<sys/mman.h>" nogil:
    void *mmap(void *address, size_t n, int protection, int flags, int fd, long offset)
    int munmap(void *address, size_t n)
    int madvise(void *address, size_t n, int advice)
    int PROT_READ, PROT_WRITE, MAP_SHARED, MAP_PRIVATE, MAP_ANONYMOUS, MAP_FIXED, MADV_DONTFORK
    void *MAP_FAILED

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events, revents
    int poll(pollfd *fds, unsigned long n, int timeout)
    short POLLIN

from dsmfor import limits
from dsmfor._native.interrupts cimport hear
from dsmfor._native.sealed import memfd, seal

REASONS = ("none", "raised", "diverged", "left", "died", "interrupted", "timeout")
PHASES = ("starting up", "idle", "unpickling its arguments", "computing", "in a loop",
          "at a barrier", "waiting for a lock", "waiting to enter a loop", "pickling its result")
SCHEDULES = ("static", "static", "random", "dynamic", "guided", "auto")
PLACES = ("", "prange", "barrier", "single", "critical", "cancel")

# Of the block, in bytes: caller and warden must have been built from the same header.
LAYOUT = sizeof(dsm_control)

# How a wait of the caller ended.
DONE, BROKEN, LATE, DEAD, SPOKEN = 0, 1, 2, 3, 4

cdef int64_t SLICE = 100_000  # us: the longest that anything lost can cost inside a region


cdef void *_map(int fd, size_t n, bint writable) except NULL:
    cdef int protection = PROT_READ | (PROT_WRITE if writable else 0)
    cdef int flags = MAP_SHARED if fd >= 0 else MAP_PRIVATE | MAP_ANONYMOUS
    cdef void *p = mmap(NULL, n, protection, flags, fd, 0)
    if p == MAP_FAILED:
        error = OSError(errno, "")
        raise limits.refusal(error, "map", n, live=0, what="control memory of {} for a team")
    return p


cdef class Page:
    """Bytes that one process writes and others only read.

    ``Page(nbytes)`` owns and writes; ``Page(nbytes, fd)`` reads what another one owns. The reader
    copies before it looks: what it unpickles can no longer change.
    """

    cdef char *p
    cdef readonly Py_ssize_t nbytes
    cdef readonly int fd
    cdef int pid

    def __cinit__(self, Py_ssize_t nbytes, int fd=-1):
        self.fd = -1
        self.pid = getpid()
        self.nbytes = nbytes
        if fd >= 0:
            if os.fstat(fd).st_size < nbytes:
                raise ValueError(f"a page of {nbytes} bytes was expected, descriptor {fd} has "
                                 f"{os.fstat(fd).st_size}")
            self.p = <char *>_map(fd, nbytes, False)
        else:
            self.fd = memfd("dsmfor page", nbytes)
            try:
                self.p = <char *>_map(self.fd, nbytes, True)
            except BaseException:
                os.close(self.fd)
                self.fd = -1
                raise
            seal(self.fd)
        madvise(self.p, nbytes, MADV_DONTFORK)

    def __dealloc__(self):
        if self.fd >= 0:
            close(self.fd)
        if self.p != NULL and self.pid == getpid():
            munmap(self.p, self.nbytes)

    def release(self):
        """Close the owner's descriptor once everybody who needs it has it."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def write(self, Py_ssize_t offset, bytes data):
        cdef Py_ssize_t n = PyBytes_GET_SIZE(data)
        if offset < 0 or n > self.nbytes - offset:
            raise ValueError(f"{n} bytes at {offset} do not fit a page of {self.nbytes}")
        memcpy(self.p + offset, PyBytes_AS_STRING(data), n)

    def read(self, Py_ssize_t offset, Py_ssize_t n):
        if offset < 0 or n < 0 or n > self.nbytes - offset:
            raise ValueError(f"{n} bytes at {offset} are not in a page of {self.nbytes}")
        return PyBytes_FromStringAndSize(self.p + offset, n)


cdef class Block:
    """A control block: shared under descriptor `fd`, or private to this process without one.

    Parameters
    ----------
    fd : int, optional
        A descriptor made by `Block.descriptor`. Without it the block is private memory, for the
        teams of this process.
    inherited : bool
        Whether children forked later may go on touching the mapping (a worker's).
    """

    def __cinit__(self, int fd=-1, bint inherited=False):
        self.pid = getpid()
        self.private = fd < 0
        self.b = <dsm_control *>_map(fd, sizeof(dsm_control), True)
        if fd >= 0 and not inherited:
            madvise(self.b, sizeof(dsm_control), MADV_DONTFORK)
        if fd < 0:
            dsm_repair(self.b)

    def __dealloc__(self):
        free(self.watched)
        if self.b != NULL and self.pid == getpid():
            munmap(self.b, sizeof(dsm_control))

    @staticmethod
    def descriptor():
        """Memory for a new block, to be mapped by every process of a crew."""
        fd = memfd("dsmfor control", sizeof(dsm_control))
        seal(fd, shared=True)
        return fd

    # -- the caller's side ---------------------------------------------------------------------

    def watch(self, pidfds):
        """Look at these pidfds, the warden's first, in every slice of a wait."""
        cdef int i
        free(self.watched)
        self.watched = NULL
        self.watching = 0
        if not pidfds:
            return
        self.watched = <int *>malloc(len(pidfds) * sizeof(int))
        if self.watched == NULL:
            raise MemoryError
        for i, fd in enumerate(pidfds):
            self.watched[i] = fd
        self.watching = len(pidfds)

    cdef int glance(self) except -2:
        """`look`, ten times a second, however often signals or output end the caller's sleep."""
        cdef int64_t now = dsm_microseconds()
        if now - self.looked < SLICE:
            return 0
        self.looked = now
        return self.look()

    cdef int look(self) except -2:
        """Whether a watched process has ended. A warden that somebody has stopped goes on."""
        cdef pollfd p
        cdef int i
        if self.watching:
            dsm_rouse(self.watched[0])
        for i in range(self.watching):
            p.fd = self.watched[i]
            p.events = POLLIN
            p.revents = 0
            if poll(&p, 1, 0) > 0 and p.revents:
                return 1
        return 0

    def linger(self, int microseconds):
        """How long waiters of this block yield before they sleep."""
        self.b.linger = microseconds

    def launch(self, int size, uint64_t epoch):
        """Start region `epoch` on ranks 0..size-1; the reason if the crew is broken, else 0."""
        return dsm_launch(self.b, size, epoch, self.mourned) & 0xffffffff

    def wait(self, int size, uint64_t epoch, double until=0.0):
        """Sleep until region `epoch` is DONE, BROKEN, LATE (past `until`) or a process is DEAD, or
        workers have SPOKEN, whether it is done or not: the relay is to be emptied.

        `until` is in seconds of `clock`, 0 for never. Raises what a signal handler raises.
        """
        cdef uint32_t tag = <uint32_t>(epoch & 0x7ffff) << 13
        cdef uint32_t v
        cdef int64_t us
        cdef int64_t linger = self.b.linger
        cdef int error
        while True:
            v = LOAD(&self.b.left)
            if v & DSM_BROKEN:
                return BROKEN
            if v == tag and self.ended(size, epoch):
                return SPOKEN if LOAD(&self.b.spoken) else DONE
            us = SLICE
            if until:
                us = min(us, <int64_t>((until - dsm_clock(self.b)) * 1e6))
                if us <= 0:
                    return LATE
            error = 0
            with nogil:
                if not (LOAD(&self.b.spoken) or dsm_linger(&self.b.left, v, linger)
                        or LOAD(&self.b.spoken)):
                    error = dsm_sleep(&self.b.left, v, us, DSM_ANYONE)
            if error:
                linger = 0
                PyErr_CheckSignals()
                if self.ended(size, epoch):
                    return SPOKEN if LOAD(&self.b.spoken) else DONE
                if self.glance():
                    return DEAD
            elif LOAD(&self.b.spoken):
                return DEAD if self.glance() else SPOKEN

    def clock(self):
        """Seconds during which the workers were not stopped together with the caller."""
        return dsm_clock(self.b)

    def halt(self, bint halted):  # the warden: workers are stopped with the caller, or go on
        dsm_halt(self.b, halted)

    def secede(self):
        """In a process that a kernel has forked: broken words of its own take the place of the
        shared ones, so a loop that it goes on with ends, and a barrier raises."""
        cdef void *p = mmap(self.b, sizeof(dsm_control), PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0)
        if p == MAP_FAILED: _exit(1)
        dsm_repair(self.b)
        dsm_poison(self.b, DSM_INTERRUPTED, -1)

    def settle(self, int size, uint64_t epoch, double seconds):
        """After a failure: sleep until all have acknowledged or `seconds` are over, or until one
        has died or printed. Returns DONE, LATE, DEAD or SPOKEN."""
        cdef double until = dsm_clock(self.b) + seconds
        cdef uint32_t v
        while True:
            v = LOAD(&self.b.left)
            if self.ended(size, epoch):
                return DONE
            if self.look():
                return DEAD
            if dsm_clock(self.b) >= until:
                return LATE
            if LOAD(&self.b.spoken):
                return SPOKEN
            with nogil:
                dsm_sleep(&self.b.left, v, 5_000, DSM_ANYONE)
            hear()

    cdef bint ended(self, int size, uint64_t epoch) noexcept:
        cdef int r
        for r in range(size):
            if LOAD64(&self.b.ranks[r].done) != epoch:
                return False
        return True

    def launched(self, uint64_t epoch):
        """Whether `launch` has started region `epoch`."""
        return (self.b.ranks[0].launch == epoch
                and LOAD(&self.b.left) >> 13 == <uint32_t>(epoch & 0x7ffff))

    def acknowledged(self, int size, uint64_t epoch):
        """Whether every rank below `size` has ended region `epoch`."""
        return self.ended(size, epoch)

    def done(self, int rank):
        return LOAD64(&self.b.ranks[rank].done)

    def outcome(self, int rank):
        """(outcome, length of its bytes in the page) of a rank that has acknowledged."""
        return self.b.ranks[rank].outcome, self.b.ranks[rank].length

    def all_quiet(self, int size):
        """Whether every rank below `size` ended with outcome 0: returned None."""
        cdef int r
        for r in range(size):
            if self.b.ranks[r].outcome:
                return False
        return True

    def poison(self, int reason, int rank):
        dsm_poison(self.b, reason, rank)

    def repair(self):
        dsm_repair(self.b)

    def reason(self):
        """(reason, culprit) of the failure, (0, 0) while there is none."""
        cdef uint64_t v = LOAD64(&self.b.reason)
        return v & 0xffffffff, <int32_t>(v >> 32)

    def mourn(self, int rank):
        """The warden's: the worker of `rank` has ended."""
        dsm_mourn(self.b, rank)

    def deaths(self):
        """How many workers have ended, ever."""
        return LOAD(&self.b.deaths)

    def note_deaths(self, uint32_t deaths):
        """That many deaths have been seen to; a launch refuses to begin after more of them."""
        self.mourned = deaths

    def sound(self):
        """Whether nothing is broken, and nobody has died of whom the caller has not heard."""
        return LOAD64(&self.b.reason) == 0 and LOAD(&self.b.deaths) == self.mourned

    def enlist(self, int rank, uint64_t epoch):
        """A new worker takes `rank`; `epoch` counts as done."""
        self.b.ranks[rank].launch = epoch
        self.b.ranks[rank].outcome = 0
        self.b.ranks[rank].mailed = self.b.ranks[rank].read = 0
        self.b.ranks[rank].phase = DSM_STARTING
        STORE64(&self.b.ranks[rank].done, epoch)

    def mailed(self, int rank, int letters):
        """Count `letters` more to `rank`; they are on its socket already."""
        STORE64(&self.b.ranks[rank].mailed, self.b.ranks[rank].mailed + letters)

    def unread(self, int rank):
        return self.b.ranks[rank].mailed - LOAD64(&self.b.ranks[rank].read)

    def ring(self):
        """Wake every worker of the crew to its letters."""
        dsm_ring(self.b)

    def await_read(self, int rank, double seconds):
        """Sleep until `rank` has read its letters: DONE, LATE or DEAD."""
        cdef double until = dsm_clock(self.b) + seconds
        cdef uint32_t never = 0
        while self.unread(rank):
            if self.look():
                return DEAD
            if dsm_clock(self.b) >= until:
                return LATE
            with nogil:
                dsm_sleep(&never, 0, 500, DSM_ANYONE)
            hear()
        return DONE

    def place(self, int rank):
        """Where a rank is, as a dict; for messages."""
        cdef dsm_rank *r = &self.b.ranks[rank]
        return {
            "phase": PHASES[r.phase], "at": PLACES[r.at], "line": r.line, "loop": r.number,
            "n": r.n, "schedule": SCHEDULES[r.schedule], "chunk": r.chunk,
            "low": r.low, "high": r.high,
        }

    # -- a worker's side, outside regions ------------------------------------------------------

    def standby(self, int rank, uint64_t last):
        """Sleep until there is a region after `last`, or a letter, a second at the most.

        Returns (epoch or 0, unread letters).
        """
        cdef dsm_rank *r = &self.b.ranks[rank]
        cdef uint32_t v
        cdef int error = 0
        cdef int64_t until = dsm_microseconds() + 1_000_000
        cdef int64_t left = 1_000_000
        r.phase = DSM_IDLE
        while True:
            v = LOAD(&self.b.bell)
            if LOAD64(&r.launch) != last:
                return r.launch, r.mailed - r.read
            if LOAD64(&r.mailed) != r.read or left <= 0:
                return 0, r.mailed - r.read
            with nogil:
                error = dsm_rest(&self.b.bell, v, self.b.linger if error == 0 else 0, left,
                                 dsm_bit(rank))
            if error:
                left = until - dsm_microseconds()
                PyErr_CheckSignals()

    def region_over(self):
        """Whether no rank is in a region."""
        return dsm_over(self.b)

    def region_size(self):
        return self.b.size

    def sign(self, int rank, int pid):
        """A worker says who it is."""
        self.b.ranks[rank].pid = pid

    def pid_of(self, int rank):
        return self.b.ranks[rank].pid

    def letter_read(self, int rank):
        STORE64(&self.b.ranks[rank].read, self.b.ranks[rank].read + 1)

    def speak(self, bint again=False):
        """There is something in the crew's relay; wakes the caller, `again` if it has not come."""
        if not SWAP(&self.b.spoken, 1) or again:
            dsm_wake(&self.b.left, INT_MAX, DSM_ANYONE)

    def phase(self, int rank, int phase):
        self.b.ranks[rank].phase = phase

    def finish(self, int rank, uint64_t epoch, uint32_t outcome, uint32_t length):
        """Acknowledge region `epoch`: the rank's last touch of the block in it."""
        self.b.ranks[rank].outcome = outcome
        self.b.ranks[rank].length = length
        self.b.ranks[rank].phase = DSM_IDLE
        with nogil:
            dsm_done(self.b, rank, epoch)
