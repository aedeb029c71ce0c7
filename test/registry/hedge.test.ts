/** Hedged requests: who is slow is asked again, rarely; who is silent is asked until it is back. */
import { describe, expect, test } from "bun:test";
import { join } from "node:path";
import { repositoryAccess } from "../../src/registry/access.ts";
import { Hedge, type Send } from "../../src/registry/hedge.ts";
import { Quantile } from "../../src/registry/quantile.ts";
import { parseReference } from "../../src/registry/reference.ts";
import { serveRegistry } from "../../src/registry/server.ts";
import { random } from "../fixtures/random.ts";
import { startFaultProxy, temporaryDirectory } from "../fixtures/registry.ts";
import { describeBytes, noise } from "./images.ts";

const LENGTH = 256 << 10;
const FAST = 4;

/** An answer after `milliseconds`, unless the request is aborted before. */
function answer<T>(value: T, milliseconds: number, signal: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => resolve(value), milliseconds);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(new Error("aborted"));
    });
  });
}

/** A server that has been answering quickly for a while. */
async function warmHedge(): Promise<Hedge> {
  const hedge = new Hedge();
  for (let i = 0; i < 60; i++) await hedge.race(LENGTH, (signal) => answer(i, FAST, signal));
  return hedge;
}

describe("a request slower than the 99th percentile", () => {
  test("is sent once more, the first good answer wins, the other is aborted", async () => {
    const hedge = await warmHedge();
    const aborted: boolean[] = [];
    const send: Send<string> = (signal, extra) => {
      signal.addEventListener("abort", () => aborted.push(extra));
      return answer(extra ? "second" : "first", extra ? 1 : 60_000, signal);
    };
    expect(await hedge.race(LENGTH, send)).toBe("second");
    expect(aborted).toEqual([false]);
  });

  test("still wins when it is the first to answer", async () => {
    const hedge = await warmHedge();
    const send: Send<string> = (signal, extra) =>
      answer(extra ? "second" : "first", extra ? 60_000 : 300, signal);
    expect(await hedge.race(LENGTH, send)).toBe("first");
  });

  test("is answered although its second one fails, and the other way round", async () => {
    for (const failing of [true, false]) {
      const hedge = await warmHedge();
      const send: Send<string> = async (signal, extra) => {
        if (extra !== failing) return answer("good", 200, signal);
        await answer("", extra ? 1 : 100, signal);
        throw new Error("refused");
      };
      expect(await hedge.race(LENGTH, send)).toBe("good");
    }
  });

  test("costs at most 5 % more requests, however many are slow", async () => {
    const hedge = new Hedge();
    let extras = 0;
    const send =
      (milliseconds: number): Send<null> =>
      (signal, extra) => {
        if (extra) extras++;
        return answer(null, extra ? 200 : milliseconds, signal);
      };
    const rounds = 30;
    for (let i = 0; i < rounds; i++) {
      // Half of each round is fast, which keeps the percentile from following: it counts the last thousand.
      await Promise.all(
        Array.from({ length: 40 }, (_, k) => hedge.race(LENGTH, send(k === 0 && i > 5 ? 150 : FAST))),
      );
    }
    expect(extras).toBeGreaterThan(0);
    expect(extras).toBeLessThanOrEqual(rounds * 40 * 0.05);
  });
});

test("errors are thrown when all requests have failed", async () => {
  const hedge = await warmHedge();
  const send: Send<never> = async () => {
    throw new Error("gone");
  };
  await expect(hedge.race(LENGTH, send)).rejects.toThrow("gone");
});

