/**
 * One object of a registry, readable as if it were a local file: refill units that are asked for are fetched, kept in
 * the cache directory, and announced to readers. Lives on the main thread.
 */
import { OverlaybdError } from "../error.ts";
import { abortable, abortablePieces } from "./abortable.ts";
import type { BlobView, CacheStats } from "./blob.ts";
import type { Room } from "./budget.ts";
import { checkRange, closeFile, openFile, readExactly, statFile } from "./file.ts";
import { Flights } from "./flights.ts";
import { Intake } from "./intake.ts";
import { Media } from "./media.ts";
import type { RangeOrigin } from "./origin.ts";
import { hasRange, hasUnit, takeUse, useRange } from "./residency.ts";
import { emptyStats } from "./stats.ts";
import type { UnitStore } from "./store.ts";
import type { WindowMemory } from "./window.ts";

/**
 * Most bytes asked of the origin in one request: adjacent missing units are fetched together. What the disk is too slow for
 * waits in memory, and with twice as much that costs more time than requests do.
 */
const MAX_REQUEST_BYTES = 8 << 20;
/** Requests for more than this are read, written and announced in pieces as they arrive: a unit, or several small ones. */
const SHORT_BYTES = 1 << 20;
const PIECE_BYTES = 256 << 10;
/** Most bytes one `read` or `fetch` works on at a time, so that a long range does not chase itself out of a window. */
const READ_BYTES = 4 << 20;
const STEP_BYTES = 16 << 20;
/** How often a read starts over because what it was reading was withdrawn. */
const MAX_ATTEMPTS = 16;

export class CachedBlob {
  readonly stats: CacheStats = emptyStats();
  readonly #media: Media;
  /** Units being fetched, checked or given up, and what their readers wait for. */
  readonly #flights = new Flights();
  /** Units that were fetched once more after a reader found them damaged, and the epoch since which that counts. */
  readonly #mended = new Map<number, number>();
  #store: UnitStore | null;
  /** Where `shrink` goes on: a clock's hand. */
  #hand = 0;
  /** Raised when nobody reads any more. */
  readonly #end = new AbortController();

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
    for (let done = 0; done < length; done += READ_BYTES) {
      await this.#readPiece(bytes.subarray(done, done + READ_BYTES), offset + done);
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
    this.#checkOpen();
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
    const store = this.#store;
    this.#store = null;
    await this.#flights.settle();
    await store?.close();
  }

