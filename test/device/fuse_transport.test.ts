import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import {
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { open } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { FuseTransport } from "../../src/device/fuse/transport.ts";
import { type DiskSource, IoWorker } from "../../src/device/io_worker.ts";
import type { Device } from "../../src/device/transport.ts";
import { OverlaybdError } from "../../src/error.ts";
import { BLOCK, type LazyDisk } from "./lazy_disk.ts";
import type { RawDisk } from "./raw_disk.ts";
import { canServeFuse, readDirect } from "./support.ts";

const MIB = 1 << 20;

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "overlaybd-fuse-"));
});
afterAll(() => rmSync(folder, { recursive: true }));

function rawSource(path: string, writable: boolean): DiskSource<RawDisk> {
  return { disk: { path, writable }, writable, fetch: () => Promise.reject(new Error("nothing is missing")) };
}

/** What this process has open. */
function descriptors(): string[] {
  return readdirSync("/proc/self/fd").map((fd) => {
    try {
      return readlinkSync(`/proc/self/fd/${fd}`);
    } catch {
      return "closed meanwhile";
    }
  });
}

/** Everything an attach could leave behind. */
function resources() {
  return {
    descriptors: descriptors().filter((path) => path === "/dev/fuse" || path.startsWith("/dev/loop")),
    files: descriptors().filter((path) => path.startsWith(folder)),
    mounts: readFileSync("/proc/self/mountinfo", "utf8").split("\n").length,
    loops: readdirSync("/sys/block").filter((name) => {
      try {
        return readFileSync(`/sys/block/${name}/loop/backing_file`, "utf8").startsWith("/cycle");
      } catch {
        return false;
      }
    }),
  };
}

