/**
 * How much a cache directory may hold, agreed on by all processes that use it.
 *
 * Nothing is written without leave. Leave is taken from a grant, so that most writes need not look at the disk; a grant is
 * made under the directory's lock, after measuring what all objects take, out of what is left below the capacity when
 * the grants of all others are set aside too. Each process keeps its grant in a file that it has locked: the grant ends
 * with the process, however that ends. So the sum never exceeds the capacity, and what earlier runs or killed processes
 * left is counted as what it takes on the disk.
 *
 * When too little is left, objects that nobody has open go, the longest unused first, then units of our own open
 * objects that were not read lately. Units of others are theirs to give up: the grant file says what is wanted, and
 * everybody looks from time to time.
 */
import { readFile, rm } from "node:fs/promises";
import { type ClaimedFile, createClaimed, sweepClaimed } from "../native/lock.ts";
import type { CacheDirectory } from "./directory.ts";
import { writeExactly } from "./file.ts";

/** Disk space that is left to others, and the largest part of a small disk that this may be (image-config.md 1.2). */
const FREE_BYTES = 2 ** 30;
const FREE_SHARE = 1 / 20;
/** What is evicted beyond the need, so that not every refill evicts. */
const SPARE_SHARE = 1 / 10;
/** Grants are small against the capacity and what is left free, and large against a refill unit. */
const GRANT_SHARE = 1 / 64;
const GRANT_OF_FREE = 1 / 4;
const MAX_GRANT_BYTES = 64 << 20;
/** How long the directory's lock is waited for while a reader waits. */
const LOCK_TIMEOUT_MS = 2000;
/** After a refusal nothing is asked for this long: reads go on uncached meanwhile. */
const PAUSE_MS = 5000;
const GRANT_SUFFIX = ".grant";

/** Leave to write to a disk. */
export interface Room {
  /** Takes leave to write `bytes`, which `written` gives back; false when the disk is to be left alone. */
  take(bytes: number): Promise<boolean>;
  /** What leave was taken for is on the disk, or never will be. */
  written(bytes: number): void;
  /** The disk did not take what it was given. */
  refused(): void;
}

/** Room where nobody counts, only a disk that refused is left alone for a while. */
export class UncountedRoom implements Room {
  #pausedUntil = 0;

  async take(): Promise<boolean> {
    return performance.now() >= this.#pausedUntil;
  }

  written(): void {}

  refused(): void {
    this.#pausedUntil = performance.now() + PAUSE_MS;
  }
}

/** What a process has been granted and may not have written yet, and what it could not get; bytes. */
interface Grant {
  readonly granted: number;
  readonly wanted: number;
}

export class Budget implements Room {
  #claim: ClaimedFile | undefined;
  /** Of the grant: not taken yet; taken and not on the disk yet. */
  #left = 0;
  #pending = 0;
  #refill: Promise<void> | undefined;
  #pausedUntil = 0;
  #idle = false;

  /**
   * @param capacity bytes.
   * @param shrink gives up about that many bytes of open objects.
   */
  constructor(
    private readonly directory: CacheDirectory,
    private readonly capacity: number,
    private readonly shrink: (bytes: number) => Promise<void>,
  ) {}

