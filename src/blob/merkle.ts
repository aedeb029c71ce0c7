/**
 * The Merkle tree of one blob, read when it is needed: nodes are checked from the root down before anything in them is
 * believed, and kept in the cache as an object of their own.
 */
import { OverlaybdError } from "../error.ts";
import type { Verity } from "../format/verity/descriptor.ts";
import { proofRange, type Run, TreeShape } from "../format/verity/shape.ts";
import { DIGEST_BYTES, hashChunks } from "../native/hash.ts";
import type { Blob } from "./blob.ts";
import type { RangeOrigin } from "./origin.ts";

/** How often bytes are fetched before they are found wrong for good. */
const ATTEMPTS = 2;

/** Adjacent chunks and their digests; null: all of their bytes are zero. */
export interface Proof {
  readonly run: Run;
  readonly digests: Uint8Array | null;
}

/** Bytes of the tree that are just being checked. */
interface Nodes {
  readonly offset: number;
  readonly bytes: Uint8Array;
}

export class MerkleTree {
  readonly shape: TreeShape;
  readonly #root: Uint8Array;
  /** The tree's nodes through the cache; set before anything is read. */
  #nodes: Blob | undefined;

  private constructor(
    private readonly origin: RangeOrigin,
    verity: Verity,
  ) {
    this.shape = new TreeShape(verity.dataBytes, origin.name);
    this.#root = Uint8Array.fromHex(verity.root);
  }

  /**
   * @param origin of the blob whose tree it is
   * @param keep opens an object, the nodes alone, through the cache
   * @throws what `keep` throws
   */
  static async open(
    origin: RangeOrigin,
    verity: Verity,
    keep: (nodes: RangeOrigin) => Promise<Blob>,
  ): Promise<MerkleTree> {
    const tree = new MerkleTree(origin, verity);
    tree.#nodes = await keep({
      name: origin.name,
      size: tree.shape.treeBytes,
      readRange: (offset, length) => {
        const check = (bytes: Uint8Array) => tree.#checkNodes({ offset, bytes });
        return tree.fetch(tree.shape.dataBytes + offset, length, check);
      },
      verify: (offset, bytes) => isRight(tree.#checkNodes({ offset, bytes })),
    });
    return tree;
  }

  /** What fetching nodes has cost. */
  get stats(): Blob["stats"] {
    return this.#nodes?.stats ?? [];
  }

  /** What proves the chunks of [offset, offset + length). @throws OverlaybdError E_CORRUPT; what the origin throws. */
  proofs(offset: number, length: number): Promise<readonly Proof[]> {
    const runs = this.shape.runs(offset, offset + length);
    return Promise.all(runs.map(async (run) => ({ run, digests: await this.#digests(run) })));
  }

  /**
   * Checks whole chunks of the blob, wherever they come from. `proofs` come from the function of that name; begun before
   * the bytes are fetched, they take no time of their own.
   * @throws OverlaybdError E_CORRUPT naming the first chunk that is wrong.
   */
  async check(offset: number, bytes: Uint8Array, proofs: Promise<readonly Proof[]>): Promise<void> {
    for (const proof of await proofs) await this.#checkRun(proof, offset, bytes);
  }

  /** Fetches bytes of the blob that pass `check`. @throws OverlaybdError E_CORRUPT; what the origin throws. */
  async fetch(
    offset: number,
    length: number,
    check: (bytes: Uint8Array) => Promise<void>,
  ): Promise<Uint8Array> {
    for (let attempt = 1; ; attempt++) {
      let checked: Uint8Array | undefined;
      try {
        const bytes = await this.origin.readRange(offset, length, async (sent) => {
          await check(sent);
          checked = sent;
        });
        if (bytes !== checked) await check(bytes);
        return bytes;
      } catch (error) {
        if (!isCorrupt(error) || attempt === ATTEMPTS) throw error;
      }
    }
  }

  async close(): Promise<void> {
    await this.#nodes?.close();
  }

  /** Every node's digest lies in a node before it: one of those that were just checked, or one that is read first. */
  async #checkNodes(nodes: Nodes): Promise<void> {
    const begin = this.shape.dataBytes + nodes.offset;
    for (const run of this.shape.runs(begin, begin + nodes.bytes.length)) {
      await this.#checkRun({ run, digests: await this.#digests(run, nodes) }, begin, nodes.bytes);
    }
  }

  async #digests(run: Run, own?: Nodes): Promise<Uint8Array | null> {
    const range = proofRange(run);
    if (range === null) return run.section.proof === "root" ? this.#root : null;
    const begin = range.offset - this.shape.dataBytes;
    const end = begin + range.length;
    if (own === undefined || end <= own.offset) return this.#readNodes(begin, end);
    const inside = own.bytes.subarray(Math.max(begin - own.offset, 0), end - own.offset);
    return begin >= own.offset ? inside : Buffer.concat([await this.#readNodes(begin, own.offset), inside]);
  }

  async #readNodes(begin: number, end: number): Promise<Uint8Array> {
    if (!this.#nodes) throw new Error("the tree is not open yet");
    return this.#nodes.read(begin, end - begin);
  }

  /** @param bytes of the blob, from `offset` on */
  async #checkRun({ run, digests }: Proof, offset: number, bytes: Uint8Array): Promise<void> {
    const part = bytes.subarray(run.offset - offset, run.offset - offset + run.length);
    const { chunkBytes, prefix } = run.section;
    const wrong =
      digests === null
        ? Buffer.compare(part, new Uint8Array(run.length)) === 0
          ? null
          : 0
        : firstDifference(await hashChunks(part, chunkBytes, prefix), digests);
    if (wrong === null) return;
    const begin = run.offset + wrong * chunkBytes;
    const end = Math.min(begin + chunkBytes, run.offset + run.length);
    const what = `bytes ${begin} to ${end} are not those that the image's manifest vouches for`;
    throw new OverlaybdError("E_CORRUPT", `${this.origin.name}: ${what}`);
  }
}

/** Whether a check succeeds. @throws what it throws, but E_CORRUPT. */
export async function isRight(check: Promise<void>): Promise<boolean> {
  try {
    await check;
    return true;
  } catch (error) {
    if (isCorrupt(error)) return false;
    throw error;
  }
}

function isCorrupt(error: unknown): boolean {
  return error instanceof OverlaybdError && error.code === "E_CORRUPT";
}

/** Number of the first digest that differs or is missing; null when none does. */
function firstDifference(actual: Uint8Array, expected: Uint8Array): number | null {
  if (Buffer.compare(actual, expected) === 0) return null;
  for (let digest = 0; ; digest++) {
    const at = digest * DIGEST_BYTES;
    const [one, other] = [actual.subarray(at, at + DIGEST_BYTES), expected.subarray(at, at + DIGEST_BYTES)];
    if (Buffer.compare(one, other) !== 0) return digest;
  }
}
