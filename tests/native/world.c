/* world.c: see world.h. */
#include "world.h"
#include "lock.h"
#include "ring.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

/* ---- making ---------------------------------------------------------------------------------- */
static void plan_fill(ArenaPlan *plan, const WorldOptions *options) {
    memset(plan, 0, sizeof *plan);
    plan->size_bytes = options->size_bytes ? options->size_bytes : 8 * MIB;
    plan->ring_bytes = options->ring_bytes ? options->ring_bytes : 512 * KIB;
    plan->expected_items = options->expected_items ? options->expected_items : 256;
    plan->stripe_count = options->stripe_count ? options->stripe_count : 16;
    plan->flags = options->no_log ? 0 : HEADER_HAS_LOG;
    plan->incarnation = 7;
    plan->first_lsn = WORLD_FIRST_LSN;
    memcpy(plan->store_id, "0123456789abcdef", 16);
    snprintf(plan->name, sizeof plan->name, "native-test");
}

static void fix_hash_key(uint8_t *base, uint64_t salt) {
    Random random = {check_seed_value() + salt * 0x9e3779b97f4a7c15ULL};
    ArenaHeader *h = (ArenaHeader *)base;
    h->hash_key[0] = random_next(&random);
    h->hash_key[1] = random_next(&random);
    h->crc = crc32c(0, h, offsetof(ArenaHeader, crc));
    memcpy(base + HEADER_BYTES, h, sizeof *h);
}

