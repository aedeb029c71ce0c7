/* ext4 on a volume: making and opening it, its inodes, and handing back what changed. */
#include "ext2.h"
#include "shim.h"

#include <linux/limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

enum {
  INODE_RATIO = 16384,
  RESERVED_PERCENT = 5,
  LOST_FOUND_BLOCKS = 3,
  MOST_LINKS = 65000,
  FAST_SYMLINK = 60, /* targets shorter than this lie in the inode */
  LARGEST_INODE = 1024,
};

/* In a 32-bit time field this is 0; libext2fs takes 0 itself for "the clock". */
static const time_t NO_TIME = (time_t)1 << 32;

int ext2_errno(errcode_t error) {
  switch (error) {
  case 0: return 0;
  case EXT2_ET_NO_MEMORY: return -ENOMEM;
  case EXT2_ET_BLOCK_ALLOC_FAIL:
  case EXT2_ET_EA_NO_SPACE: return -ENOSPC;
  case EXT2_ET_INODE_ALLOC_FAIL: return -EDQUOT;
  case EXT2_ET_TOOSMALL:
  case EXT2_ET_BAD_MAGIC: return -EINVAL;
  case EXT2_ET_UNSUPP_FEATURE:
  case EXT2_ET_RO_UNSUPP_FEATURE:
  case EXT2_ET_REV_TOO_HIGH: return -ENOTSUP;
  case EXT2_ET_EA_BAD_NAME_LEN:
  case EXT2_ET_EA_KEY_NOT_FOUND: return -ENODATA;
  default: return error > 0 && error < 4096 ? (int)-error : -EUCLEAN;
  }
}

/* ---- making a file system (apply.md section 1) ---- */

/* `.` of a new directory, lost+found's further blocks and so on come from the library with the clock's times. */
static errcode_t make_directories(ext2_filsys fs) {
  errcode_t error = ext2fs_mkdir(fs, EXT2_ROOT_INO, EXT2_ROOT_INO, NULL);
  if (error) return error;
  ext2fs_inode_alloc_stats2(fs, EXT2_BAD_INO, +1, 0);
  for (ext2_ino_t ino = EXT2_ROOT_INO + 1; ino < EXT2_FIRST_INODE(fs->super); ino++) ext2fs_inode_alloc_stats2(fs, ino, +1, 0);
  ext2_ino_t lost_found;
  struct ext2_inode inode;
  error = ext2fs_mkdir(fs, EXT2_ROOT_INO, 0, "lost+found");
  for (int i = 1; !error && i < LOST_FOUND_BLOCKS; i++) {
    error = ext2fs_lookup(fs, EXT2_ROOT_INO, "lost+found", 10, NULL, &lost_found);
    if (!error) error = ext2fs_expand_dir(fs, lost_found);
  }
  if (!error) error = ext2fs_read_inode(fs, lost_found, &inode);
  if (error) return error;
  inode.i_mode = LINUX_S_IFDIR | 0700;
  error = ext2fs_write_inode(fs, lost_found, &inode);
  return error ? error : ext2fs_create_resize_inode(fs);
}

