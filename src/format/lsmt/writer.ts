/** Writing a read-only layer as one stream (lsmt.md section 5). */
import { OverlaybdError } from "../../error.ts";
import type { ByteSink } from "../sink.ts";
import { ENTRY_BYTES, encodeEntry, encodeInvalidEntry } from "./entry.ts";
import { encodeHeader, Flag } from "./header.ts";
import { checkSize, MAX_LAYER_ENTRIES } from "./layer.ts";
import { MAX_SECTORS, MAX_SEGMENT_SECTORS, SECTOR_BYTES } from "./segments.ts";
import { NULL_UUID } from "./uuid.ts";

export interface LayerOptions {
  /** Virtual size in bytes. */
  readonly size: number;
  /** Canonical UUIDs; default null. */
  readonly uuid?: string;
  readonly parentUuid?: string;
  /** The commit message, at most 256 bytes. */
  readonly userTag?: string;
}

/** Data is described in pieces of 32 KiB, merged again where possible: the index then equals upstream's. */
const CHUNK_SECTORS = 64;
/** Indexes are padded to a multiple of 4096 bytes, where the padding, which counts, does not make them too long. */
const PADDED_ENTRIES = 256;
/** Most runs that can wait to be sorted: a run's number and its sector share the 53 bits of a sort key. */
const MAX_RUNS = 2 ** 21;

/**
 * Writes a layer to a sink: header, data as it comes, then the sorted index and the trailer. Ranges may come in any
 * order, but each sector of the disk only once. Offsets and lengths are bytes, multiples of 512. The sink stays open.
 */
export class LayerWriter {
  readonly #runs = new Runs();
  readonly #header;

