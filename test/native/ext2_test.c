/*
 * The ext4 engine under sanitizers: file systems made and filled at random, written back to a disk in memory, opened again
 * sound and with damaged blocks. What a damaged one answers does not matter, as long as it answers.
 */
#include "../../cffi/shim.h"
#include "check.h"

#include <string.h>
#include <sys/stat.h>

enum { BLOCKS = 4096, BLOCK = 4096, ROOT = 2, ROUNDS = 60, DAMAGED = 300 };

static uint8_t *disk;
static uint8_t staging[BLOCK];
static uint64_t seed = 5;

static int32_t read_block(double block) {
  CHECK(block >= 0 && block < BLOCKS);
  memcpy(staging, disk + (size_t)block * BLOCK, BLOCK);
  return 0;
}

static int write_back(void *fs) {
  uint8_t buffer[8 * BLOCK];
  double first, last = -1;
  int error = shim_ext2_finish(fs), count;
  if (error < 0) return error;
  while ((count = shim_ext2_drain(fs, buffer, 8, &first)) > 0) {
    CHECK(first > last && first + count <= BLOCKS);
    memcpy(disk + (size_t)first * BLOCK, buffer, (size_t)count * BLOCK);
    last = first + count - 1;
  }
  return count;
}

/* Everything that apply does, in any order; errors are answers. */
static void change(void *fs, int steps) {
  uint32_t directories[32] = {ROOT}, count = 1, found[4];
  double runs[3 * 16];
  uint8_t name[256], target[4096];
  memset(target, 't', sizeof target);
  for (int i = 0; i < steps; i++) {
    uint32_t directory = directories[below(&seed, count)];
    uint32_t length = 1 + below(&seed, below(&seed, 8) ? 12 : 255);
    for (uint32_t n = 0; n < length; n++) name[n] = (uint8_t)('a' + below(&seed, n < 2 ? 20 : 2));
    struct shim_ext2_node node = {.mtime = (double)next_random(&seed), .nanoseconds = below(&seed, 1000000000),
                                  .mode = 0644 | S_IFREG, .uid = below(&seed, 1u << 31), .size = below(&seed, 100000)};
    switch (below(&seed, 10)) {
    case 0:
      node.mode = 0755 | S_IFDIR;
      if (shim_ext2_create(fs, directory, name, length, &node, target, 0) == 0 && count < 32) directories[count++] = node.ino;
      break;
    case 1:
      node.mode = 0777 | S_IFLNK;
      shim_ext2_create(fs, directory, name, length, &node, target, below(&seed, 200));
      break;
    case 2: shim_ext2_unlink(fs, directory, name, length); break;
    case 3: {
      double position = 0;
      for (int n = 0; n < 50 && (position = shim_ext2_next(fs, directory, position, found, name)) > 0; n++) {
        if (found[1] == 1 && below(&seed, 4) == 0) shim_ext2_unlink(fs, directory, name, found[3]);
        if (found[1] == 7) shim_ext2_readlink(fs, found[0], target);
        if (found[1] == 2 && count < 32) directories[count++] = found[0];
        if (found[1] == 1 && below(&seed, 8) == 0) shim_ext2_set_xattr(fs, found[0], "user.x", target, below(&seed, 3000));
      }
      break;
    }
    case 4:
      if (shim_ext2_lookup(fs, directory, name, length, found) == 1) shim_ext2_link(fs, directory, name, length - 1, found[0]);
      break;
    case 5: shim_ext2_update(fs, below(&seed, 2000), &node); break;
    default: {
      double ranges[] = {0, (node.size + BLOCK - 1) / BLOCK, 1000, below(&seed, 3)};
      ranges[1] = (double)(uint32_t)ranges[1];
      if (shim_ext2_allocate(fs, ranges, 2) >= 0) {
        shim_ext2_runs(fs, 0, runs, 16);
        shim_ext2_create(fs, directory, name, length, &node, target, 0);
      }
    }
    }
  }
}

int main(void) {
  disk = calloc(BLOCKS, BLOCK);
  uint8_t *sound = malloc((size_t)BLOCKS * BLOCK);
  CHECK(disk && sound);
  void *fs;
  CHECK(shim_ext2_open(3, 1, 1e8, read_block, staging, &fs) < 0 && !fs);
  CHECK(shim_ext2_open(BLOCKS, 0, 1e8, read_block, staging, &fs) < 0 && !fs);
  CHECK(shim_ext2_open(BLOCKS, 1, 1e8, read_block, staging, &fs) == 0);
  change(fs, 300);
  CHECK(write_back(fs) == 0);
  shim_ext2_close(fs);
  for (int round = 0; round < ROUNDS; round++) {
    memcpy(sound, disk, (size_t)BLOCKS * BLOCK);
    CHECK(shim_ext2_open(BLOCKS, 0, below(&seed, 4) ? 1e8 : 3e5, read_block, staging, &fs) == 0 || round > 0);
    if (!fs) continue;
    change(fs, 100);
    if (write_back(fs) < 0) memcpy(disk, sound, (size_t)BLOCKS * BLOCK);
    shim_ext2_close(fs);
  }
  memcpy(sound, disk, (size_t)BLOCKS * BLOCK);
  uint32_t opened = 0;
  for (int round = 0; round < DAMAGED; round++) {
    memcpy(disk, sound, (size_t)BLOCKS * BLOCK);
    for (uint32_t n = 1 + below(&seed, 40); n > 0; n--) {
      uint32_t block = below(&seed, BLOCKS / 4);
      disk[(size_t)block * BLOCK + below(&seed, BLOCK)] = (uint8_t)next_random(&seed);
    }
    if (shim_ext2_open(BLOCKS, 0, 1e8, read_block, staging, &fs) < 0) continue;
    opened++;
    change(fs, 40);
    write_back(fs);
    shim_ext2_close(fs);
  }
  printf("%u of %d damaged file systems opened\n", opened, DAMAGED);
  free(disk);
  free(sound);
}
