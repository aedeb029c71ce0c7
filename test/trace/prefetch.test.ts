/** Replaying traces: what is fetched, in which order, and how it makes way for reads. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { FileCache } from "../../src/blob/cache.ts";
import { encodeTrace, type Trace } from "../../src/format/trace.ts";
import { VirtualDisk } from "../../src/image/disk.ts";
import { type OpenImage, openStack } from "../../src/image/open.ts";
import { Prefetch } from "../../src/image/prefetch.ts";
import { readDisk } from "../../src/image/read.ts";
import type { MissingRange } from "../../src/image/tables.ts";
import { prefetchFrom, recordTo, type TraceUse } from "../../src/image/trace_use.ts";
import { WantedUnits } from "../../src/image/wanted.ts";
import { MemoryOrigin } from "../blob/origin.ts";
import { random } from "../fixtures/random.ts";
import { FORMATS, randomRange, writeRandomLayer } from "../image/stack.ts";

const SIZE = 8 << 20;
const UNIT = 16 << 10;
let directory: string;
let files = 0;
const newPath = () => join(directory, `file-${files++}`);

beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), "overlaybd-prefetch-"));
});
afterAll(() => rmSync(directory, { recursive: true, force: true }));

/** Blobs of a stack of random layers, bottom first. */
function randomBlobs(seed: number): Uint8Array[] {
  const model = new Uint8Array(SIZE);
  return [0, 1, 2].map((i) => {
    const path = newPath();
    writeRandomLayer(path, model, seed * 10 + i, FORMATS[(seed + 3 * i) % FORMATS.length]);
    return readFileSync(path);
  });
}

/** Opens blobs with an empty cache. */
async function open(blobs: readonly Uint8Array[], trace?: TraceUse) {
  const cache = new FileCache(newPath(), { unit: UNIT });
  const origins = blobs.map((bytes) => new MemoryOrigin(bytes));
  const openers = origins.map((origin, i) => () => cache.open(`sha256:${`${i}`.repeat(64)}`, origin));
  return { image: await openStack(openers, trace, {}), origins };
}

/** Numbers of the units that are there, of each layer. */
function resident(image: OpenImage): number[][] {
  return image.layers.map(({ blob }) => {
    const bits = blob.view.valid?.bits ?? new Uint32Array();
    return Array.from({ length: Math.ceil(blob.size / UNIT) }, (_, i) => i).filter(
      (unit) => (bits[unit >>> 5] >>> (unit & 31)) & 1,
    );
  });
}

async function settled(image: OpenImage, expected: number[][]): Promise<void> {
  for (let i = 0; i < 500 && !Bun.deepEquals(resident(image), expected); i++) await Bun.sleep(10);
}

function requests(origins: readonly MemoryOrigin[]): number {
  return origins.reduce((sum, origin) => sum + origin.requests.length, 0);
}

describe("replaying a trace", () => {
  test.each([1, 2, 3, 4, 5])("fetches exactly the units that the recorded reads touch (%d)", async (seed) => {
    const blobs = randomBlobs(seed);
    const path = newPath();
    const recorded = await open(blobs, await recordTo(path));
    const disk = new VirtualDisk(recorded.image.tables);
    const next = random(seed);
    for (let round = 0; round < 20; round++) {
      const { offset, length } = randomRange(SIZE, next);
      await readDisk(recorded.image, disk, offset, new Uint8Array(length));
    }
    disk.close();
    const expected = resident(recorded.image);
    await recorded.image.close();

    const replayed = await open(blobs, prefetchFrom(path));
    replayed.image.prefetch();
    await settled(replayed.image, expected);
    expect(resident(replayed.image)).toEqual(expected);
    await replayed.image.close();
    // Neither more, nor once again: also not after the last was there.
    expect(resident(replayed.image)).toEqual(expected);
    expect(requests(replayed.origins)).toBeLessThan(requests(recorded.origins));
    const fetched = (origins: readonly MemoryOrigin[]) =>
      origins.flatMap((origin) => origin.requests).reduce((sum, { length }) => sum + length, 0);
    expect(fetched(replayed.origins)).toBe(fetched(recorded.origins));
  });

  const useless: [string, () => Uint8Array][] = [
    [
      "damaged",
      () =>
        encodeTrace(traceOf([[0, 0, SIZE]]))
          .fill(0, 30, 31)
          .fill(9, 40, 41),
    ],
    ["of layers that are not there", () => encodeTrace(traceOf([[7, 0, 4096]]))],
    ["of bytes behind the layers", () => encodeTrace(traceOf([[0, 2 ** 50, 4096]]))],
  ];
  test.each(useless)("%s fetches nothing and harms nobody", async (_, trace) => {
    const path = newPath();
    writeFileSync(path, trace());
    const blobs = randomBlobs(1);
    const { image } = await open(blobs, prefetchFrom(path));
    const before = resident(image);
    image.prefetch();
    const disk = new VirtualDisk(image.tables);
    await image.close();
    disk.close();
    expect(resident(image)).toEqual(before);
  });

  test("does not keep an image from closing while it is awaited", async () => {
    const content = new Promise<Uint8Array>(() => {});
    const { image } = await open(randomBlobs(1), { kind: "prefetch", name: "a slow registry", content });
    image.prefetch();
    await image.close();
  });

  test("goes on behind a range that cannot be fetched", async () => {
    const path = newPath();
    writeFileSync(path, encodeTrace(traceOf([0, 1, 2].map((layer) => [layer, 0, SIZE]))));
    const { image, origins } = await open(randomBlobs(2), prefetchFrom(path));
    let failing = 3;
    origins[0].fault = (answer) => {
      if (failing-- > 0) throw new Error("the registry is away");
      return answer;
    };
    image.prefetch();
    const whole = (position: number) => image.layers[position].blob.size / UNIT;
    for (let i = 0; i < 500 && resident(image)[0].length < whole(0); i++) await Bun.sleep(10);
    expect(resident(image)[0].length).toBe(Math.ceil(whole(0)));
    expect(resident(image)[1].length).toBe(Math.ceil(whole(1)));
    await image.close();
  });
});

