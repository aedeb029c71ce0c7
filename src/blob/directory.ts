/**
 * A cache directory as all processes share it. Whoever opens an object holds a shared lock on its map (see `store.ts`);
 * so under the directory's own lock, an object whose map can be locked exclusively is one that nobody has open.
 */
import { constants } from "node:fs";
import { type FileHandle, mkdir, open, readdir, rm, stat, statfs } from "node:fs/promises";
import { join } from "node:path";
import { OverlaybdError } from "../error.ts";
import { tryLock } from "../native/descriptor.ts";
import { lockFile } from "../native/lock.ts";

/** Also what makes a digest safe as a file name. */
const DIGEST = /^[a-z0-9]+:[0-9a-f]{32,128}$/;
const MAP_SUFFIX = ".map";
/** What st_blocks counts. */
const BLOCK_BYTES = 512;

/** The two files of an object. */
export interface ObjectPaths {
  readonly media: string;
  readonly map: string;
}

/** An object that is in the directory. */
export interface StoredObject extends ObjectPaths {
  /** Bytes that it takes on the disk. */
  readonly bytes: number;
  /** When it was last opened, written or closed; milliseconds since 1970. */
  readonly usedAt: number;
}

export function isDigest(text: string): boolean {
  return DIGEST.test(text);
}

/** The files of an object whose media file is at `media`. */
export function objectPaths(media: string): ObjectPaths {
  return { media, map: media + MAP_SUFFIX };
}

/** The files that hold what there is of a layer in the layer's own directory. */
export function downloadPaths(layer: string): ObjectPaths {
  return objectPaths(join(layer, ".download"));
}

export class CacheDirectory {
  #turn: Promise<unknown> = Promise.resolve();

  constructor(readonly path: string) {}

  /**
   * Runs `work` while nobody else, in any process, opens, measures or drops objects. The directory is created first.
   * @throws OverlaybdError E_BUSY when others keep it longer than `timeoutMs`; what `work` throws.
   */
  exclusively<T>(timeoutMs: number, work: () => Promise<T>): Promise<T> {
    const result = this.#turn.then(async () => {
      await mkdir(this.path, { recursive: true, mode: 0o755 });
      const lock = await this.#lock(timeoutMs);
      try {
        return await work();
      } finally {
        await lock.close();
      }
    });
    this.#turn = result.catch(() => {});
    return result;
  }

  async #lock(timeoutMs: number): Promise<FileHandle> {
    const path = join(this.path, ".lock");
    const lock = await lockFile(path, timeoutMs);
    if (lock) return lock;
    throw new OverlaybdError("E_BUSY", `another process has held ${path} for ${timeoutMs / 1000} seconds`);
  }

  /** All objects, the longest unused first. */
  async objects(): Promise<StoredObject[]> {
    const names = (await readdir(this.path)).filter(isDigest);
    const objects = await Promise.all(names.map((name) => this.#measure(objectPaths(join(this.path, name)))));
    return objects.filter((object) => object !== null).sort((a, b) => a.usedAt - b.usedAt);
  }

  async #measure(paths: ObjectPaths): Promise<StoredObject | null> {
    const [media, map] = await Promise.all(
      [paths.media, paths.map].map((path) => stat(path).catch(() => null)),
    );
    if (!media) return null;
    const bytes = (media.blocks + (map?.blocks ?? 0)) * BLOCK_BYTES;
    return { ...paths, bytes, usedAt: media.mtimeMs };
  }

  /** Removes an object unless somebody has it open. The caller holds the lock. */
  async remove({ media, map }: ObjectPaths): Promise<boolean> {
    const file = await open(map, constants.O_RDWR | constants.O_NOFOLLOW).catch(() => null);
    try {
      if (file && !tryLock(file.fd)) return false;
      await Promise.all([rm(media, { force: true }), rm(map, { force: true })]);
      return true;
    } finally {
      await file?.close();
    }
  }

  /** Bytes of the directory's file system: all, and what is free for anybody. */
  async space(): Promise<{ total: number; free: number }> {
    const { bsize, blocks, bavail } = await statfs(this.path);
    return { total: bsize * blocks, free: bsize * bavail };
  }
}
