/** ZFiles in memory: written by the real writer through a temporary file, read as sources. */
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { OverlaybdError } from "../../src/error.ts";
import type { ByteSource } from "../../src/format/source.ts";
import { openZFile } from "../../src/format/zfile/open.ts";
import { ZFileSource } from "../../src/format/zfile/reader.ts";
import { type ZFileOptions, ZFileWriter } from "../../src/format/zfile/writer.ts";
import { random } from "../fixtures/random.ts";

export const DEFAULTS: ZFileOptions = {
  codec: 1,
  blockSize: 4096,
  checksum: true,
  overwriteHeader: true,
  threads: 2,
};

/** Bytes in memory as a source; `largest` is the longest single read so far. */
export class MemorySource implements ByteSource {
  largest = 0;

  constructor(
    private readonly bytes: Uint8Array,
    readonly name = "memory",
    readonly size = bytes.length,
  ) {}

  async read(offset: number, length: number): Promise<Uint8Array> {
    this.largest = Math.max(this.largest, length);
    if (!(offset >= 0 && length >= 0 && offset + length <= this.bytes.length)) {
      throw new OverlaybdError("E_CORRUPT", `${length} bytes at ${offset} of ${this.bytes.length}`);
    }
    return this.bytes.subarray(offset, offset + length);
  }
}

/** Calls `use` with a folder that is gone when it returns, or when the promise it returns is settled. */
export function withFolder<T>(use: (folder: string) => T): T {
  const folder = mkdtempSync(join(tmpdir(), "overlaybd-zfile-"));
  const remove = () => rmSync(folder, { recursive: true });
  try {
    const result = use(folder);
    if (result instanceof Promise) return result.finally(remove) as T;
    remove();
    return result;
  } catch (error) {
    remove();
    throw error;
  }
}

/** The ZFile that the writer makes of `pieces`. */
export function writeZFile(pieces: readonly Uint8Array[], options: Partial<ZFileOptions> = {}): Uint8Array {
  return withFolder((folder) => {
    const path = join(folder, "zfile");
    const fd = openSync(path, "wx+");
    const writer = new ZFileWriter({ fd, path }, 0, { ...DEFAULTS, ...options });
    for (const piece of pieces) writer.write(piece);
    writer.finish();
    closeSync(fd);
    return new Uint8Array(readFileSync(path));
  });
}

/** Opens a ZFile and reads all of it, in pieces. */
export async function readZFile(zfile: Uint8Array, piece = 1 << 20): Promise<Uint8Array> {
  const stored = new MemorySource(zfile);
  const source = new ZFileSource(stored, await openZFile(stored));
  const plain = new Uint8Array(source.size);
  for (let at = 0; at < plain.length; at += piece) {
    plain.set(await source.read(at, Math.min(piece, plain.length - at)), at);
  }
  return plain;
}

/** `length` bytes with stretches of noise, of text and of zeros. */
export function sample(length: number, seed: number): Uint8Array {
  const next = random(seed);
  const bytes = new Uint8Array(length);
  for (let at = 0; at < length; ) {
    const kind = Math.floor(next() * 3);
    const end = Math.min(length, at + 1 + Math.floor(next() * 20000));
    for (; at < end; at++) bytes[at] = kind === 0 ? next() * 256 : kind === 1 ? 97 + next() * next() * 26 : 0;
  }
  return bytes;
}

/** The error code with which `attempt` fails; fails the test's expectation when it does not fail that way. */
export async function codeOf(attempt: Promise<unknown>): Promise<string> {
  try {
    await attempt;
  } catch (error) {
    if (error instanceof OverlaybdError) return error.code;
    throw error;
  }
  return "no error";
}
