/** Which proxy a request goes through: the environment's rules, and that nothing but them counts. */
import { afterEach, describe, expect, test } from "bun:test";
import { chooseProxy } from "../../src/registry/proxy.ts";
import { fetchTransport } from "../../src/registry/transport.ts";

const PROXY = "http://proxy.example:3128";

function choice(environment: Record<string, string>, url: string, setting?: string): string | undefined {
  return chooseProxy(setting, environment)(new URL(url))?.href;
}

describe("the environment", () => {
  test("one variable for each scheme, upper case first, a missing scheme is http", () => {
    const environment = { HTTP_PROXY: "a:1", http_proxy: "b:1", https_proxy: "https://c:1" };
    expect(choice(environment, "http://r.example/")).toBe("http://a:1/");
    expect(choice(environment, "https://r.example/")).toBe("https://c:1/");
    expect(choice({ HTTP_PROXY: "a:1" }, "https://r.example/")).toBeUndefined();
    expect(choice({}, "http://r.example/")).toBeUndefined();
  });

  test("this machine's own addresses are reached directly", () => {
    const environment = { HTTP_PROXY: PROXY };
    for (const host of ["localhost:5000", "127.0.0.1:5000", "127.8.7.6", "[::1]:5000"])
      expect(choice(environment, `http://${host}/`)).toBeUndefined();
    expect(choice(environment, "http://128.0.0.1/")).toBe(`${PROXY}/`);
  });

  const exempt: readonly [entries: string, direct: readonly string[], proxied: readonly string[]][] = [
    ["*", ["http://r.example/", "http://10.0.0.1/"], []],
    ["example", ["http://r.example/", "http://example/"], ["http://example.net/", "http://rexample/"]],
    [".r.example", ["http://r.example/", "http://a.r.example/"], ["http://ar.example/"]],
    ["*.R.example", ["http://A.r.example/"], ["http://example/"]],
    ["r.example:5000", ["http://r.example:5000/", "http://a.r.example:5000/"], ["http://r.example/"]],
    ["r.example:443", ["https://r.example/"], ["http://r.example/"]],
    ["10.0.0.1", ["http://10.0.0.1/", "http://10.0.0.1:81/"], ["http://10.0.0.11/", "http://110.0.0.1/"]],
    ["10.0.0.1:81", ["http://10.0.0.1:81/"], ["http://10.0.0.1/"]],
    ["10.1.0.0/16", ["http://10.1.2.3:5000/"], ["http://10.2.0.1/", "http://r.example/"]],
    ["fd00::/8", ["http://[fd12::1]:5000/"], ["http://[fe80::1]/"]],
    ["fd00::1", ["http://[fd00::1]/", "http://[fd00::1]:5000/"], ["http://[fd00::2]/"]],
    ["[fd00::1]:5000", ["http://[fd00::1]:5000/"], ["http://[fd00::1]/"]],
    [" a.example , ,b.example,", ["http://a.example/", "http://b.example/"], ["http://c.example/"]],
  ];
  for (const [entries, direct, proxied] of exempt) {
    test(`NO_PROXY=${entries}`, () => {
      const environment = { HTTP_PROXY: PROXY, HTTPS_PROXY: PROXY, NO_PROXY: entries };
      for (const url of direct) expect([url, choice(environment, url)]).toEqual([url, undefined]);
      for (const url of proxied) expect([url, choice(environment, url)]).toEqual([url, `${PROXY}/`]);
    });
  }
});

test("an explicit setting is for all requests but those to NO_PROXY", () => {
  const environment = { HTTP_PROXY: "other:1", no_proxy: "r.example" };
  for (const url of ["http://s.example/", "https://s.example/", "http://127.0.0.1/"])
    expect(choice(environment, url, PROXY)).toBe(`${PROXY}/`);
  expect(choice(environment, "https://r.example/", PROXY)).toBeUndefined();
});

test("what is no proxy's address is refused without being quoted", () => {
  for (const text of ["socks5://u:s3cret@p:1", "http://", "http://u:s3cret@p/path", "ftp://u:s3cret@p"]) {
    const wrong = () => chooseProxy(text, {});
    expect(wrong).toThrow("the proxy setting is not the address");
    expect(wrong).not.toThrow("s3cret");
  }
  expect(() => chooseProxy("", { HTTPS_PROXY: "socks5://p" })).toThrow("HTTPS_PROXY");
});

describe("requests", () => {
  const saved = { ...process.env };
  const names = ["HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy"];
  afterEach(() => {
    for (const name of names) {
      if (saved[name] === undefined) delete process.env[name];
      else process.env[name] = saved[name];
    }
  });

  /** Who got a request for /x: the server itself, or the proxy. */
  async function receiver(proxied: boolean): Promise<string> {
    using server = Bun.serve({ hostname: "127.0.0.1", port: 0, fetch: () => new Response("server") });
    using proxy = Bun.serve({ hostname: "127.0.0.1", port: 0, fetch: () => new Response("proxy") });
    process.env.HTTP_PROXY = process.env.http_proxy = proxied ? "http://127.0.0.1:1" : proxy.url.href;
    process.env.NO_PROXY = process.env.no_proxy = proxied ? "127.0.0.1" : "";
    const send = await fetchTransport({ proxy: () => (proxied ? proxy.url : undefined) });
    const response = await send({ method: "GET", url: new URL("/x", server.url), subject: "x" });
    return Buffer.from(await response.bytes(100)).toString();
  }

  test("the environment does not overrule what was decided", async () => {
    expect(await receiver(true)).toBe("proxy");
    expect(await receiver(false)).toBe("server");
  });
});
