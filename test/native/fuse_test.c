/*
 * The I/O worker's waiting; /dev/fuse requests of every length from a descriptor that stands in for it; the connection
 * and a loop device themselves.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"
#include "shim.h"

static void test_wake(void) {
  const int wake = shim_wake_create(), queue = shim_queue_create();
  CHECK(wake >= 0 && queue >= 0);
  int ends[2];
  CHECK(pipe2(ends, O_CLOEXEC) == 0);
  CHECK(shim_queue_add(queue, wake, QUEUE_WAKE_TAG) == 0);
  CHECK(shim_queue_add(queue, ends[0], 7) == 0);
  CHECK(shim_queue_add(queue, ends[0], 8) == -EEXIST);

  uint32_t *tags = malloc(2 * sizeof *tags);
  CHECK(shim_queue_wait(queue, wake, tags, 0) == -EINVAL);
  for (int i = 0; i < 3; i++) CHECK(shim_wake_signal(wake) == 0);
  CHECK(shim_queue_wait(queue, wake, tags, 2) == 1 && tags[0] == QUEUE_WAKE_TAG);
  uint64_t signals;
  CHECK(read(wake, &signals, sizeof signals) < 0 && errno == EAGAIN); /* taken at once */

  CHECK(write(ends[1], "x", 1) == 1);
  CHECK(shim_queue_wait(queue, wake, tags, 2) == 1 && tags[0] == 7);
  CHECK(shim_wake_signal(wake) == 0);
  CHECK(shim_queue_wait(queue, wake, tags, 2) == 2);
  CHECK(shim_queue_remove(queue, ends[0]) == 0);
  CHECK(shim_queue_remove(queue, ends[0]) == -ENOENT);

  const uint64_t full = UINT64_MAX - 1; /* a signal to an eventfd that cannot count further still wakes */
  CHECK(write(wake, &full, sizeof full) == sizeof full);
  CHECK(shim_wake_signal(wake) == 0);
  CHECK(shim_queue_wait(queue, wake, tags, 2) == 1);
  free(tags);
  close(ends[0]);
  close(ends[1]);
  close(queue);
  close(wake);
}

/* A pair of sockets that keep the borders between messages, as /dev/fuse does between requests. */
static void test_receive(void) {
  int ends[2];
  CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends) == 0);
  uint8_t *buffer = malloc(FUSE_MIN_READ_BUFFER);
  uint8_t message[FUSE_MIN_READ_BUFFER] = {0};
  CHECK(shim_fuse_receive(ends[0], buffer, FUSE_MIN_READ_BUFFER - 1) == -EINVAL);
  CHECK(shim_fuse_receive(ends[0], buffer, UINT32_MAX) == -EINVAL);
  CHECK(shim_fuse_receive(ends[0], buffer, FUSE_MIN_READ_BUFFER) == -EAGAIN);
  uint64_t seed = 1;
  for (uint32_t length = 1; length <= sizeof message; length += length < 200 ? 1 : 331) {
    for (int lie = 0; lie < 3; lie++) {
      struct fuse_in_header header = {.len = lie == 0 ? length : (uint32_t)next_random(&seed), .opcode = FUSE_READ};
      if (lie > 0 && header.len == length) continue;
      memcpy(message, &header, sizeof header);
      CHECK(write(ends[1], message, length) == (ssize_t)length);
      const int result = shim_fuse_receive(ends[0], buffer, FUSE_MIN_READ_BUFFER);
      CHECK(result == (lie == 0 && length >= sizeof header ? (int)length : -EPROTO));
    }
  }
  close(ends[1]);
  CHECK(shim_fuse_receive(ends[0], buffer, FUSE_MIN_READ_BUFFER) == -EPROTO); /* nothing where a header should be */
  free(buffer);
  close(ends[0]);
}

static void test_reply(void) {
  int ends[2];
  CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends) == 0);
  for (uint32_t length = 0; length < 64; length++) {
    uint8_t *reply = malloc(length + 1), sent[64];
    struct fuse_out_header header = {.len = length};
    memcpy(reply, &header, length < sizeof header ? length : sizeof header);
    const int expected = length < sizeof header ? -EINVAL : 0;
    if (length >= sizeof header) memset(reply + sizeof header, (int)length, length - sizeof header);
    CHECK(shim_fuse_reply(ends[0], reply, length) == expected);
    if (expected == 0) {
      CHECK(read(ends[1], sent, sizeof sent) == (ssize_t)length && memcmp(sent, reply, length) == 0);
      header.len = length + 1; /* claims more than there is */
      memcpy(reply, &header, sizeof header);
      CHECK(shim_fuse_reply(ends[0], reply, length) == -EINVAL);
    }
    free(reply);
  }
  close(ends[0]);
  close(ends[1]);
}

static void test_refusals(void) {
  int32_t loop = -1;
  CHECK(shim_fuse_mount(-1) < 0);
  CHECK(shim_fuse_open_served(-1, "disk", 0) == -EBADF);
  CHECK(shim_loop_attach(-1, 0, 0, &loop) < 0 && loop == -1);
  CHECK(shim_loop_release(-1) == -EBADF);
  CHECK(shim_mount("/nonexistent", "/nonexistent", "ext4", 1, "") < 0);
  CHECK(shim_unmount("/nonexistent", 0) < 0);
}

/* With the kernel's own connection and a loop device, where this machine lets us have them. */
static void test_devices(void) {
  const int fuse = shim_fuse_open();
  if (fuse < 0) {
    printf("no /dev/fuse here (%s)\n", strerror(-fuse));
  } else {
    uint8_t buffer[FUSE_MIN_READ_BUFFER];
    CHECK(shim_fuse_receive(fuse, buffer, sizeof buffer) == -EPERM); /* not mounted yet */
    const int mount = shim_fuse_mount(fuse);
    if (mount < 0) {
      printf("FUSE cannot be mounted here (%s)\n", strerror(-mount));
    } else {
      CHECK(shim_fuse_receive(fuse, buffer, sizeof buffer) > 0);
      struct fuse_in_header request;
      memcpy(&request, buffer, sizeof request);
      CHECK(request.opcode == FUSE_INIT);
      const struct fuse_out_header stray = {.len = sizeof stray, .unique = request.unique + 1000};
      CHECK(shim_fuse_reply(fuse, (const uint8_t *)&stray, sizeof stray) == 0); /* nobody waits for it */
      close(mount);
    }
    close(fuse);
  }

  char path[] = "/var/tmp/overlaybd-loop-XXXXXX", content[512];
  const int backing = mkstemp(path);
  CHECK(backing >= 0 && unlink(path) == 0 && ftruncate(backing, 1 << 20) == 0 && pwrite(backing, "content", 8, 512) == 8);
  int32_t loop = -1;
  const int number = shim_loop_attach(backing, 0, 512, &loop);
  if (number < 0) {
    printf("no loop device here (%s)\n", strerror(-number));
    CHECK(loop == -1);
  } else {
    CHECK(pread(loop, content, sizeof content, 512) == sizeof content && strcmp(content, "content") == 0);
    CHECK(pwrite(loop, content, sizeof content, 0) < 0); /* read-only */
    CHECK(shim_loop_release(loop) == 0);
    CHECK(shim_loop_attach(backing, 0, 12345, &loop) == -EINVAL);
  }
  close(backing);
}

int main(void) {
  test_wake();
  test_receive();
  test_reply();
  test_refusals();
  test_devices();
  return 0;
}
