/** Creating and opening writable layers. */
import { rmSync } from "node:fs";
import { OverlaybdError } from "../../error.ts";
import { tryLock } from "../../native/descriptor.ts";
import { AppendLayer } from "./append.ts";
import { LocalFile } from "./file.ts";
import { decodeHeader, encodeHeader, Flag, HEADER_BYTES } from "./header.ts";
import { checkSize } from "./layer.ts";
import { SECTOR_BYTES } from "./segments.ts";
import { SparseLayer } from "./sparse.ts";
import { NULL_UUID, randomUuid } from "./uuid.ts";
import type { WritableLayer } from "./writable.ts";

export interface WritableLayerOptions {
  /** Virtual size in bytes, a multiple of 512; 0 to take the size of the layer below. */
  readonly size: number;
  readonly parentUuid?: string;
  /** Make a sparse layer rather than an append-only one. */
  readonly sparse?: boolean;
}

/**
 * Creates the files of a writable layer and opens it. A sparse layer's index file stays empty. After a failure neither
 * file is left behind.
 * @throws OverlaybdError E_EXISTS when one of the files exists; E_LIMIT, E_USAGE for a bad size; E_IO.
 */
export function createWritableLayer(
  dataPath: string,
  indexPath: string,
  { size, parentUuid = NULL_UUID, sparse = false }: WritableLayerOptions,
): WritableLayer {
  checkSize(size, dataPath);
  if (size % SECTOR_BYTES !== 0) {
    throw new OverlaybdError("E_USAGE", `${dataPath}: size ${size} is not a multiple of ${SECTOR_BYTES}`);
  }
  const common = { indexCount: 0, size, uuid: randomUuid(), parentUuid, userTag: "" };
  const dataFlags = Flag.header | Flag.data | (sparse ? Flag.sparse : 0);
  createFile(dataPath, (data) => {
    data.write(0, encodeHeader({ ...common, flags: dataFlags, indexOffset: 0 }));
    if (sparse) data.truncate(HEADER_BYTES + size);
    createFile(indexPath, (index) => {
      if (!sparse) index.write(0, encodeHeader({ ...common, flags: Flag.header, indexOffset: HEADER_BYTES }));
    });
  });
  return openWritableLayer(dataPath, indexPath);
}

/** Creates a file that must not exist and fills it; it is removed again when that fails. */
function createFile(path: string, fill: (file: LocalFile) => void): void {
  const file = LocalFile.open(path, "create");
  try {
    fill(file);
  } catch (error) {
    rmSync(path, { force: true });
    throw error;
  } finally {
    file.close();
  }
}

/**
 * Opens a writable layer of either kind for writing.
 * @param indexPath not looked at for a sparse layer.
 * @throws OverlaybdError E_CORRUPT, E_LIMIT; E_BUSY when it is open already, here or in another process; E_IO.
 */
export function openWritableLayer(dataPath: string, indexPath: string): WritableLayer {
  const data = LocalFile.open(dataPath, "update");
  let index: LocalFile | undefined;
  try {
    if (!data.attempt("lock", () => tryLock(data.fd))) {
      throw new OverlaybdError("E_BUSY", `${dataPath}: this writable layer is in use`);
    }
    const block = data.readSync(0, HEADER_BYTES);
    const header = decodeHeader(block, `header of ${dataPath}`, Flag.header | Flag.data);
    if ((header.flags & Flag.sparse) !== 0) return new SparseLayer(data, header);
    index = LocalFile.open(indexPath, "update");
    const layer = new AppendLayer(data, index);
    if (layer.uuid !== header.uuid) {
      throw new OverlaybdError(
        "E_CORRUPT",
        `${indexPath}: index of layer ${layer.uuid}, but ${dataPath} is the data of layer ${header.uuid}`,
      );
    }
    return layer;
  } catch (error) {
    index?.close();
    data.close();
    throw error;
  }
}
