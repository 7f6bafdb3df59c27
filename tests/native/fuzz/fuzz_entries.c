/* fuzz_entries.c: any bytes as entry images: checked and loaded alike, and the arena is sound whatever they were.
 *
 * Input: one byte of flags, then images.  Flags: 1 put checksums right, 2 load in two halves of the stripes, too,
 * 4 load after a clear.
 */
#include "fuzz.h"
#include "table.h"

#include <stdlib.h>

static void reseal(uint8_t *images, uint64_t length) {
    Entry head;
    for (uint64_t at = 0, bytes; at + sizeof head <= length; at += align_up(bytes, 8)) {
        memcpy(&head, images + at, sizeof head);
        bytes = entry_size(&head);
        if (bytes > length - at) {
            return;
        }
        head.body_crc = crc32c(0, images + at + ENTRY_BODY, bytes - ENTRY_BODY);
        memcpy(images + at, &head, sizeof head);
    }
}

static void load_all(Arena *arena, const uint8_t *images, uint64_t length, const LoadResult *checked) {
    LoadResult loaded;
    for (int twice = 0; twice < 2; twice++) {
        Status s = store_load(arena, images, length, 0, arena->stripe_count, &loaded);
        if (s != ST_OK && s != ST_FULL) {
            fuzz_failed("load", s, ST_OK);
        }
        if (s == ST_OK && (loaded.consumed_bytes != checked->consumed_bytes || loaded.stopped != checked->stopped ||
                           loaded.highest_version != checked->highest_version || (twice && loaded.applied != 0))) {
            fuzz_failed("bytes that load took", loaded.consumed_bytes, checked->consumed_bytes);
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 1) {
        return 0;
    }
    uint64_t length = size - 1;
    uint8_t *images = malloc(length + 1);
    if (images == NULL) {
        return 0;
    }
    memcpy(images, data + 1, length);
    if (data[0] & 1) {
        reseal(images, length);
    }
    LoadResult checked, part;
    Arena *arena = fuzz_arena();
    if (store_load(NULL, images, length, 0, 0, &checked) != ST_OK || checked.consumed_bytes > length) {
        fuzz_failed("check", checked.consumed_bytes, length);
    }
    if (data[0] & 4) {
        arena->stripes[0].max_clear_lsn = arena->stripes[0].clear_lsn[1] = FUZZ_FIRST_LSN;
    }
    if (data[0] & 2) {
        uint32_t half = arena->stripe_count / 2;
        for (uint32_t i = 0; i < 2; i++) {
            Status s = store_load(arena, images, length, i * half, (i + 1) * half, &part);
            if ((s != ST_OK && s != ST_FULL) || part.consumed_bytes > checked.consumed_bytes) {
                fuzz_failed("load of a half", s, ST_OK);
            }
        }
    }
    load_all(arena, images, length, &checked);
    fuzz_check(arena);
    free(images);
    return 0;
}
