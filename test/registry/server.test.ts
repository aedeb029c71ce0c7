/** The embedded registry as the distribution specification has it, seen through bare HTTP. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { type Descriptor, MediaType } from "../../src/registry/descriptor.ts";
import { digestOf } from "../../src/registry/digest.ts";
import { ImageLayout } from "../../src/registry/layout.ts";
import { LayoutRepository } from "../../src/registry/layout-repository.ts";
import { type RegistryServer, serveRegistry } from "../../src/registry/server.ts";
import { temporaryDirectory } from "../fixtures/registry.ts";
import { config, describeBytes, manifestOf, noise, pushImage } from "./images.ts";

const directory = temporaryDirectory();
const path = join(directory.path, "layout");
const layer = noise(100_000, 3);
const digest = digestOf(layer);
let server: RegistryServer;
let repository: LayoutRepository;
let pushed: Descriptor;

beforeAll(async () => {
  server = await serveRegistry({ directory: path });
  repository = new LayoutRepository(await ImageLayout.open(path), "app/web");
  pushed = await pushImage(repository, "v1", layer);
});

afterAll(async () => {
  await server.stop();
  directory.remove();
});

function call(target: string, init: RequestInit = {}): Promise<Response> {
  return fetch(new URL(target, server.url), { redirect: "manual", ...init });
}

/** The error codes of an answer, which must have the specified form. */
async function codes(response: Response): Promise<string[]> {
  const body = (await response.json()) as { errors: { code: string; message: string }[] };
  for (const { message } of body.errors) expect(message).not.toContain(directory.path);
  return body.errors.map(({ code }) => code);
}

describe("pull", () => {
  test("version check", async () => {
    expect((await call("/v2/")).status).toBe(200);
  });

  test("manifests by tag and digest, GET and HEAD", async () => {
    for (const target of ["v1", pushed.digest]) {
      for (const method of ["GET", "HEAD"]) {
        const response = await call(`/v2/app/web/manifests/${target}`, { method });
        expect(response.status).toBe(200);
        expect(response.headers.get("content-type")).toBe(MediaType.ociManifest);
        expect(response.headers.get("docker-content-digest")).toBe(pushed.digest);
        expect(response.headers.get("content-length")).toBe(String(pushed.size));
        const bytes = await response.bytes();
        if (method === "GET") expect(digestOf(bytes)).toBe(pushed.digest);
        else expect(bytes).toHaveLength(0);
      }
    }
  });

  test("blobs whole, HEAD and in ranges", async () => {
    const url = `/v2/app/web/blobs/${digest}`;
    const head = await call(url, { method: "HEAD" });
    expect([head.status, head.headers.get("content-length")]).toEqual([200, "100000"]);
    expect(await (await call(url)).bytes()).toEqual(layer);
    for (const [range, first, end] of [
      ["bytes=0-0", 0, 1],
      ["bytes=10-19", 10, 20],
      ["bytes=99990-", 99_990, 100_000],
      ["bytes=99990-200000", 99_990, 100_000],
      ["bytes=-7", 99_993, 100_000],
      ["bytes=-200000", 0, 100_000],
    ] as const) {
      const response = await call(url, { headers: { range } });
      expect(response.status).toBe(206);
      expect(response.headers.get("content-range")).toBe(`bytes ${first}-${end - 1}/100000`);
      expect(response.headers.get("content-length")).toBe(String(end - first));
      expect(await response.bytes()).toEqual(layer.slice(first, end));
    }
    for (const range of ["bytes=5-4", "lines=1-2", "bytes=1-2,5-6", "bytes=-", "bytes=x-y"]) {
      const response = await call(url, { headers: { range } });
      expect([range, response.status]).toEqual([range, 200]);
      expect(await response.bytes()).toEqual(layer);
    }
    for (const range of ["bytes=100000-", "bytes=100000-100001", "bytes=-0"]) {
      const response = await call(url, { headers: { range } });
      expect([range, response.status]).toEqual([range, 416]);
      expect(response.headers.get("content-range")).toBe("bytes */100000");
    }
  });

  test("counts the bytes of blobs it hands out", async () => {
    const before = { ...server.stats };
    await (await call(`/v2/app/web/blobs/${digest}`, { headers: { range: "bytes=0-999" } })).bytes();
    await call(`/v2/app/web/blobs/${digest}`, { method: "HEAD" });
    expect(server.stats.blobBytes - before.blobBytes).toBe(1000);
    expect(server.stats.blobRequests - before.blobRequests).toBe(1);
    expect(server.stats.requests - before.requests).toBe(2);
  });

  test("what is not there is 404 with its code", async () => {
    const absent = digestOf(noise(1, 9));
    for (const [target, code] of [
      ["manifests/v2", "MANIFEST_UNKNOWN"],
      [`manifests/${absent}`, "MANIFEST_UNKNOWN"],
      [`blobs/${absent}`, "BLOB_UNKNOWN"],
      ["blobs/uploads/nonsense", "BLOB_UPLOAD_UNKNOWN"],
    ]) {
      const response = await call(`/v2/app/web/${target}`);
      expect(response.status).toBe(404);
      expect(await codes(response)).toEqual([code]);
    }
    expect(await codes(await call("/v2/nobody/tags/list"))).toEqual(["NAME_UNKNOWN"]);
  });

  test("names and digests cannot leave the directory", async () => {
    for (const target of [
      "/v2/../../etc/blobs/sha256:passwd",
      "/v2/%2e%2e/%2e%2e/etc/manifests/passwd",
      "/v2/app/blobs/..%2f..%2foci-layout",
      "/v2/app/blobs/sha256:..%2f..%2f..%2foci-layout",
      `/v2/app/blobs/sha256:${"A".repeat(64)}`,
      `/v2/app/blobs/sha256:${"a".repeat(63)}`,
      `/v2/app/blobs/md5:${"a".repeat(32)}`,
      "/v2/App/manifests/v1",
      "/v2/a..b/manifests/v1",
      "/v2/app/manifests/.hidden",
      "/v2/app/manifests/%ff",
      "/v2/app/manifests/a%2f..%2fb",
      "/v2/app/referrers/x",
      `/v2/${"a/".repeat(200)}a/manifests/v1`,
      "/etc/passwd",
      "/",
    ]) {
      const response = await call(target);
      expect([target, response.status >= 400 && response.status < 500]).toEqual([target, true]);
      await response.body?.cancel();
    }
  });
});

