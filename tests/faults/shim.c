/* Counts the calls that change a directory, and fails or kills the process at one of them.

   Preload it (LD_PRELOAD). Environment:
     FAULT_DIR      only calls for paths below this directory are counted (absolute, without symbolic links)
     FAULT_COUNTER  a file of 8 bytes that all processes share: the number of calls so far
     FAULT_CALL     the number of the first call that fails; 0 or absent: none, the calls are only counted
     FAULT_KIND     ENOSPC, EDQUOT, EIO, EROFS, EFBIG, ENOINODES (ENOSPC for new names only) or KILL
     FAULT_ONCE     1: only one call fails; absent: all later calls fail too, as on a disk that stays full
     FAULT_LOG      a file to which each counted call appends a line: NUMBER CALL PATH

   A process can change the call and the kind for itself: fault_arm(call, kind, once).

   Calls that cannot fail in the chosen way are counted and succeed: a full disk can still delete. At KILL, half of the
   bytes of a write arrive before the process dies.
*/
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum op { OPEN = 1, WRITE = 2, SYNC = 4, RENAME = 8, MKDIR = 16, REMOVE = 32, RESIZE = 64 };

static const struct { const char *name; int number; int ops; } KINDS[] = {
    {"ENOSPC", ENOSPC, OPEN | WRITE | SYNC | RENAME | MKDIR | RESIZE},
    {"ENOINODES", ENOSPC, OPEN | MKDIR},
    {"EDQUOT", EDQUOT, OPEN | WRITE | SYNC | RENAME | MKDIR | RESIZE},
    {"EFBIG", EFBIG, WRITE | RESIZE},
    {"EIO", EIO, OPEN | WRITE | SYNC | RENAME | MKDIR | REMOVE | RESIZE},
    {"EROFS", EROFS, OPEN | WRITE | RENAME | MKDIR | REMOVE | RESIZE},
    {"KILL", 0, OPEN | WRITE | SYNC | RENAME | MKDIR | REMOVE | RESIZE},
};

static char directory[PATH_MAX];
static size_t directory_length;
static uint64_t *counter, own_counter, first;
static int number, ops, kills, once, fired, log_fd = -1;

static void choose(uint64_t call, const char *kind, int only_once) {
    first = call, once = only_once, fired = 0, number = ops = kills = 0;
    for (size_t i = 0; kind && i < sizeof KINDS / sizeof *KINDS; i++)
        if (!strcmp(kind, KINDS[i].name)) number = KINDS[i].number, ops = KINDS[i].ops, kills = !KINDS[i].number;
}

/* Count from 0 again, and fail at `call` in the way of `kind`. */
void fault_arm(uint64_t call, const char *kind, int only_once) {
    choose(call, kind, only_once);
    __atomic_store_n(counter, 0, __ATOMIC_SEQ_CST);
}

