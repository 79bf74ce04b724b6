/* LD_PRELOAD: calls that write below $FAULT_FOLDER are counted, and from the environment made to fail.
   FAULT_AT=n the n-th, FAULT_LASTS=1 all after it too, FAULT_ERRNO=e with that error. FAULT_CLOCK=s: from the n-th call
   on the wall clock is s seconds back. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static long calls;

long fault_calls(void) { return calls; }

static long number(const char *name) { const char *text = getenv(name); return text ? atol(text) : 0; }

static int below(const char *path) {
  const char *folder = getenv("FAULT_FOLDER");
  return folder && path && strncmp(path, folder, strlen(folder)) == 0;
}

static int below_fd(int fd) {
  char link[64], path[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) return 0;
  path[length] = 0;
  return below(path);
}

static int refused(int counts) {
  if (!counts) return 0;
  long at = number("FAULT_AT"), error = number("FAULT_ERRNO");
  calls++;
  if (!at || !error || (calls != at && !(calls > at && number("FAULT_LASTS")))) return 0;
  errno = error;
  return 1;
}

#define REAL(type, name, ...) static type (*real)(__VA_ARGS__); if (!real) real = dlsym(RTLD_NEXT, #name)
#define WRITES(flags) ((flags) & (O_CREAT | O_WRONLY | O_RDWR))
#define MODE(flags) mode_t mode = 0; if (((flags) & O_CREAT) || ((flags) & O_TMPFILE) == O_TMPFILE) { va_list rest; va_start(rest, flags); \
  mode = va_arg(rest, mode_t); va_end(rest); }

#define OPEN(name) int name(const char *path, int flags, ...) { REAL(int, name, const char *, int, ...); MODE(flags) \
  return refused(WRITES(flags) && below(path)) ? -1 : real(path, flags, mode); }
#define OPENAT(name) int name(int at, const char *path, int flags, ...) { REAL(int, name, int, const char *, int, ...); \
  MODE(flags) return refused(WRITES(flags) && below(path)) ? -1 : real(at, path, flags, mode); }
#define ON_FD(type, name, parameters, arguments) type name parameters { static type (*real)parameters; \
  if (!real) real = dlsym(RTLD_NEXT, #name); return refused(below_fd(fd)) ? -1 : real arguments; }

OPEN(open) OPEN(open64) OPENAT(openat) OPENAT(openat64)
ON_FD(ssize_t, write, (int fd, const void *data, size_t size), (fd, data, size))
ON_FD(ssize_t, writev, (int fd, const struct iovec *parts, int count), (fd, parts, count))
ON_FD(ssize_t, pwrite, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at))
ON_FD(ssize_t, pwrite64, (int fd, const void *data, size_t size, off64_t at), (fd, data, size, at))
ON_FD(int, fsync, (int fd), (fd))
ON_FD(int, fdatasync, (int fd), (fd))
ON_FD(int, ftruncate, (int fd, off_t size), (fd, size))
ON_FD(int, ftruncate64, (int fd, off64_t size), (fd, size))

int rename(const char *from, const char *to) {
  REAL(int, rename, const char *, const char *);
  return refused(below(to)) ? -1 : real(from, to);
}

int mkdir(const char *path, mode_t mode) {
  REAL(int, mkdir, const char *, mode_t);
  return refused(below(path)) ? -1 : real(path, mode);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
  REAL(int, clock_gettime, clockid_t, struct timespec *);
  int result = real(clock, now);
  if (clock == CLOCK_REALTIME && number("FAULT_AT") && calls >= number("FAULT_AT")) now->tv_sec -= number("FAULT_CLOCK");
  return result;
}
