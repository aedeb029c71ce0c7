/**
 * Opens a descriptor as a stream of decompressed bytes. gzip (RFC 1952), zstd (RFC 8878) and neither are told apart by
 * their first bytes. A native thread reads and decompresses ahead of the consumer, into a ring of a few chunks.
 *
 * - gzip: members may be concatenated; each one's CRC-32 and length are verified. Anything after the last member (zero
 *   padding, garbage) is ignored as gzip(1) does, and counted in `ignoredBytes`.
 * - zstd: frames may be concatenated, skippable ones are skipped, content checksums are verified. A frame that wants a window
 *   beyond 128 MiB is refused. Anything after the last frame is an error, as for zstd(1).
 *
 * Memory: the ring (`RING_SLOTS` chunks), 0.4 MiB of buffers, and for zstd the window.
 */
import { type Pointer, ptr } from "bun:ffi";
import { type ByteStream, CHUNK_BYTES, type Chunk } from "./bytestream.ts";
import { bind } from "./library.ts";

const shim = bind({
  shim_inflate_open: { args: ["i32", "ptr", "u32", "u32", "f64", "u32", "ptr"], returns: "i32" },
  shim_inflate_next: { args: ["ptr"], returns: "i32" },
  shim_inflate_status: { args: ["ptr", "ptr"], returns: "i32" },
  shim_inflate_close: { args: ["ptr"], returns: "void" },
});

const RING_SLOTS = 4;
const HASH_INPUT = 1;
const HASH_OUTPUT = 2;

export interface StreamOptions {
  /** Compute the SHA-256 of the bytes read, all of them, whatever follows the compressed data included. */
  readonly hashInput?: boolean;
  /** Compute the SHA-256 of the bytes delivered. */
  readonly hashOutput?: boolean;
  /** Fail once more than this many bytes come out (a decompression bomb). Default: no bound. */
  readonly maximumOutput?: number;
}

/** What is known of a stream once `next()` returned null. */
export interface StreamSummary {
  readonly format: StreamFormat;
  readonly inputBytes: number;
  readonly outputBytes: number;
  /** Bytes of input after the last gzip member, which were not decompressed. */
  readonly ignoredBytes: number;
  /** SHA-256 in hexadecimal; null unless asked for. */
  readonly inputDigest: string | null;
  readonly outputDigest: string | null;
}

export type StreamFormat = "plain" | "gzip" | "zstd";

export interface InflateStream extends ByteStream {
  /** @throws Error when the stream has not come to its end. */
  summary(): StreamSummary;
}

/** Why a stream ended before its end. */
export class StreamError extends Error {
  override readonly name = "StreamError";

  constructor(
    readonly kind: StreamErrorKind,
    message: string,
    /** Bytes of (compressed) input used when it failed. */
    readonly offset: number,
    /** The operating system's error number; 0 for all kinds but "io". */
    readonly errno: number,
  ) {
    super(message);
  }
}

/** "limit": more output than `maximumOutput`, or a zstd window too large. */
export type StreamErrorKind = "io" | "truncated" | "corrupt" | "limit";

const FORMATS: readonly StreamFormat[] = ["plain", "gzip", "zstd"];

/** By the shim's failure number. */
const FAILURES: readonly (readonly [StreamErrorKind, string])[] = [
  ["io", "no failure"],
  ["io", "reading failed"],
  ["truncated", "compressed data ends too early"],
  ["corrupt", "compressed data is damaged"],
  ["corrupt", "decompressed data does not match its checksum"],
  ["limit", "decompresses to more than allowed"],
  ["limit", "wants a decompression window of more than 128 MiB"],
  ["io", "stopped"],
];

/**
 * Reads `fd` (a regular file, pipe, FIFO or socket) from its current position to its end. The caller keeps the
 * descriptor, and must not close it before the stream.
 * @throws StreamError "io" when the descriptor cannot be used.
 */
export function openStream(fd: number, options: StreamOptions = {}): InflateStream {
  return new NativeStream(fd, options);
}

/** Streams whose threads run: they write into memory that must not be collected. */
const running = new Set<NativeStream>();

class NativeStream implements InflateStream {
  readonly #ring = new Uint8Array(RING_SLOTS * CHUNK_BYTES);
  readonly #chunks: Chunk[];
  #handle: Pointer | null;
  #count = 0;
  #summary: StreamSummary | null = null;
  #failure: StreamError | null = null;

  constructor(
    fd: number,
    readonly options: StreamOptions,
  ) {
    const base = ptr(this.#ring);
    this.#chunks = Array.from({ length: RING_SLOTS }, (_, slot) => ({
      bytes: this.#ring.subarray(slot * CHUNK_BYTES, (slot + 1) * CHUNK_BYTES),
      address: base + slot * CHUNK_BYTES,
    }));
    const flags = (options.hashInput ? HASH_INPUT : 0) | (options.hashOutput ? HASH_OUTPUT : 0);
    const limit = options.maximumOutput ?? Number.POSITIVE_INFINITY;
    const handle = new BigUint64Array(1);
    const result = shim.shim_inflate_open(fd, base, RING_SLOTS, CHUNK_BYTES, limit, flags, ptr(handle));
    if (result < 0) throw new StreamError("io", `descriptor ${fd} cannot be read`, 0, -result);
    this.#handle = Number(handle[0]) as Pointer;
    running.add(this);
  }

  next(): Chunk | null {
    if (this.#failure) throw this.#failure;
    if (this.#summary) return null;
    if (this.#handle === null) throw new Error("the stream is closed");
    const length = shim.shim_inflate_next(this.#handle);
    if (length <= 0) {
      this.#finish(this.#handle);
      return null;
    }
    const chunk = this.#chunks[this.#count++ % RING_SLOTS];
    return length === CHUNK_BYTES
      ? chunk
      : { bytes: chunk.bytes.subarray(0, length), address: chunk.address };
  }

  /** Keeps what the thread found out, and frees it. */
  #finish(handle: Pointer): void {
    const bytes = new Uint8Array(112);
    shim.shim_inflate_status(handle, ptr(bytes));
    this.close();
    const numbers = new Float64Array(bytes.buffer, 0, 4);
    const [failure, errno, format] = new Int32Array(bytes.buffer, 32, 3);
    if (failure !== 0) {
      const [kind, message] = FAILURES[failure];
      this.#failure = new StreamError(kind, message, numbers[1], errno);
      throw this.#failure;
    }
    const digest = (wanted: boolean | undefined, offset: number) =>
      wanted ? bytes.subarray(offset, offset + 32).toHex() : null;
    this.#summary = {
      format: FORMATS[format],
      inputBytes: numbers[0],
      outputBytes: numbers[2],
      ignoredBytes: numbers[3],
      inputDigest: digest(this.options.hashInput, 48),
      outputDigest: digest(this.options.hashOutput, 80),
    };
  }

  summary(): StreamSummary {
    if (!this.#summary) throw new Error("the stream has not come to its end");
    return this.#summary;
  }

  close(): void {
    if (this.#handle === null) return;
    shim.shim_inflate_close(this.#handle);
    this.#handle = null;
    running.delete(this);
  }
}
