/* heap.c: see heap.h. */
#include "heap.h"
#include "fault.h"

#include <string.h>

#define SMALL_LIMIT 512u
#define MEDIUM_LIMIT 2048u
#define SLAB_LIMIT 8192u
#define SMALL_CLASSES 31u            /* 32, 48, ... 512 */
#define SLAB_CLASSES 47u             /* and 640, 768, 896, 1024, ... 8192 */
#define BUCKETS_PER_PAGE (PAGE_BYTES / sizeof(Bucket))

/* ---- classes --------------------------------------------------------------------------------------- */
typedef struct SizeClass {
    uint32_t bytes;
    uint16_t run_pages;
    uint16_t blocks;
    uint32_t inverse;                /* offset in the slab * inverse >> 32 = block: a division takes 40 cycles */
} SizeClass;
#define RUN_PAGES(bytes) ((bytes) <= SMALL_LIMIT ? 1 : (bytes) <= MEDIUM_LIMIT ? 4 : 8)
#define CLASS(bytes) {bytes, RUN_PAGES(bytes), RUN_PAGES(bytes) * PAGE_BYTES / (bytes), (uint32_t)((1ULL << 32) / (bytes) + 1)}
#define FOUR_OF_16(first) CLASS(first), CLASS(first + 16), CLASS(first + 32), CLASS(first + 48)
#define FOUR_OF_DOUBLING(half) CLASS(half / 4 * 5), CLASS(half / 4 * 6), CLASS(half / 4 * 7), CLASS(half / 4 * 8)
static const SizeClass classes[CLASS_COUNT] = {
    FOUR_OF_16(32), FOUR_OF_16(96), FOUR_OF_16(160), FOUR_OF_16(224), FOUR_OF_16(288), FOUR_OF_16(352), FOUR_OF_16(416),
    CLASS(480), CLASS(496), CLASS(512),
    FOUR_OF_DOUBLING(512), FOUR_OF_DOUBLING(1024), FOUR_OF_DOUBLING(2048), FOUR_OF_DOUBLING(4096),
    [CLASS_BUCKETS] = CLASS(64)};
_Static_assert(sizeof(Bucket) == 64, "the class of overflow buckets");

static uint32_t class_of(uint64_t size) {
    if (size <= SMALL_LIMIT) {
        return size <= 32 ? 0 : (uint32_t)((size + 15) / 16) - 2;
    }
    if (size > SLAB_LIMIT) {
        return CLASS_RUN;
    }
    uint32_t doubling = 63 - (uint32_t)__builtin_clzll(size - 1);      /* 512 < size <= 1024: 9 */
    uint32_t quarter = (uint32_t)((size - 1) >> (doubling - 2)) & 3;
    return SMALL_CLASSES + (doubling - 9) * 4 + quarter;
}

uint64_t heap_class_bytes(uint32_t class_) { return classes[class_].bytes; }
uint32_t heap_run_pages(uint32_t class_) { return classes[class_].run_pages; }
uint32_t heap_slab_blocks(uint32_t class_) { return classes[class_].blocks; }

/* The first page of the slab that holds `page`: slabs start at multiples of their length, a power of two. */
static uint64_t slab_head(uint64_t page, uint32_t class_) { return page & ~((uint64_t)classes[class_].run_pages - 1); }
static uint32_t slab_block(uint64_t within, uint32_t class_) { return (uint32_t)(within * classes[class_].inverse >> 32); }

static uint64_t pages_for(uint64_t size) { return (size + PAGE_BYTES - 1) / PAGE_BYTES; }
bool heap_is_run(uint64_t size) { return size > SLAB_LIMIT; }
uint64_t heap_block_bytes(uint64_t size) {
    return heap_is_run(size) ? pages_for(size) * PAGE_BYTES : heap_class_bytes(class_of(size));
}

/* ---- the pool --------------------------------------------------------------------------------------- */
static uint64_t page_offset(const Arena *arena, uint64_t page) { return arena->pages_offset + page * PAGE_BYTES; }

uint64_t heap_free_hint(const Arena *arena) { return load_relaxed(&arena->control->pages_free); }

uint64_t heap_count_free(Arena *arena) {
    uint64_t limit = min_u64(load_relaxed(&arena->control->page_limit), arena->page_count), free_pages = 0;
    for (uint64_t i = 0; i < limit; i++) {
        free_pages += load_relaxed(&arena->page_words[i]) == PAGE_FREE;
    }
    store_relaxed(&arena->control->pages_free, free_pages);
    return free_pages;
}

