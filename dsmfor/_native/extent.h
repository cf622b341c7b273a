/* How far an array reaches in memory. */
#ifndef DSM_EXTENT_H
#define DSM_EXTENT_H

/* The bytes an array can touch, relative to its first element: [*below, *above).
 * Returns 0, or -1 when the strides reach further than an address can. Without elements
 * both are 0. */
static inline int dsm_extent(int ndim, const npy_intp *shape, const npy_intp *strides,
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

#endif
