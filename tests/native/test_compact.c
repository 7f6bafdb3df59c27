/* test_compact.c: moving entries gives pages back, changes no value, and makes room for a large one. */
#include "compact.h"
#include "heap.h"
#include "lock.h"
#include "model.h"
#include "suite.h"
#include "table.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void fill_and_thin(World *world, Random *random, int keys, uint64_t longest, uint64_t keep_one_in) {
    uint8_t *data = malloc(longest);
    CHECK(data != NULL);
    char text[32];
    for (int i = 0; i < keys; i++) {
        snprintf(text, sizeof text, "k%d", i);
        pattern_fill(data, longest, (uint64_t)i);
        if (do_put(&world->call, text, data, 1 + (uint64_t)i * 7919 % longest) != ST_OK) {
            break;
        }
    }
    for (int i = 0; i < keys; i++) {
        snprintf(text, sizeof text, "k%d", i);
        Key key = key_of(&world->arena, text);
        if (!random_one_in(random, keep_one_in)) {
            (void)do_delete(&world->call, &key, 0);
        }
    }
    free(data);
}

static void check_values(World *world, int keys, uint64_t longest) {
    uint8_t *data = malloc(longest);
    CHECK(data != NULL);
    Value value = {0};
    char text[32];
    uint64_t found = 0;
    for (int i = 0; i < keys; i++) {
        snprintf(text, sizeof text, "k%d", i);
        Key key = key_of(&world->arena, text);
        if (do_get(&world->call, &key, &value) == ST_OK) {
            found++;
            pattern_fill(data, longest, (uint64_t)i);
            CHECK_EQUAL(value.length, 1 + (uint64_t)i * 7919 % longest);
            CHECK(memcmp(value.data, data, value.length) == 0);
        }
    }
    CHECK_EQUAL(found, store_count(&world->arena, 0));
    free(value.data);
    free(data);
}

static void compaction_gives_pages_back_and_changes_no_value(Random *random) {
    World world;
    world_make(&world, &(WorldOptions){.no_log = true, .expected_items = 20000});
    fill_and_thin(&world, random, 20000, 120, 8);
    uint64_t before = heap_count_free(&world.arena), tail = world.arena.control->ring_tail, gained = 0, pages;
    for (int pass = 0; pass < 60; pass++) {
        for (uint32_t i = 0; i < world.arena.stripe_count; i++) {
            CHECK_EQUAL(do_compact(&world.call, i, &pages), ST_OK);
            gained += pages;
        }
    }
    CHECK_EQUAL(heap_count_free(&world.arena), before + gained);
    CHECK_EQUAL(world.arena.control->ring_tail, tail);
    uint64_t used = world.arena.control->page_limit - heap_count_free(&world.arena), bytes = 0;
    for (uint32_t i = 0; i < world.arena.stripe_count; i++) {
        bytes += world.arena.stripes[i].used_bytes;
    }
    CHECK_SAYING(used * PAGE_BYTES < bytes + 16 * 12 * PAGE_BYTES + bytes / 4,
                 "%llu pages hold %llu bytes after compaction", (unsigned long long)used,
                 (unsigned long long)bytes);
    check_values(&world, 20000, 120);
    audit_clean(&world.call);
    world_free(&world);
}

static void a_window_is_emptied_for_a_large_value(Random *random) {
    World world;
    world_make(&world, &(WorldOptions){
                           .size_bytes = 24 * MIB, .ring_bytes = 4 * MIB, .no_log = true, .expected_items = 30000});
    fill_and_thin(&world, random, 30000, 900, 3);
    uint8_t *data = malloc(900 * KIB);
    CHECK(data != NULL);
    pattern_fill(data, 900 * KIB, 99);
    int large = 0;
    char text[32];
    Status s = ST_OK;
    for (; s == ST_OK; large++) {
        snprintf(text, sizeof text, "large%d", large);
        s = do_put(&world.call, text, data, 900 * KIB);
    }
    CHECK_EQUAL(s, ST_FULL);
    uint64_t left = heap_count_free(&world.arena);
    /* What is left lies between pages of buckets and large values, in holes that are shorter than a large value. */
    CHECK_SAYING(left < world.arena.control->page_limit / 5,
                 "%d large values in, and %llu of %llu pages are still free", large - 1, (unsigned long long)left,
                 (unsigned long long)world.arena.control->page_limit);
    CHECK(large > 4);
    Value value = {0};
    for (int i = 0; i < large - 1; i++) {
        snprintf(text, sizeof text, "large%d", i);
        Key key = key_of(&world.arena, text);
        CHECK_EQUAL(do_get(&world.call, &key, &value), ST_OK);
        CHECK(value.length == 900 * KIB && memcmp(value.data, data, value.length) == 0);
    }
    audit_clean(&world.call);
    free(value.data);
    free(data);
    world_free(&world);
}

/* What the half-full slabs of all classes up to that of `size` may take, in all stripes. */
static uint64_t slack_bytes(const World *world, uint64_t size) {
    uint64_t pages = 0;
    for (uint32_t class_ = 0; class_ < 47 && heap_class_bytes(class_) <= heap_block_bytes(size); class_++) {
        pages += heap_run_pages(class_);
    }
    return pages * PAGE_BYTES * world->arena.stripe_count;
}

