/* check.h: assertions and random numbers of the native tests.
 *
 * Invariants:
 *   I1  A failed check prints where, what was seen, and how to run the same case again, then ends the process with 1.
 *   I2  All randomness comes from Random, seeded by the command line: a seed replays a run.
 */
#ifndef SHMKV_CHECK_H
#define SHMKV_CHECK_H

#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>

/* The seed of the run; arenas take their hash key from it, so that keys fall into the same buckets again. */
void check_seed(uint64_t seed);
uint64_t check_seed_value(void);

/* What stands in front of the message: the test, its seed and its case.  See check_context. */
void check_context(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* And which case of it. */
void check_case(const char *format, ...) __attribute__((format(printf, 1, 2)));
_Noreturn void check_failed(const char *file, int line, const char *format, ...) __attribute__((format(printf, 3, 4)));

#define CHECK(condition)                                                            \
    do {                                                                            \
        if (!(condition)) {                                                         \
            check_failed(__FILE__, __LINE__, "%s does not hold", #condition);       \
        }                                                                           \
    } while (0)

#define CHECK_SAYING(condition, ...)                                                \
    do {                                                                            \
        if (!(condition)) {                                                         \
            check_failed(__FILE__, __LINE__, __VA_ARGS__);                          \
        }                                                                           \
    } while (0)

#define CHECK_EQUAL(seen, expected)                                                                      \
    do {                                                                                                 \
        uint64_t seen_ = (uint64_t)(seen), expected_ = (uint64_t)(expected);                             \
        if (seen_ != expected_) {                                                                        \
            check_failed(__FILE__, __LINE__, "%s is %llu (0x%llx), expected %s = %llu (0x%llx)", #seen,  \
                         (unsigned long long)seen_, (unsigned long long)seen_, #expected,                \
                         (unsigned long long)expected_, (unsigned long long)expected_);                  \
        }                                                                                                \
    } while (0)

/* splitmix64 */
typedef struct Random {
    uint64_t state;
} Random;

static inline uint64_t random_next(Random *random) {
    uint64_t z = (random->state += 0x9e3779b97f4a7c15ULL);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
}

static inline uint64_t random_below(Random *random, uint64_t limit) { return random_next(random) % limit; }
/* Uniform in [low, high]. */
static inline uint64_t random_between(Random *random, uint64_t low, uint64_t high) {
    return low + random_below(random, high - low + 1);
}
static inline bool random_one_in(Random *random, uint64_t n) { return random_below(random, n) == 0; }

#endif
