/** The bound on the cache's size: a model with random sizes, several processes, full disks. */
import { afterEach, beforeEach, describe, expect, setDefaultTimeout, test } from "bun:test";
import {
  closeSync,
  existsSync,
  mkdtempSync,
  openSync,
  readdirSync,
  rmSync,
  statSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { $ } from "bun";
import type { Blob } from "../../src/blob/blob.ts";
import { Budget } from "../../src/blob/budget.ts";
import { FileCache } from "../../src/blob/cache.ts";
import { CacheDirectory } from "../../src/blob/directory.ts";
import { random } from "../fixtures/random.ts";
import { EVICTION_UNIT, evictedBytes, evictedDigest } from "./evicting_reader.ts";
import { MemoryOrigin, sampleBytes } from "./origin.ts";

setDefaultTimeout(30_000);

let directory: string;
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "overlaybd-eviction-"));
});
afterEach(() => rmSync(directory, { recursive: true, force: true }));

/** What the objects in the cache directory take on the disk. */
function usedBytes(path = directory): number {
  const sizes = readdirSync(path).map((name) => {
    const stat = statSync(join(path, name), { throwIfNoEntry: false });
    return name.startsWith("sha256:") && stat ? stat.blocks * 512 : 0;
  });
  return sizes.reduce((sum, size) => sum + size, 0);
}

function startReader(capacity: number, seed: number, rounds: number) {
  const program = join(import.meta.dir, "evicting_reader.ts");
  const words = [directory, `${capacity}`, `${seed}`, `${rounds}`];
  return Bun.spawn([process.execPath, program, ...words], { stdout: "pipe" });
}

const has = (digest: string): boolean => existsSync(join(directory, digest));

async function fill(cache: FileCache, digest: string, bytes: Uint8Array): Promise<void> {
  const blob = await cache.open(digest, new MemoryOrigin(bytes));
  await blob.read(0, bytes.length);
  await blob.close();
}

