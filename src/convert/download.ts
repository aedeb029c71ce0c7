/**
 * Source layers on their way from a registry: several at a time, so that the link stays busy while one is unpacked, and
 * readable from the first byte on, so that unpacking need not wait for the last.
 */
import { closeSync, write } from "node:fs";
import { type FileHandle, open, rm } from "node:fs/promises";
import { promisify } from "node:util";
import { OverlaybdError } from "../error.ts";
import { openPipe } from "../native/descriptor.ts";
import type { Descriptor } from "../registry/descriptor.ts";
import type { Repository } from "../registry/repository.ts";
import { fileInput, type Input } from "./input.ts";

const COPY_BYTES = 1 << 20;

/** Waits, in a thread of the runtime's pool, while the pipe is full; fails with EPIPE once its reader is gone. */
const writeSome = promisify(write);

/** One blob, spooled to a file while it arrives. */
export class Download {
  /** Bytes in the spool file. */
  #arrived = 0;
  #ended = false;
  /** Wakes who waits for more bytes. */
  #progress = Promise.withResolvers<void>();
  readonly #abort = new AbortController();
  readonly #done: Promise<void>;

  /** Starts at once. `path` is the spool file, which must not exist. */
  constructor(
    readonly repository: Repository,
    readonly blob: Descriptor,
    readonly path: string,
  ) {
    this.#done = this.#run().finally(() => {
      this.#ended = true;
      this.#progress.resolve();
    });
    // Whoever opens the download hears of a failure; until then it is not an unhandled one.
    this.#done.catch(() => {});
  }

  async #run(): Promise<void> {
    const stream = await this.repository.blob(this.blob);
    const file = await open(this.path, "wx", 0o600).catch((cause) => {
      throw new OverlaybdError("E_IO", `cannot write ${this.path}: ${cause.message}`, { cause });
    });
    try {
      for await (const chunk of stream) {
        this.#abort.signal.throwIfAborted();
        await writeAll(file, chunk, this.path);
        this.#arrived += chunk.length;
        this.#progress.resolve();
        this.#progress = Promise.withResolvers();
      }
    } finally {
      await file.close();
    }
  }

  /** Resolves when the blob is here and its digest right. */
  get done(): Promise<void> {
    return this.#done;
  }

  /** The blob's bytes as they arrive. May be called once. */
  async open(): Promise<Input> {
    if (this.#ended) {
      await this.#done;
      return fileInput(this.path, true);
    }
    const { readEnd, writeEnd } = openPipe();
    const complete = this.#feed(writeEnd);
    complete.catch(() => {});
    return { fd: readEnd, verified: true, complete, close: () => closeSync(readEnd) };
  }

  async #feed(writeEnd: number): Promise<void> {
    try {
      while (!this.#ended && this.#arrived === 0) await this.#progress.promise;
      if (this.#arrived > 0) await this.#copy(writeEnd);
      await this.#done;
    } finally {
      closeSync(writeEnd);
    }
  }

  async #copy(writeEnd: number): Promise<void> {
    const file = await open(this.path, "r");
    const buffer = Buffer.allocUnsafe(COPY_BYTES);
    try {
      for (let sent = 0; ; ) {
        const wait = this.#progress.promise;
        if (sent === this.#arrived) {
          if (this.#ended) return;
          await wait;
          continue;
        }
        const { bytesRead } = await file.read(buffer, 0, Math.min(COPY_BYTES, this.#arrived - sent), sent);
        for (let done = 0; done < bytesRead; ) {
          done += (await writeSome(writeEnd, buffer, done, bytesRead - done)).bytesWritten;
        }
        sent += bytesRead;
      }
    } finally {
      await file.close();
    }
  }

  /** Stops, and removes what has arrived. */
  async discard(): Promise<void> {
    this.#abort.abort(new OverlaybdError("E_IO", `download of ${this.blob.digest} was stopped`));
    await this.#done.catch(() => {});
    await rm(this.path, { force: true });
  }
}

async function writeAll(file: FileHandle, bytes: Uint8Array, path: string): Promise<void> {
  try {
    for (let done = 0; done < bytes.length; ) done += (await file.write(bytes, done)).bytesWritten;
  } catch (cause) {
    throw new OverlaybdError("E_IO", `writing ${path} failed: ${(cause as Error).message}`, { cause });
  }
}
