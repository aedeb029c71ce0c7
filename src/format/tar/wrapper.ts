/**
 * The tar wrapper of a layer blob (tar-wrapper.md): registries and image tools want a layer to be a tar archive, so the
 * blob is its single member. Not a general tar implementation.
 */
import { fstatSync } from "node:fs";
import { OverlaybdError } from "../../error.ts";
import { type Output, writeAt, writing } from "../output.ts";
import type { ByteSource } from "../source.ts";
import { BLOCK_BYTES, checksumFits, FIELD, type Field, FieldError, numberField } from "./header.ts";
import { type PaxAttributes, readPax } from "./pax.ts";

/** Where the blob starts in archives we write: behind header and data of the PAX record and the member's header. */
const BLOB_START = 3 * BLOCK_BYTES;
const END_OF_ARCHIVE = new Uint8Array(2 * BLOCK_BYTES);
/** Extended headers worth reading in front of the blob; a record naming a size is some twenty bytes long. */
const MAX_EXTENSION_BYTES = 1 << 20;
const MAX_EXTENSIONS = 16;

/** Where a layer's bytes lie in a blob. */
export interface BlobRange {
  /** Offset of the first byte. */
  readonly start: number;
  /** Length in bytes. */
  readonly size: number;
}

/**
 * The layer inside `source`: what the tar that wraps it holds, or all of it when it is no ustar or PAX archive. Unlike
 * upstream's reader, follows extended headers of any length and number (section 3).
 * @throws OverlaybdError E_CORRUPT when the archive is cut off or damaged, E_LIMIT when its headers are absurdly long;
 * and what reading the source throws.
 */
export async function unwrapTar(source: ByteSource): Promise<BlobRange> {
  if (source.size >= BLOCK_BYTES) {
    const header = await source.read(0, BLOCK_BYTES);
    if (isTarHeader(header)) return firstMember(source, header);
  }
  return { start: 0, size: source.size };
}

/** The content of the archive's first member, whose header, or one that extends it, is `first`. */
async function firstMember(source: ByteSource, first: Uint8Array): Promise<BlobRange> {
  let header = first;
  let start = BLOCK_BYTES;
  const attributes: PaxAttributes = {};
  for (let extensions = 0; isExtension(header); extensions++) {
    const length = sizeField(source, header);
    if (length > MAX_EXTENSION_BYTES || extensions === MAX_EXTENSIONS) {
      throw new OverlaybdError(
        "E_LIMIT",
        `${source.name}: more tar headers before the layer than can be needed`,
      );
    }
    const next = start + Math.ceil(length / BLOCK_BYTES) * BLOCK_BYTES;
    if (next + BLOCK_BYTES > source.size)
      throw corrupt(source, "the tar around the layer ends in its headers");
    if (isPax(header)) {
      const records = Buffer.from(await source.read(start, length));
      judging(source, () => readPax(records, attributes));
    }
    header = await source.read(next, BLOCK_BYTES);
    start = next + BLOCK_BYTES;
  }
  const size = attributes.size || sizeField(source, header);
  if (start + size > source.size) {
    throw corrupt(
      source,
      `the tar says its layer has ${size} bytes, but only ${source.size - start} are there`,
    );
  }
  return { start, size };
}

/**
 * Wraps what is written to a new file between `begin` and `finish` in a tar, byte for byte as upstream does. The size is
 * known last but stands first, so until then the file starts with a placeholder that no reader takes for a tar.
 */
export class TarWrapper {
  private finished = false;

  constructor(private readonly output: Output) {}

  /** Writes the placeholder; returns the offset at which the blob has to start. */
  begin(): number {
    const record = paxRecord(0);
    this.writeHeaders(paxHeader(record), record, member("overlaybd.new", "xxtar", "xx", this.mode(), 0));
    return BLOB_START;
  }

  /** Puts the headers and the end of the archive around a blob of `size` bytes. Only the first call does anything. */
  finish(size: number): void {
    if (this.finished) return;
    this.finished = true;
    writeAt(this.output, END_OF_ARCHIVE, BLOB_START + Math.ceil(size / BLOCK_BYTES) * BLOCK_BYTES);
    const record = paxRecord(size);
    const pax = paxHeader(record);
    setText(pax, "magic", "ustar");
    setText(pax, "version", "00");
    setChecksum(pax);
    this.writeHeaders(pax, record, memberHeader("overlaybd.commit", this.mode(), 0));
  }

