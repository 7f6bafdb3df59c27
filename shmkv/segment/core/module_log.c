/* module_log.c: the methods of Arena that concern ring and log: what the persister lives by.
 *
 * Invariants:
 *   I1  A piece of the ring keeps its mapping, even when the Arena is closed.
 *   I2  LSNs that would break the order of the ring's words are refused: a wrong one would lose records.
 */
#include "module.h"

#include <string.h>

/* ---- pieces of the ring ------------------------------------------------------------------------------ */
typedef struct PieceObject {
    PyObject_HEAD
    Mapping *mapping;
    uint8_t *data;
    Py_ssize_t length;
} PieceObject;

static int piece_buffer(PieceObject *self, Py_buffer *view, int flags) {
    return PyBuffer_FillInfo(view, (PyObject *)self, self->data, self->length, 1, flags);
}

static void piece_dealloc(PieceObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    mapping_release(self->mapping);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyType_Slot piece_slots[] = {
    {Py_tp_doc, "Bytes of the ring of an arena."},
    {Py_tp_dealloc, piece_dealloc},
    {Py_bf_getbuffer, piece_buffer},
    {0, NULL}};

PyType_Spec piece_spec = {
    .name = "shmkv.segment._core._Piece",
    .basicsize = sizeof(PieceObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = piece_slots,
};

static PyObject *piece_view(Op *op, uint64_t start, uint64_t length) {
    PyTypeObject *type = op->handle->state->piece_type;
    PieceObject *piece = (PieceObject *)type->tp_alloc(type, 0);
    if (piece == NULL) {
        return NULL;
    }
    mapping_keep(op->mapping);
    piece->mapping = op->mapping;
    piece->data = op->call.arena->ring + start;
    piece->length = (Py_ssize_t)length;
    PyObject *view = PyMemoryView_FromObject((PyObject *)piece);
    Py_DECREF(piece);
    return view;
}

static bool lsn_from(PyObject *object, uint64_t *lsn) {
    *lsn = PyLong_AsUnsignedLongLong(object);
    return *lsn != UINT64_MAX || !PyErr_Occurred();
}

static bool arguments_are(const char *function, Py_ssize_t wanted, Py_ssize_t nargs) {
    if (nargs != wanted) {
        PyErr_Format(PyExc_TypeError, "%s() takes %zd arguments (%zd given)", function, wanted, nargs);
    }
    return nargs == wanted;
}

PyObject *arena_ring_pieces(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    uint64_t start, end;
    Op op;
    if (!arguments_are("ring_pieces", 2, nargs) || !lsn_from(args[0], &start) || !lsn_from(args[1], &end) ||
        !arena_begin(&op, self, false)) {
        return NULL;
    }
    const Arena *arena = op.call.arena;
    uint64_t head = load_acquire(&arena->control->ring_head), tail = load_acquire(&arena->control->ring_tail);
    PyObject *result = NULL;
    if (start < head || end < start || end > tail) {
        PyErr_Format(PyExc_ValueError, "LSNs %llu to %llu are not in the ring, which holds %llu to %llu",
                     (unsigned long long)start,
                     (unsigned long long)end, (unsigned long long)head, (unsigned long long)tail);
    } else {
        uint64_t at = start & (arena->ring_bytes - 1), length = end - start;
        uint64_t first = min_u64(length, arena->ring_bytes - at);
        if (length == 0) {
            result = PyTuple_New(0);
        } else if (first == length) {
            result = Py_BuildValue("(N)", piece_view(&op, at, first));
        } else {
            result = Py_BuildValue("(NN)", piece_view(&op, at, first), piece_view(&op, 0, length - first));
        }
    }
    op_end(&op);
    return result;
}

/* ---- the ring's words -------------------------------------------------------------------------------------- */
PyObject *arena_ring(PyObject *self, PyObject *unused) {
    (void)unused;
    Op op;
    if (!arena_begin(&op, self, false)) {
        return NULL;
    }
    /* Durable before tail: seen the other way round, durable could be the larger one. */
    const Control *control = op.call.arena->control;
    uint64_t head = load_acquire(&control->ring_head), durable = load_acquire(&control->durable_lsn);
    uint64_t written = load_acquire(&control->written_lsn), tail = load_acquire(&control->ring_tail);
    PyObject *result = Py_BuildValue(
        "{sKsKsKsKsKsKsKsK}", "tail", (unsigned long long)tail, "head", (unsigned long long)head, "written_lsn",
        (unsigned long long)written, "durable_lsn", (unsigned long long)durable, "durable_time_ms",
        (unsigned long long)load_relaxed(&control->durable_time_ms), "now_ms", (unsigned long long)clock_coarse_ms(),
        "sync_wanted_lsn", (unsigned long long)load_relaxed(&control->sync_wanted_lsn), "ring_bytes",
        (unsigned long long)op.call.arena->ring_bytes);
    op_end(&op);
    return result;
}

/* Without the GIL, until there is work behind that LSN or the time is over; false with an exception set. */
static bool wait_for_work(Op *op, uint64_t after, uint64_t timeout_ns) {
    uint64_t now = clock_monotonic_ns(), until = now + timeout_ns;
    for (;;) {
        uint64_t slice_end = min_u64(until, now + SLICE_NS);
        op_release_gil(op);
        ring_wait_work(op->call.arena, after, slice_end);
        now = clock_monotonic_ns();
        op_take_gil(op);
        if (!op_check_signals(op)) {
            return false;
        }
        /* Back before the slice ended: there is work. */
        if (now < slice_end || now >= until) {
            return true;
        }
    }
}

PyObject *arena_ring_wait(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    uint64_t after, timeout_ns;
    Op op;
    if (!arguments_are("ring_wait", 2, nargs) || !lsn_from(args[0], &after) ||
        !timeout_from(args[1], "timeout_s", 0, &timeout_ns) || !arena_begin(&op, self, true)) {
        return NULL;
    }
    bool good = wait_for_work(&op, after, timeout_ns);
    uint64_t tail = load_acquire(&op.call.arena->control->ring_tail);
    op_end(&op);
    return good ? PyLong_FromUnsignedLongLong(tail) : NULL;
}

/* The bytes of the ring from start to tail if a sync behind start is wanted and they are few enough, else None. */
static PyObject *wanted_records(const Arena *arena, uint64_t start, uint64_t tail, uint64_t limit_bytes) {
    const Control *control = arena->control;
    if (start < load_relaxed(&control->ring_head) || tail <= start || tail - start > limit_bytes ||
        load_relaxed(&control->sync_wanted_lsn) <= start) {
        Py_RETURN_NONE;
    }
    uint64_t at = start & (arena->ring_bytes - 1), length = tail - start;
    uint64_t first = min_u64(length, arena->ring_bytes - at);
    PyObject *records = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)length);
    if (records != NULL) {
        memcpy(PyBytes_AS_STRING(records), arena->ring + at, first);
        memcpy(PyBytes_AS_STRING(records) + first, arena->ring, length - first);
    }
    return records;
}

