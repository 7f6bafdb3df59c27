/* images.c: see images.h. */
#include "images.h"
#include "model.h"
#include "table.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* All images of the arena, in steps of a buffer of that size, exactly that long so that ASan sees a byte too many. */
Status fill_all(Call *call, Images *images, uint64_t buffer_bytes, FillResult *result) {
    uint64_t cursor = 0;
    images->length = images->entries = 0;
    while (cursor != CURSOR_END) {
        uint8_t *buffer = malloc(buffer_bytes + 1);
        CHECK(buffer != NULL);
        Status s = store_fill(call, &cursor, buffer, buffer_bytes, result);
        if (s != ST_OK) {
            free(buffer);
            return s;
        }
        CHECK(result->used_bytes <= buffer_bytes && result->used_bytes % 8 == 0);
        CHECK_EQUAL(result->used_bytes == 0, result->entries == 0);
        if (images->length + result->used_bytes > images->capacity) {
            images->capacity = 2 * (images->length + result->used_bytes);
            images->bytes = realloc(images->bytes, images->capacity);
            CHECK(images->bytes != NULL);
        }
        if (result->used_bytes != 0) {
            memcpy(images->bytes + images->length, buffer, result->used_bytes);
        }
        images->length += result->used_bytes;
        images->entries += result->entries;
        free(buffer);
        if (result->needed_bytes != 0) {
            CHECK(result->used_bytes == 0 && result->needed_bytes > buffer_bytes);
            buffer_bytes = result->needed_bytes;
        }
    }
    return ST_OK;
}

void fill_well(Call *call, Images *images, uint64_t buffer_bytes) {
    FillResult result;
    Status s = fill_all(call, images, buffer_bytes, &result);
    CHECK_SAYING(s == ST_OK, "fill: status %d, wrong %s", s, result.what);
}

void load_well(World *copy, const Images *images) {
    LoadResult result;
    CHECK_EQUAL(store_load(&copy->arena, images->bytes, images->length, 0, copy->arena.stripe_count, &result), ST_OK);
    CHECK_SAYING(result.stopped == NULL && result.consumed_bytes == images->length && result.entries == images->entries,
                 "load stopped: %s", result.stopped);
}

Status load_range(World *copy, const Images *images, uint32_t first, uint32_t end) {
    LoadResult result;
    for (uint64_t at = 0; at < images->length; at += result.consumed_bytes) {
        /* One image at a time, since those of other stripes lie between. */
        uint64_t bytes = align_up(entry_size((const Entry *)(images->bytes + at)), 8);
        Status s = store_load(&copy->arena, images->bytes + at, bytes, first, end, &result);
        if (s != ST_OK) {
            return s;
        }
        CHECK(result.stopped == NULL || strcmp(result.stopped, "stripe") == 0);
        result.consumed_bytes = bytes;
    }
    return ST_OK;
}

/* As world_make, but its log goes on where the other's is, so that the audit believes the versions. */
void copy_make(World *copy, const World *of, const WorldOptions *options) {
    world_make(copy, options);
    world_log_at(copy, of->arena.control->ring_tail);
}

/* Keys number first to first + n - 1. */
void put_many(World *world, uint32_t first, uint32_t n, uint64_t largest, Random *random) {
    uint8_t *data = malloc(largest + 1);
    CHECK(data != NULL);
    pattern_fill(data, largest, 1);
    char text[32];
    for (uint32_t i = first; i < first + n; i++) {
        snprintf(text, sizeof text, "%.*s%u", (int)(i % 20), "a-key-of-some-length-", i);
        CHECK_EQUAL(do_put(&world->call, text, data, random_below(random, largest + 1)), ST_OK);
    }
    free(data);
}
