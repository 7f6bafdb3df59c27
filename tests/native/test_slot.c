/* test_slot.c: slots of threads: claimed, given back, reaped after death and only then. */
#include "lock.h"
#include "fault.h"
#include "fault_test.h"
#include "heap.h"
#include "process.h"
#include "repair.h"
#include "suite.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void slots_are_given_low_first_and_used_again(Random *random) {
    (void)random;
    World world;
    world_make(&world, NULL);
    int32_t slots[5];
    for (uint32_t i = 0; i < 5; i++) {
        CHECK_EQUAL(slot_claim(&world.arena, (uint32_t)getpid(), 100 + i, &slots[i]), ST_OK);
        CHECK_EQUAL(slots[i], i + 1);
    }
    slot_release(&world.arena, slots[1]);
    slot_release(&world.arena, slots[3]);
    int32_t again;
    CHECK_EQUAL(slot_claim(&world.arena, (uint32_t)getpid(), 200, &again), ST_OK);
    CHECK_EQUAL(again, slots[1]);
    slot_release(&world.arena, -1);
    slot_release(&world.arena, (int32_t)SLOT_COUNT);
    world_free(&world);
}

static void the_last_slot_is_followed_by_a_refusal(Random *random) {
    (void)random;
    World world;
    world_make(&world, NULL);
    int32_t slot;
    for (uint32_t i = 1; i < SLOT_COUNT; i++) {
        CHECK_EQUAL(slot_claim(&world.arena, 1000000 + i, i, &slot), ST_OK);
    }
    CHECK_EQUAL(slot_claim(&world.arena, 1, 1, &slot), ST_NO_SLOT);
    CHECK_EQUAL(reap_all(&world.call), SLOT_COUNT - 1);      /* none of those tasks exists */
    CHECK_EQUAL(slot_claim(&world.arena, 1, 1, &slot), ST_OK);
    world_free(&world);
}

static void counters_outlive_the_slot(Random *random) {
    (void)random;
    World world;
    world_make(&world, NULL);
    for (int i = 0; i < 7; i++) {
        CHECK_EQUAL(do_put(&world.call, "k", "v", 1), ST_OK);
    }
    call_close(&world.call);
    call_open(&world.call, &world.arena);
    CHECK_EQUAL(world.arena.slots[world.call.slot].counters[COUNT_SETS], 0);
    CHECK_EQUAL(world.arena.control->retained[COUNT_SETS], 7);
    world_free(&world);
}

/* ---- who is dead ----------------------------------------------------------------------------- */
static void sleep_for_ever(Call *call, void *context) {
    (void)call;
    child_wait_for_kill(context);
}

static void the_living_are_not_reaped_zombies_and_the_gone_are(Random *random) {
    (void)random;
    World world;
    world_make(&world, &(WorldOptions){.shared = true});
    uint32_t *there = shared_memory(4096);
    pid_t child = child_start(&world, sleep_for_ever, there);
    while (load_acquire_u32(there) == 0) {
        futex_wait(there, 0, 10000000);
    }
    CHECK_EQUAL(reap_all(&world.call), 0);
    kill(child, SIGSTOP);
    CHECK(child_stopped(child));
    CHECK_EQUAL(reap_all(&world.call), 0);
    kill(child, SIGKILL);
    siginfo_t info;
    waitid(P_PID, (id_t)child, &info, WEXITED | WNOWAIT);
    CHECK_EQUAL(reap_all(&world.call), 1);                  /* a zombie */
    CHECK_EQUAL(child_end(child), SIGKILL);
    CHECK_EQUAL(slot_reap(&world.call, 1), ST_CONDITION);
    CHECK_EQUAL(slot_reap(&world.call, world.call.slot), ST_INVALID);
    CHECK_EQUAL(slot_reap(&world.call, -1), ST_INVALID);
    CHECK_EQUAL(slot_reap(&world.call, (int32_t)SLOT_COUNT), ST_INVALID);
    world_free(&world);
}