describe("push", () => {
  async function begin(name = "app/web"): Promise<string> {
    const response = await call(`/v2/${name}/blobs/uploads/`, { method: "POST" });
    expect(response.status).toBe(202);
    return response.headers.get("location") as string;
  }

  test("monolithic: POST then PUT, and POST alone", async () => {
    const one = noise(5000, 21);
    const put = await call(`${await begin()}?digest=${digestOf(one)}`, { method: "PUT", body: one });
    expect(put.status).toBe(201);
    expect(put.headers.get("docker-content-digest")).toBe(digestOf(one));
    expect(await (await call(put.headers.get("location") as string)).bytes()).toEqual(one);

    const two = noise(5000, 22);
    const post = await call(`/v2/app/web/blobs/uploads/?digest=${digestOf(two)}`, {
      method: "POST",
      body: two,
    });
    expect(post.status).toBe(201);
    expect(await (await call(`/v2/app/web/blobs/${digestOf(two)}`)).bytes()).toEqual(two);
  });

  test("sha512 digests", async () => {
    const bytes = noise(3000, 25);
    const sha512 = `sha512:${new Bun.CryptoHasher("sha512").update(bytes).digest("hex")}`;
    const put = await call(`${await begin()}?digest=${sha512}`, { method: "PUT", body: bytes });
    expect(put.status).toBe(201);
    expect(await (await call(`/v2/app/web/blobs/${sha512}`)).bytes()).toEqual(bytes);
  });

  test("chunked, with progress, in order only", async () => {
    const bytes = noise(3000, 23);
    const location = await begin();
    const patch = (first: number, end: number) =>
      call(location, {
        method: "PATCH",
        headers: { "content-range": `${first}-${end - 1}` },
        body: bytes.slice(first, end),
      });
    expect((await patch(0, 1000)).headers.get("range")).toBe("0-999");
    const disordered = await patch(2000, 3000);
    expect([disordered.status, disordered.headers.get("range")]).toEqual([416, "0-999"]);
    const status = await call(location);
    expect([status.status, status.headers.get("range")]).toEqual([204, "0-999"]);
    expect((await patch(1000, 2000)).status).toBe(202);
    const put = await call(`${location}?digest=${digestOf(bytes)}`, {
      method: "PUT",
      body: bytes.slice(2000),
    });
    expect(put.status).toBe(201);
    expect(await (await call(`/v2/app/web/blobs/${digestOf(bytes)}`)).bytes()).toEqual(bytes);
    expect((await call(location)).status).toBe(404);
  });

  // image-config.md section 4.7
  test("as upstream's tools push: every location is taken as it is, every answer has a range", async () => {
    const bytes = noise(3000, 26);
    const begun = await call("/v2/app/web/blobs/uploads/", { method: "POST" });
    let location = begun.headers.get("location") as string;
    for (const first of [0, 1000, 2000]) {
      const response = await fetch(location, {
        method: "PATCH",
        headers: { "content-range": `${first}-${first + 999}`, authorization: "Bearer " },
        body: bytes.slice(first, first + 1000),
      });
      expect([response.status, response.headers.get("range")]).toEqual([202, `0-${first + 999}`]);
      location = response.headers.get("location") as string;
    }
    const put = await fetch(`${location}?digest=${digestOf(bytes)}`, { method: "PUT" });
    expect([put.status, put.headers.get("docker-content-digest")]).toEqual([201, digestOf(bytes)]);
  });

  test("through a proxy that ends TLS, locations have its scheme and host", async () => {
    const headers = { host: "registry.example", "x-forwarded-proto": "https" };
    const response = await call("/v2/app/web/blobs/uploads/", { method: "POST", headers });
    const location = response.headers.get("location") as string;
    expect(location).toStartWith("https://registry.example/v2/app/web/blobs/uploads/");
    expect((await call(new URL(location).pathname, { method: "DELETE" })).status).toBe(204);
  });

  test("wrong digests store nothing and leave nothing", async () => {
    const bytes = noise(1000, 24);
    for (const wrong of [digestOf(noise(1000, 26)), "sha256:xyz", ""]) {
      const location = await begin();
      const put = await call(`${location}?digest=${wrong}`, { method: "PUT", body: bytes });
      expect([put.status, await codes(put)]).toEqual([400, ["DIGEST_INVALID"]]);
      if ((await call(location)).status === 204) await call(location, { method: "DELETE" });
    }
    expect(readdirSync(join(path, "ingest"))).toEqual([]);
    expect((await call(`/v2/app/web/blobs/${digestOf(bytes)}`)).status).toBe(404);
  });

  test("an upload belongs to its repository and can be cancelled", async () => {
    const location = await begin();
    expect((await call(location.replace("app/web", "other"))).status).toBe(404);
    expect((await call(location, { method: "DELETE" })).status).toBe(204);
    expect((await call(location)).status).toBe(404);
    expect(readdirSync(join(path, "ingest"))).toEqual([]);
  });

  test("mount", async () => {
    const target = `/v2/other/blobs/uploads/?from=app/web&mount=`;
    const mounted = await call(target + digest, { method: "POST" });
    expect([mounted.status, mounted.headers.get("location")]).toEqual([201, `/v2/other/blobs/${digest}`]);
    const absent = await call(target + digestOf(noise(2, 27)), { method: "POST" });
    expect(absent.status).toBe(202);
    await call(absent.headers.get("location") as string, { method: "DELETE" });
  });

  test("manifests are checked before they are stored", async () => {
    const put = (
      target: string,
      body: string | Uint8Array<ArrayBuffer>,
      type: string = MediaType.ociManifest,
    ) => call(`/v2/app/web/manifests/${target}`, { method: "PUT", body, headers: { "content-type": type } });
    const good = Buffer.from(manifestOf(layer));
    for (const [response, status, code] of [
      [await put("bad", Buffer.from(manifestOf(noise(5, 28)))), 404, "MANIFEST_BLOB_UNKNOWN"],
      [await put("bad", "{"), 400, "MANIFEST_INVALID"],
      [await put("bad", "[]"), 400, "MANIFEST_INVALID"],
      [await put("bad", '{"schemaVersion":2,"config":{},"layers":[]}'), 400, "MANIFEST_INVALID"],
      [await put("bad", good, MediaType.ociIndex), 400, "MANIFEST_INVALID"],
      [await put("bad", good, "text/plain"), 400, "MANIFEST_INVALID"],
      [await put(digestOf(noise(5, 29)), good), 400, "DIGEST_INVALID"],
      [await put("bad", " ".repeat(4 * 1024 * 1024 + 1)), 413, "MANIFEST_INVALID"],
    ] as const) {
      expect([response.status, await codes(response)]).toEqual([status, [code]]);
    }
    expect((await call("/v2/app/web/manifests/bad")).status).toBe(404);
    const stored = await put("v2", good);
    expect([stored.status, stored.headers.get("docker-content-digest")]).toEqual([201, digestOf(good)]);
  });

  test("concurrent pushes lose nothing", async () => {
    const tags = Array.from({ length: 30 }, (_, number) => `t${number}`);
    const put = (tag: string) =>
      call(`/v2/many/manifests/${tag}`, {
        method: "PUT",
        body: Buffer.from(manifestOf(layer)),
        headers: { "content-type": MediaType.ociManifest },
      });
    await Promise.all(tags.map(put));
    const { tags: listed } = (await (await call("/v2/many/tags/list")).json()) as { tags: string[] };
    expect(listed.sort()).toEqual([...tags].sort());
  });

  test("methods that are not served", async () => {
    for (const [method, target] of [
      ["DELETE", "/v2/app/web/manifests/v1"],
      ["DELETE", `/v2/app/web/blobs/${digest}`],
      ["POST", "/v2/"],
    ]) {
      const response = await call(target, { method });
      expect([response.status, await codes(response)]).toEqual([405, ["UNSUPPORTED"]]);
    }
  });

  test("a read-only registry refuses pushes and serves pulls", async () => {
    const reader = await serveRegistry({ directory: path, readOnly: true });
    const post = await fetch(`${reader.url}/v2/app/web/blobs/uploads/`, { method: "POST" });
    expect(post.status).toBe(405);
    expect((await fetch(`${reader.url}/v2/app/web/blobs/${digest}`)).status).toBe(200);
    await reader.stop();
  });
});

