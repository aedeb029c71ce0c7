import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { createWritableLayer } from "../../src/format/lsmt/pair.ts";
import { FORMATS, writeRandomLayer } from "./stack.ts";

let directory: string;
const model = new Uint8Array(4 << 20);
beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), "overlaybd-commands-"));
  for (const i of [0, 1]) writeRandomLayer(join(directory, `layer-${i}`), model, 300 + i, FORMATS[3 + i]);
  const [data, index] = [join(directory, "data"), join(directory, "index")];
  createWritableLayer(data, index, { size: 0 }).close();
  const lowers = [0, 1].map((i) => ({ file: join(directory, `layer-${i}`) }));
  writeFileSync(join(directory, "ro.json"), JSON.stringify({ lowers }));
  writeFileSync(join(directory, "rw.json"), JSON.stringify({ lowers, upper: { data, index } }));
});
afterAll(() => rmSync(directory, { recursive: true, force: true }));

async function run(...words: string[]) {
  const main = resolve(import.meta.dir, "../../src/main.ts");
  const child = Bun.spawn([process.execPath, main, ...words], {
    cwd: directory,
    stdout: "pipe",
    stderr: "pipe",
  });
  const [out, err] = await Promise.all([child.stdout.text(), child.stderr.text()]);
  return { code: await child.exited, out, err };
}

describe("inspect", () => {
  test("tells about a single layer", async () => {
    const { code, out } = await run("inspect", "layer-0", "--json");
    expect(code).toBe(0);
    const report = JSON.parse(out);
    expect(report.virtualSize).toBe(model.length);
    expect(report.layers).toHaveLength(1);
    expect(report.layers[0]).toMatchObject({
      name: "layer-0",
      compression: "lz4",
      blockSize: 16384,
      tar: true,
    });
  });

  test("tells about an image with a writable layer, as a table", async () => {
    const { code, out } = await run("inspect", "rw.json");
    expect(code).toBe(0);
    for (const text of [
      "layer-0",
      "layer-1",
      "merged",
      "4.00 MiB",
      "tar/lz4 16 KiB",
      "tar/lz4 64 KiB",
      "append",
    ]) {
      expect(out).toContain(text);
    }
  });

  test("names what it cannot open and exits with 1", async () => {
    const { code, err } = await run("inspect", "data");
    expect(code).toBe(1);
    expect(err).toStartWith("overlaybd inspect: ");
    expect(err).toContain("data");
    expect(err.trim().split("\n")).toHaveLength(1);
  });
});

describe("export", () => {
  test.each(["ro.json", "rw.json"])("writes the disk of %s, without a word", async (config) => {
    const { code, out, err } = await run("export", config, `${config}.raw`);
    expect({ code, out, err }).toEqual({ code: 0, out: "", err: "" });
    expect(Buffer.compare(readFileSync(join(directory, `${config}.raw`)), model)).toBe(0);
  });

  test("leaves nothing behind when a layer is damaged", async () => {
    const content = readFileSync(join(directory, "layer-0"));
    content.fill(0xff, content.length / 2, content.length / 2 + 40_000);
    writeFileSync(join(directory, "damaged"), content);
    const { code, err } = await run("export", "damaged", "damaged.raw");
    expect(code).toBe(1);
    expect(err).toContain("damaged: block ");
    expect(readdirSync(directory).filter((name) => name.startsWith("damaged.raw"))).toEqual([]);
  });
});
