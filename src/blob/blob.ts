/**
 * A blob: immutable bytes that are, or can be made, readable from a local file descriptor.
 *
 * The split matters: `view` is plain data that can be posted to an I/O worker, which reads the descriptor directly
 * and only has to know which ranges are there; `fetch` needs the network and stays on the main thread.
 */
import type { ByteSource } from "../format/source.ts";

export interface Blob extends ByteSource {
  readonly view: BlobView;
  /** What fetching has cost so far, shared by all who have the blob open; absent when nothing is ever fetched. */
  readonly stats?: CacheStats;
  /** Makes [offset, offset + length) readable from `view.fd`. Concurrent callers of one range share one fetch. */
  fetch(offset: number, length: number): Promise<void>;
  /** Releases the descriptor. The view must not be used any more. */
  close(): Promise<void>;
}

/** What an I/O worker needs to read a blob. Structured-cloneable; memory is shared, not copied. */
export interface BlobView {
  readonly name: string;
  /** Size in bytes. */
  readonly size: number;
  /** Descriptor from which byte x of the blob is read at offset x, once it is there. */
  readonly fd: number;
  /** Which refill units are there. Absent: all of them, for as long as the blob is open. */
  readonly valid?: Residency;
}

/**
 * The refill units of a blob that can be read from its descriptor. Bits are set after the bytes are in the file, with
 * `Atomics`, so a worker may look at any time. A unit can also be withdrawn (its bit is cleared, `epoch` is raised,
 * and only then do its bytes go), so who reads loads `epoch` first, then looks at the bits, reads, and loads `epoch`
 * again: if it has changed, the bytes may be gone and it has to start over.
 */
export interface Residency {
  /** Bit u & 31 of word u >> 5 stands for bytes [u × unit, (u + 1) × unit). */
  readonly bits: Uint32Array<SharedArrayBuffer>;
  /** Bytes in a refill unit. */
  readonly unit: number;
  /** One word, shared by all blobs of a cache, that counts withdrawals. */
  readonly epoch: Uint32Array<SharedArrayBuffer>;
}

/** What became of the refill units that were asked for, of one blob or summed over several. */
export interface CacheStats {
  /** Bytes that came from the origin. */
  fetchedBytes: number;
  /** Requests to the origin. */
  requests: number;
  /** Units that were on disk from before. */
  hits: number;
  /** Units that had to be fetched. */
  misses: number;
  /** Units on disk whose bytes were not what had been recorded; fetched again, counted in `misses` too. */
  damaged: number;
  /** Times that the disk refused bytes. */
  refused: number;
}
