/* apply.h: entries of a log or a snapshot, put into an arena that nobody else can see yet (STATE_CREATING).
 *
 * Invariants:
 *   I1  An entry is replaced only by a newer version, and nothing at or below a clear is put: all may be applied twice.
 *   I2  No locks, no ring, no redo lists: a kill here leaves an arena that the next start throws away.
 *   I3  A queue changes the stripes of its changes and nothing else; pages come from the common pool by
 *       compare-and-swap, counts of the pool are hints.  So threads may apply at once, each to stripes of its own.
 *   I4  Only a queue that is `alone` makes room in a full arena, since that moves entries of any stripe.
 */
#ifndef SHMKV_APPLY_H
#define SHMKV_APPLY_H

#include "store.h"

#define APPLY_AHEAD 32u       /* changes whose buckets, then entries are fetched while earlier ones are applied */

typedef struct Change {
    uint64_t lsn;
    const uint8_t *body;      /* entry from ENTRY_BODY on; must stay until the queue was flushed */
    uint64_t length;          /* of the body, without padding */
    uint32_t crc;
    uint32_t kind;            /* RECORD_PUT or RECORD_DELETE */
    Key key;
} Change;

typedef struct ApplyQueue {
    Arena *arena;
    bool alone;
    uint32_t count;
    uint64_t applied;         /* out: entries changed */
    Change pending[APPLY_AHEAD];
} ApplyQueue;

/* Takes a put's or delete's body apart and checks that its fields add up; the key has no hash yet. */
bool change_parse(Change *change, const uint8_t *body, uint64_t length, uint32_t kind);
/* Length without padding, as the body's own fields say; 0 if they lie beyond the first `most` bytes. */
uint64_t body_length(const uint8_t *body, uint64_t most);
/* No checksum covers the padding behind a body: it must be zero. */
bool body_padding_is_zero(const uint8_t *body, uint64_t length);

/* The change's key has its hash.  ST_FULL, ST_CORRUPT: of any change that was queued. */
Status apply_put_in_queue(ApplyQueue *queue, const Change *change);
Status apply_flush(ApplyQueue *queue);
/* Counts the live entries of all namespaces anew. */
Status apply_recount(Arena *arena);

#endif
