/** Writable layers in real files against a flat model: one cell for every sector. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { appendFileSync, existsSync, mkdtempSync, rmSync, statSync, truncateSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { commit } from "../../src/format/lsmt/commit.ts";
import { LocalFile } from "../../src/format/lsmt/file.ts";
import { openLayer } from "../../src/format/lsmt/layer.ts";
import { mergeSegments, overlaySegments } from "../../src/format/lsmt/merge.ts";
import { createWritableLayer, openWritableLayer } from "../../src/format/lsmt/pair.ts";
import { restack } from "../../src/format/lsmt/restack.ts";
import { seal } from "../../src/format/lsmt/seal.ts";
import { GAP, type SegmentTable, ZEROED } from "../../src/format/lsmt/segments.ts";
import type { WritableLayer } from "../../src/format/lsmt/writable.ts";
import type { ByteSource } from "../../src/format/source.ts";
import { addressOf } from "../../src/native/address.ts";
import { random } from "../fixtures/random.ts";
import { MemorySink, MemorySource, readSectors } from "./memory.ts";

setDefaultTimeout(60_000);

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "overlaybd-writable-"));
});
afterAll(() => rmSync(folder, { recursive: true }));

const files = (name: string): [string, string] => [
  join(folder, `${name}.data`),
  join(folder, `${name}.index`),
];

/** `sectors` sectors, each full of the number that stands for its content. */
function filled(sectors: number, stamp: number): Uint8Array {
  return new Uint8Array(new Uint32Array(sectors * 128).fill(stamp).buffer);
}

/** In the model: this sector of the layer is not mapped, or zeroed. Everything above is the stamp of its data. */
const UNMAPPED = -1;
const ZERO = 0;

/** A stack of one writable and some read-only layers, in files and as a flat model of the disk, side by side. */
class Stack {
  upper: WritableLayer;
  index: SegmentTable = mergeSegments([]);
  sources: (ByteSource & { close?: () => void })[] = [];
  /** The writable layer's own sectors, and what the read-only layers show. */
  readonly mapped: Int32Array;
  readonly below: Int32Array;
  #generation = 0;

  constructor(
    readonly name: string,
    readonly sectors: number,
    readonly sparse: boolean,
  ) {
    this.mapped = new Int32Array(sectors).fill(UNMAPPED);
    this.below = new Int32Array(sectors);
    this.upper = createWritableLayer(...this.#files(), { size: sectors * 512, sparse });
  }

  #files(): [string, string] {
    return files(`${this.name}-${this.#generation}`);
  }

  write(start: number, length: number, stamp: number): void {
    this.upper.write(start * 512, filled(length, stamp));
    this.mapped.fill(stamp, start, start + length);
  }

  discard(start: number, length: number): void {
    this.upper.discard(start * 512, length * 512);
    this.mapped.fill(ZERO, start, start + length);
  }

  async check(start: number, end: number): Promise<void> {
    const pieces: number[][] = [];
    this.upper.walk(start, end, (...piece) => pieces.push(piece));
    for (const [at, length, tag, moffset] of pieces) {
      let bytes = new Uint8Array(length * 512);
      if (tag === GAP) bytes = new Uint8Array(await readSectors(this.index, this.sources, at, at + length));
      else if (tag !== ZEROED)
        bytes = new Uint8Array(await this.upper.file.read(moffset * 512, length * 512));
      const stamps = new Uint32Array(bytes.buffer);
      for (let i = 0; i < length; i++) {
        const wanted = this.mapped[at + i] === UNMAPPED ? this.below[at + i] : this.mapped[at + i];
        if (stamps[i * 128] !== wanted || stamps[i * 128 + 127] !== wanted) {
          throw new Error(`${this.name}: sector ${at + i} reads ${stamps[i * 128]}, want ${wanted}`);
        }
      }
    }
  }

