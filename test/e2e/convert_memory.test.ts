/** Memory of a conversion of layers like those that are measured in test/bench: within what docs/limits.md says. */
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { serveRegistry } from "../../src/registry/server.ts";
import { HandmadeLayout, type SourceLayer } from "../fixtures/layout.ts";
import { EXECUTABLE, FROM_SOURCE, MEMORY_LIMIT, run } from "../fixtures/program.ts";
import { member } from "../fixtures/tar.ts";
import { noise } from "../registry/images.ts";

setDefaultTimeout(120_000);

const MEBIBYTE = 2 ** 20;
const FILES = 60_000;

/** The concatenation of `parts`, each compressed once, however often it occurs. */
function gzipParts(parts: readonly Uint8Array<ArrayBuffer>[]): SourceLayer {
  const compressed = new Map(parts.map((part) => [part, Bun.gzipSync(part, { level: 1 })]));
  const hash = new Bun.CryptoHasher("sha256");
  for (const part of parts) hash.update(part);
  const content = Buffer.concat(parts.map((part) => compressed.get(part) as Uint8Array));
  return { content, diffId: `sha256:${hash.digest("hex")}` };
}

/** One file of 192 MiB. */
function largeFile(): SourceLayer {
  const piece = noise(16 * MEBIBYTE, 1);
  const pieces = Array<typeof piece>(12).fill(piece);
  const header = member({ path: "large", size: pieces.length * piece.length });
  return gzipParts([new Uint8Array(header), ...pieces, new Uint8Array(1024)]);
}

/** Files of a tenth of a block to half a block. */
function smallFiles(): SourceLayer {
  const bytes = noise(MEBIBYTE, 2).map((byte) => byte & 0x1f);
  const members = Array.from({ length: FILES }, (_, i) => {
    const offset = (i * 512) % (MEBIBYTE - 2048);
    const path = `usr/share/d${i % 1000}/file${i}`;
    return member({ path, data: bytes.subarray(offset, offset + 400 + ((i * 7) % 1648)) });
  });
  return gzipParts([new Uint8Array(Buffer.concat(members)), new Uint8Array(1024)]);
}

let folder: string;
let input: string;

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "overlaybd-memory-"));
  input = join(folder, "in");
  const layout = new HandmadeLayout(input);
  layout.tag(layout.image({ layers: [largeFile(), smallFiles()] }));
});
afterAll(() => rmSync(folder, { recursive: true }));

async function expectBounded(from: string, to: string): Promise<void> {
  const words = ["-r", from, "-i", "latest", "--to", to, "-o", "obd", "--vsize", "4", "--plain"];
  const program = EXECUTABLE ?? FROM_SOURCE;
  const { code, err, peakMemory } = await run(["convert", ...words, "-d", join(folder, "work")], { program });
  expect({ code, err }).toEqual({ code: 0, err: "" });
  expect(peakMemory).toBeLessThan(MEMORY_LIMIT);
}

test("from a layout to a layout", () => expectBounded(`oci:${input}`, `oci:${join(folder, "out")}`));

test("from a registry to a registry", async () => {
  const source = await serveRegistry({ directory: input, readOnly: true });
  const target = await serveRegistry({ directory: join(folder, "target") });
  try {
    await expectBounded(`${new URL(source.url).host}/from`, `${new URL(target.url).host}/to`);
  } finally {
    await source.stop();
    await target.stop();
  }
});
