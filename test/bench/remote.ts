/**
 * Reading a cold layer of 1 GB from a registry on this machine (Debian's docker-registry), medians of 5:
 * - from its first byte to its last through cache and virtual disk (in this process, and as a block device), against `curl` of the same blob to /dev/null and to a
 *   file, since the cache keeps what is read. Target: 0.8.
 * - 256 KiB at random places, 32 outstanding, through the cache, against a bare loop of `fetch`. Target: 0.8.
 *
 *   bun test/bench/remote.ts [runs]
 */
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { $ } from "bun";
import { FileCache } from "../../src/blob/cache.ts";
import { FuseTransport } from "../../src/device/fuse/transport.ts";
import { IoWorker } from "../../src/device/io_worker.ts";
import { parseImageConfig } from "../../src/image/config.ts";
import { VirtualDisk } from "../../src/image/disk.ts";
import { type OpenImage, openImage } from "../../src/image/open.ts";
import { readDisk } from "../../src/image/read.ts";
import { blobOrigin, repositoryAt } from "../../src/image/remote.ts";
import type { DiskTables } from "../../src/image/tables.ts";
import { repositoryAccess } from "../../src/registry/access.ts";
import { parseReference } from "../../src/registry/reference.ts";
import { writeLz4Layer } from "../fixtures/lz4_layer.ts";
import { random } from "../fixtures/random.ts";
import { startDockerRegistry } from "../fixtures/registry.ts";
import { median } from "./median.ts";

const RUNS = Number(process.argv[2] ?? 5);
const TOTAL = 1000 << 20;
const PIECE = 1 << 20;
const UNIT = 256 << 10;
const RANDOM_READS = 1024;
const OUTSTANDING = 32;

interface Layer {
  readonly path: string;
  readonly digest: string;
  readonly size: number;
}

/** LZ4 blocks of bytes that hardly compress, so that blob and disk are about equally long. */
async function makeLayer(path: string): Promise<Layer> {
  const piece = new Uint8Array(PIECE);
  writeLz4Layer(path, TOTAL, () => {
    for (let i = 0; i < PIECE; i += 65536) crypto.getRandomValues(piece.subarray(i, i + 65536));
    return piece;
  });
  const digest = (await $`sha256sum ${path}`.text()).slice(0, 64);
  return { path, digest: `sha256:${digest}`, size: Bun.file(path).size };
}

/** Bytes a second of `work`, which transfers `bytes`. */
async function rate(bytes: number, work: () => Promise<unknown>): Promise<number> {
  const started = performance.now();
  await work();
  return (bytes * 1000) / (performance.now() - started);
}

async function readWhole(image: OpenImage): Promise<void> {
  const disk = new VirtualDisk(image.tables);
  const bytes = new Uint8Array(PIECE);
  for (let at = 0; at < disk.size; at += PIECE) await readDisk(image, disk, at, bytes);
  disk.close();
}

async function atRandom(size: number, read: (offset: number) => Promise<unknown>): Promise<void> {
  const next = random(1);
  let left = RANDOM_READS;
  const work = async () => {
    while (left-- > 0) await read(Math.floor(next() * Math.floor(size / UNIT)) * UNIT);
  };
  await Promise.all(Array.from({ length: OUTSTANDING }, work));
}

const folder = mkdtempSync(join(tmpdir(), "overlaybd-remote-"));
const registry = await startDockerRegistry(folder);
try {
  const layer = await makeLayer(join(folder, "layer"));
  const repository = await repositoryAccess({ plain: true })(parseReference(`${registry.host}/bench`));
  await repository.pushBlob(layer, Bun.file(layer.path));
  rmSync(layer.path);
  const blobs = `http://${registry.host}/v2/bench/blobs`;
  const url = `${blobs}/${layer.digest}`;
  let caches = 0;
  const inCache = async (work: (cache: FileCache) => Promise<unknown>) => {
    const cache = join(folder, `cache-${caches++}`);
    mkdirSync(cache);
    await work(new FileCache(cache));
    rmSync(cache, { recursive: true });
  };

  const config = parseImageConfig(JSON.stringify({ repoBlobUrl: blobs, lowers: [layer] }), "bench");
  const figures: Record<string, number[]> = {};
  const note = (name: string, value: number) => {
    figures[name] = [...(figures[name] ?? []), value / 1e6];
  };
  for (let run = 0; run < RUNS; run++) {
    note("curl to /dev/null", await rate(layer.size, () => $`curl -sf -o /dev/null ${url}`));
    note("curl to a file", await rate(layer.size, () => $`curl -sf -o ${folder}/copy ${url}`));
    rmSync(join(folder, "copy"));
    await inCache(async (cache) => {
      const image = await openImage(config, { cache, access: { plain: true } });
      note("virtual disk", await rate(layer.size, () => readWhole(image)));
      await image.close();
    });
    await inCache(async (cache) => {
      const image = await openImage(config, { cache, access: { plain: true } });
      const worker = new IoWorker<DiskTables>();
      const source = { disk: image.tables, writable: false, fetch: image.fetch };
      const device = await new FuseTransport([worker]).attach(source, "bench");
      note("device", await rate(layer.size, () => $`dd if=${device.path} of=/dev/null bs=1M status=none`));
      await device.detach();
      await worker.stop();
      await image.close();
    });
    const bytes = RANDOM_READS * UNIT;
    note(
      "bare fetch",
      await rate(bytes, () =>
        atRandom(layer.size, async (offset) => {
          const response = await fetch(url, { headers: { range: `bytes=${offset}-${offset + UNIT - 1}` } });
          if ((await response.bytes()).length !== UNIT) throw new Error("short");
        }),
      ),
    );
    await inCache(async (cache) => {
      const blob = await cache.open(
        layer.digest,
        blobOrigin(await repositoryAt(blobs, "bench"), layer.digest, layer.size),
      );
      note(
        "random ranges",
        await rate(bytes, () => atRandom(layer.size, (offset) => blob.fetch(offset, UNIT))),
      );
      await blob.close();
    });
  }
  const middle = Object.fromEntries(Object.entries(figures).map(([name, values]) => [name, median(values)]));
  for (const [name, value] of Object.entries(middle))
    console.log(`${name.padEnd(20)}${value.toFixed(0)} MB/s`);
  const against = (name: string, reference: string) =>
    console.log(`${name} / ${reference}: ${(middle[name] / middle[reference]).toFixed(2)}`);
  for (const way of ["virtual disk", "device"]) {
    for (const reference of ["curl to /dev/null", "curl to a file"]) against(way, reference);
  }
  against("random ranges", "bare fetch");
} finally {
  await registry.stop();
  rmSync(folder, { recursive: true, force: true });
}
