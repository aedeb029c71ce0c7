/* Directories in memory: looked up by a hash of the name, changed in the blocks they have on the volume. */
#include "ext2.h"
#include "shim.h"

#include <stdlib.h>
#include <string.h>

#define TOMBSTONE UINT32_MAX

static uint32_t hash_name(const uint8_t *name, uint32_t length) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (uint32_t i = 0; i < length; i++) hash = (hash ^ name[i]) * 0x100000001b3u;
  return (uint32_t)(hash ^ hash >> 32);
}

static struct ext2_dir_entry_2 *entry_at(const struct ext2_directory *d, uint64_t position) {
  return ext2_entry(d->pages[position / EXT2_BLOCK], position % EXT2_BLOCK);
}

static bool is_named(const struct ext2_dir_entry_2 *entry, const uint8_t *name, uint32_t length) {
  return entry->inode != 0 && entry->name_len == length && memcmp(entry->name, name, length) == 0;
}

/* ---- index by name, for directories of two blocks and more ---- */

static void slot_put(struct ext2_directory *d, uint32_t hash, uint32_t position) {
  uint32_t slot = hash & d->slot_mask;
  while (d->slots[slot].position != 0) slot = (slot + 1) & d->slot_mask;
  d->slots[slot] = (struct ext2_slot){hash, position};
  d->slots_used++;
}

/* Builds the index, or a wider one, from the blocks. */
static int index_names(struct ext2 *x, struct ext2_directory *d) {
  uint32_t entries = 0;
  for (uint32_t pass = 0; pass < 2; pass++) {
    for (uint32_t block = 0; block < d->blocks; block++) {
      for (uint32_t offset = 0; offset < EXT2_BLOCK;) {
        struct ext2_dir_entry_2 *entry = ext2_entry(d->pages[block], offset);
        if (entry->inode != 0) {
          if (pass == 0) entries++;
          else slot_put(d, hash_name((uint8_t *)entry->name, entry->name_len), (block * (EXT2_BLOCK / 4)) + offset / 4 + 1);
        }
        offset += entry->rec_len;
      }
    }
    if (pass == 0) {
      uint32_t slots = 256;
      while (slots < entries * 4) slots *= 2;
      int error = ext2_charge(x, slots * sizeof *d->slots);
      if (error < 0) return error;
      if (d->slots) x->used -= (d->slot_mask + 1) * sizeof *d->slots;
      free(d->slots);
      d->slots = calloc(slots, sizeof *d->slots);
      if (!d->slots) return -ENOMEM;
      d->slot_mask = slots - 1;
      d->slots_used = 0;
    }
  }
  return 0;
}

static int index_add(struct ext2 *x, struct ext2_directory *d, const uint8_t *name, uint32_t length, uint64_t position) {
  if (d->blocks < 2) return 0;
  if (!d->slots || d->slots_used >= d->slot_mask / 2) return index_names(x, d); /* finds the new entry, too */
  slot_put(d, hash_name(name, length), (uint32_t)(position / 4 + 1));
  return 0;
}

/* Byte position of a name's entry, -1 when there is none. `slot`, where not NULL, is its place in the index. */
static int64_t find(const struct ext2_directory *d, const uint8_t *name, uint32_t length, uint32_t *slot) {
  if (!d->slots) {
    for (uint32_t block = 0; block < d->blocks; block++) {
      for (uint32_t offset = 0; offset < EXT2_BLOCK;) {
        const struct ext2_dir_entry_2 *entry = ext2_entry(d->pages[block], offset);
        if (is_named(entry, name, length)) return (int64_t)block * EXT2_BLOCK + offset;
        offset += entry->rec_len;
      }
    }
    return -1;
  }
  uint32_t hash = hash_name(name, length);
  for (uint32_t at = hash & d->slot_mask; d->slots[at].position != 0; at = (at + 1) & d->slot_mask) {
    if (d->slots[at].position == TOMBSTONE || d->slots[at].hash != hash) continue;
    int64_t position = (int64_t)(d->slots[at].position - 1) * 4;
    if (!is_named(entry_at(d, (uint64_t)position), name, length)) continue;
    if (slot) *slot = at;
    return position;
  }
  return -1;
}

/* ---- coming into memory ---- */

static void free_directory(struct ext2_directory *d) {
  free(d->pages);
  free(d->physical);
  free(d->room);
  free(d->slots);
  free(d);
}

