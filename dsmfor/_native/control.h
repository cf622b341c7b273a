/* The control block of a team: its words, and the transitions that several processes make on them.
 *
 * The argument for every line here is engines/PROTOCOL.md; this file is its code. It knows
 * neither Python nor chunks: waiting (signals, the GIL) is member.pyx and block.pyx, what a chunk
 * number means is schedule.h.
 *
 * Guarantees: every function is safe against any interleaving with the others and with the death
 * of any process between two of its lines, under the protocol's rule that `dsm_launch` and
 * `dsm_repair` run only while no rank is in a region.
 * Assumes: lock-free 64-bit atomics, one writer where the comment beside a field names one.
 *
 *   0 ........ one-line words: bell | left, spoken | reason | gen | count, signature, ending |
 *              size, base
 *   slots .... DSM_RING x 2 lines: seq, cancel, left, sleepers | next
 *   locks .... table word, then DSM_LOCKS x {128-bit name, word}
 *   ranks .... DSM_RANKS x 4 lines: caller's | rank's | place | steal words
 */
#ifndef DSM_CONTROL_H
#define DSM_CONTROL_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define DSM_BROKEN 1u
#define DSM_RING 8
#define DSM_LOCKS 1024
#define DSM_RANKS 1024
#define DSM_LONG 500   /* us: a yield that lasted longer has met one who computes */
#define DSM_SHY 100000 /* us: how long nobody of this process yields after that */
#define DSM_LINE __attribute__((aligned(64)))

#define LOAD(p) __atomic_load_n((p), __ATOMIC_SEQ_CST)
#define PEEK(p) __atomic_load_n((p), __ATOMIC_RELAXED)
#define STORE(p, v) __atomic_store_n((p), (v), __ATOMIC_SEQ_CST)
#define SWAP(p, v) __atomic_exchange_n((p), (v), __ATOMIC_SEQ_CST)
#define ADD(p, v) __atomic_fetch_add((p), (v), __ATOMIC_SEQ_CST)
#define CAS(p, old, v) \
    __atomic_compare_exchange_n((p), (old), (v), 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)

/* Why a region failed. The first to poison says so; the order here means nothing. */
enum { DSM_NONE, DSM_RAISED, DSM_DIVERGED, DSM_LEFT, DSM_DIED, DSM_INTERRUPTED, DSM_TIMEOUT };

/* Where a rank is; for messages and reports alone. */
enum { DSM_STARTING, DSM_IDLE, DSM_UNPICKLING, DSM_COMPUTING, DSM_IN_LOOP, DSM_AT_BARRIER,
       DSM_AT_LOCK, DSM_AT_SLOT, DSM_PICKLING };

typedef struct {
    uint32_t seq DSM_LINE; /* loop number << 1 | broken; futex */
    uint32_t cancel;       /* rank + 1 of the one that cancelled; read together with seq */
    uint32_t left;         /* ranks that have left the loop */
    uint32_t sleepers;     /* how many ranks may sleep on seq */
    int64_t next DSM_LINE; /* next chunk number to hand out: alone on its line, it is hammered */
} dsm_slot;

typedef struct {
    uint64_t name[2]; /* digest of the full name; never 0, 0 once in use */
    uint32_t word;    /* (owner + 1) << 2 | waiters 2 | broken 1; futex */
    uint32_t unused;
} dsm_lock;

