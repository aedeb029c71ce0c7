/** Layers that upstream's tools wrote: read back, and written again byte for byte. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { createHash } from "node:crypto";
import { copyFileSync, existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { $ } from "bun";
import { openFileBlob } from "../../src/blob/file.ts";
import { commit } from "../../src/format/lsmt/commit.ts";
import { LocalFile } from "../../src/format/lsmt/file.ts";
import { type Layer, openLayer } from "../../src/format/lsmt/layer.ts";
import { mergeSegments } from "../../src/format/lsmt/merge.ts";
import { openWritableLayer } from "../../src/format/lsmt/pair.ts";
import { seal } from "../../src/format/lsmt/seal.ts";
import { segmentLength, segmentMoffset, segmentStart } from "../../src/format/lsmt/segments.ts";
import { parseUuid } from "../../src/format/lsmt/uuid.ts";
import type { WritableLayer } from "../../src/format/lsmt/writable.ts";
import type { ByteSource } from "../../src/format/source.ts";
import { openBlobLayer } from "../../src/image/layer.ts";
import { golden, goldenDir } from "../golden/golden.ts";
import { deviceDigest, MemorySink, MemorySource } from "./memory.ts";

// Decompressing a gigabyte, even of holes, takes seconds on a busy machine.
setDefaultTimeout(60_000);

interface Device {
  virtual_size: number;
  nonzero_4k_blocks: number;
  digest: string;
}

const COMMIT = { uuid: parseUuid("00112233-4455-6677-8899-aabbccddeeff") as string, userTag: "golden" };

describe.skipIf(goldenDir === null)("golden layers", () => {
  let folder: string;
  let devices: Record<string, Device>;
  const open: LocalFile[] = [];

  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), "overlaybd-golden-"));
    devices = JSON.parse(readFileSync(golden("manifests/devices.json"), "utf8"));
  });

  afterAll(() => {
    for (const file of open) file.close();
    rmSync(folder, { recursive: true });
  });

  /** Path of a copy of a golden file in the temporary folder, decompressed when it is kept as .xz. */
  async function plain(name: string, copyAs = name.replaceAll("/", "-")): Promise<string> {
    const path = join(folder, copyAs);
    if (existsSync(path)) return path;
    if (name.endsWith(".xz")) {
      copyFileSync(golden(name), `${path}.xz`);
      await $`xz -d -f ${path}.xz`.quiet();
    } else copyFileSync(golden(name), path);
    return path;
  }

  async function source(name: string): Promise<ByteSource> {
    const file = LocalFile.open(await plain(name), "read");
    open.push(file);
    return file;
  }

  async function expectDevice(layers: Layer[], device: Device): Promise<void> {
    const index = mergeSegments(layers.map((layer) => layer.segments));
    const { digest, blocks } = await deviceDigest(
      index,
      layers.map((layer) => layer.source),
    );
    expect({ digest, blocks, size: layers[0].size }).toEqual({
      digest: device.digest,
      blocks: device.nonzero_4k_blocks,
      size: device.virtual_size,
    });
  }

  async function committed(layer: WritableLayer): Promise<Uint8Array> {
    const sink = new MemorySink();
    const { size, parentUuid } = layer;
    await commit(layer.segments(), [layer.file], sink, { size, parentUuid, ...COMMIT });
    return sink.bytes;
  }

  for (const [name, device] of [
    ["lsmt/mini-append.lsmt", "mini-append"],
    ["lsmt/mini-append.sealed.xz", "mini-append-sealed"],
    ["lsmt/mini-sparse.lsmt.xz", "mini-sparse"],
    ["lsmt/layer1.lsmt.xz", "layer1"],
    ["merge/merged.lsmt.xz", "layer1+layer2"],
  ]) {
    test(`${name} reads back`, async () => {
      await expectDevice([await openLayer(await source(name))], devices[device]);
    });
  }

  for (const [name, device] of [
    ["lsmt/mini-append.lz4", "mini-append"],
    ["lsmt/mini-append.zstd", "mini-append"],
    ["lsmt/mini-append.commit_sealed.lz4", "mini-append"],
    ["lsmt/layer1.lz4", "layer1"],
    ["lsmt/layer1.lz4-bs32", "layer1"],
    ["lsmt/layer1.lz4.tar", "layer1"],
    ["lsmt/layer1.zstd.tar", "layer1"],
    ["merge/merged.lz4", "layer1+layer2"],
  ]) {
    test(`${name} reads back`, async () => {
      const blob = await openFileBlob(golden(name));
      await expectDevice([(await openBlobLayer(blob)).content], devices[device]);
      await blob.close();
    });
  }

  for (const suffix of ["lz4", "lz4.tar", "zstd.tar"]) {
    test(`lsmt/layer2.${suffix} on lsmt/layer1.${suffix} reads back`, async () => {
      const blobs = [
        await openFileBlob(golden(`lsmt/layer2.${suffix}`)),
        await openFileBlob(golden(`lsmt/layer1.${suffix}`)),
      ];
      const layers = [(await openBlobLayer(blobs[0])).content, (await openBlobLayer(blobs[1])).content];
      await expectDevice(layers, devices["layer1+layer2"]);
      for (const blob of blobs) await blob.close();
    });
  }

  test("layer 2 on layer 1 reads back, and merges to the same device", async () => {
    const layers = [
      await openLayer(await source("lsmt/layer2.lsmt.xz")),
      await openLayer(await source("lsmt/layer1.lsmt.xz")),
    ];
    expect(layers.map((layer) => [layer.uuid, layer.parentUuid])).toEqual([
      ["BC10700D-0320-67F1-6890-78AE3F04C9FC", "AA24FF70-36E0-7FE7-57CF-CB7BCADF8178"],
      ["AA24FF70-36E0-7FE7-57CF-CB7BCADF8178", "00000000-0000-0000-0000-000000000000"],
    ]);
    await expectDevice(layers, devices["layer1+layer2"]);

    const sink = new MemorySink();
    const index = mergeSegments(layers.map((layer) => layer.segments));
    const { size } = layers[0];
    await commit(
      index,
      layers.map((layer) => layer.source),
      sink,
      { size, parentUuid: layers[1].parentUuid },
    );
    const merged = await openLayer(new MemorySource(sink.bytes));
    await expectDevice([merged], devices["layer1+layer2"]);

    // Upstream keeps tags on disk, so neighbours of different layers stay apart; the data is the same.
    const upstream = await openLayer(await source("merge/merged.lsmt.xz"));
    expect(merged.segments.count).toBeLessThanOrEqual(upstream.segments.count);
    const digestOfData = (bytes: Uint8Array, { segments }: Layer): string => {
      let end = 0;
      for (let i = 0; i < segments.count; i++) {
        end = Math.max(end, segmentMoffset(segments, i) + segmentLength(segments, i));
      }
      return createHash("sha256")
        .update(bytes.subarray(4096, end * 512))
        .digest("hex");
    };
    const bytes = await upstream.source.read(0, upstream.source.size);
    expect(digestOfData(sink.bytes, merged)).toBe(digestOfData(bytes, upstream));
  });

  test("committing the append-only pair gives upstream's bytes", async () => {
    const index = await plain("rw/append-index");
    const layer = openWritableLayer(await plain("rw/append-data.xz"), index);
    const bytes = await committed(layer);
    layer.close();
    expect(Buffer.compare(bytes, readFileSync(golden("lsmt/mini-append.lsmt")))).toBe(0);
  });

  test("the sparse layer reads back", async () => {
    const layer = openWritableLayer(await plain("rw/sparse-data.xz"), golden("rw/sparse-index"));
    const { digest, blocks } = await deviceDigest(layer.segments(), [layer.file]);
    expect(layer.size).toBe(devices["mini-sparse"].virtual_size);
    layer.close();
    expect({ digest, blocks }).toEqual({
      digest: devices["mini-sparse"].digest,
      blocks: devices["mini-sparse"].nonzero_4k_blocks,
    });
  });

  test("committing the sparse layer gives upstream's bytes", async () => {
    const upstream = readFileSync(await plain("lsmt/mini-sparse.lsmt.xz"));
    const { segments } = await openLayer(new MemorySource(upstream));
    // Holes are this layer's index, and the .xz has not kept them; they are as upstream's commit saw them.
    const original = LocalFile.open(await plain("rw/sparse-data.xz"), "read");
    const restored = LocalFile.open(join(folder, "sparse"), "create");
    restored.truncate(original.size);
    restored.write(0, original.readSync(0, 4096));
    for (let i = 0; i < segments.count; i++) {
      const at = 4096 + segmentStart(segments, i) * 512;
      restored.write(at, original.readSync(at, segmentLength(segments, i) * 512));
    }
    original.close();
    restored.close();
    const layer = openWritableLayer(join(folder, "sparse"), golden("rw/sparse-index"));
    const bytes = await committed(layer);
    layer.close();
    expect(Buffer.compare(bytes, upstream)).toBe(0);
  });

  test("the pair reads back after sealing, and commits to the same bytes as before", async () => {
    const data = await plain("rw/append-data.xz", "seal-data");
    const layer = openWritableLayer(data, await plain("rw/append-index", "seal-index"));
    seal(layer);
    layer.close();
    const sealed = await openLayer(new MemorySource(readFileSync(data)));
    await expectDevice([sealed], devices["mini-append"]);
    const sink = new MemorySink();
    const { size, parentUuid } = sealed;
    await commit(sealed.segments, [sealed.source], sink, { size, parentUuid, ...COMMIT });
    expect(Buffer.compare(sink.bytes, readFileSync(golden("lsmt/mini-append.lsmt")))).toBe(0);
  });
});
