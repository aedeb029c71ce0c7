/* SHA-256 over native memory or over a range of a file, so that digests need no copy into the JavaScript heap. */
#include <errno.h>
#include <openssl/sha.h>
#include <stdlib.h>
#include <unistd.h>

#include "shim.h"

#define FILE_PIECE (256u << 10)

struct sha256 {
  SHA256_CTX context;
  uint8_t piece[FILE_PIECE];
};

struct sha256 *shim_sha256_open(void) {
  struct sha256 *hash = malloc(sizeof *hash);
  if (hash != NULL) SHA256_Init(&hash->context);
  return hash;
}

void shim_sha256_close(struct sha256 *hash) { free(hash); }

int shim_sha256_update(struct sha256 *hash, const void *bytes, double length) {
  if (!(length >= 0 && length <= 0x1p53)) return -EINVAL;
  SHA256_Update(&hash->context, bytes, (size_t)length);
  return 0;
}

/* Fills `into` from `offset`; -ENODATA when the file ends before. */
static int read_exactly(int fd, uint8_t *into, size_t length, int64_t offset) {
  for (size_t done = 0; done < length;) {
    const ssize_t n = pread(fd, into + done, length - done, offset + (int64_t)done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return -errno;
    if (n == 0) return -ENODATA;
    done += (size_t)n;
  }
  return 0;
}

int shim_sha256_update_file(struct sha256 *hash, int fd, double offset, double length) {
  if (!(offset >= 0 && length >= 0 && offset + length <= 0x1p53)) return -EINVAL;
  const int64_t end = (int64_t)offset + (int64_t)length;
  for (int64_t at = (int64_t)offset; at < end;) {
    const size_t piece = end - at < FILE_PIECE ? (size_t)(end - at) : FILE_PIECE;
    const int error = read_exactly(fd, hash->piece, piece, at);
    if (error != 0) return error;
    SHA256_Update(&hash->context, hash->piece, piece);
    at += (int64_t)piece;
  }
  return 0;
}

/* SHA-256 of `prefix` and the first `length` bytes. */
static void hash_chunk(uint8_t prefix, const uint8_t *bytes, size_t length, uint8_t *digest) {
  SHA256_CTX context;
  SHA256_Init(&context);
  SHA256_Update(&context, &prefix, 1);
  SHA256_Update(&context, bytes, length);
  SHA256_Final(digest, &context);
}

static void hash_chunks(uint8_t prefix, const uint8_t *bytes, size_t length, uint32_t chunk, uint8_t *digests) {
  for (size_t at = 0; at < length; at += chunk, digests += SHA256_DIGEST_LENGTH) {
    hash_chunk(prefix, bytes + at, length - at < chunk ? length - at : chunk, digests);
  }
}

/* Whether `capacity` bytes hold the digests of all chunks. */
static int fits(double length, uint32_t chunk, double capacity) {
  if (!(length >= 0 && length <= 0x1p53 && chunk > 0)) return 0;
  const uint64_t chunks = ((uint64_t)length + chunk - 1) / chunk;
  return (double)chunks * SHA256_DIGEST_LENGTH <= capacity;
}

int shim_sha256_chunks(const uint8_t *bytes, double length, uint32_t chunk, uint32_t prefix, uint8_t *digests,
                       double capacity) {
  if (!fits(length, chunk, capacity)) return -EINVAL;
  hash_chunks((uint8_t)prefix, bytes, (size_t)length, chunk, digests);
  return 0;
}

int shim_sha256_file_chunks(struct sha256 *hash, int fd, double length, uint32_t chunk, uint32_t prefix, uint8_t *digests,
                            double capacity) {
  if (!fits(length, chunk, capacity) || FILE_PIECE % chunk != 0) return -EINVAL;
  const int64_t size = (int64_t)length;
  for (int64_t at = 0; at < size;) {
    const size_t piece = size - at < FILE_PIECE ? (size_t)(size - at) : FILE_PIECE;
    const int error = read_exactly(fd, hash->piece, piece, at);
    if (error != 0) return error;
    SHA256_Update(&hash->context, hash->piece, piece);
    hash_chunks((uint8_t)prefix, hash->piece, piece, chunk, digests);
    at += (int64_t)piece;
    digests += (piece + chunk - 1) / chunk * SHA256_DIGEST_LENGTH;
  }
  return 0;
}

void shim_sha256_final(struct sha256 *hash, uint8_t *digest) {
  SHA256_Final(digest, &hash->context);
  SHA256_Init(&hash->context);
}
