/* How an arena is divided: the spans of it, and which of them are free.
 *
 * An arena is cut into granules of 64 bytes and covered by *spans*, each a free one or a *block*, the
 * memory of one array. All of this lies in the private memory of the process; nothing that another
 * process writes into the arena can lead it astray. What blocks live through is arena.h's.
 *
 *   starts    one bit per granule: a span begins here
 *   numbers   of that span's record, by granule
 *   spans     the records; number 0 is none
 *   heads     lists of free spans by class of length
 *
 * The caller, who *owns* its arenas, divides them: the spans cover the arena, neighbours are linked,
 * and two free ones are never neighbours. Lengths of blocks are rounded up to one of 16 steps per
 * power of two, so every free span of a class serves every request of that class: finding one is a
 * look at two bitmaps, and at most a sixteenth is wasted. A worker maps the caller's arenas and only
 * enters the blocks that it was told of.
 */
#ifndef DSM_SPANS_H
#define DSM_SPANS_H

#include <Python.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum {
    DSM_GRANULE = 64,
    DSM_ARENA_MOST = 64 << 20, /* bytes */
    DSM_PIECE = 128 << 10,     /* bytes reserved together */
    DSM_PIECES = DSM_ARENA_MOST / DSM_PIECE,
    DSM_STEPS = 16, /* classes per power of two */
    DSM_CLASSES = DSM_STEPS * 18,
};

/* ASIDE: in no list, because its pages are being given back or the arena is retired. */
enum { DSM_UNUSED, DSM_FREE, DSM_LIVE, DSM_QUARANTINED, DSM_ASIDE };

typedef struct {
    uint32_t start, length; /* granules */
    uint32_t below, above;  /* neighbours by address, of an owner's */
    uint32_t next, before;  /* in the list of its class, of condemned blocks, or of unused records */
    uint32_t nbytes;        /* that the array has */
    uint32_t holds;         /* while live: arrays at the root of which it lies */
    uint64_t serial;        /* of this block among all of the arena; what a handle must match */
    uint64_t stamp;         /* of its last condemnation; 0 while live */
    uint8_t state;
    uint8_t named;  /* a handle of it was made */
    uint8_t listed; /* among the condemned; a block that was revived since is passed over there */
} dsm_span;

typedef struct {
    char *base;
    uint32_t granules;
    int owner;              /* divides the arena, clears blocks */
    int retired;            /* gives no block any more: a forked child may see the old ones */
    uint64_t *starts;
    uint32_t *numbers;
    dsm_span *spans;
    uint32_t count, room, unused; /* records: used so far, allocated, list of those given back */
    uint32_t heads[DSM_CLASSES];
    uint64_t filled[DSM_CLASSES / 64 + 1]; /* classes with a free span */
    uint64_t reserved[DSM_PIECES / 64], dirty[DSM_PIECES / 64];
    uint64_t serials, stamps;
    uint64_t live, quarantined; /* blocks */
    uint64_t condemned_bytes;   /* quarantined, and nobody has been told */
    uint64_t freed;             /* bytes freed since the last trim */
    uint32_t condemned;         /* list of them */
#ifdef Py_GIL_DISABLED
    PyMutex mutex;
#endif
} dsm_arena;

#ifdef Py_GIL_DISABLED
#define DSM_ARENA_LOCK(a) PyMutex_Lock(&(a)->mutex)
#define DSM_ARENA_UNLOCK(a) PyMutex_Unlock(&(a)->mutex)
#else
#define DSM_ARENA_LOCK(a) ((void)(a))
#define DSM_ARENA_UNLOCK(a) ((void)(a))
#endif

static inline int dsm_bit_of(const uint64_t *b, uint32_t n) { return b[n >> 6] >> (n & 63) & 1; }
static inline void dsm_set_bit(uint64_t *b, uint32_t n) { b[n >> 6] |= 1ULL << (n & 63); }
static inline void dsm_drop_bit(uint64_t *b, uint32_t n) { b[n >> 6] &= ~(1ULL << (n & 63)); }

/* The class that holds spans of `length` granules: the last one whose least length is not larger. */
static inline uint32_t dsm_class(uint32_t length)
{
    if (length < DSM_STEPS) return length;
    uint32_t power = 31 - __builtin_clz(length); /* at least 4 */
    return (power - 3) * DSM_STEPS + (length >> (power - 4)) - DSM_STEPS;
}

/* The least length that is a class's own and not below `length`. */
static inline uint32_t dsm_round(uint32_t length)
{
    if (length < DSM_STEPS) return length;
    uint32_t step = 1u << (27 - __builtin_clz(length));
    return (length + step - 1) & ~(step - 1);
}

/* -- Records -------------------------------------------------------------------------------- */

