/**
 * The directory tree of a file system as a layer sees it: paths that stay inside the root whatever symbolic links they
 * meet, and removal that tells what this layer brought from what lay below.
 */
import { OverlaybdError } from "../error.ts";
import { type Ext2Session, FILE_TYPE, type Found, type NodeAttributes, ROOT_INODE } from "../native/ext2.ts";

const S_IFDIR = 0o040000;
/** As in Linux. */
const MAX_SYMLINKS = 40;
/** Resolved parents to remember. Archives go directory by directory, so a few would do. */
const MAX_REMEMBERED = 4096;

const IMPLICIT_PARENT: NodeAttributes = { mode: S_IFDIR | 0o755, uid: 0, gid: 0, mtime: 0, nanoseconds: 0 };

export class Tree {
  readonly #resolved = new Map<string, number>();

  constructor(readonly session: Ext2Session) {}

  /**
   * Inode of the directory with this path. Symbolic links are followed as if the root were "/"; what is missing is made
   * (0755, owner 0:0, time 0), also behind a dangling link.
   * @throws OverlaybdError E_CORRUPT when something on the way is not a directory, or links go in a circle.
   */
  directory(path: string): number {
    const known = this.#resolved.get(path);
    if (known !== undefined) return known;
    const inode = path === "" ? ROOT_INODE : (this.#walk(path, true) as number);
    if (this.#resolved.size >= MAX_REMEMBERED) this.#resolved.clear();
    this.#resolved.set(path, inode);
    return inode;
  }

  /** The object at a path, links in its parents followed, its last element not; null when it does not exist. */
  find(path: string): Found | null {
    if (path === ".") return { inode: ROOT_INODE, type: FILE_TYPE.directory, marked: false };
    const slash = path.lastIndexOf("/");
    const parent = slash < 0 ? ROOT_INODE : this.#walk(path.slice(0, slash), false);
    return parent === null ? null : this.session.lookup(parent, path.slice(slash + 1));
  }

  #walk(path: string, create: boolean): number | null {
    // The inodes from the root down, for the ".." of link targets, which stops at the root.
    const stack = [ROOT_INODE];
    const left = path.split("/").reverse();
    let links = 0;
    for (let element = left.pop(); element !== undefined; element = left.pop()) {
      if (element === "" || element === ".") continue;
      if (element === "..") {
        if (stack.length > 1) stack.pop();
        continue;
      }
      const directory = stack[stack.length - 1];
      const found = this.session.lookup(directory, element);
      if (!found) {
        if (!create) return null;
        stack.push(this.session.create(directory, element, IMPLICIT_PARENT, {}));
      } else if (found.type === FILE_TYPE.directory) {
        stack.push(found.inode);
      } else if (found.type === FILE_TYPE.symlink) {
        if (++links > MAX_SYMLINKS)
          throw new OverlaybdError("E_CORRUPT", "too many symbolic links on the way; do they form a circle?");
        const target = this.session.readlink(found.inode);
        if (target.startsWith("/")) stack.length = 1;
        left.push(...target.split("/").reverse());
      } else {
        throw new OverlaybdError("E_CORRUPT", `${JSON.stringify(element)} on the way is not a directory`);
      }
    }
    return stack[stack.length - 1];
  }

  /** Removes a name, with all below it. */
  remove(directory: number, name: string, found: Found): void {
    if (found.type === FILE_TYPE.directory) this.#clear(found.inode, false);
    this.#unlink(directory, name, found);
  }

  /** Removes what the layers below had at a name: all of it but what this session added. */
  removeLower(directory: number, name: string, found: Found): void {
    const emptied = found.type !== FILE_TYPE.directory || this.#clear(found.inode, true);
    if (emptied && !this.#stays(directory, name, found)) this.#unlink(directory, name, found);
  }

  /** Removes what the layers below had in a directory. */
  hideLower(directory: number): void {
    this.#clear(directory, true);
  }

  /** Empties a directory; with `keepMarked` leaves what this session added. Tells whether it is empty now. */
  #clear(top: number, keepMarked: boolean): boolean {
    interface Level {
      readonly inode: number;
      readonly entry: { readonly parent: number; readonly name: string; readonly found: Found } | null;
      position: number;
      empty: boolean;
    }
    const levels: Level[] = [{ inode: top, entry: null, position: 0, empty: true }];
    // A damaged file system may have a directory below itself.
    const entered = new Set([top]);
    for (;;) {
      const level = levels[levels.length - 1];
      const child = this.session.child(level.inode, level.position);
      if (!child) {
        levels.pop();
        if (!level.entry) return level.empty;
        const { parent, name, found } = level.entry;
        if (level.empty && !(keepMarked && this.#stays(parent, name, found)))
          this.#unlink(parent, name, found);
        else levels[levels.length - 1].empty = false;
        continue;
      }
      level.position = child.next;
      if (child.type === FILE_TYPE.directory) {
        if (entered.has(child.inode))
          throw new OverlaybdError(
            "E_CORRUPT",
            `the file system is damaged: directory ${child.inode} is in two places`,
          );
        entered.add(child.inode);
        const entry = { parent: level.inode, name: child.name, found: child };
        levels.push({ inode: child.inode, entry, position: 0, empty: true });
      } else if (keepMarked && child.marked) {
        level.empty = false;
      } else {
        this.#unlink(level.inode, child.name, child);
      }
    }
  }

  /** lost+found belongs to the file system, not to a layer. */
  #stays(directory: number, name: string, found: Found): boolean {
    return found.marked || (directory === ROOT_INODE && name === "lost+found");
  }

  #unlink(directory: number, name: string, found: Found): void {
    this.session.unlink(directory, name);
    if (found.type === FILE_TYPE.directory || found.type === FILE_TYPE.symlink) this.#resolved.clear();
  }
}
