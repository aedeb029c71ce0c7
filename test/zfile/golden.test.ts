import { expect, test } from "bun:test";
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { LayerFile } from "../../src/format/layerfile.ts";
import { unwrapTar } from "../../src/format/tar/wrapper.ts";
import { CODEC_LZ4, CODEC_ZSTD } from "../../src/format/zfile/blocks.ts";
import { isZFile, openZFile } from "../../src/format/zfile/open.ts";
import { verifyChecksums, ZFileSource } from "../../src/format/zfile/reader.ts";
import { golden, goldenDir } from "../golden/golden.ts";
import { MemorySource, withFolder } from "./zfile.ts";

const absent = goldenDir === null;
// The tar header records the file's mode; upstream's files were made with this umask.
process.umask(0o022);

const variants = [
  ...[4, 8, 16, 32, 64].map((kibibytes) => `bs${kibibytes}`),
  ...["bs4", "bs64"].flatMap((size) => [`${size}.crc.hdr`, `${size}.nocrc`, `${size}.nocrc.hdr`]),
];
const patterns = ["lz4", "zstd"]
  .flatMap((codec) => variants.map((variant) => `pattern.${codec}.${variant}`))
  .concat("pattern.lz4.bs4.tar", "empty.lz4.bs4");

/** What was compressed to make the file of that name. */
function input(name: string): Uint8Array {
  return name.startsWith("empty") ? new Uint8Array(0) : readFileSync(golden("inputs/pattern.bin"));
}

/** The layer in a golden file, unwrapped. */
async function unwrapped(name: string): Promise<MemorySource> {
  const file = readFileSync(golden(name));
  const { start, size } = await unwrapTar(new MemorySource(file, name));
  return new MemorySource(file.subarray(start, start + size), name);
}

for (const name of patterns) {
  test.skipIf(absent)(`${name} reads back`, async () => {
    const stored = await unwrapped(`zfile/${name}`);
    expect(await isZFile(stored)).toBe(true);
    const source = new ZFileSource(stored, await openZFile(stored));
    expect(Buffer.compare(await source.read(0, source.size), input(name))).toBe(0);
  });

  // The format lets compressed bytes differ between library versions; those that are linked here happen to agree
  // with upstream's, so a difference means that the writer changed.
  test.skipIf(absent)(`writing ${name} gives upstream's bytes`, () => {
    withFolder((folder) => {
      const path = join(folder, name);
      const file = new LayerFile(path, {
        tar: name.endsWith(".tar"),
        zfile: {
          codec: name.includes("zstd") ? CODEC_ZSTD : CODEC_LZ4,
          blockSize: Number(/bs(\d+)/.exec(name)?.[1]) * 1024,
          checksum: !name.includes("nocrc"),
          overwriteHeader: name.endsWith(".hdr"),
          threads: 2,
        },
      });
      file.write(input(name));
      file.finish();
      expect(readFileSync(path).equals(readFileSync(golden(`zfile/${name}`)))).toBe(true);
    });
  });
}

const layers = [
  ...["layer1.lz4", "layer1.lz4-bs32", "layer1.lz4.tar", "layer1.zstd.tar"],
  ...["layer2.lz4", "layer2.lz4.tar", "layer2.zstd.tar"],
  ...["mini-append.commit_sealed.lz4", "mini-append.lz4", "mini-append.zstd"],
];

test.skipIf(absent)(
  "every compressed layer opens through tar and ZFile, and all its blocks verify",
  async () => {
    for (const name of layers) {
      const stored = await unwrapped(`lsmt/${name}`);
      const table = await openZFile(stored);
      await verifyChecksums(stored, table);
      expect(table.plainSize).toBeGreaterThan(1_000_000);
    }
  },
);

test.skipIf(absent)("all compressions and wrappers of a layer hold the same LSMT bytes", async () => {
  for (const layer of ["layer1", "layer2"]) {
    const digests = new Set<string>();
    for (const name of layers.filter((name) => name.startsWith(layer))) {
      const stored = await unwrapped(`lsmt/${name}`);
      const source = new ZFileSource(stored, await openZFile(stored));
      const hash = createHash("sha256");
      const piece = 8 << 20;
      for (let at = 0; at < source.size; at += piece) {
        hash.update(await source.read(at, Math.min(piece, source.size - at)));
      }
      digests.add(hash.digest("hex"));
    }
    expect([...digests]).toHaveLength(1);
  }
});

test.skipIf(absent)("a layer that is not compressed is no ZFile", async () => {
  expect(await isZFile(await unwrapped("lsmt/mini-append.lsmt"))).toBe(false);
});
