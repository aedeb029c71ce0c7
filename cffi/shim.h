/*
 * The whole interface of the C shim: every function TypeScript may call, one section per source file.
 *
 * Conventions
 *  - Functions that can fail return a negative errno value, never -1 with errno.
 *  - Offsets and sizes that may exceed 32 bits are doubles holding whole numbers below 2^53 (FFI passes those
 *    cheaply) or split into two uint32_t; buffers come with their length, and the length is checked before use.
 *  - No function keeps a caller's pointer after it returns unless its comment says so.
 *  - Nothing allocates on the read path (plan.c).
 */
#ifndef OVERLAYBD_SHIM_H
#define OVERLAYBD_SHIM_H

#include <stddef.h>
#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))

/* ---- descriptor.c: what node:fs has no call for ---- */

/* Takes an exclusive flock(2) without waiting; -EWOULDBLOCK when somebody else holds it. Closing `fd` releases it. */
EXPORT int shim_descriptor_lock(int fd);
/*
 * The same, shared with others that share it. A lock that is held is turned into the other kind; when that fails it is
 * lost.
 */
EXPORT int shim_descriptor_share(int fd);
/* Makes the number `target` refer to what `source` refers to, atomically for concurrent readers of `target`. */
EXPORT int shim_descriptor_replace(int target, int source);
/* A descriptor of a new file of `size` bytes, all holes, in memory only. */
EXPORT int shim_descriptor_anonymous(double size);
/* Frees the storage of a range of a file, which then reads as zeros; the file keeps its size. */
EXPORT int shim_descriptor_punch(int fd, double offset, double length);
/* A pipe: ends[0] is read, ends[1] written; its buffer is made as large as the system allows, up to 1 MiB. */
EXPORT int shim_descriptor_pipe(int32_t ends[2]);

/* ---- range.c: ranges of local files ---- */

/* Writes `length` bytes of native memory at `offset`, all of them or an error. */
EXPORT int shim_range_write(int fd, const void *from, double length, double offset);
/* First range of data (no hole) at or behind `from`: 1 and range[0], range[1] = its begin and end; 0 when there is none. */
EXPORT int shim_range_data(int fd, double from, double *range);

/* ---- inflate.c: a descriptor's bytes, decompressed, as a stream of equal chunks ---- */

enum { SHIM_INFLATE_HASH_INPUT = 1, SHIM_INFLATE_HASH_OUTPUT = 2 };
enum { SHIM_INFLATE_PLAIN, SHIM_INFLATE_GZIP, SHIM_INFLATE_ZSTD };
enum {
  SHIM_INFLATE_OK,
  SHIM_INFLATE_IO, /* `error` is the errno */
  SHIM_INFLATE_TRUNCATED,
  SHIM_INFLATE_CORRUPT,
  SHIM_INFLATE_CHECKSUM,
  SHIM_INFLATE_LIMIT, /* more output than allowed */
  SHIM_INFLATE_WINDOW, /* zstd wants more memory than allowed */
  SHIM_INFLATE_STOPPED
};

struct shim_inflate_report {
  double input_bytes; /* read so far */
  double position; /* of those, decompressed */
  double output_bytes;
  double ignored_bytes; /* after the last gzip member */
  int32_t failure, error, format, reserved;
  uint8_t input_digest[32], output_digest[32]; /* SHA-256, where asked for; complete only at the end of the stream */
};

/*
 * Starts a thread that reads `fd` from its current position. Keeps `ring` (slots * slot_bytes bytes) and uses `fd` until
 * the handle is closed; closes neither.
 */
EXPORT int shim_inflate_open(int fd, uint8_t *ring, uint32_t slots, uint32_t slot_bytes, double limit, uint32_t flags,
           void **handle);
/*
 * Waits for the next chunk and gives back the one before. Chunk i lies in slot i % slots. Returns its length, 0 at the end of
 * the stream, or -EIO when it failed (see the report).
 */
