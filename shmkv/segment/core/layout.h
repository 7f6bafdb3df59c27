/* layout.h: every byte that processes share, and nothing else.
 *
 *   offset 0        header, twice (HEADER_BYTES each): immutable after creation, each with a CRC
 *   control         state, ring words, page pool, log state: the words that change
 *   namespaces      64 names with quota and policy
 *   slots           one record for each thread that takes locks
 *   stripes         lock, sequence, heap and counters of each stripe
 *   page words      one 64-bit owner word for each page            (truth)
 *   page metas      bitmap and list links of each page             (derived)
 *   ring            the part of the log that is in memory
 *   buckets         one cache line each, a contiguous range for each stripe
 *   pages           everything else: entries, overflow buckets, drafts
 *
 * Invariants:
 *   I1  Offsets, never pointers; fixed-width integers, never enum, bool or size_t.
 *   I2  Words that writers change do not share a cache line with words that only readers need.
 *   I3  A change here changes LAYOUT_VERSION; the golden header in the tests says so too.
 *   I4  Header, control and ring keep their form in every version, so that a later version can
 *       drain the ring of an arena that it cannot adopt.
 */
#ifndef SHMKV_LAYOUT_H
#define SHMKV_LAYOUT_H

#include "base.h"

#include <pthread.h>

#define ARENA_MAGIC 0x314e52414b4d4853ULL /* "SHMKARN1", little-endian */
#define LAYOUT_VERSION 1u

#define CACHE_LINE 64u
#define PAGE_BYTES 4096u
#define HEADER_BYTES 4096u
#define STRIPES_MIN 16u
#define STRIPES_MAX 512u      /* so that a clear may lock all: the kernel walks 2,048 robust locks */
#define SLOT_COUNT 4096u
#define NAMESPACE_COUNT 64u
#define PLACES 6u
#define REDO_STORES 32u
#define KEY_LIMIT 65535u
#define VALUE_LIMIT (1ULL << 32)
#define LARGE_VALUE_BYTES 65536u
#define CHAIN_LIMIT 65536u    /* bound on buckets in one chain: longer is corruption, not a hang */
#define LSN_GAP (1ULL << 40)  /* distance between the LSNs of two incarnations */
#define LSN_LIMIT (UINT64_MAX >> 2)   /* a verdict holds two more bits */

/* ---- header -------------------------------------------------------------------------------- */
typedef struct ArenaHeader {
    uint64_t magic;
    uint32_t layout_version;
    uint32_t layout_hash;         /* over sizes and offsets of the structs below */
    uint32_t mutex_bytes;         /* sizeof(pthread_mutex_t) */
    uint32_t page_bytes;
    char libc[16];                /* "glibc" or "other": locks of two libcs do not mix */
    uint64_t pid_namespace;       /* inode of /proc/self/ns/pid: lock words hold thread ids of it */
    uint8_t boot_id[16];
    uint8_t store_id[16];
    uint64_t incarnation;
    uint64_t first_lsn;
    uint64_t created_wall_ms;
    uint64_t wall_minus_boot_ms;  /* now = boot clock + this, whatever the wall clock does later */
    uint64_t size_bytes;          /* reserved at creation */
    uint64_t max_size_bytes;      /* what page words, metas and buckets are laid out for */
    uint64_t hash_key[2];
    uint64_t control_offset;
    uint64_t namespaces_offset;
    uint64_t slots_offset;
    uint64_t stripes_offset;
    uint64_t page_words_offset;
    uint64_t page_metas_offset;
    uint64_t ring_offset;
    uint64_t buckets_offset;
    uint64_t pages_offset;
    uint64_t ring_bytes;          /* a power of two */
    uint64_t page_count;          /* at max_size_bytes */
    uint64_t overflow_page_limit; /* pages that may become overflow buckets, for ever */
    uint64_t expected_items;
    uint32_t stripe_count;
    uint32_t buckets_per_stripe;
    uint32_t flags;               /* HEADER_HAS_LOG */
    uint32_t eviction;            /* EVICT_NONE; more to come */
    char name[72];                /* NUL-terminated store name */
    uint32_t spare;
    uint32_t crc;                 /* of everything above */
} ArenaHeader;
#define HEADER_HAS_LOG 1u
#define EVICT_NONE 0u