function traceOf(reads: readonly (readonly [layer: number, offset: number, length: number])[]): Trace {
  return {
    count: reads.length,
    layers: Uint8Array.from(reads, ([layer]) => layer),
    offsets: Float64Array.from(reads, ([, offset]) => offset),
    lengths: Float64Array.from(reads, ([, , length]) => length),
  };
}

describe("wanted units", () => {
  const unit = 4096;
  const size = 64 * unit + 100;
  const disk = () => ({
    start: 0,
    blob: {
      name: "blob",
      fd: -1,
      size,
      valid: {
        bits: new Uint32Array(new SharedArrayBuffer(12)),
        used: new Uint32Array(new SharedArrayBuffer(12)),
        epoch: new Uint32Array(new SharedArrayBuffer(4)),
        unit,
      },
    },
  });
  const all = (wanted: WantedUnits, most: number) => {
    const ranges: MissingRange[] = [];
    for (let range = wanted.take(most); range; range = wanted.take(most)) ranges.push(range);
    return ranges.map(({ layer, offset, length }) => [layer, offset / unit, length / unit]);
  };

  test("come in the order of the reads, adjoining ones together, each once", () => {
    const wanted = new WantedUnits([disk(), disk()]);
    for (const [layer, first, count] of [
      [0, 10, 1],
      [1, 3, 2],
      [0, 12, 1],
      [0, 11, 1],
      [0, 10, 3],
      [0, 40, 9],
    ])
      wanted.add(layer, first * unit + 5, count * unit - 9);
    expect(all(wanted, 4 * unit)).toEqual([
      [0, 10, 3],
      [1, 3, 2],
      [0, 40, 4],
      [0, 44, 4],
      [0, 48, 1],
    ]);
  });

  test("are cut at the end of the blob, and left out when they are there", () => {
    const lazy = disk();
    lazy.blob.valid.bits[1] = 1 << 2;
    const wanted = new WantedUnits([lazy]);
    wanted.add(0, 32 * unit, 10 ** 12);
    const ranges = all(wanted, 2 ** 30);
    expect(ranges).toEqual([
      [0, 32, 2],
      [0, 35, 29 + 100 / unit],
    ]);
  });

  test("are bounded, however much reads name", () => {
    const wanted = new WantedUnits([disk()]);
    let taken = 0;
    while (wanted.add(0, 0, size)) taken++;
    expect(taken).toBeGreaterThan(1000);
    expect(all(wanted, 2 ** 30)).toEqual([[0, 0, size / unit]]);
  });
});

describe("prefetching", () => {
  /** A fetch that ends when told to. */
  function slowFetch() {
    const waiting: PromiseWithResolvers<void>[] = [];
    const fetch = () => {
      const end = Promise.withResolvers<void>();
      waiting.push(end);
      return end.promise;
    };
    return { waiting, fetch };
  }

  const bytes = (length: number) => ({ layer: 0, offset: 0, length });
  /** So many ranges of one length. */
  function ranges(count: number, length: number) {
    let left = count;
    return { take: () => (left-- > 0 ? bytes(length) : null) };
  }
  const turn = () => Bun.sleep(1);

  test("keeps to the number of requests", async () => {
    const { waiting, fetch } = slowFetch();
    const done = new Prefetch(fetch, 3).run(ranges(10, 1000));
    await turn();
    expect(waiting.length).toBe(3);
    for (let i = 0; i < 10; i++) {
      waiting[i].resolve();
      await turn();
      expect(waiting.length).toBe(Math.min(10, i + 4));
    }
    expect(await done).toEqual({ bytes: 10_000, requests: 10, failures: 0 });
  });

  test("has two requests on their way while a read waits", async () => {
    const { waiting, fetch } = slowFetch();
    const prefetch = new Prefetch(fetch, 16);
    const read = prefetch.demand(bytes(1));
    const done = prefetch.run(ranges(6, 1000));
    await turn();
    expect(waiting.length).toBe(3);
    waiting[1].resolve();
    await turn();
    expect(waiting.length).toBe(4);
    waiting[0].resolve();
    await read;
    await turn();
    expect(waiting.length).toBe(7);
    for (const { resolve } of waiting) resolve();
    await done;
  });

  test("never has many bytes on their way before it knows the network", async () => {
    const { waiting, fetch } = slowFetch();
    const done = new Prefetch(fetch, 16).run(ranges(20, 256 << 10));
    await turn();
    expect(waiting.length).toBe(4);
    const ending = setInterval(() => waiting.at(-1)?.resolve(), 1);
    for (let i = 0; i < 20; i++) {
      waiting[i]?.resolve();
      await turn();
    }
    for (const { resolve } of waiting) resolve();
    await done;
    clearInterval(ending);
  });

  test("stops at once, and gives up when nothing can be fetched", async () => {
    const { waiting, fetch } = slowFetch();
    const prefetch = new Prefetch(fetch, 2);
    const done = prefetch.run(ranges(10, 1000));
    await turn();
    prefetch.stop();
    for (const { resolve } of waiting) resolve();
    expect((await done).requests).toBe(2);

    let asked = 0;
    const failing = new Prefetch(async () => {
      asked++;
      throw new Error("no");
    }, 2);
    const { failures } = await failing.run(ranges(1000, 1000));
    expect(failures).toBe(asked);
    expect(asked).toBeLessThan(20);
  });
});
