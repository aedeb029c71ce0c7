/**
 * Where the files of an ext4 file system lie: enough of the format to follow a path and to list a file's extents, from any
 * bytes, without the kernel (kernel documentation, filesystems/ext4). Nothing is trusted: a damaged or hostile file system
 * gives E_CORRUPT or wrong extents, never an endless loop.
 */
import { OverlaybdError } from "../error.ts";
import type { ByteSource } from "./source.ts";

const SUPERBLOCK = { offset: 1024, length: 1024, magic: 0xef53 } as const;
const EROFS_MAGIC = 0xe0f5e1e2;
/** Incompatible features that change where things are, or what directories look like. */
const FEATURE = {
  compression: 0x1,
  journalDevice: 0x8,
  metaGroups: 0x10,
  wide: 0x80,
  encrypted: 0x10000,
} as const;
const UNSUPPORTED = FEATURE.compression | FEATURE.journalDevice | FEATURE.metaGroups | FEATURE.encrypted;
const ROOT_INODE = 2;
const TYPE = { mask: 0xf000, directory: 0x4000, file: 0x8000, link: 0xa000 } as const;
const FLAG = { extents: 0x80000, inline: 0x10000000 } as const;
const EXTENT_MAGIC = 0xf30a;
const EXTENT_BYTES = 12;
/** Extents longer than this are not initialized: allocated, but zeros, with the length beyond it. */
const LONGEST_EXTENT = 32768;

const MAX_EXTENT_DEPTH = 5;
const MAX_EXTENT_NODES = 4096;
const MAX_DIRECTORY_BYTES = 16 << 20;
const MAX_LINK_BYTES = 4096;
/** As the kernel's. */
const MAX_LINKS = 40;

export interface Inode {
  readonly number: number;
  readonly kind: "directory" | "file" | "link" | "other";
  /** Bytes. */
  readonly size: number;
  readonly flags: number;
  /** The 60 bytes that hold the extents' root, or a short link's target. */
  readonly root: Uint8Array;
}

/** Bytes of the volume. */
export interface Extent {
  readonly offset: number;
  readonly length: number;
}

export class Ext4Reader {
  private constructor(
    private readonly source: ByteSource,
    private readonly geometry: {
      readonly blockBytes: number;
      readonly blocks: number;
      readonly inodes: number;
      readonly inodesPerGroup: number;
      readonly inodeBytes: number;
      readonly descriptorBytes: number;
      /** First block of the group descriptors. */
      readonly descriptors: number;
    },
  ) {}

  /** @throws OverlaybdError E_UNSUPPORTED when it is no ext4, or of a kind that is not read; E_CORRUPT; as reading. */
  static async open(source: ByteSource): Promise<Ext4Reader> {
    if (source.size < SUPERBLOCK.offset + SUPERBLOCK.length) throw unsupported(source, "no file system");
    const block = view(await source.read(SUPERBLOCK.offset, SUPERBLOCK.length));
    if (block.getUint32(0, true) === EROFS_MAGIC) throw unsupported(source, "EROFS instead of ext4");
    if (block.getUint16(0x38, true) !== SUPERBLOCK.magic) throw unsupported(source, "no ext4 file system");
    const features = block.getUint32(0x60, true);
    const shift = block.getUint32(0x18, true);
    if ((features & UNSUPPORTED) !== 0 || shift > 5) {
      throw unsupported(source, `an ext4 file system with features 0x${features.toString(16)}`);
    }
    const wide = (features & FEATURE.wide) !== 0;
    const geometry = {
      blockBytes: 1024 << shift,
      blocks: block.getUint32(4, true) + (wide ? block.getUint32(0x150, true) * 2 ** 32 : 0),
      inodes: block.getUint32(0, true),
      inodesPerGroup: block.getUint32(0x28, true),
      inodeBytes: block.getUint16(0x58, true),
      descriptorBytes: wide ? block.getUint16(0xfe, true) : 32,
      descriptors: block.getUint32(0x14, true) + 1,
    };
    const { inodesPerGroup, inodeBytes, descriptorBytes, blockBytes } = geometry;
    if (
      inodesPerGroup === 0 ||
      inodeBytes < 128 ||
      inodeBytes > blockBytes ||
      descriptorBytes < (wide ? 64 : 32)
    ) {
      throw corrupt(source, "its superblock makes no sense");
    }
    return new Ext4Reader(source, geometry);
  }

