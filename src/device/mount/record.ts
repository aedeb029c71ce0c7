/**
 * What is known about a mount outside its server: a folder in the run directory, for root only, that holds
 * `state.json`, the server's `log` and its `socket`, and `lock`, locked for as long as the server lives.
 */
import { createHash } from "node:crypto";
import {
  closeSync,
  fstatSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { mkdir, realpath, stat } from "node:fs/promises";
import { join } from "node:path";
import { OverlaybdError } from "../../error.ts";
import { tryLock } from "../../native/descriptor.ts";

/** Where records are unless told otherwise. */
export const RUN_DIRECTORY = "/run/overlaybd";

export interface MountState {
  /** Where it is mounted. */
  readonly directory: string;
  /** What is mounted, as given: a reference, an image config, a layer. */
  readonly source: string;
  /** Process that serves it. */
  readonly pid: number;
  /** The block device below. */
  readonly device: string;
}

export class MountRecord {
  private constructor(
    private readonly folder: string,
    private readonly lock: number | null,
  ) {}

  get socket(): string {
    return join(this.folder, "socket");
  }

  /** Path of the log of a server for `directory`, in a folder that exists. */
  static async log(runDirectory: string, directory: string): Promise<string> {
    const folder = folderOf(runDirectory, directory);
    await mkdir(folder, { recursive: true, mode: 0o700 });
    return join(folder, "log");
  }

  /**
   * Makes the record of a mount at `directory`, which the calling process will serve.
   * @throws OverlaybdError E_BUSY when a server is at work there already; E_EXISTS when one died there.
   */
  static async claim(runDirectory: string, directory: string): Promise<MountRecord> {
    const folder = folderOf(runDirectory, directory);
    for (;;) {
      await mkdir(folder, { recursive: true, mode: 0o700 });
      const path = join(folder, "lock");
      const lock = openSync(path, "a", 0o600);
      if (!tryLock(lock)) {
        closeSync(lock);
        throw new OverlaybdError("E_BUSY", `${directory} is mounted by overlaybd already`);
      }
      const record = new MountRecord(folder, lock);
      // A server that ended just now may have removed the file that we locked.
      if (statSync(path, { throwIfNoEntry: false })?.ino !== fstatSync(lock).ino) {
        closeSync(lock);
        continue;
      }
      const left = record.state();
      if (left === null || !isMounted(left)) return record;
      closeSync(lock);
      throw new OverlaybdError(
        "E_EXISTS",
        `the server of ${directory} died and left it mounted; clean up with: overlaybd umount ${directory}`,
      );
    }
  }

  /** The record of the mount at `directory`, or null. */
  static find(runDirectory: string, directory: string): MountRecord | null {
    const record = new MountRecord(folderOf(runDirectory, directory), null);
    return record.state() === null ? null : record;
  }

  /** What the record says; null when there is none, or its server died before it had mounted anything. */
  state(): MountState | null {
    try {
      return JSON.parse(readFileSync(join(this.folder, "state.json"), "utf8")) as MountState;
    } catch {
      return null;
    }
  }

  write(state: MountState): void {
    const partial = join(this.folder, "state.json.new");
    writeFileSync(partial, JSON.stringify(state), { mode: 0o600 });
    renameSync(partial, join(this.folder, "state.json"));
  }

  /** Whether the server lives. */
  served(): boolean {
    const lock = openSync(join(this.folder, "lock"), "a", 0o600);
    try {
      return !tryLock(lock);
    } finally {
      closeSync(lock);
    }
  }

  remove(): void {
    rmSync(this.folder, { recursive: true, force: true });
    if (this.lock !== null) closeSync(this.lock);
  }
}

function folderOf(runDirectory: string, directory: string): string {
  return join(runDirectory, createHash("sha256").update(directory).digest("hex").slice(0, 16));
}

/**
 * The one name by which a mount point is recorded: its path without symbolic links.
 * @throws OverlaybdError E_NOT_FOUND when it is no directory.
 */
export async function mountPoint(directory: string): Promise<string> {
  try {
    const path = await realpath(directory);
    if ((await stat(path)).isDirectory()) return path;
  } catch (cause) {
    throw new OverlaybdError("E_NOT_FOUND", `${directory} cannot be mounted at: ${reason(cause)}`, { cause });
  }
  throw new OverlaybdError("E_NOT_FOUND", `${directory} is not a directory`);
}

function reason(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** Whether the mount table has the device at the directory. */
export function isMounted({ directory, device }: Pick<MountState, "directory" | "device">): boolean {
  return readFileSync("/proc/self/mountinfo", "utf8")
    .split("\n")
    .some((line) => {
      const fields = line.split(" ");
      const source = fields[fields.indexOf("-") + 2];
      return source === device && unescapeOctal(fields[4]) === directory;
    });
}

/** proc(5): space, tab, newline and backslash stand as three octal digits. */
function unescapeOctal(text: string): string {
  return text.replace(/\\(\d{3})/g, (_, digits: string) => String.fromCharCode(Number.parseInt(digits, 8)));
}
