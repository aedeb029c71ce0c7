/** Mounting and loop devices: calls that may wait for a disk, so they are jobs of the thread pool. */
import { submit } from "./pool.ts";

/** Flags of mount(2). */
export const MountFlag = { READ_ONLY: 1, NOATIME: 1024 } as const;

/** Flags of umount2(2). */
export const UnmountFlag = { DETACH: 2, NOFOLLOW: 8 } as const;

/** mount(2). @throws SystemError EINVAL when the device holds no such file system. */
export async function mount(
  source: string,
  target: string,
  type: string,
  flags: number,
  options: string,
): Promise<void> {
  await submit("mount", [source, target, type, flags, options], `${source} on ${target}`);
}

/** umount2(2). @throws SystemError EBUSY while it is in use, EINVAL when nothing is mounted there. */
export async function unmount(target: string, flags: number): Promise<void> {
  await submit("umount", [target, flags], target);
}

/**
 * Opens file `name` of a FUSE mount (a descriptor of `mountFuse`). Waits until its worker answers.
 * @throws SystemError ENOENT, ENOTCONN when the connection was closed.
 */
export function openServed(root: number, name: string, writable: boolean): Promise<number> {
  return submit("openServed", [root, name, writable ? 1 : 0], name);
}

export interface Loop {
  /** Path of the device. */
  readonly path: string;
  /** Keeps the device; the kernel clears it when this and all its other users are gone. */
  readonly fd: number;
}

/** Lets the kernel choose the sector size: 512 bytes, which suits every file system. */
const DEFAULT_SECTORS = 0;

/**
 * Makes a free loop device show `file`, with direct I/O, read-only unless `writable`.
 * @throws SystemError ENOENT without loop support, EPERM, EACCES without root.
 */
export async function attachLoop(file: number, writable: boolean): Promise<Loop> {
  const fd = new Int32Array(1);
  const number = await submit("attachLoop", [file, writable ? 1 : 0, DEFAULT_SECTORS, fd], "a loop device");
  return { path: `/dev/loop${number}`, fd: fd[0] };
}

/** Lets go of a loop device. */
export async function releaseLoop(loop: Loop): Promise<void> {
  await submit("releaseLoop", [loop.fd], loop.path);
}
