/** Where the Merkle tree of a layer blob lies, and what proves which bytes (docs/verity.md, "The tree"). */
import { OverlaybdError } from "../../error.ts";
import { DIGEST_BYTES } from "../../native/hash.ts";

/** Bytes of data that one digest stands for. */
export const LEAF_BYTES = 16384;
/** Bytes of a node: 128 digests of what is below it, the last node of a level filled up with zeros. */
export const NODE_BYTES = 4096;
/** What is hashed before a leaf and before a node, so that neither passes for the other (as in RFC 6962 section 2.1). */
export const LEAF_PREFIX = 0;
export const NODE_PREFIX = 1;
/** The two zero blocks that end the archive, behind the tree. */
export const TAIL_BYTES = 1024;
/** Most bytes that a tree is made over: 1 TiB, whose tree has 2.02 GiB. */
export const MAX_DATA_BYTES = 2 ** 40;

/** A part of the blob whose chunks are proved in the same way. */
export interface Section {
  /** Byte in the blob. */
  readonly offset: number;
  readonly length: number;
  /** Bytes that are checked together; the section's last chunk may be shorter. */
  readonly chunkBytes: number;
  /** Hashed before each chunk. */
  readonly prefix: number;
  /** Where in the blob the digests of the chunks are, one after another; or the root's only; or all bytes are zero. */
  readonly proof: number | "root" | "zeros";
}

/** Adjacent whole chunks of one section. */
export interface Run {
  readonly section: Section;
  /** Byte in the blob. */
  readonly offset: number;
  readonly length: number;
}

/** The shape of the tree over the first `dataBytes` of a blob, which follows from their number alone. */
export class TreeShape {
  /** Bytes of all nodes. They begin where the data ends. */
  readonly treeBytes: number;
  /** Bytes of the blob: data, tree and the archive's end. */
  readonly blobBytes: number;
  /** In the order of the blob, without gaps: data, levels from the root down, the archive's end. */
  readonly sections: readonly Section[];

  /** @throws OverlaybdError E_LIMIT, E_CORRUPT when there can be no such tree. */
  constructor(
    readonly dataBytes: number,
    name: string,
  ) {
    if (!(dataBytes > 0) || dataBytes % NODE_BYTES !== 0) {
      throw new OverlaybdError("E_CORRUPT", `${name}: no Merkle tree is made over ${dataBytes} bytes`);
    }
    if (dataBytes > MAX_DATA_BYTES) {
      throw new OverlaybdError("E_LIMIT", `${name}: ${dataBytes} bytes are too many for a Merkle tree`);
    }
    const data = { offset: 0, length: dataBytes, chunkBytes: LEAF_BYTES, prefix: LEAF_PREFIX };
    const levels = levelBytes(dataBytes);
    this.treeBytes = levels.reduce((sum, bytes) => sum + bytes, 0);
    this.blobBytes = dataBytes + this.treeBytes + TAIL_BYTES;
    const nodes: Section[] = [];
    let offset = dataBytes;
    let proof: Section["proof"] = "root";
    for (const length of levels.reverse()) {
      nodes.push({ offset, length, chunkBytes: NODE_BYTES, prefix: NODE_PREFIX, proof });
      proof = offset;
      offset += length;
    }
    const tail = { offset, length: TAIL_BYTES, chunkBytes: TAIL_BYTES, prefix: 0, proof: "zeros" } as const;
    this.sections = [{ ...data, proof }, ...nodes, tail];
  }

  /** The runs that cover [begin, end), in the order of the blob, extended to whole chunks. */
  runs(begin: number, end: number): Run[] {
    const runs: Run[] = [];
    for (const section of this.sections) {
      const from = Math.max(begin - section.offset, 0);
      const to = Math.min(end - section.offset, section.length);
      if (from >= to) continue;
      const first = Math.floor(from / section.chunkBytes) * section.chunkBytes;
      const last = Math.min(Math.ceil(to / section.chunkBytes) * section.chunkBytes, section.length);
      runs.push({ section, offset: section.offset + first, length: last - first });
    }
    return runs;
  }
}

/** Where in the blob the digests of a run's chunks are. */
export function proofRange({ section, offset, length }: Run): { offset: number; length: number } | null {
  if (typeof section.proof !== "number") return null;
  const first = (offset - section.offset) / section.chunkBytes;
  const count = Math.ceil(length / section.chunkBytes);
  return { offset: section.proof + first * DIGEST_BYTES, length: count * DIGEST_BYTES };
}

/** Bytes of each level, the one above the leaves first; the last one has a single node. */
function levelBytes(dataBytes: number): number[] {
  const levels: number[] = [];
  for (let chunks = Math.ceil(dataBytes / LEAF_BYTES); levels.length === 0 || chunks > 1; ) {
    chunks = Math.ceil((chunks * DIGEST_BYTES) / NODE_BYTES);
    levels.push(chunks * NODE_BYTES);
  }
  return levels;
}
