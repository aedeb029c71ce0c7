import { describe, expect, test } from "bun:test";
import { formatVerity, parseVerity } from "../../src/format/verity/descriptor.ts";
import {
  LEAF_BYTES,
  MAX_DATA_BYTES,
  NODE_BYTES,
  proofRange,
  TreeShape,
} from "../../src/format/verity/shape.ts";
import { random } from "../fixtures/random.ts";

const FAN_OUT = 128;
/** Data sizes on both sides of every boundary of leaves and of levels up to the fourth, and some others. */
const SIZES = (() => {
  const sizes = new Set<number>();
  for (const leaves of [1, 2, FAN_OUT, FAN_OUT ** 2, FAN_OUT ** 3]) {
    for (let step = -5; step <= 5; step++) sizes.add(leaves * LEAF_BYTES + step * NODE_BYTES);
  }
  const next = random(3);
  for (let i = 0; i < 50; i++) sizes.add(Math.ceil(next() * 2 ** (14 + i / 2)) * NODE_BYTES);
  return [...sizes].filter((size) => size > 0 && size <= MAX_DATA_BYTES);
})();

describe("the shape of a tree", () => {
  test("has as many nodes as a tree built level by level, and no byte without a section", () => {
    for (const size of SIZES) {
      let nodes = 0;
      let levels = 0;
      for (let below = Math.ceil(size / LEAF_BYTES); below > 1 || levels === 0; levels++) {
        below = Math.ceil(below / FAN_OUT);
        nodes += below;
      }
      const shape = new TreeShape(size, "blob");
      expect(shape.treeBytes).toBe(nodes * NODE_BYTES);
      expect(shape.sections).toHaveLength(levels + 2);
      let end = 0;
      for (const section of shape.sections) {
        expect(section.offset).toBe(end);
        end += section.length;
      }
      expect(end).toBe(shape.blobBytes);
    }
  });

  test("proves every chunk by digests that lie before it, or behind the data, within one level", () => {
    for (const size of SIZES) {
      const { sections, dataBytes } = new TreeShape(size, "blob");
      const [data, ...nodes] = sections;
      expect(nodes[0].proof).toBe("root");
      for (const section of sections) {
        if (typeof section.proof !== "number") continue;
        const run = { section, offset: section.offset, length: section.length };
        const proof = proofRange(run) as { offset: number; length: number };
        const holder = nodes.find(({ offset }) => offset === proof.offset);
        expect(proof.length).toBeLessThanOrEqual(holder?.length as number);
        expect((holder?.length as number) - proof.length).toBeLessThan(NODE_BYTES);
        expect(proof.offset < section.offset || section === data).toBe(true);
      }
      expect(dataBytes).toBe(size);
    }
  });

  test("covers any range by whole chunks and no more of them than needed", () => {
    const next = random(4);
    for (const size of SIZES) {
      const shape = new TreeShape(size, "blob");
      for (let i = 0; i < 40; i++) {
        const begin = Math.floor(next() * shape.blobBytes);
        const end = begin + 1 + Math.floor(next() ** 4 * (shape.blobBytes - begin - 1));
        const runs = shape.runs(begin, end);
        let at = runs[0].offset;
        for (const { section, offset, length } of runs) {
          expect(offset).toBe(at);
          expect((offset - section.offset) % section.chunkBytes).toBe(0);
          at += length;
        }
        const [first, last] = [runs[0], runs[runs.length - 1]];
        expect(first.offset).toBeLessThanOrEqual(begin);
        expect(begin - first.offset).toBeLessThan(first.section.chunkBytes);
        expect(at).toBeGreaterThanOrEqual(end);
        expect(at - end).toBeLessThan(last.section.chunkBytes);
      }
    }
  });

  test("lets every refill unit from a leaf upwards be checked by itself", () => {
    for (const size of SIZES.filter((bytes) => bytes < 2 ** 26)) {
      const shape = new TreeShape(size, "blob");
      for (let unit = 0; unit * LEAF_BYTES < shape.blobBytes; unit++) {
        const end = Math.min((unit + 1) * LEAF_BYTES, shape.blobBytes);
        const runs = shape.runs(unit * LEAF_BYTES, end);
        const last = runs[runs.length - 1];
        expect([runs[0].offset, last.offset + last.length]).toEqual([unit * LEAF_BYTES, end]);
      }
    }
  });
});

describe("the annotation", () => {
  const root = "0123456789abcdef".repeat(4);
  const dataBytes = 10 * NODE_BYTES;
  const { blobBytes } = new TreeShape(dataBytes, "blob");

  test("reads back as it was written", () => {
    const text = formatVerity({ root, dataBytes });
    expect(text).toBe(`root=sha256:${root},leaf=16384,data=40960`);
    expect(parseVerity(text, blobBytes, "blob")).toEqual({ root, dataBytes });
  });

  test.each([
    ["", "E_CORRUPT"],
    ["yes", "E_CORRUPT"],
    [`root=sha256:${root}`, "E_CORRUPT"],
    [`root=sha256:${root.slice(1)},leaf=16384,data=40960`, "E_CORRUPT"],
    [`root=sha256:${root.toUpperCase()},leaf=16384,data=40960`, "E_CORRUPT"],
    [`root=sha256:${root},leaf=16384,data=40960,more=1`, "E_CORRUPT"],
    [`root=sha256:${root},leaf=16384,data=-4096`, "E_CORRUPT"],
    [`root=sha256:${root},leaf=16384,data=40961`, "E_CORRUPT"],
    [`root=sha256:${root},leaf=16384,data=4096`, "E_CORRUPT"],
    [`root=sha256:${root},leaf=16384,data=4503599627370496`, "E_LIMIT"],
    [`root=sha256:${root},leaf=16384,data=99999999999999999999`, "E_CORRUPT"],
    [`root=sha256:${root},leaf=4096,data=40960`, "E_UNSUPPORTED"],
    [`root=blake3:${root},leaf=16384,data=40960`, "E_UNSUPPORTED"],
  ])("%j is refused", (text, code) => {
    const parse = () => parseVerity(text, blobBytes, "blob sha256:77");
    expect(parse).toThrow(expect.objectContaining({ code }));
    expect(parse).toThrow("blob sha256:77");
  });

  test("is refused for a blob of another size", () => {
    const text = formatVerity({ root, dataBytes });
    for (const size of [0, blobBytes - 1, blobBytes + 1, blobBytes * 2]) {
      expect(() => parseVerity(text, size, "blob")).toThrow(expect.objectContaining({ code: "E_CORRUPT" }));
    }
  });
});
