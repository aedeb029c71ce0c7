/** The structs against linux/fuse.h: the C compiler says where each field is. */
import { describe, expect, test } from "bun:test";
import * as protocol from "../../src/device/fuse/protocol.ts";
import { IN_HEADER, Opcode, OUT_HEADER } from "../../src/device/fuse/protocol.ts";

/** A request as the kernel lays it out: struct fuse_in_header, then 64-bit or 32-bit fields. */
function request(
  opcode: number,
  node: number,
  body: readonly (["u32" | "u64", number] | string)[],
): DataView {
  const view = new DataView(new ArrayBuffer(256));
  view.setUint32(4, opcode, true);
  view.setBigUint64(8, 0x1122334455667788n, true);
  view.setBigUint64(16, BigInt(node), true);
  let at = IN_HEADER;
  for (const field of body) {
    if (typeof field === "string") {
      const bytes = new TextEncoder().encode(`${field}\0`);
      new Uint8Array(view.buffer).set(bytes, at);
      at += bytes.length;
    } else if (field[0] === "u32") {
      view.setUint32(at, field[1], true);
      at += 4;
    } else {
      view.setBigUint64(at, BigInt(field[1]), true);
      at += 8;
    }
  }
  view.setUint32(0, at, true);
  return view;
}

function reply(encode: (view: DataView) => number): { payload: DataView; size: number } {
  const view = new DataView(new ArrayBuffer(4096));
  new Uint8Array(view.buffer).fill(0xee);
  const size = encode(view);
  return { payload: new DataView(view.buffer, OUT_HEADER, size), size };
}

describe("requests", () => {
  test("header: length, opcode, node and a 64-bit number that is kept exactly", () => {
    const view = request(Opcode.GETATTR, 2, []);
    expect(protocol.request.length(view)).toBe(40);
    expect(protocol.request.opcode(view)).toBe(Opcode.GETATTR);
    expect(protocol.request.node(view)).toBe(2);
    expect(protocol.request.unique(view)).toEqual({ low: 0x55667788, high: 0x11223344 });
  });

  test("INIT", () => {
    const view = request(Opcode.INIT, 0, [
      ["u32", 7],
      ["u32", 45],
      ["u32", 131072],
      ["u32", 0xfbfffffb],
    ]);
    expect(protocol.decodeInit(view)).toEqual({
      major: 7,
      minor: 45,
      maxReadahead: 131072,
      flags: 0xfbfffffb,
    });
  });

  test("READ and WRITE: offsets beyond 4 GiB", () => {
    const offset = 2 ** 40 + 512;
    const view = request(Opcode.READ, 2, [
      ["u64", 9],
      ["u64", offset],
      ["u32", 4096],
      ["u32", 0],
    ]);
    expect(protocol.decodeRange(view)).toEqual({ offset, length: 4096 });
  });

  test("FALLOCATE", () => {
    const view = request(Opcode.FALLOCATE, 2, [
      ["u64", 0],
      ["u64", 8192],
      ["u64", 2 ** 33],
      ["u32", 3],
      ["u32", 0],
    ]);
    expect(protocol.decodeFallocate(view)).toEqual({ offset: 8192, length: 2 ** 33, mode: 3 });
  });

  test("LOOKUP: the name ends at its NUL, or with the request", () => {
    expect(protocol.decodeName(request(Opcode.LOOKUP, 1, ["disk"]))).toBe("disk");
    const unterminated = request(Opcode.LOOKUP, 1, ["disk"]);
    unterminated.setUint32(0, IN_HEADER + 3, true);
    expect(protocol.decodeName(unterminated)).toBe("dis");
  });

  test("INTERRUPT names another request", () => {
    const view = request(Opcode.INTERRUPT, 2, [
      ["u32", 7],
      ["u32", 8],
    ]);
    expect(protocol.decodeInterrupt(view)).toEqual({ low: 7, high: 8 });
  });
});

