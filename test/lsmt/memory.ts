/** Layers held in memory, and reading a stack of them back. */
import { createHash } from "node:crypto";
import { type SegmentTable, segmentEnd, segmentStart, walkSegments } from "../../src/format/lsmt/segments.ts";
import type { ByteSink } from "../../src/format/sink.ts";
import type { ByteSource } from "../../src/format/source.ts";

export class MemorySource implements ByteSource {
  constructor(
    private readonly bytes: Uint8Array,
    readonly name = "memory",
  ) {}

  get size(): number {
    return this.bytes.length;
  }

  async read(offset: number, length: number): Promise<Uint8Array> {
    if (offset < 0 || length < 0 || offset + length > this.size) {
      throw new Error(
        `read of ${length} bytes at ${offset} of ${this.size}: the reader asks for more than there is`,
      );
    }
    return this.bytes.slice(offset, offset + length);
  }
}

export class MemorySink implements ByteSink {
  readonly #parts: Uint8Array[] = [];
  position = 0;

  write(bytes: Uint8Array): void {
    this.#parts.push(bytes.slice());
    this.position += bytes.length;
  }

  writeFrom(): void {
    throw new Error("not a sink for native memory");
  }

  writeZeros(length: number): void {
    this.write(new Uint8Array(length));
  }

  finish(): void {}

  get bytes(): Uint8Array {
    return Buffer.concat(this.#parts);
  }
}

/** Reads sectors [start, end) of a stack: `sources[tag]` holds the data. */
export async function readSectors(
  index: SegmentTable,
  sources: readonly ByteSource[],
  start: number,
  end: number,
): Promise<Uint8Array> {
  const target = new Uint8Array((end - start) * 512);
  const pieces: number[][] = [];
  walkSegments(index, start, end, (...piece) => pieces.push(piece));
  for (const [at, length, tag, moffset] of pieces) {
    if (tag >= 0) target.set(await sources[tag].read(moffset * 512, length * 512), (at - start) * 512);
  }
  return target;
}

const ZEROS = new Uint8Array(4096);

/** The digest of manifests/devices.json and the number of blocks in it. */
export async function deviceDigest(
  index: SegmentTable,
  sources: readonly ByteSource[],
): Promise<{ digest: string; blocks: number }> {
  const hash = createHash("sha256");
  const number = Buffer.alloc(8);
  let blocks = 0;
  let next = 0;
  for (let i = 0; i < index.count; i++) {
    const last = Math.ceil(segmentEnd(index, i) / 8);
    for (let block = Math.max(next, Math.floor(segmentStart(index, i) / 8)); block < last; block++) {
      const bytes = await readSectors(index, sources, block * 8, block * 8 + 8);
      if (Buffer.compare(bytes, ZEROS) === 0) continue;
      number.writeBigUInt64LE(BigInt(block));
      hash.update(number).update(bytes);
      blocks++;
    }
    next = last;
  }
  return { digest: hash.digest("hex"), blocks };
}
