/**
 * The persistent file cache between a registry and its readers (cache-download-prefetch.md section 1): one sparse file
 * per object in one directory, shared by all processes that name it. How crashes are survived is told in `store.ts`,
 * how its size is bounded in `budget.ts`, what happens when the disk takes nothing in `media.ts`.
 */
import { mkdir, rm } from "node:fs/promises";
import { dirname, join } from "node:path";
import { OverlaybdError } from "../error.ts";
import { formatVerity, type Verity } from "../format/verity/descriptor.ts";
import { LEAF_BYTES } from "../format/verity/shape.ts";
import { DEFAULT_REFILL_BYTES } from "../service/config.ts";
import type { Blob, CacheStats } from "./blob.ts";
import { Budget, type Room, UncountedRoom } from "./budget.ts";
import { CachedBlob } from "./cached.ts";
import { CacheDirectory, downloadPaths, isDigest, type ObjectPaths, objectPaths } from "./directory.ts";
import { MerkleTree } from "./merkle.ts";
import type { RangeOrigin } from "./origin.ts";
import { addStats, emptyStats } from "./stats.ts";
import { UnitStore } from "./store.ts";
import { VerifiedOrigin } from "./verified.ts";
import { WindowMemory } from "./window.ts";

/** How long another process may take to create or drop a pair of files. */
const LOCK_TIMEOUT_MS = 30_000;
/** How often the size of the cache and the space on its disk are looked at, whatever happens (image-config.md 1.2). */
const TICK_MS = 10_000;
/** Refill size of Merkle trees: the digests of 64 MiB of data, or all levels but the lowest over 8 GiB. */
const TREE_UNIT_BYTES = 128 << 10;

type Entry = { readonly opening: Promise<CachedBlob>; readonly size: number; users: number };

export interface CacheOptions {
  /** Refill size in bytes, a power of two and a multiple of 4096. */
  readonly unit?: number;
  /** Bytes that the directory may hold; default: whatever the disk does. */
  readonly capacity?: number;
  /** Bytes of memory that stand in for a disk which takes nothing; default 128 MiB. */
  readonly memory?: number;
  /** Whether layers with a directory of their own are kept there, where their download completes them (`download`). */
  readonly inLayers?: boolean;
}

export class FileCache {
  /** Bytes. */
  readonly unit: number;
  readonly #directory: CacheDirectory;
  readonly #inLayers: boolean;
  readonly #budget: Budget;
  readonly #layerRoom = new UncountedRoom();
  readonly #entries = new Map<string, Entry>();
  readonly #epoch = new Uint32Array(new SharedArrayBuffer(4));
  readonly #memory: WindowMemory;
  /** Those that were asked to shrink last come last. */
  readonly #live = new Set<CachedBlob>();
  /** Counts of objects that are closed. */
  readonly #past = emptyStats();
  #ticking: ReturnType<typeof setInterval> | undefined;

  /** The directory is created when first needed. */
  constructor(
    readonly directory: string,
    options: CacheOptions = {},
  ) {
    const { unit = DEFAULT_REFILL_BYTES, capacity = Number.MAX_SAFE_INTEGER, inLayers = false } = options;
    this.unit = unit;
    this.#inLayers = inLayers;
    this.#memory = new WindowMemory(options.memory);
    this.#directory = new CacheDirectory(directory);
    this.#budget = new Budget(this.#directory, capacity, (bytes) => this.#shrink(bytes));
  }

  /**
   * Opens an object through the cache. Openers of one digest share everything; the first one's origin is used. What is
   * checked against a Merkle tree is shared only by those who have it checked against the same.
   * @param layer the layer's own directory, if it has one.
   * @throws OverlaybdError E_CORRUPT when its size is not what another opener says; E_IO when the directory is unusable
   * for another reason than being full; E_LIMIT, E_BUSY.
   */
  async open(digest: string, origin: RangeOrigin, layer?: string): Promise<Blob> {
    if (!isDigest(digest)) {
      throw new OverlaybdError("E_CONFIG", `${JSON.stringify(digest)} of ${origin.name} is not a digest`);
    }
    if (origin.verity) return this.#openVerified(digest, origin, origin.verity);
    const media = this.#inLayers && layer ? downloadPaths(layer).media : join(this.directory, digest);
    return this.#openAt(media, digest, this.unit, origin);
  }

