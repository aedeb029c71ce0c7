/** The tree as docs/verity.md describes it, computed the plain way. */
import { createHash } from "node:crypto";

const LEAF = 16384;
const NODE = 4096;

const sha256 = (prefix: number, bytes: Uint8Array): Buffer =>
  createHash("sha256").update(Buffer.of(prefix)).update(bytes).digest();

function digestsOf(bytes: Uint8Array, chunk: number, prefix: number): Buffer {
  const digests: Buffer[] = [];
  for (let at = 0; at < bytes.length; at += chunk)
    digests.push(sha256(prefix, bytes.subarray(at, at + chunk)));
  return Buffer.concat(digests);
}

/** The nodes over `data`, from the root down, and the root as hexadecimal digits. */
export function modelTree(data: Uint8Array): { nodes: Buffer; root: string } {
  let digests = digestsOf(data, LEAF, 0);
  let nodes = Buffer.alloc(0);
  for (;;) {
    const level = Buffer.concat([digests, Buffer.alloc(-digests.length & (NODE - 1))]);
    nodes = Buffer.concat([level, nodes]);
    digests = digestsOf(level, NODE, 1);
    if (level.length === NODE) return { nodes, root: digests.toString("hex") };
  }
}

/** `data`, its tree and the end of the archive: what a verified origin takes for a blob. */
export function modelBlob(data: Uint8Array): { bytes: Uint8Array; root: string; dataBytes: number } {
  const { nodes, root } = modelTree(data);
  return {
    bytes: new Uint8Array(Buffer.concat([data, nodes, Buffer.alloc(1024)])),
    root,
    dataBytes: data.length,
  };
}
