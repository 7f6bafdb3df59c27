/* compact.c: see compact.h. */
#include "compact.h"
#include "fault.h"
#include "heap.h"
#include "repair.h"
#include "table.h"

#define SLABS_PER_CALL 16u         /* moves under one hold of a lock: at most 16 slabs */
#define VICTIMS_PER_CALL 16u       /* stripes that one writer compacts before it gives up */
#define WINDOWS_PER_CALL 4u

static Status begin(Call *call, uint32_t stripe) {
    Status s = stripe_lock(call, stripe);
    if (s == ST_OK) {
        store_release(&call->arena->stripes[stripe].owner, (uint64_t)call->slot + 1);
    }
    return s;
}

static void end(Call *call, uint32_t stripe, Status s) {
    if (UNLIKELY(s == ST_CORRUPT)) {
        store_release_u32(&call->arena->control->condemned, 1);
    }
    store_release(&call->arena->stripes[stripe].owner, 0);
    stripe_unlock(call, stripe);
}

/* The place that holds this entry; NULL if it is not linked. */
static uint64_t *place_of(const Arena *arena, const Entry *entry) {
    Bucket *bucket = table_bucket(arena, entry_hash(arena, entry));
    uint64_t offset = arena_offset(arena, entry);
    for (uint32_t hops = 0; bucket != NULL && hops < CHAIN_LIMIT; hops++) {
        for (uint32_t i = 0; i < PLACES; i++) {
            if (PLACE_OFFSET(load_relaxed(&bucket->place[i])) == offset) {
                return &bucket->place[i];
            }
        }
        uint64_t next = load_relaxed(&bucket->next);
        bucket = next == 0 ? NULL : arena_bucket_at(arena, next);
    }
    return NULL;
}

static void move(Call *call, uint32_t index, uint64_t *place, const Entry *entry, uint64_t to) {
    Arena *arena = call->arena;
    Stripe *stripe = &arena->stripes[index];
    uint64_t from = arena_offset(arena, entry);
    __atomic_thread_fence(__ATOMIC_RELEASE);
    copy_to_shared(arena->base + to, entry, entry_size(entry));
    KILL_POINT(move_copied);
    stripe_go_odd(stripe);
    KILL_POINT(move_odd);
    store_relaxed(&stripe->moves, load_relaxed(&stripe->moves) + 1);
    KILL_POINT(move_counted);
    store_relaxed(place, PLACE(PLACE_TAG(load_relaxed(place)), to));
    KILL_POINT(move_placed);
    stripe_go_even(stripe);
    KILL_POINT(move_even);
    heap_return(arena, index, from);
    KILL_POINT(move_freed);
    slot_count(call, COUNT_MOVES);
}

/* Moves all blocks of the slab or run at page elsewhere; elsewhere = another slab, or anywhere if `from_pool`.
 * False if one could not be moved. */
static bool evacuate(Call *call, uint32_t index, uint64_t page, bool from_pool) {
    Arena *arena = call->arena;
    uint64_t word = load_relaxed(&arena->page_words[page]);
    uint32_t class_ = PAGE_CLASS(word);
    uint64_t start = arena->pages_offset + page * PAGE_BYTES;
    uint32_t blocks = class_ == CLASS_RUN ? 1 : heap_slab_blocks(class_);
    uint64_t step = class_ == CLASS_RUN ? 0 : heap_class_bytes(class_);
    for (uint32_t block = 0; block < blocks; block++) {
        /* The page is given back with its last block: look at the word again before believing the bitmap. */
        if (load_relaxed(&arena->page_words[page]) != word) {
            return true;
        }
        if (!(arena->page_metas[page].used[block / 64] >> (block % 64) & 1)) {
            continue;
        }
        Entry *entry = (Entry *)(arena->base + start + block * step);
        uint64_t *place = place_of(arena, entry);
        if (place == NULL) {
            return false;
        }
        uint64_t size = entry_size(entry), to = heap_take_elsewhere(arena, index, size, page, from_pool);
        if (to == 0) {
            return false;
        }
        move(call, index, place, entry, to);
    }
    return true;
}

/* ---- dead entries ----------------------------------------------------------------------------------------------- */
static Status sweep_place(void *context, Stripe *stripe, Bucket *bucket, uint64_t *place, Entry *entry) {
    Call *call = context;
    (void)bucket;
    if (!entry_cleared(stripe, entry->version, entry->namespace_id)) {
        return ST_OK;
    }
    uint64_t offset = PLACE_OFFSET(load_relaxed(place));
    stripe_go_odd(stripe);
    KILL_POINT(sweep_odd);
    store_relaxed(place, 0);
    stripe->entries--;
    KILL_POINT(sweep_unlinked);
    stripe_go_even(stripe);
    KILL_POINT(sweep_even);
    heap_return(call->arena, (uint32_t)(stripe - call->arena->stripes), offset);
    return ST_OK;
}