__attribute__((constructor)) static void start(void) {
    const char *dir = getenv("FAULT_DIR"), *file = getenv("FAULT_COUNTER"), *call = getenv("FAULT_CALL");
    const char *kind = getenv("FAULT_KIND"), *log = getenv("FAULT_LOG"), *single = getenv("FAULT_ONCE");
    counter = &own_counter;
    if (!dir || strlen(dir) >= sizeof directory) return;
    strcpy(directory, dir);
    if (file) {
        int fd = syscall(SYS_openat, AT_FDCWD, file, O_RDWR | O_CLOEXEC, 0);
        void *shared = fd < 0 ? MAP_FAILED : mmap(NULL, 8, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (shared != MAP_FAILED) counter = shared;
        if (fd >= 0) syscall(SYS_close, fd);
    }
    if (call) choose(strtoull(call, NULL, 10), kind, single && *single == '1');
    if (log) {
        int fd = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
        if (fd >= 0) log_fd = syscall(SYS_fcntl, fd, F_DUPFD_CLOEXEC, 200), syscall(SYS_close, fd);
    }
    directory_length = strlen(directory);
}

static int below(const char *path) {
    return directory_length && !strncmp(path, directory, directory_length) &&
           (path[directory_length] == '/' || !path[directory_length]);
}

/* Whether the call fails, with errno set; does not return if the process is killed here. */
static int fails(enum op op, const char *name, const char *path, int fd, const void *bytes, size_t length) {
    int saved = errno;
    uint64_t now = __atomic_add_fetch(counter, 1, __ATOMIC_SEQ_CST);
    if (log_fd >= 0) {
        char line[PATH_MAX + 64];
        int n = snprintf(line, sizeof line, "%llu %s %s\n", (unsigned long long)now, name, path);
        syscall(SYS_write, log_fd, line, n < (int)sizeof line ? n : (int)sizeof line - 1);
    }
    errno = saved;
    if (!first || now < first || !(ops & op) || (once && fired)) return 0;
    fired = 1;
    if (kills) {
        if (bytes && length > 1) syscall(SYS_write, fd, bytes, length / 2);
        syscall(SYS_kill, getpid(), SIGKILL);
        for (;;) pause();
    }
    errno = number;
    return 1;
}

static int at_path(enum op op, const char *name, int base, const char *path) {
    char whole[2 * PATH_MAX], link[64];
    int saved = errno;
    if (!directory_length || !path) return 0;
    if (*path != '/') {
        ssize_t n;
        if (base == AT_FDCWD) {
            n = syscall(SYS_getcwd, whole, (size_t)PATH_MAX) > 0 ? (ssize_t)strlen(whole) : -1;
        } else {
            snprintf(link, sizeof link, "/proc/self/fd/%d", base);
            n = readlink(link, whole, PATH_MAX - 1);
        }
        errno = saved;
        if (n < 0) return 0;
        snprintf(whole + n, sizeof whole - n, "/%s", path);
        path = whole;
    }
    return below(path) && fails(op, name, path, -1, NULL, 0);
}

static int at_fd(enum op op, const char *name, int fd, const void *bytes, size_t length) {
    char path[PATH_MAX], link[64];
    int saved = errno;
    if (!directory_length || fd == log_fd) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    errno = saved;
    if (n < 0) return 0;
    path[n] = 0;
    return below(path) && fails(op, name, path, fd, bytes, length);
}

#define REAL(result, name, ...)                                                                                        \
    static result (*real)(__VA_ARGS__);                                                                                \
    if (!real) real = (result(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

#define CHANGES(flags) (((flags) & O_ACCMODE) != O_RDONLY || ((flags) & (O_CREAT | O_TRUNC)))

#define MODE(flags, last)                                                                                              \
    mode_t mode = 0;                                                                                                   \
    if ((flags) & (O_CREAT | O_TMPFILE)) { va_list rest; va_start(rest, last); mode = va_arg(rest, mode_t); va_end(rest); }

#define OPENS(name)                                                                                                    \
    int name(const char *path, int flags, ...) {                                                                       \
        REAL(int, #name, const char *, int, ...);                                                                      \
        MODE(flags, flags)                                                                                             \
        return CHANGES(flags) && at_path(OPEN, "open", AT_FDCWD, path) ? -1 : real(path, flags, mode);                 \
    }
OPENS(open)
OPENS(open64)

#define OPENS_AT(name)                                                                                                 \
    int name(int base, const char *path, int flags, ...) {                                                             \
        REAL(int, #name, int, const char *, int, ...);                                                                 \
        MODE(flags, flags)                                                                                             \
        return CHANGES(flags) && at_path(OPEN, "open", base, path) ? -1 : real(base, path, flags, mode);               \
    }
OPENS_AT(openat)
OPENS_AT(openat64)

#define FOPENS(name)                                                                                                   \
    FILE *name(const char *path, const char *mode) {                                                                   \
        REAL(FILE *, #name, const char *, const char *);                                                               \
        int changes = strpbrk(mode, "wa+") != NULL;                                                                    \
        return changes && at_path(OPEN, "open", AT_FDCWD, path) ? NULL : real(path, mode);                             \
    }
FOPENS(fopen)
FOPENS(fopen64)

size_t fwrite(const void *bytes, size_t size, size_t count, FILE *stream) {
    REAL(size_t, "fwrite", const void *, size_t, size_t, FILE *);
    return at_fd(WRITE, "write", fileno(stream), NULL, 0) ? 0 : real(bytes, size, count, stream);
}
ssize_t write(int fd, const void *bytes, size_t length) {
    REAL(ssize_t, "write", int, const void *, size_t);
    return at_fd(WRITE, "write", fd, bytes, length) ? -1 : real(fd, bytes, length);
}
#define PWRITES(name, offset_t)                                                                                        \
    ssize_t name(int fd, const void *bytes, size_t length, offset_t offset) {                                          \
        REAL(ssize_t, #name, int, const void *, size_t, offset_t);                                                     \
        return at_fd(WRITE, "write", fd, NULL, 0) ? -1 : real(fd, bytes, length, offset);                              \
    }
PWRITES(pwrite, off_t)
PWRITES(pwrite64, off64_t)
ssize_t writev(int fd, const struct iovec *parts, int count) {
    REAL(ssize_t, "writev", int, const struct iovec *, int);
    const void *bytes = count ? parts[0].iov_base : NULL;
    return at_fd(WRITE, "write", fd, bytes, count ? parts[0].iov_len : 0) ? -1 : real(fd, parts, count);
}
#define SENDS(name, offset_t)                                                                                          \
    ssize_t name(int out, int in, offset_t *offset, size_t length) {                                                   \
        REAL(ssize_t, #name, int, int, offset_t *, size_t);                                                            \
        return at_fd(WRITE, "write", out, NULL, 0) ? -1 : real(out, in, offset, length);                               \
    }
SENDS(sendfile, off_t)
SENDS(sendfile64, off64_t)
ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t length, unsigned flags) {
    REAL(ssize_t, "copy_file_range", int, off64_t *, int, off64_t *, size_t, unsigned);
    return at_fd(WRITE, "write", out, NULL, 0) ? -1 : real(in, from, out, to, length, flags);
}

int fsync(int fd) {
    REAL(int, "fsync", int);
    return at_fd(SYNC, "fsync", fd, NULL, 0) ? -1 : real(fd);
}
int fdatasync(int fd) {
    REAL(int, "fdatasync", int);
    return at_fd(SYNC, "fsync", fd, NULL, 0) ? -1 : real(fd);
}

#define RESIZES(name, offset_t)                                                                                        \
    int name(int fd, offset_t length) {                                                                                \
        REAL(int, #name, int, offset_t);                                                                               \
        return at_fd(RESIZE, "ftruncate", fd, NULL, 0) ? -1 : real(fd, length);                                        \
    }
RESIZES(ftruncate, off_t)
RESIZES(ftruncate64, off64_t)
#define ALLOCATES(name, offset_t)                                                                                      \
    int name(int fd, offset_t offset, offset_t length) {                                                               \
        REAL(int, #name, int, offset_t, offset_t);                                                                     \
        return at_fd(RESIZE, "fallocate", fd, NULL, 0) ? errno : real(fd, offset, length);                             \
    }
ALLOCATES(posix_fallocate, off_t)
ALLOCATES(posix_fallocate64, off64_t)

int rename(const char *from, const char *to) {
    REAL(int, "rename", const char *, const char *);
    return at_path(RENAME, "rename", AT_FDCWD, to) ? -1 : real(from, to);
}
int renameat(int from_base, const char *from, int to_base, const char *to) {
    REAL(int, "renameat", int, const char *, int, const char *);
    return at_path(RENAME, "rename", to_base, to) ? -1 : real(from_base, from, to_base, to);
}
int renameat2(int from_base, const char *from, int to_base, const char *to, unsigned flags) {
    REAL(int, "renameat2", int, const char *, int, const char *, unsigned);
    return at_path(RENAME, "rename", to_base, to) ? -1 : real(from_base, from, to_base, to, flags);
}
int link(const char *from, const char *to) {
    REAL(int, "link", const char *, const char *);
    return at_path(MKDIR, "link", AT_FDCWD, to) ? -1 : real(from, to);
}
int symlink(const char *from, const char *to) {
    REAL(int, "symlink", const char *, const char *);
    return at_path(MKDIR, "symlink", AT_FDCWD, to) ? -1 : real(from, to);
}
int mkdir(const char *path, mode_t mode) {
    REAL(int, "mkdir", const char *, mode_t);
    return at_path(MKDIR, "mkdir", AT_FDCWD, path) ? -1 : real(path, mode);
}
int mkdirat(int base, const char *path, mode_t mode) {
    REAL(int, "mkdirat", int, const char *, mode_t);
    return at_path(MKDIR, "mkdir", base, path) ? -1 : real(base, path, mode);
}
int unlink(const char *path) {
    REAL(int, "unlink", const char *);
    return at_path(REMOVE, "unlink", AT_FDCWD, path) ? -1 : real(path);
}
int unlinkat(int base, const char *path, int flags) {
    REAL(int, "unlinkat", int, const char *, int);
    return at_path(REMOVE, "unlink", base, path) ? -1 : real(base, path, flags);
}
int rmdir(const char *path) {
    REAL(int, "rmdir", const char *);
    return at_path(REMOVE, "rmdir", AT_FDCWD, path) ? -1 : real(path);
}
