/*
 * The io_manager through which libext2fs sees a volume: blocks are read from it on first use and kept; nothing is
 * written before the end, then each changed block once, in ascending order.
 */
#include "ext2.h"
#include "shim.h"

#include <stdlib.h>
#include <string.h>

enum { SLAB_PAGES = 64 };

static uint32_t map_slot(const struct ext2_map *map, uint64_t key) {
  uint64_t mixed = (key + 1) * 0x9e3779b97f4a7c15u;
  uint32_t slot = (uint32_t)(mixed >> 32) & (map->capacity - 1);
  while (map->keys[slot] != 0 && map->keys[slot] != key + 1) slot = (slot + 1) & (map->capacity - 1);
  return slot;
}

uint32_t ext2_map_get(const struct ext2_map *map, uint64_t key) {
  if (map->capacity == 0) return EXT2_ABSENT;
  uint32_t slot = map_slot(map, key);
  return map->keys[slot] ? map->values[slot] : EXT2_ABSENT;
}

int ext2_map_put(struct ext2_map *map, uint64_t key, uint32_t value) {
  if (map->count >= map->capacity / 2) {
    struct ext2_map wider = {.capacity = map->capacity ? map->capacity * 2 : 256};
    wider.keys = calloc(wider.capacity, sizeof *wider.keys);
    wider.values = malloc(wider.capacity * sizeof *wider.values);
    if (!wider.keys || !wider.values) {
      ext2_map_free(&wider);
      return -ENOMEM;
    }
    for (uint32_t i = 0; i < map->capacity; i++) {
      if (!map->keys[i]) continue;
      uint32_t slot = map_slot(&wider, map->keys[i] - 1);
      wider.keys[slot] = map->keys[i];
      wider.values[slot] = map->values[i];
    }
    wider.count = map->count;
    ext2_map_free(map);
    *map = wider;
  }
  uint32_t slot = map_slot(map, key);
  if (!map->keys[slot]) map->count++;
  map->keys[slot] = key + 1;
  map->values[slot] = value;
  return 0;
}

void ext2_map_free(struct ext2_map *map) {
  free(map->keys);
  free(map->values);
  *map = (struct ext2_map){0};
}

int ext2_grow(void **array, uint32_t *capacity, uint32_t count, size_t element) {
  if (count < *capacity) return 0;
  if (*capacity > UINT32_MAX / 2) return -E2BIG;
  uint32_t wider = *capacity ? *capacity * 2 : 16;
  void *moved = realloc(*array, wider * element);
  if (!moved) return -ENOMEM;
  *array = moved;
  *capacity = wider;
  return 0;
}

int ext2_charge(struct ext2 *x, uint64_t bytes) {
  if (bytes > x->budget - x->used) return -E2BIG;
  x->used += bytes;
  return 0;
}

uint8_t *ext2_page(struct ext2 *x) {
  if (ext2_charge(x, EXT2_BLOCK) < 0) return NULL;
  if (x->slab_count == 0 || x->slab_used == SLAB_PAGES) {
    if (ext2_grow((void **)&x->slabs, &x->slab_capacity, x->slab_count, sizeof *x->slabs) < 0) return NULL;
    uint8_t *slab = calloc(SLAB_PAGES, EXT2_BLOCK);
    if (!slab) return NULL;
    x->slabs[x->slab_count++] = slab;
    x->slab_used = 0;
  }
  return x->slabs[x->slab_count - 1] + (size_t)EXT2_BLOCK * x->slab_used++;
}

static int insert(struct ext2 *x, uint64_t block, uint8_t *page) {
  int error = ext2_grow((void **)&x->cached, &x->cached_capacity, x->cached_count, sizeof *x->cached);
  if (error == 0) error = ext2_map_put(&x->map, block, x->cached_count);
  if (error < 0) return error;
  x->cached[x->cached_count++] = (struct ext2_cached){.block = block, .data = page};
  return 0;
}

static struct ext2_cached *find(struct ext2 *x, uint64_t block) {
  uint32_t at = ext2_map_get(&x->map, block);
  return at == EXT2_ABSENT ? NULL : &x->cached[at];
}

int ext2_cache_get(struct ext2 *x, uint64_t block, uint8_t **data) {
  struct ext2_cached *known = find(x, block);
  if (known) {
    *data = known->data;
    return 0;
  }
  if (block >= x->blocks) return -EUCLEAN;
  uint8_t *page = ext2_page(x);
  if (!page) return -E2BIG;
  if (!x->blank) {
    int32_t error = x->read((double)block);
    if (error < 0) return error;
    memcpy(page, x->staging, EXT2_BLOCK);
  }
  *data = page;
  return insert(x, block, page);
}

void ext2_cache_dirty(struct ext2 *x, uint64_t block) {
  struct ext2_cached *known = find(x, block);
  if (known) known->dirty = true;
}

int ext2_cache_claim(struct ext2 *x, uint64_t block, uint8_t **data) {
  int error = ext2_cache_get(x, block, data);
  if (error < 0) return error;
  struct ext2_cached *known = find(x, block);
  if (known->claimed) return -EUCLEAN;
  known->claimed = true;
  return 0;
}

int ext2_cache_put(struct ext2 *x, uint64_t block, uint8_t *page) {
  if (block >= x->blocks) return -EUCLEAN;
  struct ext2_cached *known = find(x, block);
  if (!known) {
    int error = insert(x, block, page);
    if (error < 0) return error;
    known = &x->cached[x->cached_count - 1];
  }
  known->data = page;
  known->dirty = true;
  return 0;
}

