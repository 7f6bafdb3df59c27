/* read.c: look-ups without a lock, validated by the stripe's sequence (DESIGN 4).
 *
 * Invariants:
 *   I1  What is read between the two loads of the sequence may be garbage: each offset and length is clamped
 *       before it is used, and nothing is believed, allocated or returned before the sequence was seen unchanged.
 *   I2  Nothing shared is written, but the counters in the caller's own slot.
 *   I3  After READ_TRIES failures the stripe's lock is taken; a reader without a slot says ST_BUSY instead.
 */
#include "repair.h"
#include "table.h"

#define READ_TRIES 64
#define ODD_PAUSES 16
#define LARGE_TRIES 4


ALWAYS_INLINE bool sequence_same(const Stripe *stripe, uint64_t sequence) {
    /* Orders the loads before it against the re-load; pairs with the release store of the even number. */
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    return load_relaxed(&stripe->sequence) == sequence;
}

typedef struct Seen {
    uint64_t offset;
    uint64_t value_offset;    /* in the arena */
    uint64_t version;
    uint64_t expires_ms;
    uint32_t length;
    uint8_t type, flags;
} Seen;

static bool key_equal(const uint64_t *shared, const Key *key) {
    const uint8_t *p = key->data;
    uint32_t length = key->length;
    for (; length >= 8; p += 8, length -= 8, shared++) {
        uint64_t word;
        memcpy(&word, p, 8);
        if (load_relaxed(shared) != word) {
            return false;
        }
    }
    if (length != 0) {
        uint64_t word = 0;
        memcpy(&word, p, length);
        return load_relaxed(shared) == word;      /* keys are zero-padded to 8 */
    }
    return true;
}

/* Reads the header at offset; true if it may be the key's entry. */
ALWAYS_INLINE bool entry_matches(const Arena *arena, uint64_t offset, const Key *key, Seen *seen) {
    const uint64_t *words = (const uint64_t *)arena_at(arena, offset);
    if (UNLIKELY(words == NULL)) {
        return false;
    }
    __builtin_prefetch((const uint8_t *)words + CACHE_LINE);
    __builtin_prefetch((const uint8_t *)words + 2 * CACHE_LINE);
    uint64_t w1 = load_relaxed(words + 1), w2 = load_relaxed(words + 2);
    uint32_t key_length = (uint32_t)(w2 & 0xffff);
    if (key_length != key->length || (uint16_t)(w2 >> 16) != key->namespace_id) {
        return false;
    }
    seen->version = load_relaxed(words);
    seen->length = (uint32_t)(w1 >> 32);
    seen->type = (uint8_t)(w2 >> 32);
    seen->flags = (uint8_t)(w2 >> 40);
    uint64_t value_offset = offset + entry_value_offset(seen->flags, key_length);
    if (UNLIKELY(value_offset + seen->length > arena->mapped_bytes)) {
        return false;
    }
    seen->offset = offset;
    seen->value_offset = value_offset;
    seen->expires_ms = seen->flags & ENTRY_EXPIRES ? load_relaxed(words + 3) : 0;
    return key_equal((const uint64_t *)((const uint8_t *)words + entry_key_offset(seen->flags)), key);
}

_Static_assert(offsetof(Entry, value_length) == 12 && offsetof(Entry, key_length) == 16 &&
               offsetof(Entry, type) == 20 && offsetof(Entry, flags) == 21, "entry_matches takes the header apart");

/* ST_OK, ST_NOT_FOUND, or ST_BUSY if what was seen can't be. All to be validated. */
ALWAYS_INLINE Status look_up(const Arena *arena, const Stripe *stripe, const Key *key, Seen *seen) {
    const Bucket *bucket = table_bucket(arena, key->hash);
    uint64_t tag = hash_tag(key->hash);
    for (uint32_t hops = 0; hops < CHAIN_LIMIT; hops++) {
        for (uint32_t i = 0; i < PLACES; i++) {
            uint64_t place = load_relaxed(&bucket->place[i]);
            if (PLACE_TAG(place) == tag && place != 0 && entry_matches(arena, PLACE_OFFSET(place), key, seen)) {
                return entry_cleared(stripe, seen->version, key->namespace_id) ? ST_NOT_FOUND : ST_OK;
            }
        }
        uint64_t next = load_relaxed(&bucket->next);
        if (LIKELY(next == 0)) {
            return ST_NOT_FOUND;
        }
        bucket = arena_bucket_at(arena, next);
        if (UNLIKELY(bucket == NULL)) {
            return ST_BUSY;
        }
    }
    return ST_BUSY;
}

