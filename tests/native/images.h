/* images.h: what tests of snapshots share: copying all entries of an arena out, and loading them into another. */
#ifndef SHMKV_IMAGES_H
#define SHMKV_IMAGES_H

#include "world.h"

typedef struct Images {
    uint8_t *bytes;
    uint64_t length, capacity;
    uint64_t entries;
} Images;

/* All images of the arena, in steps of a buffer of that size; free images->bytes. */
Status fill_all(Call *call, Images *images, uint64_t buffer_bytes, FillResult *result);
/* The same; fails the test if that fails. */
void fill_well(Call *call, Images *images, uint64_t buffer_bytes);
/* Into all stripes at once, or one image at a time those of first <= stripe < end. */
void load_well(World *copy, const Images *images);
Status load_range(World *copy, const Images *images, uint32_t first, uint32_t end);
/* As world_make, but its log goes on where the other's is, so that the audit believes the versions. */
void copy_make(World *copy, const World *of, const WorldOptions *options);
/* Values of random lengths under the keys number first to first + n - 1. */
void put_many(World *world, uint32_t first, uint32_t n, uint64_t largest, Random *random);

#endif
