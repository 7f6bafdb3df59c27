/* test_walk.c: threads that load stripes of their own, and walks beside writers: what TSan watches, too. */
#include "images.h"
#include "model.h"
#include "suite.h"
#include "table.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LOADERS 4u
typedef struct Loader {
    World *copy;
    const Images *images;
    uint32_t number;
    Status status;
} Loader;

static void *load_part(void *context) {
    Loader *loader = context;
    uint32_t stripes = loader->copy->arena.stripe_count;
    loader->status = load_range(loader->copy, loader->images, loader->number * stripes / LOADERS,
                                (loader->number + 1) * stripes / LOADERS);
    return NULL;
}

static void threads_load_stripes_of_their_own_at_once(Random *random) {
    World world, copy;
    world_make(&world, &(WorldOptions){.no_log = true, .expected_items = 100});
    put_many(&world, 0, 2000, 1000, random);
    Images images = {0};
    fill_well(&world.call, &images, MIB);
    for (int round = 0; round < 4; round++) {
        /* The last one is too small: some of them are told so, and nothing is broken. */
        copy_make(&copy, &world, &(WorldOptions){.no_log = true, .expected_items = 100,
                                                 .stripe_count = 16U << round % 3,
                                                 .size_bytes = round == 3 ? 6 * MIB : 32 * MIB});
        pthread_t threads[LOADERS];
        Loader loaders[LOADERS];
        uint32_t full = 0;
        for (uint32_t i = 0; i < LOADERS; i++) {
            loaders[i] = (Loader){&copy, &images, i, ST_OK};
            CHECK_EQUAL(pthread_create(&threads[i], NULL, load_part, &loaders[i]), 0);
        }
        for (uint32_t i = 0; i < LOADERS; i++) {
            pthread_join(threads[i], NULL);
            CHECK(loaders[i].status == ST_OK || loaders[i].status == ST_FULL);
            full += loaders[i].status == ST_FULL;
        }
        CHECK_EQUAL(full != 0, round == 3);
        audit_clean(&copy.call);
        if (round != 3) {
            arenas_equal(&world.call, &copy.call);
        }
        world_free(&copy);
    }
    free(images.bytes);
    world_free(&world);
}

typedef struct Writer {
    World *world;
    uint64_t seed;
    uint32_t stop;
} Writer;

static void *write_on(void *context) {
    Writer *writer = context;
    Random random = {writer->seed};
    Call call;
    call_open(&call, &writer->world->arena);
    uint8_t *data = malloc(70000);
    CHECK(data != NULL);
    pattern_fill(data, 70000, writer->seed);
    while (load_relaxed_u32(&writer->stop) == 0) {
        char text[32];
        snprintf(text, sizeof text, "key%llu", (unsigned long long)random_below(&random, 100));
        uint64_t pages;
        uint32_t stripe = (uint32_t)random_below(&random, call.arena->stripe_count);
        Key key = key_of(call.arena, text);
        switch (random_below(&random, 20)) {
        case 0: CHECK(do_delete(&call, &key, 0) != ST_CORRUPT); break;
        case 1: CHECK_EQUAL(do_compact(&call, stripe, &pages), ST_OK); break;
        case 2: CHECK_EQUAL(do_sweep(&call, stripe), ST_OK); break;
        case 3: CHECK(random_one_in(&random, 5) ? do_clear(&call, 0) == ST_OK : true); break;
        default:
            CHECK_EQUAL(do_put(&call, text, data, random_below(&random, random_one_in(&random, 8) ? 70000 : 500)), ST_OK);
        }
    }
    free(data);
    call_close(&call);
    return NULL;
}

static void *write_large(void *context) {
    Writer *writer = context;
    Random random = {writer->seed};
    Call call;
    call_open(&call, &writer->world->arena);
    uint8_t *data = malloc(400000);
    CHECK(data != NULL);
    for (uint64_t i = 0; load_relaxed_u32(&writer->stop) == 0; i++) {
        memset(data, (int)random_next(&random), 400000);
        CHECK_EQUAL(do_put(&call, random_one_in(&random, 2) ? "a" : "b", data, random_between(&random, 390000, 400000)),
                    ST_OK);
    }
    free(data);
    call_close(&call);
    return NULL;
}

