/*
 * The parallel block compressor: bytes in, compressed blocks out, in order, at an offset of a file.
 *
 * What is appended is copied once, into one of a few chunks of whole blocks. Threads take filled chunks,
 * compress them, and whoever finds the oldest outstanding chunk compressed writes it. So the output does not
 * depend on the number of threads, memory is bounded, and an append waits when the threads or the disk fall behind.
 */
#include "codec.h"
#include "shim.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CHUNK_BYTES (256u << 10)
#define MAX_THREADS 64
#define THREAD_STACK (512u << 10)
/* Written bytes after which the kernel is asked to start writing them back, so that a later fsync has little to do. */
#define WRITEBACK_BYTES (8u << 20)

struct chunk {
  uint8_t *plain;
  uint8_t *stored;
  uint32_t *lengths; /* stored bytes of each block */
  size_t plain_bytes;
  bool compressed;
};

struct compressor {
  /* Fixed after creation. */
  int fd;
  int codec;
  bool checksum;
  uint32_t block_size;
  uint32_t slots;
  struct chunk *chunks;
  uint8_t *zero_block; /* a full block of zeros, as stored */
  uint32_t zero_length;

  /* Only the appending thread. */
  bool finished;

  pthread_mutex_t lock;
  pthread_cond_t filled; /* a chunk was submitted, or closing */
  pthread_cond_t freed;  /* a chunk was written, or an error happened */
  /* Chunk number n lives in slot n % slots: written <= taken <= submitted <= written + slots. */
  uint64_t submitted, taken, written;
  bool writing;
  bool closing;
  int error; /* first failure, a negative errno */

  /* Only the thread that has set `writing`; others after finish. */
  off_t offset;
  off_t written_back;
  uint32_t *lengths;
  size_t blocks, blocks_capacity;

  uint32_t threads;
  pthread_t thread[MAX_THREADS];
};

/* The most a stored block can need; at most block_size + 512 + 4, which readers rely on. */
static uint32_t stored_bound(int codec, uint32_t block_size) {
  return (uint32_t)shim_encoder_bound(codec, block_size) + BLOCK_CHECKSUM;
}

/* Compresses one block; returns the stored bytes or a negative errno. */
static int compress_block(const struct compressor *c, struct encoder *encoder, const uint8_t *plain, uint32_t length,
                          uint8_t *out) {
  uint32_t room = stored_bound(c->codec, c->block_size) - BLOCK_CHECKSUM;
  int size = shim_encoder_run(encoder, c->codec, plain, length, out, room);
  if (size < 0 || !c->checksum) return size;
  uint32_t sum = shim_crc32c(BLOCK_SEED, out, (size_t)size);
  for (unsigned i = 0; i < BLOCK_CHECKSUM; i++) out[(unsigned)size + i] = (uint8_t)(sum >> (8 * i));
  return size + (int)BLOCK_CHECKSUM;
}

static int compress_chunk(const struct compressor *c, struct encoder *encoder, struct chunk *chunk) {
  uint8_t *out = chunk->stored;
  uint32_t *stored = chunk->lengths;
  for (size_t at = 0; at < chunk->plain_bytes; at += c->block_size) {
    const uint8_t *plain = chunk->plain + at;
    size_t left = chunk->plain_bytes - at;
    size_t length = left < c->block_size ? left : c->block_size;
    /* Layers hold many blocks of zeros (free space between metadata); all of them compress to the same bytes. */
    if (length == c->block_size && plain[0] == 0 && memcmp(plain, plain + 1, length - 1) == 0) {
      memcpy(out, c->zero_block, c->zero_length);
      *stored = c->zero_length;
    } else {
      int size = compress_block(c, encoder, plain, (uint32_t)length, out);
      if (size < 0) return size;
      *stored = (uint32_t)size;
    }
    out += *stored++;
  }
  return 0;
}

static int write_chunk(struct compressor *c, const struct chunk *chunk) {
  size_t blocks = (chunk->plain_bytes + c->block_size - 1) / c->block_size;
  if (c->blocks + blocks > c->blocks_capacity) {
    size_t capacity = 2 * c->blocks_capacity + blocks;
    uint32_t *lengths = reallocarray(c->lengths, capacity, sizeof *lengths);
    if (!lengths) return -ENOMEM;
    c->lengths = lengths;
    c->blocks_capacity = capacity;
  }
  size_t total = 0;
  for (size_t i = 0; i < blocks; i++) total += c->lengths[c->blocks++] = chunk->lengths[i];
  for (size_t done = 0; done < total;) {
    ssize_t n = pwrite(c->fd, chunk->stored + done, total - done, c->offset);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return n < 0 ? -errno : -EIO;
    done += (size_t)n;
    c->offset += n;
  }
  if (c->offset - c->written_back >= WRITEBACK_BYTES) {
    /* Only a hint: not every file system can, and a write error shows at fsync. */
    (void)sync_file_range(c->fd, c->written_back, c->offset - c->written_back, SYNC_FILE_RANGE_WRITE);
    c->written_back = c->offset;
  }
  return 0;
}

