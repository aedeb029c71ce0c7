/** Archives as GNU tar writes them from real files, in each of its formats. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import {
  chmodSync,
  linkSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  symlinkSync,
  truncateSync,
  utimesSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { $ } from "bun";
import { gather } from "./memory.ts";

let root: string;

beforeAll(async () => {
  root = mkdtempSync(join(tmpdir(), "overlaybd-tar-"));
  const tree = join(root, "tree");
  mkdirSync(join(tree, "directory"), { recursive: true });
  writeFileSync(join(tree, "directory/file"), "content");
  chmodSync(join(tree, "directory/file"), 0o4750);
  utimesSync(join(tree, "directory/file"), 1_700_000_000.125, 1_700_000_000.125);
  linkSync(join(tree, "directory/file"), join(tree, "hardlink"));
  symlinkSync("directory//./file", join(tree, "symlink"));
  writeFileSync(join(tree, "long-".repeat(24)), "long");
  await $`mkfifo ${join(tree, "pipe")}`;
  const sparse = openSync(join(tree, "sparse"), "w");
  // More data runs than fit into the old format's header and its first extension block.
  for (let i = 0; i < 40; i++) writeSync(sparse, Buffer.alloc(4096, 65 + i), 0, 4096, i * 65536);
  truncateSync(join(tree, "sparse"), 5_000_000);
});
afterAll(() => rmSync(root, { recursive: true, force: true }));

async function archive(...options: string[]) {
  const file = join(root, "out.tar");
  await $`tar --create --file ${file} --sort=name --numeric-owner ${options} --directory ${join(root, "tree")} .`;
  return gather(readFileSync(file), () => 4096);
}

describe.each([
  ["gnu", []],
  ["gnu", ["--sparse"]],
  ["oldgnu", ["--sparse"]],
  ["pax", []],
  ["pax", ["--sparse", "--sparse-version=0.0"]],
  ["pax", ["--sparse", "--sparse-version=0.1"]],
  ["pax", ["--sparse", "--sparse-version=1.0"]],
  ["ustar", ["--exclude=./long-*"]],
  ["v7", ["--exclude=./long-*", "--exclude=./pipe"]],
] as [string, string[]][])("--format=%s %p", (format, options) => {
  test("equals the files", async () => {
    const members = await archive(`--format=${format}`, ...options);
    expect(members.map((m) => m.path)).toEqual(
      [
        ".",
        "directory",
        "directory/file",
        "hardlink",
        "long-".repeat(24),
        "pipe",
        "sparse",
        "symlink",
      ].filter((path) => !options.some((o) => o.startsWith(`--exclude=./${path.slice(0, 4)}`))),
    );
    for (const m of members) {
      const status = lstatSync(join(root, "tree", m.path), { bigint: true });
      expect(m.mode).toBe(Number(status.mode) & 0o7777);
      expect([m.uid, m.gid]).toEqual([Number(status.uid), Number(status.gid)]);
      expect(m.mtime).toBe(Number(status.mtimeNs / 1_000_000_000n));
      expect(m.mtimeNanoseconds).toBe(format === "pax" ? Number(status.mtimeNs % 1_000_000_000n) : 0);
      if (m.type !== "file") continue;
      expect(m.content.equals(readFileSync(join(root, "tree", m.path)))).toBe(true);
      if (m.path === "sparse") expect(m.sparse !== null).toBe(options.includes("--sparse"));
    }
    const byPath = new Map(members.map((m) => [m.path, m]));
    expect(byPath.get("symlink")?.linkname).toBe("directory//./file");
    expect(byPath.get("hardlink")).toMatchObject({ type: "hardlink", linkname: "directory/file" });
    if (format !== "v7") expect(byPath.get("pipe")?.type).toBe("fifo");
  });
});

test("--xattrs writes what we read", async () => {
  const file = join(root, "attributed");
  writeFileSync(file, "");
  await $`setfattr -n user.key -v 0x000102ff ${file}`;
  const out = join(root, "xattrs.tar");
  await $`tar --create --file ${out} --format=pax --xattrs --directory ${root} attributed`;
  const [m] = gather(readFileSync(out));
  expect(Buffer.from(m.xattrs?.get("user.key") ?? []).toString("hex")).toBe("000102ff");
});
