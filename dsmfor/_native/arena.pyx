"""Small arrays: blocks of an arena, found, cleared, held and let go without a system call.

An `Arena` is a segment that many arrays share. Its bookkeeping is ``arena.h``; when one is made and
given back, and where the memory for its pages comes from, is `dsmfor.arenas`; when a block that
other processes may have seen is free again, is the engine's.

A `Hold` is what keeps a block: it is the ``.base`` of an array made here, and every view of that
array keeps it alive. When the last hold of a block goes, in whatever thread, inside a collection or
not, the block is free, or in quarantine if a handle of it was ever made.

Guarantees
    A new block reads zero, is aligned to 64 bytes and overlaps no other. A block is the same
    array's for as long as anybody here holds it, and in quarantine keeps its bytes; a handle that
    comes back meanwhile finds it (`Arena.view`), one that comes later finds nothing.
    Letting go takes no lock that is held while Python code runs, and runs none but the listener,
    after everything is done.

Assumes
    The listener takes no lock and waits for nothing, like a callback of `dsmfor.segments.on_free`.
"""

cimport cython
cimport numpy as cnp
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyTypeObject
from cpython.ref cimport Py_INCREF
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_GET_SIZE
from libc.stdint cimport uint32_t, uint64_t, uintptr_t
from libc.string cimport memcpy

from dsmfor._native.registry cimport (
    DSM_ARENA_LOCK,
    DSM_ARENA_MOST,
    DSM_ARENA_UNLOCK,
    DSM_GRANULE,
    DSM_PIECE,
    Place,
    attach,
    dsm_arena,
    dsm_span,
)
from dsmfor._native.views cimport over

cnp.import_array()

cdef extern from "arena.h":
    int dsm_arena_init(dsm_arena *a, char *base, size_t nbytes, int owner) noexcept
    void dsm_arena_end(dsm_arena *a) noexcept
    uint32_t dsm_at(const dsm_arena *a, uint32_t start) noexcept
    uint32_t dsm_take(dsm_arena *a, uint32_t nbytes) noexcept
    uint32_t dsm_hold(dsm_arena *a, uint32_t start, uint32_t nbytes, uint64_t serial) noexcept
    int dsm_let_go(dsm_arena *a, uint32_t n, int quarantine) noexcept
    uint32_t dsm_condemned(const dsm_arena *a) noexcept
    uint32_t dsm_tickets(dsm_arena *a, uint64_t *tickets, uint32_t room) noexcept
    void dsm_recall(dsm_arena *a) noexcept
    void dsm_release(dsm_arena *a, uint64_t ticket) noexcept
    void dsm_release_all(dsm_arena *a) noexcept
    void dsm_pin(dsm_arena *a) noexcept
    int dsm_bare(const dsm_arena *a, uint32_t n, uint32_t *first, uint32_t *end) noexcept
    uint32_t dsm_soil(dsm_arena *a, uint32_t n) noexcept
    void dsm_wipe(char *base, uint32_t start, uint32_t length, uint32_t were) noexcept nogil
    uint32_t dsm_trimmable(dsm_arena *a, uint32_t *first, uint32_t *end) noexcept
    void dsm_trimmed(dsm_arena *a, uint32_t n, uint32_t first, uint32_t end, int punched) noexcept
    void dsm_set_bit(uint64_t *bits, uint32_t n) noexcept
    int dsm_bit_of(const uint64_t *bits, uint32_t n) noexcept

cdef extern from "<fcntl.h>" nogil:
    int fallocate(int fd, int mode, long long offset, long long length)
    int FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE

cdef extern from "numpy/arrayobject.h":
    object PyArray_NewFromDescr(PyTypeObject *subtype, cnp.dtype descr, int nd, cnp.npy_intp *dims,
                                cnp.npy_intp *strides, void *data, int flags, object obj)

GRANULE = DSM_GRANULE
PIECE = DSM_PIECE
MOST = DSM_ARENA_MOST
FOREIGN = -2

cdef enum:
    MAX_DIMENSIONS = 64
    TRIM = 4 << 20  # bytes freed in an arena after which pages are given back at once
    REMARKABLE = 1 << 20  # and after which the listener hears of it, who does that when idle
    CROWD = 16 << 20  # bytes condemned in an arena that are many

# What the listener is called with.
CONDEMNED, CROWDED, FREED = 1, 2, 4

