/** Digests of whole files. */
import { closeSync, fstatSync, openSync } from "node:fs";
import { Sha256 } from "./codec.ts";

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
