/** The writable layer as the main thread sees it: it only looks; the worker that serves the disk opens it. */
import { openFileBlob } from "../blob/file.ts";
import { decodeHeader, Flag, HEADER_BYTES } from "../format/lsmt/header.ts";
import type { UpperConfig } from "./config.ts";

/**
 * Virtual size of a writable layer in bytes; 0 when it leaves that to the layer below. It stands in the data file's
 * header of a sparse layer, else in the index file's (lsmt.md section 6.4).
 * @throws OverlaybdError E_NOT_FOUND, E_IO, E_CORRUPT.
 */
export async function readUpperSize(upper: UpperConfig): Promise<number> {
  const data = await readHeader(upper.data, Flag.header | Flag.data);
  if ((data.flags & Flag.sparse) !== 0) return data.size;
  return (await readHeader(upper.index, Flag.header)).size;
}

async function readHeader(path: string, flags: number) {
  const file = await openFileBlob(path);
  try {
    return decodeHeader(await file.read(0, HEADER_BYTES), `header of ${path}`, flags);
  } finally {
    await file.close();
  }
}
