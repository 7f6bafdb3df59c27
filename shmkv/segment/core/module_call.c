/* module_call.c: one operation from begin to end: the GIL, waiting, attaching anew, durability, closing.
 *
 * Invariants:
 *   I1  A call that let the GIL go once stays counted as inside until it ends, so close() waits for it.
 *   I2  Signal handlers run only between two tries, when the core holds nothing.
 *   I3  An operation that met a busy lock is done whole without the GIL, and only then the GIL is taken again.
 *   I4  After ST_OK of a write nothing here turns it into an error but the wait for its durability.
 */
#include "module.h"

#include <string.h>
#include <unistd.h>

#define READ_ONLY_POLL_NS 2000000ULL

bool handle_check_open(const Handle *handle) {
    if (handle->mapping == NULL) {
        PyErr_SetString(PyExc_ValueError, handle->closed ? "store is closed" : "store is not open: call __init__ "
                        "first");
        return false;
    }
    return true;
}

static bool op_claim(Op *op) {
    Status s;
    op->claim = registry_claim(op->mapping, &s);
    if (op->claim != NULL) {
        op->call.slot = op->claim->slot;
        return true;
    }
    op->call.slot = -1;
    raise_status(op, s, NULL);
    return false;
}

bool op_begin_slowly(Op *op, Handle *handle) {
    /* Complete enough for raise_status and op_end, whatever happens next. */
    op->handle = handle;
    op->inside = false;
    op->begun_ns = 0;
    op->claim = NULL;
    if (!handle_check_open(handle)) {
        return false;
    }
    op->mapping = handle->mapping;
    op->call.arena = &op->mapping->arena;
    if (!op_claim(op)) {
        return false;
    }
#ifdef Py_GIL_DISABLED
    registry_enter(op);
#endif
    return true;
}

void op_release_gil(Op *op) {
    if (!op->inside) {
        registry_enter(op);
    }
    op->thread_state = PyEval_SaveThread();
}

void op_take_gil(Op *op) { PyEval_RestoreThread(op->thread_state); }

bool op_check_signals(Op *op) {
    if (PyErr_CheckSignals() < 0) {
        return false;
    }
    if (UNLIKELY(op->epoch != registry_epoch())) {
        /* A handler forked, and this is the child: the parent's slot is not ours. */
        op->epoch = registry_epoch();
        return op_claim(op);
    }
    return true;
}

/* ---- attaching anew -------------------------------------------------------------------------------- */
static Mapping *map_successor(Handle *handle, int fd, const uint8_t *store_id, uint64_t old_id) {
    Mapping *mapping = registry_open(handle->state, fd, handle->read_only, true);
    close(fd);
    if (mapping == NULL) {
        return NULL;
    }
    if (mapping->id == old_id || memcmp(mapping->store_id, store_id, sizeof mapping->store_id) != 0) {
        raise_error(handle->state, ERROR_UNAVAILABLE, mapping->id == old_id
                    ? "the arena has ended and no new one has its name yet; start the store's supervisor"
                    : "the arena has ended, and another store has taken its name; attach to that one anew");
        mapping_release(mapping);
        return NULL;
    }
    return mapping;
}

static Mapping *open_successor(Op *op, const uint8_t *store_id, uint64_t old_id) {
    Handle *handle = op->handle;
    if (handle->owner == NULL) {
        raise_error(handle->state, ERROR_UNAVAILABLE, "the arena has ended; open the store's object anew by name");
        return NULL;
    }
    PyObject *result = PyObject_CallMethod(handle->owner, "_reattach", NULL);
    if (result == NULL) {
        return NULL;
    }
    long fd = PyLong_AsLong(result);
    Py_DECREF(result);
    if (fd == -1 && PyErr_Occurred()) {
        return NULL;
    }
    return map_successor(handle, (int)fd, store_id, old_id);
}

static void take_successor(Handle *handle, Mapping *mapping, uint64_t old_id) {
    /* Python ran: another thread may have been faster, or have closed the handle. */
    Mapping *old = handle->mapping;
    if (old != NULL && old->id == old_id) {
        handle->mapping = mapping;
        mapping_release(old);
    } else {
        mapping_release(mapping);
    }
}

static bool op_reattach(Op *op) {
    Handle *handle = op->handle;
    uint64_t old_id = op->mapping->id, begun_ns = op->begun_ns;
    uint8_t store_id[16];
    memcpy(store_id, op->mapping->store_id, sizeof store_id);
    if (handle->mapping == op->mapping) {
        Mapping *mapping = open_successor(op, store_id, old_id);
        if (mapping == NULL) {
            return false;
        }
        take_successor(handle, mapping, old_id);
    }
    op_end(op);
    if (!op_begin(op, handle)) {
        return false;
    }
    op->begun_ns = begun_ns;
    return true;
}

/* A write that waited in vain may be in an arena that has lost its name: Python looks.  True with an exception set if
 * that is so; then the handle goes on in the arena that has the name now, if that is the same store's. */
