/** Indexes in memory against a flat model: one cell for every sector. */
import { describe, expect, test } from "bun:test";
import { mergeSegments, overlaySegments } from "../../src/format/lsmt/merge.ts";
import {
  allocatedSectors,
  findSegment,
  GAP,
  MAX_SEGMENT_SECTORS,
  type SegmentTable,
  SegmentTableBuilder,
  segmentEnd,
  segmentLength,
  segmentMoffset,
  segmentStart,
  segmentTag,
  segmentZeroed,
  walkSegments,
  ZEROED,
} from "../../src/format/lsmt/segments.ts";
import { WritableIndex } from "../../src/format/lsmt/writable_index.ts";
import { random } from "../fixtures/random.ts";

/** What serves each sector: `tag` and `moffset` of a walk's pieces. */
class FlatDisk {
  readonly tags: Int16Array;
  readonly moffsets: Float64Array;

  constructor(readonly sectors: number) {
    this.tags = new Int16Array(sectors).fill(GAP);
    this.moffsets = new Float64Array(sectors);
  }

  put(start: number, length: number, tag: number, moffset: number): void {
    this.tags.fill(tag, start, start + length);
    for (let i = 0; i < length; i++) this.moffsets[start + i] = tag >= 0 ? moffset + i : 0;
  }
}

/** The sectors [start, end) as walking shows them. */
function walked(
  walk: (visit: (start: number, length: number, tag: number, moffset: number) => void) => void,
  start: number,
  end: number,
): FlatDisk {
  const seen = new FlatDisk(end - start);
  let at = start;
  walk((pieceStart, length, tag, moffset) => {
    if (pieceStart !== at || length <= 0) throw new Error(`piece at ${pieceStart}, expected at ${at}`);
    seen.put(pieceStart - start, length, tag, moffset);
    at += length;
  });
  if (at !== end) throw new Error(`walk ended at ${at}, not ${end}`);
  return seen;
}

function expectRange(seen: FlatDisk, model: FlatDisk, start: number, end: number): void {
  const tags = model.tags.subarray(start, end);
  expect(seen.tags.every((tag, i) => tag === tags[i])).toBe(true);
  const wanted = model.moffsets.subarray(start, end);
  expect(seen.moffsets.every((moffset, i) => moffset === wanted[i])).toBe(true);
}

describe("SegmentTable", () => {
  test("finds the first segment ending behind a sector", () => {
    const builder = new SegmentTableBuilder();
    builder.push(10, 5, 8, false, 0);
    builder.push(15, 1, 13, true, 3);
    builder.push(2 ** 32 - 16383, 16383, 2 ** 41 - 1, false, 255);
    const table = builder.build();
    const found = [0, 9, 10, 14, 15, 16, 2 ** 31, 2 ** 32 - 1, 2 ** 32].map((s) => findSegment(table, s));
    expect(found).toEqual([0, 0, 0, 0, 1, 2, 2, 2, 3]);
    expect(segmentStart(table, 2)).toBe(2 ** 32 - 16383);
    expect(segmentEnd(table, 2)).toBe(2 ** 32);
    expect(segmentLength(table, 2)).toBe(16383);
    expect(segmentMoffset(table, 2)).toBe(2 ** 41 - 1);
    expect([0, 1, 2].map((i) => segmentTag(table, i))).toEqual([0, 3, 255]);
    expect([0, 1, 2].map((i) => segmentZeroed(table, i))).toEqual([false, true, false]);
    expect(allocatedSectors(table)).toBe(5 + 16383);
  });

  test("an empty table is one gap", () => {
    const table = new SegmentTableBuilder(0).build();
    expect(findSegment(table, 0)).toBe(0);
    expect(walked((visit) => walkSegments(table, 5, 9, visit), 5, 9).tags.every((tag) => tag === GAP)).toBe(
      true,
    );
  });

  test("takes at most 16 bytes a segment, all in memory that threads can share", () => {
    const builder = new SegmentTableBuilder();
    for (let i = 0; i < 100_000; i++) builder.push(i * 20, 8, i * 8, false, 0);
    const table = builder.build();
    const arrays = [table.lasts, table.moffsets, table.details, table.directory];
    const bytes = arrays.reduce((sum, array) => sum + array.buffer.byteLength, 0);
    expect(bytes).toBeLessThanOrEqual(16 * table.count);
    expect(arrays.every((array) => array.buffer instanceof SharedArrayBuffer)).toBe(true);
  });

  test("refuses what it cannot hold", () => {
    const builder = new SegmentTableBuilder();
    const limit = expect.objectContaining({ code: "E_LIMIT" });
    expect(() => builder.push(2 ** 32 - 1, 2, 8, false, 0)).toThrow(limit);
    expect(() => builder.push(0, 1, 2 ** 41, false, 0)).toThrow(limit);
    expect(() => mergeSegments(Array(256).fill(builder.build()))).toThrow(limit);
  });
});

/** A random layer in which about `filled` of the disk is mapped. */
function randomLayer(
  next: () => number,
  sectors: number,
  longest: number,
): { table: SegmentTable; flat: FlatDisk } {
  const builder = new SegmentTableBuilder();
  const flat = new FlatDisk(sectors);
  let at = 0;
  for (;;) {
    at += next() < 0.4 ? 0 : Math.floor(next() * longest * 3);
    const length = 1 + Math.floor(next() * longest);
    if (at + length > sectors) break;
    const zeroed = next() < 0.2;
    const moffset = 8 + Math.floor(next() * 2 ** 34);
    builder.push(at, length, moffset, zeroed, 0);
    flat.put(at, length, zeroed ? ZEROED : 0, moffset);
    at += length;
  }
  return { table: builder.build(), flat };
}

