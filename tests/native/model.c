/* model.c: see model.h. */
#include "model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void pattern_fill(uint8_t *data, uint64_t length, uint64_t seed) {
    Random random = {seed};
    for (uint64_t i = 0; i < length; i += 8) {
        uint64_t word = random_next(&random);
        memcpy(data + i, &word, min_u64(8, length - i));
    }
}

void model_make(Model *model, uint32_t keys, uint64_t longest) {
    *model = (Model){.keys = keys, .longest = longest};
    model->entries = calloc((size_t)keys * MODEL_NAMESPACES, sizeof *model->entries);
    CHECK(model->entries != NULL);
}

void model_free(Model *model) {
    for (uint32_t i = 0; i < model->keys * MODEL_NAMESPACES; i++) {
        free(model->entries[i].data);
    }
    free(model->entries);
}

uint32_t model_key_text(uint32_t number, char *text) {
    /* Number 0 is the empty key; lengths run over all remainders of 8, some far longer. */
    if (number == 0) {
        text[0] = 0;
        return 0;
    }
    int length = sprintf(text, "%u", number);
    uint32_t wanted = number % 61 == 0 ? 300 + number % 200 : number % 24;
    for (; (uint32_t)length < wanted; length++) {
        text[length] = (char)('a' + (number + (uint32_t)length) % 26);
    }
    text[length] = 0;
    return (uint32_t)length;
}

Key model_key(const Arena *arena, uint32_t number, uint16_t namespace_id, char *text) {
    Key key;
    CHECK_EQUAL(key_init(arena, &key, text, model_key_text(number, text), namespace_id), ST_OK);
    return key;
}

static void entry_set(ModelEntry *entry, uint8_t type, const void *data, uint64_t length, uint64_t version,
                      uint64_t expires_ms) {
    uint8_t *copy = malloc(length + 1);
    CHECK(copy != NULL);
    memcpy(copy, data, length);
    free(entry->data);
    *entry = (ModelEntry){true, type, copy, length, version, expires_ms};
}

static void entry_remove(ModelEntry *entry) {
    free(entry->data);
    memset(entry, 0, sizeof *entry);
}

static uint64_t random_length(const Model *model, Random *random) {
    switch (random_below(random, 8)) {
    case 0: return random_below(random, 16);
    case 1: return random_below(random, model->longest);
    case 2: return random_below(random, min_u64(model->longest, 9000));
    default: return random_below(random, min_u64(model->longest, 300));
    }
}

/* ---- operations ------------------------------------------------------------------------------ */
typedef struct Step {
    Model *model;
    Call *call;
    Random *random;
    Key key;
    ModelEntry *entry;
    uint8_t *data;
    uint64_t length;
} Step;

static bool full(Step *step, Status s) {
    step->model->full += s == ST_FULL;
    return s == ST_FULL;
}

static void step_set(Step *step) {
    SetOptions options = {0};
    ModelEntry *entry = step->entry;
    bool meets = true;
    switch (random_below(step->random, 8)) {
    case 0:
        options.flags = SET_IF_ABSENT;
        meets = !entry->present;
        break;
    case 1:
        options.flags = SET_IF_PRESENT;
        meets = entry->present;
        break;
    case 2:
        options.flags = SET_IF_VERSION;
        options.if_version = random_one_in(step->random, 2) ? entry->version : 12345;
        meets = entry->present && options.if_version == entry->version;
        break;
    case 3:
        options.flags = SET_KEEP_TTL;
        break;
    default:
        break;
    }
    if (random_one_in(step->random, 6)) {
        options.expires_ms = arena_now_ms(step->call->arena) + 3600000 + random_below(step->random, 1000);
    }
    uint8_t type = random_one_in(step->random, 5) ? TYPE_STR : TYPE_BYTES;
    Status s = do_set(step->call, &step->key, type, step->data, step->length, &options);
    if (full(step, s)) {
        return;
    }
    CHECK_EQUAL(s, meets ? ST_OK : ST_CONDITION);
    if (s == ST_OK) {
        bool keeps = (options.flags & SET_KEEP_TTL) && entry->present;
        entry_set(entry, type, step->data, step->length, step->call->lsn,
                  keeps ? entry->expires_ms : options.expires_ms);
    }
}

static void step_delete(Step *step) {
    uint64_t if_version =
        random_one_in(step->random, 4) ? (random_one_in(step->random, 2) ? step->entry->version : 99) : 0;
    Status expected = !step->entry->present ? ST_NOT_FOUND
                      : if_version == 0 || if_version == step->entry->version ? ST_OK : ST_CONDITION;
    CHECK_EQUAL(do_delete(step->call, &step->key, if_version), expected);
    if (expected == ST_OK) {
        entry_remove(step->entry);
    }
}

static void step_incr(Step *step) {
    int64_t amount = (int64_t)random_below(step->random, 2001) - 1000, result = 0, before = 0;
    ModelEntry *entry = step->entry;
    Status expected = ST_OK;
    if (entry->present) {
        expected = entry->type == TYPE_INT ? ST_OK : ST_WRONG_TYPE;
        memcpy(&before, entry->data, entry->type == TYPE_INT ? 8 : 0);
    }
    Status s = do_incr(step->call, &step->key, amount, &result);
    if (full(step, s)) {
        return;
    }
    CHECK_EQUAL(s, expected);
    if (s == ST_OK) {
        CHECK_EQUAL(result, before + amount);
        entry_set(entry, TYPE_INT, &result, 8, step->call->lsn, entry->expires_ms);
    }
}

