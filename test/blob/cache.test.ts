import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import {
  mkdtempSync,
  readdirSync,
  readFileSync,
  readSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { $ } from "bun";
import { FileCache } from "../../src/blob/cache.ts";
import { hasRange } from "../../src/blob/residency.ts";
import { random } from "../fixtures/random.ts";
import { DIGEST, MemoryOrigin, sampleBytes } from "./origin.ts";
import { OBJECT_BYTES } from "./reader.ts";

const UNIT = 256 << 10;
const bytes = sampleBytes(OBJECT_BYTES);

let directory: string;
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "overlaybd-cache-"));
});
afterEach(() => rmSync(directory, { recursive: true, force: true }));

const media = (): string => join(directory, DIGEST);
const map = (): string => join(directory, `${DIGEST}.map`);

/** Reads all of the object in pieces through a newly opened cache and returns what that took. */
async function readAll(origin = new MemoryOrigin(bytes)) {
  const cache = new FileCache(directory);
  const blob = await cache.open(DIGEST, origin);
  for (let offset = 0; offset < origin.size; offset += 777_777) {
    const length = Math.min(777_777, origin.size - offset);
    const got = await blob.read(offset, length);
    expect(Buffer.compare(got, origin.bytes.subarray(offset, offset + length))).toBe(0);
  }
  await blob.close();
  return { stats: cache.stats(), requests: origin.requests };
}

