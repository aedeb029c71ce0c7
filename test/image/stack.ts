/** Random layers, and the flat disk that they must read as. */
import { LayerFile, type LayerFileOptions } from "../../src/format/layerfile.ts";
import { LayerWriter } from "../../src/format/lsmt/writer.ts";
import { random } from "../fixtures/random.ts";

export const SECTOR = 512;

/** Ways to store a layer: bare, compressed by either codec in blocks of every usual size, and wrapped in a tar. */
export const FORMATS: readonly LayerFileOptions[] = [
  {},
  { tar: true },
  ...([1, 2] as const).flatMap((codec) =>
    [4096, 16384, 65536].map((blockSize) => ({
      tar: blockSize !== 4096,
      zfile: { codec, blockSize, checksum: codec === 1, overwriteHeader: blockSize === 4096, threads: 1 },
    })),
  ),
];

/** Bytes that compress about as well as programs do: runs of one value between noise. */
export function contentBytes(length: number, next: () => number): Uint8Array {
  const bytes = new Uint8Array(length);
  for (let at = 0; at < length; ) {
    const run = Math.min(1 + Math.floor(next() * 600), length - at);
    const noise = next() < 0.4;
    const value = Math.floor(next() * 256);
    for (let i = 0; i < run; i++) bytes[at + i] = noise ? Math.floor(next() * 256) : value;
    at += run;
  }
  return bytes;
}

/**
 * Writes a layer with random contents to `path` and applies it to `disk`, the flat model of the stack so far. About a
 * fifth of its ranges are zeroed ones, between them are gaps.
 */
export function writeRandomLayer(
  path: string,
  disk: Uint8Array,
  seed: number,
  options: LayerFileOptions,
): void {
  const next = random(seed);
  const file = new LayerFile(path, options);
  const writer = new LayerWriter(file, { size: disk.length });
  const sectors = disk.length / SECTOR;
  for (let at = Math.floor(next() * 20); at < sectors; ) {
    const length = Math.min(1 + Math.floor(next() ** 5 * 2000), sectors - at);
    const bytes = disk.subarray(at * SECTOR, (at + length) * SECTOR);
    if (next() < 0.2) {
      writer.zero(at * SECTOR, bytes.length);
      bytes.fill(0);
    } else {
      bytes.set(contentBytes(bytes.length, next));
      writer.write(at * SECTOR, bytes);
    }
    at += length + (next() < 0.5 ? 0 : Math.floor(next() ** 2 * 300));
  }
  writer.finish();
  file.finish();
}

/** A random range of whole sectors of `size` bytes; now and then a long one. */
export function randomRange(size: number, next: () => number): { offset: number; length: number } {
  const sectors = size / SECTOR;
  const first = Math.floor(next() * sectors);
  const length = 1 + Math.floor(next() ** 8 * (sectors - first));
  return { offset: first * SECTOR, length: length * SECTOR };
}
