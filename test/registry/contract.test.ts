/** What every kind of repository must do, run against each kind: layout, embedded registry, docker-registry, token gate. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { join } from "node:path";
import { type AccessOptions, repositoryAccess } from "../../src/registry/access.ts";
import { fixedCredentials } from "../../src/registry/credentials/source.ts";
import { MediaType, parseManifest } from "../../src/registry/descriptor.ts";
import { digestOf } from "../../src/registry/digest.ts";
import { parseReference } from "../../src/registry/reference.ts";
import type { Repository } from "../../src/registry/repository.ts";
import { serveRegistry } from "../../src/registry/server.ts";
import {
  makeAuthority,
  startDockerRegistry,
  startTokenGate,
  temporaryDirectory,
} from "../fixtures/registry.ts";
import { config, describeBytes, noise, pushImage } from "./images.ts";

const directory = temporaryDirectory();
const stops: (() => Promise<void>)[] = [];
const at = (name: string) => join(directory.path, name);
const anonymous = async () => undefined;

afterAll(async () => {
  for (const stop of stops) await stop();
  directory.remove();
});

interface Place {
  /** Prefix of references: a repository name is appended. */
  readonly place: string;
  readonly access: AccessOptions;
}

const kinds: Readonly<Record<string, () => Promise<Place>>> = {
  "image layout": async () => ({ place: `oci:${at("layout-")}`, access: {} }),
  "embedded registry": async () => {
    const server = await serveRegistry({ directory: at("embedded") });
    stops.push(server.stop);
    return { place: `${new URL(server.url).host}/`, access: { plain: true, credentials: anonymous } };
  },
  "embedded registry, chunked, TLS": async () => {
    const tls = await makeAuthority(directory.path);
    const server = await serveRegistry({ directory: at("embedded-tls"), tls });
    stops.push(server.stop);
    const access = { tls: { authorities: [tls.authority] }, chunkBytes: 300_000, credentials: anonymous };
    return { place: `127.0.0.1:${new URL(server.url).port}/`, access };
  },
  "docker-registry": async () => {
    const registry = await startDockerRegistry(at("docker-plain"));
    stops.push(registry.stop);
    return { place: `${registry.host}/`, access: { plain: true, credentials: anonymous } };
  },
  "docker-registry, chunked, TLS, htpasswd": async () => {
    const tls = await makeAuthority(directory.path);
    const registry = await startDockerRegistry(at("docker-tls"), {
      tls,
      users: { alice: "s3cret-pass:word" },
    });
    stops.push(registry.stop);
    return {
      place: `${registry.host}/`,
      access: {
        tls: { authorities: [tls.authority] },
        chunkBytes: 300_000,
        credentials: fixedCredentials("alice:s3cret-pass:word"),
      },
    };
  },
  "embedded registry behind a token gate": async () => {
    const server = await serveRegistry({ directory: at("gated") });
    const gate = startTokenGate(server.url, { user: "bob", password: "hunter2" });
    stops.push(gate.stop, server.stop);
    return { place: `${gate.host}/`, access: { plain: true, credentials: fixedCredentials("bob:hunter2") } };
  },
};

