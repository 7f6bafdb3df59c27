/* tsan_locks.c: linked into the TSan flavour only.  TSan of gcc 12 does not see pthread_mutex_clocklock, and would
 * report each unlock after it; this one does the same through pthread_mutex_timedlock, which it does see. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <pthread.h>
#include <time.h>

int pthread_mutex_clocklock(pthread_mutex_t *mutex, clockid_t clock, const struct timespec *until) {
    struct timespec now, real;
    clock_gettime(clock, &now);
    clock_gettime(CLOCK_REALTIME, &real);
    long long left_ns = (until->tv_sec - now.tv_sec) * 1000000000LL + (until->tv_nsec - now.tv_nsec);
    long long at_ns = real.tv_nsec + (left_ns > 0 ? left_ns : 0);
    real.tv_sec += at_ns / 1000000000LL;
    real.tv_nsec = at_ns % 1000000000LL;
    return pthread_mutex_timedlock(mutex, &real);
}
