"""Where an array's memory lies: the table of live blocks, and handles made from it.

A *block* is the data of one segment as it is mapped in this process: the bytes [low, high) of
its root array. The table holds the blocks sorted by address, so that `handle` finds the segment
of any ndarray, view or not, from its bounds alone; no subclass and no walk along ``.base``. Making
and freeing the memory is the business of `dsmfor.segments`; creating arrays, of `dsmfor.arrays`.

::

    table.blocks  | low high id | low high id | ...    sorted by low, never overlapping
    a handle      (segment, offset, shape, strides, dtype token, writeable)

Guarantees
    An array that lies wholly inside one block gets a handle, an array that touches none gets
    None, and one that lies across an edge (`numpy.lib.stride_tricks.as_strided`) is a ValueError.
    `view` never makes an array that reaches beyond its root.

Assumes
    A block is removed before its memory is unmapped (`dsmfor.segments` does so in the weak
    reference's callback of the root, which runs before the root lets go of its mapping). After
    that the addresses may belong to an ordinary array at once, and here that is seen as such.

No Python object is made or dropped while the table is looked at or changed. With the GIL that
makes each of these sections whole; in a free-threaded interpreter a PyMutex guards them, and for
the same reason a collection that frees a root (and calls `remove`) cannot begin inside one.
"""

cimport numpy as cnp
from cpython.long cimport PyLong_AsSsize_t
from cpython.object cimport PyTypeObject
from cpython.mem cimport PyMem_RawRealloc
from cpython.ref cimport Py_INCREF
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_GET_SIZE, PyTuple_New, PyTuple_SET_ITEM
from libc.stdint cimport INTPTR_MAX, uintptr_t
from libc.string cimport memmove

