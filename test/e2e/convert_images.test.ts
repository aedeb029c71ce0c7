/**
 * The main job on real images: from a registry that wants TLS and a password to the same registry, mounted from it before
 * it is downloaded, and equal to what unpacking all layers gives.
 */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { repositoryAccess } from "../../src/registry/access.ts";
import { fixedCredentials } from "../../src/registry/credentials/source.ts";
import { parseManifest } from "../../src/registry/descriptor.ts";
import { parseReference } from "../../src/registry/reference.ts";
import type { Repository } from "../../src/registry/repository.ts";
import { canServeFuse } from "../device/support.ts";
import { buildImage, type FixtureImage, recipes } from "../fixtures/images.ts";
import { fsckComplaint } from "../fixtures/loop.ts";
import { EXECUTABLE, MEMORY_LIMIT, type RunOptions, type RunResult, run } from "../fixtures/program.ts";
import {
  type Authority,
  makeAuthority,
  type RunningRegistry,
  startDockerRegistry,
} from "../fixtures/registry.ts";
import { unpackLayers } from "../fixtures/unpack.ts";
import { walk } from "../fixtures/walk.ts";

setDefaultTimeout(120_000);

const [USER, PASSWORD] = ["converter", "secret:with colon"];

/** What is run from each image, and what it says. */
const IMAGES = [
  ["python", ["/usr/bin/python3", "-c", "import json, hashlib; print(json.dumps([6 * 7]))"], "[42]"],
  ["redis", ["/usr/bin/redis-server", "--version"], "Redis server v="],
  ["nginx", ["/usr/sbin/nginx", "-V"], "nginx version:"],
] as const;

let folder: string;
let authority: Authority;
let registry: RunningRegistry;
let work: string;

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), "overlaybd-convert-"));
  work = join(folder, "work");
  authority = await makeAuthority(folder);
  registry = await startDockerRegistry(folder, { tls: authority, users: { [USER]: PASSWORD } });
  const auths = { [registry.host]: { auth: btoa(`${USER}:${PASSWORD}`) } };
  writeFileSync(join(folder, "config.json"), JSON.stringify({ auths }));
});
afterAll(async () => {
  await registry?.stop();
  rmSync(folder, { recursive: true, force: true });
});

/** Runs the program with the certificate authority, and with Docker's credentials for the registry. */
function overlaybd(words: readonly string[], options: RunOptions = {}): Promise<RunResult> {
  const env = { DOCKER_CONFIG: folder };
  return run([...words, "--root-ca", authority.authority], { env, ...options });
}

/** Expects success within the bound on memory; returns what it printed. */
async function succeed(words: readonly string[], options: RunOptions = {}): Promise<string> {
  const { code, out, err, peakMemory } = await overlaybd(words, options);
  expect({ code, err }).toEqual({ code: 0, err: "" });
  expect(peakMemory).toBeLessThan(MEMORY_LIMIT);
  return out;
}

/** Converts to an image for an 8 GiB disk; returns the digest of its manifest. */
async function convert(words: readonly string[], options: RunOptions = {}): Promise<string> {
  const out = await succeed(["convert", ...words, "--vsize", "8", "-d", work, "--json"], options);
  return JSON.parse(out).digest;
}

function open(reference: string): Promise<Repository> {
  const credentials = fixedCredentials(`${USER}:${PASSWORD}`);
  return repositoryAccess({ tls: { authorities: [authority.authority] }, credentials })(
    parseReference(reference),
  );
}

/** Copies an image as it is. */
async function push(image: FixtureImage, repository: string): Promise<void> {
  const [source, target] = [await open(`oci:${image.layout}`), await open(repository)];
  const descriptor = await source.resolve();
  const bytes = await source.manifest(descriptor);
  const { config, layers } = parseManifest(bytes, repository);
  for (const blob of [config, ...layers]) await target.pushBlob(blob, () => source.blob(blob));
  await target.pushManifest("latest", descriptor.mediaType, bytes);
}

interface MountStats {
  readonly image: { readonly fetchedBytes: number; readonly imageBytes: number };
  readonly device: { readonly errors: number };
}