  /** @throws OverlaybdError E_LIMIT when the message or the disk is too big. */
  constructor(
    private readonly sink: ByteSink,
    { size, uuid = NULL_UUID, parentUuid = NULL_UUID, userTag = "" }: LayerOptions,
  ) {
    checkSize(size, "new layer");
    this.#header = { size, uuid, parentUuid, userTag };
    const flags = Flag.header | Flag.data | Flag.sealed;
    sink.write(encodeHeader({ ...this.#header, flags, indexOffset: 0, indexCount: 0 }));
  }

  write(offset: number, bytes: Uint8Array): void {
    this.#map(offset, bytes.length, false, CHUNK_SECTORS);
    this.sink.write(bytes);
  }

  /** Writes `length` bytes of native memory at `address`, zero-filled up to the next multiple of `block` bytes. */
  writeFrom(offset: number, address: number, length: number, block = SECTOR_BYTES): void {
    const padding = (block - (length % block)) % block;
    this.#map(offset, length + padding, false, CHUNK_SECTORS);
    this.sink.writeFrom(address, length);
    if (padding > 0) this.sink.writeZeros(padding);
  }

  /** The range reads as zeros, whatever the layers below have there. Takes no space. */
  zero(offset: number, length: number): void {
    this.#map(offset, length, true, MAX_SEGMENT_SECTORS);
  }

  /**
   * Writes index and trailer.
   * @throws OverlaybdError E_USAGE when a sector was written twice; E_LIMIT when the index is too long to be read.
   */
  finish(): void {
    const indexOffset = this.sink.position;
    const { index, count } = this.#runs.encode();
    this.sink.write(index);
    const flags = Flag.data | Flag.sealed;
    this.sink.write(encodeHeader({ ...this.#header, flags, indexOffset, indexCount: count }));
  }

  #map(offset: number, length: number, zeroed: boolean, longest: number): void {
    const start = offset / SECTOR_BYTES;
    const sectors = length / SECTOR_BYTES;
    const moffset = this.sink.position / SECTOR_BYTES;
    if (!Number.isInteger(start) || !Number.isInteger(sectors)) {
      throw new OverlaybdError("E_USAGE", `${length} bytes at ${offset} are not whole sectors`);
    }
    for (let done = 0; done < sectors; done += longest) {
      const mapped = zeroed ? moffset : moffset + done;
      this.#runs.add(start + done, Math.min(longest, sectors - done), mapped, zeroed);
    }
  }
}

/** The segments of a layer in the order they were written. */
class Runs {
  #count = 0;
  #starts = new Uint32Array(1024);
  #moffsets = new Float64Array(1024);
  /** Bit 15: zeroed. */
  #lengths = new Uint16Array(1024);

  add(start: number, length: number, moffset: number, zeroed: boolean): void {
    const last = this.#count - 1;
    if (last >= 0 && this.#joins(last, start, length, moffset, zeroed)) {
      this.#lengths[last] += length;
      return;
    }
    if (start + length > MAX_SECTORS || this.#count === MAX_RUNS) {
      throw new OverlaybdError(
        "E_LIMIT",
        `layer of more than ${MAX_RUNS} runs of sectors, or of more than 2 TiB`,
      );
    }
    if (this.#count === this.#starts.length) this.#grow();
    this.#starts[this.#count] = start;
    this.#moffsets[this.#count] = moffset;
    this.#lengths[this.#count++] = length | (zeroed ? 0x8000 : 0);
  }

  /** The index on disk, sorted, merged and padded. */
  encode(): { index: Uint8Array; count: number } {
    this.#sort();
    if (this.#count > MAX_LAYER_ENTRIES) {
      throw new OverlaybdError(
        "E_LIMIT",
        `layer with an index of ${this.#count} entries, at most ${MAX_LAYER_ENTRIES} can be read`,
      );
    }
    const padded = Math.min(Math.ceil(this.#count / PADDED_ENTRIES) * PADDED_ENTRIES, MAX_LAYER_ENTRIES);
    const index = Buffer.alloc(padded * ENTRY_BYTES);
    const bytes = new DataView(index.buffer, index.byteOffset, index.length);
    for (let i = 0; i < this.#count; i++) {
      const [length, zeroed] = [this.#lengths[i] & 0x7fff, this.#lengths[i] >= 0x8000];
      encodeEntry(bytes, i * ENTRY_BYTES, this.#starts[i], length, this.#moffsets[i], zeroed);
    }
    for (let i = this.#count; i < padded; i++) encodeInvalidEntry(bytes, i * ENTRY_BYTES);
    return { index, count: padded };
  }

  /** Sorts by sector and merges neighbours that the order of writing had kept apart. */
  #sort(): void {
    const keys = new Float64Array(this.#count);
    for (let i = 0; i < keys.length; i++) keys[i] = this.#starts[i] * MAX_RUNS + i;
    keys.sort();
    const [starts, moffsets, lengths] = [this.#starts, this.#moffsets, this.#lengths];
    this.#count = 0;
    this.#starts = new Uint32Array(keys.length);
    this.#moffsets = new Float64Array(keys.length);
    this.#lengths = new Uint16Array(keys.length);
    let end = 0;
    for (const key of keys) {
      const i = key % MAX_RUNS;
      const length = lengths[i] & 0x7fff;
      if (starts[i] < end) {
        throw new OverlaybdError(
          "E_USAGE",
          `sector ${starts[i]} was written twice to a layer that takes it once`,
        );
      }
      end = starts[i] + length;
      this.add(starts[i], length, moffsets[i], lengths[i] >= 0x8000);
    }
  }

  /** Whether a segment continues segment i, on the disk and in the file. A merged one is shorter than 16383 sectors. */
  #joins(i: number, start: number, length: number, moffset: number, zeroed: boolean): boolean {
    const before = this.#lengths[i] & 0x7fff;
    const mapped = this.#moffsets[i] + (zeroed ? 0 : before);
    return (
      this.#lengths[i] >= 0x8000 === zeroed &&
      this.#starts[i] + before === start &&
      mapped === moffset &&
      before + length < MAX_SEGMENT_SECTORS
    );
  }

  #grow(): void {
    const [starts, moffsets, lengths] = [this.#starts, this.#moffsets, this.#lengths];
    const room = this.#count * 2;
    this.#starts = new Uint32Array(room);
    this.#moffsets = new Float64Array(room);
    this.#lengths = new Uint16Array(room);
    this.#starts.set(starts);
    this.#moffsets.set(moffsets);
    this.#lengths.set(lengths);
  }
}