void world_make(World *world, const WorldOptions *options) {
    static const WorldOptions defaults = {0};
    memset(world, 0, sizeof *world);
    world->options = options ? *options : defaults;
    plan_fill(&world->plan, &world->options);
    Status s = arena_plan(&world->plan);
    CHECK_SAYING(s == ST_OK, "arena_plan: status %d, least size %llu", s, (unsigned long long)world->plan.size_bytes);
    world->bytes = world->plan.header.size_bytes;
    if (world->options.shared) {
        world->base = mmap(NULL, world->bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        CHECK(world->base != MAP_FAILED);
    } else {
        world->base = aligned_alloc(PAGE_BYTES, world->bytes);
        CHECK(world->base != NULL);
        memset(world->base, 0, world->bytes);
    }
    CHECK_EQUAL(arena_format(world->base, &world->plan), ST_OK);
    fix_hash_key(world->base, world->options.hash_salt);
    OpenError why;
    s = arena_open(&world->arena, world->base, world->bytes, true, &why);
    CHECK_SAYING(s == ST_OK, "arena_open: status %d, %s", s, why.what);
    world->arena.control->state = STATE_READY;
    call_open(&world->call, &world->arena);
}

void world_free(World *world) {
    if (world->options.shared) {
        munmap(world->base, world->bytes);
    } else {
        free(world->base);
    }
    world->base = NULL;
}

void call_open(Call *call, Arena *arena) {
    memset(call, 0, sizeof *call);
    call->arena = arena;
    CHECK_EQUAL(slot_claim(arena, (uint32_t)getpid(), (uint32_t)syscall(SYS_gettid), &call->slot), ST_OK);
}

void call_close(Call *call) {
    slot_release(call->arena, call->slot);
    call->slot = -1;
}

/* ---- operations with patience ---------------------------------------------------------------- */
#define PATIENTLY(call, result, operation)                                                            \
    do {                                                                                              \
        uint64_t until_ = clock_monotonic_ns() + PATIENCE_NS;                                         \
        (result) = (operation);                                                                       \
        while ((result) == ST_BUSY) {                                                                 \
            uint64_t now_ = clock_monotonic_ns();                                                     \
            CHECK_SAYING(now_ < until_, "%s still busy after 5 s: waits for %d, stripe %u, held by tid %u of pid %u", \
                         #operation, (call)->wait, (call)->wait_stripe, (call)->holder_tid, (call)->holder_pid);      \
            (result) = store_wait((call), until_);                                                    \
            if ((result) == ST_OK) {                                                                  \
                (result) = (operation);                                                               \
            }                                                                                         \
        }                                                                                             \
    } while (0)

Key key_in(const Arena *arena, const char *text, uint16_t namespace_id) {
    Key key;
    CHECK_EQUAL(key_init(arena, &key, text, strlen(text), namespace_id), ST_OK);
    return key;
}

Key key_of(const Arena *arena, const char *text) { return key_in(arena, text, 0); }

Status do_set(Call *call, const Key *key, uint8_t type, const void *data, uint64_t length, const SetOptions *options) {
    Status s;
    PATIENTLY(call, s, store_set(call, key, type, data, length, options));
    return s;
}

Status do_put(Call *call, const char *key, const void *data, uint64_t length) {
    Key k = key_of(call->arena, key);
    return do_set(call, &k, TYPE_BYTES, data, length, NULL);
}

Status do_delete(Call *call, const Key *key, uint64_t if_version) {
    Status s;
    PATIENTLY(call, s, store_delete(call, key, if_version));
    return s;
}

Status do_incr(Call *call, const Key *key, int64_t amount, int64_t *result) {
    Status s;
    PATIENTLY(call, s, store_incr(call, key, amount, 0, 0, result));
    return s;
}

Status do_append(Call *call, const Key *key, const void *data, uint64_t length, uint64_t *new_length) {
    Status s;
    PATIENTLY(call, s, store_append(call, key, TYPE_BYTES, data, length, new_length));
    return s;
}

Status do_write_many(Call *call, BatchEntry *entries, uint32_t n, uint32_t *done) {
    Status s;
    PATIENTLY(call, s, store_write_many(call, entries, n, done));
    return s;
}

Status do_clear(Call *call, uint16_t namespace_id) {
    Status s;
    PATIENTLY(call, s, store_clear(call, namespace_id));
    return s;
}

Status do_mark(Call *call) {
    Status s;
    PATIENTLY(call, s, store_mark(call, 1700000000000ULL));
    return s;
}

Status do_sweep(Call *call, uint32_t stripe) {
    Status s;
    PATIENTLY(call, s, store_sweep(call, stripe));
    return s;
}

Status do_compact(Call *call, uint32_t stripe, uint64_t *pages) {
    Status s;
    PATIENTLY(call, s, store_compact(call, stripe, pages));
    return s;
}

Status do_reap(Call *call, int32_t slot) {
    Status s;
    PATIENTLY(call, s, slot_reap(call, slot));
    return s;
}

Status do_retire(Call *call) {
    Status s;
    PATIENTLY(call, s, store_retire(call));
    return s;
}

Status do_get(Call *call, const Key *key, Value *value) {
    if (value->data == NULL) {
        value->capacity = 128 * KIB;
        value->data = malloc(value->capacity);
        CHECK(value->data != NULL);
    }
    for (int i = 0; i < 100; i++) {
        Status s;
        PATIENTLY(call, s, store_get(call, key, value));
        if (s != ST_BUFFER) {
            return s;
        }
        CHECK(value->length > value->capacity || value->capacity <= LARGE_VALUE_BYTES);
        value->capacity = value->length + value->length / 2 + LARGE_VALUE_BYTES + 1;
        free(value->data);
        value->data = malloc(value->capacity);
        CHECK(value->data != NULL);
    }
    check_failed(__FILE__, __LINE__, "a value kept growing while it was read");
}

void sweep_all(Call *call) {
    for (uint32_t i = 0; i < call->arena->stripe_count; i++) {
        CHECK_EQUAL(do_sweep(call, i), ST_OK);
    }
}

uint32_t reap_all(Call *call) {
    uint32_t freed = 0;
    for (int32_t i = 0; i < (int32_t)SLOT_COUNT; i++) {
        if (i == call->slot || load_relaxed(&call->arena->slots[i].owner) == 0) {
            continue;
        }
        Status s = do_reap(call, i);
        CHECK_SAYING(s == ST_OK || s == ST_CONDITION, "slot_reap of %d: status %d", i, s);
        freed += s == ST_OK;
    }
    return freed;
}

/* ---- checks ---------------------------------------------------------------------------------- */
uint32_t audit_count(Call *call, bool loud) {
    Finding findings[8];
    uint32_t total = 0;
    for (uint32_t i = 0; i <= call->arena->stripe_count; i++) {
        uint32_t count = 0;
        Status s;
        PATIENTLY(call, s, audit_stripe(call, i, true, findings, 8, &count));
        CHECK_SAYING(s == ST_OK, "audit_stripe %u: status %d", i, s);
        for (uint32_t k = 0; k < count && k < 8 && loud; k++) {
            const Finding *f = &findings[k];
            fprintf(stderr, "audit: stripe %lld: %s (offset %llx, found %llx, expected %llx)\n",
                    (long long)f->stripe, f->what, (unsigned long long)f->offset, (unsigned long long)f->found,
                    (unsigned long long)f->expected);
        }
        total += count;
    }
    return total;
}

void audit_clean(Call *call) {
    uint32_t findings = audit_count(call, true);
    CHECK_SAYING(findings == 0, "the audit has %u findings", findings);
    CHECK_EQUAL(call->arena->control->condemned, 0);
}

uint64_t entry_total(const Arena *arena) {
    uint64_t sum = 0;
    for (uint32_t i = 0; i < NAMESPACE_COUNT; i++) {
        sum += store_count(arena, (uint16_t)i);
    }
    return sum;
}

typedef struct Scan {
    Call *call;
    uint16_t namespace_id;
    uint64_t cursor;
    uint8_t *buffer;
    uint64_t capacity, used, at;
    uint32_t left;
} Scan;

static const ScanItem *scan_next(Scan *scan) {
    while (scan->left == 0) {
        if (scan->cursor == CURSOR_END) {
            return NULL;
        }
        Status s;
        PATIENTLY(scan->call, s,
                  store_scan(scan->call, scan->namespace_id, &scan->cursor, true, scan->buffer, scan->capacity,
                             &scan->used, &scan->left));
        scan->at = 0;
        if (s == ST_BUFFER) {
            scan->capacity = scan->call->needed_bytes;
            free(scan->buffer);
            scan->buffer = malloc(scan->capacity);
            CHECK(scan->buffer != NULL);
            scan->left = 0;
        } else {
            CHECK_EQUAL(s, ST_OK);
        }
    }
    const ScanItem *item = (const ScanItem *)(scan->buffer + scan->at);
    scan->at += item->item_bytes;
    scan->left--;
    return item;
}

static uint64_t compare_namespace(Call *left, Call *right, uint16_t namespace_id) {
    Scan scan = {.call = left, .namespace_id = namespace_id, .capacity = 64 * KIB, .buffer = malloc(64 * KIB)};
    Value value = {0};
    uint64_t entries = 0;
    for (const ScanItem *item; (item = scan_next(&scan)) != NULL; entries++) {
        const uint8_t *key_bytes = (const uint8_t *)(item + 1);
        const uint8_t *data = key_bytes + align_up(item->key_length, 8);
        Key key;
        CHECK_EQUAL(key_init(right->arena, &key, key_bytes, item->key_length, namespace_id), ST_OK);
        Status s = do_get(right, &key, &value);
        CHECK_SAYING(s == ST_OK, "key %.*s (version %llx) is missing on the right: status %d", (int)item->key_length,
                     key_bytes, (unsigned long long)item->version, s);
        CHECK_EQUAL(value.version, item->version);
        CHECK_EQUAL(value.type, item->type);
        CHECK_EQUAL(value.expires_ms, item->expires_ms);
        CHECK_EQUAL(value.length, item->value_length);
        CHECK(memcmp(value.data, data, value.length) == 0);
    }
    free(scan.buffer);
    free(value.data);
    return entries;
}

void arenas_equal(Call *left, Call *right) {
    for (uint16_t i = 0; i < NAMESPACE_COUNT; i++) {
        uint64_t there = store_count(right->arena, i);
        CHECK_EQUAL(store_count(left->arena, i), there);
        if (there != 0) {
            CHECK_EQUAL(compare_namespace(left, right, i), there);
        }
    }
}

/* ---- the log --------------------------------------------------------------------------------- */
void log_open(Log *log, const Arena *arena) {
    memset(log, 0, sizeof *log);
    log->first_lsn = load_acquire(&arena->control->ring_head);
}

void log_free(Log *log) {
    free(log->bytes);
    memset(log, 0, sizeof *log);
}

void log_collect(Log *log, Arena *arena, bool publish) {
    uint64_t from = log->first_lsn + log->length, tail = load_acquire(&arena->control->ring_tail);
    CHECK(from >= load_acquire(&arena->control->ring_head));
    if (log->length + (tail - from) > log->capacity) {
        log->capacity = 2 * (log->length + (tail - from)) + 64 * KIB;
        log->bytes = realloc(log->bytes, log->capacity);
        CHECK(log->bytes != NULL);
    }
    while (from < tail) {
        uint64_t at = from & (arena->ring_bytes - 1), n = min_u64(tail - from, arena->ring_bytes - at);
        memcpy(log->bytes + log->length, arena->ring + at, n);
        log->length += n;
        from += n;
    }
    if (publish) {
        ring_publish_written(arena, tail);
        ring_publish_durable(arena, tail, clock_coarse_ms());
    }
}

void world_log_at(World *world, uint64_t lsn) {
    Control *control = world->arena.control;
    control->ring_tail = control->ring_head = control->durable_lsn = control->written_lsn = lsn;
}

void world_replayed(World *copy, const World *of, const Log *log) {
    world_make(copy, &of->options);
    ReplayResult result;
    Status s = replay(&copy->arena, of->arena.record_seed, log->bytes, log->length, log->first_lsn, NULL, &result);
    CHECK_SAYING(s == ST_OK && result.stopped == NULL && result.consumed_bytes == log->length,
                 "replay: status %d, stopped: %s, at %llu of %llu bytes", s, result.stopped ? result.stopped : "no",
                 (unsigned long long)result.consumed_bytes, (unsigned long long)log->length);
    world_log_at(copy, result.next_lsn);
}

void world_verify(World *world, Log *log) {
    audit_clean(&world->call);
    log_collect(log, &world->arena, false);
    World copy;
    world_replayed(&copy, world, log);
    audit_clean(&copy.call);
    arenas_equal(&world->call, &copy.call);
    world_free(&copy);
}
