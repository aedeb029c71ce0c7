/** One read-only layer, from the blob inwards: tar, ZFile, LSMT (image-config.md section 1.1, lsmt.md section 4). */
import type { Blob } from "../blob/blob.ts";
import { OverlaybdError } from "../error.ts";
import { type Layer, openLayer } from "../format/lsmt/layer.ts";
import type { ByteSource } from "../format/source.ts";
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

/** A range of another source. */
class Section implements ByteSource {
  constructor(
    private readonly whole: ByteSource,
    private readonly start: number,
    readonly size: number,
  ) {}

  get name(): string {
    return this.whole.name;
  }

  async read(offset: number, length: number): Promise<Uint8Array> {
    if (offset < 0 || length < 0 || offset + length > this.size) {
      const range = `${length} bytes at ${offset} end beyond the layer's ${this.size}`;
      throw new OverlaybdError("E_CORRUPT", `${this.name}: ${range}`);
    }
    return this.whole.read(this.start + offset, length);
  }
}
