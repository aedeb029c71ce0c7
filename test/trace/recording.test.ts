/** The protocol around a trace file, and what is in a recorded trace. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import {
  existsSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { FileCache } from "../../src/blob/cache.ts";
import { decodeTrace, type Trace } from "../../src/format/trace.ts";
import { parseImageConfig } from "../../src/image/config.ts";
import { VirtualDisk } from "../../src/image/disk.ts";
import { openImage } from "../../src/image/open.ts";
import { readDisk } from "../../src/image/read.ts";
import { createReadLog, endReadLog, isFull, ReadRecorder } from "../../src/image/read_log.ts";
import { random } from "../fixtures/random.ts";
import { FORMATS, randomRange, writeRandomLayer } from "../image/stack.ts";

const SIZE = 8 << 20;
const COUNT = 3;
let directory: string;
let lowers: { file: string }[];
let files = 0;

beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), "overlaybd-recording-"));
  const model = new Uint8Array(SIZE);
  lowers = Array.from({ length: COUNT }, (_, i) => {
    const file = join(directory, `layer-${i}`);
    writeRandomLayer(file, model, 700 + i, FORMATS[[0, 3, 6][i]]);
    return { file };
  });
});
afterAll(() => rmSync(directory, { recursive: true, force: true }));

function newTrace(): string {
  const path = join(directory, `trace-${files++}`);
  writeFileSync(path, "");
  return path;
}

function open(recordTracePath: string, more: object = {}) {
  const config = parseImageConfig(JSON.stringify({ lowers, recordTracePath, ...more }), "test config");
  return openImage(config, { cache: new FileCache(join(directory, "cache")) });
}

const readTrace = (path: string): Trace => decodeTrace(readFileSync(path), path);

/** One flag for each byte of each layer that the trace names. */
function touched({ count, layers, offsets, lengths }: Trace, sizes: readonly number[]): Uint8Array[] {
  const flags = sizes.map((size) => new Uint8Array(size));
  for (let i = 0; i < count; i++) flags[layers[i]].fill(1, offsets[i], offsets[i] + lengths[i]);
  return flags;
}

describe("recording", () => {
  test("takes down exactly what is read of each layer, with headers and indexes", async () => {
    const path = newTrace();
    const image = await open(path);
    expect(existsSync(`${path}.lock`)).toBe(true);
    const disk = new VirtualDisk(image.tables);
    const streams = image.layers.map(({ content }) => content.source.size).reverse();
    const expected = streams.map((size) => new Uint8Array(size));
    for (const [i, { content }] of [...image.layers].reverse().entries()) {
      const trailer = content.source.size - 4096;
      expected[i].fill(1, 0, 4096).fill(1, trailer);
      const index = await content.source.read(trailer, 64);
      const fields = new DataView(index.buffer, index.byteOffset);
      const [start, entries] = [fields.getBigUint64(32, true), fields.getBigUint64(40, true)];
      expected[i].fill(1, Number(start), Number(start + entries * 16n));
    }
    const next = random(9);
    for (let round = 0; round < 40; round++) {
      const { offset, length } = randomRange(SIZE, next);
      await readDisk(image, disk, offset, new Uint8Array(length));
      markRead(image.tables, offset, length, expected);
    }
    disk.close();
    expect(statSync(path).size).toBe(0);
    await image.close();
    expect(existsSync(`${path}.lock`)).toBe(false);
    expect(existsSync(`${path}.ok`)).toBe(true);
    const flags = touched(readTrace(path), streams);
    for (const [i, flag] of flags.entries()) expect(Buffer.compare(flag, expected[i])).toBe(0);
  });

  test("ends when the lock is removed, and the image is read on", async () => {
    const path = newTrace();
    const image = await open(path);
    const disk = new VirtualDisk(image.tables);
    rmSync(`${path}.lock`);
    for (let i = 0; i < 200 && !existsSync(`${path}.ok`); i++) await Bun.sleep(50);
    const recorded = readFileSync(path);
    expect(readTrace(path).count).toBeGreaterThan(0);
    await readDisk(image, disk, 0, new Uint8Array(1 << 20));
    disk.close();
    await image.close();
    expect(readFileSync(path)).toEqual(recorded);
  });

  test("is refused while another goes on, and leaves nothing when the image cannot be opened", async () => {
    const path = newTrace();
    writeFileSync(`${path}.lock`, "");
    await expect(open(path)).rejects.toMatchObject({ code: "E_BUSY" });
    rmSync(`${path}.lock`);
    const missing = [{ file: join(directory, "no-such-layer") }];
    await expect(open(path, { lowers: missing })).rejects.toMatchObject({ code: "E_NOT_FOUND" });
    expect(existsSync(`${path}.lock`)).toBe(false);
    expect(statSync(path).size).toBe(0);
  });

  test("is not begun without a file, nor into one that holds something", async () => {
    const path = newTrace();
    rmSync(path);
    await (await open(path)).close();
    expect(existsSync(path)).toBe(false);
    writeFileSync(path, "/bin/sh\n");
    await (await open(path)).close();
    expect(existsSync(`${path}.lock`)).toBe(false);
    expect(readFileSync(path, "utf8")).toBe("/bin/sh\n");
  });

  test("cannot be combined with an acceleration layer", async () => {
    const more = { lowers: [...lowers, { dir: directory }], accelerationLayer: true };
    await expect(open(newTrace(), more)).rejects.toMatchObject({ code: "E_CONFIG" });
  });

  test("does not take down a read that fails", async () => {
    const path = newTrace();
    const copy = join(directory, "cut-layer");
    writeFileSync(copy, readFileSync(lowers[0].file));
    const image = await open(path, { lowers: [{ file: copy }] });
    const disk = new VirtualDisk(image.tables);
    const size = statSync(copy).size;
    truncateSync(copy, 4096);
    await expect(readDisk(image, disk, 0, new Uint8Array(SIZE))).rejects.toMatchObject({ code: "E_CORRUPT" });
    disk.close();
    await image.close();
    const [flags] = touched(readTrace(path), [size]);
    // Of the data section nothing was read, only header, index and trailer were.
    expect(flags.subarray(4096, 4096 + 512).every((flag) => flag === 0)).toBe(true);
  });

  test("keeps the first reads when there are too many", () => {
    const log = createReadLog(3);
    const recorder = new ReadRecorder(log, 0);
    for (let i = 0; i < 5; i++) {
      recorder.begin();
      recorder.note(0, i * 8192, 4096);
      recorder.commit();
    }
    expect(isFull(log)).toBe(true);
    expect([...endReadLog(log).offsets]).toEqual([0, 8192, 16384]);
  });
});

type Tables = ConstructorParameters<typeof VirtualDisk>[0];

/** What reading a range of the disk needs of each layer, sector by sector. */
function markRead({ index, layers }: Tables, offset: number, length: number, flags: readonly Uint8Array[]) {
  for (let i = 0; i < index.count; i++) {
    const detail = index.details[i];
    if ((detail & (1 << 22)) !== 0) continue;
    const end = (index.lasts[i] + 1) * 512;
    const start = end - (detail & 0x3fff) * 512;
    const from = Math.max(start, offset);
    const to = Math.min(end, offset + length);
    if (from >= to) continue;
    const at = index.moffsets[i] * 512 + from - start;
    flags[layers.length - 1 - ((detail >>> 14) & 0xff)].fill(1, at, at + to - from);
  }
}