test("a silent server is asked about once a second for all who wait, and all ask when it is back", async () => {
  const hedge = await warmHedge();
  let back = false;
  let extras = 0;
  const send: Send<string> = (signal, extra) => {
    if (extra) extras++;
    // What was sent while the server was away is lost for good.
    return answer("bytes", back ? FAST : 600_000, signal);
  };
  const started = performance.now();
  const reads = Array.from({ length: 32 }, () => hedge.race(LENGTH, send));
  await Bun.sleep(3500);
  const during = extras;
  back = true;
  expect(await Promise.all(reads)).toHaveLength(32);
  const seconds = (performance.now() - started) / 1000;
  // The few that the 99th percentile allows come on top.
  expect(during).toBeLessThanOrEqual(8 + seconds);
  expect(extras).toBeLessThanOrEqual(8 + seconds + 32);
  expect(seconds).toBeLessThan(3.5 + 2);
}, 20_000);

test("over HTTP: a server that is silent for good is an error at the read deadline", async () => {
  const directory = temporaryDirectory();
  const server = await serveRegistry({ directory: join(directory.path, "layout") });
  const proxy = await startFaultProxy(server.url);
  const access = repositoryAccess({ plain: true, readDeadline: 4000 });
  const repository = await access(parseReference(`${proxy.host}/app`));
  const layer = noise(100_000, 9);
  const { digest } = describeBytes(layer);
  await repository.pushBlob(describeBytes(layer), new Blob([layer]));
  for (let i = 0; i < 60; i++) await repository.blobRange(digest, i * 1000, 1000);
  proxy.fault = () => ({ kind: "hang" });
  const seen = proxy.seen.length;
  const started = performance.now();
  await expect(repository.blobRange(digest, 5000, 1000)).rejects.toMatchObject({ code: "E_TIMEOUT" });
  const seconds = (performance.now() - started) / 1000;
  expect(seconds).toBeGreaterThan(3.5);
  expect(seconds).toBeLessThan(8);
  const asked = proxy.seen.length - seen;
  expect(asked).toBeGreaterThan(2);
  expect(asked).toBeLessThan(2 + 2 * seconds);
  await Promise.all([proxy.stop(), server.stop()]);
  directory.remove();
}, 60_000);

test("over HTTP: a range that a connection has lost is read from another", async () => {
  const directory = temporaryDirectory();
  const server = await serveRegistry({ directory: join(directory.path, "layout") });
  const proxy = await startFaultProxy(server.url);
  const repository = await repositoryAccess({ plain: true })(parseReference(`${proxy.host}/app`));
  const layer = noise(100_000, 9);
  const { digest } = describeBytes(layer);
  await repository.pushBlob(describeBytes(layer), new Blob([layer]));
  for (let i = 0; i < 60; i++) await repository.blobRange(digest, i * 1000, 1000);
  let lost = 1;
  proxy.fault = () => (lost-- > 0 ? { kind: "hang" } : undefined);
  const started = performance.now();
  expect(await repository.blobRange(digest, 5000, 1000)).toEqual(layer.slice(5000, 6000));
  // Without a second request it would be 30 s until the connection is given up.
  expect(performance.now() - started).toBeLessThan(10_000);
  await Promise.all([proxy.stop(), server.stop()]);
  directory.remove();
}, 60_000);

describe("the running quantile", () => {
  test("is close to that of a sorted list", () => {
    const next = random(7);
    const quantile = new Quantile(0.99);
    const values = Array.from({ length: 900 }, () => 1 + next() ** 4 * 500);
    for (const value of values) quantile.add(value);
    const exact = values.sort((a, b) => a - b)[Math.floor(values.length * 0.99)];
    expect(quantile.value).toBeGreaterThan(exact * 0.85);
    expect(quantile.value).toBeLessThan(exact * 1.2);
  });

  test("follows when everything becomes slower or faster", () => {
    const quantile = new Quantile(0.99);
    for (const value of [5, 200, 5]) {
      for (let i = 0; i < 12_000; i++) quantile.add(value);
      expect(quantile.value).toBeGreaterThanOrEqual(value * 0.99);
      expect(quantile.value).toBeLessThan(value * 1.2);
    }
  });

  test("takes times of zero and of days", () => {
    const quantile = new Quantile(0.5);
    for (const value of [0, -1, 1e12]) quantile.add(value);
    expect(Number.isFinite(quantile.value)).toBe(true);
  });
});
