/** An origin whose every byte is checked against the Merkle tree of the blob before anybody sees it. */
import { isRight, type MerkleTree } from "./merkle.ts";
import type { RangeOrigin } from "./origin.ts";

export class VerifiedOrigin implements RangeOrigin {
  readonly name: string;
  readonly size: number;

  /** @param tree of the blob that `origin` is of; stays its owner's to close */
  constructor(
    private readonly origin: RangeOrigin,
    private readonly tree: MerkleTree,
  ) {
    this.name = origin.name;
    this.size = origin.size;
  }

  /**
   * As `RangeOrigin.readRange`. Fetches whole chunks of the tree, so a range that is made of them costs the least.
   * @throws OverlaybdError E_CORRUPT naming blob and range when what comes is wrong each time.
   */
  async readRange(offset: number, length: number): Promise<Uint8Array> {
    const runs = this.tree.shape.runs(offset, offset + length);
    const [first, last] = [runs[0], runs[runs.length - 1]];
    const whole = last.offset + last.length - first.offset;
    const proofs = this.tree.proofs(first.offset, whole);
    // Who waits for the bytes hears of it.
    proofs.catch(() => {});
    const check = (sent: Uint8Array) => this.tree.check(first.offset, sent, proofs);
    const bytes = await this.tree.fetch(first.offset, whole, check);
    const skip = offset - first.offset;
    return bytes.subarray(skip, skip + length);
  }

  /**
   * As `RangeOrigin.readPieces`, of whole chunks. A piece that is wrong is asked for once more, by itself.
   * @throws OverlaybdError as `readRange`.
   */
  async *readPieces(offset: number, length: number, piece: number): AsyncGenerator<Uint8Array, void> {
    const end = offset + length;
    let sent: AsyncGenerator<Uint8Array, void> | undefined;
    try {
      for (let at = offset; at < end; at += piece) {
        const wanted = Math.min(piece, end - at);
        const proofs = this.tree.proofs(at, wanted);
        proofs.catch(() => {});
        sent ??= this.origin.readPieces?.(at, end - at, piece);
        const { value } = (await sent?.next()) ?? {};
        if (value?.length === wanted && (await isRight(this.tree.check(at, value, proofs)))) {
          yield value;
        } else {
          await sent?.return();
          sent = undefined;
          yield await this.readRange(at, wanted);
        }
      }
    } finally {
      await sent?.return();
    }
  }

  /** See `RangeOrigin.verify`. Both ends are ends of chunks, as are those of refill units of `LEAF_BYTES` and more. */
  verify(offset: number, bytes: Uint8Array): Promise<boolean> {
    return isRight(this.tree.check(offset, bytes, this.tree.proofs(offset, bytes.length)));
  }
}