/* Copied without the sequence: only what was the same before and after is believed, else the checksum would be wrong. */
static void large_values_that_are_overwritten_meanwhile_are_whole(Random *random) {
    World world;
    world_make(&world, &(WorldOptions){.no_log = true, .size_bytes = 24 * MIB, .ring_bytes = 4 * MIB, .shared = true});
    CHECK_EQUAL(do_put(&world.call, "a", "small", 5), ST_OK);
    pthread_t threads[2];
    Writer writers[2];
    for (uint32_t i = 0; i < 2; i++) {
        writers[i] = (Writer){&world, random_next(random), 0};
        CHECK_EQUAL(pthread_create(&threads[i], NULL, write_large, &writers[i]), 0);
    }
    uint64_t end = clock_monotonic_ns() + 500000000, large = 0;
    uint8_t *buffer = malloc(500000);
    CHECK(buffer != NULL);
    do {
        uint64_t cursor = 0;
        while (cursor != CURSOR_END) {
            FillResult result;
            Status s = store_fill(&world.call, &cursor, buffer, 500000, &result);
            if (s == ST_BUSY) {
                (void)store_wait(&world.call, clock_monotonic_ns() + 1000000);
                continue;
            }
            CHECK_SAYING(s == ST_OK, "fill: status %d, wrong %s", s, result.what);
            large += result.used_bytes > 100000;
        }
    } while (clock_monotonic_ns() < end);
    for (uint32_t i = 0; i < 2; i++) {
        store_relaxed_u32(&writers[i].stop, 1);
        pthread_join(threads[i], NULL);
    }
    CHECK(large > 0);
    audit_clean(&world.call);
    free(buffer);
    world_free(&world);
}

/* "fixed" keys, which nobody writes, among those that are written all the time: each walk has them all, each once. */
static void beside_writers_it_misses_nothing_that_is_there_throughout(Random *random) {
    enum { FIXED = 50, WRITERS = 3 };
    World world;
    world_make(&world, &(WorldOptions){.no_log = true, .expected_items = 32, .size_bytes = 24 * MIB, .shared = true});
    char text[32];
    for (int i = 0; i < FIXED; i++) {
        snprintf(text, sizeof text, "fixed%d", i);
        Key key = key_in(&world.arena, text, 9);
        CHECK_EQUAL(do_set(&world.call, &key, TYPE_BYTES, text, strlen(text), NULL), ST_OK);
    }
    pthread_t threads[WRITERS];
    Writer writers[WRITERS];
    for (uint32_t i = 0; i < WRITERS; i++) {
        writers[i] = (Writer){&world, random_next(random), 0};
        CHECK_EQUAL(pthread_create(&threads[i], NULL, write_on, &writers[i]), 0);
    }
    uint64_t end = clock_monotonic_ns() + 700000000;
    uint8_t *buffer = malloc(80000);
    CHECK(buffer != NULL);
    do {
        uint64_t cursor = 0, seen = 0;
        while (cursor != CURSOR_END) {
            FillResult result;
            LoadResult loaded;
            Status s = store_fill(&world.call, &cursor, buffer, random_one_in(random, 2) ? 80000 : 900, &result);
            if (s == ST_BUSY) {
                (void)store_wait(&world.call, clock_monotonic_ns() + 1000000);
                continue;
            }
            CHECK_SAYING(s == ST_OK, "fill: status %d, wrong %s", s, result.what);
            CHECK_EQUAL(store_load(NULL, buffer, result.used_bytes, 0, 0, &loaded), ST_OK);
            CHECK(loaded.stopped == NULL && loaded.entries == result.entries);
            for (uint64_t at = 0; at < result.used_bytes;) {
                const Entry *entry = (const Entry *)(buffer + at);
                seen += entry->namespace_id == 9;
                at += align_up(entry_size(entry), 8);
            }
        }
        CHECK_EQUAL(seen, FIXED);
    } while (clock_monotonic_ns() < end);
    for (uint32_t i = 0; i < WRITERS; i++) {
        store_relaxed_u32(&writers[i].stop, 1);
        pthread_join(threads[i], NULL);
    }
    audit_clean(&world.call);
    free(buffer);
    world_free(&world);
}

const Test walk_tests[] = {
    {"threads_load_stripes_of_their_own_at_once", threads_load_stripes_of_their_own_at_once},
    {"large_values_that_are_overwritten_meanwhile_are_whole", large_values_that_are_overwritten_meanwhile_are_whole},
    {"beside_writers_it_misses_nothing_that_is_there_throughout",
     beside_writers_it_misses_nothing_that_is_there_throughout},
    {0}};