  /**
   * Follows a path, and the symbolic links on it, from the root; null when it leads nowhere.
   * @param path names with a slash between them, every char a byte.
   */
  async find(path: string): Promise<Inode | null> {
    /** From the root to where we are. */
    const trail = [await this.#inode(ROOT_INODE)];
    const left = path.split("/").reverse();
    for (let links = 0; left.length > 0; ) {
      const name = left.pop() as string;
      if (name === "" || name === ".") continue;
      if (name === "..") {
        if (trail.length > 1) trail.pop();
        continue;
      }
      const directory = trail[trail.length - 1];
      const entry = directory.kind === "directory" && (await this.list(directory)).get(name);
      if (!entry) return null;
      const inode = await this.#inode(entry);
      if (inode.kind !== "link") {
        trail.push(inode);
        continue;
      }
      if (++links > MAX_LINKS) return null;
      const target = await this.#target(inode);
      if (target.startsWith("/")) trail.length = 1;
      left.push(...target.split("/").reverse());
    }
    return trail[trail.length - 1];
  }

  /** Inode numbers by name, without `.` and `..`. */
  async list(directory: Inode): Promise<Map<string, number>> {
    const entries = new Map<string, number>();
    const { blockBytes } = this.geometry;
    const bytes = await this.#content(directory, MAX_DIRECTORY_BYTES);
    const fields = view(bytes);
    for (let block = 0; block + blockBytes <= bytes.length; block += blockBytes) {
      for (let at = block; at + 8 <= block + blockBytes; ) {
        const length = fields.getUint16(at + 4, true);
        const nameLength = fields.getUint8(at + 6);
        if (length < 8 || length % 4 !== 0 || at + length > block + blockBytes || nameLength + 8 > length) {
          throw corrupt(this.source, `directory ${directory.number} is damaged`);
        }
        const inode = fields.getUint32(at, true);
        const name = Buffer.from(bytes.buffer, bytes.byteOffset + at + 8, nameLength).toString("latin1");
        if (inode !== 0 && name !== "." && name !== "..") entries.set(name, inode);
        at += length;
      }
    }
    return entries;
  }

  /** What an entry of `list` is. */
  inode(number: number): Promise<Inode> {
    return this.#inode(number);
  }

  /** Where the content is; what is not stored, because it is zeros or small, is not in it. */
  async extents({ flags, root, number }: Inode): Promise<Extent[]> {
    if ((flags & FLAG.inline) !== 0 || (flags & FLAG.extents) === 0) return [];
    const { blockBytes, blocks } = this.geometry;
    const extents: Extent[] = [];
    const nodes: { node: DataView; depth: number }[] = [{ node: view(root), depth: MAX_EXTENT_DEPTH + 1 }];
    for (let visited = 0; nodes.length > 0; visited++) {
      const { node, depth: above } = nodes.pop() as (typeof nodes)[number];
      const depth = node.getUint16(6, true);
      const entries = node.getUint16(2, true);
      const sound = node.getUint16(0, true) === EXTENT_MAGIC && depth < above;
      if (!sound || (entries + 1) * EXTENT_BYTES > node.byteLength || visited === MAX_EXTENT_NODES) {
        throw corrupt(this.source, `the extents of inode ${number} are damaged`);
      }
      // Last first: what is pushed last comes next.
      for (let i = entries; i >= 1; i--) {
        const at = i * EXTENT_BYTES;
        if (depth > 0) {
          const block = node.getUint32(at + 4, true) + node.getUint16(at + 8, true) * 2 ** 32;
          nodes.push({ node: view(await this.#block(block, number)), depth });
        }
      }
      for (let i = 1; depth === 0 && i <= entries; i++) {
        const at = i * EXTENT_BYTES;
        const count = node.getUint16(at + 4, true);
        const block = node.getUint32(at + 8, true) + node.getUint16(at + 6, true) * 2 ** 32;
        if (count > LONGEST_EXTENT || count === 0) continue;
        if (block + count > blocks)
          throw corrupt(this.source, `inode ${number} lies outside the file system`);
        extents.push({ offset: block * blockBytes, length: count * blockBytes });
      }
    }
    return extents;
  }

  async #inode(number: number): Promise<Inode> {
    const { blockBytes, inodes, inodesPerGroup, inodeBytes, descriptorBytes, descriptors } = this.geometry;
    if (number < 1 || number > inodes) throw corrupt(this.source, `there is no inode ${number}`);
    const group = Math.floor((number - 1) / inodesPerGroup);
    const descriptor = view(
      await this.source.read(descriptors * blockBytes + group * descriptorBytes, descriptorBytes),
    );
    const high = descriptorBytes >= 64 ? descriptor.getUint32(0x28, true) : 0;
    const table = descriptor.getUint32(8, true) + high * 2 ** 32;
    const offset = table * blockBytes + ((number - 1) % inodesPerGroup) * inodeBytes;
    const bytes = await this.source.read(offset, 128);
    const fields = view(bytes);
    return {
      number,
      kind: kindOf(fields.getUint16(0, true)),
      size: fields.getUint32(4, true) + fields.getUint32(0x6c, true) * 2 ** 32,
      flags: fields.getUint32(0x20, true),
      root: bytes.subarray(0x28, 0x28 + 60),
    };
  }

  async #target(link: Inode): Promise<string> {
    const short = link.size < 60;
    const bytes = short ? link.root.subarray(0, link.size) : await this.#content(link, MAX_LINK_BYTES);
    return Buffer.from(bytes.subarray(0, link.size)).toString("latin1");
  }

  /** The whole blocks of a directory or link. */
  async #content(inode: Inode, limit: number): Promise<Uint8Array> {
    const extents = await this.extents(inode);
    const length = extents.reduce((sum, extent) => sum + extent.length, 0);
    if (length > limit) throw corrupt(this.source, `inode ${inode.number} has ${length} bytes`);
    return Buffer.concat(
      await Promise.all(extents.map((extent) => this.source.read(extent.offset, extent.length))),
    );
  }

  #block(block: number, inode: number): Promise<Uint8Array> {
    const { blockBytes, blocks } = this.geometry;
    if (block >= blocks) throw corrupt(this.source, `inode ${inode} lies outside the file system`);
    return this.source.read(block * blockBytes, blockBytes);
  }
}

function kindOf(mode: number): Inode["kind"] {
  switch (mode & TYPE.mask) {
    case TYPE.directory:
      return "directory";
    case TYPE.file:
      return "file";
    case TYPE.link:
      return "link";
    default:
      return "other";
  }
}

function view(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

function corrupt({ name }: ByteSource, what: string): OverlaybdError {
  return new OverlaybdError("E_CORRUPT", `the file system of ${name} is damaged: ${what}`);
}

function unsupported({ name }: ByteSource, what: string): OverlaybdError {
  return new OverlaybdError("E_UNSUPPORTED", `${name} holds ${what}; files can only be found in ext4`);
}
