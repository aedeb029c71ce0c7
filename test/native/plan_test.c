/*
 * The plan executor: right plans bring right bytes by every engine, interrupted by signals all the time; hostile plans,
 * hostile blocks and files with O_DIRECT never make it leave its memory.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>

#include "check.h"
#include "codec.h"
#include "io.h"

enum { STEPS = 200, SCRATCH = 1 << 20, TARGET = 3 << 20, BLOCKS = 64, FILE_BYTES = (2 << 20) + 12345 };

static uint64_t seed = 2;

static struct block {
  int codec;
  bool checksum;
  uint32_t offset, stored, plain;
  uint8_t *bytes;
} blocks[BLOCKS];
static uint8_t content[FILE_BYTES];

static void on_signal(int signal) { (void)signal; }

static void make_content(void) {
  struct encoder *encoder = shim_encoder_open();
  for (size_t i = 0; i < FILE_BYTES; i++) content[i] = (uint8_t)next_random(&seed);
  uint32_t end = 333;
  for (int i = 0; i < BLOCKS; i++) {
    struct block *b = &blocks[i];
    *b = (struct block){.codec = i % 2 ? CODEC_LZ4 : CODEC_ZSTD, .checksum = i % 3 > 0, .offset = end};
    b->plain = i % 4 ? 4096u << below(&seed, 5) : 1 + below(&seed, BLOCK_MAX);
    b->bytes = malloc(b->plain);
    fill_text(&seed, b->bytes, b->plain);
    const int n = shim_encoder_run(encoder, b->codec, b->bytes, b->plain, content + end, FILE_BYTES - end);
    CHECK(n > 0);
    b->stored = (uint32_t)n;
    end += b->stored;
    const uint32_t checksum = shim_crc32c(BLOCK_SEED, content + b->offset, b->stored);
    CHECK(end + sizeof checksum < FILE_BYTES);
    if (b->checksum) memcpy(content + end, &checksum, sizeof checksum);
    end += b->checksum ? (uint32_t)sizeof checksum : 0;
  }
  shim_encoder_close(encoder);
}

static struct plan_step block_step(const struct block *b, uint32_t scratch) {
  return (struct plan_step){.kind = PLAN_BLOCK | (uint32_t)b->codec << PLAN_CODEC_SHIFT | (b->checksum ? PLAN_VERIFY : 0),
                            .length = b->plain, .stored = b->stored, .scratch = scratch, .take = b->plain};
}

static void test_right_plans(struct plan *plan, int fd) {
  static struct plan_step steps[STEPS];
  uint8_t *target = malloc(TARGET), *expected = malloc(TARGET);
  memset(target, 1, TARGET);
  memset(expected, 1, TARGET);
  for (int round = 0; round < 30; round++) {
    uint32_t count = 0, scratch = 0, at = below(&seed, 9000);
    while (count < STEPS - 2) {
      const struct block *b = &blocks[below(&seed, BLOCKS)];
      const uint32_t stored = b->stored + (b->checksum ? BLOCK_CHECKSUM : 0);
      /* Now and then longer than the staging memory of the O_DIRECT adaptor, and aligned now and then. */
      uint32_t length = below(&seed, 20) ? below(&seed, 9000) : below(&seed, FILE_BYTES);
      uint32_t offset = below(&seed, FILE_BYTES - length + 1);
      if (below(&seed, 3) == 0) {
        offset &= ~4095u;
        length &= ~4095u;
      }
      const uint32_t kind = below(&seed, 3);
      if (kind == 0) {
        if (length > TARGET - at) break;
        steps[count++] = (struct plan_step){.kind = PLAN_ZERO, .target = at, .length = length};
        memset(expected + at, 0, length);
      } else if (kind == 1) {
        if (length > TARGET - at) break;
        steps[count++] =
            (struct plan_step){.kind = PLAN_COPY, .target = at, .length = length, .fd = fd, .offset = offset};
        memcpy(expected + at, content + offset, length);
      } else {
        if (b->plain > TARGET - at || stored > SCRATCH - scratch) break;
        steps[count++] = (struct plan_step){
            .kind = PLAN_FETCH, .target = scratch, .length = stored, .fd = fd, .offset = b->offset};
        struct plan_step *s = &steps[count++];
        *s = block_step(b, scratch);
        s->target = at;
        if (below(&seed, 2)) {
          s->skip = below(&seed, b->plain);
          s->take = below(&seed, b->plain - s->skip + 1);
        }
        memcpy(expected + at, b->bytes + s->skip, s->take);
        scratch += stored;
        length = s->take;
      }
      at += length;
    }
    struct plan_failure failure;
    CHECK(shim_plan_execute(plan, steps, count, target, TARGET, &failure) == 0);
    CHECK(memcmp(target, expected, TARGET) == 0);
  }
  free(target);
  free(expected);
}

static void expect(struct plan *plan, struct plan_step step, enum plan_cause cause, int error) {
  uint8_t *target = malloc(5000);
  struct plan_failure failure;
  CHECK(shim_plan_execute(plan, &step, 1, target, 5000, &failure) == -1);
  CHECK(failure.step == 0 && failure.cause == cause && failure.error == error);
  free(target);
}

