/** A plain file that is a disk image, as the volume of a file system. */
import type { LocalFile } from "../format/lsmt/file.ts";
import type { Volume } from "./volume.ts";

const BLOCK_BYTES = 4096;

/** The file has the size of the disk, and stays its owner's to close. */
export class RawVolume implements Volume {
  constructor(private readonly file: LocalFile) {}

  get size(): number {
    return this.file.size;
  }

  read(offset: number, target: Uint8Array): void {
    target.set(this.file.readSync(offset, target.length));
  }

  write(offset: number, bytes: Uint8Array): void {
    this.file.write(offset, bytes);
  }

  writeData(offset: number, address: number, length: number): void {
    this.file.writeFrom(offset, address, length);
    const padding = (BLOCK_BYTES - (length % BLOCK_BYTES)) % BLOCK_BYTES;
    if (padding > 0) this.file.write(offset + length, new Uint8Array(padding));
  }

  discard(): void {}

  flush(): void {}
}
