/* test_arena.c: planning, formatting and opening an arena: what must be refused, and which damage is survived. */
#include "suite.h"
#include "world.h"

#include <stdlib.h>
#include <string.h>

static Status reopen(const World *world, Arena *arena, OpenError *why) {
    return arena_open(arena, world->base, world->bytes, true, why);
}

static void one_damaged_header_copy_is_survived_two_are_not(Random *random) {
    (void)random;
    World world;
    world_make(&world, NULL);
    Arena arena;
    OpenError why;
    for (uint32_t at = 0; at < sizeof(ArenaHeader); at++) {
        for (int copies = 1; copies <= 3; copies++) {
            for (int copy = 0; copy < 2; copy++) {
                world.base[(uint64_t)copy * HEADER_BYTES + at] ^= copies >> copy & 1 ? 0x40 : 0;
            }
            Status s = reopen(&world, &arena, &why);
            CHECK_SAYING(s == (copies == 3 ? ST_CORRUPT : ST_OK), "byte %u of copies %d: status %d", at, copies, s);
            if (s == ST_OK) {
                CHECK(memcmp(&arena, &world.arena, sizeof arena) == 0);
            }
            for (int copy = 0; copy < 2; copy++) {
                world.base[(uint64_t)copy * HEADER_BYTES + at] ^= copies >> copy & 1 ? 0x40 : 0;
            }
        }
    }
    world_free(&world);
}

static void rewrite_header(World *world, const ArenaHeader *header) {
    ArenaHeader h = *header;
    h.crc = crc32c(0, &h, offsetof(ArenaHeader, crc));
    memcpy(world->base, &h, sizeof h);
    memcpy(world->base + HEADER_BYTES, &h, sizeof h);
}

static void a_header_of_another_kind_is_named(Random *random) {
    (void)random;
    World world;
    world_make(&world, NULL);
    ArenaHeader good, bad;
    memcpy(&good, world.base, sizeof good);
    Arena arena;
    OpenError why;
#define REFUSED(field, value, text)                                                        \
    do {                                                                                   \
        bad = good;                                                                        \
        bad.field = (value);                                                               \
        rewrite_header(&world, &bad);                                                      \
        CHECK_EQUAL(reopen(&world, &arena, &why), ST_INCOMPATIBLE);                        \
        CHECK_SAYING(strcmp(why.what, text) == 0, "refused for %s", why.what);             \
    } while (0)
    REFUSED(layout_version, 99, "layout version");
    REFUSED(layout_hash, good.layout_hash ^ 1, "layout hash");
    REFUSED(libc[0], 'm', "C library");
    REFUSED(mutex_bytes, 24, "size of a mutex");
    REFUSED(page_bytes, 16384, "page size");
    REFUSED(pid_namespace, good.pid_namespace + 1, "pid namespace");
#undef REFUSED
    rewrite_header(&world, &good);
    CHECK_EQUAL(reopen(&world, &arena, &why), ST_OK);
    world_free(&world);
}

/* A header with a good checksum and impossible numbers is refused, or at least leads nowhere outside the mapping. */
static void a_header_with_impossible_numbers_is_refused(Random *random) {
    World world;
    world_make(&world, NULL);
    ArenaHeader good, bad;
    memcpy(&good, world.base, sizeof good);
    static const size_t fields[] = {
        offsetof(ArenaHeader, size_bytes),        offsetof(ArenaHeader, max_size_bytes),
        offsetof(ArenaHeader, control_offset),    offsetof(ArenaHeader, namespaces_offset),
        offsetof(ArenaHeader, slots_offset),      offsetof(ArenaHeader, stripes_offset),
        offsetof(ArenaHeader, page_words_offset), offsetof(ArenaHeader, page_metas_offset),
        offsetof(ArenaHeader, ring_offset),       offsetof(ArenaHeader, buckets_offset),
        offsetof(ArenaHeader, pages_offset),      offsetof(ArenaHeader, ring_bytes),
        offsetof(ArenaHeader, page_count)};
    for (int round = 0; round < 20000; round++) {
        bad = good;
        size_t field = fields[random_below(random, sizeof fields / sizeof *fields)];
        uint64_t value, old;
        memcpy(&old, (uint8_t *)&bad + field, 8);
        switch (random_below(random, 5)) {
        case 0: value = random_next(random); break;
        case 1: value = old + random_below(random, 2 * world.bytes); break;
        case 2: value = old - random_below(random, 2 * world.bytes); break;
        case 3: value = (uint64_t)0 - random_below(random, world.bytes); break;
        default: value = old << random_below(random, 64); break;
        }
        memcpy((uint8_t *)&bad + field, &value, 8);
        rewrite_header(&world, &bad);
        Arena a;
        OpenError why;
        if (reopen(&world, &a, &why) != ST_OK) {
            continue;
        }
        const uint8_t *end = world.base + world.bytes;
        CHECK((uint8_t *)(a.control + 1) <= end && (uint8_t *)a.control >= world.base);
        CHECK_SAYING((uint8_t *)(a.namespaces + NAMESPACE_COUNT) <= end && (uint8_t *)a.namespaces >= world.base,
                     "namespaces");
        CHECK_SAYING((uint8_t *)(a.slots + SLOT_COUNT) <= end && (uint8_t *)a.slots >= world.base, "slots");
        CHECK_SAYING((uint8_t *)(a.stripes + a.stripe_count) <= end && (uint8_t *)a.stripes >= world.base, "stripes");
        CHECK_SAYING((uint8_t *)(a.page_words + a.page_count) <= end && (uint8_t *)a.page_words >= world.base,
                     "page words");
        CHECK_SAYING((uint8_t *)(a.page_metas + a.page_count) <= end && (uint8_t *)a.page_metas >= world.base,
                     "page metas");
        CHECK_SAYING(a.ring + a.ring_bytes <= end && a.ring >= world.base, "ring");
        CHECK_SAYING((uint8_t *)(a.buckets + (uint64_t)a.buckets_per_stripe * a.stripe_count) <= end &&
                         (uint8_t *)a.buckets >= world.base, "buckets");
        uint64_t pages = min_u64(a.page_count, a.control->page_limit);
        CHECK_SAYING(a.pages_offset + pages * PAGE_BYTES <= world.bytes, "pages");
    }
    world_free(&world);
}

