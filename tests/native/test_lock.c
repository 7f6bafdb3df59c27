/* test_lock.c: locks whose holder dies, ends, stops or is forgotten by the kernel. */
#include "lock.h"
#include "fault.h"
#include "fault_test.h"
#include "process.h"
#include "repair.h"
#include "suite.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct Holder {
    uint32_t there;
    bool ring, dirty, forget;
    uint32_t stripe;
} Holder;

static void hold(Call *call, void *context) {
    Holder *holder = context;
    Arena *arena = call->arena;
    CHECK_EQUAL(holder->ring ? ring_lock(call) : stripe_lock(call, holder->stripe), ST_OK);
    if (holder->ring) {
        arena->control->ring_owner = (uint64_t)call->slot + 1;
        store_release(&arena->slots[call->slot].verdict, VERDICT(VERDICT_PENDING, arena->control->ring_tail));
    } else if (holder->dirty) {
        arena->stripes[holder->stripe].owner = (uint64_t)call->slot + 1;
        stripe_go_odd(&arena->stripes[holder->stripe]);
        memset(arena->stripes[holder->stripe].partial, 0x77, sizeof arena->stripes[holder->stripe].partial);
        arena->stripes[holder->stripe].entries = 12345;
    }
    if (holder->forget) {
        forget_robust_list();
    }
    child_wait_for_kill(&holder->there);
}

static void world_with_entries(World *world) {
    world_make(world, &(WorldOptions){.shared = true, .no_log = true});
    char text[16];
    for (int i = 0; i < 300; i++) {
        snprintf(text, sizeof text, "k%d", i);
        CHECK_EQUAL(do_put(&world->call, text, text, strlen(text)), ST_OK);
    }
}

/* All 300 entries are there and can be written: none of the locks is stuck. */
static void check_entries(World *world) {
    Value value = {0};
    char text[16];
    for (int i = 0; i < 300; i++) {
        snprintf(text, sizeof text, "k%d", i);
        Key key = key_of(&world->arena, text);
        CHECK_EQUAL(do_get(&world->call, &key, &value), ST_OK);
        CHECK(value.length == strlen(text) && memcmp(value.data, text, value.length) == 0);
        CHECK_EQUAL(do_put(&world->call, text, text, strlen(text)), ST_OK);
    }
    free(value.data);
}

static uint64_t counter(const World *world, uint32_t which) {
    return world->arena.slots[world->call.slot].counters[which];
}

static void killed_holders_hand_their_locks_on(Random *random) {
    (void)random;
    World world;
    world_with_entries(&world);
    Holder *holder = shared_memory(sizeof *holder);
    for (uint32_t i = 0; i < 48; i++) {
        *holder = (Holder){.ring = i % 3 == 0, .dirty = i % 3 == 1, .stripe = i % 16};
        uint64_t repairs = counter(&world, COUNT_REPAIRS), settled = counter(&world, COUNT_SETTLED);
        child_kill_there(child_start(&world, hold, holder), &holder->there);
        uint64_t begun = clock_monotonic_ns();
        check_entries(&world);
        CHECK(clock_monotonic_ns() - begun < 500000000);
        CHECK_EQUAL(counter(&world, COUNT_REPAIRS), repairs + holder->dirty);
        CHECK_EQUAL(counter(&world, COUNT_SETTLED), settled + holder->ring);
        audit_clean(&world.call);
        CHECK_EQUAL(reap_all(&world.call), 1);
    }
    CHECK_EQUAL(counter(&world, COUNT_DOCTORED), 0);
    world_free(&world);
}

static void the_doctor_frees_locks_that_the_kernel_forgot(Random *random) {
    (void)random;
    World world;
    world_with_entries(&world);
    Holder *holder = shared_memory(sizeof *holder);
    for (uint32_t i = 0; i < 6; i++) {
        *holder = (Holder){.ring = i % 3 == 0, .dirty = i % 3 == 1, .stripe = i % 16, .forget = true};
        uint64_t doctored = counter(&world, COUNT_DOCTORED);
        child_kill_there(child_start(&world, hold, holder), &holder->there);
        pthread_mutex_t *lock =
            holder->ring ? &world.arena.control->ring_lock : &world.arena.stripes[holder->stripe].lock;
        CHECK(lock_holder(lock) != 0);
        uint64_t begun = clock_monotonic_ns();
        check_entries(&world);
        CHECK(clock_monotonic_ns() - begun < 1000000000);
        CHECK_EQUAL(counter(&world, COUNT_DOCTORED), doctored + 1);
        audit_clean(&world.call);
        CHECK_EQUAL(reap_all(&world.call), 1);
    }
    world_free(&world);
}

