/** Bytes of a block, of volumes and of the file systems on them. */
export const BLOCK_BYTES = 4096;

/**
 * What a file system is written to: a writable image, a raw file, or the layer that a conversion is building.
 * All offsets and lengths are bytes, multiples of 4096. Synchronous: the owner is a worker or a tool.
 */
export interface Volume {
  /** What to call it in messages. */
  readonly name: string;
  /** Size in bytes. */
  readonly size: number;
  /** Fills `target` from `offset`; ranges never written read as zeros or as the layers below. */
  read(offset: number, target: Uint8Array): void;
  /** Writes file-system metadata; may be called again for the same place. */
  write(offset: number, bytes: Uint8Array): void;
  /**
   * Writes file content: `length` bytes of native memory at `address`, zero-filled up to the next multiple of 4096.
   * The memory may be reused after the call. A place is written at most once per apply, so a layer builder can
   * compress it at once.
   */
  writeData(offset: number, address: number, length: number): void;
  /** The range's content does not matter any more. */
  discard(offset: number, length: number): void;
  /** All written bytes are handed over (not necessarily durable). */
  flush(): void;
}
