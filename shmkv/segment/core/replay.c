/* replay.c: checks log records and applies them to an arena that nobody else can see yet (STATE_CREATING).
 *
 * Invariants:
 *   I1  A record is valid if and only if: its length is sane and inside the buffer, its LSN is where it stands, the
 *       header CRC (seeded by store id and incarnation) and the body CRCs fit, and the body's lengths add up.  Nothing
 *       is applied before.
 *   I2  Records are applied in their order (apply.h): a clear finds all before it applied.
 *   I3  Counts of live entries are right when a call ends.  Within it a clear that is older than entries of a snapshot
 *       leaves them too low, which makes a sweep walk the stripe for nothing, but never skip one.
 */
#include "apply.h"
#include "ring.h"
#include "table.h"

typedef struct Replay {
    ApplyQueue queue;         /* its arena is NULL when records are only checked */
    bool recount;             /* a clear found entries of a snapshot that are newer */
    const ReplayLimits *limits;
    ReplayResult *result;
} Replay;

static Status queue_change(Replay *replay, Change *change) {
    const Arena *arena = replay->queue.arena;
    if (arena == NULL) {
        return ST_OK;
    }
    Status s = key_init(arena, &change->key, change->key.data, change->key.length, change->key.namespace_id);
    return s == ST_OK ? apply_put_in_queue(&replay->queue, change) : s;
}

static Status apply_clear(Replay *replay, uint16_t namespace_id, uint64_t lsn) {
    Arena *arena = replay->queue.arena;
    if (arena == NULL) {
        return ST_OK;
    }
    Status s = apply_flush(&replay->queue);
    replay->recount |= lsn < arena->loaded_version;
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

/* ---- checking ---------------------------------------------------------------------------------------------------- */
static const char *take_single(Replay *replay, const RecordHeader *h, const uint8_t *body, Status *s) {
    /* A single record's body is padded to 8: its true length follows from its own fields. */
    uint64_t padded = h->length - sizeof *h, length = body_length(body, padded);
    Change change = {.lsn = h->lsn, .crc = h->body_crc};
    if (length == 0 || align_up(length, 8) != padded || crc32c(0, body, length) != h->body_crc ||
        !body_padding_is_zero(body, length) || !change_parse(&change, body, length, h->kind)) {
        return "body crc";
    }
    *s = queue_change(replay, &change);
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
                !change_parse(&change, body + at, item.length, item.kind)) {
                return "body crc";
            }
            if (pass == 0 && (crc32c(0, body + at, item.length) != item.body_crc ||
                              !body_padding_is_zero(body + at, item.length))) {
                return "body crc";
            }
            if (pass == 1) {
                *s = queue_change(replay, &change);
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
        if (h->length != sizeof *h || h->body_crc != 0 || h->count >= NAMESPACE_COUNT) {
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
        if (mark.wall_ms > replay->limits->wall_ms) {
            return "limit";
        }
        replay->result->wall_ms = mark.wall_ms;
        replay->result->mark_lsn = h->lsn;
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

/* The next record; false if there is none. */
static bool take_record(Replay *replay, uint32_t seed, const uint8_t *buffer, uint64_t left, Status *s) {
    ReplayResult *result = replay->result;
    RecordHeader h;
    if (result->next_lsn > replay->limits->lsn) {
        result->stopped = "limit";
        return false;
    }
    if (left < sizeof h) {
        result->stopped = "short";
        return false;
    }
    memcpy(&h, buffer, sizeof h);
    result->stopped = check_header(&h, left, result->next_lsn, seed);
    if (result->stopped == NULL) {
        result->stopped = take_body(replay, &h, buffer + sizeof h, s);
    }
    if (result->stopped != NULL) {
        return false;
    }
    result->consumed_bytes += h.length;
    result->next_lsn += h.length;
    result->records++;
    result->durable_before = h.durable_before > result->durable_before ? h.durable_before : result->durable_before;
    return *s == ST_OK;
}

Status replay(Arena *arena, uint32_t record_seed, const uint8_t *buffer, uint64_t length, uint64_t first_lsn,
              const ReplayLimits *limits, ReplayResult *result) {
    static const ReplayLimits none = {.lsn = UINT64_MAX, .wall_ms = UINT64_MAX};
    Replay state = {.queue.arena = arena, .queue.alone = true, .limits = limits != NULL ? limits : &none,
                    .result = result};
    Status s = ST_OK;
    *result = (ReplayResult){.next_lsn = first_lsn};
    while (result->consumed_bytes < length &&
           take_record(&state, record_seed, buffer + result->consumed_bytes, length - result->consumed_bytes, &s)) {
    }
    if (s == ST_OK && arena != NULL) {
        s = apply_flush(&state.queue);
    }
    if (s == ST_OK && state.recount) {
        s = apply_recount(arena);
    }
    result->applied += state.queue.applied;
    return s;
}