static bool raise_explained(Op *op) {
    Handle *handle = op->handle;
    if (handle->owner == NULL) {
        return false;
    }
    if (!op->inside) {
        registry_enter(op);      /* the old mapping must stay until op_end */
    }
    PyObject *found = PyObject_CallMethod(handle->owner, "_explain_stall", NULL);
    const char *text;
    int fd;
    if (found == NULL || found == Py_None || !PyArg_ParseTuple(found, "is;_explain_stall", &fd, &text)) {
        Py_XDECREF(found);
        return PyErr_Occurred() != NULL;
    }
    if (fd >= 0) {
        Mapping *mapping = map_successor(handle, fd, op->mapping->store_id, op->mapping->id);
        if (mapping == NULL) {
            Py_DECREF(found);
            return true;
        }
        take_successor(handle, mapping, op->mapping->id);
    }
    raise_error(handle->state, ERROR_UNAVAILABLE, "%s", text);
    Py_DECREF(found);
    return true;
}

/* ---- waiting --------------------------------------------------------------------------------------- */
static Status wait_and_run(Op *op, Operation run, void *arguments) {
    uint64_t now = clock_monotonic_ns();
    if (op->begun_ns == 0) {
        op->begun_ns = now;
    }
    const Handle *handle = op->handle;
    uint64_t deadline = op->begun_ns + (op->call.wait == WAIT_LOG ? handle->log_timeout_ns : handle->lock_timeout_ns);
    if (now >= deadline) {
        if (op->call.wait != WAIT_LOG || !raise_explained(op)) {
            raise_timeout(op);
        }
        return ST_RAISED;
    }
    op_release_gil(op);
    Status s = store_wait(&op->call, min_u64(deadline, now + SLICE_NS));
    if (s == ST_OK) {
        s = run(&op->call, arguments);
    }
    op_take_gil(op);
    if (s == ST_BUSY && !op_check_signals(op)) {
        return ST_RAISED;
    }
    return s;
}

Status op_finish(Op *op, Status s, Operation run, void *arguments) {
    for (;;) {
        if (s == ST_BUSY) {
            s = wait_and_run(op, run, arguments);
        } else if (s == ST_RETIRED) {
            if (!op_reattach(op)) {
                return ST_RAISED;
            }
            s = run(&op->call, arguments);
        } else {
            return s;
        }
    }
}

static Status run_nothing(Call *call, void *unused) {
    (void)unused;
    return arena_retired(call->arena) ? ST_RETIRED : ST_OK;
}

bool op_begin_current(Op *op, Handle *handle) {
    if (!op_begin(op, handle)) {
        return false;
    }
    Status s = op_finish(op, run_nothing(&op->call, NULL), run_nothing, NULL);
    if (s != ST_OK) {
        raise_status(op, s, NULL);
        op_end(op);
    }
    return s == ST_OK;
}

Status op_run_released(Op *op, Operation run, void *arguments) {
    op_release_gil(op);
    Status s = run(&op->call, arguments);
    op_take_gil(op);
    return op_finish(op, s, run, arguments);
}

static Status run_still_there(Call *call, void *unused) {
    (void)unused;
    return arena_retired(call->arena) ? ST_RETIRED : ST_OK;
}

bool op_still_there(Op *op) { return op_finish(op, run_still_there(&op->call, NULL), run_still_there, NULL) == ST_OK; }

/* ---- durability ---------------------------------------------------------------------------------------- */
static Status wait_slice(Arena *arena, uint64_t lsn, uint64_t until_ns) {
    if (arena->writable) {
        return ring_wait_durable(arena, lsn, true, until_ns);
    }
    /* It can't ask for a wake-up: it can't write. */
    Control *control = arena->control;
    for (;;) {
        uint32_t word = load_acquire_u32(&control->durable_word);
        if (load_acquire(&control->durable_lsn) >= lsn) {
            return ST_OK;
        }
        uint64_t now = clock_monotonic_ns();
        if (now >= until_ns) {
            return ST_BUSY;
        }
        futex_wait(&control->durable_word, word, min_u64(until_ns - now, READ_ONLY_POLL_NS));
    }
}

Status op_wait_durable(Op *op, uint64_t lsn, uint64_t until_ns) {
    Arena *arena = op->call.arena;
    while (load_acquire(&arena->control->durable_lsn) < lsn) {
        if (load_relaxed_u32(&arena->control->log_state) == LOG_FAILED) {
            return ST_LOG_REFUSED;
        }
        uint64_t now = clock_monotonic_ns();
        if (now >= until_ns) {
            return ST_BUSY;
        }
        op_release_gil(op);
        Status s = wait_slice(arena, lsn, min_u64(until_ns, now + SLICE_NS));
        op_take_gil(op);
        if (s == ST_OK) {
            return ST_OK;
        }
        if (!op_check_signals(op)) {
            return ST_RAISED;
        }
    }
    return ST_OK;
}

bool op_written_slowly(Op *op) {
    uint64_t end = op->call.record_end;
    Status s = op_wait_durable(op, end, clock_monotonic_ns() + op->handle->log_timeout_ns);
    if (s == ST_OK) {
        return true;
    }
    if (s != ST_RAISED) {
        raise_not_durable(op, end);
    }
    return false;
}

/* ---- closing --------------------------------------------------------------------------------------------- */
void handle_drop(Handle *handle) {
    Mapping *mapping = handle->mapping;
    handle->closed = true;
    handle->mapping = NULL;
    if (mapping != NULL) {
        mapping_release(mapping);
    }
}

bool handle_close(Handle *handle) {
    handle_drop(handle);
    uint32_t seen;
    while (registry_others_inside(handle, &seen)) {
        Py_BEGIN_ALLOW_THREADS
        futex_wait(&handle->inside, seen, SLICE_NS);
        Py_END_ALLOW_THREADS
        if (PyErr_CheckSignals() < 0) {
            return false;
        }
    }
    return true;
}
