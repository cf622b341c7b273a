/* The life of a small array's memory: a block of an arena.
 *
 *      take ─→ LIVE ── last hold goes, no message has named it ─────────────────→ free
 *               ↑ │                                                                ↑
 *         revive│ └─── last hold goes, named ──→ QUARANTINED ── release(stamp) ────┘
 *               └───────────────────────────────────┘
 *
 * Pages are taken piece by piece, as blocks come to lie in them: `reserved`. A piece that was part
 * of a block is `dirty` until its pages go back to the system; a block is cleared where it is.
 *
 * Guarantees: live blocks are disjoint and lie inside the arena. A block in quarantine keeps its
 * bytes, and is found again by its serial number.
 *
 * Assumes: everything is called with the arena locked: the GIL, or in a free-threaded interpreter
 * its mutex. No Python code runs meanwhile.
 */
#ifndef DSM_ARENA_H
#define DSM_ARENA_H

#include "spans.h"

/* The live block in which an address lies, given from the arena's beginning, or 0. */
static inline uint32_t dsm_find(const dsm_arena *a, uint64_t address)
{
    uint32_t granule = (uint32_t)(address / DSM_GRANULE), n = dsm_before(a, granule);
    return n && a->spans[n].state == DSM_LIVE && granule - a->spans[n].start < a->spans[n].length
               ? n : 0;
}

/* The block that begins at a granule, in one of two states; 0 if there is none. */
static inline uint32_t dsm_at(const dsm_arena *a, uint32_t start)
{
    if (start >= a->granules || !dsm_bit_of(a->starts, start)) return 0;
    uint32_t n = a->numbers[start];
    return a->spans[n].state == DSM_LIVE || a->spans[n].state == DSM_QUARANTINED ? n : 0;
}

/* A new block, live with one hold; 0 if there is no room. */
static inline uint32_t dsm_take(dsm_arena *a, uint32_t nbytes)
{
    uint32_t length = dsm_round((nbytes + DSM_GRANULE - 1) / DSM_GRANULE);
    if (a->retired || !a->owner || dsm_records(a, 1)) return 0;
    uint32_t n = dsm_first_filled(a, dsm_class(length));
    if (!n) return 0;
    dsm_delist(a, n);
    if (a->spans[n].length > length) {
        uint32_t rest = dsm_record(a, a->spans[n].start + length, a->spans[n].length - length,
                                   DSM_FREE);
        a->spans[rest].below = n;
        a->spans[rest].above = a->spans[n].above;
        if (a->spans[rest].above) a->spans[a->spans[rest].above].below = rest;
        a->spans[n].above = rest;
        a->spans[n].length = length;
        dsm_enlist(a, rest);
    }
    dsm_span *s = &a->spans[n];
    s->state = DSM_LIVE;
    s->nbytes = nbytes;
    s->holds = 1;
    s->named = 0;
    s->stamp = 0;
    s->serial = ++a->serials;
    a->live++;
    return n;
}

/* One more hold of the block that a handle names: an owner's, revived if it is in quarantine, or one
 * that the owner has told this process of. 0 if the block is gone, or another lies there. */
static inline uint32_t dsm_hold(dsm_arena *a, uint32_t start, uint32_t nbytes, uint64_t serial)
{
    uint32_t length = dsm_round((nbytes + DSM_GRANULE - 1) / DSM_GRANULE);
    if (nbytes == 0 || start >= a->granules || length > a->granules - start) return 0;
    uint32_t n = dsm_at(a, start);
    if (n) {
        dsm_span *s = &a->spans[n];
        if (s->nbytes != nbytes || s->serial != serial) return 0;
        if (s->state == DSM_QUARANTINED) {
            s->state = DSM_LIVE;
            s->stamp = 0; /* whoever was to release it finds another stamp */
            a->quarantined--;
            a->live++;
        }
        s->holds++;
        return n;
    }
    if (a->owner || dsm_records(a, 1)) return 0;
    uint32_t last = dsm_before(a, start + length - 1);
    if (last && a->spans[last].start + a->spans[last].length > start) return 0;
    n = dsm_record(a, start, length, DSM_LIVE);
    a->spans[n].nbytes = nbytes;
    a->spans[n].serial = serial;
    a->spans[n].holds = 1;
    a->live++;
    return n;
}

/* A block that nobody can see any more, in any process. */
static inline void dsm_free_block(dsm_arena *a, uint32_t n)
{
    a->freed += (uint64_t)a->spans[n].length * DSM_GRANULE;
    if (!a->owner) dsm_forget(a, n);
    else if (a->retired) a->spans[n].state = DSM_ASIDE; /* never again */
    else dsm_give(a, n);
}

/* The last hold of a block has gone: 1 if it waits in quarantine now. */
static inline int dsm_let_go(dsm_arena *a, uint32_t n, int quarantine)
{
    dsm_span *s = &a->spans[n];
    if (--s->holds) return 0;
    a->live--;
    if (!a->owner || !quarantine || !s->named) {
        dsm_free_block(a, n);
        return 0;
    }
    s->state = DSM_QUARANTINED;
    s->stamp = ++a->stamps;
    a->quarantined++;
    if (!s->listed) {
        s->listed = 1;
        s->next = a->condemned;
        a->condemned = n;
        a->condemned_bytes += (uint64_t)s->length * DSM_GRANULE;
    }
    return 1;
}

/* How many blocks have been condemned since the last `dsm_tickets`, at most. */
static inline uint32_t dsm_condemned(const dsm_arena *a)
{
    uint32_t count = 0;
    for (uint32_t n = a->condemned; n; n = a->spans[n].next) count++;
    return count;
}

