/* module_registry.c: which arenas this process has mapped, and which slots its threads have claimed in them.
 *
 * Why here: the core keeps no globals; a slot belongs to a thread and a mapping to a process, so both need a place
 * that outlives any one handle.
 *
 * Invariants:
 *   I1  Two handles of one object with the same access share one mapping.
 *   I2  A mapping is unmapped when no handle keeps it and no thread is inside; its slots are given back before.
 *   I3  A slot is given back only by the process that claimed it: a forked child forgets the claims it inherited.
 *   I4  registry.lock guards lists and counts; slots are claimed, and memory mapped and unmapped, outside of it.
 */
#include "module.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef MADV_WIPEONFORK
#define MADV_WIPEONFORK 18
#endif
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif

__thread CachedClaim claim_cache[CACHED_CLAIMS] __attribute__((tls_model("initial-exec")));
/* Calls of this thread that are counted as inside, innermost first. */
static __thread Op *inside_calls __attribute__((tls_model("initial-exec")));

static uint64_t never_forked = 1;
const volatile uint64_t *fork_word = &never_forked;

static struct {
    pthread_mutex_t lock;
    Mapping *mappings;
    uint64_t last_id;
    uint32_t epoch;               /* forks that made this process */
    bool started;
    pthread_key_t thread_key;     /* its destructor gives back the slots of a thread */
} registry = {.lock = PTHREAD_MUTEX_INITIALIZER};

uint32_t registry_epoch(void) { return __atomic_load_n(&registry.epoch, __ATOMIC_RELAXED); }

static void registry_lock(void) { pthread_mutex_lock(&registry.lock); }
static void registry_unlock(void) { pthread_mutex_unlock(&registry.lock); }
static uint32_t this_thread(void) { return (uint32_t)syscall(SYS_gettid); }

/* ---- claims -------------------------------------------------------------------------------------- */
static void give_back(Mapping *mapping, Claim *claims) {
    while (claims != NULL) {
        Claim *next = claims->next;
        if (claims->slot >= 0) {
            slot_release(&mapping->arena, claims->slot);
        }
        free(claims);
        claims = next;
    }
}

/* Takes the thread's claim out of the list; the lock is held. */
static Claim *unlink_claim(Mapping *mapping, uint32_t tid) {
    for (Claim **at = &mapping->claims; *at != NULL; at = &(*at)->next) {
        if ((*at)->tid == tid) {
            Claim *claim = *at;
            *at = claim->next;
            claim->next = NULL;
            return claim;
        }
    }
    return NULL;
}

static void thread_ended(void *unused) {
    (void)unused;
    uint32_t tid = this_thread();
    memset(claim_cache, 0, sizeof claim_cache);
    registry_lock();
    for (Mapping *m = registry.mappings; m != NULL; m = m->next) {
        /* Under the lock, as the mapping is not kept by this thread: giving back is a few stores. */
        give_back(m, unlink_claim(m, tid));
    }
    registry_unlock();
}

static void forked_child(void);
static void unmap_unused(void);

/* At exit other threads may still be in the core: their slots are left to the reaper. */
static void process_ended(void) {
    if (*fork_word == 0) {
        forked_child();
    }
    registry_lock();
    for (Mapping *m = registry.mappings; m != NULL; m = m->next) {
        if (m->inside == 0) {
            Claim *claims = m->claims;
            m->claims = NULL;
            m->id = ++registry.last_id;
            give_back(m, claims);
        }
    }
    registry_unlock();
}

static Claim *find_claim(Mapping *mapping, uint32_t tid) {
    Claim *claim = mapping->claims;
    while (claim != NULL && claim->tid != tid) {
        claim = claim->next;
    }
    return claim;
}

Claim *registry_claim(Mapping *mapping, Status *status) {
    *status = ST_OK;
    if (*fork_word == 0) {
        forked_child();
    }
    uint32_t tid = this_thread();
    registry_lock();
    Claim *claim = find_claim(mapping, tid);
    registry_unlock();
    if (claim == NULL) {
        claim = calloc(1, sizeof *claim);
        if (claim == NULL) {
            *status = ST_FULL;
            return NULL;
        }
        claim->tid = tid;
        claim->slot = -1;
        if (mapping->arena.writable) {
            *status = slot_claim(&mapping->arena, (uint32_t)getpid(), tid, &claim->slot);
        }
        if (*status != ST_OK) {
            free(claim);
            return NULL;
        }
        registry_lock();
        claim->next = mapping->claims;
        mapping->claims = claim;
        registry_unlock();
        pthread_setspecific(registry.thread_key, &registry);
    }
    claim_cache[mapping->id % CACHED_CLAIMS] = (CachedClaim){.mapping_id = mapping->id, .claim = claim};
    return claim;
}