typedef struct {
    uint64_t launch DSM_LINE; /* caller: epoch that this rank shall run */
    uint64_t mailed;          /* caller: letters sent to this rank */
    uint64_t done DSM_LINE;   /* rank: last epoch it has finished */
    uint64_t read;            /* rank: letters it has read */
    uint32_t outcome;         /* rank: what `done` was reached with, see worker.py */
    uint32_t length;          /* rank: bytes of outcome in its page */
    uint64_t loops;           /* rank: number of its next loop when its region ended */
    int32_t pid;              /* rank: itself; names its page among the warden's descriptors */
    uint32_t stopped;         /* rank: gen | 1 while it waits at the barrier of that generation,
                                 DSM_FINISHED once it has ended the kernel, else 0 */
    uint64_t through;         /* rank: number of the first loop that it has not left */
    int32_t phase DSM_LINE;   /* rank: DSM_STARTING ... */
    int32_t line;             /* rank: source line of the loop, barrier or lock it is at */
    int64_t number, n, chunk; /* rank: the loop it began last */
    int32_t schedule, at;
    uint32_t waits;                    /* rank: number of the lock it waits for, plus 1; else 0 */
    uint32_t unused;
    int64_t low, high;                 /* rank: iterations of the chunk it took last */
    uint64_t steal[DSM_RING] DSM_LINE; /* front 32 | back 32 of its own share, one per slot */
} dsm_rank;

typedef struct {
    uint32_t bell DSM_LINE;   /* += 2 by the caller; workers sleep on it with a bit of their rank */
    uint32_t left DSM_LINE;   /* epoch tag << 13 | ranks still running << 1 | broken; futex */
    uint32_t spoken;          /* 1: workers have printed into the crew's relay; set by them, cleared
                                 by the caller before it empties the relay */
    uint64_t reason DSM_LINE; /* culprit rank << 32 | reason; CAS from 0 */
    uint32_t deaths;          /* warden: workers of the crew that have ended, ever */
    uint32_t gen DSM_LINE;    /* barrier generation << 1 | broken; futex */
    uint64_t count DSM_LINE;  /* finished << 32 | arrived */
    uint64_t signature;       /* of the barrier that is filling; 0 before its first arrival */
    uint64_t ending;          /* history of the first rank to finish the region; 0 before it */
    int32_t size DSM_LINE;    /* caller: ranks of this region */
    int32_t linger;           /* caller: us that a waiter yields before it sleeps; 0 when there are
                                 more workers than cores */
    uint64_t base;            /* caller: number of its first loop, where the last region ended */
    int64_t halted_since DSM_LINE; /* warden: when it stopped the workers with the caller, in us; 0
                                      while they run */
    int64_t halted;                /* warden: us that they were stopped, all told */
    dsm_slot slots[DSM_RING];
    uint32_t table DSM_LINE; /* guards `used` and the names: a lock word like the others */
    uint32_t used;
    dsm_lock locks[DSM_LOCKS];
    dsm_rank ranks[DSM_RANKS];
} dsm_control;

/* -- futexes ----------------------------------------------------------------------------------- */

/* Sleep while *word == expected, `ms` at most. 0 woken or changed, else the errno. */
static inline int dsm_sleep(uint32_t *word, uint32_t expected, int64_t us, uint32_t bits)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += (us % 1000000) * 1000;
    until.tv_sec += us / 1000000 + until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    long r = syscall(SYS_futex, word, FUTEX_WAIT_BITSET, expected, &until, NULL, bits);
    return r == 0 || errno == EAGAIN ? 0 : errno;
}

static inline void dsm_wake(uint32_t *word, int many, uint32_t bits)
{
    syscall(SYS_futex, word, FUTEX_WAKE_BITSET, many, NULL, NULL, bits);
}

#define DSM_ANYONE FUTEX_BITSET_MATCH_ANY

/* A process that somebody has stopped goes on; one that runs does not notice. */
static inline void dsm_rouse(int pidfd)
{
    syscall(SYS_pidfd_send_signal, pidfd, SIGCONT, NULL, 0);
}

static inline int64_t dsm_microseconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

/* Before sleeping: offer the core to whoever else can run, for `us` microseconds at the most, while
 * *word == seen. 1 if it changed. A core that others compute on is left to them: who yields there
 * waits for the end of a time slice, where a sleeper would be woken at once. So a yield that lasts
 * is the last for a while.
 *
 * A core that goes idle costs 30 us and more to wake on a virtual machine, several times what a
 * small region takes; a core that yields is awake. Measured in PROTOCOL.md, section 2. */
