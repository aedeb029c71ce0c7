/**
 * Reads a tar archive from a stream: one member after the other, each with its content as pieces of the stream's own
 * memory. Knows V7, ustar, star's prefix, PAX and GNU archives, sparse files included.
 *
 * Where archives differ from what other unpackers read, the choice is this:
 * - Two zero blocks, or the end of the stream where a header could be, end the archive. The rest of the stream is read to its
 *   end and dropped, so that checksums and digests behind it get verified.
 * - PAX global headers are read and ignored, as containerd and upstream do.
 * - The type flag decides what a member is. Mode bits are asked only for a NUL (V7) or unknown flag.
 * - Content belongs to regular files only; the size field of other members is ignored, as in GNU tar.
 * - Absolute names are relative to the root. Names that lead out of it are an error. A member named "/" is skipped.
 * - Padding may be missing at the end of the stream; content may not.
 */
import { constants } from "node:fs";
import { getSystemErrorName } from "node:util";
import { OverlaybdError } from "../../error.ts";
import type { ByteStream } from "../../native/bytestream.ts";
import { StreamError } from "../../native/inflate.ts";
import { Blocks } from "./blocks.ts";
import type { EntryType, Piece, SparseExtent, TarEntry } from "./entry.ts";
import {
  BLOCK_BYTES,
  checksumFits,
  FieldError,
  headerName,
  isZeroBlock,
  numberField,
  textField,
} from "./header.ts";
import { cleanName, escapesRoot, MAX_ELEMENT_BYTES, MAX_PATH_BYTES } from "./name.ts";
import { type PaxAttributes, readPax } from "./pax.ts";
import { checkedExtents, EXTENSION_MAP, HEADER_MAP, readOldMap, TextMap } from "./sparse.ts";

/** Bound on all that describes one member besides its header: PAX records, long names, sparse maps. */
export const MAX_EXTENSION_BYTES = 1 << 20;

const FLAG = {
  nul: 0,
  file: 0x30,
  hardlink: 0x31,
  contiguous: 0x37,
  longLink: 0x4b,
  longName: 0x4c,
  gnuSparse: 0x53,
  paxGlobal: 0x67,
  pax: 0x78,
} as const;

/** By type flag. */
const TYPES: Record<number, EntryType> = {
  [FLAG.file]: "file",
  [FLAG.hardlink]: "hardlink",
  50: "symlink",
  51: "character",
  52: "block",
  53: "directory",
  54: "fifo",
  [FLAG.contiguous]: "file",
  [FLAG.gnuSparse]: "file",
};

/** By the file type bits of the mode field. */
const MODE_TYPES: Record<number, EntryType> = {
  [constants.S_IFDIR]: "directory",
  [constants.S_IFREG]: "file",
  [constants.S_IFLNK]: "symlink",
  [constants.S_IFCHR]: "character",
  [constants.S_IFBLK]: "block",
  [constants.S_IFIFO]: "fifo",
};

const MAX_ID = 2 ** 32 - 1;
/** What the extension members before a member say about it. */
interface Extensions extends PaxAttributes {
  longName?: string;
  longLink?: string;
}

export class TarReader {
  readonly #blocks: Blocks;
  /** Of the current member. */
  #entryName = "";
  #extensionBytes = 0;
  /** Content of the current member not yet handed out, and the padding after it. */
  #left = 0;
  #padding = 0;
  #extents: readonly SparseExtent[] | null = null;
  #extent = 0;
  /** Where the next piece lies: in the file, or in the current extent of a sparse one. */
  #offset = 0;

  /**
   * @param stream Chunks whose lengths are multiples of 512, the last one's excepted. The caller closes it.
   * @param name What to call the archive in messages.
   */
  constructor(
    stream: ByteStream,
    readonly name: string,
  ) {
    this.#blocks = new Blocks(stream);
  }

  /**
   * The next member, or null at the end of the archive. What is left of the member before is skipped.
   * @throws OverlaybdError E_CORRUPT, E_LIMIT, E_UNSUPPORTED or E_IO, naming the archive, the member and the place.
   */
  next(): TarEntry | null {
    try {
      this.#skipContent();
      for (;;) {
        const entry = this.#blocks.ended ? null : this.#readMember();
        if (entry === null || entry.path !== "/") return entry;
        this.#skipContent();
      }
    } catch (error) {
      throw this.#explain(error);
    }
  }

