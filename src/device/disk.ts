import type { MissingRange } from "../image/tables.ts";

/** A virtual disk as a transport sees it. Offsets and lengths are bytes, whole 512-byte sectors inside the disk. */
export interface Disk {
  /** Virtual size in bytes. */
  readonly size: number;
  readonly writable: boolean;
  /**
   * Reads into native memory at `address`. Returns null, or, when bytes are not on this machine yet, which ones: then
   * the memory's content is undefined and the read is to be repeated once they are there.
   */
  read(offset: number, length: number, address: number): readonly MissingRange[] | null;
  /** Writes native memory at `address`. */
  write(offset: number, length: number, address: number): void;
  /** Gives up the range's content, which then reads as zeros. */
  discard(offset: number, length: number): void;
  /** Makes everything written durable. */
  flush(): void;
  /** Releases what the disk holds open. Does not flush. */
  close(): void;
}

export const SECTOR = 512;
