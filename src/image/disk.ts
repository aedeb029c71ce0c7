/**
 * A virtual disk as the thread that serves it uses it: look up the range's segments, plan, execute. Synchronous and
 * without network; what is not on this machine yet is named for the main thread to fetch.
 */
import { OverlaybdError } from "../error.ts";
import { openWritableLayer } from "../format/lsmt/pair.ts";
import {
  GAP,
  type PieceVisitor,
  SECTOR_BYTES,
  type SegmentTable,
  walkSegments,
  ZEROED,
} from "../format/lsmt/segments.ts";
import type { WritableLayer } from "../format/lsmt/writable.ts";
import { ReadRecorder } from "./read_log.ts";
import { DamagedBytes, PieceReader } from "./reader.ts";
import type { DiskTables, MissingRange } from "./tables.ts";

/** Longer reads are done in parts of this many bytes, which keeps every number of a plan within 32 bits. */
const PART_BYTES = 16 << 20;

/** `dataRanges` looks at this much of the disk at a time: 1 GiB. */
const WALK_SECTORS = 2 ** 21;

export interface ByteRange {
  offset: number;
  length: number;
}

/** Offsets and lengths are bytes, multiples of 512. For one thread. */
export class VirtualDisk {
  /** Virtual size in bytes. */
  readonly size: number;
  readonly #upper: WritableLayer | undefined;
  readonly #index: SegmentTable;
  readonly #reader: PieceReader;
  readonly #recorder: ReadRecorder | undefined;
  /** Counts of withdrawals, one for each cache that layers come from (see `Residency`). */
  readonly #epochs: readonly Uint32Array<SharedArrayBuffer>[];
  /** First sector of the part that is being read. */
  #part = 0;

