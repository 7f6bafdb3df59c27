/* test_write.c: writes against a plain model, conditions, batches, and what a full store still does. */
#include "heap.h"
#include "model.h"
#include "suite.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void run_against_model(Random *random, const WorldOptions *options, uint32_t keys, uint64_t longest, int steps) {
    World world;
    world_make(&world, options);
    Log log;
    log_open(&log, &world.arena);
    Model model;
    model_make(&model, keys, longest);
    for (int i = 1; i <= steps; i++) {
        model_step(&model, &world.call, random);
        log_collect(&log, &world.arena, true);
        if (i % 50 == 0) {
            audit_clean(&world.call);
        }
        if (i % 500 == 0) {
            model_check(&model, &world.call);
            world_verify(&world, &log);
        }
    }
    model_check(&model, &world.call);
    world_verify(&world, &log);
    model_free(&model);
    log_free(&log);
    world_free(&world);
}

static void random_writes_fit_the_model_and_the_log_few_keys(Random *random) {
    run_against_model(random, &(WorldOptions){.expected_items = 64}, 40, 3000, 6000);
}

static void random_writes_fit_the_model_and_the_log_many_keys(Random *random) {
    run_against_model(random, NULL, 1500, 500, 6000);
}

static void random_writes_fit_the_model_and_the_log_large_values(Random *random) {
    run_against_model(random, &(WorldOptions){.size_bytes = 16 * MIB, .ring_bytes = MIB}, 20, 200000, 3000);
}

static void random_writes_fit_the_model_in_a_store_that_is_mostly_full(Random *random) {
    run_against_model(random, &(WorldOptions){.size_bytes = 6 * MIB, .ring_bytes = 256 * KIB}, 150, 40000, 5000);
}

/* ---- conditions and errors ------------------------------------------------------------------- */
static void numbers_have_limits_and_types(Random *random) {
    (void)random;
    World world;
    world_make(&world, NULL);
    Key key = key_of(&world.arena, "n"), text = key_of(&world.arena, "t"), real = key_of(&world.arena, "f");
    int64_t number = 0, most = INT64_MAX;
    double value = 1.5;
    CHECK_EQUAL(do_set(&world.call, &key, TYPE_INT, &most, 8, NULL), ST_OK);
    uint64_t tail = world.arena.control->ring_tail;
    CHECK_EQUAL(do_incr(&world.call, &key, 1, &number), ST_OVERFLOW);
    CHECK_EQUAL(world.arena.control->ring_tail, tail);
    CHECK_EQUAL(do_incr(&world.call, &key, -1, &number), ST_OK);
    CHECK_EQUAL(number, INT64_MAX - 1);
    CHECK_EQUAL(do_set(&world.call, &text, TYPE_STR, "5", 1, NULL), ST_OK);
    CHECK_EQUAL(do_incr(&world.call, &text, 1, &number), ST_WRONG_TYPE);
    CHECK_EQUAL(do_set(&world.call, &real, TYPE_FLOAT, &value, 8, NULL), ST_OK);
    CHECK_EQUAL(do_incr(&world.call, &real, 1, &number), ST_OVERFLOW);
    uint64_t length;
    CHECK_EQUAL(do_append(&world.call, &text, "x", 1, &length), ST_WRONG_TYPE);
    audit_clean(&world.call);
    world_free(&world);
}

static void a_value_above_the_limit_is_refused_before_anything_happens(Random *random) {
    (void)random;
    World world;
    world_make(&world, NULL);
    uint64_t limit = arena_value_limit(&world.arena), tail = world.arena.control->ring_tail, length;
    uint8_t *data = calloc(1, limit + 1);
    CHECK(data != NULL);
    Key key = key_of(&world.arena, "k");
    CHECK_EQUAL(do_set(&world.call, &key, TYPE_BYTES, data, limit + 1, NULL), ST_VALUE_TOO_LARGE);
    CHECK_EQUAL(world.call.available_bytes, limit);
    CHECK_EQUAL(world.arena.control->ring_tail, tail);
    CHECK_EQUAL(do_set(&world.call, &key, TYPE_BYTES, data, limit, NULL), ST_OK);
    CHECK_EQUAL(do_append(&world.call, &key, "x", 1, &length), ST_VALUE_TOO_LARGE);
    audit_clean(&world.call);
    free(data);
    world_free(&world);
}

