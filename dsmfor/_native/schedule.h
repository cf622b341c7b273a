/* The arithmetic of schedules: how range(n) is cut into numbered chunks for a team.
 *
 * A plan is a fixed table of chunks, known in advance from (kind, n, size, chunk, key) and never
 * stored: each entry is computed when it is asked for, in O(1) memory.  Chunk numbers are what
 * engines count, claim and deal; nothing here knows of processes, memory or Python.
 *
 *   kind             chunk k                                   who runs it
 *   ---------------  ----------------------------------------  -----------------------------------
 *   static           k-th of `size` nearly equal blocks        rank k
 *   static, chunked  [k*c, (k+1)*c)                            ranks in turn: r, r + size, ...
 *   random           [k*c, (k+1)*c)                            rank r: the images of its static
 *                                                              share of positions, by a bijection
 *   dynamic          [k*c, (k+1)*c)                            whoever claims k
 *   guided           max(c, ceil(remaining / (2 * size)))      whoever claims k
 *   auto             r*64 + j: j-th piece of rank r's block    rank r, or whoever takes it from r
 *
 * Guarantees
 *   - The chunks of a plan are disjoint and cover range(n); in number order they ascend.
 *   - No chunk is empty, but for the numbers of auto beyond the pieces of a share (bounds() gives
 *     lo == hi for those) -- so static has min(n, size) chunks, and n == 0 has none.
 *   - No expression overflows for 0 <= n <= DSM_MAX_N, 1 <= size <= DSM_MAX_SIZE and any
 *     chunk >= 1, and none rounds: all is integer arithmetic.
 *   - The same five numbers give the same table in every process and on every machine.
 * Assumes
 *   - A plan was filled by dsm_plan_init, which returned 0, and is not written afterwards; it may
 *     then be read by any number of threads.  A cursor belongs to one thread.
 *   - 0 <= rank < size and 0 <= k < count.  These are not checked here.
 */
#ifndef DSMFOR_SCHEDULE_H
#define DSMFOR_SCHEDULE_H

#include <stdint.h>

#define DSM_MAX_N (INT64_C(1) << 62)
#define DSM_MAX_SIZE 65536    /* bounds the walk of guided: O(size * log(n / size)) chunks */
#define DSM_AUTO_PIECES 64    /* chunk numbers per share under auto */
#define DSM_RANDOM_ROUNDS 6   /* of the Feistel network; four leave a pattern between neighbours */
#define DSM_RANDOM_MIN_BITS 8 /* of its words; on fewer, its rounds mix too little */

enum { DSM_STATIC, DSM_STATIC_CHUNKED, DSM_RANDOM, DSM_DYNAMIC, DSM_GUIDED, DSM_AUTO };

typedef struct {
    int64_t n;     /* iterations, 0 .. DSM_MAX_N */
    int64_t chunk; /* iterations per chunk (guided: the least); 0 under static and auto */
    int64_t count; /* chunk numbers are 0 .. count-1; under auto some of them are empty */
    uint64_t key;  /* random: the caller's key, mixed by init; 0 under other kinds */
    int32_t size;  /* ranks in the team, 1 .. DSM_MAX_SIZE */
    int32_t kind;  /* DSM_STATIC .. DSM_AUTO */
} dsm_plan;

/* Guided only: chunk `number` begins at `start`.  Lets bounds() walk on from the last answer, so
 * that rising questions cost O(1) each on average.  All zero is valid: chunk 0 begins at 0. */
typedef struct {
    int64_t number, start;
} dsm_cursor;

/* Begin of the k-th of m nearly equal blocks of range(n): lengths differ by at most one, the
 * larger first.  k == m gives n.  (k * (n / m) <= n, so nothing overflows.) */
static inline int64_t dsm_block(int64_t n, int64_t m, int64_t k)
{
    int64_t rest = n % m;
    return k * (n / m) + (k < rest ? k : rest);
}

/* ceil(a / b) for a >= 0, b >= 1, without a + b - 1, which could overflow. */
static inline int64_t dsm_ceil_div(int64_t a, int64_t b)
{
    return a == 0 ? 0 : (int64_t)((uint64_t)(a - 1) / (uint64_t)b) + 1;
}

