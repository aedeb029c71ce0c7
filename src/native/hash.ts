/** Digests of whole files, and of the chunks that memory or a file is made of. */
import { closeSync, fstatSync, openSync } from "node:fs";
import { Sha256 } from "./codec.ts";
import { submit } from "./pool.ts";

/** Bytes of a SHA-256 digest. */
export const DIGEST_BYTES = 32;

/**
 * SHA-256 (64 hexadecimal digits) and size in bytes of the file at `path`, at the speed of one core. Blocking: for
 * workers and tools, never for the main thread of a daemon.
 * @throws SystemError ENODATA when the file shrinks meanwhile; other errors as `node:fs` throws them.
 */
export function hashFile(path: string): { sha256: string; size: number } {
  const hash = new Sha256();
  const fd = openSync(path, "r");
  try {
    const { size } = fstatSync(fd);
    hash.updateFile(fd, 0, size);
    return { sha256: hash.digest(), size };
  } finally {
    closeSync(fd);
    hash.close();
  }
}

/**
 * The SHA-256 digests, one after another, of each `chunkBytes` of `bytes` (the last chunk may be shorter), with the byte
 * `prefix` before each chunk. Computed on a thread of the pool; `bytes` must not change meanwhile.
 */
export async function hashChunks(bytes: Uint8Array, chunkBytes: number, prefix: number): Promise<Uint8Array> {
  const digests = digestsOf(bytes.length, chunkBytes);
  if (bytes.length > 0) {
    await submit("hashChunks", [bytes, bytes.length, chunkBytes, prefix, digests, digests.length]);
  }
  return digests;
}

/**
 * The same of the first `length` bytes of a file, read once and added to `whole` too, which must not be used meanwhile.
 * `chunkBytes` is a power of two up to 256 KiB.
 * @throws SystemError of pread; ENODATA when the file is shorter.
 */
export async function hashFileChunks(
  whole: Sha256,
  fd: number,
  length: number,
  chunkBytes: number,
  prefix: number,
): Promise<Uint8Array> {
  const digests = digestsOf(length, chunkBytes);
  const job = [whole.address, fd, length, chunkBytes, prefix, digests, digests.length];
  if (length > 0) await submit("hashFileChunks", job, `fd ${fd}`);
  return digests;
}

function digestsOf(length: number, chunkBytes: number): Uint8Array {
  return new Uint8Array(Math.ceil(length / chunkBytes) * DIGEST_BYTES);
}
