/** An ext4 file system on a volume, open for one session of changes: all of them reach the volume, or none. */
import { OverlaybdError } from "../error.ts";
import { SystemError } from "../native/errno.ts";
import { EXT2_ERRNO, Ext2Session } from "../native/ext2.ts";
import { BLOCK_BYTES, type Volume } from "./volume.ts";

/**
 * Most metadata a session holds in memory. A file costs about 256 bytes for its inode, 30 and its name's length for its
 * directory entry and 24 for looking it up; a directory 4 KiB more. So this is enough for three million files.
 */
const MEMORY_LIMIT = 2 ** 30;
const WRITE_BYTES = 1 << 20;

export class Ext4 {
  /** For the semantics built on it (apply). */
  readonly session: Ext2Session;

  private constructor(
    readonly volume: Volume,
    create: boolean,
    memoryLimit: number,
  ) {
    const blocks = Math.floor(volume.size / BLOCK_BYTES);
    try {
      this.session = new Ext2Session(blocks, create, memoryLimit, (block, into) =>
        volume.read(block * BLOCK_BYTES, into),
      );
    } catch (error) {
      const { name, size } = volume;
      throw explain(
        error,
        create ? `making ext4 on ${size} bytes of ${name}` : `opening the file system of ${name}`,
      );
    }
  }

  /**
   * Makes an empty file system on a volume that reads as zeros. The same size gives the same bytes: no UUID, no times.
   * @throws OverlaybdError E_LIMIT when the volume is too small or too large.
   */
  static create(volume: Volume, memoryLimit = MEMORY_LIMIT): Ext4 {
    return new Ext4(volume, true, memoryLimit);
  }

  /**
   * Opens the file system that is there.
   * @throws OverlaybdError E_CORRUPT when it is damaged or none, E_UNSUPPORTED when it has features this program would damage.
   */
  static open(volume: Volume, memoryLimit = MEMORY_LIMIT): Ext4 {
    return new Ext4(volume, false, memoryLimit);
  }

  /** Writes all changed metadata to the volume, each block once and in ascending order, and ends the session. */
  commit(): void {
    try {
      this.session.finish();
      const buffer = new Uint8Array(WRITE_BYTES);
      for (let run = this.session.drain(buffer); run; run = this.session.drain(buffer)) {
        this.volume.write(run.first * BLOCK_BYTES, buffer.subarray(0, run.count * BLOCK_BYTES));
      }
      this.volume.flush();
    } catch (error) {
      throw explain(error, `completing the file system of ${this.volume.name}`);
    } finally {
      this.close();
    }
  }

  /** Ends the session; without `commit` the metadata on the volume stays as it was. Safe to call twice. */
  close(): void {
    this.session.close();
  }
}

/** Says what an error number of the file system means for `what`; other errors pass unchanged. */
export function explain(error: unknown, what: string): unknown {
  if (!(error instanceof SystemError)) return error;
  const as = (code: "E_LIMIT" | "E_CORRUPT" | "E_UNSUPPORTED" | "E_IO", why: string) =>
    new OverlaybdError(code, `${what}: ${why}`, { cause: error });
  switch (error.errno) {
    case EXT2_ERRNO.noBlocks:
      if (error.syscall === "setxattr")
        return as("E_LIMIT", "its extended attributes are larger than ext4 can store");
      return as("E_LIMIT", "no space is left in the file system; give the image a larger virtual size");
    case EXT2_ERRNO.noInodes:
      return as("E_LIMIT", "no inodes are left in the file system; give the image a larger virtual size");
    case EXT2_ERRNO.noMemory:
      return as("E_LIMIT", "its metadata is larger than fits in memory");
    case EXT2_ERRNO.tooManyLinks:
      return as("E_LIMIT", "it would have more than 65,000 hard links");
    case EXT2_ERRNO.nameTooLong:
      return as("E_LIMIT", "a name is longer than 255 bytes, or a link target than 4095");
    case EXT2_ERRNO.unsupported:
      return as(
        "E_UNSUPPORTED",
        "the file system is not ext4 with 4096-byte blocks, or has features that are not supported",
      );
    case EXT2_ERRNO.damaged:
      return as("E_CORRUPT", "the file system is damaged");
    case EXT2_ERRNO.notExt4:
      if (error.syscall === "mkfs") return as("E_LIMIT", "the size does not suit a file system");
      return as(
        "E_CORRUPT",
        error.syscall === "open" ? "there is no ext4 file system" : `${error.syscall} got a wrong value`,
      );
    default:
      return as("E_IO", error.message);
  }
}
