/**
 * A blob: immutable bytes that are, or can be made, readable from a local file descriptor.
 *
 * The split matters: `view` is plain data that can be posted to an I/O worker, which reads the descriptor directly
 * and only has to know which ranges are there; `fetch` needs the network and stays on the main thread.
 */
import type { ByteSource } from "../format/source.ts";
import type { Verity } from "../format/verity/descriptor.ts";

export interface Blob extends ByteSource {
  readonly view: BlobView;
  /** What fetching has cost so far, shared by all who have the blob open: the sum of these. */
  readonly stats: readonly CacheStats[];
  /** The Merkle tree in the blob. What comes from a registry is checked against it, a file on this machine is not. */
  readonly verity?: Verity;
  /**
   * Makes [offset, offset + length) readable from `view.fd`. Concurrent callers of one range share one fetch.
   * @param damaged the residency's epoch at which a reader found these bytes to be wrong: what is there is given up and
   * fetched once more.
   * @throws OverlaybdError E_CORRUPT when what was fetched once more is wrong too; what the origin throws.
   */
  fetch(offset: number, length: number, damaged?: number): Promise<void>;
  /** Absent when the blob is a local file from the start. */
  readonly kept?: KeptBytes;
  /** Releases the descriptor. The view must not be used any more. */
  close(): Promise<void>;
}

/** What a blob of a registry has on this machine. */
export interface KeptBytes {
  /** Bytes that are here and were verified, or null when not all of them are. */
  read(offset: number, length: number): Promise<Uint8Array | null>;
  /** Gives up all that was used so far, so that it is fetched anew. */
  discard(): Promise<void>;
  /**
   * From now on everything is read from a local file that holds the whole blob; the caller has verified it. Readers do
   * not notice.
   * @throws OverlaybdError E_NOT_FOUND, E_IO; E_CORRUPT when its size is another one.
   */
  adopt(path: string): Promise<void>;
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
  /** Which units were read since somebody last looked (bits as above); what was not goes first when room is needed. */
  readonly used: Uint32Array<SharedArrayBuffer>;
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
  /** Units on disk that turned out to be damaged; fetched again, counted in `misses` too. */
  damaged: number;
  /** Units of open objects that had to make room. */
  evicted: number;
  /** Times that the disk refused bytes. */
  refused: number;
}
