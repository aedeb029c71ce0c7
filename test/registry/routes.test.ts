/** Mirrors and the P2P accelerator: who is asked, and that content still comes when they fail. */
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "bun:test";
import { mkdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type AccessOptions, repositoryAccess } from "../../src/registry/access.ts";
import { fixedCredentials } from "../../src/registry/credentials/source.ts";
import { digestOf } from "../../src/registry/digest.ts";
import { parseReference } from "../../src/registry/reference.ts";
import type { Repository } from "../../src/registry/repository.ts";
import { type RegistryServer, serveRegistry } from "../../src/registry/server.ts";
import { startDeafServer } from "../fixtures/intermediaries.ts";
import {
  type Fault,
  type FaultProxy,
  startFaultProxy,
  startTokenGate,
  temporaryDirectory,
} from "../fixtures/registry.ts";
import { describeBytes, noise, pushImage } from "./images.ts";

const directory = temporaryDirectory();
const certs = join(directory.path, "certs.d");
const layer = noise(100_000, 5);
const blob = describeBytes(layer);
let server: RegistryServer;
/** The registry itself, and two mirrors with the same content. */
let origin: FaultProxy;
let first: FaultProxy;
let second: FaultProxy;
let warnings: string[];

const quick: AccessOptions = {
  plain: true,
  credentials: async () => undefined,
  deadline: 500,
  stall: 400,
  retry: { attempts: 3, pause: 5, longest: 50, longestAsked: 50 },
};

beforeAll(async () => {
  server = await serveRegistry({ directory: join(directory.path, "layout") });
  [origin, first, second] = await Promise.all([1, 2, 3].map(() => startFaultProxy(server.url)));
  const direct = await repositoryAccess(quick)(parseReference(`${origin.host}/team/app`));
  await pushImage(direct, "v1", layer);
});
beforeEach(() => {
  warnings = [];
  rmSync(certs, { recursive: true, force: true });
  for (const host of [origin, first, second]) host.seen.length = 0;
});
afterEach(() => {
  for (const host of [origin, first, second]) host.fault = () => undefined;
});
afterAll(async () => {
  await Promise.all([origin, first, second].map((host) => host.stop()));
  await server.stop();
  directory.remove();
});

/** Writes the registry's hosts.toml and opens a repository. */
function open(toml: string, options: AccessOptions = {}, host = origin.host): Promise<Repository> {
  mkdirSync(join(certs, host), { recursive: true });
  writeFileSync(join(certs, host, "hosts.toml"), toml);
  const warn = (message: string) => warnings.push(message);
  const access = repositoryAccess({ ...quick, hostsDirectory: certs, warn, ...options });
  return access(parseReference(`${host}/team/app`));
}

const pulling = ({ origin }: FaultProxy, extra = "") =>
  `[host."${origin}"]\ncapabilities = ["pull"]\n${extra}\n`;

async function readsRight(repository: Repository): Promise<void> {
  expect(await repository.blobRange(blob.digest, 1000, 5000)).toEqual(layer.slice(1000, 6000));
}

/** Requests seen by the registry, the first and the second mirror. */
const counts = () => [origin, first, second].map(({ seen }) => seen.length);

