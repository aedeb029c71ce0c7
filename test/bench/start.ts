/**
 * From the command line to the first bytes of a file: `overlaybd mount` of a converted image of more than 500 MB from a
 * registry on this machine, with an empty cache, and reading one file of it. Medians of 5, and the share of the image's
 * bytes that were fetched. Targets: 0.3 s and 5 %.
 *
 *   bun test/bench/start.ts
 */
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { $ } from "bun";
import { buildImage, recipes } from "../fixtures/images.ts";
import { startOwnRegistry } from "../fixtures/registry.ts";
import { median } from "./median.ts";

const RUNS = 5;
/** A small file of the top layer; the path to it crosses symbolic links. */
const FILE = "usr/lib/go/VERSION";
const overlaybd = resolve(import.meta.dir, "../../dist/overlaybd");

interface Start {
  readonly mounted: number;
  readonly firstRead: number;
  readonly fetched: number;
  readonly imageSize: number;
}

async function start(reference: string, folder: string): Promise<Start> {
  const root = mkdtempSync(join(folder, "root-"));
  const since = performance.now();
  const elapsed = () => (performance.now() - since) / 1000;
  await $`${overlaybd} mount ${reference} ${root} --plain --cache-dir ${root}.cache`.quiet();
  try {
    const mounted = elapsed();
    readFileSync(join(root, FILE));
    const firstRead = elapsed();
    const { image } = await $`${overlaybd} umount ${root} --json`.json();
    return { mounted, firstRead, fetched: image.fetchedBytes, imageSize: image.imageBytes };
  } catch (error) {
    await $`${overlaybd} umount ${root}`.nothrow().quiet();
    throw error;
  }
}

const folder = mkdtempSync(join(tmpdir(), "overlaybd-start-"));
const image = await buildImage(recipes.large);
await $`cp -r ${image.layout} ${folder}/layout`;
const registry = await startOwnRegistry(join(folder, "layout"));
try {
  const repository = `${registry.host}/bench/large`;
  await $`${overlaybd} convert -r ${repository} -i latest -o lazy --oci --plain -d ${folder}/convert`.quiet();
  const starts: Start[] = [];
  for (let i = 0; i < RUNS; i++) starts.push(await start(`${repository}:lazy`, folder));
  const middle = (figure: (one: Start) => number) => median(starts.map(figure));
  const [fetched, imageSize] = [middle((one) => one.fetched), starts[0].imageSize];
  console.log(`mounted after           ${middle((one) => one.mounted).toFixed(3)} s`);
  console.log(`${FILE} read after ${middle((one) => one.firstRead).toFixed(3)} s`);
  const megabytes = (bytes: number) => `${(bytes / 1e6).toFixed(1)} MB`;
  console.log(
    `fetched                 ${megabytes(fetched)} of ${megabytes(imageSize)}: ${((100 * fetched) / imageSize).toFixed(2)} %`,
  );
} finally {
  await registry.stop();
  rmSync(folder, { recursive: true, force: true });
}
