/** Finding files in ext4, against file systems that e2fsprogs made. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { chmodSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { $ } from "bun";
import { Ext4Reader } from "../../src/format/ext4.ts";
import type { ByteSource } from "../../src/format/source.ts";
import { parseFileList } from "../../src/image/file_list.ts";
import { random } from "../fixtures/random.ts";

let directory: string;
let tree: string;
const contents: Record<string, Uint8Array> = {};

beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), "overlaybd-ext4-"));
  tree = join(directory, "tree");
  mkdirSync(join(tree, "usr/lib/many"), { recursive: true });
  const next = random(3);
  const add = (path: string, length: number) => {
    contents[path] = Uint8Array.from({ length }, () => 1 + Math.floor(next() * 255));
    writeFileSync(join(tree, path), contents[path]);
  };
  add("small", 10);
  add("usr/lib/large", 3_000_000);
  for (let i = 0; i < 700; i++) add(`usr/lib/many/a-rather-long-name-of-a-file-${i}`, 1 + (i % 5) * 1000);
  symlinkSync("usr/lib", join(tree, "lib"));
  symlinkSync("/lib/large", join(tree, "usr/absolute"));
  symlinkSync(`${"./".repeat(40)}lib/large`, join(tree, "usr/long"));
  symlinkSync("loop", join(tree, "loop"));
  chmodSync(join(tree, "small"), 0o600);
});
afterAll(() => rmSync(directory, { recursive: true, force: true }));

/** A file system with the tree, made by mkfs.ext4. */
async function make(...options: string[]): Promise<Buffer> {
  const path = join(directory, "fs");
  rmSync(path, { force: true });
  await $`mkfs.ext4 -q -d ${tree} ${options} ${path} 64M`.quiet();
  return readFileSync(path);
}

function sourceOf(bytes: Uint8Array): ByteSource {
  const read = async (offset: number, length: number) => {
    if (!(offset >= 0 && offset + length <= bytes.length))
      throw Object.assign(new Error("beyond"), { code: "E_CORRUPT" });
    return bytes.slice(offset, offset + length);
  };
  return { name: "test", size: bytes.length, read };
}

async function contentOf(reader: Ext4Reader, bytes: Buffer, path: string): Promise<Buffer | null> {
  const inode = await reader.find(path);
  if (!inode) return null;
  const extents = await reader.extents(inode);
  return Buffer.concat(extents.map(({ offset, length }) => bytes.subarray(offset, offset + length))).subarray(
    0,
    inode.size,
  );
}

const SHAPES: string[][] = [
  [],
  ["-b", "1024"],
  ["-O", "^64bit,^metadata_csum"],
  ["-O", "^dir_index,^flex_bg", "-I", "128"],
];

describe.each(SHAPES.map((options) => [options.join(" ") || "the defaults", options] as const))(
  "a file system made with %s",
  (_, options) => {
    test("gives every file's content, through links too", async () => {
      const bytes = await make(...options);
      const reader = await Ext4Reader.open(sourceOf(bytes));
      for (const [path, content] of Object.entries(contents)) {
        if (path.includes("many") && !path.endsWith("00")) continue;
        expect(Buffer.compare((await contentOf(reader, bytes, path)) ?? Buffer.alloc(0), content)).toBe(0);
      }
      for (const path of [
        "/lib/large",
        "usr/absolute",
        "usr/long",
        "usr/../lib//./large",
        "../usr/lib/large",
      ]) {
        expect((await contentOf(reader, bytes, path))?.length).toBe(3_000_000);
      }
      for (const path of ["nothing", "small/below", "loop", "usr/lib/many/a"]) {
        expect(await reader.find(path)).toBeNull();
      }
      const many = await reader.find("lib/many/");
      expect(many && (await reader.list(many)).size).toBe(700);
    });
  },
);

test("damaged file systems give an error or some answer, soon", async () => {
  const sound = await make("-b", "1024");
  const next = random(5);
  // The places that are looked at: superblock, descriptors, and the inodes and directories of the first group.
  for (let round = 0; round < 300; round++) {
    const undo = new Map<number, number>();
    for (let i = 0; i < 40; i++) {
      const at = next() < 0.3 ? 1024 + Math.floor(next() * 3072) : Math.floor(next() ** 2 * 2_000_000);
      if (!undo.has(at)) undo.set(at, sound[at]);
      sound[at] = Math.floor(next() * 256);
    }
    try {
      const reader = await Ext4Reader.open(sourceOf(sound));
      for (const path of ["usr/long", "usr/lib/many/a-rather-long-name-of-a-file-77"]) {
        const inode = await reader.find(path);
        if (inode) await reader.extents(inode);
      }
    } catch (error) {
      expect((error as { code: string }).code).toMatch(/^E_(CORRUPT|UNSUPPORTED)$/);
    }
    for (const [at, byte] of undo) sound[at] = byte;
  }
});

test("what is no ext4 is refused by name", async () => {
  const erofs = new Uint8Array(8192);
  new DataView(erofs.buffer).setUint32(1024, 0xe0f5e1e2, true);
  await expect(Ext4Reader.open(sourceOf(erofs))).rejects.toThrow("EROFS");
  await expect(Ext4Reader.open(sourceOf(new Uint8Array(8192)))).rejects.toMatchObject({
    code: "E_UNSUPPORTED",
  });
  await expect(Ext4Reader.open(sourceOf(new Uint8Array(5)))).rejects.toMatchObject({ code: "E_UNSUPPORTED" });
});

test("a list of files is read line by line", () => {
  const list = (text: string) => parseFileList(Buffer.from(text), "list");
  expect(list("  /bin/sh \r\n\n\t/usr/lib/*\n/usr/share/")).toEqual(["/bin/sh", "/usr/lib/*", "/usr/share/"]);
  expect(list("/voilà\n/a\0b\n")).toEqual([Buffer.from("/voilà").toString("latin1")]);
  expect(() => list("x".repeat(65537))).toThrow(expect.objectContaining({ code: "E_LIMIT" }));
});
