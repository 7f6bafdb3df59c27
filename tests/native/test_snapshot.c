/* test_snapshot.c: what is filled is what is there, once; what is loaded is what was filled; damage is seen on either
 * side. */
#include "images.h"
#include "model.h"
#include "repair.h"
#include "suite.h"
#include "table.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Few buckets: chains of many overflow buckets, and buffers that end within each of them. */
static void any_buffer_gives_the_same_images_once(Random *random) {
    World world, copy;
    world_make(&world, &(WorldOptions){.no_log = true, .expected_items = 16});
    put_many(&world, 0, 3000, 200, random);
    Images images = {0}, again = {0};
    fill_well(&world.call, &images, MIB);
    CHECK_EQUAL(images.entries, 3000);
    for (int round = 0; round < 6; round++) {
        fill_well(&world.call, &again, round == 0 ? 8 : random_between(random, 40, 5000));
        CHECK_EQUAL(again.length, images.length);
        CHECK(memcmp(again.bytes, images.bytes, images.length) == 0);
    }
    copy_make(&copy, &world, &(WorldOptions){.no_log = true, .stripe_count = 64});
    load_well(&copy, &images);
    arenas_equal(&world.call, &copy.call);
    audit_clean(&copy.call);
    load_well(&copy, &images);
    audit_clean(&copy.call);
    free(images.bytes);
    free(again.bytes);
    world_free(&copy);
    world_free(&world);
}

static void huge_values_say_what_they_need(Random *random) {
    (void)random;
    World world, copy;
    world_make(&world, &(WorldOptions){.no_log = true, .size_bytes = 32 * MIB, .ring_bytes = 16 * MIB});
    uint8_t *data = malloc(4 * MIB);
    CHECK(data != NULL);
    pattern_fill(data, 4 * MIB, 7);
    for (uint64_t i = 0; i < 4; i++) {
        char text[32];
        snprintf(text, sizeof text, "huge%llu", (unsigned long long)i);
        CHECK_EQUAL(do_put(&world.call, text, data, LARGE_VALUE_BYTES - 40 + i * 900000), ST_OK);
        CHECK_EQUAL(do_put(&world.call, text + 4, data, 10), ST_OK);
    }
    Images images = {0};
    fill_well(&world.call, &images, 100);
    CHECK_EQUAL(images.entries, 8);
    copy_make(&copy, &world, &world.options);
    load_well(&copy, &images);
    arenas_equal(&world.call, &copy.call);
    audit_clean(&copy.call);
    free(images.bytes);
    free(data);
    world_free(&copy);
    world_free(&world);
}

static void a_clear_leaves_out_what_it_ended_and_expired_entries_stay(Random *random) {
    World world;
    world_make(&world, &(WorldOptions){.no_log = true});
    put_many(&world, 0, 100, 50, random);
    CHECK_EQUAL(do_clear(&world.call, 0), ST_OK);
    Key key = key_of(&world.arena, "expired"), other = key_in(&world.arena, "other", 63);
    CHECK_EQUAL(do_set(&world.call, &key, TYPE_BYTES, "x", 1, &(SetOptions){.expires_ms = 1}), ST_OK);
    CHECK_EQUAL(do_set(&world.call, &other, TYPE_BYTES, "x", 1, NULL), ST_OK);
    Images images = {0};
    fill_well(&world.call, &images, 4096);
    CHECK_EQUAL(images.entries, 2);
    free(images.bytes);
    world_free(&world);
}

