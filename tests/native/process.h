/* process.h: children on a shared arena that are killed or stopped at a chosen moment. */
#ifndef SHMKV_PROCESS_H
#define SHMKV_PROCESS_H

#include "world.h"

#include <sys/types.h>

/* Runs body(call, context) in a child with a slot of its own; the child ends with _exit(0). */
typedef void (*ChildBody)(Call *call, void *context);
pid_t child_start(World *world, ChildBody body, void *context);
/* Waits until it is dead; returns the signal that killed it, 0 after exit(0), -1 after another exit. */
int child_end(pid_t child);
/* Waits until it has stopped (true) or ended (false; it is reaped then). */
bool child_stopped(pid_t child);
/* In a child: tells that it is there where it wants to be killed, and sleeps for ever. */
_Noreturn void child_wait_for_kill(uint32_t *word);
/* In the parent: waits for that, kills it, and waits for its death. */
void child_kill_there(pid_t child, uint32_t *word);
/* Zeroed memory that children share. */
void *shared_memory(uint64_t bytes);
/* What makes the kernel forget the locks of this thread, as a crash of the kernel's walk would. */
void forget_robust_list(void);

#endif
