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

int shim_sha256_update_file(struct sha256 *hash, int fd, double offset, double length) {
  if (!(offset >= 0 && length >= 0 && offset + length <= 0x1p53)) return -EINVAL;
  int64_t at = (int64_t)offset;
  for (int64_t left = (int64_t)length; left > 0;) {
    const ssize_t n = pread(fd, hash->piece, left < FILE_PIECE ? (size_t)left : FILE_PIECE, at);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return -errno;
    if (n == 0) return -ENODATA;
    SHA256_Update(&hash->context, hash->piece, (size_t)n);
    at += n;
    left -= n;
  }
  return 0;
}

void shim_sha256_final(struct sha256 *hash, uint8_t *digest) {
  SHA256_Final(digest, &hash->context);
  SHA256_Init(&hash->context);
}
