/** Long ranges as they arrive, from a registry that misbehaves: right pieces, none fetched twice, or one clear error. */
import { afterAll, afterEach, beforeAll, describe, expect, test } from "bun:test";
import { join } from "node:path";
import { type AccessOptions, repositoryAccess } from "../../src/registry/access.ts";
import { parseReference } from "../../src/registry/reference.ts";
import type { Repository } from "../../src/registry/repository.ts";
import { type RegistryServer, serveRegistry } from "../../src/registry/server.ts";
import {
  type Fault,
  type FaultProxy,
  type SeenRequest,
  startFaultProxy,
  temporaryDirectory,
} from "../fixtures/registry.ts";
import { describeBytes, noise } from "./images.ts";

const directory = temporaryDirectory();
const layer = noise(3_000_000, 3);
const blob = describeBytes(layer);
const PIECE = 256 << 10;
const OFFSET = 5000;
const LENGTH = 2_000_000;
let server: RegistryServer;
let proxy: FaultProxy;

const quick: AccessOptions = {
  plain: true,
  credentials: async () => undefined,
  deadline: 1500,
  stall: 300,
  retry: { attempts: 3, pause: 5, longest: 2000, longestAsked: 2000 },
};

const open = (options: AccessOptions = {}) =>
  repositoryAccess({ ...quick, ...options })(parseReference(`${proxy.host}/app`));

beforeAll(async () => {
  server = await serveRegistry({ directory: join(directory.path, "layout") });
  proxy = await startFaultProxy(server.url);
  await (await open()).pushBlob(blob, new Blob([layer]));
});

afterEach(() => {
  proxy.fault = () => undefined;
  proxy.seen.length = 0;
});

afterAll(async () => {
  await proxy.stop();
  await server.stop();
  directory.remove();
});

/** Checks every piece; returns the bytes that came. */
async function readAll(repository: Repository, size?: number): Promise<number> {
  let at = OFFSET;
  for await (const piece of repository.blobPieces(blob.digest, OFFSET, LENGTH, PIECE, size)) {
    expect(piece).toHaveLength(Math.min(PIECE, OFFSET + LENGTH - at));
    expect(Buffer.compare(piece, layer.subarray(at, at + piece.length))).toBe(0);
    at += piece.length;
  }
  return at - OFFSET;
}

const isBlob = ({ method, url }: SeenRequest) => method === "GET" && url.includes("/blobs/");
const begins = () =>
  proxy.seen.filter(isBlob).map(({ headers }) => Number(/^bytes=(\d+)-/.exec(headers.range ?? "")?.[1]));

/** Applies `fault` to the first `times` requests for blobs. */
function misbehave(times: number, fault: Fault): void {
  let left = times;
  proxy.fault = (request) => (isBlob(request) && left-- > 0 ? fault : undefined);
}

test("one request brings all", async () => {
  expect(await readAll(await open(), blob.size)).toBe(LENGTH);
  expect(begins()).toEqual([OFFSET]);
});

describe("twice", () => {
  const passing: Readonly<Record<string, Fault>> = {
    "status 503": { kind: "status", status: 503 },
    "a reset connection": { kind: "reset" },
    "no answer": { kind: "hang" },
    "a wrong Content-Range": { kind: "headers", headers: { "content-range": "bytes 0-1999999/3000000" } },
  };
  test.each(Object.keys(passing))("%s", async (name) => {
    const repository = await open();
    misbehave(2, passing[name]);
    expect(await readAll(repository)).toBe(LENGTH);
    expect(begins()).toEqual([OFFSET, OFFSET, OFFSET]);
  });

  test.each(["truncate", "stall"] as const)(
    "%s in the middle: goes on with the first byte that did not come",
    async (kind) => {
      const repository = await open();
      misbehave(2, { kind, bytes: 600_000 });
      expect(await readAll(repository)).toBe(LENGTH);
      const [first, second, third] = begins();
      expect(first).toBe(OFFSET);
      expect(second).toBeGreaterThan(OFFSET);
      expect(second).toBeLessThanOrEqual(OFFSET + 600_000);
      expect(third).toBeGreaterThan(second);
    },
  );
});

test("a transfer that breaks more often than attempts are allowed goes on while it moves on", async () => {
  const repository = await open();
  misbehave(6, { kind: "stall", bytes: 300_000 });
  expect(await readAll(repository)).toBe(LENGTH);
});

test.each(["status", "hang", "wrong size"])(
  "%s for good is one error after the pieces that came",
  async (name) => {
    const repository = await open();
    const faults: Readonly<Record<string, Fault>> = {
      status: { kind: "status", status: 500 },
      hang: { kind: "hang" },
      "wrong size": {
        kind: "headers",
        headers: { "content-range": `bytes 605000-${OFFSET + LENGTH - 1}/77` },
      },
    };
    let requests = 0;
    proxy.fault = (request) => {
      if (!isBlob(request)) return undefined;
      return requests++ === 0 ? { kind: "stall", bytes: 600_000 } : faults[name];
    };
    const pieces = repository.blobPieces(blob.digest, OFFSET, LENGTH, PIECE, blob.size);
    let at = OFFSET;
    const reading = (async () => {
      for await (const piece of pieces) {
        expect(Buffer.compare(piece, layer.subarray(at, at + piece.length))).toBe(0);
        at += piece.length;
      }
    })();
    const error = await reading.catch((reason: Error) => reason);
    expect(error).toMatchObject({ name: "OverlaybdError", message: expect.stringContaining(blob.digest) });
    expect(at).toBe(OFFSET + 2 * PIECE);
  },
);

test("a body that drips is given up and asked for anew", async () => {
  const repository = await open({ deadline: 300 });
  misbehave(1, { kind: "drip", pause: 50 });
  const pieces = repository.blobPieces(blob.digest, 0, 20_000, 10_000);
  const { value } = await pieces.next();
  expect(value).toEqual(layer.slice(0, 10_000));
  await pieces.return();
  expect(begins()).toHaveLength(2);
});

test("a connection that was lost in the middle costs no more than seconds", async () => {
  const repository = await open({ stall: 30_000, deadline: 30_000 });
  misbehave(1, { kind: "stall", bytes: 600_000 });
  const started = performance.now();
  expect(await readAll(repository)).toBe(LENGTH);
  expect(performance.now() - started).toBeLessThan(15_000);
  // The piece that did not come, by itself, and then what is behind it.
  expect(begins()).toEqual([OFFSET, OFFSET + 2 * PIECE, OFFSET + 3 * PIECE]);
}, 30_000);

test("leaving early ends the transfer", async () => {
  const repository = await open();
  for await (const piece of repository.blobPieces(blob.digest, 0, LENGTH, PIECE)) {
    expect(piece).toHaveLength(PIECE);
    break;
  }
  expect(await readAll(repository)).toBe(LENGTH);
});

test("a registry that ignores Range gives small blobs all the same", async () => {
  const repository = await open();
  misbehave(1, { kind: "ignore-range" });
  expect(await readAll(repository)).toBe(LENGTH);
});

test("a range that is none is refused", async () => {
  const repository = await open();
  await expect(repository.blobPieces(blob.digest, -1, 10, PIECE).next()).rejects.toMatchObject({
    code: "E_USAGE",
  });
  expect(await repository.blobPieces(blob.digest, 0, 0, PIECE).next()).toMatchObject({ done: true });
});
