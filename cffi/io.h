/* Reading many file ranges at once, by one of four interfaces of the system. For plan.c. */
#ifndef OVERLAYBD_IO_H
#define OVERLAYBD_IO_H

#include <stddef.h>
#include <stdint.h>

/* Numbered as the option ioEngine of overlaybd.json, which has the first three. */
enum io_engine { IO_PSYNC, IO_LIBAIO, IO_POSIX_AIO, IO_URING };

/* What a read ends with when its file ends inside the range; outside the range of errno. */
#define IO_SHORT (-4096)

struct io_read {
  uint8_t *memory;
  int64_t offset;
  uint32_t length;
  int fd;
  uint32_t done; /* bytes read so far; 0 at first */
  int error;     /* 0, negative errno or IO_SHORT; 0 at first */
};

struct io;

/* Allocates everything that reading will need. -EOPNOTSUPP when the kernel or a sandbox forbids the engine. */
int io_open(enum io_engine engine, struct io **io);
/* NULL is allowed. */
void io_close(struct io *io);

/* Reads one range with pread(2): 0, negative errno or IO_SHORT. */
int io_pread(int fd, uint8_t *memory, uint32_t length, int64_t offset);

/*
 * Brings every read to its end: done == length or an error. No request is under way when it returns. Descriptors
 * opened with O_DIRECT may be read at any offset and length; when their file system refuses even aligned reads,
 * O_DIRECT is taken from the descriptor. Not for IO_PSYNC, where io_pread does.
 */
void io_read_all(struct io *io, struct io_read *reads, size_t count);

#endif
