/** `overlaybd-merge` as programs run it (cli.md). */
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { existsSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { openWritableLayer } from "../../src/format/lsmt/pair.ts";
import { CODEC_LZ4 } from "../../src/format/zfile/blocks.ts";
import { golden, goldenDir } from "../golden/golden.ts";
import { deviceDigest } from "../lsmt/memory.ts";
import { SERVICE, Workspace } from "./workspace.ts";

setDefaultTimeout(60_000);
let files: Workspace;
beforeAll(() => {
  files = new Workspace();
});
afterAll(() => files.remove());

test("flattens read-only layers and a writable one on top", async () => {
  const bottom = await files.filledPair("bottom", [1, 2, 3]);
  expect((await files.run("commit", ...bottom, "bottom.out", "-zt")).code).toBe(0);
  const middle = await files.filledPair("middle", [2, 9]);
  expect((await files.run("commit", ...middle, "middle.out")).code).toBe(0);
  const upper = await files.filledPair("upper", [50]);
  const layer = openWritableLayer(files.path(upper[0]), files.path(upper[1]));
  layer.discard(9 * 4096, 4096);
  layer.resize(2 ** 31);
  layer.close();
  const lowers = ["bottom.out", "middle.out"].map(files.path);
  for (const [options, compressed] of [
    [[], true],
    [["--compress=false"], false],
  ] as const) {
    const words = [files.config("upper.json", lowers, upper), "merged", ...SERVICE, ...options];
    expect(await files.run("merge", ...words)).toEqual({ code: 0, out: "", err: "\n" });
    expect(await files.markersOf("merged", [1, 2, 3, 9, 50, 51])).toEqual([1, 2, 3, 0, 50, 0]);
    await files.withLayer("merged", ({ content, disk }) => {
      expect([content.size, disk.blocks !== undefined]).toEqual([2 ** 31, compressed]);
    });
  }
});

test("fails without an output, for an upload, and for a missing layer", async () => {
  const name = files.config("absent.json", [files.path("nowhere")]);
  expect((await files.run("merge", name, ...SERVICE)).code).toBe(255);
  expect(
    (await files.run("merge", name, "absent.out", "--upload", "http://127.0.0.1/", ...SERVICE)).code,
  ).toBe(255);
  expect(await files.run("merge", name, "absent.out", ...SERVICE)).toMatchObject({
    code: 255,
    err: expect.stringContaining("nowhere"),
  });
  expect(existsSync(files.path("absent.out"))).toBe(false);
  expect((await files.run("merge", "no.json", "absent.out")).code).toBe(105);
});

test("replaces its output, as LZ4 in 4 KiB blocks, mode 0644; -t changes nothing", async () => {
  const pair = await files.filledPair("replaced", [7]);
  expect((await files.run("commit", ...pair, "replaced.out")).code).toBe(0);
  const config = files.config("replaced.json", [files.path("replaced.out")]);
  const outputs: Buffer[] = [];
  for (const options of [
    [],
    ["--compress"],
    ["--compress=true"],
    ["-t"],
    ["--verbose", "--upload_bs", "1"],
  ]) {
    writeFileSync(files.path("replaced.merged"), "x".repeat(100_000), { mode: 0o600 });
    const words = [config, "replaced.merged", ...SERVICE, ...options];
    expect(await files.run("merge", ...words)).toEqual({ code: 0, out: "", err: "\n" });
    await files.withLayer("replaced.merged", ({ disk }) =>
      expect([disk.start, disk.blocks?.blockSize, disk.blocks?.codec]).toEqual([0, 4096, CODEC_LZ4]),
    );
    outputs.push(readFileSync(files.path("replaced.merged")));
  }
  for (const output of outputs) expect(output.equals(outputs[0])).toBe(true);
  expect((await files.run("merge", config, "new.merged", ...SERVICE)).code).toBe(0);
  expect(statSync(files.path("new.merged")).mode & 0o777).toBe(0o644);
  expect(readFileSync(files.path("new.merged")).equals(outputs[0])).toBe(true);
});

test("refuses what is no image config and files that are not there", async () => {
  const { out, ...absent } = await files.run("merge", "no.json", "out");
  expect({ out, ...absent }).toEqual({ code: 105, out: "", err: expect.stringContaining("no.json") });
  writeFileSync(files.path("bad.json"), "{");
  for (const [words, code] of [
    [["bad.json", "out", ...SERVICE], 255],
    [["service.json", "out", "--service_config_path", "absent"], 105],
    [["service.json", "out", "--service_config_path", "bad.json"], 255],
    [["service.json", "out", "--tls_key_path", "absent"], 105],
    [["service.json", "out", "--cred_file_path", "."], 105],
    [[".", "out"], 105],
    [[], 106],
  ] as const) {
    const result = await files.run("merge", ...words);
    expect({ words, ...result }).toMatchObject({ code, out: "", err: expect.stringMatching(/./) });
  }
  expect(existsSync(files.path("out"))).toBe(false);
});

test.skipIf(goldenDir === null)("of upstream's layers gives upstream's device", async () => {
  const devices = JSON.parse(readFileSync(golden("manifests/devices.json"), "utf8"));
  const name = files.config("golden.json", [golden("lsmt/layer1.lz4.tar"), golden("lsmt/layer2.lz4.tar")]);
  expect((await files.run("merge", name, "golden.merged", ...SERVICE)).code).toBe(0);
  await files.withLayer("golden.merged", async ({ content }) => {
    const { digest, blocks } = await deviceDigest(content.segments, [content.source]);
    expect([digest, blocks, content.size]).toEqual([
      devices["layer1+layer2"].digest,
      devices["layer1+layer2"].nonzero_4k_blocks,
      devices["layer1+layer2"].virtual_size,
    ]);
  });
});
