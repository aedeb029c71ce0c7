/** Reading a committed or sealed layer (lsmt.md section 4). */
import { OverlaybdError } from "../../error.ts";
import type { ByteSource } from "../source.ts";
import {
  decodeEntry,
  describeEntry,
  ENTRY_BYTES,
  INVALID_OFFSET,
  type IndexEntry,
  mapsInside,
} from "./entry.ts";
import { decodeHeader, Flag, HEADER_BYTES, type LayerHeader } from "./header.ts";
import { MAX_SECTORS, SECTOR_BYTES, type SegmentTable, SegmentTableBuilder } from "./segments.ts";

/** Most index entries of a read-only layer, padding included (lsmt.md section 11). */
export const MAX_LAYER_ENTRIES = 1_000_000;
/** Biggest virtual disk, in bytes: what the sector numbers of a `SegmentTable` reach. */
const MAX_DISK_BYTES = MAX_SECTORS * SECTOR_BYTES;
/** The index is read in pieces of 256 KiB. */
const PIECE_ENTRIES = 16384;

/** A read-only layer, opened: what its trailer says and its index. */
export interface Layer {
  /** The LSMT stream; a segment's data is at byte `moffset` × 512 of it. */
  readonly source: ByteSource;
  /** Virtual size in bytes; 0 when the layer leaves it to those below. */
  readonly size: number;
  readonly uuid: string;
  readonly parentUuid: string;
  /** The commit message. */
  readonly userTag: string;
  /** Its tags are 0. */
  readonly segments: SegmentTable;
}

/**
 * Opens a read-only layer. `source` is the bare LSMT stream, taken out of any ZFile and tar around it.
 * @throws OverlaybdError E_CORRUPT when it is not a layer or contradicts itself; E_LIMIT when it is too big.
 */
export async function openLayer(source: ByteSource): Promise<Layer> {
  const { name, size } = source;
  if (size < 2 * HEADER_BYTES) {
    throw new OverlaybdError("E_CORRUPT", `${name}: ${size} bytes are too short for an LSMT layer`);
  }
  decodeHeader(await source.read(0, HEADER_BYTES), `header of ${name}`, Flag.header | Flag.data);
  const trailerAt = size - HEADER_BYTES;
  const trailer = decodeHeader(
    await source.read(trailerAt, HEADER_BYTES),
    `trailer of ${name} at byte ${trailerAt}`,
    Flag.data | Flag.sealed,
    Flag.header,
  );
  checkSize(trailer.size, name);
  const { indexOffset, indexCount } = trailer;
  if (indexCount > MAX_LAYER_ENTRIES) {
    throw new OverlaybdError(
      "E_LIMIT",
      `${name}: index of ${indexCount} entries, at most ${MAX_LAYER_ENTRIES} can be read`,
    );
  }
  if (indexCount * ENTRY_BYTES > trailerAt - indexOffset) {
    throw new OverlaybdError(
      "E_CORRUPT",
      `${name}: index of ${indexCount} entries at byte ${indexOffset} reaches into the trailer at ${trailerAt}`,
    );
  }
  const { uuid, parentUuid, userTag } = trailer;
  return {
    source,
    size: trailer.size,
    uuid,
    parentUuid,
    userTag,
    segments: await readIndex(source, trailer),
  };
}

/** @throws OverlaybdError E_LIMIT when a virtual disk of `bytes` is too big. */
export function checkSize(bytes: number, name: string): void {
  if (bytes > MAX_DISK_BYTES) {
    throw new OverlaybdError(
      "E_LIMIT",
      `${name}: virtual size of ${bytes} bytes, disks above 2 TiB are not supported`,
    );
  }
}

async function readIndex(
  source: ByteSource,
  { indexOffset, indexCount }: LayerHeader,
): Promise<SegmentTable> {
  const builder = new SegmentTableBuilder(indexCount);
  const dataEnd = Math.floor(indexOffset / SECTOR_BYTES);
  const entry: IndexEntry = { offset: 0, length: 0, moffset: 0, zeroed: false, tag: 0 };
  let previousEnd = 0;
  for (let first = 0; first < indexCount; first += PIECE_ENTRIES) {
    const count = Math.min(PIECE_ENTRIES, indexCount - first);
    const piece = await source.read(indexOffset + first * ENTRY_BYTES, count * ENTRY_BYTES);
    const bytes = new DataView(piece.buffer, piece.byteOffset, piece.byteLength);
    for (let i = 0; i < count; i++) {
      decodeEntry(bytes, i * ENTRY_BYTES, entry);
      if (entry.offset === INVALID_OFFSET) continue;
      if (entry.offset < previousEnd || !mapsInside(entry, dataEnd)) {
        const fault =
          entry.offset < previousEnd
            ? `is not behind the one before, which ends at sector ${previousEnd}`
            : `points outside the data, sectors 8 to ${dataEnd}`;
        throw new OverlaybdError(
          "E_CORRUPT",
          `${source.name}: index entry ${first + i} (${describeEntry(entry)}) ${fault}`,
        );
      }
      previousEnd = entry.offset + entry.length;
      // A zero-length entry maps nothing.
      if (entry.length > 0) builder.push(entry.offset, entry.length, entry.moffset, entry.zeroed, 0);
    }
  }
  return builder.build();
}
