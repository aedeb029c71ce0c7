/* Descriptors and ranges of files: what they do, at their limits and with arguments that make no sense. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"
#include "shim.h"

static const double bad[] = {-1, -0x1p60, 0x1p53, 0x1p63, 1e300, -1e300, 0.0 / 0.0, 1 / 0.0, -1 / 0.0};
enum { BAD = sizeof bad / sizeof *bad };

static int temporary(void) {
  char path[] = "/tmp/overlaybd-descriptor-XXXXXX";
  const int fd = mkstemp(path);
  CHECK(fd >= 0 && unlink(path) == 0);
  return fd;
}

static void test_lock(void) {
  char path[] = "/tmp/overlaybd-lock-XXXXXX";
  const int first = mkstemp(path), second = open(path, O_RDWR | O_CLOEXEC);
  CHECK(first >= 0 && second >= 0 && unlink(path) == 0);
  CHECK(shim_descriptor_lock(first) == 0 && shim_descriptor_lock(first) == 0);
  CHECK(shim_descriptor_lock(second) == -EWOULDBLOCK);
  close(first);
  CHECK(shim_descriptor_lock(second) == 0);
  close(second);
  CHECK(shim_descriptor_lock(-1) == -EBADF);
}

static void test_share(void) {
  char path[] = "/tmp/overlaybd-lock-XXXXXX";
  const int first = mkstemp(path), second = open(path, O_RDWR | O_CLOEXEC);
  CHECK(first >= 0 && second >= 0 && unlink(path) == 0);
  CHECK(shim_descriptor_share(first) == 0 && shim_descriptor_share(second) == 0);
  CHECK(shim_descriptor_lock(first) == -EWOULDBLOCK && shim_descriptor_share(first) == 0);
  close(second);
  CHECK(shim_descriptor_lock(first) == 0 && shim_descriptor_share(first) == 0);
  close(first);
  CHECK(shim_descriptor_share(-1) == -EBADF);
}

static void test_replace(void) {
  const int one = shim_descriptor_anonymous(10), two = shim_descriptor_anonymous(20);
  CHECK(one >= 0 && two >= 0);
  CHECK(shim_descriptor_replace(one, two) == 0);
  close(two);
  struct stat status;
  CHECK(fstat(one, &status) == 0 && status.st_size == 20);
  CHECK((fcntl(one, F_GETFD) & FD_CLOEXEC) != 0);
  CHECK(shim_descriptor_replace(one, one) == -EINVAL);
  CHECK(shim_descriptor_replace(one, -1) == -EBADF && shim_descriptor_replace(-1, one) == -EBADF);
  CHECK(fstat(one, &status) == 0 && status.st_size == 20);
  close(one);
}

static void test_anonymous(void) {
  for (int i = 0; i < BAD; i++) CHECK(shim_descriptor_anonymous(bad[i]) == -EINVAL);
  const int fd = shim_descriptor_anonymous(0x1p40);
  struct stat status;
  CHECK(fd >= 0 && fstat(fd, &status) == 0 && status.st_size == (off_t)1 << 40 && status.st_blocks == 0);
  close(fd);
}

static void test_punch(void) {
  enum { SIZE = 1 << 20, BEGIN = 8192, LENGTH = 65536 };
  const int fd = temporary();
  uint8_t *bytes = malloc(SIZE);
  memset(bytes, 7, SIZE);
  CHECK(shim_range_write(fd, bytes, SIZE, 0) == 0);
  CHECK(shim_descriptor_punch(fd, BEGIN, LENGTH) == 0);
  memset(bytes + BEGIN, 0, LENGTH);
  uint8_t *now = malloc(SIZE);
  CHECK(pread(fd, now, SIZE, 0) == SIZE && memcmp(now, bytes, SIZE) == 0);
  CHECK(shim_descriptor_punch(fd, 0, 0) == -EINVAL);
  CHECK(shim_descriptor_punch(fd, SIZE, 4096) == 0); /* keeps its size */
  CHECK(lseek(fd, 0, SEEK_END) == SIZE);
  for (int i = 0; i < BAD; i++) {
    CHECK(shim_descriptor_punch(fd, bad[i], 1) == -EINVAL);
    CHECK(shim_descriptor_punch(fd, 0, bad[i]) == -EINVAL);
  }
  CHECK(shim_descriptor_punch(-1, 0, 1) == -EBADF);
  free(bytes);
  free(now);
  close(fd);
}

static void test_pipe(void) {
  int32_t ends[2];
  CHECK(shim_descriptor_pipe(ends) == 0);
  char text[4];
  CHECK(write(ends[1], "text", 4) == 4 && read(ends[0], text, 4) == 4);
  CHECK((fcntl(ends[0], F_GETFD) & fcntl(ends[1], F_GETFD) & FD_CLOEXEC) != 0);
  close(ends[0]);
  close(ends[1]);
}

static void test_write(void) {
  const int fd = temporary(), full = open("/dev/full", O_WRONLY | O_CLOEXEC);
  uint8_t *bytes = malloc(100);
  memset(bytes, 3, 100);
  CHECK(shim_range_write(fd, bytes, 100, 0x1p32) == 0 && lseek(fd, 0, SEEK_END) == ((off_t)1 << 32) + 100);
  CHECK(shim_range_write(fd, NULL, 0, 0) == 0);
  for (int i = 0; i < BAD; i++) {
    CHECK(shim_range_write(fd, bytes, bad[i], 0) == -EINVAL);
    CHECK(shim_range_write(fd, bytes, 1, bad[i]) == -EINVAL);
  }
  CHECK(shim_range_write(fd, bytes, 100, 0x1p53 - 50) == -EINVAL);
  CHECK(shim_range_write(full, bytes, 100, 0) == -ENOSPC);
  CHECK(shim_range_write(-1, bytes, 100, 0) == -EBADF);
  free(bytes);
  close(fd);
  close(full);
}

static void test_data(void) {
  const int fd = temporary();
  double range[2];
  CHECK(shim_range_data(fd, 0, range) == 0);
  CHECK(ftruncate(fd, 10 << 20) == 0 && shim_range_data(fd, 0, range) == 0);
  CHECK(shim_range_write(fd, "x", 1, 5 << 20) == 0);
  CHECK(shim_range_data(fd, 0, range) == 1);
  CHECK(range[0] <= 5 << 20 && range[1] > 5 << 20 && range[1] - range[0] <= 1 << 20);
  const double behind = range[1];
  CHECK(shim_range_data(fd, 5 << 20, range) == 1 && range[0] == 5 << 20 && range[1] == behind);
  CHECK(shim_range_data(fd, behind, range) == 0 && shim_range_data(fd, 0x1p50, range) == 0);
  for (int i = 0; i < BAD; i++) CHECK(shim_range_data(fd, bad[i], range) == -EINVAL);
  CHECK(shim_range_data(-1, 0, range) == -EBADF);
  close(fd);
}

int main(void) {
  test_lock();
  test_share();
  test_replace();
  test_anonymous();
  test_punch();
  test_pipe();
  test_write();
  test_data();
}
