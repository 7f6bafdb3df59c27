/* fuzz.h: an arena that is as new for each input, and what must hold after any input.
 *
 * Invariants:
 *   I1  The same input does the same: hash key, store id and LSNs are fixed.
 *   I2  A target may put checksums right (reseal), so that what lies behind them is reached; its first byte says so.
 */
#ifndef SHMKV_FUZZ_H
#define SHMKV_FUZZ_H

#include "arena.h"
#include "store.h"

#define FUZZ_FIRST_LSN (1ULL << 41)
#define FUZZ_INCARNATION 7u
extern const uint8_t fuzz_store_id[16];

/* The arena, with nothing in it.  One for the process. */
Arena *fuzz_arena(void);
/* Audits every stripe, walks all entries, loads what was found: ends the process if anything is wrong. */
void fuzz_check(Arena *arena);
_Noreturn void fuzz_failed(const char *what, uint64_t found, uint64_t expected);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#endif
