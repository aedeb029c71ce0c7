/** `convert --verity`, and what its trees are for: a registry that lies, in all sorts of ways, and how a reader notices. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { createHash } from "node:crypto";
import { cpSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { $ } from "bun";
import { FileCache } from "../../src/blob/cache.ts";
import { openFileBlob } from "../../src/blob/file.ts";
import { VERITY_ANNOTATION } from "../../src/format/verity/descriptor.ts";
import { blockOffset } from "../../src/format/zfile/blocks.ts";
import { VirtualDisk } from "../../src/image/disk.ts";
import { openBlobLayer } from "../../src/image/layer.ts";
import type { ImageOptions } from "../../src/image/open.ts";
import { readDisk } from "../../src/image/read.ts";
import { openSource } from "../../src/image/source.ts";
import { crc32c } from "../../src/native/codec.ts";
import { type AccessOptions, repositoryAccess } from "../../src/registry/access.ts";
import {
  type Descriptor,
  encodeManifest,
  type Manifest,
  parseManifest,
} from "../../src/registry/descriptor.ts";
import { parseReference } from "../../src/registry/reference.ts";
import { sampleBytes } from "../blob/origin.ts";
import { canServeFuse } from "../device/support.ts";
import { gzipLayer, HandmadeLayout } from "../fixtures/layout.ts";
import { run } from "../fixtures/program.ts";
import { random } from "../fixtures/random.ts";
import {
  type FaultProxy,
  type RunningRegistry,
  startDockerRegistry,
  startFaultProxy,
  temporaryDirectory,
} from "../fixtures/registry.ts";
import { tar } from "../fixtures/tar.ts";

setDefaultTimeout(60_000);

const REPOSITORY = "test/sealed";
/** Incompressible, so that LZ4 stores them as they are. */
const content = sampleBytes(9 << 20, 77);
const folder = temporaryDirectory();
let registry: RunningRegistry;
let proxy: FaultProxy;
let layers: readonly Descriptor[];
let manifest: Manifest;
/** SHA-256 of the disk's data. */
let disk: string;
let folders = 0;

beforeAll(async () => {
  const source = new HandmadeLayout(join(folder.path, "source"));
  const [below, above] = [content.subarray(0, 6 << 20), content.subarray(6 << 20)];
  const archives = [
    tar([{ path: "data/" }, { path: "data/below", data: below }]),
    tar([
      { path: "data/" },
      { path: "data/above", data: above },
      { path: "data/text", data: "text\n".repeat(999) },
    ]),
  ];
  source.tag(source.image({ layers: archives.map(gzipLayer) }));
  registry = await startDockerRegistry(folder.path);
  proxy = await startFaultProxy(`http://${registry.host}`);
  for (const [tag, ...more] of [["plain"], ["sealed", "--verity"], ["again", "--verity"]])
    await convert(tag, more);
  manifest = await manifestOf("sealed");
  layers = manifest.layers;
  disk = await readAll("sealed");
});
afterAll(async () => {
  await proxy?.stop();
  await registry?.stop();
  folder.remove();
});

async function convert(tag: string, more: readonly string[]): Promise<void> {
  const from = ["-r", `oci:${join(folder.path, "source")}`, "-i", "latest"];
  const to = ["--to", `${registry.host}/${REPOSITORY}`, "-o", tag, "--oci", "--plain", "--vsize", "1"];
  const { code, err } = await run(["convert", ...from, ...to, "-d", join(folder.path, "work"), ...more]);
  expect({ code, err }).toEqual({ code: 0, err: "" });
}

function repository() {
  return repositoryAccess({ plain: true })(parseReference(`${registry.host}/${REPOSITORY}`));
}

async function manifestOf(tag: string): Promise<Manifest> {
  const source = await repository();
  return parseManifest(await source.manifest(await source.resolve(tag)), tag);
}

/** Stores the sealed image with other annotations of its first layer. */
async function pushLying(tag: string, verity: string): Promise<void> {
  const [first, ...rest] = layers;
  const lying = { ...first, annotations: { ...first.annotations, [VERITY_ANNOTATION]: verity } };
  const bytes = encodeManifest({ ...manifest, layers: [lying, ...rest] });
  await (await repository()).pushManifest(tag, manifest.mediaType as string, bytes);
}

