/* snapshot.c: entries as raw bytes: copied out of an arena that others write, checked, and put into a new one.
 *
 * Invariants:
 *   I1  An entry that exists throughout keeps its place in its chain, so a walk meets it exactly once, however often it
 *       stops between two places; whatever is written or deleted meanwhile has a record behind the walk's start.
 *   I2  What was copied is believed only if the sequence did not change meanwhile; for a large entry: if place, version
 *       and count of moves did not (models/large.pml).
 *   I3  Checksum and bucket are checked on the believed copy: a bad one is damage, never a race.
 *   I4  store_load believes nothing: each image is checked before it is applied.
 */
#include "apply.h"
#include "repair.h"
#include "table.h"

#define FILL_TRIES 64
#define ODD_PAUSES 16
#define LARGE_TRIES 4
#define BUCKETS_AHEAD 6u

/* A cursor: number of the bucket, and of the place in its chain, where the walk goes on. */
#define PLACE_BITS 20
#define CURSOR(bucket, place) ((bucket) << PLACE_BITS | (place))
_Static_assert(CHAIN_LIMIT * PLACES < 1 << PLACE_BITS, "a cursor names each place of a chain");
_Static_assert(PLACE_BITS + 32 + 9 < 64 && STRIPES_MAX <= 1 << 9, "a cursor names each bucket");

/* ---- filling ----------------------------------------------------------------------------------------------------- */
typedef struct Fill {
    Call *call;
    Stripe *stripe;
    uint8_t *buffer;
    uint64_t capacity;
    uint64_t bucket;
    uint32_t place;           /* the first of the bucket's chain that is not yet done */
    FillResult *result;
} Fill;

typedef enum Stop { STOP_END, STOP_ROOM, STOP_LARGE, STOP_NONSENSE } Stop;

/* What one look at a bucket found and copied: to be validated. */
typedef struct Look {
    uint64_t used;
    uint32_t entries;
    uint32_t place;           /* where it stopped */
    Stop stop;
    uint64_t sequence;
    const uint64_t *word;     /* STOP_ROOM, STOP_LARGE: the place, what stood there, and of which entry */
    uint64_t linked, version, bytes;
} Look;

static void copy_image(uint8_t *to, const uint64_t *shared, uint64_t bytes) {
    uint64_t last = 0;
    memcpy(to + align_up(bytes, 8) - 8, &last, 8);
    copy_from_shared(to, shared, bytes);
}

/* One entry; false if the look ends before it. */
ALWAYS_INLINE bool look_at(const Fill *fill, Look *look, const uint64_t *word, uint64_t linked, bool whole) {
    const Arena *arena = fill->call->arena;
    const uint64_t *shared = (const uint64_t *)arena_at(arena, PLACE_OFFSET(linked));
    if (UNLIKELY(shared == NULL)) {
        look->stop = STOP_NONSENSE;
        return false;
    }
    uint64_t version = load_relaxed(shared), w1 = load_relaxed(shared + 1), w2 = load_relaxed(shared + 2);
    uint64_t bytes = entry_bytes((uint8_t)(w2 >> 40), w2 & 0xffff, w1 >> 32);
    uint16_t namespace_id = (uint16_t)(w2 >> 16);
    if (UNLIKELY(namespace_id >= NAMESPACE_COUNT || bytes > arena->mapped_bytes - PLACE_OFFSET(linked))) {
        look->stop = STOP_NONSENSE;
        return false;
    }
    if (entry_cleared(fill->stripe, version, namespace_id)) {
        return true;
    }
    bool fits = align_up(bytes, 8) <= fill->capacity - look->used;
    if (UNLIKELY(!fits || (bytes > LARGE_VALUE_BYTES && !whole))) {
        look->stop = fits ? STOP_LARGE : STOP_ROOM;
        look->word = word;
        look->linked = linked;
        look->version = version;
        look->bytes = bytes;
        return false;
    }
    copy_image(fill->buffer + look->used, shared, bytes);
    look->used += align_up(bytes, 8);
    look->entries++;
    return true;
}

