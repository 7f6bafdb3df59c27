/* test_replay.c: a log makes the same table, once or twice; a damaged one never applies anything that is wrong. */
#include "model.h"
#include "ring.h"
#include "suite.h"
#include "table.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A small log with each kind of record, and where its records begin. */
typedef struct Sample {
    World world;
    Log log;
    uint64_t begin[64];
    uint32_t records;
} Sample;

static void sample_make(Sample *sample) {
    world_make(&sample->world, &(WorldOptions){.size_bytes = 6 * MIB, .ring_bytes = 64 * KIB, .shared = true});
    Call *call = &sample->world.call;
    Arena *arena = call->arena;
    log_open(&sample->log, arena);
    Key number = key_of(arena, "number"), gone = key_of(arena, "gone"), text = key_of(arena, "t"),
        other = key_in(arena, "other", 5);
    Key first = key_of(arena, "a");
    int64_t result;
    uint64_t length;
    CHECK_EQUAL(do_put(call, "a", "alpha", 5), ST_OK);
    CHECK_EQUAL(do_put(call, "gone", "soon", 4), ST_OK);
    log_collect(&sample->log, arena, true);
    CHECK_EQUAL(
        do_set(call, &text, TYPE_STR, "text", 4, &(SetOptions){.expires_ms = arena_now_ms(arena) + 3600000}),
        ST_OK);
    CHECK_EQUAL(do_set(call, &other, TYPE_BYTES, "elsewhere", 9, NULL), ST_OK);
    CHECK_EQUAL(do_incr(call, &number, 41, &result), ST_OK);
    CHECK_EQUAL(do_incr(call, &number, 1, &result), ST_OK);
    CHECK_EQUAL(do_append(call, &first, "bet", 3, &length), ST_OK);
    CHECK_EQUAL(do_delete(call, &gone, 0), ST_OK);
    CHECK_EQUAL(do_mark(call), ST_OK);
    BatchEntry items[5] = {{.key = key_of(arena, "b1"), .type = TYPE_BYTES, .data = "one", .length = 3},
                           {.key = key_of(arena, "b2"), .type = TYPE_BYTES, .data = "twotwotwo", .length = 9},
                           {.key = key_of(arena, "a"), .remove = true},
                           {.key = key_of(arena, "b3"), .type = TYPE_STR, .data = "", .length = 0},
                           {.key = key_of(arena, "b4"),
                            .type = TYPE_BYTES,
                            .data = "four",
                            .length = 4,
                            .expires_ms = UINT64_MAX / 2}};
    uint32_t done = 0;
    CHECK_EQUAL(do_write_many(call, items, 5, &done), ST_OK);
    CHECK_EQUAL(do_clear(call, 5), ST_OK);
    CHECK_EQUAL(do_set(call, &other, TYPE_BYTES, "again", 5, NULL), ST_OK);
    log_collect(&sample->log, arena, true);
    for (uint64_t at = 0; at < sample->log.length;) {
        RecordHeader h;
        memcpy(&h, sample->log.bytes + at, sizeof h);
        sample->begin[sample->records++] = at;
        at += h.length;
    }
    sample->begin[sample->records] = sample->log.length;
    CHECK(sample->records >= 10 && sample->log.length < 2000);
}

static void sample_free(Sample *sample) {
    log_free(&sample->log);
    world_free(&sample->world);
}

/* Applies the first `length` bytes of `bytes` to a new arena. */
static Status apply_to(World *copy, const Sample *sample, const uint8_t *bytes, uint64_t length, ReplayResult *result) {
    world_make(copy, &sample->world.options);
    Status s = replay(&copy->arena, sample->world.arena.record_seed, bytes, length, sample->log.first_lsn, NULL, result);
    world_log_at(copy, sample->log.first_lsn + sample->log.length);
    return s;
}

