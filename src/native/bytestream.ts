/**
 * A sequential stream of bytes that native code produces on a thread of its own (decompression), read chunk by chunk.
 * Blocking: for workers and tools, never for the main thread of a daemon.
 */
export interface ByteStream {
  /**
   * The next chunk, or null at the end of the stream. Every chunk but the last is `CHUNK_BYTES` long (a multiple of
   * 512, so a tar header never straddles two). The memory is valid until the next call.
   * @throws StreamError when the input is corrupt, truncated or unreadable.
   */
  next(): Chunk | null;
  /** Stops the thread and frees the memory; safe at any time, also twice. */
  close(): void;
}

export interface Chunk {
  readonly bytes: Uint8Array;
  /** Native address of `bytes[0]`, for handing payload to native code without copying. */
  readonly address: number;
}

export const CHUNK_BYTES = 1 << 20;
