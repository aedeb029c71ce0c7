import { describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { chainIds, layerUuid } from "../../src/convert/chain.ts";
import {
  convertConfig,
  convertManifest,
  diffIds,
  isAttestation,
  layerDescriptor,
} from "../../src/convert/documents.ts";
import { OverlaybdError } from "../../src/error.ts";
import { encodeManifest, parseManifest } from "../../src/registry/descriptor.ts";
import { digestOf } from "../../src/registry/digest.ts";
import { golden, goldenDir } from "../golden/golden.ts";

const bytes = (value: unknown) => Buffer.from(JSON.stringify(value));
const digest = (digit: string) => `sha256:${digit.repeat(64)}`;

describe("against upstream's documents", () => {
  test.skipIf(goldenDir === null)("config and manifest come out byte for byte", () => {
    const source = parseManifest(readFileSync(golden("oci/manifest.in.json")), "manifest.in.json");
    const expected = readFileSync(golden("oci/manifest.obd.json"));
    const layers = parseManifest(expected, "manifest.obd.json").layers.map(({ digest, size }) =>
      layerDescriptor("oci", { digest, size }),
    );

    const newIds = layers.map((layer) => layer.digest);
    const config = convertConfig(readFileSync(golden("oci/config.in.json")), newIds, "config");
    expect(Buffer.from(config).toString()).toBe(readFileSync(golden("oci/config.obd.json"), "utf8"));

    const mediaType = "application/vnd.oci.image.config.v1+json";
    const descriptor = { mediaType, digest: digestOf(config), size: config.length };
    const manifest = encodeManifest(convertManifest(source, "oci", descriptor, layers));
    expect(Buffer.from(manifest).toString()).toBe(expected.toString());
  });

  test.skipIf(goldenDir === null)("layer UUIDs come from the chain ids", () => {
    const ids = diffIds(readFileSync(golden("oci/config.in.json")), 2, "config");
    // The UUIDs the golden layers carry (golden README).
    expect(chainIds(ids).map(layerUuid)).toEqual([
      "aa24ff70-36e0-7fe7-57cf-cb7bcadf8178",
      "bc10700d-0320-67f1-6890-78ae3f04c9fc",
    ]);
  });
});

describe("config", () => {
  test("keeps fields that no specification knows, at every level", () => {
    const source = {
      docker_version: "24",
      os: "linux",
      architecture: "arm64",
      config: { Healthcheck: { Test: ["CMD", "true"] }, Env: ["A=1"], User: "" },
      rootfs: { type: "layers", diff_ids: [digest("1")] },
      history: [{ empty_layer: false, created_by: "RUN <x>", extra: 1 }],
    };
    expect(Buffer.from(convertConfig(bytes(source), [digest("2")], "c")).toString()).toBe(
      `{"architecture":"arm64","os":"linux","config":{"Env":["A=1"],"Healthcheck":{"Test":["CMD","true"]}},` +
        `"rootfs":{"type":"layers","diff_ids":["${digest("2")}"]},` +
        `"history":[{"created_by":"RUN \\u003cx\\u003e","extra":1}],"docker_version":"24"}`,
    );
  });

  test("sorts what Go keeps in maps", () => {
    const source = { config: { Labels: { b: "2", a: "1" }, ExposedPorts: { "9/tcp": {}, "10/tcp": {} } } };
    const text = Buffer.from(convertConfig(bytes(source), [], "c")).toString();
    expect(text).toContain(`"ExposedPorts":{"10/tcp":{},"9/tcp":{}},"Labels":{"a":"1","b":"2"}`);
  });

  test.each([
    ["no rootfs", {}, "0 diff ids for the manifest's 1 layers"],
    ["too few", { rootfs: { diff_ids: [] } }, "0 diff ids for the manifest's 1 layers"],
    ["not a digest", { rootfs: { diff_ids: ["x"] } }, "not a digest"],
    ["not a string", { rootfs: { diff_ids: [7] } }, "not a digest"],
  ])("refuses diff ids: %s", (_, config, message) => {
    const attempt = () => diffIds(bytes(config), 1, "config x");
    expect(attempt).toThrow(OverlaybdError);
    expect(attempt).toThrow(message);
  });
});

test("a chain id hashes the one below and the diff id", () => {
  const [first, second] = chainIds([digest("a"), digest("b")]);
  expect(first).toBe(digest("a"));
  expect(second).toBe(digestOf(Buffer.from(`${digest("a")} ${digest("b")}`)));
});

test("only the annotation makes an attestation", () => {
  const entry = {
    mediaType: "m",
    digest: digest("a"),
    size: 1,
    platform: { os: "unknown", architecture: "unknown" },
  };
  expect(isAttestation(entry)).toBe(false);
  expect(
    isAttestation({ ...entry, annotations: { "vnd.docker.reference.type": "attestation-manifest" } }),
  ).toBe(true);
});