/* Lock held, owner word set. */
static Status sweep_locked(Call *call, uint32_t index) {
    Stripe *stripe = &call->arena->stripes[index];
    uint64_t live = 0;
    for (uint32_t i = 0; i < NAMESPACE_COUNT; i++) {
        live += load_relaxed(&stripe->count[i]);
    }
    return live == stripe->entries ? ST_OK : table_walk(call->arena, index, call, sweep_place, NULL);
}

Status store_sweep(Call *call, uint32_t index) {
    Status s = begin(call, index);
    if (s == ST_OK) {
        s = sweep_locked(call, index);
        end(call, index, s);
    }
    return s;
}

Status store_compact(Call *call, uint32_t stripe, uint64_t *pages) {
    *pages = 0;
    Status s = begin(call, stripe);
    if (s != ST_OK) {
        return s;
    }
    uint64_t before = call->arena->stripes[stripe].pages;
    /* What was cleared is room, too, and cheaper to have than a move. */
    s = sweep_locked(call, stripe);
    for (uint32_t i = 0; i < SLABS_PER_CALL && s == ST_OK; i++) {
        int64_t slab = heap_sparse_slab(call->arena, stripe);
        if (slab < 0 || !evacuate(call, stripe, (uint64_t)slab, false)) {
            break;
        }
    }
    uint64_t after = call->arena->stripes[stripe].pages;
    *pages = before > after ? before - after : 0;
    end(call, stripe, s);
    return s;
}

/* ---- windows ------------------------------------------------------------------------------------------------ */
typedef struct Window {
    uint64_t pages;
    uint64_t failed[WINDOWS_PER_CALL];     /* pages that could not be emptied: no window over them again */
    uint32_t failures;
} Window;

/* The first page behind what can't be moved from this page, 0 if it can: a page of buckets or of a slot, one that failed, or
 * a run of more than half the window: it needs as large a hole as the one that is wanted.  *cost: pages that must move as a
 * whole, so that the end of a long slab is not taken for a cheap page. */
static uint64_t window_obstacle(const Arena *arena, const Window *window, uint64_t page, uint64_t *cost) {
    uint64_t word = load_relaxed(&arena->page_words[page]), head = page;
    bool failed = PAGE_KIND(word) == PAGE_SLOT || PAGE_KIND(word) == PAGE_BUCKETS;
    for (uint32_t i = 0; i < window->failures; i++) {
        failed = failed || window->failed[i] == page;
    }
    *cost = 0;
    if (failed || PAGE_KIND(word) != PAGE_STRIPE) {
        return failed ? page + 1 : 0;
    }
    if (PAGE_CLASS(word) != CLASS_RUN) {
        *cost = PAGE_CLASS(word) < CLASS_BUCKETS ? heap_run_pages(PAGE_CLASS(word)) : 0;
        return 0;
    }
    while (PAGE_RUN(load_relaxed(&arena->page_words[head])) == 0 && head > 0 && page - head <= window->pages / 2) {
        head--;
    }
    uint64_t run = PAGE_RUN(load_relaxed(&arena->page_words[head]));
    *cost = run;
    return run == 0 || run > window->pages / 2 ? page + 1 : 0;
}

/* What emptying the window at page costs; UINT64_MAX if it can't be emptied, and *next = where the next one may begin. */
static uint64_t window_cost(const Arena *arena, const Window *window, uint64_t page, uint64_t *next) {
    uint64_t sum = 0, cost;
    *next = 0;
    for (uint64_t i = window->pages; i-- > 0;) {
        *next = window_obstacle(arena, window, page + i, &cost);
        if (*next != 0) {
            return UINT64_MAX;
        }
        sum += cost;
    }
    return sum;
}

static int64_t window_choose(const Arena *arena, const Window *window) {
    uint64_t limit = min_u64(load_relaxed(&arena->control->page_limit), arena->page_count);
    /* Windows of 4 and 8 pages are for slabs, which start at multiples of their length. */
    uint64_t n = window->pages, align = n < 4 ? 1 : n < 8 ? 4 : 8, stride = n < 64 ? align : n / 8 & ~7ULL, best_cost = UINT64_MAX;
    int64_t best = -1;
    for (uint64_t page = 0, next; page + n <= limit; page = next != 0 ? align_up(next, align) : page + stride) {
        uint64_t cost = window_cost(arena, window, page, &next);
        if (cost < best_cost) {
            best_cost = cost;
            best = (int64_t)page;
        }
    }
    return best;
}

