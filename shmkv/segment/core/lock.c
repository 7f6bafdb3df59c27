/* lock.c: see lock.h.  glibc's lock word is used here and nowhere else: thread id | WAITERS | OWNER_DIED
 * (the kernel's robust futex ABI). */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE        /* pthread_mutex_clocklock */
#endif
#include "lock.h"

#include <errno.h>
#include <linux/futex.h>
#include <time.h>

#define SPIN_TRIES 200
#define SPIN_PAUSES 4

Status lock_init(pthread_mutex_t *lock) {
    pthread_mutexattr_t attributes;
    if (pthread_mutexattr_init(&attributes) != 0) {
        return ST_INVALID;
    }
    int failed = pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED) != 0 ||
                 pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST) != 0 ||
                 pthread_mutex_init(lock, &attributes) != 0;
    pthread_mutexattr_destroy(&attributes);
    return failed ? ST_INVALID : ST_OK;
}

static uint32_t *lock_word(const pthread_mutex_t *lock) { return (uint32_t *)&lock->__data.__lock; }

static LockResult lock_result(int error) {
    switch (error) {
    case 0: return LOCK_OK;
    case EOWNERDEAD: return LOCK_DEAD;
    case ENOTRECOVERABLE: return LOCK_BROKEN;
    default: return LOCK_BUSY;
    }
}

LockResult lock_try(pthread_mutex_t *lock) {
    LockResult result = lock_result(pthread_mutex_trylock(lock));
    if (LIKELY(result != LOCK_BUSY)) {
        return result;
    }
    for (int i = 0; i < SPIN_TRIES; i++) {
        for (int j = 0; j < SPIN_PAUSES; j++) {
            cpu_pause();
        }
        if ((load_relaxed_u32(lock_word(lock)) & FUTEX_TID_MASK) == 0) {
            result = lock_result(pthread_mutex_trylock(lock));
            if (result != LOCK_BUSY) {
                return result;
            }
        }
    }
    return LOCK_BUSY;
}

LockResult lock_wait(pthread_mutex_t *lock, uint64_t until_ns) {
    struct timespec until = {.tv_sec = (time_t)(until_ns / 1000000000ULL), .tv_nsec = (long)(until_ns % 1000000000ULL)};
    return lock_result(pthread_mutex_clocklock(lock, CLOCK_MONOTONIC, &until));
}

void lock_consistent(pthread_mutex_t *lock) { pthread_mutex_consistent(lock); }
void lock_release(pthread_mutex_t *lock) { pthread_mutex_unlock(lock); }
uint32_t lock_holder(const pthread_mutex_t *lock) { return load_relaxed_u32(lock_word(lock)) & FUTEX_TID_MASK; }

bool slot_owner_dead(const Slot *slot, uint64_t owner) {
    uint64_t claimed = load_acquire(&slot->start_time), now;
    TaskState state = task_look_up((uint32_t)(owner >> 32), (uint32_t)owner, &now);
    if (state != TASK_THERE) {
        return state == TASK_GONE;
    }
    /* 0: just claimed, its start time still to come. */
    return claimed != 0 && now != claimed;
}

bool lock_doctor(Arena *arena, pthread_mutex_t *lock) {
    uint32_t *word = lock_word(lock);
    uint32_t seen = __atomic_load_n(word, __ATOMIC_ACQUIRE);
    uint32_t tid = seen & FUTEX_TID_MASK;
    if (tid == 0) {
        return false;
    }
    for (uint32_t i = 0; i < SLOT_COUNT; i++) {
        uint64_t owner = load_acquire(&arena->slots[i].owner);
        if ((uint32_t)owner == tid && !slot_owner_dead(&arena->slots[i], owner)) {
            return false;
        }
    }
    uint32_t died = (seen & FUTEX_WAITERS) | FUTEX_OWNER_DIED;
    if (!__atomic_compare_exchange_n(word, &seen, died, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED)) {
        return false;
    }
    futex_wake(word, 1);
    return true;
}
