/* The parallel compressor under sanitizers: round trips, thread counts, small and large appends, errors, early ends. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "check.h"
#include "codec.h"
#include "shim.h"

#define START 100.0 /* offset of the first block */

static uint64_t seed = 1;

/* Stretches of noise, text and zeros: blocks that grow, shrink, and compress to the precomputed zero block. */
static uint8_t *make_input(size_t length) {
  uint8_t *data = malloc(length ? length : 1);
  CHECK(data);
  for (size_t at = 0; at < length;) {
    uint32_t kind = below(&seed, 3);
    for (size_t left = 1 + below(&seed, 20000); left > 0 && at < length; left--, at++)
      data[at] = kind == 0 ? (uint8_t)below(&seed, 256) : kind == 1 ? (uint8_t)("layer "[at % 6]) : 0;
  }
  return data;
}

struct output {
  uint8_t *bytes;
  size_t length;
  uint32_t *lengths;
  size_t blocks;
};

static struct output compress(const uint8_t *data, size_t length, int codec, uint32_t block_size, int checksum,
                              uint32_t threads, size_t piece) {
  int fd = memfd_create("compress_test", MFD_CLOEXEC);
  CHECK(fd >= 0);
  struct compressor *c;
  CHECK(shim_compressor_create(fd, START, codec, block_size, checksum, threads, &c) == 0);
  for (size_t at = 0; at < length;) {
    size_t n = length - at < piece ? length - at : piece;
    size_t zeros = 0;
    while (zeros < n && data[at + zeros] == 0) zeros++;
    if (zeros > 0) {
      n = zeros;
      CHECK(shim_compressor_append_zeros(c, (double)n) == 0);
    } else {
      CHECK(shim_compressor_append(c, data + at, (double)n) == 0);
    }
    at += n;
  }
  double totals[2];
  CHECK(shim_compressor_finish(c, totals) == 0);
  CHECK(shim_compressor_finish(c, totals) == -EINVAL);
  CHECK(shim_compressor_append_zeros(c, 1) == -EINVAL);
  struct output out = {.blocks = (size_t)totals[0], .length = (size_t)(totals[1] - START)};
  out.lengths = calloc(out.blocks + 1, sizeof *out.lengths);
  out.bytes = malloc(out.length + 1);
  CHECK(out.lengths && out.bytes);
  if (out.blocks) CHECK(shim_compressor_lengths(c, out.lengths, (double)out.blocks - 1) == -EINVAL);
  CHECK(shim_compressor_lengths(c, out.lengths, (double)out.blocks) == 0);
  CHECK(pread(fd, out.bytes, out.length + 1, (off_t)START) == (ssize_t)out.length);
  shim_compressor_destroy(c);
  close(fd);
  return out;
}

static void check_blocks(const struct output *out, const uint8_t *data, size_t length, int codec, uint32_t block_size,
                         int checksum) {
  struct decoder *decoder = shim_decoder_open();
  uint8_t *plain = malloc(block_size);
  CHECK(decoder && plain);
  CHECK(out->blocks == (length + block_size - 1) / block_size);
  const uint8_t *at = out->bytes;
  for (size_t i = 0; i < out->blocks; i++) {
    size_t begin = i * block_size;
    uint32_t expected = (uint32_t)(length - begin < block_size ? length - begin : block_size);
    uint32_t size = out->lengths[i];
    CHECK(size <= block_size + 512 + 4);
    if (checksum) {
      size -= 4;
      uint32_t sum = shim_crc32c(BLOCK_SEED, at, size);
      uint8_t little[4] = {(uint8_t)sum, (uint8_t)(sum >> 8), (uint8_t)(sum >> 16), (uint8_t)(sum >> 24)};
      CHECK(memcmp(at + size, little, 4) == 0);
    }
    CHECK(shim_decoder_run(decoder, codec, at, size, plain, expected) == 0);
    CHECK(memcmp(plain, data + begin, expected) == 0);
    at += out->lengths[i];
  }
  CHECK(at == out->bytes + out->length);
  free(plain);
  shim_decoder_close(decoder);
}

static void test_round_trips(void) {
  static const size_t sizes[] = {0, 1, 4095, 4096, 4097, 262143, 262144, 262145, 3000000};
  for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
    uint8_t *data = make_input(sizes[s]);
    for (int codec = CODEC_LZ4; codec <= CODEC_ZSTD; codec++) {
      for (uint32_t block_size = 4096; block_size <= 65536; block_size *= 4) {
        struct output one = compress(data, sizes[s], codec, block_size, 1, 1, 1 << 20);
        check_blocks(&one, data, sizes[s], codec, block_size, 1);
        struct output four = compress(data, sizes[s], codec, block_size, 1, 4, 777);
        CHECK(one.length == four.length && memcmp(one.bytes, four.bytes, one.length) == 0);
        CHECK(one.blocks == four.blocks && memcmp(one.lengths, four.lengths, one.blocks * 4) == 0);
        struct output bare = compress(data, sizes[s], codec, block_size, 0, 2, 100000);
        check_blocks(&bare, data, sizes[s], codec, block_size, 0);
        free(one.bytes), free(one.lengths), free(four.bytes), free(four.lengths), free(bare.bytes), free(bare.lengths);
      }
    }
    free(data);
  }
}

