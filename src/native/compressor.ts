/** The parallel block compressor: bytes in, independently compressed blocks out, in order, at an offset of a file. */
import { check } from "./errno.ts";
import { bind } from "./library.ts";

const shim = bind({
  shim_compressor_create: { args: ["i32", "f64", "i32", "u32", "i32", "u32", "ptr"], returns: "i32" },
  shim_compressor_append: { args: ["ptr", "ptr", "f64"], returns: "i32" },
  shim_compressor_append_zeros: { args: ["ptr", "f64"], returns: "i32" },
  shim_compressor_finish: { args: ["ptr", "ptr"], returns: "i32" },
  shim_compressor_lengths: { args: ["ptr", "ptr", "f64"], returns: "i32" },
  shim_compressor_destroy: { args: ["ptr"], returns: "void" },
});

export interface CompressorOptions {
  readonly fd: number;
  /** Byte of the file at which the first block goes. */
  readonly offset: number;
  /** 1 = LZ4, 2 = zstd. */
  readonly codec: number;
  /** Uncompressed bytes in a block: a power of two from 4096 to 65536. */
  readonly blockSize: number;
  /** Put a CRC-32C behind every block. */
  readonly checksum: boolean;
  /** Compressing threads, at least 1; more than 64 are not started. The output does not depend on it. */
  readonly threads: number;
}

/** As compress.c has it. */
const MAX_THREADS = 64;

/**
 * Memory is bounded: 0.5 MiB × (2 × threads + 2), plus 4 bytes a block. An append copies its bytes and waits when the
 * threads or the disk fall behind: for workers and tools, never for the main thread of a daemon. A failed write shows at
 * a later append or at `finish`, as the SystemError it was.
 */
export class BlockCompressor {
  private handle: number;

  constructor({ fd, offset, codec, blockSize, checksum, threads }: CompressorOptions) {
    const out = new BigUint64Array(1);
    const started = Math.min(threads, MAX_THREADS);
    checked(shim.shim_compressor_create(fd, offset, codec, blockSize, checksum ? 1 : 0, started, out));
    this.handle = Number(out[0]);
  }

  append(bytes: Uint8Array): void {
    if (bytes.length > 0) checked(shim.shim_compressor_append(this.live(), bytes, bytes.length));
  }

  /** Appends `length` bytes of native memory at `address`. */
  appendFrom(address: number, length: number): void {
    checked(shim.shim_compressor_append(this.live(), address as never, length));
  }

  appendZeros(length: number): void {
    checked(shim.shim_compressor_append_zeros(this.live(), length));
  }

  /**
   * Compresses the short last block and waits for everything to be written. Returns the stored length of every block
   * (its checksum included) and the offset in the file behind the last one. Nothing can be appended afterwards.
   */
  finish(): { lengths: Uint32Array<ArrayBuffer>; end: number } {
    const totals = new Float64Array(2);
    checked(shim.shim_compressor_finish(this.live(), totals));
    const [blocks, end] = totals;
    const lengths = new Uint32Array(blocks);
    if (blocks > 0) checked(shim.shim_compressor_lengths(this.live(), lengths, blocks));
    return { lengths, end };
  }

  /** Stops the threads and frees the memory; safe at any time, also twice. */
  close(): void {
    if (this.handle === 0) return;
    shim.shim_compressor_destroy(this.live());
    this.handle = 0;
  }

  /** The native object; the shim answers a null pointer with EINVAL. */
  private live(): never {
    return this.handle as never;
  }
}

function checked(result: number): void {
  check(result, "compress");
}
