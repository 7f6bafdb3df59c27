/* model.h: what the store should hold, kept plainly: an array of keys with their values; and random operations on both.
 *
 * Invariants:
 *   I1  An operation changes the model only if the store said that it happened.
 *   I2  model_check looks at every key through get and at the whole through count and scan.
 */
#ifndef SHMKV_MODEL_H
#define SHMKV_MODEL_H

#include "world.h"

#define MODEL_NAMESPACES 3

typedef struct ModelEntry {
    bool present;
    uint8_t type;
    uint8_t *data;
    uint64_t length;
    uint64_t version;
    uint64_t expires_ms;
} ModelEntry;

typedef struct Model {
    uint32_t keys;                /* of each namespace */
    uint64_t longest;             /* longest value that random operations make */
    ModelEntry *entries;          /* [namespace * keys + key] */
    uint64_t full;                /* operations that ended in ST_FULL */
} Model;

void model_make(Model *model, uint32_t keys, uint64_t longest);
void model_free(Model *model);
/* Keys of all lengths, from 0 bytes on; text must hold 512 bytes. */
uint32_t model_key_text(uint32_t number, char *text);
Key model_key(const Arena *arena, uint32_t number, uint16_t namespace_id, char *text);
/* One random operation on the store and on the model; ST_FULL is counted, all else must fit the model. */
void model_step(Model *model, Call *call, Random *random);
void model_check(const Model *model, Call *call);
/* Bytes that depend on the seed. */
void pattern_fill(uint8_t *data, uint64_t length, uint64_t seed);

#endif
