/**
 * The persistent file cache between a registry and its readers (cache-download-prefetch.md section 1): one sparse file
 * per object in one directory, shared by all processes that name it. How crashes are survived is told in `store.ts`,
 * what happens when the disk is full in `cached.ts`.
 */
import { type FileHandle, mkdir } from "node:fs/promises";
import { join } from "node:path";
import { OverlaybdError } from "../error.ts";
import { lockFile } from "../native/lock.ts";
import { DEFAULT_REFILL_BYTES } from "../service/config.ts";
import type { Blob, CacheStats } from "./blob.ts";
import { CachedBlob } from "./cached.ts";
import type { RangeOrigin } from "./origin.ts";
import { addStats, emptyStats } from "./stats.ts";
import { UnitStore } from "./store.ts";

/** How long another process may take to create or drop a pair of files. */
const LOCK_TIMEOUT_MS = 30_000;

/** Also what makes a digest safe as a file name. */
const DIGEST = /^[a-z0-9]+:[0-9a-f]{32,128}$/;

type Entry = { readonly opening: Promise<CachedBlob>; readonly size: number; users: number };

export class FileCache {
  readonly #entries = new Map<string, Entry>();
  readonly #epoch = new Uint32Array(new SharedArrayBuffer(4));
  readonly #live = new Set<CachedBlob>();
  /** Counts of objects that are closed. */
  readonly #past = emptyStats();
  #turn: Promise<unknown> = Promise.resolve();

  /** `unit`: refill size in bytes, a power of two and a multiple of 4096. The directory is created when first needed. */
  constructor(
    readonly directory: string,
    readonly unit: number = DEFAULT_REFILL_BYTES,
  ) {}

  /**
   * Opens an object through the cache. Openers of one digest share everything; the first one's origin is used.
   * @throws OverlaybdError E_CORRUPT when its size is not what another opener says; E_IO when the directory is unusable
   * for another reason than being full; E_LIMIT, E_BUSY.
   */
  async open(digest: string, origin: RangeOrigin): Promise<Blob> {
    if (!DIGEST.test(digest)) {
      throw new OverlaybdError("E_CONFIG", `${JSON.stringify(digest)} of ${origin.name} is not a digest`);
    }
    let entry = this.#entries.get(digest);
    if (!entry) {
      entry = { opening: this.#openObject(digest, origin), size: origin.size, users: 0 };
      this.#entries.set(digest, entry);
    }
    if (entry.size !== origin.size) {
      const sizes = `${entry.size} and ${origin.size} bytes`;
      throw new OverlaybdError(
        "E_CORRUPT",
        `${origin.name}: two images give this blob different sizes, ${sizes}`,
      );
    }
    entry.users++;
    try {
      return this.#share(digest, entry, await entry.opening);
    } catch (error) {
      if (this.#entries.get(digest) === entry) this.#entries.delete(digest);
      throw error;
    }
  }

  /** Counts of all objects since the cache was constructed. */
  stats(): CacheStats {
    return [this.#past, ...[...this.#live].map((blob) => blob.stats)].reduce(addStats, emptyStats());
  }

  #share(digest: string, entry: Entry, blob: CachedBlob): Blob {
    let released = false;
    return {
      name: blob.view.name,
      size: blob.view.size,
      view: blob.view,
      stats: blob.stats,
      read: (offset, length) => blob.read(offset, length),
      fetch: (offset, length) => blob.fetch(offset, length),
      close: async () => {
        if (released) return;
        released = true;
        if (--entry.users > 0) return;
        this.#entries.delete(digest);
        await blob.close();
        this.#live.delete(blob);
        addStats(this.#past, blob.stats);
      },
    };
  }

  async #openObject(digest: string, origin: RangeOrigin): Promise<CachedBlob> {
    const opening = this.#turn.then(() => this.#openStore(digest, origin.size));
    this.#turn = opening.catch(() => {});
    const store = await opening;
    try {
      const blob = new CachedBlob(origin, store, this.unit, this.#epoch);
      this.#live.add(blob);
      return blob;
    } catch (cause) {
      await store?.close();
      throw new OverlaybdError("E_IO", `cannot open ${origin.name}: ${(cause as Error).message}`, { cause });
    }
  }

  /** The object's files; null when there is no room for them. One at a time in a process, and under the lock. */
  async #openStore(digest: string, size: number): Promise<UnitStore | null> {
    let lock: FileHandle | undefined;
    try {
      await mkdir(this.directory, { recursive: true, mode: 0o755 });
      lock = await this.#lock();
      return await UnitStore.open(this.directory, digest, size, this.unit);
    } catch (cause) {
      if (cause instanceof OverlaybdError) throw cause;
      const { code, message } = cause as NodeJS.ErrnoException;
      if (code === "ENOSPC" || code === "EDQUOT") return null;
      throw new OverlaybdError("E_IO", `cannot use the cache directory ${this.directory}: ${message}`, {
        cause,
      });
    } finally {
      await lock?.close();
    }
  }

  async #lock(): Promise<FileHandle> {
    const path = join(this.directory, ".lock");
    const lock = await lockFile(path, LOCK_TIMEOUT_MS);
    if (lock) return lock;
    throw new OverlaybdError(
      "E_BUSY",
      `another process has held ${path} for ${LOCK_TIMEOUT_MS / 1000} seconds`,
    );
  }
}