EXPORT int shim_inflate_next(void *handle);
/* What became of the stream; -EBUSY before shim_inflate_next returned 0 or an error. */
EXPORT int shim_inflate_status(void *handle, struct shim_inflate_report *report);
/* Stops the thread, also one blocked on a pipe, and frees the handle. */
EXPORT void shim_inflate_close(void *handle);

/* ---- queue.c ---- */

#define QUEUE_WAKE_TAG 0xffffffffu

/* A descriptor that `shim_wake_signal` makes readable, from any thread. */
EXPORT int shim_wake_create(void);
EXPORT int shim_wake_signal(int wake);
/* A set of descriptors to wait on together; each has a tag of the caller's, QUEUE_WAKE_TAG is the wake descriptor's. */
EXPORT int shim_queue_create(void);
EXPORT int shim_queue_add(int queue, int fd, uint32_t tag);
EXPORT int shim_queue_remove(int queue, int fd);
/* Sleeps until something is readable; returns how many of `tags` were filled. A wake-up is taken from `wake` at once. */
EXPORT int shim_queue_wait(int queue, int wake, uint32_t *tags, uint32_t capacity);

/* ---- fuse.c ---- */

/* A new connection of /dev/fuse, non-blocking. */
EXPORT int shim_fuse_open(void);
/*
 * Mounts the connection where no path leads to; returns a descriptor of its root. Does not wait for the server. Only
 * a mounted connection can be served. When the descriptor and all files opened below it are closed, the mount is gone.
 */
EXPORT int shim_fuse_mount(int fuse);
/* Opens file `name` in the mount. Blocks until it is served: by another thread. */
EXPORT int shim_fuse_open_served(int mount, const char *name, int writable);
/*
 * Reads the next request; returns its length, which equals its header's. -EAGAIN: none waits; -ENODEV,
 * -ECONNABORTED: unmounted.
 * `capacity` must have room for the longest write (its header and data).
 */
EXPORT int shim_fuse_receive(int fuse, uint8_t *buffer, uint32_t capacity);
/* Writes a reply: a struct fuse_out_header whose `len` is `length`, and what follows it. */
EXPORT int shim_fuse_reply(int fuse, const uint8_t *reply, uint32_t length);

/* ---- mount.c (blocking: for pool jobs) ---- */

/* mount(2) and umount2(2). */
EXPORT int shim_mount(const char *source, const char *target, const char *type, uint32_t flags,
                      const char *options);
EXPORT int shim_unmount(const char *target, uint32_t flags);
/*
 * Puts a free loop device over `backing`, with direct I/O where the file has it, cleared by the kernel when it is no
 * longer used. Returns the device's number and stores an open descriptor of it.
 */
EXPORT int shim_loop_attach(int backing, int writable, uint32_t block_size, int32_t *loop);
/* Closes the descriptor; when it is the last user, waits until the device is cleared. */
EXPORT int shim_loop_release(int loop);

/* ---- crc.c ---- */

/* CRC-32C in raw form: no inversion before or after (polynomial 0x82F63B78, reflected; zfile.md section 4). */
EXPORT uint32_t shim_crc32c(uint32_t seed, const void *bytes, uint32_t length);

/* ---- codec.c (a context per thread, reused, so that no block allocates; `codec` is 1 LZ4, 2 zstd) ---- */

struct decoder;
/* NULL when out of memory. */
EXPORT struct decoder *shim_decoder_open(void);
EXPORT void shim_decoder_close(struct decoder *decoder);
/*
 * Decompresses the block source[0, stored) to exactly `plain` bytes at target and writes nowhere else, whatever the source
 * holds. Returns 0, -EBADMSG when the source is not a block of that length, -EINVAL for an unknown codec.
 */
EXPORT int shim_decoder_run(struct decoder *decoder, int codec, const void *source, uint32_t stored, void *target,
                            uint32_t plain);

