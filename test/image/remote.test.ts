import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { appendFileSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { FileCache } from "../../src/blob/cache.ts";
import { parseImageConfig } from "../../src/image/config.ts";
import { VirtualDisk } from "../../src/image/disk.ts";
import { inspectImage } from "../../src/image/inspect.ts";
import { type ImageOptions, openImage } from "../../src/image/open.ts";
import { readDisk } from "../../src/image/read.ts";
import { openReference } from "../../src/image/reference.ts";
import { openSource } from "../../src/image/source.ts";
import { addressOf } from "../../src/native/address.ts";
import { repositoryAccess } from "../../src/registry/access.ts";
import { type Descriptor, encodeIndex, encodeManifest, MediaType } from "../../src/registry/descriptor.ts";
import { digestOf } from "../../src/registry/digest.ts";
import { parseReference } from "../../src/registry/reference.ts";
import { type RegistryServer, serveRegistry } from "../../src/registry/server.ts";
import { FORMATS, writeRandomLayer } from "./stack.ts";

const SIZE = 24 << 20;
const model = new Uint8Array(SIZE);
let directory: string;
let layout: string;
let registry: RegistryServer;
let repository: string;
let layers: Descriptor[];

let caches = 0;
function options(): ImageOptions {
  return { cache: new FileCache(join(directory, `cache-${caches++}`)), access: { plain: true } };
}

beforeAll(async () => {
  directory = mkdtempSync(join(tmpdir(), "overlaybd-remote-"));
  layout = join(directory, "layout");
  const target = await repositoryAccess()(parseReference(`oci:${layout}`), { create: true });
  const config = new TextEncoder().encode("{}");
  const configDescriptor = { mediaType: MediaType.ociConfig, digest: digestOf(config), size: config.length };
  await target.pushBlob(configDescriptor, new Blob([config]));
  layers = [];
  for (const [i, format] of [FORMATS[3], FORMATS[2], FORMATS[6]].entries()) {
    const path = join(directory, `layer-${i}`);
    writeRandomLayer(path, model, 200 + i, format);
    const bytes = readFileSync(path);
    const digest = digestOf(bytes);
    const annotations = { "containerd.io/snapshot/overlaybd/blob-digest": digest };
    const layer = { mediaType: MediaType.ociLayer, digest, size: bytes.length, annotations };
    await target.pushBlob(layer, Bun.file(path));
    layers.push(layer);
  }
  const push = (tag: string, manifestLayers: readonly Descriptor[]) =>
    target.pushManifest(
      tag,
      MediaType.ociManifest,
      encodeManifest({ mediaType: MediaType.ociManifest, config: configDescriptor, layers: manifestLayers }),
    );
  const image = await push("obd", layers);
  await push(
    "plain",
    layers.map(({ mediaType, digest, size }) => ({ mediaType, digest, size })),
  );
  const turbo = { "containerd.io/snapshot/overlaybd/turbo-oci/target-digest": layers[0].digest };
  await push("turbo", [{ ...layers[0], annotations: { ...layers[0].annotations, ...turbo } }]);
  const platform = { os: "linux", architecture: process.arch === "x64" ? "amd64" : process.arch };
  const pushIndex = (tag: string, manifests: readonly Descriptor[]) =>
    target.pushManifest(tag, MediaType.ociIndex, encodeIndex({ mediaType: MediaType.ociIndex, manifests }));
  await pushIndex("multi", [
    { ...image, platform: { os: "linux", architecture: "s390x" } },
    { ...image, platform },
  ]);
  await pushIndex("elsewhere", [{ ...image, platform: { os: "linux", architecture: "s390x" } }]);
  registry = await serveRegistry({ directory: layout, readOnly: true });
  repository = `${registry.url.replace("http://", "")}/test/image`;
});
afterAll(async () => {
  await registry.stop();
  rmSync(directory, { recursive: true, force: true });
});

async function expectWhole(source: string, imageOptions: ImageOptions) {
  const image = await openSource(source, imageOptions);
  const disk = new VirtualDisk(image.tables);
  const bytes = new Uint8Array(SIZE);
  await readDisk(image, disk, 0, bytes);
  expect(Buffer.compare(bytes, model)).toBe(0);
  disk.close();
  await image.close();
  return image.stats();
}

const imageBytes = () => layers.reduce((sum, layer) => sum + layer.size, 0);

function remoteConfig(lowers: object[] = layers): string {
  return JSON.stringify({ repoBlobUrl: `${registry.url}/v2/test/image/blobs`, lowers });
}

describe("an image in a registry", () => {
  test.each(["obd", "multi"])("opens by reference (%s) and reads as the flat model", async (tag) => {
    const stats = await expectWhole(`${repository}:${tag}`, options());
    expect(stats.imageBytes).toBe(imageBytes());
    expect(stats.fetchedBytes).toBeLessThanOrEqual(imageBytes());
    expect(stats.fetchedBytes).toBeGreaterThan(0);
  });

  test("opens by image config, and a second time without the registry's blobs", async () => {
    const path = join(directory, "config.v1.json");
    writeFileSync(path, remoteConfig());
    const imageOptions = options();
    const first = await expectWhole(path, imageOptions);
    expect(first.fetchedBytes).toBeGreaterThan(0);
    const before = registry.stats.blobRequests;
    const second = await expectWhole(path, {
      ...imageOptions,
      cache: new FileCache(imageOptions.cache.directory),
    });
    expect(second).toMatchObject({ fetchedBytes: 0, requests: 0, misses: 0, damaged: 0 });
    expect(registry.stats.blobRequests).toBe(before);
  });

  test("a read of what is not there names the ranges and leaves memory alone", async () => {
    const image = await openReference(`${repository}:obd`, options());
    const disk = new VirtualDisk(image.tables);
    const offset = SIZE / 2;
    const bytes = new Uint8Array(4096).fill(0xee);
    const missing = disk.read(offset, 4096, addressOf(bytes));
    if (missing === null) throw new Error("nothing was missing");
    expect(bytes.every((byte) => byte === 0xee)).toBe(true);
    const unit = 256 << 10;
    for (const range of missing) {
      expect(range.offset % unit).toBe(0);
      expect(range.length <= 2 * unit).toBe(true);
    }
    await Promise.all(missing.map((range) => image.fetch(range)));
    expect(disk.read(offset, 4096, addressOf(bytes))).toBeNull();
    expect(Buffer.compare(bytes, model.subarray(offset, offset + 4096))).toBe(0);
    const { fetchedBytes } = image.stats();
    // Start and end of each layer, and what the read needed.
    expect(fetchedBytes).toBeLessThan(imageBytes() / 2);
    disk.close();
    await image.close();
  });

  test("is reported by inspect layer by layer", async () => {
    const image = await openReference(`${repository}:obd`, options());
    const report = await inspectImage(image);
    await image.close();
    expect(report.virtualSize).toBe(SIZE);
    expect(report.layers.map(({ blobBytes }) => blobBytes)).toEqual(layers.map(({ size }) => size));
    expect(report.layers.map(({ compression, blockSize, tar }) => [compression, blockSize, tar])).toEqual([
      ["lz4", 16384, true],
      ["lz4", 4096, false],
      ["zstd", 16384, true],
    ]);
    const { dataBytes, zeroedBytes, holeBytes } = report.merged;
    expect(dataBytes + zeroedBytes + holeBytes).toBe(SIZE);
  });

  test("that is not an overlaybd image, or not for this machine, is refused with what to do", async () => {
    const refused: [string, string, string][] = [
      ["plain", "E_UNSUPPORTED", "overlaybd convert"],
      ["turbo", "E_UNSUPPORTED", "TurboOCI"],
      ["elsewhere", "E_NOT_FOUND", "linux/s390x"],
      ["absent", "E_NOT_FOUND", "absent"],
    ];
    for (const [tag, code, what] of refused) {
      const error = await openReference(`${repository}:${tag}`, options()).catch((cause) => cause);
      expect(error).toMatchObject({ code });
      expect(error.message).toContain(what);
    }
  });

  test("sizes that do not match, blobs that are not there and unusable configs are errors that name the layer", async () => {
    const [layer] = layers;
    const cases: [string, string, string][] = [
      [remoteConfig([{ ...layer, size: layer.size + 1 }]), "E_CORRUPT", layer.digest],
      [remoteConfig([{ ...layer, size: layer.size - 1 }]), "E_CORRUPT", layer.digest],
      [remoteConfig([{ ...layer, size: 0 }]), "E_CONFIG", "lowers[0]"],
      [remoteConfig([{ ...layer, digest: "../../x" }]), "E_CONFIG", "../../x"],
      [remoteConfig([{ ...layer, digest: `sha256:${"0".repeat(64)}` }]), "E_NOT_FOUND", "0000"],
      [remoteConfig([layer, { ...layer, targetDigest: layer.digest }]), "E_UNSUPPORTED", "lowers[1]"],
      [JSON.stringify({ lowers: [layer] }), "E_CONFIG", "repoBlobUrl"],
      [JSON.stringify({ repoBlobUrl: "ftp://x/v2/y/blobs", lowers: [layer] }), "E_CONFIG", "repoBlobUrl"],
      [JSON.stringify({ lowers: [{}] }), "E_NOT_FOUND", "lowers[0]"],
    ];
    for (const [text, code, what] of cases) {
      const error = await openImage(parseImageConfig(text, "config"), options()).catch((cause) => cause);
      expect(error).toMatchObject({ code });
      expect(error.message).toContain(what);
    }
  });
});

describe("an image in a directory", () => {
  test("is read where it lies, without a cache", async () => {
    const imageOptions = options();
    const stats = await expectWhole(`oci:${layout}:obd`, imageOptions);
    expect(stats).toMatchObject({ fetchedBytes: 0, imageBytes: imageBytes() });
    expect(await Bun.file(join(imageOptions.cache.directory, ".lock")).exists()).toBe(false);
  });

  test("with a blob of the wrong size is refused", async () => {
    const copy = join(directory, "copy");
    mkdirSync(copy);
    await Bun.$`cp -r ${layout}/. ${copy}`;
    appendFileSync(join(copy, "blobs", layers[1].digest.replace(":", "/")), "x");
    const error = await openReference(`oci:${copy}:obd`, options()).catch((cause) => cause);
    expect(error).toMatchObject({ code: "E_CORRUPT" });
    expect(error.message).toContain(layers[1].digest);
  });
});
