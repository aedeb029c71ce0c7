/*
 * The ext4 engine on file systems that lie. What it answers does not matter, as long as it answers and stays in its
 * memory.
 */
#include <errno.h>

#include "ext2_disk.h"

enum { DAMAGED = 600, INODE_BYTES = 256, FIRST_EXTENT = 40 + 12 };

static uint8_t *sound;

static void save(void) { memcpy(sound, disk, (size_t)BLOCKS * BLOCK); }
static void restore(void) { memcpy(disk, sound, (size_t)BLOCKS * BLOCK); }

static uint32_t get32(const uint8_t *at) {
  uint32_t value;
  memcpy(&value, at, sizeof value);
  return value;
}
static void set32(uint8_t *at, uint32_t value) { memcpy(at, &value, sizeof value); }

/* All of it lies in one group: its descriptor is the first. */
static uint8_t *inode_at(uint32_t ino) {
  const uint32_t table = get32(disk + BLOCK + 8);
  return disk + (size_t)table * BLOCK + (size_t)(ino - 1) * INODE_BYTES;
}

/* The first block of an inode with one extent (kernel: Documentation/filesystems/ext4/ifork.rst). */
static uint8_t *first_block_of(uint32_t ino) { return inode_at(ino) + FIRST_EXTENT + 8; }

static void test_shared_blocks(void) {
  static const uint8_t x[] = "x";
  uint32_t a, b, found[4];
  void *fs;
  restore();
  CHECK(open_disk(0, 1e8, &fs) == 0);
  CHECK(create(fs, ROOT, "shared-a", node_of(S_IFDIR | 0755), &a) == 0);
  CHECK(create(fs, ROOT, "shared-b", node_of(S_IFDIR | 0755), &b) == 0);
  CHECK(write_back(fs) == 0);
  shim_ext2_close(fs);
  const uint32_t own = get32(first_block_of(b));

  /* Two directories in one block: what one changes would make the other's index point into the middle of entries. */
  set32(first_block_of(b), get32(first_block_of(a)));
  CHECK(open_disk(0, 1e8, &fs) == 0);
  CHECK(shim_ext2_lookup(fs, a, x, 1, found) == 0);
  CHECK(shim_ext2_lookup(fs, b, x, 1, found) == -EUCLEAN);
  shim_ext2_close(fs);

  /* A directory in the inode table: an inode that looks like an empty entry, until it is changed. */
  const uint32_t victim = 513;
  memset(inode_at(victim), 0, BLOCK);
  set32(inode_at(victim) + 4, BLOCK); /* low half of the size, or length of the entry */
  set32(first_block_of(b), (uint32_t)((size_t)(inode_at(victim) - disk) / BLOCK));
  CHECK(open_disk(0, 1e8, &fs) == 0);
  CHECK(shim_ext2_lookup(fs, b, x, 1, found) == 0);
  const struct shim_ext2_node node = node_of(S_IFREG | 0644);
  CHECK(shim_ext2_update(fs, victim, &node) == -EUCLEAN);
  shim_ext2_close(fs);

  set32(first_block_of(b), own);
  CHECK(open_disk(0, 1e8, &fs) == 0);
  CHECK(shim_ext2_lookup(fs, b, x, 1, found) == 0);
  shim_ext2_close(fs);
}

/* A directory of two blocks and more, so that there are indexes to be damaged. */
static void fill(void) {
  char name[64];
  void *fs;
  CHECK(open_disk(1, 1e8, &fs) == 0);
  change(fs, 300);
  uint32_t directory, file;
  CHECK(create(fs, ROOT, "many", node_of(S_IFDIR | 0755), &directory) == 0);
  CHECK(create(fs, directory, "file", node_of(S_IFREG | 0644), &file) == 0);
  for (int i = 0; i < 600; i++) {
    const int length = snprintf(name, sizeof name, "a name of some length %d", i);
    CHECK(shim_ext2_link(fs, directory, (const uint8_t *)name, (uint32_t)length, file) == 0);
  }
  CHECK(write_back(fs) == 0);
  shim_ext2_close(fs);
}

/* Changes a byte of metadata, rather one that says something. */
static void damage(void) {
  uint32_t block, at;
  do block = below(&seed, BLOCKS);
  while (!written[block] || (block == 0 && below(&seed, 8)));
  for (int tries = 0; tries < 30; tries++) {
    at = below(&seed, BLOCK);
    if (disk[(size_t)block * BLOCK + at]) break;
  }
  uint8_t *byte = disk + (size_t)block * BLOCK + at;
  const uint8_t values[] = {0, 0xff, (uint8_t)next_random(&seed), *byte ^ (uint8_t)(1u << below(&seed, 8)), (uint8_t)(*byte + 1)};
  *byte = values[below(&seed, sizeof values)];
}

/* Asks for everything there is below a directory. */
static void walk(void *fs, uint32_t directory, int depth) {
  uint32_t found[4], again[4];
  uint8_t name[255], target[BLOCK];
  double at = 0;
  for (int n = 0; n < 2000 && (at = shim_ext2_next(fs, directory, at, found, name)) > 0; n++) {
    CHECK(found[3] > 0 && found[3] <= sizeof name);
    shim_ext2_lookup(fs, directory, name, found[3], again);
    if (found[1] == SYMLINK) CHECK(shim_ext2_readlink(fs, found[0], target) < BLOCK);
    if (found[1] == DIRECTORY && depth < 6) walk(fs, found[0], depth + 1);
    if (found[1] == REGULAR && below(&seed, 16) == 0) shim_ext2_set_xattr(fs, found[0], "user.y", target, below(&seed, 300));
    if (below(&seed, 20) == 0) shim_ext2_unlink(fs, directory, name, found[3]);
    if (below(&seed, 20) == 0) shim_ext2_link(fs, directory, (const uint8_t *)"new", 1 + below(&seed, 3), found[0]);
  }
}

int main(void) {
  disk = calloc(BLOCKS, BLOCK);
  sound = malloc((size_t)BLOCKS * BLOCK);
  CHECK(disk && sound);
  fill();
  save();
  int opened = 0, completed = 0;
  for (int round = 0; round < DAMAGED; round++) {
    void *fs;
    restore();
    for (uint32_t n = 1 + below(&seed, below(&seed, 2) ? 3 : 40); n > 0; n--) damage();
    if (open_disk(0, 1e8, &fs) < 0) continue;
    opened++;
    walk(fs, ROOT, 0);
    change(fs, 20);
    if (write_back(fs) == 0) completed++;
    shim_ext2_close(fs);
  }
  printf("%d of %d damaged file systems opened, %d could be changed\n", opened, DAMAGED, completed);
  CHECK(opened > 0 && opened < DAMAGED && completed > 0 && completed < opened);
  test_shared_blocks();
  free(disk);
  free(sound);
}
