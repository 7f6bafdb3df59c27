/* test_table.c: keys in buckets: every length, every namespace, long chains of overflow buckets. */
#include "table.h"
#include "heap.h"
#include "suite.h"
#include "world.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void keys_of_every_length_are_told_apart(Random *random) {
    (void)random;
    World world;
    world_make(&world, &(WorldOptions){.size_bytes = 32 * MIB, .ring_bytes = MIB, .no_log = true});
    uint8_t *text = malloc(KEY_LIMIT + 1);
    CHECK(text != NULL);
    memset(text, 0, KEY_LIMIT + 1);
    Key key;
    /* Keys of zero bytes differ by length only: padding must not make two of them the same. */
    for (uint32_t length = 0; length <= KEY_LIMIT; length += length < 100 ? 1 : 8209) {
        CHECK_EQUAL(key_init(&world.arena, &key, text, length, 0), ST_OK);
        CHECK_EQUAL(do_set(&world.call, &key, TYPE_BYTES, &length, sizeof length, NULL), ST_OK);
    }
    Value value = {0};
    for (uint32_t length = 0; length <= KEY_LIMIT; length += length < 100 ? 1 : 8209) {
        CHECK_EQUAL(key_init(&world.arena, &key, text, length, 0), ST_OK);
        CHECK_EQUAL(do_get(&world.call, &key, &value), ST_OK);
        CHECK(value.length == sizeof length && memcmp(value.data, &length, sizeof length) == 0);
    }
    CHECK_EQUAL(key_init(&world.arena, &key, text, KEY_LIMIT + 1, 0), ST_KEY_TOO_LARGE);
    audit_clean(&world.call);
    free(value.data);
    free(text);
    world_free(&world);
}

static void one_key_in_each_namespace_is_64_keys(Random *random) {
    (void)random;
    World world;
    world_make(&world, NULL);
    for (uint16_t i = 0; i < NAMESPACE_COUNT; i++) {
        Key key = key_in(&world.arena, "same", i);
        CHECK_EQUAL(do_set(&world.call, &key, TYPE_BYTES, &i, sizeof i, NULL), ST_OK);
    }
    Value value = {0};
    for (uint16_t i = 0; i < NAMESPACE_COUNT; i++) {
        Key key = key_in(&world.arena, "same", i);
        CHECK_EQUAL(do_get(&world.call, &key, &value), ST_OK);
        CHECK(memcmp(value.data, &i, sizeof i) == 0);
        CHECK_EQUAL(store_count(&world.arena, i), 1);
    }
    CHECK_EQUAL(do_clear(&world.call, 17), ST_OK);
    for (uint16_t i = 0; i < NAMESPACE_COUNT; i++) {
        Key key = key_in(&world.arena, "same", i);
        CHECK_EQUAL(do_get(&world.call, &key, &value), i == 17 ? ST_NOT_FOUND : ST_OK);
    }
    audit_clean(&world.call);
    free(value.data);
    world_free(&world);
}

static void chains_of_overflow_buckets_hold_and_find_everything(Random *random) {
    World world;
    world_make(&world, &(WorldOptions){.expected_items = 16, .no_log = true});
    enum { KEYS = 6000 };
    static uint32_t value_of[KEYS];
    memset(value_of, 0, sizeof value_of);
    char text[32];
    Value value = {0};
    for (int round = 0; round < 20000; round++) {
        uint32_t number = (uint32_t)random_below(random, KEYS);
        snprintf(text, sizeof text, "k%u", number);
        Key key = key_of(&world.arena, text);
        if (random_one_in(random, 3)) {
            CHECK_EQUAL(do_delete(&world.call, &key, 0), value_of[number] ? ST_OK : ST_NOT_FOUND);
            value_of[number] = 0;
        } else {
            value_of[number] = (uint32_t)round + 1;
            CHECK_EQUAL(do_set(&world.call, &key, TYPE_BYTES, &value_of[number], 4, NULL), ST_OK);
        }
    }
    CHECK(world.arena.control->overflow_pages > 5);
    for (uint32_t i = 0; i < KEYS; i++) {
        snprintf(text, sizeof text, "k%u", i);
        Key key = key_of(&world.arena, text);
        CHECK_EQUAL(do_get(&world.call, &key, &value), value_of[i] ? ST_OK : ST_NOT_FOUND);
        CHECK(value_of[i] == 0 || memcmp(value.data, &value_of[i], 4) == 0);
    }
    audit_clean(&world.call);
    uint64_t pages = world.arena.control->overflow_pages;
    for (uint32_t i = 0; i < KEYS; i++) {
        snprintf(text, sizeof text, "k%u", i);
        Key key = key_of(&world.arena, text);
        (void)do_delete(&world.call, &key, 0);
    }
    for (uint32_t i = 0; i < KEYS / 2; i++) {
        snprintf(text, sizeof text, "other%u", i);
        CHECK_EQUAL(do_put(&world.call, text, "v", 1), ST_OK);
    }
    CHECK(world.arena.control->overflow_pages <= pages + 2);      /* places that came free are filled first */
    audit_clean(&world.call);
    free(value.data);
    world_free(&world);
}