static errcode_t make(struct ext2 *x) {
  struct ext2_super_block wish = {
      .s_rev_level = EXT2_DYNAMIC_REV,
      .s_log_block_size = 2, /* 4096 */
      .s_log_cluster_size = 2,
      .s_inode_size = 256,
      .s_errors = EXT2_ERRORS_CONTINUE,
      .s_feature_compat = EXT2_FEATURE_COMPAT_EXT_ATTR | EXT2_FEATURE_COMPAT_RESIZE_INODE |
                          EXT2_FEATURE_COMPAT_DIR_INDEX | EXT4_FEATURE_COMPAT_SPARSE_SUPER2,
      .s_feature_incompat = EXT2_FEATURE_INCOMPAT_FILETYPE | EXT3_FEATURE_INCOMPAT_EXTENTS |
                            EXT4_FEATURE_INCOMPAT_64BIT | EXT4_FEATURE_INCOMPAT_FLEX_BG,
      .s_feature_ro_compat = EXT2_FEATURE_RO_COMPAT_SPARSE_SUPER | EXT2_FEATURE_RO_COMPAT_LARGE_FILE |
                             EXT4_FEATURE_RO_COMPAT_HUGE_FILE | EXT4_FEATURE_RO_COMPAT_DIR_NLINK |
                             EXT4_FEATURE_RO_COMPAT_EXTRA_ISIZE,
      .s_backup_bgs = {1, UINT32_MAX}, /* the library turns the second into the last group */
  };
  ext2fs_blocks_count_set(&wish, x->blocks);
  ext2fs_r_blocks_count_set(&wish, x->blocks * RESERVED_PERCENT / 100);
  uint64_t inodes = x->blocks * EXT2_BLOCK / INODE_RATIO;
  wish.s_inodes_count = inodes > UINT32_MAX ? UINT32_MAX : (uint32_t)inodes;

  errcode_t error = ext2fs_initialize(x->name, EXT2_FLAG_64BITS, &wish, &x->manager, &x->fs);
  if (error) return error;
  ext2_filsys fs = x->fs;
  fs->now = NO_TIME;
  struct ext2_super_block *super = fs->super;
  super->s_mkfs_time = super->s_lastcheck = 0;
  super->s_max_mnt_count = UINT16_MAX;
  super->s_kbytes_written = 1;
  super->s_def_hash_version = EXT2_HASH_HALF_MD4;
  super->s_flags |= EXT2_FLAGS_SIGNED_HASH;
  error = ext2fs_allocate_tables(fs);
  if (!error) error = make_directories(fs);
  /* With the backups, which nothing touches afterwards. */
  return error ? error : ext2fs_flush(fs);
}

/* ---- opening ---- */

/* Kinds of file system that this code keeps intact. A journal is allowed, one with something in it is not. */
static bool is_supported(const struct ext2_super_block *super) {
  uint32_t needed = EXT2_FEATURE_INCOMPAT_FILETYPE | EXT3_FEATURE_INCOMPAT_EXTENTS;
  uint32_t incompatible = needed | EXT4_FEATURE_INCOMPAT_64BIT | EXT4_FEATURE_INCOMPAT_FLEX_BG | EXT2_FEATURE_INCOMPAT_META_BG;
  uint32_t writable = EXT2_FEATURE_RO_COMPAT_SPARSE_SUPER | EXT2_FEATURE_RO_COMPAT_LARGE_FILE |
                      EXT4_FEATURE_RO_COMPAT_HUGE_FILE | EXT4_FEATURE_RO_COMPAT_GDT_CSUM | EXT4_FEATURE_RO_COMPAT_DIR_NLINK |
                      EXT4_FEATURE_RO_COMPAT_EXTRA_ISIZE;
  return EXT2_BLOCK_SIZE(super) == EXT2_BLOCK && (super->s_feature_incompat & needed) == needed &&
         (super->s_feature_incompat & ~incompatible) == 0 && (super->s_feature_ro_compat & ~writable) == 0 &&
         EXT2_INODE_SIZE(super) <= LARGEST_INODE;
}

/*
 * Upstream's apply leaves the superblock's counters behind; those of the groups are right (apply.md section 1.2). Counting
 * on from a number that is too low would end below zero.
 */
static void count_free(ext2_filsys fs) {
  blk64_t blocks = 0;
  uint32_t inodes = 0;
  for (dgrp_t group = 0; group < fs->group_desc_count; group++) {
    blocks += ext2fs_bg_free_blocks_count(fs, group);
    inodes += ext2fs_bg_free_inodes_count(fs, group);
  }
  ext2fs_free_blocks_count_set(fs->super, blocks);
  fs->super->s_free_inodes_count = inodes;
}

