/* apply.c: see apply.h. */
#include "apply.h"
#include "compact.h"
#include "heap.h"
#include "table.h"

#include <sys/syscall.h>
#include <unistd.h>

#define ROOM_TRIES 8

/* ---- one change -------------------------------------------------------------------------------------------------- */
static Status link_new(Arena *arena, Found *found, uint32_t stripe, uint64_t linked) {
    if (found->free_place != NULL) {
        store_relaxed(found->free_place, linked);
        return ST_OK;
    }
    uint64_t overflow = heap_take_bucket(arena, stripe);
    if (overflow == 0) {
        return ST_FULL;
    }
    store_relaxed(&((Bucket *)(arena->base + overflow))->place[0], linked);
    store_relaxed(&found->last->next, overflow);
    return ST_OK;
}

static void count_change(Stripe *stripe, const Change *change, const Found *found, bool is) {
    uint16_t namespace_id = change->key.namespace_id & (NAMESPACE_COUNT - 1);
    bool was = found->entry != NULL && !entry_cleared(stripe, found->entry->version, namespace_id);
    stripe->count[namespace_id] += (uint64_t)is - (uint64_t)was;
    stripe->entries += (uint64_t)is - (uint64_t)(found->entry != NULL);
}

static void unlink_old(Arena *arena, const Change *change, Found *found, uint32_t stripe) {
    uint64_t old = arena_offset(arena, found->entry);
    store_relaxed(found->place, 0);
    count_change(&arena->stripes[stripe], change, found, false);
    heap_return(arena, stripe, old);
    found->free_place = found->place;
    found->place = NULL;
    found->entry = NULL;
}

/* The old entry goes first, since nobody looks and a kill throws all of it away: a full store takes no more room here
 * than it took when it ran. */
static Status apply_put(Arena *arena, const Change *change, Found *found, uint32_t stripe) {
    if (found->entry != NULL) {
        unlink_old(arena, change, found, stripe);
    }
    uint64_t size = change->length + ENTRY_BODY;
    uint64_t offset = heap_take(arena, stripe, size, true);
    if (offset == 0) {
        return ST_FULL;
    }
    Entry *entry = (Entry *)(arena->base + offset);
    entry->version = change->lsn;
    entry->body_crc = change->crc;
    memcpy((uint8_t *)entry + ENTRY_BODY, change->body, change->length);
    Status status = link_new(arena, found, stripe, PLACE(hash_tag(change->key.hash), offset));
    if (status != ST_OK) {
        heap_return(arena, stripe, offset);
        return status;
    }
    count_change(&arena->stripes[stripe], change, found, true);
    return ST_OK;
}

static Status apply(ApplyQueue *queue, const Change *change) {
    Arena *arena = queue->arena;
    uint32_t stripe = (uint32_t)(change->key.hash >> arena->stripe_shift);
    Stripe *s = &arena->stripes[stripe];
    Found found;
    Status status = table_find(arena, &change->key, &found);
    if (status != ST_OK) {
        return status;
    }
    bool newer = (found.entry == NULL || found.entry->version < change->lsn) &&
                 change->lsn > s->clear_lsn[change->key.namespace_id & (NAMESPACE_COUNT - 1)];
    if (!newer || (change->kind == RECORD_DELETE && found.entry == NULL)) {
        return ST_OK;
    }
    if (change->kind == RECORD_PUT) {
        status = apply_put(arena, change, &found, stripe);
        queue->applied += status == ST_OK;
        return status;
    }
    queue->applied++;
    unlink_old(arena, change, &found, stripe);
    return ST_OK;
}

/* The pages that the running store had free may lie otherwise here: sweeps what is dead, and moves entries. */
static bool make_room(Arena *arena, uint64_t bytes) {
    Call call = {.arena = arena};
    if (slot_claim(arena, (uint32_t)getpid(), (uint32_t)syscall(SYS_gettid), &call.slot) != ST_OK) {
        return false;
    }
    uint64_t before = heap_count_free(arena);
    for (uint32_t i = 0; i < arena->stripe_count; i++) {
        store_sweep(&call, i);
    }
    bool swept = heap_count_free(arena) > before;
    bool made = compact_make_room(&call, heap_block_bytes(bytes));
    slot_release(arena, call.slot);
    return swept || made;
}

