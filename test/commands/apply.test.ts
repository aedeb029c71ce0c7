/** `overlaybd-apply` as programs run it (cli.md). */
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { existsSync, readdirSync, readFileSync, statSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { $ } from "bun";
import { digestOf } from "../../src/registry/digest.ts";
import { fsckComplaint, mounted } from "../fixtures/loop.ts";
import { tar, whiteout } from "../fixtures/tar.ts";
import { SERVICE, Workspace } from "./workspace.ts";

setDefaultTimeout(60_000);
let files: Workspace;
const archive = tar([
  { path: "etc/" },
  { path: "etc/name", data: "first" },
  { path: "etc/other", data: "x".repeat(100_000) },
]);
const digest = digestOf(archive);
beforeAll(() => {
  files = new Workspace();
  writeFileSync(files.path("layer.tar"), archive);
  writeFileSync(files.path("layer.tar.gz"), Bun.gzipSync(Buffer.from(archive)));
  writeFileSync(files.path("layer.tar.zst"), Bun.zstdCompressSync(archive));
  writeFileSync(files.path("second.tar"), tar([{ path: "etc/new", data: "second" }, whiteout("etc/name")]));
});
afterAll(() => files.remove());

const APPLIED = { code: 0, out: "overlaybd-apply done\n" };

/** A writable layer, and an image config that has it on top of `lowers`. */
async function image(name: string, lowers: readonly string[] = [], gib = "1"): Promise<string> {
  const pair = [`${name}.data`, `${name}.index`];
  expect((await files.run("create", ...pair, gib)).code).toBe(0);
  return files.config(`${name}.json`, lowers, pair);
}

/** The names in /etc of an image, and a file's content, once e2fsck has found nothing wrong. */
async function contentOf(config: string): Promise<{ names: string; name: string | null }> {
  const disk = `${config}.disk`;
  expect((await files.run("export", config, disk, ...SERVICE)).err).toBe("");
  expect(fsckComplaint(files.path(disk))).toBeNull();
  return mounted(files.path(disk), (directory) => ({
    names: readdirSync(join(directory, "etc")).sort().join(" "),
    name: existsSync(join(directory, "etc/name")) ? readFileSync(join(directory, "etc/name"), "utf8") : null,
  }));
}

for (const input of ["layer.tar", "layer.tar.gz", "layer.tar.zst"]) {
  test(`unpacks ${input} into a new file system of an image`, async () => {
    const config = await image(`image-${input}`);
    expect(await files.run("apply", "--mkfs", input, config, ...SERVICE, "--checksum", digest)).toEqual({
      ...APPLIED,
      err: `${digest}\n`,
    });
    expect(await contentOf(config)).toEqual({ names: "name other", name: "first" });
  });
}

test("unpacks what a FIFO delivers; without a checksum stderr has an empty line", async () => {
  const config = await image("fifo");
  await $`mkfifo ${files.path("fifo")}`;
  const writer = Bun.spawn(["/bin/sh", "-c", "exec cat layer.tar.gz > fifo"], {
    cwd: files.folder,
    stdout: "ignore",
    stderr: "ignore",
  });
  try {
    expect(await files.run("apply", "--mkfs", "fifo", config, ...SERVICE)).toEqual({ ...APPLIED, err: "\n" });
  } finally {
    writer.kill();
  }
  expect(await contentOf(config)).toEqual({ names: "name other", name: "first" });
});

test("changes the file system of the layers below in the upper layer only", async () => {
  const bottom = await image("bottom");
  expect((await files.run("apply", "--mkfs", "layer.tar", bottom, ...SERVICE)).code).toBe(0);
  expect((await files.run("commit", "-zt", "bottom.data", "bottom.index", "bottom.layer")).code).toBe(0);
  const before = readFileSync(files.path("bottom.layer"));
  const top = await image("top", [files.path("bottom.layer")], "0");
  expect(await files.run("apply", "second.tar", top, ...SERVICE)).toEqual({ ...APPLIED, err: "\n" });
  expect(await contentOf(top)).toEqual({ names: "new other", name: null });
  expect(readFileSync(files.path("bottom.layer")).equals(before)).toBe(true);
  expect(statSync(files.path("top.data")).size).toBeLessThan(1 << 20);
});

test("--raw: into a plain file, in two steps", async () => {
  writeFileSync(files.path("raw"), "");
  truncateSync(files.path("raw"), 2 ** 30);
  expect(await files.run("apply", "--raw", "--mkfs", "layer.tar.gz", "raw")).toEqual({
    ...APPLIED,
    err: "\n",
  });
  expect(await files.run("apply", "second.tar", "raw", "--raw")).toEqual({ ...APPLIED, err: "\n" });
  expect(fsckComplaint(files.path("raw"))).toBeNull();
  mounted(files.path("raw"), (directory) => {
    expect(existsSync(join(directory, "etc/name"))).toBe(false);
    expect(readFileSync(join(directory, "etc/new"), "utf8")).toBe("second");
  });
});

test("fails with 255 and says why; the file system is as it was", async () => {
  const config = await image("failing");
  expect((await files.run("apply", "--mkfs", "layer.tar", config, ...SERVICE)).code).toBe(0);
  const lone = files.config("no-upper.json", [files.path("failing.data")]);
  writeFileSync(files.path("truncated.tar"), archive.subarray(0, 50_000));
  writeFileSync(files.path("noise"), "noise".repeat(1000));
  writeFileSync(files.path("not.json"), "{");
  const wrong = `sha256:${"0".repeat(64)}`;
  for (const [words, complaint] of [
    [["second.tar", config, "--checksum", wrong], /second\.tar: its checksum is sha256:\w+, not sha256:0+/],
    [["truncated.tar", config], /truncated\.tar/],
    [["noise", config], /noise/],
    [["second.tar", lone], /no upper/],
    [["second.tar", "not.json"], /not\.json/],
    [["second.tar", "noise", "--raw"], /noise/],
    [["second.tar", config, "--from_qcow2"], /--from_qcow2 is not supported/],
    [["second.tar", config, "--gz_index_path", "gzip.meta"], /--gz_index_path is not supported/],
  ] as const) {
    const { code, out, err } = await files.run("apply", ...words, ...SERVICE);
    expect({ words, code, out, err }).toEqual({
      words,
      code: 255,
      out: "",
      err: expect.stringMatching(complaint),
    });
    expect(err.trim().split("\n")).toHaveLength(1);
  }
  expect(await contentOf(config)).toEqual({ names: "name other", name: "first" });
});

test("checks that files exist before anything else", async () => {
  for (const [words, code] of [
    [["absent", "absent.json"], 105],
    [["absent"], 105],
    [["layer.tar"], 106],
    [["layer.tar", "absent.json"], 105],
    [["layer.tar", "absent", "--raw"], 105],
    [[".", "layer.tar"], 105],
    [["layer.tar", "layer.tar", "--service_config_path", "absent"], 105],
    [["layer.tar", "layer.tar", "layer.tar"], 109],
  ] as const) {
    const { code: actual, out, err } = await files.run("apply", ...words);
    expect({ words, actual, out }).toEqual({ words, actual: code, out: "" });
    expect(err).not.toBe("");
  }
});