/* Write a ticket of each, stamp << 20 | start, and forget that they were listed; how many. Those
 * beyond `room` stay listed. */
static inline uint32_t dsm_tickets(dsm_arena *a, uint64_t *tickets, uint32_t room)
{
    uint32_t count = 0, n;
    while ((n = a->condemned) && count < room) {
        a->condemned = a->spans[n].next;
        a->spans[n].listed = 0;
        if (a->spans[n].state == DSM_QUARANTINED)
            tickets[count++] = a->spans[n].stamp << 20 | a->spans[n].start;
    }
    if (!a->condemned) a->condemned_bytes = 0;
    return count;
}

/* List every block in quarantine, also those whose tickets were given out already. */
static inline void dsm_recall(dsm_arena *a)
{
    for (uint32_t n = 1; n < a->count; n++) {
        dsm_span *s = &a->spans[n];
        if (s->state != DSM_QUARANTINED || s->listed) continue;
        s->listed = 1;
        s->next = a->condemned;
        a->condemned = n;
    }
}

/* A block may be used again, if nothing has become of it since it got this ticket. */
static inline void dsm_release(dsm_arena *a, uint64_t ticket)
{
    uint32_t n = dsm_at(a, ticket & 0xfffff);
    if (!n || a->spans[n].state != DSM_QUARANTINED || a->spans[n].stamp != ticket >> 20) return;
    a->quarantined--;
    dsm_free_block(a, n);
}

/* There is nobody any more who could see a block in quarantine. */
static inline void dsm_release_all(dsm_arena *a)
{
    for (uint32_t n = 1; n < a->count; n++) {
        if (a->spans[n].state == DSM_UNUSED || a->spans[n].state == DSM_FREE) continue;
        a->spans[n].listed = 0;
        if (a->spans[n].state != DSM_QUARANTINED) continue;
        a->quarantined--;
        dsm_free_block(a, n);
    }
    a->condemned = 0;
    a->condemned_bytes = 0;
}

/* The process forks: its child sees the same blocks, and nobody knows for how long. */
static inline void dsm_pin(dsm_arena *a)
{
    a->retired = 1;
    for (uint32_t n = 1; !a->owner && n < a->count; n++)
        if (a->spans[n].state == DSM_LIVE) a->spans[n].holds++;
}

/* -- Pages ---------------------------------------------------------------------------------- */

static inline uint32_t dsm_piece(uint32_t granule) { return granule / (DSM_PIECE / DSM_GRANULE); }

/* Whether pages of a block are still to be taken: the pieces [first, end). */
static inline int dsm_bare(const dsm_arena *a, uint32_t n, uint32_t *first, uint32_t *end)
{
    const dsm_span *s = &a->spans[n];
    *first = *end = 0;
    for (uint32_t p = dsm_piece(s->start); p <= dsm_piece(s->start + s->length - 1); p++)
        if (!dsm_bit_of(a->reserved, p)) {
            if (!*end) *first = p;
            *end = p + 1;
        }
    return *end != 0;
}

/* The pieces of a block are part of one from now on; which of them were before, from the first. */
static inline uint32_t dsm_soil(dsm_arena *a, uint32_t n)
{
    const dsm_span *s = &a->spans[n];
    uint32_t first = dsm_piece(s->start), were = 0;
    for (uint32_t p = first; p <= dsm_piece(s->start + s->length - 1); p++) {
        if (dsm_bit_of(a->dirty, p)) were |= 1u << (p - first);
        dsm_set_bit(a->dirty, p);
    }
    return were;
}

/* Write zeros where a block lies in pieces that were dirty. The block is the caller's alone, so
 * this needs no lock. */
static inline void dsm_wipe(char *base, uint32_t start, uint32_t length, uint32_t were)
{
    uint64_t low = (uint64_t)start * DSM_GRANULE, high = low + (uint64_t)length * DSM_GRANULE;
    uint64_t first = low / DSM_PIECE;
    for (uint64_t p = first; p * DSM_PIECE < high; p++) {
        if (!(were >> (p - first) & 1)) continue;
        uint64_t from = p * DSM_PIECE > low ? p * DSM_PIECE : low;
        uint64_t to = (p + 1) * DSM_PIECE < high ? (p + 1) * DSM_PIECE : high;
        memset(base + from, 0, to - from);
    }
}

/* Take a free span with whole reserved pieces [first, end) out of the lists, to give their pages
 * back without the lock; 0 if there is none. */
static inline uint32_t dsm_trimmable(dsm_arena *a, uint32_t *first, uint32_t *end)
{
    uint32_t per = DSM_PIECE / DSM_GRANULE;
    if (a->retired) return 0;
    for (uint32_t c = dsm_class(per); c < DSM_CLASSES; c++)
        for (uint32_t n = a->heads[c]; n; n = a->spans[n].next) {
            const dsm_span *s = &a->spans[n];
            *first = (s->start + per - 1) / per;
            *end = (s->start + s->length) / per;
            for (uint32_t p = *first; p < *end; p++)
                if (dsm_bit_of(a->reserved, p)) {
                    dsm_delist(a, n);
                    a->spans[n].state = DSM_ASIDE;
                    return n;
                }
        }
    return 0;
}

static inline void dsm_trimmed(dsm_arena *a, uint32_t n, uint32_t first, uint32_t end, int punched)
{
    for (uint32_t p = first; punched && p < end; p++) {
        dsm_drop_bit(a->reserved, p);
        dsm_drop_bit(a->dirty, p);
    }
    if (!a->retired) dsm_give(a, n);
}

#endif
