/* write.c: the order of a write, proved in models/write.pml and txn.pml.  Move a step only together with its model.
 *
 * Invariants:
 *   I1  All that can fail comes before the verdict PENDING, except the room in the ring, which is checked under the
 *       ring lock before anything is stored.
 *   I2  From owner word to owner word 0 a stripe counts as dirty: what is allocated in between is found by the rebuild.
 *   I3  Odd numbers before the tail, even numbers after the last link; old entries are freed after that.
 *   I4  Nothing here sleeps or calls out of the core.
 */
#include "draft.h"
#include "fault.h"
#include "heap.h"
#include "record.h"
#include "repair.h"
#include "ring.h"

static Slot *my_slot(const Call *call) { return &call->arena->slots[call->slot]; }

/* ---- step 1: holding nothing ----------------------------------------------------------------------------- */
#define KEY_SHARE 4000u             /* of what value_limit leaves for headers and key; a longer key takes from the value */
static Status check_length(Call *call, const Key *key, uint64_t length) {
    uint64_t limit = arena_value_limit(call->arena), excess = key->length > KEY_SHARE ? key->length - KEY_SHARE : 0;
    if (length + excess > limit) {
        call->needed_bytes = length;
        call->available_bytes = excess < limit ? limit - excess : 0;
        return ST_VALUE_TOO_LARGE;
    }
    return ST_OK;
}

static Status prepare(Call *call, Write *write) {
    if (!call->arena->writable) {
        return ST_READ_ONLY;
    }
    if (UNLIKELY(call->slot < 0)) {
        return ST_NO_SLOT;
    }
    uint64_t record_bytes = sizeof(RecordHeader);
    for (uint32_t i = 0; i < write->count; i++) {
        Item *item = &write->items[i];
        __builtin_prefetch(table_bucket(call->arena, item->key->hash));
        __builtin_prefetch(&arena_stripe(call->arena, item->key->hash)->lock, 1);
        item->draft = item->overflow = item->old = item->prefix_length = 0;
        item->slot_run = item->skip = item->existed = false;
        Status s = check_length(call, item->key, item->length);
        if (s != ST_OK) {
            return s;
        }
        record_bytes += item->length + item->key->length + 64;
    }
    Status s = ring_admits(call->arena, record_bytes);
    if (UNLIKELY(s == ST_BUSY)) {
        call->wait = WAIT_LOG;
        call->needed_bytes = record_bytes;
        slot_count(call, COUNT_LOG_WAITS);
    }
    return s;
}

/* ---- step 2: locks ------------------------------------------------------------------------------------------ */
static void collect_stripes(const Arena *arena, Write *write) {
    if (write->clear) {
        write->stripe_count = arena->stripe_count;
        for (uint32_t i = 0; i < arena->stripe_count; i++) {
            write->stripes[i] = (uint16_t)i;
        }
        return;
    }
    write->stripe_count = 0;
    for (uint32_t i = 0; i < write->count; i++) {
        uint16_t stripe = (uint16_t)(write->items[i].key->hash >> arena->stripe_shift);
        uint32_t at = write->stripe_count;
        while (at > 0 && write->stripes[at - 1] > stripe) {
            at--;
        }
        if (at > 0 && write->stripes[at - 1] == stripe) {
            continue;
        }
        memmove(&write->stripes[at + 1], &write->stripes[at], (write->stripe_count - at) * sizeof stripe);
        write->stripes[at] = stripe;
        write->stripe_count++;
    }
}

static void unlock_all(Call *call, Write *write) {
    for (uint32_t i = 0; i < write->locked; i++) {
        stripe_unlock(call, write->stripes[i]);
        KILL_POINT(stripe_unlocked);
    }
    write->locked = 0;
}

