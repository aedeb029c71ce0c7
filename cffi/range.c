/* range.c: ranges of local files: writing native memory, finding data between holes. */
#include "shim.h"

#include <errno.h>
#include <unistd.h>

#define MAX_FILE_BYTES 9007199254740992.0 /* 2^53: whole numbers above it do not survive a double */

EXPORT int shim_range_write(int fd, const void *from, double length, double offset) {
  if (!(length >= 0 && offset >= 0 && length + offset < MAX_FILE_BYTES)) return -EINVAL;
  const char *at = from;
  size_t left = (size_t)length;
  off_t target = (off_t)offset;
  while (left > 0) {
    ssize_t n = pwrite(fd, at, left, target);
    if (n < 0) {
      if (errno == EINTR) continue;
      return -errno;
    }
    if (n == 0) return -EIO;
    at += n;
    target += n;
    left -= (size_t)n;
  }
  return 0;
}

EXPORT int shim_range_data(int fd, double from, double *range) {
  if (!(from >= 0 && from < MAX_FILE_BYTES)) return -EINVAL;
  off_t begin = lseek(fd, (off_t)from, SEEK_DATA);
  if (begin < 0) return errno == ENXIO ? 0 : -errno;
  off_t end = lseek(fd, begin, SEEK_HOLE);
  if (end < 0) return errno == ENXIO ? 0 : -errno; /* truncated in between */
  range[0] = (double)begin;
  range[1] = (double)end;
  return 1;
}
