/**
 * The index of a writable layer (lsmt.md section 8): inserting a segment cuts or replaces what it overlaps.
 *
 * A sorted list of chunks of at most 1024 segments each, so an insertion moves a few kilobytes at most whatever the
 * size of the index. Neighbours are never merged: what a commit writes depends on the segments as they were written.
 */
import { OverlaybdError } from "../../error.ts";
import {
  detailLength,
  detailMoffset,
  detailZeroed,
  GAP,
  MAX_SECTORS,
  MAX_SEGMENTS,
  type PieceVisitor,
  packDetail,
  type SegmentTable,
  SegmentTableBuilder,
  ZEROED,
} from "./segments.ts";

const CHUNK_SEGMENTS = 1024;

/** Columns as in `SegmentTable`; `count` of each are in use, never 0 once in the list. */
class Chunk {
  count = 0;
  readonly lasts = new Uint32Array(CHUNK_SEGMENTS);
  readonly moffsets = new Uint32Array(CHUNK_SEGMENTS);
  readonly details = new Uint32Array(CHUNK_SEGMENTS);

  /** Moves the segments from `from` on to position `to` and adjusts the count. */
  move(from: number, to: number): void {
    this.lasts.copyWithin(to, from, this.count);
    this.moffsets.copyWithin(to, from, this.count);
    this.details.copyWithin(to, from, this.count);
    this.count += to - from;
  }

  set(i: number, last: number, moffset: number, detail: number): void {
    this.lasts[i] = last;
    this.moffsets[i] = moffset;
    this.details[i] = detail;
  }

  /** Moves the segments from `from` on to a new chunk. */
  splitAt(from: number): Chunk {
    const behind = new Chunk();
    behind.lasts.set(this.lasts.subarray(from, this.count));
    behind.moffsets.set(this.moffsets.subarray(from, this.count));
    behind.details.set(this.details.subarray(from, this.count));
    behind.count = this.count - from;
    this.count = from;
    return behind;
  }
}

export class WritableIndex {
  readonly #chunks: Chunk[] = [];
  #count = 0;

  /** Number of segments. */
  get count(): number {
    return this.#count;
  }

  /**
   * Maps `length` sectors at sector `start` to sector `moffset` of the data file, or to zeros. `length` is at most
   * 16383; 0 inserts nothing.
   * @throws OverlaybdError E_LIMIT when the disk or the index becomes too big.
   */
  insert(start: number, length: number, moffset: number, zeroed: boolean): void {
    if (length === 0) return;
    if (start + length > MAX_SECTORS) {
      throw new OverlaybdError(
        "E_LIMIT",
        `sector ${start + length - 1}: disks above 2 TiB are not supported`,
      );
    }
    if (this.#count >= MAX_SEGMENTS) {
      throw new OverlaybdError("E_LIMIT", `writable layer of more than ${MAX_SEGMENTS} segments: commit it`);
    }
    const last = start + length - 1;
    let c = this.#findChunk(start);
    let i = c < this.#chunks.length ? findIn(this.#chunks[c], start) : 0;
    if (c < this.#chunks.length && startOf(this.#chunks[c], i) < start) {
      const chunk = this.#chunks[c];
      const segmentLast = chunk.lasts[i];
      const detail = chunk.details[i];
      const begin = startOf(chunk, i);
      chunk.lasts[i] = start - 1;
      chunk.details[i] = withLength(detail, start - begin);
      i++;
      if (segmentLast > last) {
        // The old segment surrounds the new one: its tail becomes a segment of its own.
        const zeroes = detailZeroed(detail);
        const tail = detailMoffset(detail, chunk.moffsets[i - 1]) + (zeroes ? 0 : last + 1 - begin);
        [c, i] = this.#place(c, i, segmentLast, tail, packDetail(segmentLast - last, tail, zeroes, 0));
      }
    }
    [c, i] = this.#clear(c, i, last);
    this.#place(c, i, last, moffset, packDetail(length, moffset, zeroed, 0));
  }

