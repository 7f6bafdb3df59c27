/* module_convert.c: Python objects to keys, values, durations, and back.
 *
 * Invariants:
 *   I1  Values are taken by their exact type; a subclass goes to the registered encoder, which refuses it by name.
 *   I2  What is decoded here can run no code: other types go to the registered decoder.
 *   I3  A lone surrogate is a ValueError (UnicodeEncodeError is one), in keys and in str values.
 */
#include "module.h"

#include <math.h>
#include <string.h>

#define LONGEST_S 1e14               /* seconds: three million years, and ms still fit 64 bits */

const char *const durability_names[3] = {"none", "interval", "always"};

/* ---- keys ---------------------------------------------------------------------------------------- */
bool key_text_slowly(PyObject *object, const char **data, Py_ssize_t *length) {
    if (PyUnicode_Check(object)) {
        *data = PyUnicode_AsUTF8AndSize(object, length);
        return *data != NULL;
    }
    PyErr_Format(PyExc_TypeError, "a key is a str or bytes, not %.200s", Py_TYPE(object)->tp_name);
    return false;
}

bool op_key_failed(Op *op, Status s, Py_ssize_t length) {
    if (s == ST_KEY_TOO_LARGE) {
        raise_error(op->handle->state, ERROR_KEY_TOO_LARGE, "the key has %zd bytes, the limit is %u; use its digest "
                    "as the key",
                    length, KEY_LIMIT);
    } else {
        raise_status(op, s, NULL);
    }
    return false;
}

PyObject *key_object(const uint8_t *data, uint64_t length) {
    PyObject *text = PyUnicode_DecodeUTF8((const char *)data, (Py_ssize_t)length, NULL);
    if (text != NULL || !PyErr_ExceptionMatches(PyExc_UnicodeDecodeError)) {
        return text;
    }
    PyErr_Clear();
    return PyBytes_FromStringAndSize((const char *)data, (Py_ssize_t)length);
}

/* ---- values -------------------------------------------------------------------------------------- */
static bool encode_text(PyObject *value, Encoded *encoded) {
    encoded->type = TYPE_STR;
    if (PyUnicode_IS_COMPACT_ASCII(value)) {
        encoded->data = (const char *)((PyASCIIObject *)value + 1);
        encoded->length = (uint64_t)PyUnicode_GET_LENGTH(value);
        return true;
    }
    /* Not AsUTF8: that would leave a second copy in the caller's string for as long as it lives. */
    encoded->owner = PyUnicode_AsUTF8String(value);
    if (encoded->owner == NULL) {
        return false;
    }
    encoded->data = PyBytes_AS_STRING(encoded->owner);
    encoded->length = (uint64_t)PyBytes_GET_SIZE(encoded->owner);
    return true;
}

static bool encode_by_codec(ModuleState *state, PyObject *value, Encoded *encoded) {
    if (state->encode == NULL) {
        PyErr_Format(PyExc_TypeError, "values of type %.200s need the codecs of shmkv: import shmkv",
                     Py_TYPE(value)->tp_name);
        return false;
    }
    PyObject *encode = Py_NewRef(state->encode);
    PyObject *pair = PyObject_CallOneArg(encode, value);
    Py_DECREF(encode);
    if (pair == NULL) {
        return false;
    }
    bool good = PyTuple_CheckExact(pair) && PyTuple_GET_SIZE(pair) == 2 && PyLong_Check(PyTuple_GET_ITEM(pair, 0)) &&
                PyBytes_CheckExact(PyTuple_GET_ITEM(pair, 1));
    long type = good ? PyLong_AsLong(PyTuple_GET_ITEM(pair, 0)) : -1;
    if (type < 0 || type > UINT8_MAX) {
        PyErr_SetString(PyExc_TypeError, "the registered encoder must return (type 0 to 255, bytes)");
        Py_DECREF(pair);
        return false;
    }
    encoded->type = (uint8_t)type;
    encoded->owner = Py_NewRef(PyTuple_GET_ITEM(pair, 1));
    encoded->data = PyBytes_AS_STRING(encoded->owner);
    encoded->length = (uint64_t)PyBytes_GET_SIZE(encoded->owner);
    Py_DECREF(pair);
    return true;
}

