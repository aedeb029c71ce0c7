/**
 * Images that cannot be converted, from a layout and from a registry: an error that names the blob and the place, exit code
 * 1, bounded memory, and nothing left behind.
 */
import { afterEach, beforeEach, expect, setDefaultTimeout, test } from "bun:test";
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { serveRegistry } from "../../src/registry/server.ts";
import { gzipLayer, HandmadeLayout, type SourceImage, type SourceLayer } from "../fixtures/layout.ts";
import { MEMORY_LIMIT, run } from "../fixtures/program.ts";
import { extension, type Member, member, octal, seal, tar } from "../fixtures/tar.ts";
import { noise } from "../registry/images.ts";
import { verifyLayout } from "./layout_state.ts";

setDefaultTimeout(60_000);

const MEBIBYTE = 2 ** 20;

const good = gzipLayer(
  tar([{ path: "./" }, { path: "etc/passwd", data: "root" }, { path: "big", data: noise(300_000, 1) }]),
);
const layer = (members: Member[]): SourceLayer => gzipLayer(tar(members));
/** One of the members of a gzip file of zeros. */
const zeros = Bun.gzipSync(new Uint8Array(64 * MEBIBYTE));
/** What decompresses to `head` and `mebibytes` MiB of zeros. */
const bomb = (head: Uint8Array, mebibytes: number): SourceLayer => ({
  content: Buffer.concat([Bun.gzipSync(Buffer.from(head)), ...Array(mebibytes / 64).fill(zeros)]),
});

/** An extended header that claims `size` bytes. */
function hugeExtension(flag: string, size: number): Uint8Array {
  const header = Buffer.from(extension(flag, new Uint8Array(0)));
  header.set(octal(size, 12), 124);
  return seal(header);
}

function flipped(bytes: Uint8Array, offset: number): Uint8Array {
  const copy = Buffer.from(bytes);
  copy[offset] ^= 4;
  return copy;
}

interface Case {
  readonly image: SourceImage;
  /** What the message says, after the layer or blob it names. */
  readonly says: RegExp;
  /** What is said of a blob from a registry, whose bytes are verified before anything else. */
  readonly saysOfRemote?: RegExp;
}

const upper = (top: SourceLayer, says: RegExp, saysOfRemote?: RegExp): Case => ({
  image: { layers: [good, top] },
  says,
  saysOfRemote,
});
const bottom = (only: SourceLayer, says: RegExp): Case => ({ image: { layers: [only] }, says });

