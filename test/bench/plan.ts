/**
 * 4 KiB random reads through look-up, plan and execute from a warm LZ4 layer of 100,000 segments, against the same loop
 * all in C (plan.c). Medians of 5 alternating runs, one core. Target: at least 0.85 of C.
 *
 *   bun test/bench/plan.ts
 */

import { ptr } from "bun:ffi";
import { closeSync, mkdtempSync, openSync, rmSync, writeFileSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { $ } from "bun";
import { SECTOR_BYTES, SegmentTableBuilder } from "../../src/format/lsmt/segments.ts";
import { BlockTableBuilder, CHECKSUM_BYTES, CODEC_LZ4 } from "../../src/format/zfile/blocks.ts";
import { VirtualDisk } from "../../src/image/disk.ts";
import { compressBlock, compressBound, crc32c } from "../../src/native/codec.ts";
import { random } from "../native/random.ts";

const SEGMENTS = 100_000;
const READS = 300_000;
const RUNS = 5;
const BLOCK_BYTES = 4096;
const SEGMENT_SECTORS = BLOCK_BYTES / SECTOR_BYTES;
const BLOCK_SEED = 100007;
const TARGET = 0.85;

const folder = mkdtempSync(join(tmpdir(), "overlaybd-bench-"));
const [indexPath, dataPath, program] = ["index", "blocks", "plan"].map((name) => join(folder, name));

/** Blocks that compress to about half, checksums behind them; a few hundred different ones, again and again. */
function makeBlocks(): Uint8Array[] {
  const { text } = random(1);
  return Array.from({ length: 256 }, () => {
    const target = new Uint8Array(compressBound(CODEC_LZ4, BLOCK_BYTES) + CHECKSUM_BYTES);
    const length = compressBlock(CODEC_LZ4, text(BLOCK_BYTES), target);
    new DataView(target.buffer).setUint32(length, crc32c(target.subarray(0, length), BLOCK_SEED), true);
    return target.slice(0, length + CHECKSUM_BYTES);
  });
}

/** A layer whose segments, one block each, lie in another order in the file than on the disk; block 0 is the header's. */
function makeLayer(fd: number) {
  const { below } = random(2);
  const kinds = makeBlocks();
  const plainSize = (SEGMENTS + 1) * BLOCK_BYTES;
  const blocks = new BlockTableBuilder(
    { codec: CODEC_LZ4, blockSize: BLOCK_BYTES, checksum: true, plainSize },
    0,
  );
  const offsets = new Uint32Array(SEGMENTS + 2);
  let pieces: Uint8Array[] = [];
  for (let i = 0; i <= SEGMENTS; i++) {
    const block = kinds[below(kinds.length)];
    blocks.add(block.length);
    offsets[i + 1] = offsets[i] + block.length;
    pieces.push(block);
    if (pieces.length < 4096 && i < SEGMENTS) continue;
    writeSync(fd, Buffer.concat(pieces));
    pieces = [];
  }
  const order = Uint32Array.from({ length: SEGMENTS }, (_, i) => i + 1);
  for (let i = SEGMENTS - 1; i > 0; i--) {
    const j = below(i + 1);
    [order[i], order[j]] = [order[j], order[i]];
  }
  const segments = new SegmentTableBuilder(SEGMENTS);
  const lasts = new Uint32Array(SEGMENTS);
  order.forEach((block, i) => {
    segments.push(i * SEGMENT_SECTORS, SEGMENT_SECTORS, block * SEGMENT_SECTORS, false, 0);
    lasts[i] = (i + 1) * SEGMENT_SECTORS - 1;
  });
  const sectors = order.map((block) => block * SEGMENT_SECTORS);
  writeFileSync(indexPath, Buffer.concat([Uint32Array.of(SEGMENTS), lasts, sectors, offsets].map(asBytes)));
  return { index: segments.build(), blocks: blocks.finish(), size: offsets[SEGMENTS + 1] };
}

function asBytes(words: Uint32Array): Uint8Array {
  return new Uint8Array(words.buffer, words.byteOffset, words.byteLength);
}

/** Nanoseconds per read, and a sum of bytes read, which is the same in C. */
function run(disk: VirtualDisk, target: Uint8Array): { nanoseconds: number; sum: number } {
  const address = ptr(target);
  let state = 1;
  let sum = 0;
  const start = performance.now();
  for (let i = 0; i < READS; i++) {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    if (disk.read(((state >>> 0) % SEGMENTS) * BLOCK_BYTES, BLOCK_BYTES, address))
      throw new Error("bytes missing");
    sum += target[i % BLOCK_BYTES];
  }
  return { nanoseconds: ((performance.now() - start) * 1e6) / READS, sum };
}

async function runC(): Promise<{ nanoseconds: number; sum: number }> {
  const [nanoseconds, sum] = (await $`${program} ${indexPath} ${dataPath} ${READS}`.text())
    .split(" ")
    .map(Number);
  return { nanoseconds, sum };
}

const median = (values: number[]) => values.toSorted((a, b) => a - b)[values.length >> 1];

try {
  const fd = openSync(dataPath, "w+");
  const { index, blocks, size } = makeLayer(fd);
  const cffi = join(import.meta.dir, "../../cffi");
  const sources = [join(import.meta.dir, "plan.c"), join(cffi, "crc.c")];
  await $`gcc -std=c11 -O2 -D_GNU_SOURCE -I ${cffi} ${sources} -o ${program} -l:liblz4.a`;
  const layer = { blob: { name: dataPath, size, fd }, start: 0, blocks };
  const disk = new VirtualDisk({ size: SEGMENTS * BLOCK_BYTES, index, layers: [layer] });
  const target = new Uint8Array(BLOCK_BYTES);
  run(disk, target);
  const ours: number[] = [];
  const inC: number[] = [];
  for (let i = 0; i < RUNS; i++) {
    const a = run(disk, target);
    const b = await runC();
    if (a.sum !== b.sum) throw new Error(`the two loops read different bytes: ${a.sum}, ${b.sum}`);
    ours.push(a.nanoseconds);
    inC.push(b.nanoseconds);
  }
  disk.close();
  closeSync(fd);
  const ratio = median(inC) / median(ours);
  console.log(`4 KiB random reads: ${median(ours).toFixed(0)} ns, in C ${median(inC).toFixed(0)} ns`);
  console.log(`ratio ${ratio.toFixed(3)} (target ${TARGET})`);
  process.exitCode = ratio >= TARGET ? 0 : 1;
} finally {
  rmSync(folder, { recursive: true });
}
