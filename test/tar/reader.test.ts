import { describe, expect, test } from "bun:test";
import { extension, type Member, member, number, octal, padded, paxRecords, tar } from "../fixtures/tar.ts";
import { gather } from "./memory.ts";

const one = (m: Member) => gather(tar([m]))[0];
const END = new Uint8Array(1024);

describe("plain members", () => {
  test("every type", () => {
    const members = gather(
      tar([
        { path: "d/" },
        { path: "d/f", data: "content", mode: 0o4755, uid: 1, gid: 2, mtime: 3 },
        { path: "s", type: "symlink", linkname: "../x//y/" },
        { path: "h", type: "hardlink", linkname: "./d//f" },
        { path: "c", type: "character", devmajor: 259, devminor: 70000 },
        { path: "b", type: "block", devmajor: 8 },
        { path: "p", type: "fifo" },
        { path: "contiguous", type: "7", data: "x" },
      ]),
    );
    expect(members.map((m) => [m.path, m.type, m.linkname, m.devmajor, m.devminor])).toEqual([
      ["d", "directory", "", 0, 0],
      ["d/f", "file", "", 0, 0],
      ["s", "symlink", "../x//y/", 0, 0],
      ["h", "hardlink", "d/f", 0, 0],
      ["c", "character", "", 259, 70000],
      ["b", "block", "", 8, 0],
      ["p", "fifo", "", 0, 0],
      ["contiguous", "file", "", 0, 0],
    ]);
    const file = members[1];
    expect([file.mode, file.uid, file.gid, file.mtime, file.size]).toEqual([0o4755, 1, 2, 3, 7]);
    expect(file.content.toString()).toBe("content");
    expect([file.headerOffset, file.dataOffset]).toEqual([512, 1024]);
  });

  test("names keep bytes that are not UTF-8", () => {
    const raw = Uint8Array.of(0x61, 0xff, 0xfe, 0x2f, 0xc3, 0x28);
    expect(Buffer.from(one({ path: raw }).path, "latin1")).toEqual(Buffer.from(raw));
  });

  test("absolute and untidy names are relative to the root", () => {
    const names = ["/a/b", "./c", "d//e/../f", "/../g", "./"].map(
      (path) => one({ path, type: "directory" }).path,
    );
    expect(names).toEqual(["a/b", "c", "d/f", "g", "."]);
  });

  test("a member named / is skipped with its content", () => {
    const members = gather(
      tar([
        { path: "/", type: "directory" },
        { path: "//", type: "file", data: "x".repeat(700) },
        { path: "a" },
      ]),
    );
    expect(members.map((m) => m.path)).toEqual(["a"]);
  });

  test("size fields of members without content are ignored", () => {
    const members = gather(
      tar([{ path: "h", type: "hardlink", linkname: "x", size: 5000 }, { path: "next" }]),
    );
    expect(members.map((m) => [m.path, m.size])).toEqual([
      ["h", 0],
      ["next", 0],
    ]);
  });
});

