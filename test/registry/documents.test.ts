/** References, descriptors, canonical JSON, challenges. */
import { describe, expect, test } from "bun:test";
import { parseChallenges } from "../../src/registry/challenge.ts";
import {
  encodeIndex,
  encodeManifest,
  MediaType,
  parseIndex,
  parseManifest,
} from "../../src/registry/descriptor.ts";
import { digestOf, isDigest, Verifier } from "../../src/registry/digest.ts";
import { encodeJson } from "../../src/registry/json.ts";
import { formatReference, parseReference } from "../../src/registry/reference.ts";

const digest = `sha256:${"0123456789abcdef".repeat(4)}`;

describe("references", () => {
  test.each([
    ["busybox", "registry-1.docker.io", "library/busybox", "latest", undefined],
    ["docker.io/busybox:1", "registry-1.docker.io", "library/busybox", "1", undefined],
    ["team/app", "registry-1.docker.io", "team/app", "latest", undefined],
    ["index.docker.io/team/app:V_2", "registry-1.docker.io", "team/app", "V_2", undefined],
    ["localhost/app", "localhost", "app", "latest", undefined],
    ["localhost:5000/a/b/c:x", "localhost:5000", "a/b/c", "x", undefined],
    ["127.0.0.1:5000/app", "127.0.0.1:5000", "app", "latest", undefined],
    ["[::1]:5000/app:t", "[::1]:5000", "app", "t", undefined],
    [`r.example/app@${digest}`, "r.example", "app", undefined, digest],
    [`r.example/app:t@${digest}`, "r.example", "app", "t", digest],
  ])("%s", (text, host, repository, tag, wanted) => {
    const parsed = parseReference(text);
    expect(parsed).toEqual({ kind: "registry", host, repository, tag, digest: wanted });
    expect(parseReference(formatReference(parsed))).toEqual(parsed);
  });

  test.each([
    ["oci:/a/b", "/a/b", undefined, undefined],
    ["oci:dir:latest", "dir", "latest", undefined],
    ["oci:./dir:team/app:v1", "./dir", "team/app:v1", undefined],
    [`oci:dir@${digest}`, "dir", undefined, digest],
  ])("%s", (text, directory, tag, wanted) => {
    const parsed = parseReference(text);
    expect(parsed).toEqual({ kind: "layout", directory, tag, digest: wanted });
    expect(formatReference(parsed)).toBe(text);
  });

  test.each([
    "",
    ":",
    "App",
    "a//b",
    "a/../b",
    "r.example/../../etc:x",
    "r.example/app:",
    `r.example/app:${"x".repeat(129)}`,
    "r.example/app@sha256:12",
    "r.example/app@",
    "r.ex ample/app",
    "user@r.example/app",
    "r.example:99999999/app",
    "oci:",
    "oci::tag",
    "oci:dir:-",
    "https://r.example/app",
  ])("%p is refused", (text) => {
    expect(() => parseReference(text)).toThrow("invalid image reference");
  });
});

describe("JSON", () => {
  test("is spelled as Go spells it", () => {
    const value = {
      z: '<a&b>\u2028\u2029é\n\t\u0001"\\/\ud800',
      map: new Map<string, number>([
        ["é", 3],
        ["b", 2],
        ["10", 1],
        ["9", 0],
        ["Z", 4],
      ]),
      absent: undefined,
      list: [1, true, null, "x"],
      large: 9007199254740991,
    };
    expect(Buffer.from(encodeJson(value)).toString()).toBe(
      '{"z":"\\u003ca\\u0026b\\u003e\\u2028\\u2029é\\n\\t\\u0001\\"\\\\/\ufffd",' +
        '"map":{"10":1,"9":0,"Z":4,"b":2,"é":3},"list":[1,true,null,"x"],"large":9007199254740991}',
    );
  });

  test("of a manifest is the reference's, byte for byte", () => {
    // The native example of the converter's specification: 670 bytes with a known digest of their own layer and config.
    const blob = "sha256:53c0d30a5a262d18df478f5db01e3392fffb498b8538ada56e66df293b17ab5b";
    const bytes = encodeManifest({
      mediaType: MediaType.dockerManifest,
      config: {
        mediaType: MediaType.dockerConfig,
        digest: "sha256:31b9bf1971683a48863ab9e3a820d34f1267e7e2927f5805b7620632d2d22413",
        size: 1476,
      },
      layers: [
        {
          mediaType: MediaType.dockerLayer,
          digest: blob,
          size: 124133376,
          annotations: {
            "containerd.io/snapshot/overlaybd/version": "0.1.0",
            "containerd.io/snapshot/overlaybd/blob-size": "124133376",
            "containerd.io/snapshot/overlaybd/blob-digest": blob,
          },
        },
      ],
    });
    expect(bytes.length).toBe(670);
    expect(encodeManifest(parseManifest(bytes, "test"))).toEqual(bytes);
  });

  test("of an index keeps the order of entries and fields", () => {
    const entry = {
      mediaType: MediaType.ociManifest,
      digest,
      size: 5,
      platform: { architecture: "arm64", os: "linux", variant: "v8" },
      artifactType: "a/b",
    };
    const bytes = encodeIndex({ manifests: [entry], annotations: {}, mediaType: MediaType.ociIndex });
    expect(Buffer.from(bytes).toString()).toBe(
      `{"schemaVersion":2,"mediaType":"${MediaType.ociIndex}","manifests":[{"mediaType":"${MediaType.ociManifest}",` +
        `"digest":"${digest}","size":5,"platform":{"architecture":"arm64","os":"linux","variant":"v8"},"artifactType":"a/b"}]}`,
    );
    expect(parseIndex(bytes, "test").manifests).toEqual([entry]);
  });
});

