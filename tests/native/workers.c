/* workers.c: see stress.h.
 *
 * Every value carries the number of its key, the number of its write, and a checksum over itself, so a reader knows a
 * torn, foreign or scribbled one.  Pairs are written in one record only: who reads a, b and a again, and finds a
 * unchanged, must find b with the version of a.
 */
#include "compact.h"
#include "model.h"
#include "stress.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LARGEST 120000u
#define NOISE 5000u

typedef struct Head {
    uint64_t key, write;
    uint32_t length, sum;         /* of the whole value; CRC of what follows */
} Head;

typedef struct Self {
    Call *call;
    Stress *stress;
    Worker *worker;
    Random random;
    uint8_t *data;                /* to write */
    uint8_t *noise;               /* random bytes, LARGEST + NOISE of them */
    Value value;                  /* read into */
    uint64_t *seen;               /* highest version seen of each shared key */
    uint64_t cleared;             /* LSN of the last clear that this worker made */
} Self;

/* ---- values ---------------------------------------------------------------------------------- */
static uint64_t value_make(Self *self, uint64_t key, uint64_t write, uint64_t length) {
    Head head = {.key = key, .write = write, .length = (uint32_t)length};
    memcpy(self->data + sizeof head, self->noise + random_below(&self->random, NOISE), length - sizeof head);
    head.sum = crc32c(0, self->data + sizeof head, length - sizeof head);
    memcpy(self->data, &head, sizeof head);
    return length;
}

static uint64_t value_check(const uint8_t *data, uint64_t length, uint64_t key) {
    Head head;
    CHECK(length >= sizeof head);
    memcpy(&head, data, sizeof head);
    CHECK_SAYING(head.key == key, "the value of key %llu says that it belongs to %llu", (unsigned long long)key,
                 (unsigned long long)head.key);
    CHECK_EQUAL(head.length, length);
    CHECK_SAYING(crc32c(0, data + sizeof head, length - sizeof head) == head.sum,
                 "the value of key %llu, write %llu, is torn", (unsigned long long)key,
                 (unsigned long long)head.write);
    return head.write;
}

static uint64_t random_length(Self *self, uint64_t key) {
    if (key % 16 == 0) {
        return random_one_in(&self->random, 3) ? random_between(&self->random, 66000, LARGEST)
                                               : random_between(&self->random, 100, 2000);
    }
    if (key % 4 == 1) {
        /* Long enough that a reader is often interrupted in the middle. */
        return random_between(&self->random, 5000, 50000);
    }
    return random_between(&self->random, sizeof(Head), random_one_in(&self->random, 20) ? 9000 : 600);
}

static Key shared_key(const Self *self, uint64_t number, char *text) {
    snprintf(text, 24, "shared-%llu", (unsigned long long)number);
    return key_of(self->call->arena, text);
}

/* ---- operations ------------------------------------------------------------------------------ */
static void accept(Self *self, Status s) {
    CHECK_SAYING(s == ST_OK || s == ST_FULL || s == ST_NOT_FOUND, "status %d", s);
    self->worker->full += s == ST_FULL;
}

static void read_shared(Self *self, uint64_t number) {
    char text[24];
    Key key = shared_key(self, number, text);
    Status s = do_get(self->call, &key, &self->value);
    self->worker->reads++;
    if (s == ST_NOT_FOUND) {
        return;
    }
    CHECK_EQUAL(s, ST_OK);
    value_check(self->value.data, self->value.length, number);
    CHECK_SAYING(self->value.version >= self->seen[number], "key %llu went back from version %llx to %llx",
                 (unsigned long long)number, (unsigned long long)self->seen[number],
                 (unsigned long long)self->value.version);
    self->seen[number] = self->value.version;
}

