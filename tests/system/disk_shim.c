/* Stands between a process and its disk (LD_PRELOAD): calls on files below one directory fail, hang or fall short
 * when the control file, which the test maps too, says so.  disks.py has the other end.
 *
 * I1  Calls on files elsewhere are passed on untouched.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OPEN, WRITE, SYNC, RENAME, UNLINK, ALLOCATE, MKDIR, RULES };

enum { HANG = -1, FALL_SHORT = -2 };

typedef struct {
    int32_t what;   /* 0 nothing, an errno, or one of the above */
    int32_t skip;   /* so many calls pass before */
    int32_t times;  /* then so many are hit; negative: all */
    int32_t hits;
} Rule;

static Rule *rules;
static char directory[PATH_MAX];
static size_t directory_length;

__attribute__((constructor)) static void set_up(void) {
    const char *control = getenv("SHMKV_TEST_DISK_CONTROL"), *where = getenv("SHMKV_TEST_DISK_DIR");
    if (control == NULL || where == NULL || strlen(where) >= sizeof directory) {
        return;
    }
    int (*real_open)(const char *, int, ...) = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, "open64");
    int fd = real_open(control, O_RDWR | O_CLOEXEC);
    if (fd < 0) {
        return;
    }
    void *memory = mmap(NULL, RULES * sizeof(Rule), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (memory != MAP_FAILED) {
        strcpy(directory, where);
        directory_length = strlen(where);
        rules = memory;
    }
}

/* What happens to this call: 0 nothing, an errno, FALL_SHORT.  Comes back from HANG when the rule is gone. */
static int verdict(int operation, const char *path) {
    if (rules == NULL || strncmp(path, directory, directory_length) != 0) {
        return 0;
    }
    Rule *rule = &rules[operation];
    int what = __atomic_load_n(&rule->what, __ATOMIC_ACQUIRE);
    if (what == 0 || __atomic_fetch_sub(&rule->skip, 1, __ATOMIC_ACQ_REL) > 0) {
        return 0;
    }
    int times = __atomic_load_n(&rule->times, __ATOMIC_ACQUIRE);
    if (times == 0 || (times > 0 && __atomic_fetch_sub(&rule->times, 1, __ATOMIC_ACQ_REL) <= 0)) {
        return 0;
    }
    __atomic_fetch_add(&rule->hits, 1, __ATOMIC_ACQ_REL);
    while (what == HANG) {
        usleep(2000);
        what = __atomic_load_n(&rule->what, __ATOMIC_ACQUIRE);
    }
    return what;
}

static int verdict_fd(int operation, int fd) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = rules == NULL ? -1 : readlink(link, path, sizeof path - 1);
    if (length < 0) {
        return 0;
    }
    path[length] = '\0';
    return verdict(operation, path);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define REFUSE(what) if ((what) > 0) { errno = (what); return -1; }

int open64(const char *path, int flags, ...) {
    va_list more;
    va_start(more, flags);
    mode_t mode = va_arg(more, mode_t);
    va_end(more);
    int what = (flags & O_ACCMODE) == O_RDONLY ? 0 : verdict(OPEN, path);
    REFUSE(what)
    return REAL(open64)(path, flags, mode);
}

ssize_t pwritev64v2(int fd, const struct iovec *pieces, int count, off64_t offset, int flags) {
    int what = verdict_fd(WRITE, fd);
    REFUSE(what)
    if (what == FALL_SHORT && count > 0) {
        struct iovec part = {pieces[0].iov_base, pieces[0].iov_len > 1 ? pieces[0].iov_len / 2 : pieces[0].iov_len};
        return REAL(pwritev64v2)(fd, &part, 1, offset, flags);
    }
    return REAL(pwritev64v2)(fd, pieces, count, offset, flags);
}

ssize_t pwritev64(int fd, const struct iovec *pieces, int count, off64_t offset) {
    return pwritev64v2(fd, pieces, count, offset, 0);
}

int fdatasync(int fd) {
    int what = verdict_fd(SYNC, fd);
    REFUSE(what)
    return REAL(fdatasync)(fd);
}

int fsync(int fd) {
    int what = verdict_fd(SYNC, fd);
    REFUSE(what)
    return REAL(fsync)(fd);
}

int rename(const char *from, const char *to) {
    int what = verdict(RENAME, to);
    REFUSE(what)
    return REAL(rename)(from, to);
}

int unlink(const char *path) {
    int what = verdict(UNLINK, path);
    REFUSE(what)
    return REAL(unlink)(path);
}

int posix_fallocate64(int fd, off64_t offset, off64_t length) {
    int what = verdict_fd(ALLOCATE, fd);
    if (what > 0) {
        return what;
    }
    return REAL(posix_fallocate64)(fd, offset, length);
}

int mkdir(const char *path, mode_t mode) {
    int what = verdict(MKDIR, path);
    REFUSE(what)
    return REAL(mkdir)(path, mode);
}
