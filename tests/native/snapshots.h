/* snapshots.h: walks a running arena again and again, and checks that each walk, with the log from its start, makes the
 * store.
 *
 * Invariants:
 *   I1  A walk is compared with an arena that holds exactly the log up to the same LSN, at or past all that it copied.
 */
#ifndef SHMKV_SNAPSHOTS_H
#define SHMKV_SNAPSHOTS_H

#include "world.h"

typedef struct Block {
    uint64_t begin, length;       /* within the images */
    uint32_t stripe;
} Block;

typedef struct Walk {
    World *world;
    Random random;
    uint64_t start_lsn, cursor;
    uint8_t *images;
    uint64_t used, capacity;
    Block *blocks;
    uint32_t count, blocks_most;
    Log log;                      /* from start_lsn on */
    uint64_t finished, entries;
    bool resting;
    uint64_t next_ns;             /* when the next walk may begin: nobody drains the ring during a comparison */
} Walk;

void walk_make(Walk *walk, World *world, uint64_t seed);
void walk_free(Walk *walk);
/* A few steps; true when the walk has come to its end: then hand over the log up to the tail, and compare. */
bool walk_on(Walk *walk);
/* Log that was taken from the ring. */
void walk_take_log(Walk *walk, uint64_t lsn, const uint8_t *bytes, uint64_t length);
/* Loads what was copied, by several threads, applies the log, and compares with `same`. */
void walk_compare(Walk *walk, Call *same, uint64_t end_lsn);

#endif
