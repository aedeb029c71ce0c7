import { afterAll, beforeAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { loadServiceConfig } from "../../src/service/config.ts";

let directory: string;
beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), "overlaybd-service-"));
});
afterAll(() => rmSync(directory, { recursive: true, force: true }));

function load(value: unknown) {
  const path = join(directory, "overlaybd.json");
  writeFileSync(path, JSON.stringify(value));
  return loadServiceConfig(path);
}

test("has defaults for everything; unknown keys are ignored", async () => {
  expect(await load({ enableAudit: 7 })).toEqual({
    engine: 0,
    cache: {
      type: "file",
      directory: "/opt/overlaybd/registry_cache",
      capacity: 2 ** 32,
      refillBytes: 262144,
    },
    credentials: {
      mode: "file",
      path: "/opt/overlaybd/cred.json",
      timeout: 1,
      clientCertificate: "",
      clientKey: "",
      serverAuthority: "",
    },
    certificate: { certificate: "", key: "" },
    p2p: { enable: false, address: "http://localhost:9731/accelerator" },
    download: { enable: false, delay: 300, delayExtra: 30, maxMBps: 100, tryCnt: 5, blockSize: 262144 },
    prefetchConcurrency: 16,
    userAgent: "",
    proxy: "",
    hostsDirectory: "",
    readDeadline: 300,
  });
});

test("cacheConfig counts when it names a type; the legacy keys otherwise", async () => {
  const cacheConfig = { cacheType: "download", cacheDir: "/c", cacheSizeGB: 2, refillSize: 65536 };
  const legacy = { cacheType: "ocf", registryCacheDir: "/legacy", registryCacheSizeGB: 1 };
  expect((await load({ cacheConfig, ...legacy })).cache).toEqual({
    type: "download",
    directory: "/c",
    capacity: 2 ** 31,
    refillBytes: 65536,
  });
  expect((await load({ cacheConfig: { refillSize: 4096 }, ...legacy })).cache).toEqual({
    type: "ocf",
    directory: "/legacy",
    capacity: 2 ** 30,
    refillBytes: 4096,
  });
});

test("credentialConfig counts when it names a mode; the legacy file otherwise", async () => {
  const credentialConfig = { mode: "https", path: "https://c/x", timeout: 3, server_ca_path: "/ca" };
  expect((await load({ credentialConfig, credentialFilePath: "/f" })).credentials).toMatchObject({
    mode: "https",
    path: "https://c/x",
    timeout: 3,
    serverAuthority: "/ca",
  });
  expect((await load({ credentialFilePath: "/f" })).credentials).toMatchObject({ mode: "file", path: "/f" });
});

test.each([
  [{ ioEngine: 4 }, "ioEngine"],
  [{ cacheConfig: { refillSize: 5000 } }, "cacheConfig.refillSize"],
  [{ cacheConfig: { refillSize: 2 ** 23 } }, "cacheConfig.refillSize"],
  [{ cacheConfig: { cacheDir: 1 } }, "cacheConfig.cacheDir"],
  [{ cacheConfig: { cacheType: "tape" } }, "cacheConfig.cacheType"],
  [{ cacheType: "tape" }, "cacheType"],
  [{ cacheConfig: [] }, "cacheConfig"],
  [{ credentialConfig: { mode: "ftp" } }, "credentialConfig.mode"],
  [{ certConfig: { certFile: "/c" } }, "certConfig.keyFile"],
  [{ download: { enable: "yes" } }, "download.enable"],
])("%j is refused", async (value, key) => {
  await expect(load(value)).rejects.toMatchObject({
    code: "E_CONFIG",
    message: expect.stringContaining(key),
  });
});

test("a file that was named must exist", async () => {
  await expect(loadServiceConfig(join(directory, "nowhere.json"))).rejects.toMatchObject({
    code: "E_CONFIG",
  });
});
