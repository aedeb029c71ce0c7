import { ptr } from "bun:ffi";

/** Native address of an array's first byte. The caller keeps the array alive as long as native code uses the address. */
export function addressOf(bytes: Uint8Array): number {
  return ptr(bytes);
}
