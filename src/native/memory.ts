/** Memory that native code reads and fills by address. */
import { ptr } from "bun:ffi";

/** A block of memory; keep this object for as long as native code may use `address`. */
export class Memory {
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** Of `bytes[0]`. */
  readonly address: number;

  constructor(length: number) {
    this.bytes = new Uint8Array(length);
    this.address = length === 0 ? 0 : ptr(this.bytes);
  }
}
