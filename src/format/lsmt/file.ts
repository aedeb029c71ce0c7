/** The local files of a writable layer. Synchronous: for workers and tools. */
import { closeSync, fdatasyncSync, fstatSync, ftruncateSync, openSync, readSync, writeSync } from "node:fs";
import { OverlaybdError } from "../../error.ts";
import { writeFromMemory } from "../../native/range.ts";
import type { ByteSource } from "../source.ts";

/** How to open: an existing file for reading, or for both; or a new one (mode 0644) that must not exist yet. */
export type OpenMode = "read" | "update" | "create";

const FLAGS: Record<OpenMode, string> = { read: "r", update: "r+", create: "wx+" };

/** An open local file with errors that name it. Assumes nobody else changes its size. */
export class LocalFile implements ByteSource {
  #size: number;
  #syncFailure: OverlaybdError | undefined;

  private constructor(
    /** Path it was opened by. */
    readonly name: string,
    readonly fd: number,
  ) {
    this.#size = this.attempt("stat", () => fstatSync(fd).size);
  }

  /** @throws OverlaybdError E_NOT_FOUND, E_EXISTS or E_IO. */
  static open(path: string, mode: OpenMode): LocalFile {
    return new LocalFile(
      path,
      named(path, "open", () => openSync(path, FLAGS[mode], 0o644)),
    );
  }

  get size(): number {
    return this.#size;
  }

  async read(offset: number, length: number): Promise<Uint8Array> {
    return this.readSync(offset, length);
  }

  /** Like `read`, at once. */
  readSync(offset: number, length: number): Uint8Array {
    const bytes = Buffer.allocUnsafe(length);
    for (let done = 0; done < length; ) {
      const count = this.attempt("read", () => readSync(this.fd, bytes, done, length - done, offset + done));
      if (count === 0) {
        throw new OverlaybdError(
          "E_CORRUPT",
          `${this.name}: ends at byte ${offset + done}, ${length} bytes at ${offset} wanted`,
        );
      }
      done += count;
    }
    return bytes;
  }

  /** Writes all of `bytes` at byte `offset`. */
  write(offset: number, bytes: Uint8Array): void {
    for (let done = 0; done < bytes.length; ) {
      done += this.attempt("write", () =>
        writeSync(this.fd, bytes, done, bytes.length - done, offset + done),
      );
    }
    this.#size = Math.max(this.#size, offset + bytes.length);
  }

  /** Writes `length` bytes of native memory at `address` to byte `offset`. */
  writeFrom(offset: number, address: number, length: number): void {
    this.attempt("write", () => writeFromMemory(this.fd, address, length, offset));
    this.#size = Math.max(this.#size, offset + length);
  }

  truncate(size: number): void {
    this.attempt("truncate", () => ftruncateSync(this.fd, size));
    this.#size = size;
  }

  /**
   * Makes all written bytes durable. After a failure the kernel may have dropped them, and says so only once; so every
   * later call fails too.
   */
  sync(): void {
    if (this.#syncFailure) throw this.#syncFailure;
    try {
      this.attempt("sync", () => fdatasyncSync(this.fd));
    } catch (error) {
      this.#syncFailure = error as OverlaybdError;
      throw error;
    }
  }

  close(): void {
    closeSync(this.fd);
  }

  /** Runs a system call on this file; its failure becomes an E_IO error that names the file. */
  attempt<T>(action: string, call: () => T): T {
    return named(this.name, action, call);
  }
}

function named<T>(path: string, action: string, call: () => T): T {
  try {
    return call();
  } catch (cause) {
    const { code, message } = cause as NodeJS.ErrnoException;
    if (code === "EEXIST") {
      throw new OverlaybdError("E_EXISTS", `failed to open file '${path}', 17: File exists`, { cause });
    }
    if (code === "ENOENT") throw new OverlaybdError("E_NOT_FOUND", `${path}: does not exist`, { cause });
    throw new OverlaybdError("E_IO", `${path}: cannot ${action}: ${message}`, { cause });
  }
}
