/**
 * Images for several platforms, and the media types of both families: what an index becomes, wherever it comes from and goes
 * to (convertor.md sections 3.1 and 7).
 */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { repositoryAccess } from "../../src/registry/access.ts";
import {
  type Descriptor,
  isIndexType,
  MediaType,
  parseIndex,
  parseManifest,
} from "../../src/registry/descriptor.ts";
import { parseReference } from "../../src/registry/reference.ts";
import type { Repository } from "../../src/registry/repository.ts";
import { type RegistryServer, serveRegistry } from "../../src/registry/server.ts";
import { type Entry, gzipLayer, HandmadeLayout } from "../fixtures/layout.ts";
import { fsckComplaint, mounted } from "../fixtures/loop.ts";
import { run } from "../fixtures/program.ts";
import { type RunningRegistry, startDockerRegistry } from "../fixtures/registry.ts";
import { tar } from "../fixtures/tar.ts";
import { verifyLayout } from "./layout_state.ts";

setDefaultTimeout(60_000);

const PLATFORMS = [
  { architecture: "amd64", os: "linux" },
  { architecture: "arm64", os: "linux", variant: "v8" },
  { architecture: "arm", os: "linux", variant: "v7" },
] as const;
const NAMES = PLATFORMS.map(({ architecture }) => architecture);

const shared = gzipLayer(tar([{ path: "./" }, { path: "etc/os", data: "the same for all\n" }]));
const own = (name: string) => gzipLayer(tar([{ path: "etc/arch", data: `${name}\n` }]));

let folder: string;
let input: HandmadeLayout;
let images: readonly Entry[];
let attestation: Entry;
let embedded: RegistryServer;
let docker: RunningRegistry;

/** An image of each platform in the layout, with entries as tools write them into an index. */
function platformImages(family: "oci" | "docker"): Entry[] {
  return PLATFORMS.map((platform) => ({
    ...input.image({ layers: [shared, own(platform.architecture)], family, config: platform }),
    annotations: { "com.example.built-for": platform.architecture },
    platform,
  }));
}

/** What buildkit adds for each image: provenance in an image manifest, under a platform that does not exist. */
function attestationOf(image: Entry): Entry {
  const statement = Buffer.from('{"_type":"https://in-toto.io/Statement/v0.1"}');
  return {
    ...input.image({
      layers: [{ content: statement, mediaType: "application/vnd.in-toto+json" }],
      config: { architecture: "unknown", os: "unknown" },
    }),
    annotations: {
      "vnd.docker.reference.digest": image.digest,
      "vnd.docker.reference.type": "attestation-manifest",
    },
    platform: { architecture: "unknown", os: "unknown" },
  };
}

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), "overlaybd-index-"));
  input = new HandmadeLayout(join(folder, "in"));
  images = platformImages("oci");
  attestation = attestationOf(images[0]);
  input.tag(input.index([...images, attestation], { annotations: { "com.example.of": "the index" } }));
  embedded = await serveRegistry({ directory: join(folder, "embedded") });
  docker = await startDockerRegistry(folder);
});
afterAll(async () => {
  await embedded.stop();
  await docker.stop();
  rmSync(folder, { recursive: true });
});

function open(repository: string): Promise<Repository> {
  return repositoryAccess({ plain: true })(parseReference(repository));
}

/** Copies an image or an index with all that it refers to. */
async function copy(source: Repository, object: Descriptor, target: Repository, tag?: string): Promise<void> {
  const bytes = await source.manifest(object);
  if (isIndexType(object.mediaType)) {
    for (const entry of parseIndex(bytes, object.digest).manifests) await copy(source, entry, target);
  } else {
    const { config, layers } = parseManifest(bytes, object.digest);
    for (const blob of [config, ...layers]) await target.pushBlob(blob, () => source.blob(blob));
  }
  await target.pushManifest(tag, object.mediaType, bytes);
}