  reopen(): void {
    this.upper.close();
    this.upper = openWritableLayer(...this.#files());
    if (this.sparse) {
      for (let i = 0; i < this.sectors; i++) if (this.mapped[i] === ZERO) this.mapped[i] = UNMAPPED;
    }
  }

  /** The writable layer becomes a read-only one in place, with a new one above. */
  restack(): void {
    const old = this.upper;
    this.#generation++;
    const { upper, index } = restack(old, this.index, this.sources.length, ...this.#files());
    expect(upper.parentUuid).toBe(old.uuid);
    this.upper = upper;
    this.index = index;
    this.sources.unshift(old.file);
    this.#sink();
  }

  /** Commits the writable layer to a blob that joins the read-only layers, with a new writable one above. */
  async commit(): Promise<void> {
    const sink = new MemorySink();
    await commit(this.upper.segments(), [this.upper.file], sink, { size: this.upper.size });
    const layer = await openLayer(new MemorySource(sink.bytes));
    this.upper.close();
    this.#generation++;
    this.upper = createWritableLayer(...this.#files(), { size: this.sectors * 512, sparse: this.sparse });
    this.index = overlaySegments(layer.segments, this.index, 1);
    this.sources.unshift(layer.source);
    this.#sink();
  }

  /** Merges all read-only layers into one. */
  async merge(): Promise<void> {
    const sink = new MemorySink();
    await commit(this.index, this.sources, sink, { size: this.sectors * 512 });
    const layer = await openLayer(new MemorySource(sink.bytes));
    this.#closeSources();
    this.index = layer.segments;
    this.sources = [layer.source];
  }

  #sink(): void {
    for (let i = 0; i < this.sectors; i++) if (this.mapped[i] !== UNMAPPED) this.below[i] = this.mapped[i];
    this.mapped.fill(UNMAPPED);
  }

  #closeSources(): void {
    for (const source of this.sources) source.close?.();
  }

  close(): void {
    this.#closeSources();
    this.upper.close();
  }
}

describe("a stack in files reads as the flat model", () => {
  for (const { kind, sparse, unit } of [
    { kind: "append-only", sparse: false, unit: 1 },
    // Holes come in file system blocks, so a sparse layer's promise holds for whole ones.
    { kind: "sparse", sparse: true, unit: 8 },
  ]) {
    test(`100,000 operations on ${kind} layers with reopen, commit, restack and merge between`, async () => {
      const next = random(unit);
      const stack = new Stack(kind, 4096, sparse);
      const range = (longest: number): [number, number] => {
        const length = (1 + Math.floor(next() * longest)) * unit;
        return [Math.floor((next() * (stack.sectors - length + unit)) / unit) * unit, length];
      };
      for (let i = 1; i <= 100_000; i++) {
        const dice = next();
        if (dice < 0.5) stack.write(...range(4), i);
        else if (dice < 0.6) stack.discard(...range(next() < 0.01 ? 200 : 6));
        else if (dice < 0.998) {
          const [start, length] = range(3);
          await stack.check(start, start + length);
        } else if (dice < 0.999) stack.reopen();
        else if (dice < 0.9993) stack.upper.flush();
        else if (dice < 0.9996) stack.restack();
        else if (dice < 0.9999) await stack.commit();
        else await stack.merge();
        if (i % 20_000 === 0) await stack.check(0, stack.sectors);
      }
      expect(stack.sources.length).toBeGreaterThan(0);
      stack.close();
    }, 60_000);
  }
});

describe("append-only layer", () => {
  const layout = { size: 64 << 20 };

  function written(name: string): WritableLayer {
    const layer = createWritableLayer(...files(name), layout);
    for (let i = 0; i < 10; i++) layer.write(i * 4096, filled(8, i + 1));
    return layer;
  }

  async function stamps(layer: WritableLayer): Promise<number[]> {
    const bytes = await readSectors(layer.segments(), [layer.file], 0, 80);
    return Array.from({ length: 10 }, (_, i) => new DataView(bytes.buffer).getUint32(i * 4096, true));
  }

  test("a new pair is two headers", () => {
    const layer = createWritableLayer(...files("new"), layout);
    layer.close();
    expect(files("new").map((path) => statSync(path).size)).toEqual([4096, 4096]);
    expect(files("new").map((path) => statSync(path).mode & 0o777)).toEqual([0o644, 0o644]);
  });

  test("writes and discards longer than an entry are cut into several", async () => {
    const layer = createWritableLayer(...files("long"), layout);
    layer.write(0, filled(40_000, 7));
    layer.discard(512, 36_000 * 512);
    layer.close();
    const again = openWritableLayer(...files("long"));
    const pieces: number[][] = [];
    again.walk(0, 40_001, (start, length, tag) => pieces.push([start, length, tag]));
    expect(pieces.filter(([, , tag]) => tag === ZEROED).reduce((sum, [, length]) => sum + length, 0)).toBe(
      36_000,
    );
    expect(pieces[0]).toEqual([0, 1, 0]);
    expect(pieces.at(-1)).toEqual([40_000, 1, GAP]);
    const bytes = await readSectors(again.segments(), [again.file], 0, 40_000);
    const cells = new Uint32Array(bytes.buffer);
    expect([cells[0], cells[128], cells[36_000 * 128], cells[36_001 * 128]]).toEqual([7, 0, 0, 7]);
    again.close();
  });

  test("a stray part of an entry at the end of the index is cut off", async () => {
    written("stray").close();
    appendFileSync(files("stray")[1], Buffer.alloc(11, 0xee));
    const layer = openWritableLayer(...files("stray"));
    layer.write(0, filled(8, 99));
    layer.close();
    const again = openWritableLayer(...files("stray"));
    expect(again.lostEntries).toBe(0);
    expect(await stamps(again)).toEqual([99, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
    again.close();
  });

  test("entries never flushed whose data is missing are dropped, and the log goes on", async () => {
    const layer = createWritableLayer(...files("torn"), layout);
    for (let i = 0; i < 8; i++) layer.write(i * 4096, filled(8, i + 1));
    layer.flush();
    for (let i = 8; i < 10; i++) layer.write(i * 4096, filled(8, i + 1));
    layer.close();
    truncateSync(files("torn")[0], 4096 + 8 * 4096 + 700);
    let again = openWritableLayer(...files("torn"));
    expect(again.lostEntries).toBe(2);
    expect(await stamps(again)).toEqual([1, 2, 3, 4, 5, 6, 7, 8, 0, 0]);
    again.discard(0, 4096);
    again.close();
    again = openWritableLayer(...files("torn"));
    expect(again.lostEntries).toBe(0);
    again.write(9 * 4096, filled(8, 55));
    again.flush();
    again.close();
    const third = openWritableLayer(...files("torn"));
    expect(third.lostEntries).toBe(0);
    expect(await stamps(third)).toEqual([0, 2, 3, 4, 5, 6, 7, 8, 0, 55]);
    third.close();
  });

  test("missing data that was flushed is an error that names the entry", () => {
    const layer = written("short");
    layer.flush();
    layer.close();
    truncateSync(files("short")[0], 4096 + 9 * 4096);
    expect(() => openWritableLayer(...files("short"))).toThrow(
      /short\.index: entry 9 \(8 sectors at sector 72, mapped to sector 80\) points outside/,
    );
  });

  test("an interrupted seal leaves a layer that opens as before", async () => {
    const layer = written("interrupted");
    seal(layer);
    layer.close();
    const size = statSync(files("interrupted")[0]).size;
    for (const cut of [1, 4096, 4097, 4600]) {
      truncateSync(files("interrupted")[0], size - cut);
      const again = openWritableLayer(...files("interrupted"));
      expect(await stamps(again)).toEqual([1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
      again.close();
    }
  });

  test("sealing keeps uuid and parent and reads back", async () => {
    const parentUuid = "00112233-4455-6677-8899-AABBCCDDEEFF";
    const layer = createWritableLayer(...files("sealed"), { ...layout, parentUuid });
    layer.write(4096, filled(8, 3));
    layer.discard(8192, 8192);
    layer.discard(8192, 4096);
    seal(layer);
    const sealed = await openLayer(layer.file);
    expect(sealed).toMatchObject({ size: layout.size, uuid: layer.uuid, parentUuid, userTag: "" });
    expect(sealed.segments).toEqual(layer.segments());
    layer.close();
  });

  test("is opened by one at a time", () => {
    const layer = written("locked");
    expect(() => openWritableLayer(...files("locked"))).toThrow(expect.objectContaining({ code: "E_BUSY" }));
    layer.close();
    openWritableLayer(...files("locked")).close();
  });

  test("refuses another layer's index", () => {
    written("mine").close();
    written("yours").close();
    expect(() => openWritableLayer(files("mine")[0], files("yours")[1])).toThrow(/index of layer/);
  });

  test("creating over a file that exists leaves both as they were", () => {
    const [data, index] = files("exists");
    appendFileSync(index, "precious");
    expect(() => createWritableLayer(data, index, layout)).toThrow(
      `failed to open file '${index}', 17: File exists`,
    );
    expect(existsSync(data)).toBe(false);
    expect(statSync(index).size).toBe(8);
  });

  test("accesses must be whole sectors inside the disk", () => {
    const layer = createWritableLayer(...files("bounds"), layout);
    const usage = expect.objectContaining({ code: "E_USAGE" });
    expect(() => layer.write(100, filled(1, 1))).toThrow(usage);
    expect(() => layer.write(0, new Uint8Array(100))).toThrow(usage);
    expect(() => layer.discard(layout.size - 512, 1024)).toThrow(usage);
    expect(() => layer.write(-512, filled(1, 1))).toThrow(usage);
    expect(() => layer.resize(1000)).toThrow(usage);
    layer.close();
  });
});

for (const sparse of [false, true]) {
  describe(sparse ? "sparse layer" : "append-only layer", () => {
    test("takes native memory, filled up to whole blocks", async () => {
      const layer = createWritableLayer(...files(`native-${sparse}`), { size: 1 << 20, sparse });
      layer.write(0, filled(24, 0xffffffff));
      const bytes = new Uint8Array(5000).fill(7);
      layer.writeFrom(4096, addressOf(bytes), bytes.length, 4096);
      expect(() => layer.writeFrom((1 << 20) - 4096, addressOf(bytes), bytes.length, 4096)).toThrow(
        expect.objectContaining({ code: "E_USAGE" }),
      );
      const read = await readSectors(layer.segments(), [layer.file], 0, 24);
      layer.close();
      const counts = [0xff, 7, 0].map((value) => read.filter((byte) => byte === value).length);
      expect(counts).toEqual([4096, 5000, 8192 - 5000]);
    });

    test("takes a size later and keeps it", () => {
      const name = `resized-${sparse}`;
      const layer = createWritableLayer(...files(name), { size: 0, sparse });
      expect(() => layer.write(0, filled(1, 1))).toThrow(expect.objectContaining({ code: "E_USAGE" }));
      layer.resize(1 << 20);
      layer.write((1 << 20) - 512, filled(1, 1));
      layer.close();
      const again = openWritableLayer(...files(name));
      expect(again.size).toBe(1 << 20);
      again.resize(1 << 19);
      again.close();
      const third = openWritableLayer(...files(name));
      expect(third.size).toBe(1 << 19);
      third.close();
    });

    test("a commit after shrinking maps nothing beyond the disk", async () => {
      const layer = createWritableLayer(...files(`shrunk-${sparse}`), { size: 1 << 20, sparse });
      layer.write(0, filled(2048, 5));
      layer.resize(12 * 4096);
      const sink = new MemorySink();
      await commit(layer.segments(), [layer.file], sink, { size: layer.size });
      layer.close();
      const { segments } = await openLayer(new MemorySource(sink.bytes));
      expect([segments.count, segments.lasts[0]]).toEqual([1, 12 * 8 - 1]);
    });
  });
}

for (const sparse of [false, true]) {
  test(`what a killed process has flushed to ${sparse ? "a sparse" : "an append-only"} layer is there`, async () => {
    const script = join(import.meta.dir, "killed_writer.ts");
    for (let round = 0; round < 3; round++) {
      const name = `killed-${sparse}-${round}`;
      createWritableLayer(...files(name), { size: 1 << 22, sparse }).close();
      const writer = Bun.spawn([process.execPath, script, ...files(name)], { stdout: "pipe" });
      const reader = writer.stdout.getReader();
      let said = "";
      while (said.split("\n").length < 5 + round * 7)
        said += new TextDecoder().decode((await reader.read()).value);
      writer.kill("SIGKILL");
      await writer.exited;
      for (let rest = await reader.read(); !rest.done; rest = await reader.read()) {
        said += new TextDecoder().decode(rest.value);
      }
      const promised = Number(said.trimEnd().split("\n").at(-1));
      const layer = openWritableLayer(...files(name));
      const sectors = layer.size / 512;
      const bytes = await readSectors(layer.segments(), [layer.file], 0, sectors);
      const cells = new Uint32Array(bytes.buffer);
      const wrong = Array.from({ length: Math.min(promised, sectors) }, (_, i) => promised - i).filter(
        // A later write of the same process may have replaced it, one lap ahead.
        (stamp) => {
          const read = cells[(stamp % sectors) * 128];
          return read !== stamp && !(read > promised && read % sectors === stamp % sectors);
        },
      );
      expect(promised).toBeGreaterThan(0);
      expect(wrong).toEqual([]);
      layer.close();
    }
  });

  test(`a failed flush of ${sparse ? "a sparse" : "an append-only"} layer is an error for ever`, () => {
    const layer = createWritableLayer(...files(`failed-${sparse}`), { size: 1 << 20, sparse });
    layer.write(0, filled(1, 1));
    const { fd } = layer.file;
    layer.file.close();
    const io = expect.objectContaining({ code: "E_IO" });
    expect(() => layer.flush()).toThrow(io);
    // Now the descriptor works again, as it does after the kernel has reported a failed write once.
    const replacement = LocalFile.open(files(`failed-${sparse}`)[0], "update");
    expect(replacement.fd).toBe(fd);
    expect(() => layer.flush()).toThrow(io);
    replacement.close();
  });
}

describe("sparse layer", () => {
  test("has the size of its disk, an empty index file, and survives an interrupted seal", async () => {
    const layer = createWritableLayer(...files("plain"), { size: 1 << 20, sparse: true });
    expect(files("plain").map((path) => statSync(path).size)).toEqual([4096 + (1 << 20), 0]);
    layer.write(8192, filled(8, 9));
    seal(layer);
    const sealed = await openLayer(layer.file);
    expect(sealed.segments).toEqual(layer.segments());
    layer.close();
    truncateSync(files("plain")[0], statSync(files("plain")[0]).size - 1);
    const again = openWritableLayer(...files("plain"));
    expect(again.segments()).toEqual(sealed.segments);
    again.close();
  });
});

describe("restack", () => {
  test("that fails leaves no new layer and the old one writable", () => {
    const layer = createWritableLayer(...files("full"), { size: 1 << 20 });
    expect(() => restack(layer, mergeSegments([]), 255, ...files("next"))).toThrow(
      expect.objectContaining({ code: "E_LIMIT" }),
    );
    appendFileSync(files("next")[1], "taken");
    expect(() => restack(layer, mergeSegments([]), 0, ...files("next"))).toThrow(
      expect.objectContaining({ code: "E_EXISTS" }),
    );
    expect(existsSync(files("next")[0])).toBe(false);
    layer.write(0, filled(1, 1));
    layer.close();
  });
});
