/** Bytes on disk: the specification's own examples, and what hostile files may say. */
import { describe, expect, test } from "bun:test";
import { commit } from "../../src/format/lsmt/commit.ts";
import {
  decodeEntry,
  encodeEntry,
  encodeInvalidEntry,
  INVALID_OFFSET,
  type IndexEntry,
} from "../../src/format/lsmt/entry.ts";
import { decodeHeader, encodeHeader, Flag } from "../../src/format/lsmt/header.ts";
import { openLayer } from "../../src/format/lsmt/layer.ts";
import {
  type SegmentTable,
  SegmentTableBuilder,
  segmentLength,
  segmentMoffset,
  segmentStart,
  segmentZeroed,
} from "../../src/format/lsmt/segments.ts";
import { NULL_UUID, parseUuid, randomUuid } from "../../src/format/lsmt/uuid.ts";
import { LayerWriter } from "../../src/format/lsmt/writer.ts";
import { MemorySink, MemorySource, readSectors } from "./memory.ts";

const hex = (text: string): Buffer => Buffer.from(text.replaceAll(" ", ""), "hex");

/** The table as rows of [start, length, moffset, zeroed]. */
function rows(table: SegmentTable): [number, number, number, boolean][] {
  return Array.from({ length: table.count }, (_, i) => [
    segmentStart(table, i),
    segmentLength(table, i),
    segmentMoffset(table, i),
    segmentZeroed(table, i),
  ]);
}

describe("index entry", () => {
  // lsmt.md section 3.3
  for (const [offset, length, moffset, zeroed, tag, bytes] of [
    [0, 8, 8, false, 0, "00 00 00 00 00 00 20 00  08 00 00 00 00 00 00 00"],
    [8272, 120, 8280, true, 0, "50 20 00 00 00 00 E0 01  58 20 00 00 00 00 80 00"],
    [16383, 16383, 8296, true, 0, "FF 3F 00 00 00 00 FC FF  68 20 00 00 00 00 80 00"],
    [256, 768, 264, false, 1, "00 01 00 00 00 00 00 0C  08 01 00 00 00 00 00 01"],
    [5192, 1, 9, false, 1, "48 14 00 00 00 00 04 00  09 00 00 00 00 00 00 01"],
    [INVALID_OFFSET, 0, 0, false, 0, "FF FF FF FF FF FF 03 00 00 00 00 00 00 00 00 00"],
    [2 ** 49 + 5, 3, 2 ** 54, true, 0, "05 00 00 00 00 00 0E 00 00 00 00 00 00 00 C0 00"],
  ] satisfies [number, number, number, boolean, number, string][]) {
    test(`${offset} + ${length} → ${moffset}`, () => {
      const entry: IndexEntry = { offset: 0, length: 0, moffset: 0, zeroed: false, tag: 0 };
      const stored = hex(bytes);
      decodeEntry(new DataView(stored.buffer, stored.byteOffset), 0, entry);
      expect(entry).toEqual({ offset, length, moffset, zeroed, tag });
      const written = new DataView(new ArrayBuffer(16));
      encodeEntry(written, 0, offset, length, moffset, zeroed);
      stored[15] = 0;
      expect(Buffer.from(written.buffer).toString("hex")).toBe(stored.toString("hex"));
    });
  }

  test("the invalid one", () => {
    const written = new DataView(new ArrayBuffer(16));
    encodeInvalidEntry(written, 0);
    expect(Buffer.from(written.buffer).toString("hex")).toBe(`ffffffffffff03${"00".repeat(9)}`);
  });
});

describe("uuid", () => {
  test("is canonical in upper case", () => {
    expect(parseUuid("aa24ff70-36e0-7fe7-57cf-cb7bcadf8178")).toBe("AA24FF70-36E0-7FE7-57CF-CB7BCADF8178");
    for (const text of ["", "aa24ff70", "aa24ff70-36e0-7fe7-57cf-cb7bcadf817g", `${NULL_UUID}0`]) {
      expect(parseUuid(text)).toBeNull();
    }
    expect(randomUuid()).toMatch(/^[0-9A-F]{8}-[0-9A-F]{4}-4[0-9A-F]{3}-[89AB][0-9A-F]{3}-[0-9A-F]{12}$/);
  });
});