function options(access: AccessOptions = {}, cache = join(folder.path, `cache-${folders++}`)): ImageOptions {
  return { cache: new FileCache(cache), access: { plain: true, ...access } };
}

/** Reads all data of the image's disk; the bytes' SHA-256. @throws what reading throws */
async function readAll(tag: string, using = options(), host = registry.host): Promise<string> {
  const source = tag.endsWith(".json") ? tag : `${host}/${REPOSITORY}:${tag}`;
  const image = await openSource(source, using);
  const virtual = new VirtualDisk(image.tables);
  try {
    const hash = createHash("sha256");
    for (const { offset, length } of virtual.dataRanges()) {
      const bytes = new Uint8Array(length);
      await readDisk(image, virtual, offset, bytes);
      hash.update(bytes);
    }
    return hash.digest("hex");
  } finally {
    virtual.close();
    await image.close();
  }
}

/** Where the registry keeps a blob: whoever can write there can lie. */
function stored(digest: string): string {
  const hex = digest.slice("sha256:".length);
  return join(folder.path, "storage/docker/registry/v2/blobs/sha256", hex.slice(0, 2), hex, "data");
}

/** Runs `work` while a blob in the registry has other bytes. */
async function tampered<T>(
  digest: string,
  change: (bytes: Uint8Array) => void,
  work: () => Promise<T>,
): Promise<T> {
  const path = stored(digest);
  const right = readFileSync(path);
  const wrong = Uint8Array.from(right);
  change(wrong);
  writeFileSync(path, wrong);
  try {
    return await work();
  } finally {
    writeFileSync(path, right);
  }
}

/** Changes a byte of the content in the middle of a compressed block, and the block's checksum, so that both fit. */
async function forge(digest: string): Promise<(bytes: Uint8Array) => void> {
  const blob = await openFileBlob(stored(digest));
  const { start, blocks } = (await openBlobLayer(blob)).disk;
  await blob.close();
  if (!blocks?.checksum) throw new Error("the layer has no checksums");
  const number = Math.floor(blocks.count / 2);
  const [begin, end] = [start + blockOffset(blocks, number), start + blockOffset(blocks, number + 1) - 4];
  return (bytes) => {
    bytes[begin + 2000] ^= 0x55;
    new DataView(bytes.buffer).setUint32(end, crc32c(bytes.subarray(begin, end), 100007), true);
  };
}

describe("convert --verity", () => {
  test("gives the same digests each time, and changes nothing without it", async () => {
    expect(await manifestOf("again")).toEqual(manifest);
    const plain = await manifestOf("plain");
    for (const [i, layer] of layers.entries()) {
      const verity = layer.annotations?.[VERITY_ANNOTATION] ?? "";
      expect(verity).toMatch(/^root=sha256:[0-9a-f]{64},leaf=16384,data=\d+$/);
      expect(plain.layers[i].annotations).not.toHaveProperty([VERITY_ANNOTATION]);
      // The plain layer's bytes are there, but for the archive's end.
      const [before, after] = [
        readFileSync(stored(plain.layers[i].digest)),
        readFileSync(stored(layer.digest)),
      ];
      expect(Buffer.compare(after.subarray(0, before.length - 1024), before.subarray(0, -1024))).toBe(0);
      expect(after.length - before.length).toBeLessThan(before.length / 100);
    }
    expect(await readAll("plain")).toBe(disk);
  });

  test("is shown by inspect", async () => {
    const words = [
      "inspect",
      `${registry.host}/${REPOSITORY}:sealed`,
      "--plain",
      "--cache-dir",
      join(folder.path, "i"),
    ];
    const { out } = await run(words);
    const roots = layers.map(({ annotations }) => (annotations?.[VERITY_ANNOTATION] ?? "").slice(5, 76));
    for (const root of roots) expect(out).toContain(root);
    const report = JSON.parse((await run([...words, "--json"])).out);
    expect(report.layers.map(({ verity }: { verity: { root: string } }) => verity.root)).toEqual(roots);
  });

  test("survives the registry's garbage collection", async () => {
    const config = readdirSync(folder.path).find((name) => /^registry-\d+\.yml$/.test(name)) as string;
    await $`docker-registry garbage-collect ${join(folder.path, config)}`.quiet();
    expect(await readAll("sealed")).toBe(disk);
  });
});

