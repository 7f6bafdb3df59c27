/* store.c: the operations, put together from one or more writes; room is made here when a write says ST_FULL. */
#include "compact.h"
#include "repair.h"
#include "ring.h"
#include "write.h"

#define ROOM_TRIES 4

/* One key: again after room was made, from the start, since nothing had happened. */
static Status write_one(Call *call, Item *item) {
    for (int i = 0;; i++) {
        Write write;
        write.items = item;
        write.count = 1;
        write.clear = false;
        Status s = write_run(call, &write);
        if (LIKELY(s != ST_FULL) || i >= ROOM_TRIES) {
            return s;
        }
        Call failed = *call;
        if (!compact_make_room(call, call->needed_bytes)) {
            *call = failed;
            return ST_FULL;
        }
    }
}

/* Field by field: clearing the whole struct first would cost a tenth of a set. */
static void item_begin(Item *item, const Key *key, ItemKind kind, uint8_t type, const void *data, uint64_t length) {
    item->key = key;
    item->kind = kind;
    item->type = type;
    item->data = data;
    item->length = length;
    item->options = (SetOptions){0};
}

Status store_set(Call *call, const Key *key, uint8_t type, const void *data, uint64_t length, const SetOptions *options) {
    Item item;
    item_begin(&item, key, ITEM_PUT, type, data, length);
    if (options != NULL) {
        item.options = *options;
    }
    Status s = write_one(call, &item);
    if (s == ST_OK) {
        slot_count(call, COUNT_SETS);
    }
    return s;
}

Status store_delete(Call *call, const Key *key, uint64_t if_version) {
    Item item;
    item_begin(&item, key, ITEM_DELETE, 0, NULL, 0);
    if (if_version != 0) {
        item.options = (SetOptions){.flags = SET_IF_VERSION, .if_version = if_version};
    }
    Status s = write_one(call, &item);
    if (s == ST_OK) {
        slot_count(call, COUNT_DELETES);
    }
    return s;
}

Status store_incr(Call *call, const Key *key, int64_t amount, int64_t initial, uint64_t expires_ms, int64_t *number) {
    Item item;
    item_begin(&item, key, ITEM_INCR, TYPE_INT, NULL, 0);
    item.options = (SetOptions){.flags = SET_KEEP_TTL, .expires_ms = expires_ms};
    item.amount = amount;
    item.initial = initial;
    Status s = write_one(call, &item);
    if (s == ST_OK) {
        *number = item.number;
        slot_count(call, COUNT_SETS);
    }
    return s;
}

Status store_append(Call *call, const Key *key, uint8_t type, const void *data, uint64_t length, uint64_t *new_length) {
    Item item;
    item_begin(&item, key, ITEM_APPEND, type, data, length);
    item.options.flags = SET_KEEP_TTL;
    Status s = write_one(call, &item);
    if (s == ST_OK) {
        *new_length = item.new_length;
        slot_count(call, COUNT_SETS);
    }
    return s;
}

/* ---- many keys ---------------------------------------------------------------------------------------------- */
/* How many of the items go into one record: as many as the redo list, the record and distinct buckets allow. */
static uint32_t batch_length(const Arena *arena, const BatchEntry *items, uint32_t n) {
    uint64_t bytes = 0, buckets[WRITE_ITEMS];
    for (uint32_t i = 0; i < n && i < WRITE_ITEMS; i++) {
        bytes += items[i].length + items[i].key.length + 64;
        if (i > 0 && (bytes > arena->ring_bytes / 8 || items[i].length > LARGE_VALUE_BYTES)) {
            return i;
        }
        buckets[i] = arena_bucket_index(arena, items[i].key.hash);
        for (uint32_t k = 0; k < i; k++) {
            if (buckets[k] == buckets[i]) {
                return i;
            }
        }
        if (items[i].length > LARGE_VALUE_BYTES) {
            return 1;
        }
    }
    return n < WRITE_ITEMS ? n : WRITE_ITEMS;
}

static Status write_batch(Call *call, BatchEntry *entries, uint32_t n) {
    for (int attempt = 0;; attempt++) {
        Item items[WRITE_ITEMS];
        Write write;
        for (uint32_t i = 0; i < n; i++) {
            item_begin(&items[i], &entries[i].key, entries[i].remove ? ITEM_DELETE : ITEM_PUT, entries[i].type,
                       entries[i].data, entries[i].length);
            items[i].options.expires_ms = entries[i].expires_ms;
        }
        write.items = items;
        write.count = n;
        write.clear = false;
        Status s = write_run(call, &write);
        if (n == 1 && (s == ST_NOT_FOUND || s == ST_CONDITION)) {
            s = ST_OK;
        }
        if (s == ST_OK) {
            for (uint32_t i = 0; i < n; i++) {
                entries[i].existed = items[i].existed;
            }
        }
        if (LIKELY(s != ST_FULL) || attempt >= ROOM_TRIES) {
            return s;
        }
        Call failed = *call;
        if (!compact_make_room(call, call->needed_bytes)) {
            *call = failed;
            return ST_FULL;
        }
    }
}

Status store_write_many(Call *call, BatchEntry *items, uint32_t n, uint32_t *done) {
    Arena *arena = call->arena;
    uint64_t last_lsn = 0, last_end = 0;
    Status s = ST_OK;
    for (uint32_t i = *done; i < n; i++) {
        __builtin_prefetch(table_bucket(arena, items[i].key.hash));
    }
    while (*done < n && s == ST_OK) {
        uint32_t length = batch_length(arena, items + *done, n - *done);
        s = write_batch(call, items + *done, length);
        if (s == ST_OK) {
            if (call->lsn != 0) {
                last_lsn = call->lsn;
                last_end = call->record_end;
            }
            for (uint32_t i = 0; i < length; i++) {
                slot_count(call, items[*done + i].remove ? COUNT_DELETES : COUNT_SETS);
            }
            *done += length;
        }
    }
    if (last_lsn != 0) {
        call->lsn = last_lsn;
        call->record_end = last_end;
    }
    return s;
}

Status store_clear(Call *call, uint16_t namespace_id) {
    if (namespace_id >= NAMESPACE_COUNT) {
        return ST_INVALID;
    }
    Write write;
    write.items = NULL;
    write.count = 0;
    write.clear = true;
    write.namespace_id = namespace_id;
    return write_run(call, &write);
}
