/*
 * The decompressing stream under sanitizers: sound and damaged gzip and zstd from files and from pipes that deliver
 * piecemeal, closed early or read to the end. The ring ends at a page that must not be touched, because no sanitizer watches
 * ISA-L's assembly.
 */
#include "../../cffi/shim.h"
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <zstd.h>

#include <isa-l/crc.h>
#include <isa-l/igzip_lib.h>

enum { SLOTS = 3, SLOT_BYTES = 64 << 10, SOURCE_BYTES = 600001, ROUNDS = 400 };

static uint64_t seed = 1;

struct bytes {
  uint8_t *data;
  size_t length;
};

static struct bytes make_source(void) {
  struct bytes s = {malloc(SOURCE_BYTES), SOURCE_BYTES};
  CHECK(s.data);
  for (size_t at = 0; at < s.length;) {
    uint32_t kind = below(&seed, 3);
    for (size_t left = 1 + below(&seed, 3000); left > 0 && at < s.length; left--, at++)
      s.data[at] = kind == 0 ? (uint8_t)next_random(&seed) : kind == 1 ? (uint8_t)("member "[at % 7]) : 0;
  }
  return s;
}

static struct bytes gzip(struct bytes source) {
  struct bytes result = {malloc(source.length + source.length / 8 + 1000), source.length + source.length / 8 + 1000};
  struct isal_zstream z;
  CHECK(result.data);
  isal_deflate_init(&z);
  z.gzip_flag = IGZIP_GZIP;
  z.end_of_stream = 1;
  z.next_in = source.data;
  z.avail_in = (uint32_t)source.length;
  z.next_out = result.data;
  z.avail_out = (uint32_t)result.length;
  CHECK(isal_deflate(&z) == COMP_OK && z.avail_in == 0);
  result.length = z.total_out;
  return result;
}

static struct bytes zstd(struct bytes source) {
  struct bytes result = {malloc(ZSTD_compressBound(source.length)), ZSTD_compressBound(source.length)};
  CHECK(result.data);
  result.length = ZSTD_compress(result.data, result.length, source.data, source.length, 3);
  CHECK(!ZSTD_isError(result.length));
  return result;
}

static struct bytes twice(struct bytes part) {
  struct bytes result = {malloc(2 * part.length), 2 * part.length};
  CHECK(result.data);
  memcpy(result.data, part.data, part.length);
  memcpy(result.data + part.length, part.data, part.length);
  return result;
}

static uint8_t *ring;

