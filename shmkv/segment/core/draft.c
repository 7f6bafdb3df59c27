/* draft.c: step 3 of a write: new entries that nobody can reach yet, and the list of stores that will link them.
 *
 * Invariants:
 *   I1  A draft is written once, from the caller's buffer, which is read once; its checksum comes from the draft.
 *   I2  The redo list is computed from the table as it is under the locks, each store as if the earlier ones had run.
 *   I3  Until the redo list runs, nothing reachable has changed.
 */
#include "draft.h"
#include "fault.h"
#include "heap.h"
#include "repair.h"

static Slot *my_slot(const Call *call) { return &call->arena->slots[call->slot]; }

static uint64_t put_bytes(const Item *item) {
    return entry_bytes(item->flags, item->key->length, item->prefix_length + item->length);
}

static Status no_memory(Call *call, uint64_t bytes) {
    call->needed_bytes = bytes;
    call->available_bytes = heap_count_free(call->arena) * PAGE_BYTES;
    slot_count(call, COUNT_FULL);
    return ST_FULL;
}

static void draft_bytes_of(Item *item) {
    bool changes = item->existed && (item->kind == ITEM_INCR || item->kind == ITEM_APPEND);
    item->flags = (uint8_t)((item->expires_ms ? ENTRY_EXPIRES : 0) | (item->options.flags & SET_PIN ? ENTRY_PINNED : 0) |
                            (changes ? item->found.entry->flags & ENTRY_PINNED : 0));
    item->draft_bytes = put_bytes(item);
}

static void fill_draft(const Call *call, Item *item) {
    uint8_t *draft = call->arena->base + item->draft;
    const Key *key = item->key;
    uint64_t head[4] = {0, (item->prefix_length + item->length) << 32,
                        key->length | (uint64_t)key->namespace_id << 16 | (uint64_t)item->type << 32 |
                            (uint64_t)item->flags << 40,
                        item->expires_ms};
    /* The block may have been another entry of this stripe: keeps these stores behind the odd number of that unlink;
     * pairs with the acquire fence of the readers. */
    __atomic_thread_fence(__ATOMIC_RELEASE);
    copy_to_shared(draft + 16, head + 2, item->expires_ms ? 16 : 8);
    uint64_t padded = align_up(key->length, 8), at = entry_key_offset(item->flags);
    if (padded != key->length) {
        store_relaxed((uint64_t *)(draft + at + padded - 8), 0);
    }
    copy_to_shared(draft + at, key->data, key->length);
    at += padded;
    if (item->prefix_length != 0) {
        copy_to_shared(draft + at, entry_value(item->found.entry), item->prefix_length);
        /* The second piece may start anywhere: bytes, not words. */
        const uint8_t *data = item->data;
        for (uint64_t i = 0; i < item->length; i++) {
            __atomic_store_n(draft + at + item->prefix_length + i, data[i], __ATOMIC_RELAXED);
        }
    } else {
        copy_to_shared(draft + at, item->data, item->length);
    }
    /* The checksum comes from the draft, not from the caller's buffer: that may change under us. */
    uint32_t length = (uint32_t)(item->prefix_length + item->length);
    uint32_t crc = crc32c(crc32c(0, &length, 4), draft + 16, item->draft_bytes - 16);
    store_relaxed((uint64_t *)(draft + 8), crc | (uint64_t)length << 32);
    KILL_POINT(draft_filled);
}

/* A large value is drafted before any lock, into a run of the slot.  An overwrite may use the reserve, and nothing is
 * known about that here: then step 3 drafts it. */
void draft_prepare_large(Call *call, Item *item) {
    if (item->kind != ITEM_PUT || item->length <= LARGE_VALUE_BYTES || (item->options.flags & SET_KEEP_TTL)) {
        return;
    }
    item->expires_ms = item->options.expires_ms;
    draft_bytes_of(item);
    item->draft = heap_claim_for_slot(call->arena, (uint32_t)call->slot, item->draft_bytes, false);
    if (item->draft != 0) {
        KILL_POINT(draft_claimed);
        item->slot_run = true;
        fill_draft(call, item);
    }
}