/* So much that the kernel is asked to write back meanwhile. */
static void test_large_output(void) {
  enum { LENGTH = 20 << 20 };
  uint8_t *data = malloc(LENGTH);
  CHECK(data);
  for (size_t i = 0; i < LENGTH; i += 8) memcpy(data + i, &(uint64_t){next_random(&seed)}, 8);
  struct output out = compress(data, LENGTH, CODEC_LZ4, 4096, 1, 2, 1 << 20);
  check_blocks(&out, data, LENGTH, CODEC_LZ4, 4096, 1);
  free(out.bytes), free(out.lengths), free(data);
}

static void test_full_disk(void) {
  int fd = open("/dev/full", O_WRONLY | O_CLOEXEC);
  CHECK(fd >= 0);
  struct compressor *c;
  CHECK(shim_compressor_create(fd, 0, CODEC_LZ4, 4096, 1, 2, &c) == 0);
  int error = 0;
  for (int i = 0; i < 1000 && error == 0; i++) error = shim_compressor_append_zeros(c, 1 << 20);
  CHECK(error == -ENOSPC);
  double totals[2];
  CHECK(shim_compressor_finish(c, totals) == -ENOSPC);
  shim_compressor_destroy(c);
  /* Less than a chunk: only finish can tell. */
  CHECK(shim_compressor_create(fd, 0, CODEC_ZSTD, 65536, 1, 2, &c) == 0);
  CHECK(shim_compressor_append(c, (const uint8_t *)"x", 1) == 0);
  CHECK(shim_compressor_finish(c, totals) == -ENOSPC);
  shim_compressor_destroy(c);
  close(fd);
}

static void test_early_end(void) {
  int fd = memfd_create("compress_test", MFD_CLOEXEC);
  uint8_t *data = make_input(4 << 20);
  for (int i = 0; i < 20; i++) {
    struct compressor *c;
    CHECK(shim_compressor_create(fd, 0, CODEC_ZSTD, 4096, 1, 3, &c) == 0);
    CHECK(shim_compressor_append(c, data, (double)below(&seed, 4 << 20)) == 0);
    shim_compressor_destroy(c);
  }
  free(data);
  close(fd);
}

static void test_arguments(void) {
  struct compressor *c = NULL;
  CHECK(shim_compressor_create(-1, 0, CODEC_LZ4, 4096, 1, 1, &c) == -EINVAL);
  CHECK(shim_compressor_create(0, -1, CODEC_LZ4, 4096, 1, 1, &c) == -EINVAL);
  CHECK(shim_compressor_create(0, 0, 3, 4096, 1, 1, &c) == -EINVAL);
  CHECK(shim_compressor_create(0, 0, CODEC_LZ4, 0, 1, 1, &c) == -EINVAL);
  CHECK(shim_compressor_create(0, 0, CODEC_LZ4, 5000, 1, 1, &c) == -EINVAL);
  CHECK(shim_compressor_create(0, 0, CODEC_LZ4, 131072, 1, 1, &c) == -EINVAL);
  CHECK(shim_compressor_create(0, 0, CODEC_LZ4, 4096, 1, 0, &c) == -EINVAL);
  CHECK(shim_compressor_create(0, 0, CODEC_LZ4, 4096, 1, 65, &c) == -EINVAL);
  CHECK(c == NULL);
  CHECK(shim_compressor_append(NULL, (const uint8_t *)"x", 1) == -EINVAL);
  CHECK(shim_compressor_append_zeros(NULL, 1) == -EINVAL);
  CHECK(shim_compressor_create(0, 0, CODEC_LZ4, 4096, 1, 1, &c) == 0);
  CHECK(shim_compressor_append(c, NULL, 1) == -EINVAL);
  static const double bad[] = {-1, -1e300, 0x1p53, 1e300, 0.0 / 0.0, 1 / 0.0};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    struct compressor *none = NULL;
    CHECK(shim_compressor_append(c, (const uint8_t *)"x", bad[i]) == -EINVAL);
    CHECK(shim_compressor_append_zeros(c, bad[i]) == -EINVAL);
    CHECK(shim_compressor_create(0, bad[i], CODEC_LZ4, 4096, 1, 1, &none) == -EINVAL && none == NULL);
  }
  uint32_t length;
  CHECK(shim_compressor_lengths(c, &length, 1) == -EINVAL);
  shim_compressor_destroy(c);
  shim_compressor_destroy(NULL);
}

int main(void) {
  test_arguments();
  test_round_trips();
  test_large_output();
  test_full_disk();
  test_early_end();
  return 0;
}