const other = layer([{ path: "other", data: noise(200_000, 2) }]);
const cases: Record<string, Case> = {
  "a truncated blob": upper(
    { ...other, stored: other.content.subarray(0, 100_000) },
    /^layer 1 \(DIGEST\), member "other": .* ends too early at byte 100000 of the input/,
    /^blob DIGEST bytes 100000-\d+:/,
  ),
  "a flipped bit": upper(
    { ...other, stored: flipped(other.content, 150_000) },
    /^layer 1 \(DIGEST\): .*(damaged|checksum) at byte \d+ of the input/,
    /^blob DIGEST of \S+: content has digest/,
  ),
  "another blob under the digest": upper(
    { ...other, stored: good.content },
    /^layer 1 \(DIGEST\): failed to verify digest DIGEST: read \d+ of \d+ bytes/,
    /^blob DIGEST of \S+: has more than the \d+ bytes of its descriptor/,
  ),
  "a blob that is not there": upper({ ...other, stored: null }, /HEX: ENOENT/, /^blob DIGEST: .* 404/),
  "a blob smaller than said": upper(
    { ...other, size: other.content.length + 1 },
    /^layer 1 \(DIGEST\): failed to verify digest/,
    /^blob DIGEST bytes \d+-\d+:/,
  ),
  "a blob larger than said": upper(
    { ...other, size: other.content.length - 1 },
    /^layer 1 \(DIGEST\): failed to verify digest/,
    /^blob DIGEST of \S+: has more than/,
  ),
  "compressed noise": upper(
    gzipLayer(noise(MEBIBYTE, 3)),
    /^layer 1 \(DIGEST\): .*checksum.*at byte 0 of the archive/,
  ),
  noise: upper({ content: noise(MEBIBYTE, 4) }, /^layer 1 \(DIGEST\): .*checksum.*at byte 0 of the archive/),
  "an archive that is cut": upper(
    gzipLayer(tar([{ path: "cut", data: noise(100_000, 5) }]).subarray(0, 50_000)),
    /^layer 1 \(DIGEST\), member "cut": the archive ends .* before the content does/,
  ),
  "3 GiB for a disk of 1": bottom(
    bomb(member({ path: "huge", size: 3072 * MEBIBYTE }), 3072),
    /^layer 0 \(DIGEST\), member "huge": no space is left .* larger virtual size/,
  ),
  "6 GiB of padding": bottom(
    bomb(new Uint8Array(1024), 6144),
    /^layer 0 \(DIGEST\): decompresses to more than allowed/,
  ),
  "a PAX header of 1 GiB": upper(
    bomb(hugeExtension("x", 1024 * MEBIBYTE), 1024),
    /^layer 1 \(DIGEST\): more than 1048576 bytes of extended headers .*at byte 512/,
  ),
  "a name of 1 GiB": upper(
    bomb(hugeExtension("L", 1024 * MEBIBYTE), 1024),
    /^layer 1 \(DIGEST\): more than 1048576 bytes of extended headers .*at byte 512/,
  ),
  "more files than inodes": bottom(
    layer(Array.from({ length: 70_000 }, (_, i) => ({ path: `f${i}` }))),
    /^layer 0 \(DIGEST\), member "f\d+": no inodes are left/,
  ),
  "data larger than the disk that is left": {
    image: { layers: [good, gzipLayer(tar([{ path: "a", data: noise(MEBIBYTE, 6), size: 2 ** 30 }]))] },
    says: /^layer 1 \(DIGEST\), member "a": no space is left/,
  },
  "a name that leads out": upper(
    layer([{ path: "../../escape", data: "x" }]),
    /^layer 1 \(DIGEST\), member "..\/..\/escape": the name leads out of the root/,
  ),
  "a hard link that leads out": upper(
    layer([{ path: "l", type: "hardlink", linkname: "../../etc/shadow" }]),
    /^layer 1 \(DIGEST\), member "l": the link target leads out of the root/,
  ),
  "a hard link to nothing": upper(
    layer([{ path: "l", type: "hardlink", linkname: "nothing" }]),
    /^layer 1 \(DIGEST\), member "l": the hard link's target "nothing" does not exist/,
  ),
  "links in a circle": upper(
    layer([
      { path: "a", type: "symlink", linkname: "b" },
      { path: "b", type: "symlink", linkname: "a" },
      { path: "a/file", data: "x" },
    ]),
    /^layer 1 \(DIGEST\), member "a\/file": too many symbolic links/,
  ),
  "a file as a directory": upper(
    layer([{ path: "etc/passwd/x", data: "x" }]),
    /^layer 1 \(DIGEST\), member "etc\/passwd\/x": "passwd" on the way is not a directory/,
  ),
  "diff ids that do not match the layers": {
    image: { layers: [good, other], config: { rootfs: { type: "layers", diff_ids: [good.diffId] } } },
    says: /^config sha256:[0-9a-f]{64} of \S+: 1 diff ids for the manifest's 2 layers/,
  },
  "a config that is none": {
    image: { layers: [good], config: { rootfs: 7 } },
    says: /^config sha256:[0-9a-f]{64} of \S+: 0 diff ids/,
  },
  "more layers than a disk is made of": {
    image: { layers: Array<SourceLayer>(256).fill(good) },
    says: /^manifest sha256:[0-9a-f]{64} of \S+ has 256 layers; 255 is the limit/,
  },
  "a manifest without layers field": {
    image: { layers: [good], manifest: { layers: "none" } },
    says: /^manifest sha256:[0-9a-f]{64} of \S+: layers is not a list/,
  },
};

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "overlaybd-refused-"));
});
afterEach(() => rmSync(folder, { recursive: true }));

async function expectRefused(repository: string, message: RegExp): Promise<void> {
  const [work, target] = [join(folder, "work"), join(folder, "out")];
  const options = ["--to", `oci:${target}`, "-o", "obd", "--vsize", "1", "-d", work, "--plain"];
  const { code, out, err, peakMemory } = await run(["convert", "-r", repository, "-i", "latest", ...options]);
  expect(err).toStartWith("overlaybd convert: ");
  expect(err.slice("overlaybd convert: ".length)).toMatch(message);
  expect({ code, out }).toEqual({ code: 1, out: "" });
  expect(err.trimEnd().split("\n")).toHaveLength(1);
  expect(peakMemory).toBeLessThan(MEMORY_LIMIT);
  expect(readdirSync(work)).toEqual([]);
  expect(await verifyLayout(target)).toEqual({ tags: {}, unfinished: [] });
}

test.each(Object.entries(cases))("%s", async (_, { image, says, saysOfRemote = says }) => {
  const input = join(folder, "in");
  const layout = new HandmadeLayout(input);
  layout.tag(layout.image(image));
  const last = image.layers.at(-1) as SourceLayer;
  const { digest } = layout.blob(last.content, "", null);
  const named = (pattern: RegExp) =>
    new RegExp(pattern.source.replaceAll("DIGEST", digest).replaceAll("HEX", digest.slice("sha256:".length)));

  await expectRefused(`oci:${input}`, named(says));
  const registry = await serveRegistry({ directory: input, readOnly: true, hostname: "127.0.0.1", port: 0 });
  try {
    await expectRefused(`${new URL(registry.url).host}/some/image`, named(saysOfRemote));
  } finally {
    await registry.stop();
  }
});
