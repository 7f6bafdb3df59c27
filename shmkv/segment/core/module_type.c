/* module_type.c: the type Store: how a handle begins and ends, and what concerns the whole store.
 *
 * Invariants:
 *   I1  A handle opens at most once; after close() every use is a ValueError.
 *   I2  The object holds no reference that Python's collector must know of, but its type and its name.
 */
#include "module.h"

#include <string.h>
#include <structmember.h>

#define STANDARD_TIMEOUT_NS 5000000000ULL

/* ---- life ---------------------------------------------------------------------------------------- */
static PyObject *store_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    (void)args;
    (void)kwargs;
    ModuleState *state = state_of_type(type);
    StoreObject *self = state == NULL ? NULL : (StoreObject *)type->tp_alloc(type, 0);
    if (self != NULL) {
        self->handle.state = state;
        self->handle.owner = (PyObject *)self;
        self->handle.durability = -1;
    }
    return (PyObject *)self;
}

static bool store_settings(Handle *handle, PyObject *lock_timeout, PyObject *log_timeout, PyObject *durability) {
    return timeout_from(lock_timeout, "lock_timeout_s", STANDARD_TIMEOUT_NS, &handle->lock_timeout_ns) &&
           timeout_from(log_timeout, "log_timeout_s", STANDARD_TIMEOUT_NS, &handle->log_timeout_ns) &&
           durability_from(durability, &handle->durability);
}

static int store_init(StoreObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"fd", "name", "read_only", "lock_timeout_s", "log_timeout_s", "durability", NULL};
    Handle *handle = &self->handle;
    int fd, read_only = 0;
    PyObject *name, *lock_timeout = NULL, *log_timeout = NULL, *durability = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "iU|$pOOO:Store", names, &fd, &name, &read_only, &lock_timeout,
                                     &log_timeout, &durability)) {
        return -1;
    }
    if (handle->mapping != NULL || handle->closed) {
        PyErr_SetString(PyExc_ValueError, "a store is opened once; make a new one");
        return -1;
    }
    if (!store_settings(handle, lock_timeout, log_timeout, durability)) {
        return -1;
    }
    Mapping *mapping = registry_open(handle->state, fd, read_only != 0, true);
    if (mapping == NULL) {
        return -1;
    }
    Py_XSETREF(self->name, Py_NewRef(name));
    handle->read_only = read_only != 0;
    handle->mapping = mapping;
    return 0;
}

static int store_traverse(StoreObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->name);
    return 0;
}

static int store_clear_references(StoreObject *self) {
    Py_CLEAR(self->name);
    return 0;
}