static int open_existing(struct ext2 *x) {
  int error = ext2_errno(ext2fs_open(x->name, EXT2_FLAG_RW | EXT2_FLAG_64BITS, 0, EXT2_BLOCK, &x->manager, &x->fs));
  if (error < 0) {
    /* The library was told the block size, so another one looks like damage. */
    x->fs = NULL;
    return error;
  }
  if (!is_supported(x->fs->super)) return -ENOTSUP;
  if (ext2fs_blocks_count(x->fs->super) > x->blocks) return -EUCLEAN;
  x->fs->now = NO_TIME;
  count_free(x->fs);
  return ext2_errno(ext2fs_read_bitmaps(x->fs));
}

EXPORT void shim_ext2_close(void *handle) {
  struct ext2 *x = handle;
  if (!x) return;
  if (x->fs) ext2fs_free(x->fs); /* without writing */
  ext2_directories_free(x);
  ext2_cache_free(x);
  free(x->runs);
  free(x->doomed);
  free(x);
}

EXPORT int shim_ext2_open(double blocks, int32_t create, double budget, int32_t (*read)(double block), const uint8_t *staging,
                          void **handle) {
  *handle = NULL;
  /* 2^36: what a 4096-byte group descriptor block address leaves far behind, and far below any overflow here. */
  if (!(blocks >= 1 && blocks <= 0x1p36 && budget >= 0 && budget <= 0x1p53)) return -EINVAL;
  struct ext2 *x = calloc(1, sizeof *x);
  if (!x) return -ENOMEM;
  snprintf(x->name, sizeof x->name, "%llx", (unsigned long long)(uintptr_t)x);
  x->blocks = (uint64_t)blocks;
  x->blank = create;
  x->budget = (uint64_t)budget;
  x->read = read;
  x->staging = staging;
  ext2_cache_open(x);
  int error = create ? ext2_errno(make(x)) : open_existing(x);
  if (error < 0) {
    shim_ext2_close(x);
    return error;
  }
  x->fs->flags |= EXT2_FLAG_MASTER_SB_ONLY;
  x->block_cursor = x->fs->super->s_first_data_block;
  x->inode_cursor = EXT2_FIRST_INODE(x->fs->super);
  *handle = x;
  return 0;
}

/* ---- inodes ---- */

static bool holds_blocks(struct ext2 *x, struct ext2_inode *inode) {
  return ext2fs_inode_has_valid_blocks2(x->fs, inode);
}

/* Seconds and nanoseconds as ext4 stores them: the low 32 bits, then 2 bits more and 30 of nanoseconds. */
static void split_time(const struct shim_ext2_node *node, uint32_t *seconds, uint32_t *extra) {
  const double earliest = -0x1p31, latest = 0x1p31 + 3 * 0x1p32 - 1;
  int64_t time = (int64_t)(node->mtime > latest ? latest : node->mtime >= earliest ? node->mtime : earliest);
  *seconds = (uint32_t)time;
  uint32_t epoch = (uint32_t)((time - (int32_t)*seconds) >> 32) & 3;
  *extra = node->nanoseconds << 2 | epoch;
}

static void set_attributes(struct ext2 *x, struct ext2_inode_large *inode, const struct shim_ext2_node *node) {
  ext2fs_set_i_uid_high((*inode), node->uid >> 16);
  ext2fs_set_i_gid_high((*inode), node->gid >> 16);
  inode->i_uid = (uint16_t)node->uid;
  inode->i_gid = (uint16_t)node->gid;
  uint32_t seconds, extra;
  split_time(node, &seconds, &extra);
  inode->i_atime = inode->i_ctime = inode->i_mtime = seconds;
  if (EXT2_INODE_SIZE(x->fs->super) >= sizeof *inode && inode->i_extra_isize >= offsetof(struct ext2_inode_large, i_crtime) - 128) {
    inode->i_atime_extra = inode->i_ctime_extra = inode->i_mtime_extra = extra;
  }
}

static void set_device(struct ext2_inode_large *inode, uint32_t major, uint32_t minor) {
  if (major < 256 && minor < 256) inode->i_block[0] = major << 8 | minor;
  else inode->i_block[1] = (minor & 0xff) | major << 8 | (minor & ~0xffu) << 12;
}

