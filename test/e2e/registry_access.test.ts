/** Images from registries that are hard to reach: credentials, certificates, mirrors, proxies, as the service config says. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { $ } from "bun";
import { repositoryAccess } from "../../src/registry/access.ts";
import { fixedCredentials } from "../../src/registry/credentials/source.ts";
import { digestOf } from "../../src/registry/digest.ts";
import { parseReference } from "../../src/registry/reference.ts";
import type { Repository } from "../../src/registry/repository.ts";
import { canServeFuse } from "../device/support.ts";
import {
  type ForwardProxy,
  type RunningServer,
  startCachingMirror,
  startForwardProxy,
  startTinyproxy,
  startTokenRegistry,
  type TokenRegistry,
} from "../fixtures/intermediaries.ts";
import { gzipLayer, HandmadeLayout } from "../fixtures/layout.ts";
import { type RunResult, run } from "../fixtures/program.ts";
import {
  type Authority,
  makeAuthority,
  type RunningRegistry,
  startDockerRegistry,
  temporaryDirectory,
} from "../fixtures/registry.ts";
import { tar } from "../fixtures/tar.ts";
import { FORMATS, writeRandomLayer } from "../image/stack.ts";
import { describeBytes, noise, pushImage } from "../registry/images.ts";

setDefaultTimeout(60_000);

const [USER, PASSWORD] = ["puller", "s3cret:pa55"];
const directory = temporaryDirectory();
const at = (...names: string[]) => join(directory.path, ...names);
let authority: Authority;
let registry: RunningRegistry;
let tokens: TokenRegistry;
/** What the image's disk has to be. */
const disk = new Uint8Array(4 << 20);
let configs = 0;

/** Pushes a small overlaybd image. */
async function push(repository: Repository): Promise<void> {
  writeRandomLayer(at("layer"), disk.fill(0), 7, { ...FORMATS[2], replace: true });
  const bytes = readFileSync(at("layer"));
  const digest = digestOf(bytes);
  const annotations = { "containerd.io/snapshot/overlaybd/blob-digest": digest };
  await pushImage(repository, "obd", bytes, { layers: [{ ...describeBytes(bytes), annotations }] });
}

beforeAll(async () => {
  authority = await makeAuthority(directory.path);
  mkdirSync(at("basic"));
  mkdirSync(at("token"));
  [registry, tokens] = await Promise.all([
    startDockerRegistry(at("basic"), { tls: authority, users: { [USER]: PASSWORD } }),
    startTokenRegistry(at("token"), authority, USER, PASSWORD),
  ]);
  const credentials = fixedCredentials(`${USER}:${PASSWORD}`);
  const open = repositoryAccess({ tls: { authorities: [authority.authority] }, credentials });
  for (const { host } of [registry, tokens]) await push(await open(parseReference(`${host}/team/app`)));
});
afterAll(async () => {
  await Promise.all([registry?.stop(), tokens?.stop()]);
  directory.remove();
});

type Environment = Readonly<Record<string, string>>;

/** Runs a command with a service config, the certificate authority, and no credentials of Docker's. */
function overlaybd(words: readonly string[], service: object, env: Environment = {}): Promise<RunResult> {
  const path = at(`service-${configs++}.json`);
  writeFileSync(path, JSON.stringify(service));
  const proxies = {
    HTTP_PROXY: "",
    HTTPS_PROXY: "",
    NO_PROXY: "",
    http_proxy: "",
    https_proxy: "",
    no_proxy: "",
  };
  const options = ["--service_config_path", path, "--root-ca", authority.authority];
  return run([...words, ...options], {
    cwd: directory.path,
    env: { ...proxies, DOCKER_CONFIG: at("nowhere"), ...env },
  });
}

function fileCredentials(...hosts: string[]): object {
  const path = at(`cred-${configs++}.json`);
  const auths = Object.fromEntries(hosts.map((host) => [host, { username: USER, password: PASSWORD }]));
  writeFileSync(path, JSON.stringify({ auths }));
  return { credentialConfig: { mode: "file", path } };
}

/** Exports an image through an empty cache. */
function exported(source: string, service: object, env?: Environment): Promise<RunResult> {
  const words = ["export", source, at("out.img"), "--cache-dir", at(`cache-${configs++}`)];
  rmSync(at("out.img"), { force: true });
  return overlaybd(words, service, env);
}

