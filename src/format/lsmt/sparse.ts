/** The sparse writable layer: an image of the disk whose holes are the index (lsmt.md section 7.1). */
import { punchHole } from "../../native/descriptor.ts";
import { nextDataRange } from "../../native/range.ts";
import { DATA_BEGIN_SECTOR } from "./entry.ts";
import type { LocalFile } from "./file.ts";
import { HEADER_BYTES, type LayerHeader } from "./header.ts";
import { MAX_SEGMENT_SECTORS, SECTOR_BYTES } from "./segments.ts";
import { WritableLayer, writeSize } from "./writable.ts";

/**
 * Virtual byte x is at byte 4096 + x of the file. What was discarded is forgotten when the layer is closed, and a write
 * maps all of the file system block it falls into.
 */
export class SparseLayer extends WritableLayer {
  readonly sparse = true;

  constructor(file: LocalFile, header: LayerHeader) {
    super(file, header);
    // A seal may have put an index behind the disk and been interrupted.
    const end = Math.min(file.size, HEADER_BYTES + header.size);
    for (let at = HEADER_BYTES; at < end; ) {
      const from = at;
      const range = file.attempt("find data in", () => nextDataRange(file.fd, from));
      if (range === null) break;
      this.#insert(
        Math.floor(range.begin / SECTOR_BYTES),
        Math.floor(Math.min(range.end, end) / SECTOR_BYTES),
      );
      at = range.end;
    }
  }

  override discard(offset: number, length: number): void {
    super.discard(offset, length);
    if (length === 0) return;
    this.file.attempt("punch a hole in", () => punchHole(this.file.fd, HEADER_BYTES + offset, length));
  }

  flush(): void {
    this.file.sync();
  }

  close(): void {
    this.file.close();
  }

  protected place(start: number): number {
    return start + DATA_BEGIN_SECTOR;
  }

  protected record(): void {}

  protected storeSize(size: number): void {
    writeSize(this.file, size);
    this.file.truncate(HEADER_BYTES + size);
  }

  /** Maps the sectors [begin, end) of the file. */
  #insert(begin: number, end: number): void {
    for (let at = begin; at < end; at += MAX_SEGMENT_SECTORS) {
      this.index.insert(at - DATA_BEGIN_SECTOR, Math.min(MAX_SEGMENT_SECTORS, end - at), at, false);
    }
  }
}
