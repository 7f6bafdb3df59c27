/* fuzz_records.c: any bytes as a log: checked and applied alike, and the arena is sound whatever they were.
 *
 * Input: one byte of flags, then records.  Flags: 1 put LSNs and header checksums right, 2 body checksums, too.
 */
#include "fuzz.h"
#include "ring.h"
#include "table.h"

#include <stdlib.h>

static uint64_t body_covered(const RecordHeader *h, const uint8_t *body, uint64_t left) {
    uint64_t length = 0;
    if (h->kind == RECORD_BATCH) {
        length = h->count * sizeof(BatchItem);
    } else if (h->kind == RECORD_MARK) {
        length = sizeof(MarkBody);
    } else if (left >= 12) {
        uint32_t value_length;
        uint16_t key_length;
        memcpy(&value_length, body, 4);
        memcpy(&key_length, body + 4, 2);
        length = entry_bytes(body[9], key_length, value_length) - ENTRY_BODY;
    }
    return min_u64(length, left);
}

static void reseal_batch(uint8_t *body, uint64_t left, uint32_t count) {
    uint64_t at = count * sizeof(BatchItem);
    for (uint32_t i = 0; i < count && at <= left; i++) {
        BatchItem item;
        memcpy(&item, body + i * sizeof item, sizeof item);
        if (item.length > left - at) {
            return;
        }
        item.body_crc = crc32c(0, body + at, item.length);
        memcpy(body + i * sizeof item, &item, sizeof item);
        at += align_up(item.length, 8);
    }
}

static void reseal(uint8_t *log, uint64_t length, bool bodies, uint32_t seed) {
    RecordHeader h;
    for (uint64_t at = 0; at + sizeof h <= length; at += h.length) {
        memcpy(&h, log + at, sizeof h);
        if (h.length < sizeof h || h.length > length - at) {
            return;
        }
        uint8_t *body = log + at + sizeof h;
        uint64_t left = h.length - sizeof h;
        h.lsn = FUZZ_FIRST_LSN + at;
        if (bodies && h.kind == RECORD_BATCH && h.count * sizeof(BatchItem) <= left) {
            reseal_batch(body, left, h.count);
        }
        if (bodies && h.kind != RECORD_CLEAR) {
            h.body_crc = crc32c(0, body, body_covered(&h, body, left));
        }
        h.header_crc = record_header_crc(&h, seed);
        memcpy(log + at, &h, sizeof h);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 1) {
        return 0;
    }
    uint32_t seed = arena_record_seed(fuzz_store_id, FUZZ_INCARNATION);
    uint64_t length = size - 1;
    uint8_t *log = malloc(length + 1);
    if (log == NULL) {
        return 0;
    }
    memcpy(log, data + 1, length);
    if (data[0] & 3) {
        reseal(log, length, (data[0] & 2) != 0, seed);
    }
    ReplayResult checked, applied, again;
    Arena *arena = fuzz_arena();
    Status s = replay(NULL, seed, log, length, FUZZ_FIRST_LSN, NULL, &checked);
    if (s != ST_OK || checked.consumed_bytes > length) {
        fuzz_failed("check", s, checked.consumed_bytes);
    }
    s = replay(arena, seed, log, length, FUZZ_FIRST_LSN, NULL, &applied);
    if (s != ST_OK && s != ST_FULL) {
        fuzz_failed("apply", s, ST_OK);
    }
    if (s == ST_OK && (applied.consumed_bytes != checked.consumed_bytes || applied.records != checked.records ||
                       applied.stopped != checked.stopped || applied.mark_lsn != checked.mark_lsn)) {
        fuzz_failed("bytes that apply took", applied.consumed_bytes, checked.consumed_bytes);
    }
    const ReplayLimits limits = {.lsn = FUZZ_FIRST_LSN + length / 2, .wall_ms = UINT64_MAX};
    if (s == ST_OK && (replay(arena, seed, log, length, FUZZ_FIRST_LSN, &limits, &again) != ST_OK ||
                       again.consumed_bytes > checked.consumed_bytes)) {
        fuzz_failed("bytes within the limit", again.consumed_bytes, checked.consumed_bytes);
    }
    fuzz_check(arena);
    free(log);
    return 0;
}
