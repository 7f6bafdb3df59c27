/* arena.c: where everything lies: planning, formatting and opening an arena.
 *
 * Invariants:
 *   I1  arena_format writes the header copies last, and their magic word after all else.
 *   I2  arena_open believes a header only if magic, CRC and every region's bounds hold.
 */
#include "arena.h"
#include "lock.h"

#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>
#include <fcntl.h>

#define MIB (1024ULL * 1024)
#define RING_MIN_BYTES (64ULL * 1024)
#define RING_DEFAULT_MAX_BYTES (64 * MIB)
#define STRIPE_SHARE_BYTES (4 * MIB)     /* memory for each stripe, before clamping */
#define ITEM_GUESS_BYTES 256             /* memory for each item when expected_items is not given */
#define PLACES_FILLED 4.5                /* mean places used of six at expected_items: 17 % of buckets overflow */
#define PAGES_MIN 128

static uint64_t floor_power_of_two(uint64_t x) { return 1ULL << (63 - __builtin_clzll(x)); }

uint32_t arena_layout_hash(void) {
    const uint64_t facts[] = {
        LAYOUT_VERSION, sizeof(ArenaHeader), sizeof(Control), sizeof(Namespace), sizeof(Slot), sizeof(Stripe), sizeof(Bucket),
        sizeof(Entry), sizeof(PageMeta), sizeof(RecordHeader), sizeof(pthread_mutex_t), offsetof(Control, ring_tail),
        offsetof(Control, ring_head), offsetof(Control, pages_free), offsetof(Slot, redo), offsetof(Stripe, clear_lsn),
        offsetof(Stripe, count), PLACES, REDO_STORES, NAMESPACE_COUNT, PAGE_BYTES, CLASS_COUNT};
    return crc32c(0, facts, sizeof facts);
}

uint32_t arena_record_seed(const uint8_t store_id[16], uint64_t incarnation) {
    return crc32c(crc32c(0, store_id, 16), &incarnation, 8);
}

uint64_t arena_pid_namespace(void) {
    struct stat st;
    return stat("/proc/self/ns/pid", &st) == 0 ? (uint64_t)st.st_ino : 0;
}

uint64_t arena_value_limit(const Arena *arena) { return min_u64(VALUE_LIMIT - 1, arena->ring_bytes / 4 - 4096); }

uint64_t arena_now_ms(const Arena *arena) { return clock_boot_ms() + arena->wall_minus_boot_ms; }

static const char *libc_name(void) {
#ifdef __GLIBC__
    return "glibc";
#else
    return "other";
#endif
}

/* ---- plan --------------------------------------------------------------------------------------- */
static Status plan_numbers(ArenaPlan *plan, ArenaHeader *h) {
    h->size_bytes = plan->size_bytes & ~(uint64_t)(PAGE_BYTES - 1);
    h->max_size_bytes = plan->max_size_bytes ? plan->max_size_bytes & ~(uint64_t)(PAGE_BYTES - 1) : h->size_bytes;
    uint64_t ring = plan->ring_bytes;
    if (ring == 0) {
        ring = h->size_bytes / 8;
        ring = ring < MIB ? MIB : ring > RING_DEFAULT_MAX_BYTES ? RING_DEFAULT_MAX_BYTES : ring;
    }
    if (ring < RING_MIN_BYTES || ring > (VALUE_LIMIT << 2) || h->max_size_bytes < h->size_bytes) {
        return ST_INVALID;
    }
    h->ring_bytes = floor_power_of_two(ring);
    uint64_t stripes = plan->stripe_count;
    if (stripes == 0) {
        stripes = h->max_size_bytes / STRIPE_SHARE_BYTES;
        stripes = stripes < STRIPES_MIN ? STRIPES_MIN : stripes > STRIPES_MAX ? STRIPES_MAX : floor_power_of_two(stripes);
    }
    if (stripes < STRIPES_MIN || stripes > STRIPES_MAX || (stripes & (stripes - 1)) != 0) {
        return ST_INVALID;
    }
    h->stripe_count = (uint32_t)stripes;
    h->expected_items = plan->expected_items;
    uint64_t items = plan->expected_items ? plan->expected_items : h->max_size_bytes / ITEM_GUESS_BYTES;
    uint64_t buckets = (uint64_t)((double)items / PLACES_FILLED / (double)stripes) + 1;
    if (buckets > UINT32_MAX) {
        return ST_INVALID;
    }
    h->buckets_per_stripe = (uint32_t)buckets;
    return ST_OK;
}

