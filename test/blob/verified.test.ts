import { afterAll, beforeAll, beforeEach, describe, expect, test } from "bun:test";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { FileCache } from "../../src/blob/cache.ts";
import { random } from "../fixtures/random.ts";
import { modelBlob } from "../verity/model.ts";
import { DIGEST, MemoryOrigin, sampleBytes } from "./origin.ts";

/** Two levels of nodes over 80 MiB and a bit; the lower one is kept in two parts. */
const DATA_BYTES = (80 << 20) + 5 * 4096;
const TREE_PART_BYTES = 128 << 10;
const { bytes, root, dataBytes } = modelBlob(sampleBytes(DATA_BYTES, 9));
const verity = { root, dataBytes };
const ONE_LEAF = modelBlob(sampleBytes(4096, 10));

let parent: string;
let directory: string;
let directories = 0;
beforeAll(() => {
  parent = mkdtempSync(join(tmpdir(), "overlaybd-verified-"));
});
beforeEach(() => {
  directory = join(parent, `cache-${directories++}`);
});
afterAll(() => rmSync(parent, { recursive: true }));

function origin(): MemoryOrigin {
  return new MemoryOrigin(bytes, verity);
}

/** Flips one bit of the blob's byte `at` in whatever is sent, `times` times. */
function flip(at: number, times = Number.POSITIVE_INFINITY): NonNullable<MemoryOrigin["fault"]> {
  let left = times;
  return (answer, offset) => {
    if (at >= offset && at < offset + answer.length && left-- > 0) answer[at - offset] ^= 1 << (at & 7);
    return answer;
  };
}

async function expectBytes(from: FileCache, source: MemoryOrigin, offset: number, length: number) {
  const open = await from.open(DIGEST, source);
  try {
    const got = await open.read(offset, length);
    expect(Buffer.compare(got, source.bytes.subarray(offset, offset + length))).toBe(0);
  } finally {
    await open.close();
  }
}

