/* repair.h: taking a stripe's or the ring's lock, and what whoever takes it after a death must do first.
 *
 * Model-checked: models/write.pml, txn.pml, retire.pml.  The steps S and R1-R7 are those of DESIGN 5.
 *
 * Invariants:
 *   I1  stripe_lock returns ST_OK only with a clean stripe: owner word 0, derived state true, sequence even.
 *   I2  A repairer takes no stripe's lock but the one it repairs, so repairers can't deadlock.
 *   I3  Each step may be done twice: a repairer that dies anywhere is repaired by the next, from R1.
 *   I4  The owner word is cleared before the lock is declared consistent.
 */
#ifndef SHMKV_REPAIR_H
#define SHMKV_REPAIR_H

#include "store.h"

/* ST_OK with the lock held; ST_BUSY (call->wait says for what), ST_RETIRED, ST_NOT_RECOVERABLE, ST_CORRUPT: not held. */
Status stripe_lock(Call *call, uint32_t stripe);
void stripe_unlock(Call *call, uint32_t stripe);
/* As stripe_lock, but sleeps until until_ns, and works in a retired arena when asked. */
Status stripe_lock_wait(Call *call, uint32_t stripe, uint64_t until_ns, bool even_if_retired);

/* The ring's lock, settled.  ST_OK held; ST_BUSY, ST_NOT_RECOVERABLE not held. */
Status ring_lock(Call *call);
Status ring_lock_wait(Call *call, uint64_t until_ns);
void ring_unlock(Call *call);

/* Runs the slot's redo list for one stripe, or, live, for all of them (stripe < 0: `stripes` lists those of the write). */
Status redo_run(Arena *arena, const Slot *slot, uint64_t lsn, int32_t stripe, const uint16_t *stripes, uint32_t count);

ALWAYS_INLINE void stripe_go_odd(Stripe *s) {
    store_relaxed(&s->sequence, load_relaxed(&s->sequence) | 1);
    /* Keeps the stores that follow behind the odd number; pairs with the acquire fence of the readers. */
    __atomic_thread_fence(__ATOMIC_RELEASE);
}
ALWAYS_INLINE void stripe_go_even(Stripe *s) {
    /* Pairs with the acquire load that begins a read. */
    store_release(&s->sequence, (load_relaxed(&s->sequence) | 1) + 1);
}
ALWAYS_INLINE void slot_count(const Call *call, uint32_t counter) {
    if (call->slot >= 0) {
        uint64_t *p = &call->arena->slots[call->slot].counters[counter];
        store_relaxed(p, load_relaxed(p) + 1);
    }
}

#endif
