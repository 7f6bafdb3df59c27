/* module.h: what the files of the binding share: module state, handles on mappings, and one running call.
 *
 *   module.c            module definition, functions of the module
 *   module_arguments.c  arguments by position and name
 *   module_convert.c    Python objects <-> keys, values, durations
 *   module_errors.c     the one table from status codes to exceptions
 *   module_registry.c   mappings and slots of this process; fork, thread exit, process exit
 *   module_call.c       one operation from begin to end: waiting, re-attaching, durability
 *   module_store.c      Store: one key              module_batch.c  Store: many keys, iteration
 *   module_type.c       Store: the type, its life, what concerns the whole store
 *   module_arena.c      Arena: the type             module_log.c    Arena: ring and log; verify
 *   module_format.c     plan, format and headers    module_stats.c  numbers as dicts
 *
 * Invariants:
 *   I1  Nothing here calls Python, or lets the GIL go, between the begin and the end of a call of the core.
 *   I2  Nobody touches a mapping without the GIL unless counted in mapping->inside.
 *   I3  The registry's lock is never held while waiting for the GIL.
 */
#ifndef SHMKV_MODULE_H
#define SHMKV_MODULE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "ring.h"
#include "store.h"

#include <sys/types.h>

#define SLICE_NS 50000000ULL           /* longest wait without a look at signals */
#define VALUE_BUFFER_BYTES 4096        /* on the C stack: values up to this take one look-up */
#define SCRATCH_BYTES 65536
#define HUGE_PAGE_BYTES (2ULL << 20)
#define DURABILITY_ALWAYS 2            /* index in durability_names, value of control->durability */

/* ---- module state ------------------------------------------------------------------------------ */
/* Index, name in shmkv.errors, built-in that serves until that module has registered its classes. */
#define ERROR_TABLE(X)                                              \
    X(KEY_NOT_FOUND, "KeyNotFound", PyExc_KeyError)                 \
    X(UNAVAILABLE, "StoreUnavailable", PyExc_ConnectionError)       \
    X(READ_ONLY, "ReadOnly", PyExc_PermissionError)                 \
    X(MEMORY_LIMIT, "MemoryLimitExceeded", PyExc_MemoryError)       \
    X(KEY_TOO_LARGE, "KeyTooLarge", PyExc_ValueError)               \
    X(VALUE_TOO_LARGE, "ValueTooLarge", PyExc_ValueError)           \
    X(LOCK_TIMEOUT, "LockTimeout", PyExc_TimeoutError)              \
    X(LOG_STALLED, "LogStalled", PyExc_TimeoutError)                \
    X(DISK_FULL, "DiskFull", PyExc_OSError)                         \
    X(DURABILITY_UNKNOWN, "DurabilityUnknown", PyExc_RuntimeError)  \
    X(CORRUPT_DATA, "CorruptData", PyExc_ValueError)                \
    X(INCOMPATIBLE, "IncompatibleStore", PyExc_ValueError)
enum {
#define ERROR_ENUM(id, name, builtin) ERROR_##id,
    ERROR_TABLE(ERROR_ENUM)
#undef ERROR_ENUM
    ERROR_COUNT
};

/* Names of parameters: interned once, so that most comparisons are of pointers. */
#define NAME_TABLE(X)                                                                              \
    X(KEY, "key") X(VALUE, "value") X(DEFAULT, "default") X(TTL, "ttl") X(EXPIRES_AT, "expires_at") \
    X(KEEP_TTL, "keep_ttl") X(IF_ABSENT, "if_absent") X(IF_PRESENT, "if_present")                  \
    X(IF_VERSION, "if_version") X(PIN, "pin") X(DURABILITY, "durability") X(AMOUNT, "amount")      \
    X(INITIAL, "initial") X(MAPPING, "mapping")
enum {
#define NAME_ENUM(id, text) NAME_##id,
    NAME_TABLE(NAME_ENUM)
#undef NAME_ENUM
    NAME_COUNT
};

typedef struct ModuleState {
    PyObject *errors[ERROR_COUNT];
    PyObject *names[NAME_COUNT];
    PyObject *encode, *decode;
    PyTypeObject *store_type, *arena_type, *piece_type;
} ModuleState;

extern struct PyModuleDef module_definition;
extern PyType_Spec store_spec, arena_spec, piece_spec;

