/* fault.c: the other side of KILL_POINT in test builds.  Nothing of this is in a release build.
 *
 * The armed point is the only global of the core: it belongs to the test, not to an arena.
 */
#ifdef SHMKV_FAULT
#include "fault.h"
#include "fault_test.h"

#include <signal.h>
#include <string.h>
#include <unistd.h>

static int armed_point = -1;
static long armed_hit;
static long hits[FAULT_COUNT];
static int signal_to_send = SIGKILL;

static const char *const names[FAULT_COUNT] = {
#define FAULT_NAME(name) #name,
    FAULT_POINTS(FAULT_NAME)
#undef FAULT_NAME
};

void fault_arm(int point, long hit) {
    armed_point = point;
    armed_hit = hit;
    memset(hits, 0, sizeof hits);
}

void fault_signal(int signal) { signal_to_send = signal; }

long fault_hits(int point) { return hits[point]; }
const char *fault_name(int point) { return names[point]; }

void fault_hit(int point) {
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    if (++hits[point] == armed_hit && point == armed_point) {
        kill(getpid(), signal_to_send);
        while (signal_to_send == SIGKILL) {
            pause();
        }
    }
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
}
#else
typedef int fault_c_is_empty_in_release_builds;
#endif