static inline int dsm_linger(uint32_t *word, uint32_t seen, int64_t us)
{
    static int64_t shy; /* of this process and module, in dsm_microseconds; a race harms nobody */
    if (us <= 0)
        return 0;
    int64_t before = dsm_microseconds(), end = before + us, now;
    if (before < shy)
        return 0;
    for (;;) {
        if (LOAD(word) != seen)
            return 1;
        sched_yield();
        now = dsm_microseconds();
        if (now - before > DSM_LONG)
            shy = now + DSM_SHY;
        if (now >= end)
            return LOAD(word) != seen;
        before = now;
    }
}

/* Linger, then sleep; as dsm_sleep. */
static inline int dsm_rest(uint32_t *word, uint32_t seen, int64_t linger, int64_t us,
                           uint32_t bits)
{
    return dsm_linger(word, seen, linger) ? 0 : dsm_sleep(word, seen, us, bits);
}

/* Ranks from 31 up share the last bit: they are woken together. */
static inline uint32_t dsm_bit(int32_t rank)
{
    return 1u << (rank < 31 ? rank : 31);
}

static inline uint32_t dsm_bits(int32_t size)
{
    return size > 31 ? 0xffffffffu : (1u << size) - 1;
}

/* Time during which the workers were not stopped with their caller: what timeouts are told by. In
 * between the two stores of `dsm_halt` it lags behind, and nothing is late that should not be. */
static inline double dsm_clock(dsm_control *b)
{
    int64_t since = LOAD(&b->halted_since), lost = LOAD(&b->halted);
    int64_t now = dsm_microseconds();
    if (since)
        lost += now - since;
    return (double)(now - lost) * 1e-6;
}

static inline void dsm_halt(dsm_control *b, int halted)
{
    if (!halted)
        STORE(&b->halted, b->halted + dsm_microseconds() - b->halted_since);
    STORE(&b->halted_since, halted ? dsm_microseconds() : 0);
}

/* -- failing ----------------------------------------------------------------------------------- */

static inline void dsm_break(uint32_t *word)
{
    __atomic_fetch_or(word, DSM_BROKEN, __ATOMIC_SEQ_CST);
    dsm_wake(word, INT_MAX, DSM_ANYONE);
}

/* The region has failed; the first reason stands. Everybody who sleeps is released. */
static inline void dsm_poison(dsm_control *b, uint32_t reason, int32_t rank)
{
    uint64_t none = 0;
    CAS(&b->reason, &none, (uint64_t)(uint32_t)rank << 32 | reason);
    dsm_break(&b->gen);
    for (int i = 0; i < DSM_RING; i++)
        dsm_break(&b->slots[i].seq);
    for (int i = 0; i < DSM_LOCKS; i++) { /* all: one may be entering the table just now */
        uint32_t old = __atomic_fetch_or(&b->locks[i].word, DSM_BROKEN, __ATOMIC_SEQ_CST);
        if (old & 2 || (uint32_t)i < LOAD(&b->used)) /* who gave it up may have died before its wake */
            dsm_wake(&b->locks[i].word, INT_MAX, DSM_ANYONE);
    }
    dsm_break(&b->table);
    dsm_break(&b->left);
}

/* After a failure, when every rank has acknowledged or was reaped: everything as new.
 * `reason` goes last: until then a launch would see it. */
static inline void dsm_repair(dsm_control *b)
{
    for (int i = 0; i < DSM_RING; i++) {
        b->slots[i].cancel = b->slots[i].left = b->slots[i].sleepers = 0;
        b->slots[i].next = 0;
        STORE(&b->slots[i].seq, (uint32_t)i << 1);
    }
    for (int r = 0; r < DSM_RANKS && b->ranks[r].launch; r++) /* crews grow from rank 0 up */
        memset(b->ranks[r].steal, 0, sizeof b->ranks[r].steal);
    memset(b->locks, 0, sizeof b->locks);
    STORE(&b->used, 0);
    STORE(&b->table, 0);
    b->ranks[0].loops = 0;
    b->count = b->signature = b->ending = 0;
    STORE(&b->gen, 0);
    STORE(&b->left, 0);
    STORE(&b->reason, 0);
}

