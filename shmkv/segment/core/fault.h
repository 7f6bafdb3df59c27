/* fault.h: named kill points, one between every two steps of a write, a repair, a move, a reaping, an end.
 *
 * In a release build a point is a compiler fence: the call of a test build keeps the compiler from moving
 * plain stores across the point, so the release build must not move them either.
 * In a test build (-DSHMKV_FAULT) fault_hit counts and, at the armed hit of the armed point, kills the process.
 * The names are those of the models' steps; docs/crash-table.md says for each what the next locker finds and does.
 */
#ifndef SHMKV_FAULT_H
#define SHMKV_FAULT_H

#define FAULT_POINTS(X)                                                                        \
    /* a write: DESIGN 5, steps 2-6 */                                                          \
    X(stripe_locked) X(owner_set) X(draft_claimed) X(draft_filled) X(draft_adopted)             \
    X(overflow_claimed) X(redo_filled) X(ring_locked) X(ring_owner_set) X(verdict_pending)      \
    X(record_header_copied) X(record_copied) X(sequence_odd) X(tail_stored)                     \
    X(verdict_committed) X(redo_stored) X(linked) X(counted) X(sequence_even) X(ring_unlocked)  \
    X(old_freed) X(owner_cleared) X(verdict_cleared) X(stripe_unlocked) X(aborting)             \
    /* the heap */                                                                              \
    X(page_claimed) X(slab_made) X(block_taken) X(block_returned) X(page_freed)                 \
    /* S: settling */                                                                           \
    X(settle_found) X(settle_decided) X(settle_consistent)                                      \
    /* R1-R7: repair of a stripe */                                                             \
    X(repair_begun) X(repair_settled) X(repair_odd) X(repair_moves) X(repair_redo)              \
    X(repair_redone) X(rebuild_cleared) X(rebuild_marking) X(rebuild_marked)                    \
    X(rebuild_returning) X(rebuild_done) X(repair_even) X(repair_owner) X(repair_consistent)    \
    /* a move */                                                                                \
    X(move_copied) X(move_odd) X(move_counted) X(move_placed) X(move_even) X(move_freed)        \
    /* unlinking dead entries without a record */                                               \
    X(sweep_odd) X(sweep_unlinked) X(sweep_even)                                                \
    /* reuse of a slot */                                                                       \
    X(reap_repaired) X(reap_pages) X(reap_verdict) X(reap_freed)                                \
    /* the end of an arena */                                                                   \
    X(retire_flagged) X(retire_locked) X(retire_odd) X(retire_unlocked)

enum {
#define FAULT_ENUM(name) FAULT_##name,
    FAULT_POINTS(FAULT_ENUM)
#undef FAULT_ENUM
    FAULT_COUNT
};

#ifdef SHMKV_FAULT
void fault_hit(int point);
#define KILL_POINT(name) fault_hit(FAULT_##name)
#else
#define KILL_POINT(name) __atomic_signal_fence(__ATOMIC_SEQ_CST)
#endif

#endif