static Status plan_regions(ArenaPlan *plan, ArenaHeader *h) {
    uint64_t at = 2 * HEADER_BYTES;
    h->control_offset = at;
    at += PAGE_BYTES;
    h->namespaces_offset = at;
    at = align_up(at + sizeof(Namespace) * NAMESPACE_COUNT, PAGE_BYTES);
    h->slots_offset = at;
    at = align_up(at + sizeof(Slot) * SLOT_COUNT, PAGE_BYTES);
    h->stripes_offset = at;
    at = align_up(at + sizeof(Stripe) * h->stripe_count, PAGE_BYTES);
    uint64_t most_pages = h->max_size_bytes / PAGE_BYTES;
    h->page_words_offset = at;
    at = align_up(at + 8 * most_pages, PAGE_BYTES);
    h->page_metas_offset = at;
    at = align_up(at + sizeof(PageMeta) * most_pages, PAGE_BYTES);
    h->ring_offset = at;
    at += h->ring_bytes;
    h->buckets_offset = at;
    at = align_up(at + sizeof(Bucket) * (uint64_t)h->buckets_per_stripe * h->stripe_count, PAGE_BYTES);
    h->pages_offset = at;
    uint64_t least = at + PAGE_BYTES * (uint64_t)PAGES_MIN;
    if (h->size_bytes < least) {
        plan->size_bytes = least;
        return ST_INVALID;
    }
    h->page_count = (h->max_size_bytes - at) / PAGE_BYTES;
    h->overflow_page_limit = h->page_count / 4;
    return ST_OK;
}

Status arena_plan(ArenaPlan *plan) {
    ArenaHeader *h = &plan->header;
    memset(h, 0, sizeof *h);
    uint64_t asked = plan->size_bytes, tried;
    Status s;
    plan->size_bytes = asked < MIB ? MIB : asked;
    do {
        /* Page words and buckets grow with the size: asks for more until that is enough for itself. */
        tried = plan->size_bytes;
        s = plan_numbers(plan, h);
        if (s == ST_OK) {
            s = plan_regions(plan, h);
        }
    } while (s != ST_OK && plan->size_bytes > tried);
    if (s != ST_OK || plan->size_bytes > asked) {
        return ST_INVALID;
    }
    if (plan->first_lsn != 0 && (plan->first_lsn % h->ring_bytes != 0 || plan->first_lsn < LSN_GAP)) {
        return ST_INVALID;
    }
    h->layout_version = LAYOUT_VERSION;
    h->layout_hash = arena_layout_hash();
    h->mutex_bytes = sizeof(pthread_mutex_t);
    h->page_bytes = PAGE_BYTES;
    snprintf(h->libc, sizeof h->libc, "%s", libc_name());
    memcpy(h->store_id, plan->store_id, sizeof h->store_id);
    memcpy(h->name, plan->name, sizeof h->name);
    h->name[sizeof h->name - 1] = 0;
    h->incarnation = plan->incarnation;
    h->first_lsn = plan->first_lsn;
    h->flags = plan->flags;
    h->eviction = plan->eviction;
    return ST_OK;
}

/* ---- format ----------------------------------------------------------------------------------------- */
static void read_boot_id(uint8_t boot_id[16]) {
    int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    char text[37] = {0};
    if (fd >= 0) {
        ssize_t got = read(fd, text, 36);
        (void)got;
        close(fd);
    }
    memset(boot_id, 0, 16);
    for (int i = 0, digit = 0; i < 36 && digit < 32; i++) {
        char c = text[i];
        int value = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
        if (value >= 0) {
            boot_id[digit / 2] = (uint8_t)(boot_id[digit / 2] << 4 | value);
            digit++;
        }
    }
}

