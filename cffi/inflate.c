/*
 * Reads a descriptor on a thread of its own, decompresses what it finds (gzip, zstd or neither) into a ring of equal
 * slots, and hands those out one at a time, in order. Every slot but the last is full.
 *
 * Bounds: the caller's ring, INPUT_BYTES of read-ahead, ISA-L's state (90 KiB), and for zstd its window, at most
 * 2^WINDOW_LOG bytes.
 */
#include "shim.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/sha.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zstd.h>
#include <zstd_errors.h>

#include <isa-l/crc.h>
#include <isa-l/igzip_lib.h>

enum { INPUT_BYTES = 256 << 10, MAX_SLOTS = 64, WINDOW_LOG = 27 };

struct inflater {
  int fd;
  int stop_fd;
  bool seekable; /* never blocks for long, so needs no poll */
  uint32_t flags;
  double limit;

  uint8_t *ring;
  uint32_t slots, slot_bytes;

  /* Shared by the two threads, under `lock`. Slot i of the stream is slot i % slots of the ring. */
  pthread_mutex_t lock;
  pthread_cond_t changed;
  uint64_t produced, consumed;
  uint32_t lengths[MAX_SLOTS];
  bool done;
  atomic_bool stopping;

  /* The consumer's: whether it holds slot `consumed`. */
  bool held;

  /* The producer's, and after `done` anybody's. */
  pthread_t thread;
  struct shim_inflate_report report;
  SHA256_CTX input_hash, output_hash;
  uint8_t *input;
  uint32_t input_start, input_end;
  bool input_over;
  uint8_t *slot;
  uint32_t slot_used;
  struct inflate_state gzip;
};

static int fail(struct inflater *s, int failure, int error)
{
  if (s->report.failure == SHIM_INFLATE_OK) {
    s->report.failure = failure;
    s->report.error = error;
  }
  return -1;
}

/* ---- input ---- */

/* Reads up to `size` bytes; 0 at the end of the input, -1 when failed or stopped. */
static ssize_t read_input(struct inflater *s, uint8_t *target, size_t size)
{
  for (;;) {
    if (atomic_load_explicit(&s->stopping, memory_order_relaxed))
      return fail(s, SHIM_INFLATE_STOPPED, 0);
    if (!s->seekable) {
      struct pollfd wait[2] = { { s->fd, POLLIN, 0 }, { s->stop_fd, POLLIN, 0 } };
      if (poll(wait, 2, -1) < 0) {
        if (errno == EINTR)
          continue;
        return fail(s, SHIM_INFLATE_IO, errno);
      }
      if (wait[1].revents)
        return fail(s, SHIM_INFLATE_STOPPED, 0);
    }
    ssize_t n = read(s->fd, target, size);
    if (n < 0 && (errno == EINTR || (errno == EAGAIN && !s->seekable)))
      continue;
    if (n < 0)
      return fail(s, SHIM_INFLATE_IO, errno);
    if (n == 0)
      s->input_over = true;
    else if (s->flags & SHIM_INFLATE_HASH_INPUT)
      SHA256_Update(&s->input_hash, target, (size_t)n);
    s->report.input_bytes += (double)n;
    return n;
  }
}

/* Appends to the input buffer, which is emptied first when all of it was used; 0 at the end of the input. */
static ssize_t fill(struct inflater *s)
{
  if (s->input_over)
    return 0;
  if (s->input_start == s->input_end)
    s->input_start = s->input_end = 0;
  ssize_t n = read_input(s, s->input + s->input_end, INPUT_BYTES - s->input_end);
  if (n > 0)
    s->input_end += (uint32_t)n;
  return n;
}

/* The next byte of input, or -1 when there is none: `report.failure` tells a failure from the end. */
static int next_byte(struct inflater *s)
{
  if (s->input_start == s->input_end && fill(s) <= 0)
    return -1;
  return s->input[s->input_start++];
}

/* ---- output ---- */

/* Hands the current slot to the consumer. */
static void publish(struct inflater *s)
{
  if (s->flags & SHIM_INFLATE_HASH_OUTPUT)
    SHA256_Update(&s->output_hash, s->slot, s->slot_used);
  pthread_mutex_lock(&s->lock);
  s->lengths[s->produced % s->slots] = s->slot_used;
  s->produced++;
  pthread_cond_broadcast(&s->changed);
  pthread_mutex_unlock(&s->lock);
  s->slot = NULL;
  s->slot_used = 0;
}