describe.skipIf(!canServeFuse)("a file served over FUSE as a block device", () => {
  let worker: IoWorker<RawDisk>;
  let transport: FuseTransport<RawDisk>;
  beforeAll(() => {
    worker = new IoWorker(join(import.meta.dir, "raw_disk.ts"));
    transport = new FuseTransport([worker]);
  });
  afterAll(() => worker.stop());

  test("reads what is in the file, whatever the place and length", async () => {
    const path = join(folder, "read.img");
    const content = Buffer.alloc(5 * MIB + 512);
    for (let i = 0; i < content.length; i += 4) content.writeUInt32LE((i * 2654435761) >>> 0, i);
    writeFileSync(path, content);
    const device = await transport.attach(rawSource(path, false), "read");
    try {
      for (const [offset, length] of [
        [0, 512],
        [4096, 4096],
        [MIB - 512, 2 * MIB],
        [0, content.length],
        [content.length - 512, 512],
      ]) {
        expect(
          (await readDirect(device.path, offset, length)).equals(content.subarray(offset, offset + length)),
        ).toBe(true);
      }
      expect(device.stats().errors).toBe(0);
    } finally {
      await device.detach();
    }
  });

  test("keeps what is written, and discarded ranges read as zeros", async () => {
    const path = join(folder, "write.img");
    writeFileSync(path, Buffer.alloc(4 * MIB, 0xaa));
    const device = await transport.attach(rawSource(path, true), "write");
    try {
      const file = await open(device.path, "r+");
      await file.write(Buffer.alloc(MIB, 0x55), 0, MIB, MIB);
      await file.sync();
      await file.close();
      const punch = Bun.spawnSync(["fallocate", "-p", "-o", "65536", "-l", "65536", device.path]);
      expect(punch.exitCode).toBe(0);
    } finally {
      await device.detach();
    }
    const expected = Buffer.alloc(4 * MIB, 0xaa);
    expected.fill(0x55, MIB, 2 * MIB).fill(0, 65536, 131072);
    expect(readFileSync(path).equals(expected)).toBe(true);
  });

  test("a sequential reader sees what was written a moment before", async () => {
    const path = join(folder, "ahead.img");
    writeFileSync(path, Buffer.alloc(4 * MIB, 1));
    const device = await transport.attach(rawSource(path, true), "ahead");
    try {
      const PIECE = 65536;
      for (let at = 0; at < 4 * MIB; at += PIECE) {
        const value = (at / PIECE) % 2 === 0 ? 1 : 2;
        if (value === 2) {
          // By now the worker may have read this piece ahead.
          const words = [`of=${device.path}`, "bs=64k", "count=1", `seek=${at / PIECE}`, "oflag=direct"];
          const dd = Bun.spawn(["dd", ...words, "status=none"], { stdin: Buffer.alloc(PIECE, 2) });
          expect(await dd.exited).toBe(0);
        }
        expect((await readDirect(device.path, at, PIECE)).equals(Buffer.alloc(PIECE, value))).toBe(true);
      }
    } finally {
      await device.detach();
    }
  });

  test("a read-only disk cannot be written", async () => {
    const path = join(folder, "readonly.img");
    writeFileSync(path, Buffer.alloc(MIB, 1));
    const device = await transport.attach(rawSource(path, false), "readonly");
    try {
      const write = Bun.spawnSync(["dd", "if=/dev/zero", `of=${device.path}`, "bs=512", "count=1"]);
      expect(write.exitCode).not.toBe(0);
      expect(readFileSync(`/sys/block/${device.path.slice(5)}/ro`, "utf8").trim()).toBe("1");
    } finally {
      await device.detach();
    }
  });

  test("a disk that cannot be opened is refused with the worker's reason", async () => {
    const before = resources();
    const attach = transport.attach(rawSource(join(folder, "absent.img"), false), "cycle-absent");
    await expect(attach).rejects.toThrow(/absent\.img/);
    expect(resources()).toEqual(before);
  });

  test("an I/O error of one disk is EIO there and nothing elsewhere", async () => {
    const [bad, good] = ["bad", "good"].map((name) => join(folder, `${name}.img`));
    for (const path of [bad, good]) writeFileSync(path, Buffer.alloc(MIB, 7));
    const devices = await Promise.all(
      [bad, good].map((path) => transport.attach(rawSource(path, false), "pair")),
    );
    try {
      truncateSync(bad, 4096);
      await expect(readDirect(devices[0].path, 8192, 4096)).rejects.toThrow(/EIO/);
      expect(await readDirect(devices[1].path, 8192, 4096)).toEqual(Buffer.alloc(4096, 7));
      expect(await readDirect(devices[0].path, 0, 4096)).toEqual(Buffer.alloc(4096, 7));
      expect(devices[0].stats().errors).toBeGreaterThan(0);
      expect(devices[1].stats().errors).toBe(0);
    } finally {
      await Promise.all(devices.map((device) => device.detach()));
    }
  });

  test("30 attaches and detaches leave no loop device, mount or descriptor", async () => {
    const path = join(folder, "cycle.img");
    writeFileSync(path, Buffer.alloc(MIB, 3));
    const once = async () => {
      const device = await transport.attach(rawSource(path, true), "cycle");
      expect(await readDirect(device.path, 4096, 512)).toEqual(Buffer.alloc(512, 3));
      await device.detach();
    };
    await once();
    const before = resources();
    for (let i = 0; i < 30; i++) await once();
    expect(resources()).toEqual(before);
  });

  test("8 attaches at once get a device each", async () => {
    const paths = Array.from({ length: 8 }, (_, i) => join(folder, `many-${i}.img`));
    for (const [i, path] of paths.entries()) writeFileSync(path, Buffer.alloc(MIB, i));
    const devices = await Promise.all(paths.map((path) => transport.attach(rawSource(path, false), "many")));
    expect(new Set(devices.map((device) => device.path)).size).toBe(8);
    for (const [i, device] of devices.entries())
      expect(await readDirect(device.path, 0, 4096)).toEqual(Buffer.alloc(4096, i));
    await Promise.all(devices.map((device) => device.detach()));
  });
});

