/* seeds.c: writes the corpus anew: seeds DIRECTORY.  Needed only after a change of the formats. */
#include "fuzz.h"
#include "table.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

static void write_seed(const char *directory, const char *name, uint8_t flags, const uint8_t *bytes, uint64_t length) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (fd < 0 || write(fd, &flags, 1) != 1 || write(fd, bytes, length) != (ssize_t)length) {
        fuzz_failed(path, 0, 0);
    }
    close(fd);
}

static Key key_of(const Arena *arena, const char *text, uint16_t namespace_id) {
    Key key;
    key_init(arena, &key, text, strlen(text), namespace_id);
    return key;
}

/* Each kind of record, some of them twice. */
static void write_store(Call *call) {
    const Arena *arena = call->arena;
    static uint8_t large[2500];
    Key a = key_of(arena, "a", 0), expires = key_of(arena, "a longer key", 0), other = key_of(arena, "", 5);
    BatchEntry items[3] = {{.key = key_of(arena, "b1", 0), .type = TYPE_BYTES, .data = "one", .length = 3},
                           {.key = a, .remove = true},
                           {.key = key_of(arena, "b2", 3), .type = TYPE_STR, .data = "2", .length = 1, .expires_ms = 5}};
    uint32_t done = 0;
    int64_t number;
    store_set(call, &a, TYPE_BYTES, "alpha", 5, NULL);
    store_set(call, &expires, TYPE_STR, "text", 4, &(SetOptions){.expires_ms = 1ULL << 40, .flags = SET_PIN});
    store_set(call, &other, TYPE_NONE, NULL, 0, NULL);
    store_write_many(call, items, 3, &done);
    store_incr(call, &a, 41, 0, 0, &number);
    store_incr(call, &a, 1, 0, 0, &number);
    store_clear(call, 5);
    store_mark(call, 1700000000000ULL);
    store_set(call, &other, TYPE_BYTES, large, sizeof large, NULL);
    store_delete(call, &a, 0);
    store_mark(call, 1700000001000ULL);
    store_set(call, &a, TYPE_BYTES, "omega", 5, NULL);
}

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "seeds DIRECTORY\n");
        return 2;
    }
    Arena *arena = fuzz_arena();
    Call call = {.arena = arena};
    slot_claim(arena, (uint32_t)getpid(), (uint32_t)syscall(SYS_gettid), &call.slot);
    arena->control->state = STATE_READY;
    write_store(&call);
    uint64_t length = arena->control->ring_tail - FUZZ_FIRST_LSN;
    char path[512];
    snprintf(path, sizeof path, "%s/records", argv[1]);
    write_seed(path, "whole", 0, arena->ring, length);
    write_seed(path, "resealed", 3, arena->ring, length);
    uint64_t at = 0;
    for (int i = 0; i < 4; i++) {
        at += ((const RecordHeader *)(arena->ring + at))->length;
    }
    write_seed(path, "first-four", 3, arena->ring, at);
    snprintf(path, sizeof path, "%s/entries", argv[1]);
    static uint8_t images[1 << 16];
    uint64_t cursor = 0, used = 0;
    while (cursor != CURSOR_END) {
        FillResult result;
        if (store_fill(&call, &cursor, images + used, sizeof images - used, &result) != ST_OK) {
            fuzz_failed("fill", 0, 0);
        }
        used += result.used_bytes;
    }
    write_seed(path, "whole", 0, images, used);
    write_seed(path, "resealed", 1, images, used);
    write_seed(path, "halves-after-clear", 7, images, used);
    write_seed(path, "first", 1, images, align_up(entry_size((const Entry *)images), 8));
    return 0;
}