static bool pool_spares(Arena *arena, uint64_t n, bool use_reserve) {
    uint64_t limit = load_relaxed(&arena->control->page_limit), hint = heap_free_hint(arena);
    uint64_t keep = use_reserve ? 0 : limit / HEAP_RESERVE_DIVISOR;
    /* The count is a hint (a killed process leaves it too low, two at once may take it below 0): a refusal needs a count. */
    return (hint >= n + keep && hint <= limit) || heap_count_free(arena) >= n + keep;
}

static void pages_release(Arena *arena, uint64_t page, uint64_t n) {
    for (uint64_t i = n; i-- > 0;) {
        /* Pairs with the acquire of the next claim: what this stripe wrote there comes before. */
        store_release(&arena->page_words[page + i], PAGE_FREE);
        KILL_POINT(page_freed);
    }
    __atomic_fetch_add(&arena->control->pages_free, n, __ATOMIC_RELAXED);
}

/* Free pages from `page` on, at most n. */
static uint64_t run_free(const Arena *arena, uint64_t page, uint64_t n) {
    uint64_t i = 0;
    while (i < n && load_relaxed(&arena->page_words[page + i]) == PAGE_FREE) {
        i++;
    }
    return i;
}

static bool run_claim(Arena *arena, uint64_t page, uint64_t n, uint64_t head_word) {
    uint64_t word = head_word;
    /* Before the first page: a kill in the middle leaves the hint too low, never too high. */
    __atomic_fetch_sub(&arena->control->pages_free, n, __ATOMIC_RELAXED);
    for (uint64_t i = 0; i < n; i++) {
        if (!cas_u64(&arena->page_words[page + i], PAGE_FREE, word)) {
            pages_release(arena, page, i);
            __atomic_fetch_add(&arena->control->pages_free, n - i, __ATOMIC_RELAXED);
            return false;
        }
        KILL_POINT(page_claimed);
        word = head_word & 0xffffffffULL;
    }
    return true;
}

/* Next fit: goes on where the last search of the kind ended, once round.  -1 = no such run. */
static int64_t pool_claim(Arena *arena, uint64_t n, uint64_t align, uint64_t head_word) {
    uint64_t limit = min_u64(load_relaxed(&arena->control->page_limit), arena->page_count);
    uint64_t *cursor = n == 1 ? &arena->control->small_cursor : &arena->control->run_cursor;
    if (n > limit) {
        return -1;
    }
    uint64_t start = load_relaxed(cursor) / align * align;
    if (start > limit - n) {
        start = 0;
    }
    uint64_t page = start;
    bool wrapped = false;
    for (uint64_t tried = 0; tried <= 2 * limit; tried++) {
        if (page + n > limit) {
            if (wrapped) {
                return -1;
            }
            wrapped = true;
            page = 0;
        }
        if (wrapped && page >= start + align) {
            return -1;
        }
        uint64_t free_pages = run_free(arena, page, n);
        if (free_pages == n && run_claim(arena, page, n, head_word)) {
            store_relaxed(cursor, page + n);
            return (int64_t)page;
        }
        page = free_pages == n ? page + align : align_up(page + free_pages + 1, align);
    }
    return -1;
}

/* ---- partial lists ------------------------------------------------------------------------------------ */
static uint32_t *list_head(Stripe *stripe, uint32_t class_) {
    return class_ == CLASS_BUCKETS ? &stripe->bucket_partial : &stripe->partial[class_];
}

static void list_push(Arena *arena, uint32_t *head, uint64_t page) {
    PageMeta *meta = &arena->page_metas[page];
    meta->previous = 0;
    meta->next = *head;
    if (*head != 0) {
        arena->page_metas[*head - 1].previous = (uint32_t)page + 1;
    }
    *head = (uint32_t)page + 1;
}

static void list_remove(Arena *arena, uint32_t *head, uint64_t page) {
    PageMeta *meta = &arena->page_metas[page];
    if (meta->previous != 0) {
        arena->page_metas[meta->previous - 1].next = meta->next;
    } else {
        *head = meta->next;
    }
    if (meta->next != 0) {
        arena->page_metas[meta->next - 1].previous = meta->previous;
    }
    meta->next = meta->previous = 0;
}

