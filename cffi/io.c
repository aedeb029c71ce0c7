/*
 * Four ways to read files. pread needs nothing from here but a loop. The other three take the reads in waves: a wave is
 * submitted at once and waited for, what came short goes into the next one.
 */
#include "io.h"

#include <aio.h>
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <linux/aio_abi.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Requests in one wave. */
#define DEPTH 64u
/* O_DIRECT wants offset, length and memory in multiples of the device's block, which is at most this. */
#define ALIGNMENT 4096u
/* Memory for O_DIRECT reads that are not aligned themselves. */
#define STAGING (1u << 20)

/* One request of a wave: the rest of a read, or as much of it as the staging memory has room for. */
struct request {
  struct io_read *read;
  uint8_t *memory;
  int64_t offset;
  uint32_t length;
  uint32_t head; /* bytes at the start that only alignment wants */
  bool staged;
  int64_t result; /* bytes or negative errno; -EAGAIN: was not submitted */
};

struct io {
  enum io_engine engine;
  struct request requests[DEPTH];
  uint8_t *staging;
  uint32_t staged;
  struct io_uring ring;
  aio_context_t context;
  struct iocb iocbs[DEPTH];
  struct iocb *iocb_list[DEPTH];
  struct io_event events[DEPTH];
  struct aiocb aiocbs[DEPTH];
};

int io_pread(int fd, uint8_t *memory, uint32_t length, int64_t offset) {
  while (length > 0) {
    const ssize_t n = pread(fd, memory, length, offset);
    if (n == 0) return IO_SHORT;
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return -errno;
    memory += n;
    offset += n;
    length -= (uint32_t)n;
  }
  return 0;
}

static int start(struct io *io) {
  switch (io->engine) {
    case IO_LIBAIO:
      return syscall(SYS_io_setup, DEPTH, &io->context) < 0 ? -errno : 0;
    case IO_URING:
      return io_uring_queue_init(DEPTH, &io->ring, 0);
    default:
      return 0;
  }
}