/* A log with clears, replayed over entries that are newer than these. */
static void a_clear_of_the_log_that_is_older_than_the_snapshot_counts_right(Random *random) {
    World world, copy;
    Log log;
    world_make(&world, NULL);
    log_open(&log, &world.arena);
    put_many(&world, 0, 200, 50, random);
    CHECK_EQUAL(do_clear(&world.call, 0), ST_OK);
    put_many(&world, 0, 100, 50, random);
    log_collect(&log, &world.arena, true);
    Images images = {0};
    fill_well(&world.call, &images, 4096);
    copy_make(&copy, &world, &world.options);
    load_well(&copy, &images);
    ReplayResult result;
    uint32_t seed = world.arena.record_seed;
    CHECK_EQUAL(replay(&copy.arena, seed, log.bytes, log.length, log.first_lsn, NULL, &result), ST_OK);
    CHECK_EQUAL(result.consumed_bytes, log.length);
    audit_clean(&copy.call);
    arenas_equal(&world.call, &copy.call);
    /* And what is below that clear stays away. */
    Images old = {0};
    World before;
    copy_make(&before, &world, &world.options);
    CHECK_EQUAL(replay(&before.arena, seed, log.bytes, log.length / 3, log.first_lsn, NULL, &result), ST_OK);
    fill_well(&before.call, &old, 4096);
    load_well(&copy, &old);
    audit_clean(&copy.call);
    arenas_equal(&world.call, &copy.call);
    free(images.bytes);
    free(old.bytes);
    log_free(&log);
    world_free(&before);
    world_free(&copy);
    world_free(&world);
}

static void a_stripe_in_the_middle_of_a_write_is_waited_for_and_then_locked(Random *random) {
    World world;
    world_make(&world, &(WorldOptions){.no_log = true, .shared = true});
    put_many(&world, 0, 500, 100, random);
    Images images = {0};
    FillResult result;
    fill_well(&world.call, &images, MIB);
    uint64_t length = images.length, cursor = 0;
    /* Odd for ever, but the lock is free: whoever wrote there died, and its owner word is 0. */
    for (uint32_t i = 0; i < world.arena.stripe_count; i += 3) {
        world.arena.stripes[i].sequence |= 1;
    }
    fill_well(&world.call, &images, 1000);
    CHECK_EQUAL(images.length, length);
    Call reader = {.arena = &world.arena, .slot = -1};
    uint8_t buffer[4096];
    CHECK_EQUAL(store_fill(&reader, &cursor, buffer, sizeof buffer, &result), ST_BUSY);
    CHECK(reader.wait == WAIT_READ && reader.wait_stripe == 0 && cursor == 0);
    /* Somebody else holds it. */
    CHECK_EQUAL(stripe_lock(&world.call, 0), ST_OK);
    Call other;
    call_open(&other, &world.arena);
    CHECK_EQUAL(store_fill(&other, &cursor, buffer, sizeof buffer, &result), ST_BUSY);
    CHECK(other.wait == WAIT_STRIPE && other.wait_stripe == 0 && cursor == 0);
    stripe_unlock(&world.call, 0);
    CHECK_EQUAL(store_fill(&other, &cursor, buffer, sizeof buffer, &result), ST_OK);
    call_close(&other);
    for (uint32_t i = 0; i < world.arena.stripe_count; i++) {
        world.arena.stripes[i].sequence = align_up(world.arena.stripes[i].sequence, 2);
    }
    free(images.bytes);
    world_free(&world);
}

