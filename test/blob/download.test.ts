/** Completing layers in the background: resuming, verifying, switching, giving up. */
import { afterEach, beforeEach, describe, expect, setDefaultTimeout, test } from "bun:test";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { BackgroundDownload } from "../../src/blob/background.ts";
import type { Blob } from "../../src/blob/blob.ts";
import { FileCache } from "../../src/blob/cache.ts";
import { LayerDownload } from "../../src/blob/download.ts";
import { random } from "../fixtures/random.ts";
import { DOWNLOAD_BYTES, DOWNLOAD_UNIT, downloadedBytes, downloadedDigest } from "./downloader.ts";
import { MemoryOrigin } from "./origin.ts";

setDefaultTimeout(30_000);

const KINDS = ["file", "download"] as const;
const CONFIG = {
  enable: true,
  delay: 0,
  delayExtra: 1,
  maxMBps: 0,
  tryCnt: 3,
  blockSize: DOWNLOAD_UNIT,
};

let directory: string;
let layer: string;
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "overlaybd-download-"));
  layer = join(directory, "layer");
  mkdirSync(layer);
});
afterEach(() => rmSync(directory, { recursive: true, force: true }));

const committed = (): string => join(layer, "overlaybd.commit");

interface Opened {
  readonly cache: FileCache;
  readonly origin: MemoryOrigin;
  readonly blob: Blob;
  readonly abort: AbortController;
  /** Bytes of the download. */
  readonly moved: { fetched: number; copied: number };
  readonly layerDownload: LayerDownload;
}

async function opened(kind: (typeof KINDS)[number] = "file", bytes = downloadedBytes): Promise<Opened> {
  const origin = new MemoryOrigin(bytes);
  const cache = new FileCache(join(directory, "cache"), {
    unit: DOWNLOAD_UNIT,
    inLayers: kind === "download",
  });
  const blob = await cache.open(downloadedDigest, origin, layer);
  const abort = new AbortController();
  const moved = { fetched: 0, copied: 0 };
  const limits = {
    blockSize: DOWNLOAD_UNIT,
    signal: abort.signal,
    pace: async () => {},
    progress: (fetched: number, copied: number) => {
      moved.fetched += fetched;
      moved.copied += copied;
    },
  };
  const target = { digest: downloadedDigest, origin, directory: layer, blob };
  return { cache, origin, blob, abort, moved, layerDownload: new LayerDownload(target, cache, limits) };
}

async function expectRight(blob: Blob): Promise<void> {
  expect(Buffer.compare(await blob.read(0, blob.size), downloadedBytes)).toBe(0);
}

async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await Bun.sleep(2);
}

describe.each(KINDS)("a download beside a cache of type %s", (kind) => {
  test("fetches what readers do not have, and becomes the layer's file", async () => {
    const { blob, origin, layerDownload, moved } = await opened(kind);
    await blob.read(0, DOWNLOAD_BYTES / 4);
    await blob.read(DOWNLOAD_BYTES - 1000, 1000);
    expect(await layerDownload.attempt()).toBe(true);
    expect(Buffer.compare(readFileSync(committed()), downloadedBytes)).toBe(0);
    expect(readdirSync(layer)).toEqual(["overlaybd.commit"]);
    expect(origin.requests.reduce((sum, { length }) => sum + length, 0)).toBe(DOWNLOAD_BYTES);
    if (kind === "file") expect(moved.fetched + moved.copied).toBe(DOWNLOAD_BYTES);
    await blob.close();
  });

  test("switches readers to the file while they read", async () => {
    const { blob, origin, layerDownload } = await opened(kind);
    const next = random(6);
    let running = true;
    const readers = Array.from({ length: 4 }, async () => {
      while (running) {
        const offset = Math.floor(next() * DOWNLOAD_BYTES);
        const length = Math.min(Math.floor(next() * 100_000), DOWNLOAD_BYTES - offset);
        expect(
          Buffer.compare(await blob.read(offset, length), downloadedBytes.subarray(offset, offset + length)),
        ).toBe(0);
      }
    });
    expect(await layerDownload.attempt()).toBe(true);
    origin.fault = () => {
      throw new Error("the registry is gone");
    };
    running = false;
    await Promise.all(readers);
    await expectRight(blob);
    // An I/O worker reads by the same descriptor as before.
    const got = new Uint8Array(5000);
    readSync(blob.view.fd, got, 0, 5000, 100_000);
    expect(Buffer.compare(got, downloadedBytes.subarray(100_000, 105_000))).toBe(0);
    await blob.close();
  });

  test("goes on where one that was interrupted ended", async () => {
    const first = await opened(kind);
    const interrupted = first.layerDownload.attempt();
    await until(() => first.origin.requests.length > 30);
    first.abort.abort();
    await expect(interrupted).rejects.toBe(first.abort.signal.reason);
    await first.blob.close();
    expect(existsSync(join(layer, ".download"))).toBe(true);

    const second = await opened(kind);
    // What was there of the cache's objects is no help: only what was downloaded counts.
    expect(await second.layerDownload.attempt()).toBe(true);
    expect(second.origin.requests.length).toBeLessThan(DOWNLOAD_BYTES / DOWNLOAD_UNIT - 20);
    expect(Buffer.compare(readFileSync(committed()), downloadedBytes)).toBe(0);
    await second.blob.close();
  });

  test("of wrong bytes is given up as a whole, and fetched anew", async () => {
    const { blob, origin, layerDownload } = await opened(kind);
    let requests = 0;
    origin.fault = (answer) => {
      if (requests++ === 40) answer[17] ^= 1;
      return answer;
    };
    await expect(layerDownload.attempt()).rejects.toMatchObject({ code: "E_CORRUPT" });
    expect(existsSync(committed())).toBe(false);
    expect(existsSync(join(layer, ".download"))).toBe(false);
    const before = origin.requests.length;
    expect(await layerDownload.attempt()).toBe(true);
    expect(origin.requests.length - before).toBe(Math.ceil(DOWNLOAD_BYTES / DOWNLOAD_UNIT));
    await expectRight(blob);
    await blob.close();
  });

  test("that rotted before it was complete is mended by the unit", async () => {
    const first = await opened(kind);
    const interrupted = first.layerDownload.attempt();
    await until(() => first.origin.requests.length > 60);
    first.abort.abort();
    await interrupted.catch(() => {});
    await first.blob.close();
    const path = join(layer, ".download");
    const content = readFileSync(path);
    content[3 * DOWNLOAD_UNIT] ^= 4;
    writeFileSync(path, content);
    rmSync(join(directory, "cache"), { recursive: true, force: true });

    const second = await opened(kind);
    expect(await second.layerDownload.attempt()).toBe(true);
    expect(Buffer.compare(readFileSync(committed()), downloadedBytes)).toBe(0);
    await second.blob.close();
  });

  test("fails when the registry does, and goes on when it is back", async () => {
    const { blob, origin, layerDownload } = await opened(kind);
    origin.fault = (answer) => {
      if (origin.requests.length > 20) throw new Error("down");
      return answer;
    };
    await expect(layerDownload.attempt()).rejects.toThrow("down");
    origin.fault = (answer) => answer.subarray(1);
    await expect(layerDownload.attempt()).rejects.toMatchObject({ code: "E_REGISTRY" });
    origin.fault = undefined;
    expect(await layerDownload.attempt()).toBe(true);
    await blob.close();
  });

  test("is done by one of two, whom the other one waits for", async () => {
    const [one, other] = [await opened(kind), await opened(kind)];
    const first = one.layerDownload.attempt();
    await until(() => one.origin.requests.length > 0);
    expect(await other.layerDownload.attempt()).toBe(false);
    expect(await first).toBe(true);
    const before = other.origin.requests.length;
    expect(await other.layerDownload.attempt()).toBe(true);
    await expectRight(other.blob);
    expect(other.origin.requests.length).toBe(before);
    await Promise.all([one.blob.close(), other.blob.close()]);
  });
});

