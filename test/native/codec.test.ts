import { ptr } from "bun:ffi";
import { afterAll, describe, expect, test } from "bun:test";
import { createHash } from "node:crypto";
import { closeSync, mkdtempSync, openSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { compressBlock, compressBound, crc32c, decompressBlock, Sha256 } from "../../src/native/codec.ts";
import { random } from "./random.ts";

describe("crc32c", () => {
  const digits = Buffer.from("123456789");
  const zeros = new Uint8Array(32);

  test("gives the format's test vectors", () => {
    expect(crc32c(digits)).toBe(0x58e3fa20);
    expect(crc32c(digits, 100007)).toBe(0x3c9bd4e0);
    expect(crc32c(zeros)).toBe(0);
    expect(crc32c(zeros, 100007)).toBe(0x28250fd2);
    expect(crc32c(new Uint8Array(0), 0xffffffff)).toBe(0xffffffff);
  });

  test("continues over pieces and equals the definition", () => {
    const bytes = random(1).bytes(10_000);
    let bitwise = 7;
    for (const byte of bytes) {
      bitwise ^= byte;
      for (let bit = 0; bit < 8; bit++) bitwise = (bitwise >>> 1) ^ (bitwise & 1 ? 0x82f63b78 : 0);
    }
    expect(crc32c(bytes, 7)).toBe(bitwise >>> 0);
    expect(crc32c(bytes.subarray(4567), crc32c(bytes.subarray(0, 4567), 7))).toBe(bitwise >>> 0);
  });
});

describe("blocks", () => {
  for (const codec of [1, 2] as const) {
    const name = codec === 1 ? "lz4" : "zstd";

    test(`${name}: every length comes back, whatever the bytes`, () => {
      const { bytes, text, below } = random(codec);
      for (const length of [
        1,
        2,
        511,
        4095,
        4096,
        32768,
        65536,
        ...Array.from({ length: 50 }, () => below(65536) + 1),
      ]) {
        for (const plain of [bytes(length), text(length), new Uint8Array(length)]) {
          const target = new Uint8Array(compressBound(codec, length));
          const stored = target.subarray(0, compressBlock(codec, plain, target));
          const back = new Uint8Array(length);
          expect(decompressBlock(codec, stored, back)).toBe(true);
          expect(Buffer.compare(back, plain)).toBe(0);
          expect(decompressBlock(codec, stored, new Uint8Array(length + 1))).toBe(false);
          expect(length > 1 && decompressBlock(codec, stored, new Uint8Array(length - 1))).toBe(false);
          expect(decompressBlock(codec, stored.subarray(0, -1), back)).toBe(false);
        }
      }
    });

    test(`${name}: refuses a target that is too small`, () => {
      expect(() => compressBlock(codec, random(3).bytes(4096), new Uint8Array(100))).toThrow(RangeError);
    });
  }

  test("zstd: a block is one frame with its length recorded and no checksum of its own", () => {
    const plain = random(4).text(4096);
    const target = new Uint8Array(compressBound(2, plain.length));
    const stored = target.subarray(0, compressBlock(2, plain, target));
    // RFC 8878 section 3.1.1.1: descriptor bits 7-6 content size field, 5 single segment, 2 checksum, 1-0 dictionary.
    expect(stored[4] & 0b00000111).toBe(0);
    expect(stored[4] >> 5).not.toBe(0);
    const back = new Uint8Array(plain.length);
    expect(decompressBlock(2, Buffer.concat([stored, stored]), back)).toBe(false);
    const skippable = Uint8Array.of(0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0);
    expect(decompressBlock(2, Buffer.concat([stored, skippable]), back)).toBe(false);
    expect(decompressBlock(2, Buffer.concat([skippable, stored]), back)).toBe(false);
  });
});

describe("Sha256", () => {
  const folder = mkdtempSync(join(tmpdir(), "overlaybd-codec-"));
  afterAll(() => rmSync(folder, { recursive: true }));

  test("equals the digest of memory and file ranges put together", () => {
    const bytes = random(5).bytes(700_000);
    const path = join(folder, "data");
    writeFileSync(path, bytes);
    const fd = openSync(path, "r");
    const hash = new Sha256();
    hash.update(bytes.subarray(0, 1000));
    hash.updateAt(ptr(bytes, 1000), 500);
    hash.updateFile(fd, 1500, bytes.length - 1500);
    expect(hash.digest()).toBe(createHash("sha256").update(bytes).digest("hex"));
    expect(hash.digest()).toBe(createHash("sha256").digest("hex"));
    expect(() => hash.updateFile(fd, 1000, bytes.length)).toThrow("ENODATA");
    expect(() => hash.updateFile(fd, -1, 5)).toThrow("EINVAL");
    hash.close();
    closeSync(fd);
  });
});