ALWAYS_INLINE ModuleState *state_of_type(PyTypeObject *type) {
    PyObject *module = PyType_GetModuleByDef(type, &module_definition);
    return module == NULL ? NULL : PyModule_GetState(module);
}

/* ---- registry: mappings and slots of this process ------------------------------------------------ */
typedef struct Claim {             /* a thread's place in one mapping */
    struct Claim *next;
    int32_t slot;                  /* -1 in a read-only mapping */
    uint32_t tid;
    uint64_t last_lsn;             /* version of the thread's last write here, 0 = none */
    uint64_t last_end;
} Claim;

typedef struct Mapping {
    Arena arena;
    uint64_t id;                   /* never used twice in a process, renewed by a fork */
    dev_t device;
    ino_t inode;
    uint32_t handles;              /* handles and views that keep it mapped */
    uint32_t inside;               /* calls that let the GIL go */
    Claim *claims;
    struct Mapping *next;
    uint8_t store_id[16];
    uint64_t incarnation;
    uint64_t first_lsn;
} Mapping;

typedef struct Handle {            /* embedded in Store and Arena objects */
    Mapping *mapping;              /* NULL = closed, or not yet open */
    ModuleState *state;
    PyObject *owner;               /* borrowed: the object that it lies in; NULL = it has no _reattach */
    uint64_t lock_timeout_ns, log_timeout_ns;
    int32_t durability;            /* -1 = the store's own */
    uint32_t inside;               /* calls through this handle that let the GIL go */
    uint32_t epoch;                /* fork epoch in which `inside` was counted */
    uint16_t namespace_id;
    bool read_only;
    bool closed;
} Handle;

typedef struct CachedClaim {
    uint64_t mapping_id;
    Claim *claim;
} CachedClaim;
#define CACHED_CLAIMS 4u
extern __thread CachedClaim claim_cache[CACHED_CLAIMS] __attribute__((tls_model("initial-exec")));
/* A word that reads 0 in a forked child until the registry has noticed: MADV_WIPEONFORK. */
extern const volatile uint64_t *fork_word;

bool registry_start(void);
/* Mapping of the object behind fd, shared with other handles on it; NULL with an exception set.  Keeps no fd.
 * prefault: touch locks, ring and slots now (only a mapping that is made new). */
Mapping *registry_open(ModuleState *state, int fd, bool read_only, bool prefault);
void mapping_keep(Mapping *mapping);
void mapping_release(Mapping *mapping);
/* The calling thread's claim; *status says why there is none. */
Claim *registry_claim(Mapping *mapping, Status *status);
uint32_t registry_epoch(void);
struct Op;
void registry_enter(struct Op *op);
void registry_leave(struct Op *op);
bool registry_others_inside(const Handle *handle, uint32_t *seen);

/* ---- one call ------------------------------------------------------------------------------------ */
typedef struct Op {
    Call call;
    Handle *handle;
    Mapping *mapping;
    Claim *claim;
    bool inside;
    uint32_t epoch;
    uint64_t begun_ns;             /* when it first had to wait */
    PyThreadState *thread_state;
    struct Op *outer;              /* counted as inside, further up this thread's stack */
} Op;

#define ST_RAISED ST_COUNT         /* an exception is set */
typedef Status (*Operation)(Call *call, void *arguments);

bool op_begin_slowly(Op *op, Handle *handle);
void op_release_gil(Op *op);
void op_take_gil(Op *op);
/* Runs Python's signal handlers; false with an exception set if one raised. */
bool op_check_signals(Op *op);

ALWAYS_INLINE bool op_begin(Op *op, Handle *handle) {
#ifndef Py_GIL_DISABLED
    Mapping *mapping = handle->mapping;
    if (LIKELY(mapping != NULL)) {
        const CachedClaim *cached = &claim_cache[mapping->id % CACHED_CLAIMS];
        if (LIKELY(cached->mapping_id == mapping->id && *fork_word != 0)) {
            op->call.arena = &mapping->arena;
            op->call.slot = cached->claim->slot;
            op->handle = handle;
            op->mapping = mapping;
            op->claim = cached->claim;
            op->inside = false;
            op->begun_ns = 0;
            return true;
        }
    }
#endif
    return op_begin_slowly(op, handle);
}
ALWAYS_INLINE void op_end(Op *op) {
    if (UNLIKELY(op->inside)) {
        registry_leave(op);
    }
}