describe("mirrors", () => {
  test("only the first is asked for content, and told whose it is", async () => {
    await readsRight(await open(pulling(first) + pulling(second)));
    expect(counts()).toEqual([0, 1, 0]);
    const { url } = first.seen[0];
    expect(url).toBe(`/v2/team/app/blobs/${blob.digest}?ns=${encodeURIComponent(origin.host)}`);
  });

  test("tags are resolved where that is allowed, pushes go where they may", async () => {
    const repository = await open(`${pulling(first)}[host."${second.origin}"]\ncapabilities = ["resolve"]`);
    const manifest = await repository.resolve("v1");
    expect(counts()).toEqual([0, 0, 1]);
    expect(digestOf(await repository.manifest(manifest))).toBe(manifest.digest);
    expect(counts()).toEqual([0, 1, 1]);
    const extra = describeBytes(noise(1000, 77));
    await repository.pushBlob(extra, new Blob([noise(1000, 77)]));
    await pushImage(repository, "v2", layer);
    expect(counts().slice(1)).toEqual([1, 1]);
  });

  test("a registry that no host may stand for", async () => {
    const repository = await open('capabilities = ["pull"]');
    await readsRight(repository);
    await expect(repository.resolve("v1")).rejects.toMatchObject({ code: "E_CONFIG" });
    const pushed = repository.pushBlob(describeBytes(noise(9, 9)), new Blob([noise(9, 9)]));
    await expect(pushed).rejects.toMatchObject({ code: "E_CONFIG" });
    await expect(repository.openUpload()).rejects.toMatchObject({ code: "E_CONFIG" });
  });

  const failures: Readonly<Record<string, Fault>> = {
    "status 500": { kind: "status", status: 500 },
    "status 403": { kind: "status", status: 403 },
    "a login nobody has": { kind: "status", status: 401, headers: { "www-authenticate": 'Basic realm="x"' } },
    "a reset connection": { kind: "reset" },
    "no answer": { kind: "hang" },
    "a truncated body": { kind: "truncate", bytes: 100 },
    "a wrong range": { kind: "headers", headers: { "content-range": "bytes 0-4999/100000" } },
    "no ranges": { kind: "headers", headers: { "content-range": "" } },
  };
  for (const [name, fault] of Object.entries(failures)) {
    test(`${name}: the next is asked, and the failed one is left alone for a while`, async () => {
      const repository = await open(pulling(first) + pulling(second));
      first.fault = () => fault;
      await readsRight(repository);
      expect(counts()[0]).toBe(0);
      expect(counts()[2]).toBe(1);
      expect(warnings).toHaveLength(1);
      expect(warnings[0]).toContain(`the mirror ${first.origin} of ${origin.host} is avoided`);
      const asked = first.seen.length;
      await readsRight(repository);
      expect(counts()).toEqual([0, asked, 2]);
    });
  }

  test("a missing blob is no reason to avoid a mirror", async () => {
    const repository = await open(pulling(first));
    first.fault = () => ({ kind: "status", status: 404 });
    await readsRight(repository);
    first.fault = () => undefined;
    await readsRight(repository);
    expect(counts()).toEqual([1, 2, 0]);
    expect(warnings).toEqual([]);
  });

  test("all mirrors and the registry fail: the registry's error; they come back: right bytes", async () => {
    const repository = await open(pulling(first) + pulling(second));
    for (const mirror of [first, second]) mirror.fault = () => ({ kind: "status", status: 503 });
    origin.fault = () => ({ kind: "status", status: 500 });
    const failed = repository.blobRange(blob.digest, 0, 100);
    await expect(failed).rejects.toThrow(/answered 500 \(attempt 3\)/);
    // Avoided, but better than nothing.
    second.fault = () => undefined;
    await readsRight(repository);
  });

  test("what the registry refuses for good is not asked for at mirrors that are avoided", async () => {
    const repository = await open(pulling(first));
    first.fault = () => ({ kind: "status", status: 500 });
    origin.fault = () => ({ kind: "status", status: 404 });
    const missing = () => repository.blobRange(blob.digest, 0, 100);
    await expect(missing()).rejects.toMatchObject({ code: "E_NOT_FOUND" });
    const asked = first.seen.length;
    await expect(missing()).rejects.toMatchObject({ code: "E_NOT_FOUND" });
    expect(first.seen).toHaveLength(asked);
  });

  test("second attempts and extra requests begin at the next", async () => {
    const repository = await open(pulling(first));
    first.fault = () => ({ kind: "drip", pause: 100 });
    // Hedged: whoever answers first is believed.
    await readsRight(repository);
    expect(origin.seen.length).toBeGreaterThan(0);
  });

  test("a blob whose mirror breaks off goes on at the next", async () => {
    const repository = await open(pulling(first));
    first.fault = () => ({ kind: "truncate", bytes: 40_000 });
    expect(await new Response(await repository.blob(blob)).bytes()).toEqual(layer);
    expect(origin.seen).toHaveLength(1);
    expect(warnings).toHaveLength(1);
  });

  test("nobody listens, or a connection takes too long", async () => {
    const deaf = await startDeafServer();
    const silent = 'dial_timeout = "50ms"\ncapabilities = ["pull"]';
    const repository = await open(
      `[host."http://127.0.0.1:1"]\n${silent}\n[host."http://127.0.0.1:${deaf.port}"]\n${silent}`,
    );
    const begin = performance.now();
    await readsRight(repository);
    expect(performance.now() - begin).toBeLessThan(quick.stall as number);
    expect(warnings).toEqual([
      expect.stringContaining("cannot connect to 127.0.0.1:1 (ECONNREFUSED)"),
      expect.stringContaining(`127.0.0.1:${deaf.port} does not accept connections within 50 ms`),
    ]);
    expect(counts()).toEqual([1, 0, 0]);
    await deaf.stop();
  });

  test("headers go to the mirror alone; credentials are those for its name", async () => {
    const gate = startTokenGate(server.url, { user: "mirror-user", password: "pw" });
    const mirror = await startFaultProxy(`http://${gate.host}`);
    const asked: string[] = [];
    const credentials: AccessOptions["credentials"] = async (host, repository) => {
      asked.push(`${host}/${repository}`);
      return { username: "mirror-user", password: "pw" };
    };
    const header = `[host."${mirror.origin}".header]\nx-team = "blue"`;
    const repository = await open(pulling(mirror, header), { credentials });
    await readsRight(repository);
    expect(asked).toEqual([`${mirror.host}/team/app`]);
    expect(mirror.seen.at(-1)?.headers).toMatchObject({ "x-team": "blue" });
    mirror.fault = () => ({ kind: "status", status: 500 });
    await readsRight(repository);
    expect(origin.seen[0].headers).not.toHaveProperty("x-team");
    expect(origin.seen[0].headers).not.toHaveProperty("authorization");
    await mirror.stop();
    await gate.stop();
  });

  test("a file that cannot be read is an error when the repository is opened", async () => {
    await expect(open('ca = "missing.pem"')).rejects.toMatchObject({ code: "E_CONFIG" });
    await expect(open("server =")).rejects.toThrow("hosts.toml");
  });
});

