/** Packing one layer or a whole stack into a new read-only layer (lsmt.md sections 5 and 9.5). */
import type { ByteSink } from "../sink.ts";
import type { ByteSource } from "../source.ts";
import {
  SECTOR_BYTES,
  type SegmentTable,
  segmentLength,
  segmentMoffset,
  segmentStart,
  segmentTag,
  segmentZeroed,
} from "./segments.ts";
import { type LayerOptions, LayerWriter } from "./writer.ts";

/** Read at once, 1 MiB; a multiple of the writer's chunk. */
const PIECE_SECTORS = 2048;

/**
 * Writes what `index` maps, in the order of the disk: overwritten data is left behind, and so is what lies beyond the
 * virtual size since the disk was shrunk. `sources[tag]` holds a segment's data. The sink stays open.
 *
 * Unlike upstream, no tags reach the disk, so a merge joins neighbours of different layers (section 3.2 wants that).
 * @throws OverlaybdError E_LIMIT when the result has too long an index; what reading and writing throw.
 */
export async function commit(
  index: SegmentTable,
  sources: readonly ByteSource[],
  sink: ByteSink,
  options: LayerOptions,
): Promise<void> {
  const writer = new LayerWriter(sink, options);
  const disk = options.size === 0 ? Number.POSITIVE_INFINITY : Math.ceil(options.size / SECTOR_BYTES);
  for (let i = 0; i < index.count; i++) {
    const start = segmentStart(index, i);
    const length = Math.min(segmentLength(index, i), disk - start);
    if (length <= 0) break;
    if (segmentZeroed(index, i)) {
      writer.zero(start * SECTOR_BYTES, length * SECTOR_BYTES);
      continue;
    }
    const source = sources[segmentTag(index, i)];
    const moffset = segmentMoffset(index, i);
    for (let done = 0; done < length; done += PIECE_SECTORS) {
      const bytes = Math.min(PIECE_SECTORS, length - done) * SECTOR_BYTES;
      writer.write((start + done) * SECTOR_BYTES, await source.read((moffset + done) * SECTOR_BYTES, bytes));
    }
  }
  writer.finish();
}
