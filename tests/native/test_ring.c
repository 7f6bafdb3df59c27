/* test_ring.c: admission, wrapping, publication and waiting on the ring. */
#include "ring.h"
#include "model.h"
#include "repair.h"
#include "suite.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static uint64_t soon(uint64_t ms) { return clock_monotonic_ns() + ms * 1000000; }

static void records_wrap_and_the_log_is_whole(Random *random) {
    World world;
    world_make(&world, &(WorldOptions){.ring_bytes = 64 * KIB});
    Log log;
    log_open(&log, &world.arena);
    uint8_t data[10000];
    pattern_fill(data, sizeof data, 3);
    for (int i = 0; i < 400; i++) {
        char key[16];
        snprintf(key, sizeof key, "k%d", i % 37);
        CHECK_EQUAL(do_put(&world.call, key, data, random_below(random, 9000)), ST_OK);
        if (random_one_in(random, 4)) {
            CHECK_EQUAL(do_mark(&world.call), ST_OK);
        }
        log_collect(&log, &world.arena, true);
    }
    CHECK(log.length > 10 * world.arena.ring_bytes);
    world_verify(&world, &log);
    log_free(&log);
    world_free(&world);
}

static void a_full_ring_is_busy_until_published_and_nothing_is_held(Random *random) {
    (void)random;
    World world;
    world_make(&world, &(WorldOptions){.ring_bytes = 64 * KIB});
    Log log;
    log_open(&log, &world.arena);
    Key key = key_of(&world.arena, "k");
    uint8_t data[4000] = {0};
    Status s;
    int written = 0;
    while ((s = store_set(&world.call, &key, TYPE_BYTES, data, sizeof data, NULL)) == ST_OK) {
        written++;
    }
    CHECK_EQUAL(s, ST_BUSY);
    CHECK_EQUAL(world.call.wait, WAIT_LOG);
    CHECK(written >= 15 && written <= 16);
    CHECK_EQUAL(store_wait(&world.call, soon(20)), ST_BUSY);
    audit_clean(&world.call);
    Value value = {.data = data, .capacity = sizeof data};
    CHECK_EQUAL(store_get(&world.call, &key, &value), ST_OK);
    world_verify(&world, &log);
    log_collect(&log, &world.arena, true);
    CHECK_EQUAL(store_wait(&world.call, soon(1000)), ST_OK);
    CHECK_EQUAL(store_set(&world.call, &key, TYPE_BYTES, data, sizeof data, NULL), ST_OK);
    world_verify(&world, &log);
    log_free(&log);
    world_free(&world);
}

static void the_log_state_refuses_writes_and_lets_reads_go_on(Random *random) {
    (void)random;
    World world;
    world_make(&world, NULL);
    CHECK_EQUAL(do_put(&world.call, "k", "v", 1), ST_OK);
    Key key = key_of(&world.arena, "k");
    uint8_t data[8];
    Value value = {.data = data, .capacity = sizeof data};
    for (uint32_t state = LOG_DISK_FULL; state <= LOG_FAILED; state++) {
        world.arena.control->log_state = state;
        CHECK_EQUAL(do_put(&world.call, "k", "w", 1), ST_LOG_REFUSED);
        CHECK_EQUAL(do_delete(&world.call, &key, 0), ST_LOG_REFUSED);
        CHECK_EQUAL(do_clear(&world.call, 0), ST_LOG_REFUSED);
        CHECK_EQUAL(store_get(&world.call, &key, &value), ST_OK);
    }
    world.arena.control->log_state = LOG_OK;
    CHECK_EQUAL(do_put(&world.call, "k", "w", 1), ST_OK);
    world_free(&world);
}

static void a_lagging_log_makes_writers_wait(Random *random) {
    (void)random;
    World world;
    world_make(&world, NULL);
    Control *control = world.arena.control;
    control->lag_limit_ms = 20;
    control->durable_time_ms = clock_coarse_ms();
    Key key = key_of(&world.arena, "k");
    CHECK_EQUAL(do_put(&world.call, "k", "v", 1), ST_OK);
    usleep(60000);
    CHECK_EQUAL(store_set(&world.call, &key, TYPE_BYTES, "w", 1, NULL), ST_BUSY);
    CHECK_EQUAL(world.call.wait, WAIT_LOG);
    ring_publish_durable(&world.arena, control->ring_tail, clock_coarse_ms());
    CHECK_EQUAL(store_set(&world.call, &key, TYPE_BYTES, "w", 1, NULL), ST_OK);
    /* All durable: old as the last collection may be, nothing lags. */
    ring_publish_durable(&world.arena, control->ring_tail, clock_coarse_ms());
    usleep(60000);
    CHECK_EQUAL(store_set(&world.call, &key, TYPE_BYTES, "x", 1, NULL), ST_OK);
    world_free(&world);
}

