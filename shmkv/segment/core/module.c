/* module.c: the module shmkv.segment._core: its functions, its types, its state.
 *
 * Invariants:
 *   I1  All that belongs to the interpreter lies in ModuleState; what belongs to the process, in module_registry.c.
 *   I2  One interpreter per process: slots and mappings are claimed under its GIL.
 */
#include "module.h"

#include <string.h>

static PyObject *function_crc32c(PyObject *module, PyObject *args, PyObject *kwargs) {
    (void)module;
    static char *names[] = {"data", "crc", NULL};
    Py_buffer data;
    unsigned int crc = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "y*|I:crc32c", names, &data, &crc)) {
        return NULL;
    }
    if (data.len > (Py_ssize_t)LARGE_VALUE_BYTES) {
        Py_BEGIN_ALLOW_THREADS
        crc = crc32c(crc, data.buf, (size_t)data.len);
        Py_END_ALLOW_THREADS
    } else {
        crc = crc32c(crc, data.buf, (size_t)data.len);
    }
    PyBuffer_Release(&data);
    return PyLong_FromUnsignedLong(crc);
}

static PyObject *function_set_codec(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"encode", "decode", NULL};
    PyObject *encode, *decode;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO:set_codec", names, &encode, &decode)) {
        return NULL;
    }
    if (!PyCallable_Check(encode) || !PyCallable_Check(decode)) {
        PyErr_SetString(PyExc_TypeError, "set_codec() takes two callables");
        return NULL;
    }
    ModuleState *state = PyModule_GetState(module);
    Py_XSETREF(state->encode, Py_NewRef(encode));
    Py_XSETREF(state->decode, Py_NewRef(decode));
    Py_RETURN_NONE;
}

static const char *const error_names[ERROR_COUNT] = {
#define ERROR_NAME(id, name, builtin) name,
    ERROR_TABLE(ERROR_NAME)
#undef ERROR_NAME
};
static const char *const name_texts[NAME_COUNT] = {
#define NAME_TEXT(id, text) text,
    NAME_TABLE(NAME_TEXT)
#undef NAME_TEXT
};

static PyObject *function_set_errors(PyObject *module, PyObject *table) {
    ModuleState *state = PyModule_GetState(module);
    PyObject *found[ERROR_COUNT] = {NULL};
    int n = 0;
    for (; n < ERROR_COUNT; n++) {
        found[n] = PyMapping_GetItemString(table, error_names[n]);
        if (found[n] == NULL) {
            break;
        }
        if (!PyExceptionClass_Check(found[n])) {
            PyErr_Format(PyExc_TypeError, "%s is no exception class", error_names[n]);
            Py_CLEAR(found[n]);
            break;
        }
    }
    bool complete = n == ERROR_COUNT;
    while (n-- > 0) {
        if (complete) {
            Py_XSETREF(state->errors[n], found[n]);
        } else {
            Py_DECREF(found[n]);
        }
    }
    if (!complete) {
        return NULL;
    }
    Py_RETURN_NONE;
}

#define NAMED(function) (PyCFunction)(void (*)(void))function, METH_VARARGS | METH_KEYWORDS
static PyMethodDef module_functions[] = {
    {"plan", NAMED(function_plan),
     "plan($module, /, *, size_bytes, max_size_bytes=0, ring_bytes=0,\n     expected_items=0, stripes=0)\n--\n\n"
     "Layout of an arena of that size, as numbers; ValueError with the least size if it is too small."},
    {"format_arena", NAMED(function_format_arena),
     "format_arena($module, /, fd, *, size_bytes, max_size_bytes=0, ring_bytes=0,\n             expected_items=0, "
     "stripes=0, name, store_id, incarnation, first_lsn,\n             has_log, hash_key=None)\n--\n\n"
     "Write an empty arena (state CREATING) into fd, whose size_bytes must be reserved and zero."},
    {"read_header", function_read_header, METH_O,
     "read_header($module, fd, /)\n--\n\nHeader and ring words of any layout version; CorruptData if neither copy "
     "is good."},
    {"verify", NAMED(function_verify),
     "verify($module, /, data, *, store_id, incarnation, first_lsn,\n       limit_lsn=2**64 - 1, "
     "limit_wall_ms=2**64 - 1)\n--\n\nCheck log records: consumed_bytes, next_lsn, records, durable_before, wall_ms, "
     "mark_lsn, stopped (None or why)."},
    {"check_entries", function_check_entries, METH_O,
     "check_entries($module, data, /)\n--\n\nCheck entry images as Arena.load does, without an arena."},
    {"crc32c", NAMED(function_crc32c), "crc32c($module, /, data, crc=0)\n--\n\nCRC-32C, going on from crc."},
    {"set_codec", NAMED(function_set_codec),
     "set_codec($module, /, encode, decode)\n--\n\nRegister the Python side of the values that C does not encode "
     "itself."},
    {"set_errors", function_set_errors, METH_O,
     "set_errors($module, table, /)\n--\n\nRegister the exception classes, by name."},
    {NULL, NULL, 0, NULL}};

