/** A registry that misbehaves: the client gives the right bytes or one clear error, in bounded time, and tells no secret. */
import { afterAll, afterEach, beforeAll, describe, expect, test } from "bun:test";
import { join } from "node:path";
import { type AccessOptions, repositoryAccess } from "../../src/registry/access.ts";
import { fixedCredentials } from "../../src/registry/credentials/source.ts";
import type { Descriptor } from "../../src/registry/descriptor.ts";
import { digestOf } from "../../src/registry/digest.ts";
import { parseReference } from "../../src/registry/reference.ts";
import { type RegistryServer, serveRegistry } from "../../src/registry/server.ts";
import {
  type Fault,
  type FaultProxy,
  makeAuthority,
  type SeenRequest,
  startFaultProxy,
  startTokenGate,
  temporaryDirectory,
} from "../fixtures/registry.ts";
import { describeBytes, noise, pushImage } from "./images.ts";

const directory = temporaryDirectory();
const layer = noise(3_000_000, 3);
const blob = describeBytes(layer);
let server: RegistryServer;
let proxy: FaultProxy;
let manifest: Descriptor;

const quick: AccessOptions = {
  plain: true,
  credentials: async () => undefined,
  deadline: 400,
  stall: 300,
  commit: 300,
  retry: { attempts: 3, pause: 5, longest: 2000, longestAsked: 2000 },
};

function open(options: AccessOptions = {}, host = proxy.host) {
  return repositoryAccess({ ...quick, ...options })(parseReference(`${host}/app`));
}

/** Applies `fault` to the first `times` requests that `matches` picks. */
function misbehave(
  times: number,
  fault: Fault,
  matches: (request: SeenRequest) => boolean = () => true,
): void {
  let left = times;
  proxy.fault = (request) => (matches(request) && left-- > 0 ? fault : undefined);
}

const isBlob = ({ method, url }: SeenRequest) => method === "GET" && url.includes("/blobs/");

