"""Where an array's memory lies: the table of live segments, and handles made from it.

The table holds the segments that are mapped in this process by address, so that `handle` finds where
any ndarray lies, view or not, from its bounds alone; no subclass and no walk along ``.base``. A
segment is the memory of one array, or an *arena*, which knows its own blocks
(`dsmfor._native.arena`). Making and freeing the memory is the business of `dsmfor.segments`;
creating arrays, of `dsmfor.arrays`.

::

    table.entries   | low high id arena? | low high id arena? | ...   sorted by low, never overlapping
    a handle        (segment, place, shape, strides, dtype token, writeable)
    a place         bytes from the segment's beginning to the first element: an int; in an arena:
                    block u32 | size u32 | offset u32 | 0 u32 | serial u64, packed in 24 bytes

Guarantees
    An array that lies wholly inside one array's memory gets a handle, an array that touches none
    gets None, and one that lies across an edge (`numpy.lib.stride_tricks.as_strided`) is a
    ValueError, also when its neighbour in the arena is shared too. A block of which a handle was
    made is marked: other processes may come to see it.

Assumes
    A segment is removed before its memory is unmapped (`dsmfor.segments` does so in the weak
    reference's callback of the root, which runs before the root lets go of its mapping). After
    that the addresses may belong to an ordinary array at once, and here that is seen as such.

No Python object is made or dropped while the table is looked at or changed. With the GIL that
makes each of these sections whole; in a free-threaded interpreter a PyMutex guards them, and for
the same reason a collection that frees a root (and calls `remove`) cannot begin inside one. An
arena is locked inside such a section, never the other way round.
"""

cimport numpy as cnp
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_RawRealloc
from libc.stdint cimport INTPTR_MAX, uint32_t, uint64_t, uintptr_t
from libc.string cimport memmove

from dsmfor._native.views cimport ints, token_of

from dsmfor._native.views import view

__all__ = ["add", "count", "handle", "is_shared", "remove", "span", "view"]

cnp.import_array()

cdef extern from "extent.h":
    int dsm_extent(int ndim, const cnp.npy_intp *shape, const cnp.npy_intp *strides,
                   cnp.npy_intp itemsize, cnp.npy_intp *below, cnp.npy_intp *above) nogil

cdef extern from *:
    """
    #ifdef Py_GIL_DISABLED
    static PyMutex dsm_registry_mutex;
    #define DSM_REGISTRY_LOCK() PyMutex_Lock(&dsm_registry_mutex)
    #define DSM_REGISTRY_UNLOCK() PyMutex_Unlock(&dsm_registry_mutex)
    #else
    #define DSM_REGISTRY_LOCK() ((void)0)
    #define DSM_REGISTRY_UNLOCK() ((void)0)
    #endif
    """
    void LOCK "DSM_REGISTRY_LOCK"() nogil
    void UNLOCK "DSM_REGISTRY_UNLOCK"() nogil

cdef struct Entry:
    uintptr_t low
    uintptr_t high
    long long segment
    dsm_arena *arena  # NULL: the segment is one array's

cdef struct Table:
    Entry *entries
    Py_ssize_t count
    Py_ssize_t room

cdef Table table


cdef struct Found:
    # The memory of the one array that another lies in.
    uintptr_t low
    uintptr_t high
    long long segment
    bint in_arena
    Place place


cdef Py_ssize_t _first_above(uintptr_t address) noexcept:
    """Index of the first entry whose low bound is >= address."""
    cdef Py_ssize_t left = 0, right = table.count, middle
    while left < right:
        middle = (left + right) >> 1
        if table.entries[middle].low < address:
            left = middle + 1
        else:
            right = middle
    return left