static void no_more_overflow_buckets_is_full_and_nothing_else(Random *random) {
    (void)random;
    World world;
    world_make(&world, &(WorldOptions){.size_bytes = 6 * MIB, .expected_items = 16, .no_log = true});
    world.arena.overflow_page_limit = 3;
    char text[32];
    uint32_t n = 0;
    Status s;
    do {
        snprintf(text, sizeof text, "k%u", n++);
        s = do_put(&world.call, text, "v", 1);
    } while (s == ST_OK);
    CHECK_EQUAL(s, ST_FULL);
    audit_clean(&world.call);
    Value value = {0};
    for (uint32_t i = 0; i < n; i++) {
        snprintf(text, sizeof text, "k%u", i);
        Key key = key_of(&world.arena, text);
        CHECK_EQUAL(do_get(&world.call, &key, &value), i + 1 < n ? ST_OK : ST_NOT_FOUND);
        CHECK_EQUAL(do_put(&world.call, text, "w", 1), i + 1 < n ? ST_OK : ST_FULL);
    }
    audit_clean(&world.call);
    free(value.data);
    world_free(&world);
}

/* Entries of the smallest class fill the last page: the last of them ends where the mapping ends. */
static void the_last_block_before_the_end_is_as_good_as_any(Random *random) {
    (void)random;
    World world;
    world_make(&world, &(WorldOptions){.size_bytes = 6 * MIB});
    world.arena.control->small_cursor = world.arena.control->page_limit - 1;
    char text[16];
    uint64_t last = 0;
    for (uint32_t n = 0, in_page = 0; in_page < 128; n++) {
        snprintf(text, sizeof text, "%u", n);
        Key key = key_of(&world.arena, text);
        if (key.hash >> world.arena.stripe_shift != 3) {
            continue;
        }
        in_page++;
        uint8_t byte;
        Value value = {.data = &byte, .capacity = 1};
        CHECK_EQUAL(do_set(&world.call, &key, TYPE_NONE, "", 0, NULL), ST_OK);
        CHECK_EQUAL(store_get(&world.call, &key, &value), ST_OK);
        Found found;
        CHECK_EQUAL(table_find(&world.arena, &key, &found), ST_OK);
        CHECK(found.entry != NULL);
        last = arena_offset(&world.arena, found.entry);
    }
    CHECK_EQUAL(last, world.bytes - 32);
    audit_clean(&world.call);
    world_free(&world);
}

static Status refuse_third(void *context, Stripe *stripe, Bucket *bucket, uint64_t *place, Entry *entry) {
    (void)stripe, (void)bucket, (void)place, (void)entry;
    return ++*(int *)context == 3 ? ST_CONDITION : ST_OK;
}

static void a_walk_visits_all_and_stops_when_told(Random *random) {
    (void)random;
    World world;
    world_make(&world, &(WorldOptions){.expected_items = 16});
    char text[32];
    for (int i = 0; i < 500; i++) {
        snprintf(text, sizeof text, "k%d", i);
        CHECK_EQUAL(do_put(&world.call, text, "v", 1), ST_OK);
    }
    for (uint32_t i = 0; i < world.arena.stripe_count; i++) {
        int visited = 0;
        CHECK_EQUAL(table_walk(&world.arena, i, &visited, refuse_third, NULL), ST_CONDITION);
        CHECK_EQUAL(visited, 3);
    }
    world_free(&world);
}

const Test table_tests[] = {
    {"keys_of_every_length_are_told_apart", keys_of_every_length_are_told_apart},
    {"one_key_in_each_namespace_is_64_keys", one_key_in_each_namespace_is_64_keys},
    {"chains_of_overflow_buckets_hold_and_find_everything", chains_of_overflow_buckets_hold_and_find_everything},
    {"no_more_overflow_buckets_is_full_and_nothing_else", no_more_overflow_buckets_is_full_and_nothing_else},
    {"the_last_block_before_the_end_is_as_good_as_any", the_last_block_before_the_end_is_as_good_as_any},
    {"a_walk_visits_all_and_stops_when_told", a_walk_visits_all_and_stops_when_told},
    {0}};
