import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { copyFileSync, mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { FileCache } from "../../src/blob/cache.ts";
import { LayerFile } from "../../src/format/layerfile.ts";
import { createWritableLayer } from "../../src/format/lsmt/pair.ts";
import { LayerWriter } from "../../src/format/lsmt/writer.ts";
import { blockOffset } from "../../src/format/zfile/blocks.ts";
import { parseImageConfig } from "../../src/image/config.ts";
import { VirtualDisk } from "../../src/image/disk.ts";
import { exportDisk } from "../../src/image/export.ts";
import { type OpenImage, openImage } from "../../src/image/open.ts";
import { readDisk } from "../../src/image/read.ts";
import { addressOf } from "../../src/native/address.ts";
import type { Engine } from "../../src/native/plan.ts";
import { random } from "../fixtures/random.ts";
import { contentBytes, FORMATS, randomRange, writeRandomLayer } from "./stack.ts";

let directory: string;
beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), "overlaybd-disk-"));
});
afterAll(() => rmSync(directory, { recursive: true, force: true }));

let files = 0;
const newPath = (): string => join(directory, `file-${files++}`);

function open(config: object, engine?: Engine): Promise<OpenImage> {
  return openImage(parseImageConfig(JSON.stringify(config), "test config"), {
    cache: new FileCache(join(directory, "cache")),
    engine,
  });
}

/** A stack of `count` random layers, in formats that take turns, with its flat model. */
function randomStack(
  size: number,
  count: number,
  seed: number,
): { lowers: { file: string }[]; model: Uint8Array } {
  const model = new Uint8Array(size);
  const lowers = Array.from({ length: count }, (_, i) => {
    const file = newPath();
    writeRandomLayer(file, model, seed * 100 + i, FORMATS[(seed + i) % FORMATS.length]);
    return { file };
  });
  return { lowers, model };
}

async function expectSame(
  image: OpenImage,
  disk: VirtualDisk,
  model: Uint8Array,
  rounds: number,
  seed: number,
) {
  const next = random(seed);
  for (let round = 0; round < rounds; round++) {
    const { offset, length } = randomRange(model.length, next);
    const bytes = new Uint8Array(length).fill(0xee);
    await readDisk(image, disk, offset, bytes);
    if (Buffer.compare(bytes, model.subarray(offset, offset + length)) !== 0) {
      throw new Error(`wrong bytes in ${length} at ${offset}, seed ${seed}, round ${round}`);
    }
  }
}

describe("reading", () => {
  test.each([1, 2, 3, 4, 5, 6, 7, 8])(
    "random stacks of layers in all formats equal a flat model (%d)",
    async (seed) => {
      const { lowers, model } = randomStack(8 << 20, 1 + (seed % 5), seed);
      const image = await open({ lowers });
      expect(image.tables.size).toBe(model.length);
      const disk = new VirtualDisk(image.tables);
      await expectSame(image, disk, model, 300, seed);
      const whole = new Uint8Array(model.length);
      await readDisk(image, disk, 0, whole);
      expect(Buffer.compare(whole, model)).toBe(0);
      disk.close();
      await image.close();
    },
  );

  test("a long read does not depend on how it is cut into plans", async () => {
    // 40 MiB: several parts, each with more blocks than one plan takes.
    const { lowers, model } = randomStack(40 << 20, 2, 3);
    const image = await open({ lowers });
    const disk = new VirtualDisk(image.tables);
    const bytes = new Uint8Array(model.length);
    await readDisk(image, disk, 0, bytes);
    expect(Buffer.compare(bytes, model)).toBe(0);
    disk.close();
    await image.close();
  });

  test("beyond the end gives zeros; ranges that are not sectors are refused", async () => {
    const { lowers, model } = randomStack(1 << 20, 1, 4);
    const image = await open({ lowers });
    const disk = new VirtualDisk(image.tables);
    const bytes = new Uint8Array(8192).fill(1);
    await readDisk(image, disk, model.length - 4096, bytes);
    expect(Buffer.compare(bytes.subarray(0, 4096), model.subarray(-4096))).toBe(0);
    expect(bytes.subarray(4096).every((byte) => byte === 0)).toBe(true);
    for (const [offset, length] of [
      [1, 512],
      [0, 511],
      [-512, 512],
      [Number.NaN, 512],
    ]) {
      expect(() => disk.read(offset, length, addressOf(bytes))).toThrow("not whole sectors");
    }
    expect(() => disk.write(0, 512, addressOf(bytes))).toThrow("read-only");
    expect(() => disk.discard(0, 512)).toThrow("read-only");
    disk.close();
    await image.close();
  });

  test.each([1, 2, 3] as Engine[])("I/O engine %d reads the same", async (engine) => {
    const { lowers, model } = randomStack(8 << 20, 4, 10);
    const image = await open({ lowers }, engine);
    const disk = new VirtualDisk(image.tables);
    await expectSame(image, disk, model, 200, engine);
    disk.close();
    await image.close();
  });

  test("one blob may be several layers", async () => {
    const { lowers, model } = randomStack(1 << 20, 1, 5);
    const image = await open({ lowers: [...lowers, ...lowers, ...lowers] });
    const disk = new VirtualDisk(image.tables);
    await expectSame(image, disk, model, 50, 5);
    disk.close();
    await image.close();
  });
});