/* ---- control: words that change ------------------------------------------------------------- */
#define STATE_CREATING 1u
#define STATE_READY 2u
#define STATE_RETIRED 3u

#define LOG_OK 0u
#define LOG_DISK_FULL 1u          /* writes are refused before they happen; reads go on */
#define LOG_FAILED 2u             /* read-only: a second file failed to sync */

typedef struct Control {
    /* line 0: read by every operation, written at the ends of a life */
    uint32_t state;
    uint32_t retired;             /* set under the ring lock; read after every lock */
    uint64_t epoch;               /* adoptions of this arena */
    uint32_t supervisor_pid;
    uint32_t condemned;           /* an audit failed or a lock is beyond repair */
    uint64_t page_limit;          /* pages usable now: growth raises it */
    uint32_t log_state;
    uint32_t lag_limit_ms;
    uint32_t durability;          /* the store's default: 0 none, 1 interval, 2 always */
    uint32_t spare0[5];
    /* line 1: the ring lock */
    pthread_mutex_t ring_lock;
    uint64_t ring_owner;          /* slot + 1 of the last to append; may be stale */
    uint64_t spare1[2];
    /* line 2: moved by writers, under the ring lock */
    uint64_t ring_tail;           /* THE commit point: release-stored last */
    uint64_t need_bytes;          /* a large record waits: leave that much free ... */
    uint64_t need_until_ms;       /* ... until this coarse time */
    uint64_t spare2[5];
    /* line 3: moved by the persister */
    uint64_t ring_head;           /* records below may be overwritten */
    uint64_t written_lsn;         /* in the file, perhaps not synced */
    uint64_t durable_lsn;         /* synced */
    uint64_t durable_time_ms;     /* coarse clock when all below durable_lsn had been collected; without a log: when
                                   * the keeper last gave a sign of life */
    uint32_t durable_word;        /* futex: changes with every move of head or durable_lsn */
    uint32_t durable_waiters;
    uint64_t persister_pid;
    uint64_t spare3[2];
    /* line 4: how the persister sleeps */
    uint32_t persister_word;      /* futex */
    uint32_t persister_sleeps;    /* set and cleared by the persister only */
    uint64_t sync_wanted_lsn;     /* somebody waits for this to be durable */
    uint64_t spare4[6];
    /* line 5: page pool.  All hints: the page words are the truth. */
    uint64_t pages_free;
    uint64_t small_cursor;
    uint64_t run_cursor;
    uint64_t overflow_pages;
    uint64_t victim_cursor;       /* next stripe to compact */
    uint64_t spare5[3];
    /* lines 6-9: counters of slots that were given back (for stats only) */
    uint64_t retained[32];
    uint64_t spare6[8];
} Control;

typedef struct Namespace {
    uint32_t used;
    uint32_t policy;
    uint64_t quota_bytes;
    char name[64];
    uint64_t spare[6];
} Namespace;

/* ---- slots ----------------------------------------------------------------------------------- */
#define VERDICT_EMPTY 0ULL
#define VERDICT_PENDING 1ULL
#define VERDICT_COMMITTED 2ULL
#define VERDICT_ABORTED 3ULL
#define VERDICT(state, lsn) (((lsn) << 2) | (state))
#define VERDICT_STATE(v) ((v) & 3ULL)
#define VERDICT_LSN(v) ((v) >> 2)

/* A store to do: target is an 8-byte aligned offset plus marks. */
#define REDO_VALUE_IS_LSN 1ULL
#define REDO_PER_STRIPE 2ULL      /* offset within the Stripe, once for each stripe of the write */
typedef struct RedoStore {
    uint64_t target;
    uint64_t value;
} RedoStore;

