/* module_errors.c: the one table from status codes to exceptions, and what their messages say.
 *
 * Invariants:
 *   I1  Each message says what happened, the number seen, the limit, and what to do next.
 *   I2  Nothing here changes the arena.
 */
#include "module.h"

#include "lock.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>

PyObject *error_class(ModuleState *state, int index) {
    PyObject *const builtins[ERROR_COUNT] = {
#define ERROR_BUILTIN(id, name, builtin) builtin,
        ERROR_TABLE(ERROR_BUILTIN)
#undef ERROR_BUILTIN
    };
    return state != NULL && state->errors[index] != NULL ? state->errors[index] : builtins[index];
}

void raise_error(ModuleState *state, int index, const char *format, ...) {
    char text[640];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (index != ERROR_DISK_FULL) {
        PyErr_SetString(error_class(state, index), text);
        return;
    }
    /* With an errno, as code that catches OSError expects. */
    PyObject *pair = Py_BuildValue("(is)", ENOSPC, text);
    if (pair != NULL) {
        PyErr_SetObject(error_class(state, index), pair);
        Py_DECREF(pair);
    }
}

static uint64_t unsynced_bytes(const Arena *arena) {
    uint64_t durable = load_relaxed(&arena->control->durable_lsn), tail = load_relaxed(&arena->control->ring_tail);
    return tail > durable ? tail - durable : 0;
}

static double lag_s(const Arena *arena) {
    uint64_t now = clock_coarse_ms(), since = load_relaxed(&arena->control->durable_time_ms);
    return unsynced_bytes(arena) == 0 || now < since ? 0.0 : (double)(now - since) / 1e3;
}

static void raise_stalled(Op *op) {
    const Arena *arena = op->call.arena;
    const Control *control = arena->control;
    if (!arena->has_log) {
        uint64_t now = clock_coarse_ms(), since = load_relaxed(&control->durable_time_ms);
        raise_error(op->handle->state, ERROR_UNAVAILABLE,
                    "nothing was written: this memory-only store has had no keeper for %.1f s (limit %.1f s), and its "
                    "supervisor (pid %u) is gone, so its memory may end with the processes that are attached; reads go "
                    "on; start it again (shmkv-supervisor), which goes on with what is there",
                    now > since ? (double)(now - since) / 1e3 : 0.0,
                    (double)load_relaxed_u32(&control->lag_limit_ms) / 1e3,
                    load_relaxed_u32(&control->supervisor_pid));
        return;
    }
    raise_error(op->handle->state, ERROR_LOG_STALLED,
                "nothing was written: for %.1f s the log took no more; it is %.1f s behind (limit %.1f s) with %llu "
                "bytes not synced in a ring of %llu; see that the store's supervisor and persister (pid %llu) run "
                "and that the disk is not stuck, or raise log_timeout",
                (double)op->handle->log_timeout_ns / 1e9, lag_s(arena),
                (double)load_relaxed_u32(&control->lag_limit_ms) / 1e3,
                (unsigned long long)unsynced_bytes(arena), (unsigned long long)arena->ring_bytes,
                (unsigned long long)load_relaxed(&control->persister_pid));
}

/* Process of the thread that holds a lock: only those with a slot take one. */
static uint32_t process_of(const Arena *arena, uint32_t tid) {
    for (uint32_t i = 0; i < SLOT_COUNT; i++) {
        uint64_t owner = load_relaxed(&arena->slots[i].owner);
        if ((uint32_t)owner == tid) {
            return (uint32_t)(owner >> 32);
        }
    }
    return 0;
}

void raise_timeout(Op *op) {
    const Call *call = &op->call;
    if (call->wait == WAIT_LOG) {
        raise_stalled(op);
        return;
    }
    double waited_s = (double)op->handle->lock_timeout_ns / 1e9;
    char what[48], holder[96];
    if (call->wait == WAIT_RING) {
        snprintf(what, sizeof what, "the lock of the ring");
    } else {
        snprintf(what, sizeof what, "the lock of stripe %u", call->wait_stripe);
    }
    /* A read-only reader did not try the lock itself. */
    uint32_t tid = call->wait == WAIT_READ ? lock_holder(&call->arena->stripes[call->wait_stripe].lock)
                                           : call->holder_tid;
    uint32_t pid = tid == 0 ? 0 : process_of(call->arena, tid);
    if (pid == 0) {
        snprintf(holder, sizeof holder, "its holder is unknown (thread id %u)", tid);
    } else {
        snprintf(holder, sizeof holder, "thread %u of process %u holds it", tid, pid);
    }
    raise_error(op->handle->state, ERROR_LOCK_TIMEOUT,
                "nothing was done: %s stayed busy for %.1f s, %s; if that process is stopped, continue it or kill "
                "it (its half-done write is then repaired), or raise lock_timeout", what, waited_s, holder);
}

