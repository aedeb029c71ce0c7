/** The 512-byte header of a ZFile, and its trailer, which has the same layout (zfile.md section 2). Little-endian. */
import { OverlaybdError } from "../../error.ts";
import { crc32c } from "../../native/codec.ts";

export const HEADER_BYTES = 512;

/** Bytes 0 to 23: "ZFile" 00 01 00, then "tuji.yyf@Alibaba". */
const MAGIC = Buffer.from("5a46696c6500010074756a692e79796640416c6962616261", "hex");
/** Value of the `size` field: the bytes the format defines; the rest of the 512 is zero. */
const DEFINED_BYTES = 96;

const FIELD = {
  size: 24,
  digest: 28,
  flags: 32,
  indexOffset: 40,
  blockCount: 48,
  plainSize: 56,
  indexChecksum: 64,
  blockSize: 72,
  algorithm: 76,
  dictionaryBytes: 84,
  checksum: 88,
} as const;

/** Bits of `flags`; readers must ignore all others, which old files fill with garbage (section 2.1). */
export const FLAG = { header: 1, data: 2, sealed: 4, overwritten: 8, digested: 16 } as const;

/** The three blocks a writer produces: the header as first written, the trailer, and the header written once more. */
export const BLOCK_FLAGS = {
  header: FLAG.header | FLAG.data | FLAG.digested,
  trailer: FLAG.data | FLAG.sealed | FLAG.digested,
  overwrittenHeader: FLAG.header | FLAG.data | FLAG.overwritten | FLAG.digested,
} as const;

export interface ZFileHeader {
  /** Combination of `FLAG`s. */
  readonly flags: number;
  /** Offset of the jump table in the ZFile stream, in bytes. */
  readonly indexOffset: number;
  /** Entries of the jump table, which is the number of blocks. */
  readonly blockCount: number;
  /** Uncompressed size in bytes. */
  readonly plainSize: number;
  /** Checksum of the jump table's bytes. */
  readonly indexChecksum: number;
  /** Uncompressed bytes in a block. */
  readonly blockSize: number;
  /** 1 = LZ4, 2 = zstd. */
  readonly algorithm: number;
  /** Bytes between the header and the first block; 0 in every file known. */
  readonly dictionaryBytes: number;
  /** Blocks carry a checksum. */
  readonly checksum: boolean;
}

/** The block as it is stored, with its digest. */
export function encodeHeader(header: ZFileHeader): Uint8Array {
  const bytes = new Uint8Array(HEADER_BYTES);
  const view = new DataView(bytes.buffer);
  bytes.set(MAGIC);
  view.setUint32(FIELD.size, DEFINED_BYTES, true);
  view.setUint32(FIELD.flags, header.flags, true);
  writeUint64(view, FIELD.indexOffset, header.indexOffset);
  writeUint64(view, FIELD.blockCount, header.blockCount);
  writeUint64(view, FIELD.plainSize, header.plainSize);
  view.setUint32(FIELD.indexChecksum, header.indexChecksum, true);
  view.setUint32(FIELD.blockSize, header.blockSize, true);
  view.setUint8(FIELD.algorithm, header.algorithm);
  view.setUint32(FIELD.dictionaryBytes, header.dictionaryBytes, true);
  view.setUint8(FIELD.checksum, header.checksum ? 1 : 0);
  view.setUint32(FIELD.digest, digest(bytes), true);
  return bytes;
}

/** Whether the block starts like a ZFile header or trailer. */
export function hasMagic(block: Uint8Array): boolean {
  return block.length >= MAGIC.length && MAGIC.equals(block.subarray(0, MAGIC.length));
}

/** Whether the digest is right; true for old files that have none. */
export function isIntact(block: Uint8Array): boolean {
  const view = viewOf(block);
  if ((view.getUint32(FIELD.flags, true) & FLAG.digested) === 0) return true;
  return view.getUint32(FIELD.digest, true) === digest(block);
}

/**
 * The fields of a 512-byte block whose magic has been checked. Values are as stored, not judged.
 * @throws OverlaybdError E_CORRUPT for a number of 2^53 or more; `name` says what is being read.
 */
export function decodeHeader(block: Uint8Array, name: string): ZFileHeader {
  const view = viewOf(block);
  return {
    flags: view.getUint32(FIELD.flags, true),
    indexOffset: readUint64(view, FIELD.indexOffset, name),
    blockCount: readUint64(view, FIELD.blockCount, name),
    plainSize: readUint64(view, FIELD.plainSize, name),
    indexChecksum: view.getUint32(FIELD.indexChecksum, true),
    blockSize: view.getUint32(FIELD.blockSize, true),
    algorithm: view.getUint8(FIELD.algorithm),
    dictionaryBytes: view.getUint32(FIELD.dictionaryBytes, true),
    checksum: view.getUint8(FIELD.checksum) !== 0,
  };
}

/** Raw CRC-32C of the whole block with the digest itself taken as zero (section 4.1). */
function digest(block: Uint8Array): number {
  // Not slice(): a Buffer's would share the memory.
  const copy = Uint8Array.from(block.subarray(0, HEADER_BYTES));
  copy.fill(0, FIELD.digest, FIELD.digest + 4);
  return crc32c(copy);
}

function viewOf(block: Uint8Array): DataView {
  return new DataView(block.buffer, block.byteOffset, HEADER_BYTES);
}

function writeUint64(view: DataView, at: number, value: number): void {
  view.setUint32(at, value % 2 ** 32, true);
  view.setUint32(at + 4, Math.floor(value / 2 ** 32), true);
}

function readUint64(view: DataView, at: number, name: string): number {
  const value = view.getUint32(at + 4, true) * 2 ** 32 + view.getUint32(at, true);
  if (!Number.isSafeInteger(value)) {
    throw new OverlaybdError(
      "E_CORRUPT",
      `${name}: the ZFile header holds an impossible number at byte ${at}`,
    );
  }
  return value;
}
