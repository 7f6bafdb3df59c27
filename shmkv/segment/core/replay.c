/* replay.c: checks log records and applies them to an arena that nobody else can see yet (STATE_CREATING).
 *
 * Invariants:
 *   I1  A record is valid if and only if: its length is sane and inside the buffer, its LSN is where it stands, the header CRC
 *       (seeded by store id and incarnation) and the body CRCs fit, and the body's lengths add up.  Nothing is applied before.
 *   I2  An entry is replaced only by a newer version, so a record may be applied twice.
 *   I3  No locks, no ring, no redo lists: a kill here leaves an arena that the next start throws away.
 */
#include "compact.h"
#include "heap.h"
#include "ring.h"
#include "table.h"

#include <sys/syscall.h>
#include <unistd.h>

#define ROOM_TRIES 8
#define AHEAD 16u             /* records whose buckets are fetched while earlier ones are applied */

typedef struct Change {
    uint64_t lsn;
    const uint8_t *body;      /* entry from ENTRY_BODY on */
    uint64_t length;
    uint32_t crc;
    uint32_t kind;
    Key key;
} Change;

typedef struct Replay {
    Arena *arena;
    ReplayResult *result;
    Change pending[AHEAD];
    uint32_t count;
} Replay;

/* ---- applying ---------------------------------------------------------------------------------------------------- */
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

/* The old entry goes first, since nobody looks and a kill throws all of it away: a full store takes no more room here than
 * it took when it ran. */
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

static Status apply(Replay *replay, const Change *change) {
    Arena *arena = replay->arena;
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
        replay->result->applied += status == ST_OK;
        return status;
    }
    replay->result->applied++;
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

static Status flush(Replay *replay) {
    Status s = ST_OK;
    for (uint32_t i = 0; i < replay->count && s == ST_OK; i++) {
        const Change *change = &replay->pending[i];
        s = apply(replay, change);
        for (int tries = 0; s == ST_FULL && tries < ROOM_TRIES && make_room(replay->arena, change->length + ENTRY_BODY); tries++) {
            s = apply(replay, change);
        }
    }
    replay->count = 0;
    return s;
}

static Status queue(Replay *replay, const Change *change) {
    if (replay->arena == NULL) {
        return ST_OK;
    }
    Change *to = &replay->pending[replay->count++];
    *to = *change;
    Status s = key_init(replay->arena, &to->key, change->key.data, change->key.length, change->key.namespace_id);
    if (s != ST_OK) {
        return s;
    }
    __builtin_prefetch(table_bucket(replay->arena, to->key.hash));
    return replay->count == AHEAD ? flush(replay) : ST_OK;
}

static Status apply_clear(Replay *replay, uint16_t namespace_id, uint64_t lsn) {
    Arena *arena = replay->arena;
    if (arena == NULL || namespace_id >= NAMESPACE_COUNT) {
        return arena == NULL ? ST_OK : ST_CORRUPT;
    }
    Status s = flush(replay);
    for (uint32_t i = 0; i < arena->stripe_count && s == ST_OK; i++) {
        Stripe *stripe = &arena->stripes[i];
        if (stripe->clear_lsn[namespace_id] < lsn) {
            stripe->clear_lsn[namespace_id] = lsn;
            stripe->max_clear_lsn = lsn > stripe->max_clear_lsn ? lsn : stripe->max_clear_lsn;
            stripe->count[namespace_id] = 0;
        }
    }
    replay->result->applied++;
    return s;
}

/* ---- checking ----------------------------------------------------------------------------------------------------- */
/* Takes a put's or delete's body apart; false if its lengths don't add up. */
static bool parse_body(const uint8_t *body, uint64_t length, uint32_t kind, Change *change) {
    if (length < sizeof(Entry) - ENTRY_BODY) {
        return false;
    }
    uint32_t value_length;
    uint16_t key_length, namespace_id;
    memcpy(&value_length, body, 4);
    memcpy(&key_length, body + 4, 2);
    memcpy(&namespace_id, body + 6, 2);
    uint8_t flags = body[9];
    if (entry_bytes(flags, key_length, value_length) != length + ENTRY_BODY || namespace_id >= NAMESPACE_COUNT ||
        (kind == RECORD_DELETE && (value_length != 0 || flags != 0))) {
        return false;
    }
    change->body = body;
    change->length = length;
    change->kind = kind;
    change->key = (Key){.data = body + entry_key_offset(flags) - ENTRY_BODY, .length = key_length, .namespace_id = namespace_id};
    return true;
}

/* A single record's body is padded to 8: its true length follows from its own fields. */
static bool true_length(const uint8_t *body, uint64_t padded, uint64_t *length) {
    if (padded < sizeof(Entry) - ENTRY_BODY) {
        return false;
    }
    uint32_t value_length;
    uint16_t key_length;
    memcpy(&value_length, body, 4);
    memcpy(&key_length, body + 4, 2);
    *length = entry_bytes(body[9], key_length, value_length) - ENTRY_BODY;
    return align_up(*length, 8) == padded;
}