describe("a cache with a capacity", () => {
  test("never holds more, and reads what a model says, whatever is opened, read and closed", async () => {
    for (let seed = 1; seed <= 8; seed++) {
      const path = join(directory, `${seed}`);
      const next = random(seed);
      const unit = 4096 << Math.floor(next() * 4);
      const capacity = unit * (60 + Math.floor(next() * 200));
      const sizes = Array.from({ length: 8 }, () => 1 + Math.floor(next() ** 2 * 2 * capacity));
      const contents = sizes.map((size, i) => sampleBytes(size, seed * 100 + i));
      const cache = new FileCache(path, { unit, capacity, memory: 8 << 20 });
      const open = new Map<number, Blob>();
      for (let round = 0; round < 120; round++) {
        const i = Math.floor(next() * contents.length);
        const blob = open.get(i) ?? (await cache.open(evictedDigest(i), new MemoryOrigin(contents[i])));
        open.set(i, blob);
        const offset = Math.floor(next() * blob.size);
        const length = Math.min(1 + Math.floor(next() ** 3 * 20 * unit), blob.size - offset);
        const got = await blob.read(offset, length);
        expect(Buffer.compare(got, contents[i].subarray(offset, offset + length))).toBe(0);
        if (next() < 0.3) {
          open.delete(i);
          await blob.close();
        }
        expect(usedBytes(path)).toBeLessThanOrEqual(capacity);
      }
      expect(cache.stats().refused).toBe(0);
      for (const blob of open.values()) await blob.close();
      expect(readdirSync(path).filter((name) => name.endsWith(".grant"))).toEqual([]);
    }
  });

  test("gives up what was not used for longest, and nothing that is open", async () => {
    const bytes = sampleBytes(1 << 20);
    const [open, old, older, recent, added] = [0, 1, 2, 3, 4].map(evictedDigest);
    const cache = new FileCache(directory, { unit: EVICTION_UNIT, capacity: 4.5 * 2 ** 20 });
    const kept = await cache.open(open, new MemoryOrigin(bytes));
    await kept.read(0, bytes.length);
    for (const digest of [older, recent, old]) await fill(cache, digest, bytes);
    utimesSync(join(directory, open), 1, 1);
    utimesSync(join(directory, older), 2, 2);
    utimesSync(join(directory, old), 3, 3);
    await fill(cache, added, bytes);
    expect([open, older, old, recent, added].map(has)).toEqual([true, false, true, true, true]);
    expect(cache.stats().evicted).toBe(0);
    await kept.close();
  });

  test("gives up units of an open object that were not read lately before those that were", async () => {
    const bytes = sampleBytes(4 << 20);
    const origin = new MemoryOrigin(bytes);
    const cache = new FileCache(directory, { unit: EVICTION_UNIT, capacity: 2 << 20 });
    const blob = await cache.open(evictedDigest(0), origin);
    const hot = { offset: 0, length: 256 << 10 };
    for (let offset = 0; offset < bytes.length; offset += EVICTION_UNIT) {
      await blob.read(hot.offset, hot.length);
      expect(Buffer.compare(await blob.read(offset, 100), bytes.subarray(offset, offset + 100))).toBe(0);
    }
    expect(cache.stats().evicted).toBeGreaterThan(100);
    const refetched = origin.requests.filter(({ offset }) => offset < hot.length).length;
    expect(refetched).toBeLessThan(2 * (hot.length / EVICTION_UNIT));
    await blob.close();
  });

  test("counts what earlier runs left, and what they were killed with", async () => {
    for (let i = 0; i < 6; i++) await fill(new FileCache(directory), evictedDigest(i), evictedBytes(i));
    // The promise to a process that is no more, which would take all room.
    writeFileSync(join(directory, "dead.grant"), new Uint8Array(Float64Array.of(1e12, 1e12).buffer));
    const before = usedBytes();
    const capacity = before - (64 << 10);
    const cache = new FileCache(directory, { unit: EVICTION_UNIT, capacity });
    await fill(cache, evictedDigest(7), evictedBytes(7));
    expect(cache.stats().refused).toBe(0);
    expect(has(evictedDigest(7))).toBe(true);
    expect(usedBytes()).toBeLessThanOrEqual(capacity);
    expect(existsSync(join(directory, "dead.grant"))).toBe(false);
  });

  test("goes on when somebody removes the directory under it", async () => {
    const path = join(directory, "removed");
    const bytes = sampleBytes(1 << 20);
    const capacity = 600 << 10;
    const cache = new FileCache(path, { unit: EVICTION_UNIT, capacity });
    const blob = await cache.open(evictedDigest(0), new MemoryOrigin(bytes));
    for (let round = 0; round < 3; round++) {
      rmSync(path, { recursive: true });
      expect(Buffer.compare(await blob.read(0, bytes.length), bytes)).toBe(0);
      const other = await cache.open(evictedDigest(1), new MemoryOrigin(bytes));
      expect(Buffer.compare(await other.read(0, bytes.length), bytes)).toBe(0);
      await other.close();
      expect(usedBytes(path)).toBeLessThanOrEqual(capacity);
    }
    await blob.close();
  });

  test("keeps what another process reads, and reads on without the disk when there is nothing to give up", async () => {
    const bytes = sampleBytes(1 << 20);
    const options = { unit: EVICTION_UNIT, capacity: 1.2 * 2 ** 20 };
    const [one, other] = [new FileCache(directory, options), new FileCache(directory, options)];
    const held = await one.open(evictedDigest(0), new MemoryOrigin(bytes));
    await held.read(0, bytes.length);
    const guest = await other.open(evictedDigest(1), new MemoryOrigin(bytes));
    expect(Buffer.compare(await guest.read(0, bytes.length), bytes)).toBe(0);
    expect(other.stats().refused).toBeGreaterThan(0);
    expect(usedBytes()).toBeLessThanOrEqual(options.capacity);
    const { requests } = one.stats();
    expect(Buffer.compare(await held.read(0, bytes.length), bytes)).toBe(0);
    expect(one.stats().requests).toBe(requests);
    await Promise.all([held.close(), guest.close()]);
  });

  test("shared by processes that come and go is never exceeded, and every byte is right", async () => {
    const capacity = 1 << 20;
    const children = [1, 2, 3].map((seed) => startReader(capacity, seed, 120));
    let running = true;
    const most = (async () => {
      let seen = 0;
      for (; running; await Bun.sleep(2)) seen = Math.max(seen, usedBytes());
      return seen;
    })();
    expect(await Promise.all(children.map((child) => child.exited))).toEqual([0, 0, 0]);
    running = false;
    const seen = await most;
    expect(seen).toBeGreaterThan(capacity / 4);
    // The maps of objects that are just being opened are counted with the next refill.
    expect(seen).toBeLessThanOrEqual(capacity + EVICTION_UNIT);
  });
});