describe("listings", () => {
  test("tags and catalog, page by page", async () => {
    for (const tag of ["a", "b", "c", "d", "e"])
      await pushImage(new LayoutRepository(repository.layout, "paged"), tag, layer);
    const seen: string[] = [];
    let next: string | undefined = "/v2/paged/tags/list?n=2";
    let pages = 0;
    while (next !== undefined) {
      const response = await call(next);
      seen.push(...((await response.json()) as { tags: string[] }).tags);
      next = /<([^>]+)>/.exec(response.headers.get("link") ?? "")?.[1];
      pages++;
    }
    expect([seen, pages]).toEqual([["a", "b", "c", "d", "e"], 3]);
    const none = (await (await call("/v2/paged/tags/list?n=0")).json()) as { tags: string[] };
    expect(none.tags).toEqual([]);
    expect((await call("/v2/paged/tags/list?n=x")).status).toBe(400);
    const { repositories } = (await (await call("/v2/_catalog")).json()) as { repositories: string[] };
    expect(repositories).toEqual(expect.arrayContaining(["app/web", "paged"]));
  });

  test("referrers, filtered, and the header that says so", async () => {
    const subject = pushed;
    const artifactType = "application/vnd.example+json";
    const bytes = Buffer.from(manifestOf(layer, { subject, artifactType, annotations: { key: "value" } }));
    const put = await call(`/v2/app/web/manifests/${digestOf(bytes)}`, {
      method: "PUT",
      body: bytes,
      headers: { "content-type": MediaType.ociManifest },
    });
    expect(put.headers.get("oci-subject")).toBe(subject.digest);
    const response = await call(
      `/v2/app/web/referrers/${subject.digest}?artifactType=${encodeURIComponent(artifactType)}`,
    );
    expect(response.headers.get("oci-filters-applied")).toBe("artifactType");
    expect(response.headers.get("content-type")).toBe(MediaType.ociIndex);
    const { manifests } = (await response.json()) as { manifests: Descriptor[] };
    expect(manifests).toEqual([
      { ...describeBytes(bytes, MediaType.ociManifest), annotations: { key: "value" }, artifactType },
    ]);
    const other = await call(`/v2/app/web/referrers/${subject.digest}?artifactType=other`);
    expect(((await other.json()) as { manifests: Descriptor[] }).manifests).toEqual([]);
  });
});

