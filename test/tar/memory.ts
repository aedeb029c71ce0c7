/** Archives in memory as the reader sees them, and members gathered into plain values that tests compare. */
import type { TarEntry } from "../../src/format/tar/entry.ts";
import { TarReader } from "../../src/format/tar/reader.ts";
import type { ByteStream, Chunk } from "../../src/native/bytestream.ts";

const ADDRESS = 0x10000;
const MAX_EXPANDED = 1 << 26;

/** A stream of `bytes` in chunks of what `chunkBytes` says; each chunk's memory is overwritten when the next is taken. */
export function memoryStream(bytes: Uint8Array, chunkBytes: () => number = () => 1 << 20): ByteStream {
  let at = 0;
  let last: Uint8Array | null = null;
  return {
    next(): Chunk | null {
      last?.fill(0xdb);
      if (at >= bytes.length) return null;
      last = new Uint8Array(bytes.subarray(at, at + chunkBytes()));
      const address = ADDRESS + at;
      at += last.length;
      return { bytes: last, address };
    },
    close() {},
  };
}

export interface Gathered extends TarEntry {
  /** The file with its holes filled by zeros; beyond 64 MiB, its data only. */
  readonly content: Buffer;
}

/** All members of an archive. Checks on the way that pieces ascend, and that addresses and bytes belong together. */
export function gather(bytes: Uint8Array, chunkBytes?: () => number): Gathered[] {
  const reader = new TarReader(memoryStream(bytes, chunkBytes), "test.tar");
  const members: Gathered[] = [];
  for (let entry = reader.next(); entry; entry = reader.next())
    members.push({ ...entry, content: content(reader, entry, bytes) });
  return members;
}

function content(reader: TarReader, entry: TarEntry, archive: Uint8Array): Buffer {
  const pieces: [number, Buffer][] = [];
  let end = 0;
  for (let piece = reader.read(); piece; piece = reader.read()) {
    if (piece.offset < end || piece.length === 0 || piece.length !== piece.bytes.length)
      throw new Error(`piece at ${piece.offset} of ${piece.length} bytes after ${end}`);
    const source = piece.address - ADDRESS;
    if (Buffer.compare(archive.subarray(source, source + piece.length), piece.bytes) !== 0)
      throw new Error(`address and bytes of the piece at ${piece.offset} differ`);
    pieces.push([piece.offset, Buffer.from(piece.bytes)]);
    end = piece.offset + piece.length;
  }
  // A sparse file may claim any size.
  if (entry.size > MAX_EXPANDED) return Buffer.concat(pieces.map(([, bytes]) => bytes));
  const file = Buffer.alloc(entry.size);
  for (const [offset, bytes] of pieces) file.set(bytes, offset);
  return file;
}