static void another_task_with_the_same_number_does_not_keep_a_slot(Random *random) {
    (void)random;
    World world;
    world_make(&world, NULL);
    uint32_t me = (uint32_t)getpid();
    int32_t slot;
    CHECK_EQUAL(slot_claim(&world.arena, me, me, &slot), ST_OK);
    uint64_t owner = world.arena.slots[slot].owner;
    world.arena.slots[slot].start_time = 0;                 /* claimed just now */
    CHECK(!slot_owner_dead(&world.arena.slots[slot], owner));
    task_look_up(me, me, &world.arena.slots[slot].start_time);
    CHECK(!slot_owner_dead(&world.arena.slots[slot], owner));
    world.arena.slots[slot].start_time--;                   /* somebody who lived before */
    CHECK(slot_owner_dead(&world.arena.slots[slot], owner));
    world_free(&world);
}

/* A checker that can't look (no descriptor left) must not take anybody for dead, and rob or reap him. */
static void who_cannot_look_takes_nobody_for_dead(Random *random) {
    (void)random;
    World world;
    world_make(&world, &(WorldOptions){.shared = true});
    uint32_t *there = shared_memory(4096);
    pid_t child = child_start(&world, sleep_for_ever, there);
    while (load_acquire_u32(there) == 0) {
        futex_wait(there, 0, 10000000);
    }
    struct rlimit limit, none;
    CHECK_EQUAL(getrlimit(RLIMIT_NOFILE, &limit), 0);
    none = limit;
    none.rlim_cur = 0;
    CHECK_EQUAL(setrlimit(RLIMIT_NOFILE, &none), 0);
    uint32_t reaped = reap_all(&world.call);
    CHECK_EQUAL(setrlimit(RLIMIT_NOFILE, &limit), 0);
    CHECK_EQUAL(reaped, 0);
    kill(child, SIGKILL);
    CHECK_EQUAL(child_end(child), SIGKILL);
    CHECK_EQUAL(reap_all(&world.call), 1);
    world_free(&world);
}

static void *claim_and_end(void *context) {
    Call call;
    call_open(&call, context);
    return NULL;
}

static void a_thread_that_ended_is_dead_though_its_process_lives(Random *random) {
    (void)random;
    World world;
    world_make(&world, NULL);
    pthread_t thread;
    CHECK_EQUAL(pthread_create(&thread, NULL, claim_and_end, &world.arena), 0);
    pthread_join(thread, NULL);
    CHECK_EQUAL(reap_all(&world.call), 1);
    world_free(&world);
}

/* ---- what a dead slot leaves ----------------------------------------------------------------- */
static void take_everything(Call *call, void *context) {
    Arena *arena = call->arena;
    CHECK(heap_claim_for_slot(arena, (uint32_t)call->slot, 100000, false) != 0);
    for (uint32_t i = 0; i < 6; i++) {
        CHECK_EQUAL(stripe_lock(call, i), ST_OK);
        arena->stripes[i].owner = (uint64_t)call->slot + 1;
        CHECK(heap_take(arena, i, 300, false) != 0);
        CHECK(heap_take(arena, i, 20000, false) != 0);
        CHECK(heap_take_bucket(arena, i) != 0);
    }
    child_wait_for_kill(context);
}

static void reaping_repairs_what_names_the_slot_and_frees_its_pages(Random *random) {
    (void)random;
    World world;
    world_make(&world, &(WorldOptions){.shared = true});
    uint32_t *there = shared_memory(4096);
    for (int round = 0; round < 5; round++) {
        *there = 0;
        child_kill_there(child_start(&world, take_everything, there), there);
        CHECK_EQUAL(reap_all(&world.call), 1);
        CHECK_EQUAL(heap_count_free(&world.arena),
                    world.arena.control->page_limit - 6); /* its overflow buckets' pages */
        for (uint32_t i = 0; i < world.arena.stripe_count; i++) {
            CHECK_EQUAL(world.arena.stripes[i].owner, 0);
        }
        audit_clean(&world.call);
    }
    world_free(&world);
}

/* ---- several reapers ------------------------------------------------------------------------- */
typedef struct Reapers {
    World *world;
    uint32_t freed, stop;
} Reapers;

static void *reap_again_and_again(void *context) {
    Reapers *reapers = context;
    Call call;
    call_open(&call, &reapers->world->arena);
    while (!load_acquire_u32(&reapers->stop)) {
        for (int32_t i = 0; i < (int32_t)SLOT_COUNT; i++) {
            if (i != call.slot && load_relaxed(&call.arena->slots[i].owner) != 0 && do_reap(&call, i) == ST_OK) {
                __atomic_fetch_add(&reapers->freed, 1, __ATOMIC_RELAXED);
            }
        }
    }
    call_close(&call);
    return NULL;
}

