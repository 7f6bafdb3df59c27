/* store.h: the operations of the store: what module.c, the C tests and the stress driver call.
 *
 * Invariants:
 *   I1  No function here sleeps, except store_wait and the ring_wait functions of ring.h.  A call that meets a
 *       busy lock or a full ring changes nothing, holds nothing and returns ST_BUSY with call->wait set.
 *   I2  A call with slot < 0 takes no lock: it can only read, and only optimistically.
 *   I3  After ST_OK of a write, call->lsn is the version of what was written, and the record is in the ring.
 *
 * The caller's loop:  s = op(call);  while (s == ST_BUSY) { s = store_wait(call, slice_end);
 *                     if (s == ST_OK) s = op(call); }         with its own deadline and signal checks.
 */
#ifndef SHMKV_STORE_H
#define SHMKV_STORE_H

#include "arena.h"

typedef enum WaitKind { WAIT_NONE, WAIT_STRIPE, WAIT_RING, WAIT_LOG, WAIT_READ } WaitKind;

/* One operation of one thread: who calls, and what came of it. */
typedef struct Call {
    Arena *arena;
    int32_t slot;                 /* index of the caller's slot, -1 = none */
    /* out */
    WaitKind wait;
    uint32_t wait_stripe;
    uint32_t holder_tid;          /* of the busy lock, 0 = unknown */
    uint32_t holder_pid;
    uint64_t lsn;                 /* version written */
    uint64_t record_end;          /* LSN just past the record: durable when durable_lsn >= this */
    uint64_t needed_bytes;        /* ST_FULL, ST_VALUE_TOO_LARGE: what was asked for */
    uint64_t available_bytes;     /*                              what there is / the limit */
} Call;

typedef struct Key {
    const uint8_t *data;
    uint32_t length;
    uint16_t namespace_id;
    uint64_t hash;
} Key;
/* ST_KEY_TOO_LARGE above KEY_LIMIT.  Keeps the pointer. */
Status key_init(const Arena *arena, Key *key, const void *data, size_t length, uint16_t namespace_id);

/* A value that is read.  data/capacity: where its bytes go; capacity 0 = header only. */
typedef struct Value {
    uint8_t *data;
    uint64_t capacity;
    /* out */
    uint64_t length;
    uint64_t version;
    uint64_t expires_ms;          /* 0 = never */
    uint8_t type;
    uint8_t flags;
} Value;

/* ST_OK, ST_NOT_FOUND, ST_BUFFER (length is set; nothing copied), ST_BUSY, ST_RETIRED, ST_CORRUPT.
 * Values above LARGE_VALUE_BYTES are copied and looked up again: let the GIL go before asking with
 * a capacity above that. */
Status store_get(Call *call, const Key *key, Value *value);

/* n look-ups with prefetching of buckets, then entries.  `data` of each value must point into one caller's
 * buffer or be NULL: values are packed into buffer[0..capacity); status[i] is ST_OK, ST_NOT_FOUND, or ST_BUFFER
 * for those that did not fit or are large or busy (ask again one by one).  Returns ST_OK or ST_RETIRED. */
Status store_get_many(Call *call, const Key *keys, uint32_t n, uint8_t *buffer, uint64_t capacity,
                      Value *values, uint8_t *status);

#define SET_IF_ABSENT 1u
#define SET_IF_PRESENT 2u
#define SET_IF_VERSION 4u
#define SET_PIN 8u
#define SET_KEEP_TTL 16u
typedef struct SetOptions {
    uint32_t flags;
    uint64_t if_version;
    uint64_t expires_ms;          /* 0 = never */
} SetOptions;

/* ST_OK, ST_CONDITION, ST_BUSY, ST_FULL, ST_VALUE_TOO_LARGE, ST_RETIRED, ST_LOG_REFUSED, ST_CORRUPT ...
 * A kill at any step leaves all of it or nothing: DESIGN 5. */