static void store_dealloc(StoreObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    if (self->weak_references != NULL) {
        PyObject_ClearWeakRefs((PyObject *)self);
    }
    handle_drop(&self->handle);
    store_clear_references(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *store_close(StoreObject *self, PyObject *unused) {
    (void)unused;
    if (!handle_close(&self->handle)) {
        return NULL;
    }
    Py_RETURN_NONE;
}

/* ---- the whole store ------------------------------------------------------------------------------- */
static Status run_clear(Call *call, void *arguments) { return store_clear(call, *(const uint16_t *)arguments); }

static PyObject *store_clear_method(StoreObject *self, PyObject *unused) {
    (void)unused;
    Op op;
    if (!op_begin(&op, &self->handle)) {
        return NULL;
    }
    op.call.lsn = 0;
    /* It locks every stripe: long enough to let others run. */
    Status s = self->handle.read_only ? ST_READ_ONLY : op_run_released(&op, run_clear, &self->handle.namespace_id);
    bool done = s == ST_OK && op_written(&op, -1);
    if (s != ST_OK) {
        raise_status(&op, s, NULL);
    }
    op_end(&op);
    if (!done) {
        return NULL;
    }
    Py_RETURN_NONE;
}

/* The LSN to wait for: 0 = there is nothing to wait for; false with an exception set. */
static bool sync_target(Op *op, PyObject *lsn_object, uint64_t *target) {
    const Control *control = op->call.arena->control;
    if (lsn_object == NULL || lsn_object == Py_None) {
        *target = op->claim->last_end;
        return true;
    }
    uint64_t lsn = PyLong_AsUnsignedLongLong(lsn_object);
    if (lsn == UINT64_MAX && PyErr_Occurred()) {
        return false;
    }
    uint64_t tail = load_acquire(&control->ring_tail);
    if (lsn >= tail && lsn != 0) {
        PyErr_Format(PyExc_ValueError, "LSN %llu is not written yet: the log ends at %llu", (unsigned long long)lsn,
                     (unsigned long long)tail);
        return false;
    }
    if (lsn != 0 && lsn < op->mapping->first_lsn) {
        raise_error(op->handle->state, ERROR_DURABILITY_UNKNOWN, "LSN %llu is from before the last restart (this "
                    "life of the store begins at LSN %llu); whether it came to the disk, its key's entry tells",
                    (unsigned long long)lsn, (unsigned long long)op->mapping->first_lsn);
        return false;
    }
    /* A version is where its record begins, and durable_lsn stops only where records end. */
    *target = lsn == 0 ? 0 : lsn == op->claim->last_lsn ? op->claim->last_end : lsn + 1;
    return true;
}

static void raise_not_synced(Op *op, Status s, uint64_t target, uint64_t timeout_ns) {
    uint64_t durable = load_acquire(&op->call.arena->control->durable_lsn);
    if (s == ST_LOG_REFUSED) {
        raise_error(op->handle->state, ERROR_DURABILITY_UNKNOWN, "the log has failed at LSN %llu, before LSN %llu: "
                    "what was written since is in memory only; replace the disk and restart the store",
                    (unsigned long long)durable, (unsigned long long)target);
    } else if (s != ST_RAISED) {
        raise_error(op->handle->state, ERROR_LOG_STALLED, "after %.1f s the log is on disk up to LSN %llu, not to "
                    "LSN %llu; see that the store's supervisor runs and its disk is not stuck, or give a longer "
                    "timeout",
                    (double)timeout_ns / 1e9, (unsigned long long)durable, (unsigned long long)target);
    }
}

static PyObject *store_sync(StoreObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"lsn", "timeout", NULL};
    PyObject *lsn = NULL, *timeout = NULL;
    uint64_t timeout_ns, target;
    Op op;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|OO:sync", names, &lsn, &timeout) ||
        !timeout_from(timeout, "timeout", self->handle.log_timeout_ns, &timeout_ns) || !op_begin(&op, &self->handle)) {
        return NULL;
    }
    Status s = ST_RAISED;
    if (sync_target(&op, lsn, &target)) {
        s = op.call.arena->has_log ? op_wait_durable(&op, target, clock_monotonic_ns() + timeout_ns) : ST_OK;
        if (s != ST_OK) {
            raise_not_synced(&op, s, target, timeout_ns);
        }
    }
    op_end(&op);
    if (s != ST_OK) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *store_stats(StoreObject *self, PyObject *unused) {
    (void)unused;
    Op op;
    if (!op_begin_current(&op, &self->handle)) {
        return NULL;
    }
    PyObject *result = op_still_there(&op) ? stats_dict(op.call.arena) : NULL;
    op_end(&op);
    return result;
}

static PyObject *store_reattach(StoreObject *self, PyObject *unused) {
    (void)unused;
    raise_error(self->handle.state, ERROR_UNAVAILABLE, "the arena of the store has ended; attach to it anew by name");
    return NULL;
}

static PyObject *store_explain_stall(StoreObject *self, PyObject *unused) {
    (void)self;
    (void)unused;
    Py_RETURN_NONE;
}

static PyObject *store_incr_slow(StoreObject *self, PyObject *args) {
    (void)self;
    (void)args;
    PyErr_SetString(PyExc_OverflowError, "incr of floats and beyond 64 bits needs shmkv.Store: import shmkv");
    return NULL;
}

/* ---- attributes --------------------------------------------------------------------------------------- */
static PyObject *store_name(StoreObject *self, void *unused) {
    (void)unused;
    return Py_NewRef(self->name == NULL ? Py_None : self->name);
}
static PyObject *store_read_only(StoreObject *self, void *unused) {
    (void)unused;
    return PyBool_FromLong(self->handle.read_only);
}
static PyObject *store_closed(StoreObject *self, void *unused) {
    (void)unused;
    return PyBool_FromLong(self->handle.mapping == NULL);
}
static PyObject *store_id_attribute(StoreObject *self, void *unused) {
    (void)unused;
    if (!handle_check_open(&self->handle)) {
        return NULL;
    }
    return PyBytes_FromStringAndSize((const char *)self->handle.mapping->store_id, 16);
}
static PyObject *store_incarnation(StoreObject *self, void *unused) {
    (void)unused;
    return handle_check_open(&self->handle) ? PyLong_FromUnsignedLongLong(self->handle.mapping->incarnation) : NULL;
}
static PyObject *store_last_lsn(StoreObject *self, void *unused) {
    (void)unused;
    Op op;
    if (!op_begin(&op, &self->handle)) {
        return NULL;
    }
    uint64_t lsn = op.claim->last_lsn;
    op_end(&op);
    return PyLong_FromUnsignedLongLong(lsn);
}

static PyGetSetDef store_attributes[] = {
    {"name", (getter)store_name, NULL, "Name of the store.", NULL},
    {"read_only", (getter)store_read_only, NULL, "Whether this handle can only read.", NULL},
    {"closed", (getter)store_closed, NULL, "Whether the handle is closed.", NULL},
    {"store_id", (getter)store_id_attribute, NULL, "The 16 bytes that name the store for ever.", NULL},
    {"incarnation", (getter)store_incarnation, NULL, "Number of this life of the arena.", NULL},
    {"last_lsn", (getter)store_last_lsn, NULL, "Version that the last write of this thread made; 0 if there was "
     "none.", NULL},
    {NULL, NULL, NULL, NULL, NULL}};

static PyMemberDef store_members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(StoreObject, weak_references), READONLY, NULL},
    {NULL, 0, 0, 0, NULL}};