/* As op_begin, for what would not notice by itself that the arena has ended. */
bool op_begin_current(Op *op, Handle *handle);
/* What follows a first try that gave s: waits while ST_BUSY, attaches anew on ST_RETIRED; the final status. */
Status op_finish(Op *op, Status s, Operation run, void *arguments);
/* Runs it without the GIL from the start, then as op_finish. */
Status op_run_released(Op *op, Operation run, void *arguments);
/* For what reads no sequence (counts, numbers): attaches anew if the arena has ended; false with an exception set. */
bool op_still_there(Op *op);
/* Waits without the GIL until durable_lsn >= lsn: ST_OK, ST_BUSY (until_ns came), ST_LOG_REFUSED, ST_RAISED. */
Status op_wait_durable(Op *op, uint64_t lsn, uint64_t until_ns);
bool op_written_slowly(Op *op);
/* After ST_OK of a write: remembers its LSN; waits until it is on disk if level (or the default) says so. */
ALWAYS_INLINE bool op_written(Op *op, int32_t level) {
    op->claim->last_lsn = op->call.lsn;
    op->claim->last_end = op->call.record_end;
    if (level < 0) {
        level = op->handle->durability;
    }
    if (level < 0) {
        level = (int32_t)load_relaxed_u32(&op->call.arena->control->durability);
    }
    return LIKELY(level != DURABILITY_ALWAYS || !op->call.arena->has_log) || op_written_slowly(op);
}
bool handle_check_open(const Handle *handle);
bool handle_close(Handle *handle);
void handle_drop(Handle *handle);

/* ---- errors ----------------------------------------------------------------------------------------- */
PyObject *error_class(ModuleState *state, int index);
void raise_error(ModuleState *state, int index, const char *format, ...);
/* The exception for a status that ended an operation; key may be NULL. */
void raise_status(Op *op, Status s, PyObject *key);
void raise_timeout(Op *op);
void raise_not_durable(Op *op, uint64_t lsn);
void raise_open_error(ModuleState *state, Status s, const OpenError *why);

/* ---- arguments ---------------------------------------------------------------------------------------- */
typedef struct Signature {
    const char *function;
    uint8_t positional;            /* parameters that may be given by position */
    uint8_t required;
    uint8_t total;
    uint8_t names[12];
} Signature;
/* values[i] = borrowed argument i or NULL. */
bool parse_arguments(ModuleState *state, const Signature *signature, PyObject *const *args, Py_ssize_t nargs,
                     PyObject *kwnames, PyObject **values);

/* ---- conversion ----------------------------------------------------------------------------------------- */
typedef struct Encoded {
    const void *data;
    uint64_t length;
    PyObject *owner;               /* strong; NULL = the caller's value owns data */
    int64_t number;                /* where an int or float is put */
    uint8_t type;
} Encoded;

bool key_text_slowly(PyObject *object, const char **data, Py_ssize_t *length);
ALWAYS_INLINE bool key_text(PyObject *object, const char **data, Py_ssize_t *length) {
    if (LIKELY(PyUnicode_Check(object) && PyUnicode_IS_COMPACT_ASCII(object))) {
        *data = (const char *)((PyASCIIObject *)object + 1);
        *length = ((PyASCIIObject *)object)->length;
        return true;
    }
    if (LIKELY(PyBytes_Check(object))) {
        *data = PyBytes_AS_STRING(object);
        *length = PyBytes_GET_SIZE(object);
        return true;
    }
    return key_text_slowly(object, data, length);
}
/* The key borrows the bytes of the object. */
bool op_key_failed(Op *op, Status s, Py_ssize_t length);
ALWAYS_INLINE bool op_key(Op *op, PyObject *object, Key *key) {
    const char *data;
    Py_ssize_t length;
    if (UNLIKELY(!key_text(object, &data, &length))) {
        return false;
    }
    Status s = key_init(op->call.arena, key, data, (size_t)length, op->handle->namespace_id);
    return LIKELY(s == ST_OK) || op_key_failed(op, s, length);
}

/* encoded must stay where it is while data is used. */
bool encode_value(ModuleState *state, PyObject *value, Encoded *encoded);
PyObject *decode_value(ModuleState *state, uint8_t type, const uint8_t *data, uint64_t length);
PyObject *key_object(const uint8_t *data, uint64_t length);