static void a_batch_is_cut_into_records_that_are_whole(Random *random) {
    World world;
    world_make(&world, NULL);
    Log log;
    log_open(&log, &world.arena);
    enum { ITEMS = 200 };
    static BatchEntry items[ITEMS];
    static char texts[ITEMS][16];
    for (int i = 0; i < ITEMS; i++) {
        snprintf(texts[i], sizeof texts[i], "k%llu", (unsigned long long)random_below(random, 60));
        items[i] = (BatchEntry){.key = key_of(&world.arena, texts[i]),
                                .type = TYPE_BYTES,
                                .remove = random_one_in(random, 4),
                                .data = texts[i],
                                .length = strlen(texts[i])};
    }
    uint32_t done = 0;
    CHECK_EQUAL(do_write_many(&world.call, items, ITEMS, &done), ST_OK);
    CHECK_EQUAL(done, ITEMS);
    log_collect(&log, &world.arena, true);
    ReplayResult result;
    CHECK_EQUAL(replay(NULL, world.arena.record_seed, log.bytes, log.length, log.first_lsn, NULL, &result), ST_OK);
    CHECK(result.records >= ITEMS / 10 && result.records < ITEMS);
    CHECK_EQUAL(world.call.record_end, world.arena.control->ring_tail);
    world_verify(&world, &log);
    /* Nothing to do at all: no record. */
    uint64_t tail = world.arena.control->ring_tail;
    BatchEntry missing[2] = {{.key = key_of(&world.arena, "no"), .remove = true},
                             {.key = key_of(&world.arena, "none"), .remove = true}};
    done = 0;
    CHECK_EQUAL(do_write_many(&world.call, missing, 2, &done), ST_OK);
    CHECK_EQUAL(done, 2);
    CHECK(!missing[0].existed && !missing[1].existed);
    CHECK_EQUAL(world.arena.control->ring_tail, tail);
    log_free(&log);
    world_free(&world);
}

static void a_clear_ends_one_namespace_at_once_and_the_sweep_gives_its_memory_back(Random *random) {
    (void)random;
    World world;
    world_make(&world, &(WorldOptions){.no_log = true});
    uint64_t free_at_first = heap_count_free(&world.arena);
    char text[16];
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 1000; i++) {
            snprintf(text, sizeof text, "k%d", i);
            Key key = key_in(&world.arena, text, (uint16_t)(i % 2));
            CHECK_EQUAL(do_set(&world.call, &key, TYPE_BYTES, text, 8, NULL), ST_OK);
        }
        CHECK_EQUAL(do_clear(&world.call, 1), ST_OK);
        CHECK_EQUAL(store_count(&world.arena, 0), 500);
        CHECK_EQUAL(store_count(&world.arena, 1), 0);
        audit_clean(&world.call);
        sweep_all(&world.call);
        uint64_t entries = 0;
        for (uint32_t i = 0; i < world.arena.stripe_count; i++) {
            entries += world.arena.stripes[i].entries;
        }
        CHECK_EQUAL(entries, 500);
        audit_clean(&world.call);
    }
    CHECK_EQUAL(do_clear(&world.call, 0), ST_OK);
    sweep_all(&world.call);
    CHECK_EQUAL(heap_count_free(&world.arena) + world.arena.control->overflow_pages, free_at_first);
    CHECK_EQUAL(store_clear(&world.call, NAMESPACE_COUNT), ST_INVALID);
    world_free(&world);
}

/* ---- a full store ---------------------------------------------------------------------------- */
typedef struct Full {
    World world;
    Log log;
    uint8_t *data;
    uint64_t size;
    uint64_t keys;                /* k0 ... are in */
} Full;

static Status full_put(Full *full, const char *prefix, uint64_t number) {
    char text[32];
    snprintf(text, sizeof text, "%s%llu", prefix, (unsigned long long)number);
    uint64_t tail = full->world.arena.control->ring_tail;
    Status s = do_put(&full->world.call, text, full->data, full->size);
    CHECK(s == ST_OK || (s == ST_FULL && full->world.arena.control->ring_tail == tail));
    log_collect(&full->log, &full->world.arena, true);
    return s;
}