/** Converts; returns the descriptor of the result. */
async function convert(words: readonly string[]): Promise<Descriptor> {
  const options = ["-o", "obd", "--vsize", "1", "--plain", "-d", join(folder, "work"), "--json"];
  const { code, out, err } = await run(["convert", ...words, ...options]);
  const warnings = err.split("\n").filter((line) => line !== "" && !line.includes(attestation.digest));
  expect({ code, warnings }).toEqual({ code: 0, warnings: [] });
  return JSON.parse(out);
}

async function read(repository: string, object: Descriptor) {
  const bytes = await (await open(repository)).manifest(object);
  return JSON.parse(Buffer.from(bytes).toString());
}

/** What a converted index has to be: all of the source but the attestation, each entry's image replaced. */
function expectedIndex(converted: readonly Descriptor[], mediaType: string) {
  const manifests = converted.map(({ mediaType, digest, size }, i) => {
    const { annotations, platform } = images[i];
    return { mediaType, digest, size, annotations, platform };
  });
  return { schemaVersion: 2, mediaType, manifests, annotations: { "com.example.of": "the index" } };
}

describe.each([
  ["Docker", [], MediaType.dockerManifest],
  ["OCI", ["--oci"], MediaType.ociManifest],
] as const)("an index, with manifests of %s", (_, words, manifestType) => {
  const from = () => ["-r", `oci:${input.directory}`, "-i", "latest", ...words];
  let target: string;
  let result: Descriptor;

  beforeAll(async () => {
    target = `oci:${join(folder, `out${words.length}`)}`;
    result = await convert([...from(), "--to", target]);
  });

  test("keeps order, platforms and annotations, and leaves attestations out", async () => {
    const singles: Descriptor[] = [];
    for (const { digest } of images) {
      const single = ["-r", `oci:${input.directory}`, "-g", digest, ...words];
      singles.push(await convert([...single, "--to", `oci:${join(folder, "single")}`]));
    }
    expect(singles.map(({ mediaType }) => mediaType)).toEqual(images.map(() => manifestType));
    expect(result.mediaType).toBe(MediaType.ociIndex);
    expect(await read(target, result)).toEqual(expectedIndex(singles, MediaType.ociIndex));
    expect(await verifyLayout(target.slice(4))).toEqual({ tags: { obd: result.digest }, unfinished: [] });
  });

  test("has for each platform its config and files", async () => {
    const { manifests } = await read(target, result);
    for (const [i, manifest] of manifests.entries()) {
      const { config, layers } = await read(target, manifest);
      const blob = await (await open(target)).blob(config);
      const diffIds = layers.map(({ digest }: Descriptor) => digest);
      expect(await new Response(blob).json()).toMatchObject({
        ...PLATFORMS[i],
        rootfs: { type: "layers", diff_ids: diffIds },
      });
      const disk = join(folder, "disk");
      expect(await run(["export", `${target}@${manifest.digest}`, disk])).toMatchObject({ code: 0, err: "" });
      expect(fsckComplaint(disk)).toBeNull();
      mounted(disk, (directory) => {
        expect(readFileSync(`${directory}/etc/arch`, "utf8")).toBe(`${NAMES[i]}\n`);
        expect(readFileSync(`${directory}/etc/os`, "utf8")).toBe("the same for all\n");
      });
      rmSync(disk);
    }
  });

  test("is opened by its tag as the image for this machine", async () => {
    const disk = join(folder, "disk");
    expect(await run(["export", `${target}:obd`, disk])).toMatchObject({ code: 0, err: "" });
    const name = process.arch === "x64" ? "amd64" : process.arch;
    mounted(disk, (directory) => expect(readFileSync(`${directory}/etc/arch`, "utf8")).toBe(`${name}\n`));
    rmSync(disk);
  });

  test("is the same, from wherever to wherever", async () => {
    const source = await open(`oci:${input.directory}`);
    for (const { host } of [new URL(embedded.url), docker]) {
      const repository = `${host}/multi/arch${words.length}`;
      expect(await convert([...from(), "--to", repository])).toEqual(result);
      expect(await (await open(repository)).resolve("obd")).toEqual(result);

      await copy(source, await source.resolve("latest"), await open(repository), "latest");
      expect(await convert(["-r", repository, "-i", "latest", ...words])).toEqual(result);
      const layout = `oci:${join(folder, "from-registry")}`;
      expect(await convert(["-r", repository, "-i", "latest", ...words, "--to", layout])).toEqual(result);
      const disk = join(folder, "disk");
      const cache = ["--plain", "--cache-dir", join(folder, "cache")];
      expect(await run(["export", `${repository}:obd`, disk, ...cache])).toMatchObject({ code: 0, err: "" });
      expect(fsckComplaint(disk)).toBeNull();
      rmSync(disk);
    }
    expect(readdirSync(join(folder, "work"))).toEqual([]);
  });
});