describe("writing", () => {
  test.each(["append", "sparse"] as const)(
    "random operations on an %s layer equal a flat model",
    async (kind) => {
      const next = random(kind.length);
      const { lowers, model } = randomStack(8 << 20, 3, 6);
      const upper = { data: newPath(), index: newPath() };
      createWritableLayer(upper.data, upper.index, { size: 0, sparse: kind === "sparse" }).close();
      // A sparse layer maps whole blocks of the file system, and forgets discards when it is closed (lsmt.md 7.1).
      const unit = kind === "sparse" ? 4096 : 512;
      const range = () => {
        const { offset, length } = randomRange(model.length, next);
        const start = Math.floor(offset / unit) * unit;
        return { offset: start, length: Math.ceil((offset + length - start) / unit) * unit };
      };
      for (let life = 0; life < 6; life++) {
        const image = await open({ lowers, upper });
        expect(image.tables.size).toBe(model.length);
        const disk = new VirtualDisk(image.tables);
        expect(disk.writable).toBe(true);
        for (let round = 0; round < 100; round++) {
          const { offset, length } = range();
          if (kind === "append" && next() < 0.2) {
            disk.discard(offset, length);
            model.fill(0, offset, offset + length);
          } else {
            const bytes = contentBytes(length, next);
            disk.write(offset, length, addressOf(bytes));
            model.set(bytes, offset);
          }
        }
        await expectSame(image, disk, model, 200, life);
        if (kind === "sparse") {
          const { offset, length } = range();
          disk.discard(offset, length);
          const bytes = new Uint8Array(length).fill(1);
          expect(disk.read(offset, length, addressOf(bytes))).toBeNull();
          expect(bytes.every((byte) => byte === 0)).toBe(true);
          disk.write(offset, length, addressOf(model.slice(offset, offset + length)));
        }
        if (life % 2 === 0) disk.flush();
        disk.close();
        await image.close();
      }
    },
  );

  test("a writable layer alone is a disk; two cannot have it open", async () => {
    const upper = { data: newPath(), index: newPath() };
    createWritableLayer(upper.data, upper.index, { size: 1 << 20 }).close();
    const image = await open({ upper });
    const disk = new VirtualDisk(image.tables);
    const bytes = contentBytes(4096, random(1));
    disk.write(8192, 4096, addressOf(bytes));
    const model = new Uint8Array(1 << 20);
    model.set(bytes, 8192);
    await expectSame(image, disk, model, 50, 1);
    expect(() => new VirtualDisk(image.tables)).toThrow("in use");
    disk.close();
    await image.close();
  });
});

test("a disk exports as a sparse raw file", async () => {
  const { lowers, model } = randomStack(8 << 20, 3, 9);
  const upper = { data: newPath(), index: newPath() };
  createWritableLayer(upper.data, upper.index, { size: 64 << 20 }).close();
  const image = await open({ lowers, upper });
  const target = newPath();
  writeFileSync(target, "what was there");
  let done = 0;
  await exportDisk(image, target, (share) => {
    expect(share).toBeGreaterThanOrEqual(done);
    done = share;
  });
  expect(done).toBe(1);
  const raw = readFileSync(target);
  expect(raw.length).toBe(64 << 20);
  expect(Buffer.compare(raw.subarray(0, model.length), model)).toBe(0);
  expect(raw.subarray(model.length).every((byte) => byte === 0)).toBe(true);
  expect((await Bun.$`du -k ${target}`.text()).split("\t")[0]).toSatisfy((kib) => Number(kib) < 9 << 10);
  await expect(exportDisk(image, join(directory, "no/such/place"), () => {})).rejects.toMatchObject({
    code: "E_IO",
  });
  await image.close();
});

