import { expect, test } from "bun:test";
import { closeSync, openSync, readFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import { TarWrapper, unwrapTar } from "../../src/format/tar/wrapper.ts";
import { golden, goldenDir } from "../golden/golden.ts";
import { codeOf, MemorySource, withFolder } from "./zfile.ts";

process.umask(0o022);

/** A ustar header; `overrides` are raw field texts. The checksum is right unless overridden. */
function header(type: string, size: number, overrides: Record<number, string> = {}): Buffer {
  const block = Buffer.alloc(512);
  block.write("member", 0);
  block.write(size.toString(8).padStart(11, "0"), 124);
  block.write(type, 156);
  block.write("ustar\x0000", 257, "latin1");
  for (const [at, text] of Object.entries(overrides)) block.write(text, Number(at), "latin1");
  if (!(148 in overrides)) {
    block.fill(0x20, 148, 156);
    const sum = block.reduce((total, byte) => total + byte, 0);
    block.write(`${sum.toString(8).padStart(6, "0")}\0 `, 148, "latin1");
  }
  return block;
}

function padded(data: string | Uint8Array): Buffer {
  const bytes = Buffer.from(data);
  return Buffer.concat([bytes, Buffer.alloc(-bytes.length & 511)]);
}

function record(key: string, value: string): string {
  const rest = ` ${key}=${value}\n`;
  let length = rest.length + 1;
  while (`${length}${rest}`.length !== length) length++;
  return `${length}${rest}`;
}

const content = Buffer.alloc(3000, "layer");
const unwrap = (...parts: Uint8Array[]) =>
  unwrapTar(new MemorySource(new Uint8Array(Buffer.concat(parts)), "blob"));

function wrap(content: Uint8Array): Buffer {
  return withFolder((folder) => {
    const path = join(folder, "wrapped");
    const fd = openSync(path, "wx+", 0o644);
    const wrapper = new TarWrapper({ fd, path });
    const start = wrapper.begin();
    writeSync(fd, content, 0, content.length, start);
    const placeholder = readFileSync(path);
    expect(placeholder.toString("latin1", 1024 + 257, 1024 + 262)).toBe("xxtar");
    expect(placeholder.toString("latin1", 257, 262)).toBe("\0\0\0\0\0");
    wrapper.finish(content.length);
    wrapper.finish(content.length + 1024);
    closeSync(fd);
    return readFileSync(path);
  });
}

test.skipIf(goldenDir === null)("wrapping gives upstream's bytes, also when finished twice", () => {
  for (const name of ["zfile/pattern.lz4.bs4.tar", "lsmt/layer1.lz4.tar", "lsmt/layer2.zstd.tar"]) {
    const expected = readFileSync(golden(name));
    const size = Number(/size=(\d+)/.exec(expected.toString("latin1", 512, 1024))?.[1]);
    expect(wrap(expected.subarray(1536, 1536 + size)).equals(expected)).toBe(true);
  }
});

test("what was wrapped unwraps to itself, whatever its size", async () => {
  for (const size of [0, 1, 511, 512, 513, 99_999, 100_000]) {
    const wrapped = wrap(Buffer.alloc(size, 7));
    expect(wrapped.length).toBe(1536 + Math.ceil(size / 512) * 512 + 1024);
    expect(await unwrap(wrapped)).toEqual({ start: 1536, size });
  }
});

test("other tars around a layer: plain ustar, PAX, global header, several, long, GNU names behind ustar", async () => {
  const size = content.length;
  const member = header("0", size);
  const body = padded(content);
  const pax = record("size", String(size));
  expect(await unwrap(member, body)).toEqual({ start: 512, size });
  expect(await unwrap(header("x", pax.length), padded(pax), header("0", 0), body)).toEqual({
    start: 1536,
    size,
  });
  expect(await unwrap(header("g", pax.length), padded(pax), header("0", 0), body)).toEqual({
    start: 1536,
    size,
  });
  const comment = record("comment", "no size in here");
  expect(await unwrap(header("x", comment.length), padded(comment), member, body)).toEqual({
    start: 1536,
    size,
  });
  const long = record("comment", "x".repeat(2000)) + pax;
  expect(await unwrap(header("x", long.length), padded(long), header("0", 0), body)).toEqual({
    start: 3072,
    size,
  });
  const name = `${"n".repeat(600)}\0`;
  const chain = [header("g", comment.length), padded(comment), header("L", name.length), padded(name)];
  expect(await unwrap(...chain, header("x", pax.length), padded(pax), header("0", 0), body)).toEqual({
    start: 4096,
    size,
  });
});

test("a checksum over signed bytes counts; digits may have leading spaces", async () => {
  const block = header("0", content.length, { 0: "\xe9\xff" });
  block.fill(0x20, 148, 156);
  const signed = block.reduce((total, byte) => total + ((byte << 24) >> 24), 0);
  block.write(`${signed.toString(8).padStart(6)} \0`, 148, "latin1");
  expect(await unwrap(block, padded(content))).toEqual({ start: 512, size: content.length });
});

test("anything else is the layer itself", async () => {
  const body = padded(content);
  const plain = (part: Uint8Array) => ({ start: 0, size: part.length + body.length });
  const others = {
    gnu: header("0", 5, { 257: "ustar  \0" }),
    v7: header("0", 5, { 257: "\0\0\0\0\0\0\0\0" }),
    wrongVersion: header("0", 5, { 263: "01" }),
    wrongChecksum: header("0", 5, { 148: "000001\0 " }),
    noNumber: header("0", 5, { 148: "zzzzzz\0 " }),
    unfinished: header("x", 10, { 257: "xxtar\0xx" }),
  };
  for (const block of Object.values(others)) expect(await unwrap(block, body)).toEqual(plain(block));
  expect(await unwrap(header("0", 5).subarray(0, 511))).toEqual({ start: 0, size: 511 });
  expect(await unwrap(new Uint8Array(0))).toEqual({ start: 0, size: 0 });
});

test("tars that lie or are cut off", async () => {
  const body = padded(content);
  expect(await codeOf(unwrap(header("0", content.length + 600), body))).toBe("E_CORRUPT");
  expect(await codeOf(unwrap(header("0", 0, { 124: "77777777777" })))).toBe("E_CORRUPT");
  expect(await codeOf(unwrap(header("0", 0, { 124: "what?" }), body))).toBe("E_CORRUPT");
  expect(await codeOf(unwrap(header("0", 0, { 124: `\x80${"\xff".repeat(11)}` }), body))).toBe("E_CORRUPT");
  expect(await codeOf(unwrap(header("x", 20)))).toBe("E_CORRUPT");
  expect(await codeOf(unwrap(header("x", 600), body.subarray(0, 1024)))).toBe("E_CORRUPT");
  expect(await codeOf(unwrap(header("x", 2 ** 21), body))).toBe("E_LIMIT");
  const empty = Array.from({ length: 40 }, () => header("x", 0));
  expect(await codeOf(unwrap(...empty, body))).toBe("E_LIMIT");
  const huge = record("size", "999999999999999");
  expect(await codeOf(unwrap(header("x", huge.length), padded(huge), header("0", 0), body))).toBe(
    "E_CORRUPT",
  );
});

test("malformed PAX records", async () => {
  const member = header("0", content.length);
  for (const data of [
    "0 size=5\n",
    "size=5\n",
    "99999999999 size=5\n",
    "-3 size=5\n",
    "9 size=x\n",
    "3 \n",
  ]) {
    expect(await codeOf(unwrap(header("x", data.length), padded(data), member, padded(content)))).toBe(
      "E_CORRUPT",
    );
  }
});
