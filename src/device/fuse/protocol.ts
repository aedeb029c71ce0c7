/**
 * The FUSE protocol 7.31 as values: requests out of, replies into a `DataView` (host byte order). Offsets are those of
 * the structs in linux/fuse.h, which each function names; a reply's payload starts behind its struct fuse_out_header.
 */
import { endianness } from "node:os";

const LITTLE = endianness() === "LE";
const TWO_32 = 2 ** 32;

export const VERSION = { major: 7, minor: 31 } as const;

/** enum fuse_opcode, as far as it is served. */
export const Opcode = {
  LOOKUP: 1,
  FORGET: 2,
  GETATTR: 3,
  OPEN: 14,
  READ: 15,
  WRITE: 16,
  STATFS: 17,
  RELEASE: 18,
  FSYNC: 20,
  FLUSH: 25,
  INIT: 26,
  OPENDIR: 27,
  READDIR: 28,
  RELEASEDIR: 29,
  FSYNCDIR: 30,
  ACCESS: 34,
  INTERRUPT: 36,
  DESTROY: 38,
  BATCH_FORGET: 42,
  FALLOCATE: 43,
} as const;

/** Flags of INIT (FUSE_*) that are asked for where the kernel has them. */
export const InitFlag = {
  ASYNC_READ: 1 << 0,
  BIG_WRITES: 1 << 5,
  ASYNC_DIO: 1 << 15,
  MAX_PAGES: 1 << 22,
} as const;

/** FOPEN_*. */
export const OpenFlag = { DIRECT_IO: 1 << 0, PARALLEL_DIRECT_WRITES: 1 << 6 } as const;

/** Bytes of struct fuse_in_header: a request's body starts here. */
export const IN_HEADER = 40;
/** Bytes of struct fuse_out_header: a reply's payload starts here. */
export const OUT_HEADER = 16;

/** A request's number, a 64-bit value only ever copied. */
export interface Unique {
  readonly low: number;
  readonly high: number;
}

function u32(view: DataView, at: number): number {
  return view.getUint32(at, LITTLE);
}

/** A 64-bit field as a double; beyond 2^53, where no disk reaches, it is not exact. */
function u64(view: DataView, at: number): number {
  const low = u32(view, LITTLE ? at : at + 4);
  return u32(view, LITTLE ? at + 4 : at) * TWO_32 + low;
}

function unique(view: DataView, at: number): Unique {
  return { low: u32(view, LITTLE ? at : at + 4), high: u32(view, LITTLE ? at + 4 : at) };
}

/** struct fuse_in_header. */
export const request = {
  length: (view: DataView) => u32(view, 0),
  opcode: (view: DataView) => u32(view, 4),
  unique: (view: DataView) => unique(view, 8),
  node: (view: DataView) => u64(view, 16),
};

/**
 * Bytes that a request of `opcode` must at least have behind its header: the size of the struct that is decoded from
 * it. Kernels append to structs, so more is fine.
 */
export function leastBody(opcode: number): number {
  switch (opcode) {
    case Opcode.INIT:
      return 16;
    case Opcode.READ:
    case Opcode.READDIR:
    case Opcode.WRITE:
      return 40;
    case Opcode.FALLOCATE:
      return 32;
    case Opcode.OPEN:
    case Opcode.OPENDIR:
    case Opcode.INTERRUPT:
      return 8;
    case Opcode.LOOKUP:
      return 2;
    default:
      return 0;
  }
}

/** struct fuse_init_in. */
export function decodeInit(view: DataView) {
  return {
    major: u32(view, IN_HEADER),
    minor: u32(view, IN_HEADER + 4),
    maxReadahead: u32(view, IN_HEADER + 8),
    flags: u32(view, IN_HEADER + 12),
  };
}

/** LOOKUP's body: a name that ends with a NUL. */
export function decodeName(view: DataView): string {
  const bytes = new Uint8Array(view.buffer, view.byteOffset + IN_HEADER, request.length(view) - IN_HEADER);
  const end = bytes.indexOf(0);
  return new TextDecoder().decode(end < 0 ? bytes : bytes.subarray(0, end));
}

/** struct fuse_open_in: the flags of open(2). */
export function decodeOpenFlags(view: DataView): number {
  return u32(view, IN_HEADER);
}

/** struct fuse_read_in, fuse_write_in: where and how much, in bytes. */
export function decodeRange(view: DataView): { offset: number; length: number } {
  return { offset: u64(view, IN_HEADER + 8), length: u32(view, IN_HEADER + 16) };
}

/** struct fuse_fallocate_in. */
export function decodeFallocate(view: DataView): { offset: number; length: number; mode: number } {
  return {
    offset: u64(view, IN_HEADER + 8),
    length: u64(view, IN_HEADER + 16),
    mode: u32(view, IN_HEADER + 24),
  };
}

/** struct fuse_interrupt_in: the request that nobody waits for any more. */
export function decodeInterrupt(view: DataView): Unique {
  return unique(view, IN_HEADER);
}