static int append_page(struct ext2 *x, struct ext2_directory *d, uint8_t *page, uint64_t physical, uint16_t room) {
  if (d->blocks == d->capacity) {
    uint32_t capacity = d->capacity ? d->capacity * 2 : 1;
    if (capacity > UINT32_MAX / (EXT2_BLOCK / 4) - 1) return -E2BIG; /* positions / 4 have 32 bits */
    uint8_t **pages = realloc(d->pages, capacity * sizeof *pages);
    if (pages) d->pages = pages;
    uint64_t *blocks = realloc(d->physical, capacity * sizeof *blocks);
    if (blocks) d->physical = blocks;
    uint16_t *rooms = realloc(d->room, capacity * sizeof *rooms);
    if (rooms) d->room = rooms;
    if (!pages || !blocks || !rooms) return -ENOMEM;
    int error = ext2_charge(x, (capacity - d->capacity) * (sizeof *pages + sizeof *blocks + sizeof *rooms));
    if (error < 0) return error;
    d->capacity = capacity;
  }
  d->pages[d->blocks] = page;
  d->physical[d->blocks] = physical;
  d->room[d->blocks++] = room;
  return 0;
}

static int remember(struct ext2 *x, struct ext2_directory *d) {
  int error = ext2_charge(x, sizeof *d);
  if (error == 0) {
    error = ext2_grow((void **)&x->directories, &x->directory_capacity, x->directory_count, sizeof *x->directories);
  }
  if (error == 0) error = ext2_map_put(&x->directory_map, d->ino, x->directory_count);
  if (error < 0) free_directory(d);
  else x->directories[x->directory_count++] = d;
  return error;
}

/* Checks that a block is a chain of entries, so that everything behind can trust it. */
static bool is_sound(const struct ext2 *x, uint8_t *page) {
  for (uint32_t offset = 0; offset < EXT2_BLOCK;) {
    if (EXT2_BLOCK - offset < 12) return false;
    const struct ext2_dir_entry_2 *entry = ext2_entry(page, offset);
    if (entry->rec_len < 12 || entry->rec_len % 4 != 0 || entry->rec_len > EXT2_BLOCK - offset) return false;
    if (ext2_entry_size(entry->name_len) > entry->rec_len) return false;
    if (entry->inode != 0 && (entry->name_len == 0 || entry->inode > x->fs->super->s_inodes_count)) return false;
    if (entry->file_type & EXT2_MARK) return false;
    offset += entry->rec_len;
  }
  return true;
}

struct loading {
  struct ext2 *x;
  struct ext2_directory *d;
  int error;
};

static int load_block(ext2_filsys fs, blk64_t *block, e2_blkcnt_t logical, blk64_t reference, int offset, void *context) {
  (void)fs, (void)reference, (void)offset;
  struct loading *loading = context;
  uint8_t *page;
  if (logical != loading->d->blocks) loading->error = -EUCLEAN; /* a hole */
  else loading->error = ext2_cache_claim(loading->x, *block, &page);
  if (loading->error == 0 && !is_sound(loading->x, page)) loading->error = -EUCLEAN;
  if (loading->error == 0) loading->error = append_page(loading->x, loading->d, page, *block, EXT2_BLOCK);
  return loading->error < 0 ? BLOCK_ABORT : 0;
}

static int load(struct ext2 *x, uint32_t ino, struct ext2_directory **result) {
  struct ext2_inode inode;
  int error = ext2_errno(ext2fs_read_inode(x->fs, ino, &inode));
  if (error < 0) return error;
  if (!LINUX_S_ISDIR(inode.i_mode)) return -ENOTDIR;
  struct ext2_directory *d = calloc(1, sizeof *d);
  if (!d) return -ENOMEM;
  d->ino = ino;
  struct loading loading = {.x = x, .d = d};
  error = ext2_errno(ext2fs_block_iterate3(x->fs, ino, BLOCK_FLAG_READ_ONLY | BLOCK_FLAG_DATA_ONLY, NULL, load_block, &loading));
  if (loading.error < 0) error = loading.error;
  if (error == 0 && (d->blocks == 0 || EXT2_I_SIZE(&inode) != (uint64_t)d->blocks * EXT2_BLOCK)) error = -EUCLEAN;
  d->stored_blocks = d->blocks;
  d->was_indexed = d->indexed = inode.i_flags & EXT2_INDEX_FL;
  if (error == 0 && d->blocks > 1) error = index_names(x, d);
  if (error < 0) {
    free_directory(d);
    return error;
  }
  error = remember(x, d);
  if (error == 0) *result = d;
  return error;
}

