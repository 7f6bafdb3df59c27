/* unit.c: runs the unit tests: unit [-s SEED] [-l] [SUITE | SUITE.TEST]...
 *
 * Invariants:
 *   I1  Each test runs in a child of its own, with a deadline: a crash or a hang of one doesn't hide the others.
 *   I2  A test's random numbers depend on the seed and its name only: alone it repeats what it did among all.
 */
#include "suite.h"
#include "base.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define TEST_DEADLINE_S 60

typedef struct Suite {
    const char *name;
    const Test *tests;
} Suite;

static const Suite suites[] = {
#define SUITE_ENTRY(name) {#name, name##_tests},
    SUITES(SUITE_ENTRY)
#undef SUITE_ENTRY
};

static bool run_one(const Suite *suite, const Test *test, uint64_t seed) {
    uint64_t begun = clock_monotonic_ns();
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        alarm(TEST_DEADLINE_S);
        check_context("%s.%s, again: unit -s %llu %s.%s", suite->name, test->name, (unsigned long long)seed,
                      suite->name, test->name);
        check_seed(seed);
        Random random = {seed + crc32c(0, test->name, strlen(test->name))};
        test->run(&random);
        exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    bool good = WIFEXITED(status) && WEXITSTATUS(status) == 0;
    printf("%-6s %s.%s  %.2f s", good ? "ok" : "FAILED", suite->name, test->name,
           (double)(clock_monotonic_ns() - begun) / 1e9);
    if (WIFSIGNALED(status)) {
        printf("  (%s)", WTERMSIG(status) == SIGALRM ? "hangs" : strsignal(WTERMSIG(status)));
    }
    printf("\n");
    return good;
}

static bool chosen(const Suite *suite, const Test *test, int count, char **names) {
    size_t length = strlen(suite->name);
    for (int i = 0; i < count; i++) {
        if (strncmp(names[i], suite->name, length) == 0 &&
            (names[i][length] == 0 || (names[i][length] == '.' && strcmp(names[i] + length + 1, test->name) == 0))) {
            return true;
        }
    }
    return count == 0;
}

int main(int argc, char **argv) {
    uint64_t seed = clock_wall_ms() % 1000000;
    bool list = false;
    for (int option; (option = getopt(argc, argv, "s:l")) != -1;) {
        if (option == 's') {
            seed = strtoull(optarg, NULL, 10);
        } else if (option == 'l') {
            list = true;
        } else {
            return 2;
        }
    }
    int failed = 0, run = 0;
    if (!list) {
        printf("seed %llu\n", (unsigned long long)seed);
    }
    for (size_t i = 0; i < sizeof suites / sizeof *suites; i++) {
        for (const Test *test = suites[i].tests; test->name != NULL; test++) {
            if (!chosen(&suites[i], test, argc - optind, argv + optind)) {
                continue;
            }
            if (list) {
                printf("%s.%s\n", suites[i].name, test->name);
                continue;
            }
            run++;
            failed += !run_one(&suites[i], test, seed);
        }
    }
    if (!list) {
        printf("%d tests, %d failed\n", run, failed);
    }
    return failed != 0 || (run == 0 && !list);
}
