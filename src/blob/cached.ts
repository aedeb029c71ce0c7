/**
 * One object of a registry, readable as if it were a local file: refill units that are asked for are fetched, kept in
 * the cache directory, and announced to readers. Lives on the main thread.
 */
import { OverlaybdError } from "../error.ts";
import type { BlobView, CacheStats } from "./blob.ts";
import type { Room } from "./budget.ts";
import { checkRange, closeFile, openFile, readExactly, statFile } from "./file.ts";
import { Media } from "./media.ts";
import type { RangeOrigin } from "./origin.ts";
import { hasRange, hasUnit, takeUse, useRange } from "./residency.ts";
import { emptyStats } from "./stats.ts";
import type { UnitStore } from "./store.ts";
import type { WindowMemory } from "./window.ts";

/** Most bytes asked of the origin in one request: adjacent missing units are fetched together. */
const MAX_REQUEST_BYTES = 4 << 20;
/** Most bytes one `fetch` works on at a time, so that a long range neither fills memory nor chases itself out of a window. */
const STEP_BYTES = 16 << 20;
/** How often a read starts over because what it was reading was withdrawn. */
const MAX_ATTEMPTS = 16;

export class CachedBlob {
  readonly stats: CacheStats = emptyStats();
  readonly #media: Media;
  /** Units being fetched, checked or given up, and what their readers wait for. */
  readonly #flights = new Map<number, Promise<unknown>>();
  /** Units that were fetched once more after a reader found them damaged, and the epoch since which that counts. */
  readonly #mended = new Map<number, number>();
  #store: UnitStore | null;
  /** Where `shrink` goes on: a clock's hand. */
  #hand = 0;
  #closed = false;

  /**
   * @param store the object's files; null when the disk is too full to create them.
   * @param room leave to write to them.
   * @param epoch the cache's count of withdrawals.
   */
  constructor(
    private readonly origin: RangeOrigin,
    store: UnitStore | null,
    unit: number,
    epoch: Uint32Array<SharedArrayBuffer>,
    private readonly room: Room,
    memory: WindowMemory,
  ) {
    this.#store = store;
    this.#media = new Media(origin, unit, store?.fd ?? null, epoch, memory);
  }

  get view(): BlobView & Required<Pick<BlobView, "valid">> {
    return this.#media.view;
  }

  /** See `Blob.read`. */
  async read(offset: number, length: number): Promise<Uint8Array> {
    checkRange(this.view, offset, length);
    const bytes = new Uint8Array(length);
    for (let done = 0; done < length; done += MAX_REQUEST_BYTES) {
      await this.#readPiece(bytes.subarray(done, done + MAX_REQUEST_BYTES), offset + done);
    }
    return bytes;
  }

  async #readPiece(bytes: Uint8Array, offset: number): Promise<void> {
    for (let attempt = 0; attempt < MAX_ATTEMPTS; attempt++) {
      await this.fetch(offset, bytes.length);
      if (await this.#readResident(bytes, offset)) return;
    }
    throw new OverlaybdError(
      "E_BUSY",
      `${this.view.name}: bytes at ${offset} were displaced from memory ${MAX_ATTEMPTS} times before they could be read; the cache's disk is full`,
    );
  }

