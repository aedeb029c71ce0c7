/* Digests of chunks: of memory against those of a file and of each chunk alone; lengths and capacities that lie. */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "check.h"
#include "shim.h"

enum { LONGEST = 700000, DIGEST = 32 };

static uint64_t seed = 7;

static uint32_t count(uint32_t length, uint32_t chunk) { return (length + chunk - 1) / chunk; }

static void expect_chunks(const uint8_t *bytes, uint32_t length, uint32_t chunk, const uint8_t *digests) {
  struct sha256 *hash = shim_sha256_open();
  for (uint32_t i = 0; i < count(length, chunk); i++) {
    const uint32_t at = i * chunk, rest = length - at;
    uint8_t digest[DIGEST];
    shim_sha256_update(hash, "\1", 1);
    shim_sha256_update(hash, bytes + at, rest < chunk ? rest : chunk);
    shim_sha256_final(hash, digest);
    CHECK(memcmp(digest, digests + (size_t)i * DIGEST, DIGEST) == 0);
  }
  shim_sha256_close(hash);
}

static void test_chunks(FILE *file, const uint8_t *all) {
  struct sha256 *hash = shim_sha256_open(), *other = shim_sha256_open();
  for (int round = 0; round < 40; round++) {
    const uint32_t chunk = 512u << below(&seed, 10);
    const uint32_t length = round < 4 ? (uint32_t)round * chunk : below(&seed, LONGEST);
    const size_t capacity = (size_t)count(length, chunk) * DIGEST;
    /* Exactly their size, so that any access beyond is seen. */
    uint8_t *bytes = malloc(length), *of_memory = malloc(capacity), *of_file = malloc(capacity);
    memcpy(bytes, all, length);
    CHECK(shim_sha256_chunks(bytes, length, chunk, 1, of_memory, (double)capacity) == 0);
    expect_chunks(bytes, length, chunk, of_memory);
    CHECK(shim_sha256_file_chunks(hash, fileno(file), length, chunk, 1, of_file, (double)capacity) == 0);
    CHECK(memcmp(of_memory, of_file, capacity) == 0);
    uint8_t whole[DIGEST], expected[DIGEST];
    shim_sha256_final(hash, whole);
    shim_sha256_update(other, bytes, length);
    shim_sha256_final(other, expected);
    CHECK(memcmp(whole, expected, DIGEST) == 0);
    if (length > 0) {
      CHECK(shim_sha256_chunks(bytes, length, chunk, 1, of_memory, (double)capacity - 1) == -EINVAL);
      CHECK(shim_sha256_file_chunks(hash, fileno(file), length, chunk, 1, of_file, (double)capacity - 1) == -EINVAL);
    }
    free(bytes);
    free(of_memory);
    free(of_file);
  }
  shim_sha256_close(hash);
  shim_sha256_close(other);
}

static void test_refusals(FILE *file) {
  struct sha256 *hash = shim_sha256_open();
  uint8_t *digests = malloc(LONGEST);
  static const double bad[] = {-1, -1e300, 0x1p54, 1e300, 0.0 / 0.0, 1 / 0.0};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    CHECK(shim_sha256_chunks((const uint8_t *)"a", bad[i], 512, 0, digests, LONGEST) == -EINVAL);
    CHECK(shim_sha256_file_chunks(hash, fileno(file), bad[i], 512, 0, digests, LONGEST) == -EINVAL);
  }
  CHECK(shim_sha256_chunks((const uint8_t *)"a", 1, 512, 0, digests, 0.0 / 0.0) == -EINVAL);
  CHECK(shim_sha256_chunks((const uint8_t *)"a", 1, 0, 0, digests, LONGEST) == -EINVAL);
  CHECK(shim_sha256_file_chunks(hash, fileno(file), 1, 0, 0, digests, LONGEST) == -EINVAL);
  CHECK(shim_sha256_file_chunks(hash, fileno(file), 1, 513, 0, digests, LONGEST) == -EINVAL);
  CHECK(shim_sha256_file_chunks(hash, fileno(file), LONGEST + 1, 4096, 0, digests, LONGEST) == -ENODATA);
  CHECK(shim_sha256_file_chunks(hash, -1, 1, 4096, 0, digests, LONGEST) == -EBADF);
  free(digests);
  shim_sha256_close(hash);
}

int main(void) {
  uint8_t *all = malloc(LONGEST);
  fill_text(&seed, all, LONGEST);
  FILE *file = tmpfile();
  CHECK(fwrite(all, 1, LONGEST, file) == LONGEST && fflush(file) == 0);
  test_chunks(file, all);
  test_refusals(file);
  fclose(file);
  free(all);
}