Status arena_format(uint8_t *base, const ArenaPlan *plan) {
    ArenaHeader h = plan->header;
    if (h.first_lsn < LSN_GAP) {
        return ST_INVALID;      /* a plan made for its numbers only; version 0 would be an entry that is dead at birth */
    }
    h.pid_namespace = arena_pid_namespace();
    read_boot_id(h.boot_id);
    h.created_wall_ms = clock_wall_ms();
    h.wall_minus_boot_ms = h.created_wall_ms - clock_boot_ms();
    if (plan->hash_key_given) {
        memcpy(h.hash_key, plan->hash_key, sizeof h.hash_key);
    } else if (getrandom(h.hash_key, sizeof h.hash_key, 0) != (ssize_t)sizeof h.hash_key) {
        return ST_INVALID;
    }
    Control *control = (Control *)(base + h.control_offset);
    memset(control, 0, sizeof *control);
    control->ring_tail = control->ring_head = control->written_lsn = control->durable_lsn = h.first_lsn;
    control->durable_time_ms = clock_coarse_ms();
    control->page_limit = (h.size_bytes - h.pages_offset) / PAGE_BYTES;
    control->pages_free = control->page_limit;
    control->durability = 1;
    /* Without a log it counts from when the supervisor says it: an arena that nobody serves has nobody to wait for. */
    control->lag_limit_ms = h.flags & HEADER_HAS_LOG ? 5000 : 0;
    if (lock_init(&control->ring_lock) != ST_OK) {
        return ST_INVALID;
    }
    Namespace *namespaces = (Namespace *)(base + h.namespaces_offset);
    namespaces[0].used = 1;
    Stripe *stripes = (Stripe *)(base + h.stripes_offset);
    for (uint32_t i = 0; i < h.stripe_count; i++) {
        if (lock_init(&stripes[i].lock) != ST_OK) {
            return ST_INVALID;
        }
    }
    control->state = STATE_CREATING;
    h.magic = ARENA_MAGIC;
    h.crc = crc32c(0, &h, offsetof(ArenaHeader, crc));
    for (int copy = 0; copy < 2; copy++) {
        uint8_t *to = base + (uint64_t)copy * HEADER_BYTES;
        memcpy(to + 8, (const uint8_t *)&h + 8, sizeof h - 8);
        store_release((uint64_t *)to, h.magic);
    }
    return ST_OK;
}

/* ---- open -------------------------------------------------------------------------------------------- */
static const ArenaHeader *good_header(const uint8_t *base) {
    for (int copy = 0; copy < 2; copy++) {
        const ArenaHeader *h = (const ArenaHeader *)(base + (uint64_t)copy * HEADER_BYTES);
        if (load_acquire(&h->magic) == ARENA_MAGIC && h->crc == crc32c(0, h, offsetof(ArenaHeader, crc))) {
            return h;
        }
    }
    return NULL;
}

static Status mismatch(OpenError *why, const char *what, uint64_t found, uint64_t needed) {
    *why = (OpenError){.what = what, .found = found, .needed = needed};
    return ST_INCOMPATIBLE;
}

static Status check_identity(const ArenaHeader *h, OpenError *why) {
    if (h->layout_version != LAYOUT_VERSION) {
        return mismatch(why, "layout version", h->layout_version, LAYOUT_VERSION);
    }
    if (h->layout_hash != arena_layout_hash()) {
        return mismatch(why, "layout hash", h->layout_hash, arena_layout_hash());
    }
    if (strncmp(h->libc, libc_name(), sizeof h->libc) != 0) {
        return mismatch(why, "C library", 0, 0);
    }
    if (h->mutex_bytes != sizeof(pthread_mutex_t)) {
        return mismatch(why, "size of a mutex", h->mutex_bytes, sizeof(pthread_mutex_t));
    }
    if (h->page_bytes != PAGE_BYTES) {
        return mismatch(why, "page size", h->page_bytes, PAGE_BYTES);
    }
    uint64_t pid_namespace = arena_pid_namespace();
    if (h->pid_namespace != pid_namespace) {
        return mismatch(why, "pid namespace", h->pid_namespace, pid_namespace);
    }
    return ST_OK;
}

