/** Looking at and changing a `Residency`; plain functions because the data crosses threads. */
import type { Residency } from "./blob.ts";

/** A residency with nothing there, for an object of `size` bytes. */
export function emptyResidency(size: number, unit: number, epoch: Uint32Array<SharedArrayBuffer>): Residency {
  const words = Math.ceil(Math.ceil(size / unit) / 32);
  const bits = () => new Uint32Array(new SharedArrayBuffer(words * 4));
  return { bits: bits(), used: bits(), unit, epoch };
}

function hasBit(words: Uint32Array, unit: number): boolean {
  return ((Atomics.load(words, unit >>> 5) >>> (unit & 31)) & 1) === 1;
}

export function hasUnit(residency: Residency, unit: number): boolean {
  return hasBit(residency.bits, unit);
}

/** Whether every byte of [offset, offset + length) is there. Does not allocate. */
export function hasRange(residency: Residency, offset: number, length: number): boolean {
  const last = Math.floor((offset + length - 1) / residency.unit);
  for (let unit = Math.floor(offset / residency.unit); unit <= last; unit++) {
    if (!hasUnit(residency, unit)) return false;
  }
  return true;
}

/** The same, for a reader: what it asks for counts as used. */
export function useRange(residency: Residency, offset: number, length: number): boolean {
  if (!hasRange(residency, offset, length)) return false;
  const last = Math.floor((offset + length - 1) / residency.unit);
  for (let unit = Math.floor(offset / residency.unit); unit <= last; unit++) {
    if (!hasBit(residency.used, unit)) Atomics.or(residency.used, unit >>> 5, 1 << (unit & 31));
  }
  return true;
}

/** Whether a reader has asked for the unit lately. */
export function isUsed(residency: Residency, unit: number): boolean {
  return hasBit(residency.used, unit);
}

/** Whether the unit was used since this was last asked. */
export function takeUse(residency: Residency, unit: number): boolean {
  if (!hasBit(residency.used, unit)) return false;
  Atomics.and(residency.used, unit >>> 5, ~(1 << (unit & 31)));
  return true;
}

/** Announces a unit whose bytes are in the file. */
export function addUnit(residency: Residency, unit: number): void {
  Atomics.or(residency.bits, unit >>> 5, 1 << (unit & 31));
}

/** Announces every unit. */
export function addAll(residency: Residency): void {
  for (let word = 0; word < residency.bits.length; word++) Atomics.store(residency.bits, word, ~0);
}

/** Withdraws units; afterwards their bytes may go. */
export function withdrawUnits(residency: Residency, units: readonly number[]): void {
  for (const unit of units) Atomics.and(residency.bits, unit >>> 5, ~(1 << (unit & 31)));
  Atomics.add(residency.epoch, 0, 1);
}

/** Withdraws every unit; afterwards their bytes may go. */
export function withdrawAll(residency: Residency): void {
  for (let word = 0; word < residency.bits.length; word++) Atomics.store(residency.bits, word, 0);
  Atomics.add(residency.epoch, 0, 1);
}
