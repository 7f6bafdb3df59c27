/* slot.c: a thread's record in the arena: claimed before the first lock, given back at the thread's end, reaped after
 * its death.
 *
 * Invariants:
 *   I1  owner (pid, thread id) is claimed by one compare-and-swap; start_time follows, and is 0 whenever the owner changes.
 *   I2  A slot is used again only when no stripe's owner word names it and no page is its (models/write.pml, REUSE_EARLY).
 *   I3  A reaper first makes the dead slot its own: if it dies too, the slot is a dead slot again.
 */
#include "fault.h"
#include "heap.h"
#include "lock.h"
#include "repair.h"

#define OWNER(pid, tid) ((uint64_t)(pid) << 32 | (tid))

Status slot_claim(Arena *arena, uint32_t pid, uint32_t tid, int32_t *slot) {
    for (uint32_t i = 0; i < SLOT_COUNT; i++) {
        /* Low slots first, so that who walks them (doctor, stats) finds the free ones at the end. */
        Slot *candidate = &arena->slots[i];
        if (load_relaxed(&candidate->owner) == 0 && cas_u64(&candidate->owner, 0, OWNER(pid, tid))) {
            uint64_t start_time;
            task_look_up(pid, tid, &start_time);
            store_release(&candidate->start_time, start_time);
            *slot = (int32_t)i;
            return ST_OK;
        }
    }
    return ST_NO_SLOT;
}

static void retain_counters(Arena *arena, Slot *slot) {
    for (uint32_t i = 0; i < COUNTERS; i++) {
        __atomic_fetch_add(&arena->control->retained[i], load_relaxed(&slot->counters[i]), __ATOMIC_RELAXED);
        store_relaxed(&slot->counters[i], 0);
    }
}

static void slot_free(Arena *arena, Slot *slot, uint64_t owner) {
    retain_counters(arena, slot);
    store_relaxed_u32(&slot->redo_count, 0);
    store_release(&slot->verdict, VERDICT(VERDICT_EMPTY, 0ULL));
    KILL_POINT(reap_verdict);
    store_release(&slot->start_time, 0);
    cas_u64(&slot->owner, owner, 0);
    KILL_POINT(reap_freed);
}

void slot_release(Arena *arena, int32_t slot) {
    if (slot >= 0 && slot < (int32_t)SLOT_COUNT) {
        slot_free(arena, &arena->slots[slot], load_relaxed(&arena->slots[slot].owner));
    }
}

Status slot_reap(Call *call, int32_t dead) {
    Arena *arena = call->arena;
    if (dead < 0 || dead >= (int32_t)SLOT_COUNT || dead == call->slot || call->slot < 0) {
        return ST_INVALID;
    }
    Slot *slot = &arena->slots[dead];
    uint64_t owner = load_acquire(&slot->owner), started = load_acquire(&slot->start_time);
    uint64_t mine = load_relaxed(&arena->slots[call->slot].owner);
    if (owner == 0) {
        return ST_CONDITION;
    }
    /* Mine: an earlier try of this reaper that met a busy lock goes on below. */
    if (owner != mine) {
        /* Both by compare-and-swap: since the proof of death the slot may have been freed and claimed by the living. */
        if (!slot_owner_dead(slot, owner) || !cas_u64(&slot->start_time, started, 0) || !cas_u64(&slot->owner, owner, mine)) {
            return ST_CONDITION;
        }
        store_release(&slot->start_time, load_relaxed(&arena->slots[call->slot].start_time));
    }
    for (uint32_t i = 0; i < arena->stripe_count; i++) {
        if (load_acquire(&arena->stripes[i].owner) == (uint64_t)dead + 1) {
            Status s = stripe_lock(call, i);
            if (s != ST_OK) {
                return s;
            }
            stripe_unlock(call, i);
        }
    }
    KILL_POINT(reap_repaired);
    heap_free_slot_pages(arena, (uint32_t)dead);
    KILL_POINT(reap_pages);
    slot_free(arena, slot, mine);
    return ST_OK;
}

/* ---- the end of an arena (models/retire.pml) ------------------------------------------------------------- */
#define RETIRE_SLICE_NS 50000000ULL

Status store_retire(Call *call) {
    Arena *arena = call->arena;
    Status s = ring_lock(call);
    if (s != ST_OK) {
        return s;
    }
    store_release_u32(&arena->control->retired, 1);
    ring_unlock(call);
    KILL_POINT(retire_flagged);
    for (uint32_t i = 0; i < arena->stripe_count; i++) {
        s = stripe_lock_wait(call, i, clock_monotonic_ns() + RETIRE_SLICE_NS, true);
        if (s != ST_OK) {
            return s;
        }
        KILL_POINT(retire_locked);
        stripe_go_odd(&arena->stripes[i]);      /* for ever: readers fall out of the fast path */
        KILL_POINT(retire_odd);
        stripe_unlock(call, i);
        KILL_POINT(retire_unlocked);
    }
    store_release_u32(&arena->control->state, STATE_RETIRED);
    return ST_OK;
}
