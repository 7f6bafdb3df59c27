/* audit.c: checks every invariant of a stripe under its lock, and what is global; changes nothing.
 *
 * Checked: sequence even and owner word 0; each entry in the bucket of its hash, with its tag, once, in a used block of a slab
 * or run of the stripe that is big enough; version below the tail; CRC; overflow buckets in pages of buckets; used blocks =
 * linked entries and buckets; counters; partial lists; each page owned by somebody who exists.
 */
#include "heap.h"
#include "repair.h"
#include "table.h"

typedef struct Audit {
    Arena *arena;
    uint32_t stripe;
    bool deep;
    Finding *findings;
    uint32_t capacity;
    uint32_t count;
    uint64_t tail;
    uint64_t entries, overflow_buckets, live[NAMESPACE_COUNT];
} Audit;

static void report(Audit *audit, const char *what, uint64_t offset, uint64_t found, uint64_t expected) {
    if (audit->count < audit->capacity) {
        int64_t stripe = audit->stripe < audit->arena->stripe_count ? (int64_t)audit->stripe : -1;
        audit->findings[audit->count] = (Finding){what, stripe, offset, found, expected};
    }
    audit->count++;
}

static void check_duplicates(Audit *audit, const uint64_t *place, const Entry *entry, uint64_t hash) {
    Key key = {.data = entry_key(entry), .length = entry->key_length, .namespace_id = entry->namespace_id, .hash = hash};
    Found found;
    if (table_find(audit->arena, &key, &found) != ST_OK || found.place != place) {
        report(audit, "a key is twice in its bucket, or not found by a look-up", arena_offset(audit->arena, entry),
               found.entry == NULL ? 0 : arena_offset(audit->arena, found.entry), arena_offset(audit->arena, entry));
    }
}

static Status audit_place(void *context, Stripe *stripe, Bucket *bucket, uint64_t *place, Entry *entry) {
    Audit *audit = context;
    Arena *arena = audit->arena;
    uint64_t linked = load_relaxed(place), offset = PLACE_OFFSET(linked);
    (void)bucket;
    audit->entries++;
    if (!heap_holds(arena, audit->stripe, offset, entry_size(entry))) {
        report(audit, "an entry is linked, but its block is not a used block of the stripe", offset, entry_size(entry), 0);
        return ST_OK;
    }
    uint64_t hash = entry_hash(arena, entry);
    if (hash >> arena->stripe_shift != audit->stripe || PLACE_TAG(linked) != hash_tag(hash)) {
        report(audit, "an entry is in the wrong stripe, or has the wrong tag", offset, hash, audit->stripe);
        return ST_OK;
    }
    if (entry->version == 0 || entry->version >= audit->tail) {
        report(audit, "an entry has a version that the log has not reached", offset, entry->version, audit->tail);
    }
    if (entry->namespace_id >= NAMESPACE_COUNT) {
        report(audit, "an entry has an unknown namespace", offset, entry->namespace_id, NAMESPACE_COUNT);
        return ST_OK;
    }
    if (audit->deep) {
        uint32_t crc = crc32c(0, (const uint8_t *)entry + ENTRY_BODY, entry_size(entry) - ENTRY_BODY);
        if (crc != entry->body_crc) {
            report(audit, "an entry's checksum is wrong", offset, entry->body_crc, crc);
        }
        check_duplicates(audit, place, entry, hash);
    }
    audit->live[entry->namespace_id] += !entry_cleared(stripe, entry->version, entry->namespace_id);
    return ST_OK;
}

static Status audit_overflow(void *context, Stripe *stripe, uint64_t offset) {
    Audit *audit = context;
    (void)stripe;
    audit->overflow_buckets++;
    if (!heap_holds(audit->arena, audit->stripe, offset, sizeof(Bucket))) {
        report(audit, "an overflow bucket is not in a page of buckets", offset, 0, 0);
    }
    return ST_OK;
}

/* ---- the stripe's pages: blocks used = what is linked; lists = slabs with both kinds of blocks --------------- */
static uint64_t on_list(const Arena *arena, uint32_t head) {
    uint64_t n = 0;
    for (uint32_t at = head; at != 0 && n <= arena->page_count; at = arena->page_metas[at - 1].next) {
        if (at > arena->page_count) {
            return UINT64_MAX;
        }
        n++;
    }
    return n;
}