static int get(struct ext2 *x, uint32_t ino, struct ext2_directory **d) {
  uint32_t at = ext2_map_get(&x->directory_map, ino);
  if (at == EXT2_ABSENT) return load(x, ino, d);
  *d = x->directories[at];
  return (*d)->dropped ? -ENOENT : 0;
}

static void put_entry(uint8_t *page, uint32_t offset, uint32_t size, uint32_t ino, uint8_t type, const void *name,
                      uint32_t length) {
  struct ext2_dir_entry_2 *entry = ext2_entry(page, offset);
  memset(entry, 0, ext2_entry_size(length));
  /* Field by field: the structure's type has room for the longest name, the block may not. */
  entry->inode = ino;
  entry->rec_len = (uint16_t)size;
  entry->name_len = (uint8_t)length;
  entry->file_type = type;
  memcpy(entry->name, name, length);
}

int ext2_directory_create(struct ext2 *x, uint32_t ino, uint32_t parent) {
  struct ext2_directory *d = calloc(1, sizeof *d);
  if (!d) return -ENOMEM;
  d->ino = ino;
  d->created = d->changed = true;
  uint8_t *page = ext2_page(x);
  int error = page ? append_page(x, d, page, 0, EXT2_BLOCK) : -E2BIG;
  if (error < 0) {
    free_directory(d);
    return error;
  }
  put_entry(page, 0, 12, ino, EXT2_FT_DIR, ".", 1);
  put_entry(page, 12, EXT2_BLOCK - 12, parent, EXT2_FT_DIR, "..", 2);
  return remember(x, d);
}

void ext2_directory_drop(struct ext2 *x, uint32_t ino) {
  uint32_t at = ext2_map_get(&x->directory_map, ino);
  if (at != EXT2_ABSENT) x->directories[at]->dropped = true;
}

void ext2_directories_free(struct ext2 *x) {
  for (uint32_t i = 0; i < x->directory_count; i++) free_directory(x->directories[i]);
  free(x->directories);
  ext2_map_free(&x->directory_map);
}

/* ---- changes ---- */

static void touched(struct ext2 *x, struct ext2_directory *d, uint32_t block) {
  d->changed = true;
  if (d->physical[block]) ext2_cache_dirty(x, d->physical[block]);
}

/* Puts an entry behind or in place of one in [from, 4096) of a block that leaves room; its offset, or -1. */
static int32_t place(struct ext2_directory *d, uint32_t block, uint32_t from, uint32_t ino, uint8_t type, const uint8_t *name,
                     uint32_t length) {
  uint32_t needed = ext2_entry_size(length), largest = 0;
  uint8_t *page = d->pages[block];
  for (uint32_t offset = from; offset < EXT2_BLOCK;) {
    struct ext2_dir_entry_2 *entry = ext2_entry(page, offset);
    uint32_t size = entry->rec_len, taken = entry->inode ? ext2_entry_size(entry->name_len) : 0;
    if (size - taken >= needed) {
      if (taken) entry->rec_len = (uint16_t)taken;
      put_entry(page, offset + taken, size - taken, ino, type, name, length);
      d->hint_block = block;
      d->hint = offset + taken;
      return (int32_t)(offset + taken);
    }
    if (size - taken > largest) largest = size - taken;
    offset += size;
  }
  if (from == 0) d->room[block] = (uint16_t)largest;
  return -1;
}

static int64_t add(struct ext2 *x, struct ext2_directory *d, uint32_t ino, uint8_t type, const uint8_t *name, uint32_t length) {
  uint32_t needed = ext2_entry_size(length);
  if (d->indexed) {
    uint32_t leaf = ext2_htree_leaf(x, d, name, length);
    int32_t offset = leaf == EXT2_ABSENT ? -1 : place(d, leaf, 0, ino, type, name, length);
    if (offset >= 0) return (int64_t)leaf * EXT2_BLOCK + offset;
    /* The leaf is full. From here on the blocks are a plain chain: an index node looks like an empty block. */
    d->indexed = false;
  }
  d->grown = true;
  uint32_t last = d->blocks - 1;
  for (uint32_t i = 0; i <= last; i++) {
    uint32_t block = i == 0 ? last : i - 1; /* the last block first */
    if (d->room[block] < needed) continue;
    int32_t offset = -1;
    if (d->hint_block == block && d->hint) offset = place(d, block, d->hint, ino, type, name, length);
    if (offset < 0) offset = place(d, block, 0, ino, type, name, length);
    if (offset >= 0) return (int64_t)block * EXT2_BLOCK + offset;
  }
  uint8_t *page = ext2_page(x);
  if (!page) return -E2BIG;
  int error = append_page(x, d, page, 0, EXT2_BLOCK);
  if (error < 0) return error;
  put_entry(page, 0, EXT2_BLOCK, ino, type, name, length);
  d->hint_block = last + 1;
  d->hint = 0;
  return (int64_t)(last + 1) * EXT2_BLOCK;
}

