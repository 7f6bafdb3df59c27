/* stress.c: many writers and readers at once: stress [-s SEED] [-t SECONDS] [-n WORKERS] threads | processes | kills
 *
 *   threads     workers and keeper are threads on one mapping (what TSan and ASan can see)
 *   processes   they are processes
 *   kills       processes, and every few ms one of them, the keeper too, is killed and replaced; in the end all at once
 *
 * The main thread is the persister: it takes the log from the ring and applies it to a second arena as it comes, and
 * walks the arena for snapshots in between: each, with the log from its start, must make the second arena again.  At
 * the end both arenas hold the same, the audit finds nothing, counters add up, and each worker's own keys hold what it
 * was told.  Each mode runs with few keys (contention), with many, and with many in an arena that is too small for them
 * (refusals, compaction, windows), a third of the time each.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE               /* pthread_tryjoin_np */
#endif
#include "ring.h"
#include "snapshots.h"
#include "stress.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

typedef struct Phase {
    const char *name;
    uint32_t keys;
    uint64_t size_bytes;
} Phase;
static const Phase phases[] = {{"few", 12, 48 * MIB}, {"many", 3000, 48 * MIB}, {"full", 3000, 12 * MIB}};
#define PHASES (sizeof phases / sizeof *phases)

/* ---- the persister --------------------------------------------------------------------------- */
typedef struct Persister {
    World copy;
    uint64_t lsn;
    uint8_t *buffer;
    uint64_t records, bytes;
    Walk walk;
} Persister;

static void persister_make(Persister *persister, World *world, uint64_t seed) {
    memset(persister, 0, sizeof *persister);
    WorldOptions options = world->options;
    options.size_bytes *= 2;      /* dead entries are swept here when it is full, not before */
    world_make(&persister->copy, &options);
    persister->lsn = world->arena.control->durable_lsn;
    persister->buffer = malloc(world->arena.ring_bytes);
    CHECK(persister->buffer != NULL);
    walk_make(&persister->walk, world, seed);
}

static void persist(Persister *persister, World *world) {
    Arena *arena = &world->arena;
    uint64_t tail = load_acquire(&arena->control->ring_tail), length = tail - persister->lsn;
    if (length == 0) {
        return;
    }
    uint64_t at = persister->lsn & (arena->ring_bytes - 1), first = min_u64(length, arena->ring_bytes - at);
    memcpy(persister->buffer, arena->ring + at, first);
    memcpy(persister->buffer + first, arena->ring, length - first);
    ReplayResult result;
    Status s = replay(&persister->copy.arena, arena->record_seed, persister->buffer, length, persister->lsn, NULL,
                      &result);
    CHECK_SAYING(s == ST_OK && result.stopped == NULL && result.consumed_bytes == length, "log at %llx: status %d, %s",
                 (unsigned long long)result.next_lsn, s, result.stopped ? result.stopped : "");
    walk_take_log(&persister->walk, persister->lsn, persister->buffer, length);
    persister->records += result.records;
    persister->bytes += length;
    persister->lsn = tail;
    ring_publish_written(arena, tail);
    ring_publish_durable(arena, tail, clock_coarse_ms());
}

/* ---- workers as threads or as processes ------------------------------------------------------ */
typedef struct Member {
    Stress *stress;
    uint32_t number;              /* = stress->workers: the keeper */
    pthread_t thread;
    pid_t process;
} Member;

static void member_body(Call *call, void *context) {
    Member *member = context;
    if (member->number == member->stress->workers) {
        keeper_run(call, member->stress);
    } else {
        worker_run(call, member->stress, &member->stress->worker[member->number]);
    }
    call_close(call);
}

static void *member_thread(void *context) {
    Member *member = context;
    Call call;
    call_open(&call, &member->stress->world.arena);
    member_body(&call, member);
    return NULL;
}

static void member_start(Member *member, bool thread) {
    if (thread) {
        CHECK_EQUAL(pthread_create(&member->thread, NULL, member_thread, member), 0);
    } else {
        member->process = child_start(&member->stress->world, member_body, member);
    }
}