describe("merged index", () => {
  test("100,000 random ranges of random stacks read as the flat model", () => {
    const next = random(20);
    let checks = 0;
    for (const depth of [1, 2, 3, 5, 16, 40, 255]) {
      const sectors = 3000;
      const layers = Array.from({ length: depth }, () => randomLayer(next, sectors, depth > 20 ? 9 : 40));
      const model = new FlatDisk(sectors);
      for (let tag = depth - 1; tag >= 0; tag--) {
        const { flat } = layers[tag];
        for (let s = 0; s < sectors; s++) {
          if (flat.tags[s] !== GAP) model.put(s, 1, flat.tags[s] === ZEROED ? ZEROED : tag, flat.moffsets[s]);
        }
      }
      const merged = mergeSegments(layers.map((layer) => layer.table));
      expectRange(
        walked((visit) => walkSegments(merged, 0, sectors, visit), 0, sectors),
        model,
        0,
        sectors,
      );
      for (let i = 0; i < 14_300; i++, checks++) {
        const start = Math.floor(next() * sectors);
        const end = Math.min(sectors, start + 1 + Math.floor(next() * 20));
        let at = start;
        walkSegments(merged, start, end, (s, length, tag, moffset) => {
          if (length <= 0) throw new Error(`empty piece at ${s} of [${start}, ${end})`);
          for (let k = 0; k < length; k++) {
            if (
              s !== at ||
              model.tags[s + k] !== tag ||
              (tag >= 0 && model.moffsets[s + k] !== moffset + k)
            ) {
              throw new Error(
                `sector ${s + k} of [${start}, ${end}) reads tag ${tag}, sector ${moffset + k}`,
              );
            }
          }
          at += length;
        });
        expect(at).toBe(end);
      }
    }
    expect(checks).toBeGreaterThanOrEqual(100_000);
  });

  test("laying a layer over a merged index moves the tags below", () => {
    const next = random(21);
    const layers = Array.from({ length: 4 }, () => randomLayer(next, 2000, 30).table);
    const [top, ...rest] = layers;
    const whole = mergeSegments(layers);
    const folded = overlaySegments(top, mergeSegments(rest), 1);
    expect(folded).toEqual(whole);
  });

  test("merging one layer keeps it, merging none is empty", () => {
    const { table } = randomLayer(random(22), 500, 10);
    expect(mergeSegments([table])).toEqual(table);
    expect(mergeSegments([]).count).toBe(0);
  });
});

describe("WritableIndex", () => {
  for (const [what, sectors, longest] of [
    ["short segments", 30_000, 12],
    ["long segments over many", 60_000, MAX_SEGMENT_SECTORS],
  ] as const) {
    test(`100,000 random insertions of ${what} read as the flat model`, () => {
      const next = random(longest);
      const index = new WritableIndex();
      const model = new FlatDisk(sectors);
      const rounds = longest > 1000 ? 20 : 10;
      for (let round = 0; round < rounds; round++) {
        for (let i = 0; i < 100_000 / rounds; i++) {
          const long = next() < 0.001;
          const length = 1 + Math.floor(next() * (long ? longest : 12));
          const start = Math.floor(next() * (sectors - length));
          const zeroed = next() < 0.2;
          const moffset = 8 + Math.floor(next() * 2 ** 33);
          index.insert(start, length, moffset, zeroed);
          model.put(start, length, zeroed ? ZEROED : 0, moffset);
        }
        expectRange(
          walked((visit) => index.walk(0, sectors, visit), 0, sectors),
          model,
          0,
          sectors,
        );
        const table = index.toTable();
        expect(table.count).toBe(index.count);
        expectRange(
          walked((visit) => walkSegments(table, 0, sectors, visit), 0, sectors),
          model,
          0,
          sectors,
        );
        const start = Math.floor(next() * sectors);
        const end = start + Math.floor(next() * (sectors - start));
        expectRange(
          walked((visit) => index.walk(start, end, visit), start, end),
          model,
          start,
          end,
        );
      }
    });
  }

  test("keeps neighbours apart and cuts a surrounding segment in two", () => {
    const index = new WritableIndex();
    index.insert(0, 8, 8, false);
    index.insert(8, 8, 16, false);
    expect(index.count).toBe(2);
    index.insert(2, 3, 100, false);
    expect(index.count).toBe(4);
    index.insert(5, 0, 200, false);
    expect(index.count).toBe(4);
    const pieces: number[][] = [];
    index.walk(1, 20, (...piece) => pieces.push(piece));
    expect(pieces).toEqual([
      [1, 1, 0, 9],
      [2, 3, 0, 100],
      [5, 3, 0, 13],
      [8, 8, 0, 16],
      [16, 4, GAP, 0],
    ]);
  });

  test("refuses sectors beyond 2 TiB", () => {
    const index = new WritableIndex();
    expect(() => index.insert(2 ** 32 - 1, 2, 8, false)).toThrow(
      expect.objectContaining({ code: "E_LIMIT" }),
    );
    index.insert(2 ** 32 - 1, 1, 8, false);
    expect(index.count).toBe(1);
  });
});
