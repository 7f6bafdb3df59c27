/* test_heap.c: blocks of a stripe: they never overlap, all memory comes back, and it is reused across sizes. */
#include "heap.h"
#include "model.h"
#include "repair.h"
#include "suite.h"

#include <stdlib.h>
#include <string.h>

static void a_block_is_never_smaller_than_asked_and_wastes_a_quarter_at_most(Random *random) {
    (void)random;
    uint64_t before = 0;
    for (uint64_t size = 1; size <= 100000; size += size < 10000 ? 1 : 131) {
        uint64_t bytes = heap_block_bytes(size);
        CHECK(bytes >= size && bytes % 16 == 0 && bytes >= before);
        CHECK(size <= 64 || bytes * 4 <= size * 5 + 64 || heap_is_run(size));
        before = bytes;
    }
    for (uint32_t class_ = 0; class_ < 47; class_++) {
        CHECK_EQUAL(heap_block_bytes(heap_class_bytes(class_)), heap_class_bytes(class_));
        CHECK(heap_slab_blocks(class_) >= 2 && heap_slab_blocks(class_) <= 128);
    }
}

typedef struct Block {
    uint64_t offset, size;
    uint32_t stripe;
    uint8_t fill;
} Block;

static void check_fill(const World *world, const Block *block) {
    const uint8_t *p = world->base + block->offset;
    for (uint64_t i = 0; i < block->size; i += i < 64 || i + 64 > block->size ? 1 : 61) {
        CHECK_EQUAL(p[i], block->fill);
    }
}

static uint64_t free_pages(World *world) {
    uint64_t hint = heap_free_hint(&world->arena), counted = heap_count_free(&world->arena);
    CHECK_EQUAL(hint, counted);
    return counted;
}

static void blocks_do_not_overlap_and_all_pages_come_back(Random *random) {
    World world;
    world_make(&world, NULL);
    enum { BLOCKS = 1500 };
    static Block blocks[BLOCKS];
    memset(blocks, 0, sizeof blocks);
    uint64_t at_first = free_pages(&world);
    for (int round = 0; round < 60000; round++) {
        Block *block = &blocks[random_below(random, BLOCKS)];
        if (block->offset != 0) {
            check_fill(&world, block);
            heap_return(&world.arena, block->stripe, block->offset);
            block->offset = 0;
            continue;
        }
        block->size = random_one_in(random, 30) ? random_between(random, 1, 100000) : random_between(random, 1, 6000);
        block->stripe = (uint32_t)random_below(random, 4);
        block->offset = heap_take(&world.arena, block->stripe, block->size, random_one_in(random, 2));
        if (block->offset != 0) {
            block->fill = (uint8_t)random_next(random);
            CHECK(block->offset % 8 == 0 && block->offset + block->size <= world.bytes);
            CHECK(heap_holds(&world.arena, block->stripe, block->offset, block->size));
            CHECK(!heap_holds(&world.arena, block->stripe + 4, block->offset, block->size));
            memset(world.base + block->offset, block->fill, block->size);
        }
    }
    for (int i = 0; i < BLOCKS; i++) {
        if (blocks[i].offset != 0) {
            check_fill(&world, &blocks[i]);
            heap_return(&world.arena, blocks[i].stripe, blocks[i].offset);
        }
    }
    CHECK_EQUAL(free_pages(&world), at_first);
    audit_clean(&world.call);
    world_free(&world);
}

static void a_full_pool_refuses_leaves_the_reserve_and_recovers(Random *random) {
    (void)random;
    World world;
    world_make(&world, NULL);
    uint64_t limit = world.arena.control->page_limit, n = 0, blocks[4096];
    while ((blocks[n] = heap_take(&world.arena, 1, 5000, false)) != 0) {
        n++;
    }
    CHECK(free_pages(&world) <= limit / HEAP_RESERVE_DIVISOR + 8);
    CHECK(free_pages(&world) + 1 >= limit / HEAP_RESERVE_DIVISOR);
    uint64_t with_reserve = n;
    while ((blocks[n] = heap_take(&world.arena, 2, 300, true)) != 0) {
        n++;
    }
    CHECK(n > with_reserve);
    CHECK_EQUAL(free_pages(&world), 0);
    for (uint64_t i = 0; i < n; i++) {
        heap_return(&world.arena, i < with_reserve ? 1 : 2, blocks[i]);
    }
    CHECK_EQUAL(free_pages(&world), limit);
    CHECK(heap_take(&world.arena, 0, (limit - limit / HEAP_RESERVE_DIVISOR) * PAGE_BYTES, false) != 0);
    world_free(&world);
}