  private writeHeaders(pax: Uint8Array, record: Uint8Array, member: Uint8Array): void {
    const bytes = new Uint8Array(BLOB_START);
    bytes.set(pax);
    bytes.set(record, BLOCK_BYTES);
    bytes.set(member, 2 * BLOCK_BYTES);
    writeAt(this.output, bytes, 0);
  }

  private mode(): number {
    return writing(this.output.path, () => fstatSync(this.output.fd).mode);
  }
}

/** Header of the PAX record, not yet recognisable as one: magic, version and checksum are missing. */
function paxHeader(record: Uint8Array): Uint8Array {
  const header = new Uint8Array(BLOCK_BYTES);
  setText(header, "name", "overlaybd.pax");
  setNumber(header, "size", record.length);
  setText(header, "type", "x");
  return header;
}

/**
 * Header of a member (section 1.2): no time, owned by root. `size` is 0 for the layer's own, whose size only the PAX
 * record has.
 */
export function memberHeader(name: string, mode: number, size: number): Uint8Array {
  return member(name, "ustar", "00", mode, size);
}

function member(name: string, magic: string, version: string, mode: number, size: number): Uint8Array {
  const header = new Uint8Array(BLOCK_BYTES);
  setText(header, "name", name);
  setNumber(header, "mode", mode);
  setNumber(header, "uid", 0);
  setNumber(header, "gid", 0);
  setNumber(header, "size", size);
  setNumber(header, "mtime", 0);
  setText(header, "type", "0");
  setText(header, "magic", magic);
  setText(header, "version", version);
  setText(header, "userName", "root");
  setText(header, "groupName", "root");
  setChecksum(header);
  return header;
}

/** "LEN size=N\n", LEN counting itself (section 1.4). */
function paxRecord(size: number): Uint8Array {
  const rest = ` size=${size}\n`;
  let length = rest.length + 1;
  while (`${length}${rest}`.length !== length) length++;
  return Buffer.from(`${length}${rest}`);
}

function setText(header: Uint8Array, field: Field, text: string): void {
  header.set(Buffer.from(text), FIELD[field][0]);
}

/** Octal, padded with spaces on the left; 8-byte fields end with a space and NUL, 12-byte fields with a space (1.3). */
function setNumber(header: Uint8Array, field: Field, value: number): void {
  const [at, length] = FIELD[field];
  const digits = length === 8 ? 6 : 11;
  header.set(Buffer.from(`${value.toString(8).padStart(digits)} `), at);
}

/** Sum of all bytes, those of the checksum itself counted as spaces. */
function setChecksum(header: Uint8Array): void {
  const [at, length] = FIELD.checksum;
  header.fill(0x20, at, at + length);
  const sum = header.reduce((total, byte) => total + byte, 0);
  header[at + length - 1] = 0;
  setNumber(header, "checksum", sum);
}

/** Section 3: "ustar" (the sixth byte is not compared), version "00" and a right checksum; so not GNU's dialect. */
function isTarHeader(header: Uint8Array): boolean {
  const [at] = FIELD.magic;
  return (
    latin1(header, at, at + 5) === "ustar" &&
    latin1(header, at + 6, at + 8) === "00" &&
    checksumFits(header, 0)
  );
}

function isPax(header: Uint8Array): boolean {
  return /[xg]/.test(typeOf(header));
}

/** PAX headers and GNU's long names: they describe the member behind them. */
function isExtension(header: Uint8Array): boolean {
  return isPax(header) || /[LK]/.test(typeOf(header));
}

function typeOf(header: Uint8Array): string {
  return latin1(header, FIELD.type[0], FIELD.type[0] + 1);
}

function latin1(bytes: Uint8Array, start: number, end: number): string {
  return Buffer.from(bytes.subarray(start, end)).toString("latin1");
}

function sizeField(source: ByteSource, header: Uint8Array): number {
  const size = judging(source, () => numberField(header, 0, "size"));
  if (size < 0) throw corrupt(source, "the tar around the layer has a negative size");
  return size;
}

/** Runs a step of parsing; what a field holds wrongly becomes E_CORRUPT naming the source. */
function judging<T>(source: ByteSource, step: () => T): T {
  try {
    return step();
  } catch (error) {
    if (!(error instanceof FieldError)) throw error;
    throw corrupt(source, `the tar around the layer is damaged: ${error.message}`);
  }
}

function corrupt(source: ByteSource, what: string): OverlaybdError {
  return new OverlaybdError("E_CORRUPT", `${source.name}: ${what}`);
}