describe("a blob with a tree", () => {
  test.each([4096, 16384, 262144, 4194304])("reads rightly in refill units of %d", async (unit) => {
    const source = origin();
    const open = await new FileCache(directory, { unit }).open(DIGEST, source);
    const next = random(unit);
    const reads = Array.from({ length: 60 }, async () => {
      const offset = Math.floor(next() * bytes.length);
      const length = Math.min(bytes.length - offset, Math.floor(next() ** 3 * (6 << 20)));
      expect(Buffer.compare(await open.read(offset, length), bytes.subarray(offset, offset + length))).toBe(
        0,
      );
    });
    await Promise.all(reads);
    // The tree's end, and all of it.
    expect(await open.read(bytes.length - 1, 1)).toEqual(new Uint8Array(1));
    const tail = await open.read(dataBytes, bytes.length - dataBytes);
    expect(Buffer.compare(tail, bytes.subarray(dataBytes))).toBe(0);
    await open.close();
  });

  test("of one leaf reads rightly", async () => {
    const source = new MemoryOrigin(ONE_LEAF.bytes, ONE_LEAF);
    await expectBytes(new FileCache(directory), source, 0, ONE_LEAF.bytes.length);
    source.fault = flip(4095);
    const other = new FileCache(`${directory}-other`);
    await expect(expectBytes(other, source, 0, 1)).rejects.toMatchObject({ code: "E_CORRUPT" });
  });

  test("fetches its upper levels in one request beside the first data", async () => {
    const source = origin();
    const open = await new FileCache(directory).open(DIGEST, source);
    await open.read(0, 100);
    const [, ...more] = source.requests.splice(0).sort((a, b) => a.offset - b.offset);
    expect(more).toEqual([{ offset: dataBytes, length: TREE_PART_BYTES }]);
    await open.read(60 << 20, 100);
    expect(source.requests.splice(0)).toHaveLength(1);
    await open.read(dataBytes - 100, 100);
    expect(source.requests.splice(0)).toHaveLength(2);
    await open.close();
  });

  test("gives no wrong byte, wherever one is changed: the error names blob and range", async () => {
    const source = origin();
    const next = random(11);
    const places = [
      0,
      16383,
      16384,
      dataBytes - 1,
      dataBytes,
      dataBytes + 31,
      dataBytes + 4096 + 5,
      dataBytes + 8200,
    ];
    places.push(dataBytes + TREE_PART_BYTES, bytes.length - 1025, bytes.length - 1024, bytes.length - 1);
    for (let i = 0; i < 30; i++) places.push(Math.floor(next() * bytes.length));
    for (const [i, place] of places.entries()) {
      source.fault = flip(place);
      const open = await new FileCache(join(directory, `${i}`)).open(DIGEST, source);
      const error = await open.read(place, 1).catch((cause) => cause);
      expect(error).toMatchObject({ code: "E_CORRUPT" });
      const [, begin, end] = /test object: bytes (\d+) to (\d+) are not those/.exec(error.message) ?? [];
      expect(Number(begin)).toBeLessThanOrEqual(place);
      expect(Number(end)).toBeGreaterThan(place);
      expect(Number(end) - Number(begin)).toBeLessThanOrEqual(16384);
      // It is no verdict for ever.
      source.fault = undefined;
      expect(await open.read(place, 1)).toEqual(bytes.slice(place, place + 1));
      await open.close();
    }
  });

  test("asks once more for what is wrong", async () => {
    for (const [i, place] of [5_000_000, dataBytes + 5000].entries()) {
      const source = origin();
      source.fault = flip(place, 1);
      await expectBytes(new FileCache(join(directory, `${i}`)), source, place, 1);
    }
  });

  test("checks a long range piece by piece: what is wrong is asked for once more, the rest is not", async () => {
    const source = origin();
    source.fault = flip(5_000_000, 1);
    const open = await new FileCache(directory).open(DIGEST, source);
    await open.fetch(0, 8 << 20);
    expect(Buffer.compare(await open.read(0, 8 << 20), bytes.subarray(0, 8 << 20))).toBe(0);
    const [first, ...more] = source.requests.filter(({ offset }) => offset < dataBytes);
    expect(first).toEqual({ offset: 0, length: 8 << 20 });
    expect(more[0]).toEqual({ offset: 19 * (256 << 10), length: 256 << 10 });
    await open.close();
  });

  test("keeps of a long range what comes before a lie", async () => {
    const source = origin();
    source.fault = flip(5_000_000);
    const cache = new FileCache(directory);
    const open = await cache.open(DIGEST, source);
    await expect(open.fetch(0, 8 << 20)).rejects.toMatchObject({ code: "E_CORRUPT" });
    source.requests.length = 0;
    expect(await open.read(4_000_000, 10)).toEqual(bytes.slice(4_000_000, 4_000_010));
    expect(source.requests).toEqual([]);
    await open.close();
  });

  test("never lets consistent lies pass: a swapped leaf, a leaf as a node, a foreign tree", async () => {
    const next = random(12);
    const foreign = modelBlob(sampleBytes(DATA_BYTES, 13)).bytes;
    const lies: NonNullable<MemoryOrigin["fault"]>[] = [
      (_, offset) => bytes.slice((offset + 16384) % dataBytes).subarray(0, _.length),
      (answer, offset) => foreign.slice(offset, offset + answer.length),
      (answer) => new Uint8Array(answer.length),
      (answer) => answer.subarray(0, answer.length - 1),
      (answer) => answer.subarray(0, 0),
      (answer) => Buffer.concat([answer, Buffer.alloc(1)]),
    ];
    for (const [i, fault] of lies.entries()) {
      const source = origin();
      source.fault = fault;
      const open = await new FileCache(join(directory, `${i}`)).open(DIGEST, source);
      for (let n = 0; n < 3; n++) {
        const error = await open.read(Math.floor(next() * dataBytes), 1).catch((cause) => cause);
        expect(["E_CORRUPT", "E_REGISTRY"]).toContain(error.code);
      }
      await open.close();
    }
  });
});

