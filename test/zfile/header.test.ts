import { expect, test } from "bun:test";
import {
  BLOCK_FLAGS,
  decodeHeader,
  encodeHeader,
  HEADER_BYTES,
  hasMagic,
  isIntact,
  type ZFileHeader,
} from "../../src/format/zfile/header.ts";

/** The worked example of zfile.md section 9: an empty LSMT layer, header overwritten. */
const EXAMPLE: ZFileHeader = {
  flags: BLOCK_FLAGS.overwrittenHeader,
  indexOffset: 724,
  blockCount: 2,
  plainSize: 8192,
  indexChecksum: 0xc1f9186e,
  blockSize: 4096,
  algorithm: 1,
  dictionaryBytes: 0,
  checksum: true,
};

test("the worked example of the format's description, byte for byte", () => {
  const expected = new Uint8Array(HEADER_BYTES);
  expected.set(
    Buffer.from(
      "5a46696c6500010074756a692e79796640416c6962616261" +
        "60000000f610ed341b00000000000000d40200000000000002000000000000000020000000000000" +
        "6e18f9c1000000000010000001000000000000000000000001",
      "hex",
    ),
  );
  expect(encodeHeader(EXAMPLE)).toEqual(expected);
  expect(decodeHeader(expected, "example")).toEqual(EXAMPLE);
});

test("the trailer differs in flags and digest only", () => {
  const trailer = encodeHeader({ ...EXAMPLE, flags: BLOCK_FLAGS.trailer });
  expect(Buffer.from(trailer.subarray(28, 40)).toString("hex")).toBe("d2c52dc41600000000000000");
});

test("numbers beyond 32 bits survive", () => {
  const large = { ...EXAMPLE, indexOffset: 2 ** 40 + 3, blockCount: 2 ** 33 + 1, plainSize: 2 ** 53 - 1 };
  expect(decodeHeader(encodeHeader(large), "large")).toEqual(large);
});

test("a number of 2^53 or more is refused", () => {
  const block = encodeHeader(EXAMPLE);
  block[62] = 0x20;
  expect(() => decodeHeader(block, "huge")).toThrow("impossible number at byte 56");
});

test("every single flipped bit of an intact header is noticed, or is one that readers ignore", () => {
  const block = encodeHeader(EXAMPLE);
  for (let bit = 0; bit < HEADER_BYTES * 8; bit++) {
    block[bit >> 3] ^= 1 << (bit & 7);
    const noticed = !hasMagic(block) || !isIntact(block);
    // Bit 4 of the flags says whether there is a digest at all.
    expect(noticed || bit === 32 * 8 + 4).toBe(true);
    block[bit >> 3] ^= 1 << (bit & 7);
  }
});

test("checking a digest leaves the bytes alone, also those of a Buffer", () => {
  const block = Buffer.from(encodeHeader(EXAMPLE));
  const before = Buffer.from(block);
  expect(isIntact(block)).toBe(true);
  expect(block.equals(before)).toBe(true);
});