/** Runs `look` with an image mounted, a cache of its own behind it; returns the statistics of the mount. */
async function whileMounted(reference: string, look: (directory: string) => void): Promise<MountStats> {
  const directory = mkdtempSync(join(folder, "mount-"));
  const runDirectory = `${directory}.run`;
  await succeed([
    "mount",
    reference,
    directory,
    "--cache-dir",
    `${directory}.cache`,
    "--run-dir",
    runDirectory,
  ]);
  const unmount = () => run(["umount", directory, "--run-dir", runDirectory, "--json"]);
  try {
    look(directory);
  } catch (error) {
    await unmount();
    throw error;
  }
  const { out } = await unmount();
  rmSync(`${directory}.cache`, { recursive: true });
  return JSON.parse(out);
}

describe.skipIf(!canServeFuse || !EXECUTABLE).each(IMAGES)("%s", (name, command, says) => {
  let image: FixtureImage;
  let repository: string;
  let digest: string;

  beforeAll(async () => {
    image = await buildImage(recipes[name]);
    repository = `${registry.host}/images/${name}`;
    await push(image, repository);
    const words = ["-r", repository, "-i", "latest", "-o", "obd", "-u", `${USER}:${PASSWORD}`];
    digest = await convert(words, { program: EXECUTABLE ?? [], env: {} });
  });

  test("runs from the registry before it is downloaded", async () => {
    const stats = await whileMounted(`${repository}:obd`, (directory) => {
      const { exitCode, stdout, stderr } = Bun.spawnSync(["chroot", directory, ...command], {
        stderr: "pipe",
      });
      expect(`${stdout}${stderr}`).toContain(says);
      expect(exitCode).toBe(0);
    });
    expect(stats.device.errors).toBe(0);
    expect(stats.image.fetchedBytes).toBeGreaterThan(0);
    expect(stats.image.fetchedBytes).toBeLessThan(stats.image.imageBytes / 2);
  });

  test("equals the unpacked layers, and e2fsck finds nothing wrong", async () => {
    const unpacked = join(folder, `${name}.unpacked`);
    mkdirSync(unpacked);
    await unpackLayers(image.layers, unpacked);
    const stats = await whileMounted(`${repository}:obd`, (directory) => {
      const [expected, actual] = [walk(unpacked), walk(directory)];
      expect(actual.filter(({ path }) => path === "lost+found")).toHaveLength(1);
      expect(actual.filter(({ path }) => path !== "lost+found")).toEqual(expected);
      const kinds = new Set(expected.map(({ type }) => type));
      expect([...kinds].sort()).toEqual(["block", "char", "dir", "fifo", "file", "symlink"]);
      expect(expected.some((entry) => entry.xattrs) && expected.some((entry) => entry.hardlink_of)).toBe(
        true,
      );
    });
    expect(stats.device.errors).toBe(0);
    rmSync(unpacked, { recursive: true });

    const disk = join(folder, `${name}.disk`);
    await succeed(["export", `${repository}:obd`, disk, "--cache-dir", `${disk}.cache`]);
    expect(fsckComplaint(disk)).toBeNull();
    for (const path of [disk, `${disk}.cache`]) rmSync(path, { recursive: true });
  });

  test("converted again, from wherever to wherever, has the same digest", async () => {
    expect(await convert(["-r", repository, "-i", "latest", "-o", "again"])).toBe(digest);
    const layout = `oci:${join(folder, `${name}.layout`)}`;
    expect(await convert(["-r", `oci:${image.layout}`, "-i", "latest", "-o", "obd", "--to", layout])).toBe(
      digest,
    );
    const elsewhere = `${registry.host}/elsewhere/${name}`;
    const one = ["taskset", "-c", "0", ...(EXECUTABLE ?? [])];
    const words = ["-r", `oci:${image.layout}`, "-i", "latest", "-o", "obd", "--to", elsewhere];
    expect(await convert(words, { program: one })).toBe(digest);
    expect((await (await open(elsewhere)).resolve("obd")).digest).toBe(digest);
    expect(await convert(["-r", repository, "-i", "latest", "-o", "one-more", "--to", layout])).toBe(digest);
    rmSync(layout.slice("oci:".length), { recursive: true });
  });
});
