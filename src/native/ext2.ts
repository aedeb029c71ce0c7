/**
 * An ext4 file system on a volume, through libext2fs and the shim's own directories and allocator.
 *
 * One session reads blocks when it first needs them, changes them in memory, and hands the changed ones back after
 * `finish`. Inodes are known by number, names are byte strings (every char one byte). After an error the session can
 * only be closed.
 */
import { JSCallback, ptr } from "bun:ffi";
import { constants } from "node:os";
import { SystemError } from "./errno.ts";
import { bind } from "./library.ts";

const shim = bind({
  shim_ext2_open: { args: ["f64", "i32", "f64", "ptr", "ptr", "ptr"], returns: "i32" },
  shim_ext2_close: { args: ["ptr"], returns: "void" },
  shim_ext2_finish: { args: ["ptr"], returns: "i32" },
  shim_ext2_drain: { args: ["ptr", "ptr", "u32", "ptr"], returns: "i32" },
  shim_ext2_status: { args: ["ptr", "ptr"], returns: "void" },
  shim_ext2_lookup: { args: ["ptr", "u32", "ptr", "u32", "ptr"], returns: "i32" },
  shim_ext2_mark: { args: ["ptr", "u32", "ptr", "u32"], returns: "i32" },
  shim_ext2_next: { args: ["ptr", "u32", "f64", "ptr", "ptr"], returns: "f64" },
  shim_ext2_link: { args: ["ptr", "u32", "ptr", "u32", "u32"], returns: "i32" },
  shim_ext2_unlink: { args: ["ptr", "u32", "ptr", "u32"], returns: "i32" },
  shim_ext2_allocate: { args: ["ptr", "ptr", "u32"], returns: "f64" },
  shim_ext2_runs: { args: ["ptr", "u32", "ptr", "u32"], returns: "i32" },
  shim_ext2_create: { args: ["ptr", "u32", "ptr", "u32", "ptr", "ptr", "u32"], returns: "i32" },
  shim_ext2_update: { args: ["ptr", "u32", "ptr"], returns: "i32" },
  shim_ext2_readlink: { args: ["ptr", "u32", "ptr"], returns: "i32" },
  shim_ext2_set_xattr: { args: ["ptr", "u32", "ptr", "ptr", "u32"], returns: "i32" },
});

const BLOCK_BYTES = 4096;
export const ROOT_INODE = 2;
/** Longest name, and longest path or link target, in bytes. */
export const NAME_BYTES = 255;
const PATH_BYTES = 4095;

/** What a directory entry says its inode is (EXT2_FT_*). */
export const FILE_TYPE = { directory: 2, symlink: 7 } as const;

/** Error numbers with a meaning of their own here; the last is not among Node's. */
export const EXT2_ERRNO = {
  noBlocks: constants.errno.ENOSPC,
  noInodes: constants.errno.EDQUOT,
  noMemory: constants.errno.E2BIG,
  unsupported: constants.errno.EOPNOTSUPP,
  notExt4: constants.errno.EINVAL,
  tooManyLinks: constants.errno.EMLINK,
  nameTooLong: constants.errno.ENAMETOOLONG,
  badName: constants.errno.ENODATA,
  damaged: 117,
} as const;

/** A name in a directory. */
export interface Found {
  readonly inode: number;
  readonly type: number;
  /** The name was added, or marked, in this session. */
  readonly marked: boolean;
}

export interface NodeAttributes {
  /** File type and permissions, as in st_mode. */
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  /** Seconds since 1970 and nanoseconds to add; what ext4 cannot hold (before 1901, after 2446) becomes the nearest. */
  readonly mtime: number;
  readonly nanoseconds: number;
}

/** Where a node is more than its attributes. */
export interface NodeContent {
  /** Bytes of a regular file. */
  readonly size?: number;
  readonly deviceMajor?: number;
  readonly deviceMinor?: number;
  /** A symbolic link's target. */
  readonly target?: string;
}

const NODE_BYTES = 48;

export class Ext2Session {
  readonly #read: JSCallback;
  #readFailure: unknown;
  readonly #staging = new Uint8Array(BLOCK_BYTES);
  #handle: never;

