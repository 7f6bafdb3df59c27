/* module_stats.c: numbers of an arena as dicts. Everything is read relaxed: a picture, not a moment.
 *
 * Invariants:
 *   I1  Nothing here takes a lock or writes to the arena.
 */
#include "module.h"

#include "lock.h"

#include <string.h>

static const char *const counter_names[COUNTERS] = {
    [COUNT_GETS] = "gets", [COUNT_HITS] = "hits", [COUNT_SETS] = "sets", [COUNT_DELETES] = "deletes",
    [COUNT_READ_RETRIES] = "read_retries", [COUNT_READ_LOCKS] = "read_locks", [COUNT_LOCK_WAITS] = "lock_waits",
    [COUNT_LOG_WAITS] = "log_waits", [COUNT_REPAIRS] = "repairs", [COUNT_REPAIRS_COMMITTED] = "repairs_committed",
    [COUNT_SETTLED] = "settled", [COUNT_DOCTORED] = "doctored", [COUNT_MOVES] = "moves", [COUNT_FULL] = "full"};
static const char *const state_names[] = {"NONE", "CREATING", "READY", "RETIRED"};
static const char *const log_state_names[] = {"OK", "DISK_FULL", "FAILED"};

bool dict_put(PyObject *dict, const char *name, PyObject *stolen) {
    int failed = stolen == NULL ? -1 : PyDict_SetItemString(dict, name, stolen);
    Py_XDECREF(stolen);
    return failed == 0;
}

bool dict_put_number(PyObject *dict, const char *name, uint64_t number) {
    return dict_put(dict, name, PyLong_FromUnsignedLongLong(number));
}

typedef struct Number {
    const char *name;
    uint64_t number;
} Number;

static bool put_all(PyObject *dict, const Number *numbers, size_t n) {
    for (size_t i = 0; i < n; i++) {
        if (!dict_put_number(dict, numbers[i].name, numbers[i].number)) {
            return false;
        }
    }
    return true;
}
#define PUT_ALL(dict, numbers) put_all(dict, numbers, sizeof(numbers) / sizeof(numbers)[0])

static bool put_counters(PyObject *dict, const uint64_t *counters) {
    for (int i = 0; i < COUNTERS; i++) {
        if (counter_names[i] != NULL && !dict_put_number(dict, counter_names[i], load_relaxed(&counters[i]))) {
            return false;
        }
    }
    return true;
}

/* ---- stats ------------------------------------------------------------------------------------------ */
static bool put_memory(PyObject *dict, const Arena *arena) {
    const Control *control = arena->control;
    uint64_t items = 0, entries = 0, used = 0, pages = 0;
    for (uint32_t i = 0; i < arena->stripe_count; i++) {
        const Stripe *stripe = &arena->stripes[i];
        items += load_relaxed(&stripe->count[0]);
        entries += load_relaxed(&stripe->entries);
        used += load_relaxed(&stripe->used_bytes);
        pages += load_relaxed(&stripe->pages);
    }
    const Number numbers[] = {
        {"items", items}, {"entries", entries}, {"used_bytes", used}, {"pages_used", pages},
        {"pages_free", load_relaxed(&control->pages_free)}, {"page_limit", load_relaxed(&control->page_limit)},
        {"page_bytes", PAGE_BYTES}, {"mapped_bytes", arena->mapped_bytes}, {"stripes", arena->stripe_count},
        {"buckets", (uint64_t)arena->buckets_per_stripe * arena->stripe_count},
        {"overflow_pages", load_relaxed(&control->overflow_pages)}, {"value_limit", arena_value_limit(arena)}};
    return PUT_ALL(dict, numbers);
}

static bool put_log(PyObject *dict, const Arena *arena) {
    const Control *control = arena->control;
    uint64_t durable = load_acquire(&control->durable_lsn), tail = load_acquire(&control->ring_tail);
    uint64_t since = load_relaxed(&control->durable_time_ms), now = clock_coarse_ms();
    uint64_t lag = arena->has_log && tail > durable ? tail - durable : 0;
    const Number numbers[] = {
        {"tail", tail}, {"head", load_acquire(&control->ring_head)},
        {"written_lsn", load_acquire(&control->written_lsn)},
        {"durable_lsn", durable}, {"ring_bytes", arena->ring_bytes}, {"has_log", arena->has_log}, {"lag_bytes", lag},
        {"lag_ms", lag != 0 && now > since ? now - since : 0},
        {"lag_limit_ms", load_relaxed_u32(&control->lag_limit_ms)},
        {"log_state", load_relaxed_u32(&control->log_state)}, {"epoch", load_relaxed(&control->epoch)}};
    return PUT_ALL(dict, numbers);
}

PyObject *stats_dict(const Arena *arena) {
    uint64_t counters[COUNTERS] = {0}, slots_used = 0;
    for (int i = 0; i < COUNTERS; i++) {
        counters[i] = load_relaxed(&arena->control->retained[i]);
    }
    for (uint32_t k = 0; k < SLOT_COUNT; k++) {
        const Slot *slot = &arena->slots[k];
        if (load_relaxed(&slot->owner) != 0) {
            slots_used++;
            for (int i = 0; i < COUNTERS; i++) {
                counters[i] += load_relaxed(&slot->counters[i]);
            }
        }
    }
    PyObject *dict = PyDict_New();
    if (dict != NULL && !(put_memory(dict, arena) && put_log(dict, arena) && put_counters(dict, counters) &&
                          dict_put_number(dict, "slots_used", slots_used))) {
        Py_CLEAR(dict);
    }
    return dict;
}

