/* table.h: buckets and entries of one stripe, under its lock.  (Readers without a lock: read.c.)
 *
 * Invariants:
 *   I1  A key lies in the chain of its bucket, at most once, and stays in that chain for as long as it exists.
 *   I2  Chains only grow: an overflow bucket, once linked, stays linked (so a reader can't be led astray).
 *   I3  An entry is dead if its version is at or below its stripe's clear LSN of its namespace.
 */
#ifndef SHMKV_TABLE_H
#define SHMKV_TABLE_H

#include "arena.h"
#include "store.h"

#include <string.h>

typedef struct Found {
    uint64_t *place;          /* where the key is, else NULL */
    Entry *entry;
    bool live;                /* neither cleared nor expired */
    uint64_t *free_place;     /* the first empty place of the chain, NULL = all are taken */
    Bucket *last;             /* end of the chain */
} Found;

Status table_find(const Arena *arena, const Key *key, Found *found);

ALWAYS_INLINE uint64_t entry_key_offset(uint8_t flags) { return sizeof(Entry) + (flags & ENTRY_EXPIRES ? 8 : 0); }
ALWAYS_INLINE uint64_t entry_value_offset(uint8_t flags, uint64_t key_length) {
    return entry_key_offset(flags) + align_up(key_length, 8);
}
ALWAYS_INLINE uint64_t entry_bytes(uint8_t flags, uint64_t key_length, uint64_t value_length) {
    return entry_value_offset(flags, key_length) + value_length;
}
ALWAYS_INLINE uint64_t entry_size(const Entry *e) { return entry_bytes(e->flags, e->key_length, e->value_length); }
ALWAYS_INLINE const uint8_t *entry_key(const Entry *e) { return (const uint8_t *)e + entry_key_offset(e->flags); }
ALWAYS_INLINE uint8_t *entry_value(Entry *e) { return (uint8_t *)e + entry_value_offset(e->flags, e->key_length); }
ALWAYS_INLINE uint64_t entry_expires_ms(const Entry *e) {
    return e->flags & ENTRY_EXPIRES ? *(const uint64_t *)((const uint8_t *)e + sizeof(Entry)) : 0;
}
ALWAYS_INLINE bool entry_cleared(const Stripe *stripe, uint64_t version, uint16_t namespace_id) {
    return UNLIKELY(version <= load_relaxed(&stripe->max_clear_lsn)) &&
           version <= load_relaxed(&stripe->clear_lsn[namespace_id & (NAMESPACE_COUNT - 1)]);
}
uint64_t entry_hash(const Arena *arena, const Entry *e);
ALWAYS_INLINE Bucket *table_bucket(const Arena *arena, uint64_t hash) {
    return &arena->buckets[arena_bucket_index(arena, hash)];
}
ALWAYS_INLINE uint64_t arena_offset(const Arena *arena, const void *p) { return (uint64_t)((const uint8_t *)p - arena->base); }
ALWAYS_INLINE uint64_t hash_tag(uint64_t hash) { return hash & 0xffff; }

/* Calls visit(context, stripe, place, entry) for each place that is taken; stops when it returns not ST_OK.
 * ST_CORRUPT if a chain does not end or an offset leaves the pages. */
typedef Status (*PlaceVisitor)(void *context, Stripe *stripe, Bucket *bucket, uint64_t *place, Entry *entry);
typedef Status (*BucketVisitor)(void *context, Stripe *stripe, uint64_t overflow_offset);
Status table_walk(Arena *arena, uint32_t stripe, void *context, PlaceVisitor place, BucketVisitor overflow);

#endif
