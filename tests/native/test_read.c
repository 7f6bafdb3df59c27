/* test_read.c: look-ups, alone and many at once, iteration: boundaries, what is in the way, read-only callers. */
#include "compact.h"
#include "model.h"
#include "repair.h"
#include "suite.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const uint64_t lengths[] = {0, 1, 7, 8, 9, 255, 256, 257, 4095, 65535, 65536, 65537, 100000, 122000};
#define LENGTHS (sizeof lengths / sizeof *lengths)

static void values_of_every_length_come_back_whole(Random *random) {
    World world;
    world_make(&world, &(WorldOptions){.no_log = true});
    uint8_t *data = malloc(122000);
    CHECK(data != NULL);
    pattern_fill(data, 122000, random_next(random));
    Value value = {0};
    for (size_t i = 0; i < LENGTHS; i++) {
        Key key = key_of(&world.arena, "k");
        CHECK_EQUAL(do_set(&world.call, &key, TYPE_BYTES, data, lengths[i], NULL), ST_OK);
        CHECK_EQUAL(do_get(&world.call, &key, &value), ST_OK);
        CHECK_EQUAL(value.length, lengths[i]);
        CHECK_EQUAL(value.version, world.call.lsn);
        CHECK(memcmp(value.data, data, lengths[i]) == 0);
    }
    free(value.data);
    free(data);
    world_free(&world);
}

static void a_buffer_that_is_too_small_says_what_is_needed(Random *random) {
    (void)random;
    World world;
    world_make(&world, &(WorldOptions){.no_log = true});
    uint8_t *data = calloc(1, 122000);
    CHECK(data != NULL);
    Key key = key_of(&world.arena, "k");
    for (size_t i = 1; i < LENGTHS; i++) {
        CHECK_EQUAL(do_set(&world.call, &key, TYPE_BYTES, data, lengths[i], NULL), ST_OK);
        /* Exactly as large as the value: the next byte belongs to somebody else, and ASan sees it. */
        for (int missing = 0; missing < 2; missing++) {
            uint64_t capacity = lengths[i] - (uint64_t)missing;
            Value value = {.data = malloc(capacity + 1), .capacity = capacity};
            CHECK(value.data != NULL);
            value.data[capacity] = 0x77;
            CHECK_EQUAL(store_get(&world.call, &key, &value), missing ? ST_BUFFER : ST_OK);
            CHECK_EQUAL(value.length, lengths[i]);
            CHECK_EQUAL(value.data[capacity], 0x77);
            free(value.data);
        }
        Value header = {0};
        CHECK_EQUAL(store_get(&world.call, &key, &header), ST_BUFFER);
        CHECK_EQUAL(header.version, world.call.lsn);
    }
    free(data);
    world_free(&world);
}

static void an_expired_entry_is_not_found_and_can_be_written_again(Random *random) {
    (void)random;
    World world;
    world_make(&world, NULL);
    Key key = key_of(&world.arena, "k");
    uint64_t now = arena_now_ms(&world.arena);
    uint8_t data[16];
    Value value = {.data = data, .capacity = sizeof data};
    CHECK_EQUAL(do_set(&world.call, &key, TYPE_BYTES, "v", 1, &(SetOptions){.expires_ms = now - 1}), ST_OK);
    CHECK_EQUAL(store_get(&world.call, &key, &value), ST_NOT_FOUND);
    CHECK_EQUAL(do_delete(&world.call, &key, 0), ST_NOT_FOUND);
    CHECK_EQUAL(do_set(&world.call, &key, TYPE_BYTES, "v", 1, &(SetOptions){.flags = SET_IF_PRESENT}), ST_CONDITION);
    CHECK_EQUAL(do_set(&world.call, &key, TYPE_BYTES, "v", 1,
                       &(SetOptions){.flags = SET_IF_ABSENT, .expires_ms = now + 60000}), ST_OK);
    CHECK_EQUAL(store_get(&world.call, &key, &value), ST_OK);
    CHECK_EQUAL(value.expires_ms, now + 60000);
    int64_t number;
    CHECK_EQUAL(do_set(&world.call, &key, TYPE_BYTES, "v", 1, &(SetOptions){.expires_ms = now - 1}), ST_OK);
    CHECK_EQUAL(do_incr(&world.call, &key, 5, &number), ST_OK);
    CHECK_EQUAL(number, 5);
    CHECK_EQUAL(store_count(&world.arena, 0), 1);
    audit_clean(&world.call);
    world_free(&world);
}

