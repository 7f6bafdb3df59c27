/* repair.c: see repair.h. */
#include "repair.h"
#include "fault.h"
#include "heap.h"
#include "lock.h"
#include "table.h"

/* ---- S: the ring -------------------------------------------------------------------------------------- */
static void settle(Call *call) {
    Arena *arena = call->arena;
    Control *control = arena->control;
    uint64_t owner = load_relaxed(&control->ring_owner);
    KILL_POINT(settle_found);
    if (owner != 0 && owner <= SLOT_COUNT) {
        Slot *slot = &arena->slots[owner - 1];
        uint64_t verdict = load_acquire(&slot->verdict);
        if (VERDICT_STATE(verdict) == VERDICT_PENDING) {
            uint64_t lsn = VERDICT_LSN(verdict);
            uint64_t state = load_acquire(&control->ring_tail) > lsn ? VERDICT_COMMITTED : VERDICT_ABORTED;
            store_release(&slot->verdict, VERDICT(state, lsn));
            slot_count(call, COUNT_SETTLED);
        }
    }
    KILL_POINT(settle_decided);
    lock_consistent(&control->ring_lock);
    KILL_POINT(settle_consistent);
}

static Status ring_locked(Call *call, LockResult result) {
    switch (result) {
    case LOCK_OK: return ST_OK;
    case LOCK_DEAD: settle(call); return ST_OK;
    case LOCK_BROKEN:
        store_release_u32(&call->arena->control->condemned, 1);
        return ST_NOT_RECOVERABLE;
    default:
        call->wait = WAIT_RING;
        call->holder_tid = lock_holder(&call->arena->control->ring_lock);
        return ST_BUSY;
    }
}

Status ring_lock(Call *call) { return ring_locked(call, lock_try(&call->arena->control->ring_lock)); }
Status ring_lock_wait(Call *call, uint64_t until_ns) {
    return ring_locked(call, lock_wait(&call->arena->control->ring_lock, until_ns));
}
void ring_unlock(Call *call) { lock_release(&call->arena->control->ring_lock); }

/* ---- the redo list -------------------------------------------------------------------------------------- */
static Status redo_store(Arena *arena, const RedoStore *store, uint64_t lsn, Stripe *stripe) {
    uint64_t offset = store->target & ~7ULL;
    uint64_t value = store->target & REDO_VALUE_IS_LSN ? lsn : store->value;
    uint64_t *word;
    if (store->target & REDO_PER_STRIPE) {
        if (offset >= sizeof(Stripe)) {
            return ST_CORRUPT;
        }
        word = (uint64_t *)((uint8_t *)stripe + offset);
    } else {
        if (offset > arena->mapped_bytes - 8) {
            return ST_CORRUPT;
        }
        word = (uint64_t *)(arena->base + offset);
    }
    store_relaxed(word, value);
    KILL_POINT(redo_stored);
    return ST_OK;
}

Status redo_run(Arena *arena, const Slot *slot, uint64_t lsn, int32_t stripe, const uint16_t *stripes, uint32_t count) {
    uint32_t n = load_relaxed_u32(&slot->redo_count);
    if (n > REDO_STORES) {
        return ST_CORRUPT;
    }
    for (uint32_t i = 0; i < n; i++) {
        const RedoStore *store = &slot->redo[i];
        Status s = ST_OK;
        if (!(store->target & REDO_PER_STRIPE)) {
            if (stripe < 0 || slot->redo_stripe[i] == stripe) {
                s = redo_store(arena, store, lsn, NULL);
            }
        } else if (stripe >= 0) {
            s = redo_store(arena, store, lsn, &arena->stripes[stripe]);
        } else {
            for (uint32_t k = 0; k < count && s == ST_OK; k++) {
                s = redo_store(arena, store, lsn, &arena->stripes[stripes[k]]);
            }
        }
        if (s != ST_OK) {
            return s;
        }
    }
    return ST_OK;
}

/* ---- R5: what is derived --------------------------------------------------------------------------------- */
typedef struct Rebuild {
    Arena *arena;
    uint32_t stripe;
} Rebuild;

static Status rebuild_place(void *context, Stripe *stripe, Bucket *bucket, uint64_t *place, Entry *entry) {
    Rebuild *rebuild = context;
    (void)bucket;
    if (!heap_mark(rebuild->arena, rebuild->stripe, PLACE_OFFSET(load_relaxed(place)), entry_size(entry))) {
        return ST_CORRUPT;
    }
    stripe->entries++;
    if (!entry_cleared(stripe, entry->version, entry->namespace_id)) {
        uint64_t *count = &stripe->count[entry->namespace_id & (NAMESPACE_COUNT - 1)];
        store_relaxed(count, load_relaxed(count) + 1);
    }
    KILL_POINT(rebuild_marking);
    return ST_OK;
}

static Status rebuild_overflow(void *context, Stripe *stripe, uint64_t offset) {
    Rebuild *rebuild = context;
    (void)stripe;
    return heap_mark_bucket(rebuild->arena, rebuild->stripe, offset) ? ST_OK : ST_CORRUPT;
}

