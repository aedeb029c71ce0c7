/** Adds a Merkle tree to a finished layer file, as a second member of the tar around it (docs/verity.md). */
import { type FileHandle, open } from "node:fs/promises";
import { OverlaybdError } from "../../error.ts";
import { Sha256 } from "../../native/codec.ts";
import { hashChunks, hashFileChunks } from "../../native/hash.ts";
import { BLOCK_BYTES } from "../tar/header.ts";
import { memberHeader } from "../tar/wrapper.ts";
import type { Verity } from "./descriptor.ts";
import { LEAF_BYTES, LEAF_PREFIX, NODE_BYTES, NODE_PREFIX, TAIL_BYTES, TreeShape } from "./shape.ts";

export interface SealedLayer {
  /** Digest of the whole file. */
  readonly digest: string;
  /** Bytes of the whole file. */
  readonly size: number;
  readonly verity: Verity;
}

/**
 * Adds the tree to the tar-wrapped layer at `path`, which ends with two zero blocks. Data is read once, for the tree and
 * for the file's digest, on threads of the pool. Equal layers give equal bytes. Memory: 6 MiB for each GiB.
 * @throws OverlaybdError E_IO, E_LIMIT; the file is then of no use.
 */
export async function appendTree(path: string): Promise<SealedLayer> {
  try {
    const file = await open(path, "r+");
    try {
      return await seal(file, path);
    } finally {
      await file.close();
    }
  } catch (cause) {
    if (cause instanceof OverlaybdError) throw cause;
    throw new OverlaybdError("E_IO", `adding a Merkle tree to ${path} failed: ${(cause as Error).message}`, {
      cause,
    });
  }
}

async function seal(file: FileHandle, path: string): Promise<SealedLayer> {
  const { size, mode } = await file.stat();
  const header = size - TAIL_BYTES;
  const content = header + BLOCK_BYTES;
  // Nodes lie at multiples of their size; zeros at the start of the member make it so.
  const dataBytes = Math.ceil(content / NODE_BYTES) * NODE_BYTES;
  const shape = new TreeShape(dataBytes, path);
  const memberBytes = dataBytes - content + shape.treeBytes;
  await writeAll(file, memberHeader("overlaybd.verity", mode, memberBytes), header);
  await file.truncate(shape.blobBytes);
  const whole = new Sha256();
  try {
    const leaves = await hashFileChunks(whole, file.fd, dataBytes, LEAF_BYTES, LEAF_PREFIX);
    const { nodes, root } = await buildTree(leaves);
    await writeAll(file, nodes, dataBytes);
    whole.update(nodes);
    whole.update(new Uint8Array(TAIL_BYTES));
    const verity = { root: root.toHex(), dataBytes };
    return { digest: `sha256:${whole.digest()}`, size: shape.blobBytes, verity };
  } finally {
    whole.close();
  }
}

/** The nodes over the leaves' digests, from the root down, and the root's digest. */
async function buildTree(leaves: Uint8Array): Promise<{ nodes: Uint8Array; root: Uint8Array }> {
  const levels: Uint8Array[] = [];
  let digests = leaves;
  do {
    const level = new Uint8Array(Math.ceil(digests.length / NODE_BYTES) * NODE_BYTES);
    level.set(digests);
    levels.unshift(level);
    digests = await hashChunks(level, NODE_BYTES, NODE_PREFIX);
  } while (levels[0].length > NODE_BYTES);
  return { nodes: Buffer.concat(levels), root: digests };
}

async function writeAll(file: FileHandle, bytes: Uint8Array, offset: number): Promise<void> {
  for (let done = 0; done < bytes.length; ) {
    done += (await file.write(bytes, done, bytes.length - done, offset + done)).bytesWritten;
  }
}
