/* killcases.c: see killcases.h. */
#include "killcases.h"
#include "fault.h"
#include "fault_test.h"
#include "heap.h"
#include "model.h"
#include "table.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

#define LARGE_BYTES 100000u
#define BATCH_KEYS 5u
static uint8_t large[LARGE_BYTES];
static char overflowing[16];      /* a key whose chain has no empty place */
static char with_place[16];       /* one whose chain has */

static const char *const named_keys[] = {"fresh700", "number", "text", "large",     "newlarge",
                                         "other",    "big0",   "big1", overflowing, with_place};
#define NAMED_KEYS (sizeof named_keys / sizeof *named_keys)

const char *kill_key(uint32_t number, char *text) {
    if (number < CASE_KEYS) {
        sprintf(text, "k%u", number);
        return text;
    }
    return number - CASE_KEYS < NAMED_KEYS ? named_keys[number - CASE_KEYS] : NULL;
}

/* ---- the common start ------------------------------------------------------------------------ */
static void choose_keys(const World *world) {
    for (uint32_t i = 0; with_place[0] == 0 || overflowing[0] == 0; i++) {
        CHECK(i < 100000);
        char text[16];
        snprintf(text, sizeof text, "try%u", i);
        Key key = key_of(&world->arena, text);
        Found found;
        CHECK_EQUAL(table_find(&world->arena, &key, &found), ST_OK);
        char *to = found.free_place != NULL ? with_place : overflowing;
        if (to[0] == 0) {
            memcpy(to, text, sizeof text);
        }
    }
}

/* A batch is one record only if no two of its keys share a bucket. */
static const char *const batch_keys[BATCH_KEYS] = {"k1", "k12", "k23", "other", "k34"};

static bool batch_is_one_record(const Arena *arena) {
    for (uint32_t i = 0; i < BATCH_KEYS; i++) {
        for (uint32_t k = 0; k < i; k++) {
            Key a = key_of(arena, batch_keys[i]), b = key_of(arena, batch_keys[k]);
            if (arena_bucket_index(arena, a.hash) == arena_bucket_index(arena, b.hash)) {
                return false;
            }
        }
    }
    return true;
}

void kill_world_make(World *world) {
    WorldOptions options = {.size_bytes = 6 * MIB, .shared = true, .expected_items = 200};
    world_make(world, &options);
    while (!batch_is_one_record(&world->arena)) {
        world_free(world);
        options.hash_salt++;
        world_make(world, &options);
    }
    Call *call = &world->call;
    char text[16];
    int64_t number;
    pattern_fill(large, sizeof large, 1);
    for (int i = 0; i < CASE_KEYS; i++) {
        snprintf(text, sizeof text, "k%d", i);
        CHECK_EQUAL(do_put(call, text, large, 10 + (uint64_t)i % 80), ST_OK);
        Key key = key_in(call->arena, text, 1);
        CHECK(i % 4 != 0 || do_set(call, &key, TYPE_BYTES, large, 30, NULL) == ST_OK);
    }
    Key key = key_of(call->arena, "number");
    CHECK_EQUAL(do_incr(call, &key, 40, &number), ST_OK);
    CHECK_EQUAL(do_put(call, "text", "abc", 3), ST_OK);
    CHECK_EQUAL(do_put(call, "large", large, LARGE_BYTES - 1000), ST_OK);
    overflowing[0] = with_place[0] = 0;
    choose_keys(world);
    CHECK_EQUAL(do_mark(call), ST_OK);
}

/* ---- operations ------------------------------------------------------------------------------ */
static void set_new(Call *call) { (void)do_put(call, with_place, "v", 1); }
static void set_new_slab(Call *call) { (void)do_put(call, "fresh700", large, 700); }
static void set_overwrite(Call *call) { (void)do_put(call, "k5", large + 1, 15); }
static void set_grow(Call *call) { (void)do_put(call, "k6", large, 3000); }
static void set_large(Call *call) { (void)do_put(call, "newlarge", large, LARGE_BYTES); }
static void set_large_over_large(Call *call) { (void)do_put(call, "large", large, LARGE_BYTES); }
static void set_small_over_large(Call *call) { (void)do_put(call, "large", large, 20); }
static void set_overflow(Call *call) { (void)do_put(call, overflowing, "v", 1); }

