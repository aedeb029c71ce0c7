/** What tests of block devices share. */
import { closeSync, existsSync, openSync } from "node:fs";

/** Serving FUSE and attaching loop devices takes root and the device nodes. */
export const canServeFuse: boolean =
  process.getuid?.() === 0 && existsSync("/dev/loop-control") && canOpen("/dev/fuse");
if (!canServeFuse) console.warn("no root, /dev/fuse or loop devices: tests that attach devices are skipped");

function canOpen(path: string): boolean {
  try {
    closeSync(openSync(path, "r+"));
    return true;
  } catch {
    return false;
  }
}

/** Reads sectors of a block device past the page cache, in a process of its own: a read may wait for this one. */
export async function readDirect(path: string, offset: number, length: number): Promise<Buffer> {
  const flags = "iflag=direct,skip_bytes,count_bytes,fullblock";
  const dd = Bun.spawn(
    ["dd", `if=${path}`, "bs=1M", flags, `skip=${offset}`, `count=${length}`, "status=none"],
    { stdout: "pipe", stderr: "pipe", env: { ...process.env, LC_ALL: "C" } },
  );
  const [bytes, message] = await Promise.all([
    new Response(dd.stdout).arrayBuffer(),
    new Response(dd.stderr).text(),
  ]);
  if ((await dd.exited) !== 0) throw new Error(message.replace("Input/output error", "EIO"));
  return Buffer.from(bytes);
}