static uint32_t used_blocks(const PageMeta *meta) {
    return (uint32_t)(__builtin_popcountll(meta->used[0]) + __builtin_popcountll(meta->used[1]));
}

static bool slab_full(const PageMeta *meta, uint32_t class_) {
    uint32_t blocks = classes[class_].blocks;
    if (blocks <= 64) {
        return meta->used[0] == UINT64_MAX >> (64 - blocks);
    }
    return meta->used[0] == UINT64_MAX && meta->used[1] == UINT64_MAX >> (128 - blocks);
}

/* ---- slabs ----------------------------------------------------------------------------------------------- */
static uint64_t slab_take(Arena *arena, Stripe *stripe, uint32_t class_, uint64_t page) {
    PageMeta *meta = &arena->page_metas[page];
    uint32_t block;
    if (~meta->used[0] != 0) {
        block = (uint32_t)__builtin_ctzll(~meta->used[0]);
    } else {
        block = 64 + (uint32_t)__builtin_ctzll(~meta->used[1]);
    }
    meta->used[block / 64] |= 1ULL << (block % 64);
    if (slab_full(meta, class_)) {
        list_remove(arena, list_head(stripe, class_), page);
    }
    stripe->used_bytes += heap_class_bytes(class_);
    KILL_POINT(block_taken);
    return page_offset(arena, page) + block * heap_class_bytes(class_);
}

static int64_t slab_make(Arena *arena, uint32_t stripe_index, uint32_t kind, uint32_t class_, bool use_reserve) {
    uint32_t n = heap_run_pages(class_);
    if (!pool_spares(arena, n, use_reserve)) {
        return -1;
    }
    int64_t page = pool_claim(arena, n, n, PAGE_WORD(kind, class_, stripe_index, n));
    if (page < 0) {
        return -1;
    }
    PageMeta *meta = &arena->page_metas[page];
    meta->used[0] = meta->used[1] = 0;
    Stripe *stripe = &arena->stripes[stripe_index];
    list_push(arena, list_head(stripe, class_), (uint64_t)page);
    stripe->pages += n;
    KILL_POINT(slab_made);
    return page;
}

static uint64_t run_take(Arena *arena, uint32_t stripe_index, uint64_t size, bool use_reserve) {
    uint64_t n = pages_for(size);
    if (!pool_spares(arena, n, use_reserve)) {
        return 0;
    }
    int64_t page = pool_claim(arena, n, 1, PAGE_WORD(PAGE_STRIPE, CLASS_RUN, stripe_index, n));
    if (page < 0) {
        return 0;
    }
    arena->page_metas[page].used[0] = 1;
    arena->stripes[stripe_index].pages += n;
    arena->stripes[stripe_index].used_bytes += n * PAGE_BYTES;
    return page_offset(arena, (uint64_t)page);
}

uint64_t heap_take(Arena *arena, uint32_t stripe_index, uint64_t size, bool use_reserve) {
    uint32_t class_ = class_of(size);
    if (class_ == CLASS_RUN) {
        return run_take(arena, stripe_index, size, use_reserve);
    }
    if (!use_reserve && UNLIKELY(!pool_spares(arena, 0, false))) {
        /* Some of the reserve is in slabs that overwrites began: what is free there is theirs, too. */
        return 0;
    }
    Stripe *stripe = &arena->stripes[stripe_index];
    int64_t page = (int64_t)stripe->partial[class_] - 1;
    if (page < 0) {
        page = slab_make(arena, stripe_index, PAGE_STRIPE, class_, use_reserve);
    }
    if (page < 0) {
        /* No run for a slab, but perhaps the few pages that this block alone needs. */
        return size > MEDIUM_LIMIT ? run_take(arena, stripe_index, size, use_reserve) : 0;
    }
    return slab_take(arena, stripe, class_, (uint64_t)page);
}

uint64_t heap_page_of(const Arena *arena, uint64_t offset) {
    uint64_t page = (offset - arena->pages_offset) / PAGE_BYTES;
    uint32_t class_ = PAGE_CLASS(load_relaxed(&arena->page_words[page]));
    return class_ >= CLASS_COUNT || class_ == CLASS_RUN ? page : slab_head(page, class_);
}