  /** Reads what is announced; false when not all of it is, or not for long enough. */
  async #readResident(bytes: Uint8Array, offset: number): Promise<boolean> {
    const { epoch } = this.view.valid;
    const before = Atomics.load(epoch, 0);
    if (!useRange(this.view.valid, offset, bytes.length)) return false;
    this.#checkOpen();
    try {
      await readExactly(this.view.fd, this.view.name, bytes, offset);
    } catch (error) {
      if (Atomics.load(epoch, 0) === before) throw error;
    }
    return Atomics.load(epoch, 0) === before;
  }

  /**
   * See `Blob.fetch`. Without a disk, only the last of what all callers asked for stays readable (see `WindowMemory`).
   */
  async fetch(offset: number, length: number, damaged?: number): Promise<void> {
    checkRange(this.view, offset, length);
    if (length === 0) return;
    const { unit } = this.view.valid;
    const end = Math.ceil((offset + length) / unit);
    const first = Math.floor(offset / unit);
    if (damaged !== undefined) await this.#mend(first, end, damaged);
    for (let step = first; step < end; step += STEP_BYTES / unit) {
      this.#checkOpen();
      await Promise.all(this.#depart(step, Math.min(step + STEP_BYTES / unit, end)));
    }
  }

  /** See `KeptBytes.read`. */
  async readKept(offset: number, length: number): Promise<Uint8Array | null> {
    checkRange(this.view, offset, length);
    this.#checkOpen();
    const bytes = new Uint8Array(length);
    if (hasRange(this.view.valid, offset, length)) {
      return (await this.#readResident(bytes, offset)) ? bytes : null;
    }
    const { unit } = this.view.valid;
    const store = this.#store;
    const end = Math.ceil((offset + length) / unit);
    for (let i = Math.floor(offset / unit); i < end; i++) {
      const restored = store?.has(i) ? await this.#intact(store, i) : null;
      if (!restored || store !== this.#store) return null;
      const begin = Math.max(offset, i * unit);
      bytes.set(restored.subarray(begin - i * unit, offset + length - i * unit), begin - offset);
    }
    return bytes;
  }

  /** See `KeptBytes.discard`. */
  async discard(): Promise<void> {
    const { unit } = this.view.valid;
    const units = range(0, Math.ceil(this.view.size / unit)).filter(
      (i) => hasUnit(this.view.valid, i) && !this.#flights.has(i),
    );
    this.#media.withdraw(units);
    for (const i of units) await this.#store?.forget(i, 1);
  }

  /** See `KeptBytes.adopt`. */
  async adopt(path: string): Promise<void> {
    const fd = await openFile(path, "r");
    try {
      const { size } = await statFile(fd);
      if (size !== this.view.size) {
        throw new OverlaybdError("E_CORRUPT", `${path} has ${size} bytes, the layer has ${this.view.size}`);
      }
      this.#checkOpen();
      this.#media.toFile(fd);
    } finally {
      await closeFile(fd);
    }
    await this.#settle();
    const store = this.#store;
    this.#store = null;
    await store?.close();
  }

  /**
   * Gives up units that were not read lately, until about `bytes` are free or all were looked at; returns the bytes. The
   * caller holds the lock of the cache's directory.
   */
  async shrink(bytes: number): Promise<number> {
    const store = this.#store;
    if (!store || this.#closed) return 0;
    const freed = store.alone(async () => {
      await store.refresh(0, Math.ceil(this.view.size / store.unit));
      const victims = this.#chooseVictims(store, Math.ceil(bytes / store.unit));
      if (victims.length === 0) return 0;
      this.#media.withdraw(victims);
      this.stats.evicted += victims.length;
      return this.#fly(victims, dropUnits(store, victims));
    });
    // `close` waits for what is under way, and so for this.
    return (await this.#fly([-1], freed)) ?? 0;
  }

  #chooseVictims(store: UnitStore, most: number): number[] {
    const count = Math.ceil(this.view.size / store.unit);
    const victims: number[] = [];
    for (let seen = 0; seen < count && victims.length < most; seen++) {
      const unit = this.#hand;
      this.#hand = (this.#hand + 1) % count;
      if (store.has(unit) && !this.#flights.has(unit) && !takeUse(this.view.valid, unit)) victims.push(unit);
    }
    return victims.sort((a, b) => a - b);
  }

  /** Starts a flight for every run of absent units in [first, end); returns all flights that bring some of them. */
  #depart(first: number, end: number): Set<Promise<unknown>> {
    const flights = new Set<Promise<unknown>>();
    for (let unit = first; unit < end; ) {
      const flight = this.#flights.get(unit);
      if (flight || hasUnit(this.view.valid, unit)) {
        if (flight) flights.add(flight);
        unit++;
        continue;
      }
      const begin = unit;
      const most = Math.min(end, begin + MAX_REQUEST_BYTES / this.view.valid.unit);
      while (unit < most && !this.#flights.has(unit) && !hasUnit(this.view.valid, unit)) unit++;
      flights.add(this.#fly(range(begin, unit), this.#bring(begin, unit)));
    }
    return flights;
  }

  #fly<T>(units: readonly number[], work: Promise<T>): Promise<T> {
    const flight = work.finally(() => {
      for (const unit of units) this.#flights.delete(unit);
    });
    for (const unit of units) this.#flights.set(unit, flight);
    return flight;
  }

  /** Makes the units [first, end) readable: from disk where they are and are intact, else from the origin. */
  async #bring(first: number, end: number): Promise<void> {
    await this.#store?.refresh(first, end - first);
    let missing = first;
    for (let unit = first; unit < end; unit++) {
      const bytes = await this.#restore(unit);
      if (bytes === null) continue;
      if (missing < unit) await this.#download(missing, unit);
      missing = unit + 1;
      this.#media.announce(unit, bytes, true);
    }
    if (missing < end) await this.#download(missing, end);
  }

  async #restore(unit: number): Promise<Uint8Array | null> {
    if (!this.#store?.has(unit)) return null;
    const bytes = await this.#intact(this.#store, unit);
    if (bytes) this.stats.hits++;
    else this.stats.damaged++;
    return bytes;
  }

  /** The bytes of a recorded unit; null when they are not what was recorded, or not what the origin vouches for. */
  async #intact(store: UnitStore, unit: number): Promise<Uint8Array | null> {
    const bytes = await store.restore(unit);
    if (bytes === null || this.origin.verify === undefined) return bytes;
    return (await this.origin.verify(unit * this.view.valid.unit, bytes)) ? bytes : null;
  }

  async #download(first: number, end: number): Promise<void> {
    const { unit } = this.view.valid;
    const offset = first * unit;
    const length = Math.min(end * unit, this.view.size) - offset;
    this.stats.requests++;
    const bytes = await this.origin.readRange(offset, length);
    if (bytes.length !== length) {
      const sent = `${bytes.length} bytes were sent for ${length} at ${offset}`;
      throw new OverlaybdError("E_REGISTRY", `${this.view.name}: ${sent}`);
    }
    this.stats.fetchedBytes += length;
    this.stats.misses += end - first;
    const stored = await this.#keep(first, bytes);
    for (let i = first; i < end; i++) {
      this.#media.announce(i, bytes.subarray((i - first) * unit, (i - first + 1) * unit), stored);
    }
  }

  /** Whether the disk took the bytes. One that refuses them costs their persistence, never a read. */
  async #keep(first: number, bytes: Uint8Array): Promise<boolean> {
    const store = this.#store;
    if (store && (await this.room.take(bytes.length))) {
      try {
        await store.write(first, bytes);
        this.#media.toMedia();
        return true;
      } catch {
        this.room.refused();
      } finally {
        this.room.written(bytes.length);
      }
    }
    this.stats.refused++;
    this.#media.toMemory();
    return false;
  }

  /**
   * A reader found bytes among the units [first, end) to be wrong when the epoch was `seen`: they are fetched once more.
   * What is wrong even then is so at the origin.
   */
  async #mend(first: number, end: number, seen: number): Promise<void> {
    if (this.#media.whole) {
      const what = `bytes ${first * this.view.valid.unit} to ${end * this.view.valid.unit} are damaged in the downloaded file`;
      throw new OverlaybdError(
        "E_CORRUPT",
        `${this.view.name}: ${what}; remove it to have them fetched again`,
      );
    }
    for (let unit = first; unit < end; unit++) {
      // Somebody may be fetching it, or have fetched it since the reader looked.
      for (let flight = this.#flights.get(unit); flight; flight = this.#flights.get(unit)) {
        await flight.catch(() => {});
      }
      const since = this.#mended.get(unit);
      if (since !== undefined && ((seen - since) | 0) < 0) continue;
      this.#checkOpen();
      await this.#fly([unit], this.#mendUnit(unit, since !== undefined));
    }
  }

  async #mendUnit(unit: number, again: boolean): Promise<void> {
    this.#media.withdraw([unit]);
    if (this.#store && !(await this.#store.restoreSize())) {
      // Somebody cut the file short: there are holes now wherever bytes were. All is checked before it is believed again.
      this.#media.withdrawAll();
    }
    const asSent = this.#media.inMemory || (await this.#store?.restore(unit)) != null;
    await this.#store?.forget(unit, 1);
    if (again && asSent) {
      this.#mended.delete(unit);
      const { unit: length } = this.view.valid;
      const what = `bytes ${unit * length} to ${Math.min((unit + 1) * length, this.view.size)} are damaged`;
      throw new OverlaybdError("E_CORRUPT", `${this.view.name}: ${what} as they come from the registry`);
    }
    this.stats.damaged++;
    // A disk that loses the same bytes twice is not asked a third time.
    if (again) this.#media.toMemory();
    this.#mended.set(unit, Atomics.load(this.view.valid.epoch, 0));
    await this.#download(unit, unit + 1);
  }

  /** A descriptor's number may already belong to another file. */
  #checkOpen(): void {
    if (this.#closed) throw new OverlaybdError("E_IO", `${this.view.name} was closed while it was read`);
  }

  async #settle(): Promise<void> {
    await Promise.allSettled(this.#flights.values());
  }

  /** Waits for what is under way, then releases everything. */
  async close(): Promise<void> {
    this.#closed = true;
    await this.#settle();
    this.#media.close();
    await this.#store?.close();
  }
}

function range(first: number, end: number): number[] {
  return Array.from({ length: end - first }, (_, i) => first + i);
}

/** Gives up units, in ascending order, run by run; returns the bytes that this freed. */
async function dropUnits(store: UnitStore, units: readonly number[]): Promise<number> {
  let dropped = 0;
  try {
    while (dropped < units.length) {
      const first = units[dropped];
      let count = 1;
      while (units[dropped + count] === first + count) count++;
      await store.drop(first, count);
      dropped += count;
    }
  } catch {
    // What the disk does not let go stays. Readers check it before they believe it.
  }
  return dropped * store.unit;
}
