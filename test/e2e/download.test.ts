/** Mounted images whose layers are downloaded in the background, and what becomes of damage under a mount. */
import { afterAll, afterEach, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { repositoryAccess } from "../../src/registry/access.ts";
import { type Descriptor, parseManifest } from "../../src/registry/descriptor.ts";
import { parseReference } from "../../src/registry/reference.ts";
import { canServeFuse } from "../device/support.ts";
import { gzipLayer, HandmadeLayout } from "../fixtures/layout.ts";
import { run } from "../fixtures/program.ts";
import {
  type Authority,
  type FaultProxy,
  freePort,
  makeAuthority,
  type RunningRegistry,
  startDockerRegistry,
  startFaultProxy,
  temporaryDirectory,
} from "../fixtures/registry.ts";
import { tar } from "../fixtures/tar.ts";
import { noise } from "../registry/images.ts";

setDefaultTimeout(90_000);

const FILE_BYTES = 3 << 20;
const BLOCK = 65536;
const contents = new Map([1, 2, 3, 4].map((seed) => [`f${seed}`, noise(FILE_BYTES, seed)]));
const DOWNLOAD = { enable: true, delay: 0, delayExtra: 1, maxMBps: 0, tryCnt: 1000, blockSize: BLOCK };

interface Stats {
  readonly image: {
    readonly damaged: number;
    readonly requests: number;
    readonly download?: {
      readonly layers: number;
      readonly completed: number;
      readonly fetchedBytes: number;
    };
  };
  readonly device: { readonly errors: number; readonly readBytes: number };
}

let folder: ReturnType<typeof temporaryDirectory>;
let authority: Authority;
let registry: RunningRegistry;
let port: number;
let layers: readonly Descriptor[];
let proxy: FaultProxy;
let plain: RunningRegistry;
const at = (...names: string[]): string => join(folder.path, ...names);

/** Mounts of the test that runs. */
let mounts: string[] = [];
let rounds = 0;

beforeAll(async () => {
  folder = temporaryDirectory();
  authority = await makeAuthority(folder.path);
  port = await freePort();
  registry = await startDockerRegistry(folder.path, { tls: authority, port });
  plain = await startDockerRegistry(folder.path);
  proxy = await startFaultProxy(`http://${plain.host}`);
  const input = new HandmadeLayout(at("in"));
  const layer = (names: string[]) =>
    gzipLayer(tar([{ path: "./" }, ...names.map((path) => ({ path, data: contents.get(path) }))]));
  input.tag(input.image({ layers: [layer(["f1", "f2"]), layer(["f3", "f4"])] }));
  const words = ["-r", `oci:${input.directory}`, "-i", "latest", "--to", `${registry.host}/app`, "-o", "obd"];
  const work = ["--vsize", "1", "-d", at("work"), "--root-ca", authority.authority];
  expect(await run(["convert", ...words, ...work])).toMatchObject({ code: 0, err: "" });
  const access = repositoryAccess({ tls: { authorities: [authority.authority] } });
  const repository = await access(parseReference(`${registry.host}/app`));
  layers = parseManifest(await repository.manifest(await repository.resolve("obd")), "obd").layers;
});
afterEach(async () => {
  for (const directory of mounts) await overlaybd("umount", directory);
  mounts = [];
});
afterAll(async () => {
  await Promise.all([registry?.stop(), proxy?.stop(), plain?.stop()]);
  folder?.remove();
});

async function overlaybd(...words: string[]): Promise<{ code: number; out: string; err: string }> {
  // As outside of tests, where the log has more than warnings.
  return run([...words, "--run-dir", at("run")], { env: { NODE_ENV: "" } });
}

interface Place {
  readonly config: string;
  readonly cache: string;
  readonly service: string;
  /** Directories of the layers. */
  readonly dirs: readonly string[];
}

/** An image config whose layers have directories of their own, with a cache of its own. */
function place(download: object, cacheType = "file", origin = `https://${registry.host}`): Place {
  const home = at(`round-${rounds++}`);
  const dirs = layers.map((_, i) => join(home, `layer-${i}`));
  for (const dir of dirs) mkdirSync(dir, { recursive: true });
  const [config, cache, service] = ["config.v1.json", "cache", "service.json"].map((name) =>
    join(home, name),
  );
  const lowers = layers.map(({ digest, size }, i) => ({ digest, size, dir: dirs[i] }));
  writeFileSync(config, JSON.stringify({ repoBlobUrl: `${origin}/v2/app/blobs`, lowers, download }));
  writeFileSync(service, JSON.stringify({ cacheConfig: { cacheType, cacheDir: cache, cacheSizeGB: 1 } }));
  return { config, cache, service, dirs };
}

/** Mounts it; what the command says besides comes back. */
async function mount({ config, service }: Place): Promise<{ directory: string; err: string }> {
  const directory = at(`mnt-${rounds++}`);
  mkdirSync(directory);
  const words = [config, directory, "--service_config_path", service, "--root-ca", authority.authority];
  const { code, err } = await overlaybd("mount", ...words);
  expect({ code, err: code === 0 ? "" : err }).toEqual({ code: 0, err: "" });
  mounts.push(directory);
  return { directory, err };
}

async function umount(directory: string): Promise<Stats> {
  const { code, out, err } = await overlaybd("umount", directory, "--json");
  expect({ code, err }).toEqual({ code: 0, err: "" });
  mounts = mounts.filter((mounted) => mounted !== directory);
  return JSON.parse(out);
}

/** Reads all files past the page cache, in processes of their own. */
async function expectRight(directory: string): Promise<void> {
  const names = [...contents.keys()];
  const read = names.map(async (name) => {
    const words = [`if=${join(directory, name)}`, "bs=256K", "iflag=direct", "status=none"];
    const dd = Bun.spawn(["dd", ...words], { stdout: "pipe", stderr: "pipe" });
    const bytes = await new Response(dd.stdout).bytes();
    return [await dd.exited, Buffer.compare(bytes, contents.get(name) as Uint8Array)];
  });
  expect(await Promise.all(read)).toEqual(names.map(() => [0, 0]));
}

const complete = ({ dirs }: Place): boolean => dirs.every((dir) => existsSync(join(dir, "overlaybd.commit")));

async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await Bun.sleep(10);
}

