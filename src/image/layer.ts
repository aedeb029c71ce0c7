/** One read-only layer, from the blob inwards: tar, ZFile, LSMT (image-config.md section 1.1, lsmt.md section 4). */
import type { Blob } from "../blob/blob.ts";
import { type Layer, openLayer } from "../format/lsmt/layer.ts";
import { Section } from "../format/section.ts";
import { unwrapTar } from "../format/tar/wrapper.ts";
import { isZFile, openZFile } from "../format/zfile/open.ts";
import { ZFileSource } from "../format/zfile/reader.ts";
import type { DiskLayer } from "./tables.ts";

export interface BlobLayer {
  readonly blob: Blob;
  /** What a reader of the disk needs to know. */
  readonly disk: DiskLayer;
  /** What the LSMT stream inside says. */
  readonly content: Layer;
}

/**
 * Opens the layer in `blob`, which stays its owner's to close.
 * @throws OverlaybdError E_CORRUPT, E_UNSUPPORTED, E_LIMIT naming the blob; and what reading it throws.
 */
export async function openBlobLayer(blob: Blob): Promise<BlobLayer> {
  const { start, size } = await unwrapTar(blob);
  const inside = new Section(blob, start, size);
  if (!(await isZFile(inside))) {
    return { blob, disk: { blob: blob.view, start }, content: await openLayer(inside) };
  }
  const blocks = await openZFile(inside);
  const content = await openLayer(new ZFileSource(inside, blocks));
  return { blob, disk: { blob: blob.view, start, blocks }, content };
}
