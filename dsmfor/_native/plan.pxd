# The C face of the schedules room, for the native iterators: see schedule.h for the meaning.

cimport cython
from libc.stdint cimport int32_t, int64_t, uint64_t


cdef extern from "schedule.h" nogil:
    enum:
        DSM_STATIC
        DSM_STATIC_CHUNKED
        DSM_RANDOM
        DSM_DYNAMIC
        DSM_GUIDED
        DSM_AUTO
        DSM_AUTO_PIECES
        DSM_MAX_SIZE

    const int64_t DSM_MAX_N

    ctypedef struct dsm_plan:
        int64_t n
        int64_t chunk
        int64_t count
        uint64_t key
        int32_t size
        int32_t kind

    ctypedef struct dsm_cursor:
        int64_t number
        int64_t start

    int dsm_plan_init(
        dsm_plan *p, int kind, int64_t n, int32_t size, int64_t chunk, uint64_t key
    ) noexcept
    void dsm_plan_bounds(
        const dsm_plan *p, dsm_cursor *cursor, int64_t k, int64_t *lo, int64_t *hi
    ) noexcept
    int64_t dsm_plan_dealt_count(const dsm_plan *p, int32_t rank) noexcept
    int64_t dsm_plan_dealt(const dsm_plan *p, int32_t rank, int64_t j) noexcept
    void dsm_plan_share(
        const dsm_plan *p, int32_t rank, int64_t *first, int64_t *last
    ) noexcept


@cython.final
cdef class Plan:
    cdef dsm_plan c
    cdef readonly uint64_t key  # as given; c.key is the mixed one, and 0 unless random

    cdef int32_t _rank(self, rank) except -1
    cdef int32_t _dealt_to(self, rank) except -1