const header = {
  flags: Flag.header | Flag.data | Flag.sealed,
  indexOffset: 2 ** 40 + 3,
  indexCount: 5,
  size: 2 ** 36,
  uuid: "AA24FF70-36E0-7FE7-57CF-CB7BCADF8178",
  parentUuid: NULL_UUID,
  userTag: "für alle",
};

describe("header", () => {
  test("decodes to what was encoded", () => {
    const block = encodeHeader(header);
    expect(block.length).toBe(4096);
    expect(decodeHeader(block, "block", Flag.header)).toEqual(header);
  });

  test("a message may have 256 bytes", () => {
    const userTag = "x".repeat(256);
    expect(decodeHeader(encodeHeader({ ...header, userTag }), "block", 0).userTag).toBe(userTag);
    expect(() => encodeHeader({ ...header, userTag: "ü".repeat(129) })).toThrow(
      expect.objectContaining({ code: "E_LIMIT" }),
    );
  });

  test("an unparsable uuid is null", () => {
    const block = Buffer.from(encodeHeader(header));
    block.fill("?", 56, 93);
    expect(decodeHeader(block, "block", 0).uuid).toBe(NULL_UUID);
  });
});

/** A blob of `count` data sectors with these index entries: [offset, length, moffset, zeroed]. */
function blob(
  count: number,
  entries: readonly (readonly [number, number, number, boolean])[],
  trailer: Partial<typeof header> = {},
): Buffer {
  const indexOffset = 4096 + count * 512;
  const common = { ...header, indexOffset: 0, indexCount: 0 };
  const index = Buffer.alloc(entries.length * 16);
  const view = new DataView(index.buffer, index.byteOffset);
  for (const [i, [offset, length, moffset, zeroed]] of entries.entries()) {
    encodeEntry(view, i * 16, offset, length, moffset, zeroed);
  }
  const flags = Flag.data | Flag.sealed;
  return Buffer.concat([
    encodeHeader(common),
    Buffer.alloc(count * 512, 1),
    index,
    encodeHeader({ ...header, flags, indexOffset, indexCount: entries.length, ...trailer }),
  ]);
}

const opened = async (bytes: Uint8Array): Promise<[number, number, number, boolean][]> =>
  rows((await openLayer(new MemorySource(bytes))).segments);

