/** `overlaybd-commit` as programs run it (cli.md). */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { copyFileSync, existsSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { $ } from "bun";
import { NULL_UUID } from "../../src/format/lsmt/uuid.ts";
import { CODEC_LZ4 } from "../../src/format/zfile/blocks.ts";
import { golden, goldenDir } from "../golden/golden.ts";
import { COMMITTED, UUID, Workspace } from "./workspace.ts";

setDefaultTimeout(60_000);
let files: Workspace;
beforeAll(() => {
  files = new Workspace();
});
afterAll(() => files.remove());

const blocks = [1, 2, 3, 70, 200];

test("writes plain, compressed and wrapped layers with one content", async () => {
  const pair = await files.filledPair("commit", [...blocks, 2]);
  for (const options of [[], ["-z"], ["-zt"], ["-z", "-t", "--algorithm", "zstd", "--bs", "32"]]) {
    const result = await files.run(
      "commit",
      ...pair,
      "out",
      "-f",
      "--uuid",
      UUID,
      "-m",
      "a note",
      ...options,
    );
    expect(result).toEqual({ code: 0, out: COMMITTED, err: "\n" });
    expect(await files.markersOf("out", [...blocks, 4])).toEqual([...blocks, 0]);
    await files.withLayer("out", ({ content, disk }) => {
      expect(content).toMatchObject({ size: 2 ** 30, uuid: UUID.toUpperCase(), userTag: "a note" });
      expect(disk.start).toBe(options.join("").includes("t") ? 1536 : 0);
      expect(disk.blocks?.blockSize).toBe(
        options.length === 0 ? undefined : options.length > 2 ? 32768 : 4096,
      );
    });
  }
});

test("takes the parent from the layer unless one is given", async () => {
  const pair = await files.filledPair("parents", [1], "-u", UUID);
  const other = UUID.replace("0", "F").toUpperCase();
  for (const [options, parentUuid] of [
    [[], UUID.toUpperCase()],
    [["-p", other], other],
    [["--parent-uuid=bad"], UUID.toUpperCase()],
  ] as const) {
    expect((await files.run("commit", "-f", ...pair, "parents.out", ...options)).code).toBe(0);
    await files.withLayer("parents.out", ({ content }) => expect(content.parentUuid).toBe(parentUuid));
  }
});

test("of a sealed layer gives the bytes of the unsealed one", async () => {
  const [data, index] = await files.filledPair("seal", blocks);
  expect((await files.run("commit", data, index, "unsealed.out")).code).toBe(0);
  expect(await files.run("commit", "--seal", data, index)).toEqual({ code: 0, out: "", err: "" });
  expect((await files.run("commit", "--commit_sealed", data, "sealed.out")).code).toBe(0);
  expect(
    Buffer.compare(readFileSync(files.path("unsealed.out")), readFileSync(files.path("sealed.out"))),
  ).toBe(0);
});

test("writes 4 KiB blocks of LZ4, mode 0644, without uuid and message, unless told otherwise", async () => {
  const pair = await files.filledPair("defaults", [1]);
  expect(await files.run("commit", "-z", ...pair, "defaults.out")).toEqual({
    code: 0,
    out: COMMITTED,
    err: "\n",
  });
  expect(statSync(files.path("defaults.out")).mode & 0o777).toBe(0o644);
  await files.withLayer("defaults.out", ({ content, disk }) => {
    expect(content).toMatchObject({ uuid: NULL_UUID, parentUuid: NULL_UUID, userTag: "" });
    expect(disk.blocks).toMatchObject({ blockSize: 4096, codec: CODEC_LZ4 });
  });
});

test("compresses with any number of threads to the same bytes", async () => {
  const pair = await files.filledPair("threads", [1, 2, 3]);
  const outputs: Buffer[] = [];
  for (const threads of ["0", "1", "3", "1000000"]) {
    const words = ["-zf", "--compress_threads", threads, ...pair, "threads.out"];
    expect(await files.run("commit", ...words)).toEqual({ code: 0, out: COMMITTED, err: "\n" });
    outputs.push(readFileSync(files.path("threads.out")));
  }
  for (const output of outputs) expect(output.equals(outputs[0])).toBe(true);
});

test("takes every block size and message that the format has", async () => {
  const pair = await files.filledPair("sizes", [1]);
  for (const kib of [4, 8, 16, 32, 64]) {
    for (const algorithm of ["lz4", "zstd"]) {
      const options = [`--bs=${kib}`, `--algorithm=${algorithm}`, "-m", "é".repeat(128)];
      expect((await files.run("commit", "-zf", ...options, ...pair, "sizes.out")).code).toBe(0);
      await files.withLayer("sizes.out", ({ content, disk }) => {
        expect(disk.blocks?.blockSize).toBe(kib * 1024);
        expect(content.userTag).toBe("é".repeat(128));
      });
    }
  }
});

test("--seal needs the index, leaves the file in place, and says nothing", async () => {
  const [data, index] = await files.filledPair("sealing", [1, 2]);
  const before = statSync(files.path(data)).ino;
  expect(await files.run("commit", "--seal", data)).toMatchObject({ code: 255, out: "" });
  expect(await files.run("commit", "--seal", data, index, "not-written")).toEqual({
    code: 0,
    out: "",
    err: "",
  });
  expect(statSync(files.path(data)).ino).toBe(before);
  expect(existsSync(files.path("not-written"))).toBe(false);
  expect(await files.markersOf(data, [1, 2, 3])).toEqual([1, 2, 0]);
  expect(await files.run("commit", "--commit_sealed", data)).toMatchObject({ code: 255, out: "" });
});

test("refuses what it cannot do, and leaves no output", async () => {
  const pair = await files.filledPair("refused", [1]);
  for (const [options, code, complaint] of [
    [["--upload", "http://127.0.0.1/"], 255, /--upload is not supported/],
    [["--turboOCI"], 255, /TurboOCI/],
    [["--algorithm", "gzip"], 255, /--algorithm gzip/],
    [["--bs", "5"], 255, /--bs 5/],
    [["-m", "x".repeat(257)], 255, /257 bytes/],
    [["--bs", "many"], 105, /--bs/],
    [["--bs", "64k"], 105, /--bs/],
    [["--bs", "128"], 255, /--bs 128/],
    [["--bs", "0"], 255, /--bs 0/],
    [["-z", "-t", "--upload", "http://127.0.0.1/"], 255, /--upload/],
    [["--fastoci"], 255, /TurboOCI/],
    [["--compress_threads", "-1"], 105, /--compress_threads/],
    [["--upload_bs", "-1"], 105, /--upload_bs/],
    [["--cred_file_path", "absent"], 105, /absent/],
    [["--tls_key_path", "absent"], 105, /absent/],
    [["--tls_cert_path", "."], 105, /directory/],
  ] as const) {
    const result = await files.run("commit", ...pair, "refused.out", ...options);
    expect(result).toMatchObject({ code, out: "", err: expect.stringMatching(complaint) });
  }
  expect((await files.run("commit", pair[0])).code).toBe(255);
  expect((await files.run("commit", "absent", pair[1], "refused.out")).code).toBe(105);
  expect((await files.run("commit", pair[1], pair[1], "refused.out")).err).toMatch(
    /header of refused\.index/,
  );
  expect(existsSync(files.path("refused.out"))).toBe(false);
  writeFileSync(files.path("refused.out"), "mine");
  expect((await files.run("commit", ...pair, "refused.out")).code).toBe(255);
  expect(readFileSync(files.path("refused.out"), "utf8")).toBe("mine");
});

test("names the options that have no effect", async () => {
  const pair = await files.filledPair("idle", [1]);
  const result = await files.run("commit", ...pair, "idle.out", "-t");
  expect(result).toMatchObject({ code: 0, err: expect.stringContaining("no effect without -z") });
});

describe.skipIf(goldenDir === null)("of upstream's pair", () => {
  for (const [name, ...options] of [
    ["mini-append.lsmt", "-m", "golden"],
    ["mini-append.lz4", "-z", "-m", "golden"],
    ["mini-append.zstd", "-z", "--algorithm", "zstd", "-m", "golden"],
    ["mini-append.commit_sealed.lz4", "-z"],
  ]) {
    test(`gives upstream's ${name}`, async () => {
      copyFileSync(golden("rw/append-index"), files.path("golden.index"));
      await $`xz -dc ${golden("rw/append-data.xz")} > ${files.path("golden.data")}`;
      const words = ["-f", "--uuid", UUID, ...options];
      if (name.includes("sealed")) {
        expect((await files.run("commit", "--seal", "golden.data", "golden.index")).code).toBe(0);
        expect(
          (await files.run("commit", "--commit_sealed", "golden.data", "golden.out", ...words)).code,
        ).toBe(0);
      } else
        expect((await files.run("commit", "golden.data", "golden.index", "golden.out", ...words)).code).toBe(
          0,
        );
      expect(
        Buffer.compare(readFileSync(files.path("golden.out")), readFileSync(golden(`lsmt/${name}`))),
      ).toBe(0);
    });
  }
});
