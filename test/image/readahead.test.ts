/** Reading ahead: sequences are recognised, little is fetched in vain, and a failure ends it. */
import { beforeEach, describe, expect, test } from "bun:test";
import { addUnit, emptyResidency, hasUnit, useRange } from "../../src/blob/residency.ts";
import { LayerReadAhead } from "../../src/image/readahead.ts";
import { random } from "../fixtures/random.ts";

const UNIT = 256 << 10;
const SIZE = 1000 * UNIT + 12_345;
const MIB = 1 << 20;

let residency: ReturnType<typeof emptyResidency>;
let fetched: { offset: number; length: number }[];
let finish: (() => void)[];
let ahead: LayerReadAhead;

function bring(offset: number, length: number): void {
  for (let unit = Math.floor(offset / UNIT); unit * UNIT < offset + length; unit++) addUnit(residency, unit);
}

beforeEach(() => {
  residency = emptyResidency(SIZE, UNIT, new Uint32Array(new SharedArrayBuffer(4)));
  fetched = [];
  finish = [];
  ahead = new LayerReadAhead({ size: SIZE }, residency, (offset, length) => {
    fetched.push({ offset, length });
    return new Promise((resolve) => {
      finish.push(() => {
        bring(offset, length);
        resolve();
      });
    });
  });
});

const sum = () => fetched.reduce((bytes, { length }) => bytes + length, 0);

/** A reader that reports what is not there, one unit at a time, as a disk does. */
async function read(unit: number): Promise<void> {
  const offset = unit * UNIT;
  const length = Math.min(UNIT, SIZE - offset);
  if (!hasUnit(residency, unit)) {
    ahead.missed(offset, length);
    bring(offset, length);
  }
  useRange(residency, offset, length);
}

/** All that is under way arrives. */
async function arrive(): Promise<void> {
  for (const done of finish.splice(0)) done();
  await Bun.sleep(0);
}

test("reads here and there fetch nothing ahead", async () => {
  const next = random(3);
  for (let i = 0; i < 300; i++) await read(Math.floor(next() * 500) * 2);
  expect(fetched).toEqual([]);
});

test("the first MiB in sequence fetches nothing ahead, then as much as was read", async () => {
  for (let unit = 10; unit < 13; unit++) await read(unit);
  expect(fetched).toEqual([]);
  await read(13);
  expect(fetched[0].offset).toBe(14 * UNIT);
  expect(sum()).toBe(MIB);
});

describe("a long sequence", () => {
  test("is fetched by few requests, each byte once, never further ahead than 16 MiB or what was read", async () => {
    for (let unit = 0; unit * UNIT < SIZE; unit++) {
      await read(unit);
      await arrive();
      const front = Math.max(0, ...fetched.map(({ offset, length }) => offset + length));
      expect(front - (unit + 1) * UNIT).toBeLessThanOrEqual(Math.min(16 * MIB, (unit + 1) * UNIT));
    }
    const ordered = fetched.toSorted((a, b) => a.offset - b.offset);
    for (const [i, { offset, length }] of ordered.entries()) {
      expect(offset % UNIT).toBe(0);
      if (i > 0) expect(offset).toBeGreaterThanOrEqual(ordered[i - 1].offset + ordered[i - 1].length);
      expect(length).toBeLessThanOrEqual(8 * MIB);
    }
    const last = ordered[ordered.length - 1];
    expect(last.offset + last.length).toBe(SIZE);
    // The reader misses what it comes to first, now and then; nearly everything is there before it.
    expect(sum()).toBeGreaterThan(0.9 * SIZE);
    expect(fetched.length).toBeLessThan(150);
  });

  test("ends when a fetch fails, and another one begins anew", async () => {
    const failing = new LayerReadAhead({ size: SIZE }, residency, (offset, length) => {
      fetched.push({ offset, length });
      return Promise.reject(new Error("down"));
    });
    for (let unit = 0; unit < 8; unit++) failing.missed(unit * UNIT, UNIT);
    await Bun.sleep(0);
    const tried = fetched.length;
    expect(tried).toBeGreaterThan(0);
    failing.missed(8 * UNIT, UNIT);
    await Bun.sleep(0);
    expect(fetched).toHaveLength(tried);
  });
});

test("over a slow link no more is under way than comes in half a second, or a MiB", async () => {
  const rate = 6 * MIB; // A second.
  let free = performance.now();
  let underWay = 0;
  let most = 0;
  const slow = new LayerReadAhead({ size: SIZE }, residency, async (offset, length) => {
    underWay += length;
    most = Math.max(most, underWay);
    free = Math.max(free, performance.now()) + (length / rate) * 1000;
    await Bun.sleep(free - performance.now());
    bring(offset, length);
    underWay -= length;
  });
  for (let unit = 0; unit < 40; unit++) {
    if (!hasUnit(residency, unit)) slow.missed(unit * UNIT, UNIT);
    while (!hasUnit(residency, unit) && unit > 4) await Bun.sleep(2);
    bring(unit * UNIT, UNIT);
    useRange(residency, unit * UNIT, UNIT);
  }
  expect(most).toBeGreaterThanOrEqual(MIB);
  // Twice as much: a loaded machine measures badly.
  expect(most).toBeLessThanOrEqual(rate);
});

test("several readers of one layer do not confuse each other", async () => {
  for (let i = 0; i < 8; i++) for (const start of [0, 300, 600]) await read(start + i);
  const begins = fetched.map(({ offset }) => Math.floor(offset / UNIT / 300) * 300);
  expect(new Set(begins)).toEqual(new Set([0, 300, 600]));
});
