/** Files that lie: every claim of header, trailer and jump table is false in turn, with right digests around it. */
import { expect, test } from "bun:test";
import { BLOCK_FLAGS, encodeHeader, type ZFileHeader } from "../../src/format/zfile/header.ts";
import { isZFile, openZFile } from "../../src/format/zfile/open.ts";
import { verifyChecksums, ZFileSource } from "../../src/format/zfile/reader.ts";
import { crc32c } from "../../src/native/codec.ts";
import { codeOf, MemorySource, readZFile, sample, writeZFile } from "./zfile.ts";

interface Forged {
  /** Fields of trailer and header. */
  readonly header?: Partial<ZFileHeader>;
  readonly lengths?: readonly number[];
  readonly blocks?: Uint8Array;
}

/** A file of two LZ4 blocks of 4096 bytes, except where `forged` says otherwise; all digests are right. */
function forge(forged: Forged, overwritten: boolean): Uint8Array {
  const honest = writeZFile([sample(8192, 1)], { overwriteHeader: true });
  const view = new DataView(honest.buffer);
  const indexOffset = view.getUint32(40, true);
  const blocks = forged.blocks ?? honest.subarray(512, indexOffset);
  const lengths = new Uint32Array(
    forged.lengths ?? [view.getUint32(indexOffset, true), view.getUint32(indexOffset + 4, true)],
  );
  const jumpTable = new Uint8Array(lengths.buffer);
  const fields: ZFileHeader = {
    flags: 0,
    indexOffset: 512 + blocks.length,
    blockCount: lengths.length,
    plainSize: 8192,
    indexChecksum: crc32c(jumpTable),
    blockSize: 4096,
    algorithm: 1,
    dictionaryBytes: 0,
    checksum: true,
    ...forged.header,
  };
  const first = encodeHeader({
    ...fields,
    flags: overwritten ? BLOCK_FLAGS.overwrittenHeader : BLOCK_FLAGS.header,
  });
  const last = encodeHeader({ ...fields, flags: BLOCK_FLAGS.trailer });
  return new Uint8Array(Buffer.concat([first, blocks, jumpTable, last]));
}

const lies: readonly (readonly [string, string, Forged])[] = [
  ["an unknown compression", "E_UNSUPPORTED", { header: { algorithm: 3 } }],
  ["miniLZO, which nobody implements", "E_UNSUPPORTED", { header: { algorithm: 0 } }],
  ["a block size of 0", "E_UNSUPPORTED", { header: { blockSize: 0 } }],
  ["a block size of 6000", "E_UNSUPPORTED", { header: { blockSize: 6000 } }],
  ["a block size of 128 KiB", "E_UNSUPPORTED", { header: { blockSize: 131072, blockCount: 1 } }],
  ["a block size of 2 GiB", "E_UNSUPPORTED", { header: { blockSize: 2 ** 31, blockCount: 1 } }],
  ["more blocks than the size needs", "E_CORRUPT", { header: { plainSize: 4096 } }],
  ["fewer blocks than the size needs", "E_CORRUPT", { header: { plainSize: 8193 } }],
  ["no blocks at all", "E_CORRUPT", { header: { blockCount: 0 } }],
  ["a jump table behind the end", "E_CORRUPT", { header: { indexOffset: 2 ** 40 } }],
  ["a jump table that runs into the end", "E_CORRUPT", { header: { blockCount: 1000, plainSize: 4096000 } }],
  ["a jump table in the header", "E_CORRUPT", { header: { indexOffset: 0 } }],
  ["a dictionary up to the jump table", "E_CORRUPT", { header: { dictionaryBytes: 2 ** 32 - 1 } }],
  ["a wrong checksum of the jump table", "E_CORRUPT", { header: { indexChecksum: 1 } }],
  [
    "more blocks than can be read",
    "E_LIMIT",
    { header: { blockCount: 2 ** 28 + 1, plainSize: 2 ** 40 + 4096 } },
  ],
  ["an empty block", "E_CORRUPT", { lengths: [0, 100] }],
  ["a block that is all checksum", "E_CORRUPT", { lengths: [4, 100] }],
  ["a block longer than its codec can make it", "E_CORRUPT", { lengths: [4096 + 512 + 5, 100] }],
  ["a block of 4 GiB", "E_CORRUPT", { lengths: [2 ** 32 - 1, 2 ** 32 - 1] }],
  [
    "blocks that run into the jump table",
    "E_CORRUPT",
    { lengths: [4000, 4000], blocks: new Uint8Array(300) },
  ],
];

for (const overwritten of [true, false]) {
  const place = overwritten ? "header" : "trailer";
  for (const [what, code, forged] of lies) {
    test(`${place} with ${what}`, async () => {
      expect(await codeOf(openZFile(new MemorySource(forge(forged, overwritten))))).toBe(code);
    });
  }

  test(`${place}: without a lie it opens`, async () => {
    expect(await readZFile(forge({}, overwritten))).toEqual(sample(8192, 1));
  });
}

test("a claim of 2^28 blocks allocates nothing when the file has no room for them", async () => {
  const before = process.memoryUsage().rss;
  const file = forge({ header: { blockCount: 2 ** 28, plainSize: 2 ** 40, indexOffset: 600 } }, true);
  for (let i = 0; i < 10; i++) expect(await codeOf(openZFile(new MemorySource(file)))).toBe("E_CORRUPT");
  expect(process.memoryUsage().rss - before).toBeLessThan(64 << 20);
});