static void step_append(Step *step) {
    ModelEntry *entry = step->entry;
    uint64_t length = min_u64(step->length, 2000), new_length = 0;
    Status s = do_append(step->call, &step->key, step->data, length, &new_length);
    if (full(step, s) || s == ST_VALUE_TOO_LARGE) {
        return;
    }
    CHECK_EQUAL(s, !entry->present || entry->type == TYPE_BYTES ? ST_OK : ST_WRONG_TYPE);
    if (s == ST_OK) {
        uint8_t *joined = malloc(entry->length + length + 1);
        CHECK(joined != NULL);
        memcpy(joined, entry->present ? entry->data : joined, entry->length);
        memcpy(joined + entry->length, step->data, length);
        CHECK_EQUAL(new_length, entry->length + length);
        entry_set(entry, TYPE_BYTES, joined, new_length, step->call->lsn, entry->expires_ms);
        free(joined);
    }
}

#define BATCH_MOST 25
static void step_batch(Step *step) {
    BatchEntry items[BATCH_MOST] = {0};
    char texts[BATCH_MOST][512];
    uint32_t numbers[BATCH_MOST], n = (uint32_t)random_between(step->random, 1, BATCH_MOST), done = 0;
    uint16_t namespace_id = step->key.namespace_id;
    for (uint32_t i = 0; i < n; i++) {
        numbers[i] = (uint32_t)random_below(step->random, step->model->keys);
        items[i] = (BatchEntry){.key = model_key(step->call->arena, numbers[i], namespace_id, texts[i]),
                                .type = TYPE_BYTES,
                                .remove = random_one_in(step->random, 3),
                                .data = step->data,
                                .length = min_u64(step->length, random_below(step->random, 600))};
    }
    Status s = do_write_many(step->call, items, n, &done);
    CHECK(full(step, s) ? done < n : s == ST_OK && done == n);
    for (uint32_t i = 0; i < done; i++) {
        ModelEntry *entry = &step->model->entries[namespace_id * step->model->keys + numbers[i]];
        CHECK_EQUAL(items[i].existed, entry->present);
        if (items[i].remove) {
            entry_remove(entry);
        } else {
            entry_set(entry, TYPE_BYTES, step->data, items[i].length, 0, 0);
        }
        /* A batch names its last LSN only. */
        Value value = {0};
        Status got = store_get(step->call, &items[i].key, &value);
        CHECK(got == (items[i].remove ? ST_NOT_FOUND : ST_OK) || got == ST_BUFFER || i + 1 < n);
        entry->version = entry->present && got != ST_NOT_FOUND ? value.version : 0;
    }
}

static void step_clear(Step *step) {
    CHECK_EQUAL(do_clear(step->call, step->key.namespace_id), ST_OK);
    for (uint32_t i = 0; i < step->model->keys; i++) {
        entry_remove(&step->model->entries[step->key.namespace_id * step->model->keys + i]);
    }
}

void model_step(Model *model, Call *call, Random *random) {
    char text[512];
    uint32_t number = (uint32_t)random_below(random, model->keys);
    uint16_t namespace_id = (uint16_t)random_below(random, MODEL_NAMESPACES);
    Step step = {.model = model, .call = call, .random = random, .length = random_length(model, random)};
    step.key = model_key(call->arena, number, namespace_id, text);
    step.entry = &model->entries[namespace_id * model->keys + number];
    step.data = malloc(step.length + 8);
    CHECK(step.data != NULL);
    pattern_fill(step.data, step.length, random_next(random));
    uint64_t choice = random_below(random, 100);
    if (choice < 50) {
        step_set(&step);
    } else if (choice < 70) {
        step_delete(&step);
    } else if (choice < 80) {
        step_incr(&step);
    } else if (choice < 88) {
        step_append(&step);
    } else if (choice < 97) {
        step_batch(&step);
    } else if (choice < 98) {
        CHECK_EQUAL(do_mark(call), ST_OK);
    } else if (choice < 99) {
        sweep_all(call);
    } else if (random_one_in(random, 4)) {
        step_clear(&step);
    }
    free(step.data);
}

void model_check(const Model *model, Call *call) {
    Value value = {0};
    char text[512];
    for (uint16_t space = 0; space < MODEL_NAMESPACES; space++) {
        uint64_t present = 0;
        for (uint32_t i = 0; i < model->keys; i++) {
            const ModelEntry *entry = &model->entries[space * model->keys + i];
            Key key = model_key(call->arena, i, space, text);
            Status s = do_get(call, &key, &value);
            CHECK_SAYING(s == (entry->present ? ST_OK : ST_NOT_FOUND),
                         "key %u of namespace %u: status %d, present %d", i, space, s, entry->present);
            if (!entry->present) {
                continue;
            }
            present++;
            CHECK_EQUAL(value.length, entry->length);
            CHECK_EQUAL(value.type, entry->type);
            CHECK_EQUAL(value.expires_ms, entry->expires_ms);
            CHECK(entry->version == 0 || entry->version == value.version);
            CHECK(memcmp(value.data, entry->data, value.length) == 0);
        }
        CHECK_EQUAL(store_count(call->arena, space), present);
    }
    free(value.data);
}