/* The finaliser of splitmix64: a bijection of 64-bit words, every output bit of which depends on
 * every input bit.  G. L. Steele, D. Lea, C. H. Flood (2014), "Fast splittable pseudorandom number
 * generators", doi:10.1145/2660193.2660195; constants of D. Stafford's variant 13. */
static inline uint64_t dsm_mix64(uint64_t x)
{
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

/* One round of the network below: `bits` mixed bits that depend on all of `half` and of the key. */
static inline uint64_t dsm_round(uint64_t half, uint64_t key, int round, int bits)
{
    /* key is well mixed, so its rotations by 11 are unlike each other; a constant of the round
     * keeps the rounds apart even for a key that repeats itself. */
    int turn = 11 * round;
    uint64_t own = ((key << turn) | (key >> ((64 - turn) & 63))) +
                   UINT64_C(0x9e3779b97f4a7c15) * (uint64_t)(round + 1);
    uint64_t f = (half ^ own) * UINT64_C(0xbf58476d1ce4e5b9);
    f = (f ^ (f >> 32)) * UINT64_C(0x94d049bb133111eb);
    return f >> (64 - bits); /* the high bits are the mixed ones */
}

/* A bijection of [0, count), chosen by key: the image of x.
 *
 * A Feistel network permutes the words of `width` bits, the fewest that hold count (and at least
 * DSM_RANDOM_MIN_BITS): the two halves, which differ by a bit when width is odd, take turns at
 * being masked by a function of the other.  An image outside [0, count) is permuted again until
 * one is inside ("cycle walking"): x itself lies on its cycle, so this ends, and what is left is a
 * bijection of [0, count).  There are less than 2 * count words (above the least width), so fewer
 * than two passes are needed on average.
 * J. Black, P. Rogaway (2002), "Ciphers with arbitrary finite domains", doi:10.1007/3-540-45760-7_9.
 *
 * It scatters work; it is no cipher and keeps no secrets. */
static inline int64_t dsm_permute(int64_t x, int64_t count, uint64_t key)
{
    if (count == 1)
        return 0;
    int width = 64 - __builtin_clzll((unsigned long long)(count - 1)); /* 1 .. 62 */
    if (width < DSM_RANDOM_MIN_BITS)
        width = DSM_RANDOM_MIN_BITS;
    const int low = width / 2, high = width - low;
    uint64_t word = (uint64_t)x;
    do {
        uint64_t left = word >> low, right = word & ((UINT64_C(1) << low) - 1);
        for (int round = 0; round < DSM_RANDOM_ROUNDS; round += 2) {
            left ^= dsm_round(right, key, round, high);
            right ^= dsm_round(left, key, round + 1, low);
        }
        word = (left << low) | right;
    } while (word >= (uint64_t)count);
    return (int64_t)word;
}

/* Length that guided gives to the chunk with `remaining` >= 1 iterations before the end, were
 * there no least length: half of an even share. */
static inline int64_t dsm_guided_length(const dsm_plan *p, int64_t remaining)
{
    return dsm_ceil_div(remaining, 2 * (int64_t)p->size);
}

/* Fill a plan.  Returns 0, or -1 when a number is out of range and the plan must not be used.
 * `chunk` is read under the kinds that have one, `key` under random. */
static inline int dsm_plan_init(dsm_plan *p, int kind, int64_t n, int32_t size, int64_t chunk,
                                uint64_t key)
{
    int chunked = kind != DSM_STATIC && kind != DSM_AUTO;
    if (kind < DSM_STATIC || kind > DSM_AUTO || n < 0 || n > DSM_MAX_N || size < 1 ||
        size > DSM_MAX_SIZE || (chunked && chunk < 1))
        return -1;
    p->n = n;
    p->size = size;
    p->kind = kind;
    p->chunk = chunked ? chunk : 0;
    p->key = kind == DSM_RANDOM ? dsm_mix64(key + UINT64_C(0x9e3779b97f4a7c15)) : 0;
    switch (kind) {
    case DSM_STATIC:
        p->count = n < size ? n : size;
        break;
    case DSM_AUTO:
        p->count = n == 0 ? 0 : (int64_t)size * DSM_AUTO_PIECES;
        break;
    case DSM_GUIDED: {
        /* Walk while the chunks shrink; from where the least length rules, divide. */
        int64_t count = 0, remaining = n;
        while (remaining > 0) {
            int64_t length = dsm_guided_length(p, remaining);
            if (length <= chunk) {
                count += dsm_ceil_div(remaining, chunk);
                break;
            }
            remaining -= length;
            count++;
        }
        p->count = count;
        break;
    }
    default:
        p->count = dsm_ceil_div(n, chunk);
    }
    return 0;
}

/* auto: the numbers [first, last) that begin as rank's own; at most DSM_AUTO_PIECES of them.
 * Empty under every other kind. */
static inline void dsm_plan_share(const dsm_plan *p, int32_t rank, int64_t *first, int64_t *last)
{
    if (p->kind != DSM_AUTO) {
        *first = *last = 0;
        return;
    }
    int64_t length = dsm_block(p->n, p->size, rank + 1) - dsm_block(p->n, p->size, rank);
    *first = (int64_t)rank * DSM_AUTO_PIECES;
    *last = *first + (length < DSM_AUTO_PIECES ? length : DSM_AUTO_PIECES);
}

/* Chunk k is [*lo, *hi).  `cursor` is used by guided alone, and may be NULL under other kinds. */
static inline void dsm_plan_bounds(const dsm_plan *p, dsm_cursor *cursor, int64_t k, int64_t *lo,
                                   int64_t *hi)
{
    int64_t begin, length;
    switch (p->kind) {
    case DSM_STATIC:
        /* count, not size: for n < size the n blocks of one iteration are the same ones. */
        *lo = dsm_block(p->n, p->count, k);
        *hi = dsm_block(p->n, p->count, k + 1);
        return;
    case DSM_AUTO: {
        int64_t rank = k / DSM_AUTO_PIECES, piece = k % DSM_AUTO_PIECES;
        int64_t base = dsm_block(p->n, p->size, rank);
        int64_t share = dsm_block(p->n, p->size, rank + 1) - base;
        int64_t pieces = share < DSM_AUTO_PIECES ? share : DSM_AUTO_PIECES;
        if (piece >= pieces) { /* a number beyond the share: empty, at its end */
            *lo = *hi = base + share;
            return;
        }
        *lo = base + dsm_block(share, pieces, piece);
        *hi = base + dsm_block(share, pieces, piece + 1);
        return;
    }
    case DSM_GUIDED:
        if (cursor->number > k)
            cursor->number = cursor->start = 0;
        while (cursor->number < k) {
            length = dsm_guided_length(p, p->n - cursor->start);
            if (length <= p->chunk) { /* lengths never rise: the rest are least ones */
                cursor->start += (k - cursor->number) * p->chunk;
                cursor->number = k;
            } else {
                cursor->start += length;
                cursor->number++;
            }
        }
        begin = cursor->start;
        length = dsm_guided_length(p, p->n - begin);
        if (length < p->chunk)
            length = p->chunk;
        break;
    default:
        begin = k * p->chunk;
        length = p->chunk;
    }
    *lo = begin;
    *hi = p->n - begin <= length ? p->n : begin + length;
}

/* How many chunks arithmetic deals to rank: 0 under dynamic, guided and auto, which are claimed. */
static inline int64_t dsm_plan_dealt_count(const dsm_plan *p, int32_t rank)
{
    switch (p->kind) {
    case DSM_STATIC:
        return rank < p->count;
    case DSM_STATIC_CHUNKED:
        return rank < p->count ? (p->count - 1 - rank) / p->size + 1 : 0;
    case DSM_RANDOM:
        return dsm_block(p->count, p->size, rank + 1) - dsm_block(p->count, p->size, rank);
    default:
        return 0;
    }
}

/* Number of the j-th chunk (j >= 0) that arithmetic deals to rank, -1 past its last; always -1
 * under dynamic, guided and auto. */
static inline int64_t dsm_plan_dealt(const dsm_plan *p, int32_t rank, int64_t j)
{
    if (j >= dsm_plan_dealt_count(p, rank))
        return -1;
    switch (p->kind) {
    case DSM_STATIC:
        return rank;
    case DSM_STATIC_CHUNKED:
        return rank + j * p->size;
    default: /* random, the only other kind that deals */
        return dsm_permute(dsm_block(p->count, p->size, rank) + j, p->count, p->key);
    }
}

#endif /* DSMFOR_SCHEDULE_H */