bool seconds_from(PyObject *object, const char *what, double *seconds);
typedef struct Expiry {
    enum { EXPIRY_NEVER, EXPIRY_AFTER, EXPIRY_AT } kind;
    uint64_t ms;
} Expiry;
/* From `ttl` or `expires_at` (NULL or None = not given). May run Python. */
bool expiry_from(PyObject *ttl, PyObject *expires_at, Expiry *expiry);
/* ms of the arena's clock; 0 = never. */
uint64_t expiry_in(const Arena *arena, const Expiry *expiry);
bool timeout_from(PyObject *object, const char *what, uint64_t standard_ns, uint64_t *timeout_ns);
bool version_from(PyObject *object, uint64_t *version);
/* -1 for None or NULL. */
bool durability_from(PyObject *object, int32_t *level);
extern const char *const durability_names[3];

/* ---- dicts of numbers --------------------------------------------------------------------------------- */
bool dict_put(PyObject *dict, const char *name, PyObject *stolen);
bool dict_put_number(PyObject *dict, const char *name, uint64_t number);
PyObject *stats_dict(const Arena *arena);
PyObject *slots_list(const Arena *arena);
PyObject *info_dict(const ArenaHeader *header, const Control *control);
const ArenaHeader *header_choose(const uint8_t *base);

PyObject *function_plan(PyObject *module, PyObject *args, PyObject *kwargs);
PyObject *function_format_arena(PyObject *module, PyObject *args, PyObject *kwargs);
PyObject *function_read_header(PyObject *module, PyObject *fd);
PyObject *function_verify(PyObject *module, PyObject *args, PyObject *kwargs);
PyObject *function_check_entries(PyObject *module, PyObject *data);
PyObject *replay_data(ModuleState *state, Arena *arena, PyObject *args, PyObject *kwargs);

/* ---- Arena: one object, its methods in three files ------------------------------------------------------- */
Handle *arena_handle(PyObject *self);
bool arena_begin(Op *op, PyObject *self, bool write);
PyObject *arena_finish(Op *op, Status s);
PyObject *arena_ring(PyObject *self, PyObject *unused);
PyObject *arena_ring_wait(PyObject *self, PyObject *const *args, Py_ssize_t nargs);
PyObject *arena_ring_collect(PyObject *self, PyObject *const *args, Py_ssize_t nargs);
PyObject *arena_ring_pieces(PyObject *self, PyObject *const *args, Py_ssize_t nargs);
PyObject *arena_publish_written(PyObject *self, PyObject *lsn);
PyObject *arena_publish_durable(PyObject *self, PyObject *const *args, Py_ssize_t nargs);
PyObject *arena_attend(PyObject *self, PyObject *unused);
PyObject *arena_set_lsn(PyObject *self, PyObject *lsn);
PyObject *arena_mark(PyObject *self, PyObject *wall_ms);
PyObject *arena_apply(PyObject *self, PyObject *args, PyObject *kwargs);
/* False with an exception set unless the arena is in state CREATING. */
bool arena_check_creating(const Op *op);
PyObject *arena_fill(PyObject *self, PyObject *const *args, Py_ssize_t nargs);
PyObject *arena_load(PyObject *self, PyObject *args, PyObject *kwargs);

/* ---- Store: one object, its methods in three files -------------------------------------------------------- */
typedef struct StoreObject {
    PyObject_HEAD
    Handle handle;
    PyObject *name;
    PyObject *weak_references;
} StoreObject;

/* The value; a new reference to fallback if there is no such key; KeyNotFound if fallback is NULL. */
PyObject *store_look_up(StoreObject *self, PyObject *key, PyObject *fallback);
PyObject *store_subscript(StoreObject *self, PyObject *key);
int store_assign(StoreObject *self, PyObject *key, PyObject *value);
int store_contains(StoreObject *self, PyObject *key);
Py_ssize_t store_length(StoreObject *self);
PyObject *store_get_method(StoreObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames);
PyObject *store_set_method(StoreObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames);
PyObject *store_delete_method(StoreObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames);
PyObject *store_incr_method(StoreObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames);
PyObject *store_decr_method(StoreObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames);
PyObject *store_append_method(StoreObject *self, PyObject *const *args, Py_ssize_t nargs);
PyObject *store_entry_method(StoreObject *self, PyObject *key);
PyObject *store_get_many_method(StoreObject *self, PyObject *keys);
PyObject *store_set_many_method(StoreObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames);
PyObject *store_delete_many_method(StoreObject *self, PyObject *keys);
PyObject *store_scan_method(StoreObject *self, PyObject *const *args, Py_ssize_t nargs);

#endif
