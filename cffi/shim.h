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
/* Makes the number `target` refer to what `source` refers to, atomically for concurrent readers of `target`. */
EXPORT int shim_descriptor_replace(int target, int source);
/* A descriptor of a new file of `size` bytes, all holes, in memory only. */
EXPORT int shim_descriptor_anonymous(double size);
/* Frees the storage of a range of a file, which then reads as zeros; the file keeps its size. */
EXPORT int shim_descriptor_punch(int fd, double offset, double length);

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

#endif