/* Full of small values, most of them deleted again: the room serves every other size. */
static void full_of_one_size_then_thinned_takes_another_size(Random *random) {
    static const uint64_t firsts[] = {100, 500, 3000}, seconds[] = {6000, 1500, 60000, 100};
    for (int round = 0; round < 4; round++) {
        uint64_t i = random_below(random, 12);
        World world;
        world_make(&world, &(WorldOptions){.size_bytes = 20 * MIB, .no_log = true, .expected_items = 120000});
        uint64_t first = firsts[i / 4], second = seconds[i % 4];
        fill_and_thin(&world, random, 120000, first, 4);
        uint64_t free_before = heap_count_free(&world.arena), room = 0;
        for (uint32_t k = 0; k < world.arena.stripe_count; k++) {
            room += world.arena.stripes[k].used_bytes;
        }
        uint64_t not_for_use = room + slack_bytes(&world, first + 40) / 2;
        room = world.arena.control->page_limit * PAGE_BYTES;
        room = room > not_for_use ? room - not_for_use : 0;
        uint8_t *data = calloc(1, second);
        CHECK(data != NULL);
        char text[32];
        uint64_t n = 0;
        Status s = ST_OK;
        for (; s == ST_OK; n++) {
            snprintf(text, sizeof text, "second%llu", (unsigned long long)n);
            s = do_put(&world.call, text, data, second);
        }
        CHECK_EQUAL(s, ST_FULL);
        uint64_t got = (n - 1) * heap_block_bytes(second + 40);
        CHECK_SAYING(got * 10 > room * 8,
                     "%llu after %llu bytes: only %llu of %llu bytes could be used, %llu pages were free",
                     (unsigned long long)second, (unsigned long long)first, (unsigned long long)got,
                     (unsigned long long)room, (unsigned long long)free_before);
        audit_clean(&world.call);
        free(data);
        world_free(&world);
    }
}

/* What readers go by: each move makes a new number and one more move; each unlinking of a dead entry a new number. */
static void moves_and_unlinkings_show_in_the_stripe(Random *random) {
    World world;
    world_make(&world, &(WorldOptions){.no_log = true, .expected_items = 20000});
    fill_and_thin(&world, random, 10000, 120, 6);
    uint64_t *moved = &world.arena.slots[world.call.slot].counters[COUNT_MOVES], total = *moved;
    for (uint32_t i = 0; i < world.arena.stripe_count; i++) {
        Stripe before = world.arena.stripes[i];
        uint64_t moves = *moved, pages;
        CHECK_EQUAL(do_compact(&world.call, i, &pages), ST_OK);
        CHECK_EQUAL(world.arena.stripes[i].moves - before.moves, *moved - moves);
        CHECK_EQUAL(world.arena.stripes[i].sequence - before.sequence, 2 * (*moved - moves));
    }
    CHECK(*moved - total > 200);
    CHECK_EQUAL(do_clear(&world.call, 0), ST_OK);
    for (uint32_t i = 0; i < world.arena.stripe_count; i++) {
        Stripe before = world.arena.stripes[i];
        CHECK_EQUAL(do_sweep(&world.call, i), ST_OK);
        CHECK_EQUAL(world.arena.stripes[i].entries, 0);
        CHECK(before.entries > 0 && world.arena.stripes[i].sequence > before.sequence);
        CHECK_EQUAL(world.arena.stripes[i].sequence & 1, 0);
    }
    world_free(&world);
}

static void a_window_leaves_no_page_with_the_slot(Random *random) {
    World world;
    world_make(&world, &(WorldOptions){.no_log = true, .expected_items = 20000});
    fill_and_thin(&world, random, 20000, 200, 3);
    for (int i = 0; i < 20; i++) {
        (void)compact_make_room(&world.call, random_between(random, 1, 400000));
        audit_clean(&world.call);
        for (uint64_t k = 0; k < world.arena.page_count; k++) {
            CHECK(PAGE_KIND(world.arena.page_words[k]) != PAGE_SLOT);
        }
    }
    check_values(&world, 20000, 200);
    world_free(&world);
}

static void a_sweep_that_meets_a_chain_without_sense_condemns_the_arena(Random *random) {
    (void)random;
    for (int compacting = 0; compacting < 2; compacting++) {
        World world;
        world_make(&world, &(WorldOptions){.no_log = true});
        Key key = key_of(&world.arena, "key");
        uint32_t stripe = (uint32_t)(key.hash >> world.arena.stripe_shift);
        uint64_t pages;
        CHECK_EQUAL(do_put(&world.call, "key", "value", 5), ST_OK);
        CHECK_EQUAL(do_clear(&world.call, 0), ST_OK);
        table_bucket(&world.arena, key.hash)->next = 12345;
        CHECK_EQUAL(compacting ? do_compact(&world.call, stripe, &pages) : do_sweep(&world.call, stripe), ST_CORRUPT);
        CHECK_EQUAL(world.arena.control->condemned, 1);
        CHECK_EQUAL(lock_holder(&world.arena.stripes[stripe].lock), 0);
        world_free(&world);
    }
}

const Test compact_tests[] = {
    {"compaction_gives_pages_back_and_changes_no_value", compaction_gives_pages_back_and_changes_no_value},
    {"a_window_is_emptied_for_a_large_value", a_window_is_emptied_for_a_large_value},
    {"full_of_one_size_then_thinned_takes_another_size", full_of_one_size_then_thinned_takes_another_size},
    {"moves_and_unlinkings_show_in_the_stripe", moves_and_unlinkings_show_in_the_stripe},
    {"a_window_leaves_no_page_with_the_slot", a_window_leaves_no_page_with_the_slot},
    {"a_sweep_that_meets_a_chain_without_sense_condemns_the_arena",
     a_sweep_that_meets_a_chain_without_sense_condemns_the_arena},
    {0}};
