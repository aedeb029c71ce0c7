/** `overlaybd-create` as programs run it (cli.md). */
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { existsSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { LocalFile } from "../../src/format/lsmt/file.ts";
import { openWritableLayer } from "../../src/format/lsmt/pair.ts";
import { segmentEnd, segmentStart } from "../../src/format/lsmt/segments.ts";
import { NULL_UUID } from "../../src/format/lsmt/uuid.ts";
import type { WritableLayer } from "../../src/format/lsmt/writable.ts";
import { fsckComplaint } from "../fixtures/loop.ts";
import { readSectors } from "../lsmt/memory.ts";
import { CREATED, UUID, Workspace } from "./workspace.ts";

setDefaultTimeout(60_000);
let files: Workspace;
beforeAll(() => {
  files = new Workspace();
});
afterAll(() => files.remove());

/** Writes what a layer maps to a raw image with holes. */
async function copyDisk(layer: WritableLayer, path: string): Promise<void> {
  const image = LocalFile.open(path, "create");
  image.truncate(layer.size);
  const segments = layer.segments();
  for (let i = 0; i < segments.count; i++) {
    const start = segmentStart(segments, i);
    image.write(start * 512, await readSectors(segments, [layer.file], start, segmentEnd(segments, i)));
  }
  image.close();
}

test("makes an append-only pair", async () => {
  expect(await files.run("create", "-u", UUID, "a.data", "a.index", "3")).toEqual({
    code: 0,
    out: CREATED,
    err: "",
  });
  const layer = openWritableLayer(files.path("a.data"), files.path("a.index"));
  expect([layer.size, layer.sparse, layer.parentUuid]).toEqual([3 * 2 ** 30, false, UUID.toUpperCase()]);
  layer.close();
});

test("ignores a parent that is no UUID", async () => {
  expect((await files.run("create", "b.data", "b.index", "0", "-u", "nonsense")).code).toBe(0);
  const layer = openWritableLayer(files.path("b.data"), files.path("b.index"));
  expect([layer.size, layer.parentUuid]).toEqual([0, NULL_UUID]);
  layer.close();
});

test("takes options and files in any order, with mode 0644 and no parent", async () => {
  for (const words of [
    ["o.data", "-s", "o.index", "--verbose", "1"],
    ["--", "p.data", "p.index", "1"],
    ["--mkfs=false", "q.data", "--verbose=true", "q.index", "1"],
  ]) {
    expect(await files.run("create", ...words)).toEqual({ code: 0, out: CREATED, err: "" });
    const [data, index] = words.filter((word) => /^[opq]\./.test(word)).map(files.path);
    expect([data, index].map((path) => statSync(path).mode & 0o777)).toEqual([0o644, 0o644]);
    const layer = openWritableLayer(data, index);
    expect([layer.sparse, layer.parentUuid]).toEqual([words[0] === "o.data", NULL_UUID]);
    layer.close();
  }
});

test("makes a sparse layer and a raw file", async () => {
  expect((await files.run("create", "-s", "c.data", "c.index", "1")).code).toBe(0);
  expect((await files.run("create", "--raw", "d.data", "d.index", "1")).code).toBe(0);
  const sizes = ["c.data", "c.index", "d.data", "d.index"].map((name) => statSync(files.path(name)).size);
  expect(sizes).toEqual([4096 + 2 ** 30, 0, 2 ** 30, 0]);
});

for (const kind of [[], ["-s"], ["--raw"]]) {
  test(`puts a sound file system on it: ${kind.join() || "append-only"}`, async () => {
    const [data, index] = [`fs${kind}.data`, `fs${kind}.index`];
    expect(await files.run("create", data, index, "1", "--mkfs", ...kind)).toEqual({
      code: 0,
      out: CREATED,
      err: "",
    });
    let image = files.path(data);
    if (kind[0] !== "--raw") {
      image = files.path(`fs${kind}.image`);
      const layer = openWritableLayer(files.path(data), files.path(index));
      await copyDisk(layer, image);
      layer.close();
    }
    expect(fsckComplaint(image)).toBeNull();
  });
}

test("refuses files that exist and leaves nothing half made", async () => {
  writeFileSync(files.path("taken"), "mine");
  const message = "overlaybd-create: failed to open file 'taken', 17: File exists\n";
  for (const options of [[], ["-s"], ["--raw"]]) {
    expect(await files.run("create", "taken", "e.index", "1", ...options)).toEqual({
      code: 255,
      out: "",
      err: message,
    });
    expect(await files.run("create", "e.data", "taken", "1", ...options)).toEqual({
      code: 255,
      out: "",
      err: message,
    });
  }
  expect(existsSync(files.path("e.data")) || existsSync(files.path("e.index"))).toBe(false);
  expect(readFileSync(files.path("taken"), "utf8")).toBe("mine");
});

test("ends as documented for wrong arguments", async () => {
  expect((await files.run("create", "f.data", "f.index")).code).toBe(106);
  expect((await files.run("create", "f.data", "f.index", "--", "-1")).code).toBe(105);
  expect((await files.run("create", "f.data", "f.index", "1", "--nonsense")).code).toBe(109);
  expect((await files.run("create", "f.data", "f.index", "2049")).code).toBe(255);
  expect((await files.run("create", "f.data", "f.index", "1", "--turboOCI")).code).toBe(255);
  expect((await files.run("create", "f.data", "f.index", "0", "--mkfs")).code).toBe(255);
  expect(existsSync(files.path("f.data")) || existsSync(files.path("f.index"))).toBe(false);
});