describe("a registry that was tampered with", () => {
  test("fools the checksums, but not the tree, when it changes content and checksum alike", async () => {
    const [plain] = (await manifestOf("plain")).layers;
    await tampered(plain.digest, await forge(plain.digest), async () => {
      expect(await readAll("plain")).not.toBe(disk);
    });
    await tampered(layers[0].digest, await forge(layers[0].digest), async () => {
      const error = await readAll("sealed").catch((cause) => cause);
      expect(error).toMatchObject({ code: "E_CORRUPT" });
      expect(error.message).toMatch(`${REPOSITORY}@${layers[0].digest}: bytes `);
    });
    expect(await readAll("sealed")).toBe(disk);
  });

  test("never gets a wrong byte through, whichever it changes", async () => {
    const next = random(21);
    const [{ digest, size }] = layers;
    const data = Number(/data=(\d+)/.exec(layers[0].annotations?.[VERITY_ANNOTATION] ?? "")?.[1]);
    const places = [0, 1536, data - 1, data, data + 4096, data + 4096 + 31, size - 1];
    for (let i = 0; i < 8; i++) places.push(Math.floor(next() * size));
    for (const place of places) {
      const result = await tampered(
        digest,
        (bytes) => {
          bytes[place] ^= 1 << Math.floor(next() * 8);
        },
        () => readAll("sealed").catch((cause) => cause),
      );
      expect(result).toMatchObject({ code: "E_CORRUPT" });
      expect(result.message).toContain(digest);
    }
  });

  test("is asked once more, and believed when it is right", async () => {
    const flipped = new Set<string>();
    proxy.fault = ({ url, headers }) => {
      const key = `${url} ${headers.range}`;
      if (headers.range === undefined || flipped.has(key)) return undefined;
      flipped.add(key);
      return { kind: "flip", offset: 700 };
    };
    expect(await readAll("sealed", options(), proxy.host)).toBe(disk);
    expect(flipped.size).toBeGreaterThan(5);
  });

  test("is not believed although it is a mirror: the next host has the bytes", async () => {
    const hosts = join(folder.path, "hosts");
    mkdirSync(join(hosts, registry.host), { recursive: true });
    writeFileSync(
      join(hosts, registry.host, "hosts.toml"),
      `[host."${proxy.origin}"]\ncapabilities = ["pull"]\n`,
    );
    let asked = 0;
    proxy.fault = ({ headers }) => {
      if (headers.range === undefined) return undefined;
      asked++;
      return { kind: "flip", offset: 0 };
    };
    const warnings: string[] = [];
    const warn = (message: string) => warnings.push(message);
    expect(await readAll("sealed", options({ hostsDirectory: hosts, warn }))).toBe(disk);
    expect(asked).toBeGreaterThan(0);
    // Layers are opened in parallel: any of them may be the first to find the mirror lying.
    expect(layers.some(({ digest }) => warnings[0].includes(digest))).toBe(true);
  });

  test.skipIf(!canServeFuse)(
    "is an I/O error at the reader of a mount, and none once it is right",
    async () => {
      const root = join(folder.path, "root");
      const records = join(folder.path, "run");
      mkdirSync(root);
      const words = [
        `${registry.host}/${REPOSITORY}:sealed`,
        root,
        "--plain",
        "--cache-dir",
        join(folder.path, "mount"),
      ];
      const { code, err } = await run(["mount", ...words, "--run-dir", records]);
      expect({ code, err }).toEqual({ code: 0, err: "" });
      try {
        const read = () => readFileSync(join(root, "data/below"));
        await tampered(layers[0].digest, await forge(layers[0].digest), async () => {
          expect(read).toThrow("EIO");
        });
        expect(Buffer.compare(read(), content.subarray(0, 6 << 20))).toBe(0);
      } finally {
        const { out } = await run(["umount", root, "--run-dir", records]);
        expect(out).toMatch(`${layers[0].digest}: bytes `);
      }
    },
  );
});

