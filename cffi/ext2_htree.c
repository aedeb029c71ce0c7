/* The hash index of directories (kernel: Documentation/filesystems/ext4/directory.rst, "Hash Tree Directories"). */
#include "ext2.h"

#include <stdlib.h>
#include <string.h>

enum {
  ROOT_INFO = 24, /* behind the entries of `.` and `..` */
  ROOT_ENTRIES = 32,
  NODE_ENTRIES = 8, /* behind an empty directory entry that spans the block */
  ENTRY_BYTES = 8,
  ROOT_LIMIT = (EXT2_BLOCK - ROOT_ENTRIES) / ENTRY_BYTES,
  NODE_LIMIT = (EXT2_BLOCK - NODE_ENTRIES) / ENTRY_BYTES,
  LEAF_FILL = EXT2_BLOCK * 7 / 8, /* a later layer can add a few names without moving the others */
};

static uint32_t get32(const uint8_t *at) {
  uint32_t value;
  memcpy(&value, at, sizeof value);
  return value;
}
static void set32(uint8_t *at, uint32_t value) { memcpy(at, &value, sizeof value); }
static uint16_t get16(const uint8_t *at) {
  uint16_t value;
  memcpy(&value, at, sizeof value);
  return value;
}
static void set16(uint8_t *at, uint16_t value) { memcpy(at, &value, sizeof value); }

static int hash(struct ext2 *x, int version, const void *name, uint32_t length, uint32_t *major, uint32_t *minor) {
  struct ext2_super_block *super = x->fs->super;
  if (version > EXT2_HASH_TEA) return -ENOTSUP;
  if (super->s_flags & EXT2_FLAGS_UNSIGNED_HASH) version += 3; /* the unsigned variants follow the signed ones */
  return ext2_errno(ext2fs_dirhash(version, name, (int)length, super->s_hash_seed, major, minor));
}

/* The block that the node at `entries` names for a hash; EXT2_ABSENT when it makes no sense. */
static uint32_t descend(const uint8_t *entries, uint32_t limit, uint32_t major, uint32_t blocks) {
  uint32_t count = get16(entries + 2);
  if (get16(entries) != limit || count == 0 || count > limit) return EXT2_ABSENT;
  uint32_t low = 0, high = count; /* the first entry has no hash: it is the smallest */
  while (high - low > 1) {
    uint32_t middle = low + (high - low) / 2;
    if (get32(entries + middle * ENTRY_BYTES) <= major) low = middle;
    else high = middle;
  }
  uint32_t block = get32(entries + low * ENTRY_BYTES + 4) & 0x0fffffff;
  return block > 0 && block < blocks ? block : EXT2_ABSENT;
}

uint32_t ext2_htree_leaf(struct ext2 *x, const struct ext2_directory *d, const uint8_t *name, uint32_t length) {
  const uint8_t *root = d->pages[0];
  uint32_t major, minor, levels = root[ROOT_INFO + 6];
  if (root[ROOT_INFO + 5] != 8 || levels > 1) return EXT2_ABSENT;
  if (hash(x, root[ROOT_INFO + 4], name, length, &major, &minor) < 0) return EXT2_ABSENT;
  uint32_t block = descend(root + ROOT_ENTRIES, ROOT_LIMIT, major, d->blocks);
  if (levels == 1 && block != EXT2_ABSENT) block = descend(d->pages[block] + NODE_ENTRIES, NODE_LIMIT, major, d->blocks);
  return block;
}

struct hashed {
  uint32_t major, minor;
  const struct ext2_dir_entry_2 *entry;
};

static int by_hash(const void *a, const void *b) {
  const struct hashed *l = a, *r = b;
  if (l->major != r->major) return l->major < r->major ? -1 : 1;
  if (l->minor != r->minor) return l->minor < r->minor ? -1 : 1;
  uint32_t shorter = l->entry->name_len < r->entry->name_len ? l->entry->name_len : r->entry->name_len;
  int order = memcmp(l->entry->name, r->entry->name, shorter);
  return order ? order : (int)l->entry->name_len - (int)r->entry->name_len;
}

static int collect(struct ext2 *x, const struct ext2_directory *d, struct hashed **result, uint32_t *count) {
  uint32_t capacity = 0;
  *result = NULL;
  *count = 0;
  for (uint32_t block = 0; block < d->blocks; block++) {
    for (uint32_t offset = block == 0 ? ROOT_INFO : 0; offset < EXT2_BLOCK;) {
      const struct ext2_dir_entry_2 *entry = ext2_entry(d->pages[block], offset);
      if (entry->inode != 0) {
        int error = ext2_grow((void **)result, &capacity, *count, sizeof **result);
        if (error < 0) return error;
        struct hashed *h = &(*result)[*count];
        h->entry = entry;
        error = hash(x, x->fs->super->s_def_hash_version, entry->name, entry->name_len, &h->major, &h->minor);
        if (error < 0) return error;
        ++*count;
      }
      offset += entry->rec_len;
    }
  }
  return 0;
}

struct tree {
  uint8_t **pages;
  uint32_t *first_hash; /* of the leaf in the same place of `pages` */
  uint32_t count, capacity, hash_capacity;
};

static uint8_t *add_page(struct ext2 *x, struct tree *tree, uint32_t first_hash) {
  if (ext2_grow((void **)&tree->pages, &tree->capacity, tree->count, sizeof *tree->pages) < 0) return NULL;
  if (ext2_grow((void **)&tree->first_hash, &tree->hash_capacity, tree->count, sizeof *tree->first_hash) < 0) return NULL;
  uint8_t *page = ext2_page(x);
  tree->first_hash[tree->count] = first_hash;
  if (page) tree->pages[tree->count++] = page;
  return page;
}