describe.skipIf(!canServeFuse)("a disk whose bytes are elsewhere", () => {
  const BLOCKS = 64;
  let worker: IoWorker<LazyDisk>;
  beforeAll(() => {
    worker = new IoWorker(join(import.meta.dir, "lazy_disk.ts"));
  });
  afterAll(() => worker.stop());

  /** Attaches a disk; `origin` decides when, and whether, a block arrives. */
  async function attach(
    origin: (block: number) => Promise<void>,
  ): Promise<{ device: Device; fetches: number[] }> {
    const present = new Uint8Array(new SharedArrayBuffer(BLOCKS));
    const fetches: number[] = [];
    const fetch = async ({ offset }: { offset: number }) => {
      const block = offset / BLOCK;
      fetches.push(block);
      await origin(block);
      Atomics.store(present, block, 1);
    };
    const source = { disk: { present }, writable: false, fetch };
    return { device: await new FuseTransport([worker]).attach(source, "lazy"), fetches };
  }

  test("a read that waits for the network does not hold up others", async () => {
    const slow = Promise.withResolvers<void>();
    const { device } = await attach((block) => (block === 3 ? slow.promise : Promise.resolve()));
    let arrived = false;
    const waiting = readDirect(device.path, 3 * BLOCK, 4096).then((bytes) => {
      arrived = true;
      return bytes;
    });
    for (const block of [1, 2, 40])
      expect(await readDirect(device.path, block * BLOCK, 4096)).toEqual(Buffer.alloc(4096, block + 1));
    expect(arrived).toBe(false);
    slow.resolve();
    expect(await waiting).toEqual(Buffer.alloc(4096, 4));
    await device.detach();
  });

  test("reads that miss the same bytes share one fetch", async () => {
    const gate = Promise.withResolvers<void>();
    const { device, fetches } = await attach((block) => (block === 5 ? gate.promise : Promise.resolve()));
    const reads = [0, 4096, 8192].map((at) => readDirect(device.path, 5 * BLOCK + at, 4096));
    const spanning = readDirect(device.path, 5 * BLOCK - 4096, 8192);
    while (device.stats().misses < 4) await readDirect(device.path, 6 * BLOCK, 512);
    gate.resolve();
    for (const read of reads) expect(await read).toEqual(Buffer.alloc(4096, 6));
    expect(await spanning).toEqual(Buffer.concat([Buffer.alloc(4096, 5), Buffer.alloc(4096, 6)]));
    expect(fetches.filter((block) => block === 5)).toEqual([5]);
    await device.detach();
  });

  test("a failing fetch is EIO for the reads that need it, and the disk recovers with its origin", async () => {
    let broken = true;
    const { device } = await attach(async (block) => {
      if (broken && block === 9) throw new OverlaybdError("E_REGISTRY", "the registry answered 503");
    });
    await expect(readDirect(device.path, 9 * BLOCK, 4096)).rejects.toThrow(/EIO/);
    expect(await readDirect(device.path, 10 * BLOCK, 4096)).toEqual(Buffer.alloc(4096, 11));
    expect(String(device.lastError())).toContain("503");
    broken = false;
    expect(await readDirect(device.path, 9 * BLOCK, 4096)).toEqual(Buffer.alloc(4096, 10));
    await device.detach();
  });

  test("an idle worker uses no processor time", async () => {
    const { device } = await attach(() => Promise.resolve());
    await readDirect(device.path, 0, 4096);
    const ticks = () =>
      readdirSync("/proc/self/task").map((task) => {
        const fields = readFileSync(`/proc/self/task/${task}/schedstat`, "utf8").split(" ");
        return { task, nanoseconds: Number(fields[0]) };
      });
    const before = new Map(ticks().map(({ task, nanoseconds }) => [task, nanoseconds]));
    await Bun.sleep(300);
    const busy = ticks().map(({ task, nanoseconds }) => nanoseconds - (before.get(task) ?? nanoseconds));
    expect(busy.reduce((sum, time) => sum + time, 0)).toBeLessThan(30e6);
    await device.detach();
  });
});
