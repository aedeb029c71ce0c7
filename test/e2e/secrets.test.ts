/**
 * No password, token, signature or secret header gets out: not into what commands print, log or write, and not into the
 * command lines of processes, however talkative the environment wants them to be and whatever fails.
 */
import {
  afterAll,
  afterEach,
  beforeAll,
  beforeEach,
  describe,
  expect,
  setDefaultTimeout,
  test,
} from "bun:test";
import { chmodSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type RegistryServer, serveRegistry } from "../../src/registry/server.ts";
import { canServeFuse } from "../device/support.ts";
import { type ForwardProxy, startForwardProxy } from "../fixtures/intermediaries.ts";
import { gzipLayer, HandmadeLayout } from "../fixtures/layout.ts";
import { type RunResult, start } from "../fixtures/program.ts";
import {
  type FaultProxy,
  startFaultProxy,
  startTokenGate,
  type TokenGate,
  temporaryDirectory,
} from "../fixtures/registry.ts";
import { tar } from "../fixtures/tar.ts";

setDefaultTimeout(60_000);

const directory = temporaryDirectory();
/** Holds secrets, as the configuration of a machine does. */
const inputs = join(directory.path, "inputs");
/** All that commands may write; temporary files too. */
const outputs = join(directory.path, "outputs");
const service = join(inputs, "overlaybd.json");

const USER = "puller";
const PASSWORD = "pa55-REGISTRY-6f1c";
const PROXY_PASSWORD = "pa55-PROXY-b71e";
const SIGNATURE = "5167-SIGNATURE-c2a4";
const API_KEY = "k3y-HEADER-93d0";
const ASKING_KEY = "k3y-CREDENTIAL-SERVER-11aa";
const secrets: Readonly<Record<string, string | RegExp>> = {
  password: PASSWORD,
  "password, encoded": btoa(`${USER}:${PASSWORD}`),
  "proxy password": PROXY_PASSWORD,
  "proxy password, encoded": btoa(`proxy:${PROXY_PASSWORD}`),
  signature: SIGNATURE,
  header: API_KEY,
  "credential server's key": ASKING_KEY,
  token: /token-\d+-[0-9a-f]{8}-/,
};

/** Everything that makes programs talk. */
const TALKATIVE = {
  CONSOLA_LEVEL: "999",
  DEBUG: "*",
  NODE_DEBUG: "*",
  BUN_CONFIG_VERBOSE_FETCH: "curl",
  LOG_LEVEL: "debug",
};

let server: RegistryServer;
/** Hands blobs out by signed URLs. */
let store: FaultProxy;
let gate: TokenGate;
let proxy: ForwardProxy;
let credentialServer: Bun.Server<undefined>;
/** Whether the credential server knows the password. */
let knows: boolean;
let said: { name: string; text: string }[];

const signed = (url: string) => url.includes(SIGNATURE);
const redirect: FaultProxy["fault"] = ({ method, url }) => {
  if (method !== "GET" || !url.includes("/blobs/sha256:") || signed(url)) return undefined;
  const headers = {
    location: `${store.origin}${url.split("?")[0]}?X-Amz-Signature=${SIGNATURE}&X-Amz-Expires=600`,
  };
  return { kind: "status", status: 307, headers };
};

beforeAll(async () => {
  mkdirSync(join(inputs, "bin"), { recursive: true });
  mkdirSync(outputs);
  server = await serveRegistry({ directory: join(directory.path, "registry") });
  store = await startFaultProxy(server.url);
  gate = startTokenGate(store.origin, { user: USER, password: PASSWORD });
  proxy = await startForwardProxy();
  credentialServer = Bun.serve({
    hostname: "127.0.0.1",
    port: 0,
    fetch: () => {
      const auths = knows ? { [gate.host]: { username: USER, password: PASSWORD } } : {};
      return Response.json({ success: knows, data: { auths } });
    },
  });
  const certs = join(inputs, "certs.d", gate.host);
  mkdirSync(certs, { recursive: true });
  writeFileSync(
    join(certs, "hosts.toml"),
    `server = "http://${gate.host}"\n[header]\nx-api-key = "${API_KEY}"\n`,
  );
  const config = {
    proxy: `http://proxy:${PROXY_PASSWORD}@127.0.0.1:${proxy.port}`,
    hostsDirectory: join(inputs, "certs.d"),
    credentialConfig: { mode: "http", path: `${credentialServer.url.origin}/?key=${ASKING_KEY}` },
    readDeadline: 2,
  };
  writeFileSync(service, JSON.stringify(config));
  const layout = new HandmadeLayout(join(inputs, "layout"));
  layout.tag(layout.image({ layers: [gzipLayer(tar([{ path: "hello", data: "hello\n" }]))] }));
});
beforeEach(() => {
  knows = true;
  said = [];
  store.fault = redirect;
});
afterEach(() => {
  for (const path of readdirSync(outputs)) rmSync(join(outputs, path), { recursive: true, force: true });
});
afterAll(async () => {
  await Promise.all([proxy.stop(), gate.stop(), store.stop(), server.stop(), credentialServer.stop(true)]);
  directory.remove();
});

