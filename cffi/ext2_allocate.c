/* Blocks and inodes: taken in ascending order, given back when the session ends. */
#include "ext2.h"
#include "shim.h"

#include <stdlib.h>
#include <string.h>

enum {
  EXTENT_BLOCKS = 32768, /* most that one initialised extent can hold */
  INLINE_EXTENTS = 4,
  /* Where many blocks are wanted, holes shorter than this are left to small files. */
  WORTHWHILE = 64,
};

/* The next free run of at least `least` blocks behind the cursor, not longer than `wanted`: its length, or 0. */
static uint64_t next_run(struct ext2 *x, uint64_t wanted, uint64_t least, uint64_t *start) {
  uint64_t last = ext2fs_blocks_count(x->fs->super) - 1;
  while (x->block_cursor <= last) {
    blk64_t begin, end;
    if (ext2fs_find_first_zero_block_bitmap2(x->fs->block_map, x->block_cursor, last, &begin)) return 0;
    uint64_t limit = last - begin < wanted ? last + 1 : begin + wanted;
    if (ext2fs_find_first_set_block_bitmap2(x->fs->block_map, begin, limit - 1, &end)) end = limit;
    x->block_cursor = end;
    if (end - begin >= least) {
      *start = begin;
      return end - begin;
    }
  }
  return 0;
}

static int add_run(struct ext2 *x, uint64_t logical, uint64_t physical, uint64_t count) {
  while (count > 0) {
    struct ext2_run *last = x->run_count ? &x->runs[x->run_count - 1] : NULL;
    if (last && last->count < EXTENT_BLOCKS && last->logical + last->count == logical &&
        last->physical + last->count == physical) {
      uint32_t more = EXTENT_BLOCKS - last->count;
      if (more > count) more = (uint32_t)count;
      last->count += more;
      logical += more;
      physical += more;
      count -= more;
      continue;
    }
    int error = ext2_grow((void **)&x->runs, &x->run_capacity, x->run_count, sizeof *x->runs);
    if (error < 0) return error;
    uint32_t part = count > EXTENT_BLOCKS ? EXTENT_BLOCKS : (uint32_t)count;
    x->runs[x->run_count++] = (struct ext2_run){logical, physical, part};
    logical += part;
    physical += part;
    count -= part;
  }
  return 0;
}

int ext2_take_blocks(struct ext2 *x, uint64_t logical, uint64_t count) {
  if (count > ext2fs_free_blocks_count(x->fs->super)) return -ENOSPC;
  uint64_t least = count < WORTHWHILE ? count : WORTHWHILE;
  while (count > 0) {
    uint64_t start, length = next_run(x, count, least, &start);
    if (length == 0) {
      /* Once more from the beginning, content with any hole. */
      if (least == 0) return -ENOSPC;
      least = 0;
      x->block_cursor = x->fs->super->s_first_data_block;
      continue;
    }
    ext2fs_block_alloc_stats_range(x->fs, start, (blk_t)length, +1);
    int error = add_run(x, logical, start, length);
    if (error < 0) return error;
    logical += length;
    count -= length;
    if (least > count) least = count;
  }
  return 0;
}

int ext2_write_extents(struct ext2 *x, uint32_t ino, struct ext2_inode *inode) {
  struct ext3_extent_header *header = (struct ext3_extent_header *)inode->i_block;
  struct ext3_extent *extents = (struct ext3_extent *)(header + 1);
  bool fits = x->run_count <= INLINE_EXTENTS;
  uint64_t blocks = 0;
  memset(inode->i_block, 0, sizeof inode->i_block);
  *header = (struct ext3_extent_header){.eh_magic = EXT3_EXT_MAGIC, .eh_max = INLINE_EXTENTS};
  for (uint32_t i = 0; i < x->run_count; i++) {
    const struct ext2_run *run = &x->runs[i];
    blocks += run->count;
    if (!fits) continue;
    extents[header->eh_entries++] = (struct ext3_extent){
        .ee_block = (uint32_t)run->logical,
        .ee_len = (uint16_t)run->count,
        .ee_start_hi = (uint16_t)(run->physical >> 32),
        .ee_start = (uint32_t)run->physical,
    };
  }
  inode->i_flags |= EXT4_EXTENTS_FL;
  int error = ext2_errno(ext2fs_iblk_add_blocks(x->fs, inode, blocks));
  if (error == 0) error = ext2_errno(ext2fs_write_inode(x->fs, ino, inode));
  if (error < 0 || fits) return error;

  ext2_extent_handle_t tree;
  error = ext2_errno(ext2fs_extent_open2(x->fs, ino, inode, &tree));
  if (error < 0) return error;
  for (uint32_t i = 0; error == 0 && i < x->run_count; i++) {
    struct ext2fs_extent extent = {
        .e_lblk = x->runs[i].logical, .e_pblk = x->runs[i].physical, .e_len = x->runs[i].count};
    error = ext2_errno(ext2fs_extent_insert(tree, EXT2_EXTENT_INSERT_AFTER, &extent));
  }
  ext2fs_extent_free(tree);
  return error;
}

EXPORT double shim_ext2_allocate(void *handle, const double *ranges, uint32_t range_count) {
  struct ext2 *x = handle;
  x->run_count = 0;
  double next = 0;
  for (uint32_t i = 0; i < range_count; i++) {
    double logical = ranges[2 * i], count = ranges[2 * i + 1];
    /* Ascending and within the 2^32 blocks that a file can have. */
    if (!(logical >= next && count >= 0 && logical + count <= (double)UINT32_MAX)) return -EINVAL;
    next = logical + count;
    int error = ext2_take_blocks(x, (uint64_t)logical, (uint64_t)count);
    if (error < 0) return error;
  }
  return x->run_count;
}

EXPORT int shim_ext2_runs(void *handle, uint32_t first, double *into, uint32_t capacity) {
  const struct ext2 *x = handle;
  uint32_t count = 0;
  for (; count < capacity && first + count < x->run_count; count++) {
    const struct ext2_run *run = &x->runs[first + count];
    into[3 * count] = (double)run->logical;
    into[3 * count + 1] = (double)run->physical;
    into[3 * count + 2] = run->count;
  }
  return (int)count;
}
