/** Damage in what was kept of a layer, found by the checksums of its blocks while the disk is read. */
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { FileCache } from "../../src/blob/cache.ts";
import { VirtualDisk } from "../../src/image/disk.ts";
import { assemble, type OpenImage, openLayers } from "../../src/image/open.ts";
import { readDisk } from "../../src/image/read.ts";
import { DIGEST, MemoryOrigin } from "../blob/origin.ts";
import { random } from "../fixtures/random.ts";
import { randomRange, writeRandomLayer } from "./stack.ts";

const SIZE = 4 << 20;
const UNIT = 16 << 10;
const FORMAT = {
  tar: true,
  zfile: { codec: 1, blockSize: 4096, checksum: true, overwriteHeader: true, threads: 1 },
} as const;

let directory: string;
let model: Uint8Array;
let origin: MemoryOrigin;
let cache: FileCache;
let image: OpenImage;
let disk: VirtualDisk;

beforeEach(async () => {
  directory = mkdtempSync(join(tmpdir(), "overlaybd-healing-"));
  model = new Uint8Array(SIZE);
  const path = join(directory, "layer");
  writeRandomLayer(path, model, 61, FORMAT);
  origin = new MemoryOrigin(new Uint8Array(readFileSync(path)));
  cache = new FileCache(join(directory, "cache"), { unit: UNIT });
  await open();
});
afterEach(async () => {
  disk.close();
  await image.close();
  rmSync(directory, { recursive: true, force: true });
});

async function open(): Promise<void> {
  image = assemble(await openLayers([() => cache.open(DIGEST, origin)]));
  disk = new VirtualDisk(image.tables);
}

const media = (): string => join(directory, "cache", DIGEST);

async function readAll(): Promise<void> {
  const bytes = new Uint8Array(SIZE);
  await readDisk(image, disk, 0, bytes);
  expect(Buffer.compare(bytes, model)).toBe(0);
}

/** Changes bytes of the media file in place, under whoever has it open. */
function spoil(change: (content: Buffer) => void): void {
  const content = readFileSync(media());
  change(content);
  writeFileSync(media(), content);
}

describe("a disk whose layer is kept", () => {
  test("heals from changed bytes anywhere, and fetches no more than their units", async () => {
    const next = random(8);
    await readAll();
    for (let round = 0; round < 30; round++) {
      const { requests, damaged } = cache.stats();
      const at = Math.floor(next() * origin.size);
      spoil((content) => {
        content[at] ^= 1 << Math.floor(next() * 8);
      });
      await readAll();
      const after = cache.stats();
      expect(after.requests - requests).toBe(after.damaged - damaged);
      expect(after.damaged - damaged).toBeLessThanOrEqual(2);
    }
    expect(cache.stats().damaged).toBeGreaterThan(4);
  });

  test("heals from a media file that was cut short, emptied, or zeroed", async () => {
    await readAll();
    truncateSync(media(), Math.floor(origin.size / 3));
    await readAll();
    truncateSync(media(), 0);
    await readAll();
    spoil((content) => content.fill(0));
    await readAll();
    expect(cache.stats().damaged).toBeGreaterThan((2 * origin.size) / UNIT / 2);
  });

  test("heals while many readers find the same damage", async () => {
    await readAll();
    const next = random(9);
    for (let round = 0; round < 5; round++) {
      spoil((content) => content.fill(0xa5, origin.size / 4, origin.size / 2));
      const readers = Array.from({ length: 20 }, async () => {
        const { offset, length } = randomRange(SIZE, next);
        const bytes = new Uint8Array(length);
        await readDisk(image, disk, offset, bytes);
        expect(Buffer.compare(bytes, model.subarray(offset, offset + length))).toBe(0);
      });
      await Promise.all(readers);
    }
    await readAll();
  });

  test("does not mind what happens to the map", async () => {
    await readAll();
    for (const damage of [
      (path: string) => truncateSync(path, 0),
      (path: string) => writeFileSync(path, readFileSync(path).fill(0xff)),
      (path: string) => rmSync(path),
    ]) {
      damage(`${media()}.map`);
      await readAll();
      spoil((content) => content.fill(0, origin.size / 2));
      await readAll();
    }
  });

  test("asks once more when the registry sent wrong bytes", async () => {
    const { damaged } = cache.stats();
    let wrong = 1;
    origin.fault = (answer) => {
      if (wrong-- > 0) answer.fill(1);
      return answer;
    };
    await readAll();
    expect(cache.stats().damaged).toBeGreaterThan(damaged);
  });

  test("says so when the registry sends wrong bytes again and again, and recovers when it does not", async () => {
    let sent = 0;
    const data = [...disk.dataRanges()].reduce((a, b) => (a.length > b.length ? a : b));
    expect(data.length).toBeGreaterThan(64 << 10);
    for (const wrong of [() => 7, () => ++sent & 0xff]) {
      origin.fault = (answer) => answer.fill(wrong());
      const before = origin.requests.length;
      const reading = readDisk(image, disk, data.offset, new Uint8Array(64 << 10));
      await expect(reading).rejects.toMatchObject({
        code: "E_CORRUPT",
        message: expect.stringMatching(
          /^test object: bytes \d+ to \d+ are damaged as they come from the registry$/,
        ),
      });
      // Every unit of the range once, and at most each once more.
      expect(origin.requests.length - before).toBeLessThan(2 * Math.ceil((64 << 10) / UNIT) + 4);
    }
    origin.fault = undefined;
    await readAll();
  });
});

test("wrong bytes at the opening of a layer are fetched once more too", async () => {
  for (const spoiled of [0, origin.size - 1]) {
    disk.close();
    await image.close();
    rmSync(join(directory, "cache"), { recursive: true });
    let once = true;
    origin.fault = (answer, offset) => {
      if (once && offset <= spoiled && spoiled < offset + answer.length) {
        once = false;
        answer.fill(0x33);
      }
      return answer;
    };
    await open();
    expect(once).toBe(false);
    await readAll();
  }
});
