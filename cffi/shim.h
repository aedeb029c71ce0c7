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

#endif
