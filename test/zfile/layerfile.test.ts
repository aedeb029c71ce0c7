import { expect, test } from "bun:test";
import { closeSync, existsSync, openSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { LayerFile, type LayerFileOptions } from "../../src/format/layerfile.ts";
import { unwrapTar } from "../../src/format/tar/wrapper.ts";
import { ZFileWriter } from "../../src/format/zfile/writer.ts";
import { addressOf } from "../../src/native/address.ts";
import { BlockCompressor } from "../../src/native/compressor.ts";
import { hashFile } from "../../src/native/hash.ts";
import { codeOf, DEFAULTS, MemorySource, readZFile, sample, withFolder } from "./zfile.ts";

const shapes: readonly LayerFileOptions[] = [
  {},
  { tar: true },
  { zfile: DEFAULTS },
  { tar: true, zfile: DEFAULTS },
  { tar: true, zfile: { ...DEFAULTS, overwriteHeader: false } },
];

/** The content of a layer file of that shape. */
async function contentOf(file: Uint8Array, shape: LayerFileOptions): Promise<Uint8Array> {
  const { start, size } = await unwrapTar(new MemorySource(file));
  expect(start).toBe(shape.tar ? 1536 : 0);
  const layer = file.subarray(start, start + size);
  return shape.zfile ? readZFile(layer) : layer;
}

test("whatever the shape, what is written comes back and the size is right", async () => {
  for (const shape of shapes) {
    const [file, size] = withFolder((folder) => {
      const path = join(folder, "layer");
      const layer = new LayerFile(path, shape);
      layer.write(sample(10_000, 1));
      layer.writeZeros(300_000);
      layer.write(sample(70_001, 2));
      layer.writeZeros(5_000);
      expect(layer.position).toBe(385_001);
      expect(existsSync(path)).toBe(false);
      const size = layer.finish();
      expect(readdirSync(folder)).toEqual(["layer"]);
      return [new Uint8Array(readFileSync(path)), size];
    });
    expect(size).toBe(file.length);
    const expected = Buffer.concat([
      sample(10_000, 1),
      Buffer.alloc(300_000),
      sample(70_001, 2),
      Buffer.alloc(5_000),
    ]);
    expect(Buffer.compare(await contentOf(file, shape), expected)).toBe(0);
  }
});

test("native memory is appended like bytes, in any mixture", async () => {
  const bytes = sample(200_000, 7);
  const address = addressOf(bytes);
  for (const shape of shapes) {
    const file = withFolder((folder) => {
      const layer = new LayerFile(join(folder, "layer"), shape);
      layer.writeFrom(address, 4096);
      layer.write(bytes.subarray(4096, 5000));
      layer.writeFrom(address + 5000, 0);
      layer.writeFrom(address + 5000, 195_000);
      expect(layer.position).toBe(200_000);
      layer.finish();
      return new Uint8Array(readFileSync(join(folder, "layer")));
    });
    expect(Buffer.compare(await contentOf(file, shape), bytes)).toBe(0);
  }
});

test("an empty layer of every shape", async () => {
  for (const shape of shapes) {
    const file = withFolder((folder) => {
      const layer = new LayerFile(join(folder, "layer"), shape);
      layer.finish();
      return new Uint8Array(readFileSync(join(folder, "layer")));
    });
    expect(await contentOf(file, shape)).toHaveLength(0);
  }
});

test("an existing file is refused, or replaced only at the end", () => {
  withFolder((folder) => {
    const path = join(folder, "layer");
    writeFileSync(path, "old");
    expect(() => new LayerFile(path)).toThrow("exists already");
    const layer = new LayerFile(path, { replace: true });
    layer.write(Buffer.from("new"));
    expect(readFileSync(path, "utf8")).toBe("old");
    layer.finish();
    expect(readFileSync(path, "utf8")).toBe("new");
    expect(readdirSync(folder)).toEqual(["layer"]);
  });
});

test("a file made by somebody else in the meantime is kept", () => {
  withFolder((folder) => {
    const path = join(folder, "layer");
    const layer = new LayerFile(path);
    writeFileSync(path, "theirs");
    expect(() => layer.finish()).toThrow("exists already");
    expect(readFileSync(path, "utf8")).toBe("theirs");
    expect(readdirSync(folder)).toEqual(["layer"]);
  });
});

test("abandoning leaves nothing, also while threads compress, also twice", () => {
  withFolder((folder) => {
    for (const shape of shapes) {
      const layer = new LayerFile(join(folder, "layer"), shape);
      layer.write(sample(3_000_000, 5));
      layer.abandon();
      layer.abandon();
      expect(readdirSync(folder)).toEqual([]);
    }
  });
});

test("permissions follow the mode and the umask", () => {
  const before = process.umask(0o027);
  withFolder((folder) => {
    new LayerFile(join(folder, "layer"), { mode: 0o700 }).finish();
    expect(statSync(join(folder, "layer")).mode & 0o777).toBe(0o700);
    new LayerFile(join(folder, "other"), { tar: true }).finish();
    expect(readFileSync(join(folder, "other")).toString("latin1", 1124, 1130)).toBe("100640");
  });
  process.umask(before);
});

test("a folder that does not exist is an error that names the file", async () => {
  const attempt = (async () => new LayerFile("/nowhere/at/all/layer"))();
  expect(await codeOf(attempt)).toBe("E_IO");
  expect(() => new LayerFile("/nowhere/at/all/layer")).toThrow("/nowhere/at/all/layer");
});

test("a full disk shows at an append or at the end, and as E_IO that names the file", async () => {
  const fd = openSync("/dev/full", "w");
  expect(() => new ZFileWriter({ fd, path: "full.layer" }, 0, DEFAULTS)).toThrow(/full\.layer.*ENOSPC/);
  for (const bytes of [1, 100_000, 50_000_000]) {
    const compressor = new BlockCompressor({ ...DEFAULTS, fd, offset: 0 });
    expect(() => {
      compressor.appendZeros(bytes);
      compressor.finish();
    }).toThrow("ENOSPC");
    compressor.close();
  }
  closeSync(fd);
});

test("kill -9 while writing leaves nothing under the file's name", async () => {
  const script = `
    import { LayerFile } from ${JSON.stringify(join(import.meta.dir, "../../src/format/layerfile.ts"))};
    const layer = new LayerFile(process.argv[1], {
      tar: true,
      zfile: { codec: 1, blockSize: 4096, checksum: true, overwriteHeader: true, threads: 2 },
    });
    const bytes = crypto.getRandomValues(new Uint8Array(65536));
    for (;;) {
      layer.write(bytes);
      process.stdout.write(".");
    }`;
  await withFolder(async (folder) => {
    const child = Bun.spawn([process.execPath, "-e", script, join(folder, "layer")], { stdout: "pipe" });
    await child.stdout.getReader().read();
    child.kill("SIGKILL");
    await child.exited;
    expect(readdirSync(folder).filter((name) => !name.endsWith(".partial"))).toEqual([]);
  });
});

test("the digest and size of a whole file", () => {
  withFolder((folder) => {
    const path = join(folder, "file");
    for (const size of [0, 1, 262_144, 1_000_001]) {
      const bytes = sample(size, size);
      writeFileSync(path, bytes);
      const sha256 = new Bun.CryptoHasher("sha256").update(bytes).digest("hex");
      expect(hashFile(path)).toEqual({ sha256, size });
    }
    expect(() => hashFile(join(folder, "absent"))).toThrow("ENOENT");
  });
});