describe("fetching", () => {
  test("random reads give the object's bytes and fetch every unit once", async () => {
    const origin = new MemoryOrigin(bytes);
    const cache = new FileCache(directory);
    const blob = await cache.open(DIGEST, origin);
    const next = random(3);
    for (let i = 0; i < 200; i++) {
      const offset = Math.floor(next() * origin.size);
      const length = Math.min(Math.floor(next() ** 4 * 2e6), origin.size - offset);
      expect(Buffer.compare(await blob.read(offset, length), bytes.subarray(offset, offset + length))).toBe(
        0,
      );
    }
    await blob.read(0, origin.size);
    expect(cache.stats()).toMatchObject({
      fetchedBytes: origin.size,
      hits: 0,
      misses: Math.ceil(origin.size / UNIT),
    });
    await blob.close();
    expect(readdirSync(directory).sort()).toEqual([".lock", DIGEST, `${DIGEST}.map`]);
    expect(Buffer.compare(readFileSync(media()), bytes)).toBe(0);
  });

  test("adjacent missing units come in one request of at most 8 MiB", async () => {
    const origin = new MemoryOrigin(sampleBytes(24 << 20));
    const blob = await new FileCache(directory).open(DIGEST, origin);
    await blob.fetch(5 * UNIT + 1, 3 * UNIT);
    expect(origin.requests).toEqual([{ offset: 5 * UNIT, length: 4 * UNIT }]);
    await blob.fetch(3 * UNIT, 8 * UNIT);
    expect(origin.requests.slice(1).sort((a, b) => a.offset - b.offset)).toEqual([
      { offset: 3 * UNIT, length: 2 * UNIT },
      { offset: 9 * UNIT, length: 2 * UNIT },
    ]);
    origin.requests.length = 0;
    await blob.fetch(11 * UNIT, 70 * UNIT);
    expect(origin.requests.sort((a, b) => a.offset - b.offset)).toEqual([
      { offset: 11 * UNIT, length: 32 * UNIT },
      { offset: 43 * UNIT, length: 32 * UNIT },
      { offset: 75 * UNIT, length: 6 * UNIT },
    ]);
    await blob.close();
  });

  test("concurrent readers share one fetch, also through two opens of one digest", async () => {
    const origin = new MemoryOrigin(bytes);
    const cache = new FileCache(directory);
    const [one, other] = await Promise.all([cache.open(DIGEST, origin), cache.open(DIGEST, origin)]);
    await Promise.all(Array.from({ length: 32 }, (_, i) => (i % 2 ? one : other).read(i * 100, UNIT)));
    expect(origin.requests).toEqual([
      { offset: 0, length: UNIT },
      { offset: UNIT, length: UNIT },
    ]);
    await one.close();
    await one.close();
    expect(Buffer.compare(await other.read(0, 1000), bytes.subarray(0, 1000))).toBe(0);
    await other.close();
  });

  test("a unit is announced when a reader of the descriptor finds its bytes there", async () => {
    const blob = await new FileCache(directory).open(DIGEST, new MemoryOrigin(bytes));
    const { valid, fd } = blob.view;
    if (!valid) throw new Error("a cached blob has no residency");
    expect(hasRange(valid, UNIT - 1, 2)).toBe(false);
    await blob.fetch(UNIT - 1, 2);
    expect(hasRange(valid, 0, 2 * UNIT)).toBe(true);
    expect(hasRange(valid, 0, 2 * UNIT + 1)).toBe(false);
    const got = new Uint8Array(1000);
    readSync(fd, got, 0, 1000, UNIT - 500);
    expect(Buffer.compare(got, bytes.subarray(UNIT - 500, UNIT + 500))).toBe(0);
    await blob.close();
  });

  test("a failing or lying origin fails the read that needs it, and only as long as it does", async () => {
    const origin = new MemoryOrigin(bytes);
    const blob = await new FileCache(directory).open(DIGEST, origin);
    origin.fault = (answer) => answer.subarray(1);
    await expect(blob.read(0, 10)).rejects.toMatchObject({ code: "E_REGISTRY" });
    await Promise.allSettled([blob.fetch(0, 10)]);
    origin.fault = () => {
      throw new Error("down");
    };
    const readers = await Promise.allSettled([blob.read(0, 10), blob.read(5, 10)]);
    expect(readers.map((reader) => reader.status)).toEqual(["rejected", "rejected"]);
    origin.fault = undefined;
    expect(Buffer.compare(await blob.read(0, 10), bytes.subarray(0, 10))).toBe(0);
    await blob.close();
  });

  test("closing gives up what is asked of the origin, and refuses what comes later", async () => {
    const origin = new MemoryOrigin(bytes);
    const blob = await new FileCache(directory).open(DIGEST, origin);
    await blob.fetch(2 * UNIT, UNIT);
    origin.readRange = () => Promise.withResolvers<never>().promise;
    const underWay = [blob.fetch(0, UNIT), blob.read(3 * UNIT, 10)];
    const closing = blob.close();
    await expect(blob.fetch(UNIT, 1)).rejects.toMatchObject({ code: "E_IO" });
    const closed = { status: "rejected", reason: { code: "E_IO" } };
    expect(await Promise.allSettled(underWay)).toMatchObject([closed, closed]);
    await closing;
    expect((await readAll()).stats.hits).toBe(1);
  });

  test("ranges outside the object, unsafe names and contradicting sizes are refused", async () => {
    const cache = new FileCache(directory);
    const blob = await cache.open(DIGEST, new MemoryOrigin(bytes));
    for (const [offset, length] of [
      [OBJECT_BYTES, 1],
      [-1, 1],
      [0, OBJECT_BYTES + 1],
      [Number.NaN, 1],
    ]) {
      await expect(blob.read(offset, length)).rejects.toMatchObject({ code: "E_CORRUPT" });
    }
    const shorter = new MemoryOrigin(bytes.subarray(1));
    await expect(cache.open(DIGEST, shorter)).rejects.toMatchObject({ code: "E_CORRUPT" });
    for (const name of ["../etc/passwd", "sha256:", "sha256:zz", `sha256:${"/".repeat(64)}`, ""]) {
      await expect(cache.open(name, shorter)).rejects.toMatchObject({ code: "E_CONFIG" });
    }
    const absurd = {
      name: "absurd",
      size: 2 ** 52,
      readRange: () => Promise.reject(new Error("never asked")),
    };
    await expect(cache.open(`sha256:${"0".repeat(64)}`, absurd)).rejects.toMatchObject({ code: "E_LIMIT" });
    await blob.close();
  });
});