describe("opening a layer", () => {
  test("skips invalid entries anywhere, ignores tags, empty entries and fill behind the index", async () => {
    const bytes = blob(10, [
      [INVALID_OFFSET, 0, 0, false],
      [0, 2, 8, false],
      [5, 0, 9, false],
      [INVALID_OFFSET, 7, 123, true],
      [5, 2, 18, true],
      [7, 8, 10, false],
      [0, 1, 0, false], // beyond the count
    ]);
    const trailer = bytes.length - 4096;
    bytes.writeUInt32LE(6, trailer + 40);
    bytes[4096 + 10 * 512 + 16 + 15] = 9; // a tag
    expect(await opened(bytes)).toEqual([
      [0, 2, 8, false],
      [5, 2, 18, true],
      [7, 8, 10, false],
    ]);
  });

  test("takes an index at an odd offset", async () => {
    const bytes = blob(2, [[0, 1, 8, false]]);
    const odd = Buffer.concat([bytes.subarray(0, 5120), Buffer.alloc(7), bytes.subarray(5120)]);
    odd.writeUInt32LE(5127, odd.length - 4096 + 32);
    expect(await opened(odd)).toEqual([[0, 1, 8, false]]);
  });

  const huge = (at: number): ((bytes: Buffer) => void) => {
    return (bytes) => bytes.fill(0xff, bytes.length - 4096 + at, bytes.length - 4096 + at + 8);
  };
  const ok = [[0, 2, 8, false]] as const;
  for (const [what, bytes, code, message] of [
    [
      "overlapping entries",
      blob(10, [
        [0, 4, 8, false],
        [3, 1, 8, false],
      ]),
      "E_CORRUPT",
      /memory: index entry 1/,
    ],
    [
      "entries out of order",
      blob(10, [
        [9, 1, 8, false],
        [3, 1, 8, false],
      ]),
      "E_CORRUPT",
      /entry 1/,
    ],
    ["data before the data section", blob(10, [[0, 1, 7, false]]), "E_CORRUPT", /entry 0/],
    ["data reaching into the index", blob(10, [[0, 2, 17, false]]), "E_CORRUPT", /sectors 8 to 18/],
    ["data far outside", blob(10, [[0, 2, 2 ** 54, false]]), "E_CORRUPT", /entry 0/],
    ["zeros mapped behind the data", blob(10, [[0, 2, 19, true]]), "E_CORRUPT", /entry 0/],
    ["a segment beyond 2 TiB", blob(10, [[2 ** 32 - 1, 2, 8, false]]), "E_LIMIT", /2 TiB/],
    [
      "an index longer than the file",
      blob(2, ok, { indexCount: 400 }),
      "E_CORRUPT",
      /reaches into the trailer/,
    ],
    ["too long an index", blob(2, ok, { indexCount: 1_000_001 }), "E_LIMIT", /1000001 entries/],
    ["an index behind the file", blob(2, ok, { indexOffset: 2 ** 50 }), "E_CORRUPT", /trailer/],
    ["an absurd index size", mutated(blob(2, ok), huge(40)), "E_CORRUPT", /index size is absurd/],
    ["an absurd index offset", mutated(blob(2, ok), huge(32)), "E_CORRUPT", /index offset is absurd/],
    ["an absurd disk", mutated(blob(2, ok), huge(48)), "E_CORRUPT", /virtual size is absurd/],
    ["too big a disk", blob(2, ok, { size: 2 ** 41 + 512 }), "E_LIMIT", /2 TiB/],
    ["nothing", Buffer.alloc(0), "E_CORRUPT", /too short/],
    ["zeros", Buffer.alloc(20_000), "E_CORRUPT", /header of memory: not an LSMT layer/],
    ["no trailer", blob(12, ok).subarray(0, -4096), "E_CORRUPT", /trailer of memory at byte/],
    ["a cut trailer", blob(12, ok).subarray(0, -1), "E_CORRUPT", /trailer of memory/],
    ["a header for a trailer", blob(2, ok, { flags: 7 }), "E_CORRUPT", /flags are 0x7/],
    ["an unsealed trailer", blob(2, ok, { flags: 2 }), "E_CORRUPT", /flags are 0x2/],
  ] as const) {
    test(`refuses ${what}`, async () => {
      const error = await openLayer(new MemorySource(bytes)).then(
        () => null,
        (thrown) => thrown,
      );
      expect(error).toMatchObject({ code, message: expect.stringMatching(message) });
    });
  }

  test("refuses a writable layer's index file", async () => {
    const bytes = blob(2, ok);
    bytes[28] = Flag.header;
    await expect(openLayer(new MemorySource(bytes))).rejects.toMatchObject({ code: "E_CORRUPT" });
  });
});

function mutated(bytes: Buffer, change: (bytes: Buffer) => void): Buffer {
  change(bytes);
  return bytes;
}

