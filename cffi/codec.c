/* Compression of one ZFile block at a time: the LZ4 block format, or one zstd frame per block (zfile.md section 7). */
#include "codec.h"

#include <errno.h>
#include <lz4.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

#include "shim.h"

/* What upstream's writer uses; there is no reader-visible trace of it. */
#define ZSTD_BLOCK_LEVEL 3

struct decoder {
  ZSTD_DCtx *zstd;
};

struct encoder {
  ZSTD_CCtx *zstd;
  void *lz4;
};

struct decoder *shim_decoder_open(void) {
  struct decoder *decoder = malloc(sizeof *decoder);
  if (decoder == NULL) return NULL;
  decoder->zstd = ZSTD_createDCtx();
  if (decoder->zstd != NULL) return decoder;
  free(decoder);
  return NULL;
}

void shim_decoder_close(struct decoder *decoder) {
  if (decoder == NULL) return;
  ZSTD_freeDCtx(decoder->zstd);
  free(decoder);
}

/*
 * Exactly one frame of today's format: the library would also take several frames, skippable ones, and (as
 * distributions build it) frames of formats before 1.0, whose decoders nobody hardens any more.
 */
static int decode_zstd(ZSTD_DCtx *context, const void *source, uint32_t stored, void *target, uint32_t plain) {
  uint32_t magic;
  if (stored < sizeof magic) return -EBADMSG;
  memcpy(&magic, source, sizeof magic);
  if (magic != ZSTD_MAGICNUMBER || ZSTD_findFrameCompressedSize(source, stored) != stored) return -EBADMSG;
  return ZSTD_decompressDCtx(context, target, plain, source, stored) == plain ? 0 : -EBADMSG;
}

int shim_decoder_run(struct decoder *decoder, int codec, const void *source, uint32_t stored, void *target,
                       uint32_t plain) {
  if (stored > INT32_MAX || plain > INT32_MAX) return -EINVAL;
  switch (codec) {
    case CODEC_LZ4:
      return LZ4_decompress_safe(source, target, (int)stored, (int)plain) == (int)plain ? 0 : -EBADMSG;
    case CODEC_ZSTD:
      return decode_zstd(decoder->zstd, source, stored, target, plain);
    default:
      return -EINVAL;
  }
}

struct encoder *shim_encoder_open(void) {
  struct encoder *encoder = malloc(sizeof *encoder);
  if (encoder == NULL) return NULL;
  encoder->zstd = ZSTD_createCCtx();
  encoder->lz4 = malloc((size_t)LZ4_sizeofState());
  if (encoder->zstd != NULL && encoder->lz4 != NULL) return encoder;
  shim_encoder_close(encoder);
  return NULL;
}

void shim_encoder_close(struct encoder *encoder) {
  if (encoder == NULL) return;
  ZSTD_freeCCtx(encoder->zstd);
  free(encoder->lz4);
  free(encoder);
}

int shim_encoder_bound(int codec, uint32_t plain) {
  if (plain > LZ4_MAX_INPUT_SIZE) return -EINVAL;
  switch (codec) {
    case CODEC_LZ4:
      return LZ4_compressBound((int)plain);
    case CODEC_ZSTD:
      return (int)ZSTD_compressBound(plain);
    default:
      return -EINVAL;
  }
}

int shim_encoder_run(struct encoder *encoder, int codec, const void *source, uint32_t plain, void *target,
                       uint32_t capacity) {
  if (plain > LZ4_MAX_INPUT_SIZE || capacity > INT32_MAX) return -EINVAL;
  switch (codec) {
    case CODEC_LZ4: {
      /* The state is cleared for each block (no "fast reset"): equal input must give equal bytes. */
      const int length = LZ4_compress_fast_extState(encoder->lz4, source, target, (int)plain, (int)capacity, 1);
      return length > 0 ? length : -ENOBUFS;
    }
    case CODEC_ZSTD: {
      const size_t length = ZSTD_compressCCtx(encoder->zstd, target, capacity, source, plain, ZSTD_BLOCK_LEVEL);
      return ZSTD_isError(length) ? -ENOBUFS : (int)length;
    }
    default:
      return -EINVAL;
  }
}
