/* The pool: results from several queues at once, each exactly once; queues that close under running jobs. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "check.h"
#include "shim.h"

enum { JOBS = 2000, QUEUES = 4 };

static int file;

static void submit(struct pool_queue *queue, uint32_t id) {
  const double arguments[POOL_ARGUMENTS] = {id % 2 ? file : -1};
  CHECK(shim_pool_submit(queue, id, POOL_FDATASYNC, arguments) == 0);
}

static void *run_queue(void *unused) {
  (void)unused;
  static _Thread_local char seen[JOBS];
  const int wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  struct pool_queue *queue;
  CHECK(shim_pool_open(wake, &queue) == 0);
  for (uint32_t id = 0; id < JOBS; id++) submit(queue, id);
  for (int left = JOBS; left > 0;) {
    struct pollfd ready = {.fd = wake, .events = POLLIN};
    CHECK(poll(&ready, 1, 20000) == 1);
    uint64_t count;
    CHECK(read(wake, &count, sizeof count) == sizeof count);
    int32_t results[2 * 7];
    for (int n = 7; n == 7; left -= n) {
      n = shim_pool_take(queue, results, 7);
      for (int i = 0; i < n; i++) {
        const int32_t id = results[2 * i];
        CHECK(id >= 0 && id < JOBS && !seen[id]);
        seen[id] = 1;
        CHECK(results[2 * i + 1] == (id % 2 ? 0 : -EBADF));
      }
    }
  }
  shim_pool_close(queue);
  close(wake);
  return NULL;
}

static int32_t result_of(struct pool_queue *queue, int wake, uint32_t kind, const double *arguments) {
  CHECK(shim_pool_submit(queue, UINT32_MAX, kind, arguments) == 0);
  struct pollfd ready = {.fd = wake, .events = POLLIN};
  uint64_t one;
  CHECK(poll(&ready, 1, 20000) == 1 && read(wake, &one, sizeof one) == sizeof one);
  int32_t result[2];
  CHECK(shim_pool_take(queue, result, 1) == 1 && result[0] == -1);
  return result[1];
}

static double address(const void *memory) { return (double)(uintptr_t)memory; }

/* Every kind of job reaches its function with its arguments. */
static void test_kinds(struct pool_queue *queue, int wake) {
  int32_t loop = -1;
  const char *nowhere = "/nonexistent";
  const double sync[POOL_ARGUMENTS] = {file}, closed[POOL_ARGUMENTS] = {-1};
  CHECK(result_of(queue, wake, POOL_FSYNC, sync) == 0 && result_of(queue, wake, POOL_FSYNC, closed) == -EBADF);
  CHECK(result_of(queue, wake, POOL_FDATASYNC, sync) == 0);
  const double mount[POOL_ARGUMENTS] = {address(nowhere), address(nowhere), address("ext4"), 1, address("")};
  CHECK(result_of(queue, wake, POOL_MOUNT, mount) < 0);
  const double unmount[POOL_ARGUMENTS] = {address(nowhere)};
  CHECK(result_of(queue, wake, POOL_UNMOUNT, unmount) < 0);
  const double served[POOL_ARGUMENTS] = {-1, address("disk"), 1};
  CHECK(result_of(queue, wake, POOL_OPEN_SERVED, served) == -EBADF);
  const double attach[POOL_ARGUMENTS] = {-1, 0, 0, address(&loop)};
  CHECK(result_of(queue, wake, POOL_LOOP_ATTACH, attach) < 0 && loop == -1);
  CHECK(result_of(queue, wake, POOL_LOOP_RELEASE, closed) == -EBADF);
}

int main(void) {
  char path[] = "/tmp/overlaybd-pool-XXXXXX";
  file = mkstemp(path);
  CHECK(file >= 0);
  unlink(path);

  pthread_t threads[QUEUES];
  for (int i = 0; i < QUEUES; i++) CHECK(pthread_create(&threads[i], NULL, run_queue, NULL) == 0);
  for (int i = 0; i < QUEUES; i++) CHECK(pthread_join(threads[i], NULL) == 0);

  int32_t ends[2];
  CHECK(shim_pool_socket(ends) == 0);
  struct pool_queue *queue;
  CHECK(shim_pool_open(ends[1], &queue) == 0);
  const double none[POOL_ARGUMENTS] = {0};
  CHECK(shim_pool_submit(queue, 1, 0, none) == -EINVAL);
  CHECK(shim_pool_submit(queue, 1, 1000, none) == -EINVAL);
  CHECK(shim_pool_submit(queue, 1, UINT32_MAX, none) == -EINVAL);
  int32_t results[2] = {0};
  CHECK(shim_pool_take(queue, results, 0) == 0 && shim_pool_take(queue, results, 1) == 0);
  test_kinds(queue, ends[0]);
  for (uint32_t id = 0; id < JOBS; id++) submit(queue, id);
  shim_pool_close(queue);
  close(ends[0]);
  close(ends[1]);

  /* Jobs run in order of submission, so after this one the closed queue's have at least begun to end. */
  (void)run_queue(NULL);
  close(file);
}
