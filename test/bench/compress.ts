/**
 * The parallel compressor against the bare codec: MB/s of uncompressed bytes, medians of 5 runs, and the ratio to one
 * core that does nothing but compress blocks and compute their checksums. Input: Bun's own executable, which is machine
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

function median(run: () => void, prepare = () => {}): number {
  const seconds = Array.from({ length: RUNS }, () => {
    prepare();
    const start = performance.now();
    run();
    return (performance.now() - start) / 1000;
  });
  return seconds.sort((a, b) => a - b)[RUNS >> 1];
}

function report(what: string, bytes: number, seconds: number, bare?: number): void {
  const ratio = bare === undefined ? "" : `  ${(bare / seconds).toFixed(2)} × one bare core`;
  console.log(`${what.padEnd(28)} ${(bytes / seconds / 1e6).toFixed(0).padStart(6)} MB/s${ratio}`);
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
    const bare = median(() => {
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
      const seconds = median(compress, () => {
        ftruncateSync(fd, 0);
        fsyncSync(fd);
      });
      report(`${name}, ${threads} thread${threads > 1 ? "s" : ""} to a file`, bytes, seconds, bare);
    }
  }
  let size = 0;
  const seconds = median(() => {
    size = hashFile(path).size;
  });
  report("SHA-256 of a file", size, seconds);
  closeSync(fd);
} finally {
  rmSync(folder, { recursive: true });
}
