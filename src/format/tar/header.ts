/**
 * The 512-byte header block: V7, ustar (POSIX.1-1988), star and GNU share its first 257 bytes.
 * Everything here reads from a buffer in place; nothing reads beyond the block.
 */
export const BLOCK_BYTES = 512;

/** A header's field holds what no writer means: the message says which. */
export class FieldError extends Error {
  override readonly name = "FieldError";
}

const SPACE = 0x20;
const CHECKSUM_AT = 148;
const CHECKSUM_END = 156;

/** Where the fields lie: [offset, length]. The names are those of POSIX's `struct posix_header` and GNU's. */
export const FIELD = {
  name: [0, 100],
  mode: [100, 8],
  uid: [108, 8],
  gid: [116, 8],
  size: [124, 12],
  mtime: [136, 12],
  checksum: [148, 8],
  type: [156, 1],
  linkname: [157, 100],
  magic: [257, 6],
  version: [263, 2],
  userName: [265, 32],
  groupName: [297, 32],
  devmajor: [329, 8],
  devminor: [337, 8],
  prefix: [345, 155],
  /** star's prefix is shorter: access and change times follow it. */
  starPrefix: [345, 131],
  gnuRealSize: [483, 12],
} as const;

export type Field = keyof typeof FIELD;

export function isZeroBlock(bytes: Uint8Array, at: number): boolean {
  for (let i = at; i < at + BLOCK_BYTES; i++) if (bytes[i] !== 0) return false;
  return true;
}

/** Whether the checksum fits, taken over unsigned bytes as POSIX says or signed ones as old writers did. */
export function checksumFits(bytes: Uint8Array, at: number): boolean {
  let sum = 0;
  let high = 0;
  const end = at + BLOCK_BYTES;
  for (let i = at; i < end; i++) {
    const byte = bytes[i];
    sum += byte;
    high += byte >>> 7;
  }
  // The checksum field itself counts as spaces.
  for (let i = at + CHECKSUM_AT; i < at + CHECKSUM_END; i++) {
    sum += SPACE - bytes[i];
    high -= bytes[i] >>> 7;
  }
  const stored = octal(bytes, at + CHECKSUM_AT, CHECKSUM_END - CHECKSUM_AT);
  return stored === sum || stored === sum - 256 * high;
}

/** A number field: octal text, or GNU base-256. @throws FieldError when it is neither, or beyond 2^53. */
export function numberField(bytes: Uint8Array, at: number, field: Field): number {
  const [offset, length] = FIELD[field];
  const first = bytes[at + offset];
  const value = first & 0x80 ? base256(bytes, at + offset, length) : octal(bytes, at + offset, length);
  if (!Number.isSafeInteger(value)) throw new FieldError(`the ${field} field holds no usable number`);
  return value;
}

/** Octal digits between optional spaces, ended by a space, a NUL or the field's end; empty is 0, anything else NaN. */
export function octal(bytes: Uint8Array, start: number, length: number): number {
  const end = start + length;
  let i = start;
  while (i < end && bytes[i] === SPACE) i++;
  let value = 0;
  for (; i < end; i++) {
    const digit = bytes[i] - 0x30;
    if (digit < 0 || digit > 7) break;
    value = value * 8 + digit;
  }
  return i === end || bytes[i] === 0 || bytes[i] === SPACE ? value : Number.NaN;
}

/** Big-endian two's complement under a marker bit; exact up to 2^53, beyond it merely out of the safe range. */
function base256(bytes: Uint8Array, start: number, length: number): number {
  const first = bytes[start] & 0x7f;
  let value = first & 0x40 ? first - 0x80 : first;
  for (let i = start + 1; i < start + length; i++) value = value * 256 + bytes[i];
  return value;
}

/** A text field up to its first NUL, as a byte string. */
export function textField(bytes: Buffer, at: number, field: Field): string {
  const [offset, length] = FIELD[field];
  const start = at + offset;
  let end = start;
  while (end < start + length && bytes[end] !== 0) end++;
  return bytes.toString("latin1", start, end);
}

/** The member's name as this block alone tells it. Only POSIX's ustar ("ustar" and a NUL) has a prefix. */
export function headerName(bytes: Buffer, at: number): string {
  const name = textField(bytes, at, "name");
  if (bytes[at + FIELD.prefix[0]] === 0 || !matches(bytes, at + 257, "ustar\0")) return name;
  const prefix = textField(bytes, at, matches(bytes, at + 508, "tar\0") ? "starPrefix" : "prefix");
  return prefix === "" ? name : `${prefix}/${name}`;
}

function matches(bytes: Uint8Array, at: number, text: string): boolean {
  for (let i = 0; i < text.length; i++) if (bytes[at + i] !== text.charCodeAt(i)) return false;
  return true;
}