struct encoder;
/* NULL when out of memory. */
EXPORT struct encoder *shim_encoder_open(void);
EXPORT void shim_encoder_close(struct encoder *encoder);
/*
 * Compresses source[0, plain) into at most `capacity` bytes at target and returns their number; equal input gives equal
 * bytes. -ENOBUFS when it does not fit (never with shim_encoder_bound bytes), -EINVAL for an unknown codec.
 */
EXPORT int shim_encoder_run(struct encoder *encoder, int codec, const void *source, uint32_t plain, void *target,
                            uint32_t capacity);
/* The most bytes that a block of `plain` bytes can compress to, or -EINVAL. */
EXPORT int shim_encoder_bound(int codec, uint32_t plain);

/* ---- sha256.c ---- */

struct sha256;
/* NULL when out of memory. */
EXPORT struct sha256 *shim_sha256_open(void);
EXPORT void shim_sha256_close(struct sha256 *hash);
EXPORT int shim_sha256_update(struct sha256 *hash, const void *bytes, double length);
/* Hashes a range of a file; -ENODATA when the file ends inside it. */
EXPORT int shim_sha256_update_file(struct sha256 *hash, int fd, double offset, double length);
/*
 * Writes the 32-byte digest of each `chunk` bytes (the last ones may be fewer) with the byte `prefix` before them;
 * `capacity` bytes must be enough for all digests.
 */
EXPORT int shim_sha256_chunks(const uint8_t *bytes, double length, uint32_t chunk, uint32_t prefix, uint8_t *digests,
                              double capacity);
/* The same of the first bytes of a file, which are added to `hash` too; `chunk` must divide 256 KiB. */
EXPORT int shim_sha256_file_chunks(struct sha256 *hash, int fd, double length, uint32_t chunk, uint32_t prefix,
                                   uint8_t *digests, double capacity);
/* Writes the 32-byte digest and starts anew. */
EXPORT void shim_sha256_final(struct sha256 *hash, uint8_t *digest);

/* ---- compress.c: the parallel block compressor ---- */

struct compressor;
/*
 * Compresses what is appended into blocks on `threads` threads and writes them in order to `fd` from `offset` on. The
 * descriptor must stay open until shim_compressor_destroy.
 */
EXPORT int shim_compressor_create(int fd, double offset, int codec, uint32_t block_size, int checksum, uint32_t threads,
                                  struct compressor **out);
/* Copies `length` bytes in; waits while the threads are behind. Returns the first error that any thread met so far. */
EXPORT int shim_compressor_append(struct compressor *c, const uint8_t *data, double length);
EXPORT int shim_compressor_append_zeros(struct compressor *c, double length);
/* Writes all that is left; totals[0] = number of blocks, totals[1] = offset in the file behind the last one. */
EXPORT int shim_compressor_finish(struct compressor *c, double *totals);
/* After finish: copies the stored length of every block; `capacity` entries must be enough for all. */
EXPORT int shim_compressor_lengths(const struct compressor *c, uint32_t *out, double capacity);
/* Stops the threads; unwritten bytes are lost. */
EXPORT void shim_compressor_destroy(struct compressor *c);

/* ---- plan.c ---- */

/* One step of a plan, as src/native/plan.ts writes it. */
struct plan_step {
  uint32_t kind;   /* PLAN_…, for a block with codec << PLAN_CODEC_SHIFT and PLAN_VERIFY */
  uint32_t target; /* where the bytes go: into the destination, or the scratch memory for PLAN_FETCH */
  uint32_t length; /* bytes to write or read; of a block: its uncompressed length */
  union {
    int32_t fd;      /* PLAN_COPY, PLAN_FETCH */
    uint32_t stored; /* PLAN_BLOCK: compressed length, without checksum */
  };
  union {
    double offset; /* PLAN_COPY, PLAN_FETCH: in the file */
    struct {
      uint32_t scratch; /* PLAN_BLOCK: where its compressed bytes are */
      uint32_t skip;    /* PLAN_BLOCK: uncompressed bytes not wanted at the start */
    };
  };
  uint32_t take; /* PLAN_BLOCK: uncompressed bytes wanted */
  uint32_t unused;
};