static void write_shared(Self *self, uint64_t number) {
    char text[24];
    Key key = shared_key(self, number, text);
    uint64_t length = value_make(self, number, 0, random_length(self, number));
    Status s = do_set(self->call, &key, TYPE_BYTES, self->data, length, NULL);
    accept(self, s);
    if (s == ST_OK) {
        self->seen[number] = self->call->lsn;
    }
}

static void delete_shared(Self *self, uint64_t number) {
    char text[24];
    Key key = shared_key(self, number, text);
    accept(self, do_delete(self->call, &key, 0));
}

static void increment(Self *self) {
    uint32_t number = (uint32_t)random_below(&self->random, COUNTERS_SHARED);
    char text[24];
    snprintf(text, sizeof text, "counter-%u", number);
    Key key = key_of(self->call->arena, text);
    int64_t result;
    store_release_u32(&self->worker->intent, number + 1);
    Status s = do_incr(self->call, &key, 1, &result);
    accept(self, s);
    store_relaxed(&self->worker->acked_incr[number], self->worker->acked_incr[number] + (s == ST_OK));
    store_release_u32(&self->worker->intent, 0);
}

static Key own_key(const Arena *arena, const Worker *worker, uint32_t number, char *text) {
    snprintf(text, 24, "own-%u-%u", worker->number, number);
    return key_of(arena, text);
}

static void write_own(Self *self) {
    Worker *worker = self->worker;
    uint32_t number = (uint32_t)random_below(&self->random, OWN_KEYS);
    char text[24];
    Key key = own_key(self->call->arena, worker, number, text);
    uint64_t write = worker->acked[number] + 1;
    store_release(&worker->tried[number], write);
    Status s;
    if (write % 8 == 7) {
        s = do_delete(self->call, &key, 0);
        CHECK(s == ST_OK || s == ST_NOT_FOUND);
    } else {
        uint64_t length = value_make(self, 1000000 + number, write, random_length(self, number));
        s = do_set(self->call, &key, TYPE_BYTES, self->data, length, NULL);
        accept(self, s);
    }
    store_release(s == ST_FULL ? &worker->tried[number] : &worker->acked[number], s == ST_FULL ? write - 1 : write);
}

void worker_check_own(Call *call, Worker *worker) {
    Value value = {0};
    char text[24];
    for (uint32_t i = 0; i < OWN_KEYS; i++) {
        Key key = own_key(call->arena, worker, i, text);
        uint64_t acked = load_acquire(&worker->acked[i]), tried = load_acquire(&worker->tried[i]), there;
        Status s = do_get(call, &key, &value);
        if (s == ST_OK) {
            there = value_check(value.data, value.length, 1000000 + i);
            CHECK_SAYING(there == acked || there == tried,
                         "key %s holds write %llu; %llu was acknowledged, %llu tried", text,
                         (unsigned long long)there, (unsigned long long)acked, (unsigned long long)tried);
        } else {
            CHECK_EQUAL(s, ST_NOT_FOUND);
            bool may = acked == 0 || acked % 8 == 7 || tried % 8 == 7;
            CHECK_SAYING(may, "key %s is gone; write %llu was acknowledged, %llu tried", text,
                         (unsigned long long)acked, (unsigned long long)tried);
            there = tried % 8 == 7 ? tried : acked;
        }
        worker->acked[i] = worker->tried[i] = there;
    }
    free(value.data);
}

/* ---- more than one key ----------------------------------------------------------------------- */
static void pair_keys(const Self *self, uint64_t number, Key keys[2], char texts[2][24]) {
    for (int i = 0; i < 2; i++) {
        snprintf(texts[i], 24, "pair-%llu-%d", (unsigned long long)number, i);
        keys[i] = key_of(self->call->arena, texts[i]);
    }
}

