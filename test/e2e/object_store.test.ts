/** Debian's docker-registry over TLS with passwords, which sends readers to signed URLs of nginx. */
import { afterAll, beforeAll, beforeEach, expect, setDefaultTimeout, test } from "bun:test";
import { join } from "node:path";
import { repositoryAccess } from "../../src/registry/access.ts";
import { fixedCredentials } from "../../src/registry/credentials/source.ts";
import { parseReference } from "../../src/registry/reference.ts";
import { type ObjectStore, startObjectStore } from "../fixtures/object_store.ts";
import {
  type Authority,
  makeAuthority,
  type RunningRegistry,
  startDockerRegistry,
  temporaryDirectory,
} from "../fixtures/registry.ts";
import { describeBytes, noise } from "../registry/images.ts";

setDefaultTimeout(60_000);

const directory = temporaryDirectory();
const layer = noise(2_000_000, 31);
const blob = describeBytes(layer);
let tls: Authority;
let store: ObjectStore;
let registry: RunningRegistry;
/** Lines that the log had before the test. */
let logged = 0;

beforeAll(async () => {
  tls = await makeAuthority(directory.path);
  store = await startObjectStore(join(directory.path, "nginx"), tls, join(directory.path, "storage"));
  const users = { eve: "pa55-secret" };
  registry = await startDockerRegistry(directory.path, { tls, users, redirect: store.signer });
  await (await open()).pushBlob(blob, new Blob([layer]));
});
beforeEach(async () => {
  Object.assign(store, { signed: 0, lifetime: 3600, readable: true });
  logged = (await store.log(logged)).length;
});
afterAll(async () => {
  await Promise.all([registry.stop(), store.stop()]);
  directory.remove();
});

function open() {
  const credentials = fixedCredentials("eve:pa55-secret");
  return repositoryAccess({ credentials, tls: { authorities: [tls.authority] }, readDeadline: 10_000 })(
    parseReference(`${registry.host}/app`),
  );
}

async function readPieces(repository: Awaited<ReturnType<typeof open>>, first: number, end: number) {
  for (let i = first; i < end; i++) {
    const bytes = await repository.blobRange(blob.digest, i * 10_000, 5000, blob.size);
    expect(Buffer.compare(bytes, layer.subarray(i * 10_000, i * 10_000 + 5000))).toBe(0);
  }
}

/** The lines of the test's own requests, of which there are `count`. */
async function requests(count: number): Promise<string[]> {
  const lines = await store.log(logged + count);
  return lines.slice(logged);
}

test("many ranges take one signed URL, and the store is told no password", async () => {
  await readPieces(await open(), 0, 30);
  expect(store.signed).toBe(1);
  const lines = await requests(30);
  expect(lines).toHaveLength(30);
  for (const line of lines) expect(line).toMatch(/^206 bytes=\d+-\d+ -$/);
});

test("a URL that says when it expires is renewed before the store refuses it", async () => {
  store.lifetime = 3;
  const repository = await open();
  await readPieces(repository, 0, 5);
  // Beyond the second that is signed, and the second by which a Date field may lag behind.
  await Bun.sleep(4600);
  await readPieces(repository, 5, 10);
  expect(store.signed).toBe(2);
  for (const line of await requests(10)) expect(line).toStartWith("206 ");
});

test("a URL that does not say so is renewed when the store refuses it", async () => {
  Object.assign(store, { lifetime: 1, readable: false });
  const repository = await open();
  await readPieces(repository, 0, 5);
  // nginx refuses with 410 once the clock's second is beyond the one that is signed.
  await Bun.sleep(2200);
  store.lifetime = 3600;
  await readPieces(repository, 5, 10);
  expect(store.signed).toBe(2);
  const lines = await requests(11);
  expect(lines.filter((line) => line.startsWith("410 "))).toHaveLength(1);
  expect(lines.filter((line) => line.startsWith("206 "))).toHaveLength(10);
});

test("a whole blob is streamed from the store", async () => {
  const stream = await (await open()).blob(blob);
  expect(Buffer.compare(await new Response(stream).bytes(), layer)).toBe(0);
  expect(store.signed).toBe(1);
});
