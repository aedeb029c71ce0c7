/** Maps of GNU sparse members: the old format's in header blocks, and the checks common to all formats. */
import type { SparseExtent } from "./entry.ts";
import { BLOCK_BYTES, FieldError, octal } from "./header.ts";

const EXTENT_BYTES = 24;
const NUMBER_BYTES = 12;

/** Where an old-format map lies in a block: four extents in the header, 21 in each extension block. */
export const HEADER_MAP = { at: 386, count: 4, continuedAt: 482 };
export const EXTENSION_MAP = { at: 0, count: 21, continuedAt: 504 };

/** Appends a block's extents to `map` (offsets and lengths in turn); true when an extension block follows. */
export function readOldMap(block: Uint8Array, at: number, place: typeof HEADER_MAP, map: number[]): boolean {
  for (let i = 0; i < place.count; i++) {
    const start = at + place.at + i * EXTENT_BYTES;
    if (block[start + NUMBER_BYTES] === 0) break;
    map.push(sparseNumber(block, start), sparseNumber(block, start + NUMBER_BYTES));
  }
  return block[at + place.continuedAt] !== 0;
}

/** Octal, or base-256 with a non-negative value. */
function sparseNumber(block: Uint8Array, start: number): number {
  let value = 0;
  if (block[start] === 0x80) for (let i = 1; i < NUMBER_BYTES; i++) value = value * 256 + block[start + i];
  else value = octal(block, start, NUMBER_BYTES);
  if (!Number.isSafeInteger(value)) throw new FieldError("the sparse map holds no usable number");
  return value;
}

/**
 * The extents of a map (offsets and lengths in turn), without the empty ones.
 * @throws FieldError unless they ascend, are disjoint, end within `realSize` and hold `storedBytes` in all.
 */
export function checkedExtents(
  map: readonly number[],
  realSize: number,
  storedBytes: number,
): SparseExtent[] {
  if (map.length % 2 !== 0) throw new FieldError("the sparse map is incomplete");
  const extents: SparseExtent[] = [];
  let end = 0;
  let total = 0;
  for (let i = 0; i < map.length; i += 2) {
    const [offset, length] = [map[i], map[i + 1]];
    if (offset < end || offset + length > realSize)
      throw new FieldError("the sparse map overlaps, runs backwards or leaves the file");
    end = offset + length;
    total += length;
    if (length > 0) extents.push({ offset, length });
  }
  if (total !== storedBytes) throw new FieldError("the sparse map does not match the stored size");
  return extents;
}

/** Parses the text map that leads a version 1.0 payload: a count, then offsets and lengths, one number a line. */
export class TextMap {
  readonly map: number[] = [];
  #expected = -1;
  #digits = "";

  /** Takes the next block; true once the map is complete (the rest of its last block is padding). */
  add(block: Uint8Array, at: number): boolean {
    for (let i = at; i < at + BLOCK_BYTES; i++) {
      if (block[i] !== 0x0a) {
        this.#digits += String.fromCharCode(block[i]);
        if (this.#digits.length > 16) throw new FieldError("the sparse map holds no usable number");
        continue;
      }
      if (!/^[0-9]+$/.test(this.#digits)) throw new FieldError("the sparse map holds no usable number");
      const value = Number(this.#digits);
      this.#digits = "";
      if (this.#expected < 0) this.#expected = 2 * value;
      else this.map.push(value);
      if (this.map.length === this.#expected) return true;
    }
    return false;
  }
}