static Status rebuild(Arena *arena, uint32_t index) {
    Stripe *stripe = &arena->stripes[index];
    heap_rebuild_begin(arena, index);
    stripe->entries = 0;
    for (uint32_t i = 0; i < NAMESPACE_COUNT; i++) {
        store_relaxed(&stripe->count[i], 0);
    }
    KILL_POINT(rebuild_cleared);
    Rebuild context = {.arena = arena, .stripe = index};
    Status s = table_walk(arena, index, &context, rebuild_place, rebuild_overflow);
    if (s != ST_OK) {
        return s;
    }
    KILL_POINT(rebuild_marked);
    heap_rebuild_end(arena, index);
    KILL_POINT(rebuild_done);
    return ST_OK;
}

/* ---- R: one stripe, its lock held ------------------------------------------------------------------------- */
static Status repair(Call *call, uint32_t index, bool died) {
    Arena *arena = call->arena;
    Stripe *stripe = &arena->stripes[index];
    uint64_t owner = load_relaxed(&stripe->owner);
    KILL_POINT(repair_begun);
    if (owner > SLOT_COUNT) {
        return ST_CORRUPT;
    }
    Slot *dead = &arena->slots[owner - 1];
    if (VERDICT_STATE(load_acquire(&dead->verdict)) == VERDICT_PENDING) {      /* R1 */
        Status s = ring_lock(call);
        if (s != ST_OK) {
            return s;                                                          /* R2 */
        }
        ring_unlock(call);
    }
    KILL_POINT(repair_settled);
    stripe_go_odd(stripe);                                                     /* R3 */
    KILL_POINT(repair_odd);
    store_relaxed(&stripe->moves, load_relaxed(&stripe->moves) + 1);
    KILL_POINT(repair_moves);
    uint64_t verdict = load_acquire(&dead->verdict);
    if (VERDICT_STATE(verdict) == VERDICT_COMMITTED) {                         /* R4 */
        KILL_POINT(repair_redo);
        Status s = redo_run(arena, dead, VERDICT_LSN(verdict), (int32_t)index, NULL, 0);
        if (s != ST_OK) {
            return s;
        }
        slot_count(call, COUNT_REPAIRS_COMMITTED);
    }
    KILL_POINT(repair_redone);
    Status s = rebuild(arena, index);                                          /* R5 */
    if (s != ST_OK) {
        return s;
    }
    stripe_go_even(stripe);                                                    /* R6 */
    KILL_POINT(repair_even);
    store_release(&stripe->owner, 0);                                          /* R7 */
    KILL_POINT(repair_owner);
    if (died) {
        lock_consistent(&stripe->lock);
    }
    KILL_POINT(repair_consistent);
    slot_count(call, COUNT_REPAIRS);
    return ST_OK;
}

/* Lock is held (LOCK_OK or LOCK_DEAD): make the stripe clean, or let go. */
static Status stripe_locked(Call *call, uint32_t index, LockResult result, bool even_if_retired) {
    Arena *arena = call->arena;
    Stripe *stripe = &arena->stripes[index];
    Status s = ST_OK;
    if (UNLIKELY(arena_retired(arena)) && !even_if_retired) {
        s = ST_RETIRED;
    } else if (UNLIKELY(load_acquire(&stripe->owner) != 0)) {
        s = repair(call, index, result == LOCK_DEAD);
        if (s == ST_OK) {
            return ST_OK;
        }
        if (s == ST_CORRUPT) {
            store_release_u32(&arena->control->condemned, 1);
        }
    }
    if (UNLIKELY(result == LOCK_DEAD)) {
        /* Owner 0: nothing was being changed.  Else the owner word stays, and the next locker repairs. */
        lock_consistent(&stripe->lock);
    }
    if (UNLIKELY(s != ST_OK)) {
        lock_release(&stripe->lock);
    }
    return s;
}

static Status stripe_result(Call *call, uint32_t index, LockResult result, bool even_if_retired) {
    if (LIKELY(result == LOCK_OK || result == LOCK_DEAD)) {
        return stripe_locked(call, index, result, even_if_retired);
    }
    if (result == LOCK_BROKEN) {
        store_release_u32(&call->arena->control->condemned, 1);
        return ST_NOT_RECOVERABLE;
    }
    call->wait = WAIT_STRIPE;
    call->wait_stripe = index;
    call->holder_tid = lock_holder(&call->arena->stripes[index].lock);
    return ST_BUSY;
}

Status stripe_lock(Call *call, uint32_t index) {
    return stripe_result(call, index, lock_try(&call->arena->stripes[index].lock), false);
}

Status stripe_lock_wait(Call *call, uint32_t index, uint64_t until_ns, bool even_if_retired) {
    LockResult result = lock_try(&call->arena->stripes[index].lock);
    if (result == LOCK_BUSY) {
        result = lock_wait(&call->arena->stripes[index].lock, until_ns);
    }
    return stripe_result(call, index, result, even_if_retired);
}

void stripe_unlock(Call *call, uint32_t index) { lock_release(&call->arena->stripes[index].lock); }
