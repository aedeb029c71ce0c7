/** The append-only writable layer: a data log and an index log (lsmt.md section 6). */
import { OverlaybdError } from "../../error.ts";
import {
  decodeEntry,
  describeEntry,
  ENTRY_BYTES,
  encodeEntry,
  encodeInvalidEntry,
  INVALID_OFFSET,
  type IndexEntry,
  mapsInside,
} from "./entry.ts";
import type { LocalFile } from "./file.ts";
import { decodeHeader, Flag, HEADER_BYTES } from "./header.ts";
import { MAX_SEGMENTS, SECTOR_BYTES } from "./segments.ts";
import { WritableLayer, writeSize } from "./writable.ts";

/** The index log is read in pieces of 1 MiB. */
const PIECE_BYTES = 1 << 20;

/**
 * Data goes to the end of the data file, then one entry for it to the end of the index file; nothing is ever rewritten.
 *
 * A flush ends with an invalid entry, which every reader skips. It tells apart two kinds of entries that point beyond
 * the data file: those in front of it were promised to be durable, so they mean damage; those behind the last one
 * are what a power failure may leave, and are dropped.
 */
export class AppendLayer extends WritableLayer {
  readonly sparse = false;
  override readonly lostEntries: number;
  readonly #entry = new DataView(new ArrayBuffer(ENTRY_BYTES));
  /** Where the next entry goes. */
  #indexEnd = HEADER_BYTES;
  #marked = true;

  /**
   * Replays the index log; a torn tail is cut off.
   * @throws OverlaybdError E_CORRUPT, naming the entry; E_LIMIT for an index of more than 128,000,000 entries.
   */
  constructor(
    file: LocalFile,
    private readonly indexFile: LocalFile,
  ) {
    const place = `header of ${indexFile.name}`;
    const bytes = indexFile.readSync(0, HEADER_BYTES);
    const header = decodeHeader(bytes, place, Flag.header, Flag.data | Flag.sealed);
    if (header.indexOffset !== HEADER_BYTES) {
      throw new OverlaybdError(
        "E_CORRUPT",
        `${place}: index starts at byte ${header.indexOffset}, not ${HEADER_BYTES}`,
      );
    }
    super(file, header);
    this.lostEntries = this.#replay();
    // Half a sector is what an interrupted write leaves; the log goes on behind it.
    if (file.size % SECTOR_BYTES !== 0) file.truncate(this.place() * SECTOR_BYTES);
  }

  flush(): void {
    this.file.sync();
    if (!this.#marked) {
      encodeInvalidEntry(this.#entry, 0);
      this.#appendEntry();
      this.#marked = true;
    }
    this.indexFile.sync();
  }

  close(): void {
    this.file.close();
    this.indexFile.close();
  }

  protected place(): number {
    return Math.ceil(this.file.size / SECTOR_BYTES);
  }

  protected record(start: number, length: number, moffset: number, zeroed: boolean): void {
    this.#marked = false;
    encodeEntry(this.#entry, 0, start, length, moffset, zeroed);
    this.#appendEntry();
  }

  protected storeSize(size: number): void {
    writeSize(this.file, size);
    writeSize(this.indexFile, size);
  }

  #appendEntry(): void {
    this.indexFile.write(this.#indexEnd, new Uint8Array(this.#entry.buffer));
    this.#indexEnd += ENTRY_BYTES;
  }

  /** Returns the number of entries lost. */
  #replay(): number {
    const { indexFile, file } = this;
    const count = Math.floor((indexFile.size - HEADER_BYTES) / ENTRY_BYTES);
    if (count > MAX_SEGMENTS) {
      throw new OverlaybdError(
        "E_LIMIT",
        `${indexFile.name}: ${count} entries, at most ${MAX_SEGMENTS} can be replayed`,
      );
    }
    const indexEnd = HEADER_BYTES + count * ENTRY_BYTES;
    const dataEnd = Math.floor(file.size / SECTOR_BYTES);
    const entry: IndexEntry = { offset: 0, length: 0, moffset: 0, zeroed: false, tag: 0 };
    /** First entry that points beyond the data, if any. */
    let torn = -1;
    let lost = 0;
    for (let at = HEADER_BYTES; at < indexEnd; at += PIECE_BYTES) {
      const piece = indexFile.readSync(at, Math.min(PIECE_BYTES, indexEnd - at));
      const bytes = new DataView(piece.buffer, piece.byteOffset, piece.byteLength);
      for (let i = 0; i < piece.length; i += ENTRY_BYTES) {
        decodeEntry(bytes, i, entry);
        const marker = entry.offset === INVALID_OFFSET;
        if (marker && torn < 0) continue;
        const inside = !marker && mapsInside(entry, dataEnd);
        if (torn >= 0 && (marker || inside)) throw this.#damaged(torn, dataEnd);
        if (inside) {
          this.index.insert(entry.offset, entry.length, entry.moffset, entry.zeroed);
        } else {
          if (torn < 0) torn = at + i;
          lost++;
        }
      }
    }
    this.#indexEnd = torn < 0 ? indexEnd : torn;
    if (this.#indexEnd < indexFile.size) indexFile.truncate(this.#indexEnd);
    return lost;
  }

  #damaged(at: number, dataEnd: number): OverlaybdError {
    const entry: IndexEntry = { offset: 0, length: 0, moffset: 0, zeroed: false, tag: 0 };
    const bytes = this.indexFile.readSync(at, ENTRY_BYTES);
    decodeEntry(new DataView(bytes.buffer, bytes.byteOffset), 0, entry);
    const number = (at - HEADER_BYTES) / ENTRY_BYTES;
    return new OverlaybdError(
      "E_CORRUPT",
      `${this.indexFile.name}: entry ${number} (${describeEntry(entry)}) points outside the data of ${this.file.name}, sectors 8 to ${dataEnd}`,
    );
  }
}