enum { COUNT_GETS, COUNT_HITS, COUNT_SETS, COUNT_DELETES, COUNT_READ_RETRIES, COUNT_READ_LOCKS,
       COUNT_LOCK_WAITS, COUNT_LOG_WAITS, COUNT_REPAIRS, COUNT_REPAIRS_COMMITTED, COUNT_SETTLED,
       COUNT_DOCTORED, COUNT_MOVES, COUNT_FULL, COUNT_SPARE0, COUNT_SPARE1, COUNTERS };

typedef struct Slot {
    /* line 0 */
    uint64_t owner;               /* pid << 32 | tid; 0 = free */
    uint64_t start_time;          /* of the task, clock ticks; 0 = not yet known */
    uint64_t verdict;
    uint32_t redo_count;
    uint32_t kind;                /* what the thread is doing, for the post-mortem */
    uint64_t last_lsn;
    uint64_t spare[3];
    /* lines 1-2 */
    uint64_t counters[COUNTERS];
    /* line 3: which stripe each store belongs to */
    uint16_t redo_stripe[REDO_STORES];
    /* lines 4-11 */
    RedoStore redo[REDO_STORES];
    /* lines 12-13: leases of views; room for the spill of a transaction's redo list */
    uint64_t pins[14];
    uint64_t redo_spill;
    uint64_t spare2;
} Slot;

/* ---- stripes --------------------------------------------------------------------------------- */
#define CLASS_COUNT 64u

typedef struct Stripe {
    /* line 0: all that a reader touches */
    uint64_t sequence;            /* odd while a write links; 64 bits, only goes up */
    uint64_t moves;               /* entries that were moved without a new version */
    uint64_t max_clear_lsn;       /* highest of clear_lsn[] */
    uint32_t waiters;             /* for db.wait: somebody sleeps on the sequence */
    uint32_t spare0;
    uint64_t spare1[4];
    /* line 1: lock */
    pthread_mutex_t lock;
    uint64_t owner;               /* slot + 1 while dirty; 0 = clean */
    uint64_t spare2[2];
    /* derived: the heap.  Heads of lists of slabs that have both free and used blocks. */
    uint32_t partial[CLASS_COUNT];    /* page index + 1; 0 = none */
    uint32_t bucket_partial;          /* pages with free overflow buckets */
    uint32_t spare3;
    uint64_t used_bytes;              /* blocks handed out, by class size */
    uint64_t entries;                 /* linked, dead ones (cleared) included */
    uint64_t pages;                   /* owned, overflow buckets included */
    uint64_t hand;                    /* eviction */
    uint64_t wheel[8];                /* expiry hints */
    uint64_t spare4[3];
    uint64_t clear_lsn[NAMESPACE_COUNT];   /* truth: an entry at or below is dead */
    uint64_t count[NAMESPACE_COUNT];       /* derived: live entries */
} Stripe;

/* ---- buckets and entries ---------------------------------------------------------------------- */
/* A place: 16-bit tag << 48 | offset of the entry.  0 = empty. */
#define PLACE(tag, offset) (((uint64_t)(tag) << 48) | (offset))
#define PLACE_TAG(p) ((p) >> 48)
#define PLACE_OFFSET(p) ((p) & 0xffffffffffffULL)
typedef struct Bucket {
    uint64_t place[PLACES];
    uint64_t access;              /* one byte for each place; readers write it without a lock */
    uint64_t next;                /* offset of the overflow bucket, 0 = end */
} Bucket;

#define ENTRY_PINNED 1u
#define ENTRY_EXPIRES 2u
/* Then: 8 bytes of expiry (wall ms) if ENTRY_EXPIRES; the key, zero-padded to 8; the value. */
typedef struct Entry {
    uint64_t version;             /* LSN of its record */
    uint32_t body_crc;            /* of all that follows, up to the end of the value */
    uint32_t value_length;
    uint16_t key_length;
    uint16_t namespace_id;
    uint8_t type;
    uint8_t flags;
    uint16_t spare;
} Entry;
#define ENTRY_BODY 12u            /* offset of the first byte under body_crc, and in the log */

