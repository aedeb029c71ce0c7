/** Where redirects led to: signed URLs are used until they expire or fail, and see no credentials of the registry. */
import { afterAll, afterEach, beforeAll, describe, expect, test } from "bun:test";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type AccessOptions, repositoryAccess } from "../../src/registry/access.ts";
import { fixedCredentials } from "../../src/registry/credentials/source.ts";
import { parseReference } from "../../src/registry/reference.ts";
import { lifetimeOf, ResolvedUrls } from "../../src/registry/resolved.ts";
import { type RegistryServer, serveRegistry } from "../../src/registry/server.ts";
import {
  type FaultProxy,
  type SeenRequest,
  startFaultProxy,
  startTokenGate,
  temporaryDirectory,
} from "../fixtures/registry.ts";
import { describeBytes, noise, pushImage } from "./images.ts";

const NOW = Date.UTC(2025, 0, 31, 23, 50, 0);

describe("a signed URL is used for nine tenths of the time that it says it has", () => {
  const seconds = NOW / 1000;
  test.each([
    ["X-Amz-Date=20250131T234900Z&X-Amz-Expires=1200&X-Amz-Signature=ab", 19 * 60],
    ["X-Goog-Date=20250131T235000Z&X-Goog-Expires=600", 600],
    ["sv=2020&se=2025-02-01T00%3A00%3A00Z&sig=ab", 600],
    [`Expires=${seconds + 100}&Signature=ab&AWSAccessKeyId=x`, 100],
    [`md5=ab&expires=${seconds + 100}`, 100],
    [`Expires=${seconds - 5}`, -5],
    ["X-Amz-Date=20250131T234900Z&X-Amz-Expires=99999999999", (24 * 3600) / 0.9],
  ])("%s", (query, expected) => {
    const url = new URL(`https://store.example/blob?${query}`);
    expect(lifetimeOf(url, NOW)).toBeCloseTo(expected * 1000 * 0.9, -1);
  });

  test.each([
    "",
    "token=1",
    "X-Amz-Expires=60",
    "X-Amz-Date=yesterday&X-Amz-Expires=60",
    "Expires=never",
    "se=soon&sig=",
  ])("or a minute, if it does not say: %s", (query) =>
    expect(lifetimeOf(new URL(`https://store.example/blob?${query}`), NOW)).toBe(60_000),
  );
});

test("remembered URLs are bounded in number and time", async () => {
  const urls = new ResolvedUrls();
  const from = (i: number) => new URL(`https://registry.example/${i}`);
  for (let i = 0; i < 5000; i++) urls.set(from(i), from(-i), 60_000);
  expect(urls.get(from(0))).toBeUndefined();
  expect(urls.get(from(4999))?.url.href).toBe(from(-4999).href);
  urls.set(from(1), from(2), 0);
  expect(urls.get(from(1))).toBeUndefined();
  urls.set(from(1), from(2), 20);
  expect(urls.get(from(1))).toBeDefined();
  await Bun.sleep(30);
  expect(urls.get(from(1))).toBeUndefined();
});