/* -- a region ---------------------------------------------------------------------------------- */

static inline uint32_t dsm_tag(uint64_t epoch)
{
    return (uint32_t)(epoch & 0x7ffff) << 13;
}

/* Warden: the worker of `rank` has ended. In a region it has broken that; at rest it has harmed
 * nobody, and is replaced at the next call. */
static inline void dsm_mourn(dsm_control *b, int32_t rank)
{
    ADD(&b->deaths, 1u);
    if (LOAD(&b->ranks[rank].launch) != LOAD(&b->ranks[rank].done))
        dsm_poison(b, DSM_DIED, rank);
}

/* Whether every rank of the last region has ended it. */
static inline int dsm_over(dsm_control *b)
{
    for (int32_t r = 0; r < b->size; r++)
        if (LOAD(&b->ranks[r].launch) != LOAD(&b->ranks[r].done))
            return 0;
    return 1;
}

/* Caller, all ranks at rest, the mailbox written. Returns the reason if the crew is broken, or if
 * others than the `deaths` that the caller has seen to have been counted. */
static inline uint64_t dsm_launch(dsm_control *b, int32_t size, uint64_t epoch, uint32_t deaths)
{
    b->size = size;
    b->base = b->ranks[0].loops; /* after a clean region all its ranks agree on it */
    b->count = 0;
    b->ending = 0;
    memset(b->locks, 0, b->used * sizeof b->locks[0]); /* names of the last region, all free */
    b->used = 0;
    STORE(&b->left, dsm_tag(epoch) | (uint32_t)size << 1);
    uint64_t reason = LOAD(&b->reason);
    if (reason)
        return reason;
    if (LOAD(&b->deaths) != deaths)
        return DSM_DIED;
    for (int32_t r = 0; r < size; r++) { /* before anybody runs: a peer may look at once */
        STORE(&b->ranks[r].stopped, 0);
        STORE(&b->ranks[r].through, b->base);
    }
    for (int32_t r = 0; r < size; r++)
        __atomic_store_n(&b->ranks[r].launch, epoch, __ATOMIC_RELEASE);
    ADD(&b->bell, 2u);
    dsm_wake(&b->bell, INT_MAX, dsm_bits(size));
    return 0;
}

/* Caller: there are letters. Wakes the whole crew. */
static inline void dsm_ring(dsm_control *b)
{
    ADD(&b->bell, 2u);
    dsm_wake(&b->bell, INT_MAX, DSM_ANYONE);
}

/* Rank: its last touch of the block in this epoch, but for the tagged count. */
static inline void dsm_done(dsm_control *b, int32_t rank, uint64_t epoch)
{
    STORE(&b->ranks[rank].done, epoch);
    uint32_t v = LOAD(&b->left);
    do {
        if ((v & ~0x1fffu) != dsm_tag(epoch) || (v & 0x1ffeu) == 0)
            return; /* a later region's, or a count that was remade */
    } while (!CAS(&b->left, &v, v - 2));
    if ((v & 0x1ffeu) == 2)
        dsm_wake(&b->left, INT_MAX, DSM_ANYONE);
}

/* -- barriers ---------------------------------------------------------------------------------- */

enum { DSM_PASS, DSM_WAIT, DSM_CLASH };

/* Arrive. PASS: this rank was the last and has released the others. WAIT: sleep until gen moves.
 * CLASH: the ranks diverge, and this one has poisoned. */
static inline int dsm_arrive(dsm_control *b, int32_t rank, int32_t size, uint64_t signature)
{
    uint64_t first = 0;
    if (!CAS(&b->signature, &first, signature) && first != signature) {
        dsm_poison(b, DSM_DIVERGED, rank);
        return DSM_CLASH;
    }
    uint64_t old = ADD(&b->count, 1);
    if (old >> 32) { /* somebody has finished the kernel: this barrier can never be complete */
        dsm_poison(b, DSM_DIVERGED, rank);
        return DSM_CLASH;
    }
    if ((int32_t)old + 1 < size)
        return DSM_WAIT;
    STORE(&b->signature, 0);
    STORE(&b->count, 0);
    ADD(&b->gen, 2u);
    if (size > 1)
        dsm_wake(&b->gen, INT_MAX, DSM_ANYONE);
    return DSM_PASS;
}