describe("dialects", () => {
  test("V7: no magic, NUL type, a slash makes a directory", () => {
    const v7 = (header: Uint8Array) => {
      header.fill(0, 257, 512);
      header[156] = 0;
    };
    const members = gather(
      tar([
        { path: "old/", edit: v7 },
        { path: "old/file", data: "x", edit: v7 },
      ]),
    );
    expect(members.map((m) => m.type)).toEqual(["directory", "file"]);
  });

  test("mode bits tell what a NUL type is, and an unknown one", () => {
    const nul = (header: Uint8Array) => {
      header[156] = 0;
    };
    expect(one({ path: "d", mode: 0o040755, edit: nul }).type).toBe("directory");
    expect(one({ path: "l", mode: 0o120777, linkname: "t", edit: nul }).type).toBe("symlink");
    expect(one({ path: "f", type: "Z", mode: 0o100644, data: "x" }).content.toString()).toBe("x");
  });

  test("ustar's and star's prefixes; GNU's header has none", () => {
    const prefix = (trailer: string, magic: string) => (header: Uint8Array) => {
      header.set(Buffer.from("some/prefix"), 345);
      header.set(Buffer.from(trailer), 508);
      header.set(Buffer.from(magic), 257);
    };
    expect(one({ path: "f", edit: prefix("", "ustar\x0000") }).path).toBe("some/prefix/f");
    expect(one({ path: "f", edit: prefix("tar\0", "ustar\x0000") }).path).toBe("some/prefix/f");
    expect(one({ path: "f", edit: prefix("", "ustar  \0") }).path).toBe("f");
  });

  test("GNU long names, long links and base-256 numbers", () => {
    const path = `long/${"n".repeat(200)}`;
    const linkname = `${"t/".repeat(150)}x`;
    const [file, link] = gather(
      tar([
        { path, dialect: "gnu", uid: 3_000_000_000, gid: 2_097_152, mtime: -5 },
        { path: `${path}2`, type: "symlink", linkname, dialect: "gnu" },
      ]),
    );
    expect([file.path, file.uid, file.gid, file.mtime]).toEqual([path, 3_000_000_000, 2_097_152, -5]);
    expect([link.path, link.linkname]).toEqual([`${path}2`, linkname]);
  });

  test("PAX records override the header", () => {
    const m = one({
      path: "short",
      pax: {
        path: "päx/näme",
        uid: "4000000000",
        gid: "7",
        mtime: "1700000000.123456789",
        comment: "ignored",
      },
      data: "abc",
    });
    expect(Buffer.from(m.path, "latin1").toString()).toBe("päx/näme");
    expect([m.uid, m.gid, m.mtime, m.mtimeNanoseconds]).toEqual([
      4_000_000_000, 7, 1_700_000_000, 123_456_789,
    ]);
    expect(m.content.toString()).toBe("abc");
  });

  test.each([
    ["-1.25", -2, 750_000_000],
    ["-1", -1, 0],
    ["0.5", 0, 500_000_000],
    ["3000000000", 3_000_000_000, 0],
    ["1.", 1, 0],
    ["1.0000000009", 1, 0],
  ])("PAX mtime %s", (text, seconds, nanoseconds) => {
    const m = one({ path: "f", pax: { mtime: text } });
    expect([m.mtime, m.mtimeNanoseconds]).toEqual([seconds, nanoseconds]);
  });

  test("a PAX size wins over the header's", () => {
    const m = one({ path: "f", data: "hello", size: 0, pax: { size: "5" } });
    expect(m.content.toString()).toBe("hello");
  });

  test("an empty PAX value takes the record back; later headers add to earlier ones", () => {
    const archive = Buffer.concat([
      extension("x", paxRecords({ path: "one", uid: "5" })),
      extension("x", paxRecords({ path: "", gid: "6" })),
      member({ path: "own" }),
      END,
    ]);
    expect(gather(archive).map((m) => [m.path, m.uid, m.gid])).toEqual([["own", 5, 6]]);
  });

  test("PAX global headers are read and ignored", () => {
    const archive = Buffer.concat([
      extension("g", paxRecords({ path: "everywhere", uid: "9" })),
      member({ path: "own" }),
      END,
    ]);
    expect(gather(archive).map((m) => [m.path, m.uid])).toEqual([["own", 0]]);
  });

  test("extended attributes: binary SCHILY values, libarchive's base64, SCHILY first", () => {
    const value = Uint8Array.of(0, 1, 0x0a, 0x3d, 0xff);
    const m = one({
      path: "f",
      xattrs: { "user.bin": value, "user.both": "exact" },
      pax: { "LIBARCHIVE.xattr.user.%C3%A4": "AAH/", "LIBARCHIVE.xattr.user.both": "AAH/" },
    });
    const found = Object.fromEntries(
      [...(m.xattrs ?? [])].map(([k, v]) => [k, Buffer.from(v).toString("hex")]),
    );
    expect(found).toEqual({
      "user.bin": "00010a3dff",
      "user.both": Buffer.from("exact").toString("hex"),
      "user.Ã¤": "0001ff",
    });
  });

  test("signed checksums of old writers", () => {
    const header = Buffer.from(member({ path: Uint8Array.of(0xe4, 0xf6) }));
    let sum = 0;
    for (let i = 0; i < 512; i++) sum += i >= 148 && i < 156 ? 0x20 : header.readInt8(i);
    header.set(Buffer.from(`${sum.toString(8).padStart(6, "0")}\0 `), 148);
    expect(gather(Buffer.concat([header, END])).map((m) => m.path)).toEqual(["\xe4\xf6"]);
  });
});

describe("the end of an archive", () => {
  const a = member({ path: "a", data: "x" });
  const b = member({ path: "b", data: "y" });
  const zero = new Uint8Array(512);
  const paths = (...parts: Uint8Array[]) => gather(Buffer.concat(parts)).map((m) => m.path);

  test("nothing at all", () => expect(paths()).toEqual([]));
  test("one zero block is skipped", () => expect(paths(a, zero, b, END)).toEqual(["a", "b"]));
  test("two end it, whatever follows", () => expect(paths(a, END, b)).toEqual(["a"]));
  test("the markers may be missing", () => expect(paths(a, b)).toEqual(["a", "b"]));
  test("so may padding at the very end", () => expect(paths(a, b.subarray(0, 513))).toEqual(["a", "b"]));
  test("the rest of the stream is read", () => {
    let reads = 0;
    gather(Buffer.concat([a, END, new Uint8Array(51200)]), () => {
      reads++;
      return 512;
    });
    expect(reads).toBe(2 + 2 + 100);
  });
});

