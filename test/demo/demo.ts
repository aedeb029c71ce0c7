/**
 * The main job, step by step with the commands a user would type: convert a real image, serve it, start a program in
 * it before it is downloaded, and compare with pulling and unpacking it first.
 */
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { $ } from "bun";
import { buildImage, recipes } from "../fixtures/images.ts";
import { type RunningRegistry, startOwnRegistry } from "../fixtures/registry.ts";

const overlaybd = resolve(import.meta.dir, "../../dist/overlaybd");
const PROGRAM = "import sys, json; print('Python', sys.version.split()[0], 'runs from the image')";

const mib = (bytes: number) => `${(bytes / 2 ** 20).toFixed(1)} MiB`;
const seconds = (since: number) => (performance.now() - since) / 1000;

if (process.getuid?.() !== 0) {
  console.error("the demo mounts a file system, which needs root");
  process.exit(1);
}
console.log("making an image of Debian packages (Python with numpy and scipy) …");
const image = await buildImage(recipes.science);
const work = mkdtempSync(join(tmpdir(), "overlaybd-demo-"));
let registry: RunningRegistry | undefined;
try {
  await $`cp -r ${image.layout} ${work}/layout`;
  registry = await startOwnRegistry(join(work, "layout"));
  const repository = `${registry.host}/demo/science`;

  const converting = performance.now();
  await $`${overlaybd} convert -r ${repository} -i latest -o lazy --oci --plain -d ${work}/convert`;
  console.log(`converted and pushed in ${seconds(converting).toFixed(1)} s\n`);

  const lazy = await startLazily(`${repository}:lazy`);
  const full = await startUnpacked(registry.host);
  const share = ((100 * lazy.fetched) / lazy.imageSize).toFixed(1);
  console.log(`
                    bytes fetched   first output after
  lazily        ${mib(lazy.fetched).padStart(17)}   ${lazy.seconds.toFixed(2)} s
  pull + unpack ${mib(full.fetched).padStart(17)}   ${full.seconds.toFixed(2)} s

  ${mib(lazy.fetched)} of the converted image's ${mib(lazy.imageSize)} were fetched: ${share} %`);
} finally {
  await registry?.stop();
  rmSync(work, { recursive: true, force: true });
}

async function startLazily(reference: string) {
  const root = join(work, "lazy");
  mkdirSync(root);
  const start = performance.now();
  await $`${overlaybd} mount ${reference} ${root} --plain --cache-dir ${work}/cache`.quiet();
  try {
    process.stdout.write(await $`chroot ${root} /usr/bin/python3 -c ${PROGRAM}`.text());
    const elapsed = seconds(start);
    const stats = await $`${overlaybd} umount ${root} --json`.json();
    return { seconds: elapsed, fetched: stats.image.fetchedBytes, imageSize: stats.image.imageBytes };
  } catch (error) {
    await $`${overlaybd} umount ${root}`.nothrow().quiet();
    throw error;
  }
}

/** What a runtime does without lazy loading: all layers down, unpacked in order. */
async function startUnpacked(host: string) {
  const root = join(work, "full");
  mkdirSync(root);
  const start = performance.now();
  for (const layer of image.layers) {
    const digest = `sha256:${layer.split("/").at(-1)}`;
    const url = `http://${host}/v2/demo/science/blobs/${digest}`;
    await $`curl -sSf ${url} | tar -xz --numeric-owner --xattrs --keep-directory-symlink -C ${root}`.quiet();
  }
  process.stdout.write(await $`chroot ${root} /usr/bin/python3 -c ${PROGRAM}`.text());
  return { seconds: seconds(start), fetched: image.compressedSize };
}
