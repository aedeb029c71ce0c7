import { describe, expect, test } from "bun:test";
import { decodeTrace, encodeTrace, isTrace, type Trace } from "../../src/format/trace.ts";
import { crc32c } from "../../src/native/codec.ts";
import { random } from "../fixtures/random.ts";

type Read = readonly [layer: number, offset: number, length: number];

function trace(reads: readonly Read[]): Trace {
  return {
    count: reads.length,
    layers: Uint8Array.from(reads, ([layer]) => layer),
    offsets: Float64Array.from(reads, ([, offset]) => offset),
    lengths: Float64Array.from(reads, ([, , length]) => length),
  };
}

function reads({ count, layers, offsets, lengths }: Trace): Read[] {
  return Array.from({ length: count }, (_, i) => [layers[i], offsets[i], lengths[i]]);
}

/** A trace as upstream writes it: `records` as they are, the header's padding as given. */
function upstreamTrace(records: Uint8Array, padding: number): Uint8Array {
  const bytes = new Uint8Array(24 + records.length).fill(padding, 0, 24);
  const fields = new DataView(bytes.buffer);
  fields.setUint32(0, 0xc2ef1820, true);
  fields.setBigUint64(8, BigInt(records.length), true);
  fields.setUint32(16, crc32c(records), true);
  bytes.set(records, 24);
  return bytes;
}

const fromHex = (text: string): Uint8Array => Uint8Array.from(Buffer.from(text.replaceAll(" ", ""), "hex"));
/** The example of cache-download-prefetch.md section 6.2, with garbage as padding. */
const EXAMPLE = fromHex("52 10 00 00 01 00 00 00 00 10 00 00 00 00 00 00 00 20 16 00 00 00 00 00");

describe("a trace", () => {
  test("reads as specified, whatever the padding holds", () => {
    for (const padding of [0, 0xff, 0x5a]) {
      const second = EXAMPLE.slice();
      second.fill(padding, 1, 4);
      const bytes = upstreamTrace(Buffer.concat([EXAMPLE, second]), padding);
      expect(isTrace(bytes)).toBe(true);
      expect(reads(decodeTrace(bytes, "t"))).toEqual([
        [1, 1449984, 4096],
        [1, 1449984, 4096],
      ]);
    }
  });

  test("is written as specified", () => {
    const expected = EXAMPLE.slice();
    expected[1] = 0;
    expect(encodeTrace(trace([[1, 1449984, 4096]]))).toEqual(upstreamTrace(expected, 0));
    expect(encodeTrace(trace([]))).toEqual(upstreamTrace(new Uint8Array(), 0));
  });

  test("writes reads that upstream's buffer cannot hold as several", () => {
    const written = decodeTrace(encodeTrace(trace([[3, 2 ** 33 + 5, 2 ** 21 + 7]])), "t");
    expect(reads(written)).toEqual([
      [3, 2 ** 33 + 5, 2 ** 20],
      [3, 2 ** 33 + 5 + 2 ** 20, 2 ** 20],
      [3, 2 ** 33 + 5 + 2 ** 21, 7],
    ]);
  });

  test("written is read again", () => {
    const next = random(1);
    const some = Array.from({ length: 500 }, (): Read => {
      return [Math.floor(next() * 256), Math.floor(next() ** 4 * 2 ** 45), 1 + Math.floor(next() * 2 ** 20)];
    });
    expect(reads(decodeTrace(encodeTrace(trace(some)), "t"))).toEqual(some);
  });

  test("leaves out writes", () => {
    const write = EXAMPLE.slice();
    write[0] = 0x57;
    expect(decodeTrace(upstreamTrace(Buffer.concat([write, EXAMPLE]), 0), "t").count).toBe(1);
  });

  const refused: [string, Uint8Array][] = [
    ["of one byte less", upstreamTrace(EXAMPLE, 0).subarray(0, 47)],
    ["of one byte more", Buffer.concat([upstreamTrace(EXAMPLE, 0), new Uint8Array(1)])],
    ["of a part of a record", upstreamTrace(EXAMPLE.subarray(0, 12), 0)],
    ["without magic", new Uint8Array(48)],
    ["that ends in its header", upstreamTrace(EXAMPLE, 0).subarray(0, 20)],
    ["of nothing", new Uint8Array()],
    ["with an unknown operation", upstreamTrace(new Uint8Array(24), 0)],
    ["with a negative offset", upstreamTrace(Uint8Array.from(EXAMPLE).fill(0xff, 16), 0)],
  ];
  test.each(refused)("%s is refused", (_, bytes) => {
    expect(() => decodeTrace(bytes, "somewhere")).toThrow(expect.objectContaining({ code: "E_CORRUPT" }));
    expect(() => decodeTrace(bytes, "somewhere")).toThrow("somewhere");
  });

  test("damaged in any bit is refused, or means the same", () => {
    const sound = upstreamTrace(Buffer.concat([EXAMPLE, EXAMPLE]), 0);
    const meaning = reads(decodeTrace(sound, "t"));
    for (let bit = 0; bit < sound.length * 8; bit++) {
      const damaged = sound.slice();
      damaged[bit >> 3] ^= 1 << (bit & 7);
      const isPadding = (bit >> 3 >= 4 && bit >> 3 < 8) || (bit >> 3 >= 20 && bit >> 3 < 24);
      if (isPadding) expect(reads(decodeTrace(damaged, "t"))).toEqual(meaning);
      else expect(() => decodeTrace(damaged, "t")).toThrow(expect.objectContaining({ code: "E_CORRUPT" }));
    }
  });

  test("of random records with a right checksum is read or refused", () => {
    const next = random(2);
    for (let round = 0; round < 500; round++) {
      const records = Uint8Array.from({ length: 24 * 5 }, () => Math.floor(next() * 256));
      for (let at = 0; at < records.length; at += 24) if (next() < 0.9) records[at] = 0x52;
      try {
        for (const [layer, offset, length] of reads(decodeTrace(upstreamTrace(records, 1), "t"))) {
          expect(Math.min(layer, offset, length)).toBeGreaterThanOrEqual(0);
        }
      } catch (error) {
        expect(error).toMatchObject({ code: "E_CORRUPT" });
      }
    }
  });
});