/* ---- killing --------------------------------------------------------------------------------- */
typedef struct Deaths {
    uint64_t kills, in_stripe, in_ring, unknown[COUNTERS_SHARED];
} Deaths;

static void note_where(const Arena *arena, pid_t victim, Deaths *deaths) {
    bool stripe = false;
    for (uint32_t i = 0; i < arena->stripe_count; i++) {
        stripe = stripe || ((uint32_t)arena->stripes[i].lock.__data.__lock & 0x3fffffff) == (uint32_t)victim;
    }
    deaths->in_stripe += stripe;
    deaths->in_ring += ((uint32_t)arena->control->ring_lock.__data.__lock & 0x3fffffff) == (uint32_t)victim;
}

/* Waits for its death; what it had asked for and not been told may have happened or not. */
static void take_up(const Member *member, Deaths *deaths) {
    Stress *stress = member->stress;
    CHECK_EQUAL(child_end(member->process), SIGKILL);
    deaths->kills++;
    if (member->number == stress->workers) {
        return;
    }
    Worker *worker = &stress->worker[member->number];
    uint32_t intent = load_acquire_u32(&worker->intent);
    if (intent != 0) {
        deaths->unknown[intent - 1]++;
        worker->intent = 0;
    }
}

static void kill_and_replace(Member *member, Deaths *deaths) {
    Stress *stress = member->stress;
    kill(member->process, SIGSTOP);
    CHECK_SAYING(child_stopped(member->process), "a member ended by itself");
    note_where(&stress->world.arena, member->process, deaths);
    kill(member->process, SIGKILL);
    take_up(member, deaths);
    if (member->number < stress->workers) {
        worker_check_own(&stress->world.call, &stress->worker[member->number]);
    }
    member_start(member, false);
}

/* Everybody at once, and only then does anybody look. */
static void kill_all(Stress *stress, Member *members, Deaths *deaths) {
    for (uint32_t i = 0; i <= stress->workers; i++) {
        kill(members[i].process, SIGKILL);
    }
    for (uint32_t i = 0; i <= stress->workers; i++) {
        take_up(&members[i], deaths);
    }
}

/* ---- one run --------------------------------------------------------------------------------- */
static void run_for(Stress *stress, Persister *persister, Member *members, double seconds, bool kills, Deaths *deaths) {
    Random random = {stress->seed};
    uint64_t now = clock_monotonic_ns(), end = now + (uint64_t)(seconds * 1e9), next_kill = now + 5000000;
    while ((now = clock_monotonic_ns()) < end) {
        persist(persister, &stress->world);
        if (walk_on(&persister->walk)) {
            persist(persister, &stress->world);
            walk_compare(&persister->walk, &persister->copy.call, persister->lsn);
        }
        if (kills && now >= next_kill) {
            kill_and_replace(&members[random_below(&random, stress->workers + 1)], deaths);
            next_kill = clock_monotonic_ns() + random_between(&random, 200000, 4000000);
        } else {
            usleep(300);
        }
    }
}

static void end_members(Stress *stress, Persister *persister, Member *members, bool threads) {
    store_release_u32(&stress->stop, 1);
    bool waiting = true;
    for (uint32_t i = 0; i <= stress->workers; i++) {
        /* Somebody may wait for room in the ring. */
        for (waiting = true; waiting; usleep(200)) {
            persist(persister, &stress->world);
            int status = 0;
            waiting = threads ? pthread_tryjoin_np(members[i].thread, NULL) != 0
                              : waitpid(members[i].process, &status, WNOHANG) == 0;
            CHECK(threads || waiting || status == 0);
        }
    }
}

