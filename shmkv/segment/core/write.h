/* write.h: one write: up to WRITE_ITEMS keys, one record, all or nothing (DESIGN 5, steps 1-6).
 *
 * store.c says what is to be written; write.c says in which order, and is the only file that combines
 * locks, heap, table and ring.
 */
#ifndef SHMKV_WRITE_H
#define SHMKV_WRITE_H

#include "store.h"
#include "table.h"

/* A new key takes three redo stores: version, place, link of an overflow bucket. */
#define WRITE_ITEMS (REDO_STORES / 3)

typedef enum ItemKind { ITEM_PUT, ITEM_DELETE, ITEM_INCR, ITEM_APPEND } ItemKind;

typedef struct Item {
    /* in */
    const Key *key;
    ItemKind kind;
    uint8_t type;
    const void *data;
    uint64_t length;
    SetOptions options;
    int64_t amount, initial;
    /* out */
    int64_t number;               /* ITEM_INCR: the result */
    uint64_t new_length;          /* ITEM_APPEND */
    bool existed;                 /* a live entry was there */
    bool skip;                    /* a condition did not hold, or nothing to delete: no part of the record */
    /* during the write: write_run sets all of it */
    Found found;
    uint8_t flags;
    uint64_t expires_ms;
    uint64_t prefix_length;       /* ITEM_APPEND: bytes taken over from the old value */
    uint64_t draft;               /* offset of the new entry, 0 = none */
    uint64_t draft_bytes;
    uint64_t overflow;            /* offset of a new overflow bucket, 0 = none */
    uint64_t old;                 /* offset of the entry that goes */
    bool slot_run;                /* the draft is still a run of the slot */
} Item;

typedef struct Write {
    Item *items;
    uint32_t count;
    uint16_t stripes[WRITE_ITEMS > STRIPES_MAX ? WRITE_ITEMS : STRIPES_MAX];   /* ascending */
    uint32_t stripe_count;
    uint32_t locked;              /* of stripes[], so many are held */
    bool clear;                   /* a clear of namespace_id over all stripes instead of items */
    uint16_t namespace_id;
    uint64_t record_bytes;
    uint32_t body_crc;
    BatchItem table[WRITE_ITEMS];
} Write;

/* Two items of one write must not share a bucket: the redo list is computed from the table as it is. */
Status write_run(Call *call, Write *write);

#endif