test("a size that the bytes do not live up to is found while reading, not trusted", async () => {
  const file = forge({ header: { blockCount: 2 ** 28, plainSize: 2 ** 40, indexOffset: 2 ** 33 } }, true);
  const before = process.memoryUsage().rss;
  expect(await codeOf(openZFile(new MemorySource(file, "huge", 2 ** 42)))).toBe("E_CORRUPT");
  expect(process.memoryUsage().rss - before).toBeLessThan(64 << 20);
});

test("other files are no ZFiles; a damaged header is an error, not another kind of file", async () => {
  const zfile = writeZFile([sample(5000, 3)]);
  expect(await isZFile(new MemorySource(zfile))).toBe(true);
  expect(await isZFile(new MemorySource(new Uint8Array(511)))).toBe(false);
  expect(await isZFile(new MemorySource(new Uint8Array(4096)))).toBe(false);
  zfile[60] ^= 1;
  expect(await codeOf(isZFile(new MemorySource(zfile)))).toBe("E_CORRUPT");
  expect(await codeOf(openZFile(new MemorySource(zfile)))).toBe("E_CORRUPT");
  expect(await codeOf(openZFile(new MemorySource(new Uint8Array(4096))))).toBe("E_CORRUPT");
});

test("headers with garbage where old writers left memory uninitialised open (zfile.md section 2.1)", async () => {
  const plain = sample(300_000, 9);
  const zfile = writeZFile([plain], { overwriteHeader: false });
  const view = new DataView(zfile.buffer);
  const trailer = zfile.length - 512;
  for (const [at, low] of [
    [0, 0xa4640b43],
    [trailer, 0xa4640b46],
  ]) {
    view.setUint32(at + 28, 0xdeadbeef, true); // digest
    view.setUint32(at + 32, low, true);
    view.setUint32(at + 36, 0x00007ffe, true);
    zfile.fill(0xa5, at + 68, at + 72);
    zfile.fill(0x5a, at + 96, at + 512);
  }
  view.setUint32(trailer + 64, 0x12345678, true); // checksum of the jump table
  expect(Buffer.compare(await readZFile(zfile), plain)).toBe(0);
});

test("bytes between header and first block are skipped as a dictionary", async () => {
  const honest = forge({}, false);
  const blocks = honest.subarray(512, honest.length - 512 - 8);
  const padded = new Uint8Array(Buffer.concat([new Uint8Array(100), blocks]));
  const file = forge({ blocks: padded, header: { dictionaryBytes: 100 } }, false);
  expect(await readZFile(file)).toEqual(sample(8192, 1));
});

test("a flipped bit in any stored block is found by reading and by verifying", async () => {
  const plain = sample(50_000, 4);
  for (const codec of [1, 2] as const) {
    const zfile = writeZFile([plain], { codec });
    const indexOffset = new DataView(zfile.buffer).getUint32(40, true);
    for (let at = 512; at < indexOffset; at += 97) {
      zfile[at] ^= 1 << (at & 7);
      const source = new MemorySource(zfile);
      const table = await openZFile(source);
      expect(await codeOf(readZFile(zfile))).toBe("E_CORRUPT");
      expect(await codeOf(verifyChecksums(source, table))).toBe("E_CORRUPT");
      zfile[at] ^= 1 << (at & 7);
    }
  }
});

test("without checksums, a damaged block gives an error or bytes of the right number", async () => {
  const plain = sample(50_000, 4);
  for (const codec of [1, 2] as const) {
    const zfile = writeZFile([plain], { codec, checksum: false });
    const stored = new MemorySource(zfile);
    const table = await openZFile(stored);
    const source = new ZFileSource(stored, table);
    for (let at = 512; at < zfile.length - 1024; at += 41) {
      zfile[at] ^= 1 << (at & 7);
      const result = await source.read(0, plain.length).catch((error) => error.code);
      expect(result instanceof Uint8Array ? result.length : result).toBe(
        result instanceof Uint8Array ? plain.length : "E_CORRUPT",
      );
      zfile[at] ^= 1 << (at & 7);
    }
  }
});

test("a block that decompresses to another length than its place demands", async () => {
  const short = writeZFile([sample(4000, 8)]);
  const shortBlock = short.subarray(512, new DataView(short.buffer).getUint32(40, true));
  const blocks = new Uint8Array(Buffer.concat([shortBlock, shortBlock]));
  const lengths = [shortBlock.length, shortBlock.length];
  expect(await codeOf(readZFile(forge({ blocks, lengths }, true)))).toBe("E_CORRUPT");
});

test("a file cut off anywhere is an error, unless only the spare trailer is gone", async () => {
  const plain = sample(30_000, 6);
  for (const overwriteHeader of [true, false]) {
    const zfile = writeZFile([plain], { overwriteHeader });
    for (let length = 0; length < zfile.length; length += 61) {
      const result = await readZFile(zfile.subarray(0, length)).catch((error) => error.code);
      const complete = overwriteHeader && length >= zfile.length - 512;
      if (complete) expect(Buffer.compare(result, plain)).toBe(0);
      else expect(result).toBe("E_CORRUPT");
    }
  }
});
