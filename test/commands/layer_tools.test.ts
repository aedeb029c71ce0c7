/** overlaybd-create, overlaybd-commit and overlaybd-merge as programs run them. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import {
  copyFileSync,
  existsSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { $ } from "bun";
import { openFileBlob } from "../../src/blob/file.ts";
import { LocalFile } from "../../src/format/lsmt/file.ts";
import { openWritableLayer } from "../../src/format/lsmt/pair.ts";
import { segmentEnd, segmentStart } from "../../src/format/lsmt/segments.ts";
import { NULL_UUID } from "../../src/format/lsmt/uuid.ts";
import type { WritableLayer } from "../../src/format/lsmt/writable.ts";
import { openBlobLayer } from "../../src/image/layer.ts";
import { golden, goldenDir } from "../golden/golden.ts";
import { deviceDigest, readSectors } from "../lsmt/memory.ts";

setDefaultTimeout(60_000);
const UUID = "00112233-4455-6677-8899-aabbccddeeff";

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "overlaybd-tools-"));
});
afterAll(() => rmSync(folder, { recursive: true }));

interface Result {
  code: number;
  out: string;
  err: string;
}

/** Runs a tool in the temporary folder. */
async function run(...words: string[]): Promise<Result> {
  const main = join(import.meta.dir, "../../src/main.ts");
  const child = Bun.spawn([process.execPath, main, ...words], {
    cwd: folder,
    stdout: "pipe",
    stderr: "pipe",
  });
  const [out, err] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
  ]);
  return { code: await child.exited, out, err };
}

const CREATED = "overlaybd-create has created files SUCCESSFULLY\n";
const COMMITTED = "overlaybd-commit has committed files SUCCESSFULLY\n";

function pathOf(name: string): string {
  return join(folder, name);
}

/** Opens a layer blob, calls `look` and closes it. */
async function withLayer<T>(
  path: string,
  look: (layer: Awaited<ReturnType<typeof openBlobLayer>>) => T | Promise<T>,
): Promise<T> {
  const blob = await openFileBlob(path);
  try {
    return await look(await openBlobLayer(blob));
  } finally {
    await blob.close();
  }
}

/** Creates a pair with a few recognisable blocks: block b is full of b. */
async function filledPair(name: string, blocks: readonly number[], ...options: string[]): Promise<string[]> {
  const files = [`${name}.data`, `${name}.index`];
  expect(await run("create", ...files, "1", ...options)).toEqual({ code: 0, out: CREATED, err: "" });
  const layer = openWritableLayer(pathOf(files[0]), pathOf(files[1]));
  for (const block of blocks) layer.write(block * 4096, new Uint8Array(4096).fill(block));
  layer.close();
  return files;
}

/** Writes what a layer maps to a raw image with holes. */
async function copyDisk(layer: WritableLayer, path: string): Promise<void> {
  const image = LocalFile.open(path, "create");
  image.truncate(layer.size);
  const segments = layer.segments();
  for (let i = 0; i < segments.count; i++) {
    const start = segmentStart(segments, i);
    image.write(start * 512, await readSectors(segments, [layer.file], start, segmentEnd(segments, i)));
  }
  image.close();
}

async function firstBytes(path: string, blocks: readonly number[]): Promise<number[]> {
  return withLayer(path, async ({ content: { segments, source } }) => {
    const result: number[] = [];
    for (const block of blocks) {
      result.push((await readSectors(segments, [source], block * 8, block * 8 + 8))[4095]);
    }
    return result;
  });
}