describe("a manifest that does not fit its layer", () => {
  const annotation = () => layers[0].annotations?.[VERITY_ANNOTATION] ?? "";

  test.each([
    [
      "another root",
      () => annotation().replace(/sha256:./, (text) => (text.endsWith("0") ? "sha256:1" : "sha256:0")),
      "E_CORRUPT",
    ],
    ["another size", () => annotation().replace(/data=\d+/, "data=4096"), "E_CORRUPT"],
    ["a size near the limit", () => annotation().replace(/data=\d+/, "data=1099511627776"), "E_CORRUPT"],
    ["other leaves", () => annotation().replace("leaf=16384", "leaf=4096"), "E_UNSUPPORTED"],
    ["another hash", () => annotation().replace("sha256:", "sha512:"), "E_UNSUPPORTED"],
    ["nonsense", () => "\u0000", "E_CORRUPT"],
    ["nothing", () => "", "E_CORRUPT"],
  ])("is refused: %s", async (name, verity, code) => {
    const tag = `lying-${name.replaceAll(" ", "-")}`;
    await pushLying(tag, verity());
    const reading = readAll(tag);
    await expect(reading).rejects.toMatchObject({ code });
    await expect(reading).rejects.toThrow(layers[0].digest);
  });

  test("is refused when the layer has no tree at the place", async () => {
    const { digest, size } = layers[0];
    const data = Number(/data=(\d+)/.exec(annotation())?.[1]);
    const cut = async (change: (bytes: Uint8Array) => void) =>
      tampered(digest, change, () => readAll("sealed").catch((cause) => cause));
    for (const change of [
      (bytes: Uint8Array) => bytes.fill(0, data),
      (bytes: Uint8Array) => bytes.copyWithin(data, data + 4096),
      (bytes: Uint8Array) => bytes.copyWithin(data, 0, size - data),
    ]) {
      expect(await cut(change)).toMatchObject({ code: "E_CORRUPT" });
    }
  });
});

test("an image config hands the tree down, and a cache somebody changed is not believed", async () => {
  const path = join(folder.path, "config.v1.json");
  const lowers = layers.map(({ digest, size, annotations }) => ({
    digest,
    size,
    verity: annotations?.[VERITY_ANNOTATION],
  }));
  const config = (changed: readonly object[]) =>
    writeFileSync(
      path,
      JSON.stringify({ repoBlobUrl: `http://${registry.host}/v2/${REPOSITORY}/blobs`, lowers: changed }),
    );
  config(lowers);
  const cache = join(folder.path, "config-cache");
  expect(await readAll(path, options({}, cache))).toBe(disk);

  // The same lies, recorded with right checksums by a cache that believes what it is sent.
  const forger = join(folder.path, "forger");
  await tampered(layers[0].digest, await forge(layers[0].digest), async () => {
    config(lowers.map(({ digest, size }) => ({ digest, size })));
    expect(await readAll(path, options({}, forger))).not.toBe(disk);
  });
  const kept = readdirSync(cache).filter((name) => name.startsWith("verified:") && !name.endsWith(".map"));
  const target = kept.find((name) => Bun.file(join(cache, name)).size === layers[0].size) as string;
  cpSync(join(forger, layers[0].digest), join(cache, target));
  const header = readFileSync(join(cache, `${target}.map`)).subarray(0, 32);
  const records = readFileSync(join(forger, `${layers[0].digest}.map`)).subarray(32);
  writeFileSync(join(cache, `${target}.map`), Buffer.concat([header, records]));

  config(lowers);
  const using = options({}, cache);
  expect(await readAll(path, using)).toBe(disk);
  expect(using.cache.stats()).toMatchObject({ damaged: 1, misses: 1, requests: 1 });

  config(lowers.map((lower) => ({ ...lower, verity: "root=" })));
  await expect(readAll(path)).rejects.toMatchObject({ code: "E_CORRUPT" });
});
