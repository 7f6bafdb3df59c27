/* module_batch.c: operations of Store on many keys, and the steps of an iteration.
 *
 * Invariants:
 *   I1  Scratch memory belongs to the call: a collection inside it may enter the same method again.
 *   I2  set_many has strong references to all, and everything encoded, before it writes the first item.
 *   I3  Values are decoded after op_end: decoding may run Python, which may close the handle.
 */
#include "module.h"

#include <string.h>

#define CHUNK 256u
#define CHUNK_LEAST 16u
#define SLICE_ITEMS 2048u             /* between two looks at signals */
#define RELEASE_ITEMS 256u            /* from here on others may run meanwhile */
#define CURSOR_BITS 48                /* of a cursor: the rest tells the arena that it belongs to */
#define CURSOR_MARK(incarnation) (((incarnation) & 0x7fff) << CURSOR_BITS)

static PyObject *key_tuple(PyObject *keys, const char *function) {
    if (PyUnicode_Check(keys) || PyBytes_Check(keys)) {
        PyErr_Format(PyExc_TypeError, "%s() takes several keys, not one %.200s: put it in a list", function,
                     Py_TYPE(keys)->tp_name);
        return NULL;
    }
    return PySequence_Tuple(keys);
}

/* ---- get_many ------------------------------------------------------------------------------------ */
typedef struct GetMany {
    uint32_t n;
    Key keys[CHUNK];
    Value values[CHUNK];
    uint8_t status[CHUNK];
    uint8_t buffer[SCRATCH_BYTES];
} GetMany;

static Status run_get_many(Call *call, void *arguments) {
    GetMany *many = arguments;
    for (uint32_t i = 0; i < many->n; i++) {
        Key *key = &many->keys[i];
        key_init(call->arena, key, key->data, key->length, key->namespace_id);
    }
    return store_get_many(call, many->keys, many->n, many->buffer, sizeof many->buffer, many->values, many->status);
}

/* Looks up keys[0..n); false with an exception set. */
static bool get_chunk(StoreObject *self, PyObject *const *keys, GetMany *many) {
    Op op;
    if (!op_begin(&op, &self->handle)) {
        return false;
    }
    bool done = true;
    for (uint32_t i = 0; i < many->n && done; i++) {
        done = op_key(&op, keys[i], &many->keys[i]);
    }
    if (done) {
        Status s = store_get_many(&op.call, many->keys, many->n, many->buffer, sizeof many->buffer, many->values,
                                  many->status);
        if (UNLIKELY(s != ST_OK)) {
            s = op_finish(&op, s, run_get_many, many);
        }
        done = s == ST_OK;
        if (!done) {
            raise_status(&op, s, NULL);
        }
    }
    op_end(&op);
    return done;
}

/* Puts what was found into the dict; *packed = how many came with the chunk. */
static bool collect_chunk(StoreObject *self, PyObject *const *keys, const GetMany *many, PyObject *result,
                          uint32_t *packed) {
    *packed = 0;
    for (uint32_t i = 0; i < many->n; i++) {
        if (many->status[i] == ST_NOT_FOUND) {
            continue;
        }
        PyObject *value;
        if (many->status[i] == ST_OK) {
            value = decode_value(self->handle.state, many->values[i].type, many->values[i].data,
                                 many->values[i].length);
            ++*packed;
        } else {
            /* The dict itself stands for "missing": no value can be this object. */
            value = store_look_up(self, keys[i], result);
        }
        int failed = value == NULL ? -1 : value == result ? 0 : PyDict_SetItem(result, keys[i], value);
        Py_XDECREF(value);
        if (failed) {
            return false;
        }
    }
    return true;
}

static bool get_all(StoreObject *self, PyObject *keys, PyObject *result) {
    GetMany *many = PyMem_Malloc(sizeof *many);
    if (many == NULL) {
        PyErr_NoMemory();
        return false;
    }
    PyObject *const *items = &PyTuple_GET_ITEM(keys, 0);
    Py_ssize_t n = PyTuple_GET_SIZE(keys);
    uint32_t chunk = CHUNK, packed;
    bool done = true;
    for (Py_ssize_t at = 0; at < n && done; at += many->n) {
        many->n = n - at < (Py_ssize_t)chunk ? (uint32_t)(n - at) : chunk;
        done = get_chunk(self, items + at, many) && collect_chunk(self, items + at, many, result, &packed) &&
               (n <= (Py_ssize_t)CHUNK || PyErr_CheckSignals() == 0);
        /* Large values fill the buffer early: ask for as many as it holds. */
        if (done && packed < many->n / 2) {
            chunk = packed < CHUNK_LEAST ? CHUNK_LEAST : packed;
        }
    }
    PyMem_Free(many);
    return done;
}

