"""Arrays over memory that is there already, from the few values by which they travel.

Which memory that is, is the business of `dsmfor._native.registry` (whole segments) and
`dsmfor._native.arena` (blocks).

Guarantees
    No array is made that reaches beyond its memory, or whose dtype holds references.
"""

cimport numpy as cnp
from cpython.long cimport PyLong_AsSsize_t
from cpython.object cimport PyTypeObject
from cpython.ref cimport Py_INCREF
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_GET_SIZE, PyTuple_New, PyTuple_SET_ITEM

cnp.import_array()

cdef extern from "extent.h":
    int dsm_extent(int ndim, const cnp.npy_intp *shape, const cnp.npy_intp *strides,
                   cnp.npy_intp itemsize, cnp.npy_intp *below, cnp.npy_intp *above) nogil

cdef extern from "numpy/arrayobject.h":
    cnp.npy_uint64 NPY_ITEM_REFCOUNT
    object PyArray_NewFromDescr(PyTypeObject *subtype, cnp.dtype descr, int nd, cnp.npy_intp *dims,
                                cnp.npy_intp *strides, void *data, int flags, object obj)

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


cdef tuple ints(cnp.npy_intp *values, int count):
    cdef tuple result = PyTuple_New(count)
    cdef object value
    cdef int i
    for i in range(count):
        value = <Py_ssize_t>values[i]
        Py_INCREF(value)
        PyTuple_SET_ITEM(result, i, value)
    return result


cdef object token_of(cnp.dtype descr):
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


cdef object over(object base, char *memory, Py_ssize_t nbytes, bint writeable,
                 Py_ssize_t offset, tuple shape, tuple strides, object token):
    """An array whose elements lie in [memory, memory + nbytes), and whose ``base`` is `base`."""
    cdef cnp.npy_intp dims[MAX_DIMENSIONS]
    cdef cnp.npy_intp steps[MAX_DIMENSIONS]
    cdef cnp.npy_intp below, above
    cdef Py_ssize_t i, ndim = PyTuple_GET_SIZE(shape)
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
        offset < 0
        or offset > nbytes
        or dsm_extent(<int>ndim, dims, steps, cnp.PyDataType_ELSIZE(descr), &below, &above) < 0
        or offset + below < 0
        or above > nbytes - offset
    ):
        raise ValueError(
            f"an array of shape {shape}, strides {strides} and dtype {descr} at byte {offset} does "
            f"not fit into {nbytes} bytes of shared memory; the handle belongs to another array"
        )
    flags = cnp.NPY_ARRAY_WRITEABLE if writeable else 0
    Py_INCREF(descr)  # NewFromDescr takes one reference over
    cdef object result = PyArray_NewFromDescr(
        <PyTypeObject *>cnp.ndarray, descr, <int>ndim, dims, steps,
        <void *>(memory + offset), flags, <object>NULL,
    )
    cnp.set_array_base(<cnp.ndarray>result, base)
    return result


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
    if not cnp.PyArray_IS_C_CONTIGUOUS(base):
        raise ValueError("the root of a segment is C-contiguous; pass what segments.fetch gave")
    return over(base, <char *>cnp.PyArray_DATA(base), cnp.PyArray_NBYTES(base),
                writeable and cnp.PyArray_ISWRITEABLE(base), offset, shape, strides, token)