test("a file that does not fit the layer is not switched to", async () => {
  const { blob, layerDownload } = await opened();
  writeFileSync(committed(), "something else");
  await expect(layerDownload.attempt()).rejects.toMatchObject({ code: "E_CORRUPT" });
  await expectRight(blob);
  await blob.close();
});

describe("the background download of a device", () => {
  async function background(config: Partial<typeof CONFIG>) {
    const parts = await opened();
    const { cache, blob, origin } = parts;
    const target = { digest: downloadedDigest, origin, directory: layer, blob };
    return { ...parts, background: new BackgroundDownload([target], cache, { ...CONFIG, ...config }) };
  }

  test("keeps its rate", async () => {
    const { blob, background: running } = await background({ maxMBps: 8 });
    const since = performance.now();
    await until(() => running.stats().completed === 1);
    expect(performance.now() - since).toBeGreaterThan((1000 * DOWNLOAD_BYTES) / (8 << 20) - 20);
    expect(running.stats()).toEqual({
      layers: 1,
      completed: 1,
      failed: 0,
      fetchedBytes: DOWNLOAD_BYTES,
      copiedBytes: 0,
    });
    await running.stop();
    await blob.close();
  });

  test("tries as often as it may, and leaves the layer remote then", async () => {
    const { blob, origin, background: running } = await background({ tryCnt: 2 });
    origin.fault = () => {
      throw new Error("down");
    };
    await until(() => running.stats().failed === 1);
    origin.fault = undefined;
    await expectRight(blob);
    await running.stop();
    await blob.close();
  });

  test("waits, and ends at once when it is told to, also in the middle of a request", async () => {
    const waiting = await background({ delay: 1000 });
    await waiting.background.stop();
    expect(waiting.origin.requests).toEqual([]);
    await waiting.blob.close();

    const { blob, origin, background: running } = await background({});
    const hang = Promise.withResolvers<Uint8Array>();
    origin.readRange = () => hang.promise;
    await Bun.sleep(20);
    await running.stop();
    expect(running.stats()).toMatchObject({ completed: 0, failed: 0 });
    await blob.close();
  });
});

test("killed at any moment leaves what the next start makes the right layer of", async () => {
  const next = random(12);
  const cache = join(directory, "cache");
  const program = join(import.meta.dir, "downloader.ts");
  let completed = 0;
  for (let round = 0; round < 60; round++) {
    const kind = KINDS[round % 2];
    const child = Bun.spawn([process.execPath, program, cache, layer, kind, `${round}`], { stdout: "pipe" });
    const reader = child.stdout.getReader();
    expect(new TextDecoder().decode((await reader.read()).value)).toBe("open\n");
    await Bun.sleep(next() * 90);
    child.kill("SIGKILL");
    expect((await reader.read()).done).toBe(true);
    await child.exited;
    // Both kinds go on with what the other one left.
    if (!existsSync(committed()) && round % 4 !== 3) continue;
    if (existsSync(committed())) completed++;
    const { blob, layerDownload } = await opened(kind);
    expect(await layerDownload.attempt()).toBe(true);
    expect(Buffer.compare(readFileSync(committed()), downloadedBytes)).toBe(0);
    await expectRight(blob);
    await blob.close();
    rmSync(layer, { recursive: true });
    mkdirSync(layer);
    if (next() < 0.5) rmSync(cache, { recursive: true, force: true });
  }
  expect(completed).toBeGreaterThan(0);
}, 60_000);
