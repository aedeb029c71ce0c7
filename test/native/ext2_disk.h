/* A disk in memory for the tests of the ext4 engine, and random work on a file system. */
#ifndef EXT2_DISK_H
#define EXT2_DISK_H

#include <string.h>
#include <sys/stat.h>

#include "check.h"
#include "shim.h"

enum { BLOCKS = 4096, BLOCK = 4096, ROOT = 2, REGULAR = 1, DIRECTORY = 2, SYMLINK = 7 };

static uint8_t *disk;
static bool written[BLOCKS]; /* by the engine: metadata */
static uint8_t staging[BLOCK];
static uint64_t seed = 5;

static int32_t read_block(double block) {
  CHECK(block >= 0 && block < BLOCKS);
  memcpy(staging, disk + (size_t)block * BLOCK, BLOCK);
  return 0;
}

static int open_disk(int create, double budget, void **fs) {
  return shim_ext2_open(BLOCKS, create, budget, read_block, staging, fs);
}

static int write_back(void *fs) {
  uint8_t buffer[8 * BLOCK];
  double first, last = -1;
  int error = shim_ext2_finish(fs), count;
  if (error < 0) return error;
  while ((count = shim_ext2_drain(fs, buffer, 8, &first)) > 0) {
    CHECK(first > last && first + count <= BLOCKS);
    memcpy(disk + (size_t)first * BLOCK, buffer, (size_t)count * BLOCK);
    memset(written + (size_t)first, 1, (size_t)count);
    last = first + count - 1;
  }
  return count;
}

static struct shim_ext2_node node_of(uint32_t mode) { return (struct shim_ext2_node){.mode = mode, .mtime = 1e9}; }

/* Creates a node named `name` and returns what the engine said; its inode in *ino. */
static int create(void *fs, uint32_t directory, const char *name, struct shim_ext2_node node, uint32_t *ino) {
  const int error = shim_ext2_create(fs, directory, (const uint8_t *)name, (uint32_t)strlen(name), &node, NULL, 0);
  if (error == 0) *ino = node.ino;
  return error;
}

/* Everything that apply does, in any order; errors are answers. */
static void change(void *fs, int steps) {
  static const uint32_t kinds[] = {S_IFCHR, S_IFBLK, S_IFIFO, S_IFSOCK, 0};
  uint32_t directories[32] = {ROOT}, count = 1, found[4];
  double runs[3 * 16];
  uint8_t name[256], target[4096];
  memset(target, 't', sizeof target);
  for (int i = 0; i < steps; i++) {
    const uint32_t directory = directories[below(&seed, count)];
    const uint32_t length = 1 + below(&seed, below(&seed, 8) ? 12 : 255);
    for (uint32_t n = 0; n < length; n++) name[n] = (uint8_t)('a' + below(&seed, n < 2 ? 20 : 2));
    struct shim_ext2_node node = {.mtime = (double)next_random(&seed), .nanoseconds = below(&seed, 1000000000),
                                  .mode = 0644 | S_IFREG, .uid = below(&seed, 1u << 31), .size = below(&seed, 100000)};
    switch (below(&seed, 12)) {
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
        const bool removed = below(&seed, 4) == 0 && shim_ext2_unlink(fs, directory, name, found[3]) == 0;
        if (removed) continue;
        if (found[1] == SYMLINK) shim_ext2_readlink(fs, found[0], target);
        if (found[1] == DIRECTORY && count < 32) directories[count++] = found[0];
        if (found[1] == REGULAR && below(&seed, 8) == 0)
          shim_ext2_set_xattr(fs, found[0], "user.x", target, below(&seed, 3000));
      }
      break;
    }
    case 4:
      if (shim_ext2_lookup(fs, directory, name, length, found) == 1) shim_ext2_link(fs, directory, name, length - 1, found[0]);
      break;
    case 5: shim_ext2_update(fs, below(&seed, 2000), &node); break;
    case 6:
      node.mode = 0600 | kinds[below(&seed, 5)];
      node.device_major = below(&seed, 5000);
      node.device_minor = below(&seed, 1 << 21);
      shim_ext2_create(fs, directory, name, length, &node, target, 0);
      break;
    case 7: shim_ext2_mark(fs, directory, name, length); break;
    default: {
      double ranges[] = {0, (node.size + BLOCK - 1) / BLOCK, 1000, below(&seed, 3)};
      ranges[1] = (double)(uint32_t)ranges[1];
      if (shim_ext2_allocate(fs, ranges, 2) >= 0) {
        shim_ext2_runs(fs, below(&seed, 3), runs, 16);
        shim_ext2_create(fs, directory, name, length, &node, target, 0);
      }
    }
    }
  }
}

#endif