/* Copies what the bucket's chain holds from fill->place on; whole: large entries, too. */
static void look_at_bucket(const Fill *fill, Look *look, bool whole) {
    const Arena *arena = fill->call->arena;
    const Bucket *bucket = &arena->buckets[fill->bucket];
    look->used = fill->result->used_bytes;
    look->entries = 0;
    look->place = 0;
    look->stop = STOP_NONSENSE;
    for (uint32_t hops = 0; hops < CHAIN_LIMIT; hops++) {
        for (uint32_t i = 0; i < PLACES; i++, look->place++) {
            uint64_t linked = load_relaxed(&bucket->place[i]);
            if (linked != 0 && look->place >= fill->place && !look_at(fill, look, &bucket->place[i], linked, whole)) {
                return;
            }
        }
        uint64_t next = load_relaxed(&bucket->next);
        if (next == 0) {
            look->stop = STOP_END;
            return;
        }
        bucket = arena_bucket_at(arena, next);
        if (bucket == NULL) {
            return;
        }
    }
}

/* Retired, and nobody will write in this stripe again: repaired, its sequence odd for ever.  A writer sets its owner
 * word before it goes odd and clears it after it goes even: between two equal odd numbers no writer is without one. */
static bool stripe_ended(const Arena *arena, const Stripe *stripe) {
    uint64_t sequence = load_acquire(&stripe->sequence);
    return arena_retired(arena) && (sequence & 1) && load_acquire(&stripe->owner) == 0 &&
           load_acquire(&stripe->sequence) == sequence;
}

static Status look_locked(const Fill *fill, Look *look) {
    Call *call = fill->call;
    uint32_t index = fill->result->stripe;
    if (call->slot < 0) {
        call->wait = WAIT_READ;
        call->wait_stripe = index;
        return ST_BUSY;
    }
    Status s = stripe_lock_wait(call, index, 0, true);
    if (s != ST_OK) {
        return s;
    }
    look_at_bucket(fill, look, true);
    stripe_unlock(call, index);
    return ST_OK;
}

/* A look that can be believed. */
static Status look_safely(const Fill *fill, Look *look, bool locked) {
    const Arena *arena = fill->call->arena;
    const Stripe *stripe = fill->stripe;
    for (int i = 0; i < FILL_TRIES && !locked; i++) {
        /* Pairs with the release store of the even number. */
        look->sequence = load_acquire(&stripe->sequence);
        if (LIKELY(!(look->sequence & 1))) {
            look_at_bucket(fill, look, false);
            /* Orders the copy against the re-load. */
            __atomic_thread_fence(__ATOMIC_ACQUIRE);
            if (LIKELY(load_relaxed(&stripe->sequence) == look->sequence && look->stop != STOP_NONSENSE)) {
                return ST_OK;
            }
        } else if (stripe_ended(arena, stripe)) {
            look_at_bucket(fill, look, true);
            return look->stop == STOP_NONSENSE ? ST_CORRUPT : ST_OK;
        }
        for (int pause = 0; pause < ODD_PAUSES; pause++) {
            cpu_pause();
        }
    }
    Status s = look_locked(fill, look);
    return s == ST_OK && look->stop == STOP_NONSENSE ? ST_CORRUPT : s;
}

/* Copies the large entry that a look stopped before; false if it changed meanwhile. */
static bool copy_large(const Fill *fill, const Look *look) {
    const Arena *arena = fill->call->arena;
    const Stripe *stripe = fill->stripe;
    const uint64_t *shared = (const uint64_t *)(arena->base + PLACE_OFFSET(look->linked));
    uint64_t moves = load_acquire(&stripe->moves);
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    if (load_relaxed(&stripe->sequence) != look->sequence) {
        return false;
    }
    copy_image(fill->buffer + look->used, shared, look->bytes);
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    for (int i = 0; i < FILL_TRIES; i++) {
        uint64_t sequence = load_acquire(&stripe->sequence);
        bool same = load_relaxed(look->word) == look->linked && load_relaxed(shared) == look->version &&
                    load_relaxed(&stripe->moves) == moves;
        __atomic_thread_fence(__ATOMIC_ACQUIRE);
        if (!(sequence & 1) && load_relaxed(&stripe->sequence) == sequence) {
            return same;
        }
        cpu_pause();
    }
    return false;
}

static Status corrupt(Fill *fill, const char *what, uint64_t found, uint64_t expected, uint64_t hash) {
    fill->result->what = what;
    fill->result->found = found;
    fill->result->expected = expected;
    fill->result->hash = hash;
    if (fill->call->arena->writable) {
        store_release_u32(&fill->call->arena->control->condemned, 1);
    }
    return ST_CORRUPT;
}

