/** Checksums, digests and compression of single blocks, computed natively. */
import type { Pointer } from "bun:ffi";
import { check, SystemError } from "./errno.ts";
import { bind } from "./library.ts";

const native = bind({
  shim_crc32c: { args: ["u32", "ptr", "u32"], returns: "u32" },
  shim_decoder_open: { args: [], returns: "ptr" },
  shim_decoder_run: { args: ["ptr", "i32", "ptr", "u32", "ptr", "u32"], returns: "i32" },
  shim_encoder_open: { args: [], returns: "ptr" },
  shim_encoder_run: { args: ["ptr", "i32", "ptr", "u32", "ptr", "u32"], returns: "i32" },
  shim_encoder_bound: { args: ["i32", "u32"], returns: "i32" },
  shim_sha256_open: { args: [], returns: "ptr" },
  shim_sha256_close: { args: ["ptr"], returns: "void" },
  shim_sha256_update: { args: ["ptr", "ptr", "f64"], returns: "i32" },
  shim_sha256_update_file: { args: ["ptr", "i32", "f64", "f64"], returns: "i32" },
  shim_sha256_final: { args: ["ptr", "ptr"], returns: "void" },
});

/** Compression of a block, numbered as in the ZFile header: 1 LZ4 block format, 2 one zstd frame. */
type Codec = 1 | 2;

const EBADMSG = 74;
const ENOBUFS = 105;
const ENOMEM = 12;

function allocated(context: Pointer | bigint | null, what: string): Pointer {
  if (context === null) throw new SystemError(ENOMEM, what);
  return context as Pointer;
}

/**
 * CRC-32C in the raw form that ZFile and LSMT use: no inversion before or after. To go on with the next bytes, pass the
 * result as `seed`.
 */
export function crc32c(bytes: Uint8Array, seed = 0): number {
  return bytes.length === 0 ? seed >>> 0 : native.shim_crc32c(seed, bytes, bytes.length);
}

// One context each for this thread, reused for ever, so that blocks are coded without allocating.
let decoder: Pointer | undefined;
let encoder: Pointer | undefined;

/**
 * Decompresses `stored` (without its checksum) so that it exactly fills `plain`; false when it is damaged: not one block
 * of that codec, or one of another length. `plain`'s content is then undefined.
 */
export function decompressBlock(codec: Codec, stored: Uint8Array, plain: Uint8Array): boolean {
  if (stored.length === 0 || plain.length === 0) return false;
  decoder ??= allocated(native.shim_decoder_open(), "decompressBlock");
  const result = native.shim_decoder_run(decoder, codec, stored, stored.length, plain, plain.length);
  if (result === -EBADMSG) return false;
  check(result, "decompressBlock");
  return true;
}

/** The most bytes that a block of `plainLength` bytes can compress to. */
export function compressBound(codec: Codec, plainLength: number): number {
  return check(native.shim_encoder_bound(codec, plainLength), "compressBound");
}

/**
 * Compresses `plain` to the start of `target` and returns the bytes used; equal input gives equal bytes.
 * @throws RangeError when it does not fit; `compressBound` bytes always do.
 */
export function compressBlock(codec: Codec, plain: Uint8Array, target: Uint8Array): number {
  if (plain.length === 0) throw new RangeError("a block of no bytes has no compressed form");
  encoder ??= allocated(native.shim_encoder_open(), "compressBlock");
  const result = native.shim_encoder_run(encoder, codec, plain, plain.length, target, target.length);
  if (result === -ENOBUFS) throw new RangeError(`${target.length} bytes do not hold the compressed block`);
  return check(result, "compressBlock");
}

/** SHA-256 over memory, native memory and ranges of files, in any mixture. */
export class Sha256 {
  private context = allocated(native.shim_sha256_open(), "Sha256");

  update(bytes: Uint8Array): void {
    if (bytes.length > 0) native.shim_sha256_update(this.context, bytes, bytes.length);
  }

  /** Adds `length` bytes of native memory. */
  updateAt(address: number, length: number): void {
    check(native.shim_sha256_update(this.context, address as Pointer, length), "Sha256");
  }

  /**
   * Adds [offset, offset + length) of a file, read in this call (which blocks).
   * @throws SystemError of pread; ENODATA when the file ends inside the range.
   */
  updateFile(fd: number, offset: number, length: number): void {
    check(native.shim_sha256_update_file(this.context, fd, offset, length), "pread", `fd ${fd}`);
  }

  /** What native code calls it. Valid until `close`. */
  get address(): number {
    return this.context;
  }

  /** The digest as 64 hexadecimal digits. The next update starts anew. */
  digest(): string {
    const bytes = new Uint8Array(32);
    native.shim_sha256_final(this.context, bytes);
    return bytes.toHex();
  }

  /** Frees the memory; the hash must not be used any more. */
  close(): void {
    native.shim_sha256_close(this.context);
  }
}
