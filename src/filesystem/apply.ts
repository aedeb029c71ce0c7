/**
 * Applies an OCI layer, a tar archive, to an ext4 file system (apply.md section 3, with the recommendations of its
 * section 4; OCI image specification, "Image Layer Filesystem Changeset").
 */
import { OverlaybdError } from "../error.ts";
import type { EntryType, Piece, TarEntry } from "../format/tar/entry.ts";
import { SystemError } from "../native/errno.ts";
import { EXT2_ERRNO, type Ext2Session, FILE_TYPE, type Found, type NodeAttributes } from "../native/ext2.ts";
import { ContentWriter } from "./content.ts";
import { Ext4, explain } from "./ext4.ts";
import { Tree } from "./tree.ts";
import type { Volume } from "./volume.ts";

/** Where members come from: format/tar's TarReader. */
export interface LayerReader {
  /** What to call the archive in messages. */
  readonly name: string;
  /** The next member, or null at the end. */
  next(): TarEntry | null;
  /** The next piece of the current member's content, or null when that is all. */
  read(): Piece | null;
}

export interface ApplyOptions {
  /** Make the file system first. */
  readonly create?: boolean;
  /** Most bytes of metadata to hold in memory; the default is enough for three million files. */
  readonly memoryLimit?: number;
  /** Called behind the last member: the last chance to refuse the archive, by throwing. */
  readonly verify?: () => void;
}

export interface ApplySummary {
  /** Members of the archive. */
  readonly members: number;
  /** Names of extended attributes that ext4 cannot store, which were left out. */
  readonly skippedXattrs: readonly string[];
}

const TYPE_BITS: Record<Exclude<EntryType, "hardlink">, number> = {
  fifo: 0o010000,
  character: 0o020000,
  directory: 0o040000,
  block: 0o060000,
  file: 0o100000,
  symlink: 0o120000,
};
const SYMLINK_PERMISSIONS = 0o777;

const WHITEOUT = ".wh.";
const OPAQUE = ".wh..wh..opq";

const XATTR_NAME = /^((user|trusted|security|gnu)\.[^\0]+|system\.posix_acl_(access|default))$/;

/**
 * Applies all members in order to the file system on a volume; with `create`, to a new one, for which the volume must read as
 * zeros. Content goes to the volume at once, into blocks that were free; metadata at the end, only what changed, each block
 * once and in ascending order. So after a failure the file system is as it was. The same archive on the same file system
 * gives the same bytes.
 * @throws OverlaybdError E_CORRUPT, E_LIMIT, E_UNSUPPORTED or E_IO naming archive and member.
 */
export function apply(volume: Volume, reader: LayerReader, options: ApplyOptions = {}): ApplySummary {
  const fs = options.create
    ? Ext4.create(volume, options.memoryLimit)
    : Ext4.open(volume, options.memoryLimit);
  try {
    const layer = new Layer(fs, reader);
    let members = 0;
    for (let entry = reader.next(); entry; entry = reader.next()) {
      members++;
      try {
        layer.apply(entry);
      } catch (error) {
        throw locate(error, reader.name, entry);
      }
    }
    options.verify?.();
    fs.commit();
    return { members, skippedXattrs: [...layer.skippedXattrs].sort() };
  } finally {
    fs.close();
  }
}

/** Adds to an error of the file system which member it was about. The reader's own errors say so already. */
function locate(error: unknown, archive: string, entry: TarEntry): unknown {
  const what = `${archive}, member ${JSON.stringify(Buffer.from(entry.path, "latin1").toString())}`;
  if (error instanceof OverlaybdError && !error.message.startsWith(archive)) {
    return new OverlaybdError(error.code, `${what}: ${error.message}`, { cause: error.cause });
  }
  return explain(error, what);
}

class Layer {
  readonly #session: Ext2Session;
  readonly #tree: Tree;
  readonly #content: ContentWriter;
  readonly #read: () => Piece | null;
  readonly skippedXattrs = new Set<string>();

