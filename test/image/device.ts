/** Reading whole virtual disks in tests. */
import { createHash } from "node:crypto";
import { existsSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import { $ } from "bun";
import { segmentEnd, segmentStart } from "../../src/format/lsmt/segments.ts";
import { VirtualDisk } from "../../src/image/disk.ts";
import type { OpenImage } from "../../src/image/open.ts";
import { readDisk } from "../../src/image/read.ts";
import { golden } from "../golden/golden.ts";

const BLOCK = 4096;
const WINDOW = 1 << 20;
const zeros = new Uint8Array(BLOCK);

export interface DeviceDigest {
  readonly virtual_size: number;
  readonly nonzero_4k_blocks: number;
  readonly digest: string;
}

/**
 * Size, number of non-zero 4 KiB blocks, and SHA-256 over the number (u64le) and content of each, as the golden files'
 * devices.json has them. Reads every MiB that a segment, or the upper layer if there is one, touches.
 */
export async function digestDevice(image: OpenImage): Promise<DeviceDigest> {
  const { tables } = image;
  const windows = new Set<number>();
  if (tables.upper) for (let i = 0; i < tables.size / WINDOW; i++) windows.add(i);
  for (let i = 0; i < tables.index.count; i++) {
    const last = Math.floor((segmentEnd(tables.index, i) * 512 - 1) / WINDOW);
    for (let w = Math.floor((segmentStart(tables.index, i) * 512) / WINDOW); w <= last; w++) windows.add(w);
  }
  const disk = new VirtualDisk(tables);
  const bytes = new Uint8Array(WINDOW);
  const hash = createHash("sha256");
  let count = 0;
  try {
    for (const window of [...windows].sort((a, b) => a - b)) {
      const length = Math.min(WINDOW, disk.size - window * WINDOW);
      await readDisk(image, disk, window * WINDOW, bytes.subarray(0, length));
      for (let at = 0; at < length; at += BLOCK) {
        const block = bytes.subarray(at, at + BLOCK);
        if (Buffer.compare(block, zeros) === 0) continue;
        const number = Buffer.alloc(8);
        number.writeBigUInt64LE(BigInt((window * WINDOW + at) / BLOCK));
        hash.update(number).update(block);
        count++;
      }
    }
  } finally {
    disk.close();
  }
  return { virtual_size: disk.size, nonzero_4k_blocks: count, digest: hash.digest("hex") };
}

/** Path of a golden file, unpacked into `directory` when it is kept as .xz. */
export async function unpacked(name: string, directory: string): Promise<string> {
  if (existsSync(golden(name))) return golden(name);
  const path = join(directory, basename(name));
  // Through dd, so that what is sparse stays so: holes mean something in a sparse writable layer.
  if (!existsSync(path))
    await $`xz -dc ${golden(`${name}.xz`)} | dd of=${path} bs=4096 conv=sparse status=none`;
  return path;
}

/** Writes an image config and returns its path. */
export function writeConfig(directory: string, config: object): string {
  const path = join(directory, `config-${Bun.hash(JSON.stringify(config)).toString(16)}.json`);
  writeFileSync(path, JSON.stringify(config));
  return path;
}