static Status lock_all(Call *call, Write *write) {
    for (write->locked = 0; write->locked < write->stripe_count; write->locked++) {
        Status s = stripe_lock(call, write->stripes[write->locked]);
        if (UNLIKELY(s != ST_OK)) {
            if (s == ST_BUSY) {
                slot_count(call, COUNT_LOCK_WAITS);
            }
            unlock_all(call, write);
            return s;
        }
        KILL_POINT(stripe_locked);
    }
    for (uint32_t i = 0; i < write->stripe_count; i++) {
        /* Before anything else in the stripe: a kill from here on must be seen as dirty. */
        store_release(&call->arena->stripes[write->stripes[i]].owner, (uint64_t)call->slot + 1);
        KILL_POINT(owner_set);
    }
    return ST_OK;
}

/* Owner words 0, verdict EMPTY, locks. */
static void release(Call *call, Write *write) {
    for (uint32_t i = 0; i < write->stripe_count; i++) {
        store_release(&call->arena->stripes[write->stripes[i]].owner, 0);
        KILL_POINT(owner_cleared);
    }
    store_release(&my_slot(call)->verdict, VERDICT(VERDICT_EMPTY, 0ULL));
    KILL_POINT(verdict_cleared);
    unlock_all(call, write);
}

/* ---- conditions ------------------------------------------------------------------------------------------------ */
static Status check_conditions(Item *item) {
    const SetOptions *options = &item->options;
    bool live = item->found.live;
    item->existed = live;
    if (item->kind == ITEM_DELETE && !live) {
        return ST_NOT_FOUND;
    }
    if ((options->flags & SET_IF_ABSENT && live) || (options->flags & SET_IF_PRESENT && !live)) {
        return ST_CONDITION;
    }
    if (options->flags & SET_IF_VERSION && (!live || item->found.entry->version != options->if_version)) {
        return ST_CONDITION;
    }
    return ST_OK;
}

/* The value becomes a number: the record holds the result, never the command. */
static Status resolve_incr(Item *item) {
    if (!item->existed) {
        item->number = item->initial;
    } else {
        Entry *e = item->found.entry;
        if (e->type == TYPE_FLOAT || e->type >= TYPE_CODEC) {
            return ST_OVERFLOW;
        }
        if (e->type != TYPE_INT || e->value_length != 8) {
            return ST_WRONG_TYPE;
        }
        memcpy(&item->number, entry_value(e), 8);
    }
    if (__builtin_add_overflow(item->number, item->amount, &item->number)) {
        return ST_OVERFLOW;
    }
    item->type = TYPE_INT;
    item->data = &item->number;
    item->length = 8;
    return ST_OK;
}

static Status resolve_append(Call *call, Item *item) {
    if (item->existed) {
        if (item->found.entry->type != item->type) {
            return ST_WRONG_TYPE;
        }
        item->prefix_length = item->found.entry->value_length;
    }
    item->new_length = item->prefix_length + item->length;
    return check_length(call, item->key, item->new_length);
}

static Status look_up(Call *call, Item *item) {
    Status s = table_find(call->arena, item->key, &item->found);
    if (s == ST_OK) {
        s = check_conditions(item);
    }
    if (s != ST_OK || item->kind == ITEM_DELETE) {
        return s;
    }
    bool keeps = item->existed && (item->options.flags & SET_KEEP_TTL);
    item->expires_ms = keeps ? entry_expires_ms(item->found.entry) : item->options.expires_ms;
    if (item->kind == ITEM_INCR) {
        return resolve_incr(item);
    }
    return item->kind == ITEM_APPEND ? resolve_append(call, item) : ST_OK;
}

/* Under the ring lock. */
static Status ring_room(Call *call, const Write *write) {
    Arena *arena = call->arena;
    Control *control = arena->control;
    if (UNLIKELY(arena_retired(arena))) {
        return ST_RETIRED;
    }
    uint64_t tail = load_relaxed(&control->ring_tail), end = tail + write->record_bytes;
    /* Pairs with the persister's release: it has copied what lies below. */
    if (end - load_acquire(&control->ring_head) <= arena->ring_bytes) {
        return ST_OK;
    }
    if (arena->has_log) {
        call->wait = WAIT_LOG;
        call->needed_bytes = write->record_bytes;
        return ST_BUSY;
    }
    /* No log: the ring keeps the last records only.  A record's length stands at its start. */
    uint64_t head = load_relaxed(&control->ring_head);
    while (end - head > arena->ring_bytes && head < tail) {
        uint32_t length;
        memcpy(&length, arena->ring + (head & (arena->ring_bytes - 1)), 4);
        if (length < sizeof(RecordHeader) || head + length > tail) {
            return ST_CORRUPT;
        }
        head += length;
    }
    store_release(&control->durable_lsn, head);
    store_release(&control->ring_head, head);
    return ST_OK;
}

