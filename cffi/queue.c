/* queue.c: what an I/O worker waits on: the queues of its devices and a descriptor that other threads wake it by. */
#include "shim.h"

#include <errno.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define BATCH 64

EXPORT int shim_wake_create(void) {
  int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  return fd < 0 ? -errno : fd;
}

EXPORT int shim_wake_signal(int wake) {
  ssize_t n;
  do n = write(wake, &(uint64_t){1}, sizeof(uint64_t));
  while (n < 0 && errno == EINTR);
  /* EAGAIN: the counter is full, so the sleeper is being woken already. */
  return n < 0 && errno != EAGAIN ? -errno : 0;
}

EXPORT int shim_queue_create(void) {
  int fd = epoll_create1(EPOLL_CLOEXEC);
  return fd < 0 ? -errno : fd;
}

EXPORT int shim_queue_add(int queue, int fd, uint32_t tag) {
  struct epoll_event event = {.events = EPOLLIN, .data.u32 = tag};
  return epoll_ctl(queue, EPOLL_CTL_ADD, fd, &event) == 0 ? 0 : -errno;
}

EXPORT int shim_queue_remove(int queue, int fd) {
  return epoll_ctl(queue, EPOLL_CTL_DEL, fd, NULL) == 0 ? 0 : -errno;
}

EXPORT int shim_queue_wait(int queue, int wake, uint32_t *tags, uint32_t capacity) {
  struct epoll_event events[BATCH];
  if (capacity == 0) return -EINVAL;
  int count;
  do count = epoll_wait(queue, events, capacity < BATCH ? (int)capacity : BATCH, -1);
  while (count < 0 && errno == EINTR);
  if (count < 0) return -errno;
  for (int i = 0; i < count; i++) {
    tags[i] = events[i].data.u32;
    uint64_t signals;
    if (tags[i] == QUEUE_WAKE_TAG && read(wake, &signals, sizeof signals) < 0 && errno != EAGAIN) return -errno;
  }
  return count;
}
