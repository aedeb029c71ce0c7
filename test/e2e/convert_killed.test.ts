/**
 * Conversions that are killed (SIGKILL) at moments all over their run: nothing tagged is incomplete, no blob is wrong, what
 * is left over is removed by the next run, and that one's result is the same as ever.
 */
import { afterAll, beforeAll, beforeEach, expect, setDefaultTimeout, test } from "bun:test";
import { cpSync, existsSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { serveRegistry } from "../../src/registry/server.ts";
import { gzipLayer, HandmadeLayout } from "../fixtures/layout.ts";
import { run, start } from "../fixtures/program.ts";
import { startFaultProxy } from "../fixtures/registry.ts";
import { tar } from "../fixtures/tar.ts";
import { noise } from "../registry/images.ts";
import { verifyLayout } from "./layout_state.ts";

setDefaultTimeout(120_000);

const layers = [1, 2, 3].map((seed) => {
  const file = (i: number) => ({ path: `d${seed}/f${i}`, data: noise(60_000, seed * 100 + i) });
  return gzipLayer(tar([{ path: "./" }, ...Array.from({ length: 24 }, (_, i) => file(i))]));
});

let folder: string;
let input: string;
/** Digest of an undisturbed conversion. */
let digest: string;
let work: string;
let output: string;

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), "overlaybd-killed-"));
  [work, output, input] = [join(folder, "work"), join(folder, "out"), join(folder, "in")];
  const layout = new HandmadeLayout(input);
  layout.tag(layout.image({ layers }));
  digest = await convert(`oci:${input}`, `oci:${output}`);
});
beforeEach(clear);
afterAll(() => rmSync(folder, { recursive: true }));

function clear(): void {
  for (const path of [work, output]) rmSync(path, { recursive: true, force: true });
}

function command(from: string, to: string): string[] {
  const words = ["convert", "-r", from, "-i", "latest", "--to", to, "-o", "obd", "--vsize", "1", "--plain"];
  return [...words, "-d", work, "--json"];
}

/** Converts; returns the digest of the result. */
async function convert(from: string, to: string): Promise<string> {
  const { code, out, err } = await run(command(from, to));
  expect({ code, err }).toEqual({ code: 0, err: "" });
  return JSON.parse(out).digest;
}

/** The names of all files that a conversion to a layout writes, in one text. */
function files(): string {
  const listed = [work, output].map((path) =>
    existsSync(path) ? readdirSync(path, { recursive: true }) : [],
  );
  return listed.flat().join();
}

/** Kills a conversion when its files have changed `changes` times; false when it has ended before. */
async function killAfter(changes: number, from: string, to: string): Promise<boolean> {
  let seen = files();
  const child = start(command(from, to));
  for (let left = changes; left > 0 && child.exitCode === null; await Bun.sleep(0)) {
    const now = await Promise.try(files).catch(() => seen);
    if (now === seen) continue;
    seen = now;
    left--;
  }
  child.kill("SIGKILL");
  return (await child.exited) !== 0;
}

/** Of temporary files, a killed conversion leaves its own, whatever those before it have left. */
async function expectNothingWrong(): Promise<void> {
  const { tags, unfinished } = await verifyLayout(output);
  expect([{}, { obd: digest }]).toContainEqual(tags);
  expect(unfinished.length).toBeLessThanOrEqual(layers.length + 1);
  const directoryAndLock = 2;
  expect(existsSync(work) ? readdirSync(work).length : 0).toBeLessThanOrEqual(directoryAndLock);
}

test("to a layout, whenever its files have changed", async () => {
  const source = await serveRegistry({ directory: input, readOnly: true });
  const [from, to] = [`${new URL(source.url).host}/some/image`, `oci:${output}`];
  let kills = 0;
  try {
    for (let changes = 1; await killAfter(changes, from, to); changes += 3) {
      kills++;
      await expectNothingWrong();
      if (await killAfter(changes + 1, from, to)) kills++;
      await expectNothingWrong();

      expect(await convert(from, to)).toBe(digest);
      expect(await verifyLayout(output)).toEqual({ tags: { obd: digest }, unfinished: [] });
      expect(readdirSync(work)).toEqual([]);
      clear();
    }
  } finally {
    await source.stop();
  }
  expect(kills).toBeGreaterThanOrEqual(15);
});

