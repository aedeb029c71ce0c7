/** Seeded, bounded fuzzing from the samples in `corpus`: any outcome but a proper result or a proper error is a failure. */
import { describe, expect, test } from "bun:test";
import { closeSync, mkdtempSync, openSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { OverlaybdError } from "../../src/error.ts";
import { openStream, StreamError } from "../../src/native/inflate.ts";
import { random } from "../fixtures/random.ts";
import { seal } from "../fixtures/tar.ts";
import { gather } from "./memory.ts";

const corpus = join(import.meta.dir, "corpus");
const samples = (suffix: RegExp) =>
  readdirSync(corpus)
    .filter((name) => suffix.test(name))
    .sort();

const BLOCK = 512;
const ROUNDS = 1500;
const OUTPUT_LIMIT = 1 << 20;

type Random = () => number;
const below = (next: Random, bound: number) => Math.floor(next() * bound);

/** What reading comes to, as text: all members and their content, or the error without its place. */
function outcome(archive: Uint8Array, chunkBytes?: () => number): string {
  try {
    const members = gather(archive, chunkBytes);
    return JSON.stringify(
      members.map((m) => ({
        ...m,
        xattrs: [...(m.xattrs ?? [])],
        content: Bun.hash(m.content).toString(16),
      })),
    );
  } catch (error) {
    if (!(error instanceof OverlaybdError)) throw error;
    return `${error.code} ${error.message}`;
  }
}

const randomChunks = (next: Random) => () => BLOCK * (1 + below(next, 7));

describe.each(samples(/\.tar$/))("%s", (name) => {
  const sound = readFileSync(join(corpus, name));

  test("is read the same in chunks of any size", () => {
    const whole = outcome(sound);
    expect(whole).toStartWith("[{");
    for (let seed = 0; seed < 50; seed++) expect(outcome(sound, randomChunks(random(seed)))).toBe(whole);
  });

  test("damaged: a result or an error, the same in chunks of any size", () => {
    const next = random(name.length);
    const outcomes = new Set<string>();
    for (let round = 0; round < ROUNDS; round++) {
      const archive = damage(sound, next);
      const result = outcome(archive);
      expect(outcome(archive, randomChunks(next))).toBe(result);
      outcomes.add(result.split(" ", 1)[0]);
    }
    expect(outcomes.has("E_CORRUPT")).toBe(true);
  });
});

/** A few random changes. Most of the time the headers' checksums are made right again, so that parsing goes on behind them. */
function damage(sound: Uint8Array, next: Random): Uint8Array {
  let archive = Buffer.from(sound);
  const headers: number[] = [];
  for (let at = 0; at + BLOCK <= archive.length; at += BLOCK)
    if (archive.toString("latin1", at + 257, at + 262) === "ustar") headers.push(at);
  for (let changes = 1 + below(next, 4); changes > 0; changes--) {
    const at = below(next, archive.length);
    const header = headers[below(next, headers.length)] ?? 0;
    const digit = 0x30 + below(next, 10);
    switch (below(next, 6)) {
      case 0:
        archive[at] ^= 1 << below(next, 8);
        break;
      case 1:
        archive[header + below(next, BLOCK)] = below(next, 256);
        break;
      case 2:
        // A digit where numbers are: in a header's fields or in PAX records and sparse maps.
        archive[header + 100 + below(next, 48)] = digit;
        break;
      case 3: {
        const text = archive.indexOf(0x3d, at);
        if (text > 0 && text + 1 < archive.length) archive[text + 1] = digit;
        break;
      }
      case 4:
        archive = archive.subarray(0, next() < 0.3 ? at : at - (at % BLOCK));
        break;
      case 5: {
        const block = at - (at % BLOCK);
        archive = Buffer.concat([archive.subarray(0, block), archive.subarray(block + BLOCK)]);
        break;
      }
    }
    if (archive.length < BLOCK) return archive;
  }
  if (next() < 0.8)
    for (const at of headers) if (at + BLOCK <= archive.length) seal(archive.subarray(at, at + BLOCK));
  return archive;
}

describe.each(samples(/\.(gz|zst)$/))("%s", (name) => {
  const sound = readFileSync(join(corpus, name));

  test("damaged: bytes or an error", () => {
    const folder = mkdtempSync(join(tmpdir(), "overlaybd-fuzz-"));
    const path = join(folder, "input");
    const next = random(name.length);
    let failures = 0;
    for (let round = 0; round < 300; round++) {
      const input = Buffer.from(next() < 0.3 ? sound.subarray(0, below(next, sound.length)) : sound);
      for (let flips = below(next, 4); flips > 0 && input.length > 0; flips--)
        input[below(next, next() < 0.5 ? Math.min(40, input.length) : input.length)] ^= 1 << below(next, 8);
      writeFileSync(path, input);
      const fd = openSync(path, "r");
      const stream = openStream(fd, { maximumOutput: OUTPUT_LIMIT, hashOutput: true });
      try {
        let bytes = 0;
        for (let chunk = stream.next(); chunk; chunk = stream.next()) bytes += chunk.bytes.length;
        expect(stream.summary().outputBytes).toBe(bytes);
      } catch (error) {
        if (!(error instanceof StreamError)) throw error;
        expect(error.offset).toBeLessThanOrEqual(input.length);
        failures++;
      } finally {
        stream.close();
        closeSync(fd);
      }
    }
    rmSync(folder, { recursive: true });
    expect(failures).toBeGreaterThan(50);
  });
});