describe("a registry that redirects to a store", () => {
  const directory = temporaryDirectory();
  const layer = noise(300_000, 21);
  const blob = describeBytes(layer);
  let server: RegistryServer;
  let front: FaultProxy;
  let store: FaultProxy;
  let lifetime = 3600;

  const isBlob = ({ url }: SeenRequest) => url.includes("/blobs/");
  const options: AccessOptions = {
    plain: true,
    retry: { attempts: 3, pause: 5, longest: 50, longestAsked: 50 },
  };
  const open = (host = front.host, more: AccessOptions = {}) =>
    repositoryAccess({ ...options, ...more })(parseReference(`${host}/app`));
  const range = (i: number) => layer.slice(i * 1000, i * 1000 + 500);

  beforeAll(async () => {
    server = await serveRegistry({ directory: join(directory.path, "layout") });
    await pushImage(await open(new URL(server.url).host), "v1", layer);
    front = await startFaultProxy(server.url);
    store = await startFaultProxy(server.url);
  });
  afterEach(() => {
    front.seen.length = store.seen.length = 0;
    store.fault = () => undefined;
    lifetime = 3600;
  });
  afterAll(async () => {
    await Promise.all([front.stop(), store.stop(), server.stop()]);
    directory.remove();
  });
  const redirect = () => {
    front.fault = (request) => {
      if (!isBlob(request)) return undefined;
      const expires = Math.floor(Date.now() / 1000) + lifetime;
      const location = `${store.origin}${request.url}?expires=${expires}&sig=${front.seen.length}`;
      return { kind: "status", status: 307, headers: { location } };
    };
  };

  test("is asked once for many ranges", async () => {
    redirect();
    const repository = await open();
    for (let i = 0; i < 20; i++)
      expect(await repository.blobRange(blob.digest, i * 1000, 500)).toEqual(range(i));
    expect(front.seen.filter(isBlob)).toHaveLength(1);
    expect(store.seen).toHaveLength(20);
  });

  test("is asked each time when its URLs have expired by its own clock", async () => {
    redirect();
    lifetime = -2;
    const repository = await open();
    for (let i = 0; i < 3; i++)
      expect(await repository.blobRange(blob.digest, i * 1000, 500)).toEqual(range(i));
    expect(front.seen.filter(isBlob)).toHaveLength(3);
  });

  test.each([400, 401, 403, 404, 410])("is asked again at once when the store answers %d", async (status) => {
    redirect();
    const repository = await open();
    await repository.blobRange(blob.digest, 0, 500);
    const stale = store.seen[0].url;
    store.fault = ({ url }) => (url === stale ? { kind: "status", status } : undefined);
    const started = performance.now();
    const reads = Array.from({ length: 8 }, (_, i) => repository.blobRange(blob.digest, i * 1000, 500));
    expect(await Promise.all(reads)).toEqual(Array.from({ length: 8 }, (_, i) => range(i)));
    expect(performance.now() - started).toBeLessThan(2000);
    const asked = front.seen.filter(isBlob).length;
    await repository.blobRange(blob.digest, 0, 500);
    expect(front.seen.filter(isBlob)).toHaveLength(asked);
  });

  test("is asked again when the store fails otherwise", async () => {
    redirect();
    const repository = await open();
    await repository.blobRange(blob.digest, 0, 500);
    let left = 1;
    store.fault = () => (left-- > 0 ? { kind: "reset" } : undefined);
    expect(await repository.blobRange(blob.digest, 1000, 500)).toEqual(range(1));
    expect(front.seen.filter(isBlob).length).toBeGreaterThanOrEqual(1);
  });

  test("gives neither password nor token away to the store", async () => {
    redirect();
    const gate = startTokenGate(front.origin, { user: "eve", password: "pa55-secret" });
    const repository = await open(gate.host, { credentials: fixedCredentials("eve:pa55-secret") });
    for (let i = 0; i < 5; i++)
      expect(await repository.blobRange(blob.digest, i * 1000, 500)).toEqual(range(i));
    expect(gate.issued).toHaveLength(1);
    expect(store.seen).toHaveLength(5);
    for (const { headers } of store.seen) {
      expect(headers.authorization).toBeUndefined();
      expect(JSON.stringify(headers)).not.toMatch(/token-|pa55/);
    }
    await gate.stop();
  });

  test("as a mirror: its token and header fields stay with it, at neither the store nor the registry", async () => {
    redirect();
    const gate = startTokenGate(front.origin, { user: "mia", password: "m1rror-secret" });
    const registry = await startFaultProxy(server.url);
    const certs = join(directory.path, "certs.d", registry.host);
    mkdirSync(certs, { recursive: true });
    writeFileSync(
      join(certs, "hosts.toml"),
      `[host."http://${gate.host}"]\ncapabilities = ["pull"]\n[host."http://${gate.host}".header]\nx-key = "k3y-secret"\n`,
    );
    const credentials = async (host: string) =>
      host === gate.host ? { username: "mia", password: "m1rror-secret" } : undefined;
    const repository = await open(registry.host, {
      credentials,
      hostsDirectory: join(directory.path, "certs.d"),
      warn: () => {},
    });
    expect(await repository.blobRange(blob.digest, 1000, 500)).toEqual(range(1));
    expect(gate.issued).toHaveLength(1);
    expect(store.seen).toHaveLength(1);
    store.fault = () => ({ kind: "status", status: 403 });
    expect(await repository.blobRange(blob.digest, 2000, 500)).toEqual(range(2));
    expect(registry.seen.filter(isBlob)).toHaveLength(1);
    const elsewhere = [...store.seen, ...registry.seen];
    expect(JSON.stringify(elsewhere.map(({ headers }) => headers))).not.toMatch(
      /token-|m1rror|k3y|authorization/,
    );
    await Promise.all([gate.stop(), registry.stop()]);
  });
});