test("layouts of other tools are served: a bare tag under every name, children of an index by digest", async () => {
  const foreign = join(directory.path, "foreign");
  const byPath = new LayoutRepository(await ImageLayout.open(foreign, { create: true }));
  const child = await pushImage(byPath, undefined, layer);
  const index = `{"schemaVersion":2,"manifests":[${JSON.stringify(child)}]}`;
  await byPath.pushManifest("latest", MediaType.ociIndex, Buffer.from(index));
  // What a tool leaves that lists nothing but the index.
  await byPath.layout.updateIndex((entries) => entries.filter((entry) => entry.annotations !== undefined));
  const serving = await serveRegistry({ directory: foreign });
  for (const name of ["any", "thing/at/all"]) {
    const response = await fetch(`${serving.url}/v2/${name}/manifests/latest`);
    expect([response.status, response.headers.get("content-type")]).toEqual([200, MediaType.ociIndex]);
    expect(await response.text()).toBe(index);
    expect((await fetch(`${serving.url}/v2/${name}/manifests/${child.digest}`)).status).toBe(200);
  }
  await serving.stop();
});

test("kill -9 during pushes leaves no wrong blob, and the next start serves the rest", async () => {
  const target = join(directory.path, "killed");
  const program = join(import.meta.dir, "../../src/registry/server.ts");
  const code = `const { serveRegistry } = await import(${JSON.stringify(program)});
    console.log((await serveRegistry({ directory: ${JSON.stringify(target)} })).url);`;
  for (let round = 0; round < 5; round++) {
    const child = Bun.spawn([process.execPath, "-e", code], { stdout: "pipe", stderr: "inherit" });
    const { value } = await child.stdout.getReader().read();
    const url = Buffer.from(value as Uint8Array)
      .toString()
      .trim();
    const pushes = Array.from({ length: 8 }, async (_, number) => {
      const bytes = noise(400_000, 1000 + round * 10 + number);
      const init = { method: "POST", body: bytes };
      await fetch(`${url}/v2/app/blobs/uploads/?digest=${digestOf(bytes)}`, init).catch(() => undefined);
    });
    await Bun.sleep(5 + round * 4);
    child.kill("SIGKILL");
    await child.exited;
    await Promise.all(pushes);
    const blobs = join(target, "blobs/sha256");
    for (const hex of readdirSync(blobs)) {
      expect(digestOf(await Bun.file(join(blobs, hex)).bytes())).toBe(`sha256:${hex}`);
    }
  }
  const after = await serveRegistry({ directory: target });
  const put = await fetch(`${after.url}/v2/app/blobs/uploads/?digest=${digestOf(config)}`, {
    method: "POST",
    body: config,
  });
  expect(put.status).toBe(201);
  await after.stop();
});