/* ---- many -------------------------------------------------------------------------------------------------------- */
/* The entry that the change will replace, if its bucket holds one. */
static void prefetch_old(const Arena *arena, const Change *change) {
    const Bucket *bucket = table_bucket(arena, change->key.hash);
    uint64_t tag = hash_tag(change->key.hash);
    for (uint32_t i = 0; i < PLACES; i++) {
        uint64_t place = load_relaxed(&bucket->place[i]);
        if (PLACE_TAG(place) == tag && place != 0 && arena_at(arena, PLACE_OFFSET(place)) != NULL) {
            __builtin_prefetch(arena->base + PLACE_OFFSET(place));
            heap_prefetch(arena, PLACE_OFFSET(place));
            return;
        }
    }
    uint64_t next = load_relaxed(&bucket->next);
    if (next != 0 && arena_bucket_at(arena, next) != NULL) {
        __builtin_prefetch(arena_bucket_at(arena, next));
    }
}

Status apply_flush(ApplyQueue *queue) {
    Status s = ST_OK;
    for (uint32_t i = 0; i < queue->count; i++) {
        prefetch_old(queue->arena, &queue->pending[i]);
    }
    for (uint32_t i = 0; i < queue->count && s == ST_OK; i++) {
        const Change *change = &queue->pending[i];
        s = apply(queue, change);
        for (int tries = 0; s == ST_FULL && queue->alone && tries < ROOM_TRIES &&
                            make_room(queue->arena, change->length + ENTRY_BODY); tries++) {
            s = apply(queue, change);
        }
    }
    queue->count = 0;
    return s;
}

Status apply_put_in_queue(ApplyQueue *queue, const Change *change) {
    queue->pending[queue->count++] = *change;
    __builtin_prefetch(table_bucket(queue->arena, change->key.hash));
    return queue->count == APPLY_AHEAD ? apply_flush(queue) : ST_OK;
}

static Status recount_place(void *context, Stripe *stripe, Bucket *bucket, uint64_t *place, Entry *entry) {
    (void)context, (void)bucket, (void)place;
    uint16_t namespace_id = entry->namespace_id & (NAMESPACE_COUNT - 1);
    stripe->count[namespace_id] += !entry_cleared(stripe, entry->version, namespace_id);
    return ST_OK;
}

Status apply_recount(Arena *arena) {
    Status s = ST_OK;
    for (uint32_t i = 0; i < arena->stripe_count && s == ST_OK; i++) {
        memset(arena->stripes[i].count, 0, sizeof arena->stripes[i].count);
        s = table_walk(arena, i, NULL, recount_place, NULL);
    }
    return s;
}

/* ---- checking ---------------------------------------------------------------------------------------------------- */
typedef struct BodyFields {
    uint32_t value_length;
    uint16_t key_length, namespace_id;
    uint8_t type, flags;
} BodyFields;

static BodyFields body_fields(const uint8_t *body) {
    BodyFields fields;
    memcpy(&fields.value_length, body, 4);
    memcpy(&fields.key_length, body + 4, 2);
    memcpy(&fields.namespace_id, body + 6, 2);
    fields.type = body[8];
    fields.flags = body[9];
    return fields;
}

uint64_t body_length(const uint8_t *body, uint64_t most) {
    if (most < sizeof(Entry) - ENTRY_BODY) {
        return 0;
    }
    BodyFields fields = body_fields(body);
    uint64_t length = entry_bytes(fields.flags, fields.key_length, fields.value_length) - ENTRY_BODY;
    return length <= most ? length : 0;
}

/* Readers compare keys by whole words. */
static bool key_padding_is_zero(const Key *key) {
    for (uint64_t i = key->length; i < align_up(key->length, 8); i++) {
        if (key->data[i] != 0) {
            return false;
        }
    }
    return true;
}

bool change_parse(Change *change, const uint8_t *body, uint64_t length, uint32_t kind) {
    if (length < sizeof(Entry) - ENTRY_BODY) {
        return false;
    }
    BodyFields fields = body_fields(body);
    if (entry_bytes(fields.flags, fields.key_length, fields.value_length) != length + ENTRY_BODY ||
        fields.namespace_id >= NAMESPACE_COUNT ||
        (kind == RECORD_DELETE && (fields.value_length != 0 || fields.flags != 0))) {
        return false;
    }
    change->body = body;
    change->length = length;
    change->kind = kind;
    change->key = (Key){.data = body + entry_key_offset(fields.flags) - ENTRY_BODY, .length = fields.key_length,
                        .namespace_id = fields.namespace_id};
    return key_padding_is_zero(&change->key);
}

bool body_padding_is_zero(const uint8_t *body, uint64_t length) {
    for (uint64_t i = length; i < align_up(length, 8); i++) {
        if (body[i] != 0) {
            return false;
        }
    }
    return true;
}
