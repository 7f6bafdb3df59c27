/* process.c: see process.h. */
#include "process.h"

#include <linux/futex.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

pid_t child_start(World *world, ChildBody body, void *context) {
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        /* A test that fails leaves nobody behind. */
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        Call call;
        call_open(&call, &world->arena);
        body(&call, context);
        _exit(0);
    }
    return child;
}

int child_end(pid_t child) {
    int status = 0;
    CHECK_EQUAL(waitpid(child, &status, 0), child);
    return WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status) == 0 ? 0 : -1;
}

bool child_stopped(pid_t child) {
    int status = 0;
    CHECK_EQUAL(waitpid(child, &status, WUNTRACED), child);
    CHECK(WIFSTOPPED(status) || (WIFEXITED(status) && WEXITSTATUS(status) == 0));
    return WIFSTOPPED(status);
}

void child_wait_for_kill(uint32_t *word) {
    store_release_u32(word, 1);
    futex_wake(word, 1);
    for (;;) {
        pause();
    }
}

void child_kill_there(pid_t child, uint32_t *word) {
    uint64_t until = clock_monotonic_ns() + PATIENCE_NS;
    while (load_acquire_u32(word) == 0) {
        CHECK(clock_monotonic_ns() < until);
        futex_wait(word, 0, 10000000);
    }
    kill(child, SIGKILL);
    CHECK_EQUAL(child_end(child), SIGKILL);
}

void *shared_memory(uint64_t bytes) {
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    return memory;
}

void forget_robust_list(void) {
    static struct robust_list_head empty;
    empty.list.next = &empty.list;
    CHECK_EQUAL(syscall(SYS_set_robust_list, &empty, sizeof empty), 0);
}