/* ---- steps 4 and 5: append and link ----------------------------------------------------------------------------------- */
static void count_items(Call *call, Write *write) {
    Arena *arena = call->arena;
    if (write->clear) {
        for (uint32_t i = 0; i < write->stripe_count; i++) {
            store_relaxed(&arena->stripes[write->stripes[i]].count[write->namespace_id], 0);
        }
    }
    for (uint32_t i = 0; i < write->count; i++) {
        const Item *item = &write->items[i];
        if (item->skip) {
            continue;
        }
        Stripe *stripe = arena_stripe(arena, item->key->hash);
        uint64_t *count = &stripe->count[item->key->namespace_id & (NAMESPACE_COUNT - 1)];
        /* Counted are entries that are not cleared; one that expired is still there until it is collected. */
        bool was = item->found.entry != NULL && !entry_cleared(stripe, item->found.entry->version, item->key->namespace_id);
        bool is = item->kind != ITEM_DELETE;
        store_relaxed(count, load_relaxed(count) + is - was);
        stripe->entries += (uint64_t)is - (item->found.entry != NULL);
    }
    KILL_POINT(counted);
}

static Status append_and_link(Call *call, Write *write) {
    Arena *arena = call->arena;
    Control *control = arena->control;
    Slot *slot = my_slot(call);
    uint16_t count;
    uint8_t kind = record_describe(arena, write, &count);
    Status s = ring_lock(call);
    if (UNLIKELY(s != ST_OK)) {
        return s;
    }
    KILL_POINT(ring_locked);
    s = ring_room(call, write);
    if (UNLIKELY(s != ST_OK)) {
        ring_unlock(call);
        return s;
    }
    uint64_t lsn = load_relaxed(&control->ring_tail);
    store_relaxed(&control->ring_owner, (uint64_t)call->slot + 1);
    KILL_POINT(ring_owner_set);
    store_release(&slot->verdict, VERDICT(VERDICT_PENDING, lsn));
    KILL_POINT(verdict_pending);
    record_copy(call, write, kind, count, lsn);
    for (uint32_t i = 0; i < write->stripe_count; i++) {
        stripe_go_odd(&arena->stripes[write->stripes[i]]);
        KILL_POINT(sequence_odd);
    }
    /* The commit point.  Pairs with the acquire loads of persister, settler, snapshot and feed. */
    store_release(&control->ring_tail, lsn + write->record_bytes);
    KILL_POINT(tail_stored);
    store_release(&slot->verdict, VERDICT(VERDICT_COMMITTED, lsn));
    KILL_POINT(verdict_committed);
    if (UNLIKELY(redo_run(arena, slot, lsn, -1, write->stripes, write->stripe_count) != ST_OK)) {
        /* The list is this call's own: somebody has scribbled on the slot.  It happened; the audit must find out what. */
        store_release_u32(&control->condemned, 1);
    }
    KILL_POINT(linked);
    count_items(call, write);
    for (uint32_t i = 0; i < write->stripe_count; i++) {
        stripe_go_even(&arena->stripes[write->stripes[i]]);
        KILL_POINT(sequence_even);
    }
    if (UNLIKELY(load_relaxed(&control->need_bytes) != 0) && load_relaxed(&control->need_bytes) <= write->record_bytes) {
        store_relaxed(&control->need_bytes, 0);      /* whoever was waiting for so much room has had it */
    }
    call->lsn = lsn;
    call->record_end = lsn + write->record_bytes;
    ring_unlock(call);
    KILL_POINT(ring_unlocked);
    store_relaxed(&slot->last_lsn, lsn);
    return ST_OK;
}

