/* What the programs that sanitize.test.ts runs have in common: they end at the first thing that is not so. */
#ifndef CHECK_H
#define CHECK_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define CHECK(condition)                                                        \
  do {                                                                          \
    if (!(condition)) {                                                         \
      fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);   \
      exit(1);                                                                  \
    }                                                                           \
  } while (0)

/* A repeatable sequence (splitmix64). */
static inline uint64_t next_random(uint64_t *state) {
  uint64_t z = *state += 0x9e3779b97f4a7c15u;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return z ^ z >> 31;
}

static inline uint32_t below(uint64_t *state, uint32_t limit) { return (uint32_t)(next_random(state) % limit); }

/* Bytes that compress to about half. */
static inline void fill_text(uint64_t *state, uint8_t *bytes, size_t length) {
  for (size_t i = 0; i < length; i++) {
    const size_t back = 1 + below(state, 64);
    bytes[i] = below(state, 4) > 0 && back <= i ? bytes[i - back] : (uint8_t)('a' + below(state, 26));
  }
}

#endif