static void a_wrong_count_of_free_pages_is_corrected_before_a_refusal(Random *random) {
    (void)random;
    World world;
    world_make(&world, NULL);
    uint64_t limit = heap_count_free(&world.arena);
    world.arena.control->pages_free = 0;
    CHECK(heap_take(&world.arena, 0, 100, false) != 0);
    CHECK_EQUAL(heap_free_hint(&world.arena), limit - 1);
    world_free(&world);
}

static void a_run_of_a_slot_passes_to_a_stripe_or_comes_back(Random *random) {
    (void)random;
    World world;
    world_make(&world, NULL);
    uint32_t slot = (uint32_t)world.call.slot;
    uint64_t at_first = free_pages(&world), size = 300000, pages = (size + PAGE_BYTES - 1) / PAGE_BYTES;
    uint64_t back = heap_claim_for_slot(&world.arena, slot, size, false);
    uint64_t kept = heap_claim_for_slot(&world.arena, slot, size, false);
    CHECK(back != 0 && kept != 0);
    CHECK_EQUAL(free_pages(&world), at_first - 2 * pages);
    heap_return_slot_run(&world.arena, slot, back);
    heap_adopt(&world.arena, slot, 3, kept);
    CHECK(heap_holds(&world.arena, 3, kept, size));
    heap_free_slot_pages(&world.arena, slot);
    CHECK_EQUAL(free_pages(&world), at_first - pages);
    heap_return(&world.arena, 3, kept);
    CHECK_EQUAL(free_pages(&world), at_first);
    (void)heap_claim_for_slot(&world.arena, slot, size, false);
    (void)heap_claim_for_slot(&world.arena, slot, 5000, false);
    heap_free_slot_pages(&world.arena, slot);
    CHECK_EQUAL(free_pages(&world), at_first);
    world_free(&world);
}

static void overflow_buckets_are_zero_reused_and_capped(Random *random) {
    (void)random;
    World world;
    world_make(&world, NULL);
    uint64_t most = world.arena.overflow_page_limit * (PAGE_BYTES / sizeof(Bucket)), n = 0;
    uint64_t *offsets = malloc((most + 1) * sizeof *offsets);
    CHECK(offsets != NULL);
    while (n <= most && (offsets[n] = heap_take_bucket(&world.arena, 5)) != 0) {
        CHECK(offsets[n] % CACHE_LINE == 0);
        memset(world.base + offsets[n], 0xcc, sizeof(Bucket));
        n++;
    }
    CHECK_EQUAL(n, most);
    CHECK_EQUAL(world.arena.control->overflow_pages, world.arena.overflow_page_limit);
    CHECK_EQUAL(heap_take_bucket(&world.arena, 6), 0);
    for (uint64_t i = 0; i < n; i++) {
        heap_return_bucket(&world.arena, 5, offsets[i]);
    }
    uint64_t again = heap_take_bucket(&world.arena, 5);
    CHECK(again != 0);
    for (size_t i = 0; i < sizeof(Bucket); i++) {
        CHECK_EQUAL(world.base[again + i], 0);
    }
    /* Their pages never become anything else. */
    CHECK_EQUAL(heap_count_free(&world.arena), world.arena.control->page_limit - world.arena.overflow_page_limit);
    free(offsets);
    world_free(&world);
}

/* The count of overflow pages is a hint too: a process killed after counting must not use up the limit for ever. */
static void a_wrong_count_of_overflow_pages_is_corrected_before_a_refusal(Random *random) {
    (void)random;
    World world;
    world_make(&world, NULL);
    world.arena.control->overflow_pages = world.arena.overflow_page_limit;
    CHECK(heap_take_bucket(&world.arena, 1) != 0);
    CHECK_EQUAL(world.arena.control->overflow_pages, 1);
    world_free(&world);
}

