/** Writing a virtual disk to a raw file. */
import { randomBytes } from "node:crypto";
import { open, rename, rm } from "node:fs/promises";
import { writeExactly } from "../blob/file.ts";
import { OverlaybdError } from "../error.ts";
import { VirtualDisk } from "./disk.ts";
import type { OpenImage } from "./open.ts";
import { readDisk } from "./read.ts";

/** Read and written at once; what of it is missing is fetched in parallel. */
const CHUNK_BYTES = 8 << 20;
/** Zeros are left out in multiples of this: the block size of most file systems. */
const HOLE_BYTES = 4096;
const zeros = new Uint8Array(HOLE_BYTES);

/**
 * Writes the disk to `path` as a sparse raw file, which has that name only once it is complete and on disk. An existing
 * file is replaced.
 * @param progress is told the share that is done, from 0 to 1.
 * @throws OverlaybdError as reading does; E_IO when the file cannot be written, nothing is left of it then.
 */
export async function exportDisk(
  image: OpenImage,
  path: string,
  progress: (done: number) => void,
): Promise<void> {
  const partial = `${path}.${randomBytes(6).toString("hex")}.partial`;
  const disk = new VirtualDisk(image.tables);
  try {
    const file = await open(partial, "wx", 0o644);
    try {
      await file.truncate(disk.size);
      await copyData(image, disk, file.fd, progress);
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(partial, path);
  } catch (cause) {
    await rm(partial, { force: true });
    if (cause instanceof OverlaybdError) throw cause;
    throw new OverlaybdError("E_IO", `cannot write ${path}: ${(cause as Error).message}`, { cause });
  } finally {
    disk.close();
  }
}

async function copyData(
  image: OpenImage,
  disk: VirtualDisk,
  fd: number,
  progress: (done: number) => void,
): Promise<void> {
  let total = 0;
  for (const { length } of disk.dataRanges()) total += length;
  const buffer = new Uint8Array(CHUNK_BYTES);
  let done = 0;
  for (const { offset, length } of disk.dataRanges()) {
    for (let at = 0; at < length; at += CHUNK_BYTES) {
      const bytes = buffer.subarray(0, Math.min(CHUNK_BYTES, length - at));
      await readDisk(image, disk, offset + at, bytes);
      await writeNonZero(fd, bytes, offset + at);
      done += bytes.length;
      progress(done / total);
    }
  }
}

/** Writes the runs of `bytes` that are not zero. */
async function writeNonZero(fd: number, bytes: Uint8Array, offset: number): Promise<void> {
  let begin = -1;
  for (let at = 0; at <= bytes.length; at += HOLE_BYTES) {
    const data = at < bytes.length && !isZero(bytes.subarray(at, at + HOLE_BYTES));
    if (data && begin < 0) begin = at;
    if (!data && begin >= 0) {
      await writeExactly(fd, bytes.subarray(begin, at), offset + begin);
      begin = -1;
    }
  }
  if (begin >= 0) await writeExactly(fd, bytes.subarray(begin), offset + begin);
}

function isZero(bytes: Uint8Array): boolean {
  return Buffer.compare(bytes, zeros.subarray(0, bytes.length)) === 0;
}
