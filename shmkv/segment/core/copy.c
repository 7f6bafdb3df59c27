/* copy.c: copies between private memory and memory that another process may be writing.
 *
 * An optimistic reader copies bytes that may change under it and validates afterwards (Boehm, "Can seqlocks get along
 * with programming language memory models?", MSPC 2012).  A plain memcpy of such bytes is a data race, so:
 *   - x86, up to WIDE_COPY_BYTES: 16 bytes at a time, by instructions that the compiler can't look into (a get of
 *     100 bytes takes 12 ns less than by words); above: `rep movsb`;
 *   - elsewhere, below 16 bytes, and under a sanitizer: relaxed atomic words.
 *
 * Invariants:
 *   I1  `shared` is 8-byte aligned; up to 7 bytes after its end may be read, none are written.
 */
#include "base.h"

#include <string.h>

#define WIDE_COPY_BYTES 256u

static void words_from_shared(uint8_t *to, const uint64_t *shared, size_t length) {
    size_t words = length / 8;
    for (size_t i = 0; i < words; i++) {
        uint64_t word = load_relaxed(shared + i);
        memcpy(to + 8 * i, &word, 8);
    }
    if (length & 7) {
        uint64_t word = load_relaxed(shared + words);
        memcpy(to + 8 * words, &word, length & 7);
    }
}

static void words_to_shared(uint64_t *shared, const uint8_t *from, size_t length) {
    size_t words = length / 8;
    for (size_t i = 0; i < words; i++) {
        uint64_t word;
        memcpy(&word, from + 8 * i, 8);
        store_relaxed(shared + i, word);
    }
    uint8_t *tail = (uint8_t *)(shared + words);
    for (size_t i = 0; i < (length & 7); i++) {
        __atomic_store_n(tail + i, from[8 * words + i], __ATOMIC_RELAXED);
    }
}

#if defined(__x86_64__) && !defined(SHMKV_TSAN) && !defined(__SANITIZE_ADDRESS__)
#define OPAQUE_COPY 1
ALWAYS_INLINE void opaque_copy(void *to, const void *from, size_t length) {
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(length) : : "memory");
}

/* 16 <= length: pairs of 16 bytes, then one, then the last 16, which may overlap. */
ALWAYS_INLINE void wide_copy(uint8_t *to, const uint8_t *from, size_t length) {
    const uint8_t *last = from + length - 16;
    uint8_t *to_last = to + length - 16;
    for (; from + 32 <= last + 16; from += 32, to += 32) {
        __asm__ volatile("movdqu (%1), %%xmm0\n\t"
                         "movdqu 16(%1), %%xmm1\n\t"
                         "movdqu %%xmm0, (%0)\n\t"
                         "movdqu %%xmm1, 16(%0)"
                         : : "r"(to), "r"(from) : "xmm0", "xmm1", "memory");
    }
    if (from < last) {
        __asm__ volatile("movdqu (%1), %%xmm0\n\tmovdqu %%xmm0, (%0)" : : "r"(to), "r"(from) : "xmm0", "memory");
    }
    __asm__ volatile("movdqu (%1), %%xmm0\n\tmovdqu %%xmm0, (%0)" : : "r"(to_last), "r"(last) : "xmm0", "memory");
}

ALWAYS_INLINE bool copied_opaquely(void *to, const void *from, size_t length) {
    if (length < 16) {
        return false;
    }
    if (length > WIDE_COPY_BYTES) {
        opaque_copy(to, from, length);
    } else {
        wide_copy(to, from, length);
    }
    return true;
}
#endif

void copy_from_shared(void *restrict to, const void *restrict shared, size_t length) {
#ifdef OPAQUE_COPY
    if (copied_opaquely(to, shared, length)) {
        return;
    }
#endif
    words_from_shared(to, shared, length);
}

void copy_to_shared(void *restrict shared, const void *restrict from, size_t length) {
#ifdef OPAQUE_COPY
    if (copied_opaquely(shared, from, length)) {
        return;
    }
#endif
    words_to_shared(shared, from, length);
}
