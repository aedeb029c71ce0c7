/**
 * Mutations of the files in corpus/, seeded, so that a failure repeats. `ZFILE_FUZZ_ROUNDS` sets how many per file.
 *
 * A third of the mutations gets right digests again, as an attacker would: those may read as anything, within bounds.
 * The rest is damage: it must be found, or not matter.
 */
import { expect, test } from "bun:test";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { OverlaybdError } from "../../src/error.ts";
import { unwrapTar } from "../../src/format/tar/wrapper.ts";
import { isZFile, openZFile } from "../../src/format/zfile/open.ts";
import { ZFileSource } from "../../src/format/zfile/reader.ts";
import { crc32c } from "../../src/native/codec.ts";
import { random } from "../fixtures/random.ts";
import { MemorySource } from "./zfile.ts";

const ROUNDS = Number(process.env.ZFILE_FUZZ_ROUNDS ?? 3000);
const corpus = join(import.meta.dir, "corpus");
const INTERESTING = [0, 1, 4, 5, 255, 511, 512, 4096, 65535, 65536, 2 ** 28, 2 ** 31, 2 ** 32 - 1];

/** The layer's bytes, or null when they are found to be damaged. Any other failure is the test's. */
async function read(file: Uint8Array): Promise<Uint8Array | null> {
  try {
    const { start, size } = await unwrapTar(new MemorySource(file));
    const stored = new MemorySource(file.subarray(start, start + size));
    if (!(await isZFile(stored))) return null;
    const source = new ZFileSource(stored, await openZFile(stored));
    const pieces: Uint8Array[] = [];
    for (let at = 0; at < source.size; at += 1 << 20) {
      pieces.push(await source.read(at, Math.min(1 << 20, source.size - at)));
    }
    return new Uint8Array(Buffer.concat(pieces));
  } catch (error) {
    if (error instanceof OverlaybdError) return null;
    throw error;
  }
}

function mutate(original: Uint8Array, next: () => number): Uint8Array {
  const below = (limit: number) => Math.floor(next() * limit);
  let file = new Uint8Array(original);
  for (let edits = 1 + below(3); edits > 0; edits--) {
    const view = new DataView(file.buffer);
    // Half of the edits go where the structure is: the first and the last kilobytes.
    const near =
      next() < 0.5 ? below(Math.min(100, file.length)) : Math.max(0, file.length - 1 - below(1100));
    const at = next() < 0.5 ? near : below(file.length);
    const kind = below(5);
    if (kind === 0) file[at] ^= 1 << below(8);
    else if (kind === 1) file[at] = below(256);
    else if (kind === 2 && at + 4 <= file.length)
      view.setUint32(at & ~3, INTERESTING[below(INTERESTING.length)], true);
    else if (kind === 3) file = file.slice(0, at + 1);
    else file.copyWithin(at, below(file.length), below(file.length));
  }
  return file;
}

/** Makes all digests right again that the mutated file's own fields say are there. */
function forgeDigests(file: Uint8Array): void {
  const view = new DataView(file.buffer);
  const blocks = [0, file.length - 512].filter((at) => at >= 0 && at + 512 <= file.length);
  for (const at of blocks.reverse()) {
    const indexOffset = view.getUint32(at + 40, true);
    const entries = view.getUint32(at + 48, true);
    if (indexOffset + entries * 4 <= file.length) {
      view.setUint32(at + 64, crc32c(file.subarray(indexOffset, indexOffset + entries * 4)), true);
    }
    view.setUint32(at + 28, 0, true);
    view.setUint32(at + 28, crc32c(file.subarray(at, at + 512)), true);
  }
}

for (const name of readdirSync(corpus)) {
  test(`mutations of ${name}`, async () => {
    const original = new Uint8Array(readFileSync(join(corpus, name)));
    const plain = await read(original);
    expect(plain).not.toBeNull();
    const checked = !name.includes("nocrc");
    const next = random(Bun.hash.crc32(name));
    const before = process.memoryUsage().rss;
    for (let round = 0; round < ROUNDS; round++) {
      const file = mutate(original, next);
      const forged = round % 3 === 0;
      if (forged) forgeDigests(file);
      const result = await read(file);
      if (result !== null && checked && !forged && Buffer.compare(result, plain as Uint8Array) !== 0) {
        throw new Error(`round ${round} of ${name} read wrong bytes without an error`);
      }
    }
    expect(process.memoryUsage().rss - before).toBeLessThan(512 << 20);
  });
}
