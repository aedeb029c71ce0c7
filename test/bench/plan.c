/*
 * The read path of test/bench/plan.ts, all in C: binary search, pread, checksum, LZ4. Prints nanoseconds per read and a
 * checksum of what was read.
 *
 *   plan INDEX BLOCKS READS
 *
 * INDEX holds, as 32-bit words, the number of segments n, then n last sectors, n sectors in the layer, and the offsets
 * of n + 2 blocks in BLOCKS.
 */
#include <fcntl.h>
#include <lz4.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "codec.h"

enum { SECTORS = 8, BLOCK = 4096 };

static uint32_t find(const uint32_t *lasts, uint32_t count, uint32_t sector) {
  uint32_t low = 0, high = count;
  while (low < high) {
    const uint32_t middle = (low + high) / 2;
    if (lasts[middle] < sector) low = middle + 1;
    else high = middle;
  }
  return low;
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

int main(int argc, char **argv) {
  if (argc != 4) return 2;
  const int index = open(argv[1], O_RDONLY), blocks = open(argv[2], O_RDONLY);
  struct stat status;
  if (index < 0 || blocks < 0 || fstat(index, &status) < 0) return 1;
  const uint32_t *words = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE | MAP_POPULATE, index, 0);
  if (words == MAP_FAILED) return 1;
  const uint32_t count = words[0], *lasts = words + 1, *sectors = lasts + count, *offsets = sectors + count;
  const uint32_t reads = (uint32_t)strtoul(argv[3], NULL, 10);
  static uint8_t stored[2 * BLOCK], target[BLOCK];

  uint32_t random = 1, sum = 0;
  const double start = now();
  for (uint32_t i = 0; i < reads; i++) {
    random ^= random << 13;
    random ^= random >> 17;
    random ^= random << 5;
    const uint32_t sector = random % count * SECTORS;
    const uint32_t segment = find(lasts, count, sector);
    const uint32_t at = sectors[segment] + sector - (lasts[segment] + 1 - SECTORS);
    const uint32_t block = at / SECTORS;
    const uint32_t length = offsets[block + 1] - offsets[block];
    if (length > sizeof stored || pread(blocks, stored, length, offsets[block]) != (ssize_t)length) return 1;
    uint32_t checksum;
    memcpy(&checksum, stored + length - BLOCK_CHECKSUM, sizeof checksum);
    if (shim_crc32c(BLOCK_SEED, stored, length - BLOCK_CHECKSUM) != checksum) return 1;
    if (LZ4_decompress_safe((char *)stored, (char *)target, (int)(length - BLOCK_CHECKSUM), BLOCK) != BLOCK) return 1;
    sum = (sum + target[i % BLOCK]) & 0xffffffff;
  }
  printf("%.1f %u\n", (now() - start) / reads, sum);
}
