# The C face of control.h, and of the Block that owns one.

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t


cdef extern from "control.h" nogil:
    enum:
        DSM_BROKEN
        DSM_RING
        DSM_RANKS
        DSM_NONE, DSM_RAISED, DSM_DIVERGED, DSM_LEFT, DSM_DIED, DSM_INTERRUPTED, DSM_TIMEOUT
        DSM_STARTING, DSM_IDLE, DSM_UNPICKLING, DSM_COMPUTING, DSM_IN_LOOP, DSM_AT_BARRIER
        DSM_AT_LOCK, DSM_AT_SLOT, DSM_PICKLING
        DSM_FINISHED
        DSM_PASS, DSM_WAIT, DSM_CLASH
        DSM_ANYONE

    ctypedef struct dsm_slot:
        uint32_t seq, cancel, left, sleepers
        int64_t next

    ctypedef struct dsm_lock:
        uint32_t word

    ctypedef struct dsm_rank:
        uint64_t launch, mailed, done, read
        uint32_t outcome, length
        uint64_t loops
        int32_t pid
        uint32_t stopped
        uint64_t through
        int32_t phase, line
        int64_t number, n, chunk
        int32_t schedule, at
        uint32_t waits
        int64_t low, high

    ctypedef struct dsm_control:
        uint32_t bell, left, spoken, deaths, gen, table, used
        uint64_t reason, base
        int32_t size, linger
        dsm_slot slots[8]
        dsm_lock locks[1024]
        dsm_rank ranks[1024]

    uint32_t LOAD(uint32_t *p)
    uint64_t LOAD64 "LOAD"(uint64_t *p)
    uint32_t ADD(uint32_t *p, uint32_t v)
    int64_t ADD64 "ADD"(int64_t *p, int64_t v)
    void STORE(uint32_t *p, uint32_t v)
    void STORE64 "STORE"(uint64_t *p, uint64_t v)
    uint32_t SWAP(uint32_t *p, uint32_t v)
    bint CAS(uint32_t *p, uint32_t *old, uint32_t v)

    int dsm_sleep(uint32_t *word, uint32_t expected, int64_t us, uint32_t bits)
    int dsm_linger(uint32_t *word, uint32_t seen, int64_t us)
    int dsm_rest(uint32_t *word, uint32_t seen, int64_t linger, int64_t us, uint32_t bits)
    void dsm_wake(uint32_t *word, int many, uint32_t bits)
    void dsm_rouse(int pidfd)
    uint32_t dsm_bit(int32_t rank)
    double dsm_clock(dsm_control *b)
    int64_t dsm_microseconds()
    void dsm_halt(dsm_control *b, int halted)
    void dsm_poison(dsm_control *b, uint32_t reason, int32_t rank)
    void dsm_repair(dsm_control *b)
    void dsm_mourn(dsm_control *b, int32_t rank)
    bint dsm_over(dsm_control *b)
    uint64_t dsm_launch(dsm_control *b, int32_t size, uint64_t epoch, uint32_t deaths)
    void dsm_ring(dsm_control *b)
    void dsm_done(dsm_control *b, int32_t rank, uint64_t epoch)
    int dsm_arrive(dsm_control *b, int32_t rank, int32_t size, uint64_t signature)
    int dsm_finish(dsm_control *b, int32_t rank, uint64_t history)
    uint64_t dsm_mix(uint64_t h, uint64_t v)
    bint dsm_stuck(dsm_control *b, int32_t size, uint64_t number)
    uint64_t dsm_glance(const dsm_slot *s)
    void dsm_leave(dsm_control *b, uint32_t number, int32_t size, int stealing)
    int64_t dsm_steal(dsm_rank *victim, int slot, int64_t length, int owner)
    int64_t dsm_taken(dsm_rank *owner, int slot)


cdef extern from "locks.h" nogil:
    int dsm_take(uint32_t *word, int32_t rank, int waited, uint32_t *seen)
    int dsm_knotted(dsm_control *b, int32_t rank, int32_t *knot)
    void dsm_give(uint32_t *word)
    dsm_lock *dsm_named(dsm_control *b, uint64_t n0, uint64_t n1)


cdef class Block:
    cdef dsm_control *b
    cdef bint private          # memory of this process alone; a fork has a copy of its own
    cdef int pid               # of the process that mapped it: no other may unmap it
    cdef uint32_t mourned      # deaths that the caller has seen to
    cdef int *watched          # pidfds that the caller looks at while it waits: the warden's first
    cdef int watching
    cdef int64_t looked        # when it looked at them last, in dsm_microseconds
    cdef int glance(self) except -2
    cdef int look(self) except -2
    cdef bint ended(self, int size, uint64_t epoch) noexcept
