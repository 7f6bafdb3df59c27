/* test_audit.c: the audit can fail: each kind of planted damage is found, under the name that belongs to it. */
#include "heap.h"
#include "repair.h"
#include "suite.h"
#include "table.h"
#include "world.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct Patient {
    World world;
    Stripe *stripe;
    uint64_t *place;              /* of an entry in the stripe */
    Entry *entry;
    uint64_t page;                /* of the entry */
    Bucket *bucket;
    Bucket *overflow;             /* the stripe's first overflow bucket */
} Patient;

static Status first_place(void *context, Stripe *stripe, Bucket *bucket, uint64_t *place, Entry *entry) {
    Patient *patient = context;
    (void)stripe;
    if (patient->place == NULL && entry->namespace_id == 0) {
        patient->bucket = bucket;
        patient->place = place;
        patient->entry = entry;
        patient->page = heap_page_of(&patient->world.arena, arena_offset(&patient->world.arena, entry));
    }
    return ST_OK;
}

static Status first_overflow(void *context, Stripe *stripe, uint64_t offset) {
    Patient *patient = context;
    (void)stripe;
    if (patient->overflow == NULL) {
        patient->overflow = (Bucket *)(patient->world.base + offset);
    }
    return ST_OK;
}

static void patient_make(Patient *patient) {
    memset(patient, 0, sizeof *patient);
    world_make(&patient->world, &(WorldOptions){.size_bytes = 6 * MIB, .expected_items = 64, .ring_bytes = 256 * KIB});
    char text[16];
    for (int i = 0; i < 600; i++) {
        snprintf(text, sizeof text, "k%d", i);
        Key key = key_in(&patient->world.arena, text, (uint16_t)(i % 2));
        CHECK_EQUAL(do_set(&patient->world.call, &key, TYPE_BYTES, text, strlen(text), NULL), ST_OK);
    }
    audit_clean(&patient->world.call);
    patient->stripe = &patient->world.arena.stripes[6];
    CHECK_EQUAL(table_walk(&patient->world.arena, 6, patient, first_place, first_overflow), ST_OK);
    CHECK(patient->place != NULL && patient->overflow != NULL);
}

/* ---- damages --------------------------------------------------------------------------------- */
static void odd_sequence(Patient *p) { p->stripe->sequence++; }
static void value_byte(Patient *p) { entry_value(p->entry)[0] ^= 1; }
static void key_byte(Patient *p) { ((uint8_t *)entry_key(p->entry))[0] ^= 1; }
static void checksum(Patient *p) { p->entry->body_crc++; }
static void length_of_value(Patient *p) { p->entry->value_length++; }
static void version_ahead(Patient *p) { p->entry->version = p->world.arena.control->ring_tail; }
static void version_zero(Patient *p) { p->entry->version = 0; }
static void namespace_unknown(Patient *p) { p->entry->namespace_id = NAMESPACE_COUNT; }
static void tag(Patient *p) { *p->place ^= 1ULL << 50; }
static void offset_shifted(Patient *p) { *p->place += 8; }
static void offset_outside(Patient *p) { *p->place = PLACE(PLACE_TAG(*p->place), p->world.bytes); }
static void place_emptied(Patient *p) { *p->place = 0; }

static void place_twice(Patient *p) {
    for (uint32_t i = 0; i < PLACES; i++) {
        if (p->overflow->place[i] == 0) {
            p->overflow->place[i] = *p->place;
            return;
        }
    }
    p->overflow->place[0] = *p->place;
}

static void place_in_another_stripe(Patient *p) {
    Bucket *bucket = &p->world.arena.buckets[9ULL * p->world.arena.buckets_per_stripe];
    bucket->place[0] = *p->place;
}

static void bit_cleared(Patient *p) {
    PageMeta *meta = &p->world.arena.page_metas[p->page];
    meta->used[0] &= meta->used[0] - 1;
}

static void bit_set(Patient *p) {
    PageMeta *meta = &p->world.arena.page_metas[p->page];
    meta->used[1] |= 1ULL << 63;
}

static void page_of_another_stripe(Patient *p) { p->world.arena.page_words[p->page] ^= 1ULL << 16; }
static void page_free(Patient *p) { p->world.arena.page_words[p->page] = PAGE_FREE; }
static void page_of_nobody(Patient *p) { p->world.arena.page_words[p->page] = PAGE_WORD(9, 0, 0, 1); }
static void page_of_a_free_slot(Patient *p) {
    uint64_t *words = p->world.arena.page_words;
    for (uint64_t i = 0;; i++) {
        if (words[i] == PAGE_FREE) {
            words[i] = PAGE_WORD(PAGE_SLOT, CLASS_RUN, 77, 1);
            return;
        }
    }
}

