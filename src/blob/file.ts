/** A blob that is a local file: everything is there, nothing is ever fetched. */
import { close, fstat, ftruncate, futimes, open, read, type Stats, write } from "node:fs";
import { promisify } from "node:util";
import { OverlaybdError } from "../error.ts";
import type { Verity } from "../format/verity/descriptor.ts";
import type { Blob, BlobView } from "./blob.ts";

/** System calls on plain descriptors: a `FileHandle` would be closed under a worker's feet when it is collected. */
export const openFile = promisify(open) as (
  path: string,
  flags: string | number,
  mode?: number,
) => Promise<number>;
export const statFile = promisify(fstat) as (fd: number) => Promise<Stats>;
export const truncateFile = promisify(ftruncate) as (fd: number, size: number) => Promise<void>;
export const closeFile = promisify(close);
const setTimes = promisify(futimes) as (fd: number, accessed: Date, modified: Date) => Promise<void>;
const readAt = promisify(read) as (
  fd: number,
  buffer: Uint8Array,
  offset: number,
  length: number,
  position: number,
) => Promise<{ bytesRead: number }>;
const writeAt = promisify(write) as (
  fd: number,
  buffer: Uint8Array,
  offset: number,
  length: number,
  position: number,
) => Promise<{ bytesWritten: number }>;

/**
 * Opens a local file for reading.
 * @param verity the Merkle tree in it.
 * @throws OverlaybdError E_NOT_FOUND; E_IO when it cannot be opened or is no regular file.
 */
export async function openFileBlob(path: string, verity?: Verity): Promise<Blob> {
  let fd: number;
  try {
    fd = await openFile(path, "r");
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === "ENOENT") {
      throw new OverlaybdError("E_NOT_FOUND", `layer file ${path} does not exist`, { cause });
    }
    throw new OverlaybdError("E_IO", `cannot open layer file ${path}: ${(cause as Error).message}`, {
      cause,
    });
  }
  const stat = await statFile(fd);
  if (!stat.isFile()) {
    await closeFile(fd);
    throw new OverlaybdError("E_IO", `layer file ${path} is not a regular file`);
  }
  return new FileBlob({ name: path, size: stat.size, fd }, verity);
}

class FileBlob implements Blob {
  readonly stats = [];
  #closed = false;

  constructor(
    readonly view: BlobView,
    readonly verity?: Verity,
  ) {}

  get name(): string {
    return this.view.name;
  }

  get size(): number {
    return this.view.size;
  }

  async read(offset: number, length: number): Promise<Uint8Array> {
    checkRange(this.view, offset, length);
    const bytes = new Uint8Array(length);
    await readExactly(this.view.fd, this.name, bytes, offset);
    return bytes;
  }

  async fetch(): Promise<void> {}

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    await closeFile(this.view.fd);
  }
}

/** @throws OverlaybdError E_CORRUPT when [offset, offset + length) is not inside the blob. */
export function checkRange(blob: { name: string; size: number }, offset: number, length: number): void {
  if (offset >= 0 && length >= 0 && offset + length <= blob.size) return;
  const range = `bytes ${offset} to ${offset + length}`;
  throw new OverlaybdError(
    "E_CORRUPT",
    `${blob.name} is ${blob.size} bytes long, but ${range} are referred to`,
  );
}

/**
 * Fills `bytes` from `offset`.
 * @throws OverlaybdError E_IO when the read fails, E_CORRUPT when the file ends before.
 */
export async function readExactly(
  fd: number,
  name: string,
  bytes: Uint8Array,
  offset: number,
): Promise<void> {
  for (let done = 0; done < bytes.length; ) {
    let count: number;
    try {
      count = (await readAt(fd, bytes, done, bytes.length - done, offset + done)).bytesRead;
    } catch (cause) {
      throw new OverlaybdError(
        "E_IO",
        `cannot read ${name} at ${offset + done}: ${(cause as Error).message}`,
        {
          cause,
        },
      );
    }
    if (count === 0) {
      const wanted = `${bytes.length} bytes at ${offset}`;
      throw new OverlaybdError("E_CORRUPT", `${name} ends at ${offset + done} where ${wanted} were expected`);
    }
    done += count;
  }
}

/** Notes that a file was used now, as its time of modification. */
export function touchFile(fd: number): Promise<void> {
  const now = new Date();
  return setTimes(fd, now, now);
}

/** Writes all of `bytes` at `offset`. @throws the system's error, with its `code`. */
export async function writeExactly(fd: number, bytes: Uint8Array, offset: number): Promise<void> {
  for (let done = 0; done < bytes.length; ) {
    done += (await writeAt(fd, bytes, done, bytes.length - done, offset + done)).bytesWritten;
  }
}
