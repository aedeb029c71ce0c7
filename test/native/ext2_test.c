/* The ext4 engine: file systems made, filled at random, written back, opened again; its limits and its arguments. */
#include <errno.h>

#include "ext2_disk.h"

enum { ROUNDS = 60, LINKS = 8000 };

static const uint8_t *text(const char *name) { return (const uint8_t *)name; }

static void test_random_work(void) {
  void *fs;
  uint8_t *before = malloc((size_t)BLOCKS * BLOCK);
  CHECK(before && open_disk(1, 1e8, &fs) == 0);
  change(fs, 300);
  CHECK(write_back(fs) == 0);
  shim_ext2_close(fs);
  for (int round = 0; round < ROUNDS; round++) {
    memcpy(before, disk, (size_t)BLOCKS * BLOCK);
    const bool roomy = below(&seed, 4) > 0;
    if (open_disk(0, roomy ? 1e8 : 3e5, &fs) < 0) {
      CHECK(!roomy && !fs);
      continue;
    }
    change(fs, 100);
    if (write_back(fs) < 0) memcpy(disk, before, (size_t)BLOCKS * BLOCK);
    shim_ext2_close(fs);
  }
  free(before);
}

/* So many long names that the index has two levels; then some more, in leaves that are full and others that are not. */
static void test_large_directory(void) {
  uint32_t directory, file, found[4];
  char name[256];
  void *fs;
  CHECK(open_disk(1, 1e8, &fs) == 0);
  CHECK(create(fs, ROOT, "directory", node_of(S_IFDIR | 0755), &directory) == 0);
  CHECK(create(fs, directory, "file", node_of(S_IFREG | 0644), &file) == 0);
  for (int i = 0; i < 2 * LINKS; i++) {
    if (i == LINKS) {
      CHECK(write_back(fs) == 0);
      shim_ext2_close(fs);
      CHECK(open_disk(0, 1e8, &fs) == 0);
    }
    const int padding = i < LINKS ? 240 : 3;
    snprintf(name, sizeof name, "%0*d-%s", padding, i, "x");
    CHECK(shim_ext2_link(fs, directory, text(name), (uint32_t)strlen(name), file) == 0);
    CHECK(shim_ext2_link(fs, directory, text(name), (uint32_t)strlen(name), file) == -EEXIST);
  }
  for (int i = 0; i < 2 * LINKS; i += 7) {
    snprintf(name, sizeof name, "%0*d-%s", i < LINKS ? 240 : 3, i, "x");
    CHECK(shim_ext2_lookup(fs, directory, text(name), (uint32_t)strlen(name), found) == 1);
    CHECK(found[0] == file && found[1] == REGULAR && found[2] == (i >= LINKS));
    CHECK(shim_ext2_unlink(fs, directory, text(name), (uint32_t)strlen(name)) == 0);
  }
  uint8_t child[255];
  int left = 0;
  for (double at = 0; (at = shim_ext2_next(fs, directory, at, found, child)) > 0;) left++;
  CHECK(left == 2 * LINKS + 1 - (2 * LINKS + 6) / 7);
  CHECK(write_back(fs) == 0);
  shim_ext2_close(fs);
}

