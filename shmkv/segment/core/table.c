/* table.c: see table.h. */
#include "table.h"

Status key_init(const Arena *arena, Key *key, const void *data, size_t length, uint16_t namespace_id) {
    if (UNLIKELY(length > KEY_LIMIT)) {
        return ST_KEY_TOO_LARGE;
    }
    key->data = data;
    key->length = (uint32_t)length;
    key->namespace_id = namespace_id;
    key->hash = siphash13(arena->hash_key[0] ^ namespace_id, arena->hash_key[1], data, length);
    return ST_OK;
}

uint64_t entry_hash(const Arena *arena, const Entry *e) {
    return siphash13(arena->hash_key[0] ^ e->namespace_id, arena->hash_key[1], entry_key(e), e->key_length);
}

static bool entry_live(const Arena *arena, const Stripe *stripe, const Entry *e) {
    if (entry_cleared(stripe, e->version, e->namespace_id)) {
        return false;
    }
    return !UNLIKELY(e->flags & ENTRY_EXPIRES) || entry_expires_ms(e) > arena_now_ms(arena);
}

static bool entry_is(const Arena *arena, const Entry *e, const Key *key) {
    return e->key_length == key->length && e->namespace_id == key->namespace_id &&
           arena_offset(arena, entry_key(e)) + key->length <= arena->mapped_bytes &&
           memcmp(entry_key(e), key->data, key->length) == 0;
}

Status table_find(const Arena *arena, const Key *key, Found *found) {
    Bucket *bucket = table_bucket(arena, key->hash);
    uint64_t tag = hash_tag(key->hash);
    *found = (Found){0};
    for (uint32_t hops = 0; hops < CHAIN_LIMIT; hops++) {
        for (uint32_t i = 0; i < PLACES; i++) {
            uint64_t place = load_relaxed(&bucket->place[i]);
            if (place == 0) {
                if (found->free_place == NULL) {
                    found->free_place = &bucket->place[i];
                }
            } else if (PLACE_TAG(place) == tag) {
                Entry *e = (Entry *)arena_at(arena, PLACE_OFFSET(place));
                if (UNLIKELY(e == NULL)) {
                    return ST_CORRUPT;
                }
                if (entry_is(arena, e, key)) {
                    found->place = &bucket->place[i];
                    found->entry = e;
                    found->live = entry_live(arena, arena_stripe(arena, key->hash), e);
                    return ST_OK;
                }
            }
        }
        found->last = bucket;
        uint64_t next = load_relaxed(&bucket->next);
        if (next == 0) {
            return ST_OK;
        }
        bucket = arena_bucket_at(arena, next);
        if (UNLIKELY(bucket == NULL)) {
            return ST_CORRUPT;
        }
    }
    return ST_CORRUPT;
}

static Status walk_bucket(Arena *arena, Stripe *stripe, Bucket *bucket, void *context, PlaceVisitor visit) {
    for (uint32_t i = 0; i < PLACES; i++) {
        uint64_t place = load_relaxed(&bucket->place[i]);
        if (place == 0) {
            continue;
        }
        Entry *e = (Entry *)arena_at(arena, PLACE_OFFSET(place));
        if (e == NULL || PLACE_OFFSET(place) + entry_size(e) > arena->mapped_bytes) {
            return ST_CORRUPT;
        }
        Status s = visit(context, stripe, bucket, &bucket->place[i], e);
        if (s != ST_OK) {
            return s;
        }
    }
    return ST_OK;
}

Status table_walk(Arena *arena, uint32_t stripe_index, void *context, PlaceVisitor visit, BucketVisitor overflow) {
    Stripe *stripe = &arena->stripes[stripe_index];
    Bucket *first = &arena->buckets[(uint64_t)stripe_index * arena->buckets_per_stripe];
    for (uint64_t b = 0; b < arena->buckets_per_stripe; b++) {
        Bucket *bucket = &first[b];
        for (uint32_t hops = 0;; hops++) {
            Status s = walk_bucket(arena, stripe, bucket, context, visit);
            uint64_t next = load_relaxed(&bucket->next);
            if (s != ST_OK || next == 0) {
                if (s != ST_OK) {
                    return s;
                }
                break;
            }
            bucket = arena_bucket_at(arena, next);
            if (bucket == NULL || hops >= CHAIN_LIMIT) {
                return ST_CORRUPT;
            }
            if (overflow != NULL) {
                s = overflow(context, stripe, next);
                if (s != ST_OK) {
                    return s;
                }
            }
        }
    }
    return ST_OK;
}