/** That the whole image is read right; returns what was said meanwhile. */
async function expectRight(source: string, service: object, env?: Environment): Promise<string> {
  const { code, err } = await exported(source, service, env);
  expect({ code, err }).toMatchObject({ code: 0 });
  expect(readFileSync(at("out.img")).equals(disk)).toBe(true);
  return err;
}

/** That it ends in one line, which holds `message` and no secret. */
async function expectRefused(
  source: string,
  service: object,
  message: string,
  env?: Environment,
): Promise<void> {
  const { code, err } = await exported(source, service, env);
  expect(code).toBe(1);
  expect(err).toContain(message);
  expect(err).not.toContain(PASSWORD);
  expect(err).not.toContain(btoa(`${USER}:${PASSWORD}`));
  expect(err.trimEnd().split("\n").at(-1)).toStartWith("overlaybd export: ");
}

const image = ({ host }: { host: string }) => `${host}/team/app:obd`;

describe("credentials", () => {
  test("Basic: upstream's file, also for an image config", async () => {
    const service = fileCredentials(`${registry.host}/team`);
    expect(await expectRight(image(registry), service)).toBe("");
    const manifest = await fetch(`https://${registry.host}/v2/team/app/manifests/obd`, {
      headers: {
        authorization: `Basic ${btoa(`${USER}:${PASSWORD}`)}`,
        accept: "application/vnd.oci.image.manifest.v1+json",
      },
      tls: { rejectUnauthorized: false },
    });
    const { layers } = (await manifest.json()) as { layers: object[] };
    const config = { repoBlobUrl: `https://${registry.host}/v2/team/app/blobs`, lowers: layers };
    writeFileSync(at("config.v1.json"), JSON.stringify(config));
    expect(await expectRight(at("config.v1.json"), service)).toBe("");
  });

  test("the legacy file, Docker's configuration, and a user on the command line", async () => {
    const { credentialConfig } = fileCredentials(registry.host) as { credentialConfig: { path: string } };
    expect(await expectRight(image(registry), { credentialFilePath: credentialConfig.path })).toBe("");
    mkdirSync(at("docker"));
    const auths = { [registry.host]: { auth: btoa(`${USER}:${PASSWORD}`) } };
    writeFileSync(at("docker/config.json"), JSON.stringify({ auths }));
    expect(await expectRight(image(registry), {}, { DOCKER_CONFIG: at("docker") })).toBe("");
    const words = ["inspect", image(registry), "--username", USER];
    expect(await overlaybd(words, {}, { OVERLAYBD_PASSWORD: PASSWORD })).toMatchObject({ code: 0, err: "" });
    expect(await overlaybd(words, {}, { OVERLAYBD_PASSWORD: "wrong" })).toMatchObject({ code: 1 });
    const shown = await overlaybd(["inspect", image(registry), "-u", `${USER}:${PASSWORD}`], {});
    expect(shown.code).toBe(2);
    expect(shown.err).toContain("OVERLAYBD_PASSWORD");
    expect(shown.err).not.toContain(PASSWORD);
  });

  test("tokens, with the password from a credential server on a socket", async () => {
    const socket = at("auth.sock");
    const asked: string[] = [];
    const server = Bun.serve({
      unix: socket,
      fetch(request) {
        asked.push(request.url);
        const auths = { [tokens.host]: { username: USER, password: PASSWORD } };
        return Response.json({ success: true, data: { auths } });
      },
    });
    const service = { credentialConfig: { mode: "uds", path: socket } };
    tokens.issued.length = 0;
    expect(await expectRight(image(tokens), service)).toBe("");
    expect(tokens.issued).toEqual(["repository:team/app:pull"]);
    expect(asked).toHaveLength(1);
    expect(asked[0]).toContain(`/auth?remote_url=https://${tokens.host}/v2/team/app/`);
    await server.stop(true);
    await expectRefused(image(tokens), service, "going on without");
  });

  test("none, or wrong ones", async () => {
    for (const [host, none, refusal] of [
      [registry, "there are none for it", "refused the credentials"],
      [tokens, "the token service", "the token service"],
    ] as const) {
      await expectRefused(image(host), {}, none);
      const path = at("wrong.json");
      writeFileSync(path, JSON.stringify({ auths: { [host.host]: { auth: btoa(`${USER}:wr0ng`) } } }));
      await expectRefused(image(host), { credentialConfig: { mode: "file", path } }, refusal);
    }
  });
});