/* Tables after each prefix of whole records, to compare with. */
static void prefixes_make(const Sample *sample, World *prefixes) {
    for (uint32_t i = 0; i <= sample->records; i++) {
        ReplayResult result;
        CHECK_EQUAL(apply_to(&prefixes[i], sample, sample->log.bytes, sample->begin[i], &result), ST_OK);
        CHECK(result.stopped == NULL && result.consumed_bytes == sample->begin[i] && result.records == i);
        CHECK_EQUAL(result.next_lsn, sample->log.first_lsn + sample->begin[i]);
        audit_clean(&prefixes[i].call);
    }
    arenas_equal((Call *)&sample->world.call, &prefixes[sample->records].call);
}

static void the_whole_log_makes_the_same_table_and_twice_changes_nothing(Random *random) {
    (void)random;
    Sample sample = {0};
    sample_make(&sample);
    World copy;
    ReplayResult result;
    CHECK_EQUAL(apply_to(&copy, &sample, sample.log.bytes, sample.log.length, &result), ST_OK);
    CHECK_EQUAL(result.consumed_bytes, sample.log.length);
    CHECK_EQUAL(result.records, sample.records);
    CHECK(result.durable_before > sample.log.first_lsn && result.wall_ms == 1700000000000ULL && result.applied >= 10);
    for (int again = 0; again < 2; again++) {
        arenas_equal(&sample.world.call, &copy.call);
        arenas_equal(&copy.call, &sample.world.call);
        audit_clean(&copy.call);
        CHECK_EQUAL(replay(&copy.arena, sample.world.arena.record_seed, sample.log.bytes, sample.log.length,
                           sample.log.first_lsn, NULL, &result), ST_OK);
    }
    world_free(&copy);
    sample_free(&sample);
}

/* As after a snapshot that is newer than the start of the log. */
static void an_older_record_changes_nothing_that_is_newer(Random *random) {
    (void)random;
    Sample sample = {0};
    sample_make(&sample);
    World copy;
    ReplayResult result;
    CHECK_EQUAL(apply_to(&copy, &sample, sample.log.bytes, sample.log.length, &result), ST_OK);
    Value old = {0}, now = {0};
    static const char *const names[] = {"number", "t", "b1", "b2", "b3", "b4"};
    for (uint32_t prefix = 0; prefix < sample.records; prefix++) {
        CHECK_EQUAL(replay(&copy.arena, sample.world.arena.record_seed, sample.log.bytes, sample.begin[prefix],
                           sample.log.first_lsn, NULL, &result), ST_OK);
        check_case("%u records again", prefix);
        for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
            Key key = key_of(&sample.world.arena, names[i]), same = key_of(&copy.arena, names[i]);
            CHECK_EQUAL(do_get(&sample.world.call, &key, &old), ST_OK);
            CHECK_EQUAL(do_get(&copy.call, &same, &now), ST_OK);
            CHECK_EQUAL(now.version, old.version);
            CHECK(now.length == old.length && memcmp(now.data, old.data, now.length) == 0);
        }
        /* Written before the clear of its namespace, and again behind it. */
        Key other = key_in(&copy.arena, "other", 5);
        CHECK_EQUAL(do_get(&copy.call, &other, &now), ST_OK);
        CHECK(now.length == 5 && memcmp(now.data, "again", 5) == 0);
        CHECK_EQUAL(store_count(&copy.arena, 5), 1);
        audit_clean(&copy.call);
    }
    /* A record at or below the clear makes no entry, though there is none that is newer. */
    Key other = key_in(&copy.arena, "other", 5);
    CHECK_EQUAL(do_delete(&copy.call, &other, 0), ST_OK);
    CHECK_EQUAL(replay(&copy.arena, sample.world.arena.record_seed, sample.log.bytes, sample.begin[6],
                       sample.log.first_lsn, NULL, &result), ST_OK);
    CHECK_EQUAL(store_count(&copy.arena, 5), 0);
    free(old.data);
    free(now.data);
    world_free(&copy);
    sample_free(&sample);
}