int io_open(enum io_engine engine, struct io **result) {
  struct io *io = calloc(1, sizeof *io);
  if (io == NULL) return -ENOMEM;
  io->engine = engine;
  io->staging = mmap(NULL, STAGING, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  int error = io->staging == MAP_FAILED ? -ENOMEM : start(io);
  if (error == 0) {
    *result = io;
    return 0;
  }
  if (io->staging != MAP_FAILED) munmap(io->staging, STAGING);
  free(io);
  /* How kernels without the call, seccomp filters and the io_uring_disabled setting say no. */
  return error == -ENOSYS || error == -EPERM || error == -EACCES ? -EOPNOTSUPP : error;
}

void io_close(struct io *io) {
  if (io == NULL) return;
  if (io->engine == IO_LIBAIO) syscall(SYS_io_destroy, io->context);
  if (io->engine == IO_URING) io_uring_queue_exit(&io->ring);
  munmap(io->staging, STAGING);
  free(io);
}

/*
 * The kernel still writes to memory that the caller is about to reuse, and cannot be asked any more. This takes a
 * context that somebody else destroyed; nothing good can follow.
 */
static void require(int result) {
  if (result < 0 && result != -EINTR) abort();
}

/* Through the system calls themselves, which is all that libaio does. */
static void wave_libaio(struct io *io, unsigned count) {
  for (unsigned i = 0; i < count; i++) {
    const struct request *r = &io->requests[i];
    io->iocbs[i] = (struct iocb){.aio_data = i,
                                 .aio_lio_opcode = IOCB_CMD_PREAD,
                                 .aio_fildes = (uint32_t)r->read->fd,
                                 .aio_buf = (uintptr_t)r->memory,
                                 .aio_nbytes = r->length,
                                 .aio_offset = r->offset};
    io->iocb_list[i] = &io->iocbs[i];
  }
  int submitted = 0;
  while (submitted < (int)count) {
    const long n = syscall(SYS_io_submit, io->context, (long)count - submitted, io->iocb_list + submitted);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;
    submitted += (int)n;
  }
  for (int left = submitted; left > 0;) {
    const long n = syscall(SYS_io_getevents, io->context, (long)left, (long)left, io->events, NULL);
    require(n < 0 ? -errno : 0);
    for (long i = 0; i < n; i++) io->requests[io->events[i].data].result = io->events[i].res;
    if (n > 0) left -= (int)n;
  }
}

/* One by one: lio_listio of glibc leaves requests behind that point to its stack when a signal ends its wait. */
static void wave_posix(struct io *io, unsigned count) {
  for (unsigned i = 0; i < count; i++) {
    const struct request *r = &io->requests[i];
    io->aiocbs[i] = (struct aiocb){.aio_fildes = r->read->fd,
                                   .aio_buf = r->memory,
                                   .aio_nbytes = r->length,
                                   .aio_offset = r->offset,
                                   .aio_sigevent.sigev_notify = SIGEV_NONE};
    if (aio_read(&io->aiocbs[i]) < 0) io->requests[i].result = -errno;
    else io->requests[i].result = -EINPROGRESS;
  }
  for (unsigned i = 0; i < count; i++) {
    if (io->requests[i].result != -EINPROGRESS) continue;
    const struct aiocb *const one[] = {&io->aiocbs[i]};
    while (aio_error(one[0]) == EINPROGRESS) aio_suspend(one, 1, NULL);
    const int error = aio_error(one[0]);
    const ssize_t length = aio_return(&io->aiocbs[i]);
    io->requests[i].result = error == 0 ? length : -error;
  }
}

static void wave_uring(struct io *io, unsigned count) {
  for (unsigned i = 0; i < count; i++) {
    struct request *r = &io->requests[i];
    struct io_uring_sqe *entry = io_uring_get_sqe(&io->ring); /* never full: the ring has DEPTH and is drained */
    io_uring_prep_read(entry, r->read->fd, r->memory, r->length, (uint64_t)r->offset);
    io_uring_sqe_set_data(entry, r);
  }
  unsigned submitted = 0;
  while (submitted < count) {
    const int n = io_uring_submit_and_wait(&io->ring, count - submitted);
    if (n <= 0 && n != -EINTR) break;
    if (n > 0) submitted += (unsigned)n;
  }
  for (unsigned left = submitted; left > 0;) {
    struct io_uring_cqe *completion;
    const int error = io_uring_wait_cqe(&io->ring, &completion);
    require(error);
    if (error < 0) continue;
    ((struct request *)io_uring_cqe_get_data(completion))->result = completion->res;
    io_uring_cqe_seen(&io->ring, completion);
    left--;
  }
  if (submitted < count) { /* entries are stuck in the ring; a new one starts clean, or pread takes over */
    io_uring_queue_exit(&io->ring);
    if (io_uring_queue_init(DEPTH, &io->ring, 0) != 0) io->engine = IO_PSYNC;
  }
}

static bool ended(const struct io_read *read) { return read->error != 0 || read->done == read->length; }

static bool is_direct(int fd) {
  const int flags = fcntl(fd, F_GETFL);
  return flags >= 0 && (flags & O_DIRECT) != 0;
}

/* Makes the request for the rest of a read; false when this wave has no staging memory left for it. */
static bool prepare(struct io *io, struct request *request, struct io_read *read) {
  uint8_t *memory = read->memory + read->done;
  const int64_t offset = read->offset + read->done;
  const uint32_t length = read->length - read->done;
  *request = (struct request){.read = read, .memory = memory, .offset = offset, .length = length, .result = -EAGAIN};
  if (!is_direct(read->fd)) return true;
  if (((uintptr_t)memory | (uint64_t)offset | length) % ALIGNMENT == 0) return true;
  const uint32_t room = STAGING - io->staged;
  if (room == 0) return false;
  request->staged = true;
  request->head = (uint32_t)(offset % ALIGNMENT);
  request->memory = io->staging + io->staged;
  request->offset = offset - request->head;
  const uint64_t wanted = ((uint64_t)request->head + length + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
  request->length = wanted < room ? (uint32_t)wanted : room;
  io->staged += request->length;
  return true;
}

/* Books what a request brought. */
static void settle(struct request *request) {
  struct io_read *read = request->read;
  if (request->result == -EAGAIN || request->result == -ECANCELED) {
    const ssize_t n = pread(read->fd, request->memory, request->length, request->offset);
    request->result = n < 0 ? -errno : n;
  }
  if (request->result == -EINTR) return;
  if (request->result == -EINVAL && is_direct(read->fd)) {
    const int flags = fcntl(read->fd, F_GETFL);
    read->error = fcntl(read->fd, F_SETFL, flags & ~O_DIRECT) < 0 ? -errno : 0;
    return;
  }
  if (request->result < 0) {
    read->error = (int)request->result;
    return;
  }
  if (request->result <= request->head) {
    read->error = IO_SHORT;
    return;
  }
  uint32_t got = (uint32_t)request->result - request->head;
  if (got > read->length - read->done) got = read->length - read->done;
  if (request->staged) memcpy(read->memory + read->done, request->memory + request->head, got);
  read->done += got;
}

void io_read_all(struct io *io, struct io_read *reads, size_t count) {
  for (size_t first = 0; first < count;) {
    unsigned wave = 0;
    io->staged = 0;
    for (size_t i = first; i < count && wave < DEPTH; i++) {
      if (ended(&reads[i])) continue;
      if (!prepare(io, &io->requests[wave], &reads[i])) break;
      wave++;
    }
    if (wave > 0 && io->engine == IO_LIBAIO) wave_libaio(io, wave);
    if (wave > 0 && io->engine == IO_POSIX_AIO) wave_posix(io, wave);
    if (wave > 0 && io->engine == IO_URING) wave_uring(io, wave);
    for (unsigned i = 0; i < wave; i++) settle(&io->requests[i]);
    while (first < count && ended(&reads[first])) first++;
  }
}
