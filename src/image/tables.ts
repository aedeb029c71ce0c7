/**
 * Everything an I/O worker needs to serve a virtual disk, as plain shareable data. Built on the main thread by
 * opening an image (network, async); posted once; then looked up and planned without any help from the main thread.
 */
import type { BlobView } from "../blob/blob.ts";
import type { SegmentTable } from "../format/lsmt/segments.ts";
import type { BlockTable } from "../format/zfile/blocks.ts";
import type { Engine } from "../native/plan.ts";
import type { ReadLog } from "./read_log.ts";

export interface DiskTables {
  /** Virtual size in bytes. */
  readonly size: number;
  /** The merged index of all read-only layers; a segment's tag is a position in `layers`. */
  readonly index: SegmentTable;
  /** Topmost first (LSMT position order, lsmt.md section 9.1). */
  readonly layers: readonly DiskLayer[];
  /** How local files are read. */
  readonly engine?: Engine;
  /** Writable layer, if the image has one: paths, opened by whoever serves the disk. */
  readonly upper?: { readonly data: string; readonly index: string };
  /** Remembers what is read of the layers; absent: nothing is recorded. */
  readonly readLog?: ReadLog;
}

export interface DiskLayer {
  readonly blob: BlobView;
  /** Byte offset in the blob where the LSMT or ZFile stream starts: behind the tar header, else 0. */
  readonly start: number;
  /** Block table when the layer is compressed; absent: LSMT bytes are blob bytes. */
  readonly blocks?: BlockTable;
}

/** Bytes of a layer's blob that are not on this machine yet, or not the right ones. */
export interface MissingRange {
  /** Position in `DiskTables.layers`. */
  readonly layer: number;
  /** Bytes, in the blob. */
  readonly offset: number;
  readonly length: number;
  /** They are here, but damaged: the residency's epoch at which that was seen (see `Blob.fetch`). */
  readonly damaged?: number;
}