PyObject *arena_ring_collect(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    uint64_t after, timeout_ns, limit_bytes;
    Op op;
    if (!arguments_are("ring_collect", 3, nargs) || !lsn_from(args[0], &after) ||
        !timeout_from(args[1], "timeout_s", 0, &timeout_ns) || !lsn_from(args[2], &limit_bytes) ||
        !arena_begin(&op, self, true)) {
        return NULL;
    }
    PyObject *result = NULL;
    if (wait_for_work(&op, after, timeout_ns)) {
        uint64_t now_ms = clock_coarse_ms(), tail = load_acquire(&op.call.arena->control->ring_tail);
        PyObject *records = wanted_records(op.call.arena, after, tail, limit_bytes);
        result = records == NULL ? NULL : Py_BuildValue("(KKN)", (unsigned long long)tail, (unsigned long long)now_ms,
                                                        records);
    }
    op_end(&op);
    return result;
}

static bool check_publish(const Control *control, uint64_t lsn, uint64_t least, const char *what) {
    uint64_t tail = load_acquire(&control->ring_tail);
    if (lsn > tail || lsn < least) {
        PyErr_Format(PyExc_ValueError, "%s LSN %llu must lie between %llu and the tail, %llu", what,
                     (unsigned long long)lsn, (unsigned long long)least, (unsigned long long)tail);
        return false;
    }
    return true;
}

/* Whoever publishes is the persister, for doctor and messages.  The heartbeat of an idle one publishes, too, so after a
 * restart the word does not name the dead one until somebody writes. */
