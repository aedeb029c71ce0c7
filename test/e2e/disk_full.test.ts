/** Disks that are full: what cannot be written is said, and leaves nothing; what only a cache cannot keep is read all the same. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type RegistryServer, serveRegistry } from "../../src/registry/server.ts";
import { canServeFuse } from "../device/support.ts";
import { gzipLayer, HandmadeLayout } from "../fixtures/layout.ts";
import { fsckComplaint, mounted } from "../fixtures/loop.ts";
import { run } from "../fixtures/program.ts";
import { canMount, growDisk, onSmallDisk } from "../fixtures/small_disk.ts";
import { tar } from "../fixtures/tar.ts";
import { noise } from "../registry/images.ts";
import { verifyLayout } from "./layout_state.ts";

setDefaultTimeout(120_000);

/** What a tmpfs counts in. */
const PAGE = 4096;
const MEBIBYTE = 2 ** 20;

/** 2 MiB each: what comes of them has 2.2 MiB. */
const SEEDS = [1, 2, 3];
const layers = SEEDS.map((seed) =>
  gzipLayer(tar([{ path: "./" }, { path: `f${seed}`, data: noise(2 * MEBIBYTE, seed) }])),
);

let folder: string;
let input: string;
/** Digest and size of the result of an undisturbed conversion. */
let digest: string;
let needed = 0;

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), "overlaybd-full-"));
  input = join(folder, "in");
  const layout = new HandmadeLayout(input);
  layout.tag(layout.image({ layers }));
  const undisturbed = join(folder, "undisturbed");
  const { code, out } = await convert(`oci:${input}`, `oci:${undisturbed}`, join(folder, "undisturbed-work"));
  expect(code).toBe(0);
  digest = JSON.parse(out).digest;
  for (const name of readdirSync(undisturbed, { recursive: true, encoding: "utf8" })) {
    const stat = statSync(join(undisturbed, name));
    if (stat.isFile()) needed += Math.ceil(stat.size / PAGE) * PAGE;
  }
});
afterAll(() => rmSync(folder, { recursive: true }));

function convert(from: string, to: string, work: string) {
  const words = ["convert", "-r", from, "-i", "latest", "--to", to, "-o", "obd", "--vsize", "1", "--plain"];
  return run([...words, "-d", work, "--json"]);
}

describe.skipIf(!canMount)("convert", () => {
  /** Converts from a registry with one of the directories on a disk that is too small, and once more with enough space. */
  async function expectRecovery(small: "work" | "out", size: number): Promise<void> {
    const [work, target] = [join(folder, "work"), join(folder, "out")];
    const full = join(folder, small);
    const source = await serveRegistry({ directory: input, readOnly: true });
    const from = `${new URL(source.url).host}/some/image`;
    try {
      await onSmallDisk(full, size, async () => {
        const { code, out, err } = await convert(from, `oci:${target}`, work);
        expect({ code, out }).toEqual({ code: 1, out: "" });
        expect(err).toMatch(/^overlaybd convert: .*no space left.*\n$/);
        expect(err).toContain(full);
        expect(await verifyLayout(target)).toEqual({ tags: {}, unfinished: [] });
        expect(existsSync(work) ? readdirSync(work) : []).toEqual([]);

        growDisk(full, 64 * MEBIBYTE);
        const again = await convert(from, `oci:${target}`, work);
        expect(again).toMatchObject({ code: 0, err: "" });
        expect(JSON.parse(again.out).digest).toBe(digest);
        expect(await verifyLayout(target)).toEqual({ tags: { obd: digest }, unfinished: [] });
        expect(existsSync(work) ? readdirSync(work) : []).toEqual([]);
      });
    } finally {
      await source.stop();
      for (const path of [work, target]) rmSync(path, { recursive: true, force: true });
    }
  }
  test("the registry's disk", async () => {
    const full = join(folder, "registry");
    await onSmallDisk(full, 768 * PAGE, async () => {
      const target = await serveRegistry({ directory: full });
      try {
        const words = [
          `oci:${input}`,
          `${new URL(target.url).host}/some/image`,
          join(folder, "work"),
        ] as const;
        const { code, out, err } = await convert(...words);
        expect({ code, out }).toEqual({ code: 1, out: "" });
        expect(err).toMatch(/^overlaybd convert: .*no space left.*\n$/);
        expect(await verifyLayout(full)).toEqual({ tags: {}, unfinished: [] });
        growDisk(full, 64 * MEBIBYTE);
        expect(await convert(...words)).toMatchObject({ code: 0, err: "" });
      } finally {
        await target.stop();
        rmSync(join(folder, "work"), { recursive: true });
      }
      expect(await verifyLayout(full)).toEqual({ tags: { "some/image:obd": digest }, unfinished: [] });
    });
  });

  const sizes = [1, 16, 256, 768, 1280, 1792].map((pages) => pages * PAGE);
  test.each(sizes)("work directory with %d bytes", (size) => expectRecovery("work", size));
  test.each(sizes.slice(0, -1))("target directory with %d bytes", (size) => expectRecovery("out", size));
  // What is tagged takes one page less than tagging it, which comes after the manifest, the config and the last layer.
  test.each([0, 1, 2, 3])("target directory with room for all but %d pages and the tag", (pages) =>
    expectRecovery("out", needed - pages * PAGE),
  );
});

