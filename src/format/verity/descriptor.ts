/** What the descriptor of a layer says of its Merkle tree: all that is needed to check every byte of the blob. */
import { OverlaybdError } from "../../error.ts";
import { LEAF_BYTES, TreeShape } from "./shape.ts";

/** Annotation of the layer's descriptor. With this prefix containerd hands it on to snapshotters. */
export const VERITY_ANNOTATION = "containerd.io/snapshot/overlaybd/verity";

export interface Verity {
  /** SHA-256 of the topmost node, 64 hexadecimal digits. */
  readonly root: string;
  /** Bytes that the tree is made over, from the blob's first on; the tree follows them. */
  readonly dataBytes: number;
}

/** The annotation's value. */
export function formatVerity({ root, dataBytes }: Verity): string {
  return `root=sha256:${root},leaf=${LEAF_BYTES},data=${dataBytes}`;
}

/**
 * Reads the annotation's value, and checks that a blob of `blobBytes` has room for just this tree.
 * @param name the blob's, for errors
 * @throws OverlaybdError E_CORRUPT; E_UNSUPPORTED for a tree of another kind; E_LIMIT
 */
export function parseVerity(text: string, blobBytes: number, name: string): Verity {
  const match = /^root=sha256:([0-9a-f]{64}),leaf=([1-9]\d{0,9}),data=([1-9]\d{0,15})$/.exec(text);
  if (match === null) {
    if (/^root=(?!sha256:)[a-z0-9]+:/.test(text)) throw unsupported(name, text);
    const wanted = "root=sha256:DIGEST,leaf=BYTES,data=BYTES";
    const got = JSON.stringify(text.slice(0, 160));
    throw new OverlaybdError(
      "E_CORRUPT",
      `${name}: its Merkle tree is described as ${got}, expected ${wanted}`,
    );
  }
  const [, root, leaf, data] = match;
  if (Number(leaf) !== LEAF_BYTES) throw unsupported(name, text);
  const shape = new TreeShape(Number(data), name);
  if (shape.blobBytes !== blobBytes) {
    const sizes = `must be ${shape.blobBytes} bytes long to hold the Merkle tree over ${data} of them, but has ${blobBytes}`;
    throw new OverlaybdError("E_CORRUPT", `${name} ${sizes}`);
  }
  return { root, dataBytes: shape.dataBytes };
}

function unsupported(name: string, text: string): OverlaybdError {
  const what = `its Merkle tree is of a kind that this version does not know: ${JSON.stringify(text.slice(0, 160))}`;
  return new OverlaybdError("E_UNSUPPORTED", `${name}: ${what}`);
}
