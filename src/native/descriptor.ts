/** System calls on file descriptors that `node:fs` has no function for. All return at once; none waits. */
import { constants } from "node:os";
import { check } from "./errno.ts";
import { bind } from "./library.ts";

const shim = bind({
  shim_descriptor_lock: { args: ["i32"], returns: "i32" },
  shim_descriptor_share: { args: ["i32"], returns: "i32" },
  shim_descriptor_replace: { args: ["i32", "i32"], returns: "i32" },
  shim_descriptor_anonymous: { args: ["f64"], returns: "i32" },
  shim_descriptor_punch: { args: ["i32", "f64", "f64"], returns: "i32" },
  shim_descriptor_pipe: { args: ["ptr"], returns: "i32" },
});

/** Takes an exclusive flock(2) on an open file; false when somebody else has it. Closing the file releases it. */
export function tryLock(fd: number): boolean {
  const result = shim.shim_descriptor_lock(fd);
  if (result === -constants.errno.EWOULDBLOCK) return false;
  check(result, "flock", `fd ${fd}`);
  return true;
}

/**
 * Takes a shared flock(2); false when somebody has the file exclusively. A lock that is held becomes one of this kind; a
 * try that fails, of this function and of `tryLock`, loses it.
 */
export function tryShare(fd: number): boolean {
  const result = shim.shim_descriptor_share(fd);
  if (result === -constants.errno.EWOULDBLOCK) return false;
  check(result, "flock", `fd ${fd}`);
  return true;
}

/** Makes descriptor `target` refer to the file behind `source`. A concurrent reader of `target` sees one or the other. */
export function replaceDescriptor(target: number, source: number): void {
  check(shim.shim_descriptor_replace(target, source), "dup3", `fd ${target}`);
}

/** Descriptor of a new file of `size` bytes, all holes, in memory only. The caller closes it. */
export function anonymousFile(size: number): number {
  return check(shim.shim_descriptor_anonymous(size), "memfd_create");
}

/** Frees the storage of [offset, offset + length), which then reads as zeros; the file keeps its size. */
export function punchHole(fd: number, offset: number, length: number): void {
  check(shim.shim_descriptor_punch(fd, offset, length), "fallocate", `fd ${fd}`);
}

/** A pipe with a large buffer. The caller closes both ends. */
export function openPipe(): { readEnd: number; writeEnd: number } {
  const ends = new Int32Array(2);
  check(shim.shim_descriptor_pipe(ends), "pipe2");
  return { readEnd: ends[0], writeEnd: ends[1] };
}