cdef int _bounds(cnp.ndarray a, uintptr_t *low, uintptr_t *high) except -1:
    cdef cnp.npy_intp below, above
    cdef uintptr_t data = <uintptr_t>cnp.PyArray_DATA(a)
    if dsm_extent(cnp.PyArray_NDIM(a), cnp.PyArray_DIMS(a), cnp.PyArray_STRIDES(a),
                  cnp.PyArray_ITEMSIZE(a), &below, &above) < 0 or (
            below < 0 and data < <uintptr_t>(-below)):
        raise ValueError(
            f"the strides {ints(cnp.PyArray_STRIDES(a), cnp.PyArray_NDIM(a))} of shape "
            f"{ints(cnp.PyArray_DIMS(a), cnp.PyArray_NDIM(a))} reach beyond any memory; "
            "pass a view whose strides stay inside its array"
        )
    low[0] = data + <uintptr_t>below
    high[0] = data + <uintptr_t>above
    return 0


def add(root not None, long long segment):
    """Enter the memory of a root array as a segment.

    Parameters
    ----------
    root : ndarray, C-contiguous, at least one byte
        The array over the segment's bytes.
    segment : int
        Number of the segment.

    Returns
    -------
    int
        Its low address, by which `remove` knows it.

    Raises
    ------
    ValueError
        The array is empty or not contiguous, or a live segment lies there already.
    """
    if not isinstance(root, cnp.ndarray):
        raise TypeError(f"a segment is the memory of an ndarray, got {type(root).__name__}")
    cdef cnp.ndarray a = <cnp.ndarray>root
    if cnp.PyArray_NBYTES(a) < 1 or not cnp.PyArray_IS_C_CONTIGUOUS(a):
        raise ValueError("a segment needs a C-contiguous array of at least one byte")
    cdef uintptr_t low = <uintptr_t>cnp.PyArray_DATA(a)
    cdef uintptr_t high = low + <uintptr_t>cnp.PyArray_NBYTES(a)
    cdef int outcome = _insert(low, high, segment)
    if outcome == -1:
        raise MemoryError("no memory for the table of live segments; drop some arrays")
    if outcome == -2:
        raise ValueError(
            f"segment {segment} at {low:#x} to {high:#x} overlaps a live segment; "
            "a segment must be removed before its memory is unmapped"
        )
    return low


cdef int _insert(uintptr_t low, uintptr_t high, long long segment) noexcept:
    cdef Py_ssize_t at, room
    cdef void *grown
    cdef int outcome = 0
    LOCK()
    at = _first_above(low)
    if (at < table.count and table.entries[at].low < high) or (
            at > 0 and table.entries[at - 1].high > low):
        outcome = -2
    elif table.count == table.room:
        room = 2 * table.room + 64
        grown = PyMem_RawRealloc(table.entries, room * sizeof(Entry))
        if grown is NULL:
            outcome = -1
        else:
            table.entries = <Entry *>grown
            table.room = room
    if outcome == 0:
        memmove(&table.entries[at + 1], &table.entries[at], (table.count - at) * sizeof(Entry))
        table.entries[at].low = low
        table.entries[at].high = high
        table.entries[at].segment = segment
        table.entries[at].arena = NULL
        table.count += 1
    UNLOCK()
    return outcome


def remove(uintptr_t low):
    """Take the segment that begins at this address out of the table; False if there is none."""
    return take_out(low)


cdef bint take_out(uintptr_t low) noexcept:
    cdef Py_ssize_t at
    cdef bint found
    LOCK()
    at = _first_above(low)
    found = at < table.count and table.entries[at].low == low
    if found:
        table.count -= 1
        memmove(&table.entries[at], &table.entries[at + 1], (table.count - at) * sizeof(Entry))
    UNLOCK()
    return found


def count():
    """Number of live segments."""
    return table.count


def span(a not None):
    """Byte bounds of an ndarray.

    Parameters
    ----------
    a : ndarray
        Any array, shared or not.

    Returns
    -------
    low, high : int
        The array's elements lie in the addresses [low, high); equal if it has none.

    Raises
    ------
    ValueError
        The strides reach beyond the address space.
    """
    if not isinstance(a, cnp.ndarray):
        raise TypeError(f"span takes an ndarray, got {type(a).__name__}")
    cdef uintptr_t low, high
    _bounds(<cnp.ndarray>a, &low, &high)
    return low, high


