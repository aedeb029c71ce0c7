/**
 * A blob: immutable bytes that are, or can be made, readable from a local file descriptor.
 *
 * The split matters: `view` is plain data that can be posted to an I/O worker, which reads the descriptor directly
 * and only has to know which ranges are there; `fetch` needs the network and stays on the main thread.
 */
import type { ByteSource } from "../format/source.ts";

export interface Blob extends ByteSource {
  readonly view: BlobView;
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
  /** Which refill units are there: bit u of word u >> 5 for bytes [u × unit, (u + 1) × unit). Absent: all of it. */
  readonly valid?: { readonly bits: Uint32Array<SharedArrayBuffer>; readonly unit: number };
}