/* ---- counting who is inside -------------------------------------------------------------------------- */
void registry_enter(Op *op) {
    Handle *handle = op->handle;
    registry_lock();
    if (handle->epoch != registry.epoch) {
        handle->epoch = registry.epoch;
        handle->inside = 0;
    }
    handle->inside++;
    op->mapping->inside++;
    op->epoch = registry.epoch;
    registry_unlock();
    op->inside = true;
    op->outer = inside_calls;
    inside_calls = op;
}

void registry_leave(Op *op) {
    inside_calls = op->outer;
    op->inside = false;
    registry_lock();
    op->handle->inside--;
    op->mapping->inside--;
    bool unused = op->mapping->handles == 0 && op->mapping->inside == 0;
    registry_unlock();
    if (op->handle->closed) {
        futex_wake(&op->handle->inside, INT32_MAX);
    }
    if (unused) {
        unmap_unused();
    }
}

/* A call of another thread through this handle is inside: close has to wait. */
bool registry_others_inside(const Handle *handle, uint32_t *seen) {
    uint32_t own = 0;
    for (const Op *op = inside_calls; op != NULL; op = op->outer) {
        own += op->handle == handle;
    }
    registry_lock();
    *seen = handle->epoch == registry.epoch ? handle->inside : 0;
    registry_unlock();
    return *seen > own;
}

/* ---- fork ------------------------------------------------------------------------------------------------ */
static void make_fork_word(void) {
    void *page = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED) {
        return;
    }
    if (madvise(page, PAGE_BYTES, MADV_WIPEONFORK) != 0) {
        munmap(page, PAGE_BYTES);
        return;
    }
    *(uint64_t *)page = 1;
    fork_word = page;
}

/* The child has one thread, this one: nobody else is inside, no claim is its own. */
static void forked_child(void) {
    pthread_mutex_init(&registry.lock, NULL);
    registry.epoch++;
    *(uint64_t *)fork_word = 1;
    memset(claim_cache, 0, sizeof claim_cache);
    for (Mapping *m = registry.mappings; m != NULL; m = m->next) {
        m->id = ++registry.last_id;
        m->inside = 0;
        while (m->claims != NULL) {
            Claim *next = m->claims->next;
            free(m->claims);
            m->claims = next;
        }
    }
    /* A fork in a Python signal handler: calls further up this stack go on in the child. */
    for (Op *op = inside_calls; op != NULL; op = op->outer) {
        op->handle->epoch = registry.epoch;
        op->handle->inside = 0;
        op->claim = NULL;
    }
    for (Op *op = inside_calls; op != NULL; op = op->outer) {
        op->handle->inside++;
        op->mapping->inside++;
    }
}

bool registry_start(void) {
    bool done = true;
    registry_lock();
    if (!registry.started) {
        make_fork_word();
        done = pthread_key_create(&registry.thread_key, thread_ended) == 0 &&
               pthread_atfork(registry_lock, registry_unlock, forked_child) == 0 && atexit(process_ended) == 0;
        registry.started = done;
    }
    registry_unlock();
    return done;
}

/* ---- mappings -------------------------------------------------------------------------------------------- */
/* Locks, ring and slots are touched by every process: a fault for each page later costs 40 times as much. */
static void prepare(const Mapping *mapping, bool read_only, bool prefault) {
    const Arena *arena = &mapping->arena;
    uint64_t bytes = (uint64_t)(arena->ring - arena->base) + arena->ring_bytes;
    if (prefault) {
        madvise(arena->base, bytes, read_only ? MADV_POPULATE_READ : MADV_POPULATE_WRITE);
    }
    madvise(arena->base, arena->mapped_bytes, MADV_DONTDUMP);
}

static bool take_header(Mapping *mapping) {
    const ArenaHeader *header = header_choose(mapping->arena.base);
    if (header == NULL) {
        return false;
    }
    memcpy(mapping->store_id, header->store_id, sizeof mapping->store_id);
    mapping->incarnation = header->incarnation;
    mapping->first_lsn = header->first_lsn;
    return true;
}

