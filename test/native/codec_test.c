/* Checksums against the format's vectors and each other; block codecs against hostile input; digests. */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "check.h"
#include "codec.h"

static uint64_t seed = 1;

static void test_checksums(void) {
  static const uint8_t zeros[32];
  CHECK(shim_crc32c(0, "123456789", 9) == 0x58E3FA20);
  CHECK(shim_crc32c(100007, "123456789", 9) == 0x3C9BD4E0);
  CHECK(shim_crc32c(0, zeros, 32) == 0);
  CHECK(shim_crc32c(100007, zeros, 32) == 0x28250FD2);
  if (!crc32c_is_hardware()) {
    puts("no checksum instruction here: only the tables were tested");
    return;
  }
  enum { LONGEST = 10000 };
  uint8_t *bytes = malloc(LONGEST);
  for (size_t i = 0; i < LONGEST; i++) bytes[i] = (uint8_t)next_random(&seed);
  for (uint32_t length = 0; length <= LONGEST; length += length < 4000 ? 1 : 97) {
    const uint8_t *at = bytes + LONGEST - length; /* every alignment, and right up to the end of the memory */
    const uint32_t start = (uint32_t)next_random(&seed);
    CHECK(crc32c_hardware(start, at, length) == crc32c_portable(start, at, length));
  }
  free(bytes);
}

/* Both in memory of exactly their size, so that any access beyond is seen. */
static int decode(struct decoder *decoder, int codec, const uint8_t *stored, uint32_t length, uint32_t plain,
                  const uint8_t *expected) {
  uint8_t *source = malloc(length), *target = malloc(plain);
  memcpy(source, stored, length);
  const int result = shim_decoder_run(decoder, codec, source, length, target, plain);
  if (result == 0 && expected != NULL) CHECK(memcmp(target, expected, plain) == 0);
  free(source);
  free(target);
  return result;
}

static void test_blocks(int codec) {
  enum { LONGEST = 65536 };
  struct encoder *encoder = shim_encoder_open();
  struct decoder *decoder = shim_decoder_open();
  uint8_t *plain = malloc(LONGEST), *stored = malloc(LONGEST * 2);
  for (int round = 0; round < 300; round++) {
    const uint32_t length = round % 3 == 0 ? 4096 : 1 + below(&seed, LONGEST);
    fill_text(&seed, plain, length);
    const int bound = shim_encoder_bound(codec, length);
    const int n = shim_encoder_run(encoder, codec, plain, length, stored, (uint32_t)bound);
    CHECK(n > 0 && n <= bound);
    CHECK(shim_encoder_run(encoder, codec, plain, length, stored + LONGEST, (uint32_t)n / 2) == -ENOBUFS);
    const uint32_t size = (uint32_t)n;
    CHECK(decode(decoder, codec, stored, size, length, plain) == 0);
    CHECK(decode(decoder, codec, stored, size, length + 1, NULL) == -EBADMSG);
    CHECK(decode(decoder, codec, stored, size, length - 1, NULL) == -EBADMSG);
    CHECK(decode(decoder, codec, stored, below(&seed, size), length, NULL) == -EBADMSG);
    for (int mutation = 0; mutation < 60; mutation++) {
      const uint32_t at = below(&seed, size);
      const uint8_t before = stored[at];
      stored[at] = (uint8_t)next_random(&seed);
      (void)decode(decoder, codec, stored, size, length, NULL); /* right or wrong, but inside its memory */
      if (mutation % 4 != 0) stored[at] = before;
    }
  }
  for (int round = 0; round < 3000; round++) {
    const uint32_t length = 4 + below(&seed, 200);
    for (uint32_t i = 0; i < length; i++) stored[i] = (uint8_t)next_random(&seed);
    static const uint8_t magic[] = {0x28, 0xb5, 0x2f, 0xfd}; /* of a zstd frame, or the last byte for older formats */
    if (round % 2 == 0) memcpy(stored, magic, sizeof magic);
    if (round % 4 == 0) stored[0] = (uint8_t)(0x20 + below(&seed, 16));
    (void)decode(decoder, codec, stored, length, 1 + below(&seed, LONGEST), NULL);
  }
  CHECK(decode(decoder, 3, stored, 10, 10, NULL) == -EINVAL);
  CHECK(decode(decoder, codec, stored, 0, 10, NULL) == -EBADMSG);
  uint8_t none[1];
  static const uint32_t beyond[] = {(uint32_t)INT32_MAX + 1, UINT32_MAX};
  for (size_t i = 0; i < sizeof beyond / sizeof *beyond; i++) {
    CHECK(shim_decoder_run(decoder, codec, none, beyond[i], none, 1) == -EINVAL);
    CHECK(shim_decoder_run(decoder, codec, none, 1, none, beyond[i]) == -EINVAL);
    CHECK(shim_encoder_run(encoder, codec, none, beyond[i], none, 1) == -EINVAL);
    CHECK(shim_encoder_run(encoder, codec, none, 1, none, beyond[i]) == -EINVAL);
    CHECK(shim_encoder_bound(codec, beyond[i]) == -EINVAL);
  }
  CHECK(shim_encoder_run(encoder, codec, none, 1, none, 0) == -ENOBUFS);
  CHECK(shim_encoder_run(encoder, 3, none, 1, none, 1) == -EINVAL && shim_encoder_bound(0, 1) == -EINVAL);
  shim_decoder_close(decoder);
  shim_encoder_close(encoder);
  free(plain);
  free(stored);
}

static void test_digest(void) {
  static const uint8_t abc[32] = {0xba, 0x78, 0x16, 0xbf, 0x8f, 0x01, 0xcf, 0xea, 0x41, 0x41, 0x40,
                                  0xde, 0x5d, 0xae, 0x22, 0x23, 0xb0, 0x03, 0x61, 0xa3, 0x96, 0x17,
                                  0x7a, 0x9c, 0xb4, 0x10, 0xff, 0x61, 0xf2, 0x00, 0x15, 0xad}; /* FIPS 180-4 */
  FILE *file = tmpfile();
  fputs("xabcx", file);
  fflush(file);
  struct sha256 *hash = shim_sha256_open();
  uint8_t digest[32];
  for (int again = 0; again < 2; again++) {
    CHECK(shim_sha256_update(hash, "a", 1) == 0);
    CHECK(shim_sha256_update_file(hash, fileno(file), 2, 2) == 0);
    shim_sha256_final(hash, digest);
    CHECK(memcmp(digest, abc, sizeof abc) == 0);
  }
  CHECK(shim_sha256_update_file(hash, fileno(file), 2, 4) == -ENODATA);
  CHECK(shim_sha256_update_file(hash, fileno(file), -1, 4) == -EINVAL);
  CHECK(shim_sha256_update_file(hash, -1, 0, 4) == -EBADF);
  static const double bad[] = {-1, -1e300, 0x1p54, 1e300, 0.0 / 0.0, 1 / 0.0};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    CHECK(shim_sha256_update(hash, "a", bad[i]) == -EINVAL);
    CHECK(shim_sha256_update_file(hash, fileno(file), 0, bad[i]) == -EINVAL);
    CHECK(shim_sha256_update_file(hash, fileno(file), bad[i], 1) == -EINVAL);
  }
  shim_sha256_close(hash);
  fclose(file);
}

int main(void) {
  test_checksums();
  test_blocks(CODEC_LZ4);
  test_blocks(CODEC_ZSTD);
  test_digest();
}