static void make_ring(void) {
  size_t page = (size_t)sysconf(_SC_PAGESIZE);
  ring = mmap(NULL, SLOTS * SLOT_BYTES + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(ring != MAP_FAILED);
  CHECK(mprotect(ring + SLOTS * SLOT_BYTES, page, PROT_NONE) == 0);
}

static int file_of(struct bytes input) {
  int fd = memfd_create("inflate_test", MFD_CLOEXEC);
  CHECK(fd >= 0 && write(fd, input.data, input.length) == (ssize_t)input.length && lseek(fd, 0, SEEK_SET) == 0);
  return fd;
}

/* Reads at most `chunks` chunks; returns how much of it equals `expected`, and the failure. */
static size_t run(int fd, struct bytes expected, double limit, size_t chunks, int *failure) {
  struct shim_inflate_report report;
  void *handle;
  size_t total = 0;
  int length = 0;
  *failure = SHIM_INFLATE_STOPPED;
  CHECK(shim_inflate_open(fd, ring, SLOTS, SLOT_BYTES, limit, SHIM_INFLATE_HASH_INPUT | SHIM_INFLATE_HASH_OUTPUT,
                          &handle) == 0);
  size_t i = 0;
  for (; i < chunks && (length = shim_inflate_next(handle)) > 0; i++) {
    size_t want = (size_t)length;
    CHECK(length <= SLOT_BYTES);
    if (total < expected.length) {
      if (want > expected.length - total) want = expected.length - total;
      CHECK(expected.data == NULL || memcmp(ring + i % SLOTS * SLOT_BYTES, expected.data + total, want) == 0);
    }
    total += (size_t)length;
  }
  if (i < chunks) {
    CHECK(length == 0 || length == -EIO);
    CHECK(shim_inflate_status(handle, &report) == 0);
    CHECK((report.failure != SHIM_INFLATE_OK) == (length == -EIO));
    CHECK(report.output_bytes == (double)total && report.position <= report.input_bytes);
    *failure = report.failure;
  }
  shim_inflate_close(handle);
  return total;
}

static void test_sound(struct bytes input, struct bytes expected) {
  int failure, fd = file_of(input);
  CHECK(run(fd, expected, 1e15, SIZE_MAX, &failure) == expected.length && failure == SHIM_INFLATE_OK);
  for (size_t chunks = 0; chunks < 6; chunks++) {
    CHECK(lseek(fd, 0, SEEK_SET) == 0);
    run(fd, expected, 1e15, chunks, &failure);
  }
  CHECK(lseek(fd, 0, SEEK_SET) == 0);
  run(fd, expected, (double)expected.length - 1, SIZE_MAX, &failure);
  CHECK(failure == SHIM_INFLATE_LIMIT);
  close(fd);
}

struct delivery {
  struct bytes input;
  int fd;
};

static void *deliver(void *argument) {
  struct delivery *d = argument;
  uint64_t state = 1;
  for (size_t at = 0; at < d->input.length;) {
    size_t n = 1 + below(&state, 5000);
    if (n > d->input.length - at) n = d->input.length - at;
    ssize_t written = write(d->fd, d->input.data + at, n);
    if (written < 0) break; /* the reader has gone */
    at += (size_t)written;
  }
  close(d->fd);
  return NULL;
}

static void test_pipe(struct bytes input, struct bytes expected, size_t chunks) {
  int ends[2], failure;
  pthread_t writer;
  CHECK(pipe2(ends, O_CLOEXEC) == 0);
  struct delivery d = {input, ends[1]};
  CHECK(pthread_create(&writer, NULL, deliver, &d) == 0);
  size_t total = run(ends[0], expected, 1e15, chunks, &failure);
  if (chunks == SIZE_MAX) CHECK(total == expected.length && failure == SHIM_INFLATE_OK);
  close(ends[0]);
  CHECK(pthread_join(writer, NULL) == 0);
}

static void test_silent_pipe(void) {
  int ends[2], failure;
  CHECK(pipe2(ends, O_CLOEXEC) == 0);
  CHECK(run(ends[0], (struct bytes){NULL, 0}, 1e15, 0, &failure) == 0);
  close(ends[0]);
  close(ends[1]);
}

/* Bits flipped and tails cut off: any outcome but memory errors, hangs and output beyond the limit will do. */
static void test_damaged(struct bytes sound) {
  struct bytes input = {malloc(sound.length), 0};
  CHECK(input.data);
  for (int round = 0; round < ROUNDS; round++) {
    int failure;
    memcpy(input.data, sound.data, sound.length);
    input.length = below(&seed, 4) ? sound.length : below(&seed, (uint32_t)sound.length);
    for (uint32_t flips = below(&seed, 6); flips > 0 && input.length > 0; flips--) {
      size_t end = below(&seed, 3) || input.length < 64 ? input.length : 64;
      input.data[below(&seed, (uint32_t)end)] ^= (uint8_t)(1u << below(&seed, 8));
    }
    int fd = file_of(input);
    size_t total = run(fd, (struct bytes){NULL, 0}, 4e6, SIZE_MAX, &failure);
    CHECK(total <= 4000000 + SLOT_BYTES);
    close(fd);
  }
  free(input.data);
}

static void test_arguments(void) {
  void *handle;
  CHECK(shim_inflate_open(0, NULL, SLOTS, SLOT_BYTES, 1, 0, &handle) == -EINVAL);
  CHECK(shim_inflate_open(0, ring, 1, SLOT_BYTES, 1, 0, &handle) == -EINVAL);
  CHECK(shim_inflate_open(0, ring, 65, SLOT_BYTES, 1, 0, &handle) == -EINVAL);
  CHECK(shim_inflate_open(0, ring, SLOTS, 0, 1, 0, &handle) == -EINVAL);
  CHECK(shim_inflate_open(0, ring, SLOTS, UINT32_MAX, 1, 0, &handle) == -EINVAL);
  CHECK(shim_inflate_open(0, ring, SLOTS, SLOT_BYTES, -1, 0, &handle) == -EINVAL);
  CHECK(shim_inflate_open(0, ring, SLOTS, SLOT_BYTES, 0.0 / 0.0, 0, &handle) == -EINVAL);
  CHECK(shim_inflate_open(0, ring, SLOTS, SLOT_BYTES, 1, 0, NULL) == -EINVAL);
  CHECK(shim_inflate_open(-1, ring, SLOTS, SLOT_BYTES, 1, 0, &handle) == -EBADF);
}

static int failure_of(struct bytes input, struct bytes expected) {
  int failure;
  const int fd = file_of(input);
  const size_t total = run(fd, expected, 1e15, SIZE_MAX, &failure);
  if (failure == SHIM_INFLATE_OK) CHECK(total == expected.length);
  close(fd);
  return failure;
}

/* A member whose header has every optional field (RFC 1952 section 2.3), whole, cut off everywhere, and with bits flipped. */
static void test_gzip_header(struct bytes member, struct bytes source) {
  enum { EXTRA = 300, FIXED = 10 };
  uint8_t header[FIXED + 2 + EXTRA + 5 + 8 + 2] = {0x1f, 0x8b, 8, 2 | 4 | 8 | 16, 1, 2, 3, 4, 0, 3, EXTRA & 255, EXTRA >> 8};
  memcpy(header + FIXED + 2 + EXTRA, "name", 5);
  memcpy(header + FIXED + 2 + EXTRA + 5, "comment", 8);
  const size_t length = sizeof header, check = length - 2;
  struct bytes input = {malloc(length + member.length), length + member.length - FIXED};
  CHECK(input.data);
  const uint32_t crc = crc32_gzip_refl(0, header, check);
  header[check] = (uint8_t)crc;
  header[check + 1] = (uint8_t)(crc >> 8);
  memcpy(input.data, header, length);
  memcpy(input.data + length, member.data + FIXED, member.length - FIXED);
  CHECK(failure_of(input, source) == SHIM_INFLATE_OK);
  for (size_t cut = 4; cut <= length; cut += cut < 16 || cut > 300 ? 1 : 50)
    CHECK(failure_of((struct bytes){input.data, cut}, source) == SHIM_INFLATE_TRUNCATED);
  for (size_t at = 2; at < length; at += at < 16 || at > 300 ? 1 : 50) {
    input.data[at] ^= 0x40;
    CHECK(failure_of(input, source) != SHIM_INFLATE_OK);
    input.data[at] ^= 0x40;
  }
  free(input.data);
}

/* What follows the last member is ignored, however long it is, and counted. */
static void test_trailing_bytes(struct bytes member, struct bytes source) {
  enum { TRAILING = 700001 };
  struct bytes input = {calloc(1, member.length + TRAILING), member.length + TRAILING};
  CHECK(input.data);
  memcpy(input.data, member.data, member.length);
  const int fd = file_of(input);
  struct shim_inflate_report report;
  void *handle;
  CHECK(shim_inflate_open(fd, ring, SLOTS, SLOT_BYTES, 1e15, 0, &handle) == 0);
  CHECK(shim_inflate_status(handle, &report) == -EBUSY); /* its output does not fit into the ring */
  while (shim_inflate_next(handle) > 0) continue;
  CHECK(shim_inflate_status(handle, &report) == 0);
  CHECK(report.failure == SHIM_INFLATE_OK && report.format == SHIM_INFLATE_GZIP);
  CHECK(report.ignored_bytes == TRAILING && report.output_bytes == (double)source.length);
  CHECK(shim_inflate_next(handle) == 0); /* the end stays the end */
  shim_inflate_close(handle);
  close(fd);
  free(input.data);
}

static void test_zstd_frames(struct bytes source) {
  struct bytes input = {malloc(ZSTD_compressBound(source.length)), 0};
  ZSTD_CCtx *context = ZSTD_createCCtx();
  CHECK(input.data && context);
  ZSTD_CCtx_setParameter(context, ZSTD_c_checksumFlag, 1);
  input.length = ZSTD_compress2(context, input.data, ZSTD_compressBound(source.length), source.data, source.length);
  CHECK(!ZSTD_isError(input.length) && failure_of(input, source) == SHIM_INFLATE_OK);
  input.data[input.length - 1] ^= 1;
  CHECK(failure_of(input, source) == SHIM_INFLATE_CHECKSUM);
  /* Magic number, frame header descriptor, window descriptor: 2^28 bytes (RFC 8878 section 3.1.1.1). */
  uint8_t wide[] = {0x28, 0xb5, 0x2f, 0xfd, 0x00, (28 - 10) << 3, 0x01, 0x00, 0x00};
  CHECK(failure_of((struct bytes){wide, sizeof wide}, source) == SHIM_INFLATE_WINDOW);
  wide[5] = (27 - 10) << 3;
  CHECK(failure_of((struct bytes){wide, sizeof wide}, (struct bytes){NULL, 0}) == SHIM_INFLATE_OK);
  ZSTD_freeCCtx(context);
  free(input.data);
}

static void test_unreadable(void) {
  int failure, directory = open("/", O_RDONLY | O_CLOEXEC), file = memfd_create("inflate_test", MFD_CLOEXEC);
  char path[32];
  snprintf(path, sizeof path, "/proc/self/fd/%d", file);
  const int write_only = open(path, O_WRONLY | O_CLOEXEC);
  CHECK(directory >= 0 && write_only >= 0);
  CHECK(run(directory, (struct bytes){NULL, 0}, 1e15, SIZE_MAX, &failure) == 0 && failure == SHIM_INFLATE_IO);
  CHECK(run(write_only, (struct bytes){NULL, 0}, 1e15, SIZE_MAX, &failure) == 0 && failure == SHIM_INFLATE_IO);
  close(directory);
  close(file);
  close(write_only);
}

int main(void) {
  signal(SIGPIPE, SIG_IGN);
  make_ring();
  struct bytes source = make_source(), source2 = twice(source);
  struct bytes inputs[] = {gzip(source), zstd(source), source};
  test_arguments();
  test_silent_pipe();
  test_unreadable();
  test_gzip_header(inputs[0], source);
  test_trailing_bytes(inputs[0], source);
  test_zstd_frames(source);
  for (size_t i = 0; i < sizeof(inputs) / sizeof(inputs[0]); i++) {
    struct bytes doubled = twice(inputs[i]);
    test_sound(inputs[i], source);
    test_sound(doubled, source2);
    test_pipe(doubled, source2, SIZE_MAX);
    test_pipe(inputs[i], source, 2);
    test_damaged(inputs[i]);
    free(doubled.data);
    free(inputs[i].data);
  }
  free(source2.data);
  return 0;
}