describe("create", () => {
  test("makes an append-only pair", async () => {
    expect(await run("create", "-u", UUID, "a.data", "a.index", "3")).toEqual({
      code: 0,
      out: CREATED,
      err: "",
    });
    const layer = openWritableLayer(pathOf("a.data"), pathOf("a.index"));
    expect([layer.size, layer.sparse, layer.parentUuid]).toEqual([3 * 2 ** 30, false, UUID.toUpperCase()]);
    layer.close();
  });

  test("ignores a parent that is no UUID", async () => {
    expect((await run("create", "b.data", "b.index", "0", "-u", "nonsense")).code).toBe(0);
    const layer = openWritableLayer(pathOf("b.data"), pathOf("b.index"));
    expect([layer.size, layer.parentUuid]).toEqual([0, NULL_UUID]);
    layer.close();
  });

  test("makes a sparse layer and a raw file", async () => {
    expect((await run("create", "-s", "c.data", "c.index", "1")).code).toBe(0);
    expect((await run("create", "--raw", "d.data", "d.index", "1")).code).toBe(0);
    const sizes = ["c.data", "c.index", "d.data", "d.index"].map((name) => statSync(pathOf(name)).size);
    expect(sizes).toEqual([4096 + 2 ** 30, 0, 2 ** 30, 0]);
  });

  for (const kind of [[], ["-s"], ["--raw"]]) {
    test(`puts a sound file system on it: ${kind.join() || "append-only"}`, async () => {
      const [data, index] = [`fs${kind}.data`, `fs${kind}.index`];
      expect(await run("create", data, index, "1", "--mkfs", ...kind)).toEqual({
        code: 0,
        out: CREATED,
        err: "",
      });
      let image = pathOf(data);
      if (kind[0] !== "--raw") {
        image = pathOf(`fs${kind}.image`);
        const layer = openWritableLayer(pathOf(data), pathOf(index));
        await copyDisk(layer, image);
        layer.close();
      }
      const fsck = await $`e2fsck -fn ${image}`
        .env({ ...process.env, PATH: `${process.env.PATH}:/sbin` })
        .nothrow()
        .quiet();
      expect({ code: fsck.exitCode, out: `${fsck.stdout}` }).toMatchObject({ code: 0 });
    });
  }

  test("refuses files that exist and leaves nothing half made", async () => {
    writeFileSync(pathOf("taken"), "mine");
    const message = "overlaybd-create: failed to open file 'taken', 17: File exists\n";
    for (const options of [[], ["-s"], ["--raw"]]) {
      expect(await run("create", "taken", "e.index", "1", ...options)).toEqual({
        code: 255,
        out: "",
        err: message,
      });
      expect(await run("create", "e.data", "taken", "1", ...options)).toEqual({
        code: 255,
        out: "",
        err: message,
      });
    }
    expect(existsSync(pathOf("e.data")) || existsSync(pathOf("e.index"))).toBe(false);
    expect(readFileSync(pathOf("taken"), "utf8")).toBe("mine");
  });

  test("ends as documented for wrong arguments", async () => {
    expect((await run("create", "f.data", "f.index")).code).toBe(106);
    expect((await run("create", "f.data", "f.index", "--", "-1")).code).toBe(105);
    expect((await run("create", "f.data", "f.index", "1", "--nonsense")).code).toBe(109);
    expect((await run("create", "f.data", "f.index", "2049")).code).toBe(255);
    expect((await run("create", "f.data", "f.index", "1", "--turboOCI")).code).toBe(255);
    expect((await run("create", "f.data", "f.index", "0", "--mkfs")).code).toBe(255);
    expect(existsSync(pathOf("f.data")) || existsSync(pathOf("f.index"))).toBe(false);
  });
});

describe("commit", () => {
  const blocks = [1, 2, 3, 70, 200];

  test("writes plain, compressed and wrapped layers with one content", async () => {
    const pair = await filledPair("commit", [...blocks, 2]);
    for (const options of [[], ["-z"], ["-zt"], ["-z", "-t", "--algorithm", "zstd", "--bs", "32"]]) {
      const result = await run("commit", ...pair, "out", "-f", "--uuid", UUID, "-m", "a note", ...options);
      expect(result).toEqual({ code: 0, out: COMMITTED, err: "\n" });
      expect(await firstBytes(pathOf("out"), [...blocks, 4])).toEqual([...blocks, 0]);
      await withLayer(pathOf("out"), ({ content, disk }) => {
        expect(content).toMatchObject({ size: 2 ** 30, uuid: UUID.toUpperCase(), userTag: "a note" });
        expect(disk.start).toBe(options.join("").includes("t") ? 1536 : 0);
        expect(disk.blocks?.blockSize).toBe(
          options.length === 0 ? undefined : options.length > 2 ? 32768 : 4096,
        );
      });
    }
  });

  test("takes the parent from the layer unless one is given", async () => {
    const pair = await filledPair("parents", [1], "-u", UUID);
    const other = UUID.replace("0", "F").toUpperCase();
    for (const [options, parentUuid] of [
      [[], UUID.toUpperCase()],
      [["-p", other], other],
      [["--parent-uuid=bad"], UUID.toUpperCase()],
    ] as const) {
      expect((await run("commit", "-f", ...pair, "parents.out", ...options)).code).toBe(0);
      await withLayer(pathOf("parents.out"), ({ content }) => expect(content.parentUuid).toBe(parentUuid));
    }
  });

  test("of a sealed layer gives the bytes of the unsealed one", async () => {
    const [data, index] = await filledPair("seal", blocks);
    expect((await run("commit", data, index, "unsealed.out")).code).toBe(0);
    expect(await run("commit", "--seal", data, index)).toEqual({ code: 0, out: "", err: "" });
    expect((await run("commit", "--commit_sealed", data, "sealed.out")).code).toBe(0);
    expect(Buffer.compare(readFileSync(pathOf("unsealed.out")), readFileSync(pathOf("sealed.out")))).toBe(0);
  });

  test("refuses what it cannot do, and leaves no output", async () => {
    const pair = await filledPair("refused", [1]);
    for (const [options, code, complaint] of [
      [["--upload", "http://127.0.0.1/"], 255, /--upload is not supported/],
      [["--turboOCI"], 255, /TurboOCI/],
      [["--algorithm", "gzip"], 255, /--algorithm gzip/],
      [["--bs", "5"], 255, /--bs 5/],
      [["-m", "x".repeat(257)], 255, /257 bytes/],
      [["--bs", "many"], 105, /--bs/],
      [["--cred_file_path", "absent"], 105, /absent/],
    ] as const) {
      const result = await run("commit", ...pair, "refused.out", ...options);
      expect(result).toMatchObject({ code, out: "", err: expect.stringMatching(complaint) });
    }
    expect((await run("commit", pair[0])).code).toBe(255);
    expect((await run("commit", "absent", pair[1], "refused.out")).code).toBe(105);
    expect((await run("commit", pair[1], pair[1], "refused.out")).err).toMatch(/header of refused\.index/);
    expect(existsSync(pathOf("refused.out"))).toBe(false);
    writeFileSync(pathOf("refused.out"), "mine");
    expect((await run("commit", ...pair, "refused.out")).code).toBe(255);
    expect(readFileSync(pathOf("refused.out"), "utf8")).toBe("mine");
  });

  test("names the options that have no effect", async () => {
    const pair = await filledPair("idle", [1]);
    const result = await run("commit", ...pair, "idle.out", "-t");
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
        copyFileSync(golden("rw/append-index"), pathOf("golden.index"));
        await $`xz -dc ${golden("rw/append-data.xz")} > ${pathOf("golden.data")}`;
        const words = ["-f", "--uuid", UUID, ...options];
        if (name.includes("sealed")) {
          expect((await run("commit", "--seal", "golden.data", "golden.index")).code).toBe(0);
          expect((await run("commit", "--commit_sealed", "golden.data", "golden.out", ...words)).code).toBe(
            0,
          );
        } else
          expect((await run("commit", "golden.data", "golden.index", "golden.out", ...words)).code).toBe(0);
        expect(Buffer.compare(readFileSync(pathOf("golden.out")), readFileSync(golden(`lsmt/${name}`)))).toBe(
          0,
        );
      });
    }
  });
});

