/** Damaged and hostile layers, made from a small corpus by seeded mutations: an OverlaybdError, or a sound index. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { OverlaybdError } from "../../src/error.ts";
import { openLayer } from "../../src/format/lsmt/layer.ts";
import { openWritableLayer } from "../../src/format/lsmt/pair.ts";
import {
  type SegmentTable,
  segmentEnd,
  segmentMoffset,
  segmentStart,
  segmentZeroed,
} from "../../src/format/lsmt/segments.ts";
import { random } from "../fixtures/random.ts";
import { MemorySource } from "./memory.ts";

const corpus = join(import.meta.dir, "corpus");
const ROUNDS = 6000;

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "overlaybd-fuzz-"));
});
afterAll(() => rmSync(folder, { recursive: true }));

/** Numbers that tend to break size checks. */
const NASTY = [0, 1, 7, 8, 0x7fffffff, 0x80000000, 0xffffffff, 4096, 1_000_001];

/** Where the fields are: most of a layer is empty. */
function positions(seed: Uint8Array): number[] {
  return [...seed.keys()].filter((i) => seed[i] !== 0 || (i > 0 && seed[i - 1] !== 0));
}

/** One to four changes: bits, bytes, words with nasty values, copied blocks, another length. */
function mutate(seed: Uint8Array, used: readonly number[], next: () => number): Uint8Array {
  let bytes = Buffer.from(seed);
  const pick = (count: number): number => Math.floor(next() * count);
  const position = (): number => (next() < 0.8 ? used[pick(used.length)] : pick(bytes.length)) % bytes.length;
  for (let changes = 1 + pick(4); changes > 0 && bytes.length > 8; changes--) {
    const at = position();
    const kind = pick(6);
    if (kind === 0) bytes[at] ^= 1 << pick(8);
    else if (kind === 1) bytes[at] = pick(256);
    else if (kind === 2) bytes.writeUInt32LE(NASTY[pick(NASTY.length)], Math.min(at & ~3, bytes.length - 4));
    else if (kind === 3) bytes.copy(bytes, position() & ~15, at & ~15, (at & ~15) + 16);
    else if (kind === 4) bytes.fill(0xff, at, Math.min(at + 8, bytes.length));
    else if (next() < 0.3)
      bytes = Buffer.from(bytes.subarray(0, next() < 0.5 ? at : bytes.length - pick(600)));
  }
  return bytes;
}

function expectSound(table: SegmentTable, fileSectors: number): void {
  let end = 0;
  for (let i = 0; i < table.count; i++) {
    const start = segmentStart(table, i);
    const mappedEnd = segmentMoffset(table, i) + (segmentZeroed(table, i) ? 0 : segmentEnd(table, i) - start);
    if (start < end || segmentEnd(table, i) <= start || mappedEnd > fileSectors) {
      throw new Error(`segment ${i} at sector ${start} is unsound`);
    }
    end = segmentEnd(table, i);
  }
}

for (const name of readdirSync(corpus).filter((file) => file.endsWith(".layer"))) {
  test(`${name}, ${ROUNDS} mutations`, async () => {
    const seed = readFileSync(join(corpus, name));
    const next = random(seed.length);
    const used = positions(seed);
    let refused = 0;
    for (let round = 0; round < ROUNDS; round++) {
      const bytes = mutate(seed, used, next);
      try {
        const { segments } = await openLayer(new MemorySource(bytes));
        expectSound(segments, Math.floor(bytes.length / 512));
      } catch (error) {
        if (!(error instanceof OverlaybdError)) throw new Error(`round ${round}`, { cause: error });
        refused++;
      }
    }
    expect(refused).toBeGreaterThan(ROUNDS / 20);
    expect(refused).toBeLessThan(ROUNDS);
  });
}

test(`a writable pair, ${ROUNDS / 3} mutations`, () => {
  const data = readFileSync(join(corpus, "append.data"));
  const index = readFileSync(join(corpus, "append.index"));
  const paths = [join(folder, "data"), join(folder, "index")] as const;
  const next = random(7);
  const [dataUsed, indexUsed] = [positions(data), positions(index)];
  let refused = 0;
  for (let round = 0; round < ROUNDS / 3; round++) {
    writeFileSync(paths[0], next() < 0.3 ? mutate(data, dataUsed, next) : data);
    writeFileSync(paths[1], next() < 0.9 ? mutate(index, indexUsed, next) : index);
    try {
      const layer = openWritableLayer(...paths);
      expectSound(layer.segments(), Math.ceil(layer.file.size / 512));
      layer.close();
    } catch (error) {
      if (!(error instanceof OverlaybdError)) throw new Error(`round ${round}`, { cause: error });
      refused++;
    }
  }
  expect(refused).toBeGreaterThan(ROUNDS / 60);
  expect(refused).toBeLessThan(ROUNDS / 3);
});