describe("documents that lie", () => {
  const good = { mediaType: "x", digest, size: 1 };
  test.each([
    ["no JSON", "{"],
    ["not UTF-8", Buffer.from([0x7b, 0xff, 0x7d])],
    ["a list", "[]"],
    ["schema 1", { schemaVersion: 1 }],
    ["no config", { schemaVersion: 2, layers: [] }],
    ["no layers", { schemaVersion: 2, config: good }],
    ["negative size", { schemaVersion: 2, config: { ...good, size: -1 }, layers: [] }],
    ["fractional size", { schemaVersion: 2, config: { ...good, size: 1.5 }, layers: [] }],
    ["huge size", { schemaVersion: 2, config: { ...good, size: 2 ** 60 }, layers: [] }],
    ["size as text", { schemaVersion: 2, config: { ...good, size: "1" }, layers: [] }],
    ["path as digest", { schemaVersion: 2, config: { ...good, digest: "sha256:../../x" }, layers: [] }],
    ["null layer", { schemaVersion: 2, config: good, layers: [null] }],
    ["bad annotations", { schemaVersion: 2, config: good, layers: [{ ...good, annotations: { a: 1 } }] }],
    ["bad subject", { schemaVersion: 2, config: good, layers: [], subject: {} }],
  ])("%s", (_, document) => {
    const bytes = Buffer.isBuffer(document)
      ? document
      : Buffer.from(typeof document === "string" ? document : JSON.stringify(document));
    expect(() => parseManifest(bytes, "the manifest")).toThrow(/^the manifest/);
  });
});

test("digests", () => {
  expect(isDigest(digest)).toBe(true);
  for (const text of [
    "",
    "sha256",
    `${digest}0`,
    digest.toUpperCase(),
    `md5:${"0".repeat(32)}`,
    `${digest}:x`,
    `constructor:${"0".repeat(64)}`,
  ]) {
    expect([text, isDigest(text)]).toEqual([text, false]);
  }
  expect(digestOf(new Uint8Array())).toBe(
    "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
  );
  const verifier = new Verifier("it", digestOf(new Uint8Array(3)), 3);
  verifier.update(new Uint8Array(2));
  expect(() => verifier.update(new Uint8Array(2))).toThrow("more than the 3 bytes");
});

describe("challenges", () => {
  const parse = (field: string) =>
    parseChallenges(field).map(({ scheme, parameters }) => [scheme, Object.fromEntries(parameters)] as const);

  test.each([
    ['Basic realm="a"', [["basic", { realm: "a" }]]],
    [
      'Bearer realm="https://a/t",service="s",scope="r:x:pull,push"',
      [["bearer", { realm: "https://a/t", service: "s", scope: "r:x:pull,push" }]],
    ],
    ['bearer REALM = "a" ,  service=s', [["bearer", { realm: "a", service: "s" }]]],
    [
      'Negotiate, Basic realm="x", Bearer realm="y"',
      [
        ["negotiate", {}],
        ["basic", { realm: "x" }],
        ["bearer", { realm: "y" }],
      ],
    ],
    [
      'NTLM TlRMTVNTUAA=, Basic realm="x"',
      [
        ["ntlm", {}],
        ["basic", { realm: "x" }],
      ],
    ],
    ['Bearer realm="a \\"b\\", c"', [["bearer", { realm: 'a "b", c' }]]],
    ["Bearer realm=https://a/t?x=y,service=s", [["bearer", { realm: "https://a/t?x=y", service: "s" }]]],
    ["", []],
    ['"', []],
    ['Bearer realm="unclosed', [["bearer", { realm: "" }]]],
  ] as const)("%s", (field, expected) => {
    const found = parse(field);
    if (field.endsWith("unclosed"))
      expect(found.every(([, parameters]) => parameters.realm !== 'unclosed"')).toBe(true);
    else expect(found).toEqual(expected as unknown as typeof found);
  });

  test("of any length are read in time", () => {
    for (const piece of ['"', ",", " ", "a=", 'a="', "\\", "a ", "=", 'Bearer realm="x",']) {
      const started = performance.now();
      parseChallenges(`Bearer ${piece.repeat(20_000)}`);
      expect(performance.now() - started).toBeLessThan(2000);
    }
  });
});