cdef object _listener = None
cdef bint _quarantining = False


def listen(listener, bint quarantine):
    """Have ``listener(what)`` called when blocks are condemned or much is freed; None for nobody.

    Parameters
    ----------
    listener : callable or None
        Called with the sum of `CONDEMNED`: there are blocks to be asked about after there were none;
        `CROWDED`: they have become many; `FREED`: memory could be trimmed.
    quarantine : bool
        Whether there are other processes that may have seen a block of which a handle was made.
    """
    global _listener, _quarantining
    _listener = listener
    _quarantining = quarantine


@cython.final
@cython.no_gc
@cython.freelist(64)
cdef class Hold:
    """Keeps a block. Made by an `Arena`."""

    cdef Arena arena
    cdef uint32_t number
    cdef uint32_t start, length, nbytes  # of the block, while it is new
    cdef uint32_t first, end  # pieces whose pages are still to be taken

    def __dealloc__(self):
        if self.number:
            self.arena._let_go(self.number)

    @property
    def segment(self):
        """The arena's number."""
        return self.arena.segment

    @property
    def bare(self):
        """What must be reserved before the block is used, in bytes from the arena's beginning.

        ``(start, nbytes)``, or None for a block that is ready.
        """
        if not self.end:
            return None
        cdef uint64_t low = <uint64_t>self.first * DSM_PIECE, high = <uint64_t>self.end * DSM_PIECE
        return low, min(high, <uint64_t>self.arena.a.granules * DSM_GRANULE) - low

    def clothe(self):
        """What `bare` told has been reserved: the block is ready, and reads zero."""
        cdef uint32_t p, were
        cdef dsm_arena *a = &self.arena.a
        DSM_ARENA_LOCK(a)
        for p in range(self.first, self.end):
            dsm_set_bit(a.reserved, p)
        self.end = 0
        were = dsm_soil(a, self.number)
        DSM_ARENA_UNLOCK(a)
        dsm_wipe(a.base, self.start, self.length, were)

    def array(self, tuple dims not None, cnp.dtype descr not None, bint fortran=False):
        """An array over the block, from its beginning, in C or Fortran order."""
        cdef cnp.npy_intp lengths[MAX_DIMENSIONS]
        cdef int i, ndim = <int>PyTuple_GET_SIZE(dims)
        cdef cnp.ndarray result
        if ndim > MAX_DIMENSIONS or self.end or not self.nbytes:
            raise ValueError("the block is not ready, or the array has too many dimensions")
        for i in range(ndim):
            lengths[i] = <object>PyTuple_GET_ITEM(dims, i)
        Py_INCREF(descr)  # NewFromDescr takes one reference over
        result = PyArray_NewFromDescr(
            <PyTypeObject *>cnp.ndarray, descr, ndim, lengths, NULL,
            self.arena.a.base + <uint64_t>self.start * DSM_GRANULE,
            cnp.NPY_ARRAY_FARRAY if fortran else cnp.NPY_ARRAY_CARRAY, <object>NULL,
        )
        if cnp.PyArray_NBYTES(result) > self.nbytes:
            raise ValueError(
                f"an array of {cnp.PyArray_NBYTES(result)} bytes does not fit a block of {self.nbytes}"
            )
        cnp.set_array_base(result, self)
        return result