static void name_persister(const Op *op) {
    const Arena *arena = op->call.arena;
    store_relaxed(&arena->control->persister_pid, load_relaxed(&arena->slots[op->call.slot].owner) >> 32);
}

PyObject *arena_publish_written(PyObject *self, PyObject *lsn_object) {
    uint64_t lsn;
    Op op;
    if (!lsn_from(lsn_object, &lsn) || !arena_begin(&op, self, true)) {
        return NULL;
    }
    Control *control = op.call.arena->control;
    bool good = check_publish(control, lsn, load_relaxed(&control->written_lsn), "written");
    if (good) {
        name_persister(&op);
        ring_publish_written(op.call.arena, lsn);
    }
    return arena_finish(&op, good ? ST_OK : ST_RAISED);
}

PyObject *arena_publish_durable(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    uint64_t lsn, collected_ms;
    Op op;
    if (!arguments_are("publish_durable", 2, nargs) || !lsn_from(args[0], &lsn) || !lsn_from(args[1], &collected_ms) ||
        !arena_begin(&op, self, true)) {
        return NULL;
    }
    Control *control = op.call.arena->control;
    bool good = check_publish(control, lsn, load_relaxed(&control->durable_lsn), "durable");
    if (good) {
        name_persister(&op);
        if (load_relaxed(&control->written_lsn) < lsn) {
            store_release(&control->written_lsn, lsn);
        }
        ring_publish_durable(op.call.arena, lsn, collected_ms);
    }
    return arena_finish(&op, good ? ST_OK : ST_RAISED);
}

PyObject *arena_attend(PyObject *self, PyObject *unused) {
    (void)unused;
    Op op;
    if (!arena_begin(&op, self, true)) {
        return NULL;
    }
    bool good = !op.call.arena->has_log;
    if (good) {
        ring_attend(op.call.arena);
    } else {
        PyErr_SetString(PyExc_ValueError, "attend() is for a store without a log; a persister's publications do this");
    }
    return arena_finish(&op, good ? ST_OK : ST_RAISED);
}

bool arena_check_creating(const Op *op) {
    if (load_acquire_u32(&op->call.arena->control->state) != STATE_CREATING) {
        PyErr_SetString(PyExc_ValueError, "the arena is not in state CREATING: this is for recovery, before it serves");
        return false;
    }
    return true;
}

PyObject *arena_set_lsn(PyObject *self, PyObject *lsn_object) {
    uint64_t lsn;
    Op op;
    if (!lsn_from(lsn_object, &lsn) || !arena_begin(&op, self, true)) {
        return NULL;
    }
    Control *control = op.call.arena->control;
    bool good = arena_check_creating(&op);
    if (good && (lsn == 0 || lsn % 8 != 0)) {
        PyErr_Format(PyExc_ValueError, "LSN %llu is no place of a record: they are multiples of 8",
                     (unsigned long long)lsn);
        good = false;
    }
    if (good) {
        store_release(&control->ring_tail, lsn);
        store_release(&control->written_lsn, lsn);
        store_release(&control->durable_lsn, lsn);
        store_release(&control->ring_head, lsn);
        store_relaxed(&control->durable_time_ms, clock_coarse_ms());
    }
    return arena_finish(&op, good ? ST_OK : ST_RAISED);
}

static Status run_mark(Call *call, void *arguments) { return store_mark(call, *(const uint64_t *)arguments); }

PyObject *arena_mark(PyObject *self, PyObject *wall_object) {
    uint64_t wall_ms;
    Op op;
    if (!lsn_from(wall_object, &wall_ms) || !arena_begin(&op, self, true)) {
        return NULL;
    }
    Status s = op_finish(&op, run_mark(&op.call, &wall_ms), run_mark, &wall_ms);
    uint64_t lsn = op.call.lsn;
    PyObject *none = arena_finish(&op, s);
    Py_XDECREF(none);
    return none == NULL ? NULL : PyLong_FromUnsignedLongLong(lsn);
}

PyObject *arena_apply(PyObject *self, PyObject *args, PyObject *kwargs) {
    Op op;
    if (!arena_begin(&op, self, true)) {
        return NULL;
    }
    /* Counted as inside by hand: the arguments' buffers run Python before the core is entered. */
    registry_enter(&op);
    PyObject *result = arena_check_creating(&op) ? replay_data(op.handle->state, op.call.arena, args, kwargs) : NULL;
    op_end(&op);
    return result;
}
