/* snapshots.c: see snapshots.h. */
#include "snapshots.h"
#include "ring.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define LARGEST_IMAGE 200000u
#define LOADERS 3u
#define REST 6u               /* times as long as a comparison takes */

static void begin(Walk *walk) {
    walk->resting = false;
    walk->used = 0;
    walk->count = 0;
    walk->cursor = 0;
    walk->log.length = 0;
    walk->start_lsn = load_acquire(&walk->world->arena.control->ring_tail);
    walk->log.first_lsn = walk->start_lsn;
}

void walk_make(Walk *walk, World *world, uint64_t seed) {
    *walk = (Walk){.world = world, .random = {seed}, .resting = true};
}

void walk_free(Walk *walk) {
    free(walk->images);
    free(walk->blocks);
    log_free(&walk->log);
}

static void grow(Walk *walk) {
    if (walk->capacity - walk->used < LARGEST_IMAGE) {
        walk->capacity = 2 * walk->capacity + 2 * LARGEST_IMAGE;
        walk->images = realloc(walk->images, walk->capacity);
    }
    if (walk->count == walk->blocks_most) {
        walk->blocks_most = 2 * walk->blocks_most + 64;
        walk->blocks = realloc(walk->blocks, walk->blocks_most * sizeof *walk->blocks);
    }
    CHECK(walk->images != NULL && walk->blocks != NULL);
}

bool walk_on(Walk *walk) {
    Call *call = &walk->world->call;
    if (walk->resting) {
        if (clock_monotonic_ns() < walk->next_ns) {
            return false;
        }
        begin(walk);
    }
    for (int step = 0; step < 8 && walk->cursor != CURSOR_END; step++) {
        grow(walk);
        uint64_t before = walk->cursor, capacity = random_one_in(&walk->random, 2) ? LARGEST_IMAGE
                                                                                   : random_below(&walk->random, 4000);
        FillResult result;
        Status s = store_fill(call, &walk->cursor, walk->images + walk->used, capacity, &result);
        if (s == ST_BUSY) {
            (void)store_wait(call, clock_monotonic_ns() + 1000000);
            continue;
        }
        CHECK_SAYING(s == ST_OK, "fill: status %d, wrong %s in stripe %u, found %llx, expected %llx", s, result.what,
                     result.stripe, (unsigned long long)result.found, (unsigned long long)result.expected);
        CHECK(result.needed_bytes == 0 || (result.needed_bytes > capacity && result.needed_bytes <= LARGEST_IMAGE &&
                                           result.entries == 0 && walk->cursor >= before));
        if (result.used_bytes != 0) {
            walk->blocks[walk->count++] = (Block){walk->used, result.used_bytes, result.stripe};
            walk->used += result.used_bytes;
        }
        walk->entries += result.entries;
    }
    return walk->cursor == CURSOR_END;
}

void walk_take_log(Walk *walk, uint64_t lsn, const uint8_t *bytes, uint64_t length) {
    uint64_t end = lsn + length, from = lsn > walk->start_lsn ? lsn : walk->start_lsn;
    if (walk->resting || end <= from) {
        return;
    }
    CHECK_EQUAL(from, walk->log.first_lsn + walk->log.length);
    if (walk->log.length + (end - from) > walk->log.capacity) {
        walk->log.capacity = 2 * (walk->log.length + (end - from));
        walk->log.bytes = realloc(walk->log.bytes, walk->log.capacity);
        CHECK(walk->log.bytes != NULL);
    }
    memcpy(walk->log.bytes + walk->log.length, bytes + (from - lsn), end - from);
    walk->log.length += end - from;
}

typedef struct Loader {
    const Walk *walk;
    World *copy;
    uint32_t number;
} Loader;

static void *load_part(void *context) {
    const Loader *loader = context;
    const Walk *walk = loader->walk;
    uint64_t stripes = walk->world->arena.stripe_count, copied = loader->copy->arena.stripe_count;
    /* In eighths of all stripes. */
    uint32_t first = loader->number * 8 / LOADERS, end = (loader->number + 1) * 8 / LOADERS;
    for (uint32_t i = 0; i < walk->count; i++) {
        const Block *block = &walk->blocks[i];
        uint64_t eighth = block->stripe * 8 / stripes;
        if (eighth < first || eighth >= end) {
            continue;
        }
        LoadResult result;
        Status s = store_load(&loader->copy->arena, walk->images + block->begin, block->length,
                              (uint32_t)(first * copied / 8), (uint32_t)(end * copied / 8), &result);
        CHECK_SAYING(s == ST_OK && result.stopped == NULL && result.consumed_bytes == block->length,
                     "load: status %d, stopped: %s", s, result.stopped);
    }
    return NULL;
}

void walk_compare(Walk *walk, Call *same, uint64_t end_lsn) {
    CHECK_EQUAL(walk->log.first_lsn + walk->log.length, end_lsn);
    uint64_t begun = clock_monotonic_ns();
    WorldOptions options = walk->world->options;
    options.size_bytes *= 2;
    options.stripe_count = 16U << random_below(&walk->random, 3);
    World copy;
    world_make(&copy, &options);
    pthread_t threads[LOADERS];
    Loader loaders[LOADERS];
    for (uint32_t i = 0; i < LOADERS; i++) {
        loaders[i] = (Loader){walk, &copy, i};
        CHECK_EQUAL(pthread_create(&threads[i], NULL, load_part, &loaders[i]), 0);
    }
    for (uint32_t i = 0; i < LOADERS; i++) {
        pthread_join(threads[i], NULL);
    }
    ReplayResult result;
    Status s = replay(&copy.arena, walk->world->arena.record_seed, walk->log.bytes, walk->log.length, walk->start_lsn,
                      NULL, &result);
    CHECK_SAYING(s == ST_OK && result.stopped == NULL && result.next_lsn == end_lsn, "log: status %d, stopped: %s", s,
                 result.stopped);
    world_log_at(&copy, end_lsn);
    audit_clean(&copy.call);
    arenas_equal(same, &copy.call);
    world_free(&copy);
    walk->finished++;
    walk->resting = true;
    walk->next_ns = clock_monotonic_ns() + REST * (clock_monotonic_ns() - begun);
}