@cython.final
@cython.no_gc
cdef class Arena:
    """An arena as this process maps it.

    Parameters
    ----------
    root : ndarray of uint8
        Its memory, from an address that is a multiple of 64.
    segment : int
        Its number. If a segment of this address is in the registry, it is an arena from now on.
    fd : int
        Of its owner: the descriptor by which pages are given back, -1 for memory that is all there
        and stays. Whoever is not the owner gives `FOREIGN`.
    """

    cdef dsm_arena a
    cdef object root
    cdef readonly long long segment
    cdef int fd
    cdef bint noted  # the listener has heard that memory could be trimmed

    def __cinit__(self, root not None, long long segment, int fd):
        cdef cnp.ndarray memory = <cnp.ndarray?>root
        cdef Py_ssize_t nbytes = cnp.PyArray_NBYTES(memory)
        cdef char *base = <char *>cnp.PyArray_DATA(memory)
        cdef uint32_t p
        if not cnp.PyArray_IS_C_CONTIGUOUS(memory) or <uintptr_t>base % DSM_GRANULE or not (
                DSM_GRANULE <= nbytes <= DSM_ARENA_MOST):
            raise ValueError(
                f"an arena has {GRANULE} to {MOST} aligned bytes, got {nbytes} at {<uintptr_t>base:#x}"
            )
        if dsm_arena_init(&self.a, base, nbytes, fd != FOREIGN):
            raise MemoryError("no memory for the bookkeeping of an arena; drop some arrays")
        self.root, self.segment, self.fd = root, segment, fd
        if fd == -1:
            for p in range(MOST // PIECE):
                dsm_set_bit(self.a.reserved, p)
        attach(<uintptr_t>base, &self.a)

    def __dealloc__(self):
        if self.a.base is not NULL:
            attach(<uintptr_t>self.a.base, NULL)
            dsm_arena_end(&self.a)

    # -- An owner's ----------------------------------------------------------------------------

    cdef Hold _take(self, uint32_t nbytes):
        cdef Hold hold = Hold.__new__(Hold)
        cdef dsm_span *span
        cdef uint32_t were = 0
        hold.arena = self
        DSM_ARENA_LOCK(&self.a)
        hold.number = dsm_take(&self.a, nbytes)
        if hold.number:
            span = &self.a.spans[hold.number]
            hold.start, hold.length, hold.nbytes = span.start, span.length, nbytes
            if not dsm_bare(&self.a, hold.number, &hold.first, &hold.end):
                were = dsm_soil(&self.a, hold.number)
        DSM_ARENA_UNLOCK(&self.a)
        if not hold.number:
            return None
        dsm_wipe(self.a.base, hold.start, hold.length, were)
        return hold

    cdef void _let_go(self, uint32_t number) noexcept:
        cdef int what = 0
        cdef uint64_t freed, before
        cdef bint condemned
        DSM_ARENA_LOCK(&self.a)
        before = self.a.condemned_bytes
        condemned = dsm_let_go(&self.a, number, _quarantining)
        if condemned and before == 0:
            what = 1
        if condemned and before <= CROWD < self.a.condemned_bytes:
            what |= 2
        freed = self.a.freed
        if freed >= REMARKABLE and not self.noted and self.fd >= 0:
            self.noted = True
            what |= 4
        DSM_ARENA_UNLOCK(&self.a)
        if freed >= TRIM and self.fd >= 0:
            self._trim(False)
        if what and _listener is not None:
            listener = _listener
            listener(what)

    cdef uint64_t _trim(self, bint politely) noexcept:
        cdef uint32_t number, first = 0, end = 0, p
        cdef uint64_t pieces = 0
        cdef int failed = 0
        while not failed:
            DSM_ARENA_LOCK(&self.a)
            self.a.freed = 0
            self.noted = False
            number = dsm_trimmable(&self.a, &first, &end)
            for p in range(first, end if number else first):
                pieces += dsm_bit_of(self.a.reserved, p)
            DSM_ARENA_UNLOCK(&self.a)
            if not number:
                break
            # The span is in nobody's list meanwhile, so nobody else comes to use its pages.
            if politely:
                with nogil:
                    failed = self._punch(first, end)
            else:  # while an array goes, nobody else gets the GIL
                failed = self._punch(first, end)
            DSM_ARENA_LOCK(&self.a)
            dsm_trimmed(&self.a, number, first, end, failed == 0)
            DSM_ARENA_UNLOCK(&self.a)
        return pieces * DSM_PIECE

    cdef int _punch(self, uint32_t first, uint32_t end) noexcept nogil:
        return fallocate(self.fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE,
                         <long long>first * DSM_PIECE, <long long>(end - first) * DSM_PIECE)

    def trim(self):
        """Give the pages of free pieces back to the system; how many bytes that were."""
        return self._trim(True) if self.fd >= 0 else 0

    def tickets(self, bint anew=False):
        """The blocks condemned since the last call, or `anew` all, as 64-bit tickets in bytes."""
        cdef uint32_t count
        cdef bytes result
        DSM_ARENA_LOCK(&self.a)
        if anew and self.a.quarantined:
            dsm_recall(&self.a)
        count = dsm_condemned(&self.a)
        DSM_ARENA_UNLOCK(&self.a)
        # More may come meanwhile, and stay for the next call.
        result = PyBytes_FromStringAndSize(NULL, count * sizeof(uint64_t))
        DSM_ARENA_LOCK(&self.a)
        count = dsm_tickets(&self.a, <uint64_t *>PyBytes_AS_STRING(result), count)
        DSM_ARENA_UNLOCK(&self.a)
        return result[: count * sizeof(uint64_t)]

    def release(self, bytes tickets not None):
        """Blocks that nobody in any process can see any more: free, if they are still condemned."""
        cdef Py_ssize_t i
        cdef uint64_t ticket
        DSM_ARENA_LOCK(&self.a)
        for i in range(PyBytes_GET_SIZE(tickets) // <Py_ssize_t>sizeof(uint64_t)):
            memcpy(&ticket, PyBytes_AS_STRING(tickets) + i * sizeof(uint64_t), sizeof(uint64_t))
            dsm_release(&self.a, ticket)
        DSM_ARENA_UNLOCK(&self.a)

    def release_all(self):
        """There is no other process any more that could see a condemned block."""
        DSM_ARENA_LOCK(&self.a)
        dsm_release_all(&self.a)
        DSM_ARENA_UNLOCK(&self.a)

    def retire(self):
        """Before a fork: this process or its child may let go of what the other one still sees.

        The owner gives no new block of this arena, in neither process; elsewhere every block that is
        held now is held for ever.
        """
        DSM_ARENA_LOCK(&self.a)
        dsm_pin(&self.a)
        DSM_ARENA_UNLOCK(&self.a)

    @property
    def retired(self):
        """Whether it gives no new blocks."""
        return bool(self.a.retired)

    @property
    def blocks(self):
        """Blocks that are held here, or in quarantine."""
        return self.a.live + self.a.quarantined

    @property
    def quarantined(self):
        """Blocks that nobody holds here, and somebody may elsewhere."""
        return self.a.quarantined

    # -- Everybody's ---------------------------------------------------------------------------

    def view(self, bytes place not None, tuple shape not None, tuple strides not None,
             token not None, bint writeable):
        """The array that a handle of this arena describes; None if its block is gone.

        Its ``base`` is a hold of the block.
        """
        cdef Place p
        cdef Hold hold
        if PyBytes_GET_SIZE(place) != sizeof(Place):
            raise ValueError(f"a place in an arena has {sizeof(Place)} bytes, got {place!r}")
        memcpy(&p, PyBytes_AS_STRING(place), sizeof(Place))
        hold = Hold.__new__(Hold)
        hold.arena = self
        DSM_ARENA_LOCK(&self.a)
        hold.number = dsm_hold(&self.a, p.start, p.nbytes, p.serial)
        DSM_ARENA_UNLOCK(&self.a)
        if not hold.number:
            return None
        return over(hold, self.a.base + <uint64_t>p.start * DSM_GRANULE, p.nbytes, writeable,
                    p.offset, shape, strides, token)

    def held(self, bytes tickets not None):
        """For each block of these tickets, one byte: whether it is held here."""
        cdef Py_ssize_t i, count = PyBytes_GET_SIZE(tickets) // <Py_ssize_t>sizeof(uint64_t)
        cdef uint64_t ticket
        cdef bytes result = PyBytes_FromStringAndSize(NULL, count)
        cdef char *answer = PyBytes_AS_STRING(result)
        DSM_ARENA_LOCK(&self.a)
        for i in range(count):
            memcpy(&ticket, PyBytes_AS_STRING(tickets) + i * sizeof(uint64_t), sizeof(uint64_t))
            answer[i] = dsm_at(&self.a, ticket & 0xfffff) != 0
        DSM_ARENA_UNLOCK(&self.a)
        return result


def take(tuple arenas not None, Py_ssize_t nbytes):
    """A new block of the first of some arenas that has room for it; None if none has.

    Parameters
    ----------
    arenas : tuple of Arena
    nbytes : int, bytes, from 1 to the size of an arena

    Returns
    -------
    Hold or None
        The block reads zero, unless it is `Hold.bare`.
    """
    cdef Hold hold
    if not 1 <= nbytes <= DSM_ARENA_MOST:
        raise ValueError(f"a block has 1 to {MOST} bytes, got {nbytes}")
    for arena in arenas:
        hold = (<Arena?>arena)._take(<uint32_t>nbytes)
        if hold is not None:
            return hold
    return None