describe("a long range", () => {
  /** Lets through so many pieces, and then waits until it is told to go on or to fail. */
  class HaltingOrigin extends MemoryOrigin {
    readonly go = Promise.withResolvers<void>();
    halted = false;

    constructor(private readonly free: number) {
      super(bytes);
    }

    override async *readPieces(offset: number, length: number, piece: number) {
      let passed = 0;
      for await (const sent of super.readPieces(offset, length, piece)) {
        this.halted = passed === this.free;
        if (passed++ === this.free) await this.go.promise;
        yield sent;
      }
    }
  }

  test("is readable unit by unit as it arrives, and kept where it breaks off", async () => {
    const origin = new HaltingOrigin(3);
    const blob = await new FileCache(directory).open(DIGEST, origin);
    const { valid } = blob.view;
    if (!valid) throw new Error("a cached blob has no residency");
    const all = blob.fetch(0, 8 * UNIT);
    // Readers of what has come do not wait for the rest.
    await blob.fetch(UNIT, 2 * UNIT);
    expect(await blob.read(0, 3 * UNIT)).toEqual(bytes.slice(0, 3 * UNIT));
    while (!origin.halted) await Bun.sleep(1);
    expect(hasRange(valid, 0, 3 * UNIT)).toBe(true);
    expect(hasRange(valid, 3 * UNIT, 1)).toBe(false);
    const later = blob.read(5 * UNIT, 10);
    origin.go.reject(new Error("down"));
    const results = await Promise.allSettled([all, later]);
    expect(results.map(({ status }) => status)).toEqual(["rejected", "rejected"]);
    expect(origin.requests).toEqual([{ offset: 0, length: 8 * UNIT }]);
    await blob.close();
    const { stats } = await readAll();
    expect(stats).toMatchObject({ hits: 3, damaged: 0 });
  });

  test("is given up when the object is closed", async () => {
    const origin = new HaltingOrigin(2);
    const blob = await new FileCache(directory).open(DIGEST, origin);
    const all = blob.fetch(0, 8 * UNIT);
    while (!origin.halted) await Bun.sleep(1);
    await Promise.all([blob.close(), expect(all).rejects.toMatchObject({ code: "E_IO" })]);
    origin.go.resolve();
    expect((await readAll()).stats).toMatchObject({ hits: 2, damaged: 0 });
  });

  test("of units smaller than its pieces is kept whole", async () => {
    const blob = await new FileCache(directory, { unit: 12_288 }).open(DIGEST, new MemoryOrigin(bytes));
    await blob.fetch(0, OBJECT_BYTES);
    expect(Buffer.compare(readFileSync(media()), bytes)).toBe(0);
    await blob.close();
  });

  test("whose origin sends too few bytes is an error", async () => {
    const origin = new MemoryOrigin(bytes);
    const blob = await new FileCache(directory).open(DIGEST, origin);
    for (const missing of [1, UNIT, 8 * UNIT]) {
      origin.fault = (answer) => answer.subarray(missing);
      await expect(blob.fetch(0, 8 * UNIT)).rejects.toMatchObject({ code: "E_REGISTRY" });
      await blob.kept?.discard();
    }
    await blob.close();
  });
});