static void waiting_for_durable_ends_with_the_sync_or_the_deadline(Random *random) {
    (void)random;
    World world;
    world_make(&world, NULL);
    CHECK_EQUAL(do_put(&world.call, "k", "v", 1), ST_OK);
    uint64_t end = world.call.record_end;
    CHECK_EQUAL(end, world.arena.control->ring_tail);
    CHECK_EQUAL(ring_wait_durable(&world.arena, end, true, soon(20)), ST_BUSY);
    CHECK_EQUAL(world.arena.control->sync_wanted_lsn, end);
    ring_publish_durable(&world.arena, end - 8, clock_coarse_ms());
    CHECK_EQUAL(ring_wait_durable(&world.arena, end, true, soon(20)), ST_BUSY);
    ring_publish_durable(&world.arena, end, clock_coarse_ms());
    CHECK_EQUAL(ring_wait_durable(&world.arena, end, true, soon(20)), ST_OK);
    CHECK_EQUAL(world.arena.control->durable_waiters, 0);
    world_free(&world);
}

static void *persist(void *context) {
    World *world = context;
    uint64_t lsn = world->arena.control->durable_lsn;
    for (uint64_t end = soon(3000); clock_monotonic_ns() < end && lsn < WORLD_FIRST_LSN + 2 * MIB;) {
        ring_wait_work(&world->arena, lsn, end);
        lsn = load_acquire(&world->arena.control->ring_tail);
        ring_publish_durable(&world->arena, lsn, clock_coarse_ms());
    }
    return NULL;
}

static void a_sleeping_persister_is_woken_by_a_writer_that_needs_it(Random *random) {
    (void)random;
    World world;
    world_make(&world, &(WorldOptions){.ring_bytes = 64 * KIB});
    pthread_t thread;
    CHECK_EQUAL(pthread_create(&thread, NULL, persist, &world), 0);
    uint8_t data[2000] = {0};
    uint64_t longest = 0;
    while (world.arena.control->ring_tail < WORLD_FIRST_LSN + 2 * MIB) {
        uint64_t begun = clock_monotonic_ns();
        CHECK_EQUAL(do_put(&world.call, "k", data, sizeof data), ST_OK);
        if (random_one_in(random, 50)) {
            CHECK_EQUAL(ring_wait_durable(&world.arena, world.call.record_end, true, soon(1000)), ST_OK);
        }
        uint64_t took = clock_monotonic_ns() - begun;
        longest = took > longest ? took : longest;
    }
    CHECK_EQUAL(ring_wait_durable(&world.arena, world.call.record_end, true, soon(1000)), ST_OK);
    pthread_join(thread, NULL);
    CHECK_SAYING(longest < 500000000, "the longest wait was %llu ns", (unsigned long long)longest);
    world_free(&world);
}

/* Without a log the ring keeps the last ring-full: its head always stands at the start of a record. */
static void without_a_log_the_head_moves_over_whole_records(Random *random) {
    World world;
    world_make(&world, &(WorldOptions){.ring_bytes = 64 * KIB, .no_log = true});
    uint8_t data[10000] = {0};
    const Control *control = world.arena.control;
    for (int i = 0; i < 3000; i++) {
        CHECK_EQUAL(do_put(&world.call, "k", data, random_below(random, 9000)), ST_OK);
        CHECK(control->ring_tail - control->ring_head <= world.arena.ring_bytes);
        if (i % 100 != 0) {
            continue;
        }
        Log log = {.first_lsn = control->ring_head};
        log_collect(&log, &world.arena, false);
        ReplayResult result;
        CHECK_EQUAL(replay(NULL, world.arena.record_seed, log.bytes, log.length, log.first_lsn, NULL, &result), ST_OK);
        CHECK(result.stopped == NULL);
        CHECK_EQUAL(result.consumed_bytes, log.length);
        log_free(&log);
    }
    world_free(&world);
}