/** Fills struct fuse_out_header for `payload` bytes behind it and returns the reply's length. */
export function encodeHeader(view: DataView, to: Unique, errno: number, payload: number): number {
  view.setUint32(0, OUT_HEADER + payload, LITTLE);
  view.setInt32(4, -errno, LITTLE);
  view.setUint32(LITTLE ? 8 : 12, to.low, LITTLE);
  view.setUint32(LITTLE ? 12 : 8, to.high, LITTLE);
  return OUT_HEADER + payload;
}

/** Writes the fields of one reply struct in order; every struct starts from zeros. */
class Encoder {
  private at = OUT_HEADER;

  constructor(
    private readonly view: DataView,
    size: number,
  ) {
    new Uint8Array(view.buffer, view.byteOffset + OUT_HEADER, size).fill(0);
  }

  u16(value: number): this {
    this.view.setUint16(this.at, value, LITTLE);
    this.at += 2;
    return this;
  }

  u32(value: number): this {
    this.view.setUint32(this.at, value, LITTLE);
    this.at += 4;
    return this;
  }

  u64(value: number): this {
    this.view.setBigUint64(this.at, BigInt(value), LITTLE);
    this.at += 8;
    return this;
  }

  skip(bytes: number): this {
    this.at += bytes;
    return this;
  }
}

export interface InitReply {
  readonly flags: number;
  readonly maxReadahead: number;
  readonly maxBackground: number;
  /** The longest write, and with it the longest read, in bytes. */
  readonly maxWrite: number;
}

const PAGE = 4096;

/** struct fuse_init_out. Returns its size, as all encoders do. */
export function encodeInit(view: DataView, reply: InitReply): number {
  new Encoder(view, 64)
    .u32(VERSION.major)
    .u32(VERSION.minor)
    .u32(reply.maxReadahead)
    .u32(reply.flags)
    .u16(reply.maxBackground)
    .u16(reply.maxBackground)
    .u32(reply.maxWrite)
    .u32(1) // time_gran, nanoseconds
    .u16(reply.maxWrite / PAGE);
  return 64;
}

export interface Attributes {
  readonly node: number;
  readonly size: number;
  /** File type and permissions, as st_mode. */
  readonly mode: number;
  readonly links: number;
}

function attributes(encoder: Encoder, a: Attributes): void {
  encoder
    .u64(a.node)
    .u64(a.size)
    .u64(Math.ceil(a.size / 512));
  encoder.skip(36); // times: the epoch
  encoder.u32(a.mode).u32(a.links).skip(12).u32(PAGE);
}

/** How long the kernel may keep names and attributes, in seconds: they never change. */
const VALID_SECONDS = 86_400;

/** struct fuse_entry_out. */
export function encodeEntry(view: DataView, a: Attributes): number {
  const encoder = new Encoder(view, 128).u64(a.node).u64(0).u64(VALID_SECONDS).u64(VALID_SECONDS).skip(8);
  attributes(encoder, a);
  return 128;
}

/** struct fuse_attr_out. */
export function encodeAttributes(view: DataView, a: Attributes): number {
  attributes(new Encoder(view, 104).u64(VALID_SECONDS).skip(8), a);
  return 104;
}

/** struct fuse_open_out, file handle 0. */
export function encodeOpen(view: DataView, flags: number): number {
  new Encoder(view, 16).u64(0).u32(flags);
  return 16;
}

/** struct fuse_write_out. */
export function encodeWritten(view: DataView, bytes: number): number {
  new Encoder(view, 8).u32(bytes);
  return 8;
}

/** struct fuse_statfs_out of a full, one-file file system of `size` bytes. */
export function encodeStatfs(view: DataView, size: number): number {
  new Encoder(view, 80)
    .u64(Math.ceil(size / PAGE))
    .u64(0)
    .u64(0)
    .u64(1)
    .u64(0)
    .u32(PAGE)
    .u32(255)
    .u32(PAGE);
  return 80;
}

export interface DirectoryEntry {
  readonly node: number;
  readonly name: string;
  /** DT_DIR 4, DT_REG 8. */
  readonly type: number;
}

/** As many struct fuse_dirent as fit in `capacity` bytes, from entry `from` on. */
export function encodeDirectory(
  view: DataView,
  entries: readonly DirectoryEntry[],
  from: number,
  capacity: number,
): number {
  let size = 0;
  for (let i = from; i < entries.length; i++) {
    const { node, name, type } = entries[i];
    const bytes = new TextEncoder().encode(name);
    const padded = Math.ceil((24 + bytes.length) / 8) * 8;
    if (size + padded > capacity) break;
    const entry = new DataView(view.buffer, view.byteOffset + size, OUT_HEADER + padded);
    new Encoder(entry, padded)
      .u64(node)
      .u64(i + 1)
      .u32(bytes.length)
      .u32(type);
    new Uint8Array(entry.buffer, entry.byteOffset + OUT_HEADER + 24).set(bytes);
    size += padded;
  }
  return size;
}
