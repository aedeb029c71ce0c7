import { describe, expect, test } from "bun:test";
import { OverlaybdError } from "../../src/error.ts";
import { extension, type Member, member, octal, padded, paxRecords, tar } from "../fixtures/tar.ts";
import { gather } from "./memory.ts";

/** The error that reading ends with. */
function failure(archive: Uint8Array): OverlaybdError {
  try {
    gather(archive, () => 1024);
  } catch (error) {
    if (error instanceof OverlaybdError) return error;
    throw error;
  }
  throw new Error("the archive was accepted");
}

function expectFailure(archive: Uint8Array, code: string, ...parts: string[]): void {
  const error = failure(archive);
  expect(error.message).toStartWith("test.tar");
  for (const part of parts) expect(error.message).toContain(part);
  expect(error.code as string).toBe(code);
}

const corrupt = (m: Member, ...parts: string[]) => expectFailure(tar([m]), "E_CORRUPT", ...parts);

describe("headers", () => {
  test("a wrong checksum", () => {
    const archive = tar([{ path: "a", data: "x" }, { path: "b" }]);
    archive[1024 + 3] ^= 1;
    expectFailure(archive, "E_CORRUPT", "checksum is wrong", "at byte 1024 of the archive");
  });

  test("content cut off names the member and the place", () => {
    const archive = tar([{ path: "dir/file", data: "x".repeat(5000) }]).subarray(0, 2048);
    expectFailure(archive, "E_CORRUPT", '"dir/file"', "ends 3464 bytes before", "at byte 2048");
  });

  test("a size far beyond the input", () =>
    corrupt({ path: "f", size: 8 ** 11 - 1 }, "before the content does"));

  test("a header cut off", () =>
    expectFailure(tar([{ path: "f" }]).subarray(0, 300), "E_CORRUPT", "within a block"));

  test("an unknown type", () =>
    expectFailure(tar([{ path: "f", type: "Z" }]), "E_UNSUPPORTED", '"Z"', '"f"'));

  test.each(["size", "uid", "mtime", "mode"])("text that is no number in %s", (field) => {
    const at = { size: 124, uid: 108, mtime: 136, mode: 100 }[field] ?? 0;
    corrupt({ path: "f", edit: (header) => header.set(Buffer.from("12x"), at) }, `the ${field} field`);
  });

  test("a negative size, in base-256", () =>
    corrupt({ path: "f", edit: (header) => header.fill(0xff, 124, 136) }, "negative"));

  test("a size beyond 2^53", () =>
    corrupt(
      {
        path: "f",
        edit: (header) => header.set([0x80, 0, 0, 0, 0x7f, 255, 255, 255, 255, 255, 255, 255], 124),
      },
      "size",
    ));

  test("an owner out of range", () => {
    corrupt({ path: "f", dialect: "gnu", uid: 2 ** 32 }, "owner");
    corrupt({ path: "f", dialect: "gnu", gid: -2 }, "owner");
    corrupt({ path: "f", pax: { uid: "4294967296" } }, "owner");
  });

  test("device numbers out of range", () => {
    corrupt({ path: "d", type: "block", devmajor: 4096 }, "devmajor");
    corrupt({ path: "d", type: "block", devminor: 2 ** 20 }, "devminor");
  });
});

describe("names", () => {
  test.each(["../x", "a/../../x", "..", "./.."])("%s leads out of the root", (path) =>
    corrupt({ path }, "out of the root"),
  );
  test("so may a hard link's target not", () =>
    corrupt({ path: "h", type: "hardlink", linkname: "../../etc/shadow" }, "link target leads out"));
  test("an empty name", () => corrupt({ path: "" }, "empty"));
  test("a link without a target", () => corrupt({ path: "l", type: "symlink" }, "no target"));
  test("a file in the root's place", () => corrupt({ path: "./", type: "file" }, "root"));
  test("a NUL in a PAX name", () => corrupt({ path: "f", pax: { path: "a\0b" } }, "NUL"));
  test("an element longer than 255 bytes", () =>
    expectFailure(tar([{ path: "n".repeat(256) }]), "E_LIMIT", "255"));
  test("255 bytes are fine", () => expect(gather(tar([{ path: "n".repeat(255) }]))).toHaveLength(1));
  test("a path longer than 4095 bytes", () =>
    expectFailure(tar([{ path: "d/".repeat(2049) }]), "E_LIMIT", "4095"));
  test("a target longer than 4095 bytes", () =>
    expectFailure(tar([{ path: "l", type: "symlink", linkname: "t".repeat(4096) }]), "E_LIMIT", "4095"));
  test("control characters are escaped in messages", () => {
    const { message } = failure(tar([{ path: "a\n\x1b[31m/../../x" }]));
    expect(message).not.toContain("\n");
    expect(message).not.toContain("\x1b");
  });
});

