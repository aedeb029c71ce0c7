/* CRC-32C: by the processor's own instruction where there is one, else eight bytes at a time by tables. */
#include <string.h>

#include "codec.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_acle.h>
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "words are taken from memory as they are");

#define POLYNOMIAL 0x82F63B78u /* reflected: bit i is the coefficient of x^(31-i) */

/* table[k][b] is the checksum of byte b followed by k zero bytes. */
static uint32_t table[8][256];
static bool hardware;

static uint64_t word(const uint8_t *p) {
  uint64_t value;
  memcpy(&value, p, sizeof value);
  return value;
}

uint32_t crc32c_portable(uint32_t seed, const void *bytes, size_t length) {
  const uint8_t *p = bytes;
  uint32_t crc = seed;
  for (; length >= 8; p += 8, length -= 8) {
    const uint64_t w = word(p) ^ crc;
    crc = table[7][w & 255] ^ table[6][w >> 8 & 255] ^ table[5][w >> 16 & 255] ^ table[4][w >> 24 & 255] ^
          table[3][w >> 32 & 255] ^ table[2][w >> 40 & 255] ^ table[1][w >> 48 & 255] ^ table[0][w >> 56];
  }
  for (; length > 0; p++, length--) crc = table[0][(crc ^ *p) & 255] ^ crc >> 8;
  return crc;
}

#if defined(__x86_64__)

static bool detect(void) {
  __builtin_cpu_init();
  return __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("pclmul");
}

/*
 * The checksum of `crc` followed by n zero bytes, for power = x^(8n - 33) mod the polynomial: the carry-less product
 * of two reflected words is short of one factor x, and the crc32 instruction multiplies by x^32 while it reduces.
 */
__attribute__((target("sse4.2,pclmul"))) static uint32_t shift(uint64_t crc, uint32_t power) {
  const __m128i product = _mm_clmulepi64_si128(_mm_cvtsi64_si128((int64_t)crc), _mm_cvtsi32_si128((int)power), 0);
  return (uint32_t)_mm_crc32_u64(0, (uint64_t)_mm_cvtsi128_si64(product));
}

/* x^(8n - 33) mod the polynomial. */
#define POWER_2048 0xa51b6135u
#define POWER_1024 0x170076fau
#define POWER_256 0xb9e02b86u
#define POWER_128 0x0d3b6092u

/*
 * Three stripes at a time, because the instruction takes three cycles but one can start every cycle. `twice` and
 * `once` are the powers for two stripes and one of zeros.
 */
#define STRIPES(bytes, twice, once)                                                  \
  for (; length >= 3 * (bytes); p += 3 * (bytes), length -= 3 * (bytes)) {           \
    uint64_t second = 0, third = 0;                                                  \
    for (const uint8_t *end = p + (bytes), *q = p; q < end; q += 8) {                \
      crc = _mm_crc32_u64(crc, word(q));                                             \
      second = _mm_crc32_u64(second, word(q + (bytes)));                             \
      third = _mm_crc32_u64(third, word(q + 2 * (bytes)));                           \
    }                                                                                \
    crc = shift(crc, (twice)) ^ shift(second, (once)) ^ third;                       \
  }

__attribute__((target("sse4.2,pclmul"))) uint32_t crc32c_hardware(uint32_t seed, const void *bytes, size_t length) {
  const uint8_t *p = bytes;
  uint64_t crc = seed;
  STRIPES(1024, POWER_2048, POWER_1024)
  STRIPES(128, POWER_256, POWER_128)
  for (; length >= 8; p += 8, length -= 8) crc = _mm_crc32_u64(crc, word(p));
  for (; length > 0; p++, length--) crc = _mm_crc32_u8((uint32_t)crc, *p);
  return (uint32_t)crc;
}

#elif defined(__aarch64__)

static bool detect(void) { return (getauxval(AT_HWCAP) & HWCAP_CRC32) != 0; }

__attribute__((target("+crc"))) uint32_t crc32c_hardware(uint32_t seed, const void *bytes, size_t length) {
  const uint8_t *p = bytes;
  uint32_t crc = seed;
  for (; length >= 8; p += 8, length -= 8) crc = __crc32cd(crc, word(p));
  for (; length > 0; p++, length--) crc = __crc32cb(crc, *p);
  return crc;
}

#else

static bool detect(void) { return false; }
uint32_t crc32c_hardware(uint32_t seed, const void *bytes, size_t length) {
  return crc32c_portable(seed, bytes, length);
}

#endif

__attribute__((constructor)) static void prepare(void) {
  for (uint32_t byte = 0; byte < 256; byte++) {
    uint32_t crc = byte;
    for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? POLYNOMIAL : 0);
    table[0][byte] = crc;
  }
  for (int zeros = 1; zeros < 8; zeros++)
    for (int byte = 0; byte < 256; byte++)
      table[zeros][byte] = table[0][table[zeros - 1][byte] & 255] ^ table[zeros - 1][byte] >> 8;
  hardware = detect();
}

bool crc32c_is_hardware(void) { return hardware; }

uint32_t shim_crc32c(uint32_t seed, const void *bytes, uint32_t length) {
  return hardware ? crc32c_hardware(seed, bytes, length) : crc32c_portable(seed, bytes, length);
}
