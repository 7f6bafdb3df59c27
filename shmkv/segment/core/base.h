/* base.h: status codes, atomics and small helpers that every file of the core uses.
 *
 * Invariants:
 *   I1  A function that can fail returns a Status; results leave through out pointers.
 *   I2  Every access to shared memory that another thread may write goes through the load_ and
 *       store_ functions below; each use names its partner in a comment where it orders anything.
 */
#ifndef SHMKV_BASE_H
#define SHMKV_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if defined(__SANITIZE_THREAD__)
#define SHMKV_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define SHMKV_TSAN 1
#endif
#endif

/* One table in module_errors.c maps these to exceptions. */
typedef enum Status {
    ST_OK = 0,
    ST_NOT_FOUND,        /* no such key */
    ST_CONDITION,        /* if_absent, if_present or if_version did not hold */
    ST_BUSY,             /* nothing happened, nothing is held; call->wait says what to wait for */
    ST_BUFFER,           /* value->capacity is too small; value->length says what is needed */
    ST_FULL,             /* no memory left in the arena; nothing happened */
    ST_KEY_TOO_LARGE,
    ST_VALUE_TOO_LARGE,  /* above value_limit(): 4 GiB or a quarter of the ring */
    ST_WRONG_TYPE,       /* incr of a value that is no number, append to one of another type */
    ST_OVERFLOW,         /* incr beyond 64 bits, or of a float: the caller goes through modify */
    ST_RETIRED,          /* the arena has ended; attach anew by name */
    ST_LOG_REFUSED,      /* the persister refuses writes; control->log_state says why */
    ST_READ_ONLY,        /* the mapping is PROT_READ */
    ST_NO_SLOT,          /* all thread slots are taken */
    ST_CORRUPT,          /* an invariant of the arena is broken */
    ST_NOT_RECOVERABLE,  /* a lock was left inconsistent: the arena is condemned */
    ST_INCOMPATIBLE,     /* header of another layout, libc, page size or pid namespace */
    ST_INVALID,          /* an argument that the caller should have checked */
    ST_COUNT
} Status;

#define ALWAYS_INLINE static inline __attribute__((always_inline))
#define LIKELY(x) __builtin_expect(!!(x), 1)
#define UNLIKELY(x) __builtin_expect(!!(x), 0)

ALWAYS_INLINE uint64_t load_relaxed(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
ALWAYS_INLINE uint64_t load_acquire(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
ALWAYS_INLINE void store_relaxed(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }
ALWAYS_INLINE void store_release(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
ALWAYS_INLINE bool cas_u64(uint64_t *p, uint64_t expected, uint64_t desired) {
    return __atomic_compare_exchange_n(p, &expected, desired, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);
}
ALWAYS_INLINE uint32_t load_relaxed_u32(const uint32_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
ALWAYS_INLINE uint32_t load_acquire_u32(const uint32_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
ALWAYS_INLINE void store_relaxed_u32(uint32_t *p, uint32_t v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }
ALWAYS_INLINE void store_release_u32(uint32_t *p, uint32_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }

ALWAYS_INLINE uint64_t align_up(uint64_t x, uint64_t a) { return (x + a - 1) & ~(a - 1); }
ALWAYS_INLINE uint64_t min_u64(uint64_t a, uint64_t b) { return a < b ? a : b; }

ALWAYS_INLINE void cpu_pause(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* CLOCK_MONOTONIC, ns.  The coarse one costs a few ns and is up to 4 ms behind. */
uint64_t clock_monotonic_ns(void);
uint64_t clock_coarse_ms(void);
/* CLOCK_BOOTTIME, ms: goes on during suspend; expiry is measured with it. */
uint64_t clock_boot_ms(void);
/* CLOCK_REALTIME, ms. */
uint64_t clock_wall_ms(void);

/* futex on a word of shared memory.  Returns when woken, when *word != expected, or after timeout_ns. */
void futex_wait(uint32_t *word, uint32_t expected, uint64_t timeout_ns);
void futex_wake(uint32_t *word, int count);

/* CRC-32C (Castagnoli), reflected, as in RFC 3720; crc is the running value, 0 to start. */
uint32_t crc32c(uint32_t crc, const void *data, size_t length);

/* SipHash-1-3 (Aumasson and Bernstein 2012; the variant with 1 and 3 rounds). */
uint64_t siphash13(uint64_t k0, uint64_t k1, const void *data, size_t length);

/* Copies between private and shared memory that obey the C11 memory model: see copy.c. */
void copy_from_shared(void *restrict to, const void *restrict shared, size_t length);
void copy_to_shared(void *restrict shared, const void *restrict from, size_t length);

/* Is that thread there?  UNKNOWN when the system can't say now (no descriptor free, /proc hidden): never a proof of death.
 * *start_time: of a thread that is there, in clock ticks since boot.  A zombie is gone. */
typedef enum TaskState { TASK_GONE, TASK_THERE, TASK_UNKNOWN } TaskState;
TaskState task_look_up(uint32_t pid, uint32_t tid, uint64_t *start_time);

#endif