Status store_set(Call *call, const Key *key, uint8_t type, const void *data, uint64_t length, const SetOptions *options);
/* if_version 0 = whatever it is.  ST_NOT_FOUND, ST_CONDITION. */
Status store_delete(Call *call, const Key *key, uint64_t if_version);
/* 64-bit integers (TYPE_INT).  ST_WRONG_TYPE; ST_OVERFLOW also for a float that is stored. */
Status store_incr(Call *call, const Key *key, int64_t amount, int64_t initial, uint64_t expires_ms, int64_t *result);
/* To a value of the same type (bytes or str), or makes it.  *length = new length. */
Status store_append(Call *call, const Key *key, uint8_t type, const void *data, uint64_t length, uint64_t *new_length);

typedef struct BatchEntry {
    Key key;
    uint8_t type;
    bool remove;                  /* a delete instead of a put */
    const void *data;
    uint64_t length;
    uint64_t expires_ms;
    bool existed;                 /* out: there was a live entry (for deletes: it was removed) */
} BatchEntry;
/* Writes items [*done, n) in as many records as needed, each all-or-nothing, in order; moves *done.
 * After ST_BUSY or an error the items below *done are written, those above are not. */
Status store_write_many(Call *call, BatchEntry *items, uint32_t n, uint32_t *done);
/* One record over all stripes; len() is right at once, space comes back by store_sweep. */
Status store_clear(Call *call, uint16_t namespace_id);

/* Appends a mark: wall time and durable LSN, so that a torn tail can be told from damage. */
Status store_mark(Call *call, uint64_t wall_ms);

uint64_t store_count(const Arena *arena, uint16_t namespace_id);

/* Iteration: *cursor starts at 0, ends at CURSOR_END.  Each step returns the entries of one or more buckets, consistent
 * bucket by bucket.  A key that is there all the time comes exactly once.  Items are packed into
 * buffer as ScanItem, key bytes, value bytes (if with_values), padded to 8; *count of them. */
#define CURSOR_END UINT64_MAX
typedef struct ScanItem {
    uint64_t version;
    uint64_t expires_ms;
    uint32_t key_length;
    uint32_t value_length;        /* stored length; bytes follow only if with_values */
    uint8_t type, flags;
    uint16_t namespace_id;
    uint32_t item_bytes;          /* to the next item */
} ScanItem;
/* ST_BUFFER: one bucket alone does not fit; call->needed_bytes says what it needs. */
Status store_scan(Call *call, uint16_t namespace_id, uint64_t *cursor, bool with_values, uint8_t *buffer,
                  uint64_t capacity, uint64_t *used_bytes, uint32_t *count);

/* Waits, holding nothing, for what call->wait names: until it may be worth trying again (ST_OK), or until_ns on the
 * monotonic clock (ST_BUSY), at most 50 ms a slice.  Runs the lock doctor when a slice ends. */
Status store_wait(Call *call, uint64_t until_ns);

/* ---- for the keeper, supervisor, admin ---------------------------------------------------------- */
/* Takes the stripe's lock once (hence repairs), unlinks dead entries.  ST_CORRUPT: the arena is condemned. */
Status store_sweep(Call *call, uint32_t stripe);
/* Moves entries so that pages come free; *pages = how many. */
Status store_compact(Call *call, uint32_t stripe, uint64_t *pages);

Status slot_claim(Arena *arena, uint32_t pid, uint32_t tid, int32_t *slot);
void slot_release(Arena *arena, int32_t slot);
/* Frees the slot `dead` if its owner is proved dead: repairs what names it.  ST_OK freed, ST_CONDITION alive. */
Status slot_reap(Call *call, int32_t dead);

/* DESIGN 6: RETIRED under the ring lock, then stripe by stripe.  Call until it is not ST_BUSY; sleeps up to 50 ms for a lock. */
Status store_retire(Call *call);