/* Every block, then every inode, is given away; what was there before the session is so after it. */
static void test_full(void) {
  void *fs;
  uint32_t ino;
  double status[3], ranges[] = {0, 0};
  char name[16];
  CHECK(open_disk(1, 1e8, &fs) == 0);
  shim_ext2_status(fs, status);
  CHECK(status[0] > BLOCKS / 2 && status[0] < BLOCKS && status[1] > 500);
  ranges[1] = status[0] + 1;
  CHECK(shim_ext2_allocate(fs, ranges, 1) == -ENOSPC);
  ranges[1] = status[0];
  const double runs = shim_ext2_allocate(fs, ranges, 1);
  CHECK(runs >= 1);
  double *all = malloc((size_t)runs * 3 * sizeof *all), total = 0;
  CHECK(shim_ext2_runs(fs, 0, all, (uint32_t)runs) == (int)runs);
  CHECK(shim_ext2_runs(fs, (uint32_t)runs, all, 1) == 0 && shim_ext2_runs(fs, UINT32_MAX, all, 1) == 0);
  for (int i = 0; i < (int)runs; i++) total += all[3 * i + 2];
  CHECK(total == status[0]);
  free(all);
  shim_ext2_close(fs);

  CHECK(open_disk(1, 1e8, &fs) == 0);
  shim_ext2_status(fs, status);
  for (int i = 0; i < (int)status[1]; i++) {
    snprintf(name, sizeof name, "%d", i);
    CHECK(create(fs, ROOT, name, node_of(S_IFIFO | 0600), &ino) == 0);
  }
  CHECK(create(fs, ROOT, "one more", node_of(S_IFIFO | 0600), &ino) == -EDQUOT);
  shim_ext2_close(fs);
}

