/* module_format.c: functions of the module: planning and making an arena, reading headers, checking log records.
 *
 * Invariants:
 *   I1  read_header maps nothing and believes nothing: it works on any file, and on headers of any layout version.
 */
#include "module.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

const ArenaHeader *header_choose(const uint8_t *base) {
    for (int copy = 0; copy < 2; copy++) {
        const ArenaHeader *h = (const ArenaHeader *)(base + (uint64_t)copy * HEADER_BYTES);
        if (load_acquire(&h->magic) == ARENA_MAGIC && h->crc == crc32c(0, h, offsetof(ArenaHeader, crc))) {
            return h;
        }
    }
    return NULL;
}

static bool plan_or_raise(ArenaPlan *plan) {
    uint64_t asked = plan->size_bytes;
    Status s = arena_plan(plan);
    if (s == ST_OK) {
        return true;
    }
    if (plan->size_bytes > asked) {
        PyErr_Format(PyExc_ValueError, "%llu bytes are too few for a store with these settings: it needs at least "
                     "%llu; give more memory, or a smaller ring or expected_items", (unsigned long long)asked,
                     (unsigned long long)plan->size_bytes);
    } else {
        PyErr_Format(PyExc_ValueError, "a setting is out of range: ring_bytes %llu (65536 to 2**34), stripes %u (a "
                     "power of two, %u to %u), max_size_bytes %llu (at least size_bytes, %llu), expected_items "
                     "%llu, first_lsn %llu (a multiple of the ring's size, at least "
                     "2**40)", (unsigned long long)plan->ring_bytes, plan->stripe_count,
                     STRIPES_MIN, STRIPES_MAX, (unsigned long long)plan->max_size_bytes, (unsigned long long)asked,
                     (unsigned long long)plan->expected_items, (unsigned long long)plan->first_lsn);
    }
    return false;
}

PyObject *function_plan(PyObject *module, PyObject *args, PyObject *kwargs) {
    (void)module;
    static char *names[] = {"size_bytes", "max_size_bytes", "ring_bytes", "expected_items", "stripes", NULL};
    unsigned long long size = 0, max_size = 0, ring = 0, items = 0;
    unsigned int stripes = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|$KKKKI:plan", names, &size, &max_size, &ring, &items, &stripes)) {
        return NULL;
    }
    ArenaPlan plan = {.size_bytes = size, .max_size_bytes = max_size, .ring_bytes = ring, .expected_items = items,
                      .stripe_count = stripes};
    if (!plan_or_raise(&plan)) {
        return NULL;
    }
    const ArenaHeader *h = &plan.header;
    return Py_BuildValue("{sKsKsKsKsKsKsKsKsK}",
                         "size_bytes", (unsigned long long)h->size_bytes,
                         "max_size_bytes", (unsigned long long)h->max_size_bytes,
                         "ring_bytes", (unsigned long long)h->ring_bytes,
                         "ring_offset", (unsigned long long)h->ring_offset,
                         "stripes", (unsigned long long)h->stripe_count,
                         "buckets", (unsigned long long)h->stripe_count * h->buckets_per_stripe,
                         "expected_items", (unsigned long long)h->expected_items,
                         "pages_offset", (unsigned long long)h->pages_offset,
                         "page_count", (unsigned long long)h->page_count);
}

static bool format_fd(int fd, const ArenaPlan *plan) {
    struct stat st;
    uint64_t bytes = plan->header.size_bytes;
    if (fstat(fd, &st) != 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        return false;
    }
    if ((uint64_t)st.st_size < bytes) {
        PyErr_Format(PyExc_ValueError, "the object has %lld bytes, the arena needs %llu: reserve them first",
                     (long long)st.st_size, (unsigned long long)bytes);
        return false;
    }
    Status s = ST_OK;
    void *base;
    Py_BEGIN_ALLOW_THREADS
    base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (base != MAP_FAILED) {
        s = arena_format(base, plan);
        munmap(base, bytes);
    }
    Py_END_ALLOW_THREADS
    if (base == MAP_FAILED) {
        PyErr_SetFromErrno(PyExc_OSError);
    } else if (s != ST_OK) {
        PyErr_SetString(PyExc_OSError, "the system gave no process-shared locks or no random bytes");
    }
    return base != MAP_FAILED && s == ST_OK;
}

/* Converter: None leaves the buffer empty. */
static int buffer_or_none(PyObject *object, void *to) {
    Py_buffer *buffer = to;
    if (object == NULL) {
        PyBuffer_Release(buffer);
        return 1;
    }
    return object == Py_None || PyObject_GetBuffer(object, buffer, PyBUF_SIMPLE) == 0 ? Py_CLEANUP_SUPPORTED : 0;
}

