/* descriptor.c: what node:fs has no call for: locks, anonymous files, replacing an open file, punching holes. */
#include "shim.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <unistd.h>

#define MAX_FILE_BYTES 9007199254740992.0 /* 2^53: whole numbers above it do not survive a double */

static int is_size(double bytes) { return bytes >= 0 && bytes < MAX_FILE_BYTES; }

EXPORT int shim_descriptor_lock(int fd) { return flock(fd, LOCK_EX | LOCK_NB) == 0 ? 0 : -errno; }

EXPORT int shim_descriptor_share(int fd) { return flock(fd, LOCK_SH | LOCK_NB) == 0 ? 0 : -errno; }

EXPORT int shim_descriptor_replace(int target, int source) {
  if (target == source) return -EINVAL;
  int rc;
  do rc = dup3(source, target, O_CLOEXEC);
  while (rc < 0 && (errno == EINTR || errno == EBUSY));
  return rc < 0 ? -errno : 0;
}

EXPORT int shim_descriptor_anonymous(double size) {
  if (!is_size(size)) return -EINVAL;
  int fd = memfd_create("overlaybd-window", MFD_CLOEXEC);
  if (fd < 0) return -errno;
  if (ftruncate(fd, (off_t)size) != 0) {
    int error = errno;
    close(fd);
    return -error;
  }
  return fd;
}

EXPORT int shim_descriptor_punch(int fd, double offset, double length) {
  if (!is_size(offset) || !is_size(length) || length == 0) return -EINVAL;
  int rc;
  do rc = fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)length);
  while (rc < 0 && errno == EINTR);
  return rc < 0 ? -errno : 0;
}

EXPORT int shim_descriptor_pipe(int32_t ends[2]) {
  int fds[2];
  if (pipe2(fds, O_CLOEXEC) < 0) return -errno;
  /* A larger buffer only saves wake-ups; a limit on pipe memory is no reason to fail. */
  (void)fcntl(fds[1], F_SETPIPE_SZ, 1 << 20);
  ends[0] = fds[0];
  ends[1] = fds[1];
  return 0;
}
