/**
 * Fifty images that are open in one process and read at random for a while, through a cache that holds a third of them:
 * units are fetched, evicted and fetched again all the time. Targets: every byte is right, the process keeps below
 * 400 MiB; after the first fifth of the time, its memory grows by no more than a tenth and 16 MiB from the first quarter to the
 * last, and the number of its descriptors does not; the cache keeps its bound. Needs root, FUSE, loop devices and mkfs.ext4.
 *
 *   bun test/bench/soak.ts [minutes]
 */
import { mkdirSync, readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { FileCache } from "../../src/blob/cache.ts";
import { FuseTransport } from "../../src/device/fuse/transport.ts";
import { IoWorker } from "../../src/device/io_worker.ts";
import { openReference } from "../../src/image/reference.ts";
import type { DiskTables } from "../../src/image/tables.ts";
import { repositoryAccess } from "../../src/registry/access.ts";
import { parseReference } from "../../src/registry/reference.ts";
import { pushFileImage } from "../fixtures/file_image.ts";
import { random } from "../fixtures/random.ts";
import { startDockerRegistry, temporaryDirectory } from "../fixtures/registry.ts";
import { noise } from "../registry/images.ts";
import { median } from "./median.ts";

const IMAGES = 50;
const FILE_BYTES = 8 << 20;
const CAPACITY = 150 << 20;
const READERS = 4;
const PIECE = 256 << 10;
const MIB = 1 << 20;
const SAMPLE_MS = 1000;
const BOUND_BYTES = 400 * MIB;

const program = join(import.meta.dir, "../../src/main.ts");
/** Contents of images by number, made when they are first compared. */
const known = new Map<number, Uint8Array>();
const contentOf = (image: number): Uint8Array => noise(FILE_BYTES, image + 1);

if (process.argv[2] === "serve") await serve(process.argv[3], process.argv[4]);
else await soak(Number(process.argv[2] ?? 10));

/** The process that is watched: opens all images and shows them as devices until its standard input ends. */
async function serve(host: string, cacheDirectory: string): Promise<void> {
  const cache = new FileCache(cacheDirectory, { capacity: CAPACITY });
  const workers = [1, 2].map(() => new IoWorker<DiskTables>(program));
  const transport = new FuseTransport(workers);
  const access = { plain: true };
  const served = await Promise.all(
    Array.from({ length: IMAGES }, async (_, i) => {
      const image = await openReference(`${host}/soak:${i}`, { cache, access });
      const source = { disk: image.tables, writable: false, fetch: image.fetch };
      return { image, device: await transport.attach(source, `soak-${i}`) };
    }),
  );
  process.stdout.write(`${JSON.stringify(served.map(({ device }) => device.path))}\n`);
  await new Response(Bun.stdin.stream()).text();
  for (const { image, device } of served) {
    await device.detach();
    await image.close();
  }
  await Promise.all(workers.map((worker) => worker.stop()));
  process.stdout.write(JSON.stringify(cache.stats()));
}

async function soak(minutes: number): Promise<void> {
  await using cleanup = new AsyncDisposableStack();
  const folder = temporaryDirectory();
  cleanup.defer(() => folder.remove());
  const registry = await startDockerRegistry(folder.path);
  cleanup.defer(() => registry.stop());
  const repository = await repositoryAccess({ plain: true })(parseReference(`${registry.host}/soak`));
  for (let i = 0; i < IMAGES; i++)
    await pushFileImage(repository, `${i}`, join(folder.path, `image-${i}`), { file: contentOf(i) });

  const cacheDirectory = join(folder.path, "cache");
  const child = Bun.spawn([process.execPath, import.meta.path, "serve", registry.host, cacheDirectory], {
    stdin: "pipe",
    stdout: "pipe",
    stderr: "inherit",
  });
  const output = child.stdout.getReader();
  const devices: string[] = JSON.parse(new TextDecoder().decode((await output.read()).value));
  const directories = devices.map((_, i) => join(folder.path, `mnt-${i}`));
  for (const [i, device] of devices.entries()) {
    mkdirSync(directories[i]);
    run("mount", "-t", "ext4", "-o", "ro,noload", device, directories[i]);
    cleanup.defer(() => void Bun.spawnSync(["umount", "-l", directories[i]], { stderr: "ignore" }));
  }

  const end = performance.now() + minutes * 60_000;
  const samples: { memory: number; descriptors: number; cached: number }[] = [];
  let reads = 0;
  let wrong = 0;
  const readers = Array.from({ length: READERS }, async (_, reader) => {
    const next = random(reader + 1);
    while (performance.now() < end) {
      const image = Math.floor(next() * IMAGES);
      const piece = Math.floor(next() * (FILE_BYTES / PIECE));
      if (!(await isRight(directories[image], image, piece))) wrong++;
      reads++;
    }
  });
  const watch = (async () => {
    for (; performance.now() < end; await Bun.sleep(SAMPLE_MS)) {
      const descriptors = readdirSync(`/proc/${child.pid}/fd`).length;
      samples.push({ memory: memoryOf(child.pid), descriptors, cached: cachedBytes(cacheDirectory) });
    }
  })();
  await Promise.all([...readers, watch]);
  for (const directory of directories) run("umount", directory);
  child.stdin.end();
  const stats = JSON.parse(new TextDecoder().decode((await output.read()).value));
  await child.exited;

  const warm = samples.slice(Math.floor(samples.length / 5));
  const most = (of: keyof (typeof samples)[number], from = warm) => Math.max(...from.map((s) => s[of]));
  // The first of the warm samples, as far as one of them does not say it all.
  const early = warm.slice(0, Math.ceil(warm.length / 8));
  const peak = most("memory", samples);
  const [firstFds, lastFds] = [most("descriptors", early), most("descriptors")];
  console.log(
    `${reads} reads of ${PIECE >> 10} KiB from ${IMAGES} images in ${minutes} minutes, ${wrong} wrong; ${stats.requests} requests, ${stats.evicted} units evicted, ${stats.refused} not kept`,
  );
  const quarters = [0, 1, 2, 3].map((i) => warm.slice((i * warm.length) / 4, ((i + 1) * warm.length) / 4));
  const medians = quarters.map((quarter) => median(quarter.map(({ memory }) => memory)));
  console.log(
    `memory: ${mib(peak)} at most (bound ${mib(BOUND_BYTES)}); after warming up, medians of the quarters ${medians.map(mib).join(", ")}`,
  );
  console.log(`descriptors: ${firstFds} after warming up, ${lastFds} at most later`);
  console.log(`cache: ${mib(most("cached", samples))} at most (bound ${mib(CAPACITY)})`);
  const kept =
    wrong === 0 &&
    stats.evicted > 0 &&
    peak <= BOUND_BYTES &&
    medians[3] <= medians[0] * 1.1 + 16 * MIB &&
    lastFds <= firstFds + 8 &&
    most("cached", samples) <= CAPACITY + PIECE;
  if (!kept) console.log("a target was missed");
  process.exitCode = kept ? 0 : 1;
}

/** Reads one piece of an image's file past the page cache. */
async function isRight(directory: string, image: number, piece: number): Promise<boolean> {
  const words = [`if=${directory}/file`, `bs=${PIECE}`, `skip=${piece}`, "count=1", "iflag=direct"];
  const dd = Bun.spawn(["dd", ...words, "status=none"], { stdout: "pipe", stderr: "inherit" });
  const bytes = await new Response(dd.stdout).bytes();
  const right = wanted(image).subarray(piece * PIECE, (piece + 1) * PIECE);
  return (await dd.exited) === 0 && Buffer.compare(bytes, right) === 0;
}

function wanted(image: number): Uint8Array {
  const content = known.get(image) ?? contentOf(image);
  known.set(image, content);
  return content;
}

function run(...words: string[]): void {
  const { exitCode, stderr } = Bun.spawnSync(words, { stderr: "pipe" });
  if (exitCode !== 0) throw new Error(`${words.join(" ")}: ${stderr}`);
}

/** Resident memory of a process in bytes (proc(5)). */
function memoryOf(pid: number): number {
  const status = readFileSync(`/proc/${pid}/status`, "latin1");
  return 1024 * Number(/^VmRSS:\s+(\d+) kB$/m.exec(status)?.[1]);
}

/** What the objects in a cache directory take on the disk. */
function cachedBytes(directory: string): number {
  const names = readdirSync(directory).filter((name) => name.startsWith("sha256:"));
  const sizes = names.map((name) => statSync(join(directory, name), { throwIfNoEntry: false })?.blocks ?? 0);
  return sizes.reduce((sum, blocks) => sum + blocks * 512, 0);
}

function mib(bytes: number): string {
  return `${(bytes / MIB).toFixed(0)} MiB`;
}
