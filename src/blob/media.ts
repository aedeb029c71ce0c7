/**
 * What readers of a cached object read: one descriptor, behind which stand, in turn, the media file in the cache, a
 * window in memory while the disk takes nothing, or a local file that holds the whole object. Readers go by the
 * residency and notice nothing.
 */
import { closeSync, openSync } from "node:fs";
import { replaceDescriptor } from "../native/descriptor.ts";
import type { BlobView } from "./blob.ts";
import { addAll, addUnit, emptyResidency, withdrawAll, withdrawUnits } from "./residency.ts";
import { Window, type WindowMemory } from "./window.ts";

export class Media {
  readonly view: BlobView & Required<Pick<BlobView, "valid">>;
  #window: Window | undefined;
  #whole = false;
  #since = 0;

  /**
   * @param media descriptor of the media file, or null to begin in memory.
   * @param epoch the cache's count of withdrawals.
   */
  constructor(
    { name, size }: { readonly name: string; readonly size: number },
    unit: number,
    private readonly media: number | null,
    epoch: Uint32Array<SharedArrayBuffer>,
    private readonly memory: WindowMemory,
  ) {
    const valid = emptyResidency(size, unit, epoch);
    if (media === null) this.#window = this.#openWindow(size, unit);
    const fd = openSync(`/proc/self/fd/${media ?? this.#window?.fd}`, "r");
    this.view = { name, size, fd, valid };
  }

  /** Whether readers read from memory. */
  get inMemory(): boolean {
    return this.#window !== undefined;
  }

  /** Whether readers read a local file that holds everything. */
  get whole(): boolean {
    return this.#whole;
  }

  /** The epoch since which readers read what they read now. */
  get since(): number {
    return this.#since;
  }

  /** Lets readers read a unit. `stored`: its bytes are in the media file; if not, they can only be read from memory. */
  announce(unit: number, bytes: Uint8Array, stored: boolean): void {
    if (this.#whole) return;
    if (this.#window) this.#window.put(unit, bytes);
    else if (!stored) return;
    addUnit(this.view.valid, unit);
  }

  withdraw(units: readonly number[]): void {
    if (!this.#whole) withdrawUnits(this.view.valid, units);
  }

  withdrawAll(): void {
    if (!this.#whole) withdrawAll(this.view.valid);
  }

  /** From here on readers read from memory. Nothing is there at first. */
  toMemory(): void {
    if (this.#whole || this.#window) return;
    this.#window = this.#openWindow(this.view.size, this.view.valid.unit);
    this.#replace(this.#window.fd);
  }

  /** From here on readers read the media file. Nothing of it is announced at first. */
  toMedia(): void {
    if (!this.#window || this.media === null) return;
    this.#replace(this.media);
    this.#window.close();
    this.#window = undefined;
  }

  /** From here on, and until the end, readers read an open file that holds everything; it can be closed afterwards. */
  toFile(fd: number): void {
    this.#replace(fd);
    this.#whole = true;
    addAll(this.view.valid);
    this.#window?.close();
    this.#window = undefined;
  }

  close(): void {
    closeSync(this.view.fd);
    this.#window?.close();
  }

  /** What was being read meanwhile is withdrawn. */
  #replace(fd: number): void {
    withdrawAll(this.view.valid);
    this.#since = Atomics.load(this.view.valid.epoch, 0);
    replaceDescriptor(this.view.fd, fd);
  }

  #openWindow(size: number, unit: number): Window {
    return new Window(size, unit, this.memory, (displaced) => this.withdraw([displaced]));
  }
}