static void a_retired_arena_is_filled_without_and_with_a_slot(Random *random) {
    World world;
    world_make(&world, &(WorldOptions){.no_log = true, .size_bytes = 48 * MIB});
    put_many(&world, 0, 500, 100000, random);
    Images before = {0}, after = {0};
    fill_well(&world.call, &before, MIB);
    /* The end was begun while somebody is in the middle of a write. */
    Stripe *stripe = &world.arena.stripes[0];
    uint64_t sequence = stripe->sequence, cursor = 0;
    static uint8_t buffer[200000];
    FillResult result;
    Call other;
    call_open(&other, &world.arena);
    CHECK_EQUAL(stripe_lock(&world.call, 0), ST_OK);
    world.arena.control->retired = 1;
    stripe->owner = (uint64_t)world.call.slot + 1;
    stripe->sequence |= 1;
    CHECK_EQUAL(store_fill(&other, &cursor, buffer, sizeof buffer, &result), ST_BUSY);
    CHECK(cursor == 0 && result.entries == 0);
    stripe->sequence = sequence + 2;
    stripe->owner = 0;
    stripe_unlock(&world.call, 0);
    call_close(&other);
    /* And its process died before it came to the stripes. */
    world.arena.control->retired = 1;
    fill_well(&world.call, &after, 100);
    CHECK_EQUAL(after.length, before.length);
    CHECK_EQUAL(do_retire(&world.call), ST_OK);
    Call reader = {.arena = &world.arena, .slot = -1};
    for (int i = 0; i < 2; i++) {
        fill_well(i == 0 ? &world.call : &reader, &after, 1000);
        CHECK_EQUAL(after.length, before.length);
        CHECK(memcmp(after.bytes, before.bytes, before.length) == 0);
    }
    free(before.bytes);
    free(after.bytes);
    world_free(&world);
}

/* ---- damage ---------------------------------------------------------------------------------- */
static void a_flipped_bit_anywhere_stops_before_that_image(Random *random) {
    World world;
    world_make(&world, &(WorldOptions){.no_log = true});
    put_many(&world, 0, 12, 60, random);
    Key key = key_of(&world.arena, "expires");
    const SetOptions options = {.expires_ms = 1ULL << 40, .flags = SET_PIN};
    CHECK_EQUAL(do_set(&world.call, &key, TYPE_STR, "text", 4, &options), ST_OK);
    Images images = {0};
    fill_well(&world.call, &images, MIB);
    uint64_t begin = 0, next = 0;
    for (uint64_t at = 0; at < images.length; at++) {
        if (at == next) {
            begin = next;
            next += align_up(entry_size((Entry *)(images.bytes + begin)), 8);
        }
        for (int bit = 0; bit < 8; bit++) {
            LoadResult result;
            images.bytes[at] ^= (uint8_t)(1 << bit);
            check_case("byte %llu, bit %d", (unsigned long long)at, bit);
            CHECK_EQUAL(store_load(NULL, images.bytes, images.length, 0, 0, &result), ST_OK);
            /* No checksum covers the version, but it must be the place of a record. */
            uint64_t version = *(uint64_t *)(images.bytes + begin);
            bool unseen = at - begin < 8 && version != 0 && version % 8 == 0 && version >> 62 == 0;
            CHECK(unseen ? result.stopped == NULL : result.stopped != NULL && result.consumed_bytes == begin);
            images.bytes[at] ^= (uint8_t)(1 << bit);
        }
    }
    for (uint64_t length = 0; length < images.length; length++) {
        uint8_t *cut = malloc(length + 1);
        LoadResult result;
        CHECK(cut != NULL);
        memcpy(cut, images.bytes, length);
        CHECK_EQUAL(store_load(NULL, cut, length, 0, 0, &result), ST_OK);
        CHECK(result.consumed_bytes == length ? result.stopped == NULL : strcmp(result.stopped, "length") == 0);
        free(cut);
    }
    free(images.bytes);
    world_free(&world);
}

