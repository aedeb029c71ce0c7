import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { createHash } from "node:crypto";
import { closeSync, mkdtempSync, openSync, readSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { gzipSync, zstdCompressSync } from "node:zlib";
import { $ } from "bun";
import { CHUNK_BYTES } from "../../src/native/bytestream.ts";
import {
  type InflateStream,
  openStream,
  StreamError,
  type StreamErrorKind,
  type StreamOptions,
} from "../../src/native/inflate.ts";
import { random } from "../fixtures/random.ts";

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "overlaybd-inflate-"));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** Half noise, half repetition, so that it compresses, but not to nothing. */
function sample(bytes: number, seed = 1): Buffer {
  const next = random(seed);
  const result = Buffer.alloc(bytes);
  for (let at = 0; at < bytes; ) {
    const length = Math.min(1 + Math.floor(next() * 200), bytes - at);
    if (at > 0 && next() < 0.5)
      result.copyWithin(at, Math.floor(next() * at), Math.floor(next() * at) + length);
    else for (let i = 0; i < length; i++) result[at + i] = 97 + Math.floor(next() * 26);
    at += length;
  }
  return result;
}

function drain(stream: InflateStream): Buffer {
  const parts: Buffer[] = [];
  for (let chunk = stream.next(); chunk; chunk = stream.next()) {
    if (parts.at(-1) && parts.at(-1)?.length !== CHUNK_BYTES)
      throw new Error("a chunk but the last is not full");
    parts.push(Buffer.from(chunk.bytes));
  }
  return Buffer.concat(parts);
}

function withFile<T>(input: Uint8Array, options: StreamOptions, use: (stream: InflateStream) => T): T {
  const path = join(folder, "input");
  writeFileSync(path, input);
  const fd = openSync(path, "r");
  const stream = openStream(fd, options);
  try {
    return use(stream);
  } finally {
    stream.close();
    closeSync(fd);
  }
}

const inflate = (input: Uint8Array, options: StreamOptions = {}) =>
  withFile(input, options, (stream) => ({ output: drain(stream), summary: stream.summary() }));

function failure(input: Uint8Array, options: StreamOptions = {}): StreamError {
  try {
    inflate(input, options);
  } catch (error) {
    if (error instanceof StreamError) return error;
    throw error;
  }
  throw new Error("the input was accepted");
}

const sha256 = (bytes: Uint8Array) => createHash("sha256").update(bytes).digest("hex");

describe.each([
  ["plain", (bytes: Uint8Array) => bytes],
  ["gzip", (bytes: Uint8Array) => gzipSync(bytes)],
  ["zstd", (bytes: Uint8Array) => zstdCompressSync(bytes)],
] as [string, (bytes: Uint8Array) => Uint8Array][])("%s", (format, compress) => {
  test.each([1, 511, 512, 70_000, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 5 * CHUNK_BYTES, 9_876_543])(
    "%d bytes",
    (size) => {
      const bytes = sample(size);
      const input = compress(bytes);
      const { output, summary } = inflate(input, { hashInput: true, hashOutput: true });
      expect(output.equals(bytes)).toBe(true);
      expect(summary).toEqual({
        format: format as "plain",
        inputBytes: input.length,
        outputBytes: size,
        ignoredBytes: 0,
        inputDigest: sha256(input),
        outputDigest: sha256(bytes),
      });
    },
  );

  test("incompressible and all-zero content", () => {
    const zeros = new Uint8Array(3_000_001);
    expect(inflate(compress(zeros)).output.equals(zeros)).toBe(true);
    const noise = crypto.getRandomValues(new Uint8Array(65536));
    expect(inflate(compress(noise)).output.equals(noise)).toBe(true);
  });

  test("more output than allowed", () => {
    const input = compress(sample(3_000_000));
    expect(failure(input, { maximumOutput: 2_999_999 }).kind).toBe("limit");
    expect(inflate(input, { maximumOutput: 3_000_000 }).summary.outputBytes).toBe(3_000_000);
  });
});

test("an empty input is an empty plain stream", () => {
  expect(inflate(new Uint8Array(0)).summary).toMatchObject({
    format: "plain",
    inputBytes: 0,
    outputBytes: 0,
  });
});