PyObject *function_format_arena(PyObject *module, PyObject *args, PyObject *kwargs) {
    (void)module;
    static char *names[] = {"fd", "size_bytes", "max_size_bytes", "ring_bytes", "expected_items", "stripes", "name",
                            "store_id",
                            "incarnation", "first_lsn", "has_log", "hash_key", NULL};
    int fd, has_log = -1;
    unsigned long long size = 0, max_size = 0, ring = 0, items = 0, incarnation = 0, first_lsn = 0;
    unsigned int stripes = 0;
    const char *name = NULL;
    Py_buffer store_id = {0}, hash_key = {0};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "i|$KKKKIsy*KKpO&:format_arena", names, &fd, &size, &max_size,
                                     &ring, &items, &stripes, &name, &store_id, &incarnation, &first_lsn, &has_log,
                                     buffer_or_none, &hash_key)) {
        PyBuffer_Release(&store_id);
        return NULL;
    }
    ArenaPlan plan = {.size_bytes = size, .max_size_bytes = max_size, .ring_bytes = ring, .expected_items = items,
                      .stripe_count = stripes, .flags = has_log > 0 ? HEADER_HAS_LOG : 0, .incarnation = incarnation,
                      .first_lsn = first_lsn};
    bool done = false;
    if (name == NULL || store_id.buf == NULL || incarnation == 0 || first_lsn == 0 || has_log < 0) {
        PyErr_SetString(PyExc_TypeError, "format_arena() needs name, store_id, incarnation (1 or more), first_lsn "
                        "and has_log");
    } else if (store_id.len != sizeof plan.store_id || strlen(name) >= sizeof plan.name) {
        PyErr_Format(PyExc_ValueError, "store_id has %zd bytes instead of 16, or name %zu bytes instead of 71 or less",
                     store_id.len, strlen(name));
    } else if (hash_key.buf != NULL && hash_key.len != sizeof plan.hash_key) {
        PyErr_Format(PyExc_ValueError, "hash_key has %zd bytes instead of 16", hash_key.len);
    } else {
        if (hash_key.buf != NULL) {
            memcpy(plan.hash_key, hash_key.buf, sizeof plan.hash_key);
            plan.hash_key_given = true;
        }
        memcpy(plan.store_id, store_id.buf, sizeof plan.store_id);
        memcpy(plan.name, name, strlen(name));
        done = plan_or_raise(&plan) && format_fd(fd, &plan);
    }
    PyBuffer_Release(&store_id);
    PyBuffer_Release(&hash_key);
    if (!done) {
        return NULL;
    }
    Py_RETURN_NONE;
}

PyObject *function_read_header(PyObject *module, PyObject *fd_object) {
    /* Two headers, and the control page: its place is the same in every layout. */
    uint64_t words[(2 * HEADER_BYTES + PAGE_BYTES) / 8];
    int fd = PyObject_AsFileDescriptor(fd_object);
    if (fd < 0) {
        return NULL;
    }
    memset(words, 0, sizeof words);
    ssize_t got = pread(fd, words, sizeof words, 0);
    if (got < 0) {
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    const uint8_t *base = (const uint8_t *)words;
    const ArenaHeader *header = got < (ssize_t)sizeof words ? NULL : header_choose(base);
    if (header == NULL || header->control_offset != 2 * HEADER_BYTES) {
        raise_error(PyModule_GetState(module), ERROR_CORRUPT_DATA, "neither copy of the header is good (%zd bytes "
                    "read, magic %016llx and %016llx, needed %016llx): this is no arena, or its creation was cut "
                    "off; start the store's supervisor, which makes a new one", got, (unsigned long long)words[0],
                    (unsigned long long)words[HEADER_BYTES / 8], (unsigned long long)ARENA_MAGIC);
        return NULL;
    }
    return info_dict(header, (const Control *)(base + header->control_offset));
}

/* ---- log records --------------------------------------------------------------------------------------- */
PyObject *replay_data(ModuleState *state, Arena *arena, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"data", "store_id", "incarnation", "first_lsn", "limit_lsn", "limit_wall_ms", NULL};
    Py_buffer data = {0}, store_id = {0};
    unsigned long long incarnation = 0, first_lsn = 0, limit_lsn = UINT64_MAX, limit_wall_ms = UINT64_MAX;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "y*|$y*KKKK", names, &data, &store_id, &incarnation, &first_lsn,
                                     &limit_lsn, &limit_wall_ms)) {
        return NULL;
    }
    PyObject *result = NULL;
    ReplayResult r = {0};
    Status s = ST_OK;
    if (store_id.len != 16) {
        PyErr_Format(PyExc_ValueError, "store_id has 16 bytes, not %zd", store_id.len);
        goto done;
    }
    uint32_t seed = arena_record_seed(store_id.buf, incarnation);
    const ReplayLimits limits = {.lsn = limit_lsn, .wall_ms = limit_wall_ms};
    Py_BEGIN_ALLOW_THREADS
    s = replay(arena, seed, data.buf, (uint64_t)data.len, first_lsn, &limits, &r);
    Py_END_ALLOW_THREADS
    if (s == ST_FULL) {
        raise_error(state, ERROR_MEMORY_LIMIT, "the arena is too small for what the log holds: it is full at LSN "
                    "%llu; start the store with more memory", (unsigned long long)r.next_lsn);
    } else if (s != ST_OK) {
        raise_error(state, ERROR_CORRUPT_DATA, "the arena cannot take the log's records: status %d at LSN %llu; "
                    "start anew",
                    (int)s, (unsigned long long)r.next_lsn);
    } else {
        result = Py_BuildValue("{sKsKsKsKsKsKsKsz}", "consumed_bytes", (unsigned long long)r.consumed_bytes, "next_lsn",
                               (unsigned long long)r.next_lsn, "records", (unsigned long long)r.records, "applied",
                               (unsigned long long)r.applied, "durable_before", (unsigned long long)r.durable_before,
                               "wall_ms", (unsigned long long)r.wall_ms, "mark_lsn", (unsigned long long)r.mark_lsn,
                               "stopped", r.stopped);
    }
done:
    PyBuffer_Release(&data);
    PyBuffer_Release(&store_id);
    return result;
}

PyObject *function_verify(PyObject *module, PyObject *args, PyObject *kwargs) {
    return replay_data(PyModule_GetState(module), NULL, args, kwargs);
}