static void page_leaked(Patient *p) {
    uint64_t *words = p->world.arena.page_words;
    for (uint64_t i = 0;; i++) {
        if (words[i] == PAGE_FREE) {
            words[i] = PAGE_WORD(PAGE_STRIPE, CLASS_RUN, 6, 1);
            return;
        }
    }
}

static void block_leaked(Patient *p) { CHECK(heap_take(&p->world.arena, 6, 60, false) != 0); }
static void bucket_leaked(Patient *p) { CHECK(heap_take_bucket(&p->world.arena, 6) != 0); }
static void entries_counted_wrong(Patient *p) { p->stripe->entries++; }
static void namespace_counted_wrong(Patient *p) { p->stripe->count[1]--; }
static void pages_counted_wrong(Patient *p) { p->stripe->pages--; }

static void list_lost(Patient *p) {
    for (uint32_t i = 0; i < CLASS_COUNT; i++) {
        if (p->stripe->partial[i] != 0) {
            p->stripe->partial[i] = 0;
            return;
        }
    }
    CHECK(false);
}

static void list_into_nowhere(Patient *p) { p->stripe->partial[20] = (uint32_t)p->world.arena.page_count + 7; }
static void list_of_full_slab(Patient *p) { p->stripe->partial[30] = (uint32_t)p->page + 1; }
static void chain_into_nowhere(Patient *p) { p->overflow->next = p->world.bytes - 24; }
static void chain_into_entry(Patient *p) {
    p->overflow->next = align_up(arena_offset(&p->world.arena, p->entry), CACHE_LINE);
}
static void chain_unaligned(Patient *p) { p->overflow->next = arena_offset(&p->world.arena, p->overflow) + 8; }
static void chain_cycle(Patient *p) { p->overflow->next = arena_offset(&p->world.arena, p->overflow); }
static void clear_above_highest(Patient *p) { p->stripe->clear_lsn[40] = 5; }
static void tail_behind_head(Patient *p) { p->world.arena.control->ring_head = p->world.arena.control->ring_tail + 8; }

typedef struct Damage {
    const char *name;
    void (*plant)(Patient *);
    const char *finding;          /* part of one of the findings; NULL = any */
} Damage;

static const Damage damages[] = {
    {"odd sequence", odd_sequence, "sequence is odd"},
    {"a byte of a value", value_byte, "checksum"},
    {"a byte of a key", key_byte, NULL},
    {"a checksum", checksum, "checksum"},
    {"the length of a value", length_of_value, "checksum"},
    {"a version ahead of the log", version_ahead, "version"},
    {"version zero", version_zero, "version"},
    {"an unknown namespace", namespace_unknown, NULL},
    {"a tag", tag, "wrong tag"},
    {"an offset that is no block's", offset_shifted, "not a used block"},
    {"an offset outside the arena", offset_outside, "leaves the pages"},
    {"an entry unlinked by nobody", place_emptied, "a leak"},
    {"an entry linked twice", place_twice, NULL},
    {"an entry in another stripe", place_in_another_stripe, "not a used block of the stripe"},
    {"a used block marked free", bit_cleared, "a leak"},
    {"a block that can't be", bit_set, "a leak"},
    {"a page given to another stripe", page_of_another_stripe, "not a used block of the stripe"},
    {"a used page marked free", page_free, "not a used block"},
    {"a page of nobody", page_of_nobody, "impossible owner"},
    {"a page of a free slot", page_of_a_free_slot, "free slot"},
    {"a page that the stripe has forgotten", page_leaked, "count of pages"},
    {"a block that is used by nothing", block_leaked, "a leak"},
    {"an overflow bucket that is used by nothing", bucket_leaked, "a leak"},
    {"a wrong count of entries", entries_counted_wrong, "count of entries"},
    {"a wrong count of a namespace", namespace_counted_wrong, "count of live entries"},
    {"a wrong count of pages", pages_counted_wrong, "count of pages"},
    {"a lost list of slabs", list_lost, "list of slabs"},
    {"a list that leads nowhere", list_into_nowhere, "list of slabs"},
    {"a list with a slab of another class", list_of_full_slab, "list of slabs"},
    {"a chain that leads nowhere", chain_into_nowhere, NULL},
    {"a chain into an entry", chain_into_entry, NULL},
    {"a chain to an odd place", chain_unaligned, NULL},
    {"a chain that is a circle", chain_cycle, NULL},
    {"a clear LSN above the highest", clear_above_highest, "clear LSN"},
    {"a tail behind the head", tail_behind_head, "ring"}};