static void set_with_expiry(Call *call) {
    Key key = key_of(call->arena, "k8");
    SetOptions options = {.flags = SET_PIN, .expires_ms = UINT64_MAX / 4};
    (void)do_set(call, &key, TYPE_STR, "text", 4, &options);
}

static void delete_one(Call *call) {
    Key key = key_of(call->arena, "k7");
    (void)do_delete(call, &key, 0);
}

static void increment(Call *call) {
    Key key = key_of(call->arena, "number");
    int64_t number;
    (void)do_incr(call, &key, 2, &number);
}

static void append(Call *call) {
    Key key = key_of(call->arena, "text");
    uint64_t length;
    (void)do_append(call, &key, large, 90, &length);
}

static void write_many(Call *call) {
    static char texts[30][16];
    BatchEntry items[30] = {0};
    uint32_t done = 0;
    for (uint32_t i = 0; i < 30; i++) {
        snprintf(texts[i], sizeof texts[i], "k%u", i * 7 % 50);
        items[i] = (BatchEntry){.key = key_of(call->arena, texts[i]), .type = TYPE_BYTES, .remove = i % 4 == 3,
                                .data = large + i, .length = 20 + i * 10};
    }
    items[17].key = key_of(call->arena, overflowing);
    items[17].remove = false;
    (void)do_write_many(call, items, 30, &done);
}

static void write_one_batch(Call *call) {
    BatchEntry items[BATCH_KEYS] = {0};
    uint32_t done = 0;
    for (uint32_t i = 0; i < BATCH_KEYS; i++) {
        items[i] = (BatchEntry){.key = key_of(call->arena, batch_keys[i]),
                                .type = TYPE_BYTES,
                                .remove = i == 2,
                                .data = large,
                                .length = 60 + i};
    }
    (void)do_write_many(call, items, BATCH_KEYS, &done);
}

static void clear(Call *call) { (void)do_clear(call, 0); }
static void mark(Call *call) { (void)do_mark(call); }
static void sweep(Call *call) { sweep_all(call); }

static void compact(Call *call) {
    for (uint32_t i = 0; i < call->arena->stripe_count; i++) {
        uint64_t pages;
        CHECK_EQUAL(do_compact(call, i, &pages), ST_OK);
    }
}

static void reap(Call *call) { (void)reap_all(call); }
static void retire(Call *call) { CHECK_EQUAL(do_retire(call), ST_OK); }

static void abort_batch(Call *call) {
    BatchEntry items[3] = {0};
    uint32_t done = 0;
    static const char *const texts[] = {"other", overflowing, "big0"};
    for (uint32_t i = 0; i < 3; i++) {
        items[i] = (BatchEntry){.key = key_of(call->arena, texts[i]), .type = TYPE_BYTES, .data = large,
                                .length = i == 2 ? 60000 : 40};
    }
    (void)do_write_many(call, items, 3, &done);
}

static void set_where_room_must_be_made(Call *call) { (void)do_put(call, "big1", large, 40000); }

/* ---- setups ---------------------------------------------------------------------------------- */
static void clear_namespace(World *world) { CHECK_EQUAL(do_clear(&world->call, 1), ST_OK); }

static void thin_out(World *world) {
    char text[16];
    for (int pass = 0; pass < 2; pass++) {
        for (int i = 0; i < 800; i++) {
            snprintf(text, sizeof text, "c%d", i);
            Key key = key_of(&world->arena, text);
            if (pass == 0) {
                CHECK_EQUAL(do_set(&world->call, &key, TYPE_BYTES, large, 100 + (uint64_t)(i % 2) * 300, NULL), ST_OK);
            } else if (i % 5 != 0) {
                CHECK_EQUAL(do_delete(&world->call, &key, 0), ST_OK);
            }
        }
    }
}

