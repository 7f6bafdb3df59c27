/* ring.c: admission, waiting and publication on the ring.  (The append itself is part of a write: write.c.) */
#include "ring.h"
#include "store.h"

#include <errno.h>
#include <signal.h>

#define SLICE_NS 50000000ULL
#define LOOK_WRITES 32u
#define QUIET_MS 20u

uint32_t record_header_crc(const RecordHeader *header, uint32_t seed) {
    uint32_t crc = crc32c(seed, &header->length, 4);
    return crc32c(crc, &header->lsn, sizeof *header - offsetof(RecordHeader, lsn));
}

static bool log_lags(const Arena *arena) {
    const Control *control = arena->control;
    uint32_t limit_ms = load_relaxed_u32(&control->lag_limit_ms);
    uint64_t durable = load_relaxed(&control->durable_lsn), since = load_relaxed(&control->durable_time_ms);
    if (limit_ms == 0 || durable == load_relaxed(&control->ring_tail)) {
        return false;
    }
    uint64_t now = clock_coarse_ms();
    return now > since && now - since > limit_ms;
}

/* ---- without a log ---------------------------------------------------------------------------------------- */
bool ring_unattended(const Arena *arena, uint64_t now_ms) {
    const Control *control = arena->control;
    uint64_t since = load_relaxed(&control->durable_time_ms), limit_ms = load_relaxed_u32(&control->lag_limit_ms);
    if (limit_ms == 0 || now_ms <= since || now_ms - since <= limit_ms) {
        return false;
    }
    /* A keeper that gets no time, or is about to be replaced, is no reason to stop. */
    uint32_t supervisor = load_relaxed_u32(&control->supervisor_pid);
    return supervisor == 0 || (kill((pid_t)supervisor, 0) != 0 && errno == ESRCH);
}

/* Looks at the clock: before every write of a quiet process, before one in LOOK_WRITES of a busy one. */
static Status admit_without_log(Arena *arena) {
    uint64_t now = clock_coarse_ms();
    if (ring_unattended(arena, now)) {
        return ST_BUSY;
    }
    bool quiet = now - load_relaxed(&arena->looked_ms) > QUIET_MS;
    store_relaxed(&arena->looked_ms, now);
    store_relaxed_u32(&arena->unlooked, quiet ? 0 : LOOK_WRITES);
    return ST_OK;
}

Status ring_admits(Arena *arena, uint64_t record_bytes) {
    const Control *control = arena->control;
    if (!arena->has_log) {
        uint32_t unlooked = load_relaxed_u32(&arena->unlooked);
        if (LIKELY(unlooked != 0)) {
            store_relaxed_u32(&arena->unlooked, unlooked - 1);
            return ST_OK;
        }
        return admit_without_log(arena);
    }
    if (UNLIKELY(load_relaxed_u32(&control->log_state) != LOG_OK)) {
        return ST_LOG_REFUSED;
    }
    uint64_t used = load_relaxed(&control->ring_tail) - load_acquire(&control->ring_head);
    uint64_t need = load_relaxed(&control->need_bytes);
    if (UNLIKELY(need > record_bytes)) {
        /* Somebody with a large record waits; leave him room, but not for ever (he may be dead). */
        if (clock_coarse_ms() < load_relaxed(&control->need_until_ms)) {
            used += need;
        }
    }
    if (used + record_bytes > arena->ring_bytes || log_lags(arena)) {
        return ST_BUSY;
    }
    return ST_OK;
}

/* ---- waking the persister ------------------------------------------------------------------------------- */
static bool persister_has_work(const Arena *arena, uint64_t lsn) {
    const Control *control = arena->control;
    uint64_t tail = load_acquire(&control->ring_tail);
    if (load_relaxed(&control->sync_wanted_lsn) > load_relaxed(&control->durable_lsn) && tail > load_relaxed(&control->durable_lsn)) {
        return true;
    }
    return tail > lsn && tail - load_relaxed(&control->ring_head) >= arena->ring_bytes / 4;
}

static void persister_wake(Arena *arena) {
    /* The flag is read behind a full fence, after what the persister shall see was stored; pairs with
     * the fence in ring_wait_work.  A wake-up lost all the same costs the sleeper one slice. */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (load_relaxed_u32(&arena->control->persister_sleeps)) {
        __atomic_fetch_add(&arena->control->persister_word, 1, __ATOMIC_RELEASE);
        futex_wake(&arena->control->persister_word, 1);
    }
}

void ring_after_append(Arena *arena, uint64_t used_bytes) {
    if (UNLIKELY(used_bytes >= arena->ring_bytes / 4) && arena->has_log) {
        persister_wake(arena);
    }
}