static int new_inode(struct ext2 *x, bool directory, uint32_t *ino) {
  ext2_filsys fs = x->fs;
  ext2_ino_t found;
  if (x->inode_cursor > fs->super->s_inodes_count ||
      ext2fs_find_first_zero_inode_bitmap2(fs->inode_map, x->inode_cursor, fs->super->s_inodes_count, &found)) {
    return -EDQUOT;
  }
  ext2fs_inode_alloc_stats2(fs, found, +1, directory);
  x->inode_cursor = found + 1;
  *ino = found;
  return 0;
}

static uint8_t type_of(uint32_t mode) {
  switch (mode & S_IFMT) {
  case S_IFREG: return EXT2_FT_REG_FILE;
  case S_IFDIR: return EXT2_FT_DIR;
  case S_IFLNK: return EXT2_FT_SYMLINK;
  case S_IFCHR: return EXT2_FT_CHRDEV;
  case S_IFBLK: return EXT2_FT_BLKDEV;
  case S_IFIFO: return EXT2_FT_FIFO;
  case S_IFSOCK: return EXT2_FT_SOCK;
  default: return EXT2_FT_UNKNOWN;
  }
}

static int write_symlink(struct ext2 *x, uint32_t ino, struct ext2_inode_large *inode, const uint8_t *target, uint32_t length) {
  ext2fs_inode_size_set(x->fs, EXT2_INODE(inode), length);
  if (length < FAST_SYMLINK) {
    memcpy(inode->i_block, target, length);
    return ext2_errno(ext2fs_write_inode_full(x->fs, ino, EXT2_INODE(inode), EXT2_INODE_SIZE(x->fs->super)));
  }
  x->run_count = 0;
  int error = ext2_take_blocks(x, 0, 1);
  uint8_t *page = error == 0 ? ext2_page(x) : NULL;
  if (error < 0) return error;
  if (!page) return -E2BIG;
  memcpy(page, target, length);
  error = ext2_cache_put(x, x->runs[0].physical, page);
  if (error == 0) error = ext2_errno(ext2fs_write_inode_full(x->fs, ino, EXT2_INODE(inode), EXT2_INODE_SIZE(x->fs->super)));
  return error < 0 ? error : ext2_write_extents(x, ino, EXT2_INODE(inode));
}

EXPORT int shim_ext2_create(void *handle, uint32_t directory, const uint8_t *name, uint32_t length, struct shim_ext2_node *node,
                            const uint8_t *target, uint32_t target_length) {
  struct ext2 *x = handle;
  uint8_t type = type_of(node->mode);
  uint8_t buffer[LARGEST_INODE] __attribute__((aligned(8))) = {0};
  struct ext2_inode_large *inode = (struct ext2_inode_large *)buffer;
  uint32_t inode_size = EXT2_INODE_SIZE(x->fs->super), ino;
  if (type == EXT2_FT_UNKNOWN) return -EINVAL;
  if (type == EXT2_FT_SYMLINK && (target_length == 0 || target_length >= EXT2_BLOCK)) return -ENAMETOOLONG;
  if (node->device_major > 0xfff || node->device_minor > 0xfffff) return -EINVAL;
  if (type == EXT2_FT_REG_FILE && !(node->size >= 0 && node->size <= (double)UINT32_MAX * EXT2_BLOCK)) return -EFBIG;
  int error = new_inode(x, type == EXT2_FT_DIR, &ino);
  if (error == 0) error = shim_ext2_add(x, directory, name, length, ino, type);
  if (error < 0) return error;
  node->ino = ino;
  inode->i_mode = (uint16_t)node->mode;
  inode->i_links_count = type == EXT2_FT_DIR ? 2 : 1;
  if (inode_size > EXT2_GOOD_OLD_INODE_SIZE) inode->i_extra_isize = sizeof *inode - EXT2_GOOD_OLD_INODE_SIZE;
  set_attributes(x, inode, node);
  if (type == EXT2_FT_SYMLINK) return write_symlink(x, ino, inode, target, target_length);
  if (type == EXT2_FT_CHRDEV || type == EXT2_FT_BLKDEV) set_device(inode, node->device_major, node->device_minor);
  if (type != EXT2_FT_DIR && type != EXT2_FT_REG_FILE) {
    return ext2_errno(ext2fs_write_inode_full(x->fs, ino, EXT2_INODE(inode), (int)inode_size));
  }
  if (type == EXT2_FT_REG_FILE) ext2fs_inode_size_set(x->fs, EXT2_INODE(inode), (uint64_t)node->size);
  else x->run_count = 0; /* its blocks come at the end */
  error = ext2_errno(ext2fs_write_inode_full(x->fs, ino, EXT2_INODE(inode), (int)inode_size));
  if (error == 0) error = ext2_write_extents(x, ino, EXT2_INODE(inode));
  if (error == 0 && type == EXT2_FT_DIR) error = ext2_directory_create(x, ino, directory);
  x->run_count = 0;
  return error;
}

