/* What the ext2*.c files share: an open file system, its block cache and its directories. */
#ifndef OVERLAYBD_EXT2_H
#define OVERLAYBD_EXT2_H

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <ext2fs/ext2fs.h>

enum { EXT2_BLOCK = 4096 };

/* Open-addressing map from a number (block, inode) to a position in an array. */
struct ext2_map {
  uint64_t *keys; /* key + 1; 0: empty */
  uint32_t *values;
  uint32_t capacity, count;
};
#define EXT2_ABSENT UINT32_MAX
uint32_t ext2_map_get(const struct ext2_map *map, uint64_t key);
int ext2_map_put(struct ext2_map *map, uint64_t key, uint32_t value);
void ext2_map_free(struct ext2_map *map);

struct ext2_cached {
  uint64_t block;
  uint8_t *data;
  bool dirty;
  bool claimed; /* belongs to a directory */
};

struct ext2_directory;

/* A run of blocks of a file. */
struct ext2_run {
  uint64_t logical, physical;
  uint32_t count;
};

struct ext2 {
  ext2_filsys fs;
  struct struct_io_manager manager;
  struct struct_io_channel channel;
  char name[32]; /* this structure's address in text: all that io_manager.open is told */

  /* Where blocks come from. */
  uint64_t blocks;
  bool blank; /* the volume reads as zeros: never ask it */
  int32_t (*read)(double block);
  const uint8_t *staging; /* `read` leaves the block here */

  /* Block cache. Pages never move. */
  struct ext2_map map;
  struct ext2_cached *cached;
  uint32_t cached_count, cached_capacity;
  uint8_t **slabs;
  uint32_t slab_count, slab_capacity, slab_used;
  uint64_t budget, used; /* bytes of metadata that may be, and are, held in memory */
  uint32_t *drain;
  uint32_t drain_count, drain_next;

  /* Directories in use. */
  struct ext2_map directory_map;
  struct ext2_directory **directories;
  uint32_t directory_count, directory_capacity;

  /* Allocation goes forward only, and what is freed is freed at the end: no block gets two contents in one session. */
  uint64_t block_cursor;
  uint32_t inode_cursor;
  struct ext2_run *runs;
  uint32_t run_count, run_capacity;
  uint32_t *doomed;
  uint32_t doomed_count, doomed_capacity;
};

/* Negative errno for a libext2fs error. */
int ext2_errno(errcode_t error);
/* Grows an array to hold one element more. */
int ext2_grow(void **array, uint32_t *capacity, uint32_t count, size_t element);

/* ext2_cache.c */
void ext2_cache_open(struct ext2 *x);
void ext2_cache_free(struct ext2 *x);
/* A zeroed page that counts towards the budget; NULL when there is no more. */
uint8_t *ext2_page(struct ext2 *x);
/* Counts `bytes` towards the budget: 0, or -E2BIG. */
int ext2_charge(struct ext2 *x, uint64_t bytes);
/* The content of a block, to be changed in place only together with ext2_cache_dirty. */
int ext2_cache_get(struct ext2 *x, uint64_t block, uint8_t **data);
void ext2_cache_dirty(struct ext2 *x, uint64_t block);
/*
 * The content of a block that from here on only the caller may change. -EUCLEAN when somebody else has it: a damaged file
 * system may use a block twice, and what one of the two has checked the other could change.
 */
int ext2_cache_claim(struct ext2 *x, uint64_t block, uint8_t **data);
/* Makes `page` the new content of a block. */
int ext2_cache_put(struct ext2 *x, uint64_t block, uint8_t *page);

/* ext2_directory.c */
/* A directory that was just created: `.` and `..`, no blocks on the volume yet. */
int ext2_directory_create(struct ext2 *x, uint32_t ino, uint32_t parent);
/* Takes a name out of a directory: 0, or -ENOENT. */
int ext2_remove_name(struct ext2 *x, uint32_t directory, const uint8_t *name, uint32_t length);
/* Forgets a removed directory. */
void ext2_directory_drop(struct ext2 *x, uint32_t ino);
/* Gives every changed directory its index and its blocks. */
int ext2_directories_finish(struct ext2 *x);
void ext2_directories_free(struct ext2 *x);

/* ext2_htree.c */
/* Replaces the pages of a directory of more than two blocks by an index and leaves in hash order. */
int ext2_htree_build(struct ext2 *x, struct ext2_directory *d);
/* The block of an indexed directory in which a name has to be; EXT2_ABSENT when the index is not one we can follow. */
uint32_t ext2_htree_leaf(struct ext2 *x, const struct ext2_directory *d, const uint8_t *name, uint32_t length);

/* ext2_allocate.c */
/* Takes `count` free blocks for the file blocks at `logical` and appends them to x->runs. */
int ext2_take_blocks(struct ext2 *x, uint64_t logical, uint64_t count);
/* Writes x->runs as the extent tree of an inode that has no blocks yet, and the inode. */
int ext2_write_extents(struct ext2 *x, uint32_t ino, struct ext2_inode *inode);

/* One slot of a directory's index by name. */
struct ext2_slot {
  uint32_t hash;
  uint32_t position; /* byte offset / 4 + 1; 0: empty */
};

struct ext2_directory {
  uint32_t ino;
  uint32_t blocks, capacity;
  uint8_t **pages;
  uint64_t *physical; /* 0: not allocated yet */
  uint16_t *room; /* at least the largest entry that fits into the block */
  struct ext2_slot *slots;
  uint32_t slot_mask, slots_used;
  uint32_t hint_block, hint; /* where the last entry went */
  uint32_t stored_blocks; /* blocks that the inode knows of */
  int32_t subdirectories; /* change since the inode was written */
  bool indexed; /* has a hash index on the volume that is still right */
  bool was_indexed;
  bool grown; /* entries were added outside the index */
  bool created, changed, dropped;
};

/* `file_type` bit of a directory entry in memory: made in this session. */
#define EXT2_MARK 0x80

static inline struct ext2_dir_entry_2 *ext2_entry(uint8_t *page, uint32_t offset) {
  return (struct ext2_dir_entry_2 *)(page + offset);
}
static inline uint32_t ext2_entry_size(uint32_t name_length) { return (8 + name_length + 3) & ~3u; }

#endif