typedef struct Finding {
    const char *what;             /* static text */
    int64_t stripe;               /* -1 = none */
    uint64_t offset;
    uint64_t found;
    uint64_t expected;
} Finding;
/* One stripe under its lock; up to capacity findings, *count of all.  stripe == stripe_count: what is global. */
Status audit_stripe(Call *call, uint32_t stripe, bool deep, Finding *findings, uint32_t capacity, uint32_t *count);

/* ---- cold recovery: one process, arena still STATE_CREATING --------------------------------------- */
typedef struct ReplayResult {
    uint64_t consumed_bytes;      /* whole valid records from the start of the buffer */
    uint64_t next_lsn;
    uint64_t records;
    uint64_t applied;             /* entries changed */
    uint64_t durable_before;      /* highest seen */
    uint64_t wall_ms;             /* of the last mark */
    uint64_t mark_lsn;            /* LSN of that mark, 0 = there was none */
    const char *stopped;          /* NULL = buffer ended at a record's end; else why the next one is no record:
                                     "short" (more bytes needed), "length", "lsn", "header crc", "body crc", "kind";
                                     or "limit": it is past a limit */
} ReplayResult;
typedef struct ReplayLimits {
    uint64_t lsn;                 /* the last record that counts may have this LSN */
    uint64_t wall_ms;             /* stops at the first mark that is later */
} ReplayLimits;
/* Checks records from buffer (the first must have LSN first_lsn) and, if arena, applies them where newer.  limits: or
 * NULL. */
Status replay(Arena *arena, uint32_t record_seed, const uint8_t *buffer, uint64_t length, uint64_t first_lsn,
              const ReplayLimits *limits, ReplayResult *result);

/* ---- snapshots: entries as raw bytes ---------------------------------------------------------------- */
/* An image: the Entry from its version on, as it lies in the arena, padded with zeros to 8. */
typedef struct FillResult {
    uint64_t used_bytes;
    uint64_t needed_bytes;        /* of the next entry, when it alone is larger than the buffer; else 0 */
    uint32_t entries;
    uint32_t stripe;
    /* ST_CORRUPT */
    const char *what;             /* static text */
    uint64_t found, expected;
    uint64_t hash;                /* of the key, if it could be read */
} FillResult;
/* Copies images of one stripe, from *cursor on (0 to begin with, CURSOR_END at the end), all namespaces, expired ones
 * too, cleared ones not.  Without a lock unless writers keep it from that; in a retired arena, too.  ST_BUSY;
 * ST_CORRUPT: the arena is condemned. */
Status store_fill(Call *call, uint64_t *cursor, uint8_t *buffer, uint64_t capacity, FillResult *result);

typedef struct LoadResult {
    uint64_t consumed_bytes;      /* whole valid images from the start of the buffer */
    uint64_t entries;
    uint64_t applied;             /* were newer than what was there */
    uint64_t highest_version;
    const char *stopped;          /* NULL = all of it; else what is wrong with the next: "length", "version",
                                     "body crc", "stripe" (not in [first_stripe, end_stripe)) */
} LoadResult;
/* Checks images and, if arena (STATE_CREATING), puts them where newer.  Several threads may load at once, each its own
 * stripes.  ST_FULL: part of it may be there; who loads all stripes, hence alone, is given room by moving entries. */
Status store_load(Arena *arena, const uint8_t *buffer, uint64_t length, uint32_t first_stripe, uint32_t end_stripe,
                  LoadResult *result);

/* value types that the core itself understands */
#define TYPE_NONE 0u
#define TYPE_FALSE 1u
#define TYPE_TRUE 2u
#define TYPE_INT 3u               /* 8 bytes, little-endian, signed */
#define TYPE_FLOAT 4u             /* 8 bytes, IEEE 754, little-endian */
#define TYPE_BYTES 5u
#define TYPE_STR 6u               /* UTF-8 */
#define TYPE_CODEC 7u             /* first type of the Python codecs: see shmkv/values.py */

#endif
