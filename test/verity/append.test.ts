import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { createHash } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { $ } from "bun";
import { openFileBlob } from "../../src/blob/file.ts";
import { LayerFile } from "../../src/format/layerfile.ts";
import { unwrapTar } from "../../src/format/tar/wrapper.ts";
import { appendTree } from "../../src/format/verity/append.ts";
import { sampleBytes } from "../blob/origin.ts";
import { modelTree } from "./model.ts";

let directory: string;
beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), "overlaybd-verity-"));
});
afterAll(() => rmSync(directory, { recursive: true }));

let files = 0;
function writeLayer(content: Uint8Array): string {
  const path = join(directory, `layer-${files++}`);
  const file = new LayerFile(path, { tar: true, scratch: true });
  file.write(content);
  file.finish();
  return path;
}

describe("a tree behind a layer", () => {
  test("is the one that the data has, whatever its length", async () => {
    const headers = 2048;
    const lengths = [
      0,
      1,
      511,
      512,
      513,
      4096 - headers,
      4097 - headers,
      16384 - headers - 512,
      16384 - headers,
    ];
    for (const base of [16384, 128 * 16384, 3 * 128 * 16384]) {
      lengths.push(base - headers - 1, base - headers, base - headers + 1, base, base + 4097);
    }
    for (const [seed, length] of lengths.entries()) {
      const content = sampleBytes(length, seed);
      const path = writeLayer(content);
      const before = readFileSync(path);
      const { digest, size, verity } = await appendTree(path);
      const bytes = readFileSync(path);
      expect(bytes.length).toBe(size);
      expect(digest).toBe(`sha256:${createHash("sha256").update(bytes).digest("hex")}`);
      const { nodes, root } = modelTree(bytes.subarray(0, verity.dataBytes));
      expect(verity.root).toBe(root);
      const tree = bytes.subarray(verity.dataBytes, -1024);
      expect(Buffer.compare(tree, nodes)).toBe(0);
      expect(bytes.subarray(-1024).every((byte) => byte === 0)).toBe(true);
      // What was there is there still, but for the archive's end.
      expect(Buffer.compare(bytes.subarray(0, before.length - 1024), before.subarray(0, -1024))).toBe(0);
      expect(verity.dataBytes - before.length).toBeLessThan(4096);
    }
  });

  test("leaves the layer where it was, for our reader and for tar", async () => {
    const content = sampleBytes(300_001);
    const path = writeLayer(content);
    await appendTree(path);
    const blob = await openFileBlob(path);
    const { start, size } = await unwrapTar(blob);
    await blob.close();
    expect({ start, size }).toEqual({ start: 1536, size: content.length });
    expect((await $`tar --list --file ${path}`.text()).trim().split("\n")).toEqual([
      "overlaybd.commit",
      "overlaybd.verity",
    ]);
    const extracted = join(directory, "extracted");
    await $`mkdir ${extracted} && tar --extract --file ${path} --directory ${extracted}`.quiet();
    expect(Buffer.compare(readFileSync(join(extracted, "overlaybd.commit")), content)).toBe(0);
    expect(statSync(join(extracted, "overlaybd.verity")).size % 512).toBe(0);
  });

  test("is the same for equal layers", async () => {
    const content = sampleBytes(123_456);
    const [one, other] = [await appendTree(writeLayer(content)), await appendTree(writeLayer(content))];
    expect(other).toEqual(one);
  });

  test("is refused where there is no layer file", async () => {
    const path = join(directory, "absent");
    await expect(appendTree(path)).rejects.toMatchObject({
      code: "E_IO",
      message: expect.stringContaining(path),
    });
  });
});
