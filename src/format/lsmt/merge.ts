/** Merging the indexes of stacked layers into one, so that a look-up costs the same whatever the number of layers. */
import { OverlaybdError } from "../../error.ts";
import {
  detailLength,
  detailMoffset,
  detailTag,
  detailZeroed,
  type SegmentTable,
  SegmentTableBuilder,
} from "./segments.ts";

/** Most read-only layers in a stack (lsmt.md section 11). */
export const MAX_LAYERS = 255;

/**
 * The merged index of layers given topmost first; a segment's tag is its layer's position. A sector is served by the
 * topmost layer with a segment for it, zeroed segments included (lsmt.md section 9.1).
 * @param layers tables whose tags are all 0.
 * @throws OverlaybdError E_LIMIT for more than 255 layers or 128,000,000 segments.
 */
export function mergeSegments(layers: readonly SegmentTable[]): SegmentTable {
  if (layers.length > MAX_LAYERS) {
    throw new OverlaybdError(
      "E_LIMIT",
      `stack of ${layers.length} layers, at most ${MAX_LAYERS} are supported`,
    );
  }
  if (layers.length === 0) return new SegmentTableBuilder(0).build();
  return mergeRange(layers, 0, layers.length);
}

/** Pairwise in a balanced tree: every segment is copied log2(layers) times, not once for every layer above it. */
function mergeRange(layers: readonly SegmentTable[], from: number, to: number): SegmentTable {
  if (to - from === 1) return layers[from];
  const middle = (from + to) >>> 1;
  return overlaySegments(mergeRange(layers, from, middle), mergeRange(layers, middle, to), middle - from);
}

/**
 * Lays `upper` over `lower`: what `upper` leaves uncovered is served by `lower`, whose tags grow by `tagShift`.
 * @throws OverlaybdError E_LIMIT for more than 128,000,000 segments.
 */
export function overlaySegments(upper: SegmentTable, lower: SegmentTable, tagShift: number): SegmentTable {
  const builder = new SegmentTableBuilder(upper.count + lower.count);
  /** Next segment of `lower`, and the first of its sectors that is not dealt with yet. */
  let l = 0;
  let at = 0;

  /** Copies what `lower` has before sector `end`, then skips to `resume`. */
  function fill(end: number, resume: number): void {
    for (; l < lower.count; l++) {
      const segmentEnd = lower.lasts[l] + 1;
      const detail = lower.details[l];
      const segmentStart = segmentEnd - detailLength(detail);
      if (segmentStart >= resume) break;
      const start = Math.max(segmentStart, at);
      const stop = Math.min(segmentEnd, end);
      if (start < stop) {
        const zeroed = detailZeroed(detail);
        const moffset = detailMoffset(detail, lower.moffsets[l]) + (zeroed ? 0 : start - segmentStart);
        builder.push(start, stop - start, moffset, zeroed, detailTag(detail) + tagShift);
      }
      if (segmentEnd > resume) break;
    }
    at = resume;
  }

  for (let u = 0; u < upper.count; u++) {
    const detail = upper.details[u];
    const end = upper.lasts[u] + 1;
    const start = end - detailLength(detail);
    fill(start, end);
    const moffset = detailMoffset(detail, upper.moffsets[u]);
    builder.push(start, end - start, moffset, detailZeroed(detail), detailTag(detail));
  }
  fill(Number.POSITIVE_INFINITY, Number.POSITIVE_INFINITY);
  return builder.build();
}