/* ---- pages ------------------------------------------------------------------------------------ */
/* Page word: kind (8) | size class (8) | owner: stripe or slot (16) | pages in the run, head only (32). */
#define PAGE_FREE 0u
#define PAGE_STRIPE 1u
#define PAGE_SLOT 2u
#define PAGE_BUCKETS 3u           /* type-stable: never anything else again */
#define PAGE_WORD(kind, class_, owner, run) \
    ((uint64_t)(kind) | (uint64_t)(class_) << 8 | (uint64_t)(owner) << 16 | (uint64_t)(run) << 32)
#define PAGE_KIND(w) ((uint32_t)((w) & 0xff))
#define PAGE_CLASS(w) ((uint32_t)((w) >> 8 & 0xff))
#define PAGE_OWNER(w) ((uint32_t)((w) >> 16 & 0xffff))
#define PAGE_RUN(w) ((uint32_t)((w) >> 32))   /* 0 = not the first page of its run */
typedef struct PageMeta {
    uint64_t used[2];             /* one bit for each block of the slab */
    uint32_t next, previous;      /* partial list: page index + 1 */
} PageMeta;

/* ---- log records -------------------------------------------------------------------------------- */
#define RECORD_PUT 1u
#define RECORD_DELETE 2u
#define RECORD_PATCH 3u
#define RECORD_EXPIRY 4u
#define RECORD_CLEAR 5u
#define RECORD_NAMESPACE 6u
#define RECORD_BATCH 7u           /* several puts and deletes of one write (also a transaction) */
#define RECORD_MARK 8u
#define RECORD_PART 9u
#define CAUSE_USER 0u
#define CAUSE_EXPIRED 1u
#define CAUSE_EVICTED 2u
typedef struct RecordHeader {
    uint32_t length;              /* header, body and padding; a multiple of 8 */
    uint32_t header_crc;          /* of the other 28 bytes, seeded by store id and incarnation */
    uint64_t lsn;
    uint64_t durable_before;      /* durable_lsn when it was appended */
    uint32_t body_crc;
    uint8_t kind;
    uint8_t flags;
    uint16_t count;               /* items of a batch; namespace of a clear */
} RecordHeader;

/* put, delete: the entry from ENTRY_BODY on; a delete has no value, its type is the cause.
 * batch: `count` of these, then the bodies, each padded to 8; the record's CRC covers this table. */
typedef struct BatchItem {
    uint32_t length;              /* of the body, without padding */
    uint32_t body_crc;
    uint32_t kind;
    uint32_t spare;
} BatchItem;
typedef struct MarkBody {
    uint64_t wall_ms;
    uint64_t durable_lsn;
} MarkBody;

_Static_assert(sizeof(ArenaHeader) <= HEADER_BYTES, "header fits its page");
_Static_assert(sizeof(pthread_mutex_t) == 40, "the lock lines are laid out for glibc's mutex");
_Static_assert(sizeof(Control) % CACHE_LINE == 0 && sizeof(Control) <= PAGE_BYTES, "control fits a page");
_Static_assert(offsetof(Control, ring_lock) == 64 && offsetof(Control, ring_tail) == 128 &&
               offsetof(Control, ring_head) == 192 && offsetof(Control, persister_word) == 256 &&
               offsetof(Control, pages_free) == 320, "lines do not share writers");
_Static_assert(sizeof(Slot) == 14 * CACHE_LINE, "slots do not share lines");
_Static_assert(sizeof(Stripe) % CACHE_LINE == 0 && offsetof(Stripe, lock) == 64, "stripes do not share lines");
_Static_assert(sizeof(Bucket) == CACHE_LINE, "a bucket is one cache line");
_Static_assert(sizeof(Entry) == 24 && offsetof(Entry, value_length) == ENTRY_BODY, "entry header");
_Static_assert(sizeof(PageMeta) == 24, "page meta");
_Static_assert(sizeof(RecordHeader) == 32 && sizeof(BatchItem) == 16, "record header");

#endif
