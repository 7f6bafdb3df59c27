/* world.h: a small arena for a test: making one, operating on it with patience, playing persister, comparing.
 *
 * Invariants:
 *   I1  Every operation here waits as a caller of the core does (store.h), with a deadline, and fails the test when
 *       that passes: a hang is a failure, not a time-out of the runner.
 *   I2  Log holds each byte of the log since first_lsn, as a file would.
 */
#ifndef SHMKV_WORLD_H
#define SHMKV_WORLD_H

#include "arena.h"
#include "check.h"
#include "store.h"

#define KIB 1024ULL
#define MIB (1024ULL * 1024)
#define WORLD_FIRST_LSN (1ULL << 41)
#define PATIENCE_NS 5000000000ULL

typedef struct WorldOptions {
    uint64_t size_bytes;          /* 0 = 8 MiB */
    uint64_t ring_bytes;          /* 0 = 512 KiB */
    uint64_t expected_items;      /* 0 = 256: chains stay short, overflow is easily made */
    uint32_t stripe_count;        /* 0 = 16 */
    uint64_t hash_salt;           /* another number, other buckets for the same keys */
    bool no_log;
    bool shared;                  /* mmap MAP_SHARED for forks; else memory of malloc, where sanitizers see its ends */
} WorldOptions;

typedef struct World {
    WorldOptions options;
    uint8_t *base;
    uint64_t bytes;
    ArenaPlan plan;
    Arena arena;
    Call call;                    /* of the thread that made the world */
} World;

void world_make(World *world, const WorldOptions *options);
void world_free(World *world);
/* A Call with a slot of the calling thread. */
void call_open(Call *call, Arena *arena);
void call_close(Call *call);

/* ---- operations with patience ---------------------------------------------------------------- */
Key key_of(const Arena *arena, const char *text);
Key key_in(const Arena *arena, const char *text, uint16_t namespace_id);
Status do_set(Call *call, const Key *key, uint8_t type, const void *data, uint64_t length, const SetOptions *options);
Status do_put(Call *call, const char *key, const void *data, uint64_t length);
Status do_delete(Call *call, const Key *key, uint64_t if_version);
Status do_incr(Call *call, const Key *key, int64_t amount, int64_t *result);
Status do_append(Call *call, const Key *key, const void *data, uint64_t length, uint64_t *new_length);
Status do_write_many(Call *call, BatchEntry *entries, uint32_t n, uint32_t *done);
Status do_clear(Call *call, uint16_t namespace_id);
Status do_mark(Call *call);
Status do_sweep(Call *call, uint32_t stripe);
Status do_compact(Call *call, uint32_t stripe, uint64_t *pages);
Status do_reap(Call *call, int32_t slot);
Status do_retire(Call *call);
/* value->data is malloc'ed and grows as needed; free it. */
Status do_get(Call *call, const Key *key, Value *value);

void sweep_all(Call *call);
/* Slots freed; fails if one whose owner is dead can't be. */
uint32_t reap_all(Call *call);

/* ---- checks ---------------------------------------------------------------------------------- */
/* Deep audit of every stripe and of what is global; findings, of which the first are printed if `loud`. */
uint32_t audit_count(Call *call, bool loud);
/* Audit that must find nothing. */
void audit_clean(Call *call);
/* Both hold the same live entries of all namespaces: value, type, version, expiry. */
void arenas_equal(Call *left, Call *right);
uint64_t entry_total(const Arena *arena);

/* ---- the log --------------------------------------------------------------------------------- */
typedef struct Log {
    uint8_t *bytes;
    uint64_t length, capacity;
    uint64_t first_lsn;
} Log;
void log_open(Log *log, const Arena *arena);
void log_free(Log *log);
/* Copies what was appended since the last time, and, if `publish`, lets the ring go on as a persister does. */
void log_collect(Log *log, Arena *arena, bool publish);
/* The log of an arena that was filled by replay goes on at that LSN. */
void world_log_at(World *world, uint64_t lsn);
/* A fresh arena with the log applied; fails unless all of the log is valid. */
void world_replayed(World *copy, const World *of, const Log *log);
/* audit_clean and: the log makes the same table.  The ring must not have wrapped past what `log` has. */
void world_verify(World *world, Log *log);

#endif