/* No checksum covers the padding behind a body: it must be zero. */
static bool padding_is_zero(const uint8_t *body, uint64_t length) {
    for (uint64_t i = length; i < align_up(length, 8); i++) {
        if (body[i] != 0) {
            return false;
        }
    }
    return true;
}

static const char *take_single(Replay *replay, const RecordHeader *h, const uint8_t *body, Status *s) {
    Change change = {.lsn = h->lsn, .crc = h->body_crc};
    uint64_t length;
    if (!true_length(body, h->length - sizeof *h, &length) || crc32c(0, body, length) != h->body_crc ||
        !padding_is_zero(body, length) || !parse_body(body, length, h->kind, &change)) {
        return "body crc";
    }
    *s = queue(replay, &change);
    return NULL;
}

static const char *take_batch(Replay *replay, const RecordHeader *h, const uint8_t *body, Status *s) {
    uint64_t left = h->length - sizeof *h, table_bytes = h->count * sizeof(BatchItem);
    if (h->count == 0 || table_bytes > left || crc32c(0, body, table_bytes) != h->body_crc) {
        return "body crc";
    }
    /* First pass: all of it is sound; second: apply.  A record counts as a whole or not at all. */
    for (int pass = 0; pass < 2; pass++) {
        uint64_t at = table_bytes;
        for (uint32_t i = 0; i < h->count && *s == ST_OK; i++) {
            BatchItem item;
            memcpy(&item, body + i * sizeof item, sizeof item);
            Change change = {.lsn = h->lsn, .crc = item.body_crc};
            if (align_up(item.length, 8) > left - at || (item.kind != RECORD_PUT && item.kind != RECORD_DELETE) ||
                !parse_body(body + at, item.length, item.kind, &change)) {
                return "body crc";
            }
            if (pass == 0 && (crc32c(0, body + at, item.length) != item.body_crc || !padding_is_zero(body + at, item.length))) {
                return "body crc";
            }
            if (pass == 1) {
                *s = queue(replay, &change);
            }
            at += align_up(item.length, 8);
        }
        if (*s == ST_OK && at != left) {
            return "length";
        }
    }
    return NULL;
}

static const char *take_body(Replay *replay, const RecordHeader *h, const uint8_t *body, Status *s) {
    switch (h->kind) {
    case RECORD_PUT:
    case RECORD_DELETE:
        return take_single(replay, h, body, s);
    case RECORD_BATCH:
        return take_batch(replay, h, body, s);
    case RECORD_CLEAR:
        if (h->length != sizeof *h || h->body_crc != 0) {
            return "length";
        }
        *s = apply_clear(replay, h->count, h->lsn);
        return NULL;
    case RECORD_MARK: {
        MarkBody mark;
        if (h->length != sizeof *h + sizeof mark || crc32c(0, body, sizeof mark) != h->body_crc) {
            return "body crc";
        }
        memcpy(&mark, body, sizeof mark);
        replay->result->wall_ms = mark.wall_ms;
        return NULL;
    }
    default:
        return "kind";
    }
}

static const char *check_header(const RecordHeader *h, uint64_t left, uint64_t lsn, uint32_t seed) {
    if (h->length < sizeof *h || h->length % 8 != 0) {
        return "length";
    }
    if (h->lsn != lsn) {
        return "lsn";
    }
    if (record_header_crc(h, seed) != h->header_crc) {
        return "header crc";
    }
    return h->length > left ? "short" : NULL;
}

Status replay(Arena *arena, uint32_t record_seed, const uint8_t *buffer, uint64_t length, uint64_t first_lsn,
              ReplayResult *result) {
    Replay state = {.arena = arena, .result = result};
    Status s = ST_OK;
    *result = (ReplayResult){.next_lsn = first_lsn};
    while (s == ST_OK && result->consumed_bytes < length) {
        RecordHeader h;
        uint64_t left = length - result->consumed_bytes;
        if (left < sizeof h) {
            result->stopped = "short";
            break;
        }
        memcpy(&h, buffer + result->consumed_bytes, sizeof h);
        result->stopped = check_header(&h, left, result->next_lsn, record_seed);
        if (result->stopped == NULL) {
            result->stopped = take_body(&state, &h, buffer + result->consumed_bytes + sizeof h, &s);
        }
        if (result->stopped != NULL) {
            break;
        }
        result->consumed_bytes += h.length;
        result->next_lsn += h.length;
        result->records++;
        if (h.durable_before > result->durable_before) {
            result->durable_before = h.durable_before;
        }
    }
    if (s == ST_OK && arena != NULL) {
        s = flush(&state);
    }
    return s;
}
