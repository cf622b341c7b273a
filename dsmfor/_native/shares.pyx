"""Random shares of range(n) that are made, and gathered from memory, at memory's own speed.

Every `size` neighbours, a *group*, go one to each rank, and chance says which to whom: rank r takes
place (r + turn) mod size of a group, with a turn of the group's own. All is shifted, modulo n, by a
random number, so that nobody is tied to an end. Groups are shuffled within blocks of some: small
shares come in random order, large ones so that what they index lies together, and that each rank
begins elsewhere. (Indices permuted all over an array make each access a miss: 6 times slower to
make and to gather, for 10**7; ranks that write side by side fight for cache lines.)

Guarantees
----------
The shares of ranks 0 to size - 1 under one key are disjoint and cover range(n). Lengths differ by
at most one, the longer ones last. Each index falls to each rank with the same chance.
"""

from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t, uintptr_t

import numpy as np

__all__ = ["scattered"]

cdef extern from "schedule.h" nogil:
    uint64_t dsm_mix64(uint64_t x) noexcept

cdef enum:
    BLOCK = 64       # groups
    STRETCH = 16384  # blocks between two looks for a signal

cdef uint64_t GOLDEN = 0x9E3779B97F4A7C15


cdef inline int64_t below(uint64_t word, uint64_t limit) noexcept nogil:
    # A number below `limit` <= 2**32, from the low half of a random word.
    return <int64_t>((<uint64_t><uint32_t>word * limit) >> 32)


cdef int64_t fill(int64_t *out, int64_t block, int64_t groups, int64_t n, int64_t shift,
                  int32_t rank, int32_t size, uint64_t key) noexcept nogil:
    # One block's indices of a rank, in random order; how many.
    cdef int64_t first = block * BLOCK
    cdef int64_t count = min(<int64_t>BLOCK, groups - first)
    cdef int64_t base = first * size + shift
    cdef uint64_t state = dsm_mix64(key + GOLDEN * <uint64_t>(block + 1))
    cdef uint64_t word
    cdef int64_t g, at, found
    for g in range(count):
        state += GOLDEN
        word = dsm_mix64(state)
        found = rank + below(word, size)  # the turn is the same for all ranks, as the state is
        if found >= size:
            found -= size
        found += base
        if found >= n:
            found -= n
        base += size
        at = below(word >> 32, g + 1)  # an inside-out shuffle
        out[g] = out[at]
        out[at] = found
    return count


def scattered(int64_t n, int32_t size, int32_t rank, uint64_t key):
    """A rank's share, as an array of int64.

    Assumes 0 <= n <= 2**62 and 0 <= rank < size.
    """
    cdef int64_t groups = n // size
    cdef int64_t rest = n - groups * size
    cdef int64_t late = rank - (size - rest)  # which of those who get one of the rest, if >= 0
    cdef int64_t blocks = (groups + BLOCK - 1) // BLOCK
    cdef uint64_t mixed = dsm_mix64(key + GOLDEN)
    cdef int64_t shift = <int64_t>(mixed % <uint64_t>n) if n else 0
    cdef int64_t b, stop, at = rank * (blocks // size)  # ranks keep out of each other's cache lines
    found = np.empty(groups + (late >= 0), dtype=np.int64)
    cdef uintptr_t address = found.__array_interface__["data"][0]
    cdef int64_t *out = <int64_t *>address
    if late >= 0:
        out[0] = (groups * size + late + shift) % n
        out += 1
    b = 0
    while b < blocks:
        stop = min(blocks, b + STRETCH)
        with nogil:
            while b < stop:
                out += fill(out, at, groups, n, shift, rank, size, mixed)
                at = at + 1 if at + 1 < blocks else 0
                b += 1
        PyErr_CheckSignals()
    return found