for (const [kind, start] of Object.entries(kinds)) {
  describe(kind, () => {
    let repository: Repository;
    let open: (name: string) => Promise<Repository>;
    const layer = noise(1_500_000, 7);

    beforeAll(async () => {
      const { mkdirSync } = await import("node:fs");
      for (const name of ["docker-plain", "docker-tls"]) mkdirSync(at(name), { recursive: true });
      const { place, access } = await start();
      const openReference = repositoryAccess(access);
      open = (name) => openReference(parseReference(place + name), { create: true });
      repository = await open("team/app".replace("/", place.startsWith("oci:") ? "-" : "/"));
    });

    test("has nothing at first", async () => {
      expect(await repository.hasBlob(digestOf(layer))).toBe(false);
      await expect(repository.resolve("v1")).rejects.toMatchObject({ code: "E_NOT_FOUND" });
      await expect(repository.blob(describeBytes(layer))).rejects.toMatchObject({ code: "E_NOT_FOUND" });
      await expect(repository.blobRange(digestOf(layer), 0, 10)).rejects.toMatchObject({
        code: "E_NOT_FOUND",
      });
    });

    test("pushes an image and pulls it back", async () => {
      const pushed = await pushImage(repository, "v1", layer);
      const resolved = await repository.resolve("v1");
      expect(resolved).toEqual(pushed);
      expect(await repository.resolve(pushed.digest)).toEqual(pushed);
      for (const target of ["v1", pushed.digest]) {
        const { descriptor, bytes } = await repository.resolveManifest(target);
        expect(descriptor).toEqual(pushed);
        expect(bytes).toEqual(await repository.manifest(pushed));
      }
      const manifest = parseManifest(await repository.manifest(resolved), "test");
      expect(manifest.layers).toEqual([describeBytes(layer)]);
      expect(await new Response(await repository.blob(manifest.layers[0])).bytes()).toEqual(layer);
      expect(await new Response(await repository.blob(manifest.config)).bytes()).toEqual(config);
    });

    test("reads ranges", async () => {
      for (const [offset, length] of [
        [0, 1],
        [0, layer.length],
        [4095, 8193],
        [layer.length - 1, 1],
        [17, 0],
      ]) {
        expect(Buffer.from(await repository.blobRange(digestOf(layer), offset, length))).toEqual(
          Buffer.from(layer.subarray(offset, offset + length)),
        );
      }
      const beyond = repository.blobRange(digestOf(layer), layer.length - 1, 2);
      await expect(beyond).rejects.toMatchObject({ code: "E_REGISTRY" });
    });

    test("pushes from a file, from a stream, and nothing twice", async () => {
      const path = at(`source-${crypto.randomUUID()}`);
      const fromFile = noise(700_001, 11);
      await Bun.write(path, fromFile);
      await repository.pushBlob(describeBytes(fromFile), Bun.file(path));
      expect(await repository.blobRange(digestOf(fromFile), 699_999, 2)).toEqual(fromFile.slice(699_999));

      const streamed = noise(900_000, 13);
      await repository.pushBlob(describeBytes(streamed), async () => new Blob([streamed]).stream());
      expect(await new Response(await repository.blob(describeBytes(streamed))).bytes()).toEqual(streamed);

      const again = repository.pushBlob(describeBytes(streamed), async () => {
        throw new Error("content of a present blob was opened");
      });
      expect(await again.then(() => "skipped")).toBe("skipped");
    });

    test("uploads what has no digest yet", async () => {
      const bytes = noise(800_123, 17);
      const upload = await repository.openUpload();
      for (let at = 0; at < bytes.length; at += 100_000) await upload.write(bytes.subarray(at, at + 100_000));
      await upload.commit(digestOf(bytes));
      expect(await new Response(await repository.blob(describeBytes(bytes))).bytes()).toEqual(bytes);

      const given = await repository.openUpload();
      await given.write(new Uint8Array(1000));
      await given.abort();
      expect(await repository.hasBlob(digestOf(new Uint8Array(1000)))).toBe(false);
    });

    test("stores the empty blob", async () => {
      const empty = new Uint8Array();
      await repository.pushBlob(describeBytes(empty), new Blob([]));
      expect(await new Response(await repository.blob(describeBytes(empty))).bytes()).toEqual(empty);
    });

    test("refuses content that is not what its digest says", async () => {
      const wrong = { digest: digestOf(noise(5000, 19)), size: 5000 };
      await expect(repository.pushBlob(wrong, new Blob([noise(5000, 23)]))).rejects.toThrow(wrong.digest);
      expect(await repository.hasBlob(wrong.digest)).toBe(false);
    });

    test("refuses content that has not its size", async () => {
      for (const length of [4000, 6000]) {
        const bytes = noise(length, 43);
        const wrong = { digest: digestOf(bytes), size: 5000 };
        await expect(repository.pushBlob(wrong, new Blob([bytes]))).rejects.toMatchObject({
          code: "E_CORRUPT",
        });
        expect(await repository.hasBlob(wrong.digest)).toBe(false);
      }
    });

    test("refuses a manifest whose blobs are missing", async () => {
      const bytes = (await import("./images.ts")).manifestOf(noise(99, 29));
      await expect(repository.pushManifest("broken", MediaType.ociManifest, bytes)).rejects.toThrow();
      await expect(repository.resolve("broken")).rejects.toMatchObject({ code: "E_NOT_FOUND" });
    });

    test("mounts blobs of another repository", async () => {
      const other = await open("other");
      const mounted = await other.mountBlob(digestOf(layer), "team/app");
      // A layout by path is one place; the other directory does not have the blob.
      expect(mounted).toBe(kind !== "image layout");
      expect(await other.hasBlob(digestOf(layer))).toBe(mounted);
      expect(await other.mountBlob(digestOf(noise(3, 31)), "team/app")).toBe(false);
    });

    test("lists tags and referrers", async () => {
      const subject = await repository.resolve("v1");
      const artifactType = "application/vnd.example.signature";
      const signature = await pushImage(repository, undefined, noise(10, 37), { subject, artifactType });
      const other = await pushImage(repository, undefined, noise(10, 41), {
        subject,
        artifactType: "text/plain",
      });
      const all = await repository.referrers(subject.digest);
      expect(all.map(({ digest }) => digest).sort()).toEqual([signature.digest, other.digest].sort());
      const some = await repository.referrers(subject.digest, artifactType);
      expect(some).toEqual([{ ...signature, artifactType }]);
      expect(await repository.referrers(signature.digest)).toEqual([]);
      expect(await repository.tags()).toContain("v1");
    });
  });
}
