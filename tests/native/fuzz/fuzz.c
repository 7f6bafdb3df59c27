/* fuzz.c: see fuzz.h. */
#include "fuzz.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define ARENA_BYTES (8ULL << 20)
#define IMAGES_BYTES (1ULL << 20)

const uint8_t fuzz_store_id[16] = "0123456789abcdef";

void fuzz_failed(const char *what, uint64_t found, uint64_t expected) {
    fprintf(stderr, "fuzz: %s: found %llx, expected %llx\n", what, (unsigned long long)found,
            (unsigned long long)expected);
    abort();
}

static void expect(const char *what, uint64_t found, uint64_t expected) {
    if (found != expected) {
        fuzz_failed(what, found, expected);
    }
}

/* A private mapping of a file that holds an empty arena: giving its pages back makes it new. */
static uint8_t *map_empty_arena(void) {
    ArenaPlan plan = {.size_bytes = ARENA_BYTES, .ring_bytes = 1 << 16, .expected_items = 128, .stripe_count = 16,
                      .incarnation = FUZZ_INCARNATION, .first_lsn = FUZZ_FIRST_LSN, .hash_key = {1, 2},
                      .hash_key_given = true};
    memcpy(plan.store_id, fuzz_store_id, sizeof plan.store_id);
    expect("status of the plan", arena_plan(&plan), ST_OK);
    int fd = (int)syscall(SYS_memfd_create, "fuzz", 0);
    expect("result of ftruncate", (uint64_t)ftruncate(fd, ARENA_BYTES), 0);
    uint8_t *file = mmap(NULL, ARENA_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    uint8_t *base = mmap(NULL, ARENA_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    if (file == MAP_FAILED || base == MAP_FAILED) {
        fuzz_failed("mmap", 0, 1);
    }
    expect("status of the format", arena_format(file, &plan), ST_OK);
    munmap(file, ARENA_BYTES);
    close(fd);
    return base;
}

Arena *fuzz_arena(void) {
    static uint8_t *base;
    static Arena arena;
    OpenError why;
    if (base == NULL) {
        base = map_empty_arena();
    }
    madvise(base, ARENA_BYTES, MADV_DONTNEED);
    expect("status of the open", arena_open(&arena, base, ARENA_BYTES, true, &why), ST_OK);
    return &arena;
}

static void audit_all(Call *call) {
    for (uint32_t i = 0; i <= call->arena->stripe_count; i++) {
        Finding finding = {0};
        uint32_t count = 0;
        expect("status of the audit", audit_stripe(call, i, true, &finding, 1, &count), ST_OK);
        if (count != 0) {
            fuzz_failed(finding.what, finding.found, finding.expected);
        }
    }
}

void fuzz_check(Arena *arena) {
    Call call = {.arena = arena};
    Control *control = arena->control;
    /* Versions of images may be anything. */
    control->ring_tail = control->ring_head = control->written_lsn = control->durable_lsn = UINT64_MAX & ~7ULL;
    uint32_t pid = (uint32_t)getpid(), tid = (uint32_t)syscall(SYS_gettid);
    expect("status of the slot", slot_claim(arena, pid, tid, &call.slot), ST_OK);
    audit_all(&call);
    static uint8_t images[IMAGES_BYTES];
    uint64_t cursor = 0, entries = 0, linked = 0;
    while (cursor != CURSOR_END) {
        FillResult filled;
        LoadResult loaded;
        expect("status of a fill", store_fill(&call, &cursor, images, sizeof images, &filled), ST_OK);
        expect("bytes that a fill lacks", filled.needed_bytes, 0);
        expect("status of the check", store_load(NULL, images, filled.used_bytes, 0, 0, &loaded), ST_OK);
        expect("good bytes", loaded.consumed_bytes, filled.used_bytes);
        entries += filled.entries;
    }
    for (uint16_t i = 0; i < NAMESPACE_COUNT; i++) {
        linked += store_count(arena, i);
    }
    expect("entries that were walked", entries, linked);
}