/* The reaper meets a stripe that is still locked by the dead: it goes on when the doctor has been there. */
static void reaping_waits_for_the_doctor(Random *random) {
    (void)random;
    World world;
    world_with_entries(&world);
    Holder *holder = shared_memory(sizeof *holder);
    *holder = (Holder){.dirty = true, .stripe = 4, .forget = true};
    child_kill_there(child_start(&world, hold, holder), &holder->there);
    int32_t dead = (int32_t)world.arena.stripes[4].owner - 1;
    CHECK_EQUAL(slot_reap(&world.call, dead), ST_BUSY);
    CHECK_EQUAL(world.arena.stripes[4].owner, (uint64_t)dead + 1);
    CHECK_EQUAL(do_reap(&world.call, dead), ST_OK);
    CHECK_EQUAL(world.arena.slots[dead].owner, 0);
    check_entries(&world);
    audit_clean(&world.call);
    world_free(&world);
}

static void *lock_and_end(void *context) {
    World *world = context;
    Call call;
    call_open(&call, &world->arena);
    CHECK_EQUAL(stripe_lock(&call, 3), ST_OK);
    world->arena.stripes[3].owner = (uint64_t)call.slot + 1;
    return NULL;
}

static void a_thread_that_ends_with_a_lock_counts_as_dead(Random *random) {
    (void)random;
    World world;
    world_with_entries(&world);
    pthread_t thread;
    CHECK_EQUAL(pthread_create(&thread, NULL, lock_and_end, &world), 0);
    pthread_join(thread, NULL);
    check_entries(&world);
    CHECK_EQUAL(counter(&world, COUNT_REPAIRS), 1);
    audit_clean(&world.call);
    CHECK_EQUAL(reap_all(&world.call), 1);
    world_free(&world);
}

static void a_stopped_holder_is_named_and_not_robbed(Random *random) {
    (void)random;
    World world;
    world_with_entries(&world);
    Holder *holder = shared_memory(sizeof *holder);
    *holder = (Holder){.stripe = 5};
    pid_t child = child_start(&world, hold, holder);
    while (load_acquire_u32(&holder->there) == 0) {
        futex_wait(&holder->there, 0, 10000000);
    }
    kill(child, SIGSTOP);
    CHECK(child_stopped(child));
    Status s = store_sweep(&world.call, 5);
    for (int slice = 0; slice < 6; slice++) {
        CHECK_EQUAL(s, ST_BUSY);
        CHECK_EQUAL(world.call.wait, WAIT_STRIPE);
        CHECK_EQUAL(world.call.wait_stripe, 5);
        CHECK_EQUAL(world.call.holder_tid, child);
        s = store_wait(&world.call, clock_monotonic_ns() + 100000000);
        CHECK_EQUAL(world.call.holder_pid, child);
    }
    CHECK_EQUAL(reap_all(&world.call), 0);
    CHECK_EQUAL(counter(&world, COUNT_DOCTORED), 0);
    kill(child, SIGKILL);
    CHECK_EQUAL(child_end(child), SIGKILL);
    check_entries(&world);
    audit_clean(&world.call);
    world_free(&world);
}

static void a_lock_that_was_let_go_without_repair_condemns_the_arena(Random *random) {
    (void)random;
    World world;
    world_with_entries(&world);
    Holder *holder = shared_memory(sizeof *holder);
    *holder = (Holder){.stripe = 2};
    child_kill_there(child_start(&world, hold, holder), &holder->there);
    CHECK_EQUAL(lock_try(&world.arena.stripes[2].lock), LOCK_DEAD);
    lock_release(&world.arena.stripes[2].lock);
    CHECK_EQUAL(do_sweep(&world.call, 2), ST_NOT_RECOVERABLE);
    CHECK_EQUAL(world.arena.control->condemned, 1);
    CHECK_EQUAL(do_sweep(&world.call, 3), ST_OK);
    world_free(&world);
}

