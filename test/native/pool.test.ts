import { afterAll, expect, test } from "bun:test";
import { closeSync, mkdtempSync, openSync, rmSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { SystemError } from "../../src/native/errno.ts";
import { fdatasync, fsync, JobQueue, submit } from "../../src/native/pool.ts";
import { createWake, QueueSet, WAKE_TAG } from "../../src/native/queue.ts";

const folder = mkdtempSync(join(tmpdir(), "overlaybd-pool-"));
const fd = openSync(join(folder, "file"), "w");
afterAll(() => {
  closeSync(fd);
  rmSync(folder, { recursive: true });
});

async function rejection(promise: Promise<unknown>): Promise<unknown> {
  try {
    await promise;
  } catch (error) {
    return error;
  }
  return undefined;
}

test("results come back to the event loop, each to its caller", async () => {
  writeSync(fd, "data");
  const bad = 1 << 20;
  const jobs = Array.from({ length: 300 }, (_, i) => rejection(i % 3 === 0 ? fsync(bad + i) : fdatasync(fd)));
  const errors = await Promise.all(jobs);
  errors.forEach((error, i) => {
    if (i % 3 !== 0) expect(error).toBeUndefined();
    else expect((error as SystemError).message).toBe(`fsync fd ${bad + i}: bad file descriptor (EBADF)`);
  });
});

test("passes strings to the call", async () => {
  const missing = join(folder, "nothing-is-mounted-here");
  const error = await rejection(submit("umount", [missing, 0], missing));
  expect(error).toBeInstanceOf(SystemError);
  expect(["ENOENT", "EPERM"]).toContain((error as SystemError).code);
});

test("a thread that sleeps in its own epoll is woken by an eventfd", () => {
  const wake = createWake();
  const jobs = new JobQueue(wake);
  const set = new QueueSet(wake);
  const results: number[] = [];
  jobs.start("fsync", [fd], (result) => results.push(result));
  jobs.start("fsync", [-1], (result) => results.push(result));
  while (jobs.size > 0) {
    expect([...set.wait()]).toEqual([WAKE_TAG]);
    jobs.drain();
  }
  expect(results.sort((a, b) => a - b)).toEqual([-9, 0]);
  set.close();
  jobs.close();
  closeSync(wake);
});

test("a pending job keeps the process alive, an idle pool does not", async () => {
  const script = `
    import { fsync } from ${JSON.stringify(join(import.meta.dir, "../../src/native/pool.ts"))};
    await fsync(0).then(() => console.log("synced"), (error) => console.log(error.code));`;
  const child = Bun.spawn([process.execPath, "-e", script], {
    stdin: "ignore",
    stdout: "pipe",
    timeout: 20_000,
  });
  expect(await new Response(child.stdout).text()).toMatch(/^(synced|EINVAL)\n$/);
  expect(await child.exited).toBe(0);
});
