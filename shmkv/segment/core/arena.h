/* arena.h: one process's view of a mapped arena, and the making of a new one.
 *
 * Invariants:
 *   I1  An Arena is private memory; it holds pointers into the mapping and copies of what the header
 *       fixes for ever, so that no hot path reads (or trusts) the header again.
 *   I2  arena_open checks everything that it copies; after it, no offset in an Arena leaves the mapping.
 */
#ifndef SHMKV_ARENA_H
#define SHMKV_ARENA_H

#include "layout.h"

typedef struct Arena {
    uint8_t *base;
    uint64_t mapped_bytes;
    bool writable;
    bool has_log;
    Control *control;
    Namespace *namespaces;
    Slot *slots;
    Stripe *stripes;
    uint64_t *page_words;
    PageMeta *page_metas;
    uint8_t *ring;
    Bucket *buckets;
    uint64_t pages_offset;
    uint64_t ring_bytes;
    uint64_t page_count;
    uint64_t overflow_page_limit;
    uint64_t hash_key[2];
    uint64_t wall_minus_boot_ms;
    uint32_t stripe_count;
    uint32_t stripe_shift;        /* stripe = hash >> stripe_shift */
    uint32_t buckets_per_stripe;
    uint32_t record_seed;         /* CRC seed made of store id and incarnation */
    uint64_t loaded_version;      /* highest that store_load put through this Arena */
    uint64_t looked_ms;           /* when ring_admits last looked whether anybody serves a store without a log */
    uint32_t unlooked;            /* so many more writes need no look */
} Arena;

typedef struct ArenaPlan {        /* in: the first block; out: the rest */
    uint64_t size_bytes;
    uint64_t max_size_bytes;      /* 0 = size_bytes */
    uint64_t ring_bytes;          /* 0 = an eighth of size, 1 to 64 MiB */
    uint64_t expected_items;      /* 0 = by memory */
    uint32_t stripe_count;        /* 0 = by memory */
    uint32_t flags;
    uint32_t eviction;
    uint64_t incarnation;
    uint64_t first_lsn;           /* a multiple of ring_bytes, at least LSN_GAP */
    uint8_t store_id[16];
    uint64_t hash_key[2];         /* of the table, if given; else arena_format takes random bytes */
    bool hash_key_given;
    char name[72];
    ArenaHeader header;           /* what arena_format writes */
} ArenaPlan;

/* Fills plan->header.  ST_INVALID if size_bytes is too small (plan->size_bytes = the least that works)
 * or an argument is out of range. */
Status arena_plan(ArenaPlan *plan);

/* Writes header, control, locks and free page map into zeroed memory of header.size_bytes; the state
 * word says STATE_CREATING at the end.  A kill in the middle leaves no valid header: start over. */
Status arena_format(uint8_t *base, const ArenaPlan *plan);

/* Checks the header (either copy) against this build and this process, then fills *arena.  Does not look
 * at the state word.  ST_INCOMPATIBLE / ST_CORRUPT; *why gets a static text, numbers go to found/needed. */
typedef struct OpenError {
    const char *what;             /* "layout version", "pid namespace", ... */
    uint64_t found;
    uint64_t needed;
} OpenError;
Status arena_open(Arena *arena, uint8_t *base, uint64_t mapped_bytes, bool writable, OpenError *why);

uint32_t arena_layout_hash(void);
uint32_t arena_record_seed(const uint8_t store_id[16], uint64_t incarnation);
uint64_t arena_pid_namespace(void);
uint64_t arena_value_limit(const Arena *arena);

/* Wall clock of the arena in ms: boot clock + offset, so that a jump of the wall clock expires nothing. */
uint64_t arena_now_ms(const Arena *arena);

ALWAYS_INLINE bool arena_retired(const Arena *arena) { return load_acquire_u32(&arena->control->retired) != 0; }
ALWAYS_INLINE Stripe *arena_stripe(const Arena *arena, uint64_t hash) {
    return &arena->stripes[hash >> arena->stripe_shift];
}
/* Multiply-shift on the bits below the stripe's: any bucket count, no division. */
ALWAYS_INLINE uint64_t arena_bucket_index(const Arena *arena, uint64_t hash) {
    uint64_t in_stripe = ((hash >> 16 & 0xffffffffULL) * arena->buckets_per_stripe) >> 32;
    return (hash >> arena->stripe_shift) * arena->buckets_per_stripe + in_stripe;
}
/* NULL if an entry header at offset would not lie inside the pages.  (The smallest block is shorter than a cache line.) */
ALWAYS_INLINE uint8_t *arena_at(const Arena *arena, uint64_t offset) {
    if (UNLIKELY(offset < arena->pages_offset || offset > arena->mapped_bytes - sizeof(Entry) || (offset & 7) != 0)) {
        return NULL;
    }
    return arena->base + offset;
}
/* NULL if an overflow bucket at offset would not lie inside the pages. */
ALWAYS_INLINE Bucket *arena_bucket_at(const Arena *arena, uint64_t offset) {
    if (UNLIKELY(offset < arena->pages_offset || offset > arena->mapped_bytes - sizeof(Bucket) || offset % sizeof(Bucket) != 0)) {
        return NULL;
    }
    return (Bucket *)(arena->base + offset);
}

#endif