PyObject *store_get_many_method(StoreObject *self, PyObject *keys_object) {
    PyObject *keys = key_tuple(keys_object, "get_many");
    if (keys == NULL) {
        return NULL;
    }
    PyObject *result = handle_check_open(&self->handle) ? PyDict_New() : NULL;
    if (result != NULL && !get_all(self, keys, result)) {
        Py_CLEAR(result);
    }
    Py_DECREF(keys);
    return result;
}

/* ---- set_many, delete_many ----------------------------------------------------------------------------- */
typedef struct Batch {
    BatchEntry *entries;
    Encoded *encoded;              /* NULL for deletes */
    uint32_t n, done, until;
    uint64_t hash_key;             /* of the arena that the keys are hashed for */
    uint64_t lsn, record_end;
} Batch;

static Status batch_hash(Batch *batch, const Arena *arena, uint16_t namespace_id) {
    for (uint32_t i = batch->done; i < batch->n; i++) {
        Key *key = &batch->entries[i].key;
        Status s = key_init(arena, key, key->data, key->length, namespace_id);
        if (s != ST_OK) {
            return s;
        }
    }
    batch->hash_key = arena->hash_key[0];
    return ST_OK;
}

static Status run_batch(Call *call, void *arguments) {
    Batch *batch = arguments;
    if (batch->hash_key != call->arena->hash_key[0]) {
        Status s = batch_hash(batch, call->arena, batch->entries[batch->done].key.namespace_id);
        if (s != ST_OK) {
            return s;
        }
    }
    call->lsn = 0;
    Status s = store_write_many(call, batch->entries, batch->until, &batch->done);
    if (call->lsn > batch->lsn) {
        batch->lsn = call->lsn;
        batch->record_end = call->record_end;
    }
    return s;
}

static void note_progress(const Batch *batch, const char *function) {
    PyObject *type, *error, *traceback;
    PyErr_Fetch(&type, &error, &traceback);
    PyErr_NormalizeException(&type, &error, &traceback);
    PyObject *text = PyUnicode_FromFormat("%s: %u of %u items were done before this", function, batch->done, batch->n);
    PyObject *noted = text == NULL ? NULL : PyObject_CallMethod(error, "add_note", "O", text);
    Py_XDECREF(text);
    Py_XDECREF(noted);
    PyErr_Restore(type, error, traceback);
}

/* All that can be refused is refused before the first write. */
static bool batch_check(Op *op, Batch *batch, const Expiry *expiry) {
    const Arena *arena = op->call.arena;
    Status s = op->handle->read_only ? ST_READ_ONLY : batch_hash(batch, arena, op->handle->namespace_id);
    uint64_t limit = arena_value_limit(arena), expires_ms = expiry_in(arena, expiry);
    for (uint32_t i = 0; i < batch->n && s == ST_OK; i++) {
        batch->entries[i].expires_ms = expires_ms;
        if (batch->entries[i].length > limit) {
            op->call.needed_bytes = batch->entries[i].length;
            s = ST_VALUE_TOO_LARGE;
        }
    }
    if (s != ST_OK) {
        raise_status(op, s, NULL);
    }
    return s == ST_OK;
}

static bool batch_write(Op *op, Batch *batch, const char *function) {
    Status s = ST_OK;
    while (batch->done < batch->n && s == ST_OK) {
        batch->until = batch->n - batch->done < SLICE_ITEMS ? batch->n : batch->done + SLICE_ITEMS;
        op->begun_ns = 0;
        s = batch->n >= RELEASE_ITEMS ? op_run_released(op, run_batch, batch)
                                      : op_finish(op, run_batch(&op->call, batch), run_batch, batch);
        if (s == ST_OK && op->inside && !op_check_signals(op)) {
            s = ST_RAISED;
        }
    }
    op->call.lsn = batch->lsn;
    op->call.record_end = batch->record_end;
    if (s != ST_OK) {
        raise_status(op, s, NULL);
        note_progress(batch, function);
        if (op->claim != NULL && batch->lsn != 0) {
            op->claim->last_lsn = batch->lsn;
            op->claim->last_end = batch->record_end;
        }
        return false;
    }
    return batch->lsn == 0 || op_written(op, -1);
}