  async take(bytes: number): Promise<boolean> {
    this.#idle = false;
    while (this.#left < bytes) {
      if (performance.now() < this.#pausedUntil) return false;
      this.#refill ??= this.#ask(bytes).finally(() => {
        this.#refill = undefined;
      });
      await this.#refill;
    }
    this.#left -= bytes;
    this.#pending += bytes;
    return true;
  }

  written(bytes: number): void {
    this.#pending -= bytes;
  }

  refused(): void {
    this.#left = 0;
    this.#pause();
  }

  #pause(): void {
    this.#pausedUntil = performance.now() + PAUSE_MS;
  }

  /** Gets a new grant, of at least `bytes` if at all. */
  async #ask(bytes: number): Promise<void> {
    this.#left = 0;
    try {
      this.#left = await this.directory.exclusively(LOCK_TIMEOUT_MS, async () => {
        const most = Math.max(bytes, await this.#usualGrant());
        let room = await this.#room();
        if (room < most && bytes <= this.capacity) {
          await this.#evict(most - room);
          room = await this.#room();
        }
        const granted = room < bytes ? 0 : Math.min(room, most);
        await this.#publish({ granted: this.#pending + granted, wanted: granted === 0 ? most : 0 });
        return granted;
      });
    } catch {
      // A directory that is kept by somebody, or unusable: reads go on without it.
    }
    if (this.#left < bytes) this.#pause();
  }

  /** Gives back a grant that is not used, and makes room that others want or the disk is short of. */
  async tick(): Promise<void> {
    try {
      await this.directory.exclusively(LOCK_TIMEOUT_MS, async () => {
        if (this.#idle && this.#claim) {
          this.#left = 0;
          await this.#publish({ granted: this.#pending, wanted: 0 });
        }
        this.#idle = true;
        const lacking = (await this.#wanted()) + this.#left - (await this.#room());
        if (lacking > 0) await this.#evict(lacking);
      });
    } catch {
      // The next look is soon enough.
    }
  }

  async #usualGrant(): Promise<number> {
    const reserve = reserveOf(await this.directory.space());
    return Math.floor(Math.min(this.capacity * GRANT_SHARE, reserve * GRANT_OF_FREE, MAX_GRANT_BYTES));
  }

  /** Bytes that may still be granted; negative when there is too much on the disk. */
  async #room(): Promise<number> {
    // Promises first: what is written meanwhile is counted twice then, and not never.
    const pending = this.#pending;
    const promised = (await this.#others()).reduce((sum, { granted }) => sum + granted, pending);
    const [objects, space] = await Promise.all([this.directory.objects(), this.directory.space()]);
    const used = objects.reduce((sum, { bytes }) => sum + bytes, 0);
    return Math.min(this.capacity - used, space.free - reserveOf(space)) - promised;
  }

  async #wanted(): Promise<number> {
    return (await this.#others()).reduce((sum, { wanted }) => sum + wanted, 0);
  }

  async #evict(need: number): Promise<void> {
    const { total } = await this.directory.space();
    let missing = need + Math.floor(Math.min(this.capacity, total) * SPARE_SHARE);
    for (const object of await this.directory.objects()) {
      if (missing <= 0) return;
      if (await this.directory.remove(object)) missing -= object.bytes;
    }
    if (missing > 0) await this.shrink(missing);
  }

  /** The grants of all other living processes; those of dead ones are removed. */
  async #others(): Promise<Grant[]> {
    const grants: Grant[] = [];
    const living = await sweepClaimed(this.directory.path, GRANT_SUFFIX, (path) => rm(path, { force: true }));
    for (const path of living) {
      if (path !== this.#claim?.path) grants.push(decodeGrant(await readFile(path)));
    }
    return grants;
  }

  async #publish(grant: Grant): Promise<void> {
    // Somebody may have emptied the directory: then nobody saw the grant any more.
    if (this.#claim && (await this.#claim.file.stat()).nlink === 0) {
      await this.#claim.file.close();
      this.#claim = undefined;
    }
    this.#claim ??= await createClaimed(this.directory.path, GRANT_SUFFIX);
    await writeExactly(this.#claim.file.fd, encodeGrant(grant), 0);
  }

  /** Gives the grant back. Later calls of `take` get a new one. */
  async close(): Promise<void> {
    await this.#refill;
    this.#left = 0;
    const claim = this.#claim;
    this.#claim = undefined;
    if (!claim) return;
    await rm(claim.path, { force: true });
    await claim.file.close();
  }
}

/** What is left free for others on a disk. */
function reserveOf({ total }: { readonly total: number }): number {
  return Math.min(FREE_BYTES, Math.floor(total * FREE_SHARE));
}

function encodeGrant({ granted, wanted }: Grant): Uint8Array {
  return new Uint8Array(Float64Array.of(granted, wanted).buffer);
}

/** A file that says nothing sensible was just created, or is nobody's grant. */
function decodeGrant(bytes: Uint8Array): Grant {
  if (bytes.length !== 16) return { granted: 0, wanted: 0 };
  const [granted, wanted] = new Float64Array(bytes.slice().buffer);
  return granted >= 0 && wanted >= 0 ? { granted, wanted } : { granted: 0, wanted: 0 };
}
