/**
 * The loop device over FUSE: a warm LZ4 layer (4 KiB blocks) against the same transport serving an uncompressed file
 * from the page cache, by fio with direct reads. Medians of 5, the two taking turns. Needs root and fio.
 *
 *   bun test/bench/fuse.ts
 */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { FileCache } from "../../src/blob/cache.ts";
import { FuseTransport } from "../../src/device/fuse/transport.ts";
import { IoWorker } from "../../src/device/io_worker.ts";
import type { Device } from "../../src/device/transport.ts";
import { openSource } from "../../src/image/source.ts";
import type { DiskTables, MissingRange } from "../../src/image/tables.ts";
import type { RawDisk } from "../device/raw_disk.ts";
import { writeLz4Layer } from "../fixtures/lz4_layer.ts";
import { median } from "./median.ts";

const TOTAL = 512 << 20;
const RUNS = 5;

const JOBS = {
  "4 KiB random, depth 1": ["--rw=randread", "--bs=4k", "--ioengine=psync"],
  "4 KiB random, depth 32": ["--rw=randread", "--bs=4k", "--ioengine=libaio", "--iodepth=32"],
  "128 KiB sequential": ["--rw=read", "--bs=128k", "--ioengine=psync"],
};

/** Bytes a second. */
function measure(device: string, job: readonly string[]): number {
  const common = ["--name=bench", "--direct=1", "--readonly", "--time_based", "--runtime=1", "--randseed=1"];
  const fio = Bun.spawnSync(["fio", ...common, `--filename=${device}`, ...job, "--output-format=json"]);
  if (fio.exitCode !== 0) throw new Error(`fio failed: ${fio.stderr}`);
  return JSON.parse(fio.stdout.toString()).jobs[0].read.bw_bytes;
}

const folder = mkdtempSync(join(tmpdir(), "overlaybd-bench-"));
try {
  // Bun's own executable, repeated: machine code and data, like much of an image.
  const executable = readFileSync(process.execPath);
  const content = new Uint8Array(TOTAL);
  for (let at = 0; at < TOTAL; at += executable.length) content.set(executable.subarray(0, TOTAL - at), at);
  const raw = join(folder, "raw");
  writeFileSync(raw, content);
  const layer = join(folder, "layer");
  writeLz4Layer(layer, TOTAL, (at, length) => content.subarray(at, at + length));

  const image = await openSource(layer, { cache: new FileCache(join(folder, "cache"), { unit: 1 << 18 }) });
  const imageWorker = new IoWorker<DiskTables>();
  const rawWorker = new IoWorker<RawDisk>(join(import.meta.dir, "../device/raw_disk.ts"));
  const source = { disk: image.tables, writable: false, fetch: (range: MissingRange) => image.fetch(range) };
  const lz4Device = await new FuseTransport([imageWorker]).attach(source, "lz4");
  const rawSource = { disk: { path: raw, writable: false }, writable: false, fetch: () => Promise.reject() };
  const rawDevice = await new FuseTransport([rawWorker]).attach(rawSource, "raw");
  const devices: Device[] = [rawDevice, lz4Device];
  Bun.spawnSync(["cat", layer, raw], { stdout: "ignore" });

  for (const [name, job] of Object.entries(JOBS)) {
    const results: number[][] = [[], []];
    for (let run = 0; run < RUNS; run++) {
      for (const [i, device] of devices.entries()) results[i].push(measure(device.path, job));
    }
    const [plain, lz4] = results.map(median);
    const block = name.startsWith("4 KiB") ? 4096 : 1;
    const unit = block === 1 ? "MB/s" : "IOPS";
    const show = (rate: number) => Math.round(block === 1 ? rate / 1e6 : rate / block);
    console.log(
      `${name}: uncompressed ${show(plain)} ${unit}, LZ4 ${show(lz4)} ${unit}, ratio ${(lz4 / plain).toFixed(2)}`,
    );
  }
  await Promise.all(devices.map((device) => device.detach()));
  await Promise.all([imageWorker.stop(), rawWorker.stop()]);
  await image.close();
} finally {
  rmSync(folder, { recursive: true });
}