void ring_wait_work(Arena *arena, uint64_t lsn, uint64_t until_ns) {
    Control *control = arena->control;
    for (;;) {
        uint32_t word = load_acquire_u32(&control->persister_word);
        store_relaxed_u32(&control->persister_sleeps, 1);
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        uint64_t now = clock_monotonic_ns();
        if (persister_has_work(arena, lsn) || now >= until_ns) {
            break;
        }
        futex_wait(&control->persister_word, word, min_u64(until_ns - now, SLICE_NS));
    }
    store_relaxed_u32(&control->persister_sleeps, 0);
}

/* ---- publishing and waiting for it ------------------------------------------------------------------------ */
static void publish(Arena *arena, uint64_t head) {
    Control *control = arena->control;
    if (head > load_relaxed(&control->ring_head)) {
        store_release(&control->ring_head, head);
    }
    __atomic_fetch_add(&control->durable_word, 1, __ATOMIC_SEQ_CST);
    if (load_relaxed_u32(&control->durable_waiters) != 0) {
        futex_wake(&control->durable_word, INT32_MAX);
    }
}

void ring_publish_written(Arena *arena, uint64_t lsn) {
    Control *control = arena->control;
    store_release(&control->written_lsn, lsn);
    if (load_relaxed_u32(&control->durability) == 0) {
        publish(arena, lsn);
    }
}

void ring_publish_durable(Arena *arena, uint64_t lsn, uint64_t collected_ms) {
    Control *control = arena->control;
    if (lsn > load_relaxed(&control->durable_lsn)) {
        store_release(&control->durable_lsn, lsn);
    }
    store_relaxed(&control->durable_time_ms, collected_ms);
    publish(arena, lsn);
}

void ring_attend(Arena *arena) {
    store_relaxed(&arena->control->durable_time_ms, clock_coarse_ms());
    publish(arena, 0);
}

static void want_sync(Arena *arena, uint64_t lsn) {
    uint64_t *wanted = &arena->control->sync_wanted_lsn;
    uint64_t seen = load_relaxed(wanted);
    while (seen < lsn && !__atomic_compare_exchange_n(wanted, &seen, lsn, true, __ATOMIC_RELEASE, __ATOMIC_RELAXED)) {
    }
    persister_wake(arena);
}

Status ring_wait_durable(Arena *arena, uint64_t lsn, bool request, uint64_t until_ns) {
    Control *control = arena->control;
    if (!arena->has_log || load_acquire(&control->durable_lsn) >= lsn) {
        return ST_OK;
    }
    if (request) {
        want_sync(arena, lsn);
    }
    Status s = ST_BUSY;
    __atomic_fetch_add(&control->durable_waiters, 1, __ATOMIC_SEQ_CST);
    for (;;) {
        uint32_t word = load_acquire_u32(&control->durable_word);
        if (load_acquire(&control->durable_lsn) >= lsn) {
            s = ST_OK;
            break;
        }
        uint64_t now = clock_monotonic_ns();
        if (now >= until_ns) {
            break;
        }
        futex_wait(&control->durable_word, word, min_u64(until_ns - now, SLICE_NS));
    }
    __atomic_fetch_sub(&control->durable_waiters, 1, __ATOMIC_RELAXED);
    return s;
}

/* A writer that met a full or lagging ring: wakes the persister, sleeps until it publishes something. */
Status ring_wait_room(Arena *arena, uint64_t need_bytes, uint64_t until_ns) {
    Control *control = arena->control;
    uint64_t now_ms = clock_coarse_ms();
    /* An older, larger need that has run out must not keep this one from being seen. */
    if (need_bytes > arena->ring_bytes / 16 &&
        (load_relaxed(&control->need_bytes) < need_bytes || load_relaxed(&control->need_until_ms) <= now_ms)) {
        store_relaxed(&control->need_until_ms, now_ms + 1000);
        store_relaxed(&control->need_bytes, need_bytes);
    }
    __atomic_fetch_add(&control->durable_waiters, 1, __ATOMIC_SEQ_CST);
    uint32_t word = load_acquire_u32(&control->durable_word);
    Status s = ring_admits(arena, need_bytes);
    if (s == ST_BUSY) {
        want_sync(arena, load_relaxed(&control->ring_tail));
        uint64_t now = clock_monotonic_ns();
        if (now < until_ns) {
            futex_wait(&control->durable_word, word, min_u64(until_ns - now, SLICE_NS));
        }
        s = ring_admits(arena, need_bytes);
    }
    __atomic_fetch_sub(&control->durable_waiters, 1, __ATOMIC_RELAXED);
    return s == ST_BUSY ? ST_BUSY : ST_OK;
}
