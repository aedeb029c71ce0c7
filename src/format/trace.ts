/**
 * Traces: which bytes of which layers were read, in order (cache-download-prefetch.md section 6.2). A header and records
 * of 24 bytes each, little-endian; what is padding may hold anything, and counts for the checksum all the same.
 */
import { OverlaybdError } from "../error.ts";
import { crc32c } from "../native/codec.ts";

/** The first 32 bits of a trace. */
const MAGIC = 0xc2ef1820;
const HEADER_BYTES = 24;
const RECORD_BYTES = 24;
const READ = 0x52;
const WRITE = 0x57;

/** Longest trace that is read: 64 MiB, 2.8 million records. */
export const MAX_TRACE_BYTES = 64 << 20;
/** Upstream replays a record into a buffer of this size, so longer reads are written as several records. */
const MAX_RECORD_LENGTH = 1 << 20;

/** Reads, in the order in which they were completed. Entry i of each array belongs to read i < `count`. */
export interface Trace {
  readonly count: number;
  /** Positions in the stack, 0 = bottom. */
  readonly layers: Uint8Array | Uint32Array;
  /** Bytes, in the uncompressed layer (its LSMT stream). */
  readonly offsets: Float64Array;
  /** Bytes. */
  readonly lengths: Float64Array;
}

/** Whether `bytes` begin as a trace does. */
export function isTrace(bytes: Uint8Array): boolean {
  return bytes.length >= 4 && view(bytes).getUint32(0, true) === MAGIC;
}

/**
 * Reads a trace. Offsets and lengths are as they stand: whoever replays it knows the layers' sizes.
 * @throws OverlaybdError E_CORRUPT when it is not one or damaged; E_LIMIT above `MAX_TRACE_BYTES`.
 */
export function decodeTrace(bytes: Uint8Array, name: string): Trace {
  if (bytes.length > MAX_TRACE_BYTES) {
    throw new OverlaybdError(
      "E_LIMIT",
      `trace ${name}: ${bytes.length} bytes; at most ${MAX_TRACE_BYTES} are read`,
    );
  }
  const fields = view(bytes);
  if (!isTrace(bytes) || bytes.length < HEADER_BYTES)
    throw corrupt(name, "it does not begin as a trace does");
  const dataBytes = fields.getUint32(8, true) + fields.getUint32(12, true) * 2 ** 32;
  if (dataBytes !== bytes.length - HEADER_BYTES || dataBytes % RECORD_BYTES !== 0) {
    const sizes = `${dataBytes} bytes of records are announced and ${bytes.length - HEADER_BYTES} there`;
    throw corrupt(name, `${sizes}; was recording interrupted?`);
  }
  if (crc32c(bytes.subarray(HEADER_BYTES)) !== fields.getUint32(16, true)) {
    throw corrupt(name, "its checksum does not match");
  }
  return decodeRecords(fields, dataBytes / RECORD_BYTES, name);
}

function decodeRecords(fields: DataView, records: number, name: string): Trace {
  const layers = new Uint32Array(records);
  const offsets = new Float64Array(records);
  const lengths = new Float64Array(records);
  let count = 0;
  for (let i = 0; i < records; i++) {
    const at = HEADER_BYTES + i * RECORD_BYTES;
    const operation = fields.getUint8(at);
    // No tool writes these, but they have a number.
    if (operation === WRITE) continue;
    const high = fields.getInt32(at + 20, true);
    if (operation !== READ || high < 0) throw corrupt(name, `record ${i} makes no sense`);
    layers[count] = fields.getUint32(at + 4, true);
    lengths[count] = fields.getUint32(at + 8, true) + fields.getUint32(at + 12, true) * 2 ** 32;
    offsets[count++] = fields.getUint32(at + 16, true) + high * 2 ** 32;
  }
  return { count, layers, offsets, lengths };
}

/** Writes a trace that every upstream version can replay. */
export function encodeTrace({ count, layers, offsets, lengths }: Trace): Uint8Array {
  let records = 0;
  for (let i = 0; i < count; i++) records += Math.ceil(lengths[i] / MAX_RECORD_LENGTH);
  const bytes = new Uint8Array(HEADER_BYTES + records * RECORD_BYTES);
  const fields = view(bytes);
  let at = HEADER_BYTES;
  for (let i = 0; i < count; i++) {
    for (let done = 0; done < lengths[i]; done += MAX_RECORD_LENGTH) {
      const offset = offsets[i] + done;
      fields.setUint8(at, READ);
      fields.setUint32(at + 4, layers[i], true);
      fields.setUint32(at + 8, Math.min(lengths[i] - done, MAX_RECORD_LENGTH), true);
      fields.setUint32(at + 16, offset % 2 ** 32, true);
      fields.setUint32(at + 20, Math.floor(offset / 2 ** 32), true);
      at += RECORD_BYTES;
    }
  }
  fields.setUint32(0, MAGIC, true);
  fields.setUint32(8, records * RECORD_BYTES, true);
  fields.setUint32(16, crc32c(bytes.subarray(HEADER_BYTES)), true);
  return bytes;
}

function view(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

function corrupt(name: string, what: string): OverlaybdError {
  return new OverlaybdError("E_CORRUPT", `trace ${name}: ${what}`);
}