static void an_odd_sequence_sends_readers_to_the_lock_or_away(Random *random) {
    (void)random;
    World world;
    world_make(&world, NULL);
    CHECK_EQUAL(do_put(&world.call, "k", "v", 1), ST_OK);
    Key key = key_of(&world.arena, "k");
    Stripe *stripe = arena_stripe(&world.arena, key.hash);
    uint8_t data[16], scanned[256];
    Value value = {.data = data, .capacity = sizeof data};
    Call reader = {.arena = &world.arena, .slot = -1};
    stripe_go_odd(stripe);
    CHECK_EQUAL(store_get(&reader, &key, &value), ST_BUSY);
    CHECK_EQUAL(reader.wait, WAIT_READ);
    CHECK_EQUAL(reader.wait_stripe, stripe - world.arena.stripes);
    CHECK_EQUAL(store_wait(&reader, clock_monotonic_ns() + 1000000), ST_OK);
    uint64_t cursor = 0, used;
    uint32_t count;
    Status s = ST_OK;
    while (s == ST_OK && cursor != CURSOR_END) {
        s = store_scan(&reader, 0, &cursor, true, scanned, sizeof scanned, &used, &count);
    }
    CHECK_EQUAL(s, ST_BUSY);
    /* The lock is free and its owner word clean: under it the table is good. */
    CHECK_EQUAL(store_get(&world.call, &key, &value), ST_OK);
    stripe_go_even(stripe);
    CHECK_EQUAL(store_get(&reader, &key, &value), ST_OK);
    world_free(&world);
}

static void get_many_gives_what_get_gives(Random *random) {
    World world;
    world_make(&world, &(WorldOptions){.no_log = true});
    Model model;
    model_make(&model, 400, 90000);
    for (int i = 0; i < 3000; i++) {
        model_step(&model, &world.call, random);
    }
    enum { ASKED = 100 };
    static char texts[ASKED][512];
    Key keys[ASKED];
    Value values[ASKED];
    uint8_t status[ASKED];
    for (int round = 0; round < 200; round++) {
        uint64_t capacity = random_below(random, 200000);
        uint8_t *buffer = malloc(capacity + 1);
        CHECK(buffer != NULL);
        uint32_t numbers[ASKED], unserved = 0;
        for (uint32_t i = 0; i < ASKED; i++) {
            numbers[i] = (uint32_t)random_below(random, model.keys);
            keys[i] = model_key(&world.arena, numbers[i], 1, texts[i]);
        }
        CHECK_EQUAL(store_get_many(&world.call, keys, ASKED, buffer, capacity, values, status), ST_OK);
        for (uint32_t i = 0; i < ASKED; i++) {
            const ModelEntry *entry = &model.entries[model.keys + numbers[i]];
            unserved += status[i] == ST_BUFFER;
            CHECK_EQUAL(status[i] == ST_NOT_FOUND, !entry->present);
            if (status[i] == ST_OK) {
                CHECK(values[i].data >= buffer && values[i].data + values[i].length <= buffer + capacity);
                CHECK(values[i].length == entry->length && memcmp(values[i].data, entry->data, entry->length) == 0);
            }
        }
        CHECK(unserved == 0 || capacity < 200000 || model.longest > LARGE_VALUE_BYTES);
        free(buffer);
    }
    model_free(&model);
    world_free(&world);
}

/* Keys of a scan don't end with a zero byte. */
static int number_of(const char *digits, uint32_t length) {
    char text[16] = {0};
    memcpy(text, digits, length);
    return atoi(text);
}

