/**
 * A process that reads an object through the cache at random places and checks every byte, until it is killed or has
 * done its rounds: `bun reader.ts DIRECTORY SEED ROUNDS`. Exit code 0 when all was right.
 */
import { FileCache } from "../../src/blob/cache.ts";
import { random } from "../fixtures/random.ts";
import { DIGEST, MemoryOrigin, sampleBytes } from "./origin.ts";

export const OBJECT_BYTES = (8 << 20) + 4321;

if (import.meta.main) {
  const [directory, seed, rounds] = process.argv.slice(2);
  const next = random(Number(seed));
  const bytes = sampleBytes(OBJECT_BYTES);
  const blob = await new FileCache(directory).open(DIGEST, new MemoryOrigin(bytes));
  process.stdout.write("open\n");
  const read = async (): Promise<void> => {
    const offset = Math.floor(next() * OBJECT_BYTES);
    const length = Math.min(Math.floor(next() * (1 << 20)), OBJECT_BYTES - offset);
    const got = await blob.read(offset, length);
    if (Buffer.compare(got, bytes.subarray(offset, offset + length)) !== 0) {
      process.stdout.write(`wrong bytes in ${length} at ${offset}\n`);
      process.exit(1);
    }
  };
  for (let round = 0; round < Number(rounds); round++) await Promise.all([read(), read(), read(), read()]);
  await blob.close();
}
