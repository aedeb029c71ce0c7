/** containerd's registry host directories: which directory counts, and what its files mean. */
import { afterAll, beforeEach, describe, expect, test } from "bun:test";
import { mkdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { findHosts } from "../../src/registry/hosts/directory.ts";
import { capabilityFor, type RegistryHost, redirectTo } from "../../src/registry/hosts/host.ts";
import type { HttpRequest } from "../../src/registry/transport.ts";
import { temporaryDirectory } from "../fixtures/registry.ts";

const directory = temporaryDirectory();
const certs = join(directory.path, "certs.d");
beforeEach(() => rmSync(certs, { recursive: true, force: true }));
afterAll(directory.remove);

function write(name: string, text = ""): void {
  mkdirSync(join(certs, name, ".."), { recursive: true });
  writeFileSync(join(certs, name), text);
}

async function hosts(host = "r.example"): Promise<RegistryHost[]> {
  return findHosts(certs, host, new URL(`https://${host}/v2`));
}

/** The hosts that a hosts.toml names for r.example. */
function parsed(text: string): Promise<RegistryHost[]> {
  write("r.example/hosts.toml", text);
  return hosts();
}

const roots = async (text: string) => (await parsed(text)).map(({ root }) => root.href);

describe("the directory of a registry", () => {
  const mirror = (name: string) => `[host."https://${name}"]`;

  test("none, or none for it: just the registry", async () => {
    const itself = [
      { root: new URL("https://r.example/v2"), capabilities: ["pull", "resolve", "push"] },
    ] as unknown as RegistryHost[];
    expect(await findHosts("", "r.example", new URL("https://r.example/v2"))).toEqual(itself);
    expect(await hosts()).toEqual(itself);
    write("other.example/hosts.toml", mirror("m.example"));
    expect(await hosts()).toEqual(itself);
  });

  test("the first of host_port_, host:port and _default", async () => {
    for (const [name, expected] of [
      ["_default", "https://c.example/v2"],
      ["r.example:5000", "https://b.example/v2"],
      ["r.example_5000_", "https://a.example/v2"],
    ]) {
      write(`${name}/hosts.toml`, mirror(new URL(expected).host));
      expect((await hosts("r.example:5000"))[0].root.href).toBe(expected);
    }
  });

  test("Docker Hub's is docker.io", async () => {
    write("docker.io/hosts.toml", `server = "https://docker.io"\n${mirror("m.example")}`);
    const [first, last] = await hosts("registry-1.docker.io");
    expect(first.root.href).toBe("https://m.example/v2");
    expect(last.root.href).toBe("https://registry-1.docker.io/v2");
  });

  test("without hosts.toml the certificates in Docker's places", async () => {
    for (const name of ["a.crt", "b.crt", "client.cert", "client.key", "unrelated"])
      write(`r.example/${name}`);
    const at = (name: string) => join(certs, "r.example", name);
    expect(await hosts()).toMatchObject([
      {
        root: new URL("https://r.example/v2"),
        tls: {
          authorities: [at("a.crt"), at("b.crt")],
          client: { certificate: at("client.cert"), key: at("client.key") },
        },
      },
    ]);
    rmSync(at("client.key"));
    await expect(hosts()).rejects.toMatchObject({ code: "E_CONFIG" });
  });
});

describe("hosts.toml", () => {
  test("mirrors in the order of the file, the server last", async () => {
    const text = ["z.example", "a.example:8443", "m.example"]
      .map((name) => `[host."https://${name}"]`)
      .join("\n");
    const mirrors = ["https://z.example/v2", "https://a.example:8443/v2", "https://m.example/v2"];
    expect(await roots(text)).toEqual([...mirrors, "https://r.example/v2"]);
    expect(await roots(`server = "https://s.example"\n${text}`)).toEqual([
      ...mirrors,
      "https://s.example/v2",
    ]);
    expect(await roots('server = "http://s.example:5000"')).toEqual(["http://s.example:5000/v2"]);
  });

  test("paths: /v2 is put at the end unless override_path says otherwise", async () => {
    for (const [address, override, root] of [
      ["https://m.example/", false, "https://m.example/v2"],
      ["https://m.example/us", false, "https://m.example/us/v2"],
      ["https://m.example/v2/", false, "https://m.example/v2"],
      ["m.example", false, "https://m.example/v2"],
      ["https://m.example/v2/hub", true, "https://m.example/v2/hub"],
      ["https://m.example/hub/", true, "https://m.example/hub"],
      ["https://m.example", true, "https://m.example/"],
    ] as const) {
      const text = `[host.${JSON.stringify(address)}]\noverride_path = ${override}`;
      expect((await roots(text))[0]).toBe(root);
    }
  });

  test("every key", async () => {
    const [mirror, server] = await parsed(`
      server = "https://s.example"
      ca = "root.pem"
      capabilities = ["Pull", "resolve"]
      [header]
        X-Team = "blue"
      [host."https://m.example"]
        capabilities = ["pull"]
        ca = ["one.pem", "/etc/two.pem"]
        client = [["client.cert", "client.key"]]
        skip_verify = true
        dial_timeout = "1m1.5s"
        proxy = "http://u:p@proxy.example:3128"
        [host."https://m.example".header]
          x-list = ["a", "b"]
    `);
    const at = (name: string) => join(certs, "r.example", name);
    expect(mirror).toEqual({
      root: new URL("https://m.example/v2"),
      capabilities: ["pull"],
      tls: {
        insecure: true,
        authorities: [at("one.pem"), "/etc/two.pem"],
        client: { certificate: at("client.cert"), key: at("client.key") },
      },
      headers: { "x-list": "a, b" },
      proxy: "http://u:p@proxy.example:3128",
      dialTimeout: 61_500,
    });
    expect(server).toMatchObject({
      capabilities: ["pull", "resolve"],
      tls: { insecure: false, authorities: [at("root.pem")] },
      headers: { "x-team": "blue" },
    });
  });

  test("a client certificate with its key in one file, as every form", async () => {
    const file = join(certs, "r.example", "client.pem");
    for (const client of ['"client.pem"', '["client.pem"]', '[["client.pem", ""]]']) {
      const [host] = await parsed(`client = ${client}`);
      expect(host.tls?.client).toEqual({ certificate: file, key: file });
    }
  });

  test("what is wrong is an error that names file and key, and quotes no password", async () => {
    for (const [text, named] of [
      ["server = ", "not valid TOML"],
      ["\n[header]\nx = s3cret-key", "Strings must be quoted"],
      ['server = "ftp://r.example"', '"server"'],
      ['[host."https://"]', "host."],
      ["server = 5", "server"],
      ['capabilities = ["pul"]', "capabilities"],
      ["ca = 5", "ca"],
      ['client = ["a", "b"]', "client"],
      ['client = [["a"]]', "client"],
      ['skip_verify = "yes"', "skip_verify"],
      ['dial_timeout = "1"', "dial_timeout"],
      ['dial_timeout = "soon"', "dial_timeout"],
      ['proxy = "socks5://u:s3cret@p.example"', "proxy"],
      ['[header]\nx = "a\\nb"', "header.x"],
      ['[header]\n"x y" = "a"', "header.x y"],
      ["host = []", "host"],
      ['[host."https://u:s3cret@m.example"]', "password"],
      ['server = "https://u:s3cret@m.example"', "server"],
    ] as const) {
      const error = await parsed(text).catch((reason: unknown) => reason);
      expect(error).toMatchObject({ code: "E_CONFIG" });
      const { message } = error as Error;
      expect(message).toContain(join(certs, "r.example/hosts.toml"));
      expect(message).toContain(named);
      expect(message).not.toContain("s3cret");
    }
  });
});

describe("a host's requests", () => {
  const digest = `sha256:${"0".repeat(64)}`;
  const request = (path: string, method = "GET", actions = "pull"): HttpRequest => ({
    method,
    url: new URL(`https://r.example/v2/team/app/${path}`),
    subject: "test",
    scopes: [`repository:team/app:${actions}`],
  });

  test("what they take", () => {
    const wanted = (...given: Parameters<typeof request>) => capabilityFor(request(...given));
    expect(wanted(`blobs/${digest}`)).toBe("pull");
    expect(wanted(`manifests/${digest}`)).toBe("pull");
    for (const path of ["manifests/latest", "tags/list", `referrers/${digest}`])
      expect(wanted(path)).toBe("resolve");
    expect(wanted("manifests/latest", "HEAD")).toBe("resolve");
    expect(wanted(`blobs/${digest}`, "HEAD")).toBe("push");
    expect(wanted("blobs/uploads/", "POST", "pull,push")).toBe("push");
    expect(wanted("blobs/uploads/1", "GET", "pull,push")).toBe("push");
  });

  test("go to the mirror, which is told the registry; with a path in the root the repository is below it", async () => {
    const root = new URL("https://r.example/v2");
    const sent: HttpRequest[] = [];
    const send = async (address: string, given: HttpRequest) => {
      const host = { root: new URL(address), capabilities: [] };
      const next = async (moved: HttpRequest) => {
        sent.push(moved);
        throw new Error("not sent");
      };
      await redirectTo(host, root, "r.example", next)(given).catch(() => {});
      const { url, scopes } = sent.at(-1) as HttpRequest;
      return [url.href, scopes?.[0]];
    };
    const path = `team/app/blobs/${digest}`;
    const pull = "repository:team/app:pull";
    const blob = request(`blobs/${digest}`);
    expect(await send("https://m.example/v2", blob)).toEqual([
      `https://m.example/v2/${path}?ns=r.example`,
      pull,
    ]);
    expect(await send("https://m.example/v2/hub", blob)).toEqual([
      `https://m.example/v2/hub/${path}?ns=r.example`,
      "repository:hub/team/app:pull",
    ]);
    expect(await send("https://m.example/", blob)).toEqual([`https://m.example/${path}?ns=r.example`, pull]);
    expect(await send("https://r.example/v2", blob)).toEqual([`https://r.example/v2/${path}`, pull]);
    // Where an answer led to, such as the next page of a listing.
    const elsewhere = { ...blob, url: new URL("https://elsewhere.example/x") };
    expect(await send("https://m.example/v2", elsewhere)).toEqual(["https://elsewhere.example/x", pull]);
  });
});
