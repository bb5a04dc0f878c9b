/* Faults of one process that need no root: its wall clock is wrong, its syncs take longer or fail.

   Loaded by LD_PRELOAD. JEPSEN_FAULTS names a file of `struct faults`, which is mapped: whoever writes to it changes what
   the process sees at its next call. Times are seconds. The monotonic clock is never touched: a machine's own does not
   jump, and what waits by it must go on. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

struct faults {
  volatile double clock_offset; /* added to the wall clock */
  volatile double clock_drift;  /* seconds gained in a second, since drift_from */
  volatile double drift_from;   /* wall clock */
  volatile double sync_seconds; /* that a sync takes longer */
  volatile double sync_fails;   /* not 0: EIO */
};

static struct faults none;
static struct faults *faults = &none;
static int (*real_clock_gettime)(clockid_t, struct timespec *);
static int (*real_fsync)(int);
static int (*real_fdatasync)(int);
static int (*real_msync)(void *, size_t, int);

static void begin(void) {
  if (real_clock_gettime) return;
  real_fsync = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
  real_fdatasync = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
  real_msync = (int (*)(void *, size_t, int))dlsym(RTLD_NEXT, "msync");
  real_clock_gettime = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
}

__attribute__((constructor)) static void map_faults(void) {
  begin();
  const char *path = getenv("JEPSEN_FAULTS");
  int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
  if (fd < 0) return;
  void *found = mmap(NULL, sizeof(struct faults), PROT_READ, MAP_SHARED, fd, 0);
  close(fd);
  if (found != MAP_FAILED) faults = found;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
  begin();
  int failed = real_clock_gettime(clock, now);
  if (failed || (clock != CLOCK_REALTIME && clock != CLOCK_REALTIME_COARSE)) return failed;
  double shift = faults->clock_offset;
  if (faults->clock_drift != 0) shift += faults->clock_drift * (now->tv_sec + now->tv_nsec / 1e9 - faults->drift_from);
  if (shift == 0) return 0;
  long whole = (long)shift;
  long ns = now->tv_nsec + (long)((shift - whole) * 1e9);
  now->tv_sec += whole + (ns >= 1000000000) - (ns < 0);
  now->tv_nsec = ns + (ns < 0) * 1000000000 - (ns >= 1000000000) * 1000000000;
  return 0;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
  struct timespec exact;
  (void)zone;
  if (clock_gettime(CLOCK_REALTIME, &exact)) return -1;
  now->tv_sec = exact.tv_sec;
  now->tv_usec = exact.tv_nsec / 1000;
  return 0;
}

time_t time(time_t *now) {
  struct timespec exact;
  if (clock_gettime(CLOCK_REALTIME, &exact)) return -1;
  if (now) *now = exact.tv_sec;
  return exact.tv_sec;
}

static int trouble(void) {
  double seconds = faults->sync_seconds;
  begin();
  if (seconds > 0) {
    struct timespec left = {(time_t)seconds, (long)((seconds - (time_t)seconds) * 1e9)};
    while (nanosleep(&left, &left) && errno == EINTR) continue;
  }
  if (faults->sync_fails == 0) return 0;
  errno = EIO;
  return -1;
}

int fsync(int fd) { return trouble() ? -1 : real_fsync(fd); }
int fdatasync(int fd) { return trouble() ? -1 : real_fdatasync(fd); }
int msync(void *at, size_t bytes, int flags) { return trouble() ? -1 : real_msync(at, bytes, flags); }