static void write_pair(Self *self) {
    char texts[2][24];
    Key keys[2];
    uint64_t number = random_below(&self->random, PAIRS);
    pair_keys(self, number, keys, texts);
    if (arena_bucket_index(self->call->arena, keys[0].hash) == arena_bucket_index(self->call->arena, keys[1].hash)) {
        return;      /* these two would be two records */
    }
    BatchEntry items[2] = {0};
    uint32_t done = 0;
    uint64_t length = value_make(self, 2000000 + number, 0, random_between(&self->random, sizeof(Head), 300));
    for (int i = 0; i < 2; i++) {
        items[i] = (BatchEntry){.key = keys[i], .type = TYPE_BYTES, .data = self->data, .length = length};
    }
    accept(self, do_write_many(self->call, items, 2, &done));
}

static void read_pair(Self *self) {
    char texts[2][24];
    Key keys[2];
    uint64_t number = random_below(&self->random, PAIRS), versions[3];
    pair_keys(self, number, keys, texts);
    if (arena_bucket_index(self->call->arena, keys[0].hash) == arena_bucket_index(self->call->arena, keys[1].hash)) {
        return;
    }
    for (int i = 0; i < 3; i++) {
        Status s = do_get(self->call, &keys[i % 2], &self->value);
        versions[i] = s == ST_OK ? self->value.version : 0;
        if (s == ST_OK) {
            value_check(self->value.data, self->value.length, 2000000 + number);
        }
    }
    CHECK_SAYING(versions[0] != versions[2] || versions[1] == versions[0], "half a batch: %llx, %llx, %llx",
                 (unsigned long long)versions[0], (unsigned long long)versions[1], (unsigned long long)versions[2]);
}

static void clear_and_fill(Self *self) {
    char text[24];
    snprintf(text, sizeof text, "cleared-%llu", (unsigned long long)random_below(&self->random, 30));
    Key key = key_in(self->call->arena, text, 2);
    if (random_one_in(&self->random, 50)) {
        CHECK_EQUAL(do_clear(self->call, 2), ST_OK);
        self->cleared = self->call->lsn;
    } else if (random_one_in(&self->random, 2)) {
        accept(self, do_set(self->call, &key, TYPE_BYTES, text, strlen(text), NULL));
    }
    Status s = do_get(self->call, &key, &self->value);
    CHECK(s == ST_NOT_FOUND || (s == ST_OK && self->value.version > self->cleared));
}

static void read_many(Self *self) {
    enum { ASKED = 20 };
    char texts[ASKED][24];
    Key keys[ASKED];
    Value values[ASKED];
    uint8_t status[ASKED];
    uint64_t numbers[ASKED];
    for (int i = 0; i < ASKED; i++) {
        numbers[i] = random_below(&self->random, self->stress->keys);
        keys[i] = shared_key(self, numbers[i], texts[i]);
    }
    CHECK_EQUAL(store_get_many(self->call, keys, ASKED, self->data, LARGEST, values, status), ST_OK);
    for (int i = 0; i < ASKED; i++) {
        if (status[i] == ST_OK) {
            value_check(values[i].data, values[i].length, numbers[i]);
        }
    }
}

static void scan_some(Self *self) {
    uint64_t cursor = 0, used;
    uint32_t count;
    for (int step = 0; step < 30 && cursor != CURSOR_END; step++) {
        Status s = store_scan(self->call, 0, &cursor, true, self->value.data, self->value.capacity, &used, &count);
        if (s != ST_OK) {
            CHECK(s == ST_BUSY || s == ST_BUFFER);
            return;
        }
        uint64_t at = 0;
        for (uint32_t i = 0; i < count; i++) {
            const ScanItem *item = (const ScanItem *)(self->value.data + at);
            const char *key = (const char *)(item + 1);
            at += item->item_bytes;
            if (item->key_length > 7 && memcmp(key, "shared-", 7) == 0) {
                char digits[24] = {0};
                memcpy(digits, key + 7, item->key_length - 7);
                value_check((const uint8_t *)key + align_up(item->key_length, 8), item->value_length,
                            strtoull(digits, NULL, 10));
            }
        }
    }
}

