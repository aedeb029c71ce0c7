/**
 * I/O worker entry whose disks are plain files: what the transport costs without image, index and compression, and a
 * disk that tests can predict.
 */
import { dlopen, type Pointer } from "bun:ffi";
import { closeSync, fdatasyncSync, fstatSync, openSync } from "node:fs";
import { isMainThread } from "node:worker_threads";
import type { Disk } from "../../src/device/disk.ts";
import { runWorker } from "../../src/device/worker.ts";

export interface RawDisk {
  readonly path: string;
  readonly writable: boolean;
}

const { symbols: libc } = dlopen("libc.so.6", {
  pread: { args: ["i32", "ptr", "u64", "i64"], returns: "i64" },
  pwrite: { args: ["i32", "ptr", "u64", "i64"], returns: "i64" },
  fallocate: { args: ["i32", "i32", "i64", "i64"], returns: "i32" },
});

function openRawDisk({ path, writable }: RawDisk): Disk {
  const fd = openSync(path, writable ? "r+" : "r");
  return {
    size: fstatSync(fd).size,
    writable,
    read(offset, length, address) {
      const done = libc.pread(fd, address as Pointer, length, offset);
      if (Number(done) !== length) throw new Error(`${path}: short read`);
      return null;
    },
    write(offset, length, address) {
      const done = libc.pwrite(fd, address as Pointer, length, offset);
      if (Number(done) !== length) throw new Error(`${path}: short write`);
    },
    discard(offset, length) {
      const PUNCH_HOLE_KEEP_SIZE = 3;
      if (libc.fallocate(fd, PUNCH_HOLE_KEEP_SIZE, offset, length) !== 0)
        throw new Error(`${path}: fallocate failed`);
    },
    flush: () => fdatasyncSync(fd),
    close: () => closeSync(fd),
  };
}

if (!isMainThread) runWorker(openRawDisk);
