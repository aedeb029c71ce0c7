/* What C files use of codec.c and crc.c beyond the functions in shim.h. */
#ifndef OVERLAYBD_CODEC_H
#define OVERLAYBD_CODEC_H

#include <stdbool.h>

#include "shim.h"

/* Compression of a block, numbered as in the ZFile header's "algo" field (zfile.md section 2). */
enum { CODEC_LZ4 = 1, CODEC_ZSTD = 2 };

/* The longest uncompressed block that the ZFile format allows. */
#define BLOCK_MAX 65536u
/* Seed of the checksum behind a block, chosen by the format so that an all-zero block fails (section 4.3). */
#define BLOCK_SEED 100007u
/* Bytes of that checksum, little-endian. */
#define BLOCK_CHECKSUM 4u

/* The two ways to compute shim_crc32c; the second only where crc32c_is_hardware(). */
uint32_t crc32c_portable(uint32_t seed, const void *bytes, size_t length);
uint32_t crc32c_hardware(uint32_t seed, const void *bytes, size_t length);
bool crc32c_is_hardware(void);

#endif
