/* module_arguments.c: arguments of METH_FASTCALL methods, by position and by name.
 *
 * Why not PyArg_ParseTupleAndKeywords: it costs as much as a whole get.
 */
#include "module.h"

static int find_name(ModuleState *state, const Signature *signature, PyObject *name) {
    for (int i = 0; i < signature->total; i++) {
        if (state->names[signature->names[i]] == name) {
            return i;
        }
    }
    for (int i = 0; i < signature->total; i++) {
        PyObject *known = state->names[signature->names[i]];
        if (known != NULL && PyUnicode_Compare(known, name) == 0) {
            return i;
        }
    }
    return -1;
}

bool parse_arguments(ModuleState *state, const Signature *signature, PyObject *const *args, Py_ssize_t nargs,
                     PyObject *kwnames, PyObject **values) {
    if (nargs > signature->positional) {
        PyErr_Format(PyExc_TypeError, "%s() takes at most %d positional arguments (%zd given)", signature->function,
                     (int)signature->positional, nargs);
        return false;
    }
    for (int i = 0; i < signature->total; i++) {
        values[i] = i < nargs ? args[i] : NULL;
    }
    Py_ssize_t named = kwnames == NULL ? 0 : PyTuple_GET_SIZE(kwnames);
    for (Py_ssize_t k = 0; k < named; k++) {
        PyObject *name = PyTuple_GET_ITEM(kwnames, k);
        int i = find_name(state, signature, name);
        if (i < 0) {
            PyErr_Format(PyExc_TypeError, "%s() got an unexpected keyword argument %R", signature->function, name);
            return false;
        }
        if (values[i] != NULL) {
            PyErr_Format(PyExc_TypeError, "%s() got multiple values for argument %R", signature->function, name);
            return false;
        }
        values[i] = args[nargs + k];
    }
    for (int i = 0; i < signature->required; i++) {
        if (values[i] == NULL) {
            PyErr_Format(PyExc_TypeError, "%s() missing required argument %R (pos %d)", signature->function,
                         state->names[signature->names[i]], i + 1);
            return false;
        }
    }
    return true;
}
