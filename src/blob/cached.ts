/**
 * One object of a registry, readable as if it were a local file: refill units that are asked for are fetched, kept in
 * the cache directory, and announced to readers. Lives on the main thread.
 */
import { closeSync, openSync } from "node:fs";
import { OverlaybdError } from "../error.ts";
import { replaceDescriptor } from "../native/descriptor.ts";
import type { BlobView, CacheStats } from "./blob.ts";
import { checkRange, readExactly } from "./file.ts";
import type { RangeOrigin } from "./origin.ts";
import { addUnit, emptyResidency, hasRange, hasUnit, withdrawAll, withdrawUnit } from "./residency.ts";
import { emptyStats } from "./stats.ts";
import type { UnitStore } from "./store.ts";
import { WINDOW_BYTES, Window } from "./window.ts";

/** Most bytes asked of the origin in one request: adjacent missing units are fetched together. */
const MAX_REQUEST_BYTES = 4 << 20;
/** Most bytes one `fetch` works on at a time, so that a long range neither fills memory nor chases itself out of a window. */
const STEP_BYTES = WINDOW_BYTES / 2;
/** How often a read starts over because what it was reading was withdrawn. */
const MAX_ATTEMPTS = 16;

export class CachedBlob {
  readonly view: BlobView & Required<Pick<BlobView, "valid">>;
  readonly stats: CacheStats = emptyStats();
  /** Units being fetched or checked, and what their readers wait for. */
  readonly #flights = new Map<number, Promise<void>>();
  /** Takes the place of the media file once the disk has refused bytes, until the blob is closed. */
  #window: Window | undefined;
  #closed = false;

  /**
   * @param store the object's files in the cache directory; null when the disk is too full to create them.
   * @param epoch the cache's count of withdrawals.
   */
  constructor(
    private readonly origin: RangeOrigin,
    private readonly store: UnitStore | null,
    unit: number,
    epoch: Uint32Array<SharedArrayBuffer>,
  ) {
    const { name, size } = origin;
    if (store === null) this.#window = this.#openWindow(size, unit);
    const fd = openSync(`/proc/self/fd/${store?.fd ?? this.#window?.fd}`, "r");
    this.view = { name, size, fd, valid: emptyResidency(size, unit, epoch) };
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
    const { epoch } = this.view.valid;
    for (let attempt = 0; attempt < MAX_ATTEMPTS; attempt++) {
      await this.fetch(offset, bytes.length);
      const before = Atomics.load(epoch, 0);
      if (!hasRange(this.view.valid, offset, bytes.length)) continue;
      this.#checkOpen();
      await readExactly(this.view.fd, this.view.name, bytes, offset);
      if (Atomics.load(epoch, 0) === before) return;
    }
    throw new OverlaybdError(
      "E_BUSY",
      `${this.view.name}: bytes at ${offset} were displaced from memory ${MAX_ATTEMPTS} times before they could be read; the cache's disk is full`,
    );
  }

  /** See `Blob.fetch`. Without a disk, only the last `WINDOW_BYTES` of what all callers asked for stay readable. */
  async fetch(offset: number, length: number): Promise<void> {
    checkRange(this.view, offset, length);
    if (length === 0) return;
    const { unit } = this.view.valid;
    const end = Math.ceil((offset + length) / unit);
    for (let first = Math.floor(offset / unit); first < end; first += STEP_BYTES / unit) {
      this.#checkOpen();
      await Promise.all(this.#depart(first, Math.min(first + STEP_BYTES / unit, end)));
    }
  }

  /** Starts a flight for every run of absent units in [first, end); returns all flights that bring some of them. */
  #depart(first: number, end: number): Set<Promise<void>> {
    const flights = new Set<Promise<void>>();
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
      flights.add(this.#fly(begin, unit));
    }
    return flights;
  }

  #fly(first: number, end: number): Promise<void> {
    const flight = this.#bring(first, end).finally(() => {
      for (let unit = first; unit < end; unit++) this.#flights.delete(unit);
    });
    for (let unit = first; unit < end; unit++) this.#flights.set(unit, flight);
    return flight;
  }

  /** Makes the units [first, end) readable: from disk where they are and are intact, else from the origin. */
  async #bring(first: number, end: number): Promise<void> {
    await this.store?.refresh(first, end - first);
    let missing = first;
    for (let unit = first; unit < end; unit++) {
      const bytes = await this.#restore(unit);
      if (bytes === null) continue;
      if (missing < unit) await this.#download(missing, unit);
      missing = unit + 1;
      this.#announce(unit, bytes);
    }
    if (missing < end) await this.#download(missing, end);
  }

  async #restore(unit: number): Promise<Uint8Array | null> {
    if (!this.store?.has(unit)) return null;
    const bytes = await this.store.restore(unit);
    if (bytes) this.stats.hits++;
    else this.stats.damaged++;
    return bytes;
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
    await this.#keep(first, bytes);
    for (let i = first; i < end; i++) {
      this.#announce(i, bytes.subarray((i - first) * unit, (i - first + 1) * unit));
    }
  }

  /** A disk that refuses bytes costs their persistence, never a read. It is offered later ones all the same. */
  async #keep(first: number, bytes: Uint8Array): Promise<void> {
    try {
      await this.store?.write(first, bytes);
    } catch {
      this.stats.refused++;
      this.#window ??= this.#replaceMedia();
    }
  }

  #announce(unit: number, bytes: Uint8Array): void {
    this.#window?.put(unit, bytes);
    addUnit(this.view.valid, unit);
  }

  /** From here on readers' descriptor is a window. What they were reading from the media file is withdrawn. */
  #replaceMedia(): Window {
    const window = this.#openWindow(this.view.size, this.view.valid.unit);
    withdrawAll(this.view.valid);
    replaceDescriptor(this.view.fd, window.fd);
    return window;
  }

  #openWindow(size: number, unit: number): Window {
    return new Window(size, unit, (displaced) => withdrawUnit(this.view.valid, displaced));
  }

  /** A descriptor's number may already belong to another file. */
  #checkOpen(): void {
    if (this.#closed) throw new OverlaybdError("E_IO", `${this.view.name} was closed while it was read`);
  }

  /** Waits for what is under way, then releases everything. */
  async close(): Promise<void> {
    this.#closed = true;
    await Promise.allSettled(this.#flights.values());
    closeSync(this.view.fd);
    this.#window?.close();
    await this.store?.close();
  }
}