describe("sparse files", () => {
  const data = Buffer.concat([Buffer.alloc(1000, "A"), Buffer.alloc(600, "B")]);
  const expected = Buffer.alloc(100_000);
  expected.set(data.subarray(0, 1000), 4096);
  expected.set(data.subarray(1000), 65536);
  const extents = [
    { offset: 4096, length: 1000 },
    { offset: 65536, length: 600 },
  ];
  const check = (archive: Uint8Array) => {
    for (const chunk of [512, 1024, 1 << 20]) {
      const [m, next] = gather(archive, () => chunk);
      expect([m.path, m.size, m.sparse]).toEqual(["file", 100_000, extents]);
      expect(m.content.equals(expected)).toBe(true);
      expect(next.path).toBe("next");
    }
  };

  test("PAX 0.0", () => {
    const lines: [string, string][] = [
      ["GNU.sparse.size", "100000"],
      ["GNU.sparse.numblocks", "2"],
      ["GNU.sparse.offset", "4096"],
      ["GNU.sparse.numbytes", "1000"],
      ["GNU.sparse.offset", "65536"],
      ["GNU.sparse.numbytes", "600"],
    ];
    const records = Buffer.concat(lines.map(([k, v]) => paxRecords({ [k]: v })));
    check(Buffer.concat([extension("x", records), member({ path: "file", data }), tar([{ path: "next" }])]));
  });

  test("PAX 0.1", () => {
    const pax = {
      "GNU.sparse.size": "100000",
      "GNU.sparse.name": "file",
      "GNU.sparse.map": "4096,1000,65536,600",
    };
    check(tar([{ path: "GNUSparseFile.1/file", pax, data }, { path: "next" }]));
  });

  test("PAX 1.0", () => {
    const pax = {
      "GNU.sparse.major": "1",
      "GNU.sparse.minor": "0",
      "GNU.sparse.name": "file",
      "GNU.sparse.realsize": "100000",
    };
    const map = padded(Buffer.from("2\n4096\n1000\n65536\n600\n"));
    check(tar([{ path: "GNUSparseFile.1/file", pax, data: Buffer.concat([map, data]) }, { path: "next" }]));
  });

  test("old GNU format", () => {
    const edit = (header: Uint8Array) => {
      header.set(Buffer.concat([octal(4096, 12), octal(1000, 12), octal(65536, 12), number(600, 12)]), 386);
      header.set(octal(100_000, 12), 483);
    };
    check(tar([{ path: "file", type: "S", dialect: "gnu", data, edit }, { path: "next" }]));
  });

  test("old GNU format with extension blocks", () => {
    const count = 4 + 21 + 3;
    const blocks = Array.from({ length: count }, (_, i) =>
      Buffer.concat([octal(i * 1000, 12), octal(1, 12)]),
    );
    const bytes = Buffer.from(blocks.map((_, i) => 65 + i));
    const extensionBlock = (from: number, to: number, more: number) => {
      const block = Buffer.alloc(512);
      block.set(Buffer.concat(blocks.slice(from, to)));
      block[504] = more;
      return block;
    };
    const edit = (header: Uint8Array) => {
      header.set(Buffer.concat(blocks.slice(0, 4)), 386);
      header[482] = 1;
      header.set(octal(count * 1000, 12), 483);
    };
    const header = member({ path: "file", type: "S", size: count, edit });
    const maps = [extensionBlock(4, 25, 1), extensionBlock(25, count, 0)];
    const archive = Buffer.concat([header, ...maps, padded(bytes), tar([{ path: "next" }])]);
    const [m, next] = gather(archive, () => 512);
    expect([m.size, m.sparse?.length, next.path]).toEqual([28_000, count, "next"]);
    for (let i = 0; i < count; i++) expect(m.content[i * 1000]).toBe(65 + i);
  });

  test("a file that is one hole", () => {
    const pax = {
      "GNU.sparse.major": "1",
      "GNU.sparse.minor": "0",
      "GNU.sparse.name": "hole",
      "GNU.sparse.realsize": "70000",
    };
    const m = one({ path: "x", pax, data: padded(Buffer.from("1\n70000\n0\n")) });
    expect([m.path, m.size, m.sparse]).toEqual(["hole", 70_000, []]);
  });
});