  /**
   * The next piece of the current member's content, or null when that is all. Pieces come in ascending order, and leave out
   * the holes of a sparse file.
   */
  read(): Piece | null {
    try {
      if (this.#left === 0) return null;
      this.#wantContent();
      let length = Math.min(this.#left, this.#blocks.available);
      let offset = this.#offset;
      if (this.#extents) {
        const extent = this.#extents[this.#extent];
        length = Math.min(length, extent.length - this.#offset);
        offset += extent.offset;
        if (this.#offset + length === extent.length) {
          this.#extent++;
          this.#offset = -length;
        }
      }
      const start = this.#blocks.at;
      this.#offset += length;
      this.#left -= length;
      this.#blocks.at += length;
      const bytes = this.#blocks.chunk.subarray(start, start + length);
      return { offset, length, address: this.#blocks.address + start, bytes };
    } catch (error) {
      throw this.#explain(error);
    }
  }

  /** A member with all that precedes it, or null at the end of the archive. */
  #readMember(): TarEntry | null {
    let extensions: Extensions | null = null;
    this.#extensionBytes = 0;
    this.#entryName = "";
    for (let zeros = 0; ; ) {
      if (!this.#blocks.wantBlock()) return this.#endArchive(extensions);
      const at = this.#blocks.at;
      const chunk = this.#blocks.chunk;
      if (chunk[at] === 0 && isZeroBlock(chunk, at)) {
        this.#blocks.at += BLOCK_BYTES;
        if (++zeros === 2) return this.#endArchive(extensions);
        continue;
      }
      zeros = 0;
      if (!checksumFits(chunk, at)) throw new FieldError("the header's checksum is wrong");
      const flag = chunk[at + 156];
      if (!isExtension(flag)) return this.#describe(flag, extensions);
      extensions = this.#readExtension(flag, extensions ?? {});
    }
  }

  /** Drains the stream: what follows the archive still counts for the digests and checksums of the stream. */
  #endArchive(extensions: Extensions | null): null {
    if (extensions) throw new FieldError("the archive ends after an extended header");
    do this.#blocks.at = this.#blocks.chunk.length;
    while (this.#blocks.advance());
    return null;
  }

  #readExtension(flag: number, extensions: Extensions): Extensions {
    const size = numberField(this.#blocks.chunk, this.#blocks.at, "size");
    this.#countExtension(BLOCK_BYTES);
    this.#blocks.at += BLOCK_BYTES;
    if (size < 0) throw new FieldError("an extended header has a negative size");
    const payload = this.#copyPayload(size);
    if (flag === FLAG.pax) readPax(payload, extensions);
    else if (flag === FLAG.longName) extensions.longName = untilNul(payload);
    else if (flag === FLAG.longLink) extensions.longLink = untilNul(payload);
    return extensions;
  }

  /** Payload of an extension, which may straddle chunks; its padding is skipped. */
  #copyPayload(size: number): Buffer {
    this.#countExtension(size);
    const payload = Buffer.allocUnsafe(size);
    for (let filled = 0; filled < size; filled += BLOCK_BYTES) {
      if (!this.#blocks.wantBlock()) throw new FieldError("the archive ends within an extended header");
      payload.set(
        this.#blocks.chunk.subarray(this.#blocks.at, this.#blocks.at + Math.min(BLOCK_BYTES, size - filled)),
        filled,
      );
      this.#blocks.at += BLOCK_BYTES;
    }
    return payload;
  }

  #countExtension(bytes: number): void {
    this.#extensionBytes += bytes;
    if (this.#extensionBytes > MAX_EXTENSION_BYTES)
      throw this.#failure(
        "E_LIMIT",
        `more than ${MAX_EXTENSION_BYTES} bytes of extended headers describe one member`,
      );
  }

  /** The member whose header is at the current place. Leaves the stream at its content. */
  #describe(flag: number, extensions: Extensions | null): TarEntry {
    const chunk = this.#blocks.chunk;
    const at = this.#blocks.at;
    const headerOffset = this.#blocks.position;
    const raw = extensions?.sparse?.name ?? extensions?.path ?? extensions?.longName ?? headerName(chunk, at);
    this.#entryName = raw;
    const mode = numberField(chunk, at, "mode");
    const type = memberType(flag, mode, raw);
    if (!type)
      throw this.#failure(
        "E_UNSUPPORTED",
        `members of type ${JSON.stringify(String.fromCharCode(flag))} are not known`,
      );

    const uid = extensions?.uid ?? numberField(chunk, at, "uid");
    const gid = extensions?.gid ?? numberField(chunk, at, "gid");
    if (uid < 0 || uid > MAX_ID || gid < 0 || gid > MAX_ID)
      throw new FieldError(`owner ${uid}:${gid} is out of range`);
    const path = this.#memberPath(raw);
    if (path === "." && type !== "directory") throw new FieldError("the root is not a directory");
    const isDevice = type === "character" || type === "block";
    const isLink = type === "symlink" || type === "hardlink";
    const entry = {
      path,
      type,
      mode: mode & 0o7777,
      uid,
      gid,
      size: 0,
      mtime: extensions?.mtime ?? numberField(chunk, at, "mtime"),
      mtimeNanoseconds: extensions?.mtimeNanoseconds ?? 0,
      linkname: isLink ? this.#linkTarget(type, extensions) : "",
      devmajor: isDevice ? deviceNumber(chunk, at, "devmajor") : 0,
      devminor: isDevice ? deviceNumber(chunk, at, "devminor") : 0,
      xattrs: extensions?.xattrs ?? null,
      sparse: null as readonly SparseExtent[] | null,
      headerOffset,
      dataOffset: 0,
    };
    this.#extents = null;
    this.#extent = 0;
    this.#offset = 0;
    const stored = type === "file" ? (extensions?.size ?? numberField(chunk, at, "size")) : 0;
    if (stored < 0) throw new FieldError("the size is negative");
    this.#left = stored;
    this.#padding = -stored & (BLOCK_BYTES - 1);
    entry.size = stored;
    if (flag === FLAG.gnuSparse) entry.size = this.#readOldSparse();
    else {
      this.#blocks.at += BLOCK_BYTES;
      if (extensions?.sparse && type === "file") entry.size = this.#readPaxSparse(extensions);
    }
    entry.sparse = this.#extents;
    entry.dataOffset = this.#blocks.position;
    return entry;
  }

  /** GNU's old format: the map is in this header and the blocks after it. Returns the file's real size. */
  #readOldSparse(): number {
    const realSize = numberField(this.#blocks.chunk, this.#blocks.at, "gnuRealSize");
    const map: number[] = [];
    let more = readOldMap(this.#blocks.chunk, this.#blocks.at, HEADER_MAP, map);
    this.#blocks.at += BLOCK_BYTES;
    while (more) {
      this.#countExtension(BLOCK_BYTES);
      if (!this.#blocks.wantBlock()) throw new FieldError("the archive ends within a sparse map");
      more = readOldMap(this.#blocks.chunk, this.#blocks.at, EXTENSION_MAP, map);
      this.#blocks.at += BLOCK_BYTES;
    }
    this.#extents = checkedExtents(map, realSize, this.#left);
    return realSize;
  }

  /** GNU's PAX formats: 0.0 and 0.1 have the map among the records, 1.0 in front of the content. */
  #readPaxSparse(extensions: Extensions): number {
    const sparse = extensions.sparse ?? { map: [] };
    const realSize = sparse.realSize;
    if (realSize === undefined) throw new FieldError("a sparse file has no real size");
    const version = `${sparse.major ?? 0}.${sparse.minor ?? 0}`;
    let map = sparse.map;
    if (version === "1.0") map = this.#readTextMap();
    else if (sparse.major) throw this.#failure("E_UNSUPPORTED", `sparse format ${version} is not known`);
    this.#extents = checkedExtents(map, realSize, this.#left);
    return realSize;
  }

  #readTextMap(): number[] {
    const text = new TextMap();
    for (let done = false; !done; ) {
      this.#countExtension(BLOCK_BYTES);
      if (this.#left < BLOCK_BYTES) throw new FieldError("the sparse map is longer than the member");
      if (!this.#blocks.wantBlock()) throw new FieldError("the archive ends within a sparse map");
      done = text.add(this.#blocks.chunk, this.#blocks.at);
      this.#blocks.at += BLOCK_BYTES;
      this.#left -= BLOCK_BYTES;
    }
    return text.map;
  }

  #memberPath(raw: string): string {
    const cleaned = this.#checkedName(raw, "name");
    // "/" itself stays, for next() to skip.
    return cleaned.length > 1 && cleaned.startsWith("/") ? cleaned.slice(1) : cleaned;
  }

  #linkTarget(type: EntryType, extensions: Extensions | null): string {
    const raw =
      extensions?.linkpath ??
      extensions?.longLink ??
      textField(this.#blocks.chunk, this.#blocks.at, "linkname");
    if (raw === "") throw new FieldError("the link has no target");
    if (type === "hardlink") {
      const cleaned = this.#checkedName(raw, "link target");
      return cleaned.startsWith("/") ? cleaned.slice(1) || "." : cleaned;
    }
    if (raw.length > MAX_PATH_BYTES)
      throw this.#failure("E_LIMIT", `the link target is longer than ${MAX_PATH_BYTES} bytes`);
    return raw;
  }

  #checkedName(raw: string, what: string): string {
    if (raw === "") throw new FieldError(`the ${what} is empty`);
    const cleaned = cleanName(raw);
    if (escapesRoot(cleaned)) throw new FieldError(`the ${what} leads out of the root`);
    if (cleaned.length > MAX_PATH_BYTES)
      throw this.#failure("E_LIMIT", `the ${what} is longer than ${MAX_PATH_BYTES} bytes`);
    if (cleaned.length > MAX_ELEMENT_BYTES && longestElement(cleaned) > MAX_ELEMENT_BYTES)
      throw this.#failure("E_LIMIT", `an element of the ${what} is longer than ${MAX_ELEMENT_BYTES} bytes`);
    return cleaned;
  }

  /** Moves past the current member's content and padding. */
  #skipContent(): void {
    while (this.#left > 0) {
      this.#wantContent();
      const length = Math.min(this.#left, this.#blocks.available);
      this.#left -= length;
      this.#blocks.at += length;
    }
    while (this.#padding > 0) {
      if (!this.#blocks.wantByte()) this.#padding = 0;
      const length = Math.min(this.#padding, this.#blocks.available);
      this.#padding -= length;
      this.#blocks.at += length;
    }
  }

  #wantContent(): void {
    if (!this.#blocks.wantByte())
      throw new FieldError(`the archive ends ${this.#left} bytes before the content does`);
  }

  #failure(
    code: "E_CORRUPT" | "E_LIMIT" | "E_UNSUPPORTED" | "E_IO",
    what: string,
    cause?: unknown,
  ): OverlaybdError {
    const member = this.#entryName === "" ? "" : `, member ${readable(this.#entryName)}`;
    const place = `at byte ${this.#blocks.position} of the archive`;
    return new OverlaybdError(code, `${this.name}${member}: ${what} (${place})`, { cause });
  }

  /** Says where an error of the archive or of its stream happened; others pass unchanged. */
  #explain(error: unknown): unknown {
    if (error instanceof FieldError) return this.#failure("E_CORRUPT", error.message);
    if (!(error instanceof StreamError)) return error;
    const where = `${error.message} at byte ${error.offset} of the input`;
    if (error.kind === "limit") return this.#failure("E_LIMIT", where, error);
    if (error.kind !== "io") return this.#failure("E_CORRUPT", where, error);
    const reason = error.errno === 0 ? "" : `: ${getSystemErrorName(-error.errno)}`;
    return this.#failure("E_IO", where + reason, error);
  }
}

function isExtension(flag: number): boolean {
  return flag === FLAG.pax || flag === FLAG.paxGlobal || flag === FLAG.longName || flag === FLAG.longLink;
}

/** V7 knows no directories: there a trailing slash tells. */
function memberType(flag: number, mode: number, name: string): EntryType | undefined {
  const known = TYPES[flag];
  if (known) return known;
  if (flag === FLAG.nul && name.endsWith("/")) return "directory";
  return MODE_TYPES[mode & constants.S_IFMT] ?? (flag === FLAG.nul ? "file" : undefined);
}

function deviceNumber(chunk: Buffer, at: number, field: "devmajor" | "devminor"): number {
  const value = numberField(chunk, at, field);
  // The kernel's dev_t: 12 bits of major, 20 of minor.
  if (value < 0 || value >= (field === "devmajor" ? 2 ** 12 : 2 ** 20))
    throw new FieldError(`${field} ${value} is out of range`);
  return value;
}

function untilNul(payload: Buffer): string {
  const nul = payload.indexOf(0);
  return payload.toString("latin1", 0, nul < 0 ? payload.length : nul);
}

function longestElement(path: string): number {
  return path.split("/").reduce((longest, element) => Math.max(longest, element.length), 0);
}

/** A byte string for people: as UTF-8, cut to a line's length, control characters escaped. */
function readable(name: string): string {
  const text = Buffer.from(name.slice(0, 256), "latin1").toString();
  return JSON.stringify(name.length > 256 ? `${text}…` : text);
}