/** Runs a command that talks as much as it can, and keeps all that it and its children say and are called with. */
async function overlaybd(
  words: readonly string[],
  env: Readonly<Record<string, string>> = {},
): Promise<RunResult> {
  const temporary = join(outputs, "tmp");
  mkdirSync(temporary, { recursive: true });
  const child = start(words, {
    cwd: outputs,
    env: { ...TALKATIVE, TMPDIR: temporary, DOCKER_CONFIG: join(inputs, "nowhere"), ...env },
  });
  const commandLines = new Set<string>();
  const watch = setInterval(() => {
    for (const line of descendantCommandLines()) commandLines.add(line);
  }, 5);
  const [out, err] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
  ]);
  const code = await child.exited;
  clearInterval(watch);
  const name = words.slice(0, 2).join(" ");
  said.push(
    { name: `stdout of ${name}`, text: out },
    { name: `stderr of ${name}`, text: err },
    { name: `command lines under ${name}`, text: [...commandLines].join("\n") },
  );
  return { code, out, err, peakMemory: 0 };
}

/** Command lines of the processes that descend from this one. */
function descendantCommandLines(): string[] {
  const parents = new Map<number, number>();
  for (const pid of readdirSync("/proc").map(Number).filter(Number.isInteger)) {
    try {
      const [, rest] = readFileSync(`/proc/${pid}/stat`, "latin1").split(") ");
      parents.set(pid, Number(rest.split(" ")[1]));
    } catch {}
  }
  const descends = (pid: number): boolean => {
    const parent = parents.get(pid);
    return parent !== undefined && (parent === process.pid || descends(parent));
  };
  return [...parents.keys()].filter(descends).flatMap((pid) => commandLine(pid));
}

function commandLine(pid: number): string[] {
  try {
    return [readFileSync(`/proc/${pid}/cmdline`, "utf8").replaceAll("\0", " ")];
  } catch {
    return [];
  }
}

/** Names and contents of the files below a directory. */
function written(path: string): typeof said {
  const entries = readdirSync(path, { recursive: true, withFileTypes: true });
  return entries
    .filter((entry) => entry.isFile())
    .map(({ parentPath, name }) => ({
      name: join(parentPath, name),
      text: readFileSync(join(parentPath, name), "latin1"),
    }));
}

/** Names of the secrets that were said, or written below `outputs`, and where. */
function leaks(): string[] {
  return [...said, ...written(outputs)].flatMap(({ name, text }) =>
    Object.entries(secrets)
      .filter(([, secret]) => (typeof secret === "string" ? text.includes(secret) : secret.test(text)))
      .map(([secret]) => `${secret} in ${name}`),
  );
}

const shared = ["--service_config_path", service];
const image = () => `${gate.host}/team/app:obd`;
const push = () => [
  ...["convert", "-r", `oci:${join(inputs, "layout")}`, "-i", "latest", "--to", `${gate.host}/team/app`],
  ...["-o", "obd", "--vsize", "1", "-d", join(outputs, "work"), ...shared],
];
const inspect = () => ["inspect", image(), "--cache-dir", join(outputs, "cache"), ...shared];

