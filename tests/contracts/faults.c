/* Makes the n-th call of the C library on files below a folder fail, for any process that has this library preloaded.
 *
 *   cc -O2 -shared -fPIC -o faults.so faults.c -ldl          LD_PRELOAD=faults.so python ...
 *
 * `faults_arm(root, nth, mode, number)` begins to count calls on paths below `root`, from 1. Call `nth` (0: none)
 *   mode 'e' fails with errno `number`; 'E' fails, and so does every later call that writes; 's' writes half, where it writes;
 *   mode 'k' kills the process instead of the call; 't' kills it after half of a write.
 * `faults_calls(buffer, size)` copies a letter for each call so far and returns their number:
 *   R open to read, o open to write, w write, f fsync, r rename, u unlink, d rmdir, l link, m mkdir, c truncate.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define FILES 4096
#define CALLS 65536

static char root[4096];
static size_t length;
static int chosen, number;
static char mode;
static atomic_int calls, failing;
static char letters[CALLS];
static atomic_char inside[FILES];

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

void faults_arm(const char *folder, int nth, char how, int with) {
    snprintf(root, sizeof root, "%s", folder ? folder : "");
    length = strlen(root);
    chosen = nth;
    mode = how;
    number = with;
    calls = failing = 0;
}

int faults_calls(char *buffer, int size) {
    int made = calls < CALLS ? calls : CALLS;
    memcpy(buffer, letters, made < size ? made : size);
    return made;
}

static int below(const char *path) { return length && path && !strncmp(path, root, length); }

static int kind(int fd) { return length && fd >= 0 && fd < FILES ? inside[fd] : 0; } /* 1: a file below root, 2: a folder */

static int at(int fd) { return kind(fd) == 1; }

static int below_at(int folder, const char *path) { return path && path[0] != '/' ? kind(folder) == 2 : below(path); }

static void die(void) { kill(getpid(), SIGKILL); for (;;) pause(); }

/* 0: make the call; 1: it fails, errno is set; 2: write half of it, then die if the mode is 't'. */
static int fault(char letter) {
    int nth = atomic_fetch_add(&calls, 1) + 1;
    if (nth <= CALLS) letters[nth - 1] = letter;
    if (failing && strchr("owmcl", letter)) { /* what a full disk refuses */ errno = number; return 1; }
    if (nth != chosen) return 0;
    if (mode == 'k') die();
    if (mode == 's' || mode == 't') return letter == 'w' ? 2 : 0;
    if (mode == 'E') failing = 1;
    errno = number;
    return 1;
}

static int opened(int fd, int what) {
    if (fd >= 0 && fd < FILES) inside[fd] = what;
    return fd;
}

static int writes(int flags) { return (flags & O_ACCMODE) != O_RDONLY || (flags & O_CREAT); }

#define OPEN(name, parameters, found, call)                                         \
    int name parameters {                                                           \
        mode_t bits = 0;                                                            \
        if (flags & (O_CREAT | O_TMPFILE)) {                                        \
            va_list more;                                                           \
            va_start(more, flags);                                                  \
            bits = va_arg(more, mode_t);                                            \
            va_end(more);                                                           \
        }                                                                           \
        int what = !(found) ? 0 : flags & O_DIRECTORY ? 2 : 1;                      \
        if (what == 1 && fault(writes(flags) ? 'o' : 'R') == 1) return -1;          \
        return opened(NEXT(name) call, what);                                       \
    }
OPEN(open, (const char *path, int flags, ...), below(path), (path, flags, bits))
OPEN(open64, (const char *path, int flags, ...), below(path), (path, flags, bits))
OPEN(openat, (int folder, const char *path, int flags, ...), below_at(folder, path), (folder, path, flags, bits))
OPEN(openat64, (int folder, const char *path, int flags, ...), below_at(folder, path), (folder, path, flags, bits))

int close(int fd) {
    if (fd >= 0 && fd < FILES) inside[fd] = 0;
    return NEXT(close)(fd);
}

ssize_t write(int fd, const void *data, size_t count) {
    int what = at(fd) ? fault('w') : 0;
    if (what == 1) return -1;
    if (what == 2) {
        ssize_t done = NEXT(write)(fd, data, count > 1 ? count / 2 : count);
        if (mode == 't') die();
        return done;
    }
    return NEXT(write)(fd, data, count);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    int what = at(fd) ? fault('w') : 0;
    if (what == 1) return -1;
    if (what == 2) {
        ssize_t done = NEXT(writev)(fd, parts, count > 1 ? count / 2 : count);
        if (mode == 't') die();
        return done;
    }
    return NEXT(writev)(fd, parts, count);
}

#define WITH_FD(name, letter, parameters, call)                                     \
    int name parameters { return at(fd) && fault(letter) == 1 ? -1 : NEXT(name) call; }
WITH_FD(fsync, 'f', (int fd), (fd))
WITH_FD(fdatasync, 'f', (int fd), (fd))
WITH_FD(ftruncate, 'c', (int fd, off_t size), (fd, size))
WITH_FD(ftruncate64, 'c', (int fd, off64_t size), (fd, size))

#define WITH_PATH(name, letter, found, parameters, call)                            \
    int name parameters { return (found) && fault(letter) == 1 ? -1 : NEXT(name) call; }
WITH_PATH(rename, 'r', below(to), (const char *from, const char *to), (from, to))
WITH_PATH(renameat, 'r', below_at(two, to), (int one, const char *from, int two, const char *to), (one, from, two, to))
WITH_PATH(unlink, 'u', below(path), (const char *path), (path))
WITH_PATH(unlinkat, 'u', below_at(folder, path), (int folder, const char *path, int flags), (folder, path, flags))
WITH_PATH(rmdir, 'd', below(path), (const char *path), (path))
WITH_PATH(link, 'l', below(to), (const char *from, const char *to), (from, to))
WITH_PATH(linkat, 'l', below_at(two, to), (int one, const char *from, int two, const char *to, int flags), (one, from, two, to, flags))
WITH_PATH(mkdir, 'm', below(path), (const char *path, mode_t bits), (path, bits))
WITH_PATH(mkdirat, 'm', below_at(folder, path), (int folder, const char *path, mode_t bits), (folder, path, bits))
