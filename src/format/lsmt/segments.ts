/**
 * The index of a layer, or of a whole stack, in memory: sorted, non-overlapping segments as plain typed arrays that
 * can be posted to another thread without copying. 12 bytes a segment plus a directory of at most 4 bytes a segment.
 *
 * All positions are sectors of 512 bytes. A table covers disks of up to 2^32 sectors (2 TiB).
 */
import { OverlaybdError } from "../../error.ts";

export const SECTOR_BYTES = 512;
/** Longest segment an index entry can describe, in sectors (lsmt.md section 3). */
export const MAX_SEGMENT_SECTORS = 16383;
/** First sector that a table cannot hold. */
export const MAX_SECTORS = 2 ** 32;
/** First mapped sector that a table cannot hold: a layer file of 1 PiB. */
const MAX_MAPPED_SECTORS = 2 ** 41;
/** Limit of a writable or merged index (lsmt.md section 11). */
export const MAX_SEGMENTS = 128_000_000;

export interface SegmentTable {
  readonly count: number;
  /** Last sector of each segment. Searching ends rather than starts answers "first segment ending behind x". */
  readonly lasts: Uint32Array<SharedArrayBuffer>;
  /** Low 32 bits of the sector in the layer's file that holds the segment's first sector. */
  readonly moffsets: Uint32Array<SharedArrayBuffer>;
  /** See `packDetail`. */
  readonly details: Uint32Array<SharedArrayBuffer>;
  /** Entry b is the first segment whose last sector is at or behind b << shift; the last entry is `count`. */
  readonly directory: Uint32Array<SharedArrayBuffer>;
  readonly shift: number;
}

/** Packs length (bits 0–13), tag (14–21), zeroed (22) and the high 9 bits of the mapped sector (23–31). */
export function packDetail(length: number, moffset: number, zeroed: boolean, tag: number): number {
  return ((Math.floor(moffset / 2 ** 32) << 23) | (zeroed ? 1 << 22 : 0) | (tag << 14) | length) >>> 0;
}

export const detailLength = (detail: number): number => detail & 0x3fff;
export const detailTag = (detail: number): number => (detail >>> 14) & 0xff;
export const detailZeroed = (detail: number): boolean => (detail & (1 << 22)) !== 0;
export const detailMoffset = (detail: number, low: number): number => (detail >>> 23) * 2 ** 32 + low;

export const segmentStart = (t: SegmentTable, i: number): number => t.lasts[i] + 1 - (t.details[i] & 0x3fff);
export const segmentEnd = (t: SegmentTable, i: number): number => t.lasts[i] + 1;
/** In sectors. */
export const segmentLength = (t: SegmentTable, i: number): number => detailLength(t.details[i]);
/** Whether the segment reads as zeros and has no data. */
export const segmentZeroed = (t: SegmentTable, i: number): boolean => detailZeroed(t.details[i]);
/** Which layer holds the data: its position in the stack, topmost 0. */
export const segmentTag = (t: SegmentTable, i: number): number => detailTag(t.details[i]);
/** Sector in the layer's LSMT stream where the segment's data starts; without meaning when zeroed. */
export const segmentMoffset = (t: SegmentTable, i: number): number =>
  detailMoffset(t.details[i], t.moffsets[i]);

