/**
 * Completing one layer of an image in the layer's own directory (cache-download-prefetch.md section 5.2): `.download` is
 * filled unit by unit, verified as a whole against the layer's digest, and only then becomes `overlaybd.commit`, which the
 * next open of the layer finds. Who fills a directory holds a lock on it. What a killed process leaves is gone on with:
 * each unit is believed as `store.ts` tells.
 */
import { constants } from "node:fs";
import { access, open, rename, rm } from "node:fs/promises";
import { join } from "node:path";
import { OverlaybdError } from "../error.ts";
import { Sha256 } from "../native/codec.ts";
import { tryLock } from "../native/descriptor.ts";
import { fsync } from "../native/pool.ts";
import { abortable } from "./abortable.ts";
import type { Blob } from "./blob.ts";
import type { FileCache } from "./cache.ts";
import { downloadPaths } from "./directory.ts";
import { readExactly } from "./file.ts";
import type { RangeOrigin } from "./origin.ts";
import type { UnitStore } from "./store.ts";

/** The name under which a layer's directory holds the whole layer (image-config.md section 1.1). */
const COMMITTED = "overlaybd.commit";
/** Hashed in one go; between two of them other work is done. */
const HASH_BYTES = 256 << 10;
/** Requests under way at the same time. */
const PARALLEL_REQUESTS = 4;
const PAGE_BYTES = 4096;

/** A layer to be completed. */
export interface DownloadTarget {
  readonly digest: string;
  /** Where the missing bytes come from. */
  readonly origin: RangeOrigin;
  /** The layer's directory. */
  readonly directory: string;
  /** The layer as its readers have it open: what it has is not fetched, and in the end it is switched to the file. */
  readonly blob: Blob;
}

/** What a download is bound by, and whom it tells. */
export interface DownloadLimits {
  /** Bytes in a request, at least 4096. */
  readonly blockSize: number;
  /** Raised when nobody wants the layer any more. */
  readonly signal: AbortSignal;
  /** Waits until `bytes` more may be fetched. */
  pace(bytes: number): Promise<void>;
  /** Bytes that were fetched from the origin, or copied from what the readers' blob has. */
  progress(fetched: number, copied: number): void;
}

export class LayerDownload {
  /** The whole turned out to be wrong: what the readers have may be the reason. */
  #distrust = false;

  constructor(
    readonly target: DownloadTarget,
    private readonly cache: FileCache,
    private readonly limits: DownloadLimits,
  ) {}

  /**
   * Goes on until the directory holds the layer and its readers read that; false when somebody else is at work on it. What
   * was fetched before a failure is not fetched again, except after E_CORRUPT.
   * @throws OverlaybdError E_CORRUPT when the whole has not the layer's digest; what the origin throws; the system's errors;
   * the signal's reason.
   */
  async attempt(): Promise<boolean> {
    const { directory, blob } = this.target;
    const committed = join(directory, COMMITTED);
    const lock = await open(directory, constants.O_RDONLY | constants.O_DIRECTORY);
    try {
      if (!tryLock(lock.fd)) return false;
      if (!(await exists(committed))) await this.#fetch(committed, lock.fd);
      await blob.kept?.adopt(committed);
      return true;
    } finally {
      await lock.close();
    }
  }

  async #fetch(committed: string, directory: number): Promise<void> {
    const { digest, origin, directory: path } = this.target;
    const unit = Math.ceil(this.limits.blockSize / PAGE_BYTES) * PAGE_BYTES;
    const store = await this.cache.openDownload(digest, origin.size, path, unit);
    const { media, map } = downloadPaths(path);
    try {
      await this.#fill(store);
      await this.#verify(store);
      await fsync(store.fd);
      await rename(media, committed);
      await fsync(directory);
      await rm(map, { force: true });
    } finally {
      await store.close();
    }
  }

  async #fill(store: UnitStore): Promise<void> {
    const count = Math.ceil(store.size / store.unit);
    const step = Math.max(1, Math.floor(this.limits.blockSize / store.unit));
    let next = 0;
    const failures: unknown[] = [];
    const work = async (): Promise<void> => {
      while (next < count && failures.length === 0) {
        const first = next;
        next += step;
        try {
          await this.#bring(store, first, Math.min(first + step, count));
        } catch (error) {
          failures.push(error);
        }
      }
    };
    await Promise.all(Array.from({ length: PARALLEL_REQUESTS }, work));
    if (failures.length > 0) throw failures[0];
  }

  /** Makes sure that the units [first, end) are in the store. */
  async #bring(store: UnitStore, first: number, end: number): Promise<void> {
    this.limits.signal.throwIfAborted();
    await store.refresh(first, end - first);
    let missing = first;
    for (let unit = first; unit < end; unit++) {
      if (!(await this.#isThere(store, unit))) continue;
      if (missing < unit) await this.#fetchUnits(store, missing, unit);
      missing = unit + 1;
    }
    if (missing < end) await this.#fetchUnits(store, missing, end);
  }

  async #isThere(store: UnitStore, unit: number): Promise<boolean> {
    if (store.has(unit) && (await store.restore(unit)) !== null) return true;
    if (this.#distrust) return false;
    const offset = unit * store.unit;
    const kept = await this.target.blob.kept?.read(offset, Math.min(store.unit, store.size - offset));
    if (!kept) return false;
    await store.write(unit, kept);
    this.limits.progress(0, kept.length);
    return true;
  }

  async #fetchUnits(store: UnitStore, first: number, end: number): Promise<void> {
    const offset = first * store.unit;
    const length = Math.min(end * store.unit, store.size) - offset;
    await this.limits.pace(length);
    const bytes = await abortable(this.limits.signal, this.target.origin.readRange(offset, length));
    if (bytes.length !== length) {
      const sent = `${bytes.length} bytes were sent for ${length} at ${offset}`;
      throw new OverlaybdError("E_REGISTRY", `${this.target.origin.name}: ${sent}`);
    }
    await store.write(first, bytes);
    this.limits.progress(length, 0);
  }

  async #verify(store: UnitStore): Promise<void> {
    const { digest, origin, directory, blob } = this.target;
    const found = `sha256:${await this.#hash(store)}`;
    if (found === digest) return;
    // Which of the bytes are wrong is not known, nor whether the readers have them too.
    this.#distrust = true;
    await this.cache.dropDownload(directory);
    await blob.kept?.discard();
    throw new OverlaybdError(
      "E_CORRUPT",
      `${origin.name}: what was downloaded has the digest ${found}; all of it is given up`,
    );
  }

  async #hash(store: UnitStore): Promise<string> {
    const hash = new Sha256();
    try {
      const piece = new Uint8Array(HASH_BYTES);
      for (let offset = 0; offset < store.size; offset += HASH_BYTES) {
        this.limits.signal.throwIfAborted();
        const bytes = piece.subarray(0, Math.min(HASH_BYTES, store.size - offset));
        await readExactly(store.fd, "download", bytes, offset);
        hash.update(bytes);
      }
      return hash.digest();
    } finally {
      hash.close();
    }
  }
}

async function exists(path: string): Promise<boolean> {
  try {
    await access(path);
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return false;
    throw error;
  }
}