/* Made by a program that is wrong, not by a disk. */
static void nonsense_under_sound_checksums_makes_no_unsound_arena(Random *random) {
    World world, copy;
    world_make(&world, &(WorldOptions){.no_log = true});
    put_many(&world, 0, 60, 60, random);
    Images images = {0};
    fill_well(&world.call, &images, MIB);
    uint8_t *bytes = malloc(images.length);
    CHECK(bytes != NULL);
    for (int round = 0; round < 400; round++) {
        memcpy(bytes, images.bytes, images.length);
        for (uint64_t at = 0; at < images.length;) {
            Entry *entry = (Entry *)(bytes + at);
            uint64_t size = entry_size(entry), padded = align_up(size, 8);
            if (random_one_in(random, 20)) {
                uint8_t *byte = bytes + at + (random_one_in(random, 2) ? ENTRY_BODY + random_below(random, 12)
                                                                       : random_below(random, padded));
                *byte = random_one_in(random, 2) ? (uint8_t)random_next(random) : (uint8_t)(*byte ^ 1);
                uint64_t covered = random_one_in(random, 2) ? entry_size(entry) : size;
                entry->body_crc = crc32c(0, bytes + at + ENTRY_BODY, min_u64(covered, images.length - at) - ENTRY_BODY);
            }
            at += padded;
        }
        copy_make(&copy, &world, &world.options);
        LoadResult result;
        check_case("round %d", round);
        CHECK_EQUAL(store_load(&copy.arena, bytes, images.length, 0, 16, &result), ST_OK);
        CHECK(result.entries <= images.entries && result.consumed_bytes <= images.length);
        world_log_at(&copy, UINT64_MAX / 4);
        if (result.highest_version < UINT64_MAX / 4) {
            audit_clean(&copy.call);
        }
        Images again = {0};
        fill_well(&copy.call, &again, 200);
        CHECK_EQUAL(again.entries, result.applied);
        free(again.bytes);
        world_free(&copy);
    }
    free(bytes);
    free(images.bytes);
    world_free(&world);
}

/* Memory that somebody scribbled over: an error, or images that are sound; never a crash. */
static void scribbles_in_the_arena_are_an_error_or_do_not_matter(Random *random) {
    World world;
    world_make(&world, &(WorldOptions){.no_log = true, .expected_items = 64});
    put_many(&world, 0, 600, 300, random);
    Images images = {0}, seen = {0};
    fill_well(&world.call, &images, MIB);
    uint64_t buckets = (uint64_t)world.arena.buckets_per_stripe * world.arena.stripe_count, errors = 0;
    for (int round = 0; round < 1500; round++) {
        Bucket *bucket = &world.arena.buckets[random_below(random, buckets)];
        uint64_t *word;
        if (random_one_in(random, 3)) {
            word = random_one_in(random, 4) ? &bucket->place[random_below(random, PLACES)] : &bucket->next;
        } else {
            const uint8_t *entry = arena_at(&world.arena, PLACE_OFFSET(bucket->place[random_below(random, PLACES)]));
            if (entry == NULL) {
                continue;
            }
            word = (uint64_t *)entry + random_below(random, 8);
        }
        uint64_t was = *word;
        *word = random_one_in(random, 4) ? random_next(random) : was ^ 1ULL << random_below(random, 64);
        FillResult result;
        check_case("round %d", round);
        Status s = fill_all(&world.call, &seen, random_between(random, 500, 5000), &result);
        CHECK(s == ST_OK || (s == ST_CORRUPT && result.what != NULL && result.stripe < world.arena.stripe_count));
        errors += s == ST_CORRUPT;
        LoadResult loaded;
        CHECK_EQUAL(store_load(NULL, seen.bytes, seen.length, 0, 0, &loaded), ST_OK);
        CHECK(loaded.stopped == NULL || strcmp(loaded.stopped, "version") == 0);
        *word = was;
    }
    CHECK(errors > 300);
    fill_well(&world.call, &seen, MIB);
    CHECK(seen.length == images.length && memcmp(seen.bytes, images.bytes, images.length) == 0);
    free(images.bytes);
    free(seen.bytes);
    world_free(&world);
}

/* Its checksum is right, but no look-up would find it there. */
static void an_entry_in_the_bucket_of_another_is_damage_and_condemns(Random *random) {
    World world;
    world_make(&world, &(WorldOptions){.no_log = true});
    put_many(&world, 0, 1, 20, random);
    uint64_t *one = NULL, *other = NULL, buckets = (uint64_t)world.arena.buckets_per_stripe * world.arena.stripe_count;
    for (uint64_t i = 0; i < buckets; i++) {
        if (world.arena.buckets[i].place[0] != 0) {
            one = &world.arena.buckets[i].place[0];
        } else {
            other = &world.arena.buckets[i].place[0];
        }
    }
    CHECK(one != NULL && other != NULL);
    *other = *one;
    *one = 0;
    Images images = {0};
    FillResult result;
    CHECK_EQUAL(fill_all(&world.call, &images, 4096, &result), ST_CORRUPT);
    CHECK(strcmp(result.what, "bucket of an entry") == 0 && result.found != result.expected);
    CHECK_EQUAL(world.arena.control->condemned, 1);
    free(images.bytes);
    world_free(&world);
}