/* Makes room for at least one byte in `slot`, waiting for the consumer if need be. */
static int make_room(struct inflater *s)
{
  if (s->slot && s->slot_used < s->slot_bytes)
    return 0;
  if (s->slot)
    publish(s);
  pthread_mutex_lock(&s->lock);
  while (s->produced - s->consumed == s->slots && !atomic_load(&s->stopping))
    pthread_cond_wait(&s->changed, &s->lock);
  pthread_mutex_unlock(&s->lock);
  if (atomic_load(&s->stopping))
    return fail(s, SHIM_INFLATE_STOPPED, 0);
  s->slot = s->ring + (size_t)(s->produced % s->slots) * s->slot_bytes;
  return 0;
}

static int count_output(struct inflater *s, size_t bytes)
{
  s->slot_used += (uint32_t)bytes;
  s->report.output_bytes += (double)bytes;
  return s->report.output_bytes > s->limit ? fail(s, SHIM_INFLATE_LIMIT, 0) : 0;
}

/* ---- plain ---- */

static int run_plain(struct inflater *s)
{
  while (s->input_start < s->input_end) {
    if (make_room(s))
      return -1;
    size_t n = s->input_end - s->input_start;
    if (n > s->slot_bytes - s->slot_used)
      n = s->slot_bytes - s->slot_used;
    memcpy(s->slot + s->slot_used, s->input + s->input_start, n);
    s->input_start += (uint32_t)n;
    if (count_output(s, n))
      return -1;
  }
  while (!s->input_over) {
    if (make_room(s))
      return -1;
    ssize_t n = read_input(s, s->slot + s->slot_used, s->slot_bytes - s->slot_used);
    if (n < 0 || count_output(s, (size_t)n))
      return -1;
  }
  return 0;
}

/* ---- gzip (RFC 1952) ---- */

static int header_byte(struct inflater *s, uint32_t *crc)
{
  int value = next_byte(s);
  if (value < 0)
    return fail(s, SHIM_INFLATE_TRUNCATED, 0);
  uint8_t byte = (uint8_t)value;
  *crc = crc32_gzip_refl(*crc, &byte, 1);
  return value;
}

static int skip_string(struct inflater *s, uint32_t *crc)
{
  int byte;
  do
    byte = header_byte(s, crc);
  while (byte > 0);
  return byte;
}

/* A member's header after the two magic bytes. ISA-L's own parser forgets its place when a header straddles two reads. */
static int gzip_header(struct inflater *s)
{
  enum { HCRC = 2, EXTRA = 4, NAME = 8, COMMENT = 16, RESERVED = 0xe0, METHOD_DEFLATE = 8 };
  static const uint8_t magic[2] = { 0x1f, 0x8b };
  uint32_t crc = crc32_gzip_refl(0, magic, 2);
  int fixed[8]; /* method, flags, four of mtime, extra flags, operating system */
  for (int i = 0; i < 8; i++)
    if ((fixed[i] = header_byte(s, &crc)) < 0)
      return -1;
  int flags = fixed[1];
  if (fixed[0] != METHOD_DEFLATE || (flags & RESERVED))
    return fail(s, SHIM_INFLATE_CORRUPT, 0);
  if (flags & EXTRA) {
    int low = header_byte(s, &crc), high = low < 0 ? -1 : header_byte(s, &crc);
    if (high < 0)
      return -1;
    for (int left = high << 8 | low; left > 0; left--)
      if (header_byte(s, &crc) < 0)
        return -1;
  }
  if ((flags & NAME) && skip_string(s, &crc) < 0)
    return -1;
  if ((flags & COMMENT) && skip_string(s, &crc) < 0)
    return -1;
  if (flags & HCRC) {
    uint32_t want = crc & 0xffff;
    int low = header_byte(s, &crc), high = low < 0 ? -1 : header_byte(s, &crc);
    if (high < 0)
      return -1;
    if ((uint32_t)(high << 8 | low) != want)
      return fail(s, SHIM_INFLATE_CHECKSUM, 0);
  }
  return 0;
}