test("digests are not computed unasked", () => {
  expect(inflate(sample(100)).summary).toMatchObject({ inputDigest: null, outputDigest: null });
});

describe("gzip", () => {
  const bytes = sample(400_000);
  const whole = gzipSync(bytes);

  test("members may be concatenated, empty ones too", () => {
    const parts = [sample(1, 2), sample(300_000, 3), Buffer.alloc(0), sample(1_500_000, 4), sample(777, 5)];
    const input = Buffer.concat(parts.map((part) => gzipSync(part)));
    expect(inflate(input).output.equals(Buffer.concat(parts))).toBe(true);
  });

  test("many small members", () => {
    const parts = Array.from({ length: 3000 }, (_, i) => sample(i % 200, i));
    const { output, summary } = inflate(Buffer.concat(parts.map((part) => gzipSync(part))));
    expect(output.equals(Buffer.concat(parts))).toBe(true);
    expect(summary.ignoredBytes).toBe(0);
  });

  test("every level's block types, stored blocks included", () => {
    for (const level of [0, 1, 6, 9])
      expect(inflate(gzipSync(bytes, { level })).output.equals(bytes)).toBe(true);
  });

  test("headers with every optional field, at every distance from the end of the input buffer", () => {
    const header = Buffer.from([0x1f, 0x8b, 8, 0x1e, 1, 2, 3, 4, 0, 3, 5, 0, 9, 9, 9, 9, 9]);
    const fields = Buffer.concat([header, Buffer.from("name\0comment\0")]);
    const crc = Bun.hash.crc32(fields) & 0xffff;
    const second = Buffer.concat([fields, Buffer.of(crc & 255, crc >> 8), gzipSync("tail").subarray(10)]);
    expect(inflate(second).output.toString()).toBe("tail");
    for (let gap = 0; gap < fields.length + 30; gap++) {
      // A stored member of the length that puts the second header `gap` bytes before a read's end.
      const stored = gzipSync(Buffer.alloc(60_000), { level: 0 });
      const filler = Buffer.from(
        gzipSync(Buffer.alloc((256 << 10) - 4 * stored.length - gap - 23), { level: 0 }),
      );
      const { output } = inflate(Buffer.concat([stored, stored, stored, stored, filler, second]));
      expect(output.subarray(-4).toString()).toBe("tail");
    }
    second[18] ^= 1;
    expect(failure(second)).toMatchObject({ kind: "corrupt", message: expect.stringContaining("checksum") });
  });

  test.each([
    ["zero padding", new Uint8Array(10_000)],
    ["garbage", Buffer.from("garbage")],
    ["half a magic number", Buffer.of(0x1f)],
    ["a megabyte of garbage", Buffer.alloc(1 << 20, "x")],
  ])("%s after the last member is ignored and counted", (_, garbage) => {
    const input = Buffer.concat([whole, garbage]);
    const { output, summary } = inflate(input, { hashInput: true });
    expect(output.equals(bytes)).toBe(true);
    expect(summary).toMatchObject({
      ignoredBytes: garbage.length,
      inputBytes: input.length,
      inputDigest: sha256(input),
    });
  });

  test("truncated anywhere", () => {
    for (
      let length = 2;
      length < whole.length;
      length += length < 40 || length > whole.length - 20 ? 1 : 9973
    )
      expect([length, failure(whole.subarray(0, length)).kind]).toEqual([length, "truncated"]);
  });

  test("what came before the damage is delivered, and the error says where", () => {
    const big = gzipSync(sample(4_000_000));
    withFile(big.subarray(0, big.length / 2), {}, (stream) => {
      expect(stream.next()?.bytes.length).toBe(CHUNK_BYTES);
      const error = (() => {
        try {
          drain(stream);
        } catch (error) {
          return error;
        }
      })();
      expect(error).toBeInstanceOf(StreamError);
      expect(error).toMatchObject({ kind: "truncated", offset: Math.floor(big.length / 2) });
      expect(() => stream.next()).toThrow(StreamError);
    });
  });

  test("a wrong CRC, a wrong length, an unknown method, reserved flags", () => {
    const flipped = (at: number, mask: number) => {
      const copy = Buffer.from(whole);
      copy[at < 0 ? copy.length + at : at] ^= mask;
      return failure(copy);
    };
    expect(flipped(-8, 1)).toMatchObject({ kind: "corrupt", message: expect.stringContaining("checksum") });
    expect(flipped(-1, 1)).toMatchObject({ kind: "corrupt", message: expect.stringContaining("checksum") });
    expect(flipped(2, 1).kind).toBe("corrupt");
    expect(flipped(3, 0x80).kind).toBe("corrupt");
  });
});

