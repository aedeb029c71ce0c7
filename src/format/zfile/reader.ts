/** Reading a ZFile's content and verifying its blocks, where neither has to be fast: tools, and opening an image. */
import { OverlaybdError } from "../../error.ts";
import { crc32c, decompressBlock } from "../../native/codec.ts";
import type { ByteSource } from "../source.ts";
import { type BlockTable, blockOffset, CHECKSUM_BYTES, plainLength, storedLength } from "./blocks.ts";

/** Initial value of a block's checksum (zfile.md section 4.3). */
const BLOCK_SEED = 100007;
/** Stored bytes read at once: whole blocks, up to about this many. */
const RUN_BYTES = 1 << 20;

/** The uncompressed bytes of a ZFile. */
export class ZFileSource implements ByteSource {
  constructor(
    private readonly stored: ByteSource,
    private readonly table: BlockTable,
  ) {}

  get name(): string {
    return this.stored.name;
  }

  get size(): number {
    return this.table.plainSize;
  }

  /**
   * @throws OverlaybdError E_CORRUPT when a block's checksum does not match, when it does not decompress to its size, or
   * when the range ends beyond `size`; and what reading the stored bytes throws.
   */
  async read(offset: number, length: number): Promise<Uint8Array> {
    const { table } = this;
    if (offset < 0 || length < 0 || offset + length > table.plainSize) {
      throw new OverlaybdError(
        "E_CORRUPT",
        `${this.name}: ${length} bytes at ${offset} end beyond the ZFile's ${table.plainSize}`,
      );
    }
    const result = new Uint8Array(length);
    if (length === 0) return result;
    const { stored } = this;
    const end = offset + length;
    const scratch = new Uint8Array(table.blockSize);
    const first = Math.floor(offset / table.blockSize);
    const last = Math.floor((end - 1) / table.blockSize);
    for await (const { index, bytes } of storedBlocks(stored, table, first, last)) {
      if (!isIntact(table, bytes)) throw damaged(stored, table, index, "its checksum does not match");
      const plain = scratch.subarray(0, plainLength(table, index));
      if (!decompressBlock(table.codec, body(table, bytes), plain)) {
        throw damaged(stored, table, index, "it does not decompress to its size");
      }
      const start = index * table.blockSize;
      const from = Math.max(offset - start, 0);
      result.set(plain.subarray(from, end - start), start + from - offset);
    }
    return result;
  }
}

/**
 * Checks the checksum of every block without decompressing any.
 * @throws OverlaybdError E_CORRUPT at the first block that does not match; E_UNSUPPORTED when the file has no checksums.
 */
export async function verifyChecksums(source: ByteSource, table: BlockTable): Promise<void> {
  if (!table.checksum)
    throw new OverlaybdError("E_UNSUPPORTED", `${source.name}: the blocks carry no checksums`);
  for await (const { index, bytes } of storedBlocks(source, table, 0, table.count - 1)) {
    if (!isIntact(table, bytes)) throw damaged(source, table, index, "its checksum does not match");
  }
}

/** Stored bytes of the blocks `first` to `last`, in order. */
async function* storedBlocks(
  source: ByteSource,
  table: BlockTable,
  first: number,
  last: number,
): AsyncGenerator<{ index: number; bytes: Uint8Array }> {
  for (let begin = first; begin <= last; ) {
    const start = blockOffset(table, begin);
    let end = begin + 1;
    while (end <= last && blockOffset(table, end + 1) - start <= RUN_BYTES) end++;
    const run = await source.read(start, blockOffset(table, end) - start);
    for (let index = begin; index < end; index++) {
      const at = blockOffset(table, index) - start;
      yield { index, bytes: run.subarray(at, at + storedLength(table, index)) };
    }
    begin = end;
  }
}

function body(table: BlockTable, stored: Uint8Array): Uint8Array {
  return table.checksum ? stored.subarray(0, stored.length - CHECKSUM_BYTES) : stored;
}

function isIntact(table: BlockTable, stored: Uint8Array): boolean {
  if (!table.checksum) return true;
  const at = stored.length - CHECKSUM_BYTES;
  const sum = new DataView(stored.buffer, stored.byteOffset + at, CHECKSUM_BYTES).getUint32(0, true);
  return sum === crc32c(stored.subarray(0, at), BLOCK_SEED);
}

function damaged(source: ByteSource, table: BlockTable, index: number, what: string): OverlaybdError {
  const place = `block ${index} at byte ${blockOffset(table, index)}`;
  return new OverlaybdError("E_CORRUPT", `${source.name}: ${place} of the ZFile is damaged: ${what}`);
}