/* Claims what is free in the window for the slot, so that nothing new moves in. */
static void window_fence(Call *call, uint64_t page, uint64_t n) {
    for (uint64_t i = 0; i < n; i++) {
        uint64_t *word = &call->arena->page_words[page + i];
        if (load_relaxed(word) != PAGE_FREE) {
            continue;
        }
        __atomic_fetch_sub(&call->arena->control->pages_free, 1, __ATOMIC_RELAXED);
        if (!cas_u64(word, PAGE_FREE, PAGE_WORD(PAGE_SLOT, CLASS_RUN, call->slot, 1))) {
            __atomic_fetch_add(&call->arena->control->pages_free, 1, __ATOMIC_RELAXED);
        }
        KILL_POINT(page_claimed);
    }
}

static bool window_empty_page(Call *call, uint64_t page) {
    Arena *arena = call->arena;
    uint64_t word = load_relaxed(&arena->page_words[page]);
    if (PAGE_KIND(word) != PAGE_STRIPE) {
        return PAGE_KIND(word) == PAGE_FREE || (PAGE_KIND(word) == PAGE_SLOT && PAGE_OWNER(word) == (uint32_t)call->slot);
    }
    uint32_t stripe = PAGE_OWNER(word);
    if (stripe >= arena->stripe_count || begin(call, stripe) != ST_OK) {
        return false;
    }
    bool done = false;
    word = load_relaxed(&arena->page_words[page]);
    if (PAGE_KIND(word) == PAGE_STRIPE && PAGE_OWNER(word) == stripe) {
        uint64_t head = page;
        for (uint64_t i = 0; PAGE_RUN(load_relaxed(&arena->page_words[head])) == 0 && head > 0 && i < arena->page_count; i++) {
            head--;
        }
        done = evacuate(call, stripe, head, true);
    } else {
        done = true;
    }
    end(call, stripe, ST_OK);
    return done;
}

/* Empties a window of n pages; they are free, side by side, when it returns true (until somebody takes them). */
static bool window_make(Call *call, uint64_t n) {
    Arena *arena = call->arena;
    Window window = {.pages = n};
    while (window.failures < WINDOWS_PER_CALL) {
        int64_t chosen = window_choose(arena, &window);
        if (chosen < 0) {
            return false;
        }
        uint64_t page = (uint64_t)chosen;
        bool emptied = true;
        window_fence(call, page, n);
        for (uint64_t i = 0; i < n && emptied; i++) {
            emptied = window_empty_page(call, page + i);
            window_fence(call, page, n);
            window.failed[window.failures] = page + i;
        }
        heap_free_slot_pages(arena, (uint32_t)call->slot);
        if (emptied) {
            store_relaxed(&arena->control->run_cursor, page);
            return true;
        }
        window.failures++;
    }
    return false;
}

/* Compacts the next few stripes; returns the pages that came free. */
static uint64_t compact_some(Call *call) {
    Arena *arena = call->arena;
    uint64_t gained = 0;
    for (uint32_t i = 0; i < VICTIMS_PER_CALL && i < arena->stripe_count; i++) {
        uint64_t victim = __atomic_fetch_add(&arena->control->victim_cursor, 1, __ATOMIC_RELAXED), pages = 0;
        if (store_compact(call, (uint32_t)(victim % arena->stripe_count), &pages) == ST_OK) {
            gained += pages;
        }
    }
    return gained;
}

bool compact_make_room(Call *call, uint64_t block_bytes) {
    Arena *arena = call->arena;
    uint64_t n = block_bytes <= 512 ? 1 : block_bytes <= 2048 ? 4 : block_bytes <= 8192 ? 8 : (block_bytes + PAGE_BYTES - 1) / PAGE_BYTES;
    uint64_t keep = load_relaxed(&arena->control->page_limit) / HEAP_RESERVE_DIVISOR;
    if (n > load_relaxed(&arena->control->page_limit)) {
        return false;
    }
    uint64_t gained = 0;
    for (uint32_t i = 0; i < arena->stripe_count / VICTIMS_PER_CALL && heap_free_hint(arena) < n + keep; i++) {
        gained += compact_some(call);
    }
    if (n > 1 && heap_count_free(arena) >= n) {
        uint64_t few = (block_bytes + PAGE_BYTES - 1) / PAGE_BYTES;      /* heap_take makes do with them */
        if (window_make(call, n) || (n == 8 && few > 1 && window_make(call, few))) {
            return true;
        }
        /* What would have to move finds no room itself: make more of that. */
        gained += compact_some(call);
    }
    return gained > 0;
}