describe("writing a layer", () => {
  function write(size: number, fill: (writer: LayerWriter) => void, options = {}): Uint8Array {
    const sink = new MemorySink();
    const writer = new LayerWriter(sink, { size, ...options });
    fill(writer);
    writer.finish();
    return sink.bytes;
  }

  test("an empty layer of 1 GiB has the specified bytes", () => {
    const bytes = Buffer.from(write(2 ** 30, () => {}));
    expect(bytes.length).toBe(8192);
    const uuid = Buffer.from(NULL_UUID).toString("hex");
    for (const [at, wanted] of [
      [0, "4C534D5400010200657E63D29444084CA2D2C8EC4FCFAE8A8601000007000000"],
      [0x20, "00000000000000000000000000000000000000400000000030303030"],
      [56, `${uuid}00${uuid}00`],
      [0x82, "000001010000"],
      [0x1000, "4C534D54"],
      [0x101c, "060000000010000000000000"],
      [0x1030, "0000004000000000"],
    ] as const) {
      const length = wanted.length / 2;
      expect(bytes.subarray(at, at + length).toString("hex")).toBe(wanted.toLowerCase());
    }
    expect(bytes.subarray(136, 4096).every((byte) => byte === 0)).toBe(true);
  });

  test("sorts, joins neighbours in the file, and pads the index to 4096 bytes", async () => {
    const bytes = write(2 ** 20, (writer) => {
      writer.write(8192, Buffer.alloc(512, 3));
      writer.write(0, Buffer.alloc(4096, 1));
      writer.write(4096, Buffer.alloc(4096, 2));
      writer.zero(65536, 4096);
    });
    expect(bytes.length).toBe(4096 + 17 * 512 + 4096 + 4096);
    const layer = await openLayer(new MemorySource(bytes));
    expect(rows(layer.segments)).toEqual([
      [0, 16, 9, false],
      [16, 1, 8, false],
      [128, 8, 25, true],
    ]);
    const read = await readSectors(layer.segments, [layer.source], 0, 18);
    expect([0, 8, 16, 17].map((sector) => read[sector * 512])).toEqual([1, 2, 3, 0]);
  });

  test("joined segments stay shorter than 16383 sectors, one of 16383 zeroed ones is kept", async () => {
    const bytes = write(2 ** 30, (writer) => {
      writer.write(0, new Uint8Array(20_000 * 512));
      writer.zero(2 ** 25, 20_000 * 512);
      writer.write(2 ** 27, new Uint8Array(16383 * 512));
    });
    expect((await opened(bytes)).map(([start, length]) => [start, length])).toEqual([
      [0, 16320],
      [16320, 3680],
      [65536, 16383],
      [65536 + 16383, 20_000 - 16383],
      [262144, 16320],
      [262144 + 16320, 63],
    ]);
  });

  test("keeps options, refuses a sector twice and broken sectors", async () => {
    const options = { uuid: randomUuid(), parentUuid: randomUuid(), userTag: "note" };
    const layer = await openLayer(new MemorySource(write(4096, () => {}, options)));
    expect(layer).toMatchObject({ size: 4096, ...options });
    const usage = expect.objectContaining({ code: "E_USAGE" });
    const twice = (): Uint8Array =>
      write(2 ** 20, (writer) => {
        writer.write(4096, new Uint8Array(4096));
        writer.write(0, new Uint8Array(4608));
      });
    expect(twice).toThrow(usage);
    expect(() => write(2 ** 20, (writer) => writer.write(1, new Uint8Array(512)))).toThrow(usage);
    expect(() => write(2 ** 20, (writer) => writer.write(0, new Uint8Array(511)))).toThrow(usage);
  });

  test("an index has as many entries as readers take, with its padding, and no more", async () => {
    const zeroes = async (count: number) => {
      const builder = new SegmentTableBuilder();
      for (let i = 0; i < count; i++) builder.push(i * 2, 1, 8, true, 0);
      const sink = new MemorySink();
      await commit(builder.build(), [], sink, { size: 2 ** 31 });
      return new MemorySource(sink.bytes);
    };
    for (const count of [999_936, 999_937, 1_000_000]) {
      const source = await zeroes(count);
      const indexBytes = source.size - 2 * 4096;
      expect([count, indexBytes / 16]).toEqual([count, count === 999_936 ? count : 1_000_000]);
      expect((await openLayer(source)).segments.count).toBe(count);
    }
    await expect(zeroes(1_000_001)).rejects.toMatchObject({ code: "E_LIMIT" });
  });
});