EXPORT int shim_ext2_update(void *handle, uint32_t ino, const struct shim_ext2_node *node) {
  struct ext2 *x = handle;
  struct ext2_inode_large inode = {0};
  int error = ext2_errno(ext2fs_read_inode_full(x->fs, ino, EXT2_INODE(&inode), sizeof inode));
  if (error < 0) return error;
  set_attributes(x, &inode, node);
  if (!LINUX_S_ISLNK(inode.i_mode)) inode.i_mode = (uint16_t)((inode.i_mode & S_IFMT) | (node->mode & 07777));
  return ext2_errno(ext2fs_write_inode_full(x->fs, ino, EXT2_INODE(&inode), sizeof inode));
}

EXPORT int shim_ext2_readlink(void *handle, uint32_t ino, uint8_t *target) {
  struct ext2 *x = handle;
  struct ext2_inode inode;
  int error = ext2_errno(ext2fs_read_inode(x->fs, ino, &inode));
  if (error < 0) return error;
  uint64_t size = EXT2_I_SIZE(&inode);
  if (!LINUX_S_ISLNK(inode.i_mode) || size == 0 || size >= EXT2_BLOCK) return -EUCLEAN;
  if (ext2fs_is_fast_symlink(&inode)) {
    if (size >= sizeof inode.i_block + 1) return -EUCLEAN;
    memcpy(target, inode.i_block, size);
    return (int)size;
  }
  blk64_t block = 0;
  uint8_t *page;
  error = ext2_errno(ext2fs_bmap2(x->fs, ino, &inode, NULL, 0, 0, NULL, &block));
  if (error == 0) error = block == 0 ? -EUCLEAN : ext2_cache_get(x, block, &page);
  if (error < 0) return error;
  memcpy(target, page, size);
  return (int)size;
}

EXPORT int shim_ext2_link(void *handle, uint32_t directory, const uint8_t *name, uint32_t length, uint32_t ino) {
  struct ext2 *x = handle;
  struct ext2_inode inode;
  int error = ext2_errno(ext2fs_read_inode(x->fs, ino, &inode));
  if (error < 0) return error;
  if (LINUX_S_ISDIR(inode.i_mode)) return -EPERM;
  if (inode.i_links_count == 0) return -EUCLEAN;
  if (inode.i_links_count >= MOST_LINKS) return -EMLINK;
  error = shim_ext2_add(x, directory, name, length, ino, type_of(inode.i_mode));
  if (error < 0) return error;
  inode.i_links_count++;
  return ext2_errno(ext2fs_write_inode(x->fs, ino, &inode));
}