describe("hosts", () => {
  let mirror: RunningServer;
  let certs: string;

  beforeAll(async () => {
    const ec = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
    await $`openssl req -x509 ${ec} -subj /CN=client -days 2 -keyout ${at("client.key")} -out ${at("client.crt")}`.quiet();
    mirror = await startCachingMirror(at("mirror"), authority, `https://${registry.host}`, {
      authorization: `Basic ${btoa(`${USER}:${PASSWORD}`)}`,
      clients: at("client.crt"),
    });
    certs = at("certs.d");
    mkdirSync(join(certs, registry.host), { recursive: true });
    hosts(`[host."https://127.0.0.1:${mirror.port}"]
      capabilities = ["pull"]
      ca = "${authority.authority}"
      client = [["${at("client.crt")}", "${at("client.key")}"]]`);
  });
  afterAll(() => mirror?.stop());

  function hosts(text: string): void {
    writeFileSync(join(certs, registry.host, "hosts.toml"), text);
  }

  const blobsServed = () =>
    mirror
      .log()
      .split("\n")
      .filter((line) => /^GET \S+\/blobs\/\S+ 206 /.test(line));

  test("content comes from the mirror, which knows the client's certificate, and from its cache the second time", async () => {
    const service = { ...fileCredentials(registry.host), hostsDirectory: certs };
    expect(await expectRight(image(registry), service)).toBe("");
    const cold = blobsServed();
    expect(cold.length).toBeGreaterThan(0);
    expect(await expectRight(image(registry), service)).toBe("");
    const warm = blobsServed().slice(cold.length);
    expect(warm.length).toBeGreaterThan(0);
    expect(warm.filter((line) => !line.endsWith(" HIT"))).toEqual([]);
    // Saying what a tag means was not allowed to it.
    expect(mirror.log()).not.toContain("manifests/obd");
  });

  test("the command line names the directory, certConfig the client's certificate", async () => {
    hosts(`[host."https://127.0.0.1:${mirror.port}"]\ncapabilities = ["pull"]`);
    const served = blobsServed().length;
    const certConfig = { certFile: at("client.crt"), keyFile: at("client.key") };
    const words = [
      "export",
      image(registry),
      at("out2.img"),
      "--cache-dir",
      at("cache-x"),
      "--hosts-dir",
      certs,
    ];
    const result = await overlaybd(words, { ...fileCredentials(registry.host), certConfig });
    expect(result).toMatchObject({ code: 0, err: "" });
    expect(blobsServed().length).toBeGreaterThan(served);
    // Without the certificate the mirror refuses, which is said, and the registry serves.
    const said = await expectRight(image(registry), {
      ...fileCredentials(registry.host),
      hostsDirectory: certs,
    });
    expect(said).toContain(`the mirror https://127.0.0.1:${mirror.port} of ${registry.host} is avoided`);
    expect(said).toContain("400");
  });

  test("certificates in Docker's places are all that a private authority takes", async () => {
    const own = at("docker-certs");
    mkdirSync(join(own, registry.host), { recursive: true });
    const service = { ...fileCredentials(registry.host), hostsDirectory: own };
    const path = at("private.json");
    writeFileSync(path, JSON.stringify(service));
    const words = ["inspect", image(registry), "--service_config_path", path];
    const env = { DOCKER_CONFIG: at("nowhere") };
    const distrusted = await run(words, { env });
    expect(distrusted.code).toBe(1);
    expect(distrusted.err).toContain("not signed by a trusted authority");
    // Like any other program it trusts what the system does.
    expect(await run(words, { env: { ...env, SSL_CERT_FILE: authority.authority } })).toMatchObject({
      code: 0,
    });
    writeFileSync(join(own, registry.host, "ca.crt"), readFileSync(authority.authority));
    expect(await run(words, { env })).toMatchObject({ code: 0, err: "" });
  });

  test("convert takes certificates as upstream's convertor does", async () => {
    const own = at("convertor-certs");
    mkdirSync(own);
    writeFileSync(join(own, "ca.crt"), readFileSync(authority.authority));
    const host = `127.0.0.1:${mirror.port}`;
    const words = ["convert", "-r", `${host}/team/app`, "-i", "missing", "-o", "x", "-d", at("work")];
    const convert = (...more: string[]) =>
      run([...words, ...more], { env: { DOCKER_CONFIG: at("nowhere") } });
    expect((await convert()).err).toContain("not signed by a trusted authority");
    const refused = await convert("--cert-dir", own, "--cert-dir", at("missing"));
    expect(refused.err).toContain("answered 400");
    const named = await convert(
      "--cert-dir",
      own,
      "--client-cert",
      `${at("client.crt")}:${at("client.key")}`,
    );
    expect(named.err).toContain("answered 404");
    writeFileSync(join(own, "me.cert"), readFileSync(at("client.crt")));
    writeFileSync(join(own, "me.key"), readFileSync(at("client.key")));
    expect((await convert("--cert-dir", own)).err).toContain("answered 404");
    const malformed = await convert("--client-cert", "a:b:c");
    expect(malformed.code).toBe(2);
    expect(malformed.err).toContain("client cert a:b:c: invalid format");
  });

  test.skipIf(!canServeFuse)(
    "converted and mounted through it; reads go on when the mirror dies",
    async () => {
      hosts(`[host."https://127.0.0.1:${mirror.port}"]
      capabilities = ["pull"]
      client = [["${at("client.crt")}", "${at("client.key")}"]]`);
      const service = { ...fileCredentials(registry.host), hostsDirectory: certs };
      const layout = new HandmadeLayout(at("layout"));
      const content = noise(600_000, 3);
      const members = [
        { path: "hello", data: "hello\n" },
        { path: "noise", data: content },
      ];
      layout.tag(layout.image({ layers: [gzipLayer(tar(members))] }));
      const pushed = [
        "-r",
        `oci:${at("layout")}`,
        "-i",
        "latest",
        "--to",
        `${registry.host}/team/app`,
        "-o",
        "fs",
      ];
      const converted = await overlaybd(["convert", ...pushed, "--vsize", "1", "-d", at("work")], service);
      expect(converted).toMatchObject({ code: 0, err: "" });

      const records = ["--run-dir", at("run")];
      mkdirSync(at("mnt"));
      const words = [`${registry.host}/team/app:fs`, at("mnt"), ...records, "--cache-dir", at("cache-mount")];
      const served = blobsServed().length;
      const mounted = await overlaybd(["mount", ...words], service);
      expect(mounted).toMatchObject({ code: 0, err: "" });
      try {
        expect(blobsServed().length).toBeGreaterThan(served);
        await mirror.stop();
        expect(await Bun.file(at("mnt/hello")).text()).toBe("hello\n");
        expect(digestOf(await Bun.file(at("mnt/noise")).bytes())).toBe(digestOf(content));
      } finally {
        expect(await run(["umount", at("mnt"), ...records])).toMatchObject({ code: 0 });
      }
    },
  );
});

