/* What a disk and a clock may do to a process: preloaded, it counts the calls that reach files below a folder, and lets
   some of them fail, write half, or be the last of the process. It sees every library's calls, whatever it is written in. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { OPEN = 1, WRITE = 2, SYNC = 4, RENAME = 8, MKDIR = 16, LINK = 32, TRUNCATE = 64, READ = 128 };
enum { CLOCK = -1000, SHORT = -1001, HALF = -1 };

/* shared with the process that has forked this one, which reads what came of it */
static struct state {
    char folder[PATH_MAX];
    size_t length;
    atomic_long count;
    long first, last;
    int action, calls;
    long seconds;
    atomic_int hit;
    char where[PATH_MAX + 64];
} *s;
static char mine[1 << 16]; /* file descriptors below the folder */

#define REAL(name) ((typeof(&name))dlsym(RTLD_NEXT, #name))

__attribute__((constructor)) static void begin(void) {
    s = mmap(NULL, sizeof *s, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
}

void fault_set(const char *folder, long first, long last, int action, int calls, long seconds) {
    snprintf(s->folder, sizeof s->folder, "%s", folder);
    s->length = strlen(folder);
    s->count = 0;
    s->hit = 0;
    s->where[0] = 0;
    s->first = first, s->last = last, s->action = action, s->calls = calls, s->seconds = seconds;
}
long fault_count(void) { return s->count; }
int fault_hit(void) { return s->hit; }
const char *fault_where(void) { return s->where; }

static int below(const char *path) {
    return s && s->length && path && !strncmp(path, s->folder, s->length) &&
           (path[s->length] == '/' || path[s->length] == 0);
}
static int is_mine(int file) { return s && s->length && file >= 0 && file < (int)sizeof mine && mine[file]; }

/* 0: go on; HALF: write half; otherwise the error to fail with */
static int due(int call, const char *name, const char *path, int file) {
    if (!(s->calls & call)) return 0;
    long n = atomic_fetch_add(&s->count, 1) + 1;
    if (n < s->first || n > s->last) return 0;
    if (!atomic_exchange(&s->hit, 1)) {
        char link[64], found[PATH_MAX] = "";
        if (!path) {
            snprintf(link, sizeof link, "/proc/self/fd/%d", file);
            ssize_t size = readlink(link, found, sizeof found - 1);
            found[size < 0 ? 0 : size] = 0;
        }
        snprintf(s->where, sizeof s->where, "%s %s", name, path ? path : found);
    }
    if (s->action == CLOCK) return 0;
    if (s->action == SHORT) return call == WRITE ? HALF : 0;
    if (s->action == -SIGKILL && call == WRITE) return HALF; /* and then the end */
    if (s->action < 0) return kill(getpid(), -s->action), 0;
    return s->action;
}
static ssize_t ended(ssize_t done) {
    if (s->action == -SIGKILL) kill(getpid(), SIGKILL);
    return done;
}
#define FAIL(why) return errno = (why), -1
#define CHECK(call, name, path, file) int why = due(call, name, path, file); if (why > 0) FAIL(why)

static int opened(int file, const char *path) {
    if (file >= 0 && file < (int)sizeof mine) mine[file] = below(path);
    return file;
}
#define OPENING(name, at, ...)                                                                                         \
    mode_t mode = 0;                                                                                                   \
    if (flags & (O_CREAT | O_TMPFILE)) {                                                                               \
        va_list rest;                                                                                                  \
        va_start(rest, flags);                                                                                         \
        mode = va_arg(rest, mode_t);                                                                                   \
        va_end(rest);                                                                                                  \
    }                                                                                                                  \
    if (below(path) && (flags & (O_WRONLY | O_RDWR | O_CREAT))) {                                                      \
        CHECK(OPEN, "open", path, 0);                                                                                  \
    }                                                                                                                  \
    return opened(REAL(name)(__VA_ARGS__, flags, mode), path)
int open(const char *path, int flags, ...) { OPENING(open, , path); }
int open64(const char *path, int flags, ...) { OPENING(open64, , path); }
int openat(int at, const char *path, int flags, ...) { OPENING(openat, , at, path); }
int openat64(int at, const char *path, int flags, ...) { OPENING(openat64, , at, path); }
int close(int file) {
    if (file >= 0 && file < (int)sizeof mine) mine[file] = 0;
    return REAL(close)(file);
}

#define WRITING(size, all, half)                                                                                       \
    if (is_mine(file)) {                                                                                               \
        CHECK(WRITE, "write", NULL, file);                                                                             \
        if (why == HALF && (size) > 1) return ended(half);                                                             \
        if (why == HALF) ended(0);                                                                                     \
    }                                                                                                                  \
    return all
ssize_t write(int file, const void *data, size_t size) {
    WRITING(size, REAL(write)(file, data, size), REAL(write)(file, data, size / 2));
}
ssize_t pwrite(int file, const void *data, size_t size, off_t at) {
    WRITING(size, REAL(pwrite)(file, data, size, at), REAL(pwrite)(file, data, size / 2, at));
}
ssize_t pwrite64(int file, const void *data, size_t size, off64_t at) {
    WRITING(size, REAL(pwrite64)(file, data, size, at), REAL(pwrite64)(file, data, size / 2, at));
}
ssize_t writev(int file, const struct iovec *parts, int count) {
    WRITING((size_t)count, REAL(writev)(file, parts, count), REAL(writev)(file, parts, count / 2));
}
ssize_t sendfile(int file, int from, off_t *at, size_t size) {
    WRITING(size, REAL(sendfile)(file, from, at, size), REAL(sendfile)(file, from, at, size / 2));
}
ssize_t sendfile64(int file, int from, off64_t *at, size_t size) {
    WRITING(size, REAL(sendfile64)(file, from, at, size), REAL(sendfile64)(file, from, at, size / 2));
}
ssize_t copy_file_range(int from, off64_t *a, int file, off64_t *b, size_t size, unsigned flags) {
    WRITING(size, REAL(copy_file_range)(from, a, file, b, size, flags),
            REAL(copy_file_range)(from, a, file, b, size / 2, flags));
}
ssize_t read(int file, void *data, size_t size) {
    if (is_mine(file)) {
        CHECK(READ, "read", NULL, file);
    }
    return REAL(read)(file, data, size);
}
int fsync(int file) {
    if (is_mine(file)) {
        CHECK(SYNC, "fsync", NULL, file);
    }
    return REAL(fsync)(file);
}
#define ON_PATH(call, name, path, result)                                                                              \
    if (below(path)) {                                                                                                 \
        CHECK(call, name, path, 0);                                                                                    \
    }                                                                                                                  \
    return result
int mkdir(const char *path, mode_t mode) { ON_PATH(MKDIR, "mkdir", path, REAL(mkdir)(path, mode)); }
int rename(const char *a, const char *b) { ON_PATH(RENAME, "rename", b, REAL(rename)(a, b)); }
int link(const char *a, const char *b) { ON_PATH(LINK, "link", b, REAL(link)(a, b)); }
int linkat(int x, const char *a, int y, const char *b, int flags) {
    ON_PATH(LINK, "link", b, REAL(linkat)(x, a, y, b, flags));
}
int truncate(const char *path, off_t size) { ON_PATH(TRUNCATE, "truncate", path, REAL(truncate)(path, size)); }
int ftruncate(int file, off_t size) {
    if (is_mine(file)) {
        CHECK(TRUNCATE, "truncate", NULL, file);
    }
    return REAL(ftruncate)(file, size);
}
int ftruncate64(int file, off64_t size) {
    if (is_mine(file)) {
        CHECK(TRUNCATE, "truncate", NULL, file);
    }
    return REAL(ftruncate64)(file, size);
}

/* the clock of the wall: from the call on at which it jumps */
static time_t jump(void) { return s && s->action == CLOCK && s->hit ? s->seconds : 0; }
int clock_gettime(clockid_t clock, struct timespec *now) {
    int found = REAL(clock_gettime)(clock, now);
    if (clock == CLOCK_REALTIME) now->tv_sec += jump();
    return found;
}
int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    int found = REAL(gettimeofday)(now, zone);
    now->tv_sec += jump();
    return found;
}
time_t time(time_t *to) {
    struct timespec now;
    REAL(clock_gettime)(CLOCK_REALTIME, &now);
    now.tv_sec += jump();
    if (to) *to = now.tv_sec;
    return now.tv_sec;
}
