/**
 * The 4096-byte block at both ends of a layer (lsmt.md section 2). Header and trailer differ only in flags and in
 * which fields are meaningful.
 */
import { OverlaybdError } from "../../error.ts";
import { NULL_UUID, parseUuid } from "./uuid.ts";

export const HEADER_BYTES = 4096;
/** Longest user tag (commit message), in bytes of UTF-8. */
const MAX_USER_TAG_BYTES = 256;

const MAGIC = Buffer.from("4c534d5400010200657e63d29444084ca2d2c8ec4fcfae8a", "hex");
const DEFINED_BYTES = 390;
const UUID_BYTES = 37;

/** Bits of `flags` (lsmt.md section 2.1). */
export const Flag = { header: 0x01, data: 0x02, sealed: 0x04, sparse: 0x10 } as const;

export interface LayerHeader {
  readonly flags: number;
  /** Byte offset of the index; 0 in the header of a blob. */
  readonly indexOffset: number;
  /** Number of index entries, padding included. */
  readonly indexCount: number;
  /** Size of the virtual disk in bytes. */
  readonly size: number;
  /** Canonical UUIDs; unparsable text on disk is the null UUID. */
  readonly uuid: string;
  readonly parentUuid: string;
  readonly userTag: string;
}

/** Byte offset of the virtual size in a header block, for changing it in place (lsmt.md section 6.5). */
export const SIZE_OFFSET = 48;

/** @throws OverlaybdError E_LIMIT when the user tag is longer than 256 bytes. */
export function encodeHeader(header: LayerHeader): Uint8Array {
  const userTag = Buffer.from(header.userTag);
  if (userTag.length > MAX_USER_TAG_BYTES) {
    throw new OverlaybdError(
      "E_LIMIT",
      `the layer's message has ${userTag.length} bytes, at most ${MAX_USER_TAG_BYTES} fit`,
    );
  }
  const block = Buffer.alloc(HEADER_BYTES);
  MAGIC.copy(block);
  block.writeUInt32LE(DEFINED_BYTES, 24);
  block.writeUInt32LE(header.flags, 28);
  writeNumber(block, header.indexOffset, 32);
  writeNumber(block, header.indexCount, 40);
  writeNumber(block, header.size, SIZE_OFFSET);
  block.write(header.uuid, 56, "latin1");
  block.write(header.parentUuid, 93, "latin1");
  block[132] = 1;
  block[133] = 1;
  userTag.copy(block, 134);
  return block;
}

/**
 * Decodes a header or trailer block and checks its flags: bits of `required` set, bits of `forbidden` clear.
 * @param place where the block stands, for the error message: "header of /path".
 * @throws OverlaybdError E_CORRUPT when it is not such a block.
 */
export function decodeHeader(bytes: Uint8Array, place: string, required: number, forbidden = 0): LayerHeader {
  const block = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (block.length < HEADER_BYTES || !hasMagic(block)) {
    throw new OverlaybdError("E_CORRUPT", `${place}: not an LSMT layer (wrong magic)`);
  }
  const flags = block.readUInt32LE(28);
  if ((flags & required) !== required || (flags & forbidden) !== 0) {
    throw new OverlaybdError(
      "E_CORRUPT",
      `${place}: flags are ${hex(flags)}, want ${hex(required)} set and ${hex(forbidden)} clear`,
    );
  }
  return {
    flags,
    indexOffset: readNumber(block, 32, `${place}: index offset`),
    indexCount: readNumber(block, 40, `${place}: index size`),
    size: readNumber(block, SIZE_OFFSET, `${place}: virtual size`),
    uuid: parseUuid(text(block, 56, UUID_BYTES)) ?? NULL_UUID,
    parentUuid: parseUuid(text(block, 93, UUID_BYTES)) ?? NULL_UUID,
    userTag: text(block, 134, MAX_USER_TAG_BYTES),
  };
}

function hasMagic(bytes: Uint8Array): boolean {
  return MAGIC.every((byte, i) => bytes[i] === byte);
}

/** Text up to the first NUL or the end of its field. */
function text(block: Buffer, offset: number, length: number): string {
  const field = block.subarray(offset, offset + length);
  const end = field.indexOf(0);
  return field.toString("utf8", 0, end < 0 ? length : end);
}

const hex = (flags: number): string => `0x${flags.toString(16)}`;

/** Writes a 64-bit little-endian number below 2^53. */
export function writeNumber(block: Buffer, value: number, offset: number): void {
  block.writeUInt32LE(value % 2 ** 32, offset);
  block.writeUInt32LE(Math.floor(value / 2 ** 32), offset + 4);
}

function readNumber(block: Buffer, offset: number, what: string): number {
  const value = block.readUInt32LE(offset + 4) * 2 ** 32 + block.readUInt32LE(offset);
  if (!Number.isSafeInteger(value)) throw new OverlaybdError("E_CORRUPT", `${what} is absurd: ${value}`);
  return value;
}
