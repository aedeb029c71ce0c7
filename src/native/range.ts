/** Ranges of local files: what `node:fs` cannot do with them. Synchronous. */
import { SystemError } from "./errno.ts";
import { bind } from "./library.ts";

const shim = bind({
  shim_range_write: { args: ["i32", "ptr", "f64", "f64"], returns: "i32" },
  shim_range_data: { args: ["i32", "f64", "ptr"], returns: "i32" },
});

const found = new Float64Array(2);

/** Writes `length` bytes of native memory at `address` to byte `offset` of an open file. */
export function writeFromMemory(fd: number, address: number, length: number, offset: number): void {
  const result = shim.shim_range_write(fd, address as never, length, offset);
  if (result < 0) throw new SystemError(-result, "pwrite", `fd ${fd}`);
}

/** First range of bytes at or behind `from` that is not a hole, or null when only holes follow. */
export function nextDataRange(fd: number, from: number): { begin: number; end: number } | null {
  const result = shim.shim_range_data(fd, from, found);
  if (result < 0) throw new SystemError(-result, "lseek", `fd ${fd}`);
  return result === 0 ? null : { begin: found[0], end: found[1] };
}