/* ---- many waiters ---------------------------------------------------------------------------- */
static void increment(Call *call, void *context) {
    (void)context;
    Key key = key_of(call->arena, "n");
    int64_t result;
    CHECK_EQUAL(do_incr(call, &key, 1, &result), ST_OK);
}

static void all_waiters_get_through_after_a_death(Random *random) {
    (void)random;
    World world;
    world_with_entries(&world);
    Holder *holder = shared_memory(sizeof *holder);
    Key key = key_of(&world.arena, "n");
    for (int round = 0; round < 6; round++) {
        uint32_t stripe = (uint32_t)(key.hash >> world.arena.stripe_shift);
        *holder = (Holder){.ring = round % 2 == 0, .dirty = true, .stripe = stripe};
        pid_t child = child_start(&world, hold, holder), waiters[12];
        while (load_acquire_u32(&holder->there) == 0) {
            futex_wait(&holder->there, 0, 10000000);
        }
        for (int i = 0; i < 12; i++) {
            waiters[i] = child_start(&world, increment, NULL);
        }
        usleep(20000);
        kill(child, SIGKILL);
        uint64_t begun = clock_monotonic_ns();
        for (int i = 0; i < 12; i++) {
            CHECK_EQUAL(child_end(waiters[i]), 0);
        }
        CHECK(clock_monotonic_ns() - begun < 1000000000);
        CHECK_EQUAL(child_end(child), SIGKILL);
        int64_t result = 0;
        CHECK_EQUAL(do_incr(&world.call, &key, 0, &result), ST_OK);
        CHECK_EQUAL(result, 12 * (round + 1));
        CHECK_EQUAL(reap_all(&world.call), 13);
    }
    audit_clean(&world.call);
    world_free(&world);
}

/* ---- a writer that is stopped at every point ------------------------------------------------- */
#ifdef SHMKV_FAULT
typedef struct Stop {
    int point;
    long hits;
} Stop;

static void write_and_stop(Call *call, void *context) {
    Stop *stop = context;
    fault_signal(SIGSTOP);
    fault_arm(stop->point, 1);
    CHECK_EQUAL(do_put(call, "k7", "after", 5), ST_OK);
    stop->hits = stop->point < 0 ? 0 : fault_hits(stop->point);
}

/* Beside it others read a whole old or new value or are told to wait for it by name; after it went on all is done. */
static void check_beside(World *world, pid_t stopped) {
    Key key = key_of(&world->arena, "k7");
    uint8_t data[16];
    Value value = {.data = data, .capacity = sizeof data};
    Call reader = {.arena = &world->arena, .slot = -1};
    Status s = store_get(&reader, &key, &value);
    CHECK(s == ST_BUSY || (s == ST_OK && ((value.length == 2 && memcmp(data, "k7", 2) == 0) ||
                                          (value.length == 5 && memcmp(data, "after", 5) == 0))));
    s = store_get(&world->call, &key, &value);
    CHECK(s == ST_OK || s == ST_BUSY);
    s = store_set(&world->call, &key, TYPE_BYTES, "parent", 6, NULL);
    if (s == ST_BUSY) {
        CHECK_EQUAL(store_wait(&world->call, clock_monotonic_ns() + 2000000), ST_BUSY);
        CHECK_EQUAL(world->call.holder_pid, stopped);
    }
    CHECK_EQUAL(reap_all(&world->call), 0);
}