  /**
   * Gives up units that were not read lately, until about `bytes` are free or all were looked at; returns the bytes. The
   * caller holds the lock of the cache's directory.
   */
  async shrink(bytes: number): Promise<number> {
    const store = this.#store;
    if (!store || this.#end.signal.aborted) return 0;
    const freed = store.alone(async () => {
      await store.refresh(0, Math.ceil(this.view.size / store.unit));
      const victims = this.#chooseVictims(store, Math.ceil(bytes / store.unit));
      if (victims.length === 0) return 0;
      this.#media.withdraw(victims);
      this.stats.evicted += victims.length;
      return this.#flights.together(victims, dropUnits(store, victims));
    });
    // `close` waits for what is under way, and so for this.
    return (await this.#flights.together([-1], freed)) ?? 0;
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

  /** Brings every run of absent units in [first, end); returns what to wait for until all units are there. */
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
      const run = range(begin, unit);
      const bring = (landed: Landed) => this.#bring(begin, begin + run.length, landed);
      for (const flight of this.#flights.oneByOne(run, bring)) flights.add(flight);
    }
    return flights;
  }

  /** Makes the units [first, end) readable: from disk where they are and are intact, else from the origin. */
  async #bring(first: number, end: number, landed: Landed): Promise<void> {
    await this.#store?.refresh(first, end - first);
    let missing = first;
    for (let unit = first; unit < end; unit++) {
      const bytes = await this.#restore(unit);
      if (bytes === null) continue;
      if (missing < unit) await this.#download(missing, unit, true, landed);
      missing = unit + 1;
      this.#media.announce(unit, bytes, true);
      landed(unit);
    }
    if (missing < end) await this.#download(missing, end, true, landed);
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

  async #download(first: number, end: number, keep: boolean, landed?: Landed): Promise<void> {
    const { unit } = this.view.valid;
    const [begin, finish] = [first * unit, Math.min(end * unit, this.view.size)];
    const store = keep ? this.#store : null;
    const intake = new Intake(store, this.room, this.#media, this.stats, finish - begin);
    this.stats.requests++;
    let next = first;
    try {
      for await (const bytes of this.#pieces(begin, finish)) {
        this.stats.fetchedBytes += bytes.length;
        await intake.put(next, bytes);
        for (const after = next + Math.ceil(bytes.length / unit); next < after; next++) {
          this.stats.misses++;
          landed?.(next);
        }
      }
    } finally {
      intake.end();
    }
  }

  /** The object's bytes [begin, end) in pieces of whole units; each is valid until the next one is asked for. */
  async *#pieces(begin: number, end: number): AsyncGenerator<Uint8Array, void> {
    const { unit } = this.view.valid;
    const length = end - begin;
    if (length <= SHORT_BYTES || !this.origin.readPieces) {
      const bytes = await abortable(this.#end.signal, this.origin.readRange(begin, length));
      this.#checkSent(bytes, begin, length);
      return yield bytes;
    }
    const piece = Math.ceil(PIECE_BYTES / unit) * unit;
    let at = begin;
    const pieces = this.origin.readPieces(begin, length, piece);
    for await (const bytes of abortablePieces(this.#end.signal, pieces)) {
      this.#checkSent(bytes, at, Math.min(piece, end - at));
      yield bytes;
      at += bytes.length;
    }
    if (at < end) this.#checkSent(new Uint8Array(), at, end - at);
  }

  #checkSent(bytes: Uint8Array, offset: number, length: number): void {
    if (bytes.length === length) return;
    const sent = `${bytes.length} bytes were sent for ${length} at ${offset}`;
    throw new OverlaybdError("E_REGISTRY", `${this.view.name}: ${sent}`);
  }

  /**
   * A reader found bytes among the units [first, end) to be wrong when the epoch was `seen`. Those that are not what was
   * fetched are fetched once more; if all are, those that were not fetched twice yet. What is wrong even then is so at
   * the origin.
   */
  async #mend(first: number, end: number, seen: number): Promise<void> {
    const units = range(first, end);
    if (this.#media.whole) {
      throw this.#damage(units, "in the downloaded file; remove that to have them fetched again");
    }
    for (;;) {
      const flights = units.flatMap((unit) => this.#flights.get(unit) ?? []);
      if (flights.length === 0) break;
      await Promise.allSettled(flights);
    }
    this.#checkOpen();
    // Somebody may have given them up, or have fetched them, since the reader looked.
    const stale = (unit: number): boolean =>
      !hasUnit(this.view.valid, unit) || isBefore(seen, this.#mended.get(unit) ?? this.#media.since);
    if (isBefore(seen, this.#media.since) || units.some(stale)) return;
    await this.#flights.together(units, this.#mendUnits(units));
  }

  async #mendUnits(units: readonly number[]): Promise<void> {
    if (this.#store && !(await this.#store.restoreSize())) {
      // Somebody cut the file short: there are holes now wherever bytes were. All is checked before it is believed again.
      this.#media.withdrawAll();
      return;
    }
    const lost = await this.#lostUnits(units);
    const suspects = lost.length > 0 ? lost : units.filter((unit) => !this.#mended.has(unit));
    const hopeless = suspects.length === 0;
    const given = hopeless ? units : suspects;
    this.#media.withdraw(given);
    for (const unit of given) await this.#store?.forget(unit, 1);
    if (hopeless) {
      for (const unit of units) this.#mended.delete(unit);
      throw this.#damage(units, "as they come from the registry");
    }
    this.stats.damaged += suspects.length;
    // A disk that loses the same bytes twice is not trusted with them a third time.
    const distrust = lost.some((unit) => this.#mended.has(unit));
    if (distrust) this.#media.toMemory();
    const epoch = Atomics.load(this.view.valid.epoch, 0);
    for (const unit of suspects) {
      this.#mended.set(unit, epoch);
      await this.#download(unit, unit + 1, !distrust);
    }
  }

  /** Units that are on the disk otherwise than they were written. Memory loses nothing. */
  async #lostUnits(units: readonly number[]): Promise<number[]> {
    if (this.#media.inMemory || !this.#store) return [];
    const lost: number[] = [];
    for (const unit of units) if ((await this.#store.restore(unit)) === null) lost.push(unit);
    return lost;
  }

  #damage(units: readonly number[], where: string): OverlaybdError {
    const { unit } = this.view.valid;
    const end = Math.min(((units.at(-1) ?? 0) + 1) * unit, this.view.size);
    return new OverlaybdError(
      "E_CORRUPT",
      `${this.view.name}: bytes ${units[0] * unit} to ${end} are damaged ${where}`,
    );
  }

  /** A descriptor's number may already belong to another file. */
  #checkOpen(): void {
    this.#end.signal.throwIfAborted();
  }

  /** Gives up what is asked of the origin, waits for the disk, and releases everything. */
  async close(): Promise<void> {
    this.#end.abort(new OverlaybdError("E_IO", `${this.view.name} was closed while it was read`));
    await this.#flights.settle();
    this.#media.close();
    await this.#store?.close();
  }
}

/** Told of a unit that can be read from now on. */
type Landed = (unit: number) => void;

/** Whether an epoch is an earlier one, as long as they are not 2^31 apart. */
function isBefore(epoch: number, other: number): boolean {
  return ((epoch - other) | 0) < 0;
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
