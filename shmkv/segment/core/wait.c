/* wait.c: the only place where an operation sleeps: holding nothing, in slices, and then the lock doctor looks. */
#include "lock.h"
#include "repair.h"
#include "ring.h"

#include <time.h>

#define SLICE_NS 50000000ULL
#define READ_PAUSE_NS 100000

static void name_holder(Call *call) {
    call->holder_pid = 0;
    for (uint32_t i = 0; i < SLOT_COUNT && call->holder_tid != 0; i++) {
        uint64_t owner = load_acquire(&call->arena->slots[i].owner);
        if ((uint32_t)owner == call->holder_tid) {
            call->holder_pid = (uint32_t)(owner >> 32);
            return;
        }
    }
}

static Status wait_lock(Call *call, pthread_mutex_t *lock, bool ring, uint64_t until_ns) {
    uint32_t stripe = call->wait_stripe;
    Status s = ring ? ring_lock_wait(call, until_ns) : stripe_lock_wait(call, stripe, until_ns, true);
    if (s == ST_OK) {
        if (ring) {
            ring_unlock(call);
        } else {
            stripe_unlock(call, stripe);
        }
        return ST_OK;
    }
    if (s == ST_BUSY) {
        name_holder(call);
        if (lock_doctor(call->arena, lock)) {
            slot_count(call, COUNT_DOCTORED);
            return ST_OK;
        }
    }
    return s;
}

Status store_wait(Call *call, uint64_t until_ns) {
    Arena *arena = call->arena;
    until_ns = min_u64(until_ns, clock_monotonic_ns() + SLICE_NS);
    if (call->wait == WAIT_STRIPE && call->wait_stripe < arena->stripe_count) {
        return wait_lock(call, &arena->stripes[call->wait_stripe].lock, false, until_ns);
    }
    if (call->wait == WAIT_RING) {
        return wait_lock(call, &arena->control->ring_lock, true, until_ns);
    }
    if (call->wait == WAIT_LOG) {
        return arena_retired(arena) ? ST_RETIRED : ring_wait_room(arena, call->needed_bytes, until_ns);
    }
    if (call->wait == WAIT_READ) {
        /* Read-only: no lock to wait for, and nothing to repair with; look who is in the way. */
        struct timespec pause = {.tv_nsec = READ_PAUSE_NS};
        nanosleep(&pause, NULL);
        call->holder_tid = lock_holder(&arena->stripes[call->wait_stripe % arena->stripe_count].lock);
        name_holder(call);
        return arena_retired(arena) ? ST_RETIRED : ST_OK;
    }
    return ST_INVALID;
}
