/**
 * A process that downloads an object into a layer's directory while it reads it through the cache, and checks every byte
 * it reads: `bun downloader.ts CACHE LAYER KIND SEED`, KIND being "file" or "download". Exit code 0 when all was right.
 */
import { FileCache } from "../../src/blob/cache.ts";
import { LayerDownload } from "../../src/blob/download.ts";
import { random } from "../fixtures/random.ts";
import { MemoryOrigin, sampleBytes } from "./origin.ts";

export const DOWNLOAD_BYTES = (2 << 20) + 4321;
export const DOWNLOAD_UNIT = 16 << 10;
export const downloadedBytes = sampleBytes(DOWNLOAD_BYTES, 77);
export const downloadedDigest = `sha256:${new Bun.CryptoHasher("sha256").update(downloadedBytes).digest("hex")}`;

if (import.meta.main) {
  const [directory, layer, kind, seed] = process.argv.slice(2);
  const next = random(Number(seed));
  const origin = new MemoryOrigin(downloadedBytes);
  const cache = new FileCache(directory, { unit: DOWNLOAD_UNIT, inLayers: kind === "download" });
  const blob = await cache.open(downloadedDigest, origin, layer);
  const limits = {
    blockSize: DOWNLOAD_UNIT,
    signal: new AbortController().signal,
    pace: async () => {},
    progress: () => {},
  };
  const target = { digest: downloadedDigest, origin, directory: layer, blob };
  process.stdout.write("open\n");
  const attempt = new LayerDownload(target, cache, limits).attempt();
  let running = true;
  attempt.finally(() => {
    running = false;
  });
  const read = async (): Promise<void> => {
    const offset = Math.floor(next() * DOWNLOAD_BYTES);
    const length = Math.min(Math.floor(next() * 100_000), DOWNLOAD_BYTES - offset);
    const got = await blob.read(offset, length);
    if (Buffer.compare(got, downloadedBytes.subarray(offset, offset + length)) === 0) return;
    process.stdout.write(`wrong bytes in ${length} at ${offset}\n`);
    process.exit(1);
  };
  while (running) await Promise.all([read(), read()]);
  await attempt;
  await read();
  await blob.close();
}
