/** Readers of an image in a registry that are killed (SIGKILL) while they fill the cache: whoever uses it next reads right. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type RegistryServer, serveRegistry } from "../../src/registry/server.ts";
import { canServeFuse } from "../device/support.ts";
import { gzipLayer, HandmadeLayout } from "../fixtures/layout.ts";
import { fsckComplaint, mounted } from "../fixtures/loop.ts";
import { run, start } from "../fixtures/program.ts";
import { tar } from "../fixtures/tar.ts";
import { noise } from "../registry/images.ts";

setDefaultTimeout(60_000);

const KILLS = 8;
const FILE_BYTES = 3 << 20;
const SEEDS = [1, 2, 3, 4, 5, 6];
const contents = new Map(SEEDS.map((seed) => [seed, noise(FILE_BYTES, seed)]));

let folder: string;
let cache: string;
let registry: RegistryServer;
let reference: string;

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), "overlaybd-reader-"));
  cache = join(folder, "cache");
  const input = new HandmadeLayout(join(folder, "in"));
  const layer = (seeds: number[]) =>
    gzipLayer(
      tar([{ path: "./" }, ...seeds.map((seed) => ({ path: `f${seed}`, data: contents.get(seed) }))]),
    );
  input.tag(input.image({ layers: [layer(SEEDS.slice(0, 3)), layer(SEEDS.slice(3))] }));
  const output = join(folder, "out");
  const words = ["-r", `oci:${input.directory}`, "-i", "latest", "--to", `oci:${output}`, "-o", "obd"];
  const work = ["--vsize", "1", "-d", join(folder, "work")];
  expect(await run(["convert", ...words, ...work])).toMatchObject({ code: 0, err: "" });
  registry = await serveRegistry({ directory: output, readOnly: true });
  reference = `${new URL(registry.url).host}/some/image:obd`;
});
afterAll(async () => {
  await registry.stop();
  rmSync(folder, { recursive: true });
});

/** Bytes of the disk that the cache takes. */
function cachedBytes(): number {
  if (!existsSync(cache)) return 0;
  const blocks = readdirSync(cache).map(
    (name) => statSync(join(cache, name), { throwIfNoEntry: false })?.blocks ?? 0,
  );
  return 512 * blocks.reduce((sum, count) => sum + count, 0);
}

/** Waits until the cache takes `bytes`, or the promise is settled. */
async function cacheTakes(bytes: number, end: Promise<unknown>): Promise<void> {
  let ended = false;
  const stop = () => {
    ended = true;
  };
  end.then(stop, stop);
  while (!ended && cachedBytes() < bytes) await Bun.sleep(0);
}

const exportWords = (disk: string) => ["export", reference, disk, "--plain", "--cache-dir", cache];

/** Exports the image through the cache and compares all of it. Returns how many bytes had to be fetched. */
async function expectRightBytes(): Promise<number> {
  const before = registry.stats.blobBytes;
  const disk = join(folder, "disk");
  expect(await run(exportWords(disk))).toMatchObject({ code: 0, err: "" });
  expect(fsckComplaint(disk)).toBeNull();
  mounted(disk, (directory) => {
    for (const [seed, content] of contents)
      expect(Buffer.compare(readFileSync(`${directory}/f${seed}`), content)).toBe(0);
  });
  rmSync(disk);
  return registry.stats.blobBytes - before;
}

test("export", async () => {
  const whole = await expectRightBytes();
  expect(await expectRightBytes()).toBe(0);
  let reused = 0;
  let kills = 0;
  for (let round = 0; kills < KILLS; round++) {
    rmSync(cache, { recursive: true });
    const killed = start(exportWords(join(folder, "killed")));
    await cacheTakes((whole * (round % KILLS)) / KILLS, killed.exited);
    killed.kill("SIGKILL");
    if ((await killed.exited) === 0) continue;
    kills++;
    const fetched = await expectRightBytes();
    expect(fetched).toBeLessThanOrEqual(whole);
    if (fetched < whole) reused++;
    expect(await expectRightBytes()).toBe(0);
  }
  expect(reused).toBeGreaterThan(0);
});

describe.skipIf(!canServeFuse)("mount", () => {
  let directory: string;
  let records: string;

  beforeAll(() => {
    [directory, records] = [join(folder, "mnt"), join(folder, "run")];
    mkdirSync(directory);
  });

  async function mount(): Promise<{ pid: number }> {
    const words = [reference, directory, "--plain", "--cache-dir", cache, "--run-dir", records, "--json"];
    const { code, out, err } = await run(["mount", ...words]);
    expect({ code, err }).toEqual({ code: 0, err: "" });
    return JSON.parse(out);
  }

  async function unmount(): Promise<void> {
    const { code, err } = await run(["umount", directory, "--run-dir", records]);
    expect({ code, err }).toEqual({ code: 0, err: "" });
  }

  /** Reads all files, in a process of its own because the registry is in this one. */
  function readAll(): Bun.Subprocess<"ignore", "pipe", "ignore"> {
    const files = SEEDS.map((seed) => `${directory}/f${seed}`);
    return Bun.spawn(["cat", ...files], { stdin: "ignore", stdout: "pipe", stderr: "ignore" });
  }

  test("fails its readers, and the next one's read right", async () => {
    const all = Buffer.concat([...contents.values()]);
    for (let files = 0; files < SEEDS.length; files++) {
      rmSync(cache, { recursive: true, force: true });
      const { pid } = await mount();
      const reader = readAll();
      const read = new Response(reader.stdout).bytes();
      await cacheTakes(files * FILE_BYTES, reader.exited);
      process.kill(pid, "SIGKILL");
      const bytes = await read;
      expect(Buffer.compare(bytes, all.subarray(0, bytes.length))).toBe(0);
      await reader.exited;
      await unmount();

      await mount();
      try {
        const again = await new Response(readAll().stdout).bytes();
        expect(Buffer.compare(again, all)).toBe(0);
      } finally {
        await unmount();
      }
    }
  });
});