static void every_planted_damage_is_found_and_named(Random *random) {
    (void)random;
    for (size_t i = 0; i < sizeof damages / sizeof *damages; i++) {
        Patient patient;
        patient_make(&patient);
        damages[i].plant(&patient);
        check_case("%s", damages[i].name);
        uint32_t total = 0;
        bool named = false;
        for (uint32_t stripe = 0; stripe <= patient.world.arena.stripe_count; stripe++) {
            Finding findings[64];
            uint32_t count = 0;
            CHECK_EQUAL(audit_stripe(&patient.world.call, stripe, true, findings, 64, &count), ST_OK);
            total += count;
            for (uint32_t k = 0; k < count && k < 64; k++) {
                named = named || damages[i].finding == NULL || strstr(findings[k].what, damages[i].finding) != NULL;
            }
        }
        CHECK(total > 0);
        CHECK(named);
        world_free(&patient.world);
    }
}

static void findings_beyond_the_capacity_are_counted(Random *random) {
    (void)random;
    Patient patient;
    patient_make(&patient);
    memset(patient.stripe->count, 0x11, sizeof patient.stripe->count);
    Finding findings[3];
    memset(findings, 0, sizeof findings);
    uint32_t count = 0;
    CHECK_EQUAL(audit_stripe(&patient.world.call, 6, true, findings, 2, &count), ST_OK);
    CHECK_EQUAL(count, NAMESPACE_COUNT);
    CHECK(findings[1].what != NULL && findings[2].what == NULL && findings[0].stripe == 6);
    CHECK_EQUAL(audit_stripe(&patient.world.call, 6, true, NULL, 0, &count), ST_OK);
    CHECK_EQUAL(count, NAMESPACE_COUNT);
    world_free(&patient.world);
}

/* Random bytes anywhere in tables, page words, pages: whatever the audit, the repair and readers say, they come back,
 * and touch nothing outside the arena. */
static void damage_anywhere_ends_in_answers_not_in_crashes(Random *random) {
    uint32_t found = 0;
    for (int round = 0; round < 150; round++) {
        Patient patient;
        patient_make(&patient);
        World *world = &patient.world;
        uint64_t starts[4] = {(uint64_t)((uint8_t *)world->arena.page_words - world->base),
                              (uint64_t)((uint8_t *)world->arena.page_metas - world->base),
                              (uint64_t)((uint8_t *)world->arena.buckets - world->base), world->arena.pages_offset};
        uint64_t lengths[4] = {8 * 150, sizeof(PageMeta) * 150, 64ULL * world->arena.buckets_per_stripe * 16,
                               150 * PAGE_BYTES};
        int region = (int)random_below(random, 4);
        for (uint64_t i = random_between(random, 1, 20); i > 0; i--) {
            uint64_t at = starts[region] + random_below(random, lengths[region]);
            world->base[at] = random_one_in(random, 2) ? (uint8_t)random_next(random) : (uint8_t)(world->base[at] + 1);
        }
        check_case("round %d, region %d", round, region);
        uint32_t count = 0;
        for (uint32_t stripe = 0; stripe <= world->arena.stripe_count; stripe++) {
            uint32_t findings = 0;
            (void)audit_stripe(&world->call, stripe, true, NULL, 0, &findings);
            count += findings;
        }
        found += count != 0;
        uint8_t data[64];
        char text[16];
        for (int i = 0; i < 600; i++) {
            Value value = {.data = data, .capacity = sizeof data};
            snprintf(text, sizeof text, "k%d", i);
            Key key = key_in(&world->arena, text, (uint16_t)(i % 2));
            (void)store_get(&world->call, &key, &value);
        }
        for (uint32_t stripe = 0; stripe < world->arena.stripe_count; stripe++) {
            world->arena.stripes[stripe].owner = (uint64_t)world->call.slot + 1;
            if (stripe_lock(&world->call, stripe) == ST_OK) {
                stripe_unlock(&world->call, stripe);
            } else {
                CHECK_EQUAL(world->arena.control->condemned, 1);
            }
        }
        world_free(world);
    }
    CHECK(found > 50);
}

const Test audit_tests[] = {
    {"every_planted_damage_is_found_and_named", every_planted_damage_is_found_and_named},
    {"findings_beyond_the_capacity_are_counted", findings_beyond_the_capacity_are_counted},
    {"damage_anywhere_ends_in_answers_not_in_crashes", damage_anywhere_ends_in_answers_not_in_crashes},
    {0}};
