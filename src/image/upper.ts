/** The writable layer as the main thread sees it: it only looks; the worker that serves the disk opens it. */
import { openFileBlob } from "../blob/file.ts";
import { decodeHeader, Flag, HEADER_BYTES } from "../format/lsmt/header.ts";

export interface UpperInfo {
  readonly kind: "append" | "sparse";
  /** Virtual size in bytes; 0 when the layer leaves that to the one below. */
  readonly size: number;
  readonly uuid: string;
  readonly parentUuid: string;
  /** Length of the data file in bytes. */
  readonly dataBytes: number;
}

/**
 * Looks at a writable layer without opening it for writing. Size and UUID stand in the data file's header of a sparse
 * layer, else in the index file's (lsmt.md section 6.4).
 * @throws OverlaybdError E_NOT_FOUND, E_IO, E_CORRUPT.
 */
export async function readUpper(upper: {
  readonly data: string;
  readonly index: string;
}): Promise<UpperInfo> {
  const data = await readHeader(upper.data, Flag.header | Flag.data);
  const sparse = (data.header.flags & Flag.sparse) !== 0;
  const { header } = sparse ? data : await readHeader(upper.index, Flag.header);
  const { size, uuid, parentUuid } = header;
  return { kind: sparse ? "sparse" : "append", size, uuid, parentUuid, dataBytes: data.bytes };
}

async function readHeader(path: string, flags: number) {
  const file = await openFileBlob(path);
  try {
    return {
      header: decodeHeader(await file.read(0, HEADER_BYTES), `header of ${path}`, flags),
      bytes: file.size,
    };
  } finally {
    await file.close();
  }
}