static void a_plan_that_is_too_small_says_what_works(Random *random) {
    (void)random;
    ArenaPlan plan = {.size_bytes = 2 * MIB, .stripe_count = 16, .ring_bytes = 64 * KIB, .expected_items = 100};
    CHECK_EQUAL(arena_plan(&plan), ST_INVALID);
    CHECK(plan.size_bytes > 2 * MIB && plan.size_bytes < 8 * MIB);
    CHECK_EQUAL(arena_plan(&plan), ST_OK);
    plan.size_bytes -= PAGE_BYTES;
    CHECK_EQUAL(arena_plan(&plan), ST_INVALID);
    ArenaPlan stripes = {.size_bytes = 64 * MIB, .stripe_count = 24};
    CHECK_EQUAL(arena_plan(&stripes), ST_INVALID);
    ArenaPlan ring = {.size_bytes = 64 * MIB, .ring_bytes = 1000};
    CHECK_EQUAL(arena_plan(&ring), ST_INVALID);
    ArenaPlan lsn = {.size_bytes = 64 * MIB, .first_lsn = LSN_GAP + 8};
    CHECK_EQUAL(arena_plan(&lsn), ST_INVALID);
}

static void an_arena_without_first_lsn_is_not_formatted(Random *random) {
    (void)random;
    /* LSN 0 would make an entry that is below every clear LSN: dead at birth. */
    ArenaPlan plan = {.size_bytes = 8 * MIB, .stripe_count = 16, .ring_bytes = 64 * KIB, .expected_items = 100};
    CHECK_EQUAL(arena_plan(&plan), ST_OK);
    uint8_t *base = calloc(1, plan.header.size_bytes);
    CHECK(base != NULL);
    CHECK_EQUAL(arena_format(base, &plan), ST_INVALID);
    free(base);
}

static void a_mapping_that_is_too_short_is_refused(Random *random) {
    (void)random;
    World world;
    world_make(&world, NULL);
    Arena arena;
    OpenError why;
    CHECK_EQUAL(arena_open(&arena, world.base, 100, true, &why), ST_CORRUPT);
    CHECK_EQUAL(arena_open(&arena, world.base, world.bytes - 4096, true, &why), ST_CORRUPT);
    CHECK_EQUAL(why.needed, world.bytes);
    world_free(&world);
}

const Test arena_tests[] = {
    {"one_damaged_header_copy_is_survived_two_are_not", one_damaged_header_copy_is_survived_two_are_not},
    {"a_header_of_another_kind_is_named", a_header_of_another_kind_is_named},
    {"a_header_with_impossible_numbers_is_refused", a_header_with_impossible_numbers_is_refused},
    {"a_plan_that_is_too_small_says_what_works", a_plan_that_is_too_small_says_what_works},
    {"an_arena_without_first_lsn_is_not_formatted", an_arena_without_first_lsn_is_not_formatted},
    {"a_mapping_that_is_too_short_is_refused", a_mapping_that_is_too_short_is_refused},
    {0}};