EXPORT int shim_ext2_unlink(void *handle, uint32_t directory, const uint8_t *name, uint32_t length) {
  struct ext2 *x = handle;
  uint32_t found[4], child[4];
  uint8_t first[EXT2_NAME_LEN];
  struct ext2_inode inode;
  int exists = shim_ext2_lookup(x, directory, name, length, found);
  if (exists <= 0) return exists < 0 ? exists : -ENOENT;
  uint32_t ino = found[0];
  int error = ext2_errno(ext2fs_read_inode(x->fs, ino, &inode));
  if (error < 0) return error;
  bool is_directory = LINUX_S_ISDIR(inode.i_mode);
  if (is_directory != (found[1] == EXT2_FT_DIR) || inode.i_links_count == 0 || ino < EXT2_FIRST_INODE(x->fs->super)) return -EUCLEAN;
  if (is_directory) {
    double next = shim_ext2_next(x, ino, 0, child, first);
    if (next != 0) return next < 0 ? (int)next : -ENOTEMPTY;
  }
  error = ext2_remove_name(x, directory, name, length);
  if (error < 0) return error;
  inode.i_links_count = is_directory ? 0 : inode.i_links_count - 1;
  if (inode.i_links_count == 0) {
    error = ext2_grow((void **)&x->doomed, &x->doomed_capacity, x->doomed_count, sizeof *x->doomed);
    if (error < 0) return error;
    x->doomed[x->doomed_count++] = ino;
    if (is_directory) ext2_directory_drop(x, ino);
  }
  return ext2_errno(ext2fs_write_inode(x->fs, ino, &inode));
}

EXPORT int shim_ext2_set_xattr(void *handle, uint32_t ino, const char *name, const uint8_t *value, uint32_t length) {
  struct ext2 *x = handle;
  struct ext2_xattr_handle *attributes;
  /* The library would store the low 8 bits of a longer name's length. */
  if (strnlen(name, XATTR_NAME_MAX + 1) > XATTR_NAME_MAX) return -ENODATA;
  int error = ext2_errno(ext2fs_xattrs_open(x->fs, ino, &attributes));
  if (error < 0) return error;
  error = ext2_errno(ext2fs_xattrs_read(attributes));
  if (error == 0) error = ext2_errno(ext2fs_xattr_set(attributes, name, value, length));
  int closed = ext2_errno(ext2fs_xattrs_close(&attributes));
  return error < 0 ? error : closed;
}

/* ---- the end of a session ---- */

static int release(struct ext2 *x, uint32_t ino) {
  uint8_t buffer[LARGEST_INODE] __attribute__((aligned(8))) = {0};
  struct ext2_inode_large *inode = (struct ext2_inode_large *)buffer;
  int size = EXT2_INODE_SIZE(x->fs->super);
  int error = ext2_errno(ext2fs_read_inode_full(x->fs, ino, EXT2_INODE(inode), size));
  if (error < 0) return error;
  bool is_directory = LINUX_S_ISDIR(inode->i_mode);
  if (holds_blocks(x, EXT2_INODE(inode))) error = ext2_errno(ext2fs_punch(x->fs, ino, EXT2_INODE(inode), NULL, 0, ~0ULL));
  if (error == 0) error = ext2_errno(ext2fs_free_ext_attr(x->fs, ino, inode));
  if (error < 0) return error;
  /* All zeros rather than a deletion time: it compresses, and it is the same whenever it happens. */
  memset(buffer, 0, sizeof buffer);
  error = ext2_errno(ext2fs_write_inode_full(x->fs, ino, EXT2_INODE(inode), size));
  ext2fs_inode_alloc_stats2(x->fs, ino, -1, is_directory);
  return error;
}

EXPORT int shim_ext2_finish(void *handle) {
  struct ext2 *x = handle;
  int error = ext2_directories_finish(x);
  for (uint32_t i = 0; error == 0 && i < x->doomed_count; i++) error = release(x, x->doomed[i]);
  if (error < 0) return error;
  return ext2_errno(ext2fs_flush(x->fs));
}

EXPORT void shim_ext2_status(void *handle, double *status) {
  const struct ext2 *x = handle;
  status[0] = (double)ext2fs_free_blocks_count(x->fs->super);
  status[1] = x->fs->super->s_free_inodes_count;
  status[2] = (double)x->used;
}