describe.skipIf(!canMount)("export and mount", () => {
  let layout: string;
  let registry: RegistryServer;
  let reference: string;

  beforeAll(async () => {
    layout = join(folder, "undisturbed");
    registry = await serveRegistry({ directory: layout, readOnly: true });
    reference = `${new URL(registry.url).host}/some/image:obd`;
  });
  afterAll(() => registry.stop());

  function expectFiles(directory: string): void {
    for (const seed of SEEDS)
      expect(Buffer.compare(readFileSync(`${directory}/f${seed}`), noise(2 * MEBIBYTE, seed))).toBe(0);
  }

  /** Exports through a cache, and expects the right bytes. Returns how many came from the registry. */
  async function exportThrough(cache: string): Promise<number> {
    const before = registry.stats.blobBytes;
    const disk = join(folder, "disk");
    const result = await run(["export", reference, disk, "--plain", "--cache-dir", cache]);
    expect(result).toMatchObject({ code: 0, err: "" });
    expect(fsckComplaint(disk)).toBeNull();
    mounted(disk, expectFiles);
    rmSync(disk);
    return registry.stats.blobBytes - before;
  }

  test.each([1, 16, 256])("a cache directory of %d pages costs fetching again", async (pages) => {
    const cache = join(folder, "cache");
    await onSmallDisk(cache, pages * PAGE, async () => {
      const whole = await exportThrough(cache);
      expect(whole).toBeGreaterThan(needed / 2);
      expect(await exportThrough(cache)).toBeGreaterThan(whole / 2);
      growDisk(cache, 64 * MEBIBYTE);
      expect(await exportThrough(cache)).toBeGreaterThan(whole / 2);
      expect(await exportThrough(cache)).toBe(0);
    });
  });

  test.skipIf(!canServeFuse)(
    "a mount reads right while its cache is full, and when there is space again",
    async () => {
      const [cache, directory, records] = [join(folder, "cache"), join(folder, "mnt"), join(folder, "run")];
      mkdirSync(directory);
      const look = async () => {
        for (const seed of SEEDS) {
          // In a process of its own: the registry that it waits for is in this one.
          const content = Bun.spawn(["dd", `if=${directory}/f${seed}`, "bs=1M", "iflag=direct"], {
            stderr: "ignore",
          });
          const bytes = new Uint8Array(await new Response(content.stdout).arrayBuffer());
          expect(Buffer.compare(bytes, noise(2 * MEBIBYTE, seed))).toBe(0);
        }
      };
      await onSmallDisk(cache, 256 * PAGE, async () => {
        const words = [reference, directory, "--plain", "--cache-dir", cache, "--run-dir", records];
        expect(await run(["mount", ...words])).toMatchObject({ code: 0, err: "" });
        try {
          await look();
          await look();
          growDisk(cache, 64 * MEBIBYTE);
          await look();
        } finally {
          const { code, out, err } = await run(["umount", directory, "--run-dir", records, "--json"]);
          expect({ code, err }).toEqual({ code: 0, err: "" });
          expect(JSON.parse(out).device.errors).toBe(0);
        }
      });
    },
  );

  test("an exported disk that does not fit is an error, and nothing is left of it", async () => {
    const full = join(folder, "small");
    await onSmallDisk(full, 256 * PAGE, async () => {
      const { code, out, err } = await run(["export", `oci:${layout}:obd`, join(full, "disk")]);
      expect({ code, out }).toEqual({ code: 1, out: "" });
      expect(err).toMatch(/^overlaybd export: .*\/small\/disk.*no space left.*\n$/);
      expect(readdirSync(full)).toEqual([]);
    });
  });
});