test("killed while it fills and evicts, a cache never reads wrong and keeps its bound", async () => {
  const next = random(17);
  const capacity = 1 << 20;
  const contents = Array.from({ length: 6 }, (_, i) => evictedBytes(i));
  let reused = 0;
  for (let round = 0; round < 80; round++) {
    const child = startReader(capacity, round, 1000);
    const reader = child.stdout.getReader();
    expect(new TextDecoder().decode((await reader.read()).value)).toBe("ready\n");
    await Bun.sleep(next() * 25);
    child.kill("SIGKILL");
    expect((await reader.read()).done).toBe(true);
    await child.exited;
    expect(usedBytes()).toBeLessThanOrEqual(capacity + EVICTION_UNIT);
    const cache = new FileCache(directory, { unit: EVICTION_UNIT, capacity });
    for (const [i, bytes] of contents.entries()) {
      if (!has(evictedDigest(i))) continue;
      const blob = await cache.open(evictedDigest(i), new MemoryOrigin(bytes));
      expect(Buffer.compare(await blob.read(0, bytes.length), bytes)).toBe(0);
      await blob.close();
    }
    expect(cache.stats()).toMatchObject({ damaged: 0, refused: 0 });
    reused += cache.stats().hits;
  }
  expect(reused).toBeGreaterThan(0);
}, 60_000);

describe("a budget", () => {
  const shrunk: number[] = [];
  const budget = (capacity: number) =>
    new Budget(new CacheDirectory(directory), capacity, async (bytes) => void shrunk.push(bytes));
  beforeEach(() => {
    shrunk.length = 0;
  });

  test("is shared: what one was granted another does not get, until it is given back", async () => {
    const [one, other] = [budget(64 << 20), budget(64 << 20)];
    expect(await one.take(60 << 20)).toBe(true);
    expect(await other.take(5 << 20)).toBe(false);
    expect(shrunk.length).toBe(1);
    // A refusal is for a while, for small things too.
    expect(await other.take(1)).toBe(false);
    expect(shrunk.length).toBe(1);
    one.written(60 << 20);
    await one.close();
    const third = budget(64 << 20);
    expect(await third.take(5 << 20)).toBe(true);
    await Promise.all([other.close(), third.close()]);
    expect(readdirSync(directory)).toEqual([".lock"]);
  });

  test("looks from time to time at what others want, and gives back what it does not use", async () => {
    const [one, other] = [budget(64 << 20), budget(64 << 20)];
    expect(await one.take(60 << 20)).toBe(true);
    expect(await other.take(8 << 20)).toBe(false);
    shrunk.length = 0;
    await one.tick();
    expect(shrunk.length).toBe(1);
    expect(shrunk[0]).toBeGreaterThanOrEqual(4 << 20);
    one.written(60 << 20);
    await one.tick();
    const third = budget(64 << 20);
    expect(await third.take(60 << 20)).toBe(true);
    await Promise.all([one.close(), other.close(), third.close()]);
  });

  test("lets go of closed objects before it asks open ones to shrink", async () => {
    for (let i = 0; i < 4; i++) await fill(new FileCache(directory), evictedDigest(i), evictedBytes(i));
    const small = budget(256 << 10);
    await small.tick();
    expect(usedBytes()).toBeLessThanOrEqual(256 << 10);
    expect(shrunk).toEqual([]);
    await small.close();
  });
});

