/**
 * I/O worker entry for a disk whose bytes come from somewhere slow: block b, of 64 KiB, reads as bytes of value b + 1
 * once its flag is set, and is missing before.
 */
import { type Pointer, toArrayBuffer } from "bun:ffi";
import { isMainThread } from "node:worker_threads";
import type { Disk } from "../../src/device/disk.ts";
import { runWorker } from "../../src/device/worker.ts";

export const BLOCK = 65536;

export interface LazyDisk {
  readonly present: Uint8Array<SharedArrayBuffer>;
}

function openLazyDisk({ present }: LazyDisk): Disk {
  return {
    size: present.length * BLOCK,
    writable: false,
    read(offset, length, address) {
      const target = new Uint8Array(toArrayBuffer(address as Pointer, 0, length));
      const missing = [];
      for (let at = offset; at < offset + length; at = (Math.floor(at / BLOCK) + 1) * BLOCK) {
        const block = Math.floor(at / BLOCK);
        if (Atomics.load(present, block) === 0)
          missing.push({ layer: 0, offset: block * BLOCK, length: BLOCK });
        else target.fill(block + 1, at - offset, Math.min(length, (block + 1) * BLOCK - offset));
      }
      return missing.length > 0 ? missing : null;
    },
    write() {
      throw new Error("read-only");
    },
    discard() {
      throw new Error("read-only");
    },
    flush() {},
    close() {},
  };
}

if (!isMainThread) runWorker(openLazyDisk);