enum {
  PLAN_ZERO = 1,  /* zero bytes */
  PLAN_COPY = 2,  /* bytes of a file */
  PLAN_FETCH = 3, /* bytes of a file, to scratch memory */
  PLAN_BLOCK = 4, /* bytes of a compressed block that an earlier step fetched */
  PLAN_KIND = 0xff,
  PLAN_CODEC_SHIFT = 8,
  PLAN_VERIFY = 1 << 16 /* a CRC-32C of the compressed bytes follows them */
};

enum plan_cause { PLAN_SYSTEM = 1, PLAN_CHECKSUM = 2, PLAN_DECOMPRESS = 3, PLAN_SHORT = 4 };

struct plan_failure {
  uint32_t step;
  uint32_t cause; /* enum plan_cause */
  int32_t error;  /* PLAN_SYSTEM: the errno; EINVAL also for a step that leaves its memory */
};

struct plan;
/*
 * Allocates all that executing plans of up to `steps` steps needs. For one thread. `engine` is 0 pread, 1 libaio,
 * 2 POSIX aio, 3 io_uring; -EOPNOTSUPP when the system has it not, or forbids it.
 */
EXPORT int shim_plan_open(uint32_t steps, uint32_t scratch_size, int engine, struct plan **plan);
EXPORT void shim_plan_close(struct plan *plan);
/* Fills parts of target[0, length). 0, or -1 and what went wrong, `target` then holding anything. */
EXPORT int shim_plan_execute(struct plan *plan, const struct plan_step *steps, uint32_t count, uint8_t *target,
                             uint32_t length, struct plan_failure *failure);

/* ---- ext2*.c: ext4 on a volume; one session from open to finish, nothing is written before it ---- */

/* What an inode is made of, and its number when it is made. */
struct shim_ext2_node {
  double size; /* of a regular file */
  double mtime; /* seconds since 1970, whole */
  uint32_t nanoseconds;
  uint32_t mode; /* with the type bits */
  uint32_t uid, gid;
  uint32_t device_major, device_minor;
  uint32_t ino;
  uint32_t reserved;
};

/*
 * Opens the file system on a volume of `blocks` blocks of 4096 bytes or, with `create`, makes one on a volume that reads as
 * zeros. `read` fills `staging` (4096 bytes) with a block and returns 0 or a negative errno; both are kept until the close.
 * At most `budget` bytes of metadata are held. -EINVAL: no ext4 or too small; -ENOTSUP: features this code would damage.
 * Everywhere: -ENOSPC no free block, -EDQUOT no free inode, -E2BIG beyond the budget, -EUCLEAN a damaged file system. After
 * an error of any function but a lookup the session can only be closed.
 */
EXPORT int shim_ext2_open(double blocks, int32_t create, double budget, int32_t (*read)(double block), const uint8_t *staging,
           void **handle);
/* Frees everything; what was not drained is lost. */
EXPORT void shim_ext2_close(void *handle);
/* Completes all metadata in memory. */
EXPORT int shim_ext2_finish(void *handle);
/* Copies the next changed blocks, ascending, as long as they adjoin: their number (0: no more), and the first in *first. */
EXPORT int shim_ext2_drain(void *handle, uint8_t *into, uint32_t capacity, double *first);
/* Free blocks, free inodes, bytes of metadata in memory. */
EXPORT void shim_ext2_status(void *handle, double *status);

/* 1 and found = {inode, EXT2_FT_* type, added in this session}; 0 when there is no such name. */
EXPORT int shim_ext2_lookup(void *handle, uint32_t directory, const uint8_t *name, uint32_t length, uint32_t *found);
/* Counts an existing name as added in this session. */
EXPORT int shim_ext2_mark(void *handle, uint32_t directory, const uint8_t *name, uint32_t length);
/*
 * The first name at or behind a position, `.` and `..` left out: found as above and its length in found[3], `name` (255
 * bytes), and the position to go on from; 0 at the end. Names may be removed meanwhile.
 */
