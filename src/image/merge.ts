/** Flattening an image into one layer (lsmt.md section 9.5). */
import { commit } from "../format/lsmt/commit.ts";
import { overlaySegments } from "../format/lsmt/merge.ts";
import type { WritableLayer } from "../format/lsmt/writable.ts";
import type { ByteSink } from "../format/sink.ts";
import type { OpenImage } from "./open.ts";

/**
 * Writes all layers of an image, and the writable one on top if there is one, to `sink` as one layer, which has the size
 * of the disk (upstream takes the lower image's even where the writable layer was resized) and no UUID; its parent is
 * that of the bottom layer. The sink stays open.
 * @throws OverlaybdError as `commit`.
 */
export async function mergeImage(
  { tables, layers }: OpenImage,
  upper: WritableLayer | undefined,
  sink: ByteSink,
): Promise<void> {
  const sources = layers.map((layer) => layer.content.source);
  const parentUuid = layers.at(-1)?.content.parentUuid ?? upper?.parentUuid;
  if (upper) {
    const index = overlaySegments(upper.segments(), tables.index, 1);
    await commit(index, [upper.file, ...sources], sink, { size: tables.size, parentUuid });
  } else await commit(tables.index, sources, sink, { size: tables.size, parentUuid });
}