describe("proxies", () => {
  const [proxyUser, proxyPassword] = ["proxy-user", "pr0xy-pa55"];
  let tinyproxy: RunningServer;
  let plain: RunningRegistry;
  let forward: ForwardProxy;

  beforeAll(async () => {
    mkdirSync(at("plain"));
    [tinyproxy, plain, forward] = await Promise.all([
      startTinyproxy(at("tinyproxy"), { user: proxyUser, password: proxyPassword }),
      startDockerRegistry(at("plain")),
      startForwardProxy(),
    ]);
    await push(await repositoryAccess({ plain: true })(parseReference(`${plain.host}/team/app`)));
  });
  afterAll(() => Promise.all([tinyproxy?.stop(), plain?.stop(), forward?.stop()]));

  const through = (password: string) => ({
    ...fileCredentials(registry.host),
    proxy: `http://${proxyUser}:${password}@127.0.0.1:${tinyproxy.port}`,
  });
  /** The same registries by a name that only the forward proxy can find. */
  const named = ({ host }: { host: string }) => host.replace("127.0.0.1", "registry.test");
  /** An image config for a registry without TLS: it names the scheme. */
  function plainConfig(host: string): string {
    const layer = readFileSync(at("layer"));
    const path = at(`plain-${configs++}.json`);
    const lowers = [{ digest: digestOf(layer), size: layer.length }];
    writeFileSync(path, JSON.stringify({ repoBlobUrl: `http://${host}/v2/team/app/blobs`, lowers }));
    return path;
  }

  test("the service config's, for TLS and without", async () => {
    expect(await expectRight(image(registry), through(proxyPassword))).toBe("");
    expect(tinyproxy.log()).toContain(`CONNECT ${registry.host}`);
    expect(await expectRight(plainConfig(plain.host), through(proxyPassword))).toBe("");
    expect(tinyproxy.log()).toContain(`GET http://${plain.host}/v2/team/app/blobs/`);
  });

  test("a login it refuses is an error that names the proxy and not the password", async () => {
    const wanted = `the proxy http://127.0.0.1:${tinyproxy.port} wants a user name and password`;
    const proxy = `http://127.0.0.1:${tinyproxy.port}`;
    for (const [source, service] of [
      [image(registry), through("wr0ng-pa55")],
      [image(registry), { proxy }],
      [plainConfig(plain.host), { proxy }],
    ] as const) {
      const { code, err } = await exported(source, service);
      expect(code).toBe(1);
      expect(err).toContain(wanted);
      expect(err).not.toContain("wr0ng-pa55");
      expect(err).not.toContain(btoa(`${proxyUser}:wr0ng-pa55`));
    }
  });

  test("one that is not there", async () => {
    const service = { ...fileCredentials(registry.host), proxy: "http://127.0.0.1:1" };
    await expectRefused(image(registry), service, "through the proxy http://127.0.0.1:1");
  });

  test("a password does not belong on the command line", async () => {
    const address = `http://${proxyUser}:${proxyPassword}@127.0.0.1:${tinyproxy.port}`;
    const shown = await overlaybd(["inspect", image(registry), "--proxy", address], {});
    expect(shown.code).toBe(2);
    expect(shown.err).not.toContain(proxyPassword);
  });

  test("the environment's, with its exceptions", async () => {
    const address = `http://env-user:env-pa55@127.0.0.1:${forward.port}`;
    const env = { HTTPS_PROXY: address, http_proxy: address, NO_PROXY: "localhost" };
    const service = fileCredentials(named(registry), "localhost");
    expect(await expectRight(`${named(registry)}/team/app:obd`, service, env)).toBe("");
    expect(await expectRight(plainConfig(named(plain)), service, env)).toBe("");
    const lines = forward.seen.map(({ line }) => line);
    expect(lines).toContain(`CONNECT ${named(registry)}`);
    expect(lines).toContainEqual(expect.stringContaining(`GET http://${named(plain)}/v2/team/app/blobs/`));
    const login = `Basic ${btoa("env-user:env-pa55")}`;
    expect(forward.seen.filter(({ authorization }) => authorization !== login)).toEqual([]);

    const asked = forward.seen.length;
    await expectRefused(`${named(registry)}/team/app:obd`, service, "failed", { ...env, NO_PROXY: ".test" });
    expect(await expectRight(image(registry), fileCredentials(registry.host), env)).toBe("");
    expect(forward.seen).toHaveLength(asked);
  });
});

test("a P2P accelerator gets the requests for content, and is not needed", async () => {
  const asked: string[] = [];
  const engine = Bun.serve({
    hostname: "127.0.0.1",
    port: 0,
    fetch(request) {
      const url = request.url.slice(request.url.indexOf("/p2p/") + "/p2p/".length);
      asked.push(url);
      const headers = new Headers(request.headers);
      headers.delete("host");
      return fetch(url, { headers, tls: { rejectUnauthorized: false } });
    },
  });
  const p2pConfig = { enable: true, address: `http://127.0.0.1:${engine.port}/p2p` };
  const service = { ...fileCredentials(tokens.host), p2pConfig };
  expect(await expectRight(image(tokens), service)).toBe("");
  expect(asked.length).toBeGreaterThan(0);
  expect(asked.filter((url) => !url.startsWith(`https://${tokens.host}/v2/team/app/blobs/sha256:`))).toEqual(
    [],
  );
  await engine.stop(true);
  expect(await expectRight(image(tokens), service)).toContain("the P2P accelerator");
});