beforeAll(async () => {
  server = await serveRegistry({ directory: join(directory.path, "layout") });
  proxy = await startFaultProxy(server.url);
  manifest = await pushImage(await open({}, new URL(server.url).host), "v1", layer);
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

const passing: Readonly<Record<string, Fault>> = {
  "status 500": { kind: "status", status: 500 },
  "status 503": { kind: "status", status: 503 },
  "status 429": { kind: "status", status: 429 },
  "a reset connection": { kind: "reset" },
  "a truncated body": { kind: "truncate", bytes: 1000 },
  "a stalled body": { kind: "stall", bytes: 1000 },
  "no answer": { kind: "hang" },
};

for (const [name, fault] of Object.entries(passing)) {
  describe(`${name}, twice`, () => {
    test("a range is read all the same", async () => {
      const repository = await open();
      misbehave(2, fault, isBlob);
      expect(await repository.blobRange(blob.digest, 5000, 10_000)).toEqual(layer.slice(5000, 15_000));
      expect(proxy.seen.filter(isBlob)).toHaveLength(3);
    });

    test("a blob is read all the same", async () => {
      const repository = await open();
      misbehave(2, fault, isBlob);
      expect(await new Response(await repository.blob(blob)).bytes()).toEqual(layer);
    });

    test("a manifest is resolved and read all the same", async () => {
      const repository = await open();
      misbehave(2, fault);
      expect(await repository.resolve("v1")).toEqual(manifest);
      misbehave(2, fault.kind === "truncate" || fault.kind === "stall" ? { ...fault, bytes: 10 } : fault);
      expect(digestOf(await repository.manifest(manifest))).toBe(manifest.digest);
    });

    test("a blob is pushed all the same, whole and in chunks", async () => {
      for (const [chunkBytes, seed] of [
        [undefined, 101],
        [200_000, 103],
      ] as const) {
        const bytes = noise(500_000, seed + Object.keys(passing).indexOf(name) * 10);
        const repository = await open({ chunkBytes });
        misbehave(2, fault, ({ method }) => method === "PATCH" || method === "PUT");
        await repository.pushBlob(describeBytes(bytes), new Blob([bytes]));
        proxy.fault = () => undefined;
        expect(await new Response(await repository.blob(describeBytes(bytes))).bytes()).toEqual(bytes);
      }
    });
  });

  test(`${name}, for good: one error that says what, where and how often`, async () => {
    const repository = await open();
    misbehave(100, fault, isBlob);
    const started = performance.now();
    const error = await repository
      .blobRange(blob.digest, 5000, 10_000)
      .then(String, (reason: Error) => reason);
    expect(error).toMatchObject({ name: "OverlaybdError" });
    const { message } = error as Error;
    for (const part of [proxy.host, blob.digest, "5000-14999", "attempt 3"]) expect(message).toContain(part);
    if (fault.kind === "status") expect(message).toContain(String(fault.status));
    expect(performance.now() - started).toBeLessThan(5000);
    // fetch itself repeats a GET once when a pooled connection turns out to be closed.
    expect([3, 4]).toContain(proxy.seen.filter(isBlob).length);
  });
}

test("Retry-After is waited for", async () => {
  const repository = await open();
  misbehave(1, { kind: "status", status: 429, headers: { "retry-after": "1" } }, isBlob);
  const started = performance.now();
  await repository.blobRange(blob.digest, 0, 10);
  expect(performance.now() - started).toBeGreaterThan(950);
});

test("what cannot pass is not repeated", async () => {
  const repository = await open();
  for (const [status, code] of [
    [403, "E_AUTH"],
    [404, "E_NOT_FOUND"],
    [400, "E_REGISTRY"],
    [416, "E_REGISTRY"],
  ] as const) {
    proxy.seen.length = 0;
    misbehave(1, { kind: "status", status }, isBlob);
    await expect(repository.blobRange(blob.digest, 0, 10)).rejects.toMatchObject({ code });
    expect(proxy.seen).toHaveLength(1);
  }
});

test("a stream resumes where it broke instead of starting again", async () => {
  const repository = await open();
  misbehave(2, { kind: "truncate", bytes: 1_000_000 }, isBlob);
  expect(await new Response(await repository.blob(blob)).bytes()).toEqual(layer);
  const ranges = proxy.seen.filter(isBlob).map(({ headers }) => headers.range);
  expect(ranges[0]).toBeUndefined();
  expect(ranges.slice(1)).toHaveLength(2);
  for (const range of ranges.slice(1)) expect(range).toMatch(/^bytes=[1-9]\d*-2999999$/);
});

test("leaving a stream early frees its connection", async () => {
  const repository = await open();
  const reader = (await repository.blob(blob)).getReader();
  await reader.read();
  await reader.cancel();
  expect(await repository.blobRange(blob.digest, 0, 3)).toEqual(layer.slice(0, 3));
});

test("a slow reader is not taken for a stalled registry", async () => {
  const repository = await open();
  const stream = await repository.blob(blob);
  await Bun.sleep(500);
  let length = 0;
  let pauses = 0;
  for await (const chunk of stream) {
    length += chunk.length;
    if (pauses++ < 2) await Bun.sleep(500);
  }
  expect(length).toBe(layer.length);
});

describe("lies", () => {
  test("another range than the one asked for", async () => {
    const repository = await open();
    for (const field of [
      "bytes 0-99/3000000",
      "bytes 100-199/3000000",
      "bytes 100-198/*",
      "items 100-299/300",
      "",
    ]) {
      misbehave(99, { kind: "headers", headers: { "content-range": field } }, isBlob);
      const read = repository.blobRange(blob.digest, 100, 200);
      await expect(read).rejects.toMatchObject({ code: "E_REGISTRY" });
      misbehave(1, { kind: "headers", headers: { "content-range": field } }, isBlob);
      expect(await repository.blobRange(blob.digest, 100, 200)).toEqual(layer.slice(100, 300));
    }
  });

  test("flipped bytes in blob and manifest", async () => {
    const repository = await open();
    misbehave(1, { kind: "flip", offset: 1234 }, isBlob);
    const stream = await repository.blob(blob);
    await expect(new Response(stream).bytes()).rejects.toThrow(blob.digest);
    misbehave(1, { kind: "flip", offset: 5 });
    await expect(repository.manifest(manifest)).rejects.toMatchObject({ code: "E_CORRUPT" });
  });

  test("a wrong digest or size", async () => {
    const repository = await open();
    const other = describeBytes(noise(10, 1)).digest;
    misbehave(1, { kind: "headers", headers: { "docker-content-digest": other } });
    await expect(repository.resolve(manifest.digest)).rejects.toMatchObject({ code: "E_CORRUPT" });
    for (const size of [blob.size - 1, blob.size + 1]) {
      const stream = await repository.blob({ ...blob, size });
      await expect(new Response(stream).bytes()).rejects.toMatchObject({ name: "OverlaybdError" });
    }
  });

  test("a compressed answer nobody asked for", async () => {
    const repository = await open();
    misbehave(1, { kind: "headers", headers: { "content-encoding": "gzip" } }, isBlob);
    await expect(repository.blobRange(blob.digest, 0, 10)).rejects.toThrow("identity");
  });

  test("an endless manifest", async () => {
    const endless = Bun.serve({
      hostname: "127.0.0.1",
      port: 0,
      fetch: () =>
        new Response(new ReadableStream({ pull: (sink) => sink.enqueue(new Uint8Array(1 << 20)) })),
    });
    const repository = await open({ deadline: 5000 }, `127.0.0.1:${endless.port}`);
    await expect(repository.resolve("v1")).rejects.toMatchObject({ code: "E_LIMIT" });
    await endless.stop(true);
  });

  test("an endless redirect", async () => {
    const repository = await open();
    misbehave(100, { kind: "status", status: 307, headers: { location: "/v2/app/blobs/elsewhere" } });
    await expect(repository.blobRange(blob.digest, 0, 10)).rejects.toThrow("redirects");
    expect(proxy.seen.length).toBeLessThan(20);
  });
});

test("a registry that ignores Range serves small blobs, and large ones with a clear error", async () => {
  const repository = await open();
  proxy.fault = () => ({ kind: "ignore-range" });
  expect(await repository.blobRange(blob.digest, 1000, 10)).toEqual(layer.slice(1000, 1010));
  const large = noise(9_000_000, 5);
  await repository.pushBlob(describeBytes(large), new Blob([large]));
  await expect(repository.blobRange(digestOf(large), 0, 10)).rejects.toThrow("ignores Range");
});

test("a redirect to another origin is followed without credentials", async () => {
  const elsewhere = await startFaultProxy(server.url);
  const gate = startTokenGate(proxy.origin, { user: "eve", password: "pa55-secret" });
  const repository = await open({ credentials: fixedCredentials("eve:pa55-secret") }, gate.host);
  const location = `${elsewhere.origin}/v2/app/blobs/${blob.digest}?signature=s1gned-secret`;
  proxy.fault = (request) =>
    isBlob(request) ? { kind: "status", status: 307, headers: { location } } : undefined;
  expect(await repository.blobRange(blob.digest, 7, 100)).toEqual(layer.slice(7, 107));
  expect(elsewhere.seen).toHaveLength(1);
  expect(elsewhere.seen[0].headers.authorization).toBeUndefined();
  expect(elsewhere.seen[0].headers.range).toBe("bytes=7-106");

  elsewhere.fault = () => ({
    kind: "status",
    status: 403,
    body: '{"errors":[{"code":"DENIED","message":"s1gned-secret"}]}',
  });
  const error: Error = await repository.blobRange(blob.digest, 7, 100).then(
    () => new Error("succeeded"),
    (reason) => reason,
  );
  expect(error.message).toContain("DENIED");
  expect(error.message).toContain(elsewhere.host);
  expect(Bun.inspect(error)).not.toContain("s1gned-secret");
  await elsewhere.stop();
  await gate.stop();
});

describe("tokens", () => {
  const user = "eve";
  const password = "pa55-secret";
  const credentials = fixedCredentials(`${user}:${password}`);

  test("are cached per scope, shared by concurrent requests, and renewed when refused", async () => {
    const gate = startTokenGate(server.url, { user, password });
    const repository = await open({ credentials }, gate.host);
    await Promise.all(Array.from({ length: 20 }, (_, i) => repository.blobRange(blob.digest, i, 100)));
    expect(gate.issued).toEqual(["repository:app:pull"]);
    await repository.pushBlob(describeBytes(noise(100, 51)), new Blob([noise(100, 51)]));
    expect(gate.issued).toEqual(["repository:app:pull", "repository:app:pull,push"]);
    gate.revoke();
    expect(await repository.blobRange(blob.digest, 1, 2)).toEqual(layer.slice(1, 3));
    expect(gate.issued).toHaveLength(3);
    await gate.stop();
  });

  test("are renewed before they expire", async () => {
    const gate = startTokenGate(server.url, { user, password, lifetime: 1 });
    const repository = await open({ credentials }, gate.host);
    await repository.blobRange(blob.digest, 0, 1);
    await repository.blobRange(blob.digest, 0, 1);
    expect(gate.issued).toHaveLength(1);
    await Bun.sleep(850);
    await repository.blobRange(blob.digest, 0, 1);
    expect(gate.issued).toHaveLength(2);
    await gate.stop();
  });

  test("are fetched after any legal challenge", async () => {
    for (const challenge of [
      (realm: string) =>
        `Bearer realm="${realm}", service="a \\"quoted\\" one, with comma", scope="x:y:pull,push"`,
      (realm: string) => `Negotiate abc==, bearer service=test ,  Realm = "${realm}" , Basic realm="other"`,
      (realm: string) => `Basic realm="x", Bearer realm=${realm}`,
    ]) {
      const gate = startTokenGate(server.url, { user, password, challenge });
      const repository = await open({ credentials }, gate.host);
      expect(await repository.blobRange(blob.digest, 0, 5)).toEqual(layer.slice(0, 5));
      await gate.stop();
    }
  });

  test("wrong, missing or unusable ones are E_AUTH and tell no secret", async () => {
    const gate = startTokenGate(server.url, { user, password });
    const wrong = fixedCredentials("eve:wr0ng-secret");
    for (const source of [wrong, async () => undefined]) {
      const repository = await open({ credentials: source }, gate.host);
      const error = await repository.blobRange(blob.digest, 0, 5).catch((reason: unknown) => reason);
      expect(error).toMatchObject({ code: "E_AUTH" });
      expect(Bun.inspect(error, { depth: 10 })).not.toContain("wr0ng-secret");
      expect(Bun.inspect(error, { depth: 10 })).not.toContain(btoa("eve:wr0ng-secret"));
    }
    await gate.stop();
    for (const field of ["Digest realm=x", 'Bearer realm="file:///etc/passwd"', "", "!!!"]) {
      const repository = await open({ credentials });
      misbehave(9, { kind: "status", status: 401, headers: { "www-authenticate": field } });
      await expect(repository.blobRange(blob.digest, 0, 5)).rejects.toMatchObject({ code: "E_AUTH" });
    }
  });

  test("failures after authorization tell neither token nor password", async () => {
    const gate = startTokenGate(proxy.origin, { user, password });
    const repository = await open({ credentials }, gate.host);
    for (const fault of Object.values(passing)) {
      misbehave(100, fault, isBlob);
      const error = await repository.blobRange(blob.digest, 0, 2000).catch((reason: unknown) => reason);
      const text = Bun.inspect(error, { depth: 10 });
      expect(text).toContain(blob.digest);
      expect(text).not.toMatch(/token-\d|pa55-secret/);
      expect(text).not.toContain(btoa(`${user}:${password}`));
    }
    await gate.stop();
  });
});

describe("TLS", () => {
  test("is verified, with more authorities than the usual ones, and can be told not to be", async () => {
    const tls = await makeAuthority(directory.path);
    const secure = await serveRegistry({ directory: join(directory.path, "tls"), tls });
    const host = `localhost:${new URL(secure.url).port}`;
    const strict = await open({ plain: false }, host);
    await expect(strict.resolve("v1")).rejects.toThrow("root CA");
    for (const options of [{ authorities: [tls.authority] }, { insecure: true }]) {
      const repository = await open({ plain: false, tls: options }, host);
      await expect(repository.resolve("v1")).rejects.toMatchObject({ code: "E_NOT_FOUND" });
    }
    const client = { certificate: tls.certificate, key: tls.key };
    const repository = await open({ plain: false, tls: { insecure: true, client } }, host);
    await expect(repository.resolve("v1")).rejects.toMatchObject({ code: "E_NOT_FOUND" });
    await secure.stop();
  });

  test("a client certificate is presented", async () => {
    const tls = await makeAuthority(directory.path);
    const { createServer } = await import("node:https");
    const read = (path: string) => Bun.file(path).text();
    const demanding = createServer(
      {
        cert: await read(tls.certificate),
        key: await read(tls.key),
        ca: await read(tls.authority),
        requestCert: true,
        rejectUnauthorized: true,
      },
      (_, response) => response.writeHead(404).end(),
    );
    await new Promise<void>((resolve) => demanding.listen(0, "127.0.0.1", resolve));
    const { port } = demanding.address() as { port: number };
    const authorities = [tls.authority];
    const without = await open({ plain: false, tls: { authorities } }, `localhost:${port}`);
    await expect(without.resolve("v1")).rejects.toMatchObject({ code: "E_REGISTRY" });
    const client = { certificate: tls.certificate, key: tls.key };
    const repository = await open({ plain: false, tls: { authorities, client } }, `localhost:${port}`);
    await expect(repository.resolve("v1")).rejects.toMatchObject({ code: "E_NOT_FOUND" });
    demanding.closeAllConnections();
    demanding.close();
  });

  test("a registry without TLS is named as such", async () => {
    const repository = await open({ plain: false });
    await expect(repository.resolve("v1")).rejects.toThrow("--plain");
  });

  test("unusable certificate files are E_CONFIG", async () => {
    const empty = join(directory.path, "empty.pem");
    await Bun.write(empty, "");
    for (const path of [empty, "/nonexistent"]) {
      const opened = open({ tls: { authorities: [path] } });
      await expect(opened).rejects.toMatchObject({ code: "E_CONFIG" });
    }
  });
});

test("a connection that died in the pool does not hang a request", async () => {
  let connections = 0;
  const half = Bun.listen<{ requests: number }>({
    hostname: "127.0.0.1",
    port: 0,
    socket: {
      open(socket) {
        connections++;
        socket.data = { requests: 0 };
      },
      data(socket) {
        // Answers the first request of each connection and never again.
        if (socket.data.requests++ === 0) socket.write("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
      },
    },
  });
  const repository = await open({}, `127.0.0.1:${half.port}`);
  expect(await repository.hasBlob(blob.digest)).toBe(true);
  expect(await repository.hasBlob(blob.digest)).toBe(true);
  expect(connections).toBe(2);
  half.stop(true);
});

test("the proxy of the environment is used, except for hosts it is not for", async () => {
  const asked: string[] = [];
  const forward = Bun.serve({
    hostname: "127.0.0.1",
    port: 0,
    fetch(request) {
      asked.push(request.url);
      return new Response(null, { status: 404 });
    },
  });
  const before = { HTTP_PROXY: process.env.HTTP_PROXY, NO_PROXY: process.env.NO_PROXY };
  try {
    process.env.HTTP_PROXY = forward.url.origin;
    process.env.NO_PROXY = "127.0.0.1";
    const far = await open({}, "registry.invalid");
    await expect(far.resolve("v1")).rejects.toMatchObject({ code: "E_NOT_FOUND" });
    expect(asked[0]).toContain("registry.invalid/v2/app/manifests/v1");
    const count = asked.length;
    expect(await (await open()).resolve("v1")).toEqual(manifest);
    expect(asked).toHaveLength(count);
  } finally {
    for (const [name, value] of Object.entries(before)) {
      if (value === undefined) delete process.env[name];
      else process.env[name] = value;
    }
    await forward.stop(true);
  }
});
