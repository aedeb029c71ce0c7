/** Making a writable layer readable in place (lsmt.md section 7.2). */
import { OverlaybdError } from "../../error.ts";
import { ENTRY_BYTES, encodeEntry } from "./entry.ts";
import { encodeHeader, Flag } from "./header.ts";
import { MAX_LAYER_ENTRIES } from "./layer.ts";
import {
  SECTOR_BYTES,
  type SegmentTable,
  segmentLength,
  segmentMoffset,
  segmentStart,
  segmentZeroed,
} from "./segments.ts";
import type { WritableLayer } from "./writable.ts";

/**
 * Writes index and trailer behind the data, durably; the data file is a read-only layer from then on. The layer must not
 * be written any more. An interrupted seal leaves a writable layer that opens as before.
 * @throws OverlaybdError E_LIMIT when the index is too long to be read: commit the layer instead; E_IO.
 */
export function seal(layer: WritableLayer): void {
  const { file, size, uuid, parentUuid } = layer;
  const segments = layer.segments();
  if (segments.count > MAX_LAYER_ENTRIES) {
    throw new OverlaybdError(
      "E_LIMIT",
      `${file.name}: ${segments.count} segments, a sealed layer has at most ${MAX_LAYER_ENTRIES}; commit it instead`,
    );
  }
  layer.flush();
  const indexOffset = Math.ceil(file.size / SECTOR_BYTES) * SECTOR_BYTES;
  const index = encodeIndex(segments);
  const sparse = layer.sparse ? Flag.sparse : 0;
  const trailer = encodeHeader({
    flags: Flag.data | Flag.sealed | sparse,
    indexOffset,
    indexCount: segments.count,
    size,
    uuid,
    parentUuid,
    userTag: "",
  });
  file.write(indexOffset, index);
  file.write(indexOffset + index.length, trailer);
  file.sync();
}

/** The entries as they are, filled up with zeros to a whole sector. */
function encodeIndex(segments: SegmentTable): Uint8Array {
  const length = Math.ceil((segments.count * ENTRY_BYTES) / SECTOR_BYTES) * SECTOR_BYTES;
  const index = Buffer.alloc(length);
  const bytes = new DataView(index.buffer, index.byteOffset, length);
  for (let i = 0; i < segments.count; i++) {
    const [start, sectors, moffset] = [
      segmentStart(segments, i),
      segmentLength(segments, i),
      segmentMoffset(segments, i),
    ];
    encodeEntry(bytes, i * ENTRY_BYTES, start, sectors, moffset, segmentZeroed(segments, i));
  }
  return index;
}