ALWAYS_INLINE void fill_value(Value *value, const Seen *seen) {
    value->length = seen->length;
    value->version = seen->version;
    value->expires_ms = seen->expires_ms;
    value->type = seen->type;
    value->flags = seen->flags;
}

static bool expired(const Arena *arena, const Seen *seen) {
    return UNLIKELY(seen->flags & ENTRY_EXPIRES) && seen->expires_ms <= arena_now_ms(arena);
}

/* Copies a value of which the header was validated, then looks it up again (model large.pml). */
static Status copy_large(Call *call, Stripe *stripe, const Key *key, Value *value, Seen *seen, uint64_t sequence) {
    Arena *arena = call->arena;
    for (int i = 0; i < LARGE_TRIES; i++) {
        uint64_t moves = load_acquire(&stripe->moves);
        if (!sequence_same(stripe, sequence)) {
            return ST_BUSY;
        }
        if (seen->length > value->capacity) {
            fill_value(value, seen);
            return ST_BUFFER;
        }
        copy_from_shared(value->data, arena->base + seen->value_offset, seen->length);
        __atomic_thread_fence(__ATOMIC_ACQUIRE);
        Seen again = {0};
        sequence = load_acquire(&stripe->sequence);
        if (sequence & 1) {
            return ST_BUSY;
        }
        Status s = look_up(arena, stripe, key, &again);
        uint64_t moves_now = load_relaxed(&stripe->moves);
        if (!sequence_same(stripe, sequence) || s == ST_BUSY) {
            return ST_BUSY;
        }
        if (s == ST_NOT_FOUND) {
            return ST_NOT_FOUND;
        }
        if (again.offset == seen->offset && again.version == seen->version && moves_now == moves) {
            fill_value(value, seen);
            return ST_OK;
        }
        *seen = again;
    }
    return ST_BUSY;
}

/* One optimistic try.  ST_BUSY: try again. */
ALWAYS_INLINE Status read_once(Call *call, Stripe *stripe, const Key *key, Value *value) {
    Arena *arena = call->arena;
    /* Pairs with the release store of the even number: what was linked before it is seen. */
    uint64_t sequence = load_acquire(&stripe->sequence);
    if (UNLIKELY(sequence & 1)) {
        return ST_BUSY;
    }
    Seen seen = {0};
    Status s = look_up(arena, stripe, key, &seen);
    if (s == ST_OK) {
        if (LIKELY(seen.length <= value->capacity && seen.length <= LARGE_VALUE_BYTES)) {
            copy_from_shared(value->data, arena->base + seen.value_offset, seen.length);
        } else if (value->capacity > LARGE_VALUE_BYTES && seen.length > LARGE_VALUE_BYTES) {
            s = copy_large(call, stripe, key, value, &seen, sequence);
            return s == ST_OK && expired(arena, &seen) ? ST_NOT_FOUND : s;
        } else {
            s = ST_BUFFER;
        }
    }
    if (UNLIKELY(!sequence_same(stripe, sequence))) {
        return ST_BUSY;
    }
    if (s == ST_BUSY || s == ST_NOT_FOUND) {
        return s;
    }
    fill_value(value, &seen);
    return expired(arena, &seen) ? ST_NOT_FOUND : s;
}

static Status read_locked(Call *call, Stripe *stripe, const Key *key, Value *value) {
    uint32_t index = (uint32_t)(stripe - call->arena->stripes);
    slot_count(call, COUNT_READ_LOCKS);
    Status s = stripe_lock(call, index);
    if (s != ST_OK) {
        return s;
    }
    Found found;
    s = table_find(call->arena, key, &found);
    if (s == ST_OK && (found.entry == NULL || !found.live)) {
        s = ST_NOT_FOUND;
    } else if (s == ST_OK) {
        Entry *e = found.entry;
        Seen seen = {.version = e->version, .expires_ms = entry_expires_ms(e), .length = e->value_length,
                     .type = e->type, .flags = e->flags};
        fill_value(value, &seen);
        if (e->value_length <= value->capacity) {
            memcpy(value->data, entry_value(e), e->value_length);
        } else {
            s = ST_BUFFER;
        }
    }
    stripe_unlock(call, index);
    return s;
}