  constructor(fs: Ext4, reader: LayerReader) {
    this.#session = fs.session;
    this.#tree = new Tree(fs.session);
    this.#content = new ContentWriter(fs.session, fs.volume);
    this.#read = () => reader.read();
  }

  apply(entry: TarEntry): void {
    const slash = entry.path.lastIndexOf("/");
    const parent = this.#tree.directory(slash < 0 ? "" : entry.path.slice(0, slash));
    const name = entry.path.slice(slash + 1);
    if (entry.path === ".") this.#setAttributes(parent, entry, true);
    else if (name.startsWith(WHITEOUT)) this.#whiteOut(parent, name);
    else if (entry.type === "hardlink") this.#link(parent, name, entry);
    else this.#place(parent, name, entry);
  }

  #whiteOut(parent: number, marker: string): void {
    if (marker === OPAQUE) {
      this.#tree.hideLower(parent);
      return;
    }
    const name = marker.slice(WHITEOUT.length);
    if (name === "" || name === "." || name === "..")
      throw new OverlaybdError("E_CORRUPT", "the whiteout names no file");
    const found = this.#session.lookup(parent, name);
    if (found) this.#tree.removeLower(parent, name, found);
  }

  #link(parent: number, name: string, entry: TarEntry): void {
    const existing = this.#session.lookup(parent, name);
    let target = this.#target(entry);
    if (existing && existing.inode === target.inode) {
      this.#session.mark(parent, name);
    } else {
      if (existing) {
        this.#tree.remove(parent, name, existing);
        // The target may have been below what is gone now.
        target = this.#target(entry);
      }
      this.#session.link(parent, name, target.inode);
    }
    this.#setAttributes(target.inode, entry, true);
  }

  #target(entry: TarEntry): Found {
    const shown = JSON.stringify(Buffer.from(entry.linkname, "latin1").toString());
    const found = this.#tree.find(entry.linkname);
    if (!found) throw new OverlaybdError("E_CORRUPT", `the hard link's target ${shown} does not exist`);
    if (found.type === FILE_TYPE.directory)
      throw new OverlaybdError("E_CORRUPT", `the hard link's target ${shown} is a directory`);
    return found;
  }

  #place(parent: number, name: string, entry: TarEntry): void {
    const existing = this.#session.lookup(parent, name);
    if (existing && existing.type === FILE_TYPE.directory && entry.type === "directory") {
      if (!existing.marked) this.#session.mark(parent, name);
      this.#setAttributes(existing.inode, entry, true);
      return;
    }
    if (existing) this.#tree.remove(parent, name, existing);
    if (entry.type === "file") this.#content.write(entry.size, entry.sparse, this.#read);
    const inode = this.#session.create(parent, name, attributesOf(entry), {
      size: entry.size,
      deviceMajor: entry.devmajor,
      deviceMinor: entry.devminor,
      target: entry.type === "symlink" ? entry.linkname : "",
    });
    this.#setAttributes(inode, entry, false);
  }

  #setAttributes(inode: number, entry: TarEntry, existed: boolean): void {
    if (existed) this.#session.update(inode, attributesOf(entry));
    if (!entry.xattrs) return;
    for (const [name, value] of entry.xattrs) {
      if (XATTR_NAME.test(name)) this.#setXattr(inode, name, value);
      else this.skippedXattrs.add(name);
    }
  }

  #setXattr(inode: number, name: string, value: Uint8Array): void {
    try {
      this.#session.setXattr(inode, name, value);
    } catch (error) {
      if (error instanceof SystemError && error.errno === EXT2_ERRNO.badName) this.skippedXattrs.add(name);
      else throw explain(error, `attribute ${name}`);
    }
  }
}

function attributesOf(entry: TarEntry): NodeAttributes {
  const type = entry.type === "hardlink" ? TYPE_BITS.file : TYPE_BITS[entry.type];
  const permissions = entry.type === "symlink" ? SYMLINK_PERMISSIONS : entry.mode;
  return {
    mode: type | permissions,
    uid: entry.uid,
    gid: entry.gid,
    mtime: entry.mtime,
    nanoseconds: entry.mtimeNanoseconds,
  };
}
