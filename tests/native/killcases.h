/* killcases.h: the operations that killpoints.c kills, each with what it needs to find and the key that it is about. */
#ifndef SHMKV_KILLCASES_H
#define SHMKV_KILLCASES_H

#include "process.h"

#define CASE_KEYS 160             /* k0 ... are there from the start, shared by all cases */

typedef enum Records {
    NO_RECORD,                    /* changes nothing that can be seen */
    ONE_RECORD,                   /* all of it is visible if and only if the tail has moved */
    MANY_RECORDS                  /* each key by itself is old or new */
} Records;

typedef struct KillCase {
    const char *name;
    Records records;
    uint32_t dead_slots;          /* that the setup leaves */
    bool retires;
    void (*setup)(World *world);  /* may be NULL */
    void (*run)(Call *call);      /* in the child that is killed */
    const char *key;              /* what it is about: the next writer writes there */
} KillCase;

extern const KillCase kill_cases[];
extern const uint32_t kill_case_count;

/* The common start: CASE_KEYS entries, some in namespace 1, a full chain, a number, a large value. */
void kill_world_make(World *world);
/* Keys that a check looks at: k0..., and those that the cases name.  Number -> text, NULL at the end. */
const char *kill_key(uint32_t number, char *text);

#endif
