/* module_snapshot.c: entry images through Python: Arena.fill, Arena.load and check_entries.
 *
 * Invariants:
 *   I1  Buffers are taken before the core is entered and given back after: taking one may run Python.
 */
#include "module.h"

typedef struct FillTask {
    uint64_t cursor;
    Py_buffer buffer;
    FillResult result;
} FillTask;

static Status run_fill(Call *call, void *arguments) {
    FillTask *task = arguments;
    return store_fill(call, &task->cursor, task->buffer.buf, (uint64_t)task->buffer.len, &task->result);
}

static void raise_fill(Op *op, Status s, const FillTask *task) {
    const FillResult *r = &task->result;
    if (s == ST_INVALID) {
        PyErr_Format(PyExc_ValueError, "cursor %llu is none of this arena: begin with 0, go on with what fill() gave",
                     (unsigned long long)task->cursor);
        return;
    }
    if (s != ST_CORRUPT) {
        raise_status(op, s, NULL);
        return;
    }
    raise_error(op->handle->state, ERROR_CORRUPT_DATA,
                "damage in the arena (incarnation %llu), stripe %u, key hash %016llx: wrong %s, found %llu, expected "
                "%llu; nothing of it was copied, and what is on disk is not affected: restart the store's supervisor, "
                "which rebuilds the arena from the disk, and report this with the output of `shmkv-admin doctor`",
                (unsigned long long)op->mapping->incarnation, r->stripe, (unsigned long long)r->hash, r->what,
                (unsigned long long)r->found, (unsigned long long)r->expected);
}

PyObject *arena_fill(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    FillTask task = {0};
    Op op;
    if (nargs != 2) {
        PyErr_Format(PyExc_TypeError, "fill() takes 2 arguments (%zd given)", nargs);
        return NULL;
    }
    task.cursor = PyLong_AsUnsignedLongLong(args[0]);
    if ((task.cursor == UINT64_MAX && PyErr_Occurred()) ||
        PyObject_GetBuffer(args[1], &task.buffer, PyBUF_WRITABLE) < 0) {
        return NULL;
    }
    PyObject *result = NULL;
    if (arena_begin(&op, self, false)) {
        Status s = op_run_released(&op, run_fill, &task);
        if (s == ST_OK) {
            const FillResult *r = &task.result;
            result = Py_BuildValue("KKIIK", (unsigned long long)task.cursor, (unsigned long long)r->used_bytes,
                                   r->entries, r->stripe, (unsigned long long)r->needed_bytes);
        } else {
            raise_fill(&op, s, &task);
        }
        op_end(&op);
    }
    PyBuffer_Release(&task.buffer);
    return result;
}

static PyObject *load_result(const LoadResult *r) {
    return Py_BuildValue("{sKsKsKsKsz}", "consumed_bytes", (unsigned long long)r->consumed_bytes, "entries",
                         (unsigned long long)r->entries, "applied", (unsigned long long)r->applied, "highest_version",
                         (unsigned long long)r->highest_version, "stopped", r->stopped);
}

static PyObject *load_into(const Op *op, const Py_buffer *data, uint32_t first, uint32_t end) {
    ModuleState *state = op->handle->state;
    LoadResult r;
    Status s;
    Py_BEGIN_ALLOW_THREADS
    s = store_load(op->call.arena, data->buf, (uint64_t)data->len, first, end, &r);
    Py_END_ALLOW_THREADS
    if (s == ST_FULL) {
        raise_error(state, ERROR_MEMORY_LIMIT, "the arena is too small for what is loaded: it is full after %llu of "
                    "%zd bytes of stripes %u to %u; load all stripes from one thread, which can move entries to make "
                    "room, or start the store with more memory", (unsigned long long)r.consumed_bytes, data->len, first,
                    end);
    } else if (s != ST_OK) {
        raise_error(state, ERROR_CORRUPT_DATA, "the arena cannot take the entries: status %d after %llu of %zd bytes; "
                    "start anew", (int)s, (unsigned long long)r.consumed_bytes, data->len);
    }
    return s == ST_OK ? load_result(&r) : NULL;
}

PyObject *arena_load(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"", "first_stripe", "end_stripe", NULL};
    Py_buffer data = {0};
    unsigned int first = 0;
    PyObject *end_object = Py_None, *result = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "y*|$IO:load", names, &data, &first, &end_object)) {
        return NULL;
    }
    unsigned long end = end_object == Py_None ? STRIPES_MAX : PyLong_AsUnsignedLong(end_object);
    Op op;
    if (!(end == (unsigned long)-1 && PyErr_Occurred()) && arena_begin(&op, self, true)) {
        uint32_t stripes = op.call.arena->stripe_count;
        /* Counted as inside by hand: the GIL goes where op_release_gil does not see it. */
        registry_enter(&op);
        if (end_object == Py_None) {
            end = stripes;
        }
        if (first > end || end > stripes) {
            PyErr_Format(PyExc_ValueError, "stripes %u to %lu are not among the %u stripes of the arena", first, end,
                         stripes);
        } else if (arena_check_creating(&op)) {
            result = load_into(&op, &data, first, (uint32_t)end);
        }
        op_end(&op);
    }
    PyBuffer_Release(&data);
    return result;
}

PyObject *function_check_entries(PyObject *module, PyObject *object) {
    (void)module;
    Py_buffer data;
    LoadResult r;
    if (PyObject_GetBuffer(object, &data, PyBUF_SIMPLE) < 0) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    store_load(NULL, data.buf, (uint64_t)data.len, 0, STRIPES_MAX, &r);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&data);
    return load_result(&r);
}