static void free_old(Call *call, Write *write) {
    for (uint32_t i = 0; i < write->count; i++) {
        const Item *item = &write->items[i];
        if (!item->skip && item->old != 0) {
            heap_return(call->arena, (uint32_t)(item->key->hash >> call->arena->stripe_shift), item->old);
            KILL_POINT(old_freed);
        }
    }
}

/* ---- the whole ----------------------------------------------------------------------------------------------------------- */
/* For one key a condition that fails ends the write; in a batch it leaves that item out. */
static Status look_up_all(Call *call, Write *write, uint32_t *taking_part) {
    *taking_part = write->clear;
    for (uint32_t i = 0; i < write->count; i++) {
        Item *item = &write->items[i];
        Status s = look_up(call, item);
        item->skip = s == ST_NOT_FOUND || s == ST_CONDITION;
        if (s != ST_OK && (!item->skip || write->count == 1)) {
            return s;
        }
        *taking_part += !item->skip;
        if (item->found.entry != NULL) {
            heap_prefetch(call->arena, arena_offset(call->arena, item->found.entry));
        }
    }
    return ST_OK;
}

static Status locked_part(Call *call, Write *write) {
    uint32_t taking_part;
    Status s = look_up_all(call, write, &taking_part);
    if (s != ST_OK || taking_part == 0) {
        return s;
    }
    for (uint32_t i = 0; i < write->count && s == ST_OK; i++) {
        Item *item = &write->items[i];
        if (!item->skip && item->kind != ITEM_DELETE) {
            s = draft_item(call, item);
        }
    }
    if (LIKELY(s == ST_OK)) {
        draft_fill_redo(call, write);
        s = append_and_link(call, write);
    }
    if (UNLIKELY(s != ST_OK)) {
        draft_drop(call, write);
        return s;
    }
    free_old(call, write);
    return ST_OK;
}

Status write_run(Call *call, Write *write) {
    call->lsn = 0;
    Status s = prepare(call, write);
    if (UNLIKELY(s != ST_OK)) {
        return s;
    }
    for (uint32_t i = 0; i < write->count; i++) {
        draft_prepare_large(call, &write->items[i]);
    }
    collect_stripes(call->arena, write);
    s = lock_all(call, write);
    if (LIKELY(s == ST_OK)) {
        s = locked_part(call, write);
        release(call, write);
    }
    draft_drop_slot_runs(call, write);
    if (s == ST_OK && call->lsn != 0) {
        ring_after_append(call->arena, call->record_end - load_relaxed(&call->arena->control->ring_head));
    }
    return s;
}

/* ---- a record without stripes ---------------------------------------------------------------------------------------- */
Status store_mark(Call *call, uint64_t wall_ms) {
    Arena *arena = call->arena;
    if (call->slot < 0) {
        return ST_NO_SLOT;
    }
    MarkBody body = {.wall_ms = wall_ms, .durable_lsn = load_relaxed(&arena->control->durable_lsn)};
    Write write;
    write.items = NULL;
    write.count = write.stripe_count = 0;
    write.clear = false;
    write.record_bytes = sizeof(RecordHeader) + sizeof body;
    write.body_crc = crc32c(0, &body, sizeof body);
    Slot *slot = my_slot(call);
    store_relaxed_u32(&slot->redo_count, 0);
    Status s = ring_lock(call);
    if (s != ST_OK) {
        return s;
    }
    s = ring_room(call, &write);
    if (s == ST_OK) {
        uint64_t lsn = load_relaxed(&arena->control->ring_tail);
        store_relaxed(&arena->control->ring_owner, (uint64_t)call->slot + 1);
        store_release(&slot->verdict, VERDICT(VERDICT_PENDING, lsn));
        KILL_POINT(verdict_pending);
        record_copy(call, &write, RECORD_MARK, 0, lsn);
        record_put_bytes(arena, lsn + sizeof(RecordHeader), &body, sizeof body);
        store_release(&arena->control->ring_tail, lsn + write.record_bytes);
        KILL_POINT(tail_stored);
        store_release(&slot->verdict, VERDICT(VERDICT_EMPTY, 0ULL));
        call->lsn = lsn;
        call->record_end = lsn + write.record_bytes;
    }
    ring_unlock(call);
    return s;
}
