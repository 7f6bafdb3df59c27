/* record.c: the bytes of a write's record: its length, its checksums, and its copy into the ring.
 *
 * A put's body is the draft itself from ENTRY_BODY on, so the entry's checksum is the record's, made once, outside the ring lock.
 * Formats: layout.h and wal/README.md.
 */
#include "record.h"
#include "fault.h"
#include "ring.h"

static uint64_t item_body_bytes(const Item *item) {
    if (item->kind == ITEM_DELETE) {
        return sizeof(Entry) - ENTRY_BODY + align_up(item->key->length, 8);
    }
    return item->draft_bytes - ENTRY_BODY;
}

/* A delete's body, made from the key: the entry from ENTRY_BODY on, without expiry and value. */
typedef struct DeleteHead {
    uint32_t value_length;
    uint16_t key_length;
    uint16_t namespace_id;
    uint8_t type, flags;
    uint16_t spare;
} DeleteHead;
_Static_assert(sizeof(DeleteHead) == sizeof(Entry) - ENTRY_BODY, "a delete starts as an entry's body does");

static DeleteHead delete_head(const Item *item) {
    return (DeleteHead){.key_length = (uint16_t)item->key->length, .namespace_id = item->key->namespace_id, .type = CAUSE_USER};
}

static uint32_t body_crc(const Arena *arena, const Item *item) {
    if (item->kind != ITEM_DELETE) {
        return ((const Entry *)(arena->base + item->draft))->body_crc;
    }
    static const uint8_t zeros[8] = {0};
    DeleteHead head = delete_head(item);
    uint32_t crc = crc32c(crc32c(0, &head, sizeof head), item->key->data, item->key->length);
    return crc32c(crc, zeros, align_up(item->key->length, 8) - item->key->length);
}

/* Length and CRC of the record, and the table of a batch; returns its kind. */
uint8_t record_describe(const Arena *arena, Write *write, uint16_t *count) {
    uint64_t bytes = sizeof(RecordHeader);
    *count = 0;
    Item *only = NULL;
    for (uint32_t i = 0; i < write->count; i++) {
        Item *item = &write->items[i];
        if (!item->skip) {
            write->table[*count] = (BatchItem){.length = (uint32_t)item_body_bytes(item), .body_crc = body_crc(arena, item),
                                               .kind = item->kind == ITEM_DELETE ? RECORD_DELETE : RECORD_PUT};
            bytes += align_up(write->table[*count].length, 8);
            only = item;
            ++*count;
        }
    }
    write->body_crc = 0;
    if (write->clear) {
        *count = write->namespace_id;
        write->record_bytes = bytes;
        return RECORD_CLEAR;
    }
    if (*count == 1) {
        write->record_bytes = bytes;
        write->body_crc = write->table[0].body_crc;
        *count = 0;
        return only->kind == ITEM_DELETE ? RECORD_DELETE : RECORD_PUT;
    }
    write->body_crc = crc32c(0, write->table, *count * sizeof(BatchItem));
    write->record_bytes = bytes + *count * sizeof(BatchItem);
    return RECORD_BATCH;
}

void record_put_bytes(Arena *arena, uint64_t lsn, const void *from, uint64_t length) {
    uint64_t at = lsn & (arena->ring_bytes - 1), first = arena->ring_bytes - at;
    if (LIKELY(length <= first)) {
        memcpy(arena->ring + at, from, length);
        return;
    }
    memcpy(arena->ring + at, from, first);
    memcpy(arena->ring, (const uint8_t *)from + first, length - first);
}

static uint64_t copy_item(Arena *arena, uint64_t lsn, const Item *item) {
    static const uint8_t zeros[16] = {0};      /* padding of a delete's key and of its body: up to 11 bytes */
    uint64_t length = item_body_bytes(item);
    if (item->kind == ITEM_DELETE) {
        DeleteHead head = delete_head(item);
        record_put_bytes(arena, lsn, &head, sizeof head);
        record_put_bytes(arena, lsn + sizeof head, item->key->data, item->key->length);
        uint64_t written = sizeof head + item->key->length;
        record_put_bytes(arena, lsn + written, zeros, align_up(length, 8) - written);
    } else {
        record_put_bytes(arena, lsn, arena->base + item->draft + ENTRY_BODY, length);
        if (length & 7) {
            record_put_bytes(arena, lsn + length, zeros, align_up(length, 8) - length);
        }
    }
    return lsn + align_up(length, 8);
}

void record_copy(Call *call, Write *write, uint8_t kind, uint16_t count, uint64_t lsn) {
    Arena *arena = call->arena;
    RecordHeader header = {.length = (uint32_t)write->record_bytes, .lsn = lsn, .kind = kind, .count = count,
                           .body_crc = write->body_crc, .durable_before = load_relaxed(&arena->control->durable_lsn)};
    header.header_crc = record_header_crc(&header, arena->record_seed);
    record_put_bytes(arena, lsn, &header, sizeof header);
    KILL_POINT(record_header_copied);
    uint64_t at = lsn + sizeof header;
    if (kind == RECORD_BATCH) {
        record_put_bytes(arena, at, write->table, count * sizeof(BatchItem));
        at += count * sizeof(BatchItem);
    }
    for (uint32_t i = 0; i < write->count; i++) {
        if (!write->items[i].skip) {
            at = copy_item(arena, at, &write->items[i]);
        }
    }
    KILL_POINT(record_copied);
}

