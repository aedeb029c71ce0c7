/*
 * The heart of the read path: executes a plan, which says where each part of a read's bytes comes from. It knows no file
 * format beyond "these bytes are one compressed block with this checksum".
 *
 * A plan is written by our own TypeScript, but from offsets and lengths that came out of layers, which nobody trusts.
 * So every step is checked here against the memory it names.
 */
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "codec.h"
#include "io.h"

struct plan {
  uint32_t capacity; /* steps */
  uint32_t scratch_size;
  uint8_t *scratch;
  struct decoder *decoder;
  struct io *io;          /* NULL: pread in the order of the steps */
  struct io_read *reads;  /* of a plan whose reads are issued at once */
  uint32_t *read_steps;   /* the step that each of them belongs to */
  uint8_t bounce[BLOCK_MAX];
};

_Static_assert(sizeof(struct plan_step) == 32, "src/native/plan.ts writes steps of this size");
_Static_assert(offsetof(struct plan_step, offset) == 16 && offsetof(struct plan_step, take) == 24, "and fields here");

void shim_plan_close(struct plan *plan) {
  if (plan == NULL) return;
  io_close(plan->io);
  shim_decoder_close(plan->decoder);
  if (plan->scratch != NULL) munmap(plan->scratch, plan->scratch_size);
  free(plan->reads);
  free(plan->read_steps);
  free(plan);
}