/* ---- iteration ------------------------------------------------------------------------------- */
static void a_scan_gives_each_entry_of_its_namespace_once(Random *random) {
    World world;
    world_make(&world, &(WorldOptions){.expected_items = 64, .no_log = true});
    enum { KEYS = 900 };
    char text[16];
    for (int i = 0; i < KEYS; i++) {
        snprintf(text, sizeof text, "k%d", i);
        Key key = key_in(&world.arena, text, (uint16_t)(i % 3));
        SetOptions options = {.expires_ms = i % 10 == 9 ? arena_now_ms(&world.arena) - 1 : 0};
        CHECK_EQUAL(do_set(&world.call, &key, TYPE_BYTES, text, strlen(text), &options), ST_OK);
    }
    for (int with_values = 0; with_values < 2; with_values++) {
        for (int round = 0; round < 20; round++) {
            int seen[KEYS] = {0};
            uint64_t cursor = 0, used, capacity = 8 + random_below(random, 3000);
            uint32_t count;
            uint8_t *buffer = malloc(capacity);
            while (cursor != CURSOR_END) {
                Status s = store_scan(&world.call, 1, &cursor, with_values, buffer, capacity, &used, &count);
                if (s == ST_BUFFER) {
                    CHECK(world.call.needed_bytes > capacity);
                    capacity = world.call.needed_bytes;
                    buffer = realloc(buffer, capacity);
                    continue;
                }
                CHECK_EQUAL(s, ST_OK);
                uint64_t at = 0;
                for (uint32_t i = 0; i < count; i++) {
                    const ScanItem *item = (const ScanItem *)(buffer + at);
                    const char *key = (const char *)(item + 1);
                    at += item->item_bytes;
                    int number = number_of(key + 1, item->key_length - 1);
                    CHECK(number >= 0 && number < KEYS && number % 3 == 1 && number % 10 != 9);
                    seen[number]++;
                    if (with_values) {
                        CHECK(memcmp(key + align_up(item->key_length, 8), key, item->value_length) == 0);
                    }
                }
                CHECK_EQUAL(at, used);
            }
            free(buffer);
            for (int i = 0; i < KEYS; i++) {
                CHECK_EQUAL(seen[i], i % 3 == 1 && i % 10 != 9);
            }
        }
    }
    world_free(&world);
}

typedef struct Disturber {
    World *world;
    bool stop;
} Disturber;

static void *disturb(void *context) {
    Disturber *disturber = context;
    Call call;
    call_open(&call, &disturber->world->arena);
    Random random = {5};
    uint8_t data[3000] = {0};
    char text[32];
    while (!__atomic_load_n(&disturber->stop, __ATOMIC_RELAXED)) {
        uint64_t number = random_below(&random, 300);
        snprintf(text, sizeof text, "%s%llu", random_one_in(&random, 2) ? "stay" : "come", (unsigned long long)number);
        Key key = key_of(call.arena, text);
        if (text[0] == 'c' && random_one_in(&random, 2)) {
            (void)do_delete(&call, &key, 0);
        } else {
            CHECK_EQUAL(do_set(&call, &key, TYPE_BYTES, data, random_below(&random, sizeof data), NULL), ST_OK);
        }
        uint64_t pages;
        if (random_one_in(&random, 100)) {
            CHECK_EQUAL(do_compact(&call, (uint32_t)random_below(&random, call.arena->stripe_count), &pages), ST_OK);
        }
    }
    call_close(&call);
    return NULL;
}

static void a_scan_beside_writers_gives_keys_that_stay_exactly_once(Random *random) {
    (void)random;
    World world;
    world_make(&world, &(WorldOptions){.expected_items = 64, .no_log = true});
    char text[16];
    for (int i = 0; i < 300; i++) {
        snprintf(text, sizeof text, "stay%d", i);
        CHECK_EQUAL(do_put(&world.call, text, "v", 1), ST_OK);
    }
    Disturber disturber = {.world = &world};
    pthread_t thread;
    CHECK_EQUAL(pthread_create(&thread, NULL, disturb, &disturber), 0);
    uint8_t *buffer = malloc(MIB);
    CHECK(buffer != NULL);
    for (int round = 0; round < 100; round++) {
        int seen[300] = {0};
        uint64_t cursor = 0, used;
        uint32_t count;
        while (cursor != CURSOR_END) {
            Status s = store_scan(&world.call, 0, &cursor, true, buffer, MIB, &used, &count);
            CHECK(s == ST_OK || s == ST_BUSY);
            for (uint64_t at = 0, i = 0; s == ST_OK && i < count; i++) {
                const ScanItem *item = (const ScanItem *)(buffer + at);
                const char *key = (const char *)(item + 1);
                if (memcmp(key, "stay", 4) == 0) {
                    seen[number_of(key + 4, item->key_length - 4)]++;
                }
                at += item->item_bytes;
            }
        }
        for (int i = 0; i < 300; i++) {
            CHECK_EQUAL(seen[i], 1);
        }
    }
    __atomic_store_n(&disturber.stop, true, __ATOMIC_RELAXED);
    pthread_join(thread, NULL);
    audit_clean(&world.call);
    free(buffer);
    world_free(&world);
}

/* ---- readers beside writers ------------------------------------------------------------------ */
typedef struct Race {
    World *world;
    uint64_t shortest, longest;
    uint32_t stop;
    uint64_t reads, changes;
} Race;

