/* module_store.c: operations of Store on one key.
 *
 * Invariants:
 *   I1  All that may run Python (encoders, durations, options) is done before op_begin, or after op_end.
 *   I2  A get that finds its value in VALUE_BUFFER_BYTES allocates nothing but the result.
 *   I3  A bytes object that a value is copied into is seen by nobody until it is complete.
 */
#include "module.h"

/* ---- reading ------------------------------------------------------------------------------------- */
typedef struct Lookup {
    Key key;
    Value value;
} Lookup;

static Status run_lookup(Call *call, void *arguments) {
    Lookup *lookup = arguments;
    Key *key = &lookup->key;
    Status s = key_init(call->arena, key, key->data, key->length, key->namespace_id);
    return s == ST_OK ? store_get(call, key, &lookup->value) : s;
}

/* The first try met a busy stripe, a large value or the arena's end.  ST_OK: *result is the value. */
static Status look_up_slowly(Op *op, Status s, Lookup *lookup, PyObject **result) {
    PyObject *scratch = NULL;
    *result = NULL;
    s = op_finish(op, s, run_lookup, lookup);
    while (s == ST_BUFFER) {
        /* It may have grown since, so this can take several rounds. */
        Py_XDECREF(scratch);
        scratch = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)lookup->value.length);
        if (scratch == NULL) {
            return ST_RAISED;
        }
        lookup->value.data = (uint8_t *)PyBytes_AS_STRING(scratch);
        lookup->value.capacity = lookup->value.length;
        s = lookup->value.length > LARGE_VALUE_BYTES ? op_run_released(op, run_lookup, lookup)
                                                     : op_finish(op, run_lookup(&op->call, lookup), run_lookup, lookup);
    }
    if (s != ST_OK) {
        Py_XDECREF(scratch);
        return s;
    }
    if (scratch != NULL && lookup->value.type == TYPE_BYTES) {
        if (_PyBytes_Resize(&scratch, (Py_ssize_t)lookup->value.length) == 0) {
            *result = scratch;
        }
    } else {
        *result = decode_value(op->handle->state, lookup->value.type, lookup->value.data, lookup->value.length);
        Py_XDECREF(scratch);
    }
    return *result == NULL ? ST_RAISED : ST_OK;
}

/* The value; what `fallback` is, if there is no such key; KeyNotFound if it is NULL. */
ALWAYS_INLINE PyObject *look_up(StoreObject *self, PyObject *key_object, PyObject *fallback) {
    Op op;
    Lookup lookup;
    uint8_t buffer[VALUE_BUFFER_BYTES];
    if (UNLIKELY(!op_begin(&op, &self->handle))) {
        return NULL;
    }
    if (UNLIKELY(!op_key(&op, key_object, &lookup.key))) {
        op_end(&op);
        return NULL;
    }
    lookup.value.data = buffer;
    lookup.value.capacity = sizeof buffer;
    PyObject *result = NULL;
    Status s = store_get(&op.call, &lookup.key, &lookup.value);
    if (LIKELY(s == ST_OK)) {
        op_end(&op);
        return decode_value(self->handle.state, lookup.value.type, buffer, lookup.value.length);
    }
    if (s != ST_NOT_FOUND) {
        s = look_up_slowly(&op, s, &lookup, &result);
    }
    if (s == ST_NOT_FOUND && fallback != NULL) {
        result = Py_NewRef(fallback);
    } else if (s != ST_OK) {
        raise_status(&op, s, key_object);
    }
    op_end(&op);
    return result;
}

PyObject *store_look_up(StoreObject *self, PyObject *key, PyObject *fallback) { return look_up(self, key, fallback); }

PyObject *store_subscript(StoreObject *self, PyObject *key) { return look_up(self, key, NULL); }

static const Signature get_signature = {"get", 2, 1, 2, {NAME_KEY, NAME_DEFAULT}};

