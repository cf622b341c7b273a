"""Plans: range(n) cut into numbered chunks for a team, as Python sees them.

The arithmetic is in ``schedule.h``, whose head comment gives the table of kinds and what a plan
guarantees. This module wraps it once: for `split`, for engines written in Python, for tests, and by
``plan.pxd`` for the native iterators. Which spelling means which kind is left to
`dsmfor.schedules`; who claims a chunk is left to the engines.

Guarantees: a `Plan` never changes and may be shared between threads.
"""

from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport INT64_MAX, UINT64_MAX, uintptr_t

from operator import index

import numpy as np

__all__ = ["Plan"]

cdef dict _KINDS = {
    "static": DSM_STATIC,
    "random": DSM_RANDOM,
    "dynamic": DSM_DYNAMIC,
    "guided": DSM_GUIDED,
    "auto": DSM_AUTO,
}

# Chunks dealt between two looks for a signal (Ctrl-C): 50 ms for chunks of a few indices.
cdef int64_t _STRETCH = 1 << 19


cdef class Plan:
    """The chunks of range(n) for a team of `size` ranks.

    Parameters
    ----------
    kind : str
        'static', 'random', 'dynamic', 'guided' or 'auto'.
    n : int
        Iterations, 0 to 2**62.
    size : int
        Ranks in the team, 1 to 65536.
    chunk : int, optional
        Iterations per chunk; the least length under guided. Without it static cuts one block per
        rank, and random, dynamic and guided take 1. Auto takes none.
    key : int
        Chooses the permutation of random, 0 to 2**64 - 1. Other kinds ignore it.

    Attributes
    ----------
    kind : str
        As given.
    n, size : int
        As given.
    chunk : int or None
        Iterations per chunk, None where the kind has none (auto, static without chunk).
    count : int
        Chunk numbers are ``range(count)``.
    key : int
        As given.

    Raises
    ------
    ValueError
        A number is out of range, or the kind is unknown.

    Examples
    --------
    >>> Plan("static", 10, 4).chunks()
    [(0, 3), (3, 6), (6, 8), (8, 10)]
    >>> Plan("guided", 20, 2, chunk=2).chunks()
    [(0, 5), (5, 9), (9, 12), (12, 14), (14, 16), (16, 18), (18, 20)]
    """

    def __cinit__(self, str kind not None, n, size, chunk=None, key=0):
        n, size, key = index(n), index(size), index(key)
        if kind not in _KINDS:
            raise ValueError(f"kind must be one of {', '.join(map(repr, _KINDS))}, got {kind!r}")
        cdef int code = _KINDS[kind]
        if not 0 <= n <= DSM_MAX_N:
            raise ValueError(f"n must be between 0 and 2**62, got {n}")
        if not 1 <= size <= DSM_MAX_SIZE:
            raise ValueError(f"size must be between 1 and {DSM_MAX_SIZE}, got {size}")
        if not 0 <= key <= UINT64_MAX:
            raise ValueError(f"key must be between 0 and 2**64 - 1, got {key}")
        if chunk is None:
            chunk = 1
        else:
            chunk = index(chunk)
            if code == DSM_AUTO:
                raise ValueError(f"auto takes no chunk, got {chunk}; leave chunk out")
            if chunk < 1:
                raise ValueError(f"chunk must be at least 1, got {chunk}")
            if code == DSM_STATIC:
                code = DSM_STATIC_CHUNKED
        self.key = key
        # A chunk beyond n is the whole range, so the cap changes no table.
        dsm_plan_init(&self.c, code, n, size, min(chunk, INT64_MAX), self.key)

    @property
    def kind(self):
        """As given: 'static', 'random', 'dynamic', 'guided' or 'auto'."""
        cdef int code = DSM_STATIC if self.c.kind == DSM_STATIC_CHUNKED else self.c.kind
        for name, known in _KINDS.items():
            if known == code:
                return name

    @property
    def n(self):
        """Iterations."""
        return self.c.n

    @property
    def size(self):
        """Ranks in the team."""
        return self.c.size

    @property
    def chunk(self):
        """Iterations per chunk (guided: the least), None where the kind has none."""
        return self.c.chunk if self.c.chunk else None

    @property
    def count(self):
        """Chunk numbers are ``range(count)``."""
        return self.c.count

    def __repr__(self):
        chunk = "" if self.chunk is None else f", chunk={self.chunk}"
        key = f", key={self.key}" if self.key else ""
        return f"Plan({self.kind!r}, {self.n}, {self.size}{chunk}{key})"

    def __reduce__(self):
        return Plan, (self.kind, self.n, self.size, self.chunk, self.key)

    def bounds(self, k):
        """Begin and end of a chunk.

        Parameters
        ----------
        k : int
            Chunk number.

        Returns
        -------
        lo, hi : int
            The chunk is ``range(lo, hi)``; empty only for an auto number beyond its share.

        Raises
        ------
        IndexError
            `k` is not in ``range(count)``.

        Notes
        -----
        Under guided this walks from chunk 0, about a nanosecond for each chunk passed; a native
        iterator keeps a cursor instead.
        """
        return self._walk((index(k),))[0]

    def chunks(self):
        """Every chunk that exists, in number order.

        Returns
        -------
        list of (int, int)
            ``(lo, hi)`` of each chunk; together they cover range(n) in ascending order.

        Examples
        --------
        >>> Plan("dynamic", 10, 2, chunk=4).chunks()
        [(0, 4), (4, 8), (8, 10)]
        """
        return [chunk for chunk in self._walk(range(self.c.count)) if chunk[0] < chunk[1]]

    def _walk(self, numbers):
        """The bounds of chunk numbers in any order, by one cursor, as a native iterator asks."""
        cdef int64_t lo, hi
        cdef dsm_cursor cursor = dsm_cursor(0, 0)
        cdef list found = []
        for k in numbers:
            if not 0 <= k < self.c.count:
                raise IndexError(f"chunk number must be in range({self.c.count}), got {k}")
            dsm_plan_bounds(&self.c, &cursor, k, &lo, &hi)
            found.append((lo, hi))
        return found

    def numbers(self, rank):
        """The chunk numbers that arithmetic deals to a rank, in the order it runs them.

        Parameters
        ----------
        rank : int
            0 to size - 1.

        Returns
        -------
        iterator of int
            Chunk numbers.

        Raises
        ------
        ValueError
            `rank` is out of range, or the kind is neither static nor random.

        Examples
        --------
        >>> list(Plan("static", 10, 2, chunk=2).numbers(1))
        [1, 3]
        """
        return self._numbers(self._dealt_to(rank))

    def _numbers(self, int32_t rank):
        """Yield the numbers for a checked rank."""
        cdef int64_t j
        for j in range(dsm_plan_dealt_count(&self.c, rank)):
            yield dsm_plan_dealt(&self.c, rank, j)

    def share(self, rank):
        """The chunk numbers that begin as a rank's own under auto.

        Parameters
        ----------
        rank : int
            0 to size - 1.

        Returns
        -------
        first, last : int
            The numbers are ``range(first, last)``, at most 64 of them.

        Raises
        ------
        ValueError
            `rank` is out of range, or the kind is not auto.

        Examples
        --------
        >>> plan = Plan("auto", 5, 2)
        >>> plan.share(0), plan.share(1)
        ((0, 3), (64, 66))
        """
        cdef int64_t first, last
        cdef int32_t checked = self._rank(rank)
        if self.c.kind != DSM_AUTO:
            raise ValueError(f"only auto gives ranks a share of their own, this plan is {self!r}")
        dsm_plan_share(&self.c, checked, &first, &last)
        return first, last

    def indices(self, rank):
        """Every index of a rank's share, in the order it runs them.

        Parameters
        ----------
        rank : int
            0 to size - 1.

        Returns
        -------
        ndarray of int64, shape (m,)
            The indices; the m of all ranks add up to n.

        Raises
        ------
        ValueError
            `rank` is out of range, or the kind is neither static nor random.

        Examples
        --------
        >>> Plan("static", 10, 2, chunk=2).indices(1)
        array([2, 3, 6, 7])
        """
        cdef int32_t checked = self._dealt_to(rank)
        cdef int64_t j, k, lo, hi, stop, total
        cdef int64_t dealt = dsm_plan_dealt_count(&self.c, checked)
        if self.c.kind == DSM_STATIC:
            lo = hi = 0
            if dealt:
                dsm_plan_bounds(&self.c, NULL, checked, &lo, &hi)
            return np.arange(lo, hi, dtype=np.int64)
        # All chunks are equal but the last of the plan, which may be short; whose it is under
        # random shows only when the numbers are gone through.
        if self.c.n % self.c.chunk == 0:
            total = dealt * self.c.chunk
        else:
            total, j = 0, 0
            while j < dealt:
                stop = min(dealt, j + _STRETCH)
                with nogil:
                    while j < stop:
                        dsm_plan_bounds(
                            &self.c, NULL, dsm_plan_dealt(&self.c, checked, j), &lo, &hi
                        )
                        total += hi - lo
                        j += 1
                PyErr_CheckSignals()
        found = np.empty(total, dtype=np.int64)
        cdef uintptr_t address = found.__array_interface__["data"][0]
        cdef int64_t *out = <int64_t *>address
        j = 0
        while j < dealt:
            stop = min(dealt, j + _STRETCH)
            with nogil:
                while j < stop:
                    k = dsm_plan_dealt(&self.c, checked, j)
                    dsm_plan_bounds(&self.c, NULL, k, &lo, &hi)
                    while lo < hi:
                        out[0] = lo
                        out += 1
                        lo += 1
                    j += 1
            PyErr_CheckSignals()
        return found

    cdef int32_t _rank(self, rank) except -1:
        """The rank as a C int, refused when it is outside the team."""
        rank = index(rank)
        if not 0 <= rank < self.c.size:
            raise ValueError(f"rank must be in range({self.c.size}), got {rank}")
        return rank

    cdef int32_t _dealt_to(self, rank) except -1:
        """The rank as a C int, refused also when the plan deals nothing in advance."""
        cdef int32_t checked = self._rank(rank)
        if self.c.kind not in (DSM_STATIC, DSM_STATIC_CHUNKED, DSM_RANDOM):
            raise ValueError(
                f"only static and random deal their chunks in advance, this plan is {self!r}; "
                "claim its chunks one by one"
            )
        return checked
