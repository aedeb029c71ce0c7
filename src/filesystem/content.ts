/** Hands a file's content over to the volume, in pieces as they come, without copying what need not be copied. */
import type { Piece, SparseExtent } from "../format/tar/entry.ts";
import { addressOf } from "../native/address.ts";
import type { Ext2Session } from "../native/ext2.ts";
import { BLOCK_BYTES, type Volume } from "./volume.ts";

/** Runs fetched at a time, three numbers each. */
const WINDOW = 256;

/** The blocks that hold the file's data, as pairs of first block and number of blocks. */
export function dataBlocks(size: number, sparse: readonly SparseExtent[] | null): Float64Array {
  if (!sparse) return Float64Array.of(0, Math.ceil(size / BLOCK_BYTES));
  const ranges: number[] = [];
  for (const { offset, length } of sparse) {
    if (length === 0) continue;
    const begin = Math.floor(offset / BLOCK_BYTES);
    const end = Math.ceil((offset + length) / BLOCK_BYTES);
    const last = ranges.length - 2;
    if (last >= 0 && ranges[last] + ranges[last + 1] >= begin) ranges[last + 1] = end - ranges[last];
    else ranges.push(begin, end - begin);
  }
  return Float64Array.from(ranges);
}

export class ContentWriter {
  // The current run, and the window of runs it is in.
  readonly #runs = new Float64Array(3 * WINDOW);
  #window = 0;
  #count = 0;
  #run = 0;
  /** A block that pieces fill only in part so far; -1: none. */
  #partial = -1;
  readonly #block = new Uint8Array(BLOCK_BYTES);
  readonly #blockAddress = addressOf(this.#block);

  constructor(
    readonly session: Ext2Session,
    readonly volume: Volume,
  ) {}

  /** Takes blocks for a file and writes its content. `next` gives the pieces in ascending order. */
  write(size: number, sparse: readonly SparseExtent[] | null, next: () => Piece | null): void {
    this.session.allocate(dataBlocks(size, sparse));
    this.#window = 0;
    this.#count = this.session.runs(0, this.#runs);
    this.#run = 0;
    this.#partial = -1;
    for (let piece = next(); piece; piece = next()) this.#add(piece, size);
    this.#writePartial();
  }

  #add(piece: Piece, size: number): void {
    const end = piece.offset + piece.length;
    for (let offset = piece.offset; offset < end; ) {
      const block = Math.floor(offset / BLOCK_BYTES);
      const within = offset % BLOCK_BYTES;
      const left = end - offset;
      const from = offset - piece.offset;
      if (within === 0 && (left >= BLOCK_BYTES || end === size)) {
        this.#writePartial();
        const wanted = end === size ? left : left - (left % BLOCK_BYTES);
        const length = Math.min(wanted, this.#seek(block) * BLOCK_BYTES);
        this.volume.writeData(this.#offsetOf(block), piece.address + from, length);
        offset += length;
        continue;
      }
      // A block that the next piece goes on with, or that a hole cuts.
      const length = Math.min(BLOCK_BYTES - within, left);
      if (this.#partial !== block) {
        this.#writePartial();
        this.#block.fill(0);
        this.#partial = block;
      }
      this.#block.set(piece.bytes.subarray(from, from + length), within);
      offset += length;
      if (within + length === BLOCK_BYTES) this.#writePartial();
    }
  }

  #writePartial(): void {
    if (this.#partial < 0) return;
    this.#seek(this.#partial);
    this.volume.writeData(this.#offsetOf(this.#partial), this.#blockAddress, BLOCK_BYTES);
    this.#partial = -1;
  }

  /** Moves forward to the run that holds a block of the file; returns how many blocks it has from there. */
  #seek(block: number): number {
    for (;;) {
      const at = 3 * this.#run;
      const left = this.#runs[at] + this.#runs[at + 2] - block;
      if (left > 0) return left;
      if (++this.#run < this.#count) continue;
      this.#window += this.#count;
      this.#count = this.session.runs(this.#window, this.#runs);
      this.#run = 0;
      if (this.#count === 0) throw new Error(`block ${block} lies outside of the file`);
    }
  }

  /** Where the volume has a block of the current run. */
  #offsetOf(block: number): number {
    const at = 3 * this.#run;
    return (this.#runs[at + 1] + block - this.#runs[at]) * BLOCK_BYTES;
  }
}