describe("extended headers", () => {
  const pax = (text: string) => Buffer.concat([extension("x", Buffer.from(text)), tar([{ path: "f" }])]);
  test.each([
    ["no length", "path=x\n"],
    ["a length of zero", "0 path=x\n"],
    ["a length that ends before the value", "5 path=x\n"],
    ["a length beyond the header", "99 path=x\n"],
    ["a length too long to be one", "99999999999 path=x\n"],
    ["no newline", "9 path=xy"],
    ["no value", "7 path\n"],
    ["a negative length", "-9 path=x\n"],
  ])("a PAX record with %s", (_, text) => expectFailure(pax(text), "E_CORRUPT", "PAX record"));

  test.each(["size", "uid", "gid", "mtime"])("a PAX %s that is no number", (key) => {
    for (const value of ["-", "1e3", "0x10", "99999999999999999999", " 1"])
      corrupt({ path: "f", pax: { [key]: value } }, key);
    if (key !== "mtime") corrupt({ path: "f", pax: { [key]: "-1" } }, key);
  });

  test("more than a mebibyte for one member, in one piece or in many", () => {
    expectFailure(tar([{ path: "f", pax: { comment: "c".repeat(1 << 20) } }]), "E_LIMIT", "1048576");
    expectFailure(
      Buffer.concat(Array.from({ length: 2100 }, () => extension("x", new Uint8Array(0)))),
      "E_LIMIT",
      "1048576",
    );
    expectFailure(extension("g", new Uint8Array(0)).fill(0x37, 124, 134), "E_CORRUPT", "checksum");
  });

  test("the bound is one member's, not the archive's", () => {
    const members = Array.from({ length: 30 }, (_, i) => ({
      path: `f${i}`,
      pax: { comment: "c".repeat(100_000) },
    }));
    expect(gather(tar(members))).toHaveLength(30);
  });

  test("one that is cut off, or that nothing follows", () => {
    const header = extension("x", paxRecords({ path: "x".repeat(600) }));
    expectFailure(header.subarray(0, 1024), "E_CORRUPT", "within an extended header");
    expectFailure(header, "E_CORRUPT", "after an extended header");
    expectFailure(Buffer.concat([header, new Uint8Array(1024)]), "E_CORRUPT", "after an extended header");
  });

  test("an attribute without a name, or with broken base64", () => {
    corrupt({ path: "f", pax: { "SCHILY.xattr.": "x" } }, "name");
    corrupt({ path: "f", pax: { "LIBARCHIVE.xattr.user.x": "?" } }, "base64");
  });
});

describe("sparse maps", () => {
  const sparse = (map: string, size = "10000", data = "x".repeat(20)): Member => ({
    path: "f",
    data,
    pax: { "GNU.sparse.size": size, "GNU.sparse.map": map },
  });
  test.each([
    ["overlap", "0,10,5,10"],
    ["run backwards", "100,10,0,10"],
    ["leave the file", "0,10,9999,10"],
    ["hold less than is stored", "0,10"],
    ["hold more than is stored", "0,10,100,11"],
    ["are incomplete", "0,10,100"],
    ["hold no numbers", "0,10,x,10"],
    ["hold negative numbers", "0,10,-1,10"],
    ["hold huge numbers", "0,10,9007199254740993,10"],
  ])("that %s", (_, map) => corrupt(sparse(map)));
  test("without a real size", () =>
    corrupt({ path: "f", data: "x", pax: { "GNU.sparse.map": "0,1" } }, "real size"));

  const version1 = (text: Uint8Array, size?: number): Member => ({
    path: "f",
    data: text,
    size,
    pax: { "GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "10000" },
  });
  test("1.0: a count that lies", () => {
    const block = Buffer.from(`9999999999\n00\n${"0\n".repeat(249)}`);
    corrupt(version1(block), "longer than the member");
  });
  test("1.0: no number", () => corrupt(version1(padded(Buffer.from("one\n"))), "usable number"));
  test("1.0: an endless number", () =>
    corrupt(version1(padded(Buffer.from("1".repeat(600)))), "usable number"));
  test("1.0: an endless map", () => {
    const endless = Buffer.concat([Buffer.from("99999999\n"), Buffer.alloc((2 << 20) - 9, "0\n")]);
    expectFailure(tar([version1(endless)]), "E_LIMIT", "1048576");
  });
  test("a version of the future", () =>
    expectFailure(
      tar([{ path: "f", pax: { "GNU.sparse.major": "2", "GNU.sparse.realsize": "1" } }]),
      "E_UNSUPPORTED",
      "2.0",
    ));

  test("old format: an endless chain of extension blocks", () => {
    const block = Buffer.alloc(512);
    block[504] = 1;
    const edit = (header: Uint8Array) => {
      header[482] = 1;
      header.set(octal(1, 12), 483);
    };
    const header = member({ path: "f", type: "S", edit });
    expectFailure(
      Buffer.concat([header, ...Array.from({ length: 2100 }, () => block)]),
      "E_LIMIT",
      "1048576",
    );
    expectFailure(Buffer.concat([header, block]), "E_CORRUPT", "within a sparse map");
  });
});

test("a hundred thousand empty members need no memory to speak of", () => {
  const block = member({ path: "same" });
  const archive = Buffer.alloc(512 * 100_000);
  for (let at = 0; at < archive.length; at += 512) archive.set(block, at);
  expect(gather(archive)).toHaveLength(100_000);
});