test("an index says what it leaves out", async () => {
  const words = ["convert", "-r", `oci:${input.directory}`, "-i", "latest", "-o", "obd", "--vsize", "1"];
  const target = ["--to", `oci:${join(folder, "warned")}`, "-d", join(folder, "work")];
  const { code, err } = await run([...words, ...target]);
  expect(code).toBe(0);
  expect(err).toContain(`attestation manifest ${attestation.digest} is left out`);
});

test("an entry for an unknown platform that is no attestation, and an index in an index, are kept", async () => {
  const unknown = {
    ...images[1],
    platform: { architecture: "unknown", os: "unknown" },
    annotations: undefined,
  };
  const inner = { ...input.index([images[0]]), platform: PLATFORMS[0], data: "e30=" };
  input.tag(input.index([unknown, inner]), "nested");
  const target = `oci:${join(folder, "nested")}`;
  const result = await convert(["-r", `oci:${input.directory}`, "-i", "nested", "--to", target, "--oci"]);
  const { manifests } = await read(target, result);
  expect(manifests).toEqual([
    expect.objectContaining({ mediaType: MediaType.ociManifest, platform: unknown.platform }),
    { ...manifests[1], mediaType: MediaType.ociIndex, platform: PLATFORMS[0], data: undefined },
  ]);
  expect((await read(target, manifests[1])).manifests).toMatchObject([{ platform: PLATFORMS[0] }]);
  expect(await verifyLayout(target.slice(4))).toMatchObject({ tags: { obd: result.digest } });
});

describe("a manifest list of Docker", () => {
  let target: string;
  const source = () => ["-r", `oci:${input.directory}`, "-i", "docker", "--to", target];

  beforeAll(() => {
    target = `oci:${join(folder, "docker")}`;
    input.tag(input.index(platformImages("docker"), {}, MediaType.dockerIndex), "docker");
  });

  test.each([
    [
      "stays one",
      [],
      MediaType.dockerIndex,
      MediaType.dockerManifest,
      MediaType.dockerConfig,
      MediaType.dockerLayer,
    ],
    [
      "becomes OCI's",
      ["--oci"],
      MediaType.ociIndex,
      MediaType.ociManifest,
      MediaType.ociConfig,
      MediaType.ociLayer,
    ],
  ])("%s", async (_, words, indexType, manifestType, configType, layerType) => {
    const result = await convert([...source(), ...words]);
    expect(result.mediaType).toBe(indexType);
    const index = await read(target, result);
    expect(index).toMatchObject({ schemaVersion: 2, mediaType: indexType });
    expect(index.manifests.map(({ platform }: Entry) => platform)).toEqual([...PLATFORMS]);
    for (const entry of index.manifests) {
      expect(entry.mediaType).toBe(manifestType);
      const { mediaType, config, layers } = await read(target, entry);
      expect({ mediaType, config: config.mediaType }).toEqual({
        mediaType: manifestType,
        config: configType,
      });
      expect(layers.map(({ mediaType }: Descriptor) => mediaType)).toEqual([layerType, layerType]);
    }
    // The source's family makes no difference to what is converted.
    const single = await convert([
      "-r",
      `oci:${input.directory}`,
      "-g",
      images[0].digest,
      ...words,
      "--to",
      target,
    ]);
    expect(index.manifests[0].digest).toBe(single.digest);
  });
});