PyObject *store_get_method(StoreObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
    if (LIKELY(kwnames == NULL && (nargs == 1 || nargs == 2))) {
        return look_up(self, args[0], nargs == 2 ? args[1] : Py_None);
    }
    PyObject *values[2];
    if (!parse_arguments(self->handle.state, &get_signature, args, nargs, kwnames, values)) {
        return NULL;
    }
    return look_up(self, values[0], values[1] == NULL ? Py_None : values[1]);
}

int store_contains(StoreObject *self, PyObject *key_object) {
    Op op;
    Lookup lookup;
    if (!op_begin(&op, &self->handle)) {
        return -1;
    }
    int result = -1;
    if (op_key(&op, key_object, &lookup.key)) {
        lookup.value.data = NULL;
        lookup.value.capacity = 0;
        Status s = store_get(&op.call, &lookup.key, &lookup.value);
        if (UNLIKELY(s == ST_BUSY || s == ST_RETIRED)) {
            s = op_finish(&op, s, run_lookup, &lookup);
        }
        result = s == ST_OK || s == ST_BUFFER ? 1 : s == ST_NOT_FOUND ? 0 : -1;
        if (result < 0) {
            raise_status(&op, s, key_object);
        }
    }
    op_end(&op);
    return result;
}

Py_ssize_t store_length(StoreObject *self) {
    Op op;
    if (!op_begin(&op, &self->handle)) {
        return -1;
    }
    Py_ssize_t length = -1;
    if (op_still_there(&op)) {
        length = (Py_ssize_t)min_u64(store_count(op.call.arena, self->handle.namespace_id), PY_SSIZE_T_MAX);
    }
    op_end(&op);
    return length;
}

PyObject *store_entry_method(StoreObject *self, PyObject *key_object) {
    Op op;
    Lookup lookup;
    uint8_t buffer[VALUE_BUFFER_BYTES];
    if (!op_begin(&op, &self->handle)) {
        return NULL;
    }
    PyObject *value, *result = NULL;
    if (op_key(&op, key_object, &lookup.key)) {
        lookup.value.data = buffer;
        lookup.value.capacity = sizeof buffer;
        Status s = look_up_slowly(&op, run_lookup(&op.call, &lookup), &lookup, &value);
        if (s == ST_OK) {
            result = Py_BuildValue("(NKKiK)", value, (unsigned long long)lookup.value.version,
                                   (unsigned long long)lookup.value.expires_ms, (int)lookup.value.flags,
                                   (unsigned long long)lookup.value.length);
        } else if (s == ST_NOT_FOUND) {
            result = Py_NewRef(Py_None);
        } else {
            raise_status(&op, s, key_object);
        }
    }
    op_end(&op);
    return result;
}

/* ---- writing ------------------------------------------------------------------------------------- */
typedef struct Change {
    Key key;
    Encoded encoded;
    SetOptions options;
    Expiry expiry;
    int32_t durability;
    int64_t amount, initial, number;
    uint64_t new_length;
} Change;

static Status run_set(Call *call, void *arguments) {
    Change *change = arguments;
    Key *key = &change->key;
    Status s = key_init(call->arena, key, key->data, key->length, key->namespace_id);
    return s == ST_OK ? store_set(call, key, change->encoded.type, change->encoded.data, change->encoded.length,
                                  &change->options)
                      : s;
}

static Status run_delete(Call *call, void *arguments) {
    Change *change = arguments;
    Key *key = &change->key;
    Status s = key_init(call->arena, key, key->data, key->length, key->namespace_id);
    return s == ST_OK ? store_delete(call, key, change->options.if_version) : s;
}

static Status run_incr(Call *call, void *arguments) {
    Change *change = arguments;
    Key *key = &change->key;
    Status s = key_init(call->arena, key, key->data, key->length, key->namespace_id);
    return s == ST_OK ? store_incr(call, key, change->amount, change->initial, change->options.expires_ms,
                                   &change->number) : s;
}

