/**
 * What a Merkle tree costs (`convert --verity`): bytes of every layer with and without it, and how fast the largest
 * layer is read through an empty cache from docker-registry on this machine, in order and at random, and again from
 * that cache by a new process's first look. With and without in turn, medians of 5.
 *
 *   bun test/bench/verity.ts
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { $ } from "bun";
import type { Blob } from "../../src/blob/blob.ts";
import { FileCache } from "../../src/blob/cache.ts";
import { VERITY_ANNOTATION } from "../../src/format/verity/descriptor.ts";
import { blobOrigin } from "../../src/image/remote.ts";
import { repositoryAccess } from "../../src/registry/access.ts";
import { type Descriptor, parseManifest } from "../../src/registry/descriptor.ts";
import { parseReference } from "../../src/registry/reference.ts";
import { buildImage, recipes } from "../fixtures/images.ts";
import { random } from "../fixtures/random.ts";
import { startDockerRegistry } from "../fixtures/registry.ts";
import { median } from "./median.ts";

const RUNS = 5;
const UNIT = 256 << 10;
const overlaybd = resolve(import.meta.dir, "../../dist/overlaybd");
const folder = mkdtempSync(join(tmpdir(), "overlaybd-verity-"));
const registry = await startDockerRegistry(folder);
const name = `${registry.host}/bench/large`;
const open = repositoryAccess({ plain: true });

async function layersOf(tag: string, more: readonly string[]): Promise<readonly Descriptor[]> {
  const { layout } = await buildImage(recipes.large);
  await $`${overlaybd} convert -r oci:${layout} -i latest --to ${name} -o ${tag} --oci --plain -d ${folder}/work ${more}`.quiet();
  const repository = await open(parseReference(name));
  return parseManifest(await repository.manifest(await repository.resolve(tag)), tag).layers;
}

/** Fetches `units` with 32 requests under way; megabytes a second. */
async function fetchAll(blob: Blob, units: readonly number[], length: number): Promise<number> {
  const start = performance.now();
  let next = 0;
  const work = async () => {
    while (next < units.length) {
      const offset = units[next++] * length;
      await blob.fetch(offset, Math.min(length, blob.size - offset));
    }
  };
  await Promise.all(Array.from({ length: 32 }, work));
  return (units.length * length) / 1000 / (performance.now() - start);
}

/** Megabytes a second: in order by 4 MiB; in order from the cache; a quarter of the layer at random by 256 KiB. */
async function measure({ digest, size, annotations }: Descriptor): Promise<number[]> {
  const origin = blobOrigin(await open(parseReference(name)), digest, size, annotations?.[VERITY_ANNOTATION]);
  const pieces = Array.from({ length: Math.floor(size / (16 * UNIT)) }, (_, i) => i);
  const units = Array.from({ length: Math.floor(size / UNIT) }, (_, i) => i);
  const next = random(5);
  const chosen = units.map((unit) => ({ unit, key: next() })).sort((a, b) => a.key - b.key);
  const some = chosen.slice(0, units.length / 4).map(({ unit }) => unit);
  const speeds: number[] = [];
  for (const [cache, wanted, length] of [
    ["ordered", pieces, 16 * UNIT],
    ["ordered", pieces, 16 * UNIT],
    ["random", some, UNIT],
  ] as const) {
    const blob = await new FileCache(join(folder, cache)).open(digest, origin);
    speeds.push(await fetchAll(blob, wanted, length));
    await blob.close();
  }
  for (const cache of ["ordered", "random"]) rmSync(join(folder, cache), { recursive: true });
  return speeds;
}

try {
  const [plain, sealed] = [await layersOf("plain", []), await layersOf("sealed", ["--verity"])];
  for (const [i, { size }] of plain.entries()) {
    const share = ((100 * (sealed[i].size - size)) / size).toFixed(2);
    console.log(`layer ${i}: ${size} bytes, with tree ${sealed[i].size}: ${share} % more`);
  }
  const largest = plain.indexOf(plain.reduce((a, b) => (a.size > b.size ? a : b)));
  const runs = { without: [] as number[][], with: [] as number[][] };
  const measureInto = async (all: number[][], layers: readonly Descriptor[]) => {
    all.push(await measure(layers[largest]));
  };
  for (let i = 0; i < RUNS; i++) {
    const turn = [() => measureInto(runs.without, plain), () => measureInto(runs.with, sealed)];
    for (const step of i % 2 === 0 ? turn : turn.reverse()) await step();
  }
  for (const [column, what] of ["cold, in order", "from the cache, first use", "cold, at random"].entries()) {
    const [without, withTree] = [runs.without, runs.with].map((all) => median(all.map((one) => one[column])));
    const ratio = (withTree / without).toFixed(2);
    console.log(
      `${what.padEnd(26)} ${without.toFixed(0)} MB/s, with tree ${withTree.toFixed(0)} MB/s: ${ratio}`,
    );
  }
} finally {
  await registry.stop();
  rmSync(folder, { recursive: true, force: true });
}
