/** Looking at and changing a `Residency`; plain functions because the data crosses threads. */
import type { Residency } from "./blob.ts";

/** A residency with nothing there, for an object of `size` bytes. */
export function emptyResidency(size: number, unit: number, epoch: Uint32Array<SharedArrayBuffer>): Residency {
  const words = Math.ceil(Math.ceil(size / unit) / 32);
  return { bits: new Uint32Array(new SharedArrayBuffer(words * 4)), unit, epoch };
}

export function hasUnit(residency: Residency, unit: number): boolean {
  return ((Atomics.load(residency.bits, unit >>> 5) >>> (unit & 31)) & 1) === 1;
}

/** Whether every byte of [offset, offset + length) is there. Does not allocate. */
export function hasRange(residency: Residency, offset: number, length: number): boolean {
  const last = Math.floor((offset + length - 1) / residency.unit);
  for (let unit = Math.floor(offset / residency.unit); unit <= last; unit++) {
    if (!hasUnit(residency, unit)) return false;
  }
  return true;
}

/** Announces a unit whose bytes are in the file. */
export function addUnit(residency: Residency, unit: number): void {
  Atomics.or(residency.bits, unit >>> 5, 1 << (unit & 31));
}

/** Withdraws a unit; afterwards its bytes may go. */
export function withdrawUnit(residency: Residency, unit: number): void {
  Atomics.and(residency.bits, unit >>> 5, ~(1 << (unit & 31)));
  Atomics.add(residency.epoch, 0, 1);
}

/** Withdraws every unit; afterwards their bytes may go. */
export function withdrawAll(residency: Residency): void {
  for (let word = 0; word < residency.bits.length; word++) Atomics.store(residency.bits, word, 0);
  Atomics.add(residency.epoch, 0, 1);
}
