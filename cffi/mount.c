/* mount.c: mounting, and loop devices (linux/loop.h). All of it may wait for the disk behind: run as pool jobs. */
#include "shim.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/loop.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

/* How often a free loop device may be snatched away by somebody else before we give up. */
#define LOOP_TRIES 1000

EXPORT int shim_mount(const char *source, const char *target, const char *type, uint32_t flags,
                      const char *options) {
  return mount(source, target, type, flags, options) == 0 ? 0 : -errno;
}

EXPORT int shim_unmount(const char *target, uint32_t flags) {
  return umount2(target, (int)flags) == 0 ? 0 : -errno;
}

/* Makes the missing node of a loop device: a container's /dev does not follow the host's. */
static int make_node(int number, const char *path) {
  char name[64];
  unsigned major, minor;
  snprintf(name, sizeof name, "/sys/block/loop%d/dev", number);
  FILE *file = fopen(name, "re");
  if (!file) return -errno;
  int fields = fscanf(file, "%u:%u", &major, &minor);
  fclose(file);
  if (fields != 2) return -ENODEV;
  return mknod(path, S_IFBLK | 0600, makedev(major, minor)) == 0 || errno == EEXIST ? 0 : -errno;
}

static int open_loop(int number, int flags) {
  char path[32];
  snprintf(path, sizeof path, "/dev/loop%d", number);
  int fd = open(path, flags | O_CLOEXEC);
  if (fd >= 0 || errno != ENOENT) return fd >= 0 ? fd : -errno;
  int rc = make_node(number, path);
  if (rc < 0) return rc;
  fd = open(path, flags | O_CLOEXEC);
  return fd >= 0 ? fd : -errno;
}

static int configure(int loop, int backing, uint32_t flags, uint32_t block_size) {
  struct loop_config config = {.fd = (uint32_t)backing, .block_size = block_size, .info.lo_flags = flags};
  if (ioctl(loop, LOOP_CONFIGURE, &config) == 0) return 0;
  if (errno != EINVAL || !(flags & LO_FLAGS_DIRECT_IO)) return -errno;
  /* The backing file has no direct I/O, or not for this block size. */
  config.info.lo_flags &= ~(uint32_t)LO_FLAGS_DIRECT_IO;
  return ioctl(loop, LOOP_CONFIGURE, &config) == 0 ? 0 : -errno;
}

EXPORT int shim_loop_attach(int backing, int writable, uint32_t block_size, int32_t *loop) {
  int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
  if (control < 0) return -errno;
  /* Direct I/O, else every block is cached twice. Autoclear: the device goes with its last user, whoever dies. */
  uint32_t flags = LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO | (writable ? 0 : (uint32_t)LO_FLAGS_READ_ONLY);
  int result = -EBUSY;
  for (int i = 0; i < LOOP_TRIES && result == -EBUSY; i++) {
    int number = ioctl(control, LOOP_CTL_GET_FREE);
    if (number < 0) {
      result = -errno;
      break;
    }
    int fd = open_loop(number, writable ? O_RDWR : O_RDONLY);
    result = fd < 0 ? fd : configure(fd, backing, flags, block_size);
    if (result == 0) {
      *loop = fd;
      result = number;
    } else if (fd >= 0) {
      close(fd);
    }
  }
  close(control);
  return result;
}

EXPORT int shim_loop_release(int loop) { return close(loop) == 0 || errno == EINTR ? 0 : -errno; }