/* Images that were copied and are believed. */
static Status check_images(Fill *fill, uint64_t used) {
    const Arena *arena = fill->call->arena;
    for (uint64_t at = fill->result->used_bytes; at < used;) {
        const uint8_t *image = fill->buffer + at;
        Entry head;
        memcpy(&head, image, sizeof head);
        uint64_t bytes = entry_size(&head);
        if (UNLIKELY(align_up(bytes, 8) > used - at)) {
            return corrupt(fill, "length of an entry", bytes, used - at, 0);      /* changed without a new sequence */
        }
        Key key;
        key_init(arena, &key, image + entry_key_offset(head.flags), head.key_length, head.namespace_id);
        uint32_t crc = crc32c(0, image + ENTRY_BODY, bytes - ENTRY_BODY);
        if (UNLIKELY(crc != head.body_crc)) {
            return corrupt(fill, "checksum of an entry", crc, head.body_crc, key.hash);
        }
        if (UNLIKELY(arena_bucket_index(arena, key.hash) != fill->bucket)) {
            return corrupt(fill, "bucket of an entry", fill->bucket, arena_bucket_index(arena, key.hash), key.hash);
        }
        at += align_up(bytes, 8);
    }
    return ST_OK;
}

static Status accept(Fill *fill, uint64_t used, uint32_t entries, uint32_t place) {
    Status s = check_images(fill, used);
    if (s == ST_OK) {
        fill->result->used_bytes = used;
        fill->result->entries += entries;
        fill->place = place;
    }
    return s;
}

/* ST_OK: the bucket is done; ST_BUFFER: the next entry does not fit. */
static Status fill_bucket(Fill *fill) {
    Look look;
    for (int tries = 0;;) {
        Status s = look_safely(fill, &look, tries >= LARGE_TRIES);
        if (s == ST_CORRUPT) {
            return corrupt(fill, "chain of a bucket", fill->bucket, 0, 0);
        }
        uint32_t before = fill->place;
        if (s == ST_OK) {
            s = accept(fill, look.used, look.entries, look.place);
        }
        if (s != ST_OK || look.stop == STOP_END) {
            return s;
        }
        if (look.stop == STOP_ROOM) {
            fill->result->needed_bytes = fill->result->used_bytes == 0 ? align_up(look.bytes, 8) : 0;
            return ST_BUFFER;
        }
        tries = fill->place == before ? tries + 1 : 1;
        if (copy_large(fill, &look)) {
            s = accept(fill, look.used + align_up(look.bytes, 8), 1, look.place + 1);
            if (s != ST_OK) {
                return s;
            }
            tries = 0;
        }
    }
}

static void prefetch_bucket(const Arena *arena, uint64_t index) {
    const Bucket *bucket = &arena->buckets[index];
    for (uint32_t i = 0; i < PLACES; i++) {
        uint64_t linked = load_relaxed(&bucket->place[i]);
        const uint8_t *entry = linked == 0 ? NULL : arena_at(arena, PLACE_OFFSET(linked));
        if (entry != NULL) {
            __builtin_prefetch(entry);
            __builtin_prefetch(entry + CACHE_LINE);
            __builtin_prefetch(entry + 2 * CACHE_LINE);
        }
    }
    uint64_t next = load_relaxed(&bucket->next);
    if (next != 0 && arena_bucket_at(arena, next) != NULL) {
        __builtin_prefetch(arena_bucket_at(arena, next));
    }
}

Status store_fill(Call *call, uint64_t *cursor, uint8_t *buffer, uint64_t capacity, FillResult *result) {
    Arena *arena = call->arena;
    uint64_t buckets = (uint64_t)arena->buckets_per_stripe * arena->stripe_count;
    uint64_t bucket = *cursor >> PLACE_BITS;
    *result = (FillResult){.stripe = arena->stripe_count};
    if (*cursor == CURSOR_END) {
        return ST_OK;
    }
    if (bucket >= buckets) {
        return ST_INVALID;
    }
    result->stripe = (uint32_t)(bucket / arena->buckets_per_stripe);
    uint64_t end = (uint64_t)(result->stripe + 1) * arena->buckets_per_stripe;
    Fill fill = {.call = call, .stripe = &arena->stripes[result->stripe], .buffer = buffer, .capacity = capacity,
                 .bucket = bucket, .place = (uint32_t)(*cursor & ((1u << PLACE_BITS) - 1)), .result = result};
    Status s = ST_OK;
    while (fill.bucket < end) {
        if (fill.bucket + BUCKETS_AHEAD < end) {
            prefetch_bucket(arena, fill.bucket + BUCKETS_AHEAD);
        }
        s = fill_bucket(&fill);
        if (s != ST_OK) {
            break;
        }
        fill.bucket++;
        fill.place = 0;
    }
    if (s == ST_BUFFER || (s == ST_BUSY && result->entries != 0)) {
        /* What was collected is good; the caller meets the trouble with the next step. */
        s = ST_OK;
    }
    if (s == ST_OK) {
        *cursor = fill.bucket >= buckets ? CURSOR_END : CURSOR(fill.bucket, (uint64_t)fill.place);
    }
    return s;
}

