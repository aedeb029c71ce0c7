/* The I/O worker's waiting, and /dev/fuse requests of every length from a descriptor that stands in for it. */
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

int main(void) {
  test_wake();
  test_receive();
  test_reply();
  test_refusals();
  return 0;
}