static PyTypeObject *add_type(PyObject *module, PyType_Spec *spec) {
    PyTypeObject *type = (PyTypeObject *)PyType_FromModuleAndSpec(module, spec, NULL);
    if (type != NULL && spec != &piece_spec && PyModule_AddType(module, type) < 0) {
        Py_CLEAR(type);
    }
    return type;
}

static int add_number(PyObject *module, const char *name, unsigned long long number) {
    PyObject *object = PyLong_FromUnsignedLongLong(number);
    int failed = object == NULL ? -1 : PyModule_AddObjectRef(module, name, object);
    Py_XDECREF(object);
    return failed;
}

static int module_execute(PyObject *module) {
    ModuleState *state = PyModule_GetState(module);
    if (PyInterpreterState_Get() != PyInterpreterState_Main()) {
        PyErr_SetString(PyExc_ImportError, "shmkv does not run in sub-interpreters; use processes or threads");
        return -1;
    }
    if (!registry_start()) {
        PyErr_SetString(PyExc_ImportError, "shmkv got no thread-specific key or no fork handler from the C library");
        return -1;
    }
    for (int i = 0; i < NAME_COUNT; i++) {
        state->names[i] = PyUnicode_InternFromString(name_texts[i]);
        if (state->names[i] == NULL) {
            return -1;
        }
    }
    state->store_type = add_type(module, &store_spec);
    state->arena_type = add_type(module, &arena_spec);
    state->piece_type = add_type(module, &piece_spec);
    if (state->store_type == NULL || state->arena_type == NULL || state->piece_type == NULL) {
        return -1;
    }
    bool failed = add_number(module, "LAYOUT_VERSION", LAYOUT_VERSION) ||
                  add_number(module, "LAYOUT_HASH", arena_layout_hash()) || add_number(module, "LSN_GAP", LSN_GAP) ||
                  add_number(module, "KEY_LIMIT", KEY_LIMIT) || add_number(module, "CURSOR_END", CURSOR_END);
    return failed ? -1 : 0;
}

static int module_traverse(PyObject *module, visitproc visit, void *arg) {
    ModuleState *state = PyModule_GetState(module);
    for (int i = 0; i < ERROR_COUNT; i++) {
        Py_VISIT(state->errors[i]);
    }
    Py_VISIT(state->encode);
    Py_VISIT(state->decode);
    Py_VISIT(state->store_type);
    Py_VISIT(state->arena_type);
    Py_VISIT(state->piece_type);
    return 0;
}

static int module_clear(PyObject *module) {
    ModuleState *state = PyModule_GetState(module);
    for (int i = 0; i < ERROR_COUNT; i++) {
        Py_CLEAR(state->errors[i]);
    }
    for (int i = 0; i < NAME_COUNT; i++) {
        Py_CLEAR(state->names[i]);
    }
    Py_CLEAR(state->encode);
    Py_CLEAR(state->decode);
    Py_CLEAR(state->store_type);
    Py_CLEAR(state->arena_type);
    Py_CLEAR(state->piece_type);
    return 0;
}

static void module_free(void *module) { module_clear(module); }

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_execute},
#ifdef Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
#ifdef Py_MOD_GIL_USED
    /* Operations count as inside from begin to end on free-threaded builds, but nothing was tested there yet. */
    {Py_mod_gil, Py_MOD_GIL_USED},
#endif
    {0, NULL}};

struct PyModuleDef module_definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "shmkv.segment._core",
    .m_doc = "The binding of the C core: two types over one mapping. Store is for users, Arena for services.",
    .m_size = sizeof(ModuleState),
    .m_methods = module_functions,
    .m_slots = module_slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
    .m_free = module_free,
};

PyMODINIT_FUNC PyInit__core(void) { return PyModuleDef_Init(&module_definition); }
