/**
 * One tar.gz layer to a tar-wrapped LZ4 layer file with its digest known, against `gzip -dc` of the same file to
 * /dev/null: whole processes in turn, medians of 5. `built` is the conversion's single pass; `tools` is overlaybd-create,
 * -apply and -commit one after another, as a drop-in caller runs them.
 *
 *   bun test/bench/convert.ts [small] [large]
 */
import { closeSync, mkdtempSync, openSync, rmSync } from "node:fs";
import { availableParallelism, tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { buildLayer } from "../../src/convert/layer.ts";
import { hashFile } from "../../src/native/hash.ts";
import { benchInput, type InputName } from "./inputs.ts";
import { median } from "./median.ts";

const RUNS = 5;
const GIB = 2 ** 30;
const executable = resolve(import.meta.dir, "../../dist/overlaybd");

interface Measured {
  readonly seconds: number;
  readonly megabytes: number;
}

/** Runs a command to its end; its wall time and peak memory. */
async function run(command: readonly string[]): Promise<Measured> {
  const start = performance.now();
  const child = Bun.spawn([...command], { stdout: "ignore", stderr: "pipe" });
  if ((await child.exited) !== 0)
    throw new Error(`${command.join(" ")}: ${await new Response(child.stderr).text()}`);
  const seconds = (performance.now() - start) / 1000;
  return { seconds, megabytes: (child.resourceUsage()?.maxRSS ?? 0) / 1e6 };
}

async function runTools(input: string, folder: string): Promise<Measured> {
  const path = (name: string) => join(folder, name);
  const config = {
    repoBlobUrl: "",
    lowers: [],
    upper: { data: path("data"), index: path("index") },
    resultFile: "",
  };
  await Bun.write(path("config.json"), JSON.stringify(config));
  await Bun.write(path("service.json"), "{}");
  const steps = [
    ["create", path("data"), path("index"), "64", "-s", "--mkfs"],
    ["apply", input, path("config.json"), "--service_config_path", path("service.json")],
    ["commit", path("data"), path("index"), path("layer"), "-z", "-t"],
  ];
  const measured: Measured[] = [];
  for (const step of steps) measured.push(await run([executable, ...step]));
  measured.push(await run(["openssl", "dgst", "-sha256", path("layer")]));
  return {
    seconds: measured.reduce((sum, one) => sum + one.seconds, 0),
    megabytes: Math.max(...measured.map((one) => one.megabytes)),
  };
}

async function compare(name: InputName): Promise<void> {
  const input = await benchInput(name);
  const rows = { gzip: [] as Measured[], built: [] as Measured[], tools: [] as Measured[] };
  for (let i = 0; i < RUNS; i++) {
    const folder = mkdtempSync(join(tmpdir(), "overlaybd-bench-"));
    try {
      rows.gzip.push(await run(["gzip", "-dc", input]));
      rows.built.push(
        await run([process.execPath, import.meta.path, "--build", input, join(folder, "built")]),
      );
      rows.tools.push(await runTools(input, folder));
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  }
  const seconds = (measured: Measured[]) => median(measured.map((one) => one.seconds));
  for (const [what, measured] of Object.entries(rows)) {
    const ratio = (seconds(measured) / seconds(rows.gzip)).toFixed(2);
    const memory = median(measured.map((one) => one.megabytes)).toFixed(0);
    console.log(
      `${name.padEnd(6)}${what.padEnd(6)} ${seconds(measured).toFixed(2)} s  ${ratio} × gzip -dc  ${memory} MB`,
    );
  }
}

async function build(input: string, output: string): Promise<void> {
  const fd = openSync(input, "r");
  const compression = { codec: 1, blockSize: 4096, threads: availableParallelism() } as const;
  const uuid = "00000000-0000-4000-8000-000000000000";
  await buildLayer({ fd, source: input, lowers: [], output, size: 64 * GIB, uuid, compression });
  closeSync(fd);
  console.log(hashFile(output).sha256);
}

const [first, ...rest] = process.argv.slice(2);
if (first === "--build") await build(rest[0], rest[1]);
else {
  const names = process.argv.slice(2) as InputName[];
  for (const name of names.length > 0 ? names : (["small", "large"] as const)) await compare(name);
}