static int fill_leaves(struct ext2 *x, struct tree *tree, const struct hashed *names, uint32_t count) {
  uint8_t *page = NULL;
  uint32_t used = 0;
  struct ext2_dir_entry_2 *last = NULL;
  for (uint32_t i = 0; i < count; i++) {
    uint32_t size = ext2_entry_size(names[i].entry->name_len);
    if (!page || used + size > LEAF_FILL) {
      if (last) last->rec_len = (uint16_t)(last->rec_len + EXT2_BLOCK - used);
      /* Bit 0 says that the leaf before ends with the same hash. */
      bool continued = i > 0 && names[i - 1].major == names[i].major;
      page = add_page(x, tree, names[i].major | continued);
      if (!page) return -E2BIG;
      used = 0;
    }
    last = ext2_entry(page, used);
    memcpy(last, names[i].entry, 8 + names[i].entry->name_len);
    last->rec_len = (uint16_t)size;
    used += size;
  }
  if (last) last->rec_len = (uint16_t)(last->rec_len + EXT2_BLOCK - used);
  return 0;
}

/* Writes a node that names the blocks [first, first + count). */
static void fill_node(uint8_t *entries, uint32_t limit, uint32_t first, uint32_t count, const uint32_t *hashes) {
  for (uint32_t i = 0; i < count; i++) {
    set32(entries + i * ENTRY_BYTES, hashes[i]);
    set32(entries + i * ENTRY_BYTES + 4, first + i);
  }
  set16(entries, (uint16_t)limit);
  set16(entries + 2, (uint16_t)count);
}

static int fill_tree(struct ext2 *x, struct tree *tree, const uint8_t *old_root, const struct hashed *names, uint32_t count) {
  uint8_t *root = add_page(x, tree, 0);
  if (!root) return -E2BIG;
  memcpy(root, old_root, ROOT_INFO); /* `.` and `..` */
  ext2_entry(root, 12)->rec_len = EXT2_BLOCK - 12;
  root[ROOT_INFO + 4] = x->fs->super->s_def_hash_version;
  root[ROOT_INFO + 5] = 8;
  int error = fill_leaves(x, tree, names, count);
  if (error < 0) return error;
  uint32_t leaves = tree->count - 1;
  if (leaves <= ROOT_LIMIT) {
    fill_node(root + ROOT_ENTRIES, ROOT_LIMIT, 1, leaves, tree->first_hash + 1);
    return 0;
  }
  uint32_t nodes = (leaves + NODE_LIMIT - 1) / NODE_LIMIT;
  if (nodes > ROOT_LIMIT) return -EFBIG;
  root[ROOT_INFO + 6] = 1;
  for (uint32_t i = 0; i < nodes; i++) {
    uint32_t first = 1 + i * NODE_LIMIT, left = leaves - i * NODE_LIMIT;
    uint8_t *page = add_page(x, tree, tree->first_hash[first]);
    if (!page) return -E2BIG;
    ext2_entry(page, 0)->rec_len = EXT2_BLOCK;
    fill_node(page + NODE_ENTRIES, NODE_LIMIT, first, left < NODE_LIMIT ? left : NODE_LIMIT, tree->first_hash + first);
  }
  fill_node(root + ROOT_ENTRIES, ROOT_LIMIT, 1 + leaves, nodes, tree->first_hash + 1 + leaves);
  return 0;
}

int ext2_htree_build(struct ext2 *x, struct ext2_directory *d) {
  struct hashed *names;
  uint32_t count;
  struct tree tree = {0};
  /* `..` has to be where the index expects it; a directory that is not so stays a plain chain. */
  if (ext2_entry(d->pages[0], 0)->rec_len != 12) return 0;
  struct ext2_dir_entry_2 *parent = ext2_entry(d->pages[0], 12);
  if (parent->name_len != 2 || memcmp(parent->name, "..", 2) != 0) return 0;
  uint32_t parent_size = parent->rec_len;
  if (parent_size > 12) { /* the room behind `..`, if any, becomes an empty entry, so that names start at ROOT_INFO */
    memset(ext2_entry(d->pages[0], ROOT_INFO), 0, 8);
    ext2_entry(d->pages[0], ROOT_INFO)->rec_len = (uint16_t)(parent_size - 12);
    parent->rec_len = 12;
  }
  int error = collect(x, d, &names, &count);
  if (error == 0 && count > 0) {
    qsort(names, count, sizeof *names, by_hash);
    error = fill_tree(x, &tree, d->pages[0], names, count);
  }
  if (error == 0 && count > 0) {
    for (uint32_t i = 0; i < tree.count && i < d->stored_blocks && error == 0; i++) {
      error = ext2_cache_put(x, d->physical[i], tree.pages[i]);
    }
    if (tree.count > d->capacity) {
      uint64_t *physical = realloc(d->physical, tree.count * sizeof *physical);
      if (physical) d->physical = physical;
      else error = -ENOMEM;
    }
    if (error == 0) {
      free(d->pages);
      d->pages = tree.pages;
      d->blocks = tree.count;
      d->indexed = true;
      tree.pages = NULL;
    }
  }
  free(names);
  free(tree.pages);
  free(tree.first_hash);
  if (error == -EFBIG || error == -ENOTSUP) return 0; /* too many names, or a hash we do not know: a plain chain works, too */
  return error;
}
