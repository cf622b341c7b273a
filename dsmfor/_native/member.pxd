# The C face of a rank's membership, for the loop iterators.

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from dsmfor._native.block cimport Block


cdef class Member:
    cdef readonly Block block
    cdef readonly int rank, size
    cdef readonly uint64_t epoch     # of the region; an iterator or lock of another one is stale
    cdef readonly bint orphan        # outside any region: leaving a loop early harms nobody
    cdef uint64_t loops              # number of the next loop
    cdef uint64_t history            # running hash over every loop begun
    cdef uint32_t exchanges          # how many values were handed round
    cdef void *open                  # the Loop whose body this rank is in (borrowed), or NULL
    cdef object span                 # of the loop begun last, for messages
    cdef object fault                # (text, line, code) of a loop left early, or None
    cdef object last                 # (index text, line, code) of the loop last left, for notes
    cdef object value                # what the last loop was cancelled with, or None
    cdef readonly bint making        # inside single's call: this rank alone may make arrays
    cdef int held                    # critical blocks that this rank is in
    cdef dict locks                  # this region's locks by name
    cdef public object settings      # what the decorator chose: schedule, chunk
    cdef public uint64_t seed        # of the region's random schedules
    cdef public object carrier       # how values reach other ranks, None for a team of one

    cdef forsake(self)
    cdef int place(self, int phase, int at, int line) except -1
    cdef int wait(self, uint32_t *word, uint32_t seen, double until) except -1
    cdef int meet(self, int at, int line, double timeout, int64_t place=*) except -1
    cdef str stop(self, int at, int line)
    cdef released(self)
    cdef clashed(self, str here)
    cdef int check(self, str what) except -1
    cdef uint64_t enter_loop(self, void *loop, uint64_t digest, int line) except? 0
    cdef int collect_cancel(self, uint64_t number) except -1
    cdef void left_early(self, str text, str index, int line, object code) noexcept