/* True if count things of size bytes at offset lie behind *at and below limit; moves *at to their end. */
static bool region_fits(uint64_t *at, uint64_t offset, uint64_t count, uint64_t size, uint64_t limit) {
    if (offset < *at || offset > limit || offset % PAGE_BYTES != 0 || count > (limit - offset) / size) {
        return false;
    }
    *at = offset + count * size;
    return true;
}

static bool header_in_bounds(const ArenaHeader *h, uint64_t mapped_bytes) {
    uint64_t most_pages = h->max_size_bytes / PAGE_BYTES, limit = h->size_bytes, at = 2 * HEADER_BYTES;
    return h->size_bytes <= mapped_bytes && h->size_bytes <= h->max_size_bytes && h->stripe_count >= STRIPES_MIN &&
           h->stripe_count <= STRIPES_MAX && (h->stripe_count & (h->stripe_count - 1)) == 0 &&
           h->ring_bytes >= RING_MIN_BYTES && (h->ring_bytes & (h->ring_bytes - 1)) == 0 && h->buckets_per_stripe > 0 &&
           h->control_offset == at && region_fits(&at, h->control_offset, 1, sizeof(Control), limit) &&
           region_fits(&at, h->namespaces_offset, NAMESPACE_COUNT, sizeof(Namespace), limit) &&
           region_fits(&at, h->slots_offset, SLOT_COUNT, sizeof(Slot), limit) &&
           region_fits(&at, h->stripes_offset, h->stripe_count, sizeof(Stripe), limit) &&
           region_fits(&at, h->page_words_offset, most_pages, sizeof(uint64_t), limit) &&
           region_fits(&at, h->page_metas_offset, most_pages, sizeof(PageMeta), limit) &&
           region_fits(&at, h->ring_offset, h->ring_bytes, 1, limit) &&
           region_fits(&at, h->buckets_offset, (uint64_t)h->buckets_per_stripe * h->stripe_count, sizeof(Bucket), limit) &&
           region_fits(&at, h->pages_offset, h->page_count, PAGE_BYTES, h->max_size_bytes) && h->pages_offset < limit;
}

Status arena_open(Arena *arena, uint8_t *base, uint64_t mapped_bytes, bool writable, OpenError *why) {
    memset(arena, 0, sizeof *arena);
    *why = (OpenError){.what = "header"};
    if (mapped_bytes < 4 * HEADER_BYTES) {
        why->what = "size";
        why->found = mapped_bytes;
        return ST_CORRUPT;
    }
    const ArenaHeader *h = good_header(base);
    if (h == NULL) {
        return ST_CORRUPT;
    }
    Status s = check_identity(h, why);
    if (s != ST_OK) {
        return s;
    }
    if (!header_in_bounds(h, mapped_bytes)) {
        why->what = "size";
        why->found = mapped_bytes;
        why->needed = h->size_bytes;
        return ST_CORRUPT;
    }
    arena->base = base;
    arena->mapped_bytes = mapped_bytes;
    arena->writable = writable;
    arena->has_log = (h->flags & HEADER_HAS_LOG) != 0;
    arena->control = (Control *)(base + h->control_offset);
    arena->namespaces = (Namespace *)(base + h->namespaces_offset);
    arena->slots = (Slot *)(base + h->slots_offset);
    arena->stripes = (Stripe *)(base + h->stripes_offset);
    arena->page_words = (uint64_t *)(base + h->page_words_offset);
    arena->page_metas = (PageMeta *)(base + h->page_metas_offset);
    arena->ring = base + h->ring_offset;
    arena->buckets = (Bucket *)(base + h->buckets_offset);
    arena->pages_offset = h->pages_offset;
    arena->ring_bytes = h->ring_bytes;
    arena->page_count = h->page_count;
    arena->overflow_page_limit = h->overflow_page_limit;
    arena->hash_key[0] = h->hash_key[0];
    arena->hash_key[1] = h->hash_key[1];
    arena->wall_minus_boot_ms = h->wall_minus_boot_ms;
    arena->stripe_count = h->stripe_count;
    arena->stripe_shift = 64 - (uint32_t)__builtin_ctz(h->stripe_count);
    arena->buckets_per_stripe = h->buckets_per_stripe;
    arena->record_seed = arena_record_seed(h->store_id, h->incarnation);
    return ST_OK;
}