static void checking_alone_applies_nothing_and_sees_the_same(Random *random) {
    (void)random;
    Sample sample = {0};
    sample_make(&sample);
    ReplayResult checked, applied;
    World copy;
    CHECK_EQUAL(apply_to(&copy, &sample, sample.log.bytes, sample.log.length, &applied), ST_OK);
    CHECK_EQUAL(replay(NULL, sample.world.arena.record_seed, sample.log.bytes, sample.log.length, sample.log.first_lsn,
                       NULL, &checked), ST_OK);
    CHECK(checked.consumed_bytes == applied.consumed_bytes && checked.records == applied.records &&
          checked.applied == 0 && checked.durable_before == applied.durable_before &&
          checked.wall_ms == applied.wall_ms);
    world_free(&copy);
    sample_free(&sample);
}

static void cut_anywhere_it_applies_the_whole_records_before(Random *random) {
    (void)random;
    Sample sample = {0};
    sample_make(&sample);
    static World prefixes[64];
    prefixes_make(&sample, prefixes);
    uint32_t whole = 0;
    for (uint64_t length = 0; length <= sample.log.length; length++) {
        whole += length == sample.begin[whole + 1];
        /* Behind the cut stands memory that ends there, so that ASan sees a read past it. */
        uint8_t *bytes = malloc(length + 1);
        CHECK(bytes != NULL);
        memcpy(bytes, sample.log.bytes, length);
        World copy;
        ReplayResult result;
        CHECK_EQUAL(apply_to(&copy, &sample, bytes, length, &result), ST_OK);
        check_case("cut at %llu", (unsigned long long)length);
        CHECK_EQUAL(result.consumed_bytes, sample.begin[whole]);
        CHECK_EQUAL(result.records, whole);
        CHECK(length == sample.begin[whole] ? result.stopped == NULL : strcmp(result.stopped, "short") == 0);
        if (length % 8 == 0) {
            arenas_equal(&prefixes[whole].call, &copy.call);
        }
        free(bytes);
        world_free(&copy);
    }
    for (uint32_t i = 0; i <= sample.records; i++) {
        world_free(&prefixes[i]);
    }
    sample_free(&sample);
}

static void a_flipped_bit_anywhere_stops_it_before_that_record(Random *random) {
    Sample sample = {0};
    sample_make(&sample);
    static World prefixes[64];
    prefixes_make(&sample, prefixes);
    uint8_t *bytes = malloc(sample.log.length);
    CHECK(bytes != NULL);
    uint32_t record = 0, seen[6] = {0};
    static const char *const reasons[] = {"short", "length", "lsn", "header crc", "body crc", "kind"};
    for (uint64_t at = 0; at < sample.log.length; at++) {
        record += at == sample.begin[record + 1];
        for (int bit = 0; bit < 8; bit++) {
            memcpy(bytes, sample.log.bytes, sample.log.length);
            bytes[at] ^= (uint8_t)(1 << bit);
            ReplayResult result;
            check_case("byte %llu, bit %d, in record %u", (unsigned long long)at, bit, record);
            CHECK_EQUAL(replay(NULL, sample.world.arena.record_seed, bytes, sample.log.length, sample.log.first_lsn,
                               NULL, &result),
                        ST_OK);
            CHECK_SAYING(result.stopped != NULL && result.consumed_bytes == sample.begin[record],
                         "consumed %llu, stopped: %s",
                         (unsigned long long)result.consumed_bytes, result.stopped == NULL ? "no" : result.stopped);
            for (int i = 0; i < 6 && result.stopped != NULL; i++) {
                seen[i] += strcmp(result.stopped, reasons[i]) == 0;
            }
            if (random_one_in(random, 16)) {
                World copy;
                CHECK_EQUAL(apply_to(&copy, &sample, bytes, sample.log.length, &result), ST_OK);
                arenas_equal(&prefixes[record].call, &copy.call);
                audit_clean(&copy.call);
                world_free(&copy);
            }
        }
    }
    CHECK(seen[1] > 0 && seen[2] > 0 && seen[3] > 0 && seen[4] > 0);
    free(bytes);
    for (uint32_t i = 0; i <= sample.records; i++) {
        world_free(&prefixes[i]);
    }
    sample_free(&sample);
}