test("the search finds what it is for", async () => {
  writeFileSync(join(outputs, "log"), `GET /x?X-Amz-Signature=${SIGNATURE}`);
  const authorization = "Authorization: Bearer token-3-0123abcd-0000";
  await overlaybd(["inspect", authorization, `--no-such-option=${PASSWORD}`]);
  const found = leaks().map((leak) => leak.split(" in ")[0]);
  expect(new Set(found)).toEqual(new Set(["signature", "password", "token"]));
  expect(leaks().some((leak) => leak.includes("command lines"))).toBe(true);
});

describe("commands that succeed", () => {
  test("convert, inspect, export", async () => {
    expect(await overlaybd(push())).toMatchObject({ code: 0 });
    expect(await overlaybd(inspect())).toMatchObject({ code: 0 });
    const words = [
      "export",
      image(),
      join(outputs, "disk.img"),
      "--cache-dir",
      join(outputs, "cache2"),
      ...shared,
    ];
    expect(await overlaybd(words)).toMatchObject({ code: 0 });
    // All the secrets were in use.
    expect(store.seen.some(({ url }) => signed(url))).toBe(true);
    expect(store.seen.some(({ headers }) => headers["x-api-key"] === API_KEY)).toBe(true);
    expect(
      proxy.seen.some(({ authorization }) => authorization === `Basic ${btoa(`proxy:${PROXY_PASSWORD}`)}`),
    ).toBe(true);
    rmSync(join(outputs, "disk.img"));
    expect(leaks()).toEqual([]);
  });

  test.skipIf(!canServeFuse)("mount: its log, its record, its processes", async () => {
    expect(await overlaybd(push())).toMatchObject({ code: 0 });
    const records = ["--run-dir", join(outputs, "run")];
    mkdirSync(join(outputs, "mnt"));
    const words = ["mount", image(), join(outputs, "mnt"), ...records, "--cache-dir", join(outputs, "cache")];
    const mounted = await overlaybd([...words, "--json", ...shared]);
    expect(mounted.code).toBe(0);
    try {
      const { pid } = JSON.parse(mounted.out) as { pid: number };
      expect(await Bun.file(join(outputs, "mnt/hello")).text()).toBe("hello\n");
      said.push({ name: "command line of the server", text: commandLine(pid).join() });
      // What lies there now is gone after the unmount.
      said.push(...written(join(outputs, "run")));
    } finally {
      expect(await overlaybd(["umount", join(outputs, "mnt"), ...records])).toMatchObject({ code: 0 });
    }
    expect(said.some(({ name }) => name.startsWith(join(outputs, "run")))).toBe(true);
    expect(leaks()).toEqual([]);
  });

  test("Docker's credential helper: secrets come through pipes", async () => {
    const helper = join(inputs, "bin/docker-credential-test");
    writeFileSync(
      helper,
      `#!/bin/sh\ncat >/dev/null; sleep 0.1\necho '{"Username":"${USER}","Secret":"${PASSWORD}"}'\n`,
    );
    chmodSync(helper, 0o755);
    writeFileSync(join(inputs, "config.json"), JSON.stringify({ credsStore: "test" }));
    knows = false;
    const env = { DOCKER_CONFIG: inputs, PATH: `${join(inputs, "bin")}:${process.env.PATH}` };
    expect(await overlaybd(push(), env)).toMatchObject({ code: 0 });
    expect(said.some(({ text }) => text.includes("docker-credential-test get"))).toBe(true);
    expect(await overlaybd(push(), { OVERLAYBD_PASSWORD: PASSWORD })).toMatchObject({ code: 1 });
    const named = await overlaybd([...push(), "-u", USER], { OVERLAYBD_PASSWORD: PASSWORD });
    expect(named).toMatchObject({ code: 0 });
    const path = join(outputs, "image.json");
    const repoBlobUrl = `https://puller:${PASSWORD}@registry.test/v2/app/blobs`;
    writeFileSync(
      path,
      JSON.stringify({ repoBlobUrl, lowers: [{ digest: `sha256:${"0".repeat(64)}`, size: 1 }] }),
    );
    expect(await overlaybd(["inspect", path, ...shared])).toMatchObject({ code: 1 });
    rmSync(path);
    expect(leaks()).toEqual([]);
  });
});

