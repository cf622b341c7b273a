/* The named locks of a team: words of the control block with an owner, futexes to wait on.
 *
 * Guarantees: as control.h. A rank that waits for itself, by way of others, is found.
 * Assumes: `waits` of a rank is not 0 only while it waits for that lock, and a rank that waits
 * gives up none that it holds (member.pyx).
 */
#ifndef DSM_LOCKS_H
#define DSM_LOCKS_H

#include "control.h"

/* One try: 1 taken, 0 not (then `*seen` is the word to sleep on, marked as waited for), -1 broken. */
static inline int dsm_take(uint32_t *word, int32_t rank, int waited, uint32_t *seen)
{
    uint32_t mine = (uint32_t)(rank + 1) << 2 | (waited ? 2u : 0u); /* others may still sleep */
    for (;;) {
        uint32_t v = 0; /* anew each time: a failed CAS leaves the owner's word in it */
        if (CAS(word, &v, mine))
            return 1;
        if (v & DSM_BROKEN)
            return -1;
        if (v == 0)
            continue;
        uint32_t marked = v | 2;
        if (v == marked || CAS(word, &v, marked)) {
            *seen = marked;
            return 0;
        }
    }
}

/* Whether a rank that waits for a lock waits for itself, by way of the owners of locks.
 * Its last lock but one is held by the rank that holds the last, and so on back to it; `knot`
 * gets the ranks. Who was seen to wait for what this rank holds cannot go on, for this rank does
 * not; so what it holds it keeps, and so on back: each edge is looked at again, the last first. */
static inline int dsm_knotted(dsm_control *b, int32_t rank, int32_t *knot)
{
    int n = 0;
    for (int32_t r = rank;;) {
        uint32_t k = LOAD(&b->ranks[r].waits);
        if (k == 0 || n == DSM_RANKS)
            return 0;
        knot[n++] = r;
        uint32_t owner = LOAD(&b->locks[k - 1].word) >> 2;
        if (owner == 0)
            return 0;
        r = (int32_t)owner - 1;
        if (r == rank)
            break;
    }
    for (int i = n - 1; i >= 0; i--) {
        uint32_t k = LOAD(&b->ranks[knot[i]].waits);
        int32_t next = i + 1 < n ? knot[i + 1] : rank;
        if (k == 0 || LOAD(&b->locks[k - 1].word) >> 2 != (uint32_t)next + 1 ||
            LOAD(&b->ranks[knot[i]].waits) != k)
            return 0;
    }
    return n;
}

static inline void dsm_give(uint32_t *word)
{
    uint32_t v = __atomic_fetch_and(word, DSM_BROKEN, __ATOMIC_SEQ_CST);
    if (v & 2)
        dsm_wake(word, 1, DSM_ANYONE);
}

/* Under the table's lock: the lock of that name, made if new; NULL when the table is full.
 * Names are compared whole: two names never share a lock (they would deadlock when nested). */
static inline dsm_lock *dsm_named(dsm_control *b, uint64_t n0, uint64_t n1)
{
    for (uint32_t i = 0; i < b->used; i++)
        if (b->locks[i].name[0] == n0 && b->locks[i].name[1] == n1)
            return &b->locks[i];
    if (b->used == DSM_LOCKS)
        return NULL;
    b->locks[b->used].name[0] = n0;
    b->locks[b->used].name[1] = n1;
    return &b->locks[b->used++];
}

#endif