describe("damage", () => {
  test("a corrupt block is an error that names file, block and place; elsewhere reading goes on", async () => {
    // LZ4, 4 KiB blocks with checksums; the damage is neither in the first nor in the last, which opening reads.
    const model = new Uint8Array(2 << 20);
    const file = newPath();
    writeRandomLayer(file, model, 70, FORMATS[2]);
    const intact = await open({ lowers: [{ file }] });
    const { blocks, start } = intact.tables.layers[0];
    if (!blocks) throw new Error("the layer is not compressed");
    await intact.close();
    for (const block of [1, 17, Math.floor(blocks.count / 2)]) {
      const damaged = newPath();
      copyFileSync(file, damaged);
      const content = readFileSync(damaged);
      const place = start + blockOffset(blocks, block);
      content[place + 3] ^= 0x10;
      writeFileSync(damaged, content);
      const image = await open({ lowers: [{ file: damaged }] });
      const disk = new VirtualDisk(image.tables);
      const errors = new Set<string>();
      let right = 0;
      const bytes = new Uint8Array(512);
      for (let offset = 0; offset < model.length; offset += 512) {
        try {
          disk.read(offset, 512, addressOf(bytes));
          expect(Buffer.compare(bytes, model.subarray(offset, offset + 512))).toBe(0);
          right++;
        } catch (error) {
          expect(error).toMatchObject({ code: "E_CORRUPT" });
          errors.add((error as Error).message);
        }
      }
      expect([...errors]).toEqual([
        `${damaged}: block ${block} at byte ${place} is damaged: its checksum does not match`,
      ]);
      expect(right).toBeGreaterThanOrEqual(model.length / 512 - 8);
      expect(() => disk.read(0, model.length, addressOf(new Uint8Array(model.length)))).toThrow(
        `block ${block}`,
      );
      disk.close();
      await image.close();
    }
  });

  test("a block without checksum that does not decompress is one too", async () => {
    const model = new Uint8Array(2 << 20);
    const file = newPath();
    // zstd, no checksums.
    writeRandomLayer(file, model, 71, FORMATS[5]);
    const image = await open({ lowers: [{ file }] });
    const { blocks, start } = image.tables.layers[0];
    if (!blocks) throw new Error("the layer is not compressed");
    const content = readFileSync(file);
    content.fill(0, start + blockOffset(blocks, 9), start + blockOffset(blocks, 10));
    writeFileSync(file, content);
    const disk = new VirtualDisk(image.tables);
    const whole = new Uint8Array(model.length);
    expect(() => disk.read(0, model.length, addressOf(whole))).toThrow(
      `${file}: block 9 at byte ${start + blockOffset(blocks, 9)} is damaged: it does not decompress to its size`,
    );
    disk.close();
    await image.close();
  });

  test("a file that is cut short under an open disk is an error", async () => {
    for (const format of [FORMATS[0], FORMATS[3]]) {
      const model = new Uint8Array(2 << 20);
      const file = newPath();
      writeRandomLayer(file, model, 72, format);
      const image = await open({ lowers: [{ file }] });
      truncateSync(file, 20_000);
      const disk = new VirtualDisk(image.tables);
      let failure: unknown;
      try {
        disk.read(0, model.length, addressOf(new Uint8Array(model.length)));
      } catch (error) {
        failure = error;
      }
      expect(failure).toMatchObject({ code: "E_CORRUPT" });
      expect((failure as Error).message).toStartWith(`${file}: the file ends before byte`);
      disk.close();
      await image.close();
    }
  });

  test("what cannot be a layer is refused by name, and nothing stays open", async () => {
    const { lowers } = randomStack(1 << 20, 2, 8);
    const noise = newPath();
    writeFileSync(noise, contentBytes(100_000, random(1)));
    const empty = newPath();
    writeFileSync(empty, "");
    const before = (await Bun.$`ls /proc/self/fd`.text()).split("\n").length;
    for (const file of [noise, empty]) {
      await expect(open({ lowers: [...lowers, { file }, ...lowers] })).rejects.toMatchObject({
        code: "E_CORRUPT",
        message: expect.stringContaining(file),
      });
    }
    await expect(open({ lowers: [{ file: join(directory, "absent") }] })).rejects.toMatchObject({
      code: "E_NOT_FOUND",
      message: expect.stringContaining("absent"),
    });
    await expect(open({ lowers: [{ file: directory }] })).rejects.toMatchObject({ code: "E_IO" });
    expect((await Bun.$`ls /proc/self/fd`.text()).split("\n").length).toBe(before);
  });
});

test("a long read of blocks that compress to almost nothing is split into plans that fit", async () => {
  const size = 16 << 20;
  const file = newPath();
  const options = { codec: 1, blockSize: 4096, checksum: true, overwriteHeader: true, threads: 1 } as const;
  const output = new LayerFile(file, { zfile: options });
  const writer = new LayerWriter(output, { size });
  const model = new Uint8Array(size);
  for (let at = 0; at < size; at += 4096) model.fill(1 + ((at / 4096) % 255), at, at + 4096);
  writer.write(0, model);
  writer.finish();
  output.finish();
  const image = await open({ repoBlobUrl: "", lowers: [{ file }] });
  const disk = new VirtualDisk(image.tables);
  const bytes = new Uint8Array(size);
  expect(disk.read(0, size, addressOf(bytes))).toBeNull();
  expect(Buffer.compare(bytes, model)).toBe(0);
  disk.close();
  await image.close();
});