  /** Units of whole leaves can be checked by themselves. */
  async #openVerified(digest: string, origin: RangeOrigin, verity: Verity): Promise<Blob> {
    const hash = new Bun.CryptoHasher("sha256").update(`${digest} ${formatVerity(verity)}`).digest("hex");
    const open = (key: string, unit: number, object: RangeOrigin) =>
      this.#openAt(join(this.directory, key), key, unit, object);
    const tree = await MerkleTree.open(origin, verity, (nodes) =>
      open(`tree:${hash}`, TREE_UNIT_BYTES, nodes),
    );
    try {
      const unit = Math.max(this.unit, LEAF_BYTES);
      const blob = await open(`verified:${hash}`, unit, new VerifiedOrigin(origin, tree));
      const close = async () => {
        await blob.close();
        await tree.close();
      };
      return { ...blob, verity, stats: [...blob.stats, ...tree.stats], close };
    } catch (error) {
      await tree.close();
      throw error;
    }
  }

  async #openAt(media: string, digest: string, unit: number, origin: RangeOrigin): Promise<Blob> {
    let entry = this.#entries.get(media);
    if (!entry) {
      entry = { opening: this.#openObject(digest, media, unit, origin), size: origin.size, users: 0 };
      this.#entries.set(media, entry);
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
      return this.#share(media, entry, await entry.opening);
    } catch (error) {
      if (this.#entries.get(media) === entry) this.#entries.delete(media);
      throw error;
    }
  }

  /**
   * Opens the files that a download of an object into a layer's directory fills, which readers may be filling too.
   * @throws OverlaybdError; the system's error, with its `code`.
   */
  openDownload(digest: string, size: number, layer: string, unit: number): Promise<UnitStore> {
    return this.#directory.exclusively(LOCK_TIMEOUT_MS, () =>
      UnitStore.open(downloadPaths(layer), digest, size, this.#inLayers ? this.unit : unit),
    );
  }

  /** Removes what `openDownload` opened. Whoever has it open keeps it. */
  dropDownload(layer: string): Promise<void> {
    const { media, map } = downloadPaths(layer);
    return this.#directory.exclusively(LOCK_TIMEOUT_MS, async () => {
      await Promise.all([rm(media, { force: true }), rm(map, { force: true })]);
    });
  }

  /** Counts of all objects since the cache was constructed. */
  stats(): CacheStats {
    return [this.#past, ...[...this.#live].map((blob) => blob.stats)].reduce(addStats, emptyStats());
  }

  #share(media: string, entry: Entry, blob: CachedBlob): Blob {
    let released = false;
    return {
      name: blob.view.name,
      size: blob.view.size,
      view: blob.view,
      stats: [blob.stats],
      read: (offset, length) => blob.read(offset, length),
      fetch: (offset, length, damaged) => blob.fetch(offset, length, damaged),
      kept: {
        read: (offset, length) => blob.readKept(offset, length),
        discard: () => blob.discard(),
        adopt: (path) => blob.adopt(path),
      },
      close: async () => {
        if (released) return;
        released = true;
        if (--entry.users === 0) await this.#closeObject(media, blob);
      },
    };
  }

  async #openObject(digest: string, media: string, unit: number, origin: RangeOrigin): Promise<CachedBlob> {
    const store = await this.#openStore(digest, objectPaths(media), origin.size, unit);
    const room: Room = dirname(media) === this.directory ? this.#budget : this.#layerRoom;
    try {
      const blob = new CachedBlob(origin, store, unit, this.#epoch, room, this.#memory);
      this.#live.add(blob);
      this.#ticking ??= setInterval(() => void this.#budget.tick(), TICK_MS).unref();
      return blob;
    } catch (cause) {
      await store?.close();
      throw new OverlaybdError("E_IO", `cannot open ${origin.name}: ${(cause as Error).message}`, { cause });
    }
  }

  async #closeObject(media: string, blob: CachedBlob): Promise<void> {
    this.#entries.delete(media);
    await blob.close();
    this.#live.delete(blob);
    addStats(this.#past, blob.stats);
    if (this.#live.size > 0) return;
    clearInterval(this.#ticking);
    this.#ticking = undefined;
    await this.#budget.close();
  }

  /** The object's files; null when there is no room for them. */
  async #openStore(
    digest: string,
    paths: ObjectPaths,
    size: number,
    unit: number,
  ): Promise<UnitStore | null> {
    try {
      return await this.#directory.exclusively(LOCK_TIMEOUT_MS, async () => {
        await mkdir(dirname(paths.media), { recursive: true, mode: 0o755 });
        return UnitStore.open(paths, digest, size, unit);
      });
    } catch (cause) {
      if (cause instanceof OverlaybdError) throw cause;
      const { code, message } = cause as NodeJS.ErrnoException;
      if (code === "ENOSPC" || code === "EDQUOT") return null;
      throw new OverlaybdError("E_IO", `cannot use the cache directory ${this.directory}: ${message}`, {
        cause,
      });
    }
  }

  /** Lets open objects give up about that many bytes: first what was not read lately, then anything. */
  async #shrink(bytes: number): Promise<void> {
    let missing = bytes;
    for (let round = 0; round < 2; round++) {
      for (const blob of [...this.#live]) {
        if (missing <= 0) return;
        this.#live.delete(blob);
        this.#live.add(blob);
        missing -= await blob.shrink(missing);
      }
    }
  }
}
