import { expect, test } from "bun:test";
import { blockOffset, type Codec, storedLength } from "../../src/format/zfile/blocks.ts";
import { openZFile } from "../../src/format/zfile/open.ts";
import { verifyChecksums, ZFileSource } from "../../src/format/zfile/reader.ts";
import { random } from "../fixtures/random.ts";
import { codeOf, MemorySource, readZFile, sample, writeZFile } from "./zfile.ts";

const codecs: readonly (readonly [string, Codec])[] = [
  ["LZ4", 1],
  ["zstd", 2],
];

for (const [name, codec] of codecs) {
  for (let blockSize = 4096; blockSize <= 65536; blockSize *= 2) {
    test(`${name}, blocks of ${blockSize}: sizes around block and chunk boundaries come back`, async () => {
      const sizes = [
        0,
        1,
        blockSize - 1,
        blockSize,
        blockSize + 1,
        3 * blockSize - 7,
        262143,
        262144,
        262145,
      ];
      for (const size of sizes) {
        const plain = sample(size, size + blockSize);
        for (const checksum of [true, false]) {
          const zfile = writeZFile([plain], { codec, blockSize, checksum, overwriteHeader: size % 2 === 0 });
          expect(Buffer.compare(await readZFile(zfile, 100_000), plain)).toBe(0);
        }
      }
    });
  }

  test(`${name}: the bytes depend neither on the number of threads nor on the pieces written`, () => {
    const next = random(7);
    const plain = sample(1_500_000, 11);
    const whole = writeZFile([plain], { codec, threads: 1 });
    for (let threads = 1; threads <= 4; threads++) {
      const pieces: Uint8Array[] = [];
      for (let at = 0; at < plain.length; ) {
        const length = Math.floor(next() ** 4 * 400_000);
        pieces.push(plain.subarray(at, at + length));
        at += length;
      }
      expect(Buffer.compare(writeZFile(pieces, { codec, threads }), whole)).toBe(0);
    }
  });
}

test("incompressible blocks of 64 KiB, which upstream writes but cannot read", async () => {
  const next = random(3);
  const plain = Uint8Array.from({ length: 200_000 }, () => next() * 256);
  for (const [, codec] of codecs) {
    const zfile = writeZFile([plain], { codec, blockSize: 65536 });
    const table = await openZFile(new MemorySource(zfile));
    expect(storedLength(table, 0)).toBeGreaterThan(65536);
    expect(Buffer.compare(await readZFile(zfile), plain)).toBe(0);
  }
});

test("random reads equal the same range of the plain bytes", async () => {
  const plain = sample(700_001, 5);
  const next = random(17);
  for (const blockSize of [4096, 16384, 65536]) {
    const stored = new MemorySource(writeZFile([plain], { blockSize }));
    const source = new ZFileSource(stored, await openZFile(stored));
    expect(source.size).toBe(plain.length);
    for (let i = 0; i < 200; i++) {
      const offset = Math.floor(next() * (plain.length + 1));
      const length = Math.floor(next() ** 3 * (plain.length - offset + 1));
      const read = await source.read(offset, length);
      expect(Buffer.compare(read, plain.subarray(offset, offset + length))).toBe(0);
    }
    expect(await codeOf(source.read(plain.length - 5, 6))).toBe("E_CORRUPT");
    expect(await codeOf(source.read(-1, 1))).toBe("E_CORRUPT");
  }
});

test("the block table spans groups: offsets and lengths of 5000 blocks", async () => {
  const plain = sample(5000 * 4096 - 100, 23);
  const zfile = writeZFile([plain]);
  const source = new MemorySource(zfile);
  const table = await openZFile(source);
  expect(table.count).toBe(5000);
  const view = new DataView(zfile.buffer);
  const indexOffset = Number(view.getBigUint64(40, true));
  let at = 512;
  for (let i = 0; i < table.count; i++) {
    expect(blockOffset(table, i)).toBe(at);
    expect(storedLength(table, i)).toBe(view.getUint32(indexOffset + 4 * i, true));
    at += storedLength(table, i);
  }
  expect(at).toBe(indexOffset);
  await verifyChecksums(source, table);
});

test("a block table survives structured cloning and shares its memory", async () => {
  const table = await openZFile(new MemorySource(writeZFile([sample(100_000, 1)])));
  const clone = structuredClone(table);
  expect(clone).toEqual(table);
  table.offsets[1]++;
  expect(clone.offsets[1]).toBe(table.offsets[1]);
});

test("jump tables are read in pieces of at most 1 MiB", async () => {
  const plain = new Uint8Array(300_000 * 4096);
  const source = new MemorySource(writeZFile([plain]));
  const table = await openZFile(source);
  expect(table.count).toBe(300_000);
  expect(source.largest).toBe(1 << 20);
});

test("a file without checksums cannot be verified", async () => {
  const source = new MemorySource(writeZFile([sample(10_000, 2)], { checksum: false }));
  expect(await codeOf(verifyChecksums(source, await openZFile(source)))).toBe("E_UNSUPPORTED");
});