static Status read_slowly(Call *call, Stripe *stripe, const Key *key, Value *value) {
    for (int i = 1; i < READ_TRIES; i++) {
        for (int pause = 0; pause < ODD_PAUSES; pause++) {
            cpu_pause();
        }
        slot_count(call, COUNT_READ_RETRIES);
        Status s = read_once(call, stripe, key, value);
        if (s != ST_BUSY) {
            return s;
        }
    }
    if (arena_retired(call->arena)) {
        return ST_RETIRED;
    }
    if (call->slot < 0) {
        call->wait = WAIT_READ;
        call->wait_stripe = (uint32_t)(stripe - call->arena->stripes);
        return ST_BUSY;
    }
    return read_locked(call, stripe, key, value);
}

Status store_get(Call *call, const Key *key, Value *value) {
    Stripe *stripe = arena_stripe(call->arena, key->hash);
    Status s = read_once(call, stripe, key, value);
    if (UNLIKELY(s == ST_BUSY)) {
        s = read_slowly(call, stripe, key, value);
    }
    slot_count(call, COUNT_GETS);
    if (s == ST_OK) {
        slot_count(call, COUNT_HITS);
    }
    return s;
}

/* ---- many keys: pay the memory's latency once --------------------------------------------------------- */
static void prefetch_entries(const Arena *arena, const Key *key) {
    const Bucket *bucket = table_bucket(arena, key->hash);
    uint64_t tag = hash_tag(key->hash);
    for (uint32_t i = 0; i < PLACES; i++) {
        uint64_t place = load_relaxed(&bucket->place[i]);
        if (PLACE_TAG(place) == tag && place != 0) {
            const uint8_t *e = arena_at(arena, PLACE_OFFSET(place));
            if (e != NULL) {
                __builtin_prefetch(e);
                __builtin_prefetch(e + CACHE_LINE);
                __builtin_prefetch(e + 2 * CACHE_LINE);
            }
            return;
        }
    }
    uint64_t next = load_relaxed(&bucket->next);
    if (next != 0 && arena_bucket_at(arena, next) != NULL) {
        __builtin_prefetch(arena_bucket_at(arena, next));
    }
}

Status store_get_many(Call *call, const Key *keys, uint32_t n, uint8_t *buffer, uint64_t capacity,
                      Value *values, uint8_t *status) {
    Arena *arena = call->arena;
    for (uint32_t i = 0; i < n; i++) {
        __builtin_prefetch(table_bucket(arena, keys[i].hash));
        __builtin_prefetch(arena_stripe(arena, keys[i].hash));
    }
    for (uint32_t i = 0; i < n; i++) {
        prefetch_entries(arena, &keys[i]);
    }
    uint64_t used = 0, hits = 0;
    for (uint32_t i = 0; i < n; i++) {
        values[i].data = buffer + used;
        values[i].capacity = min_u64(capacity - used, LARGE_VALUE_BYTES);
        Stripe *stripe = arena_stripe(arena, keys[i].hash);
        Status s = read_once(call, stripe, &keys[i], &values[i]);
        if (UNLIKELY(s == ST_BUSY)) {
            s = read_slowly(call, stripe, &keys[i], &values[i]);
        }
        if (s == ST_RETIRED || s == ST_CORRUPT) {
            return s;
        }
        if (s == ST_OK) {
            used = align_up(used + values[i].length, 8);
            used = min_u64(used, capacity);
            hits++;
        }
        status[i] = (uint8_t)(s == ST_BUSY ? ST_BUFFER : s);
    }
    if (call->slot >= 0) {
        Slot *slot = &arena->slots[call->slot];
        store_relaxed(&slot->counters[COUNT_GETS], load_relaxed(&slot->counters[COUNT_GETS]) + n);
        store_relaxed(&slot->counters[COUNT_HITS], load_relaxed(&slot->counters[COUNT_HITS]) + hits);
    }
    return ST_OK;
}

uint64_t store_count(const Arena *arena, uint16_t namespace_id) {
    uint64_t sum = 0;
    for (uint32_t i = 0; i < arena->stripe_count; i++) {
        sum += load_relaxed(&arena->stripes[i].count[namespace_id & (NAMESPACE_COUNT - 1)]);
    }
    return sum;
}