describe("a cache of verified blobs", () => {
  test("is read again without the origin, the tree included", async () => {
    await expectBytes(new FileCache(directory), origin(), 70 << 20, 3_000_000);
    const source = origin();
    source.fault = () => {
      throw new Error("the registry is down");
    };
    await expectBytes(new FileCache(directory), source, 70 << 20, 3_000_000);
    expect(source.requests).toEqual([]);
  });

  test("that somebody changed together with its map is fetched again, not believed", async () => {
    const places = [100, 5_000_000, dataBytes - 1];
    for (const unit of [4096, 262144]) {
      const folder = join(directory, `${unit}`);
      for (const place of places) await expectBytes(new FileCache(folder, { unit }), origin(), place, 1);
      const before = { data: file(folder, "verified"), tree: file(folder, "tree") };
      // A cache that believes what it is sent records the same lies with right checksums.
      const forged = bytes.slice();
      for (const place of places) forged[place] ^= 1;
      forged[dataBytes + 4096 + 7] ^= 1;
      const forger = join(folder, "forger");
      for (const place of places)
        await expectBytes(
          new FileCache(forger, { unit: Math.max(unit, 16384) }),
          new MemoryOrigin(forged),
          place,
          1,
        );
      writeFileSync(before.data, readFileSync(join(forger, DIGEST)));
      writeFileSync(
        `${before.data}.map`,
        mapWithHeaderOf(`${before.data}.map`, join(forger, `${DIGEST}.map`)),
      );
      const source = origin();
      const cache = new FileCache(folder, { unit });
      for (const place of places) await expectBytes(cache, source, place, 1);
      expect(cache.stats()).toMatchObject({ damaged: places.length, hits: expect.any(Number) });
      expect(source.requests.length).toBe(places.length);
    }
  });

  test("whose tree somebody changed fetches the tree again", async () => {
    await expectBytes(new FileCache(directory), origin(), 0, 1);
    const path = file(directory, "tree");
    const media = readFileSync(path);
    for (let at = 0; at < TREE_PART_BYTES; at += 4096) media[at] ^= 1;
    writeFileSync(path, media);
    const source = origin();
    await expectBytes(new FileCache(directory), source, 0, 1);
    expect(source.requests).toEqual([{ offset: dataBytes, length: TREE_PART_BYTES }]);
  });

  test("reads rightly while it must give up most of what it has, the tree included", async () => {
    const capacity = 8 << 20;
    const cache = new FileCache(directory, { capacity });
    const source = origin();
    const open = await cache.open(DIGEST, source);
    const next = random(14);
    const readSome = async () => {
      for (let i = 0; i < 25; i++) {
        const offset = Math.floor(next() * (bytes.length - 500_000));
        const got = await open.read(offset, 500_000);
        expect(Buffer.compare(got, bytes.subarray(offset, offset + 500_000))).toBe(0);
      }
    };
    await Promise.all([readSome(), readSome(), readSome()]);
    expect(cache.stats().evicted).toBeGreaterThan(0);
    await open.close();
  });

  test("is not shared with those who do not check", async () => {
    const cache = new FileCache(directory);
    const forged = new MemoryOrigin(sampleBytes(bytes.length, 15));
    const [trusting, checking] = await Promise.all([
      cache.open(DIGEST, forged),
      cache.open(DIGEST, origin()),
    ]);
    expect(await trusting.read(0, 10)).toEqual(forged.bytes.slice(0, 10));
    expect(await checking.read(0, 10)).toEqual(bytes.slice(0, 10));
    await trusting.close();
    await checking.close();
    await expectBytes(cache, origin(), 0, 10);
  });

  test("is shared by those who check the same, to the last of them", async () => {
    const cache = new FileCache(directory);
    const [one, other] = await Promise.all([cache.open(DIGEST, origin()), cache.open(DIGEST, origin())]);
    await one.read(0, 10);
    await one.close();
    expect(await other.read(70 << 20, 10)).toEqual(bytes.slice(70 << 20, (70 << 20) + 10));
    await other.close();
    expect(cache.stats().fetchedBytes).toBe(2 * (256 << 10) + bytes.length - 1024 - dataBytes);
  });
});

/** The media file of that kind. */
function file(folder: string, kind: "verified" | "tree"): string {
  const name = readdirSync(folder).find((entry) => entry.startsWith(`${kind}:`) && !entry.endsWith(".map"));
  if (name === undefined) throw new Error(`${folder} holds no ${kind} file`);
  return join(folder, name);
}

/** The records of one map under the header of another. */
function mapWithHeaderOf(header: string, records: string): Uint8Array {
  return Buffer.concat([readFileSync(header).subarray(0, 32), readFileSync(records).subarray(32)]);
}