/* ---- the loops ------------------------------------------------------------------------------- */
static void step(Self *self) {
    uint64_t choice = random_below(&self->random, 1000), number = random_below(&self->random, self->stress->keys);
    if (choice < 420) {
        read_shared(self, number);
    } else if (choice < 620) {
        write_shared(self, number);
    } else if (choice < 680) {
        delete_shared(self, number);
    } else if (choice < 760) {
        increment(self);
    } else if (choice < 850) {
        write_own(self);
    } else if (choice < 900) {
        write_pair(self);
    } else if (choice < 960) {
        read_pair(self);
    } else if (choice < 985) {
        clear_and_fill(self);
    } else if (choice < 999) {
        read_many(self);
    } else {
        scan_some(self);
    }
}

void worker_run(Call *call, Stress *stress, Worker *worker) {
    Self self = {.call = call, .stress = stress, .worker = worker};
    self.random.state = stress->seed + worker->number * 1000003 + worker->operations;
    self.data = malloc(LARGEST + 8);
    self.noise = malloc(LARGEST + NOISE);
    self.value.capacity = LARGEST + 70000;
    self.value.data = malloc(self.value.capacity);
    self.seen = calloc(stress->keys, sizeof *self.seen);
    CHECK(self.data != NULL && self.noise != NULL && self.value.data != NULL && self.seen != NULL);
    pattern_fill(self.noise, LARGEST + NOISE, random_next(&self.random));
    worker->slot = call->slot;
    while (load_relaxed_u32(&stress->stop) == 0) {
        uint64_t begun = clock_monotonic_ns();
        step(&self);
        uint64_t took = clock_monotonic_ns() - begun;
        worker->operations++;
        worker->longest_ns = took > worker->longest_ns ? took : worker->longest_ns;
    }
    free(self.data);
    free(self.noise);
    free(self.value.data);
    free(self.seen);
}

void keeper_run(Call *call, Stress *stress) {
    Random random = {stress->seed + 77};
    while (load_relaxed_u32(&stress->stop) == 0) {
        uint32_t stripe = (uint32_t)random_below(&random, call->arena->stripe_count), count = 0;
        uint64_t pages = 0;
        CHECK_EQUAL(do_sweep(call, stripe), ST_OK);
        CHECK_EQUAL(do_compact(call, stripe, &pages), ST_OK);
        __atomic_fetch_add(&stress->compacted_pages, pages, __ATOMIC_RELAXED);
        if (random_one_in(&random, 20)) {
            (void)compact_make_room(call, random_between(&random, 1000, 100000));
        }
        Finding finding = {0};
        Status s = audit_stripe(call, stripe, true, &finding, 1, &count);
        CHECK(s == ST_OK || s == ST_BUSY);
        CHECK_SAYING(count == 0, "audit of stripe %u: %s (at %llx, found %llx, expected %llx)", stripe,
                     finding.what, (unsigned long long)finding.offset, (unsigned long long)finding.found,
                     (unsigned long long)finding.expected);
        __atomic_fetch_add(&stress->audits, s == ST_OK, __ATOMIC_RELAXED);
        (void)reap_all(call);
    }
}

void counters_check(Call *call, const Stress *stress, const uint64_t unknown[COUNTERS_SHARED]) {
    for (uint32_t i = 0; i < COUNTERS_SHARED; i++) {
        uint64_t told = 0;
        for (uint32_t w = 0; w < stress->workers; w++) {
            told += stress->worker[w].acked_incr[i];
        }
        char text[24];
        snprintf(text, sizeof text, "counter-%u", i);
        Key key = key_of(call->arena, text);
        int64_t number;
        CHECK_EQUAL(do_incr(call, &key, 0, &number), ST_OK);
        CHECK_SAYING((uint64_t)number >= told && (uint64_t)number <= told + unknown[i],
                     "counter %u is %lld; %llu increments were acknowledged, %llu more may have happened", i,
                     (long long)number, (unsigned long long)told, (unsigned long long)unknown[i]);
    }
}