EXPORT double shim_ext2_next(void *handle, uint32_t directory, double position, uint32_t *found, uint8_t *name);
/* Adds a name for an inode, whose link count stays. */
EXPORT int shim_ext2_add(void *handle, uint32_t directory, const uint8_t *name, uint32_t length, uint32_t ino, uint32_t type);
/* Adds a name for an existing inode: -EPERM for a directory, -EMLINK beyond 65,000. */
EXPORT int shim_ext2_link(void *handle, uint32_t directory, const uint8_t *name, uint32_t length, uint32_t ino);
/* Removes a name, and the inode with its last one; -ENOTEMPTY for a directory with children. */
EXPORT int shim_ext2_unlink(void *handle, uint32_t directory, const uint8_t *name, uint32_t length);

/* Takes blocks for the ranges {first file block, count} of the file that is created next; the number of runs, or an error. */
EXPORT double shim_ext2_allocate(void *handle, const double *ranges, uint32_t range_count);
/* Copies {file block, volume block, count} of the runs taken last, from `first` on; their number. */
EXPORT int shim_ext2_runs(void *handle, uint32_t first, double *into, uint32_t capacity);
/* Makes an inode and its name. A regular file gets the blocks allocated before; `target` is a symbolic link's. */
EXPORT int shim_ext2_create(void *handle, uint32_t directory, const uint8_t *name, uint32_t length, struct shim_ext2_node *node,
           const uint8_t *target, uint32_t target_length);
/* Sets owner, times and, but for symbolic links, permissions. */
EXPORT int shim_ext2_update(void *handle, uint32_t ino, const struct shim_ext2_node *node);
/* Copies a symbolic link's target (at most 4095 bytes) and returns its length. */
EXPORT int shim_ext2_readlink(void *handle, uint32_t ino, uint8_t *target);
/* Sets one attribute, POSIX ACLs in the form of getxattr(2). -ENODATA: not a name ext4 can store. */
EXPORT int shim_ext2_set_xattr(void *handle, uint32_t ino, const char *name, const uint8_t *value, uint32_t length);

/* ---- pool.c ---- */

/* What a job calls, with the arguments of the function of that name, numbers and addresses alike as doubles. */
enum {
  POOL_FSYNC = 1,
  POOL_FDATASYNC = 2,
  POOL_MOUNT = 3,       /* shim_mount */
  POOL_UNMOUNT = 4,     /* shim_unmount */
  POOL_OPEN_SERVED = 5, /* shim_fuse_open_served */
  POOL_LOOP_ATTACH = 6, /* shim_loop_attach */
  POOL_LOOP_RELEASE = 7, /* shim_loop_release */
  POOL_SHA256_CHUNKS = 8, /* shim_sha256_chunks */
  POOL_SHA256_FILE_CHUNKS = 9 /* shim_sha256_file_chunks */
};
#define POOL_ARGUMENTS 7

/* A pair of connected sockets, non-blocking: one to read wake-ups from, one for shim_pool_open. */
EXPORT int shim_pool_socket(int32_t *ends);

struct pool_queue;
/*
 * A queue of results. When it becomes non-empty, a 64-bit 1 is written to `wake`: an eventfd, or one end of a socket
 * pair, non-blocking. The caller keeps `wake` open until the queue is closed.
 */
EXPORT int shim_pool_open(int wake, struct pool_queue **queue);
/* Results of jobs still running are dropped. */
EXPORT void shim_pool_close(struct pool_queue *queue);
/*
 * Starts a job with POOL_ARGUMENTS arguments (copied; what they point to must stay until the result is taken). Any `id`
 * will do to know the result by.
 */
EXPORT int shim_pool_submit(struct pool_queue *queue, uint32_t id, uint32_t kind, const double *arguments);
/* Takes up to `capacity` pairs of id and result (0 or more, or negative errno); returns how many. Never waits. */
EXPORT int shim_pool_take(struct pool_queue *queue, int32_t *results, uint32_t capacity);

#endif