static bool batch_run(StoreObject *self, Batch *batch, const Expiry *expiry, const char *function) {
    Op op;
    if (!op_begin(&op, &self->handle)) {
        return false;
    }
    bool done = batch_check(&op, batch, expiry) && batch_write(&op, batch, function);
    op_end(&op);
    return done;
}

static bool batch_make(Batch *batch, Py_ssize_t n, bool values) {
    memset(batch, 0, sizeof *batch);
    if ((uint64_t)n > UINT32_MAX) {
        PyErr_SetString(PyExc_OverflowError, "at most 2**32 - 1 items at once");
        return false;
    }
    batch->n = (uint32_t)n;
    batch->entries = PyMem_Calloc((size_t)n + 1, sizeof *batch->entries);
    batch->encoded = values ? PyMem_Calloc((size_t)n + 1, sizeof *batch->encoded) : NULL;
    if (batch->entries == NULL || (values && batch->encoded == NULL)) {
        PyMem_Free(batch->entries);
        PyErr_NoMemory();
        return false;
    }
    return true;
}

static void batch_free(Batch *batch) {
    for (uint32_t i = 0; batch->encoded != NULL && i < batch->n; i++) {
        Py_XDECREF(batch->encoded[i].owner);
    }
    PyMem_Free(batch->encoded);
    PyMem_Free(batch->entries);
}

static bool batch_key(BatchEntry *entry, PyObject *key) {
    const char *data;
    Py_ssize_t length;
    if (!key_text(key, &data, &length)) {
        return false;
    }
    entry->key.data = (const uint8_t *)data;
    /* Too long ones are refused when they are hashed; until then the length must not wrap. */
    entry->key.length = length > (Py_ssize_t)KEY_LIMIT ? KEY_LIMIT + 1 : (uint32_t)length;
    return true;
}

static bool batch_add_items(StoreObject *self, Batch *batch, PyObject *items) {
    for (uint32_t i = 0; i < batch->n; i++) {
        PyObject *item = PyList_GET_ITEM(items, i);
        if (!PyTuple_Check(item) || PyTuple_GET_SIZE(item) != 2) {
            PyErr_SetString(PyExc_TypeError, "set_many() takes a mapping: its items() must be pairs");
            return false;
        }
        BatchEntry *entry = &batch->entries[i];
        Encoded *encoded = &batch->encoded[i];
        if (!batch_key(entry, PyTuple_GET_ITEM(item, 0)) ||
            !encode_value(self->handle.state, PyTuple_GET_ITEM(item, 1), encoded)) {
            return false;
        }
        entry->type = encoded->type;
        entry->data = encoded->data;
        entry->length = encoded->length;
    }
    return true;
}

static const Signature set_many_signature = {"set_many", 1, 1, 2, {NAME_MAPPING, NAME_TTL}};

PyObject *store_set_many_method(StoreObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
    PyObject *values[2];
    Expiry expiry;
    Batch batch;
    if (!parse_arguments(self->handle.state, &set_many_signature, args, nargs, kwnames, values) ||
        !expiry_from(values[1], NULL, &expiry)) {
        return NULL;
    }
    PyObject *items = PyMapping_Items(values[0]);
    if (items == NULL) {
        if (PyErr_ExceptionMatches(PyExc_AttributeError)) {
            PyErr_Format(PyExc_TypeError, "set_many() takes a mapping, not %.200s", Py_TYPE(values[0])->tp_name);
        }
        return NULL;
    }
    bool done = false;
    if (batch_make(&batch, PyList_GET_SIZE(items), true)) {
        done = batch_add_items(self, &batch, items) && batch_run(self, &batch, &expiry, "set_many");
        batch_free(&batch);
    }
    Py_DECREF(items);
    if (!done) {
        return NULL;
    }
    Py_RETURN_NONE;
}

PyObject *store_delete_many_method(StoreObject *self, PyObject *keys_object) {
    PyObject *keys = key_tuple(keys_object, "delete_many");
    const Expiry never = {.kind = EXPIRY_NEVER};
    Batch batch;
    if (keys == NULL || !batch_make(&batch, PyTuple_GET_SIZE(keys), false)) {
        Py_XDECREF(keys);
        return NULL;
    }
    bool done = true;
    for (uint32_t i = 0; i < batch.n && done; i++) {
        batch.entries[i].remove = true;
        done = batch_key(&batch.entries[i], PyTuple_GET_ITEM(keys, i));
    }
    done = done && batch_run(self, &batch, &never, "delete_many");
    unsigned long existed = 0;
    for (uint32_t i = 0; i < batch.n; i++) {
        existed += batch.entries[i].existed;
    }
    batch_free(&batch);
    Py_DECREF(keys);
    return done ? PyLong_FromUnsignedLong(existed) : NULL;
}

