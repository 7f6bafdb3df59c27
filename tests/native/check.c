/* check.c: see check.h. */
#include "check.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static char context[256];
static _Thread_local char part[256];
static uint64_t seed_of_run = 1;

void check_seed(uint64_t seed) { seed_of_run = seed; }
uint64_t check_seed_value(void) { return seed_of_run; }

void check_context(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(context, sizeof context, format, arguments);
    va_end(arguments);
}

void check_case(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(part, sizeof part, format, arguments);
    va_end(arguments);
}

void check_failed(const char *file, int line, const char *format, ...) {
    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    fprintf(stderr, "\nFAILED %s:%d: %s\n  in: %s%s%s\n", file, line, text, context, part[0] ? "; case: " : "", part);
    fflush(NULL);
    _exit(1);
}