static void test_failures(struct plan *plan, int fd) {
  struct plan_step copy = {.kind = PLAN_COPY, .length = 100, .fd = fd, .offset = FILE_BYTES - 99};
  expect(plan, copy, PLAN_SHORT, 0);
  copy.offset = FILE_BYTES + 5000;
  expect(plan, copy, PLAN_SHORT, 0);
  copy.fd = 1 << 20;
  expect(plan, copy, PLAN_SYSTEM, EBADF);

  for (int i = 0; i < BLOCKS; i++) {
    const struct block *b = &blocks[i];
    const uint32_t stored = b->stored + (b->checksum ? BLOCK_CHECKSUM : 0);
    struct plan_step steps[] = {{.kind = PLAN_FETCH, .length = stored, .fd = fd, .offset = b->offset},
                                block_step(b, 0)};
    steps[1].take = 0;
    uint8_t target[1];
    struct plan_failure failure;
    CHECK(shim_plan_execute(plan, steps, 2, target, 0, &failure) == 0);
    steps[1].length--;
    steps[1].take = 0;
    CHECK(shim_plan_execute(plan, steps, 2, target, 0, &failure) == -1);
    CHECK(failure.step == 1 && failure.cause == PLAN_DECOMPRESS);
    if (!b->checksum) continue;
    steps[0].offset--;
    CHECK(shim_plan_execute(plan, steps, 2, target, 0, &failure) == -1);
    CHECK(failure.step == 1 && failure.cause == PLAN_CHECKSUM);
  }
}

static uint32_t hostile(void) {
  static const uint32_t edges[] = {0, 1, 4096, BLOCK_MAX, BLOCK_MAX + 1, SCRATCH - 1, SCRATCH, INT32_MAX,
                                   (uint32_t)INT32_MAX + 1, UINT32_MAX - 4, UINT32_MAX - 3, UINT32_MAX};
  return below(&seed, 2) ? below(&seed, 20000) : edges[below(&seed, sizeof edges / sizeof *edges)];
}

static void test_hostile_plans(struct plan *plan, int fd) {
  static const double offsets[] = {-1, 0x1p53, 0x1p63, 1e300, -1e300, 0.5, FILE_BYTES};
  for (int round = 0; round < 3000; round++) {
    struct plan_step steps[4];
    for (int i = 0; i < 4; i++) {
      struct plan_step *s = &steps[i];
      *s = (struct plan_step){.kind = below(&seed, 6), .target = hostile(), .length = hostile(), .take = hostile()};
      if (s->kind == PLAN_COPY || s->kind == PLAN_FETCH) {
        s->fd = below(&seed, 20) ? fd : -1;
        s->offset = below(&seed, 4) ? below(&seed, FILE_BYTES) : offsets[below(&seed, 7)];
        continue;
      }
      s->stored = hostile();
      s->scratch = hostile();
      s->skip = hostile();
      if (below(&seed, 2)) s->take = s->length;
      s->kind |= below(&seed, 4) << PLAN_CODEC_SHIFT | (below(&seed, 4) ? 0 : PLAN_VERIFY);
    }
    const uint32_t length = below(&seed, 2) ? 4096 : 70000;
    uint8_t *target = malloc(length);
    struct plan_failure failure = {0};
    if (shim_plan_execute(plan, steps, 4, target, length, &failure) != 0) CHECK(failure.step < 4 && failure.cause > 0);
    free(target);
  }
  struct plan_failure failure;
  CHECK(shim_plan_execute(plan, NULL, STEPS + 1, NULL, 0, &failure) == -1);
}

int main(void) {
  make_content();
  char path[] = "/var/tmp/overlaybd-plan-XXXXXX"; /* a disk, where O_DIRECT means something */
  const int fd = mkstemp(path);
  CHECK(fd >= 0 && write(fd, content, FILE_BYTES) == FILE_BYTES);
  int direct = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
  unlink(path);

  struct sigaction action = {.sa_handler = on_signal};
  sigaction(SIGALRM, &action, NULL);
  const struct itimerval often = {.it_interval.tv_usec = 500, .it_value.tv_usec = 500};
  setitimer(ITIMER_REAL, &often, NULL);

  struct plan *plan;
  CHECK(shim_plan_open(0, 1, IO_PSYNC, &plan) == -EINVAL && shim_plan_open(1, 0, IO_PSYNC, &plan) == -EINVAL);
  CHECK(shim_plan_open(1, 1, IO_URING + 1, &plan) == -EINVAL && shim_plan_open(1, 1, -1, &plan) == -EINVAL);
  for (int engine = IO_PSYNC; engine <= IO_URING; engine++) {
    const int error = shim_plan_open(STEPS, SCRATCH, engine, &plan);
    if (error == -EOPNOTSUPP) {
      printf("engine %d is not offered here\n", engine);
      continue;
    }
    CHECK(error == 0);
    test_right_plans(plan, fd);
    test_failures(plan, fd);
    test_hostile_plans(plan, fd);
    if (engine != IO_PSYNC && direct >= 0) {
      test_right_plans(plan, direct);
      test_failures(plan, direct);
      test_hostile_plans(plan, direct);
    }
    shim_plan_close(plan);
  }
  if (direct < 0) puts("no O_DIRECT on this file system: its adaptor was not tested");
  for (int i = 0; i < BLOCKS; i++) free(blocks[i].bytes);
  close(fd);
  if (direct >= 0) close(direct);
}