/* With the lock held: writes compressed chunks in order, unless another thread is at it and will see them. */
static void write_in_order(struct compressor *c) {
  if (c->writing) return;
  c->writing = true;
  while (c->written < c->taken && c->chunks[c->written % c->slots].compressed) {
    struct chunk *chunk = &c->chunks[c->written % c->slots];
    if (c->error == 0) {
      pthread_mutex_unlock(&c->lock);
      int error = write_chunk(c, chunk);
      pthread_mutex_lock(&c->lock);
      if (c->error == 0) c->error = error;
    }
    chunk->compressed = false;
    chunk->plain_bytes = 0;
    c->written++;
    pthread_cond_signal(&c->freed);
  }
  c->writing = false;
}

static void *compress_chunks(void *argument) {
  struct compressor *c = argument;
  struct encoder *encoder = shim_encoder_open();
  pthread_mutex_lock(&c->lock);
  for (;;) {
    while (c->taken == c->submitted && !c->closing) pthread_cond_wait(&c->filled, &c->lock);
    if (c->taken == c->submitted) break;
    struct chunk *chunk = &c->chunks[c->taken++ % c->slots];
    if (!encoder && c->error == 0) c->error = -ENOMEM;
    if (c->error == 0) {
      pthread_mutex_unlock(&c->lock);
      int error = compress_chunk(c, encoder, chunk);
      pthread_mutex_lock(&c->lock);
      if (c->error == 0) c->error = error;
    }
    chunk->compressed = true;
    write_in_order(c);
  }
  pthread_mutex_unlock(&c->lock);
  if (encoder) shim_encoder_close(encoder);
  return NULL;
}

EXPORT void shim_compressor_destroy(struct compressor *c) {
  if (!c) return;
  pthread_mutex_lock(&c->lock);
  c->closing = true;
  if (c->error == 0) c->error = -ECANCELED;
  pthread_cond_broadcast(&c->filled);
  pthread_mutex_unlock(&c->lock);
  for (uint32_t i = 0; i < c->threads; i++) pthread_join(c->thread[i], NULL);
  for (uint32_t i = 0; c->chunks && i < c->slots; i++) {
    free(c->chunks[i].plain);
    free(c->chunks[i].stored);
    free(c->chunks[i].lengths);
  }
  free(c->chunks);
  free(c->zero_block);
  free(c->lengths);
  pthread_cond_destroy(&c->freed);
  pthread_cond_destroy(&c->filled);
  pthread_mutex_destroy(&c->lock);
  free(c);
}

static int allocate_chunks(struct compressor *c) {
  size_t blocks = CHUNK_BYTES / c->block_size;
  c->chunks = calloc(c->slots, sizeof *c->chunks);
  if (!c->chunks) return -ENOMEM;
  for (uint32_t i = 0; i < c->slots; i++) {
    struct chunk *chunk = &c->chunks[i];
    chunk->plain = malloc(CHUNK_BYTES);
    chunk->stored = malloc(blocks * stored_bound(c->codec, c->block_size));
    chunk->lengths = calloc(blocks, sizeof *chunk->lengths);
    if (!chunk->plain || !chunk->stored || !chunk->lengths) return -ENOMEM;
  }
  return 0;
}

static int compress_zero_block(struct compressor *c) {
  struct encoder *encoder = shim_encoder_open();
  uint8_t *plain = calloc(1, c->block_size);
  c->zero_block = malloc(stored_bound(c->codec, c->block_size));
  int size = -ENOMEM;
  if (encoder && plain && c->zero_block) size = compress_block(c, encoder, plain, c->block_size, c->zero_block);
  if (encoder) shim_encoder_close(encoder);
  free(plain);
  if (size < 0) return size;
  c->zero_length = (uint32_t)size;
  return 0;
}