/* At a multiple of the size of a huge page, without which the kernel can map none. */
static void *map_aligned(int fd, size_t bytes, int protection) {
    uint8_t *room = mmap(NULL, bytes + HUGE_PAGE_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (room == MAP_FAILED) {
        return MAP_FAILED;
    }
    uint8_t *start = (uint8_t *)align_up((uint64_t)(uintptr_t)room, HUGE_PAGE_BYTES);
    void *base = mmap(start, bytes, protection, MAP_SHARED | MAP_FIXED, fd, 0);
    if (base == MAP_FAILED) {
        munmap(room, bytes + HUGE_PAGE_BYTES);
        return MAP_FAILED;
    }
    /* What is left of the room before and after (both multiples of a page). */
    size_t before = (size_t)(start - room), end = align_up(bytes, PAGE_BYTES);
    if (before != 0) {
        munmap(room, before);
    }
    if (bytes + HUGE_PAGE_BYTES > before + end) {
        munmap(start + end, bytes + HUGE_PAGE_BYTES - before - end);
    }
    return base;
}

static Mapping *map_object(ModuleState *state, int fd, const struct stat *st, bool read_only, bool prefault) {
    if (st->st_size < 4 * (off_t)HEADER_BYTES) {
        raise_error(state, ERROR_CORRUPT_DATA, "the shared object has %lld bytes, an arena at least %d: it is no "
                    "store, or its creation has not got far; start the store's supervisor", (long long)st->st_size,
                    4 * HEADER_BYTES);
        return NULL;
    }
    Mapping *mapping = calloc(1, sizeof *mapping);
    if (mapping == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    size_t bytes = (size_t)st->st_size;
    void *base;
    OpenError why;
    Status s = ST_OK;
    Py_BEGIN_ALLOW_THREADS
    base = map_aligned(fd, bytes, read_only ? PROT_READ : PROT_READ | PROT_WRITE);
    if (base != MAP_FAILED) {
        s = arena_open(&mapping->arena, base, bytes, !read_only, &why);
        if (s == ST_OK && !take_header(mapping)) {
            s = ST_CORRUPT;
        }
        if (s == ST_OK) {
            prepare(mapping, read_only, prefault);
        }
    }
    Py_END_ALLOW_THREADS
    if (base != MAP_FAILED && s == ST_OK) {
        mapping->device = st->st_dev;
        mapping->inode = st->st_ino;
        mapping->handles = 1;
        return mapping;
    }
    if (base == MAP_FAILED) {
        PyErr_SetFromErrno(PyExc_OSError);
    } else {
        munmap(base, bytes);
        raise_open_error(state, s, &why);
    }
    free(mapping);
    return NULL;
}

static void unmap(Mapping *mapping) {
    give_back(mapping, mapping->claims);
    munmap(mapping->arena.base, mapping->arena.mapped_bytes);
    free(mapping);
}

static Mapping *find_mapping(const struct stat *st, bool read_only) {
    for (Mapping *m = registry.mappings; m != NULL; m = m->next) {
        if (m->device == st->st_dev && m->inode == st->st_ino && m->arena.writable == !read_only) {
            m->handles++;
            return m;
        }
    }
    return NULL;
}

Mapping *registry_open(ModuleState *state, int fd, bool read_only, bool prefault) {
    struct stat st;
    if (fstat(fd, &st) != 0) {
        return (Mapping *)PyErr_SetFromErrno(PyExc_OSError);
    }
    if (*fork_word == 0) {
        forked_child();
    }
    registry_lock();
    Mapping *found = find_mapping(&st, read_only);
    registry_unlock();
    if (found != NULL) {
        return found;
    }
    Mapping *made = map_object(state, fd, &st, read_only, prefault);
    if (made == NULL) {
        return NULL;
    }
    registry_lock();
    found = find_mapping(&st, read_only);
    if (found == NULL) {
        made->id = ++registry.last_id;
        made->next = registry.mappings;
        registry.mappings = made;
    }
    registry_unlock();
    if (found != NULL) {
        unmap(made);
        return found;
    }
    return made;
}

void mapping_keep(Mapping *mapping) {
    registry_lock();
    mapping->handles++;
    registry_unlock();
}

/* Unmaps what nobody needs any more: a mapping may have waited for the last call to come out. */
static void unmap_unused(void) {
    Mapping *unused = NULL;
    registry_lock();
    for (Mapping **at = &registry.mappings; *at != NULL;) {
        Mapping *m = *at;
        if (m->handles == 0 && m->inside == 0) {
            *at = m->next;
            m->next = unused;
            unused = m;
        } else {
            at = &m->next;
        }
    }
    registry_unlock();
    while (unused != NULL) {
        Mapping *next = unused->next;
        unmap(unused);
        unused = next;
    }
}

void mapping_release(Mapping *mapping) {
    registry_lock();
    mapping->handles--;
    registry_unlock();
    unmap_unused();
}
