from libc.stdint cimport uint32_t, uint64_t, uintptr_t

cdef extern from "arena.h":
    enum:
        DSM_GRANULE, DSM_ARENA_MOST, DSM_PIECE
    ctypedef struct dsm_span:
        uint32_t start, length, nbytes
        uint64_t serial
        unsigned char named
    ctypedef struct dsm_arena:
        char *base
        uint32_t granules
        int retired
        dsm_span *spans
        uint64_t live, quarantined, condemned_bytes, freed
        uint64_t *reserved
    void DSM_ARENA_LOCK(dsm_arena *a) noexcept nogil
    void DSM_ARENA_UNLOCK(dsm_arena *a) noexcept nogil
    uint32_t dsm_find(const dsm_arena *a, uint64_t address) noexcept nogil

# Where an array lies in an arena, as it travels in a handle.
cdef struct Place:
    uint32_t start  # of its block, in granules
    uint32_t nbytes  # of its block
    uint32_t offset  # of its first element in the block
    uint32_t zero
    uint64_t serial

cdef bint take_out(uintptr_t low) noexcept
cdef bint attach(uintptr_t low, dsm_arena *arena) noexcept