static PyObject *store_init_subclass(PyTypeObject *cls, PyObject *unused);

#define FAST (METH_FASTCALL | METH_KEYWORDS)
#define HOT_METHODS 5             /* the first of the table, see store_init_subclass */
static PyMethodDef store_methods[] = {
    {"get", (PyCFunction)(void (*)(void))store_get_method, FAST,
     "get($self, key, default=None)\n--\n\nThe value of the key, or `default`."},
    {"set", (PyCFunction)(void (*)(void))store_set_method, FAST,
     "set($self, key, value, *, ttl=None, expires_at=None, keep_ttl=False,\n    if_absent=False, if_present=False, "
     "if_version=None, pin=False,\n    durability=None)\n--\n\nStore the value; False if the condition did not "
     "hold."},
    {"delete", (PyCFunction)(void (*)(void))store_delete_method, FAST,
     "delete($self, key, *, if_version=None)\n--\n\nDelete the key; False if there was none, or of another version."},
    {"incr", (PyCFunction)(void (*)(void))store_incr_method, FAST,
     "incr($self, key, amount=1, *, initial=0, ttl=None)\n--\n\nAdd to the number; the result. A missing key counts "
     "as `initial`."},
    {"get_many", (PyCFunction)store_get_many_method, METH_O,
     "get_many($self, keys, /)\n--\n\nA dict of those of the keys that are there."},
    {"set_many", (PyCFunction)(void (*)(void))store_set_many_method, FAST,
     "set_many($self, mapping, *, ttl=None)\n--\n\nStore all items; each key is atomic, the call is not."},
    {"delete_many", (PyCFunction)store_delete_many_method, METH_O,
     "delete_many($self, keys, /)\n--\n\nDelete the keys; how many there were."},
    {"decr", (PyCFunction)(void (*)(void))store_decr_method, FAST,
     "decr($self, key, amount=1, *, initial=0, ttl=None)\n--\n\nSubtract from the number; the result."},
    {"append", (PyCFunction)(void (*)(void))store_append_method, METH_FASTCALL,
     "append($self, key, data, /)\n--\n\nAdd to the end of a str or bytes value; its new length in bytes."},
    {"clear", (PyCFunction)store_clear_method, METH_NOARGS, "clear($self, /)\n--\n\nDelete all keys, in one write."},
    {"sync", (PyCFunction)(void (*)(void))store_sync, METH_VARARGS | METH_KEYWORDS,
     "sync($self, lsn=None, timeout=None)\n--\n\nWait until this thread's last write, or that of `lsn`, is on disk."},
    {"close", (PyCFunction)store_close, METH_NOARGS,
     "close($self, /)\n--\n\nEnd the use of the handle, once calls that are inside have finished."},
    {"_entry", (PyCFunction)store_entry_method, METH_O,
     "_entry($self, key, /)\n--\n\n(value, version, expires_ms or 0, flags, stored length), or None."},
    {"_scan", (PyCFunction)(void (*)(void))store_scan_method, METH_FASTCALL,
     "_scan($self, cursor, with_values, /)\n--\n\n(next cursor, keys or items of some buckets)."},
    {"_stats", (PyCFunction)store_stats, METH_NOARGS, "_stats($self, /)\n--\n\nNumbers of the arena, by name."},
    {"_reattach", (PyCFunction)store_reattach, METH_NOARGS,
     "_reattach($self, /)\n--\n\nHook: a descriptor of the store's new arena (closed by the caller), or "
     "StoreUnavailable."},
    {"_explain_stall", (PyCFunction)store_explain_stall, METH_NOARGS,
     "_explain_stall($self, /)\n--\n\nHook: (descriptor of the arena to go on in or -1, what happened), or None."},
    {"_incr_slow", (PyCFunction)store_incr_slow, METH_VARARGS,
     "_incr_slow($self, key, amount, initial, ttl, /)\n--\n\nHook: incr of floats and beyond 64 bits."},
    {"__init_subclass__", (PyCFunction)(void (*)(void))store_init_subclass, METH_NOARGS | METH_CLASS,
     "__init_subclass__($type, /)\n--\n\nGive the subclass its own descriptors of the hot methods."},
    {NULL, NULL, 0, NULL}};