/* A member's deflate stream and its trailer (CRC-32 and length, both verified by ISA-L). */
static int gzip_body(struct inflater *s)
{
  struct inflate_state *z = &s->gzip;
  isal_inflate_init(z);
  z->crc_flag = ISAL_GZIP_NO_HDR_VER;
  while (z->block_state != ISAL_BLOCK_FINISH) {
    if (s->input_start == s->input_end && fill(s) < 0)
      return -1;
    if (make_room(s))
      return -1;
    uint32_t in = s->input_end - s->input_start, out = s->slot_bytes - s->slot_used;
    z->next_in = s->input + s->input_start;
    z->avail_in = in;
    z->next_out = s->slot + s->slot_used;
    z->avail_out = out;
    int status = isal_inflate(z);
    s->input_start += in - z->avail_in;
    if (status == ISAL_INCORRECT_CHECKSUM)
      return fail(s, SHIM_INFLATE_CHECKSUM, 0);
    if (status != ISAL_DECOMP_OK)
      return fail(s, SHIM_INFLATE_CORRUPT, 0);
    if (count_output(s, out - z->avail_out))
      return -1;
    if (z->avail_in == in && z->avail_out == out && z->block_state != ISAL_BLOCK_FINISH)
      return fail(s, s->input_over ? SHIM_INFLATE_TRUNCATED : SHIM_INFLATE_CORRUPT, 0);
  }
  return 0;
}

/* Members until the input ends or something else follows, which is ignored as gzip(1) does, and counted. */
static int run_gzip(struct inflater *s)
{
  s->input_start += 2;
  for (;;) {
    if (gzip_header(s) || gzip_body(s))
      return -1;
    double end = s->report.input_bytes - (s->input_end - s->input_start);
    if (next_byte(s) == 0x1f && next_byte(s) == 0x8b)
      continue;
    while (!s->input_over) {
      s->input_start = s->input_end;
      if (fill(s) < 0)
        return -1;
    }
    s->input_start = s->input_end;
    s->report.ignored_bytes = s->report.input_bytes - end;
    return s->report.failure ? -1 : 0;
  }
}

/* ---- zstd (RFC 8878) ---- */

static int decompress_frames(struct inflater *s, ZSTD_DCtx *z)
{
  size_t left = 0; /* 0: between two frames */
  for (;;) {
    if (s->input_start == s->input_end && fill(s) < 0)
      return -1;
    if (s->input_start == s->input_end && left == 0)
      return 0;
    if (make_room(s))
      return -1;
    ZSTD_inBuffer in = { s->input + s->input_start, s->input_end - s->input_start, 0 };
    ZSTD_outBuffer out = { s->slot + s->slot_used, s->slot_bytes - s->slot_used, 0 };
    left = ZSTD_decompressStream(z, &out, &in);
    s->input_start += (uint32_t)in.pos;
    switch (ZSTD_getErrorCode(left)) {
    case ZSTD_error_no_error:
      break;
    case ZSTD_error_frameParameter_windowTooLarge:
      return fail(s, SHIM_INFLATE_WINDOW, 0);
    case ZSTD_error_memory_allocation:
      return fail(s, SHIM_INFLATE_IO, ENOMEM);
    case ZSTD_error_checksum_wrong:
      return fail(s, SHIM_INFLATE_CHECKSUM, 0);
    default:
      return fail(s, SHIM_INFLATE_CORRUPT, 0);
    }
    if (count_output(s, out.pos))
      return -1;
    if (in.pos == 0 && out.pos == 0 && left != 0)
      return fail(s, s->input_over ? SHIM_INFLATE_TRUNCATED : SHIM_INFLATE_CORRUPT, 0);
  }
}

static int run_zstd(struct inflater *s)
{
  ZSTD_DCtx *z = ZSTD_createDCtx();
  if (!z)
    return fail(s, SHIM_INFLATE_IO, ENOMEM);
  ZSTD_DCtx_setParameter(z, ZSTD_d_windowLogMax, WINDOW_LOG);
  int result = decompress_frames(s, z);
  ZSTD_freeDCtx(z);
  return result;
}

/* ---- the thread ---- */

