/** Stand-ins for a registry. */
import type { RangeOrigin } from "../../src/blob/origin.ts";
import type { Verity } from "../../src/format/verity/descriptor.ts";
import { random } from "../fixtures/random.ts";

/** `size` bytes that depend on nothing but `seed`. */
export function sampleBytes(size: number, seed = 1): Uint8Array {
  const words = new Uint32Array(Math.ceil(size / 4));
  const next = random(seed);
  for (let i = 0; i < words.length; i++) words[i] = next() * 2 ** 32;
  return new Uint8Array(words.buffer, 0, size);
}

export const DIGEST = `sha256:${"5a".repeat(32)}`;

/** Serves bytes from memory, a little later, and remembers what was asked of it. */
export class MemoryOrigin implements RangeOrigin {
  readonly name = "test object";
  readonly requests: { offset: number; length: number }[] = [];
  /** What to do instead of answering rightly. */
  fault: ((answer: Uint8Array, offset: number) => Uint8Array) | undefined;

  constructor(
    readonly bytes: Uint8Array,
    readonly verity?: Verity,
  ) {}

  get size(): number {
    return this.bytes.length;
  }

  async readRange(offset: number, length: number): Promise<Uint8Array> {
    this.requests.push({ offset, length });
    await Bun.sleep(1);
    const answer = this.bytes.slice(offset, offset + length);
    return this.fault ? this.fault(answer, offset) : answer;
  }

  /** In one buffer that is used again and again. */
  async *readPieces(offset: number, length: number, piece: number): AsyncGenerator<Uint8Array, void> {
    const answer = await this.readRange(offset, length);
    const buffer = new Uint8Array(piece);
    for (let at = 0; at < answer.length; at += piece) {
      const bytes = answer.subarray(at, at + piece);
      buffer.set(bytes);
      yield buffer.subarray(0, bytes.length);
      buffer.fill(0xee);
    }
  }
}