static void repair_makes_all_derived_state_anew(Random *random) {
    World world;
    world_make(&world, NULL);
    Log log;
    log_open(&log, &world.arena);
    Model model;
    model_make(&model, 300, 20000);
    for (int round = 0; round < 5; round++) {
        for (int i = 0; i < 300; i++) {
            model_step(&model, &world.call, random);
            log_collect(&log, &world.arena, true);
        }
        uint64_t free_before = heap_count_free(&world.arena);
        for (uint32_t i = 0; i < world.arena.stripe_count; i++) {
            Stripe *stripe = &world.arena.stripes[i];
            for (uint32_t k = 0; k < CLASS_COUNT; k++) {
                stripe->partial[k] = (uint32_t)random_next(random);
            }
            stripe->bucket_partial = (uint32_t)random_next(random);
            stripe->used_bytes = stripe->entries = stripe->pages = random_next(random);
            memset(stripe->count, 0x5a, sizeof stripe->count);
        }
        for (uint64_t i = 0; i < world.arena.page_count; i++) {
            if (PAGE_KIND(world.arena.page_words[i]) == PAGE_STRIPE ||
                PAGE_KIND(world.arena.page_words[i]) == PAGE_BUCKETS) {
                memset(&world.arena.page_metas[i], 0xa5, sizeof(PageMeta));
            }
        }
        for (uint32_t i = 0; i < world.arena.stripe_count; i++) {
            uint64_t sequence = world.arena.stripes[i].sequence, moves = world.arena.stripes[i].moves;
            world.arena.stripes[i].owner = (uint64_t)world.call.slot + 1;
            CHECK_EQUAL(stripe_lock(&world.call, i), ST_OK);
            stripe_unlock(&world.call, i);
            CHECK_EQUAL(world.arena.stripes[i].sequence, sequence + 2);
            CHECK_EQUAL(world.arena.stripes[i].moves, moves + 1);
        }
        CHECK_EQUAL(heap_count_free(&world.arena), free_before);
        model_check(&model, &world.call);
        world_verify(&world, &log);
    }
    model_free(&model);
    log_free(&log);
    world_free(&world);
}

/* Values of 100 B, 4 KiB and 1 MiB overwrite each other by turns: the store neither fills nor slows down. */
static void memory_is_reused_across_sizes(Random *random) {
    World world;
    world_make(&world, &(WorldOptions){.size_bytes = 40 * MIB, .ring_bytes = 8 * MIB, .no_log = true});
    static const uint64_t sizes[] = {100, 4096, MIB};
    enum { KEYS = 14, ROUNDS = 90 };
    uint8_t *data = malloc(MIB);
    CHECK(data != NULL);
    pattern_fill(data, MIB, 1);
    uint64_t early_ns = 0, late_ns = 0;
    for (int round = 0; round < ROUNDS; round++) {
        uint64_t begun = clock_monotonic_ns();
        for (int i = 0; i < KEYS; i++) {
            char key[32];
            memcpy(key, "key-A", 6);
            key[4] = (char)('A' + i);
            uint64_t size = sizes[(uint64_t)(round + i) % 3] - random_below(random, 50);
            Status s = do_put(&world.call, key, data, size);
            CHECK_SAYING(s == ST_OK, "round %d, key %d, %llu bytes: status %d, %llu pages free", round, i,
                         (unsigned long long)size, s, (unsigned long long)heap_count_free(&world.arena));
        }
        uint64_t took = clock_monotonic_ns() - begun;
        *(round < ROUNDS / 3 ? &early_ns : round >= ROUNDS * 2 / 3 ? &late_ns : &(uint64_t){0}) += took;
    }
    CHECK_SAYING(late_ns < 4 * early_ns + 50000000, "the last third took %llu ns, the first %llu ns",
                 (unsigned long long)late_ns, (unsigned long long)early_ns);
    audit_clean(&world.call);
    free(data);
    world_free(&world);
}

const Test heap_tests[] = {
    {"a_block_is_never_smaller_than_asked_and_wastes_a_quarter_at_most",
     a_block_is_never_smaller_than_asked_and_wastes_a_quarter_at_most},
    {"blocks_do_not_overlap_and_all_pages_come_back", blocks_do_not_overlap_and_all_pages_come_back},
    {"a_full_pool_refuses_leaves_the_reserve_and_recovers", a_full_pool_refuses_leaves_the_reserve_and_recovers},
    {"a_wrong_count_of_free_pages_is_corrected_before_a_refusal",
     a_wrong_count_of_free_pages_is_corrected_before_a_refusal},
    {"a_run_of_a_slot_passes_to_a_stripe_or_comes_back", a_run_of_a_slot_passes_to_a_stripe_or_comes_back},
    {"overflow_buckets_are_zero_reused_and_capped", overflow_buckets_are_zero_reused_and_capped},
    {"a_wrong_count_of_overflow_pages_is_corrected_before_a_refusal",
     a_wrong_count_of_overflow_pages_is_corrected_before_a_refusal},
    {"repair_makes_all_derived_state_anew", repair_makes_all_derived_state_anew},
    {"memory_is_reused_across_sizes", memory_is_reused_across_sizes},
    {0}};