static int run(struct inflater *s)
{
  while (s->input_end < 4 && !s->input_over)
    if (fill(s) < 0)
      return -1;
  const uint8_t *b = s->input;
  if (s->input_end >= 2 && b[0] == 0x1f && b[1] == 0x8b) {
    s->report.format = SHIM_INFLATE_GZIP;
    return run_gzip(s);
  }
  if (s->input_end >= 4 && b[0] == 0x28 && b[1] == 0xb5 && b[2] == 0x2f && b[3] == 0xfd) {
    s->report.format = SHIM_INFLATE_ZSTD;
    return run_zstd(s);
  }
  s->report.format = SHIM_INFLATE_PLAIN;
  return run_plain(s);
}

static void *thread_main(void *argument)
{
  struct inflater *s = argument;
  /* What was decompressed before a failure is good data, so it is handed out first. */
  (void)run(s);
  if (s->slot && s->slot_used > 0)
    publish(s);
  SHA256_Final(s->report.input_digest, &s->input_hash);
  SHA256_Final(s->report.output_digest, &s->output_hash);
  s->report.position = s->report.input_bytes - (s->input_end - s->input_start);
  pthread_mutex_lock(&s->lock);
  s->done = true;
  pthread_cond_broadcast(&s->changed);
  pthread_mutex_unlock(&s->lock);
  return NULL;
}

/* ---- the interface ---- */

static void destroy(struct inflater *s)
{
  if (s->stop_fd >= 0)
    close(s->stop_fd);
  pthread_cond_destroy(&s->changed);
  pthread_mutex_destroy(&s->lock);
  free(s->input);
  free(s);
}

int shim_inflate_open(int fd, uint8_t *ring, uint32_t slots, uint32_t slot_bytes, double limit, uint32_t flags,
          void **result)
{
  struct stat status;
  if (!ring || !result || slots < 2 || slots > MAX_SLOTS || slot_bytes == 0 || slot_bytes > INT32_MAX || !(limit >= 0))
    return -EINVAL;
  if (fstat(fd, &status) < 0)
    return -errno;
  struct inflater *s = calloc(1, sizeof(*s));
  if (!s)
    return -ENOMEM;
  s->fd = fd;
  s->seekable = S_ISREG(status.st_mode) || S_ISBLK(status.st_mode);
  s->flags = flags;
  s->limit = limit;
  s->ring = ring;
  s->slots = slots;
  s->slot_bytes = slot_bytes;
  pthread_mutex_init(&s->lock, NULL);
  pthread_cond_init(&s->changed, NULL);
  SHA256_Init(&s->input_hash);
  SHA256_Init(&s->output_hash);
  s->stop_fd = eventfd(0, EFD_CLOEXEC);
  if (s->stop_fd < 0) {
    int error = errno;
    destroy(s);
    return -error;
  }
  s->input = malloc(INPUT_BYTES);
  if (!s->input) {
    destroy(s);
    return -ENOMEM;
  }
  if (s->seekable)
    (void)posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL);
  /* Signals are the other threads' business. */
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  int error = pthread_create(&s->thread, NULL, thread_main, s);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  if (error) {
    destroy(s);
    return -error;
  }
  *result = s;
  return 0;
}

int shim_inflate_next(void *handle)
{
  struct inflater *s = handle;
  int length = 0;
  pthread_mutex_lock(&s->lock);
  if (s->held) {
    s->held = false;
    s->consumed++;
    pthread_cond_broadcast(&s->changed);
  }
  while (s->consumed == s->produced && !s->done)
    pthread_cond_wait(&s->changed, &s->lock);
  if (s->consumed < s->produced) {
    length = (int)s->lengths[s->consumed % s->slots];
    s->held = true;
  } else if (s->report.failure != SHIM_INFLATE_OK) {
    length = -EIO;
  }
  pthread_mutex_unlock(&s->lock);
  return length;
}

int shim_inflate_status(void *handle, struct shim_inflate_report *report)
{
  struct inflater *s = handle;
  pthread_mutex_lock(&s->lock);
  bool done = s->done;
  pthread_mutex_unlock(&s->lock);
  if (!done)
    return -EBUSY;
  *report = s->report;
  return 0;
}

void shim_inflate_close(void *handle)
{
  struct inflater *s = handle;
  uint64_t one = 1;
  pthread_mutex_lock(&s->lock);
  atomic_store(&s->stopping, true);
  pthread_cond_broadcast(&s->changed);
  pthread_mutex_unlock(&s->lock);
  (void)!write(s->stop_fd, &one, sizeof(one));
  pthread_join(s->thread, NULL);
  destroy(s);
}
