/* lock.h: robust process-shared locks with timed waits, and the doctor for locks that the kernel forgot.
 *
 * Invariants:
 *   I1  Lock order: stripes ascending, then the ring.
 *   I2  LOCK_DEAD is a held lock: the caller repairs, then lock_consistent, then unlocks.
 *   I3  Nobody takes a lock without having a slot: that is how the doctor knows that a holder is dead.
 */
#ifndef SHMKV_LOCK_H
#define SHMKV_LOCK_H

#include "arena.h"

typedef enum LockResult {
    LOCK_OK,
    LOCK_DEAD,      /* held; the last holder died holding it */
    LOCK_BUSY,
    LOCK_BROKEN     /* somebody unlocked it without repair: for ever useless */
} LockResult;

Status lock_init(pthread_mutex_t *lock);
/* A few hundred tries with pause, microseconds at most; never sleeps. */
LockResult lock_try(pthread_mutex_t *lock);
/* Sleeps until the lock is had or until_ns (monotonic). */
LockResult lock_wait(pthread_mutex_t *lock, uint64_t until_ns);
void lock_consistent(pthread_mutex_t *lock);
void lock_release(pthread_mutex_t *lock);
/* Thread id in the lock word, 0 = free. */
uint32_t lock_holder(const pthread_mutex_t *lock);
/* If no live slot has the holder's thread id, does what the kernel should have done: marks the lock
 * as left by a dead owner and wakes a waiter (H13 in docs/crash-table.md).  True if it did. */
bool lock_doctor(Arena *arena, pthread_mutex_t *lock);

/* True if the task that claimed the slot is gone. */
bool slot_owner_dead(const Slot *slot, uint64_t owner);

#endif