/** Position of the first segment whose end lies behind `sector`; `count` when there is none. */
export function findSegment(table: SegmentTable, sector: number): number {
  const { count, lasts, directory } = table;
  if (count === 0 || sector > lasts[count - 1]) return count;
  const bucket = sector >>> table.shift;
  let low = directory[bucket];
  let high = directory[bucket + 1];
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (lasts[middle] < sector) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** What a piece of a walk is served by, besides a layer's tag (0 and up). */
export const ZEROED = -1;
/** No segment covers the piece. */
export const GAP = -2;

/**
 * Receives one piece of a walked range. `start` and `length` are virtual sectors; `tag` is a layer's position, `ZEROED`
 * or `GAP`; `moffset` is the sector in that layer's stream (0 for the latter two).
 */
export type PieceVisitor = (start: number, length: number, tag: number, moffset: number) => void;

/** Cuts [start, end) into consecutive pieces along the segments and visits each. Allocates nothing. */
export function walkSegments(table: SegmentTable, start: number, end: number, visit: PieceVisitor): void {
  let at = start;
  for (let i = findSegment(table, start); at < end && i < table.count; i++) {
    const detail = table.details[i];
    const segmentAt = table.lasts[i] + 1 - detailLength(detail);
    if (segmentAt >= end) break;
    if (segmentAt > at) {
      visit(at, segmentAt - at, GAP, 0);
      at = segmentAt;
    }
    const pieceEnd = Math.min(table.lasts[i] + 1, end);
    if (detailZeroed(detail)) visit(at, pieceEnd - at, ZEROED, 0);
    else
      visit(at, pieceEnd - at, detailTag(detail), detailMoffset(detail, table.moffsets[i]) + at - segmentAt);
    at = pieceEnd;
  }
  if (at < end) visit(at, end - at, GAP, 0);
}

/** Sectors of data in the table, zeroed segments not counted. */
export function allocatedSectors(table: SegmentTable): number {
  let sum = 0;
  for (let i = 0; i < table.count; i++) if (!segmentZeroed(table, i)) sum += segmentLength(table, i);
  return sum;
}

/** Collects segments in ascending order into a table. */
export class SegmentTableBuilder {
  #count = 0;
  #lasts: Uint32Array;
  #moffsets: Uint32Array;
  #details: Uint32Array;

  /** @param expected how many segments to make room for; more still fit. */
  constructor(expected = 1024) {
    const room = Math.min(Math.max(16, expected), MAX_SEGMENTS);
    this.#lasts = new Uint32Array(room);
    this.#moffsets = new Uint32Array(room);
    this.#details = new Uint32Array(room);
  }

  get count(): number {
    return this.#count;
  }

  /**
   * Appends a segment of 1 to `MAX_SEGMENT_SECTORS` sectors that starts at or behind the end of the last one.
   * @throws OverlaybdError E_LIMIT when a position or the number of segments is beyond what a table holds.
   */
  push(start: number, length: number, moffset: number, zeroed: boolean, tag: number): void {
    if (start + length > MAX_SECTORS || moffset >= MAX_MAPPED_SECTORS) {
      throw new OverlaybdError(
        "E_LIMIT",
        `segment of ${length} sectors at sector ${start}, mapped to sector ${moffset}: disks above 2 TiB and layer files above 1 PiB are not supported`,
      );
    }
    if (this.#count === this.#lasts.length) this.#grow();
    this.#lasts[this.#count] = start + length - 1;
    this.#moffsets[this.#count] = moffset;
    this.#details[this.#count++] = packDetail(length, moffset, zeroed, tag);
  }

  #grow(): void {
    if (this.#count >= MAX_SEGMENTS) {
      throw new OverlaybdError("E_LIMIT", `index of more than ${MAX_SEGMENTS} segments`);
    }
    const room = Math.min(MAX_SEGMENTS, this.#count * 2);
    this.#lasts = enlarged(this.#lasts, room);
    this.#moffsets = enlarged(this.#moffsets, room);
    this.#details = enlarged(this.#details, room);
  }

  build(): SegmentTable {
    const lasts = shared(this.#lasts, this.#count);
    return {
      count: this.#count,
      lasts,
      moffsets: shared(this.#moffsets, this.#count),
      details: shared(this.#details, this.#count),
      ...buildDirectory(lasts),
    };
  }
}

function enlarged(array: Uint32Array, room: number): Uint32Array {
  const larger = new Uint32Array(room);
  larger.set(array);
  return larger;
}

function shared(array: Uint32Array, count: number): Uint32Array<SharedArrayBuffer> {
  const copy = new Uint32Array(new SharedArrayBuffer(count * 4));
  copy.set(array.subarray(0, count));
  return copy;
}

/** Buckets as narrow as 4 bytes a segment allow, so that a look-up in a big table touches two or three cache lines. */
function buildDirectory(lasts: Uint32Array): Pick<SegmentTable, "directory" | "shift"> {
  const count = lasts.length;
  const last = count === 0 ? 0 : lasts[count - 1];
  let shift = 0;
  while (shift < 31 && (last >>> shift) + 2 > count) shift++;
  const directory = new Uint32Array(new SharedArrayBuffer(((last >>> shift) + 2) * 4));
  let segment = 0;
  for (let bucket = 0; bucket < directory.length - 1; bucket++) {
    const begin = bucket * 2 ** shift;
    while (segment < count && lasts[segment] < begin) segment++;
    directory[bucket] = segment;
  }
  directory[directory.length - 1] = count;
  return { directory, shift };
}
