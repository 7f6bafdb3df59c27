/* stress.h: what the workers of stress.c do and check, and what they leave in shared memory for the end. */
#ifndef SHMKV_STRESS_H
#define SHMKV_STRESS_H

#include "process.h"

#define WORKERS_MOST 16u
#define COUNTERS_SHARED 6u
#define OWN_KEYS 16u
#define PAIRS 4u

/* One for each worker; the worker writes it, and it outlives the worker's death. */
typedef struct Worker {
    uint64_t acked_incr[COUNTERS_SHARED];
    uint32_t intent;              /* counter + 1 while an increment's answer is out */
    uint32_t number;
    /* Own keys: write number n of a key is a delete if n % 8 == 7, else a set of a value that carries n. */
    uint64_t acked[OWN_KEYS], tried[OWN_KEYS];
    uint64_t operations, reads, longest_ns, full;
    int32_t slot;
} Worker;

typedef struct Stress {
    World world;
    uint32_t workers;
    uint32_t keys;                /* shared keys: few = contention, many = growth, compaction */
    uint64_t seed;
    uint32_t stop;
    uint64_t audits, compacted_pages;
    Worker worker[WORKERS_MOST];
} Stress;

/* Until stress->stop; checks all that it reads. */
void worker_run(Call *call, Stress *stress, Worker *worker);
/* Sweeps, compacts, makes windows, audits stripes, reaps, until stress->stop. */
void keeper_run(Call *call, Stress *stress);
/* The worker's own keys hold what it was told or what it was trying; afterwards that counts as told. */
void worker_check_own(Call *call, Worker *worker);
/* Sum of what all were told <= counter <= that + unknown. */
void counters_check(Call *call, const Stress *stress, const uint64_t unknown[COUNTERS_SHARED]);

#endif