int shim_plan_open(uint32_t steps, uint32_t scratch_size, int engine, struct plan **result) {
  if (steps == 0 || scratch_size == 0 || engine < IO_PSYNC || engine > IO_URING) return -EINVAL;
  struct plan *plan = calloc(1, sizeof *plan);
  if (plan == NULL) return -ENOMEM;
  int error = -ENOMEM;
  plan->capacity = steps;
  plan->scratch_size = scratch_size;
  plan->decoder = shim_decoder_open();
  void *scratch = mmap(NULL, scratch_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (scratch != MAP_FAILED) plan->scratch = scratch;
  if (plan->decoder == NULL || plan->scratch == NULL) goto failed;
  if (engine != IO_PSYNC) {
    plan->reads = calloc(steps, sizeof *plan->reads);
    plan->read_steps = calloc(steps, sizeof *plan->read_steps);
    if (plan->reads == NULL || plan->read_steps == NULL) goto failed;
    error = io_open((enum io_engine)engine, &plan->io);
    if (error != 0) goto failed;
  }
  *result = plan;
  return 0;
failed:
  shim_plan_close(plan);
  return error;
}

static uint32_t kind_of(const struct plan_step *s) { return s->kind & PLAN_KIND; }

static bool within(uint32_t offset, uint32_t length, uint32_t limit) { return offset <= limit && length <= limit - offset; }

static int fail(struct plan_failure *failure, uint32_t step, enum plan_cause cause, int error) {
  *failure = (struct plan_failure){.step = step, .cause = cause, .error = error};
  return -1;
}

static int fail_read(struct plan_failure *failure, uint32_t step, int error) {
  return error == IO_SHORT ? fail(failure, step, PLAN_SHORT, 0) : fail(failure, step, PLAN_SYSTEM, -error);
}

/* Where a COPY or FETCH puts its bytes; NULL when the step leaves its memory or the file offsets of the system. */
static uint8_t *destination(const struct plan *plan, const struct plan_step *s, uint8_t *target, uint32_t length) {
  const bool fetch = kind_of(s) == PLAN_FETCH;
  if (!within(s->target, s->length, fetch ? plan->scratch_size : length)) return NULL;
  if (!(s->offset >= 0 && s->offset + s->length <= 0x1p53)) return NULL;
  return (fetch ? plan->scratch : target) + s->target;
}

/* 0, PLAN_CHECKSUM, PLAN_DECOMPRESS, or PLAN_SYSTEM for a step that leaves its memory. */
static int run_block(struct plan *plan, const struct plan_step *s, uint8_t *target, uint32_t length) {
  const bool checksum = (s->kind & PLAN_VERIFY) != 0;
  if (s->stored > UINT32_MAX - BLOCK_CHECKSUM || s->length > BLOCK_MAX) return PLAN_SYSTEM;
  if (!within(s->scratch, s->stored + (checksum ? BLOCK_CHECKSUM : 0), plan->scratch_size)) return PLAN_SYSTEM;
  if (!within(s->skip, s->take, s->length) || !within(s->target, s->take, length)) return PLAN_SYSTEM;
  const uint8_t *stored = plan->scratch + s->scratch;
  if (checksum) {
    uint32_t expected;
    memcpy(&expected, stored + s->stored, sizeof expected);
    if (shim_crc32c(BLOCK_SEED, stored, s->stored) != expected) return PLAN_CHECKSUM;
  }
  const bool whole = s->take == s->length;
  uint8_t *plain = whole ? target + s->target : plan->bounce;
  const int codec = (int)(s->kind >> PLAN_CODEC_SHIFT & 0xff);
  const int error = shim_decoder_run(plan->decoder, codec, stored, s->stored, plain, s->length);
  if (error != 0) return error == -EINVAL ? PLAN_SYSTEM : PLAN_DECOMPRESS;
  if (!whole) memcpy(target + s->target, plain + s->skip, s->take);
  return 0;
}

/* Issues all reads of the plan at once. */
static int run_reads(struct plan *plan, const struct plan_step *steps, uint32_t count, uint8_t *target,
                     uint32_t length, struct plan_failure *failure) {
  size_t reads = 0;
  for (uint32_t i = 0; i < count; i++) {
    const struct plan_step *s = &steps[i];
    if (kind_of(s) != PLAN_COPY && kind_of(s) != PLAN_FETCH) continue;
    uint8_t *memory = destination(plan, s, target, length);
    if (memory == NULL) return fail(failure, i, PLAN_SYSTEM, EINVAL);
    plan->read_steps[reads] = i;
    plan->reads[reads++] =
        (struct io_read){.memory = memory, .offset = (int64_t)s->offset, .length = s->length, .fd = s->fd};
  }
  io_read_all(plan->io, plan->reads, reads);
  for (size_t i = 0; i < reads; i++)
    if (plan->reads[i].error != 0) return fail_read(failure, plan->read_steps[i], plan->reads[i].error);
  return 0;
}

int shim_plan_execute(struct plan *plan, const struct plan_step *steps, uint32_t count, uint8_t *target,
                      uint32_t length, struct plan_failure *failure) {
  if (count > plan->capacity) return fail(failure, count, PLAN_SYSTEM, EINVAL);
  if (plan->io != NULL && run_reads(plan, steps, count, target, length, failure) != 0) return -1;
  for (uint32_t i = 0; i < count; i++) {
    const struct plan_step *s = &steps[i];
    switch (kind_of(s)) {
      case PLAN_ZERO:
        if (!within(s->target, s->length, length)) return fail(failure, i, PLAN_SYSTEM, EINVAL);
        memset(target + s->target, 0, s->length);
        break;
      case PLAN_COPY:
      case PLAN_FETCH: {
        if (plan->io != NULL) break;
        uint8_t *memory = destination(plan, s, target, length);
        if (memory == NULL) return fail(failure, i, PLAN_SYSTEM, EINVAL);
        const int error = io_pread(s->fd, memory, s->length, (int64_t)s->offset);
        if (error != 0) return fail_read(failure, i, error);
        break;
      }
      case PLAN_BLOCK: {
        const int cause = run_block(plan, s, target, length);
        if (cause != 0) return fail(failure, i, (enum plan_cause)cause, cause == PLAN_SYSTEM ? EINVAL : 0);
        break;
      }
      default:
        return fail(failure, i, PLAN_SYSTEM, EINVAL);
    }
  }
  return 0;
}