cnp.import_array()

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

    /* The bytes an array can touch, relative to its first element: [*below, *above).
     * Returns 0, or -1 when the strides reach further than an address can. Without elements
     * both are 0. */
    static int dsm_extent(int ndim, const npy_intp *shape, const npy_intp *strides,
                          npy_intp itemsize, npy_intp *below, npy_intp *above)
    {
        npy_intp low = 0, high = itemsize, reach;
        for (int i = 0; i < ndim; i++) {
            if (shape[i] == 0) {
                *below = *above = 0;
                return 0;
            }
            if (__builtin_mul_overflow(shape[i] - 1, strides[i], &reach)) return -1;
            if (__builtin_add_overflow(reach < 0 ? low : high, reach, reach < 0 ? &low : &high))
                return -1;
        }
        *below = low;
        *above = high;
        return 0;
    }
    """
    void LOCK "DSM_REGISTRY_LOCK"() nogil
    void UNLOCK "DSM_REGISTRY_UNLOCK"() nogil
    int dsm_extent(int ndim, const cnp.npy_intp *shape, const cnp.npy_intp *strides,
                   cnp.npy_intp itemsize, cnp.npy_intp *below, cnp.npy_intp *above) nogil

cdef extern from "numpy/arrayobject.h":
    cnp.npy_uint64 NPY_ITEM_REFCOUNT
    object PyArray_NewFromDescr(PyTypeObject *subtype, cnp.dtype descr, int nd, cnp.npy_intp *dims,
                                cnp.npy_intp *strides, void *data, int flags, object obj)

cdef struct Block:
    uintptr_t low
    uintptr_t high
    long long segment

cdef struct Table:
    Block *blocks
    Py_ssize_t count
    Py_ssize_t room

cdef Table table

# NumPy's limit; `numpy.ndarray` refuses more, and so does this.
cdef enum:
    MAX_DIMENSIONS = 64
    # The built-in type numbers below this one have a letter each.
    MAX_TYPE_NUMBER = 24
    HALF = 23

# For each plain numeric type number: its letter as a str and its one native dtype, else None.
cdef list _letters = [None] * MAX_TYPE_NUMBER
cdef list _natives = [None] * MAX_TYPE_NUMBER
# From a letter (as an ordinal) to its type number, or -1.
cdef int _number_of_letter[128]


cdef int _fill_letters() except -1:
    cdef int number
    for number in range(128):
        _number_of_letter[number] = -1
    for number in range(MAX_TYPE_NUMBER):
        if number <= cnp.NPY_CLONGDOUBLE or number == HALF:
            native = cnp.PyArray_DescrFromType(number)
            _letters[number] = native.char
            _natives[number] = native
            _number_of_letter[<int>ord(native.char)] = number
    return 0


_fill_letters()


cdef Py_ssize_t _first_block_above(uintptr_t address) noexcept:
    """Index of the first block whose low bound is >= address."""
    cdef Py_ssize_t left = 0, right = table.count, middle
    while left < right:
        middle = (left + right) >> 1
        if table.blocks[middle].low < address:
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
            f"the strides {_ints(cnp.PyArray_STRIDES(a), cnp.PyArray_NDIM(a))} of shape "
            f"{_ints(cnp.PyArray_DIMS(a), cnp.PyArray_NDIM(a))} reach beyond any memory; "
            "pass a view whose strides stay inside its array"
        )
    low[0] = data + <uintptr_t>below
    high[0] = data + <uintptr_t>above
    return 0


cdef tuple _ints(cnp.npy_intp *values, int count):
    cdef tuple result = PyTuple_New(count)
    cdef object value
    cdef int i
    for i in range(count):
        value = <Py_ssize_t>values[i]
        Py_INCREF(value)
        PyTuple_SET_ITEM(result, i, value)
    return result


cdef object _token(cnp.dtype descr):
    """One letter for a plain native number type, else the dtype itself."""
    cdef int number = descr.type_num
    if 0 <= number < MAX_TYPE_NUMBER:
        native = _natives[number]
        if native is descr or (
                native is not None
                and cnp.PyDataType_ISNOTSWAPPED(descr)
                and cnp.PyDataType_METADATA(descr) is NULL
                and not cnp.PyDataType_HASSUBARRAY(descr)
                and not cnp.PyDataType_HASFIELDS(descr)):
            return _letters[number]
    return descr


def add(root not None, long long segment):
    """Enter the memory of a root array as a block of a segment.

    Parameters
    ----------
    root : ndarray, C-contiguous, at least one byte
        The array whose memory is the block.
    segment : int
        Number of the segment.

    Returns
    -------
    int
        The block's low address, by which `remove` knows it.

    Raises
    ------
    ValueError
        The array is empty or not contiguous, or a live block lies there already.
    """
    if not isinstance(root, cnp.ndarray):
        raise TypeError(f"a block is the memory of an ndarray, got {type(root).__name__}")
    cdef cnp.ndarray a = <cnp.ndarray>root
    if cnp.PyArray_NBYTES(a) < 1 or not cnp.PyArray_IS_C_CONTIGUOUS(a):
        raise ValueError("a block needs a C-contiguous array of at least one byte")
    cdef uintptr_t low = <uintptr_t>cnp.PyArray_DATA(a)
    cdef uintptr_t high = low + <uintptr_t>cnp.PyArray_NBYTES(a)
    cdef int outcome = _insert(low, high, segment)
    if outcome == -1:
        raise MemoryError("no memory for the table of live blocks; drop some arrays")
    if outcome == -2:
        raise ValueError(
            f"segment {segment} at {low:#x} to {high:#x} overlaps a live block; "
            "a block must be removed before its memory is unmapped"
        )
    return low


cdef int _insert(uintptr_t low, uintptr_t high, long long segment) noexcept:
    cdef Py_ssize_t at, room
    cdef void *grown
    cdef int outcome = 0
    LOCK()
    at = _first_block_above(low)
    if (at < table.count and table.blocks[at].low < high) or (
            at > 0 and table.blocks[at - 1].high > low):
        outcome = -2
    elif table.count == table.room:
        room = 2 * table.room + 64
        grown = PyMem_RawRealloc(table.blocks, room * sizeof(Block))
        if grown is NULL:
            outcome = -1
        else:
            table.blocks = <Block *>grown
            table.room = room
    if outcome == 0:
        memmove(&table.blocks[at + 1], &table.blocks[at], (table.count - at) * sizeof(Block))
        table.blocks[at].low = low
        table.blocks[at].high = high
        table.blocks[at].segment = segment
        table.count += 1
    UNLOCK()
    return outcome


def remove(uintptr_t low):
    """Take the block that begins at this address out of the table; False if there is none."""
    cdef Py_ssize_t at
    cdef bint found
    LOCK()
    at = _first_block_above(low)
    found = at < table.count and table.blocks[at].low == low
    if found:
        table.count -= 1
        memmove(&table.blocks[at], &table.blocks[at + 1], (table.count - at) * sizeof(Block))
    UNLOCK()
    return found


def count():
    """Number of live blocks."""
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


def handle(a not None):
    """Where an array lies in shared memory.

    Parameters
    ----------
    a : ndarray
        Any array. What a subclass adds is not part of the handle.

    Returns
    -------
    tuple or None
        ``(segment, offset, shape, strides, dtype, writeable)``: segment number, bytes from the
        block's beginning to the first element, shape, strides in bytes, the dtype's letter (plain
        native numbers) or the dtype itself, whether it may be written. None if the array has no
        bytes or lies in no live block.

    Raises
    ------
    ValueError
        The array touches a live block and reaches beyond it.
    """
    if not isinstance(a, cnp.ndarray):
        raise TypeError(f"handle takes an ndarray, got {type(a).__name__}")
    cdef cnp.ndarray array = <cnp.ndarray>a
    cdef uintptr_t low, high
    cdef Block block
    cdef Py_ssize_t at
    cdef bint touched = False
    _bounds(array, &low, &high)
    if low == high:
        return None
    LOCK()
    at = _first_block_above(high) - 1
    if at >= 0 and table.blocks[at].high > low:
        block = table.blocks[at]
        touched = True
    UNLOCK()
    if not touched:
        return None
    if low < block.low or high > block.high:
        raise ValueError(
            f"an array of shape {_ints(cnp.PyArray_DIMS(array), cnp.PyArray_NDIM(array))} and "
            f"strides {_ints(cnp.PyArray_STRIDES(array), cnp.PyArray_NDIM(array))} reaches beyond "
            f"the shared array it lies in (bytes {<long long>(low - block.low)} to "
            f"{<long long>(high - block.low)} of {block.high - block.low}); "
            "give as_strided a shape and strides that stay inside its array"
        )
    cdef int ndim = cnp.PyArray_NDIM(array)
    return (
        block.segment,
        <uintptr_t>cnp.PyArray_DATA(array) - block.low,
        _ints(cnp.PyArray_DIMS(array), ndim),
        _ints(cnp.PyArray_STRIDES(array), ndim),
        _token(<cnp.dtype>cnp.PyArray_DESCR(array)),
        cnp.PyArray_ISWRITEABLE(array),
    )


def view(root not None, Py_ssize_t offset, tuple shape not None, tuple strides not None,
         token not None, bint writeable):
    """Rebuild the array that a handle describes over its root.

    Parameters
    ----------
    root : ndarray, C-contiguous
        The memory; the result keeps it alive.
    offset, shape, strides, token, writeable
        As `handle` gave them.

    Returns
    -------
    ndarray
        Its ``base`` is `root`. Writeable only if the root is.

    Raises
    ------
    ValueError
        The array would reach beyond the root, or its dtype holds references.
    """
    if not isinstance(root, cnp.ndarray):
        raise TypeError(f"view takes the root ndarray of a segment, got {type(root).__name__}")
    cdef cnp.ndarray base = <cnp.ndarray>root
    cdef cnp.npy_intp dims[MAX_DIMENSIONS]
    cdef cnp.npy_intp steps[MAX_DIMENSIONS]
    cdef cnp.npy_intp below, above
    cdef Py_ssize_t i, ndim = PyTuple_GET_SIZE(shape)
    cdef Py_ssize_t nbytes = cnp.PyArray_NBYTES(base)
    cdef Py_UCS4 letter
    cdef cnp.dtype descr
    cdef int flags

    if type(token) is str:
        letter = <Py_UCS4>(<str>token)[0] if len(<str>token) == 1 else 0
        if not 0 < letter < 128 or _number_of_letter[<int>letter] < 0:
            raise ValueError(f"no plain number type has the letter {token!r}; pass a handle's own")
        descr = <cnp.dtype>_natives[_number_of_letter[<int>letter]]
    else:
        if not isinstance(token, cnp.dtype):
            raise TypeError(f"a handle's dtype is a letter or a dtype, got {type(token).__name__}")
        descr = <cnp.dtype>token
        if cnp.PyDataType_FLAGS(descr) & NPY_ITEM_REFCOUNT or cnp.PyDataType_HASSUBARRAY(descr):
            raise ValueError(f"dtype {descr} cannot be shared; pass a handle's own dtype")
    if ndim != PyTuple_GET_SIZE(strides) or ndim > MAX_DIMENSIONS:
        raise ValueError(
            f"a handle needs one stride for each of at most {MAX_DIMENSIONS} dimensions, "
            f"got shape {shape} and strides {strides}"
        )
    for i in range(ndim):
        dims[i] = PyLong_AsSsize_t(<object>PyTuple_GET_ITEM(shape, i))
        steps[i] = PyLong_AsSsize_t(<object>PyTuple_GET_ITEM(strides, i))
        if dims[i] < 0:
            raise ValueError(f"a shape has no negative dimensions, got {shape}")
    # `offset` is between 0 and nbytes when the sums are made, so none of them overflows: below is
    # at most 0 and offset not negative; above is compared with what is left.
    if (
        not cnp.PyArray_IS_C_CONTIGUOUS(base)
        or offset < 0
        or offset > nbytes
        or dsm_extent(<int>ndim, dims, steps, cnp.PyDataType_ELSIZE(descr), &below, &above) < 0
        or offset + below < 0
        or above > nbytes - offset
    ):
        raise ValueError(
            f"an array of shape {shape}, strides {strides} and dtype {descr} at byte {offset} does "
            f"not fit into a segment of {nbytes} bytes; the handle belongs to another segment"
        )
    flags = cnp.NPY_ARRAY_WRITEABLE if writeable and cnp.PyArray_ISWRITEABLE(base) else 0
    Py_INCREF(descr)  # NewFromDescr takes one reference over
    cdef object result = PyArray_NewFromDescr(
        <PyTypeObject *>cnp.ndarray, descr, <int>ndim, dims, steps,
        <void *>(<char *>cnp.PyArray_DATA(base) + offset), flags, <object>NULL,
    )
    cnp.set_array_base(<cnp.ndarray>result, base)
    return result