/* ---- iteration ------------------------------------------------------------------------------------------ */
typedef struct Scan {
    uint64_t cursor;
    bool with_values;
    uint16_t namespace_id;
    uint8_t *buffer;
    uint64_t capacity, used;
    uint32_t count;
} Scan;

static Status run_scan(Call *call, void *arguments) {
    Scan *scan = arguments;
    /* Every arena is the first member of its mapping. */
    uint64_t mark = CURSOR_MARK(((const Mapping *)call->arena)->incarnation), low = (1ULL << CURSOR_BITS) - 1;
    if (scan->cursor != 0 && (scan->cursor & ~low) != mark) {
        return ST_CONDITION;
    }
    uint64_t cursor = scan->cursor & low;
    Status s = store_scan(call, scan->namespace_id, &cursor, scan->with_values, scan->buffer, scan->capacity,
                          &scan->used, &scan->count);
    if (s == ST_OK) {
        scan->cursor = cursor == CURSOR_END ? CURSOR_END : cursor | mark;
    }
    return s;
}

static PyObject *scan_list(ModuleState *state, const Scan *scan) {
    PyObject *list = PyList_New(scan->count);
    const uint8_t *at = scan->buffer;
    for (uint32_t i = 0; i < scan->count && list != NULL; i++) {
        ScanItem item;
        memcpy(&item, at, sizeof item);
        const uint8_t *key_bytes = at + sizeof item;
        PyObject *entry = key_object(key_bytes, item.key_length);
        if (entry != NULL && scan->with_values) {
            PyObject *value = decode_value(state, item.type, key_bytes + align_up(item.key_length, 8),
                                           item.value_length);
            PyObject *pair = value == NULL ? NULL : PyTuple_Pack(2, entry, value);
            Py_XDECREF(value);
            Py_SETREF(entry, pair);
        }
        if (entry == NULL) {
            Py_CLEAR(list);
        } else {
            PyList_SET_ITEM(list, i, entry);
        }
        at += item.item_bytes;
    }
    return list;
}

/* One step into a buffer that grows as needed; false with an exception set. */
static bool scan_step(StoreObject *self, Scan *scan) {
    Op op;
    if (!op_begin(&op, &self->handle)) {
        return false;
    }
    scan->namespace_id = self->handle.namespace_id;
    Status s = op_finish(&op, run_scan(&op.call, scan), run_scan, scan);
    while (s == ST_BUFFER) {
        scan->capacity = align_up(op.call.needed_bytes, 8) + CACHE_LINE;
        PyMem_Free(scan->buffer);
        scan->buffer = PyMem_Malloc(scan->capacity);
        if (scan->buffer == NULL) {
            PyErr_NoMemory();
            s = ST_RAISED;
        } else {
            s = op_run_released(&op, run_scan, scan);
        }
    }
    if (s == ST_CONDITION) {
        raise_error(self->handle.state, ERROR_UNAVAILABLE, "the store restarted during the iteration; begin it anew");
    } else if (s != ST_OK) {
        raise_status(&op, s, NULL);
    }
    op_end(&op);
    return s == ST_OK;
}

PyObject *store_scan_method(StoreObject *self, PyObject *const *args, Py_ssize_t nargs) {
    if (nargs != 2) {
        PyErr_Format(PyExc_TypeError, "_scan() takes 2 arguments: cursor and with_values (%zd given)", nargs);
        return NULL;
    }
    Scan scan = {.cursor = PyLong_AsUnsignedLongLong(args[0]), .capacity = SCRATCH_BYTES};
    int with_values = scan.cursor == UINT64_MAX && PyErr_Occurred() ? -1 : PyObject_IsTrue(args[1]);
    if (with_values < 0) {
        return NULL;
    }
    scan.with_values = with_values > 0;
    if (scan.cursor == CURSOR_END) {
        return Py_BuildValue("(K[])", (unsigned long long)CURSOR_END);
    }
    scan.buffer = PyMem_Malloc(scan.capacity);
    if (scan.buffer == NULL) {
        return PyErr_NoMemory();
    }
    PyObject *list = scan_step(self, &scan) ? scan_list(self->handle.state, &scan) : NULL;
    PyMem_Free(scan.buffer);
    return list == NULL ? NULL : Py_BuildValue("(KN)", (unsigned long long)scan.cursor, list);
}
