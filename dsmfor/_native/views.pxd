cimport numpy as cnp

cdef tuple ints(cnp.npy_intp *values, int count)
cdef object token_of(cnp.dtype descr)
cdef object over(object base, char *memory, Py_ssize_t nbytes, bint writeable,
                 Py_ssize_t offset, tuple shape, tuple strides, object token)