  /**
   * Cuts the sectors [start, end) into consecutive pieces and visits each: tag 0 for data of this layer, `ZEROED`, or
   * `GAP` for what the layers below serve.
   */
  walk(start: number, end: number, visit: PieceVisitor): void {
    let at = start;
    let c = this.#findChunk(start);
    let i = c < this.#chunks.length ? findIn(this.#chunks[c], start) : 0;
    while (at < end && c < this.#chunks.length) {
      const chunk = this.#chunks[c];
      const begin = Math.min(startOf(chunk, i), end);
      if (begin > at) visit(at, begin - at, GAP, 0);
      at = Math.max(at, begin);
      const detail = chunk.details[i];
      const length = Math.min(chunk.lasts[i] + 1, end) - at;
      if (length > 0) {
        if (detailZeroed(detail)) visit(at, length, ZEROED, 0);
        else visit(at, length, 0, detailMoffset(detail, chunk.moffsets[i]) + at - begin);
      }
      at += length;
      if (++i === chunk.count) {
        c++;
        i = 0;
      }
    }
    if (at < end) visit(at, end - at, GAP, 0);
  }

  /** A snapshot, all tags 0. */
  toTable(): SegmentTable {
    const builder = new SegmentTableBuilder(this.#count);
    for (const chunk of this.#chunks) {
      for (let i = 0; i < chunk.count; i++) {
        const detail = chunk.details[i];
        const moffset = detailMoffset(detail, chunk.moffsets[i]);
        builder.push(startOf(chunk, i), detailLength(detail), moffset, detailZeroed(detail), 0);
      }
    }
    return builder.build();
  }

  /** Position of the first chunk that holds a segment ending behind `sector`. */
  #findChunk(sector: number): number {
    let low = 0;
    let high = this.#chunks.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      const chunk = this.#chunks[middle];
      if (chunk.lasts[chunk.count - 1] < sector) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /** Removes what lies before or at sector `last`, from segment i of chunk c on; returns where the next one is. */
  #clear(c: number, i: number, last: number): [number, number] {
    if (c === this.#chunks.length) return [c, 0];
    let chunk = this.#chunks[c];
    let end = c;
    if (i > 0 && chunk.lasts[chunk.count - 1] <= last) {
      this.#count -= chunk.count - i;
      chunk.count = i;
      c++;
      end++;
      i = 0;
    }
    for (; end < this.#chunks.length; end++) {
      chunk = this.#chunks[end];
      if (chunk.lasts[chunk.count - 1] > last) break;
      this.#count -= chunk.count;
    }
    if (end > c) this.#chunks.splice(c, end - c);
    if (c === this.#chunks.length) return [c, 0];
    chunk = this.#chunks[c];
    let kept = i;
    while (chunk.lasts[kept] <= last) kept++;
    this.#count -= kept - i;
    if (kept > i) chunk.move(kept, i);
    const begin = startOf(chunk, i);
    if (begin <= last) {
      const detail = chunk.details[i];
      const cut = last + 1 - begin;
      const moffset = detailMoffset(detail, chunk.moffsets[i]) + (detailZeroed(detail) ? 0 : cut);
      chunk.moffsets[i] = moffset;
      chunk.details[i] = packDetail(detailLength(detail) - cut, moffset, detailZeroed(detail), 0);
    }
    return [c, i];
  }

  /** Puts a segment before segment i of chunk c; returns where it is. */
  #place(c: number, i: number, last: number, moffset: number, detail: number): [number, number] {
    if (i === 0 && c > 0) {
      // Behind the chunk before, so that ascending writes fill chunks.
      c--;
      i = this.#chunks[c].count;
    }
    if (c === this.#chunks.length) this.#chunks.push(new Chunk());
    let chunk = this.#chunks[c];
    if (chunk.count === CHUNK_SEGMENTS) {
      // Split in halves, but at the very end start an empty chunk.
      const atEnd = i === CHUNK_SEGMENTS && c === this.#chunks.length - 1;
      const half = atEnd ? CHUNK_SEGMENTS : CHUNK_SEGMENTS / 2;
      this.#chunks.splice(c + 1, 0, chunk.splitAt(half));
      if (i > half || atEnd) {
        c++;
        i -= half;
        chunk = this.#chunks[c];
      }
    }
    chunk.move(i, i + 1);
    chunk.set(i, last, moffset, detail);
    this.#count++;
    return [c, i];
  }
}

const startOf = (chunk: Chunk, i: number): number => chunk.lasts[i] + 1 - detailLength(chunk.details[i]);

const withLength = (detail: number, length: number): number => ((detail & ~0x3fff) | length) >>> 0;

/** Position of the first segment of the chunk that ends behind `sector`; there is one. */
function findIn(chunk: Chunk, sector: number): number {
  let low = 0;
  let high = chunk.count - 1;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (chunk.lasts[middle] < sector) low = middle + 1;
    else high = middle;
  }
  return low;
}