describe("what is no image layout", () => {
  test("is not overwritten", async () => {
    await Bun.write(join(directory.path, "home/letter.txt"), "dear");
    const opened = serveRegistry({ directory: join(directory.path, "home") });
    await expect(opened).rejects.toMatchObject({ code: "E_EXISTS" });
    expect(existsSync(join(directory.path, "home/oci-layout"))).toBe(false);
  });

  test("is refused with its name", async () => {
    await expect(ImageLayout.open(join(directory.path, "absent"))).rejects.toMatchObject({
      code: "E_NOT_FOUND",
    });
    await Bun.write(join(directory.path, "broken/oci-layout"), "{");
    await expect(ImageLayout.open(join(directory.path, "broken"))).rejects.toMatchObject({
      code: "E_CORRUPT",
    });
    await Bun.write(join(directory.path, "future/oci-layout"), '{"imageLayoutVersion":"9"}');
    await expect(ImageLayout.open(join(directory.path, "future"))).rejects.toMatchObject({
      code: "E_UNSUPPORTED",
    });
  });

  test("a corrupted blob is noticed", async () => {
    const damaged = join(directory.path, "damaged");
    const mine = new LayoutRepository(await ImageLayout.open(damaged, { create: true }));
    const image = await pushImage(mine, "v1", layer);
    const changed = layer.slice();
    changed[500] ^= 1;
    await Bun.write(mine.layout.blobPath(digest), changed);
    await Bun.write(mine.layout.blobPath(image.digest), "{}");
    await expect(new Response(await mine.blob(describeBytes(layer))).bytes()).rejects.toThrow(digest);
    await expect(mine.manifest(image)).rejects.toMatchObject({ code: "E_CORRUPT" });
  });
});