describe("merge", () => {
  function config(name: string, lowers: readonly string[], upper?: readonly string[]): string {
    const image = {
      repoBlobUrl: "",
      lowers: lowers.map((file) => ({ file })),
      upper: upper && { data: pathOf(upper[0]), index: pathOf(upper[1]) },
      resultFile: "",
    };
    writeFileSync(pathOf(name), JSON.stringify(image));
    writeFileSync(pathOf("service.json"), JSON.stringify({ cacheConfig: { cacheDir: pathOf("cache") } }));
    return name;
  }
  const service = ["--service_config_path", "service.json"];

  test("flattens read-only layers and a writable one on top", async () => {
    const bottom = await filledPair("bottom", [1, 2, 3]);
    expect((await run("commit", ...bottom, "bottom.out", "-zt")).code).toBe(0);
    const middle = await filledPair("middle", [2, 9]);
    expect((await run("commit", ...middle, "middle.out")).code).toBe(0);
    const upper = await filledPair("upper", [50]);
    const layer = openWritableLayer(pathOf(upper[0]), pathOf(upper[1]));
    layer.discard(9 * 4096, 4096);
    layer.resize(2 ** 31);
    layer.close();
    const lowers = ["bottom.out", "middle.out"].map(pathOf);
    for (const [options, compressed] of [
      [[], true],
      [["--compress=false"], false],
    ] as const) {
      const words = [config("upper.json", lowers, upper), "merged", ...service, ...options];
      expect(await run("merge", ...words)).toEqual({ code: 0, out: "", err: "\n" });
      expect(await firstBytes(pathOf("merged"), [1, 2, 3, 9, 50, 51])).toEqual([1, 2, 3, 0, 50, 0]);
      await withLayer(pathOf("merged"), ({ content, disk }) => {
        expect([content.size, disk.blocks !== undefined]).toEqual([2 ** 31, compressed]);
      });
    }
  });

  test("fails without an output, for an upload, and for a missing layer", async () => {
    const name = config("absent.json", [pathOf("nowhere")]);
    expect((await run("merge", name, ...service)).code).toBe(255);
    expect((await run("merge", name, "absent.out", "--upload", "http://127.0.0.1/", ...service)).code).toBe(
      255,
    );
    expect(await run("merge", name, "absent.out", ...service)).toMatchObject({
      code: 255,
      err: expect.stringContaining("nowhere"),
    });
    expect(existsSync(pathOf("absent.out"))).toBe(false);
    expect((await run("merge", "no.json", "absent.out")).code).toBe(105);
  });

  test.skipIf(goldenDir === null)("of upstream's layers gives upstream's device", async () => {
    const devices = JSON.parse(readFileSync(golden("manifests/devices.json"), "utf8"));
    const name = config("golden.json", [golden("lsmt/layer1.lz4.tar"), golden("lsmt/layer2.lz4.tar")]);
    expect((await run("merge", name, "golden.merged", ...service)).code).toBe(0);
    await withLayer(pathOf("golden.merged"), async ({ content }) => {
      const { digest, blocks } = await deviceDigest(content.segments, [content.source]);
      expect([digest, blocks, content.size]).toEqual([
        devices["layer1+layer2"].digest,
        devices["layer1+layer2"].nonzero_4k_blocks,
        devices["layer1+layer2"].virtual_size,
      ]);
    });
  });
});
