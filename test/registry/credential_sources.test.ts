/** The credentials that the service config names: upstream's file, and credential servers over HTTP, TLS and a socket. */
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "bun:test";
import { rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { $ } from "bun";
import { repositoryAccess } from "../../src/registry/access.ts";
import { configuredCredentials } from "../../src/registry/credentials/configured.ts";
import type { CredentialSource } from "../../src/registry/credentials/source.ts";
import { parseReference } from "../../src/registry/reference.ts";
import type { CredentialConfig } from "../../src/service/config.ts";
import { type Authority, makeAuthority, temporaryDirectory } from "../fixtures/registry.ts";

const directory = temporaryDirectory();
const file = join(directory.path, "cred.json");
const url = new URL(`https://r.example:5000/v2/team/app/blobs/sha256:${"1".repeat(64)}?ns=x`);
let warnings: string[];

beforeEach(() => {
  warnings = [];
  rmSync(file, { force: true });
});
afterAll(directory.remove);

function source(config: Partial<CredentialConfig>): CredentialSource {
  const absent = { timeout: 5, clientCertificate: "", clientKey: "", serverAuthority: "" };
  const whole: CredentialConfig = { mode: "file", path: file, ...absent, ...config };
  return configuredCredentials(whole, (message) => warnings.push(message));
}

const ask = (config: Partial<CredentialConfig>) => source(config)("r.example:5000", "team/app", url);
const entry = (username: string) => ({ username, password: "s3cret" });

/** That there are no credentials, one warning says why, and no secret with it. */
async function expectAnonymous(config: Partial<CredentialConfig>, why: RegExp | string): Promise<void> {
  warnings = [];
  expect(await ask(config)).toBeUndefined();
  expect(warnings).toHaveLength(1);
  expect(warnings[0]).toMatch(why);
  expect(warnings[0]).toContain("no credentials for r.example:5000/team/app");
  expect(warnings[0]).not.toContain("s3cret");
}

describe("the credential file", () => {
  const write = (value: unknown) =>
    writeFileSync(file, typeof value === "string" ? value : JSON.stringify(value));

  test("the longest path wins, whatever the order; only whole parts match", async () => {
    const auths = {
      "r.example:5000": entry("host"),
      "r.example:5000/team/app": entry("app"),
      "r.example:5000/team": entry("team"),
    };
    write({ auths });
    const credentials = source({});
    for (const [repository, username] of [
      ["team/app", "app"],
      ["team/app/sub", "app"],
      ["team/apple", "team"],
      ["other", "host"],
    ])
      expect(await credentials("r.example:5000", repository, url)).toMatchObject({ username });
    expect(await credentials("r.example", "team/app", url)).toBeUndefined();
    expect(await credentials("r.example:50000", "team/app", url)).toBeUndefined();
  });

  test("Docker Hub under each of its names", async () => {
    const hosts = ["docker.io", "index.docker.io", "registry-1.docker.io"];
    for (const key of [...hosts, "https://index.docker.io/v1/", "docker.io/library"]) {
      write({ auths: { [key]: { auth: btoa("hub:s3cret") } } });
      for (const host of hosts)
        expect(await source({})(host, "library/app", url)).toEqual({ username: "hub", password: "s3cret" });
    }
  });

  test("is read anew each time", async () => {
    const credentials = source({});
    expect(await credentials("a.example", "app", url)).toBeUndefined();
    for (const username of ["one", "two"]) {
      write({ auths: { "a.example": entry(username) } });
      expect(await credentials("a.example", "app", url)).toMatchObject({ username });
    }
    rmSync(file);
    expect(await credentials("a.example", "app", url)).toBeUndefined();
    expect(warnings).toEqual([]);
  });

  test("what is malformed is warned about, and means none", async () => {
    for (const broken of [
      '{"auths":{"r.example:5000":{"auth":"s3cret"',
      "",
      "[]",
      { auths: ["s3cret"] },
      { auths: { "r.example:5000": "s3cret" } },
      { auths: { "r.example:5000": { auth: btoa("nocolon-s3cret") } } },
    ]) {
      write(broken);
      await expectAnonymous({}, file);
    }
    await expectAnonymous({ path: directory.path }, "directory");
  });

  test("while it is malformed, as while it is written, what it said last counts", async () => {
    const credentials = source({});
    const asking = () => credentials("r.example:5000", "team/app", url);
    write({ auths: { "r.example:5000": entry("last") } });
    expect(await asking()).toMatchObject({ username: "last" });
    write('{"auths":{');
    expect(await asking()).toMatchObject({ username: "last" });
    expect(warnings).toEqual([expect.stringContaining("going on with the last ones")]);
    write({ auths: {} });
    expect(await asking()).toBeUndefined();
    write("");
    expect(await asking()).toBeUndefined();
    expect(warnings[1]).toContain("going on without");
  });

  test("no path means none", async () => {
    expect(await ask({ path: "" })).toBeUndefined();
    expect(warnings).toEqual([]);
  });
});

describe("credential servers", () => {
  let authority: Authority;
  let asked: URL[];
  let answer: () => Response | Promise<Response>;
  const good = () =>
    Response.json({
      traceId: "t",
      success: true,
      data: { auths: { "r.example:5000/team": entry("served") } },
    });
  const reply = (request: Request) => {
    asked.push(new URL(request.url));
    return answer();
  };
  const remote = `remote_url=https://r.example:5000/v2/team/app/blobs/sha256:${"1".repeat(64)}`;

  beforeAll(async () => {
    authority = await makeAuthority(directory.path);
  });
  beforeEach(() => {
    asked = [];
    answer = good;
  });

  test("http: told the URL as it is; asked anew each time", async () => {
    await using server = Bun.serve({ hostname: "127.0.0.1", port: 0, fetch: reply });
    const credentials = source({ mode: "http", path: `${server.url.origin}/auth` });
    for (const username of ["served", "rotated"]) {
      answer = () => Response.json({ success: true, data: { auths: { "r.example:5000": entry(username) } } });
      expect(await credentials("r.example:5000", "team/app", url)).toEqual(entry(username));
    }
    expect(asked.map(({ pathname, search }) => pathname + search)).toEqual(Array(2).fill(`/auth?${remote}`));
    await source({ mode: "http", path: `${server.url.origin}/auth?key=k` })(
      "r.example:5000",
      "team/app",
      url,
    );
    expect(asked[2].search).toBe(`?key=k&${remote}`);
    expect(await credentials("other.example", "team/app", url)).toBeUndefined();
    expect(warnings).toEqual([]);
  });

  test("uds", async () => {
    const socket = join(directory.path, "auth.sock");
    await using _ = Bun.serve({ unix: socket, fetch: reply });
    expect(await ask({ mode: "uds", path: socket })).toEqual(entry("served"));
    expect(asked[0].pathname + asked[0].search).toBe(`/auth?${remote}`);
    await expectAnonymous(
      { mode: "uds", path: join(directory.path, "nobody.sock") },
      "the connection failed",
    );
  });

  test("https: the server is verified by exactly the authority that is pinned; it sees the client's certificate", async () => {
    const at = (name: string) => join(directory.path, name);
    const ec = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
    await $`openssl req -x509 ${ec} -subj /CN=client -days 2 -keyout ${at("client.key")} -out ${at("client.crt")}`.quiet();
    await $`openssl req -x509 ${ec} -subj /CN=other -days 2 -keyout ${at("other.key")} -out ${at("other.crt")}`.quiet();
    await $`cat ${at("client.crt")} ${at("client.key")} > ${at("client.pem")}`;
    await using server = Bun.serve({
      hostname: "127.0.0.1",
      port: 0,
      fetch: reply,
      tls: {
        cert: Bun.file(authority.certificate),
        key: Bun.file(authority.key),
        ca: Bun.file(at("client.crt")),
        requestCert: true,
        rejectUnauthorized: true,
      },
    });
    const config = {
      mode: "https",
      path: `${server.url.origin}/auth`,
      serverAuthority: authority.authority,
    } as const;
    const client = { clientCertificate: at("client.crt"), clientKey: at("client.key") };
    expect(await ask({ ...config, ...client })).toEqual(entry("served"));
    expect(await ask({ ...config, clientCertificate: at("client.pem") })).toEqual(entry("served"));
    expect(warnings).toEqual([]);
    expect(asked).toHaveLength(2);

    await expectAnonymous(config, "wants a client certificate");
    await expectAnonymous({ ...config, ...client, serverAuthority: "" }, "not signed by a trusted authority");
    await expectAnonymous(
      { ...config, ...client, serverAuthority: at("other.crt") },
      "not signed by a trusted",
    );
    await expectAnonymous({ ...config, ...client, clientKey: at("missing.key") }, "missing.key");
    expect(asked).toHaveLength(2);
  });

  test("the wrong kind of address", async () => {
    for (const path of ["https://127.0.0.1/auth", "nonsense", "ftp://127.0.0.1/"])
      await expectAnonymous({ mode: "http", path }, "not the URL of an http server");
  });

  test("what a server may do wrong is warned about, and means none", async () => {
    await using server = Bun.serve({ hostname: "127.0.0.1", port: 0, fetch: reply });
    const config = { mode: "http", path: `${server.url.origin}/auth?token=s3cret` } as const;
    const redirect = { location: `${server.url.origin}/elsewhere` };
    for (const [wrong, why] of [
      [() => new Response("s3cret", { status: 500 }), "answered 500"],
      [() => new Response(null, { status: 302, headers: redirect }), "answered 302"],
      [() => new Response("s3cret"), "credential server"],
      [() => Response.json({ success: false, data: { auths: {} } }), "did not answer with success"],
      [() => Response.json({ data: { auths: { "r.example:5000": entry("x") } } }), "success"],
      [() => Response.json({ success: true }), "success"],
      [() => Response.json({ success: true, data: { auths: "s3cret" } }), "auths"],
      [() => new Response("s3cret".repeat(100_000)), "longer than"],
    ] as const) {
      answer = wrong;
      await expectAnonymous(config, why);
    }
  });

  test("a server that does not answer costs no more than the timeout", async () => {
    const { promise, resolve } = Promise.withResolvers<Response>();
    await using server = Bun.serve({ hostname: "127.0.0.1", port: 0, fetch: reply });
    answer = () => promise;
    const begin = performance.now();
    await expectAnonymous({ mode: "http", path: server.url.href, timeout: 1 }, /1000 ms/);
    expect(performance.now() - begin).toBeLessThan(4000);
    resolve(good());
    const socket = Bun.listen({
      hostname: "127.0.0.1",
      port: 0,
      socket: { data: (peer) => void peer.end() },
    });
    await expectAnonymous(
      { mode: "http", path: `http://127.0.0.1:${socket.port}/` },
      "the connection failed",
    );
    socket.stop(true);
  });
});

test("a password is asked for once, and again when it is refused", async () => {
  let password = "first";
  let known = "first";
  let asked = 0;
  await using server = Bun.serve({
    hostname: "127.0.0.1",
    port: 0,
    fetch(request) {
      if (request.headers.get("authorization") === `Basic ${btoa(`u:${password}`)}`)
        return Response.json({ name: "team/app", tags: ["v1"] });
      return new Response(null, { status: 401, headers: { "www-authenticate": 'Basic realm="test"' } });
    },
  });
  const credentials: CredentialSource = async () => {
    asked++;
    return { username: "u", password: known };
  };
  const open = repositoryAccess({ plain: true, credentials });
  const repository = await open(parseReference(`127.0.0.1:${server.port}/team/app`));
  for (let i = 0; i < 3; i++) expect(await repository.tags()).toEqual(["v1"]);
  expect(asked).toBe(1);
  password = "second";
  await expect(repository.tags()).rejects.toMatchObject({ code: "E_AUTH" });
  known = "second";
  for (let i = 0; i < 3; i++) expect(await repository.tags()).toEqual(["v1"]);
  expect(asked).toBeLessThanOrEqual(4);
});