/* Room for `n` more records; -1 without memory. */
static inline int dsm_records(dsm_arena *a, uint32_t n)
{
    uint32_t left = a->room - a->count;
    for (uint32_t u = a->unused; u && left < n; u = a->spans[u].next) left++;
    if (left >= n) return 0;
    uint32_t room = 2 * a->room + 64;
    dsm_span *grown = realloc(a->spans, room * sizeof(dsm_span));
    if (!grown) return -1;
    a->spans = grown;
    a->room = room;
    return 0;
}

static inline uint32_t dsm_record(dsm_arena *a, uint32_t start, uint32_t length, uint8_t state)
{
    uint32_t n = a->unused;
    if (n) a->unused = a->spans[n].next;
    else n = a->count++;
    a->spans[n] = (dsm_span){.start = start, .length = length, .state = state};
    a->numbers[start] = n;
    dsm_set_bit(a->starts, start);
    return n;
}

static inline void dsm_forget(dsm_arena *a, uint32_t n)
{
    dsm_drop_bit(a->starts, a->spans[n].start);
    a->spans[n].state = DSM_UNUSED;
    a->spans[n].next = a->unused;
    a->unused = n;
}

/* -- Free spans ----------------------------------------------------------------------------- */

static inline void dsm_enlist(dsm_arena *a, uint32_t n)
{
    uint32_t c = dsm_class(a->spans[n].length), head = a->heads[c];
    a->spans[n].state = DSM_FREE;
    a->spans[n].next = head;
    a->spans[n].before = 0;
    if (head) a->spans[head].before = n;
    a->heads[c] = n;
    dsm_set_bit(a->filled, c);
}

static inline void dsm_delist(dsm_arena *a, uint32_t n)
{
    dsm_span *s = &a->spans[n];
    uint32_t c = dsm_class(s->length);
    if (s->next) a->spans[s->next].before = s->before;
    if (s->before) a->spans[s->before].next = s->next;
    else if (!(a->heads[c] = s->next)) dsm_drop_bit(a->filled, c);
}

/* The list of the least class from `c` on that has a span. */
static inline uint32_t dsm_first_filled(const dsm_arena *a, uint32_t c)
{
    for (uint32_t word = c >> 6; word <= DSM_CLASSES >> 6; word++) {
        uint64_t bits = a->filled[word];
        if (word == c >> 6) bits &= ~0ULL << (c & 63);
        if (bits) return a->heads[(word << 6) + __builtin_ctzll(bits)];
    }
    return 0;
}

/* A span becomes free and one with its free neighbours. */
static inline void dsm_give(dsm_arena *a, uint32_t n)
{
    uint32_t below = a->spans[n].below, above = a->spans[n].above;
    if (above && a->spans[above].state == DSM_FREE) {
        dsm_delist(a, above);
        a->spans[n].length += a->spans[above].length;
        a->spans[n].above = a->spans[above].above;
        if (a->spans[n].above) a->spans[a->spans[n].above].below = n;
        dsm_forget(a, above);
    }
    if (below && a->spans[below].state == DSM_FREE) {
        dsm_delist(a, below);
        a->spans[below].length += a->spans[n].length;
        a->spans[below].above = a->spans[n].above;
        if (a->spans[below].above) a->spans[a->spans[below].above].below = below;
        dsm_forget(a, n);
        n = below;
    }
    dsm_enlist(a, n);
}

/* -- The arena ------------------------------------------------------------------------------ */

static inline int dsm_arena_init(dsm_arena *a, char *base, size_t nbytes, int owner)
{
    memset(a, 0, sizeof *a);
    a->base = base;
    a->granules = (uint32_t)(nbytes / DSM_GRANULE);
    a->owner = owner;
    size_t bits = (a->granules / 64 + 1) * sizeof(uint64_t);
    /* Zero pages of the system: only those are taken that are written. */
    void *p = mmap(NULL, bits + a->granules * sizeof(uint32_t), PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) return -1;
    a->starts = p;
    a->numbers = (uint32_t *)((char *)p + bits);
    if (dsm_records(a, 1)) {
        munmap(p, bits + a->granules * sizeof(uint32_t));
        a->starts = NULL;
        return -1;
    }
    a->count = 1; /* number 0 is none */
    if (owner) dsm_enlist(a, dsm_record(a, 0, a->granules, DSM_FREE));
    return 0;
}

static inline void dsm_arena_end(dsm_arena *a)
{
    if (!a->starts) return;
    munmap(a->starts, (a->granules / 64 + 1) * sizeof(uint64_t) + a->granules * sizeof(uint32_t));
    free(a->spans);
    a->starts = NULL;
    a->spans = NULL;
}

/* The last span that begins at a granule or before it, or 0. */
static inline uint32_t dsm_before(const dsm_arena *a, uint32_t granule)
{
    int64_t word = granule >> 6;
    uint64_t bits = a->starts[word] & (~0ULL >> (63 - (granule & 63)));
    while (!bits) {
        if (--word < 0) return 0;
        bits = a->starts[word];
    }
    return a->numbers[(word << 6) + 63 - __builtin_clzll(bits)];
}

#endif
