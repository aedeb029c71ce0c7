/** Putting a fresh writable layer on top of a running stack: a live snapshot (lsmt.md section 9.4). */
import { rmSync } from "node:fs";
import { OverlaybdError } from "../../error.ts";
import { MAX_LAYERS, overlaySegments } from "./merge.ts";
import { createWritableLayer } from "./pair.ts";
import { seal } from "./seal.ts";
import type { SegmentTable } from "./segments.ts";
import type { WritableLayer } from "./writable.ts";

export interface Restacked {
  /** The new, empty writable layer; its parent is the sealed one. */
  readonly upper: WritableLayer;
  /** Merged index of the read-only layers: tag 0 is the sealed layer, the others moved down by one. */
  readonly index: SegmentTable;
}

/**
 * Seals `upper`, folds its index into that of the `lowers` read-only layers below, and creates a new writable layer of
 * the same kind and size. `upper` must not be written any more; its data file is a read-only layer now. After a failure
 * no new layer is left and `upper` is as before.
 * @throws OverlaybdError E_LIMIT when the stack is full or the layer too fragmented to seal; E_EXISTS; E_IO.
 */
export function restack(
  upper: WritableLayer,
  index: SegmentTable,
  lowers: number,
  dataPath: string,
  indexPath: string,
): Restacked {
  if (lowers >= MAX_LAYERS) {
    throw new OverlaybdError("E_LIMIT", `${upper.file.name}: there are ${lowers} layers below already`);
  }
  const { size, uuid: parentUuid, sparse } = upper;
  const next = createWritableLayer(dataPath, indexPath, { size, parentUuid, sparse });
  try {
    const folded = overlaySegments(upper.segments(), index, 1);
    seal(upper);
    return { upper: next, index: folded };
  } catch (error) {
    next.close();
    rmSync(dataPath);
    rmSync(indexPath);
    throw error;
  }
}