describe("the directory", () => {
  test("is one process' at a time", async () => {
    const [one, other] = [new CacheDirectory(directory), new CacheDirectory(directory)];
    let inside = 0;
    const enter = async () => {
      expect(++inside).toBe(1);
      await Bun.sleep(1);
      inside--;
    };
    await Promise.all([one, other, one, other].map((side) => side.exclusively(5000, enter)));
    const entered = Promise.withResolvers<void>();
    const leave = Promise.withResolvers<void>();
    const stuck = one.exclusively(5000, () => {
      entered.resolve();
      return leave.promise;
    });
    await entered.promise;
    await expect(other.exclusively(20, enter)).rejects.toMatchObject({ code: "E_BUSY" });
    leave.resolve();
    await stuck;
  });

  test("does not give up an object that somebody has open", async () => {
    const blob = await new FileCache(directory).open(evictedDigest(0), new MemoryOrigin(evictedBytes(0)));
    const side = new CacheDirectory(directory);
    const [object] = await side.objects();
    expect(await side.remove(object)).toBe(false);
    await blob.close();
    expect(await side.remove(object)).toBe(true);
    expect(await side.objects()).toEqual([]);
  });
});

const mayMount = process.getuid?.() === 0;

describe.skipIf(!mayMount)("a disk that fills up", () => {
  let disk: string;
  beforeEach(async () => {
    disk = join(directory, "disk");
    await $`mkdir ${disk} && mount -t tmpfs -o size=64m tmpfs ${disk}`.quiet();
  });
  afterEach(async () => void (await $`umount -l ${disk}`.quiet()));

  /** Bytes that are free. */
  const free = async (): Promise<number> => (await new CacheDirectory(disk).space()).free;

  test("by others: the cache makes room for them, reads go on, and it comes back", async () => {
    const bytes = sampleBytes(16 << 20);
    const origin = new MemoryOrigin(bytes);
    const cache = new FileCache(join(disk, "cache"), { unit: EVICTION_UNIT, capacity: 2 ** 30 });
    for (let i = 1; i < 4; i++) await fill(cache, evictedDigest(i), bytes.subarray(0, 8 << 20));
    const blob = await cache.open(evictedDigest(0), origin);
    await blob.read(0, 4 << 20);
    const others = openSync(join(disk, "others"), "w");
    await $`fallocate -l ${(await free()) - (1 << 20)} ${join(disk, "others")}`.quiet();
    expect(Buffer.compare(await blob.read(0, bytes.length), bytes)).toBe(0);
    // A twentieth of the disk is left free for others, if only they leave it.
    expect(await free()).toBeGreaterThan((64 << 20) / 20 - (1 << 20));
    expect(readdirSync(join(disk, "cache")).filter((name) => /:[123]+$/.test(name)).length).toBeLessThan(3);
    closeSync(others);
    await blob.close();
  });

  test("to the last byte: units are given up or read from memory, never wrong", async () => {
    const bytes = sampleBytes(4 << 20);
    const cache = new FileCache(join(disk, "cache"), { unit: EVICTION_UNIT, capacity: 2 ** 30 });
    const blob = await cache.open(evictedDigest(0), new MemoryOrigin(bytes));
    await blob.read(0, 1 << 20);
    await $`head -c 64m /dev/zero > ${join(disk, "others")}`.quiet().nothrow();
    const next = random(4);
    for (let i = 0; i < 50; i++) {
      const offset = Math.floor(next() * bytes.length);
      const length = Math.min(Math.floor(next() * 300_000), bytes.length - offset);
      expect(Buffer.compare(await blob.read(offset, length), bytes.subarray(offset, offset + length))).toBe(
        0,
      );
    }
    expect(cache.stats().refused + cache.stats().evicted).toBeGreaterThan(0);
    await blob.close();
  });
});