/* ---- io_manager ---- */

static errcode_t to_library(int error) { return (errcode_t)-error; }

/* Bytes that a request covers: negative counts are bytes. */
static uint64_t request_size(io_channel channel, int count) {
  return count < 0 ? (uint64_t)-(int64_t)count : (uint64_t)count * (uint64_t)channel->block_size;
}

static errcode_t io_read(io_channel channel, unsigned long long block, int count, void *data) {
  struct ext2 *x = channel->private_data;
  uint64_t offset = block * (uint64_t)channel->block_size, left = request_size(channel, count);
  if (block > UINT64_MAX / EXT2_BLOCK / 2) return EUCLEAN;
  for (uint8_t *to = data; left > 0;) {
    uint32_t start = offset % EXT2_BLOCK, length = EXT2_BLOCK - start;
    if (length > left) length = (uint32_t)left;
    uint8_t *page;
    int error = ext2_cache_get(x, offset / EXT2_BLOCK, &page);
    if (error < 0) return to_library(error);
    memcpy(to, page + start, length);
    to += length;
    offset += length;
    left -= length;
  }
  return 0;
}

static errcode_t io_write(io_channel channel, unsigned long long block, int count, const void *data) {
  struct ext2 *x = channel->private_data;
  uint64_t offset = block * (uint64_t)channel->block_size, left = request_size(channel, count);
  if (block > UINT64_MAX / EXT2_BLOCK / 2) return EUCLEAN;
  for (const uint8_t *from = data; left > 0;) {
    uint32_t start = offset % EXT2_BLOCK, length = EXT2_BLOCK - start;
    if (length > left) length = (uint32_t)left;
    uint8_t *page;
    int error = ext2_cache_get(x, offset / EXT2_BLOCK, &page);
    if (error < 0) return to_library(error);
    if (memcmp(page + start, from, length) != 0) {
      if (find(x, offset / EXT2_BLOCK)->claimed) return EUCLEAN;
      memcpy(page + start, from, length);
      ext2_cache_dirty(x, offset / EXT2_BLOCK);
    }
    from += length;
    offset += length;
    left -= length;
  }
  return 0;
}

static errcode_t io_read32(io_channel channel, unsigned long block, int count, void *data) {
  return io_read(channel, block, count, data);
}
static errcode_t io_write32(io_channel channel, unsigned long block, int count, const void *data) {
  return io_write(channel, block, count, data);
}
static errcode_t io_flush(io_channel channel) {
  (void)channel;
  return 0;
}
static errcode_t io_close(io_channel channel) {
  (void)channel;
  return 0;
}
static errcode_t io_block_size(io_channel channel, int size) {
  if (size <= 0 || size > EXT2_BLOCK) return ENOTSUP;
  channel->block_size = size;
  return 0;
}
static errcode_t io_open(const char *name, int flags, io_channel *channel) {
  (void)flags;
  struct ext2 *x = (struct ext2 *)(uintptr_t)strtoull(name, NULL, 16);
  *channel = &x->channel;
  return 0;
}

void ext2_cache_open(struct ext2 *x) {
  x->manager = (struct struct_io_manager){
      .magic = EXT2_ET_MAGIC_IO_MANAGER,
      .name = "volume",
      .open = io_open,
      .close = io_close,
      .set_blksize = io_block_size,
      .read_blk = io_read32,
      .write_blk = io_write32,
      .flush = io_flush,
      .read_blk64 = io_read,
      .write_blk64 = io_write,
  };
  x->channel = (struct struct_io_channel){
      .magic = EXT2_ET_MAGIC_IO_CHANNEL,
      .manager = &x->manager,
      .name = x->name,
      .block_size = 1024,
      .refcount = 1,
      .private_data = x,
  };
}

void ext2_cache_free(struct ext2 *x) {
  for (uint32_t i = 0; i < x->slab_count; i++) free(x->slabs[i]);
  free(x->slabs);
  free(x->cached);
  free(x->drain);
  ext2_map_free(&x->map);
}

static int by_block(const void *a, const void *b, void *cached) {
  uint64_t left = ((struct ext2_cached *)cached)[*(const uint32_t *)a].block;
  uint64_t right = ((struct ext2_cached *)cached)[*(const uint32_t *)b].block;
  return left < right ? -1 : left > right;
}

static bool is_zero(const uint8_t *page) {
  return page[0] == 0 && memcmp(page, page + 1, EXT2_BLOCK - 1) == 0;
}

EXPORT int shim_ext2_drain(void *handle, uint8_t *into, uint32_t capacity, double *first) {
  struct ext2 *x = handle;
  if (!x->drain) {
    x->drain = malloc((x->cached_count + 1) * sizeof *x->drain);
    if (!x->drain) return -ENOMEM;
    for (uint32_t i = 0; i < x->cached_count; i++) {
      /* A blank volume has its zeros already. */
      if (x->cached[i].dirty && !(x->blank && is_zero(x->cached[i].data))) x->drain[x->drain_count++] = i;
    }
    qsort_r(x->drain, x->drain_count, sizeof *x->drain, by_block, x->cached);
  }
  uint32_t count = 0;
  for (; count < capacity && x->drain_next < x->drain_count; count++, x->drain_next++) {
    const struct ext2_cached *page = &x->cached[x->drain[x->drain_next]];
    if (count == 0) *first = (double)page->block;
    else if (page->block != (uint64_t)*first + count) break;
    memcpy(into + (size_t)EXT2_BLOCK * count, page->data, EXT2_BLOCK);
  }
  return (int)count;
}
