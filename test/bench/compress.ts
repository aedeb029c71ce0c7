/**
 * The parallel compressor against the bare codec: MB/s of uncompressed bytes, medians of 5 runs, with speed and
 * CPU time relative to one core that does nothing but compress blocks and compute their checksums. Input: Bun's own executable, which is machine
 * code and data like much of an image, repeated to 512 MiB; output: a file under the temporary folder.
 *
 *   bun test/bench/compress.ts
 */
import { closeSync, fsyncSync, ftruncateSync, mkdtempSync, openSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { compressBlock, compressBound, crc32c } from "../../src/native/codec.ts";
import { BlockCompressor } from "../../src/native/compressor.ts";
import { hashFile } from "../../src/native/hash.ts";

const TOTAL = 512 << 20;
const BLOCK = 4096;
const PIECE = 1 << 20;
const RUNS = 5;

const executable = readFileSync(process.execPath);
const input = new Uint8Array(TOTAL);
for (let at = 0; at < TOTAL; at += executable.length) input.set(executable.subarray(0, TOTAL - at), at);

interface Cost {
  readonly seconds: number;
  /** Of all threads together. */
  readonly cpuSeconds: number;
}

/** Medians of several runs; `prepare` is not measured. */
function measure(run: () => void, prepare = () => {}): Cost {
  const costs = Array.from({ length: RUNS }, (): Cost => {
    prepare();
    const start = performance.now();
    const cpu = process.cpuUsage();
    run();
    const { user, system } = process.cpuUsage(cpu);
    return { seconds: (performance.now() - start) / 1e3, cpuSeconds: (user + system) / 1e6 };
  });
  const median = (values: readonly number[]) => values.toSorted((a, b) => a - b)[RUNS >> 1];
  return {
    seconds: median(costs.map((cost) => cost.seconds)),
    cpuSeconds: median(costs.map((cost) => cost.cpuSeconds)),
  };
}

function report(what: string, bytes: number, cost: Cost, bare?: Cost): void {
  console.log(`${what.padEnd(28)} ${(bytes / cost.seconds / 1e6).toFixed(0).padStart(6)} MB/s`);
  if (bare === undefined) return;
  const [speed, cpu] = [bare.seconds / cost.seconds, cost.cpuSeconds / bare.cpuSeconds];
  console.log(
    `${" ".repeat(29)}${speed.toFixed(2)} × as fast as the bare loop, ${cpu.toFixed(2)} × its CPU time`,
  );
}

const folder = mkdtempSync(join(tmpdir(), "overlaybd-bench-"));
try {
  const path = join(folder, "blocks");
  const fd = openSync(path, "w+");
  for (const [name, codec, bytes] of [
    ["LZ4", 1, TOTAL],
    ["zstd", 2, TOTAL / 4],
  ] as const) {
    const target = new Uint8Array(compressBound(codec, BLOCK));
    const bare = measure(() => {
      for (let at = 0; at < bytes; at += BLOCK) {
        const stored = compressBlock(codec, input.subarray(at, at + BLOCK), target);
        crc32c(target.subarray(0, stored), 100007);
      }
    });
    report(`${name}, bare loop`, bytes, bare);
    for (const threads of [1, 2]) {
      const compress = () => {
        const compressor = new BlockCompressor({
          fd,
          offset: 0,
          codec,
          blockSize: BLOCK,
          checksum: true,
          threads,
        });
        for (let at = 0; at < bytes; at += PIECE) compressor.append(input.subarray(at, at + PIECE));
        compressor.finish();
        compressor.close();
      };
      const cost = measure(compress, () => {
        ftruncateSync(fd, 0);
        fsyncSync(fd);
      });
      report(`${name}, ${threads} thread${threads > 1 ? "s" : ""} to a file`, bytes, cost, bare);
    }
  }
  let size = 0;
  const cost = measure(() => {
    size = hashFile(path).size;
  });
  report("SHA-256 of a file", size, cost);
  closeSync(fd);
} finally {
  rmSync(folder, { recursive: true });
}
