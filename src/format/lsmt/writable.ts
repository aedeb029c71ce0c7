/** What append-only and sparse writable layers have in common. */
import { OverlaybdError } from "../../error.ts";
import type { LocalFile } from "./file.ts";
import { type LayerHeader, SIZE_OFFSET, writeNumber } from "./header.ts";
import { checkSize } from "./layer.ts";
import { MAX_SEGMENT_SECTORS, type PieceVisitor, SECTOR_BYTES, type SegmentTable } from "./segments.ts";
import { WritableIndex } from "./writable_index.ts";

/** Longest segment of one write, in sectors: upstream cuts writes at 4 MiB, and commits show it. */
const MAX_WRITE_SECTORS = 8192;

/**
 * A layer that takes writes, in local files. Synchronous: its owner is a worker or a tool, and the only one
 * (opening takes a lock). Offsets and lengths are bytes, multiples of 512, inside the virtual size.
 *
 * Bytes are safe from a kill of the process once the call returns, and from a power failure after `flush`.
 */
export abstract class WritableLayer {
  /** Whether holes in the data file are the index. */
  abstract readonly sparse: boolean;
  readonly uuid: string;
  readonly parentUuid: string;
  /** Index entries that a power failure cut off before they were flushed, dropped when the layer was opened. */
  readonly lostEntries: number = 0;
  protected readonly index = new WritableIndex();
  #size: number;

  protected constructor(
    /** Holds the data: sector `moffset` of a visited piece or a segment is at byte `moffset` × 512. */
    readonly file: LocalFile,
    header: LayerHeader,
  ) {
    checkSize(header.size, file.name);
    this.#size = header.size;
    this.uuid = header.uuid;
    this.parentUuid = header.parentUuid;
  }

  /** Virtual size in bytes; 0 until `resize` when the layer shall take the size of the one below. */
  get size(): number {
    return this.#size;
  }

  /** Cuts a range of sectors into pieces: data (tag 0), `ZEROED`, or `GAP` for what the layers below serve. */
  walk(start: number, end: number, visit: PieceVisitor): void {
    this.index.walk(start, end, visit);
  }

  /** A snapshot of the index, all tags 0. */
  segments(): SegmentTable {
    return this.index.toTable();
  }

  write(offset: number, bytes: Uint8Array): void {
    const start = this.#sector(offset, bytes.length);
    const moffset = this.place(start);
    this.file.write(moffset * SECTOR_BYTES, bytes);
    this.#map(start, bytes.length / SECTOR_BYTES, moffset, false);
  }

  /** Writes `length` bytes of native memory at `address`, zero-filled up to the next multiple of `block` bytes. */
  writeFrom(offset: number, address: number, length: number, block = SECTOR_BYTES): void {
    const padding = (block - (length % block)) % block;
    const start = this.#sector(offset, length + padding);
    const moffset = this.place(start);
    const at = moffset * SECTOR_BYTES;
    this.file.writeFrom(at, address, length);
    if (padding > 0) this.file.write(at + length, new Uint8Array(padding));
    this.#map(start, (length + padding) / SECTOR_BYTES, moffset, false);
  }

  /**
   * The range reads as zeros from now on. In a sparse layer that holds until it is closed only; afterwards the layers
   * below show through again (lsmt.md section 7.1).
   */
  discard(offset: number, length: number): void {
    const start = this.#sector(offset, length);
    this.#map(start, length / SECTOR_BYTES, this.place(start), true);
  }

  /** Changes the virtual size, in bytes, durably (lsmt.md section 6.5). */
  resize(size: number): void {
    if (size % SECTOR_BYTES !== 0) throw misaligned(this.file.name, "size", size);
    checkSize(size, this.file.name);
    this.storeSize(size);
    this.#size = size;
    this.flush();
  }

  /** Makes everything written durable. @throws OverlaybdError E_IO; after that every flush fails. */
  abstract flush(): void;

  /** Releases the files; does not flush. */
  abstract close(): void;

  /** Sector of the data file where a write of virtual sector `start` goes. */
  protected abstract place(start: number): number;

  /** Called before pieces of at most 16383 sectors go into the index, with the data already written. */
  protected abstract record(start: number, length: number, moffset: number, zeroed: boolean): void;

  protected abstract storeSize(size: number): void;

  #map(start: number, length: number, moffset: number, zeroed: boolean): void {
    const longest = zeroed ? MAX_SEGMENT_SECTORS : MAX_WRITE_SECTORS;
    for (let done = 0; done < length; done += longest) {
      const piece = Math.min(longest, length - done);
      const mapped = zeroed ? moffset : moffset + done;
      this.record(start + done, piece, mapped, zeroed);
      this.index.insert(start + done, piece, mapped, zeroed);
    }
  }

  #sector(offset: number, length: number): number {
    if (offset % SECTOR_BYTES !== 0) throw misaligned(this.file.name, "offset", offset);
    if (length % SECTOR_BYTES !== 0) throw misaligned(this.file.name, "length", length);
    if (offset < 0 || offset + length > this.#size) {
      throw new OverlaybdError(
        "E_USAGE",
        `${this.file.name}: ${length} bytes at ${offset} end beyond the virtual size of ${this.#size}`,
      );
    }
    return offset / SECTOR_BYTES;
  }
}

function misaligned(name: string, what: string, value: number): OverlaybdError {
  return new OverlaybdError("E_USAGE", `${name}: ${what} ${value} is not a multiple of ${SECTOR_BYTES}`);
}

/** Overwrites the virtual size in a header block. */
export function writeSize(file: LocalFile, size: number): void {
  const bytes = Buffer.alloc(8);
  writeNumber(bytes, size, 0);
  file.write(SIZE_OFFSET, bytes);
}