bool encode_value(ModuleState *state, PyObject *value, Encoded *encoded) {
    PyTypeObject *type = Py_TYPE(value);
    encoded->owner = NULL;
    if (LIKELY(type == &PyBytes_Type)) {
        encoded->type = TYPE_BYTES;
        encoded->data = PyBytes_AS_STRING(value);
        encoded->length = (uint64_t)PyBytes_GET_SIZE(value);
        return true;
    }
    if (type == &PyUnicode_Type) {
        return encode_text(value, encoded);
    }
    encoded->data = &encoded->number;
    encoded->length = 8;
    if (type == &PyLong_Type) {
        int overflow;
        long long number = PyLong_AsLongLongAndOverflow(value, &overflow);
        if (overflow == 0) {
            encoded->type = TYPE_INT;
            encoded->number = number;
            return true;
        }
    } else if (type == &PyFloat_Type) {
        double number = PyFloat_AS_DOUBLE(value);
        encoded->type = TYPE_FLOAT;
        memcpy(&encoded->number, &number, 8);
        return true;
    } else if (value == Py_None || value == Py_True || value == Py_False) {
        encoded->type = value == Py_None ? TYPE_NONE : value == Py_True ? TYPE_TRUE : TYPE_FALSE;
        encoded->length = 0;
        return true;
    }
    return encode_by_codec(state, value, encoded);
}

static PyObject *decode_by_codec(ModuleState *state, uint8_t type, const uint8_t *data, uint64_t length) {
    if (state->decode == NULL) {
        PyErr_Format(PyExc_TypeError, "values of type %d need the codecs of shmkv: import shmkv", (int)type);
        return NULL;
    }
    PyObject *decode = Py_NewRef(state->decode);
    PyObject *value = PyObject_CallFunction(decode, "iy#", (int)type, (const char *)data, (Py_ssize_t)length);
    Py_DECREF(decode);
    return value;
}

PyObject *decode_value(ModuleState *state, uint8_t type, const uint8_t *data, uint64_t length) {
    int64_t integer;
    double real;
    if (LIKELY(type == TYPE_BYTES)) {
        return PyBytes_FromStringAndSize((const char *)data, (Py_ssize_t)length);
    }
    switch (type) {
    case TYPE_STR: return PyUnicode_DecodeUTF8((const char *)data, (Py_ssize_t)length, NULL);
    case TYPE_NONE: Py_RETURN_NONE;
    case TYPE_FALSE: Py_RETURN_FALSE;
    case TYPE_TRUE: Py_RETURN_TRUE;
    case TYPE_INT:
    case TYPE_FLOAT:
        if (length != 8) {
            raise_error(state, ERROR_CORRUPT_DATA, "a number with %llu bytes instead of 8 is in the store; write it "
                        "anew",
                        (unsigned long long)length);
            return NULL;
        }
        if (type == TYPE_INT) {
            memcpy(&integer, data, 8);
            return PyLong_FromLongLong(integer);
        }
        memcpy(&real, data, 8);
        return PyFloat_FromDouble(real);
    default: return decode_by_codec(state, type, data, length);
    }
}

/* ---- durations and times --------------------------------------------------------------------------- */
/* A number, or what the method `convert` of the object gives; bool is no duration. */
static bool number_from(PyObject *object, const char *convert, const char *what, const char *wanted, double *number) {
    PyObject *made = NULL;
    if (!PyLong_Check(object) && !PyFloat_Check(object)) {
        made = PyObject_CallMethod(object, convert, NULL);
        if (made == NULL) {
            if (PyErr_ExceptionMatches(PyExc_AttributeError)) {
                PyErr_Format(PyExc_TypeError, "%s is %s, not %.200s", what, wanted, Py_TYPE(object)->tp_name);
            }
            return false;
        }
        object = made;
    } else if (PyBool_Check(object)) {
        PyErr_Format(PyExc_TypeError, "%s is %s, not bool", what, wanted);
        return false;
    }
    *number = PyFloat_AsDouble(object);
    Py_XDECREF(made);
    if (*number == -1.0 && PyErr_Occurred()) {
        return false;
    }
    if (!isfinite(*number) || fabs(*number) > LONGEST_S) {
        PyErr_Format(PyExc_ValueError, "%s must be finite and at most 1e14", what);
        return false;
    }
    return true;
}

bool seconds_from(PyObject *object, const char *what, double *seconds) {
    return number_from(object, "total_seconds", what, "a number of seconds or a timedelta", seconds);
}