describe("replies", () => {
  test("header", () => {
    const view = new DataView(new ArrayBuffer(64));
    expect(protocol.encodeHeader(view, { low: 0x55667788, high: 0x11223344 }, 5, 0)).toBe(16);
    expect(view.getUint32(0, true)).toBe(16);
    expect(view.getInt32(4, true)).toBe(-5);
    expect(view.getBigUint64(8, true)).toBe(0x1122334455667788n);
  });

  const attributes = { node: 2, size: 2 ** 36 + 512, mode: 0o100600, links: 1 };

  test("every struct has its size and starts from zeros", () => {
    const sizes: [number, (view: DataView) => number][] = [
      [64, (v) => protocol.encodeInit(v, { flags: 0, maxReadahead: 0, maxBackground: 0, maxWrite: 0 })],
      [128, (v) => protocol.encodeEntry(v, attributes)],
      [104, (v) => protocol.encodeAttributes(v, attributes)],
      [16, (v) => protocol.encodeOpen(v, 0)],
      [8, (v) => protocol.encodeWritten(v, 0)],
      [80, (v) => protocol.encodeStatfs(v, 0)],
    ];
    for (const [size, encode] of sizes) {
      const { payload, size: returned } = reply(encode);
      expect(returned).toBe(size);
      expect(new Uint8Array(payload.buffer, payload.byteOffset, size)).not.toContain(0xee);
    }
  });

  test("INIT", () => {
    const values = { flags: 0x400001, maxReadahead: 131072, maxBackground: 512, maxWrite: 1 << 20 };
    const { payload } = reply((v) => protocol.encodeInit(v, values));
    expect([0, 4, 8, 12].map((at) => payload.getUint32(at, true))).toEqual([7, 31, 131072, 0x400001]);
    expect([16, 18].map((at) => payload.getUint16(at, true))).toEqual([512, 512]);
    expect([20, 24].map((at) => payload.getUint32(at, true))).toEqual([1 << 20, 1]);
    expect(payload.getUint16(28, true)).toBe(256);
  });

  test("entry and attributes", () => {
    const entry = reply((v) => protocol.encodeEntry(v, attributes)).payload;
    const attr = reply((v) => protocol.encodeAttributes(v, attributes)).payload;
    expect(entry.getBigUint64(0, true)).toBe(2n);
    for (const [view, at] of [
      [entry, 40],
      [attr, 16],
    ] as const) {
      expect(view.getBigUint64(at, true)).toBe(2n);
      expect(view.getBigUint64(at + 8, true)).toBe(2n ** 36n + 512n);
      expect(view.getBigUint64(at + 16, true)).toBe((2n ** 36n + 512n) / 512n);
      expect(view.getUint32(at + 60, true)).toBe(0o100600);
      expect(view.getUint32(at + 64, true)).toBe(1);
      expect(view.getUint32(at + 80, true)).toBe(4096);
    }
  });

  test("a directory is listed in pieces, each entry whole and padded to 8 bytes", () => {
    const entries = [".", "..", "disk"].map((name, i) => ({ node: i + 1, name, type: 4 }));
    const names: string[] = [];
    for (let from = 0; ; ) {
      const { payload, size } = reply((v) => protocol.encodeDirectory(v, entries, from, 40));
      if (size === 0) break;
      expect(size).toBe(32);
      expect(payload.getBigUint64(0, true)).toBe(BigInt(from + 1));
      const length = payload.getUint32(16, true);
      names.push(new TextDecoder().decode(new Uint8Array(payload.buffer, payload.byteOffset + 24, length)));
      from = Number(payload.getBigUint64(8, true));
    }
    expect(names).toEqual([".", "..", "disk"]);
    expect(reply((v) => protocol.encodeDirectory(v, entries, 0, 4096)).size).toBe(96);
    expect(reply((v) => protocol.encodeDirectory(v, entries, 0, 16)).size).toBe(0);
  });
});

test("struct sizes and offsets are those of the installed linux/fuse.h", async () => {
  const fields = [
    "sizeof(struct fuse_in_header)",
    "sizeof(struct fuse_out_header)",
    "sizeof(struct fuse_init_out)",
    "sizeof(struct fuse_entry_out)",
    "sizeof(struct fuse_attr_out)",
    "sizeof(struct fuse_open_out)",
    "sizeof(struct fuse_write_out)",
    "sizeof(struct fuse_statfs_out)",
    "offsetof(struct fuse_entry_out, attr)",
    "offsetof(struct fuse_attr_out, attr)",
    "offsetof(struct fuse_attr, mode)",
    "offsetof(struct fuse_attr, nlink)",
    "offsetof(struct fuse_attr, blksize)",
    "offsetof(struct fuse_init_out, max_pages)",
    "offsetof(struct fuse_read_in, offset)",
    "offsetof(struct fuse_read_in, size)",
    "sizeof(struct fuse_read_in)",
    "offsetof(struct fuse_write_in, size)",
    "sizeof(struct fuse_write_in)",
    "offsetof(struct fuse_fallocate_in, mode)",
    "offsetof(struct fuse_dirent, name)",
  ];
  const source = `#include <linux/fuse.h>
#include <stddef.h>
#include <stdio.h>
int main(void) { ${fields.map((field) => `printf("%zu ", ${field});`).join("")} return 0; }`;
  const gcc = Bun.spawnSync(["sh", "-c", 'd=$(mktemp -d) && gcc -x c - -o "$d/a" && "$d/a"; rm -r "$d"'], {
    stdin: Buffer.from(source),
  });
  expect(gcc.stderr.toString()).toBe("");
  expect(gcc.stdout.toString().trim().split(" ").map(Number)).toEqual([
    40, 16, 64, 128, 104, 16, 8, 80, 40, 16, 60, 64, 80, 28, 8, 16, 40, 16, 40, 24, 24,
  ]);
});
