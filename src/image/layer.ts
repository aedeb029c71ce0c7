/** One read-only layer, from the blob inwards: tar, ZFile, LSMT (image-config.md section 1.1, lsmt.md section 4). */
import type { Blob } from "../blob/blob.ts";
import { type Layer, openLayer } from "../format/lsmt/layer.ts";
import { Section } from "../format/section.ts";
import type { ByteSource } from "../format/source.ts";
import { unwrapTar } from "../format/tar/wrapper.ts";
import { isZFile, openZFile } from "../format/zfile/open.ts";
import { ZFileSource } from "../format/zfile/reader.ts";
import type { DiskLayer } from "./tables.ts";

/** Enough for the trailers and both indexes of a layer of 50 MB. */
const END_BYTES = 64 << 10;

/** Called after each read. */
export type ReadObserver = (offset: number, length: number) => void;

export interface BlobLayer {
  readonly blob: Blob;
  /** What a reader of the disk needs to know. */
  readonly disk: DiskLayer;
  /** What the LSMT stream inside says. */
  readonly content: Layer;
}

/**
 * Opens the layer in `blob`, which stays its owner's to close.
 * @param note is told what is read of the LSMT stream.
 * @throws OverlaybdError E_CORRUPT, E_UNSUPPORTED, E_LIMIT naming the blob; and what reading it throws.
 */
export async function openBlobLayer(blob: Blob, note?: ReadObserver): Promise<BlobLayer> {
  await fetchEnds(blob);
  const { start, size } = await unwrapTar(blob);
  const inside = new Section(blob, start, size);
  if (!(await isZFile(inside))) {
    return { blob, disk: { blob: blob.view, start }, content: await openStream(inside, note) };
  }
  const blocks = await openZFile(inside);
  const content = await openStream(new ZFileSource(inside, blocks), note);
  return { blob, disk: { blob: blob.view, start, blocks }, content };
}

/** Headers stand at the start of a layer, its indexes at the end: both are fetched at the same time. */
async function fetchEnds(blob: Blob): Promise<void> {
  // A Merkle tree may follow the layer.
  const end = blob.verity?.dataBytes ?? blob.size;
  const length = Math.min(end, END_BYTES);
  await Promise.all([blob.fetch(0, length), blob.fetch(end - length, length)]);
}

async function openStream(source: ByteSource, note?: ReadObserver): Promise<Layer> {
  if (!note) return openLayer(source);
  const observed: ByteSource = {
    name: source.name,
    size: source.size,
    read: async (offset, length) => {
      const bytes = await source.read(offset, length);
      note(offset, length);
      return bytes;
    },
  };
  return { ...(await openLayer(observed)), source };
}
