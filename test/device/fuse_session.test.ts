/** The served file system itself, which only descriptors lead to: other processes look at it through /proc. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { closeSync } from "node:fs";
import { join } from "node:path";
import { IoWorker, type ServedDisk } from "../../src/device/io_worker.ts";
import { mountFuse, openFuse } from "../../src/native/fuse.ts";
import { BLOCK, type LazyDisk } from "./lazy_disk.ts";
import { canServeFuse } from "./support.ts";

describe.skipIf(!canServeFuse)("the served file system", () => {
  const BLOCKS = 4;
  let worker: IoWorker<LazyDisk>;
  let served: ServedDisk;
  let root: number;
  let path: string;

  beforeAll(async () => {
    worker = new IoWorker(join(import.meta.dir, "lazy_disk.ts"));
    const connection = openFuse();
    root = mountFuse(connection);
    path = `/proc/${process.pid}/fd/${root}`;
    const present = new Uint8Array(new SharedArrayBuffer(BLOCKS));
    present[0] = 1;
    const never = new Promise<void>(() => {});
    served = await worker.serve(
      { disk: { present }, writable: false, fetch: () => never },
      connection,
      "disk",
    );
  });
  afterAll(async () => {
    closeSync(root);
    await served.closed;
    await worker.stop();
  });

  async function run(script: string): Promise<{ out: string; err: string }> {
    const env = { ...process.env, LC_ALL: "C" };
    const sh = Bun.spawn(["sh", "-c", script], { stdout: "pipe", stderr: "pipe", env });
    const [out, err] = await Promise.all([new Response(sh.stdout).text(), new Response(sh.stderr).text()]);
    return { out, err };
  }

  test("has one directory with one file, for root only", async () => {
    const listing = await run(
      `ls -a ${path}/ && stat -c '%a %s %F' ${path}/. ${path}/disk && stat -f -c %t ${path}/disk`,
    );
    expect(listing.err).toBe("");
    const FUSE_MAGIC = "65735546";
    expect(listing.out).toBe(
      `.\n..\ndisk\n500 0 directory\n600 ${BLOCKS * BLOCK} regular file\n${FUSE_MAGIC}\n`,
    );
  });

  test("has nothing else, and cannot be changed", async () => {
    expect((await run(`cat ${path}/other`)).err).toContain("No such file");
    expect((await run(`echo > ${path}/disk`)).err).not.toBe("");
    expect((await run(`mkdir ${path}/new`)).err).not.toBe("");
    expect((await run(`rm -f ${path}/disk`)).err).not.toBe("");
    expect((await run(`ls ${path}/`)).out).toBe("disk\n");
  });

  test("a read that waits for the network can be killed", async () => {
    const reader = Bun.spawn([
      "dd",
      `if=${path}/disk`,
      "bs=4096",
      `skip=${BLOCK / 4096}`,
      "count=1",
      "status=none",
    ]);
    while (served.stats().misses === 0) await run(`head -c 512 ${path}/disk | wc -c`);
    reader.kill("SIGINT");
    await reader.exited;
    expect(reader.signalCode === "SIGINT" || reader.exitCode !== 0).toBe(true);
  });

  test("a read at the end of the file is cut short", async () => {
    expect(
      (
        await run(`dd if=${path}/disk bs=4096 skip=${(BLOCKS * BLOCK) / 4096} 2>/dev/null | wc -c`)
      ).out.trim(),
    ).toBe("0");
  });
});