static Status run_append(Call *call, void *arguments) {
    Change *change = arguments;
    Key *key = &change->key;
    Status s = key_init(call->arena, key, key->data, key->length, key->namespace_id);
    return s == ST_OK ? store_append(call, key, change->encoded.type, change->encoded.data, change->encoded.length,
                                     &change->new_length) : s;
}

/* Runs a write to its end, but for durability.  ST_RAISED with an exception set if it could not begin. */
static Status change_run(Op *op, Handle *handle, PyObject *key_object, Change *change, Operation run) {
    if (UNLIKELY(!op_begin(op, handle))) {
        return ST_RAISED;
    }
    if (UNLIKELY(handle->read_only)) {
        return ST_READ_ONLY;
    }
    if (UNLIKELY(!op_key(op, key_object, &change->key))) {
        return ST_RAISED;
    }
    change->options.expires_ms = change->expiry.kind == EXPIRY_NEVER ? 0 : expiry_in(op->call.arena, &change->expiry);
    op->call.lsn = 0;
    Status s = UNLIKELY(change->encoded.length > LARGE_VALUE_BYTES) ? op_run_released(op, run, change)
                                                                    : run(&op->call, change);
    if (UNLIKELY(s == ST_BUSY || s == ST_RETIRED)) {
        s = op_finish(op, s, run, change);
    }
    return s;
}

/* ST_OK, ST_CONDITION, ST_NOT_FOUND (only delete); all else is raised. */
static Status set_finish(Op *op, Status s, Change *change) {
    if (LIKELY(s == ST_OK)) {
        s = op_written(op, change->durability) ? ST_OK : ST_RAISED;
    } else if (s != ST_CONDITION && s != ST_NOT_FOUND) {
        raise_status(op, s, NULL);
        s = ST_RAISED;
    }
    op_end(op);
    Py_XDECREF(change->encoded.owner);
    return s;
}

static void change_clear(Change *change) {
    change->options.flags = 0;
    change->options.if_version = 0;
    change->expiry.kind = EXPIRY_NEVER;
    change->durability = -1;
    change->encoded.owner = NULL;
    change->encoded.length = 0;
}

int store_assign(StoreObject *self, PyObject *key, PyObject *value) {
    Op op;
    Change change;
    change_clear(&change);
    if (LIKELY(value != NULL)) {
        if (UNLIKELY(!encode_value(self->handle.state, value, &change.encoded))) {
            return -1;
        }
        return set_finish(&op, change_run(&op, &self->handle, key, &change, run_set), &change) == ST_OK ? 0 : -1;
    }
    Status s = set_finish(&op, change_run(&op, &self->handle, key, &change, run_delete), &change);
    if (s == ST_NOT_FOUND) {
        PyErr_SetObject(error_class(self->handle.state, ERROR_KEY_NOT_FOUND), key);
    }
    return s == ST_OK ? 0 : -1;
}

enum { SET_KEY, SET_VALUE, SET_TTL, SET_EXPIRES_AT, SET_KEEP, SET_ABSENT, SET_PRESENT, SET_VERSION, SET_PINNED,
       SET_DURABLE, SET_PARAMETERS };
static const Signature set_signature = {"set", 2, 2, SET_PARAMETERS,
    {NAME_KEY, NAME_VALUE, NAME_TTL, NAME_EXPIRES_AT, NAME_KEEP_TTL, NAME_IF_ABSENT, NAME_IF_PRESENT, NAME_IF_VERSION,
     NAME_PIN, NAME_DURABILITY}};

static bool read_flag(PyObject *object, uint32_t flag, uint32_t *flags) {
    int truth = object == NULL || object == Py_False ? 0 : object == Py_True ? 1 : PyObject_IsTrue(object);
    *flags |= truth > 0 ? flag : 0;
    return truth >= 0;
}