static void a_writer_stopped_at_any_point_is_waited_for_and_goes_on(Random *random) {
    (void)random;
    Stop *stop = shared_memory(sizeof *stop);
    int stops = 0;
    for (int point = 0; point < FAULT_COUNT; point++) {
        World world;
        world_with_entries(&world);
        Log log;
        log_open(&log, &world.arena);
        check_case("stopped at %s", fault_name(point));
        *stop = (Stop){.point = point};
        pid_t child = child_start(&world, write_and_stop, stop);
        if (child_stopped(child)) {
            stops++;
            check_beside(&world, child);
            kill(child, SIGCONT);
            CHECK_EQUAL(child_end(child), 0);
        }
        CHECK_EQUAL(
            counter(&world, COUNT_REPAIRS) + counter(&world, COUNT_DOCTORED) + counter(&world, COUNT_SETTLED), 0);
        check_case("after %s", fault_name(point));
        Key key = key_of(&world.arena, "k7");
        Value value = {0};
        CHECK_EQUAL(do_get(&world.call, &key, &value), ST_OK);
        CHECK(value.length == 5 || value.length == 6);
        free(value.data);
        CHECK_EQUAL(reap_all(&world.call), 1);
        world_verify(&world, &log);
        log_free(&log);
        world_free(&world);
    }
    CHECK_SAYING(stops >= 20, "a set passes only %d points", stops);
}

/* ---- the most locks that one write may hold ---------------------------------------------------- */
static void clear_and_die(Call *call, void *context) {
    Stop *stop = context;
    fault_arm(stop->point, stop->hits);
    (void)do_clear(call, 0);
}

static void a_clear_over_512_stripes_dies_whole_or_not_at_all(Random *random) {
    (void)random;
    static const Stop stops[] = {{FAULT_stripe_locked, 512}, {FAULT_owner_set, 300},     {FAULT_sequence_odd, 300},
                                 {FAULT_tail_stored, 1},     {FAULT_redo_stored, 700},   {FAULT_linked, 1},
                                 {FAULT_sequence_even, 300}, {FAULT_owner_cleared, 300}, {FAULT_stripe_unlocked, 300}};
    Stop *stop = shared_memory(sizeof *stop);
    for (size_t i = 0; i < sizeof stops / sizeof *stops; i++) {
        World world;
        world_make(&world, &(WorldOptions){.shared = true, .stripe_count = STRIPES_MAX, .expected_items = 1000});
        Log log;
        log_open(&log, &world.arena);
        char text[16];
        for (int k = 0; k < 1000; k++) {
            snprintf(text, sizeof text, "k%d", k);
            CHECK_EQUAL(do_put(&world.call, text, text, 4), ST_OK);
        }
        *stop = stops[i];
        check_case("killed at %s, hit %ld", fault_name(stop->point), stop->hits);
        uint64_t tail = world.arena.control->ring_tail;
        CHECK_EQUAL(child_end(child_start(&world, clear_and_die, stop)), SIGKILL);
        bool moved = world.arena.control->ring_tail != tail;
        CHECK_EQUAL(reap_all(&world.call), 1);
        CHECK_EQUAL(store_count(&world.arena, 0), moved ? 0 : 1000);
        for (int k = 0; k < 1000; k++) {
            snprintf(text, sizeof text, "k%d", k);
            Key key = key_of(&world.arena, text);
            uint8_t data[8];
            Value value = {.data = data, .capacity = sizeof data};
            CHECK_EQUAL(store_get(&world.call, &key, &value), moved ? ST_NOT_FOUND : ST_OK);
        }
        world_verify(&world, &log);
        log_free(&log);
        world_free(&world);
    }
}
#endif

const Test lock_tests[] = {
    {"killed_holders_hand_their_locks_on", killed_holders_hand_their_locks_on},
    {"the_doctor_frees_locks_that_the_kernel_forgot", the_doctor_frees_locks_that_the_kernel_forgot},
    {"reaping_waits_for_the_doctor", reaping_waits_for_the_doctor},
    {"a_thread_that_ends_with_a_lock_counts_as_dead", a_thread_that_ends_with_a_lock_counts_as_dead},
    {"a_stopped_holder_is_named_and_not_robbed", a_stopped_holder_is_named_and_not_robbed},
    {"a_lock_that_was_let_go_without_repair_condemns_the_arena",
     a_lock_that_was_let_go_without_repair_condemns_the_arena},
    {"all_waiters_get_through_after_a_death", all_waiters_get_through_after_a_death},
#ifdef SHMKV_FAULT
    {"a_clear_over_512_stripes_dies_whole_or_not_at_all", a_clear_over_512_stripes_dies_whole_or_not_at_all},
    {"a_writer_stopped_at_any_point_is_waited_for_and_goes_on",
     a_writer_stopped_at_any_point_is_waited_for_and_goes_on},
#endif
    {0}};