/* A stripe refuses when it needs a new slab; others still have places: goes on until all refuse. */
static void full_fill(Full *full) {
    uint64_t others = 0;
    for (int refused = 0; refused < 300;) {
        if (full_put(full, "k", full->keys) == ST_OK) {
            full->keys++;
            refused = 0;
            continue;
        }
        CHECK(full->world.call.needed_bytes >= min_u64(full->size, 64));
        refused = full_put(full, "o", others++) == ST_OK ? 0 : refused + 1;
    }
    CHECK(full->keys > 8);
    audit_clean(&full->world.call);
}

static void full_delete_all(Full *full) {
    char text[32];
    for (uint64_t i = 0; i < full->keys; i++) {
        snprintf(text, sizeof text, "k%llu", (unsigned long long)i);
        Key key = key_of(&full->world.arena, text);
        CHECK_EQUAL(do_delete(&full->world.call, &key, 0), ST_OK);
        log_collect(&full->log, &full->world.arena, true);
    }
    CHECK_EQUAL(do_clear(&full->world.call, 0), ST_OK);
    sweep_all(&full->world.call);
}

static void a_full_store_refuses_growth_and_still_deletes_and_overwrites(Random *random) {
    static const uint64_t sizes[] = {40, 700, 5000, 70000};
    for (int i = 0; i < 4; i++) {
        Full full = {.size = sizes[i], .data = malloc(sizes[i])};
        CHECK(full.data != NULL);
        check_case("values of %llu bytes", (unsigned long long)full.size);
        world_make(&full.world, &(WorldOptions){.size_bytes = 8 * MIB, .expected_items = 20000});
        log_open(&full.log, &full.world.arena);
        pattern_fill(full.data, full.size, 1);
        full_fill(&full);
        /* A small one needs a page; a larger one needs some side by side, and what is left may not have them. */
        bool always = full.size <= 1024;
        uint64_t refused = 0, begun = clock_monotonic_ns();
        for (uint64_t round = 0; round < 1000; round++) {
            /* New keys never eat up what overwrites of the same size live on. */
            refused += full_put(&full, "q", round % 500) == ST_FULL;
            CHECK(full_put(&full, "k", random_below(random, full.keys)) == ST_OK || !always);
        }
        CHECK(clock_monotonic_ns() - begun < 10000000000);
        CHECK_SAYING(refused > 700, "only %llu of 1000 new keys were refused, %llu pages are free",
                     (unsigned long long)refused, (unsigned long long)heap_count_free(&full.world.arena));
        world_verify(&full.world, &full.log);
        full_delete_all(&full);
        world_verify(&full.world, &full.log);
        CHECK_EQUAL(full_put(&full, "again", 0), ST_OK);
        free(full.data);
        log_free(&full.log);
        world_free(&full.world);
    }
}

static void a_refusal_in_a_full_store_does_not_take_long(Random *random) {
    (void)random;
    World world;
    world_make(&world, &(WorldOptions){
                           .size_bytes = 64 * MIB, .stripe_count = 16, .expected_items = 100000, .no_log = true});
    uint8_t data[3000] = {0};
    char text[32];
    int n = 0;
    Status s;
    do {
        snprintf(text, sizeof text, "k%d", n++);
        s = do_put(&world.call, text, data, sizeof data);
    } while (s == ST_OK);
    uint64_t begun = clock_monotonic_ns();
    for (int i = 0; i < 100; i++) {
        CHECK_EQUAL(do_put(&world.call, text, data, sizeof data), ST_FULL);
    }
    uint64_t each = (clock_monotonic_ns() - begun) / 100;
    CHECK_SAYING(each < 10000000, "a refusal takes %llu us", (unsigned long long)each / 1000);
    world_free(&world);
}

