/* fuse.c: one connection of /dev/fuse (Documentation/filesystems/fuse.rst; linux/fuse.h). */
#include "shim.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* The new mount API (Linux 5.2). By number and value: glibc has wrappers only since 2.36. */
#define FSOPEN_CLOEXEC_ 1u
#define FSCONFIG_SET_STRING_ 1u
#define FSCONFIG_CMD_CREATE_ 6u
#define FSMOUNT_CLOEXEC_ 1u
#define MOUNT_ATTR_PRIVATE_FILE 0xeu /* nosuid, nodev, noexec */

EXPORT int shim_fuse_open(void) {
  int fd = open("/dev/fuse", O_RDWR | O_CLOEXEC | O_NONBLOCK);
  return fd < 0 ? -errno : fd;
}

static int set(int context, const char *key, const char *value) {
  return (int)syscall(SYS_fsconfig, context, FSCONFIG_SET_STRING_, key, value, 0);
}

EXPORT int shim_fuse_mount(int fuse) {
  char number[16];
  snprintf(number, sizeof number, "%d", fuse);
  int context = (int)syscall(SYS_fsopen, "fuse", FSOPEN_CLOEXEC_);
  if (context < 0) return -errno;
  int mount = -1;
  if (set(context, "source", "overlaybd") == 0 && set(context, "fd", number) == 0 &&
      set(context, "rootmode", "40000") == 0 && set(context, "user_id", "0") == 0 &&
      set(context, "group_id", "0") == 0 &&
      syscall(SYS_fsconfig, context, FSCONFIG_CMD_CREATE_, NULL, NULL, 0) == 0)
    mount = (int)syscall(SYS_fsmount, context, FSMOUNT_CLOEXEC_, MOUNT_ATTR_PRIVATE_FILE);
  int error = errno;
  close(context);
  return mount < 0 ? -error : mount;
}

EXPORT int shim_fuse_open_served(int mount, const char *name, int writable) {
  int file = openat(mount, name, (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NOFOLLOW);
  return file < 0 ? -errno : file;
}

EXPORT int shim_fuse_receive(int fuse, uint8_t *buffer, uint32_t capacity) {
  if (capacity < FUSE_MIN_READ_BUFFER || capacity > INT32_MAX) return -EINVAL;
  ssize_t length;
  /* ENOENT: the request was taken back before it could be read. */
  do length = read(fuse, buffer, capacity);
  while (length < 0 && (errno == EINTR || errno == ENOENT));
  if (length < 0) return -errno;
  struct fuse_in_header header;
  if ((size_t)length < sizeof header) return -EPROTO;
  memcpy(&header, buffer, sizeof header);
  return header.len == (size_t)length ? (int)length : -EPROTO;
}

EXPORT int shim_fuse_reply(int fuse, const uint8_t *reply, uint32_t length) {
  struct fuse_out_header header;
  if (length < sizeof header) return -EINVAL;
  memcpy(&header, reply, sizeof header);
  if (header.len != length) return -EINVAL;
  ssize_t written;
  do written = write(fuse, reply, length);
  while (written < 0 && errno == EINTR);
  if (written >= 0) return 0;
  /* ENOENT: whoever asked has been interrupted and is gone. */
  return errno == ENOENT ? 0 : -errno;
}
