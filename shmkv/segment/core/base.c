/* base.c: clocks, futex, checksums, hash and /proc look-ups: what the core takes from outside. */
#include "base.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static uint64_t read_clock(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000000000ULL + (uint64_t)t.tv_nsec;
}

uint64_t clock_monotonic_ns(void) { return read_clock(CLOCK_MONOTONIC); }
uint64_t clock_coarse_ms(void) { return read_clock(CLOCK_MONOTONIC_COARSE) / 1000000; }
uint64_t clock_boot_ms(void) { return read_clock(CLOCK_BOOTTIME) / 1000000; }
uint64_t clock_wall_ms(void) { return read_clock(CLOCK_REALTIME) / 1000000; }

void futex_wait(uint32_t *word, uint32_t expected, uint64_t timeout_ns) {
    struct timespec t = {.tv_sec = (time_t)(timeout_ns / 1000000000ULL), .tv_nsec = (long)(timeout_ns % 1000000000ULL)};
    syscall(SYS_futex, word, FUTEX_WAIT, expected, &t, NULL, 0);
}

void futex_wake(uint32_t *word, int count) { syscall(SYS_futex, word, FUTEX_WAKE, count, NULL, NULL, 0); }

/* Reflected CRC-32C of one nibble: short enough to read, fast enough where the instruction is missing. */
static const uint32_t crc_nibble[16] = {
    0x00000000, 0x105ec76f, 0x20bd8ede, 0x30e349b1, 0x417b1dbc, 0x5125dad3, 0x61c69362, 0x7198540d,
    0x82f63b78, 0x92a8fc17, 0xa24bb5a6, 0xb21572c9, 0xc38d26c4, 0xd3d3e1ab, 0xe330a81a, 0xf36e6f75};

static uint32_t crc32c_table(uint32_t crc, const uint8_t *p, size_t length) {
    while (length--) {
        crc ^= *p++;
        crc = (crc >> 4) ^ crc_nibble[crc & 15];
        crc = (crc >> 4) ^ crc_nibble[crc & 15];
    }
    return crc;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) static uint32_t crc32c_sse42(uint32_t crc, const uint8_t *p, size_t length) {
    uint64_t c = crc;
    for (; length >= 8; p += 8, length -= 8) {
        uint64_t word;
        memcpy(&word, p, 8);
        c = __builtin_ia32_crc32di(c, word);
    }
    crc = (uint32_t)c;
    if (length >= 4) {
        uint32_t half;
        memcpy(&half, p, 4);
        crc = __builtin_ia32_crc32si(crc, half);
        p += 4;
        length -= 4;
    }
    while (length--) {
        crc = __builtin_ia32_crc32qi(crc, *p++);
    }
    return crc;
}
#endif

uint32_t crc32c(uint32_t crc, const void *data, size_t length) {
    crc = ~crc;
#if defined(__x86_64__)
    if (LIKELY(__builtin_cpu_supports("sse4.2"))) {
        return ~crc32c_sse42(crc, data, length);
    }
#endif
    return ~crc32c_table(crc, data, length);
}

ALWAYS_INLINE uint64_t rotate(uint64_t x, int b) { return x << b | x >> (64 - b); }

#define SIP_ROUND                                                                                   \
    do {                                                                                            \
        v0 += v1; v2 += v3; v1 = rotate(v1, 13) ^ v0; v3 = rotate(v3, 16) ^ v2; v0 = rotate(v0, 32); \
        v2 += v1; v0 += v3; v1 = rotate(v1, 17) ^ v2; v3 = rotate(v3, 21) ^ v0; v2 = rotate(v2, 32); \
    } while (0)

uint64_t siphash13(uint64_t k0, uint64_t k1, const void *data, size_t length) {
    const uint8_t *p = data;
    uint64_t v0 = k0 ^ 0x736f6d6570736575ULL, v1 = k1 ^ 0x646f72616e646f6dULL;
    uint64_t v2 = k0 ^ 0x6c7967656e657261ULL, v3 = k1 ^ 0x7465646279746573ULL;
    uint64_t word = 0;
    size_t left = length;
    for (; left >= 8; p += 8, left -= 8) {
        memcpy(&word, p, 8);
        v3 ^= word;
        SIP_ROUND;
        v0 ^= word;
    }
    word = (uint64_t)length << 56;
    for (size_t i = 0; i < left; i++) {
        word |= (uint64_t)p[i] << (8 * i);
    }
    v3 ^= word;
    SIP_ROUND;
    v0 ^= word;
    v2 ^= 0xff;
    SIP_ROUND;
    SIP_ROUND;
    SIP_ROUND;
    return v0 ^ v1 ^ v2 ^ v3;
}

/* The kernel's word, which needs no descriptor and no /proc. */
static TaskState task_by_signal(uint32_t pid, uint32_t tid) {
    return syscall(SYS_tgkill, pid, tid, 0) != 0 && errno == ESRCH ? TASK_GONE : TASK_UNKNOWN;
}

TaskState task_look_up(uint32_t pid, uint32_t tid, uint64_t *start_time) {
    char text[1024];
    *start_time = 0;
    snprintf(text, sizeof text, "/proc/%u/task/%u/stat", pid, tid);
    int fd = open(text, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return task_by_signal(pid, tid);
    }
    ssize_t got = read(fd, text, sizeof text - 1);
    close(fd);
    if (got <= 0) {
        return task_by_signal(pid, tid);
    }
    text[got] = 0;
    /* The command's name may hold anything, so count fields from its closing parenthesis. */
    char *field = strrchr(text, ')');
    if (field == NULL || field[1] != ' ') {
        return TASK_UNKNOWN;
    }
    if (field[2] == 'Z' || field[2] == 'X') {
        return TASK_GONE;
    }
    field += 2;
    for (int i = 3; i < 22 && field != NULL; i++) {
        field = strchr(field + 1, ' ');
    }
    *start_time = field == NULL ? 0 : strtoull(field + 1, NULL, 10);
    return *start_time == 0 ? TASK_UNKNOWN : TASK_THERE;
}
