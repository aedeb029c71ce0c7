import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { dataLowers, loadImageConfig, localFile, parseImageConfig } from "../../src/image/config.ts";

let directory: string;
beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), "overlaybd-config-"));
});
afterAll(() => rmSync(directory, { recursive: true, force: true }));

const LOWER = {
  file: "",
  dir: "",
  digest: "",
  size: 0,
  verity: "",
  targetFile: "",
  targetDigest: "",
  gzipIndex: "",
};

describe("an image config", () => {
  test("is read with its defaults; unknown keys and an incomplete upper layer are ignored", () => {
    const text = JSON.stringify({ lowers: [{ file: "a" }], upper: { data: "d", vsize: 5 }, colour: "green" });
    expect(parseImageConfig(text, "c")).toEqual({
      name: "c",
      repoBlobUrl: "",
      lowers: [{ ...LOWER, file: "a" }],
      upper: undefined,
      resultFile: "",
      download: undefined,
      accelerationLayer: false,
      recordTracePath: "",
    });
  });

  test("is read with all of its keys", () => {
    const lower = {
      file: "f",
      dir: "d",
      digest: "sha256:00",
      size: 2 ** 40,
      targetFile: "t",
      targetDigest: "sha256:01",
      gzipIndex: "g",
      verity: "v",
    };
    const download = { enable: true, delay: 1, delayExtra: -1, maxMBps: 0, tryCnt: 2, blockSize: 4096 };
    const config = {
      repoBlobUrl: "https://registry.example/v2/a/b/blobs",
      lowers: [lower, LOWER],
      upper: { index: "i", data: "d", target: "t", gzipIndex: "g" },
      resultFile: "r",
      download,
      accelerationLayer: true,
      recordTracePath: "p",
    };
    const parsed = parseImageConfig(JSON.stringify(config), "c");
    expect(parsed).toEqual({ name: "c", ...config });
    expect(dataLowers(parsed)).toEqual([lower]);
  });

  const wrong: [string, string, string][] = [
    ["{", "is not valid JSON", ""],
    ["[]", "does not hold an object", ""],
    ["null", "does not hold an object", ""],
    ['{"lowers":{}}', "lowers", "must be a list"],
    ['{"lowers":[1]}', "lowers[0]", "must be an object"],
    ['{"lowers":[{"file":1}]}', "lowers[0].file", "must be a string, not 1"],
    ['{"lowers":[{"file":null}]}', "lowers[0].file", "not null"],
    ['{"lowers":[{"size":"5"}]}', "lowers[0].size", 'not "5"'],
    ['{"lowers":[{"size":-1}]}', "lowers[0].size", "not -1"],
    ['{"lowers":[{"size":1.5}]}', "lowers[0].size", "not 1.5"],
    ['{"lowers":[{"size":1e300}]}', "lowers[0].size", "not 1e+300"],
    ['{"lowers":[{}],"accelerationLayer":1}', "accelerationLayer", "must be true or false"],
    ['{"lowers":[{}],"accelerationLayer":true}', "lowers", "nothing to show"],
    ['{"lowers":[{}],"upper":[]}', "upper", "must be an object"],
    ['{"lowers":[{}],"upper":{"index":true}}', "upper.index", "must be a string"],
    ['{"lowers":[{}],"download":{"delay":"1"}}', "download.delay", "must be a whole number"],
    ['{"lowers":[{}],"download":{"blockSize":-4}}', "download.blockSize", "from 0"],
    ['{"lowers":[{}],"repoBlobUrl":7}', "repoBlobUrl", "must be a string"],
    ["{}", "lowers", "nothing to show"],
    ['{"upper":{"index":"i"}}', "lowers", "nothing to show"],
    [JSON.stringify({ lowers: new Array(256).fill({}) }), "lowers", "255 is the limit"],
  ];
  test.each(wrong)("%s is refused", (text, key, what) => {
    let message = "";
    try {
      parseImageConfig(text.slice(0, 20_000), "dir/config.v1.json");
    } catch (error) {
      expect(error).toMatchObject({ code: "E_CONFIG" });
      message = (error as Error).message;
    }
    expect(message).toStartWith("dir/config.v1.json");
    expect(message).toContain(key);
    expect(message).toContain(what);
  });

  test("that does not exist is an error that names it", async () => {
    await expect(loadImageConfig(join(directory, "absent.json"))).rejects.toMatchObject({
      code: "E_CONFIG",
      message: expect.stringContaining("absent.json"),
    });
  });
});

test("the local file of a layer is the first that exists", async () => {
  const dir = join(directory, "layer");
  mkdirSync(dir);
  const file = join(directory, "file");
  const lower = { ...LOWER, file, dir };
  expect(await localFile(lower)).toBeNull();
  for (const path of [
    join(dir, "overlaybd.sealed"),
    join(dir, ".commit"),
    join(dir, "overlaybd.commit"),
    file,
  ]) {
    writeFileSync(path, "");
    expect(await localFile(lower)).toBe(path);
  }
  expect(await localFile(LOWER)).toBeNull();
  expect(await localFile({ ...LOWER, dir: file })).toBeNull();
});