/* Records with good checksums and bad contents: made by a program that is wrong, not by a disk. */
static void reseal(uint8_t *record, uint32_t seed) {
    RecordHeader h;
    memcpy(&h, record, sizeof h);
    h.header_crc = record_header_crc(&h, seed);
    memcpy(record, &h, sizeof h);
}

static void sound_checksums_over_nonsense_are_refused_too(Random *random) {
    Sample sample = {0};
    sample_make(&sample);
    uint8_t *bytes = malloc(sample.log.length);
    CHECK(bytes != NULL);
    uint32_t seed = sample.world.arena.record_seed;
    for (int round = 0; round < 5000; round++) {
        memcpy(bytes, sample.log.bytes, sample.log.length);
        uint32_t record = (uint32_t)random_below(random, sample.records);
        uint8_t *at = bytes + sample.begin[record];
        uint64_t length = sample.begin[record + 1] - sample.begin[record];
        RecordHeader h;
        memcpy(&h, at, sizeof h);
        for (uint64_t changes = random_between(random, 1, 3); changes > 0; changes--) {
            uint64_t where = random_one_in(random, 3) ? 24 + random_below(random, 8) : random_below(random, length);
            at[where] = random_one_in(random, 2) ? (uint8_t)random_next(random) : (uint8_t)(at[where] + 1);
        }
        /* A put's or delete's checksum is over its true length, which its own fields give. */
        memcpy(&h, at, sizeof h);
        if (length > sizeof h + 12 && (h.kind == RECORD_PUT || h.kind == RECORD_DELETE)) {
            uint32_t value_length;
            uint16_t key_length;
            memcpy(&value_length, at + sizeof h, 4);
            memcpy(&key_length, at + sizeof h + 4, 2);
            uint64_t body = entry_bytes(at[sizeof h + 9], key_length, value_length) - ENTRY_BODY;
            h.body_crc = crc32c(0, at + sizeof h, min_u64(body, length - sizeof h));
        } else if (h.kind == RECORD_BATCH) {
            h.body_crc = crc32c(0, at + sizeof h, min_u64(h.count * sizeof(BatchItem), length - sizeof h));
        }
        memcpy(at, &h, sizeof h);
        reseal(at, seed);
        World copy;
        ReplayResult result;
        (void)apply_to(&copy, &sample, bytes, sample.log.length, &result);
        CHECK(result.consumed_bytes <= sample.log.length);
        if (round % 10 == 0) {
            audit_clean(&copy.call);
        }
        world_free(&copy);
    }
    free(bytes);
    sample_free(&sample);
}

static void another_store_or_incarnation_or_place_is_no_record(Random *random) {
    (void)random;
    Sample sample = {0};
    sample_make(&sample);
    ReplayResult result;
    uint8_t other[16] = "another store id";
    uint32_t seeds[2] = {arena_record_seed(other, 7), arena_record_seed(sample.world.plan.store_id, 8)};
    for (int i = 0; i < 2; i++) {
        CHECK_EQUAL(replay(NULL, seeds[i], sample.log.bytes, sample.log.length, sample.log.first_lsn, NULL, &result), ST_OK);
        CHECK(result.consumed_bytes == 0 && strcmp(result.stopped, "header crc") == 0);
    }
    CHECK_EQUAL(replay(NULL, sample.world.arena.record_seed, sample.log.bytes, sample.log.length,
                       sample.log.first_lsn + 8, NULL, &result),
                ST_OK);
    CHECK(result.consumed_bytes == 0 && strcmp(result.stopped, "lsn") == 0);
    /* Two records changed places: each is sound, none is where it belongs. */
    uint64_t at = sample.begin[3];
    CHECK_EQUAL(replay(NULL, sample.world.arena.record_seed, sample.log.bytes + at, sample.log.length - at,
                       sample.log.first_lsn, NULL, &result), ST_OK);
    CHECK_EQUAL(result.consumed_bytes, 0);
    sample_free(&sample);
}

