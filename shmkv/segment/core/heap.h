/* heap.h: memory for entries: slabs of equal blocks, owned by a stripe, in runs of pages from a common pool.
 *
 *   size <= 512     classes of 16 bytes, slabs of 1 page
 *   size <= 2,048   four classes a doubling, slabs of 4 pages
 *   size <= 8,192   four classes a doubling, slabs of 8 pages
 *   above           a run of whole pages
 *
 * Invariants:
 *   I1  The page words are the truth: each page of a run names its owner, the first one also class and length.
 *   I2  All else (bitmaps, lists, sums) is derived; heap_rebuild_* makes it anew from what is linked.
 *   I3  A slab's run starts at a multiple of its length, so any block leads to the head of its slab.
 *   I4  A stripe's heap is touched only under that stripe's lock; pages change hands by compare-and-swap.
 *   I5  Pages of overflow buckets (PAGE_BUCKETS) never become anything else: readers write access bytes there.
 *   I6  An empty slab goes back to the pool at once, so that memory is reused across sizes and stripes.
 */
#ifndef SHMKV_HEAP_H
#define SHMKV_HEAP_H

#include "arena.h"

#define CLASS_RUN 63u        /* a run of whole pages */
#define CLASS_BUCKETS 62u

/* Share of the pages that new keys and growth must leave: for drafts of overwrites, deletes and moves. */
#define HEAP_RESERVE_DIVISOR 50

/* Offset of a block of at least size bytes, 0 if there is none.  use_reserve: may take the last 2 %. */
uint64_t heap_take(Arena *arena, uint32_t stripe, uint64_t size, bool use_reserve);
/* Gives back a block of the stripe.  The caller has stored the odd sequence of the unlink before. */
void heap_return(Arena *arena, uint32_t stripe, uint64_t offset);
/* Fetches what heap_return will need. */
void heap_prefetch(const Arena *arena, uint64_t offset);
/* Bytes that a block for `size` takes. */
uint64_t heap_block_bytes(uint64_t size);
/* The smallest block lies in a slab (it may share pages) or in a run of its own. */
bool heap_is_run(uint64_t size);

/* One zeroed overflow bucket; 0 if the limit of such pages is reached or the pool is empty. */
uint64_t heap_take_bucket(Arena *arena, uint32_t stripe);
void heap_return_bucket(Arena *arena, uint32_t stripe, uint64_t offset);

/* Large drafts, made without a lock: a run owned by a slot, then handed to a stripe under its lock. */
uint64_t heap_claim_for_slot(Arena *arena, uint32_t slot, uint64_t size, bool use_reserve);
void heap_adopt(Arena *arena, uint32_t slot, uint32_t stripe, uint64_t offset);
void heap_return_slot_run(Arena *arena, uint32_t slot, uint64_t offset);
/* Frees every page that the slot owns. */
void heap_free_slot_pages(Arena *arena, uint32_t slot);

/* Repair: begin, mark each linked block once, end.  heap_mark* are false if the block is none of the stripe's. */
void heap_rebuild_begin(Arena *arena, uint32_t stripe);
bool heap_mark(Arena *arena, uint32_t stripe, uint64_t offset, uint64_t size);
bool heap_mark_bucket(Arena *arena, uint32_t stripe, uint64_t offset);
void heap_rebuild_end(Arena *arena, uint32_t stripe);

/* Free pages by counting the page words; also corrects the hint. */
uint64_t heap_count_free(Arena *arena);
uint64_t heap_free_hint(const Arena *arena);

/* Compaction: the page index of a slab of the stripe whose blocks would fit into the other slabs of its class,
 * -1 if there is none.  Then the caller moves its blocks; heap_take never hands out one of `avoid`'s. */
int64_t heap_sparse_slab(Arena *arena, uint32_t stripe);
/* As heap_take for a block of the same class as the slab (or run) at `avoid_page`, from another slab of the stripe, or,
 * if `from_pool`, from a new one (reserve included). */
uint64_t heap_take_elsewhere(Arena *arena, uint32_t stripe, uint64_t size, uint64_t avoid_page, bool from_pool);
/* Index of the head page of the block at offset. */
uint64_t heap_page_of(const Arena *arena, uint64_t offset);

/* For the audit: is there a used block of exactly that stripe at the offset, able to hold size? */
bool heap_holds(const Arena *arena, uint32_t stripe, uint64_t offset, uint64_t size);
uint32_t heap_slab_blocks(uint32_t class_);
uint64_t heap_class_bytes(uint32_t class_);
uint32_t heap_run_pages(uint32_t class_);

#endif