EXPORT int shim_ext2_lookup(void *handle, uint32_t directory, const uint8_t *name, uint32_t length, uint32_t *found) {
  struct ext2_directory *d;
  int error = get(handle, directory, &d);
  if (error < 0) return error;
  int64_t position = find(d, name, length, NULL);
  if (position < 0) return 0;
  const struct ext2_dir_entry_2 *entry = entry_at(d, (uint64_t)position);
  found[0] = entry->inode;
  found[1] = entry->file_type & (EXT2_MARK - 1);
  found[2] = entry->file_type & EXT2_MARK ? 1 : 0;
  return 1;
}

EXPORT int shim_ext2_mark(void *handle, uint32_t directory, const uint8_t *name, uint32_t length) {
  struct ext2_directory *d;
  int error = get(handle, directory, &d);
  if (error < 0) return error;
  int64_t position = find(d, name, length, NULL);
  if (position < 0) return -ENOENT;
  entry_at(d, (uint64_t)position)->file_type |= EXT2_MARK;
  return 0;
}

EXPORT int shim_ext2_add(void *handle, uint32_t directory, const uint8_t *name, uint32_t length, uint32_t ino, uint32_t type) {
  struct ext2 *x = handle;
  struct ext2_directory *d;
  if (length == 0 || memchr(name, 0, length) || memchr(name, '/', length)) return -EINVAL;
  if (length > EXT2_NAME_LEN) return -ENAMETOOLONG;
  int error = get(x, directory, &d);
  if (error < 0) return error;
  if (find(d, name, length, NULL) >= 0) return -EEXIST;
  int64_t position = add(x, d, ino, (uint8_t)(type | EXT2_MARK), name, length);
  if (position < 0) return (int)position;
  touched(x, d, (uint32_t)(position / EXT2_BLOCK));
  if (type == EXT2_FT_DIR) d->subdirectories++;
  return index_add(x, d, name, length, (uint64_t)position);
}

int ext2_remove_name(struct ext2 *x, uint32_t directory, const uint8_t *name, uint32_t length) {
  struct ext2_directory *d;
  int error = get(x, directory, &d);
  if (error < 0) return error;
  uint32_t slot = 0;
  int64_t position = find(d, name, length, &slot);
  if (position < 0) return -ENOENT;
  if (d->slots) d->slots[slot].position = TOMBSTONE;
  uint32_t block = (uint32_t)(position / EXT2_BLOCK), at = (uint32_t)(position % EXT2_BLOCK);
  struct ext2_dir_entry_2 *entry = ext2_entry(d->pages[block], at);
  if ((entry->file_type & (EXT2_MARK - 1)) == EXT2_FT_DIR) d->subdirectories--;
  uint32_t size = entry->rec_len;
  /* A removed name leaves nothing behind in the block, so that equal trees have equal bytes. */
  memset((uint8_t *)entry + 8, 0, ext2_entry_size(entry->name_len) - 8);
  entry->inode = 0;
  entry->name_len = 0;
  entry->file_type = 0;
  for (uint32_t offset = 0; offset < at;) {
    struct ext2_dir_entry_2 *previous = ext2_entry(d->pages[block], offset);
    if (offset + previous->rec_len == at) {
      previous->rec_len = (uint16_t)(previous->rec_len + size);
      memset(entry, 0, 8);
      break;
    }
    offset += previous->rec_len;
  }
  d->room[block] = EXT2_BLOCK;
  d->hint = 0;
  touched(x, d, block);
  return 0;
}