void heap_prefetch(const Arena *arena, uint64_t offset) {
    uint64_t page = (offset - arena->pages_offset) / PAGE_BYTES;
    __builtin_prefetch(&arena->page_words[page]);
    __builtin_prefetch(&arena->page_metas[page], 1);
}

static void slab_return(Arena *arena, uint32_t stripe_index, uint32_t class_, uint64_t page, uint64_t offset) {
    Stripe *stripe = &arena->stripes[stripe_index];
    PageMeta *meta = &arena->page_metas[page];
    bool was_full = slab_full(meta, class_);
    uint32_t block = slab_block(offset - page_offset(arena, page), class_);
    meta->used[block / 64] &= ~(1ULL << (block % 64));
    stripe->used_bytes -= heap_class_bytes(class_);
    KILL_POINT(block_returned);
    if (was_full) {
        list_push(arena, list_head(stripe, class_), page);
    }
    if ((meta->used[0] | meta->used[1]) == 0 && class_ != CLASS_BUCKETS) {
        list_remove(arena, list_head(stripe, class_), page);
        stripe->pages -= heap_run_pages(class_);
        pages_release(arena, page, heap_run_pages(class_));
    }
}

void heap_return(Arena *arena, uint32_t stripe_index, uint64_t offset) {
    uint64_t page = heap_page_of(arena, offset);
    uint64_t word = load_relaxed(&arena->page_words[page]);
    if (PAGE_CLASS(word) != CLASS_RUN) {
        slab_return(arena, stripe_index, PAGE_CLASS(word), page, offset);
        return;
    }
    arena->stripes[stripe_index].pages -= PAGE_RUN(word);
    arena->stripes[stripe_index].used_bytes -= PAGE_RUN(word) * (uint64_t)PAGE_BYTES;
    arena->page_metas[page].used[0] = 0;
    pages_release(arena, page, PAGE_RUN(word));
}

/* ---- overflow buckets ---------------------------------------------------------------------------------- */
/* The count is a hint, as that of free pages: a refusal needs a count. */
static bool overflow_admitted(Arena *arena) {
    if (load_relaxed(&arena->control->overflow_pages) < arena->overflow_page_limit) {
        return true;
    }
    uint64_t pages = 0;
    for (uint64_t i = 0; i < arena->page_count; i++) {
        pages += PAGE_KIND(load_relaxed(&arena->page_words[i])) == PAGE_BUCKETS;
    }
    store_relaxed(&arena->control->overflow_pages, pages);
    return pages < arena->overflow_page_limit;
}

uint64_t heap_take_bucket(Arena *arena, uint32_t stripe_index) {
    Stripe *stripe = &arena->stripes[stripe_index];
    int64_t page = (int64_t)stripe->bucket_partial - 1;
    if (page < 0) {
        page = overflow_admitted(arena) ? slab_make(arena, stripe_index, PAGE_BUCKETS, CLASS_BUCKETS, false) : -1;
        if (page < 0) {
            return 0;
        }
        __atomic_fetch_add(&arena->control->overflow_pages, 1, __ATOMIC_RELAXED);
    }
    /* The page may have been another stripe's: see fill_draft. */
    __atomic_thread_fence(__ATOMIC_RELEASE);
    uint64_t offset = slab_take(arena, stripe, CLASS_BUCKETS, (uint64_t)page);
    Bucket *bucket = (Bucket *)(arena->base + offset);
    for (uint32_t i = 0; i < PLACES; i++) {
        store_relaxed(&bucket->place[i], 0);
    }
    store_relaxed(&bucket->access, 0);
    store_relaxed(&bucket->next, 0);
    return offset;
}

void heap_return_bucket(Arena *arena, uint32_t stripe_index, uint64_t offset) {
    slab_return(arena, stripe_index, CLASS_BUCKETS, heap_page_of(arena, offset), offset);
}

/* ---- large drafts ------------------------------------------------------------------------------------------ */
uint64_t heap_claim_for_slot(Arena *arena, uint32_t slot, uint64_t size, bool use_reserve) {
    uint64_t n = pages_for(size);
    if (!pool_spares(arena, n, use_reserve)) {
        return 0;
    }
    int64_t page = pool_claim(arena, n, 1, PAGE_WORD(PAGE_SLOT, CLASS_RUN, slot, n));
    return page < 0 ? 0 : page_offset(arena, (uint64_t)page);
}

