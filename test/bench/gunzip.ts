/**
 * Decompression of a layer: our stream (with and without hashing) against `gzip -dc`, of the same file in the same run.
 *   bun test/bench/gunzip.ts [FILE.tar.gz]
 */
import { closeSync, openSync } from "node:fs";
import { $ } from "bun";
import { TarReader } from "../../src/format/tar/reader.ts";
import { openStream, type StreamOptions } from "../../src/native/inflate.ts";
import { benchInput } from "./inputs.ts";

const RUNS = 5;
const path = process.argv[2] ?? (await benchInput("small"));

async function median(run: () => Promise<unknown> | unknown): Promise<number> {
  const times: number[] = [];
  for (let i = 0; i < RUNS; i++) {
    const start = performance.now();
    await run();
    times.push((performance.now() - start) / 1000);
  }
  return times.sort((a, b) => a - b)[RUNS >> 1] as number;
}

let outputBytes = 0;

function drain(options: StreamOptions): void {
  const fd = openSync(path, "r");
  const stream = openStream(fd, options);
  while (stream.next());
  outputBytes = stream.summary().outputBytes;
  closeSync(fd);
}

let members = 0;

function parse(): void {
  const fd = openSync(path, "r");
  const stream = openStream(fd);
  const reader = new TarReader(stream, path);
  for (members = 0; reader.next(); members++) while (reader.read());
  stream.close();
  closeSync(fd);
}

const gzip = await median(() => $`gzip -dc ${path} > /dev/null`);
const cases: [string, number][] = [
  ["stream", await median(() => drain({}))],
  ["stream, input hashed", await median(() => drain({ hashInput: true }))],
  ["stream, both hashed", await median(() => drain({ hashInput: true, hashOutput: true }))],
  ["stream, tar parsed", await median(parse)],
];
console.log(`${path}: ${(outputBytes / 1e6).toFixed(0)} MB in ${members} members, medians of ${RUNS}`);
console.log(`gzip -dc              ${gzip.toFixed(3)} s  ${(outputBytes / 1e6 / gzip).toFixed(0)} MB/s`);
for (const [name, seconds] of cases) {
  const speed = (outputBytes / 1e6 / seconds).toFixed(0);
  console.log(
    `${name.padEnd(21)} ${seconds.toFixed(3)} s  ${speed} MB/s  ${(seconds / gzip).toFixed(2)} × gzip -dc`,
  );
}
