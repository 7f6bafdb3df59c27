/* module_arena.c: the type Arena: maintenance of one arena by supervisor, persister, keeper and administration.
 *
 * Invariants:
 *   I1  What takes locks claims a slot for the calling thread, as Store does.
 *   I2  Locks are waited for without the GIL, for PATIENCE_NS at most.
 */
#include "module.h"

#include "lock.h"

#include <string.h>
#include <sys/mman.h>

#define PATIENCE_NS 5000000000ULL
#define FINDINGS_MOST 64u

typedef struct ArenaObject {
    PyObject_HEAD
    Handle handle;
} ArenaObject;

/* ---- life ---------------------------------------------------------------------------------------- */
static PyObject *arena_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"fd", "read_only", "prefault", NULL};
    int fd, read_only = 0, prefault = 1;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "i|$pp:Arena", names, &fd, &read_only, &prefault)) {
        return NULL;
    }
    ModuleState *state = state_of_type(type);
    Mapping *mapping = state == NULL ? NULL : registry_open(state, fd, read_only != 0, prefault != 0);
    if (mapping == NULL) {
        return NULL;
    }
    ArenaObject *self = (ArenaObject *)type->tp_alloc(type, 0);
    if (self == NULL) {
        mapping_release(mapping);
        return NULL;
    }
    self->handle = (Handle){.mapping = mapping, .state = state, .lock_timeout_ns = PATIENCE_NS,
                            .log_timeout_ns = PATIENCE_NS,
                            .durability = 0, .read_only = read_only != 0};
    return (PyObject *)self;
}

static void arena_dealloc(ArenaObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    handle_drop(&self->handle);
    type->tp_free(self);
    Py_DECREF(type);
}

static int arena_traverse(ArenaObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    return 0;
}

static PyObject *arena_close(ArenaObject *self, PyObject *unused) {
    (void)unused;
    if (!handle_close(&self->handle)) {
        return NULL;
    }
    Py_RETURN_NONE;
}

Handle *arena_handle(PyObject *self) { return &((ArenaObject *)self)->handle; }

bool arena_begin(Op *op, PyObject *self, bool write) {
    Handle *handle = arena_handle(self);
    if (!op_begin(op, handle)) {
        return false;
    }
    if (write && handle->read_only) {
        raise_status(op, ST_READ_ONLY, NULL);
        op_end(op);
        return false;
    }
    return true;
}

PyObject *arena_finish(Op *op, Status s) {
    if (s != ST_OK) {
        raise_status(op, s, NULL);
    }
    op_end(op);
    if (s != ST_OK) {
        return NULL;
    }
    Py_RETURN_NONE;
}

/* ---- state --------------------------------------------------------------------------------------------- */
static PyObject *arena_info(PyObject *self, PyObject *unused) {
    (void)unused;
    Op op;
    if (!arena_begin(&op, self, false)) {
        return NULL;
    }
    const ArenaHeader *header = header_choose(op.call.arena->base);
    PyObject *result = NULL;
    if (header != NULL) {
        result = info_dict(header, op.call.arena->control);
    } else {
        raise_status(&op, ST_CORRUPT, NULL);
    }
    op_end(&op);
    return result;
}

/* Index of the text in the names; -1 if it is none of them, with an exception set. */
static int name_index(const char *text, const char *what, const char *const *names, int n) {
    for (int i = 0; i < n; i++) {
        if (strcmp(text, names[i]) == 0) {
            return i;
        }
    }
    PyErr_Format(PyExc_ValueError, "unknown %s '%s'", what, text);
    return -1;
}

typedef struct NewState {
    int state, log_state, durability, condemned, adopted;       /* -1 = leave it */
    long long supervisor_pid, lag_limit_ms;
} NewState;

static bool parse_state(PyObject *args, PyObject *kwargs, NewState *to) {
    static char *names[] = {"state", "supervisor_pid", "log_state", "lag_limit_ms", "durability", "condemned",
                            "adopted", NULL};
    static const char *const states[] = {"CREATING", "READY"}, *const log_states[] = {"OK", "DISK_FULL", "FAILED"};
    const char *state = NULL, *log_state = NULL, *durability = NULL;
    PyObject *pid = Py_None, *lag = Py_None, *condemned = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|$zOzOzOp:set_state", names, &state, &pid, &log_state, &lag,
                                     &durability, &condemned, &to->adopted)) {
        return false;
    }
    if (state != NULL) {
        to->state = name_index(state, "state (READY or CREATING; retire() ends an arena)", states, 2);
    }
    if (log_state != NULL) {
        to->log_state = name_index(log_state, "log_state (OK, DISK_FULL or FAILED)", log_states, 3);
    }
    if (durability != NULL) {
        to->durability = name_index(durability, "durability (none, interval or always)", durability_names, 3);
    }
    to->supervisor_pid = pid == Py_None ? -1 : PyLong_AsLongLong(pid);
    to->lag_limit_ms = lag == Py_None ? -1 : PyLong_AsLongLong(lag);
    to->condemned = condemned == Py_None ? -1 : PyObject_IsTrue(condemned);
    if (PyErr_Occurred()) {
        return false;
    }
    if ((pid != Py_None && (to->supervisor_pid < 0 || to->supervisor_pid > UINT32_MAX)) ||
        (lag != Py_None && (to->lag_limit_ms < 0 || to->lag_limit_ms > UINT32_MAX))) {
        PyErr_SetString(PyExc_ValueError, "supervisor_pid and lag_limit_ms are 0 to 2**32 - 1");
        return false;
    }
    return true;
}