/* No page above those in use: what is free are holes. */
static void thin_and_bound(World *world) {
    thin_out(world);
    uint64_t last = 0;
    for (uint64_t i = 0; i < world->arena.page_count; i++) {
        last = PAGE_KIND(world->arena.page_words[i]) != PAGE_FREE ? i : last;
    }
    world->arena.control->page_limit = align_up(last + 1, 8);
    (void)heap_count_free(&world->arena);
}

static void bound_pages(World *world) {
    uint64_t last = 0;
    for (uint64_t i = 0; i < world->arena.page_count; i++) {
        last = PAGE_KIND(world->arena.page_words[i]) != PAGE_FREE ? i : last;
    }
    world->arena.control->page_limit = align_up(last + 12, 8);
    (void)heap_count_free(&world->arena);
}

static void killed_at(Call *call, void *context) {
    fault_arm(*(int *)context, 1);
    write_one_batch(call);
}

static void leave_dead(World *world, int point) {
    CHECK_EQUAL(child_end(child_start(world, killed_at, &point)), SIGKILL);
}

static void dead_with_the_ring_locked(World *world) { leave_dead(world, FAULT_tail_stored); }
static void dead_before_the_tail(World *world) { leave_dead(world, FAULT_record_copied); }

static void claim_pages(Call *call, void *context) {
    (void)context;
    CHECK(heap_claim_for_slot(call->arena, (uint32_t)call->slot, 30000, false) != 0);
    raise(SIGKILL);
}

static void two_dead(World *world) {
    leave_dead(world, FAULT_linked);
    CHECK_EQUAL(child_end(child_start(world, claim_pages, NULL)), SIGKILL);
}

const KillCase kill_cases[] = {
    {"set a new key", ONE_RECORD, 0, false, NULL, set_new, with_place},
    {"set a new key that needs a slab", ONE_RECORD, 0, false, NULL, set_new_slab, "fresh700"},
    {"overwrite, same size", ONE_RECORD, 0, false, NULL, set_overwrite, "k5"},
    {"overwrite, growing", ONE_RECORD, 0, false, NULL, set_grow, "k6"},
    {"set a large value", ONE_RECORD, 0, false, NULL, set_large, "newlarge"},
    {"overwrite large by large", ONE_RECORD, 0, false, NULL, set_large_over_large, "large"},
    {"overwrite large by small", ONE_RECORD, 0, false, NULL, set_small_over_large, "large"},
    {"set a key that needs an overflow bucket", ONE_RECORD, 0, false, NULL, set_overflow, overflowing},
    {"set with expiry", ONE_RECORD, 0, false, NULL, set_with_expiry, "k8"},
    {"delete", ONE_RECORD, 0, false, NULL, delete_one, "k7"},
    {"increment", ONE_RECORD, 0, false, NULL, increment, "number"},
    {"append", ONE_RECORD, 0, false, NULL, append, "text"},
    {"one batch", ONE_RECORD, 0, false, NULL, write_one_batch, "k12"},
    {"write many", MANY_RECORDS, 0, false, NULL, write_many, "k7"},
    {"clear", ONE_RECORD, 0, false, NULL, clear, "k20"},
    {"mark", NO_RECORD, 0, false, NULL, mark, "k21"},
    {"sweep", NO_RECORD, 0, false, clear_namespace, sweep, "k22"},
    {"compact", NO_RECORD, 0, false, thin_out, compact, "k23"},
    {"a batch that finds no memory", MANY_RECORDS, 0, false, bound_pages, abort_batch, "other"},
    {"set where room must be made", ONE_RECORD, 0, false, thin_and_bound, set_where_room_must_be_made, "big1"},
    {"reap", NO_RECORD, 2, false, two_dead, reap, "k12"},
    {"overwrite after a death before the tail", ONE_RECORD, 1, false, dead_before_the_tail, set_overwrite, "k5"},
    {"batch after a death behind the tail", ONE_RECORD, 1, false, dead_with_the_ring_locked, write_one_batch, "k12"},
    {"retire", NO_RECORD, 0, true, NULL, retire, "k24"},
    {"retire after a death", NO_RECORD, 1, true, dead_with_the_ring_locked, retire, "k12"}};
const uint32_t kill_case_count = sizeof kill_cases / sizeof *kill_cases;
