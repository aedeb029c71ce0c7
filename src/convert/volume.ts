/** The layer under construction as the file system's disk: read through to the layers below, written straight out. */

import type { Volume } from "../filesystem/volume.ts";
import type { LayerWriter } from "../format/lsmt/writer.ts";
import type { VirtualDisk } from "../image/disk.ts";
import { addressOf } from "../native/address.ts";

const BLOCK = 4096;

/**
 * Hands every write to the layer at once, in the order it comes. Works because an apply writes each block once: content
 * when it passes by, metadata at the end. A bottom layer leaves out zero blocks, which read as zeros anyway.
 */
export class LayerVolume implements Volume {
  readonly name = "the layers below";

  constructor(
    readonly size: number,
    private readonly layer: LayerWriter,
    private readonly below: VirtualDisk | null,
  ) {}

  read(offset: number, target: Uint8Array): void {
    if (this.below === null) target.fill(0);
    else if (this.below.read(offset, target.length, addressOf(target)) !== null) {
      throw new Error("layers below one that is being built are local files");
    }
  }

  write(offset: number, bytes: Uint8Array): void {
    if (this.below) this.layer.write(offset, bytes);
    else this.writeNonZero(offset, bytes);
  }

  private writeNonZero(offset: number, bytes: Uint8Array): void {
    for (let at = 0; at < bytes.length; at += BLOCK) {
      const block = bytes.subarray(at, at + BLOCK);
      if (block.some((byte) => byte !== 0)) this.layer.write(offset + at, block);
    }
  }

  writeData(offset: number, address: number, length: number): void {
    this.layer.writeFrom(offset, address, length, BLOCK);
  }

  /** Blocks that a file gave up keep what they hold: nothing reads them, and a zeroed segment would cost index space. */
  discard(): void {}

  flush(): void {}
}
