/* test_base.c: checksum, hash, copies and /proc look-ups, each against something independent. */
#include "base.h"
#include "suite.h"

#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- CRC-32C, bit by bit --------------------------------------------------------------------- */
static uint32_t crc32c_plain(const uint8_t *data, size_t length) {
    uint32_t crc = 0xffffffff;
    for (size_t i = 0; i < length; i++) {
        crc ^= data[i];
        for (int bit = 0; bit < 8; bit++) {
            crc = crc & 1 ? crc >> 1 ^ 0x82f63b78 : crc >> 1;
        }
    }
    return ~crc;
}

static void crc_has_the_published_values(Random *random) {
    (void)random;
    CHECK_EQUAL(crc32c(0, "123456789", 9), 0xe3069283);
    uint8_t block[32] = {0};
    CHECK_EQUAL(crc32c(0, block, 32), 0x8a9136aa);      /* RFC 3720, B.4: zeros, ones, ascending */
    memset(block, 0xff, 32);
    CHECK_EQUAL(crc32c(0, block, 32), 0x62a8ab43);
    for (uint8_t i = 0; i < 32; i++) {
        block[i] = i;
    }
    CHECK_EQUAL(crc32c(0, block, 32), 0x46dd794e);
    CHECK_EQUAL(crc32c(0, "", 0), 0);
}

static void crc_equals_the_plain_one_and_goes_on(Random *random) {
    uint8_t data[600];
    for (int round = 0; round < 2000; round++) {
        size_t length = random_below(random, sizeof data), cut = random_below(random, length + 1);
        for (size_t i = 0; i < length; i++) {
            data[i] = (uint8_t)random_next(random);
        }
        uint32_t whole = crc32c(0, data, length);
        CHECK_EQUAL(whole, crc32c_plain(data, length));
        CHECK_EQUAL(crc32c(crc32c(0, data, cut), data + cut, length - cut), whole);
    }
}

/* ---- SipHash-c-d as the paper writes it: a vector of four words and a padded message --------- */
typedef struct Sip {
    uint64_t v[4];
} Sip;

static uint64_t turn(uint64_t x, unsigned by) { return (x << by) | (x >> (64 - by)); }

static void sip_rounds(Sip *s, int rounds) {
    for (int i = 0; i < rounds; i++) {
        s->v[0] = s->v[0] + s->v[1];
        s->v[1] = turn(s->v[1], 13);
        s->v[1] = s->v[1] ^ s->v[0];
        s->v[0] = turn(s->v[0], 32);
        s->v[2] = s->v[2] + s->v[3];
        s->v[3] = turn(s->v[3], 16);
        s->v[3] = s->v[3] ^ s->v[2];
        s->v[0] = s->v[0] + s->v[3];
        s->v[3] = turn(s->v[3], 21);
        s->v[3] = s->v[3] ^ s->v[0];
        s->v[2] = s->v[2] + s->v[1];
        s->v[1] = turn(s->v[1], 17);
        s->v[1] = s->v[1] ^ s->v[2];
        s->v[2] = turn(s->v[2], 32);
    }
}

static uint64_t sip_plain(int c, int d, const uint8_t key[16], const uint8_t *message, size_t length) {
    size_t blocks = length / 8 + 1;
    uint8_t *padded = calloc(blocks, 8);
    CHECK(padded != NULL);
    memcpy(padded, message, length);
    padded[blocks * 8 - 1] = (uint8_t)length;
    uint64_t k[2];
    memcpy(k, key, 16);
    Sip s = {{k[0] ^ 0x736f6d6570736575ULL, k[1] ^ 0x646f72616e646f6dULL, k[0] ^ 0x6c7967656e657261ULL,
              k[1] ^ 0x7465646279746573ULL}};
    for (size_t i = 0; i < blocks; i++) {
        uint64_t m;
        memcpy(&m, padded + 8 * i, 8);
        s.v[3] ^= m;
        sip_rounds(&s, c);
        s.v[0] ^= m;
    }
    s.v[2] ^= 0xff;
    sip_rounds(&s, d);
    free(padded);
    return s.v[0] ^ s.v[1] ^ s.v[2] ^ s.v[3];
}