describe("what is on disk", () => {
  test("is used again without the origin", async () => {
    await readAll();
    const { stats, requests } = await readAll();
    expect(requests).toEqual([]);
    expect(stats).toMatchObject({
      fetchedBytes: 0,
      hits: Math.ceil(OBJECT_BYTES / UNIT),
      misses: 0,
      damaged: 0,
    });
  });

  test("is dropped when the object has another size", async () => {
    await readAll();
    const { requests } = await readAll(new MemoryOrigin(sampleBytes(OBJECT_BYTES - 4096, 2)));
    expect(requests.length).toBeGreaterThan(0);
    expect(statSync(media()).size).toBe(OBJECT_BYTES - 4096);
  });

  test("is dropped when the refill size is another one", async () => {
    await readAll();
    const origin = new MemoryOrigin(bytes);
    const blob = await new FileCache(directory, { unit: 4096 }).open(DIGEST, origin);
    await blob.read(0, 1);
    expect(origin.requests).toEqual([{ offset: 0, length: 4096 }]);
    await blob.close();
  });

  test("is not believed where media or map were cut short or vanished", async () => {
    const size = 32 + Math.ceil(OBJECT_BYTES / UNIT) * 8;
    for (const damage of [
      () => truncateSync(media(), 1_000_000),
      () => truncateSync(media(), 0),
      () => truncateSync(map(), 0),
      () => truncateSync(map(), size - 1),
      () => truncateSync(map(), size + 8),
      () => rmSync(map()),
      () => rmSync(media()),
    ]) {
      await readAll();
      damage();
      expect((await readAll()).stats.fetchedBytes).toBe(OBJECT_BYTES);
    }
  });

  test("may be cut short while it is open: what is asked for next is fetched", async () => {
    await readAll();
    const origin = new MemoryOrigin(bytes);
    const blob = await new FileCache(directory).open(DIGEST, origin);
    truncateSync(map(), 0);
    truncateSync(media(), 0);
    expect(Buffer.compare(await blob.read(0, OBJECT_BYTES), bytes)).toBe(0);
    await blob.close();
    expect((await readAll()).stats.fetchedBytes).toBe(OBJECT_BYTES);
  });

  test("no flipped bit of map or media is ever served", async () => {
    const next = random(5);
    await readAll();
    const mapBytes = readFileSync(map()).length;
    for (let round = 0; round < 40; round++) {
      const inMap = round % 2 === 0;
      const path = inMap ? map() : media();
      const content = readFileSync(path);
      const at = Math.floor(next() * (inMap ? mapBytes : OBJECT_BYTES));
      content[at] ^= 1 << Math.floor(next() * 8);
      writeFileSync(path, content);
      const { stats } = await readAll();
      // A damaged header of the map drops everything, anything else costs one unit.
      if (inMap && at < 32) expect(stats.misses).toBe(Math.ceil(OBJECT_BYTES / UNIT));
      else expect(stats).toMatchObject({ misses: 1, damaged: 1 });
    }
  });

  test("a record without bytes (a crash before they reached the disk) is not believed", async () => {
    await readAll();
    const content = readFileSync(media());
    content.fill(0, 2 * UNIT, 2 * UNIT + 8192);
    content.fill(0, 7 * UNIT, 8 * UNIT);
    writeFileSync(media(), content);
    expect((await readAll()).stats).toMatchObject({ misses: 2, damaged: 2 });
  });
});

describe("several processes", () => {
  test("kill -9 at any moment never leaves a byte that reads wrong", async () => {
    const next = random(7);
    let reused = 0;
    for (let round = 0; round < 60; round++) {
      const child = Bun.spawn(
        [process.execPath, join(import.meta.dir, "reader.ts"), directory, `${round}`, "1000"],
        {
          stdout: "pipe",
        },
      );
      const reader = child.stdout.getReader();
      const { value } = await reader.read();
      expect(new TextDecoder().decode(value)).toBe("open\n");
      await Bun.sleep(next() * 12);
      child.kill("SIGKILL");
      expect((await reader.read()).done).toBe(true);
      await child.exited;
      const { stats } = await readAll();
      expect(stats.damaged).toBe(0);
      reused += stats.hits;
      if (round % 3 === 2) for (const name of [media(), map()]) rmSync(name);
    }
    expect(reused).toBeGreaterThan(0);
  }, 60_000);

  test("read through one directory at once and share what is there", async () => {
    const children = [1, 2, 3].map((seed) =>
      Bun.spawn([process.execPath, join(import.meta.dir, "reader.ts"), directory, `${seed}`, "30"], {
        stdout: "pipe",
      }),
    );
    expect(await Promise.all(children.map((child) => child.exited))).toEqual([0, 0, 0]);
    expect((await readAll()).stats).toMatchObject({ fetchedBytes: 0, damaged: 0 });
  }, 30_000);

  test("what another one fetched meanwhile is not fetched again", async () => {
    const origins = [new MemoryOrigin(bytes), new MemoryOrigin(bytes)];
    const [one, other] = await Promise.all(
      origins.map((origin) => new FileCache(directory).open(DIGEST, origin)),
    );
    await one.read(0, 3 * UNIT);
    expect(Buffer.compare(await other.read(0, 3 * UNIT), bytes.subarray(0, 3 * UNIT))).toBe(0);
    expect(origins[1].requests).toEqual([]);
    await Promise.all([one.close(), other.close()]);
  });
});