void raise_not_durable(Op *op, uint64_t lsn) {
    const Arena *arena = op->call.arena;
    bool failed = load_relaxed_u32(&arena->control->log_state) == LOG_FAILED;
    raise_error(op->handle->state, ERROR_DURABILITY_UNKNOWN,
                "the write is done and in the ring, but not known to be on disk: durable up to LSN %llu, needed "
                "%llu, %s after %.1f s; it may still get there: sync() tells; look at the store's supervisor and "
                "its disk",
                (unsigned long long)load_relaxed(&arena->control->durable_lsn), (unsigned long long)lsn,
                failed ? "the log has failed" : "the log is behind", (double)op->handle->log_timeout_ns / 1e9);
}

static void raise_refused(Op *op) {
    ModuleState *state = op->handle->state;
    if (load_relaxed_u32(&op->call.arena->control->log_state) == LOG_DISK_FULL) {
        raise_error(state, ERROR_DISK_FULL, "nothing was written: the disk of the data directory is full, or "
                    "takes no new files (the supervisor's messages say why); make space there, writes go on by "
                    "themselves; reads go on now");
        return;
    }
    raise_error(state, ERROR_READ_ONLY, "nothing was written: the log failed twice (an I/O error of the disk), so "
                "the store takes no writes; reads go on; see the supervisor's messages, replace the disk, restart "
                "the store");
}

static void raise_no_memory(Op *op) {
    const Arena *arena = op->call.arena;
    uint64_t pages = load_relaxed(&arena->control->page_limit);
    raise_error(op->handle->state, ERROR_MEMORY_LIMIT,
                "nothing was written: the store is full; %llu bytes were asked for, %llu of %llu bytes are free (2 "
                "%% are kept for deletes and overwrites); delete something or start the store with more memory",
                (unsigned long long)op->call.needed_bytes, (unsigned long long)op->call.available_bytes,
                (unsigned long long)(pages * PAGE_BYTES));
}

static void raise_broken(Op *op, Status s) {
    raise_error(op->handle->state, ERROR_CORRUPT_DATA,
                "%s in the arena (incarnation %llu); what is on disk is not affected: restart the store's "
                "supervisor, which rebuilds the arena from the log, and report this with the output of "
                "`shmkv-admin doctor`",
                s == ST_CORRUPT ? "an invariant is broken" : "a lock is beyond repair",
                (unsigned long long)op->mapping->incarnation);
}

void raise_status(Op *op, Status s, PyObject *key) {
    if (s == ST_RAISED) {
        return;      /* perhaps by op_begin: then op holds nothing to look at */
    }
    ModuleState *state = op->handle->state;
    switch (s) {
    case ST_NOT_FOUND: PyErr_SetObject(error_class(state, ERROR_KEY_NOT_FOUND), key); break;
    case ST_FULL: raise_no_memory(op); break;
    case ST_VALUE_TOO_LARGE:
        raise_error(state, ERROR_VALUE_TOO_LARGE, "the value has %llu bytes, the limit of this store is %llu (the "
                    "smaller of 4 GiB and a quarter of the ring); split it, or start the store with a larger ring",
                    (unsigned long long)op->call.needed_bytes, (unsigned long long)arena_value_limit(op->call.arena));
        break;
    case ST_KEY_TOO_LARGE:
        raise_error(state, ERROR_KEY_TOO_LARGE, "the key is longer than %u bytes; use its digest as the key",
                    KEY_LIMIT);
        break;
    case ST_WRONG_TYPE: PyErr_SetString(PyExc_TypeError, "the stored value has another type"); break;
    case ST_OVERFLOW: PyErr_SetString(PyExc_OverflowError, "the result does not fit 64 bits"); break;
    case ST_RETIRED: raise_error(state, ERROR_UNAVAILABLE, "the arena has ended; attach to the store anew"); break;
    case ST_LOG_REFUSED: raise_refused(op); break;
    case ST_READ_ONLY:
        raise_error(state, ERROR_READ_ONLY, "nothing was written: this handle is read-only; attach without "
                    "read_only=True");
        break;
    case ST_NO_SLOT:
        raise_error(state, ERROR_UNAVAILABLE, "all %u thread slots of the store are taken; end threads that use it "
                    "(slots of dead threads come back within a second or so)", SLOT_COUNT);
        break;
    case ST_BUSY: raise_timeout(op); break;
    case ST_CORRUPT:
    case ST_NOT_RECOVERABLE: raise_broken(op, s); break;
    default: PyErr_Format(PyExc_SystemError, "the core answered with status %d, which no operation should give",
                          (int)s);
    }
}

void raise_open_error(ModuleState *state, Status s, const OpenError *why) {
    if (s == ST_INCOMPATIBLE) {
        raise_error(state, ERROR_INCOMPATIBLE, "the store has another %s: found %llu, needed %llu; %s", why->what,
                    (unsigned long long)why->found, (unsigned long long)why->needed,
                    "use the version, C library and pid namespace (container) that its supervisor runs in, or its "
                    "socket");
        return;
    }
    raise_error(state, ERROR_CORRUPT_DATA, "the shared object is no good arena: its %s is wrong (found %llu, needed "
                "%llu); what is on disk is not affected: restart the store's supervisor, which makes a new "
                "one", why->what,
                (unsigned long long)why->found, (unsigned long long)why->needed);
}