describe("zstd", () => {
  const bytes = sample(400_000);
  const whole = zstdCompressSync(bytes);

  test("frames may be concatenated, with skippable ones between", () => {
    const skippable = Buffer.from([0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3]);
    const input = Buffer.concat([whole, skippable, zstdCompressSync("x"), whole]);
    expect(inflate(input).output.equals(Buffer.concat([bytes, Buffer.from("x"), bytes]))).toBe(true);
  });

  test("truncated anywhere", () => {
    for (
      let length = 4;
      length < whole.length;
      length += length < 40 || length > whole.length - 20 ? 1 : 9973
    )
      expect([length, failure(whole.subarray(0, length)).kind]).toEqual([length, "truncated"]);
  });

  test("damage, and garbage behind", async () => {
    const path = join(folder, "sample");
    writeFileSync(path, bytes);
    const checked = Buffer.from(await $`zstd -q --check -c ${path}`.arrayBuffer());
    checked[checked.length - 1] ^= 1;
    expect(failure(checked)).toMatchObject({ kind: "corrupt", message: expect.stringContaining("checksum") });
    expect(failure(Buffer.concat([whole, Buffer.from("garbage")])).kind).toBe("corrupt");
  });

  test("a window beyond the bound is refused", () => {
    // A frame header that declares a window of 2^(10+21) bytes, and one raw, empty, last block.
    const frame = Buffer.from([0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3, 0x01, 0x00, 0x00]);
    expect(failure(frame)).toMatchObject({ kind: "limit", message: expect.stringContaining("128 MiB") });
    frame[5] = 17 << 3;
    expect(inflate(frame).output.length).toBe(0);
  });
});

describe("descriptors", () => {
  test("a pipe that delivers a few bytes at a time", async () => {
    const bytes = sample(50_000);
    writeFileSync(join(folder, "slow"), gzipSync(bytes));
    const fifo = join(folder, "fifo");
    await $`mkfifo ${fifo}`;
    const writer = Bun.spawn(["sh", "-c", `dd if=${join(folder, "slow")} of=${fifo} bs=7 2>/dev/null`]);
    const fd = openSync(fifo, "r");
    const stream = openStream(fd);
    expect(drain(stream).equals(bytes)).toBe(true);
    closeSync(fd);
    await writer.exited;
  });

  test("closing does not wait for a pipe nobody writes to", async () => {
    const fifo = join(folder, "silent");
    await $`mkfifo ${fifo}`;
    const fd = openSync(fifo, "r+");
    for (let i = 0; i < 20; i++) openStream(fd).close();
    const stream = openStream(fd);
    stream.close();
    stream.close();
    expect(() => stream.next()).toThrow("closed");
    closeSync(fd);
  });

  test("closing in the middle, with the ring full or not", () => {
    const input = gzipSync(new Uint8Array(30 * CHUNK_BYTES));
    for (const chunks of [0, 1, 2, 7])
      withFile(input, {}, (stream) => {
        for (let i = 0; i < chunks; i++) expect(stream.next()?.bytes.length).toBe(CHUNK_BYTES);
        expect(() => stream.summary()).toThrow();
      });
  });

  test("reading starts at the descriptor's position", () => {
    const path = join(folder, "positioned");
    writeFileSync(path, "before content");
    const fd = openSync(path, "r");
    readSync(fd, new Uint8Array(7));
    expect(drain(openStream(fd)).toString()).toBe("content");
    closeSync(fd);
  });

  test("descriptors that cannot be read", () => {
    const directory = openSync(folder, "r");
    const kind: StreamErrorKind = "io";
    const stream = openStream(directory);
    expect(() => drain(stream)).toThrow(expect.objectContaining({ kind, errno: 21 }));
    closeSync(directory);
    expect(() => openStream(-1)).toThrow(expect.objectContaining({ kind, errno: 9 }));
  });
});