/* ---- loading ----------------------------------------------------------------------------------------------------- */
typedef struct Load {
    ApplyQueue queue;         /* its arena is NULL when images are only checked */
    uint64_t first_stripe, end_stripe;
    LoadResult *result;
} Load;

/* No checksum covers a version, but it is the place of a record. */
static bool is_lsn(uint64_t version) { return version != 0 && version % 8 == 0 && version <= LSN_LIMIT; }

/* One image: what is wrong with it, or NULL; *bytes with padding. */
static const char *take_image(Load *load, const uint8_t *image, uint64_t left, uint64_t *bytes, Status *s) {
    if (left < sizeof(Entry)) {
        return "length";
    }
    const uint8_t *body = image + ENTRY_BODY;
    uint64_t length = body_length(body, left - ENTRY_BODY);
    Change change;
    *bytes = align_up(length + ENTRY_BODY, 8);
    if (length == 0 || *bytes > left) {
        return "length";
    }
    memcpy(&change.lsn, image + offsetof(Entry, version), sizeof change.lsn);
    memcpy(&change.crc, image + offsetof(Entry, body_crc), sizeof change.crc);
    if (UNLIKELY(crc32c(0, body, length) != change.crc)) {
        return "body crc";
    }
    if (UNLIKELY(!change_parse(&change, body, length, RECORD_PUT))) {
        return "length";
    }
    for (uint64_t i = length + ENTRY_BODY; i < *bytes; i++) {
        if (UNLIKELY(image[i] != 0)) {
            return "length";
        }
    }
    if (UNLIKELY(!is_lsn(change.lsn))) {
        return "version";
    }
    if (load->queue.arena != NULL) {
        const Arena *arena = load->queue.arena;
        key_init(arena, &change.key, change.key.data, change.key.length, change.key.namespace_id);
        uint64_t stripe = change.key.hash >> arena->stripe_shift;
        if (UNLIKELY(stripe < load->first_stripe || stripe >= load->end_stripe)) {
            return "stripe";
        }
        *s = apply_put_in_queue(&load->queue, &change);
    }
    if (change.lsn > load->result->highest_version) {
        load->result->highest_version = change.lsn;
    }
    return NULL;
}

static void note_version(Arena *arena, uint64_t version) {
    uint64_t noted = load_relaxed(&arena->loaded_version);
    while (noted < version && !cas_u64(&arena->loaded_version, noted, version)) {
        noted = load_relaxed(&arena->loaded_version);
    }
}

Status store_load(Arena *arena, const uint8_t *buffer, uint64_t length, uint32_t first_stripe, uint32_t end_stripe,
                  LoadResult *result) {
    Load load = {.queue.arena = arena, .first_stripe = first_stripe, .end_stripe = end_stripe, .result = result};
    load.queue.alone = arena != NULL && first_stripe == 0 && end_stripe >= arena->stripe_count;
    *result = (LoadResult){0};
    Status s = ST_OK;
    while (s == ST_OK && result->consumed_bytes < length) {
        uint64_t bytes, at = result->consumed_bytes;
        result->stopped = take_image(&load, buffer + at, length - at, &bytes, &s);
        if (result->stopped != NULL) {
            break;
        }
        result->consumed_bytes += bytes;
        result->entries++;
    }
    if (s == ST_OK && arena != NULL) {
        s = apply_flush(&load.queue);
    }
    result->applied = load.queue.applied;
    if (arena != NULL) {
        note_version(arena, result->highest_version);
    }
    return s;
}