static void siphash_equals_the_plain_one(Random *random) {
    uint8_t key[16], message[256];
    for (uint8_t i = 0; i < 16; i++) {
        key[i] = i;
        message[i] = i;
    }
    /* The paper's worked example proves the plain one: SipHash-2-4 of 00..0e under the key 00..0f. */
    CHECK_EQUAL(sip_plain(2, 4, key, message, 15), 0xa129ca6149be45e5ULL);
    for (int round = 0; round < 2000; round++) {
        size_t length = round < 256 ? (size_t)round : random_below(random, 256);
        for (size_t i = 0; i < 16; i++) {
            key[i] = (uint8_t)random_next(random);
        }
        for (size_t i = 0; i < length; i++) {
            message[i] = (uint8_t)random_next(random);
        }
        uint64_t k[2];
        memcpy(k, key, 16);
        CHECK_EQUAL(siphash13(k[0], k[1], message, length), sip_plain(1, 3, key, message, length));
    }
}

/* ---- copies ---------------------------------------------------------------------------------- */
static void copies_move_all_bytes_and_no_other(Random *random) {
    static uint8_t private_bytes[4096 + 16], back[4096 + 16];
    static _Alignas(8) uint8_t shared[4096 + 16];
    for (size_t length = 0; length <= 4096; length += length < 600 ? 1 : 97) {
        for (size_t i = 0; i < sizeof private_bytes; i++) {
            private_bytes[i] = (uint8_t)random_next(random);
        }
        memset(shared, 0xaa, sizeof shared);
        memset(back, 0xbb, sizeof back);
        copy_to_shared(shared, private_bytes, length);
        copy_from_shared(back, shared, length);
        CHECK(memcmp(shared, private_bytes, length) == 0 && memcmp(back, private_bytes, length) == 0);
        for (size_t i = length; i < length + 16; i++) {
            CHECK_EQUAL(shared[i], 0xaa);
            CHECK_EQUAL(back[i], 0xbb);
        }
    }
}

/* ---- tasks ----------------------------------------------------------------------------------- */
static TaskState state_of(uint32_t pid, uint32_t tid) {
    uint64_t start_time;
    return task_look_up(pid, tid, &start_time);
}

static void a_task_is_there_or_gone_and_never_gone_for_want_of_a_descriptor(Random *random) {
    (void)random;
    uint32_t me = (uint32_t)getpid();
    uint64_t first = 0, again = 0;
    CHECK_EQUAL(task_look_up(me, me, &first), TASK_THERE);
    CHECK_EQUAL(task_look_up(me, me, &again), TASK_THERE);
    CHECK(first != 0);
    CHECK_EQUAL(first, again);
    CHECK_EQUAL(state_of(me, 1), TASK_GONE);          /* a task, but not of this process */
    CHECK_EQUAL(state_of(4000000, 4000000), TASK_GONE);
    pid_t child = fork();
    if (child == 0) {
        _exit(0);
    }
    siginfo_t info;
    waitid(P_PID, (id_t)child, &info, WEXITED | WNOWAIT);
    CHECK_EQUAL(state_of((uint32_t)child, (uint32_t)child), TASK_GONE);      /* a zombie */
    waitpid(child, NULL, 0);
    CHECK_EQUAL(state_of((uint32_t)child, (uint32_t)child), TASK_GONE);
    struct rlimit before, none;
    getrlimit(RLIMIT_NOFILE, &before);
    none = before;
    none.rlim_cur = 0;
    setrlimit(RLIMIT_NOFILE, &none);
    TaskState mine = state_of(me, me), gone = state_of(4000000, 4000000);
    setrlimit(RLIMIT_NOFILE, &before);
    CHECK_EQUAL(mine, TASK_UNKNOWN);
    CHECK_EQUAL(gone, TASK_GONE);
}

const Test base_tests[] = {
    {"crc_has_the_published_values", crc_has_the_published_values},
    {"crc_equals_the_plain_one_and_goes_on", crc_equals_the_plain_one_and_goes_on},
    {"siphash_equals_the_plain_one", siphash_equals_the_plain_one},
    {"copies_move_all_bytes_and_no_other", copies_move_all_bytes_and_no_other},
    {"a_task_is_there_or_gone_and_never_gone_for_want_of_a_descriptor",
     a_task_is_there_or_gone_and_never_gone_for_want_of_a_descriptor},
    {0}};