static void store_if(uint32_t *word, long long value) {
    if (value >= 0) {
        store_release_u32(word, (uint32_t)value);
    }
}

static PyObject *arena_set_state(PyObject *self, PyObject *args, PyObject *kwargs) {
    NewState to = {.state = -1, .log_state = -1, .durability = -1};
    Op op;
    if (!parse_state(args, kwargs, &to) || !arena_begin(&op, self, true)) {
        return NULL;
    }
    Control *control = op.call.arena->control;
    store_if(&control->supervisor_pid, to.supervisor_pid);
    store_if(&control->lag_limit_ms, to.lag_limit_ms);
    store_if(&control->durability, to.durability);
    store_if(&control->condemned, to.condemned);
    store_if(&control->log_state, to.log_state);
    if (to.adopted) {
        __atomic_fetch_add(&control->epoch, 1, __ATOMIC_RELEASE);
    }
    /* Last: who sees READY sees the rest. */
    store_if(&control->state, to.state < 0 ? -1 : to.state == 0 ? (int)STATE_CREATING : (int)STATE_READY);
    return arena_finish(&op, ST_OK);
}

/* ---- maintenance -------------------------------------------------------------------------------------------- */
typedef struct Task {
    uint32_t stripe;
    int32_t slot;
    bool deep;
    uint64_t pages;
    Finding findings[FINDINGS_MOST];
    uint32_t count;
} Task;

static Status run_sweep(Call *call, void *arguments) { return store_sweep(call, ((Task *)arguments)->stripe); }
static Status run_compact(Call *call, void *arguments) {
    Task *task = arguments;
    return store_compact(call, task->stripe, &task->pages);
}
static Status run_reap(Call *call, void *arguments) { return slot_reap(call, ((Task *)arguments)->slot); }
static Status run_retire(Call *call, void *arguments) {
    (void)arguments;
    return store_retire(call);
}
static Status run_audit(Call *call, void *arguments) {
    Task *task = arguments;
    task->count = 0;
    return audit_stripe(call, task->stripe, task->deep, task->findings, FINDINGS_MOST, &task->count);
}

/* begin, with the number of a stripe as the only argument */
static bool begin_stripe(Op *op, PyObject *self, PyObject *number, Task *task) {
    unsigned long stripe = PyLong_AsUnsignedLong(number);
    if ((stripe == (unsigned long)-1 && PyErr_Occurred()) || !arena_begin(op, self, true)) {
        return false;
    }
    if (stripe >= op->call.arena->stripe_count) {
        PyErr_Format(PyExc_ValueError, "stripe %lu is none of the %u stripes", stripe, op->call.arena->stripe_count);
        op_end(op);
        return false;
    }
    task->stripe = (uint32_t)stripe;
    return true;
}

static PyObject *arena_sweep(PyObject *self, PyObject *stripe) {
    Op op;
    Task task;
    return begin_stripe(&op, self, stripe, &task) ? arena_finish(&op, op_run_released(&op, run_sweep, &task)) : NULL;
}

static PyObject *arena_compact(PyObject *self, PyObject *stripe) {
    Op op;
    Task task;
    task.pages = 0;
    if (!begin_stripe(&op, self, stripe, &task)) {
        return NULL;
    }
    PyObject *none = arena_finish(&op, op_run_released(&op, run_compact, &task));
    Py_XDECREF(none);
    return none == NULL ? NULL : PyLong_FromUnsignedLongLong(task.pages);
}

/* ---- huge pages ------------------------------------------------------------------------------------ */
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
/* Blocks: the kernel copies the pages, 2 ms for each huge page, without the GIL.  Other processes' accesses to them
 * fault once more and wait for it.  A kill leaves whole pages, of either size. */
