/**
 * The merged index: building one of a million segments and looking sectors up in it; and writing to a writable index.
 * Medians of 5 runs on one core. Targets: build under 1 s, at least 5 million random look-ups a second.
 *
 *   bun test/bench/index.ts
 */
import { mergeSegments } from "../../src/format/lsmt/merge.ts";
import { findSegment, type SegmentTable, SegmentTableBuilder } from "../../src/format/lsmt/segments.ts";
import { WritableIndex } from "../../src/format/lsmt/writable_index.ts";
import { random } from "../fixtures/random.ts";

const SEGMENTS = 1_000_000;
const LOOKUPS = 4_000_000;
const INSERTIONS = 1_000_000;
const RUNS = 5;
/** A disk of 64 GiB, in sectors. */
const SECTORS = 2 ** 27;

const next = random(1);

/** `count` segments of 4 KiB, spread over the disk. */
function layer(count: number): SegmentTable {
  const builder = new SegmentTableBuilder(count);
  const room = Math.floor(SECTORS / count / 8);
  for (let i = 0; i < count; i++) {
    const start = (i * room + Math.floor(next() * room)) * 8;
    builder.push(start, 8, 8 + i * 8, false, 0);
  }
  return builder.build();
}

function medianSeconds(run: () => void): number {
  const seconds = Array.from({ length: RUNS }, () => {
    const begin = performance.now();
    run();
    return (performance.now() - begin) / 1000;
  });
  return seconds.sort((a, b) => a - b)[RUNS >> 1];
}

const sectors = Uint32Array.from({ length: LOOKUPS }, () => Math.floor(next() * SECTORS));
let sum = 0;

for (const depth of [1, 2, 16, 255]) {
  const layers = Array.from({ length: depth }, () => layer(Math.floor(SEGMENTS / depth)));
  let merged = mergeSegments(layers);
  const build = medianSeconds(() => {
    merged = mergeSegments(layers);
  });
  const lookups = medianSeconds(() => {
    for (let i = 0; i < LOOKUPS; i++) sum += findSegment(merged, sectors[i]);
  });
  const rate = (LOOKUPS / lookups / 1e6).toFixed(1);
  console.log(
    `${String(depth).padStart(3)} layers: ${merged.count} segments merged in ${(build * 1000).toFixed(0)} ms, ${rate} million look-ups/s`,
  );
}

const parsed = medianSeconds(() => {
  layer(SEGMENTS);
});
console.log(`a table of ${SEGMENTS} segments, one by one: ${(parsed * 1000).toFixed(0)} ms`);

for (const [what, position] of [
  ["random", (i: number) => (sectors[i] >>> 3) * 8],
  ["ascending", (i: number) => i * 8],
] as const) {
  const seconds = medianSeconds(() => {
    const index = new WritableIndex();
    for (let i = 0; i < INSERTIONS; i++) index.insert(position(i), 8, 8 + i * 8, false);
    sum += index.count;
  });
  const rate = (INSERTIONS / seconds / 1e6).toFixed(2);
  console.log(`${INSERTIONS} ${what} insertions: ${(seconds * 1000).toFixed(0)} ms, ${rate} million/s`);
}
if (!Number.isFinite(sum)) throw new Error("the results were not used");
