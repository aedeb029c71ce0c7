/**
 * A process that reads several objects through a small cache that others use too, checks every byte, and opens and closes
 * them as it goes: `bun evicting_reader.ts DIRECTORY CAPACITY SEED ROUNDS`. Exit code 0 when all was right.
 */
import type { Blob } from "../../src/blob/blob.ts";
import { FileCache } from "../../src/blob/cache.ts";
import { random } from "../fixtures/random.ts";
import { MemoryOrigin, sampleBytes } from "./origin.ts";

export const EVICTION_UNIT = 16 << 10;
const OBJECTS = 6;

export const evictedDigest = (i: number): string => `sha256:${String(i).repeat(64)}`;
export const evictedBytes = (i: number): Uint8Array => sampleBytes((256 << 10) + i * 70_001, i + 100);

if (import.meta.main) {
  const [directory, capacity, seed, rounds] = process.argv.slice(2);
  const next = random(Number(seed));
  const pick = (below: number): number => Math.floor(next() * below);
  const cache = new FileCache(directory, { unit: EVICTION_UNIT, capacity: Number(capacity) });
  const contents = Array.from({ length: OBJECTS }, (_, i) => evictedBytes(i));
  const open: (Blob | null)[] = contents.map(() => null);
  process.stdout.write("ready\n");
  for (let round = 0; round < Number(rounds); round++) {
    const i = pick(OBJECTS);
    if (open[i] && next() < 0.2) {
      await open[i].close();
      open[i] = null;
      continue;
    }
    open[i] ??= await cache.open(evictedDigest(i), new MemoryOrigin(contents[i]));
    const blob = open[i];
    const reads = Array.from({ length: 4 }, async () => {
      const offset = pick(blob.size);
      const length = Math.min(pick(100_000), blob.size - offset);
      const got = await blob.read(offset, length);
      if (Buffer.compare(got, contents[i].subarray(offset, offset + length)) === 0) return;
      process.stdout.write(`wrong bytes in ${length} at ${offset} of object ${i}\n`);
      process.exit(1);
    });
    await Promise.all(reads);
  }
  for (const blob of open) await blob?.close();
}