static PyObject *arena_collapse(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    uint64_t range[2];
    if (nargs != 2) {
        PyErr_SetString(PyExc_TypeError, "collapse() takes offset and length, both in bytes");
        return NULL;
    }
    for (int i = 0; i < 2; i++) {
        range[i] = PyLong_AsUnsignedLongLong(args[i]);
        if (range[i] == UINT64_MAX && PyErr_Occurred()) {
            return NULL;
        }
    }
    Op op;
    if (!arena_begin(&op, self, true)) {
        return NULL;
    }
    const Arena *arena = op.call.arena;
    uint64_t start = range[0] & ~(HUGE_PAGE_BYTES - 1), whole = arena->mapped_bytes & ~(HUGE_PAGE_BYTES - 1);
    int failed = 0;
    if (start < whole) {
        op_release_gil(&op);
        failed = madvise(arena->base + start, min_u64(align_up(range[1], HUGE_PAGE_BYTES), whole - start),
                         MADV_COLLAPSE);
        op_take_gil(&op);
    }
    op_end(&op);
    return PyBool_FromLong(!failed);
}

static PyObject *arena_reap(PyObject *self, PyObject *unused) {
    (void)unused;
    Op op;
    Task task;
    long reaped = 0;
    Status s = ST_OK;
    if (!arena_begin(&op, self, true)) {
        return NULL;
    }
    const uint64_t mine = load_relaxed(&op.call.arena->slots[op.call.slot].owner);
    for (uint32_t i = 0; i < SLOT_COUNT && s == ST_OK; i++) {
        const Slot *slot = &op.call.arena->slots[i];
        uint64_t owner = load_acquire(&slot->owner);
        /* Another slot of mine: an earlier reaping that met a busy lock. */
        if (owner == 0 || i == (uint32_t)op.call.slot || (owner != mine && !slot_owner_dead(slot, owner))) {
            continue;
        }
        task.slot = (int32_t)i;
        op.begun_ns = 0;
        s = op_run_released(&op, run_reap, &task);
        reaped += s == ST_OK;
        s = s == ST_CONDITION ? ST_OK : s;
    }
    PyObject *none = arena_finish(&op, s);
    Py_XDECREF(none);
    return none == NULL ? NULL : PyLong_FromLong(reaped);
}

static PyObject *arena_retire(PyObject *self, PyObject *unused) {
    (void)unused;
    Op op;
    return arena_begin(&op, self, true) ? arena_finish(&op, op_run_released(&op, run_retire, NULL)) : NULL;
}

static bool add_findings(PyObject *list, const Task *task) {
    for (uint32_t i = 0; i < task->count && i < FINDINGS_MOST; i++) {
        const Finding *f = &task->findings[i];
        PyObject *dict = Py_BuildValue("{sssLsKsKsK}", "what", f->what, "stripe", (long long)f->stripe, "offset",
                                       (unsigned long long)f->offset, "found", (unsigned long long)f->found, "expected",
                                       (unsigned long long)f->expected);
        int failed = dict == NULL ? -1 : PyList_Append(list, dict);
        Py_XDECREF(dict);
        if (failed) {
            return false;
        }
    }
    return true;
}

static PyObject *arena_audit(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"deep", NULL};
    int deep = 1;
    Op op;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|$p:audit", names, &deep) || !arena_begin(&op, self, true)) {
        return NULL;
    }
    Task task = {.deep = deep != 0};
    PyObject *list = PyList_New(0);
    /* One past the last stripe: what concerns all of them. */
    for (task.stripe = 0; task.stripe <= op.call.arena->stripe_count && list != NULL; task.stripe++) {
        op.begun_ns = 0;
        Status s = op_run_released(&op, run_audit, &task);
        if (s != ST_OK) {
            raise_status(&op, s, NULL);
        }
        if (s != ST_OK || !add_findings(list, &task) || !op_check_signals(&op)) {
            Py_CLEAR(list);
        }
    }
    op_end(&op);
    return list;
}

static PyObject *arena_slots(PyObject *self, PyObject *unused) {
    (void)unused;
    Op op;
    if (!arena_begin(&op, self, false)) {
        return NULL;
    }
    PyObject *list = slots_list(op.call.arena);
    op_end(&op);
    return list;
}

static PyObject *arena_stats(PyObject *self, PyObject *unused) {
    (void)unused;
    Op op;
    if (!arena_begin(&op, self, false)) {
        return NULL;
    }
    PyObject *dict = stats_dict(op.call.arena);
    op_end(&op);
    return dict;
}