  /**
   * @throws OverlaybdError E_BUSY when the writable layer is in use, E_CORRUPT when it is damaged; SystemError
   * EOPNOTSUPP when the system does not offer the I/O engine.
   */
  constructor(tables: DiskTables) {
    this.size = tables.size;
    this.#index = tables.index;
    this.#epochs = [...new Set(tables.layers.flatMap(({ blob }) => blob.valid?.epoch ?? []))];
    this.#recorder = tables.readLog && new ReadRecorder(tables.readLog, tables.layers.length - 1);
    this.#reader = new PieceReader(tables, this.#recorder);
    try {
      this.#upper = tables.upper && openWritableLayer(tables.upper.data, tables.upper.index);
      // A layer that was made without a size takes that of the image below (lsmt.md section 6.5).
      if (this.#upper?.size === 0) this.#upper.resize(this.size);
    } catch (error) {
      this.#reader.close();
      throw error;
    }
  }

  get writable(): boolean {
    return this.#upper !== undefined;
  }

  /**
   * Reads into native memory at `address`. Returns null, or which bytes have to be fetched first, because they are missing
   * or damaged: then the memory's content is undefined, and the read is to be repeated. What lies beyond `size` reads as
   * zeros.
   * @throws OverlaybdError E_CORRUPT, E_IO naming blob and place; E_USAGE for a range that is not made of sectors.
   */
  read(offset: number, length: number, address: number): readonly MissingRange[] | null {
    checkSectors(offset, length);
    for (;;) {
      const epoch = this.#epoch();
      this.#recorder?.begin();
      try {
        const missing = this.#readParts(offset, length, address);
        if (this.#epoch() !== epoch) continue;
        if (missing === null) this.#recorder?.commit();
        return missing;
      } catch (error) {
        // Bytes that went away while they were read are no damage.
        if (this.#epoch() !== epoch) continue;
        if (error instanceof DamagedBytes) return [error.range];
        throw error;
      }
    }
  }

  /** Writes native memory at `address`. @throws OverlaybdError E_USAGE when the disk is read-only; E_IO. */
  write(offset: number, length: number, address: number): void {
    this.#writableLayer().writeFrom(offset, address, length);
  }

  /** Gives up the range's content, which then reads as zeros. @throws as `write`. */
  discard(offset: number, length: number): void {
    this.#writableLayer().discard(offset, length);
  }

  /** Makes everything written durable. @throws OverlaybdError E_IO */
  flush(): void {
    this.#upper?.flush();
  }

  /** The ranges that may hold data, in ascending order; all others read as zeros. */
  *dataRanges(): Generator<ByteRange, void> {
    const sectors = Math.ceil(this.size / SECTOR_BYTES);
    for (let start = 0; start < sectors; start += WALK_SECTORS) {
      yield* this.#dataBetween(start, Math.min(start + WALK_SECTORS, sectors));
    }
  }

  /** Releases what the disk holds open. Does not flush. */
  close(): void {
    this.#reader.close();
    this.#upper?.close();
  }

  #readParts(offset: number, length: number, address: number): readonly MissingRange[] | null {
    let missing: readonly MissingRange[] | null = null;
    for (let done = 0; done < length; done += PART_BYTES) {
      const part = Math.min(PART_BYTES, length - done);
      const here = this.#readPart(offset + done, part, address + done);
      if (here) missing = missing ? [...missing, ...here] : here;
    }
    return missing;
  }

  #readPart(offset: number, length: number, address: number): readonly MissingRange[] | null {
    const start = offset / SECTOR_BYTES;
    const end = start + length / SECTOR_BYTES;
    this.#part = start;
    this.#reader.begin(address, length);
    if (this.#upper) this.#upper.walk(start, end, this.#readUpper);
    else walkSegments(this.#index, start, end, this.#readLower);
    return this.#reader.finish();
  }

  #dataBetween(from: number, to: number): ByteRange[] {
    const ranges: ByteRange[] = [];
    const add: PieceVisitor = (start, length, tag) => {
      if (tag < 0) return;
      const offset = start * SECTOR_BYTES;
      const last = ranges.at(-1);
      if (last && last.offset + last.length === offset) last.length += length * SECTOR_BYTES;
      else ranges.push({ offset, length: length * SECTOR_BYTES });
    };
    const addUpper: PieceVisitor = (start, length, tag, moffset) => {
      if (tag === GAP) walkSegments(this.#index, start, start + length, add);
      else add(start, length, tag, moffset);
    };
    if (this.#upper) this.#upper.walk(from, to, addUpper);
    else walkSegments(this.#index, from, to, add);
    return ranges;
  }

  readonly #readUpper: PieceVisitor = (start, length, tag, moffset) => {
    const target = (start - this.#part) * SECTOR_BYTES;
    if (tag === GAP) walkSegments(this.#index, start, start + length, this.#readLower);
    else if (tag === ZEROED) this.#reader.zero(target, length * SECTOR_BYTES);
    else this.#reader.file(this.#upperFd(), moffset * SECTOR_BYTES, length * SECTOR_BYTES, target);
  };

  readonly #readLower: PieceVisitor = (start, length, tag, moffset) => {
    const target = (start - this.#part) * SECTOR_BYTES;
    if (tag < 0) this.#reader.zero(target, length * SECTOR_BYTES);
    else this.#reader.layer(tag, moffset * SECTOR_BYTES, length * SECTOR_BYTES, target);
  };

  #upperFd(): number {
    return (this.#upper as WritableLayer).file.fd;
  }

  #epoch(): number {
    let sum = 0;
    for (let i = 0; i < this.#epochs.length; i++) sum += Atomics.load(this.#epochs[i], 0);
    return sum;
  }

  #writableLayer(): WritableLayer {
    if (this.#upper) return this.#upper;
    throw new OverlaybdError("E_USAGE", "the disk is read-only: its image config has no upper layer");
  }
}

function checkSectors(offset: number, length: number): void {
  if (offset >= 0 && length >= 0 && offset % SECTOR_BYTES === 0 && length % SECTOR_BYTES === 0) return;
  throw new OverlaybdError(
    "E_USAGE",
    `${length} bytes at ${offset} are not whole sectors of ${SECTOR_BYTES} bytes`,
  );
}