static void *claim_count_and_end(void *context) {
    Call call;
    call_open(&call, context);
    call.arena->slots[call.slot].counters[COUNT_SPARE0] = 1;
    return NULL;
}

static void beside_other_reapers_each_dead_slot_is_freed_once(Random *random) {
    (void)random;
    World world;
    world_make(&world, NULL);
    Reapers reapers = {.world = &world};
    pthread_t threads[3];
    for (int i = 0; i < 3; i++) {
        CHECK_EQUAL(pthread_create(&threads[i], NULL, reap_again_and_again, &reapers), 0);
    }
    enum { DEATHS = 600 };
    for (int i = 0; i < DEATHS; i++) {
        pthread_t thread;
        CHECK_EQUAL(pthread_create(&thread, NULL, claim_count_and_end, &world.arena), 0);
        pthread_join(thread, NULL);
    }
    uint64_t until = clock_monotonic_ns() + PATIENCE_NS;
    while (__atomic_load_n(&reapers.freed, __ATOMIC_RELAXED) < DEATHS && clock_monotonic_ns() < until) {
        usleep(1000);
    }
    store_release_u32(&reapers.stop, 1);
    for (int i = 0; i < 3; i++) {
        pthread_join(threads[i], NULL);
    }
    CHECK_EQUAL(reapers.freed, DEATHS);
    CHECK_EQUAL(world.arena.control->retained[COUNT_SPARE0], DEATHS);
    world_free(&world);
}

#ifdef SHMKV_FAULT
static void reap_and_die(Call *call, void *context) {
    fault_arm(*(int *)context, 1);
    (void)reap_all(call);
}

static void a_reaper_that_dies_is_reaped_with_its_prey(Random *random) {
    (void)random;
    static const int points[] = {FAULT_repair_begun, FAULT_rebuild_marked, FAULT_repair_consistent, FAULT_reap_repaired,
                                 FAULT_page_freed, FAULT_reap_pages, FAULT_reap_verdict, FAULT_reap_freed};
    World world;
    world_make(&world, &(WorldOptions){.shared = true});
    uint32_t *there = shared_memory(4096);
    int *point = shared_memory(4096);
    for (size_t i = 0; i < sizeof points / sizeof *points; i++) {
        check_case("reaper killed at %s", fault_name(points[i]));
        *there = 0;
        *point = points[i];
        child_kill_there(child_start(&world, take_everything, there), there);
        CHECK_EQUAL(child_end(child_start(&world, reap_and_die, point)), SIGKILL);
        uint32_t freed = reap_all(&world.call);
        CHECK(freed == 2 || (points[i] == FAULT_reap_freed && freed == 1));
        CHECK_EQUAL(heap_count_free(&world.arena), world.arena.control->page_limit - 6);
        audit_clean(&world.call);
    }
    world_free(&world);
}
#endif

const Test slot_tests[] = {
    {"slots_are_given_low_first_and_used_again", slots_are_given_low_first_and_used_again},
    {"the_last_slot_is_followed_by_a_refusal", the_last_slot_is_followed_by_a_refusal},
    {"counters_outlive_the_slot", counters_outlive_the_slot},
    {"the_living_are_not_reaped_zombies_and_the_gone_are", the_living_are_not_reaped_zombies_and_the_gone_are},
    {"another_task_with_the_same_number_does_not_keep_a_slot",
     another_task_with_the_same_number_does_not_keep_a_slot},
    {"who_cannot_look_takes_nobody_for_dead", who_cannot_look_takes_nobody_for_dead},
    {"a_thread_that_ended_is_dead_though_its_process_lives", a_thread_that_ended_is_dead_though_its_process_lives},
    {"reaping_repairs_what_names_the_slot_and_frees_its_pages",
     reaping_repairs_what_names_the_slot_and_frees_its_pages},
    {"beside_other_reapers_each_dead_slot_is_freed_once", beside_other_reapers_each_dead_slot_is_freed_once},
#ifdef SHMKV_FAULT
    {"a_reaper_that_dies_is_reaped_with_its_prey", a_reaper_that_dies_is_reaped_with_its_prey},
#endif
    {0}};