static void a_record_is_at_most_a_quarter_of_the_ring(Random *random) {
    for (int no_log = 0; no_log < 2; no_log++) {
        World world;
        world_make(&world, &(WorldOptions){.ring_bytes = 64 * KIB, .no_log = no_log});
        uint8_t *text = malloc(KEY_LIMIT);
        CHECK(text != NULL);
        memset(text, 'k', KEY_LIMIT);
        uint64_t limit = arena_value_limit(&world.arena);
        for (int round = 0; round < 200; round++) {
            Key key;
            uint32_t key_length = random_one_in(random, 3) ? KEY_LIMIT : (uint32_t)random_below(random, 20000);
            uint64_t length = random_below(random, limit + 2000);
            CHECK_EQUAL(key_init(&world.arena, &key, text, key_length, 0), ST_OK);
            uint64_t before = world.arena.control->ring_tail;
            Status s = store_set(&world.call, &key, TYPE_BYTES, text, length, NULL);
            CHECK(s == ST_OK || s == ST_VALUE_TOO_LARGE);
            CHECK(world.arena.control->ring_tail - before <= world.arena.ring_bytes / 4);
            CHECK(s == ST_OK || length > limit || key_length > 3900);
            ring_publish_durable(&world.arena, world.arena.control->ring_tail, clock_coarse_ms());
        }
        audit_clean(&world.call);
        free(text);
        world_free(&world);
    }
}

static void room_is_kept_for_a_large_record_that_waits_but_not_for_ever(Random *random) {
    (void)random;
    World world;
    world_make(&world, &(WorldOptions){.ring_bytes = 64 * KIB});
    Control *control = world.arena.control;
    uint8_t data[12000] = {0};
    Key key = key_of(&world.arena, "k");
    while (ring_admits(&world.arena, 12100) == ST_OK) {
        CHECK_EQUAL(do_put(&world.call, "small", data, 1000), ST_OK);
    }
    CHECK_EQUAL(store_set(&world.call, &key, TYPE_BYTES, data, sizeof data, NULL), ST_BUSY);
    CHECK_EQUAL(store_wait(&world.call, soon(10)), ST_BUSY);
    Key small = key_of(&world.arena, "small");
    CHECK_EQUAL(store_set(&world.call, &small, TYPE_BYTES, data, 1000, NULL), ST_BUSY);
    control->need_until_ms = clock_coarse_ms() - 1;      /* as if its time had passed */
    CHECK_EQUAL(store_set(&world.call, &small, TYPE_BYTES, data, 1000, NULL), ST_OK);
    /* A smaller need after an older, larger one that has run out is published too. */
    control->need_bytes = 15000;
    control->need_until_ms = clock_coarse_ms() - 1;
    CHECK_EQUAL(store_set(&world.call, &key, TYPE_BYTES, data, sizeof data, NULL), ST_BUSY);
    CHECK_EQUAL(store_wait(&world.call, soon(10)), ST_BUSY);
    CHECK_EQUAL(store_set(&world.call, &small, TYPE_BYTES, data, 1000, NULL), ST_BUSY);
    world_free(&world);
}

static void marks_carry_time_and_watermark(Random *random) {
    (void)random;
    World world;
    world_make(&world, NULL);
    Log log;
    log_open(&log, &world.arena);
    CHECK_EQUAL(do_put(&world.call, "k", "v", 1), ST_OK);
    log_collect(&log, &world.arena, true);
    uint64_t durable = world.arena.control->durable_lsn;
    CHECK_EQUAL(do_mark(&world.call), ST_OK);
    log_collect(&log, &world.arena, true);
    ReplayResult result;
    CHECK_EQUAL(replay(NULL, world.arena.record_seed, log.bytes, log.length, log.first_lsn, NULL, &result), ST_OK);
    CHECK_EQUAL(result.records, 2);
    CHECK_EQUAL(result.durable_before, durable);
    CHECK_EQUAL(result.wall_ms, 1700000000000ULL);
    log_free(&log);
    world_free(&world);
}

const Test ring_tests[] = {
    {"records_wrap_and_the_log_is_whole", records_wrap_and_the_log_is_whole},
    {"a_full_ring_is_busy_until_published_and_nothing_is_held",
     a_full_ring_is_busy_until_published_and_nothing_is_held},
    {"the_log_state_refuses_writes_and_lets_reads_go_on", the_log_state_refuses_writes_and_lets_reads_go_on},
    {"a_lagging_log_makes_writers_wait", a_lagging_log_makes_writers_wait},
    {"waiting_for_durable_ends_with_the_sync_or_the_deadline",
     waiting_for_durable_ends_with_the_sync_or_the_deadline},
    {"a_sleeping_persister_is_woken_by_a_writer_that_needs_it",
     a_sleeping_persister_is_woken_by_a_writer_that_needs_it},
    {"without_a_log_the_head_moves_over_whole_records", without_a_log_the_head_moves_over_whole_records},
    {"a_record_is_at_most_a_quarter_of_the_ring", a_record_is_at_most_a_quarter_of_the_ring},
    {"room_is_kept_for_a_large_record_that_waits_but_not_for_ever",
     room_is_kept_for_a_large_record_that_waits_but_not_for_ever},
    {"marks_carry_time_and_watermark", marks_carry_time_and_watermark},
    {0}};
