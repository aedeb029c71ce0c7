/**
 * One member of a tar archive, whatever dialect it was written in (V7, ustar, PAX, GNU).
 *
 * Names are *byte strings*: JavaScript strings whose every char is one byte (0 to 255), because tar names need not
 * be UTF-8. `Buffer.from(name, "latin1")` gives the bytes. They compare, hash and split at "/" like the bytes do.
 */
export interface TarEntry {
  /** Cleaned and relative to the root, without leading or trailing slash; "." is the root directory itself. */
  readonly path: string;
  readonly type: EntryType;
  /** Permission bits with set-uid, set-gid and sticky: the low 12 bits. */
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  /** Bytes of the file, holes of a sparse file included; 0 for all but regular files. */
  readonly size: number;
  /** Modification time in whole seconds since 1970, rounded down; may be negative. */
  readonly mtime: number;
  /** 0 to 999,999,999, to be added to `mtime`. */
  readonly mtimeNanoseconds: number;
  /** Symbolic link: the target, verbatim. Hard link: the target's path, cleaned as `path` is. Otherwise empty. */
  readonly linkname: string;
  /** Device numbers; 0 for all but devices. */
  readonly devmajor: number;
  readonly devminor: number;
  /** Extended attributes by full name ("security.capability"); null when there are none. */
  readonly xattrs: ReadonlyMap<string, Uint8Array> | null;
  /** Where a sparse file has data, ascending and disjoint; null for a file without holes. */
  readonly sparse: readonly SparseExtent[] | null;
  /** Byte offset in the (uncompressed) archive of the header block that describes the member, and of its payload. */
  readonly headerOffset: number;
  readonly dataOffset: number;
}

export type EntryType = "file" | "directory" | "symlink" | "hardlink" | "character" | "block" | "fifo";

/** A run of data in a sparse file, in bytes of the file. */
export interface SparseExtent {
  readonly offset: number;
  readonly length: number;
}

/** A run of a member's content, as it lies in the stream's memory: valid until the reader is asked for anything more. */
export interface Piece {
  /** Byte offset in the file. */
  readonly offset: number;
  readonly length: number;
  /** Native address of the first byte. */
  readonly address: number;
  readonly bytes: Uint8Array;
}
