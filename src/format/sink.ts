/** Sequential output of one format layer: a file, or a ZFile that compresses what it is given. */
export interface ByteSink {
  /** Bytes written so far, counted in this sink's own (for a ZFile: uncompressed) stream. */
  readonly position: number;
  /** Appends `bytes`; they may be reused after the call. May block while the output catches up. */
  write(bytes: Uint8Array): void;
  /** Appends `length` bytes of native memory at `address`; the memory may be reused after the call. */
  writeFrom(address: number, length: number): void;
  /** Appends `length` zero bytes. */
  writeZeros(length: number): void;
  /** Writes what is still buffered and whatever the format puts at the end. Nothing may be written afterwards. */
  finish(): void;
}
