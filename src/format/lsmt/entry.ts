/** The 16-byte index entry on disk (lsmt.md section 3). */
export const ENTRY_BYTES = 16;
/** `offset` of an entry that readers skip, wherever it stands. */
export const INVALID_OFFSET = 2 ** 50 - 1;

export interface IndexEntry {
  /** Virtual sector. */
  offset: number;
  /** Sectors, 0 to 16383. */
  length: number;
  /** Sector in the file that holds the data. Absurd values (2^53 and more) are imprecise but stay absurd. */
  moffset: number;
  /** The range reads as zeros and has no data. */
  zeroed: boolean;
  /** Written as zero and ignored by readers, but for TurboOCI layers. */
  tag: number;
}

/** Decodes the entry at byte `at` into `into`, so that reading a long index allocates nothing. */
export function decodeEntry(bytes: DataView, at: number, into: IndexEntry): void {
  const high0 = bytes.getUint32(at + 4, true);
  const high1 = bytes.getUint32(at + 12, true);
  into.offset = (high0 & 0x3ffff) * 2 ** 32 + bytes.getUint32(at, true);
  into.length = high0 >>> 18;
  into.moffset = (high1 & 0x7fffff) * 2 ** 32 + bytes.getUint32(at + 8, true);
  into.zeroed = (high1 & 0x800000) !== 0;
  into.tag = high1 >>> 24;
}

/** Encodes an entry with tag 0 at byte `at`. */
export function encodeEntry(
  bytes: DataView,
  at: number,
  offset: number,
  length: number,
  moffset: number,
  zeroed: boolean,
): void {
  bytes.setUint32(at, offset % 2 ** 32, true);
  bytes.setUint32(at + 4, ((length << 18) | Math.floor(offset / 2 ** 32)) >>> 0, true);
  bytes.setUint32(at + 8, moffset % 2 ** 32, true);
  bytes.setUint32(at + 12, (Math.floor(moffset / 2 ** 32) | (zeroed ? 0x800000 : 0)) >>> 0, true);
}

/** Encodes the invalid entry, which pads an index. */
export function encodeInvalidEntry(bytes: DataView, at: number): void {
  encodeEntry(bytes, at, INVALID_OFFSET, 0, 0, false);
}

/** First sector of every layer file's data section, behind the header. */
export const DATA_BEGIN_SECTOR = 8;

/** Whether the entry maps into a data section that ends at sector `end` (lsmt.md section 4 step 9). */
export function mapsInside(entry: IndexEntry, end: number): boolean {
  const { moffset, length, zeroed } = entry;
  if (zeroed) return moffset >= DATA_BEGIN_SECTOR && moffset <= end;
  return moffset >= DATA_BEGIN_SECTOR && moffset < end && moffset + length <= end;
}

/** For error messages. */
export function describeEntry(entry: IndexEntry): string {
  const { offset, length, moffset, zeroed } = entry;
  return `${length} sectors at sector ${offset}, mapped to ${zeroed ? "zeros, " : ""}sector ${moffset}`;
}