/* A datetime without a time zone would be taken for local time, silently. */
static bool check_aware(PyObject *object) {
    if (PyLong_Check(object) || PyFloat_Check(object)) {
        return true;
    }
    PyObject *offset = PyObject_CallMethod(object, "utcoffset", NULL);
    if (offset == NULL) {
        if (PyErr_ExceptionMatches(PyExc_AttributeError)) {
            PyErr_Format(PyExc_TypeError, "expires_at is an aware datetime or Unix seconds, not %.200s",
                         Py_TYPE(object)->tp_name);
        }
        return false;
    }
    bool aware = offset != Py_None;
    Py_DECREF(offset);
    if (!aware) {
        PyErr_SetString(PyExc_ValueError, "expires_at has no time zone; give it one, as in datetime.now(UTC), "
                        "or pass Unix seconds");
    }
    return aware;
}

bool expiry_from(PyObject *ttl, PyObject *expires_at, Expiry *expiry) {
    bool after = ttl != NULL && ttl != Py_None, at = expires_at != NULL && expires_at != Py_None;
    double seconds;
    expiry->kind = EXPIRY_NEVER;
    expiry->ms = 0;
    if (after && at) {
        PyErr_SetString(PyExc_ValueError, "give ttl or expires_at, not both");
        return false;
    }
    if (after) {
        if (!seconds_from(ttl, "ttl", &seconds)) {
            return false;
        }
        if (seconds <= 0) {
            PyErr_Format(PyExc_ValueError, "ttl must be more than 0 seconds, not %R; delete the key instead", ttl);
            return false;
        }
        expiry->kind = EXPIRY_AFTER;
        expiry->ms = (uint64_t)ceil(seconds * 1e3);
    } else if (at) {
        if (!check_aware(expires_at) ||
            !number_from(expires_at, "timestamp", "expires_at", "an aware datetime or Unix seconds", &seconds)) {
            return false;
        }
        expiry->kind = EXPIRY_AT;
        /* 0 would mean never. */
        expiry->ms = seconds <= 0.001 ? 1 : (uint64_t)ceil(seconds * 1e3);
    }
    return true;
}

uint64_t expiry_in(const Arena *arena, const Expiry *expiry) {
    return expiry->kind == EXPIRY_AFTER ? arena_now_ms(arena) + expiry->ms : expiry->ms;
}

bool timeout_from(PyObject *object, const char *what, uint64_t standard_ns, uint64_t *timeout_ns) {
    double seconds;
    *timeout_ns = standard_ns;
    if (object == NULL || object == Py_None) {
        return true;
    }
    if (!seconds_from(object, what, &seconds)) {
        return false;
    }
    if (seconds < 0) {
        PyErr_Format(PyExc_ValueError, "%s must be 0 or more seconds, not %R", what, object);
        return false;
    }
    /* A century is for ever, and leaves room to add the clock. */
    *timeout_ns = (uint64_t)(fmin(seconds, 3.2e9) * 1e9);
    return true;
}

bool version_from(PyObject *object, uint64_t *version) {
    if (!PyLong_Check(object) || PyBool_Check(object)) {
        PyErr_Format(PyExc_TypeError, "if_version is an int, not %.200s", Py_TYPE(object)->tp_name);
        return false;
    }
    *version = PyLong_AsUnsignedLongLong(object);
    if ((*version == UINT64_MAX && PyErr_Occurred()) || *version == 0) {
        PyErr_Clear();
        PyErr_Format(PyExc_ValueError, "if_version is the version of an entry, 1 to 2**64 - 1, not %R%s", object,
                     *version == 0 ? "; for a key that is absent use if_absent" : "");
        return false;
    }
    return true;
}

bool durability_from(PyObject *object, int32_t *level) {
    *level = -1;
    if (object == NULL || object == Py_None) {
        return true;
    }
    for (int i = 0; PyUnicode_Check(object) && i < 3; i++) {
        if (PyUnicode_CompareWithASCIIString(object, durability_names[i]) == 0) {
            *level = i;
            return true;
        }
    }
    PyErr_Format(PyUnicode_Check(object) ? PyExc_ValueError : PyExc_TypeError,
                 "durability is 'none', 'interval' or 'always', not %R", object);
    return false;
}