/* The interpreter's fast path for methods of C wants a descriptor of exactly the object's type: an inherited one
 * costs 40 ns more, a third of a get.  So each subclass gets its own, where it has not overridden the method. */
static PyObject *store_init_subclass(PyTypeObject *cls, PyObject *unused) {
    (void)unused;
    for (int i = 0; i < HOT_METHODS; i++) {
        PyMethodDef *method = &store_methods[i];
        PyObject *inherited = PyObject_GetAttrString((PyObject *)cls, method->ml_name);
        if (inherited == NULL) {
            return NULL;
        }
        bool ours = Py_IS_TYPE(inherited, &PyMethodDescr_Type) &&
                    ((PyMethodDescrObject *)inherited)->d_method == method;
        Py_DECREF(inherited);
        PyObject *own = ours ? PyDescr_NewMethod(cls, method) : NULL;
        int failed = own != NULL ? PyObject_SetAttrString((PyObject *)cls, method->ml_name, own) : ours ? -1 : 0;
        Py_XDECREF(own);
        if (failed) {
            return NULL;
        }
    }
    Py_RETURN_NONE;
}

static PyType_Slot store_slots[] = {
    {Py_tp_doc, "Store(fd, name, *, read_only=False, lock_timeout_s=5.0, log_timeout_s=5.0,\n      "
     "durability=None)\n--\n\n"
                "One attachment to a store; the base of shmkv.Store."},
    {Py_tp_new, store_new},
    {Py_tp_init, store_init},
    {Py_tp_dealloc, store_dealloc},
    {Py_tp_traverse, store_traverse},
    {Py_tp_clear, store_clear_references},
    {Py_tp_methods, store_methods},
    {Py_tp_getset, store_attributes},
    {Py_tp_members, store_members},
    {Py_mp_subscript, store_subscript},
    {Py_mp_ass_subscript, store_assign},
    {Py_mp_length, store_length},
    {Py_sq_contains, store_contains},
    {0, NULL}};

PyType_Spec store_spec = {
    .name = "shmkv.segment._core.Store",
    .basicsize = sizeof(StoreObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_MAPPING,
    .slots = store_slots,
};