static bool read_set_options(PyObject *const *values, Change *change) {
    uint32_t *flags = &change->options.flags;
    if (!expiry_from(values[SET_TTL], values[SET_EXPIRES_AT], &change->expiry) ||
        !read_flag(values[SET_KEEP], SET_KEEP_TTL, flags) || !read_flag(values[SET_ABSENT], SET_IF_ABSENT, flags) ||
        !read_flag(values[SET_PRESENT], SET_IF_PRESENT, flags) || !read_flag(values[SET_PINNED], SET_PIN, flags) ||
        !durability_from(values[SET_DURABLE], &change->durability)) {
        return false;
    }
    if (values[SET_VERSION] != NULL && values[SET_VERSION] != Py_None) {
        if (!version_from(values[SET_VERSION], &change->options.if_version)) {
            return false;
        }
        *flags |= SET_IF_VERSION;
    }
    if ((*flags & SET_KEEP_TTL) && change->expiry.kind != EXPIRY_NEVER) {
        PyErr_SetString(PyExc_ValueError, "give keep_ttl or a new ttl or expires_at, not both");
        return false;
    }
    if ((*flags & SET_IF_ABSENT) && (*flags & (SET_IF_PRESENT | SET_IF_VERSION))) {
        PyErr_SetString(PyExc_ValueError, "if_absent contradicts if_present and if_version: it could never hold");
        return false;
    }
    return true;
}

PyObject *store_set_method(StoreObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
    Op op;
    Change change;
    PyObject *values[SET_PARAMETERS];
    change_clear(&change);
    if (kwnames == NULL && nargs == 2) {
        values[SET_KEY] = args[0];
        values[SET_VALUE] = args[1];
    } else if (!parse_arguments(self->handle.state, &set_signature, args, nargs, kwnames, values) ||
               !read_set_options(values, &change)) {
        return NULL;
    }
    if (!encode_value(self->handle.state, values[SET_VALUE], &change.encoded)) {
        return NULL;
    }
    Status s = set_finish(&op, change_run(&op, &self->handle, values[SET_KEY], &change, run_set), &change);
    return s == ST_RAISED ? NULL : PyBool_FromLong(s == ST_OK);
}

static const Signature delete_signature = {"delete", 1, 1, 2, {NAME_KEY, NAME_IF_VERSION}};

PyObject *store_delete_method(StoreObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
    Op op;
    Change change;
    PyObject *values[2];
    change_clear(&change);
    if (!parse_arguments(self->handle.state, &delete_signature, args, nargs, kwnames, values)) {
        return NULL;
    }
    if (values[1] != NULL && values[1] != Py_None && !version_from(values[1], &change.options.if_version)) {
        return NULL;
    }
    Status s = set_finish(&op, change_run(&op, &self->handle, values[0], &change, run_delete), &change);
    return s == ST_RAISED ? NULL : PyBool_FromLong(s == ST_OK);
}

static const Signature incr_signature = {"incr", 2, 1, 4, {NAME_KEY, NAME_AMOUNT, NAME_INITIAL, NAME_TTL}};
static const Signature decr_signature = {"decr", 2, 1, 4, {NAME_KEY, NAME_AMOUNT, NAME_INITIAL, NAME_TTL}};

/* 1: *number is it.  0: a float, or beyond 64 bits: Python's arithmetic has to do.  -1: no number. */
static int small_number(PyObject *object, int64_t standard, const char *what, int64_t *number) {
    *number = standard;
    if (object == NULL) {
        return 1;
    }
    if (PyLong_CheckExact(object)) {
        int overflow;
        *number = PyLong_AsLongLongAndOverflow(object, &overflow);
        return overflow == 0;
    }
    if (PyFloat_CheckExact(object)) {
        return 0;
    }
    PyErr_Format(PyExc_TypeError, "%s is an int or a float, not %.200s", what, Py_TYPE(object)->tp_name);
    return -1;
}