/* ---- slots ------------------------------------------------------------------------------------------- */
static PyObject *slot_dict(const Slot *slot, uint32_t index, uint64_t owner) {
    PyObject *dict = PyDict_New();
    const Number numbers[] = {
        {"slot", index}, {"pid", owner >> 32}, {"tid", owner & UINT32_MAX},
        {"start_time", load_relaxed(&slot->start_time)},
        {"alive", !slot_owner_dead(slot, owner)}, {"last_lsn", load_relaxed(&slot->last_lsn)},
        {"verdict", VERDICT_STATE(load_relaxed(&slot->verdict))}};
    if (dict != NULL && !(PUT_ALL(dict, numbers) && put_counters(dict, slot->counters))) {
        Py_CLEAR(dict);
    }
    return dict;
}

PyObject *slots_list(const Arena *arena) {
    PyObject *list = PyList_New(0);
    for (uint32_t i = 0; i < SLOT_COUNT && list != NULL; i++) {
        uint64_t owner = load_acquire(&arena->slots[i].owner);
        if (owner == 0) {
            continue;
        }
        PyObject *dict = slot_dict(&arena->slots[i], i, owner);
        if (dict == NULL || PyList_Append(list, dict) < 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(dict);
    }
    return list;
}

/* ---- header -------------------------------------------------------------------------------------------- */
static bool put_header(PyObject *dict, const ArenaHeader *h) {
    const Number numbers[] = {
        {"layout_version", h->layout_version}, {"layout_hash", h->layout_hash}, {"mutex_bytes", h->mutex_bytes},
        {"page_bytes", h->page_bytes}, {"pid_namespace", h->pid_namespace}, {"incarnation", h->incarnation},
        {"first_lsn", h->first_lsn}, {"created_wall_ms", h->created_wall_ms}, {"size_bytes", h->size_bytes},
        {"wall_minus_boot_ms", h->wall_minus_boot_ms}, {"max_size_bytes", h->max_size_bytes},
        {"ring_bytes", h->ring_bytes},
        {"ring_offset", h->ring_offset},
        {"control_offset", h->control_offset}, {"page_count", h->page_count}, {"expected_items", h->expected_items},
        {"stripes", h->stripe_count}, {"buckets_per_stripe", h->buckets_per_stripe}, {"eviction", h->eviction}};
    size_t name_length = strnlen(h->name, sizeof h->name), libc_length = strnlen(h->libc, sizeof h->libc);
    return PUT_ALL(dict, numbers) && dict_put(dict, "has_log", PyBool_FromLong((h->flags & HEADER_HAS_LOG) != 0)) &&
           dict_put(dict, "name", PyUnicode_DecodeUTF8(h->name, (Py_ssize_t)name_length, "replace")) &&
           dict_put(dict, "libc", PyUnicode_DecodeUTF8(h->libc, (Py_ssize_t)libc_length, "replace")) &&
           dict_put(dict, "boot_id", PyBytes_FromStringAndSize((const char *)h->boot_id, sizeof h->boot_id)) &&
           dict_put(dict, "hash_key", PyBytes_FromStringAndSize((const char *)h->hash_key, sizeof h->hash_key)) &&
           dict_put(dict, "store_id", PyBytes_FromStringAndSize((const char *)h->store_id, sizeof h->store_id));
}

static bool put_name(PyObject *dict, const char *name, const char *const *names, size_t n, uint32_t index) {
    return dict_put(dict, name, index < n ? PyUnicode_FromString(names[index])
                                          : PyUnicode_FromFormat("unknown (%u)", index));
}

static bool put_control(PyObject *dict, const Control *control) {
    const Number numbers[] = {
        {"epoch", load_relaxed(&control->epoch)}, {"supervisor_pid", load_relaxed_u32(&control->supervisor_pid)},
        {"lag_limit_ms", load_relaxed_u32(&control->lag_limit_ms)},
        {"persister_pid", load_relaxed(&control->persister_pid)},
        {"tail", load_acquire(&control->ring_tail)}, {"head", load_acquire(&control->ring_head)},
        {"written_lsn", load_acquire(&control->written_lsn)}, {"durable_lsn", load_acquire(&control->durable_lsn)},
        {"page_limit", load_relaxed(&control->page_limit)}};
    return PUT_ALL(dict, numbers) && put_name(dict, "state", state_names, 4, load_acquire_u32(&control->state)) &&
           put_name(dict, "log_state", log_state_names, 3, load_relaxed_u32(&control->log_state)) &&
           put_name(dict, "durability", durability_names, 3, load_relaxed_u32(&control->durability)) &&
           dict_put(dict, "retired", PyBool_FromLong(load_acquire_u32(&control->retired) != 0)) &&
           dict_put(dict, "condemned", PyBool_FromLong(load_relaxed_u32(&control->condemned) != 0));
}

PyObject *info_dict(const ArenaHeader *header, const Control *control) {
    PyObject *dict = PyDict_New();
    if (dict != NULL && !(put_header(dict, header) && put_control(dict, control))) {
        Py_CLEAR(dict);
    }
    return dict;
}