static void test_arguments(void) {
  static const double bad[] = {-1, 0, 0x1p37, 1e300, -1e300, 0.0 / 0.0, 1 / 0.0};
  uint32_t ino, file, found[4];
  uint8_t name[256];
  void *fs;
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
    CHECK(shim_ext2_open(bad[i], 1, 1e8, read_block, staging, &fs) == -EINVAL && !fs);
  for (size_t i = 3; i < sizeof bad / sizeof *bad; i++) CHECK(open_disk(1, bad[i], &fs) == -EINVAL && !fs);
  CHECK(shim_ext2_open(3, 1, 1e8, read_block, staging, &fs) < 0 && !fs);
  CHECK(open_disk(1, 0, &fs) == -E2BIG && !fs);
  memset(disk, 0, (size_t)BLOCKS * BLOCK);
  CHECK(open_disk(0, 1e8, &fs) == -EINVAL && !fs);

  CHECK(open_disk(1, 1e8, &fs) == 0);
  CHECK(create(fs, ROOT, "file", node_of(S_IFREG | 0644), &file) == 0);
  memset(name, 'n', sizeof name);
  struct shim_ext2_node node = node_of(S_IFREG | 0644);
  CHECK(shim_ext2_create(fs, ROOT, name, 256, &node, NULL, 0) == -ENAMETOOLONG);
  CHECK(shim_ext2_create(fs, ROOT, name, 0, &node, NULL, 0) == -EINVAL);
  CHECK(shim_ext2_create(fs, ROOT, text("a/b"), 3, &node, NULL, 0) == -EINVAL);
  CHECK(shim_ext2_create(fs, ROOT, text("a\0b"), 3, &node, NULL, 0) == -EINVAL);
  CHECK(create(fs, ROOT, ".", node, &ino) == -EEXIST && create(fs, ROOT, "..", node, &ino) == -EEXIST);
  CHECK(create(fs, file, "below a file", node, &ino) == -ENOTDIR);
  for (size_t i = 2; i < sizeof bad / sizeof *bad; i++) {
    node.size = bad[i];
    CHECK(bad[i] == 0x1p37 || create(fs, ROOT, "size", node, &ino) == -EFBIG);
  }
  node = node_of(S_IFLNK | 0777);
  static uint8_t target[BLOCK + 1];
  memset(target, 't', sizeof target);
  CHECK(shim_ext2_create(fs, ROOT, text("link"), 4, &node, target, 0) == -ENAMETOOLONG);
  CHECK(shim_ext2_create(fs, ROOT, text("link"), 4, &node, target, BLOCK) == -ENAMETOOLONG);
  for (uint32_t length = 58; length < BLOCK; length += length < 62 ? 1 : 4033) { /* in the inode, and in a block */
    uint8_t *read = malloc(length);
    snprintf((char *)name, sizeof name, "link%u", length);
    CHECK(shim_ext2_create(fs, ROOT, name, (uint32_t)strlen((char *)name), &node, target, length) == 0);
    CHECK(shim_ext2_readlink(fs, node.ino, read) == (int)length && memcmp(read, target, length) == 0);
    free(read);
  }
  for (uint32_t mode = 0; mode < 0x10000; mode += 0x1000) {
    const bool known = mode == S_IFCHR || mode == S_IFBLK || mode == S_IFIFO || mode == S_IFSOCK;
    if (mode == S_IFREG || mode == S_IFDIR || mode == S_IFLNK) continue;
    snprintf((char *)name, sizeof name, "mode%u", mode);
    CHECK(create(fs, ROOT, (char *)name, node_of(mode), &ino) == (known ? 0 : -EINVAL));
  }
  node = node_of(S_IFBLK);
  node.device_major = 0x1000;
  CHECK(create(fs, ROOT, "device", node, &ino) == -EINVAL);
  node.device_major = 0xfff;
  node.device_minor = 0x100000;
  CHECK(create(fs, ROOT, "device", node, &ino) == -EINVAL);
  node.device_minor = 0xfffff;
  CHECK(create(fs, ROOT, "device", node, &ino) == 0);

  static const double ranges[][4] = {{-1, 1}, {0, -1}, {0, 0x1p32}, {0x1p32, 1}, {5, 5, 9, 1}, {0.0 / 0.0, 1}, {0, 0.0 / 0.0}};
  for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++) CHECK(shim_ext2_allocate(fs, ranges[i], i == 4 ? 2 : 1) == -EINVAL);
  for (size_t i = 2; i < sizeof bad / sizeof *bad; i++) CHECK(shim_ext2_next(fs, ROOT, bad[i], found, name) <= 0);

  CHECK(shim_ext2_set_xattr(fs, file, "user.large", disk, BLOCK) == -ENOSPC);
  CHECK(shim_ext2_set_xattr(fs, file, "user.larger", disk, BLOCKS * BLOCK) < 0);
  static char long_name[300] = "user.";
  memset(long_name + 5, 'n', sizeof long_name - 6);
  CHECK(shim_ext2_set_xattr(fs, file, long_name, disk, 1) == -ENODATA);
  long_name[255] = 0;
  CHECK(shim_ext2_set_xattr(fs, file, long_name, disk, 1) == 0);
  CHECK(shim_ext2_set_xattr(fs, UINT32_MAX, "user.a", disk, 1) < 0);
  static const uint32_t inodes[] = {0, UINT32_MAX};
  for (size_t i = 0; i < sizeof inodes / sizeof *inodes; i++) {
    CHECK(shim_ext2_update(fs, inodes[i], &node) < 0 && shim_ext2_readlink(fs, inodes[i], target) < 0);
    CHECK(shim_ext2_lookup(fs, inodes[i], name, 1, found) < 0 && shim_ext2_mark(fs, inodes[i], name, 1) < 0);
    CHECK(shim_ext2_link(fs, ROOT, text("new"), 3, inodes[i]) < 0 && shim_ext2_next(fs, inodes[i], 0, found, name) < 0);
  }
  CHECK(shim_ext2_lookup(fs, ROOT, name, 1000, found) == 0 && shim_ext2_mark(fs, ROOT, text("none"), 4) == -ENOENT);
  CHECK(shim_ext2_unlink(fs, ROOT, text("none"), 4) == -ENOENT);
  CHECK(shim_ext2_link(fs, ROOT, text("lost"), 4, ROOT) == -EPERM && shim_ext2_readlink(fs, file, target) == -EUCLEAN);
  CHECK(shim_ext2_unlink(fs, ROOT, text("."), 1) < 0);
  shim_ext2_close(fs);
  shim_ext2_close(NULL);
}

int main(void) {
  disk = calloc(BLOCKS, BLOCK);
  CHECK(disk);
  test_arguments();
  test_random_work();
  test_large_directory();
  test_full();
  free(disk);
}