describe("commands that fail", () => {
  beforeAll(async () => {
    knows = true;
    store.fault = redirect;
    said = [];
    expect(await overlaybd(push())).toMatchObject({ code: 0 });
  });

  /** Fails with one line, the last, which says `message`. */
  async function expectFailure(message: string, env?: Readonly<Record<string, string>>): Promise<void> {
    const { code, err } = await overlaybd(inspect(), env);
    expect(code).toBe(1);
    expect(err.trimEnd().split("\n").at(-1)).toContain(message);
    expect(leaks()).toEqual([]);
  }

  test("a wrong password", async () => {
    knows = false;
    writeFileSync(
      join(inputs, "config.json"),
      JSON.stringify({ auths: { [gate.host]: { auth: btoa(`eve:${PASSWORD}`) } } }),
    );
    await expectFailure("the token service", { DOCKER_CONFIG: inputs });
  });

  const quoting = (text: string) => JSON.stringify({ errors: [{ code: "DENIED", message: text }] });
  const faults: Readonly<Record<string, FaultProxy["fault"]>> = {
    "a store that refuses the signed URL and quotes it": ({ url }) =>
      signed(url)
        ? { kind: "status", status: 403, body: quoting(`https://store/?sig=${SIGNATURE}`) }
        : undefined,
    "a store that breaks connections": ({ url }) => (signed(url) ? { kind: "reset" } : undefined),
    "a store that truncates": ({ url }) => (signed(url) ? { kind: "truncate", bytes: 10 } : undefined),
    "a store that answers with another range": ({ url }) =>
      signed(url) ? { kind: "headers", headers: { "content-range": "bytes 7-8/9" } } : undefined,
    "a redirect to itself": ({ url }) =>
      url.includes("/blobs/")
        ? {
            kind: "status",
            status: 307,
            headers: { location: `${store.origin}${url.split("?")[0]}?sig=${SIGNATURE}` },
          }
        : undefined,
    "a redirect out of HTTP": ({ url }) =>
      url.includes("/blobs/")
        ? {
            kind: "status",
            status: 307,
            headers: { location: `ftp://u:${PASSWORD}@store/?sig=${SIGNATURE}` },
          }
        : undefined,
    "a registry that quotes the request": ({ headers }) => ({
      kind: "status",
      status: 400,
      body: quoting(JSON.stringify(headers)),
    }),
  };
  for (const [name, fault] of Object.entries(faults)) {
    test(name, async () => {
      store.fault = (request) => fault(request) ?? redirect(request);
      await expectFailure("/team/app/");
    });
  }

  test("a proxy that is not there", async () => {
    const config = JSON.parse(readFileSync(service, "utf8"));
    const path = join(inputs, "no-proxy.json");
    writeFileSync(path, JSON.stringify({ ...config, proxy: `http://proxy:${PROXY_PASSWORD}@127.0.0.1:1` }));
    const { code, err } = await overlaybd(["inspect", image(), "--service_config_path", path]);
    expect(code).toBe(1);
    expect(err).toContain("through the proxy http://127.0.0.1:1");
    expect(leaks()).toEqual([]);
  });

  test("configuration that is wrong in the line with the secret", async () => {
    for (const [name, text] of [
      ["proxy", JSON.stringify({ proxy: `socks5://proxy:${PROXY_PASSWORD}@127.0.0.1:1` })],
      ["proxy-type", JSON.stringify({ proxy: { password: PROXY_PASSWORD } })],
      ["syntax", `{"proxy": "http://proxy:${PROXY_PASSWORD}@127.0.0.1:1`],
      ["unquoted", `{"proxy": ${PROXY_PASSWORD}}`],
    ]) {
      const path = join(inputs, `${name}.json`);
      writeFileSync(path, text);
      expect(await overlaybd(["inspect", image(), "--service_config_path", path])).toMatchObject({ code: 1 });
    }
    const path = join(outputs, "image.json");
    const repoBlobUrl = `https://puller:${PASSWORD}@registry.test/v2/app/blobs`;
    writeFileSync(
      path,
      JSON.stringify({ repoBlobUrl, lowers: [{ digest: `sha256:${"0".repeat(64)}`, size: 1 }] }),
    );
    expect(await overlaybd(["inspect", path, ...shared])).toMatchObject({ code: 1 });
    rmSync(path);
    expect(leaks()).toEqual([]);
  });
});