/* All bytes of a value are the same one: a reader that takes bytes of two values, or of a block that was given to
 * somebody else meanwhile, sees two. */
static void *overwrite_again_and_again(void *context) {
    Race *race = context;
    Call call;
    call_open(&call, &race->world->arena);
    Random random = {(uint64_t)call.slot};
    uint8_t *data = malloc(race->longest);
    CHECK(data != NULL);
    while (load_relaxed_u32(&race->stop) == 0) {
        uint64_t length = random_between(&random, race->shortest, race->longest);
        memset(data, (int)random_next(&random), length);
        CHECK_EQUAL(do_put(&call, random_one_in(&random, 2) ? "one" : "two", data, length), ST_OK);
        if (random_one_in(&random, 20)) {
            (void)compact_make_room(&call, length);
        }
    }
    free(data);
    call_close(&call);
    return NULL;
}

static void *read_again_and_again(void *context) {
    Race *race = context;
    Call call;
    call_open(&call, &race->world->arena);
    Value value = {.capacity = race->longest + LARGE_VALUE_BYTES};
    value.data = malloc(value.capacity);
    CHECK(value.data != NULL);
    uint64_t version = 0;
    for (uint64_t i = 0; load_relaxed_u32(&race->stop) == 0; i++) {
        Key key = key_of(call.arena, i % 2 == 0 ? "one" : "two");
        CHECK_EQUAL(do_get(&call, &key, &value), ST_OK);
        CHECK(value.length >= race->shortest && value.length <= race->longest);
        CHECK_SAYING(memcmp(value.data, value.data + 1, value.length - 1) == 0, "a torn value of %llu bytes",
                     (unsigned long long)value.length);
        __atomic_fetch_add(&race->reads, 1, __ATOMIC_RELAXED);
        __atomic_fetch_add(&race->changes, value.version != version, __ATOMIC_RELAXED);
        version = value.version;
    }
    free(value.data);
    call_close(&call);
    return NULL;
}

static void race_values(uint64_t shortest, uint64_t longest) {
    World world;
    world_make(&world, &(WorldOptions){.size_bytes = 16 * MIB, .ring_bytes = MIB, .no_log = true});
    Race race = {.world = &world, .shortest = shortest, .longest = longest};
    uint8_t *data = calloc(1, longest);
    CHECK(data != NULL);
    CHECK_EQUAL(do_put(&world.call, "one", data, longest), ST_OK);
    CHECK_EQUAL(do_put(&world.call, "two", data, longest), ST_OK);
    free(data);
    pthread_t threads[6];
    for (int i = 0; i < 6; i++) {
        void *(*body)(void *) = i < 3 ? overwrite_again_and_again : read_again_and_again;
        CHECK_EQUAL(pthread_create(&threads[i], NULL, body, &race), 0);
    }
    usleep(700000);
    store_release_u32(&race.stop, 1);
    for (int i = 0; i < 6; i++) {
        pthread_join(threads[i], NULL);
    }
    CHECK(race.reads > 100 && race.changes > 50);
    audit_clean(&world.call);
    world_free(&world);
}

static void beside_writers_no_value_is_torn(Random *random) {
    (void)random;
    race_values(1, 400);
    race_values(2000, 9000);
    race_values(20000, 65000);
}

static void beside_writers_no_large_value_is_torn(Random *random) {
    (void)random;
    race_values(66000, 120000);
    race_values(60000, 70000);
}

const Test read_tests[] = {
    {"values_of_every_length_come_back_whole", values_of_every_length_come_back_whole},
    {"a_buffer_that_is_too_small_says_what_is_needed", a_buffer_that_is_too_small_says_what_is_needed},
    {"an_expired_entry_is_not_found_and_can_be_written_again",
     an_expired_entry_is_not_found_and_can_be_written_again},
    {"an_odd_sequence_sends_readers_to_the_lock_or_away", an_odd_sequence_sends_readers_to_the_lock_or_away},
    {"get_many_gives_what_get_gives", get_many_gives_what_get_gives},
    {"a_scan_gives_each_entry_of_its_namespace_once", a_scan_gives_each_entry_of_its_namespace_once},
    {"a_scan_beside_writers_gives_keys_that_stay_exactly_once",
     a_scan_beside_writers_gives_keys_that_stay_exactly_once},
    {"beside_writers_no_value_is_torn", beside_writers_no_value_is_torn},
    {"beside_writers_no_large_value_is_torn", beside_writers_no_large_value_is_torn},
    {0}};
