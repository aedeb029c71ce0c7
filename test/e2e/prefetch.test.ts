/**
 * A start is recorded and repeated: a real program from a real image in docker-registry. That everything it needs was
 * fetched ahead is seen by the requests that reach the registry while it runs: none.
 */
import { afterAll, afterEach, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { $ } from "bun";
import { crc32c } from "../../src/native/codec.ts";
import { repositoryAccess } from "../../src/registry/access.ts";
import { encodeManifest, type Manifest, MediaType, parseManifest } from "../../src/registry/descriptor.ts";
import { digestOf } from "../../src/registry/digest.ts";
import { parseReference } from "../../src/registry/reference.ts";
import { canServeFuse } from "../device/support.ts";
import { buildImage, recipes } from "../fixtures/images.ts";
import { run } from "../fixtures/program.ts";
import { random } from "../fixtures/random.ts";
import {
  type FaultProxy,
  type RunningRegistry,
  startDockerRegistry,
  startFaultProxy,
} from "../fixtures/registry.ts";

setDefaultTimeout(60_000);

const PROGRAM = "import json, decimal, email.message; print(json.dumps([6 * 7]))";

interface Stats {
  readonly image: { readonly fetchedBytes: number; readonly requests: number };
  readonly device: { readonly misses: number; readonly errors: number };
}

let folder: string;
let registry: RunningRegistry;
let proxy: FaultProxy;
let reference: string;
let trace: string;
let recorded: Stats;
let mounted: string | undefined;

describe.skipIf(!canServeFuse)("a program of an image in a registry", () => {
  beforeAll(async () => {
    folder = mkdtempSync(join(tmpdir(), "overlaybd-prefetch-"));
    registry = await startDockerRegistry(folder);
    proxy = await startFaultProxy(`http://${registry.host}`);
    const image = await buildImage(recipes.python);
    const target = [
      "--to",
      `${registry.host}/images/python`,
      "--plain",
      "--vsize",
      "8",
      "-d",
      join(folder, "work"),
    ];
    const words = ["convert", "-r", `oci:${image.layout}`, "-i", "latest", "-o", "lazy", "--oci", ...target];
    expect((await run(words)).err).toBe("");
    reference = `${proxy.host}/images/python:lazy`;
    trace = join(folder, "trace");
    await mount(reference, "--record-trace", trace);
    expect(readFileSync(trace).length).toBe(0);
    await expectProgram();
    recorded = await unmount();
  });
  afterEach(async () => {
    if (mounted) await unmount();
  });
  afterAll(async () => {
    await proxy?.stop();
    await registry?.stop();
    rmSync(folder, { recursive: true, force: true });
  });

  test("has its reads recorded", () => {
    expect(existsSync(`${trace}.lock`)).toBe(false);
    expect(existsSync(`${trace}.ok`)).toBe(true);
    expect(readFileSync(trace).length).toBeGreaterThan(24 + 24 * 20);
  });

  test("runs from what its trace brought", async () => {
    await mount(reference, "--prefetch", trace);
    await prefetched();
    const before = proxy.seen.length;
    await expectProgram();
    expect(proxy.seen.length - before).toBe(0);
    const { image, device } = await unmount();
    expect(image.fetchedBytes).toBe(recorded.image.fetchedBytes);
    expect(image.requests).toBeLessThanOrEqual(recorded.image.requests);
    expect(device.misses).toBeLessThan(recorded.device.misses / 2);
    expect(device.errors).toBe(0);
  });

  test("runs from what a trace with garbage as padding brought, as upstream writes them", async () => {
    const garbled = join(folder, "garbled");
    writeFileSync(garbled, withGarbage(readFileSync(trace)));
    await mount(reference, "--prefetch", garbled);
    await prefetched();
    const before = proxy.seen.length;
    await expectProgram();
    expect(proxy.seen.length - before).toBe(0);
  });

  test("runs although its trace is worthless", async () => {
    const cut = join(folder, "cut");
    writeFileSync(cut, readFileSync(trace).subarray(0, 1000));
    await mount(reference, "--prefetch", cut);
    await expectProgram();
    expect(serverLog()).toContain("nothing is prefetched");
    expect((await unmount()).device.errors).toBe(0);
  });

  test("runs from what the image's acceleration layer brought", async () => {
    await pushAccelerated();
    await mount(`${proxy.host}/images/python:accelerated`);
    await prefetched();
    const before = proxy.seen.length;
    await expectProgram();
    expect(proxy.seen.length - before).toBe(0);
  });

  test("has listed files and directories brought, by an image config's recordTracePath", async () => {
    const list = join(folder, "list");
    writeFileSync(
      list,
      "/usr/bin/python3\n/usr/lib/python3.11/json/*\n/usr/lib/python3.11/email/\n/no/such/file\n",
    );
    const { layers } = (await readManifest()).manifest;
    const config = join(folder, "config.v1.json");
    const repoBlobUrl = `${proxy.origin}/v2/images/python/blobs`;
    writeFileSync(config, JSON.stringify({ repoBlobUrl, lowers: layers, recordTracePath: list }));
    const root = await mount(config);
    await prefetched();
    const before = proxy.seen.length;
    for (const path of ["usr/bin/python3", "usr/lib/python3.11/json", "usr/lib/python3.11/email"]) {
      expect((await $`find -L ${join(root, path)} -type f -exec cat {} + | wc -c`.text()).trim()).not.toBe(
        "0",
      );
    }
    // All content was there; the kernel may look at other metadata than finding the files needed.
    expect(proxy.seen.length - before).toBeLessThanOrEqual(2);
    expect(serverLog()).toContain("1 of 4 files to prefetch are not in the image");
  });
});

/** Mounts with an empty cache. */
async function mount(source: string, ...words: string[]): Promise<string> {
  const directory = mkdtempSync(join(folder, "mount-"));
  mounted = directory;
  const places = ["--cache-dir", `${directory}.cache`, "--run-dir", `${directory}.run`];
  // Under a test runner consola leaves out what is neither a warning nor an error.
  const env = { CONSOLA_LEVEL: "3" };
  const { code, err } = await run(["mount", source, directory, "--plain", ...places, ...words], { env });
  expect({ code, err }).toEqual({ code: 0, err: "" });
  return directory;
}

async function unmount(): Promise<Stats> {
  const directory = mounted as string;
  mounted = undefined;
  const { code, out, err } = await run(["umount", directory, "--run-dir", `${directory}.run`, "--json"]);
  expect({ code, err }).toEqual({ code: 0, err: "" });
  rmSync(`${directory}.cache`, { recursive: true });
  return JSON.parse(out);
}

/** The program, which runs with files mounted over the mount point and nothing else of this machine. */
async function expectProgram(): Promise<void> {
  expect(await $`chroot ${mounted as string} /usr/bin/python3 -c ${PROGRAM}`.text()).toBe("[42]\n");
}

function serverLog(): string {
  const records = `${mounted}.run`;
  return readdirSync(records)
    .map((name) => readFileSync(join(records, name, "log"), "utf8"))
    .join("");
}

async function prefetched(): Promise<void> {
  for (let i = 0; i < 600 && !serverLog().includes("prefetched"); i++) await Bun.sleep(50);
  expect(serverLog()).toContain("prefetched");
  expect(serverLog()).not.toContain("failed");
}

/** The same records with other padding, and the checksum over it. */
function withGarbage(sound: Buffer): Buffer {
  const bytes = Buffer.from(sound);
  const next = random(6);
  const fill = (from: number, to: number) => {
    for (let at = from; at < to; at++) bytes[at] = Math.floor(next() * 256);
  };
  fill(4, 8);
  fill(20, 24);
  for (let record = 24; record < bytes.length; record += 24) fill(record + 1, record + 4);
  bytes.writeUInt32LE(crc32c(bytes.subarray(24)), 16);
  return bytes;
}

function openRepository() {
  return repositoryAccess({ plain: true })(parseReference(`${registry.host}/images/python`));
}

async function readManifest() {
  const repository = await openRepository();
  const descriptor = await repository.resolve("lazy");
  return { repository, manifest: parseManifest(await repository.manifest(descriptor), "test") };
}

/** The image with an acceleration layer on top (ctr.md section 5.1, step 6), made by GNU tar. */
async function pushAccelerated(): Promise<void> {
  const content = join(folder, "acceleration");
  mkdirSync(content);
  await $`cp ${trace} ${content}/trace && chmod 0444 ${content}/trace`;
  const options = ["--format=ustar", "--mtime=@0", "--numeric-owner"];
  const archive = await $`tar --create ${options} --directory ${content} trace`.arrayBuffer();
  const bytes = new Uint8Array(archive);
  const digest = digestOf(bytes);
  const { repository, manifest } = await readManifest();
  const prefix = "containerd.io/snapshot/overlaybd";
  const annotations = { [`${prefix}/blob-digest`]: digest, [`${prefix}/acceleration-layer`]: "yes" };
  const layer = { mediaType: MediaType.ociLayer, digest, size: bytes.length, annotations };
  await repository.pushBlob(layer, new Blob([bytes]));
  const accelerated: Manifest = { ...manifest, layers: [...manifest.layers, layer] };
  await repository.pushManifest("accelerated", MediaType.ociManifest, encodeManifest(accelerated));
}