/* The kernel's end: an arrival that does not wait. */
static inline int dsm_finish(dsm_control *b, int32_t rank, uint64_t history)
{
    uint64_t first = 0;
    int same = CAS(&b->ending, &first, history) || first == history;
    uint64_t old = ADD(&b->count, (uint64_t)1 << 32);
    if (same && (uint32_t)old == 0)
        return DSM_PASS;
    dsm_poison(b, DSM_DIVERGED, rank);
    return DSM_CLASH;
}

/* -- loops ------------------------------------------------------------------------------------- */

static inline uint64_t dsm_mix(uint64_t h, uint64_t v)
{
    h = (h ^ v) * UINT64_C(0x9e3779b97f4a7c15);
    h ^= h >> 32;
    h *= UINT64_C(0xd6e8feb86659fd93);
    return h ^ h >> 29;
}

#define DSM_FINISHED 0xffffffffu

/* Whether a rank that has not left loop `number` can do so no more, although the caller of this,
 * who has not arrived at the barrier that is filling, waits for it: such a rank waits for the
 * caller at that barrier, or has ended the kernel. */
static inline int dsm_stuck(dsm_control *b, int32_t size, uint64_t number)
{
    for (int32_t r = 0; r < size; r++) {
        uint32_t stopped = LOAD(&b->ranks[r].stopped);
        if (stopped && LOAD(&b->ranks[r].through) <= number &&
            (stopped == DSM_FINISHED || LOAD(&b->gen) == (stopped & ~1u)))
            return 1;
    }
    return 0;
}

/* seq and cancel as one word: what they are while loop `number` runs undisturbed. */
static inline uint64_t dsm_glance(const dsm_slot *s)
{
    return __atomic_load_n((const uint64_t *)(const void *)&s->seq, __ATOMIC_RELAXED);
}

/* The last of the team to leave re-makes the slot for loop number + DSM_RING; `stealing` when
 * the loop's schedule used the steal words. */
static inline void dsm_leave(dsm_control *b, uint32_t number, int32_t size, int stealing)
{
    int i = (int)(number % DSM_RING);
    dsm_slot *s = &b->slots[i];
    if ((int32_t)ADD(&s->left, 1u) + 1 < size)
        return;
    for (int32_t r = 0; stealing && r < size; r++)
        b->ranks[r].steal[i] = 0;
    s->left = 0;
    s->next = 0;
    s->cancel = 0;
    uint32_t now = number << 1;
    if (CAS(&s->seq, &now, (number + DSM_RING) << 1) && LOAD(&s->sleepers))
        dsm_wake(&s->seq, INT_MAX, DSM_ANYONE);
}

/* auto: how many chunks of a share are taken (a little more when it is spent). */
static inline int64_t dsm_taken(dsm_rank *owner, int slot)
{
    uint64_t v = PEEK(&owner->steal[slot]);
    return (int64_t)(v & 0xffffffffu) + (int64_t)(v >> 32);
}

/* auto: a chunk of `victim`'s share of `length` chunks: from the front for its owner, from the
 * back for others. The position within the share, or -1 when the share is spent. */
static inline int64_t dsm_steal(dsm_rank *victim, int slot, int64_t length, int owner)
{
    uint64_t *w = &victim->steal[slot], v;
    if (dsm_taken(victim, slot) >= length)
        return -1; /* spent stays spent: no need to add once more */
    v = ADD(w, owner ? (uint64_t)1 : (uint64_t)1 << 32);
    int64_t front = (int64_t)(v & 0xffffffffu), back = (int64_t)(v >> 32);
    if (front + back >= length)
        return -1;
    return owner ? front : length - 1 - back;
}

#endif