cdef bint attach(uintptr_t low, dsm_arena *arena) noexcept:
    """Have the segment at this address be an arena, or none any more; whether it was found."""
    cdef Py_ssize_t at
    cdef bint found
    LOCK()
    at = _first_above(low)
    found = at < table.count and table.entries[at].low == low
    if found:
        table.entries[at].arena = arena
    UNLOCK()
    return found


cdef bint _locate(cnp.ndarray array, Found *found, bint naming) except -1:
    """Find the shared memory of which an array is a view; False if there is none."""
    cdef uintptr_t low, high
    cdef Entry entry
    cdef dsm_span *block
    cdef uint32_t number
    cdef Py_ssize_t at
    cdef bint touched = False
    _bounds(array, &low, &high)
    if low == high:
        return False
    LOCK()
    at = _first_above(high) - 1
    if at >= 0 and table.entries[at].high > low:
        entry = table.entries[at]
        touched = True
        found.low, found.high, found.segment = entry.low, entry.high, entry.segment
        found.in_arena = entry.arena is not NULL
        if found.in_arena:
            DSM_ARENA_LOCK(entry.arena)
            # Without a block under its first or last byte it lies in no array at all.
            number = dsm_find(entry.arena, low - entry.low) if low >= entry.low else 0
            if number == 0 and high <= entry.high:
                number = dsm_find(entry.arena, high - 1 - entry.low)
            touched = number != 0
            if touched:
                block = &entry.arena.spans[number]
                found.low = entry.low + <uintptr_t>block.start * DSM_GRANULE
                found.high = found.low + block.nbytes
                if naming:
                    block.named = True
                found.place.start, found.place.nbytes = block.start, block.nbytes
                found.place.offset = <uint32_t>(<uintptr_t>cnp.PyArray_DATA(array) - found.low)
                found.place.zero, found.place.serial = 0, block.serial
            DSM_ARENA_UNLOCK(entry.arena)
    UNLOCK()
    if touched and (low < found.low or high > found.high):
        raise ValueError(
            f"an array of shape {ints(cnp.PyArray_DIMS(array), cnp.PyArray_NDIM(array))} and "
            f"strides {ints(cnp.PyArray_STRIDES(array), cnp.PyArray_NDIM(array))} reaches beyond "
            f"the shared array it lies in (bytes {<long long>(low - found.low)} to "
            f"{<long long>(high - found.low)} of {found.high - found.low}); "
            "give as_strided a shape and strides that stay inside its array"
        )
    return touched


def is_shared(a not None):
    """Whether an array has bytes and lies in live shared memory; raises as `handle` does."""
    if not isinstance(a, cnp.ndarray):
        raise TypeError(f"is_shared takes an ndarray, got {type(a).__name__}")
    cdef Found found
    return _locate(<cnp.ndarray>a, &found, False)


def handle(a not None):
    """Where an array lies in shared memory.

    Parameters
    ----------
    a : ndarray
        Any array. What a subclass adds is not part of the handle.

    Returns
    -------
    tuple or None
        ``(segment, place, shape, strides, dtype, writeable)``: segment number, place in it, shape,
        strides in bytes, the dtype's letter (plain native numbers) or the dtype itself, whether it
        may be written. None if the array has no bytes or lies in no live shared memory.

    Raises
    ------
    ValueError
        The array touches a shared array and reaches beyond it.
    """
    if not isinstance(a, cnp.ndarray):
        raise TypeError(f"handle takes an ndarray, got {type(a).__name__}")
    cdef cnp.ndarray array = <cnp.ndarray>a
    cdef Found found
    cdef object place
    if not _locate(array, &found, True):
        return None
    if found.in_arena:
        place = PyBytes_FromStringAndSize(<char *>&found.place, sizeof(Place))
    else:
        place = <uintptr_t>cnp.PyArray_DATA(array) - found.low
    cdef int ndim = cnp.PyArray_NDIM(array)
    return (
        found.segment,
        place,
        ints(cnp.PyArray_DIMS(array), ndim),
        ints(cnp.PyArray_STRIDES(array), ndim),
        token_of(<cnp.dtype>cnp.PyArray_DESCR(array)),
        cnp.PyArray_ISWRITEABLE(array),
    )
