cpdef hear()
