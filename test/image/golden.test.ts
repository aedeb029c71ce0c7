import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { copyFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { FileCache } from "../../src/blob/cache.ts";
import { loadImageConfig } from "../../src/image/config.ts";
import { openImage } from "../../src/image/open.ts";
import type { Engine } from "../../src/native/plan.ts";
import { golden, goldenDir } from "../golden/golden.ts";
import { type DeviceDigest, digestDevice, unpacked, writeConfig } from "./device.ts";

let directory: string;
beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), "overlaybd-golden-"));
});
afterAll(() => rmSync(directory, { recursive: true, force: true }));

async function digestOf(config: object, engine: Engine = 0): Promise<DeviceDigest> {
  const path = writeConfig(directory, config);
  const image = await openImage(await loadImageConfig(path), {
    cache: new FileCache(join(directory, "cache")),
    engine,
  });
  try {
    return await digestDevice(image);
  } finally {
    await image.close();
  }
}

async function digestOfLayers(...names: string[]): Promise<DeviceDigest> {
  const files = await Promise.all(names.map((name) => unpacked(name, directory)));
  return digestOf({ lowers: files.map((file) => ({ file })) });
}

describe.skipIf(goldenDir === null)("upstream's layers read back as their manifests say", () => {
  let devices: Record<string, DeviceDigest>;
  const expected = (name: string) => {
    const { virtual_size, nonzero_4k_blocks, digest } = devices[name];
    return { virtual_size, nonzero_4k_blocks, digest };
  };
  beforeAll(() => {
    devices = JSON.parse(readFileSync(golden("manifests/devices.json"), "utf8"));
  });

  const kinds = ["lsmt", "lz4", "lz4.tar", "zstd.tar"];

  test.each([...kinds, "lz4-bs32"])("layer1.%s", async (kind) => {
    expect(await digestOfLayers(`lsmt/layer1.${kind}`)).toEqual(expected("layer1"));
  });

  test.each(kinds.flatMap((one) => kinds.map((other) => [one, other])))(
    "layer1.%s under layer2.%s",
    async (one, other) => {
      expect(await digestOfLayers(`lsmt/layer1.${one}`, `lsmt/layer2.${other}`)).toEqual(
        expected("layer1+layer2"),
      );
    },
  );

  test.each(["merge/merged.lz4", "merge/merged.lsmt"])("%s", async (name) => {
    expect(await digestOfLayers(name)).toEqual(expected("layer1+layer2"));
  });

  test.each(["lsmt", "lz4", "zstd", "sealed", "commit_sealed.lz4"])("mini-append.%s", async (kind) => {
    expect(await digestOfLayers(`lsmt/mini-append.${kind}`)).toEqual(expected("mini-append"));
  });

  test("mini-sparse.lsmt", async () => {
    expect(await digestOfLayers("lsmt/mini-sparse.lsmt")).toEqual(expected("mini-sparse"));
  });

  test.each(["append", "sparse"])(
    "writable pair rw/%s",
    async (kind) => {
      const data = join(directory, `${kind}-copy`);
      await Bun.$`cp --sparse=always ${await unpacked(`rw/${kind}-data`, directory)} ${data}`;
      const index = join(directory, `${kind}-copy-index`);
      copyFileSync(golden(`rw/${kind}-index`), index);
      expect(await digestOf({ upper: { data, index } })).toEqual(expected(`mini-${kind}`));
    },
    60_000,
  );

  test.each([1, 2, 3] as Engine[])("the same bytes through I/O engine %d", async (engine) => {
    const lowers = [{ file: golden("lsmt/layer1.lz4.tar") }, { file: golden("lsmt/layer2.zstd.tar") }];
    expect(await digestOf({ lowers }, engine)).toEqual(expected("layer1+layer2"));
    const plain = [
      { file: await unpacked("lsmt/layer1.lsmt", directory) },
      { file: golden("lsmt/layer2.lz4") },
    ];
    expect(await digestOf({ lowers: plain }, engine)).toEqual(expected("layer1+layer2"));
  });

  test("layers found in their directories", async () => {
    const dir = mkdtempSync(join(directory, "dir-"));
    writeFileSync(join(dir, "overlaybd.commit"), readFileSync(golden("lsmt/layer1.lz4.tar")));
    const digest = "sha256:0b8a96d9ec9878a2fd09eee0ff9f4e7f47831450a4de8ef7af4b1681e66bc88c";
    const lowers = [
      { dir, digest, size: 5 },
      { file: golden("lsmt/layer2.lz4.tar"), digest },
    ];
    expect(await digestOf({ lowers })).toEqual(expected("layer1+layer2"));
  });
});