static void callers_without_slot_or_with_a_read_only_mapping_write_nothing(Random *random) {
    (void)random;
    World world;
    world_make(&world, NULL);
    Key key = key_of(&world.arena, "k");
    Call nobody = {.arena = &world.arena, .slot = -1};
    CHECK_EQUAL(store_set(&nobody, &key, TYPE_BYTES, "v", 1, NULL), ST_NO_SLOT);
    world.arena.writable = false;
    CHECK_EQUAL(store_set(&world.call, &key, TYPE_BYTES, "v", 1, NULL), ST_READ_ONLY);
    CHECK_EQUAL(store_clear(&world.call, 0), ST_READ_ONLY);
    CHECK_EQUAL(world.arena.control->ring_tail, WORLD_FIRST_LSN);
    world_free(&world);
}

static void a_retired_arena_refuses_all(Random *random) {
    (void)random;
    World world;
    world_make(&world, NULL);
    Log log;
    log_open(&log, &world.arena);
    CHECK_EQUAL(do_put(&world.call, "k", "v", 1), ST_OK);
    CHECK_EQUAL(do_retire(&world.call), ST_OK);
    CHECK_EQUAL(do_retire(&world.call), ST_OK);
    uint64_t tail = world.arena.control->ring_tail, pages, cursor = 0, used;
    uint32_t count;
    uint8_t data[64];
    Value value = {.data = data, .capacity = sizeof data};
    Key key = key_of(&world.arena, "k");
    Call reader = {.arena = &world.arena, .slot = -1};
    CHECK_EQUAL(do_put(&world.call, "k", "w", 1), ST_RETIRED);
    CHECK_EQUAL(do_delete(&world.call, &key, 0), ST_RETIRED);
    CHECK_EQUAL(do_clear(&world.call, 0), ST_RETIRED);
    CHECK_EQUAL(do_mark(&world.call), ST_RETIRED);
    CHECK_EQUAL(do_sweep(&world.call, 0), ST_RETIRED);
    CHECK_EQUAL(do_compact(&world.call, 0, &pages), ST_RETIRED);
    CHECK_EQUAL(store_get(&world.call, &key, &value), ST_RETIRED);
    CHECK_EQUAL(store_get(&reader, &key, &value), ST_RETIRED);
    CHECK_EQUAL(store_scan(&reader, 0, &cursor, true, data, sizeof data, &used, &count), ST_RETIRED);
    for (uint32_t i = 0; i < world.arena.stripe_count; i++) {
        CHECK_EQUAL(world.arena.stripes[i].sequence & 1, 1);
    }
    CHECK_EQUAL(world.arena.control->ring_tail, tail);
    log_collect(&log, &world.arena, false);
    CHECK(log.length > 0);
    log_free(&log);
    world_free(&world);
}

const Test write_tests[] = {
    {"random_writes_fit_the_model_and_the_log_few_keys", random_writes_fit_the_model_and_the_log_few_keys},
    {"random_writes_fit_the_model_and_the_log_many_keys", random_writes_fit_the_model_and_the_log_many_keys},
    {"random_writes_fit_the_model_and_the_log_large_values", random_writes_fit_the_model_and_the_log_large_values},
    {"random_writes_fit_the_model_in_a_store_that_is_mostly_full",
     random_writes_fit_the_model_in_a_store_that_is_mostly_full},
    {"numbers_have_limits_and_types", numbers_have_limits_and_types},
    {"a_value_above_the_limit_is_refused_before_anything_happens",
     a_value_above_the_limit_is_refused_before_anything_happens},
    {"a_batch_is_cut_into_records_that_are_whole", a_batch_is_cut_into_records_that_are_whole},
    {"a_clear_ends_one_namespace_at_once_and_the_sweep_gives_its_memory_back",
     a_clear_ends_one_namespace_at_once_and_the_sweep_gives_its_memory_back},
    {"a_full_store_refuses_growth_and_still_deletes_and_overwrites",
     a_full_store_refuses_growth_and_still_deletes_and_overwrites},
    {"a_refusal_in_a_full_store_does_not_take_long", a_refusal_in_a_full_store_does_not_take_long},
    {"callers_without_slot_or_with_a_read_only_mapping_write_nothing",
     callers_without_slot_or_with_a_read_only_mapping_write_nothing},
    {"a_retired_arena_refuses_all", a_retired_arena_refuses_all},
    {0}};
