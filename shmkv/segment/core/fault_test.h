/* fault_test.h: what tests may do with the kill points of a test build. */
#ifndef SHMKV_FAULT_TEST_H
#define SHMKV_FAULT_TEST_H

/* Kill this process at the hit-th time (from 1) that it comes to the point; resets all counts. point -1 = only count. */
void fault_arm(int point, long hit);
/* What to send instead of SIGKILL: SIGSTOP halts the process at the point, SIGCONT lets it go on. */
void fault_signal(int signal);
long fault_hits(int point);
const char *fault_name(int point);

#endif