static PyObject *incr_by_python(StoreObject *self, PyObject *const *values, bool negative) {
    PyObject *amount = values[1] == NULL ? PyLong_FromLong(1) : Py_NewRef(values[1]);
    if (amount != NULL && negative) {
        Py_SETREF(amount, PyNumber_Negative(amount));
    }
    PyObject *initial = values[2] == NULL ? PyLong_FromLong(0) : Py_NewRef(values[2]);
    PyObject *result = NULL;
    if (amount != NULL && initial != NULL) {
        result = PyObject_CallMethod((PyObject *)self, "_incr_slow", "OOOO", values[0], amount, initial,
                                     values[3] == NULL ? Py_None : values[3]);
    }
    Py_XDECREF(amount);
    Py_XDECREF(initial);
    return result;
}

/* The core knows 64-bit ints; a larger one is a value of a codec, and still a number. */
static bool stored_by_codec(Op *op, Change *change) {
    Lookup lookup = {.key = change->key};
    Status s = op_finish(op, run_lookup(&op->call, &lookup), run_lookup, &lookup);
    return (s == ST_OK || s == ST_BUFFER) && lookup.value.type >= TYPE_CODEC;
}

static PyObject *add(StoreObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames, bool negative) {
    Op op;
    Change change;
    PyObject *values[4];
    change_clear(&change);
    const Signature *signature = negative ? &decr_signature : &incr_signature;
    if (!parse_arguments(self->handle.state, signature, args, nargs, kwnames, values) ||
        !expiry_from(values[3], NULL, &change.expiry)) {
        return NULL;
    }
    int small = small_number(values[1], 1, "amount", &change.amount);
    int start = small < 0 ? -1 : small_number(values[2], 0, "initial", &change.initial);
    if (start < 0) {
        return NULL;
    }
    if (small == 0 || start == 0 || (negative && change.amount == INT64_MIN)) {
        return incr_by_python(self, values, negative);
    }
    change.amount = negative ? -change.amount : change.amount;
    Status s = change_run(&op, &self->handle, values[0], &change, run_incr);
    if (s == ST_OVERFLOW || (s == ST_WRONG_TYPE && stored_by_codec(&op, &change))) {
        op_end(&op);
        return PyErr_Occurred() ? NULL : incr_by_python(self, values, negative);
    }
    if (s == ST_WRONG_TYPE) {
        if (!PyErr_Occurred()) {
            PyErr_Format(PyExc_TypeError, "the value of %R is no number", values[0]);
        }
        s = ST_RAISED;
    }
    return set_finish(&op, s, &change) == ST_OK ? PyLong_FromLongLong(change.number) : NULL;
}

PyObject *store_incr_method(StoreObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
    return add(self, args, nargs, kwnames, false);
}
PyObject *store_decr_method(StoreObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
    return add(self, args, nargs, kwnames, true);
}

PyObject *store_append_method(StoreObject *self, PyObject *const *args, Py_ssize_t nargs) {
    Op op;
    Change change;
    change_clear(&change);
    if (nargs != 2) {
        PyErr_Format(PyExc_TypeError, "append() takes 2 arguments: key and data (%zd given)", nargs);
        return NULL;
    }
    if (!PyBytes_CheckExact(args[1]) && !PyUnicode_CheckExact(args[1])) {
        PyErr_Format(PyExc_TypeError, "append() adds str to a str or bytes to bytes, not %.200s",
                     Py_TYPE(args[1])->tp_name);
        return NULL;
    }
    if (!encode_value(self->handle.state, args[1], &change.encoded)) {
        return NULL;
    }
    Status s = change_run(&op, &self->handle, args[0], &change, run_append);
    if (s == ST_WRONG_TYPE) {
        PyErr_Format(PyExc_TypeError, "the value of %R is not of type %s: append() adds str to a str or bytes to "
                     "bytes", args[0],
                     Py_TYPE(args[1])->tp_name);
        s = ST_RAISED;
    }
    return set_finish(&op, s, &change) == ST_OK ? PyLong_FromUnsignedLongLong(change.new_length) : NULL;
}
