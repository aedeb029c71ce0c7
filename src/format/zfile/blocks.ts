/**
 * Where the compressed blocks of a ZFile are: plain data that can be posted to an I/O worker and looked up there
 * without allocating. 4.01 bytes a block, in shared memory.
 */

export interface BlockTable {
  readonly codec: Codec;
  /** Uncompressed bytes in every block but the last, which holds the rest of `plainSize`: 4096 … 65536. */
  readonly blockSize: number;
  /** Each block is followed by a CRC-32C of its compressed bytes (zfile.md section 4.3). */
  readonly checksum: boolean;
  /** Number of blocks. */
  readonly count: number;
  /** Uncompressed bytes in the whole file. */
  readonly plainSize: number;
  /** Offset of every `GROUP`th block in the ZFile stream, in bytes. */
  readonly bases: Float64Array<SharedArrayBuffer>;
  /** Offset of each block from its group's base, and behind the last one the end of the blocks. */
  readonly offsets: Uint32Array<SharedArrayBuffer>;
}

/** Compression of the blocks, numbered as in the header's `algo` field (zfile.md section 2). */
export const CODEC_LZ4 = 1;
export const CODEC_ZSTD = 2;
export type Codec = typeof CODEC_LZ4 | typeof CODEC_ZSTD;

export const MIN_BLOCK_SIZE = 4096;
export const MAX_BLOCK_SIZE = 65536;

/** Bytes of the checksum behind a block. */
export const CHECKSUM_BYTES = 4;

/** Blocks that share a base: few enough that offsets inside a group fit 32 bits, whatever the block size. */
const GROUP_SHIFT = 10;

/**
 * The longest a stored block (checksum included) may be. Upstream's writer has `blockSize` + 512 bytes of room for
 * the compressed bytes (zfile.md section 7.1); neither LZ4 nor zstd ever needs more, so a longer entry is damage.
 */
export function longestStored(blockSize: number, checksum: boolean): number {
  return blockSize + 512 + (checksum ? CHECKSUM_BYTES : 0);
}

/** Whether readers and writers of the format agree on this block size: a power of two from 4 to 64 KiB. */
export function isBlockSize(bytes: number): boolean {
  return bytes >= MIN_BLOCK_SIZE && bytes <= MAX_BLOCK_SIZE && (bytes & (bytes - 1)) === 0;
}

/** Offset of block `i` in the ZFile stream, in bytes (0 = the ZFile header); `i` = count gives the end of the blocks. */
export function blockOffset(table: BlockTable, i: number): number {
  return table.bases[i >>> GROUP_SHIFT] + table.offsets[i];
}

/** Stored bytes of block `i`, its checksum included. */
export function storedLength(table: BlockTable, i: number): number {
  return blockOffset(table, i + 1) - blockOffset(table, i);
}

/** Uncompressed bytes of block `i`. */
export function plainLength(table: BlockTable, i: number): number {
  return Math.min(table.blockSize, table.plainSize - i * table.blockSize);
}

/** Number of blocks that hold `plainSize` bytes. */
export function blockCount(plainSize: number, blockSize: number): number {
  return Math.ceil(plainSize / blockSize);
}

/** Blocks that a new table has room for; most layers never need more. */
const INITIAL_BLOCKS = 1 << 18;

/** Makes a table from block lengths in order. Memory follows the lengths that came, not the number that is claimed. */
export class BlockTableBuilder {
  private readonly count: number;
  private bases = new Float64Array(new SharedArrayBuffer(0));
  private offsets = new Uint32Array(new SharedArrayBuffer(0));
  private filled = 0;
  private end: number;

  /** @param start offset of the first block in the ZFile stream. */
  constructor(
    private readonly shape: Pick<BlockTable, "codec" | "blockSize" | "checksum" | "plainSize">,
    private readonly start: number,
  ) {
    this.count = blockCount(shape.plainSize, shape.blockSize);
    this.end = start;
    this.grow(INITIAL_BLOCKS);
    this.bases[0] = start;
  }

  /** Appends the next block; `stored` must be at most `longestStored`, and no more than `count` may come. */
  add(stored: number): void {
    this.end += stored;
    this.filled++;
    if (this.filled === this.offsets.length) this.grow(2 * this.filled);
    const group = this.filled >>> GROUP_SHIFT;
    if ((this.filled & ((1 << GROUP_SHIFT) - 1)) === 0) this.bases[group] = this.end;
    this.offsets[this.filled] = this.end - this.bases[group];
  }

  /** Bytes of all blocks so far. */
  get storedBytes(): number {
    return this.end - this.start;
  }

  /** The table, once all blocks were added. */
  finish(): BlockTable {
    return { ...this.shape, count: this.count, bases: this.bases, offsets: this.offsets };
  }

  /** Makes room for `blocks` blocks, or for all when that is less, and the end behind them. */
  private grow(blocks: number): void {
    const room = Math.min(blocks, this.count);
    const bases = new Float64Array(new SharedArrayBuffer(((room >>> GROUP_SHIFT) + 1) * 8));
    const offsets = new Uint32Array(new SharedArrayBuffer((room + 1) * 4));
    bases.set(this.bases);
    offsets.set(this.offsets);
    this.bases = bases;
    this.offsets = offsets;
  }
}
