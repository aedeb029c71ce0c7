import { ptr } from "bun:ffi";
import { afterAll, describe, expect, test } from "bun:test";
import { closeSync, mkdtempSync, openSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { compressBlock, compressBound, crc32c } from "../../src/native/codec.ts";
import { SystemError } from "../../src/native/errno.ts";
import { type Engine, Plan, PlanError } from "../../src/native/plan.ts";
import { random } from "./random.ts";

const BLOCK_SEED = 100007;
const folder = mkdtempSync(join(tmpdir(), "overlaybd-plan-"));
const { below, text, bytes } = random(11);

/** A file of blocks of every codec, size and compressibility, and where they are. */
const blocks: { codec: 1 | 2; checksum: boolean; offset: number; stored: number; plain: Uint8Array }[] = [];
const pieces: Uint8Array[] = [bytes(777)];
let end = 777;
for (let i = 0; i < 200; i++) {
  const codec = i % 2 === 0 ? 1 : 2;
  const checksum = i % 3 !== 0;
  const length = [4096, 4096, 8192, 65536, 1 + below(65536)][i % 5];
  const plain = i % 7 === 0 ? bytes(length) : text(length);
  const target = new Uint8Array(compressBound(codec, length));
  const stored = target.subarray(0, compressBlock(codec, plain, target));
  blocks.push({ codec, checksum, offset: end, stored: stored.length, plain });
  pieces.push(stored);
  if (checksum) pieces.push(new Uint8Array(Uint32Array.of(crc32c(stored, BLOCK_SEED)).buffer));
  end += stored.length + (checksum ? 4 : 0);
}
const content = Buffer.concat(pieces);
const path = join(folder, "blocks");
writeFileSync(path, content);
const fd = openSync(path, "r");
afterAll(() => {
  closeSync(fd);
  rmSync(folder, { recursive: true });
});

function failure(plan: Plan, target: Uint8Array): PlanError {
  try {
    plan.execute(ptr(target), target.length);
  } catch (error) {
    if (error instanceof PlanError) return error;
    throw error;
  }
  throw new Error("the plan succeeded");
}

/** The engine's plan, or null where the kernel or a sandbox does not offer it. */
function open(engine: Engine): Plan | null {
  try {
    return new Plan({ engine, steps: 300, scratchBytes: 4 << 20 });
  } catch (error) {
    if (error instanceof SystemError && error.code === "EOPNOTSUPP") return null;
    throw error;
  }
}

for (const engine of [0, 1, 2, 3] as const) {
  const plan = open(engine);
  if (plan === null) console.warn(`engine ${engine} is not offered by this system: its tests are skipped`);
  describe.skipIf(plan === null)(`engine ${engine}`, () => {
    if (plan === null) return;
    afterAll(() => plan.close());

    test("random plans give the same bytes as a model", () => {
      for (let round = 0; round < 25; round++) {
        const target = bytes(1 << 20);
        const expected = target.slice();
        plan.reset();
        for (let at = below(100); at < target.length; ) {
          const room = target.length - at;
          const choice = below(4);
          if (plan.full(2, 70_000)) break;
          let length = Math.min(room, 1 + below(20_000));
          if (choice === 0) {
            plan.zero(at, length);
            expected.fill(0, at, at + length);
          } else if (choice === 1) {
            const offset = below(content.length - length);
            plan.copy(fd, offset, length, at);
            expected.set(content.subarray(offset, offset + length), at);
          } else {
            const block = blocks[below(blocks.length)];
            const whole = below(2) === 0;
            const skip = whole ? 0 : below(block.plain.length);
            length = Math.min(room, whole ? block.plain.length : 1 + below(block.plain.length - skip));
            const scratch = plan.fetch(fd, block.offset, block.stored + (block.checksum ? 4 : 0));
            const { codec, checksum, stored, plain } = block;
            plan.block(codec, checksum, scratch, stored, plain.length, skip, length, at);
            expected.set(plain.subarray(skip, skip + length), at);
          }
          at += length + below(500);
        }
        plan.execute(ptr(target), target.length);
        expect(Buffer.compare(target, expected)).toBe(0);
      }
    });

    test("says which step failed and why", () => {
      const target = new Uint8Array(65536);
      const block = blocks.find((b) => b.checksum && b.codec === 1) as (typeof blocks)[number];

      plan.reset();
      plan.zero(0, 10);
      plan.copy(fd, content.length - 5, 10, 0);
      expect(failure(plan, target)).toMatchObject({ step: 1, cause: "short", errno: 0 });

      plan.reset();
      plan.copy(1 << 20, 0, 10, 0);
      expect(failure(plan, target)).toMatchObject({ step: 0, cause: "system", errno: 9 });

      plan.reset();
      const scratch = plan.fetch(fd, block.offset - 1, block.stored + 5);
      plan.block(1, true, scratch, block.stored, block.plain.length, 0, 1, 0);
      expect(failure(plan, target)).toMatchObject({ step: 1, cause: "checksum", errno: 0 });

      plan.reset();
      plan.fetch(fd, block.offset, block.stored + 4);
      plan.block(1, true, 0, block.stored, block.plain.length, 0, 1, 0);
      plan.block(1, true, 0, block.stored, block.plain.length - 1, 0, 1, 0);
      expect(failure(plan, target)).toMatchObject({ step: 2, cause: "decompress", errno: 0 });
      expect(plan.step(2)).toEqual({
        kind: "block",
        codec: 1,
        checksum: true,
        scratch: 0,
        storedLength: block.stored,
        plainLength: block.plain.length - 1,
        skip: 0,
        take: 1,
        target: 0,
      });
    });

    test("refuses steps that leave their memory", () => {
      const target = new Uint8Array(4096);
      const guard = target.slice();
      const inside = target.subarray(1024, 2048);
      const hostile: ((p: Plan) => void)[] = [
        (p) => p.zero(1024, 1),
        (p) => p.zero(0, 1025),
        (p) => p.zero(0xffffffff, 2),
        (p) => p.copy(fd, 0, 100, 1000),
        (p) => p.copy(fd, -1, 100, 0),
        (p) => p.copy(fd, Number.NaN, 100, 0),
        (p) => p.copy(fd, 2 ** 53, 100, 0),
        (p) => p.block(1, false, 4 << 20, 1, 10, 0, 10, 0),
        (p) => p.block(1, true, (4 << 20) - 13, 10, 10, 0, 10, 0),
        (p) => p.block(1, true, 0, 0xffffffff, 10, 0, 10, 0),
        (p) => p.block(1, false, 0, 10, 65537, 0, 10, 0),
        (p) => p.block(1, false, 0, 10, 100, 91, 10, 0),
        (p) => p.block(1, false, 0, 10, 2000, 0, 1025, 0),
        (p) => p.block(1, false, 0, 10, 100, 0, 100, 1000),
        (p) => p.block(3 as 1, false, 0, 10, 100, 0, 100, 0),
      ];
      for (const add of hostile) {
        plan.reset();
        add(plan);
        expect(failure(plan, inside)).toMatchObject({ step: 0, cause: "system", errno: 22 });
      }
      expect(Buffer.compare(target, guard)).toBe(0);
    });
  });
}

test("a plan says when it is full", () => {
  const plan = new Plan({ steps: 2, scratchBytes: 4096 });
  expect(plan.full(2, 4096)).toBe(false);
  expect(plan.full(3, 0)).toBe(true);
  expect(plan.full(1, 4097)).toBe(true);
  expect(() => plan.fetch(fd, 0, 4097)).toThrow(RangeError);
  expect(plan.fetch(fd, 5, 4000)).toBe(0);
  expect(() => plan.fetch(fd, 0, 97)).toThrow(RangeError);
  plan.copy(fd, 2 ** 40, 1, 2);
  expect(() => plan.zero(0, 1)).toThrow(RangeError);
  expect(plan.length).toBe(2);
  expect(plan.step(0)).toEqual({ kind: "fetch", fd, offset: 5, length: 4000, scratch: 0 });
  expect(plan.step(1)).toEqual({ kind: "copy", fd, offset: 2 ** 40, length: 1, target: 2 });
  expect(() => plan.step(2)).toThrow(RangeError);
  plan.reset();
  expect(plan.length).toBe(0);
  plan.close();
});