static void pieces_of_a_log_may_be_applied_one_after_the_other(Random *random) {
    World world;
    world_make(&world, NULL);
    Log log;
    log_open(&log, &world.arena);
    Model model;
    model_make(&model, 200, 3000);
    for (int i = 0; i < 1500; i++) {
        model_step(&model, &world.call, random);
        log_collect(&log, &world.arena, true);
    }
    World copy;
    world_make(&copy, &world.options);
    uint64_t at = 0, length = 100;
    while (at < log.length) {
        ReplayResult result;
        uint64_t n = min_u64(length, log.length - at);
        CHECK_EQUAL(replay(&copy.arena, world.arena.record_seed, log.bytes + at, n, log.first_lsn + at, NULL, &result),
                    ST_OK);
        CHECK(result.stopped == NULL || strcmp(result.stopped, "short") == 0);
        at += result.consumed_bytes;
        length = result.consumed_bytes == 0 ? length * 2 : random_between(random, 50, 20000);
    }
    world_log_at(&copy, world.arena.control->ring_tail);
    arenas_equal(&world.call, &copy.call);
    audit_clean(&copy.call);
    model_free(&model);
    log_free(&log);
    world_free(&copy);
    world_free(&world);
}

/* A smaller arena can't hold it: refused by name, and what it does hold is sound. */
static void an_arena_that_is_too_small_is_full_and_sound(Random *random) {
    (void)random;
    World world, copy;
    world_make(&world, &(WorldOptions){.size_bytes = 16 * MIB, .ring_bytes = MIB});
    Log log;
    log_open(&log, &world.arena);
    uint8_t *data = calloc(1, 5000);
    CHECK(data != NULL);
    char text[32];
    for (int i = 0; i < 1500; i++) {
        snprintf(text, sizeof text, "k%d", i);
        CHECK_EQUAL(do_put(&world.call, text, data, 5000), ST_OK);
        log_collect(&log, &world.arena, true);
    }
    world_make(&copy, &(WorldOptions){.size_bytes = 7 * MIB});
    ReplayResult result;
    CHECK_EQUAL(replay(&copy.arena, world.arena.record_seed, log.bytes, log.length, log.first_lsn, NULL, &result), ST_FULL);
    CHECK(result.stopped == NULL);
    world_log_at(&copy, world.arena.control->ring_tail);
    audit_clean(&copy.call);
    free(data);
    log_free(&log);
    world_free(&copy);
    world_free(&world);
}

const Test replay_tests[] = {
    {"the_whole_log_makes_the_same_table_and_twice_changes_nothing",
     the_whole_log_makes_the_same_table_and_twice_changes_nothing},
    {"an_older_record_changes_nothing_that_is_newer", an_older_record_changes_nothing_that_is_newer},
    {"checking_alone_applies_nothing_and_sees_the_same", checking_alone_applies_nothing_and_sees_the_same},
    {"cut_anywhere_it_applies_the_whole_records_before", cut_anywhere_it_applies_the_whole_records_before},
    {"a_flipped_bit_anywhere_stops_it_before_that_record", a_flipped_bit_anywhere_stops_it_before_that_record},
    {"sound_checksums_over_nonsense_are_refused_too", sound_checksums_over_nonsense_are_refused_too},
    {"another_store_or_incarnation_or_place_is_no_record", another_store_or_incarnation_or_place_is_no_record},
    {"pieces_of_a_log_may_be_applied_one_after_the_other", pieces_of_a_log_may_be_applied_one_after_the_other},
    {"an_arena_that_is_too_small_is_full_and_sound", an_arena_that_is_too_small_is_full_and_sound},
    {0}};