  // Scratch memory of calls, and its addresses; `ptr` does not keep it alive, the fields do.
  readonly #name = Buffer.alloc(PATH_BYTES + 1);
  readonly #namePointer = ptr(this.#name);
  readonly #target = Buffer.alloc(BLOCK_BYTES);
  readonly #targetPointer = ptr(this.#target);
  readonly #found = new Uint32Array(4);
  readonly #foundPointer = ptr(this.#found);
  readonly #node = new ArrayBuffer(NODE_BYTES);
  readonly #nodeDoubles = new Float64Array(this.#node, 0, 2);
  readonly #nodeWords = new Uint32Array(this.#node, 16);
  readonly #nodePointer = ptr(this.#node);

  /**
   * @param blocks Size of the volume in blocks of 4096 bytes.
   * @param create Make a new file system; the volume must read as zeros and is not read.
   * @param budget Most bytes of metadata to hold in memory.
   * @param readBlock Fills the array with a block of the volume; what it throws comes out of the call that needed the block.
   * @throws SystemError with an errno of EXT2_ERRNO, as all methods do.
   */
  constructor(
    blocks: number,
    create: boolean,
    budget: number,
    readBlock: (block: number, into: Uint8Array) => void,
  ) {
    this.#read = new JSCallback(
      (block: number) => {
        try {
          readBlock(block, this.#staging);
          return 0;
        } catch (error) {
          this.#readFailure = error;
          return -constants.errno.EIO;
        }
      },
      { args: ["f64"], returns: "i32" },
    );
    const handle = new BigUint64Array(1);
    const result = shim.shim_ext2_open(
      blocks,
      create ? 1 : 0,
      budget,
      this.#read.ptr,
      ptr(this.#staging),
      ptr(handle),
    );
    this.#handle = Number(handle[0]) as never;
    if (result < 0) {
      this.#read.close();
      this.#fail(result, create ? "mkfs" : "open");
    }
  }

  /** Frees all memory; what was not drained is lost. */
  close(): void {
    if (!this.#handle) return;
    shim.shim_ext2_close(this.#handle);
    this.#handle = 0 as never;
    this.#read.close();
  }

  /** Completes all metadata in memory; only `drain` and `close` may follow. */
  finish(): void {
    this.#check(shim.shim_ext2_finish(this.#handle), "finish");
  }

  /** Fills `into` with the next changed blocks that adjoin; null when there are no more. Ascending, each block once. */
  drain(into: Uint8Array): { first: number; count: number } | null {
    const first = new Float64Array(1);
    const capacity = Math.floor(into.length / BLOCK_BYTES);
    const count = this.#check(shim.shim_ext2_drain(this.#handle, into, capacity, first), "drain");
    return count === 0 ? null : { first: first[0], count };
  }

  /** What is left on the file system, and what the session holds. */
  status(): { freeBlocks: number; freeInodes: number; memoryBytes: number } {
    const status = new Float64Array(3);
    shim.shim_ext2_status(this.#handle, status);
    return { freeBlocks: status[0], freeInodes: status[1], memoryBytes: status[2] };
  }

  lookup(directory: number, name: string): Found | null {
    const length = this.#setName(name);
    const result = shim.shim_ext2_lookup(
      this.#handle,
      directory,
      this.#namePointer,
      length,
      this.#foundPointer,
    );
    if (this.#check(result, "lookup") === 0) return null;
    return { inode: this.#found[0], type: this.#found[1], marked: this.#found[2] !== 0 };
  }

  /** Makes an existing name count as added in this session. */
  mark(directory: number, name: string): void {
    const length = this.#setName(name);
    this.#check(shim.shim_ext2_mark(this.#handle, directory, this.#namePointer, length), "mark");
  }

  /** The first child at or behind a position (0 to begin with), or null at the end. Children may be removed meanwhile. */
  child(directory: number, position: number): (Found & { name: string; next: number }) | null {
    const next = shim.shim_ext2_next(
      this.#handle,
      directory,
      position,
      this.#foundPointer,
      this.#namePointer,
    );
    if (this.#check(next, "readdir") === 0) return null;
    const [inode, type, marked, length] = this.#found;
    return { inode, type, marked: marked !== 0, name: this.#name.toString("latin1", 0, length), next };
  }

  /** Adds a name for an existing inode that is not a directory. */
  link(directory: number, name: string, inode: number): void {
    const length = this.#setName(name);
    this.#check(shim.shim_ext2_link(this.#handle, directory, this.#namePointer, length, inode), "link");
  }

  /** Removes a name, and with its last name the inode. A directory must be empty. */
  unlink(directory: number, name: string): void {
    const length = this.#setName(name);
    this.#check(shim.shim_ext2_unlink(this.#handle, directory, this.#namePointer, length), "unlink");
  }

  /**
   * Takes blocks for the regular file that is created next.
   * @param ranges Pairs of first file block and number of blocks, ascending.
   * @returns The number of runs; `runs` reads them.
   */
  allocate(ranges: Float64Array): number {
    return this.#check(shim.shim_ext2_allocate(this.#handle, ranges, ranges.length / 2), "allocate");
  }

  /** Fills `into` with triples of file block, volume block and number of blocks from run `first` on. Returns how many. */
  runs(first: number, into: Float64Array): number {
    return shim.shim_ext2_runs(this.#handle, first, into, Math.floor(into.length / 3));
  }

  /** Makes a file, directory, symbolic link or device; returns its inode. */
  create(directory: number, name: string, attributes: NodeAttributes, content: NodeContent): number {
    const length = this.#setName(name);
    this.#setNode(attributes, content);
    const target = content.target ?? "";
    if (target.length > PATH_BYTES) throw new SystemError(EXT2_ERRNO.nameTooLong, "symlink");
    this.#target.write(target, "latin1");
    const result = shim.shim_ext2_create(
      this.#handle,
      directory,
      this.#namePointer,
      length,
      this.#nodePointer,
      this.#targetPointer,
      target.length,
    );
    this.#check(result, "create");
    return this.#nodeWords[6];
  }

  /** Sets owner, times and, unless it is a symbolic link, permissions. */
  update(inode: number, attributes: NodeAttributes): void {
    this.#setNode(attributes, {});
    this.#check(shim.shim_ext2_update(this.#handle, inode, this.#nodePointer), "update");
  }

  readlink(inode: number): string {
    const length = shim.shim_ext2_readlink(this.#handle, inode, this.#targetPointer);
    return this.#target.toString("latin1", 0, this.#check(length, "readlink"));
  }

  /** Sets an extended attribute; POSIX ACLs in getxattr(2)'s form. ENOSPC also when it is too large for ext4. */
  setXattr(inode: number, name: string, value: Uint8Array): void {
    const cName = Buffer.from(`${name}\0`, "latin1");
    // An empty array has no address.
    const bytes = value.length === 0 ? this.#staging : value;
    const result = shim.shim_ext2_set_xattr(this.#handle, inode, cName, bytes, value.length);
    this.#check(result, "setxattr");
  }

  #setName(name: string): number {
    if (name.length > NAME_BYTES) throw new SystemError(EXT2_ERRNO.nameTooLong, "name");
    return this.#name.write(name, "latin1");
  }

  #setNode(attributes: NodeAttributes, content: NodeContent): void {
    this.#nodeDoubles[0] = content.size ?? 0;
    this.#nodeDoubles[1] = attributes.mtime;
    const words = this.#nodeWords;
    words[0] = attributes.nanoseconds;
    words[1] = attributes.mode;
    words[2] = attributes.uid;
    words[3] = attributes.gid;
    words[4] = content.deviceMajor ?? 0;
    words[5] = content.deviceMinor ?? 0;
  }

  #check(result: number, operation: string): number {
    return result < 0 ? this.#fail(result, operation) : result;
  }

  #fail(result: number, operation: string): never {
    const failure = this.#readFailure;
    this.#readFailure = undefined;
    if (failure !== undefined) throw failure;
    throw new SystemError(-result, operation);
  }
}