static int start_threads(struct compressor *c, uint32_t threads) {
  pthread_attr_t attributes;
  sigset_t all, before;
  int error = pthread_attr_init(&attributes);
  if (error) return -error;
  pthread_attr_setstacksize(&attributes, THREAD_STACK);
  /* Signals belong to the threads of the runtime. */
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  while (!error && c->threads < threads) {
    error = pthread_create(&c->thread[c->threads], &attributes, compress_chunks, c);
    if (!error) c->threads++;
  }
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  pthread_attr_destroy(&attributes);
  return -error;
}

EXPORT int shim_compressor_create(int fd, double offset, int codec, uint32_t block_size, int checksum, uint32_t threads,
                             struct compressor **out) {
  bool power_of_two = block_size && (block_size & (block_size - 1)) == 0;
  if (fd < 0 || !(offset >= 0 && offset < 0x1p53) || (codec != CODEC_LZ4 && codec != CODEC_ZSTD) || !power_of_two ||
      block_size < 4096 || block_size > 65536 || threads < 1 || threads > MAX_THREADS)
    return -EINVAL;
  struct compressor *c = calloc(1, sizeof *c);
  if (!c) return -ENOMEM;
  pthread_mutex_init(&c->lock, NULL);
  pthread_cond_init(&c->filled, NULL);
  pthread_cond_init(&c->freed, NULL);
  c->fd = fd;
  c->offset = c->written_back = (off_t)offset;
  c->codec = codec;
  c->checksum = checksum != 0;
  c->block_size = block_size;
  c->slots = 2 * threads + 2;
  int error = allocate_chunks(c);
  if (!error) error = compress_zero_block(c);
  if (!error) error = start_threads(c, threads);
  if (error) {
    shim_compressor_destroy(c);
    return error;
  }
  *out = c;
  return 0;
}

/* Waits until the chunk being filled is free; returns it, or NULL with *error set. */
static struct chunk *writable_chunk(struct compressor *c, int *error) {
  pthread_mutex_lock(&c->lock);
  while (c->submitted - c->written == c->slots && c->error == 0) pthread_cond_wait(&c->freed, &c->lock);
  *error = c->error;
  struct chunk *chunk = &c->chunks[c->submitted % c->slots];
  pthread_mutex_unlock(&c->lock);
  return *error ? NULL : chunk;
}

static void submit(struct compressor *c) {
  pthread_mutex_lock(&c->lock);
  c->submitted++;
  pthread_cond_signal(&c->filled);
  pthread_mutex_unlock(&c->lock);
}

/* Appends `length` bytes of `data`, or zeros when that is NULL. */
static int append(struct compressor *c, const uint8_t *data, double length) {
  if (!c || c->finished || !(length >= 0 && length < 0x1p53)) return -EINVAL;
  for (uint64_t left = (uint64_t)length; left > 0;) {
    int error;
    struct chunk *chunk = writable_chunk(c, &error);
    if (!chunk) return error;
    size_t room = CHUNK_BYTES - chunk->plain_bytes;
    size_t n = left < room ? (size_t)left : room;
    if (data) {
      memcpy(chunk->plain + chunk->plain_bytes, data, n);
      data += n;
    } else {
      memset(chunk->plain + chunk->plain_bytes, 0, n);
    }
    chunk->plain_bytes += n;
    left -= n;
    if (chunk->plain_bytes == CHUNK_BYTES) submit(c);
  }
  return 0;
}

EXPORT int shim_compressor_append(struct compressor *c, const uint8_t *data, double length) {
  return data || length == 0 ? append(c, data, length) : -EINVAL;
}

EXPORT int shim_compressor_append_zeros(struct compressor *c, double length) { return append(c, NULL, length); }

EXPORT int shim_compressor_finish(struct compressor *c, double *totals) {
  if (!c || c->finished) return -EINVAL;
  c->finished = true;
  int error;
  struct chunk *chunk = writable_chunk(c, &error);
  if (chunk && chunk->plain_bytes > 0) submit(c);
  pthread_mutex_lock(&c->lock);
  /* Also after an error: chunks are then only passed through. */
  while (c->written < c->submitted) pthread_cond_wait(&c->freed, &c->lock);
  error = c->error;
  pthread_mutex_unlock(&c->lock);
  totals[0] = (double)c->blocks;
  totals[1] = (double)c->offset;
  return error;
}

EXPORT int shim_compressor_lengths(const struct compressor *c, uint32_t *out, double capacity) {
  if (!c || !c->finished || !(capacity >= (double)c->blocks)) return -EINVAL;
  if (c->blocks) memcpy(out, c->lengths, c->blocks * sizeof *out);
  return 0;
}