static void check_end(Stress *stress, Persister *persister, const Deaths *deaths) {
    Call *call = &stress->world.call;
    (void)reap_all(call);
    sweep_all(call);
    persist(persister, &stress->world);
    audit_clean(call);
    for (uint32_t i = 0; i < stress->workers; i++) {
        worker_check_own(call, &stress->worker[i]);
    }
    counters_check(call, stress, deaths->unknown);
    persist(persister, &stress->world);
    world_log_at(&persister->copy, persister->lsn);
    audit_clean(&persister->copy.call);
    arenas_equal(call, &persister->copy.call);
}

static void run(const char *mode, uint32_t workers, const Phase *phase, double seconds, uint64_t seed) {
    bool threads = strcmp(mode, "threads") == 0, kills = strcmp(mode, "kills") == 0;
    check_context("stress -s %llu -t %.0f -n %u %s, phase %s", (unsigned long long)seed, PHASES * seconds, workers,
                  mode, phase->name);
    Stress *stress = shared_memory(sizeof *stress);
    *stress = (Stress){.workers = workers, .keys = phase->keys, .seed = seed};
    world_make(&stress->world, &(WorldOptions){.size_bytes = phase->size_bytes, .ring_bytes = MIB, .shared = true,
                                               .expected_items = phase->keys});
    Persister persister;
    persister_make(&persister, &stress->world, seed);
    Member members[WORKERS_MOST + 1];
    for (uint32_t i = 0; i <= workers; i++) {
        members[i] = (Member){.stress = stress, .number = i};
        stress->worker[i % WORKERS_MOST].number = i % WORKERS_MOST;
        member_start(&members[i], threads);
    }
    Deaths deaths = {0};
    run_for(stress, &persister, members, seconds, kills, &deaths);
    if (kills) {
        kill_all(stress, members, &deaths);
    } else {
        end_members(stress, &persister, members, threads);
    }
    check_end(stress, &persister, &deaths);
    uint64_t operations = 0, longest = 0, full = 0;
    for (uint32_t i = 0; i < workers; i++) {
        const Worker *worker = &stress->worker[i];
        operations += worker->operations;
        full += worker->full;
        longest = worker->longest_ns > longest ? worker->longest_ns : longest;
    }
    printf("%-9s %-4s %llu operations, %llu records, %llu full, %llu stripes audited, %llu pages compacted, "
           "%llu snapshots, longest stall %.1f ms",
           mode, phase->name, (unsigned long long)operations, (unsigned long long)persister.records,
           (unsigned long long)full, (unsigned long long)stress->audits,
           (unsigned long long)stress->compacted_pages,
           (unsigned long long)persister.walk.finished, (double)longest / 1e6);
    if (kills) {
        printf("; %llu kills, %llu with a stripe's lock, %llu with the ring's", (unsigned long long)deaths.kills,
               (unsigned long long)deaths.in_stripe, (unsigned long long)deaths.in_ring);
    }
    printf("\n");
    fflush(stdout);
    free(persister.buffer);
    walk_free(&persister.walk);
    world_free(&persister.copy);
    world_free(&stress->world);
}

int main(int argc, char **argv) {
    uint64_t seed = clock_wall_ms() % 1000000;
    double seconds = 4;
    uint32_t workers = 4;
    for (int option; (option = getopt(argc, argv, "s:t:n:")) != -1;) {
        if (option == 's') {
            seed = strtoull(optarg, NULL, 10);
        } else if (option == 't') {
            seconds = strtod(optarg, NULL);
        } else if (option == 'n') {
            workers = (uint32_t)strtoul(optarg, NULL, 10);
        }
    }
    if (optind == argc || workers == 0 || workers > WORKERS_MOST) {
        fprintf(stderr, "stress [-s SEED] [-t SECONDS] [-n WORKERS, at most %u] threads | processes | kills ...\n",
                WORKERS_MOST);
        return 2;
    }
    printf("seed %llu\n", (unsigned long long)seed);
    check_seed(seed);
    for (int i = optind; i < argc; i++) {
        alarm((unsigned)(3 * seconds) + 60);
        for (size_t k = 0; k < PHASES; k++) {
            run(argv[i], workers, &phases[k], seconds / PHASES, seed);
        }
    }
    return 0;
}