static void run_rename(Arena *arena, uint64_t page, uint64_t head_word) {
    uint64_t n = PAGE_RUN(load_relaxed(&arena->page_words[page]));
    for (uint64_t i = n; i-- > 0;) {
        store_release(&arena->page_words[page + i], i == 0 ? head_word | n << 32 : head_word);
        KILL_POINT(draft_adopted);
    }
}

void heap_adopt(Arena *arena, uint32_t slot, uint32_t stripe_index, uint64_t offset) {
    (void)slot;
    uint64_t page = (offset - arena->pages_offset) / PAGE_BYTES;
    uint64_t n = PAGE_RUN(load_relaxed(&arena->page_words[page]));
    arena->page_metas[page].used[0] = 1;
    arena->page_metas[page].used[1] = 0;
    run_rename(arena, page, PAGE_WORD(PAGE_STRIPE, CLASS_RUN, stripe_index, 0));
    arena->stripes[stripe_index].pages += n;
    arena->stripes[stripe_index].used_bytes += n * PAGE_BYTES;
}

void heap_return_slot_run(Arena *arena, uint32_t slot, uint64_t offset) {
    (void)slot;
    uint64_t page = (offset - arena->pages_offset) / PAGE_BYTES;
    pages_release(arena, page, PAGE_RUN(load_relaxed(&arena->page_words[page])));
}

void heap_free_slot_pages(Arena *arena, uint32_t slot) {
    for (uint64_t i = 0; i < arena->page_count; i++) {
        uint64_t word = load_relaxed(&arena->page_words[i]);
        if (PAGE_KIND(word) == PAGE_SLOT && PAGE_OWNER(word) == slot) {
            pages_release(arena, i, 1);
        }
    }
}

/* ---- rebuild ------------------------------------------------------------------------------------------------- */
static bool owned(uint64_t word, uint32_t stripe_index) {
    return PAGE_OWNER(word) == stripe_index && (PAGE_KIND(word) == PAGE_STRIPE || PAGE_KIND(word) == PAGE_BUCKETS);
}

void heap_rebuild_begin(Arena *arena, uint32_t stripe_index) {
    Stripe *stripe = &arena->stripes[stripe_index];
    memset(stripe->partial, 0, sizeof stripe->partial);
    stripe->bucket_partial = 0;
    stripe->used_bytes = 0;
    stripe->pages = 0;
    for (uint64_t i = 0; i < arena->page_count; i++) {
        if (owned(load_relaxed(&arena->page_words[i]), stripe_index)) {
            memset(&arena->page_metas[i], 0, sizeof(PageMeta));
        }
    }
}

/* Finds the slab or run of a block; false unless all of it is the stripe's and the block starts where one can. */
static bool locate(const Arena *arena, uint32_t stripe_index, uint64_t offset, uint64_t size, uint64_t *page,
                   uint32_t *block, uint32_t *class_) {
    if (offset < arena->pages_offset || (offset - arena->pages_offset) / PAGE_BYTES >= arena->page_count) {
        return false;
    }
    if (!owned(load_relaxed(&arena->page_words[(offset - arena->pages_offset) / PAGE_BYTES]), stripe_index)) {
        return false;
    }
    *page = heap_page_of(arena, offset);
    uint64_t word = load_relaxed(&arena->page_words[*page]);
    *class_ = PAGE_CLASS(word);
    uint64_t within = offset - page_offset(arena, *page);
    if (!owned(word, stripe_index) || PAGE_RUN(word) == 0) {
        return false;
    }
    if (*class_ == CLASS_RUN) {
        *block = 0;
        return within == 0 && size <= PAGE_RUN(word) * (uint64_t)PAGE_BYTES;
    }
    if (*class_ >= SLAB_CLASSES && *class_ != CLASS_BUCKETS) {
        return false;
    }
    *block = (uint32_t)(within / heap_class_bytes(*class_));
    return within % heap_class_bytes(*class_) == 0 && *block < heap_slab_blocks(*class_) && size <= heap_class_bytes(*class_);
}

static bool mark(Arena *arena, uint32_t stripe_index, uint64_t offset, uint64_t size, uint32_t kind) {
    uint64_t page;
    uint32_t block, class_;
    if (!locate(arena, stripe_index, offset, size, &page, &block, &class_) ||
        PAGE_KIND(load_relaxed(&arena->page_words[page])) != kind) {
        return false;
    }
    uint64_t bit = 1ULL << (block % 64);
    if (arena->page_metas[page].used[block / 64] & bit) {
        return false;
    }
    arena->page_metas[page].used[block / 64] |= bit;
    return true;
}