const mayMount = process.getuid?.() === 0;
if (!mayMount)
  console.warn("not root: the full-disk tests of the cache, which mount a tiny tmpfs, are skipped");

describe.skipIf(!mayMount)("a full disk", () => {
  const mounts: string[] = [];
  afterEach(async () => {
    for (const mount of mounts.splice(0)) await $`umount -l ${mount}`.quiet();
  });

  async function tinyDisk(kibibytes: number): Promise<string> {
    const mount = join(directory, "tiny");
    await $`mkdir ${mount} && mount -t tmpfs -o size=${kibibytes}k tmpfs ${mount}`.quiet();
    mounts.push(mount);
    return mount;
  }

  test("costs persistence, not reads", async () => {
    const disk = await tinyDisk(2048);
    const large = new MemoryOrigin(sampleBytes(80 << 20, 9));
    const cache = new FileCache(disk, { memory: 32 << 20 });
    const blob = await cache.open(DIGEST, large);
    const next = random(11);
    for (let offset = 0; offset < large.size; offset += 3_000_000) {
      const length = Math.min(3_000_000, large.size - offset);
      expect(
        Buffer.compare(await blob.read(offset, length), large.bytes.subarray(offset, offset + length)),
      ).toBe(0);
    }
    await Promise.all(
      Array.from({ length: 200 }, async () => {
        const offset = Math.floor(next() * (large.size - 10_000));
        expect(
          Buffer.compare(await blob.read(offset, 10_000), large.bytes.subarray(offset, offset + 10_000)),
        ).toBe(0);
      }),
    );
    expect(cache.stats().refused).toBeGreaterThan(0);
    await blob.close();
    const again = new MemoryOrigin(large.bytes);
    const reopened = await new FileCache(disk, { memory: 32 << 20 }).open(DIGEST, again);
    expect(Buffer.compare(await reopened.read(0, 8 << 20), large.bytes.subarray(0, 8 << 20))).toBe(0);
    await reopened.close();
  }, 30_000);

  test("a reader of the descriptor sees by the epoch that bytes were displaced", async () => {
    const large = new MemoryOrigin(sampleBytes(48 << 20, 9));
    const blob = await new FileCache(await tinyDisk(1024), { memory: 32 << 20 }).open(DIGEST, large);
    const { valid, fd } = blob.view;
    if (!valid) throw new Error("a cached blob has no residency");
    await blob.fetch(0, UNIT);
    const before = Atomics.load(valid.epoch, 0);
    for (let offset = 0; offset < large.size; offset += 8 << 20) await blob.fetch(offset, 8 << 20);
    expect(Atomics.load(valid.epoch, 0)).toBeGreaterThan(before);
    expect(hasRange(valid, 0, UNIT)).toBe(false);
    const got = new Uint8Array(UNIT);
    for (let unit = 0; unit < large.size / UNIT; unit++) {
      if (!hasRange(valid, unit * UNIT, UNIT)) continue;
      readSync(fd, got, 0, UNIT, unit * UNIT);
      expect(Buffer.compare(got, large.bytes.subarray(unit * UNIT, (unit + 1) * UNIT))).toBe(0);
    }
    await blob.close();
  });

  test("that cannot even take the files leaves the object readable", async () => {
    const disk = await tinyDisk(64);
    await $`head -c 60000 /dev/zero > ${disk}/filler`.quiet();
    // 2^27 bytes in units of 4 KiB: the map alone takes 256 KiB.
    const content = sampleBytes(1 << 20);
    const blob = await new FileCache(disk, { unit: 4096 }).open(DIGEST, {
      name: "large object",
      size: 2 ** 27,
      readRange: async (offset, length) => content.slice(offset, offset + length),
    });
    expect(Buffer.compare(await blob.read(5, 100_000), content.subarray(5, 100_005))).toBe(0);
    await blob.close();
  });
});

test("a cache directory that cannot be one is an error that names it", async () => {
  const file = join(directory, "file");
  writeFileSync(file, "");
  const opening = new FileCache(join(file, "cache")).open(DIGEST, new MemoryOrigin(bytes));
  await expect(opening).rejects.toMatchObject({ code: "E_IO", message: expect.stringContaining(file) });
});
