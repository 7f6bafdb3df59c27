/* copy.c: copies between private memory and memory that another process may be writing.
 *
 * An optimistic reader copies bytes that may change under it and validates afterwards (Boehm, "Can seqlocks get along
 * with programming language memory models?", MSPC 2012).  A plain memcpy of such bytes is a data race, so:
 *   - up to WORD_COPY_BYTES: relaxed atomic words, which the compiler turns into plain moves;
 *   - above: `rep movsb`, opaque to the compiler (x86), or words again;
 *   - under ThreadSanitizer: relaxed atomics throughout.
 *
 * Invariants:
 *   I1  `shared` is 8-byte aligned; up to 7 bytes after its end may be read, none are written.
 */
#include "base.h"

#include <string.h>

#define WORD_COPY_BYTES 256u

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

#if defined(__x86_64__) && !defined(SHMKV_TSAN)
ALWAYS_INLINE void opaque_copy(void *to, const void *from, size_t length) {
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(length) : : "memory");
}
#define OPAQUE_COPY 1
#endif

void copy_from_shared(void *restrict to, const void *restrict shared, size_t length) {
#ifdef OPAQUE_COPY
    if (length > WORD_COPY_BYTES) {
        opaque_copy(to, shared, length);
        return;
    }
#endif
    words_from_shared(to, shared, length);
}

void copy_to_shared(void *restrict shared, const void *restrict from, size_t length) {
#ifdef OPAQUE_COPY
    if (length > WORD_COPY_BYTES) {
        opaque_copy(shared, from, length);
        return;
    }
#endif
    words_to_shared(shared, from, length);
}