bool heap_mark(Arena *arena, uint32_t stripe_index, uint64_t offset, uint64_t size) {
    return mark(arena, stripe_index, offset, size, PAGE_STRIPE);
}

bool heap_mark_bucket(Arena *arena, uint32_t stripe_index, uint64_t offset) {
    return mark(arena, stripe_index, offset, sizeof(Bucket), PAGE_BUCKETS);
}

/* One page (or whole run) of a stripe at rebuild's end; returns how many pages it covers. */
static uint64_t rebuild_page(Arena *arena, Stripe *stripe, uint64_t page, uint64_t word) {
    PageMeta *meta = &arena->page_metas[page];
    uint32_t used = used_blocks(meta), class_ = PAGE_CLASS(word), n = PAGE_RUN(word);
    if (PAGE_KIND(word) == PAGE_BUCKETS || (n != 0 && used != 0)) {
        stripe->pages += n;
        if (class_ == CLASS_RUN) {
            stripe->used_bytes += n * (uint64_t)PAGE_BYTES;
            return n != 0 ? n : 1;
        }
        stripe->used_bytes += used * heap_class_bytes(class_);
        if (used < heap_slab_blocks(class_)) {
            list_push(arena, list_head(stripe, class_), page);
        }
        return n != 0 ? n : 1;
    }
    /* Not linked, or a piece of a run whose claim or return was cut short: back to the pool, page by page. */
    pages_release(arena, page, 1);
    return 1;
}

void heap_rebuild_end(Arena *arena, uint32_t stripe_index) {
    Stripe *stripe = &arena->stripes[stripe_index];
    for (uint64_t i = 0; i < arena->page_count;) {
        uint64_t word = load_relaxed(&arena->page_words[i]);
        i += owned(word, stripe_index) ? rebuild_page(arena, stripe, i, word) : 1;
        KILL_POINT(rebuild_returning);
    }
}

/* ---- compaction ---------------------------------------------------------------------------------------------- */
int64_t heap_sparse_slab(Arena *arena, uint32_t stripe_index) {
    Stripe *stripe = &arena->stripes[stripe_index];
    for (uint32_t class_ = 0; class_ < SLAB_CLASSES; class_++) {
        uint64_t blocks = heap_slab_blocks(class_), free_blocks = 0, steps = 0;
        uint32_t fewest = UINT32_MAX;
        int64_t sparse = -1;
        for (uint32_t at = stripe->partial[class_]; at != 0 && steps++ < arena->page_count;) {
            uint32_t used = used_blocks(&arena->page_metas[at - 1]);
            free_blocks += blocks - used;
            if (used < fewest) {
                fewest = used;
                sparse = (int64_t)at - 1;
            }
            at = arena->page_metas[at - 1].next;
        }
        if (sparse >= 0 && free_blocks - (blocks - fewest) >= fewest) {
            return sparse;
        }
    }
    return -1;
}

uint64_t heap_take_elsewhere(Arena *arena, uint32_t stripe_index, uint64_t size, uint64_t avoid_page, bool from_pool) {
    Stripe *stripe = &arena->stripes[stripe_index];
    uint32_t class_ = PAGE_CLASS(load_relaxed(&arena->page_words[avoid_page]));
    if (class_ == CLASS_RUN) {
        return from_pool ? run_take(arena, stripe_index, size, true) : 0;
    }
    if (class_ >= SLAB_CLASSES || size > heap_class_bytes(class_)) {
        return 0;
    }
    int64_t page = (int64_t)stripe->partial[class_] - 1;
    if (page == (int64_t)avoid_page) {
        page = (int64_t)arena->page_metas[page].next - 1;
    }
    if (page < 0 && from_pool) {
        page = slab_make(arena, stripe_index, PAGE_STRIPE, class_, true);
    }
    return page < 0 ? 0 : slab_take(arena, stripe, class_, (uint64_t)page);
}

bool heap_holds(const Arena *arena, uint32_t stripe_index, uint64_t offset, uint64_t size) {
    uint64_t page;
    uint32_t block, class_;
    return locate(arena, stripe_index, offset, size, &page, &block, &class_) &&
           (arena->page_metas[page].used[block / 64] >> (block % 64) & 1) != 0;
}
