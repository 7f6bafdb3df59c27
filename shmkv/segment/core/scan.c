/* scan.c: iteration, bucket by bucket, without a lock as long as nobody writes there.
 *
 * Invariants:
 *   I1  A key never changes its bucket, so one that exists throughout is returned exactly once.
 *   I2  The entries of one bucket are those of one moment (the sequence was the same before and after).
 */
#include "repair.h"
#include "table.h"

#define SCAN_TRIES 64
#define BUCKETS_PER_CALL 256u

typedef struct Output {
    uint8_t *buffer;
    uint64_t capacity;
    uint64_t used;            /* may pass capacity: then nothing more is stored, but it is counted */
    uint32_t count;
    bool with_values;
    uint16_t namespace_id;
} Output;

static void emit(Call *call, const Stripe *stripe, uint64_t offset, Output *out) {
    const Arena *arena = call->arena;
    const uint64_t *words = (const uint64_t *)arena_at(arena, offset);
    if (words == NULL) {
        return;
    }
    uint64_t version = load_relaxed(words), w1 = load_relaxed(words + 1), w2 = load_relaxed(words + 2);
    ScanItem item = {.version = version, .key_length = (uint32_t)(w2 & 0xffff), .value_length = (uint32_t)(w1 >> 32),
                     .type = (uint8_t)(w2 >> 32), .flags = (uint8_t)(w2 >> 40), .namespace_id = (uint16_t)(w2 >> 16)};
    uint64_t value_offset = offset + entry_value_offset(item.flags, item.key_length);
    if (item.namespace_id != out->namespace_id || value_offset + item.value_length > arena->mapped_bytes ||
        entry_cleared(stripe, version, item.namespace_id)) {
        return;
    }
    item.expires_ms = item.flags & ENTRY_EXPIRES ? load_relaxed(words + 3) : 0;
    if (item.expires_ms != 0 && item.expires_ms <= arena_now_ms(arena)) {
        return;
    }
    uint64_t key_bytes = align_up(item.key_length, 8), value_bytes = out->with_values ? align_up(item.value_length, 8) : 0;
    uint64_t at = out->used;
    out->used += sizeof item + key_bytes + value_bytes;
    item.item_bytes = (uint32_t)(sizeof item + key_bytes + value_bytes);
    if (out->used > out->capacity) {
        return;
    }
    memcpy(out->buffer + at, &item, sizeof item);
    copy_from_shared(out->buffer + at + sizeof item, (const uint8_t *)words + entry_key_offset(item.flags), item.key_length);
    if (out->with_values) {
        copy_from_shared(out->buffer + at + sizeof item + key_bytes, arena->base + value_offset, item.value_length);
    }
    out->count++;
}

/* False if the chain makes no sense (then the sequence has changed, or it is corruption). */
static bool emit_chain(Call *call, const Stripe *stripe, const Bucket *bucket, Output *out) {
    for (uint32_t hops = 0; hops < CHAIN_LIMIT; hops++) {
        for (uint32_t i = 0; i < PLACES; i++) {
            uint64_t place = load_relaxed(&bucket->place[i]);
            if (place != 0) {
                emit(call, stripe, PLACE_OFFSET(place), out);
            }
        }
        uint64_t next = load_relaxed(&bucket->next);
        if (next == 0) {
            return true;
        }
        bucket = arena_bucket_at(call->arena, next);
        if (bucket == NULL) {
            return false;
        }
    }
    return false;
}

static Status scan_bucket(Call *call, uint64_t index, Output *out) {
    Arena *arena = call->arena;
    Stripe *stripe = &arena->stripes[index / arena->buckets_per_stripe];
    Output start = *out;
    for (int i = 0; i < SCAN_TRIES; i++) {
        uint64_t sequence = load_acquire(&stripe->sequence);
        *out = start;
        if (!(sequence & 1) && emit_chain(call, stripe, &arena->buckets[index], out)) {
            __atomic_thread_fence(__ATOMIC_ACQUIRE);
            if (load_relaxed(&stripe->sequence) == sequence) {
                return ST_OK;
            }
        }
        cpu_pause();
    }
    *out = start;
    uint32_t number = (uint32_t)(index / arena->buckets_per_stripe);
    if (arena_retired(arena)) {
        return ST_RETIRED;
    }
    if (call->slot < 0) {
        call->wait = WAIT_READ;
        call->wait_stripe = number;
        return ST_BUSY;
    }
    Status s = stripe_lock(call, number);
    if (s == ST_OK) {
        s = emit_chain(call, stripe, &arena->buckets[index], out) ? ST_OK : ST_CORRUPT;
        stripe_unlock(call, number);
    }
    return s;
}

Status store_scan(Call *call, uint16_t namespace_id, uint64_t *cursor, bool with_values, uint8_t *buffer,
                  uint64_t capacity, uint64_t *used_bytes, uint32_t *count) {
    Arena *arena = call->arena;
    uint64_t buckets = (uint64_t)arena->buckets_per_stripe * arena->stripe_count;
    Output out = {.buffer = buffer, .capacity = capacity, .with_values = with_values, .namespace_id = namespace_id};
    Status s = ST_OK;
    for (uint32_t n = 0; n < BUCKETS_PER_CALL && *cursor < buckets; n++) {
        Output before = out;
        s = scan_bucket(call, *cursor, &out);
        if (s == ST_OK && out.used > capacity) {
            call->needed_bytes = out.used - before.used;
            s = before.count == 0 ? ST_BUFFER : ST_OK;
            out = before;
            break;
        }
        if (s != ST_OK) {
            /* What was collected so far is good: the caller gets it, and meets the trouble with the next step. */
            s = before.count != 0 && s == ST_BUSY ? ST_OK : s;
            out = before;
            break;
        }
        ++*cursor;
    }
    if (*cursor >= buckets) {
        *cursor = CURSOR_END;
    }
    *used_bytes = out.used;
    *count = out.count;
    return s;
}