interface Request {
  readonly method: string;
  readonly url: string;
}

/** Runs `look` with a registry that holds the image and tells of every request; stops it and looks at what is left. */
async function withRegistry(
  look: (
    repository: string,
    onRequest: (tell: (request: Request) => "reset" | "answer") => void,
  ) => Promise<void>,
): Promise<void> {
  cpSync(input, output, { recursive: true });
  const registry = await serveRegistry({ directory: output });
  const proxy = await startFaultProxy(registry.url);
  try {
    await look(`${proxy.host}/some/image`, (tell) => {
      proxy.fault = (request) => (tell(request) === "reset" ? { kind: "reset" } : undefined);
    });
  } finally {
    await proxy.stop();
    await registry.stop();
  }
}

test("to a registry, at every request", async () => {
  const requests: string[] = [];
  await withRegistry(async (repository, onRequest) => {
    onRequest(({ method, url }) => {
      requests.push(`${method} ${url.replace(/[0-9a-f-]{32,}/, "ID")}`);
      return "answer";
    });
    expect(await convert(repository, repository)).toBe(digest);
  });
  clear();
  for (const kind of [/GET .*manifests/, /GET .*blobs/, /POST .*uploads/, /PUT .*uploads/, /PUT .*manifests/])
    expect(requests).toContainEqual(expect.stringMatching(kind));

  for (let last = 1; last <= requests.length; last++) {
    await withRegistry(async (repository, onRequest) => {
      const child = start(command(repository, repository));
      let seen = 0;
      onRequest(() => {
        if (++seen === last) child.kill("SIGKILL");
        return seen >= last && last % 2 === 0 ? "reset" : "answer";
      });
      expect(await child.exited).toBe(137);
      onRequest(() => "answer");
      const { tags } = await verifyLayout(output);
      expect([undefined, digest]).toContain(tags["some/image:obd"]);
      expect(await convert(repository, repository)).toBe(digest);
    });
    const { tags, unfinished } = await verifyLayout(output);
    expect(tags).toMatchObject({ "some/image:obd": digest });
    expect(unfinished).toEqual([]);
    expect(readdirSync(work)).toEqual([]);
    clear();
  }
});

test("to a registry, with requests under way", async () => {
  for (const changes of [6, 10, 14, 18, 22]) {
    cpSync(input, output, { recursive: true });
    const registry = await serveRegistry({ directory: output });
    try {
      const repository = `${new URL(registry.url).host}/some/image`;
      expect(await killAfter(changes, repository, repository)).toBe(true);
      const { tags } = await verifyLayout(output);
      expect([undefined, digest]).toContain(tags["some/image:obd"]);
      expect(await convert(repository, repository)).toBe(digest);
    } finally {
      await registry.stop();
    }
    const { tags, unfinished } = await verifyLayout(output);
    expect(tags).toMatchObject({ "some/image:obd": digest });
    expect(unfinished).toEqual([]);
    clear();
  }
});

test("what living conversions work on is left alone", async () => {
  await killAfter(12, `oci:${input}`, `oci:${output}`);
  const tags = ["a", "b", "c", "d"];
  const results = await Promise.all(
    tags.map((tag) => run([...command(`oci:${input}`, `oci:${output}`), "--overlaybd", tag])),
  );
  expect(results.map(({ code, err }) => ({ code, err }))).toEqual(tags.map(() => ({ code: 0, err: "" })));
  const tagged = Object.fromEntries(tags.map((tag) => [tag, digest]));
  expect(await verifyLayout(output)).toEqual({ tags: tagged, unfinished: [] });
  expect(readdirSync(work)).toEqual([]);
});