#define NAMED(function) (PyCFunction)(void (*)(void))function, METH_VARARGS | METH_KEYWORDS
static PyMethodDef arena_methods[] = {
    {"info", arena_info, METH_NOARGS, "info($self, /)\n--\n\nHeader and control words, by name."},
    {"set_state", NAMED(arena_set_state),
     "set_state($self, *, state=None, supervisor_pid=None, log_state=None,\n          lag_limit_ms=None, "
     "durability=None, condemned=None, adopted=False)\n--\n\nChange words of the control page; `adopted` counts "
     "the epoch up."},
    {"ring", arena_ring, METH_NOARGS, "ring($self, /)\n--\n\nThe words of the ring, and now_ms of the same clock."},
    {"ring_wait", (PyCFunction)(void (*)(void))arena_ring_wait, METH_FASTCALL,
     "ring_wait($self, after_lsn, timeout_s, /)\n--\n\nWait until there is work past after_lsn, or the timeout; the "
     "tail."},
    {"ring_collect", (PyCFunction)(void (*)(void))arena_ring_collect, METH_FASTCALL,
     "ring_collect($self, after_lsn, timeout_s, limit_bytes, /)\n--\n\nring_wait, then the records that a wanted "
     "sync is for."},
    {"ring_pieces", (PyCFunction)(void (*)(void))arena_ring_pieces, METH_FASTCALL,
     "ring_pieces($self, start_lsn, end_lsn, /)\n--\n\nRead-only views of the ring; valid until its head passes them."},
    {"publish_written", arena_publish_written, METH_O,
     "publish_written($self, lsn, /)\n--\n\nAll below lsn is in the file, perhaps not synced."},
    {"attend", (PyCFunction)arena_attend, METH_NOARGS,
     "attend($self, /)\n--\n\nThe keeper's sign of life, for a store without a log."},
    {"publish_durable", (PyCFunction)(void (*)(void))arena_publish_durable, METH_FASTCALL,
     "publish_durable($self, lsn, collected_ms, /)\n--\n\nAll below lsn is on disk; it was collected at that now_ms."},
    {"set_lsn", arena_set_lsn, METH_O, "set_lsn($self, lsn, /)\n--\n\nWhere the log goes on; only while CREATING."},
    {"mark", arena_mark, METH_O, "mark($self, wall_ms, /)\n--\n\nAppend a mark record; its LSN."},
    {"apply", NAMED(arena_apply),
     "apply($self, data, *, store_id, incarnation, first_lsn,\n      limit_lsn=2**64 - 1, "
     "limit_wall_ms=2**64 - 1)\n--\n\nCheck log records and apply them; only while CREATING."},
    {"fill", (PyCFunction)(void (*)(void))arena_fill, METH_FASTCALL,
     "fill($self, cursor, buffer, /)\n--\n\nCopy entry images of one stripe: (next_cursor, used_bytes, entries, "
     "stripe, needed_bytes)."},
    {"load", NAMED(arena_load),
     "load($self, data, /, *, first_stripe=0, end_stripe=None)\n--\n\nCheck entry images and put them; only while "
     "CREATING."},
    {"sweep", arena_sweep, METH_O, "sweep($self, stripe, /)\n--\n\nRepair the stripe if need be, unlink what is dead."},
    {"compact", arena_compact, METH_O, "compact($self, stripe, /)\n--\n\nMove entries together; pages that came free."},
    {"collapse", (PyCFunction)(void (*)(void))arena_collapse, METH_FASTCALL,
     "collapse($self, offset, length, /)\n--\n\nPut a range of the arena on huge pages; False if the kernel can't."},
    {"audit", NAMED(arena_audit), "audit($self, *, deep=True)\n--\n\nCheck every stripe; what is wrong."},
    {"slots", arena_slots, METH_NOARGS, "slots($self, /)\n--\n\nThe slots that are taken."},
    {"reap", arena_reap, METH_NOARGS, "reap($self, /)\n--\n\nFree the slots of dead threads; how many."},
    {"retire", arena_retire, METH_NOARGS, "retire($self, /)\n--\n\nEnd the arena: no write is accepted any more."},
    {"stats", arena_stats, METH_NOARGS, "stats($self, /)\n--\n\nNumbers of the arena, by name."},
    {"close", (PyCFunction)arena_close, METH_NOARGS,
     "close($self, /)\n--\n\nEnd the use of the handle, once calls that are inside have finished."},
    {NULL, NULL, 0, NULL}};

static PyType_Slot arena_slots_table[] = {
    {Py_tp_doc, "Arena(fd, *, read_only=False, prefault=True)\n--\n\nMaintenance of one arena: supervisor, persister, keeper, admin."},
    {Py_tp_new, arena_new},
    {Py_tp_dealloc, arena_dealloc},
    {Py_tp_traverse, arena_traverse},
    {Py_tp_methods, arena_methods},
    {0, NULL}};

PyType_Spec arena_spec = {
    .name = "shmkv.segment._core.Arena",
    .basicsize = sizeof(ArenaObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = arena_slots_table,
};