describe("the P2P accelerator", () => {
  interface Engine {
    readonly address: string;
    readonly seen: { readonly url: string; readonly authorization: string | null }[];
    answer: ((url: string) => Response | undefined) | undefined;
    stop(): Promise<void>;
  }

  /** Fetches the URL appended to its address, as upstream's and Dragonfly's engines do. */
  function startEngine(): Engine {
    const http = Bun.serve({
      hostname: "127.0.0.1",
      port: 0,
      async fetch(request) {
        const url = request.url.slice(request.url.indexOf("/accelerator/") + "/accelerator/".length);
        engine.seen.push({ url, authorization: request.headers.get("authorization") });
        const headers = new Headers(request.headers);
        headers.delete("host");
        return engine.answer?.(url) ?? fetch(url, { headers, redirect: "manual" });
      },
    });
    const engine: Engine = {
      address: `http://127.0.0.1:${http.port}/accelerator`,
      seen: [],
      answer: undefined,
      stop: () => http.stop(true),
    };
    return engine;
  }

  let engine: Engine;
  beforeEach(() => {
    engine = startEngine();
  });
  afterEach(() => engine.stop());

  test("gets the requests for content of blobs, and no others", async () => {
    const repository = await open("", { accelerator: engine.address });
    await repository.resolve("v1");
    await readsRight(repository);
    expect(await new Response(await repository.blob(blob)).bytes()).toEqual(layer);
    const url = `${origin.origin}/v2/team/app/blobs/${blob.digest}`;
    expect(engine.seen.map((request) => request.url)).toEqual([url, url]);
  });

  test("gets the token, but never asks for it", async () => {
    const gate = startTokenGate(server.url, { user: "u", password: "pw" });
    const options = { accelerator: engine.address, credentials: fixedCredentials("u:pw") };
    await readsRight(await open("", options, gate.host));
    expect(engine.seen.map(({ url }) => new URL(url).pathname.split("/")[1])).toEqual(["v2", "v2"]);
    expect(engine.seen[1].authorization).toStartWith("Bearer ");
    expect(warnings).toEqual([]);
    await gate.stop();
  });

  test("is asked for the place that a redirect leads to", async () => {
    const store = await startFaultProxy(server.url);
    origin.fault = ({ url }) => ({
      kind: "status",
      status: 307,
      headers: { location: `${store.origin}${url}?X-Amz-Signature=abc` },
    });
    await readsRight(await open("", { accelerator: engine.address }));
    expect(engine.seen.map(({ url }) => new URL(url).host)).toEqual([origin.host, store.host]);
    await store.stop();
  });

  const failures: Readonly<Record<string, () => Response>> = {
    "status 500": () => new Response(null, { status: 500 }),
    "status 404": () => new Response(null, { status: 404 }),
    "the wrong bytes' range": () =>
      new Response(new Uint8Array(5000), {
        status: 206,
        headers: { "content-range": "bytes 0-4999/100000" },
      }),
    "too few bytes": () =>
      new Response(new Uint8Array(7), {
        status: 206,
        headers: { "content-range": "bytes 1000-5999/100000" },
      }),
  };
  for (const [name, answer] of Object.entries(failures)) {
    test(`${name}: the registry is asked`, async () => {
      engine.answer = answer;
      const repository = await open("", { accelerator: engine.address });
      await readsRight(repository);
      await readsRight(repository);
      expect(origin.seen).toHaveLength(2);
    });
  }

  test("is not there: the registry is asked, and for a while nobody else", async () => {
    await engine.stop();
    const repository = await open("", { accelerator: engine.address });
    await readsRight(repository);
    await readsRight(repository);
    expect(origin.seen).toHaveLength(2);
    expect(warnings).toHaveLength(1);
    expect(warnings[0]).toContain("the P2P accelerator http://127.0.0.1:");
  });

  test("failed for one image, it still serves another", async () => {
    engine.answer = () => new Response(null, { status: 500 });
    await readsRight(await open("", { accelerator: engine.address }));
    engine.answer = undefined;
    const asked = engine.seen.length;
    await readsRight(await open("", { accelerator: engine.address }));
    expect(engine.seen.length).toBe(asked + 1);
  });
});

test("plain HTTP for the hosts that are listed, and no others", async () => {
  const listed = repositoryAccess({ ...quick, plain: [origin.host] });
  await readsRight(await listed(parseReference(`${origin.host}/team/app`)));
  const other = await listed(parseReference(`${first.host}/team/app`));
  await expect(other.resolve("v1")).rejects.toThrow("--plain");
});