static void audit_heap(Audit *audit, const Stripe *stripe) {
    const Arena *arena = audit->arena;
    uint64_t blocks = 0, buckets = 0, pages = 0, partial[CLASS_COUNT] = {0};
    for (uint64_t i = 0; i < arena->page_count; i++) {
        uint64_t word = load_relaxed(&arena->page_words[i]);
        uint32_t kind = PAGE_KIND(word), class_ = PAGE_CLASS(word);
        if ((kind != PAGE_STRIPE && kind != PAGE_BUCKETS) || PAGE_OWNER(word) != audit->stripe) {
            continue;
        }
        pages++;
        if (PAGE_RUN(word) == 0 || class_ >= CLASS_COUNT) {
            continue;
        }
        const PageMeta *meta = &arena->page_metas[i];
        uint64_t used = (uint64_t)(__builtin_popcountll(meta->used[0]) + __builtin_popcountll(meta->used[1]));
        *(kind == PAGE_BUCKETS ? &buckets : &blocks) += used;
        if (class_ != CLASS_RUN && used < heap_slab_blocks(class_)) {
            partial[class_]++;
        }
        if (used == 0 && kind == PAGE_STRIPE) {
            report(audit, "an empty slab was not given back", arena->pages_offset + i * PAGE_BYTES, word, 0);
        }
    }
    if (blocks != audit->entries || buckets != audit->overflow_buckets) {
        report(audit, "used blocks and linked entries differ: a leak", 0, blocks + buckets, audit->entries + audit->overflow_buckets);
    }
    if (pages != stripe->pages) {
        report(audit, "count of pages", 0, stripe->pages, pages);
    }
    for (uint32_t c = 0; c < CLASS_COUNT; c++) {
        uint32_t head = c == CLASS_BUCKETS ? stripe->bucket_partial : stripe->partial[c];
        if (on_list(arena, head) != partial[c]) {
            report(audit, "list of slabs with room", c, on_list(arena, head), partial[c]);
        }
    }
}

static void audit_locked(Audit *audit) {
    Stripe *stripe = &audit->arena->stripes[audit->stripe];
    if (load_relaxed(&stripe->sequence) & 1) {
        report(audit, "sequence is odd though the stripe is clean", 0, load_relaxed(&stripe->sequence), 0);
    }
    if (table_walk(audit->arena, audit->stripe, audit, audit_place, audit_overflow) != ST_OK) {
        report(audit, "a chain leaves the pages or does not end", 0, 0, 0);
        return;
    }
    audit_heap(audit, stripe);
    if (stripe->entries != audit->entries) {
        report(audit, "count of entries", 0, stripe->entries, audit->entries);
    }
    for (uint32_t i = 0; i < NAMESPACE_COUNT; i++) {
        if (load_relaxed(&stripe->count[i]) != audit->live[i]) {
            report(audit, "count of live entries of a namespace", i, load_relaxed(&stripe->count[i]), audit->live[i]);
        }
        if (load_relaxed(&stripe->clear_lsn[i]) > load_relaxed(&stripe->max_clear_lsn)) {
            report(audit, "clear LSN above the stripe's highest", i, stripe->clear_lsn[i], stripe->max_clear_lsn);
        }
    }
}

/* Traffic goes on meanwhile: what is looked at in two words is looked at under a lock, or twice. */
static void audit_global(Audit *audit, Call *call) {
    const Arena *arena = audit->arena;
    const Control *control = arena->control;
    if (ring_lock(call) == ST_OK) {
        /* Head first: it may grow up to the tail at any time, and the tail stands still. */
        uint64_t head = load_acquire(&control->ring_head), tail = load_acquire(&control->ring_tail);
        ring_unlock(call);
        if (tail < head || tail - head > arena->ring_bytes) {
            report(audit, "ring: tail and head", 0, tail, head);
        }
    }
    for (uint64_t i = 0; i < arena->page_count; i++) {
        uint64_t word = load_relaxed(&arena->page_words[i]);
        uint32_t kind = PAGE_KIND(word), owner = PAGE_OWNER(word);
        bool sound = word == PAGE_FREE || (kind == PAGE_SLOT && owner < SLOT_COUNT) ||
                     ((kind == PAGE_STRIPE || kind == PAGE_BUCKETS) && owner < arena->stripe_count);
        if (!sound) {
            report(audit, "a page has an impossible owner", arena->pages_offset + i * PAGE_BYTES, word, 0);
        }
        const uint64_t *slot_owner = &arena->slots[owner % SLOT_COUNT].owner;
        if (kind == PAGE_SLOT && load_acquire(slot_owner) == 0 && load_acquire(&arena->page_words[i]) == word &&
            load_acquire(slot_owner) == 0) {
            report(audit, "a page belongs to a free slot", arena->pages_offset + i * PAGE_BYTES, word, 0);
        }
    }
}

Status audit_stripe(Call *call, uint32_t stripe, bool deep, Finding *findings, uint32_t capacity, uint32_t *count) {
    Audit audit = {.arena = call->arena, .stripe = stripe, .deep = deep, .findings = findings, .capacity = capacity};
    *count = 0;
    if (stripe >= call->arena->stripe_count) {
        audit_global(&audit, call);
        *count = audit.count;
        return ST_OK;
    }
    Status s = stripe_lock(call, stripe);
    if (s != ST_OK) {
        return s;
    }
    audit.tail = load_acquire(&call->arena->control->ring_tail);
    audit_locked(&audit);
    stripe_unlock(call, stripe);
    *count = audit.count;
    return ST_OK;
}