Status draft_item(Call *call, Item *item) {
    Arena *arena = call->arena;
    uint32_t stripe = (uint32_t)(item->key->hash >> arena->stripe_shift);
    if (item->found.place == NULL && item->found.free_place == NULL) {
        item->overflow = heap_take_bucket(arena, stripe);
        if (item->overflow == 0) {
            return no_memory(call, sizeof(Bucket));
        }
        KILL_POINT(overflow_claimed);
    }
    if (item->slot_run) {
        heap_adopt(arena, (uint32_t)call->slot, stripe, item->draft);
        item->slot_run = false;
        return ST_OK;
    }
    draft_bytes_of(item);
    bool grows = item->found.entry == NULL ||
                 heap_block_bytes(item->draft_bytes) > heap_block_bytes(entry_size(item->found.entry));
    item->draft = heap_take(arena, stripe, item->draft_bytes, !grows);
    if (item->draft == 0) {
        return no_memory(call, heap_block_bytes(item->draft_bytes));
    }
    KILL_POINT(draft_claimed);
    fill_draft(call, item);
    return ST_OK;
}

static void redo_add(const Arena *arena, Slot *slot, uint64_t target, uint64_t value, uint64_t hash) {
    uint32_t i = slot->redo_count;
    slot->redo[i] = (RedoStore){.target = target, .value = value};
    slot->redo_stripe[i] = (uint16_t)(hash >> arena->stripe_shift);
    slot->redo_count = i + 1;
}

void draft_fill_redo(Call *call, Write *write) {
    Arena *arena = call->arena;
    Slot *slot = my_slot(call);
    slot->redo_count = 0;
    if (write->clear) {
        uint64_t at = offsetof(Stripe, clear_lsn) + 8 * (uint64_t)write->namespace_id;
        redo_add(arena, slot, at | REDO_PER_STRIPE | REDO_VALUE_IS_LSN, 0, 0);
        redo_add(arena, slot, offsetof(Stripe, max_clear_lsn) | REDO_PER_STRIPE | REDO_VALUE_IS_LSN, 0, 0);
    }
    for (uint32_t i = 0; i < write->count; i++) {
        Item *item = &write->items[i];
        if (item->skip) {
            continue;
        }
        uint64_t hash = item->key->hash, *place = item->found.place;
        item->old = place == NULL ? 0 : PLACE_OFFSET(load_relaxed(place));
        if (item->kind == ITEM_DELETE) {
            redo_add(arena, slot, arena_offset(arena, place), 0, hash);
            continue;
        }
        uint64_t linked = PLACE(hash_tag(hash), item->draft);
        redo_add(arena, slot, item->draft | REDO_VALUE_IS_LSN, 0, hash);
        if (item->overflow == 0) {
            redo_add(arena, slot, arena_offset(arena, place != NULL ? place : item->found.free_place), linked, hash);
        } else {
            redo_add(arena, slot, item->overflow + offsetof(Bucket, place), linked, hash);
            redo_add(arena, slot, arena_offset(arena, &item->found.last->next), item->overflow, hash);
        }
    }
    KILL_POINT(redo_filled);
}

/* Takes back what was allocated; the owner words are still set. */
void draft_drop(Call *call, Write *write) {
    KILL_POINT(aborting);
    for (uint32_t i = 0; i < write->count; i++) {
        Item *item = &write->items[i];
        uint32_t stripe = (uint32_t)(item->key->hash >> call->arena->stripe_shift);
        if (item->overflow != 0) {
            heap_return_bucket(call->arena, stripe, item->overflow);
            item->overflow = 0;
        }
        if (item->draft != 0 && !item->slot_run) {
            heap_return(call->arena, stripe, item->draft);
            item->draft = 0;
        }
    }
}

void draft_drop_slot_runs(Call *call, Write *write) {
    for (uint32_t i = 0; i < write->count; i++) {
        Item *item = &write->items[i];
        if (item->slot_run) {
            heap_return_slot_run(call->arena, (uint32_t)call->slot, item->draft);
            item->slot_run = false;
            item->draft = 0;
        }
    }
}