EXPORT double shim_ext2_next(void *handle, uint32_t directory, double position, uint32_t *found, uint8_t *name) {
  struct ext2_directory *d;
  int error = get(handle, directory, &d);
  if (error < 0) return error;
  if (!(position >= 0) || position > (double)UINT32_MAX * 4) return -EINVAL;
  uint64_t wanted = (uint64_t)position;
  for (uint64_t block = wanted / EXT2_BLOCK; block < d->blocks; block++) {
    for (uint32_t offset = 0; offset < EXT2_BLOCK;) {
      const struct ext2_dir_entry_2 *entry = ext2_entry(d->pages[block], offset);
      uint64_t here = block * EXT2_BLOCK + offset;
      offset += entry->rec_len;
      if (here < wanted || entry->inode == 0) continue;
      if (entry->name[0] == '.' && (entry->name_len == 1 || (entry->name_len == 2 && entry->name[1] == '.'))) continue;
      found[0] = entry->inode;
      found[1] = entry->file_type & (EXT2_MARK - 1);
      found[2] = entry->file_type & EXT2_MARK ? 1 : 0;
      found[3] = entry->name_len;
      memcpy(name, entry->name, entry->name_len);
      return (double)(here + 4); /* entries are larger: the next one lies behind, removed or not */
    }
  }
  return 0;
}

/* ---- the end ---- */

static void strip_marks(struct ext2_directory *d) {
  for (uint32_t block = 0; block < d->blocks; block++) {
    for (uint32_t offset = 0; offset < EXT2_BLOCK;) {
      struct ext2_dir_entry_2 *entry = ext2_entry(d->pages[block], offset);
      entry->file_type &= EXT2_MARK - 1;
      offset += entry->rec_len;
    }
  }
}

/* Gives the blocks that have no place yet one, and tells the inode. */
static int place_blocks(struct ext2 *x, struct ext2_directory *d, struct ext2_inode *inode) {
  uint32_t first = d->stored_blocks < d->blocks ? d->stored_blocks : d->blocks;
  x->run_count = 0;
  int error = ext2_take_blocks(x, first, d->blocks - first);
  for (uint32_t i = 0; error == 0 && i < x->run_count; i++) {
    for (uint32_t n = 0; n < x->runs[i].count && error == 0; n++) {
      uint64_t logical = x->runs[i].logical + n;
      d->physical[logical] = x->runs[i].physical + n;
      error = ext2_cache_put(x, d->physical[logical], d->pages[logical]);
    }
  }
  if (error < 0) return error;
  ext2fs_inode_size_set(x->fs, inode, (uint64_t)d->blocks * EXT2_BLOCK);
  if (d->created) return ext2_write_extents(x, d->ino, inode);
  error = ext2_errno(ext2fs_write_inode(x->fs, d->ino, inode));
  for (uint32_t block = first; error == 0 && block < d->blocks; block++) {
    blk64_t physical = d->physical[block];
    error = ext2_errno(ext2fs_bmap2(x->fs, d->ino, inode, NULL, BMAP_SET, block, NULL, &physical));
    if (error == 0) error = ext2_errno(ext2fs_iblk_add_blocks(x->fs, inode, 1));
  }
  if (error == 0) error = ext2_errno(ext2fs_write_inode(x->fs, d->ino, inode));
  if (error == 0 && d->stored_blocks > d->blocks) {
    error = ext2_errno(ext2fs_punch(x->fs, d->ino, inode, NULL, d->blocks, ~0ULL));
  }
  return error;
}

static int finish(struct ext2 *x, struct ext2_directory *d) {
  struct ext2_inode inode;
  int error = ext2_errno(ext2fs_read_inode(x->fs, d->ino, &inode));
  if (error == 0 && d->grown && d->blocks > 2 && ext2fs_has_feature_dir_index(x->fs->super)) error = ext2_htree_build(x, d);
  if (error < 0) return error;
  if (d->indexed) inode.i_flags |= EXT2_INDEX_FL;
  else inode.i_flags &= ~(uint32_t)EXT2_INDEX_FL;
  if (inode.i_links_count != 1) { /* 1: more than can be counted (dir_nlink) */
    int64_t links = (int64_t)inode.i_links_count + d->subdirectories;
    if (links < 2) return -EUCLEAN;
    inode.i_links_count = (uint16_t)(links > 65000 ? 1 : links);
  }
  return place_blocks(x, d, &inode);
}

int ext2_directories_finish(struct ext2 *x) {
  for (uint32_t i = 0; i < x->directory_count; i++) {
    struct ext2_directory *d = x->directories[i];
    if (d->dropped) continue;
    strip_marks(d);
    if (!d->changed) continue;
    int error = finish(x, d);
    if (error < 0) return error;
  }
  return 0;
}
