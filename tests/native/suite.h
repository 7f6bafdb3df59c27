/* suite.h: what a file of unit tests gives to unit.c. */
#ifndef SHMKV_SUITE_H
#define SHMKV_SUITE_H

#include "check.h"

typedef struct Test {
    const char *name;             /* states the expectation */
    void (*run)(Random *random);
} Test;

#define SUITES(X) \
    X(base) X(arena) X(heap) X(table) X(ring) X(read) X(write) X(compact) X(replay) X(snapshot) X(walk) X(lock) X(slot) X(audit)

#define SUITE_DECLARE(name) extern const Test name##_tests[];
SUITES(SUITE_DECLARE)
#undef SUITE_DECLARE

#endif