/** What the servers of all mounts have logged so far. */
function logs(): string {
  const folders = readdirSync(at("run")).map((name) => at("run", name, "log"));
  return folders.map((path) => (existsSync(path) ? readFileSync(path, "utf8") : "")).join("");
}

const imageBytes = (): number => layers.reduce((sum, { size }) => sum + size, 0);

describe.skipIf(!canServeFuse)("a mounted image", () => {
  test.each(["file", "download"])(
    "is completed from a registry over TLS while it is read, and needs no registry then (cache: %s)",
    async (cacheType) => {
      const image = place({ ...DOWNLOAD, maxMBps: 20 }, cacheType);
      const { directory } = await mount(image);
      while (!complete(image)) await expectRight(directory);
      await registry.stop();
      try {
        await expectRight(directory);
        for (const dir of image.dirs) {
          await until(() => readdirSync(dir).length === 1);
          expect(readdirSync(dir)).toEqual(["overlaybd.commit"]);
        }
        await until(() => logs().split("bytes are in").length === layers.length + 1);
        const stats = await umount(directory);
        expect(stats.image.download).toMatchObject({ layers: layers.length, completed: layers.length });
        expect(stats.device.errors).toBe(0);
        // The next mount finds the files.
        const again = await mount(image);
        await expectRight(again.directory);
        expect(await umount(again.directory)).toMatchObject({
          image: { requests: 0 },
          device: { errors: 0 },
        });
      } finally {
        registry = await startDockerRegistry(folder.path, { tls: authority, port });
      }
    },
  );

  test("ends with its download when it is unmounted, and goes on with that at the next mount", async () => {
    const image = place({ ...DOWNLOAD, maxMBps: 4 });
    const first = await mount(image);
    const partial = () =>
      image.dirs.some((dir) => statSync(join(dir, ".download"), { throwIfNoEntry: false })?.blocks);
    await until(partial);
    const stats = await umount(first.directory);
    expect(complete(image)).toBe(false);
    expect(partial()).toBe(true);

    writeFileSync(
      image.config,
      JSON.stringify({ ...JSON.parse(readFileSync(image.config, "utf8")), download: DOWNLOAD }),
    );
    const second = await mount(image);
    await until(() => logs().split("bytes are in").length === layers.length + 1);
    await expectRight(second.directory);
    const { download } = (await umount(second.directory)).image;
    expect(download?.completed).toBe(layers.length);
    const fetched = (stats.image.download?.fetchedBytes ?? 0) + (download?.fetchedBytes ?? 0);
    // What was under way when it was unmounted is fetched twice.
    expect(fetched).toBeLessThanOrEqual(imageBytes() + 8 * BLOCK);
  });

  test("never uses a download that has not the layer's digest, says so, and tries anew", async () => {
    let lies = true;
    // Only the download asks for blocks of this size.
    proxy.fault = ({ headers }) => {
      const [first, last] = (headers.range ?? "").replace("bytes=", "").split("-").map(Number);
      return lies && first > 0 && last - first + 1 === BLOCK ? { kind: "flip", offset: 99 } : undefined;
    };
    const image = place(DOWNLOAD, "file", proxy.origin);
    const { directory } = await mount(image);
    await until(() => logs().includes("all of it is given up"));
    expect(image.dirs.some((dir) => existsSync(join(dir, "overlaybd.commit")))).toBe(false);
    await expectRight(directory);
    lies = false;
    await until(() => complete(image));
    await expectRight(directory);
    expect((await umount(directory)).device.errors).toBe(0);
    proxy.fault = () => undefined;
  });

  test("is downloaded once by two servers, both of which use it", async () => {
    const image = place({ ...DOWNLOAD, maxMBps: 20 });
    const [one, other] = [await mount(image), await mount(image)];
    await until(() => logs().split("bytes are in").length === 2 * layers.length + 1);
    await Promise.all([expectRight(one.directory), expectRight(other.directory)]);
    const stats = [await umount(one.directory), await umount(other.directory)];
    const downloads = stats.map(({ image: { download } }) => download);
    expect(downloads.map((download) => download?.completed)).toEqual([layers.length, layers.length]);
    expect(downloads.reduce((sum, download) => sum + (download?.fetchedBytes ?? 0), 0)).toBeLessThanOrEqual(
      imageBytes(),
    );
  });

  test("heals when what was kept of it is changed, cut short, or forgotten", async () => {
    const image = place({ enable: false });
    const { directory } = await mount(image);
    await expectRight(directory);
    const files = readdirSync(image.cache).filter((name) => name.startsWith("sha256:"));
    const [media, maps] = [files.filter((f) => !f.endsWith(".map")), files.filter((f) => f.endsWith(".map"))];
    expect([media.length, maps.length]).toEqual([layers.length, layers.length]);
    const paths = (names: string[]) => names.map((name) => join(image.cache, name));
    for (const damage of [
      () => {
        for (const path of paths(media)) {
          const { size } = statSync(path);
          writeFileSync(path, readFileSync(path).fill(0x5a, size / 4, size / 2), { flag: "r+" });
        }
      },
      () => {
        for (const path of paths(media)) truncateSync(path, 100_000);
      },
      () => {
        for (const path of paths(maps)) writeFileSync(path, readFileSync(path).fill(0xff), { flag: "r+" });
      },
      () => {
        for (const path of paths(files)) rmSync(path);
      },
    ]) {
      damage();
      await expectRight(directory);
    }
    const stats = await umount(directory);
    expect(stats.device.errors).toBe(0);
    expect(stats.image.damaged).toBeGreaterThan(10);
  });

  test("is served by the file cache where the service config wants ocf, with a notice", async () => {
    const image = place({ enable: false }, "ocf");
    const { directory, err } = await mount(image);
    expect(err).toContain(`cacheType "ocf" is not offered`);
    await expectRight(directory);
    expect(readdirSync(image.cache).filter((name) => name.endsWith(".map")).length).toBe(layers.length);
    await umount(directory);
  });
});