/* ---- full arenas ----------------------------------------------------------------------------- */
static void a_full_arena_says_so_to_a_part_and_makes_room_for_the_whole(Random *random) {
    World world, copy;
    world_make(&world, &(WorldOptions){.no_log = true, .size_bytes = 24 * MIB});
    put_many(&world, 0, 2500, 8000, random);
    Images images = {0};
    fill_well(&world.call, &images, MIB);
    copy_make(&copy, &world, &(WorldOptions){.no_log = true, .size_bytes = 7 * MIB});
    LoadResult result;
    uint32_t stripes = copy.arena.stripe_count;
    CHECK_EQUAL(store_load(&copy.arena, images.bytes, images.length, 0, stripes, &result), ST_FULL);
    audit_clean(&copy.call);
    world_free(&copy);
    /* Full of entries that a clear ended: only a sweep, of all stripes, makes room. */
    copy_make(&copy, &world, &world.options);
    load_well(&copy, &images);
    CHECK_EQUAL(do_clear(&copy.call, 0), ST_OK);
    World more;
    world_make(&more, &(WorldOptions){.no_log = true, .size_bytes = 24 * MIB});
    world_log_at(&more, copy.arena.control->ring_tail);
    put_many(&more, 2500, 2500, 8000, random);
    fill_well(&more.call, &images, MIB);
    world_log_at(&copy, more.arena.control->ring_tail);
    CHECK_EQUAL(load_range(&copy, &images, 0, stripes - 1), ST_FULL);
    audit_clean(&copy.call);
    load_well(&copy, &images);
    audit_clean(&copy.call);
    arenas_equal(&more.call, &copy.call);
    free(images.bytes);
    world_free(&more);
    world_free(&copy);
    world_free(&world);
}

const Test snapshot_tests[] = {
    {"any_buffer_gives_the_same_images_once", any_buffer_gives_the_same_images_once},
    {"huge_values_say_what_they_need", huge_values_say_what_they_need},
    {"a_clear_leaves_out_what_it_ended_and_expired_entries_stay",
     a_clear_leaves_out_what_it_ended_and_expired_entries_stay},
    {"a_clear_of_the_log_that_is_older_than_the_snapshot_counts_right",
     a_clear_of_the_log_that_is_older_than_the_snapshot_counts_right},
    {"a_stripe_in_the_middle_of_a_write_is_waited_for_and_then_locked",
     a_stripe_in_the_middle_of_a_write_is_waited_for_and_then_locked},
    {"a_retired_arena_is_filled_without_and_with_a_slot", a_retired_arena_is_filled_without_and_with_a_slot},
    {"a_flipped_bit_anywhere_stops_before_that_image", a_flipped_bit_anywhere_stops_before_that_image},
    {"nonsense_under_sound_checksums_makes_no_unsound_arena", nonsense_under_sound_checksums_makes_no_unsound_arena},
    {"an_entry_in_the_bucket_of_another_is_damage_and_condemns",
     an_entry_in_the_bucket_of_another_is_damage_and_condemns},
    {"scribbles_in_the_arena_are_an_error_or_do_not_matter", scribbles_in_the_arena_are_an_error_or_do_not_matter},
    {"a_full_arena_says_so_to_a_part_and_makes_room_for_the_whole",
     a_full_arena_says_so_to_a_part_and_makes_room_for_the_whole},
    {0}};
