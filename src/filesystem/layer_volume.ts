/** A writable layer, alone or on top of a disk, as the volume of a file system. */
import { GAP, SECTOR_BYTES } from "../format/lsmt/segments.ts";
import type { WritableLayer } from "../format/lsmt/writable.ts";
import { BLOCK_BYTES, type Volume } from "./volume.ts";

/** What serves the sectors that a layer leaves to those below it. */
export interface Below {
  /** Fills `target` from byte `offset`; what lies beyond its end reads as zeros. */
  read(offset: number, target: Uint8Array): void;
}

/** The layer stays its owner's to close. */
export class WritableLayerVolume implements Volume {
  constructor(
    private readonly layer: WritableLayer,
    private readonly below?: Below,
  ) {}

  get name(): string {
    return this.layer.file.name;
  }

  get size(): number {
    return this.layer.size;
  }

  read(offset: number, target: Uint8Array): void {
    const start = offset / SECTOR_BYTES;
    this.layer.walk(start, start + target.length / SECTOR_BYTES, (at, length, tag, moffset) => {
      const place = (at - start) * SECTOR_BYTES;
      const piece = target.subarray(place, place + length * SECTOR_BYTES);
      if (tag >= 0) piece.set(this.layer.file.readSync(moffset * SECTOR_BYTES, piece.length));
      else if (tag === GAP && this.below) this.below.read(at * SECTOR_BYTES, piece);
      else piece.fill(0);
    });
  }

  write(offset: number, bytes: Uint8Array): void {
    this.layer.write(offset, bytes);
  }

  writeData(offset: number, address: number, length: number): void {
    this.layer.writeFrom(offset, address, length, BLOCK_BYTES);
  }

  discard(offset: number, length: number): void {
    this.layer.discard(offset, length);
  }

  flush(): void {}
}
