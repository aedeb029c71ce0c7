/** `hosts.toml`: the hosts of one registry as containerd knows them (containerd, docs/hosts.md). */
import { dirname, resolve } from "node:path";
import { OverlaybdError } from "../../error.ts";
import { Fields } from "../../service/fields.ts";
import { parseProxy } from "../proxy.ts";
import type { Capability, RegistryHost } from "./host.ts";

const CAPABILITIES: readonly string[] = ["pull", "resolve", "push"] satisfies Capability[];
const UNITS: Readonly<Record<string, number>> = {
  ns: 1e-6,
  us: 1e-3,
  µs: 1e-3,
  ms: 1,
  s: 1000,
  m: 60_000,
  h: 3_600_000,
};
const DOCKER_HUB = "docker.io";

/**
 * The hosts in the order in which they are to be asked; the registry itself is the last.
 * @param registry root of the registry's API, where the file names no `server`
 * @throws OverlaybdError E_CONFIG naming file and key; E_UNSUPPORTED
 */
export function parseHostsFile(text: string, path: string, registry: URL): RegistryHost[] {
  let document: unknown;
  try {
    document = Bun.TOML.parse(text);
  } catch (error) {
    // What the parser quotes may be part of a secret.
    const reason = (error as Error).message.replace(/: "[^"]*"/g, "");
    throw new OverlaybdError("E_CONFIG", `${path} is not valid TOML: ${reason}`);
  }
  const fields = Fields.of(document, path);
  const tables = fields.object("host");
  const mirrors = tables.keys().map((name) => {
    if (name.includes("@")) {
      const complaint = "holds a user name or password in the address of a host";
      throw new OverlaybdError("E_CONFIG", `${path} ${complaint}: they belong to the credentials`);
    }
    const host = tables.object(name);
    return parseHost(host, rootOf(name, host) ?? wrongAddress(tables, name), path);
  });
  const server = fields.string("server");
  const root = server === "" ? registry : (rootOf(server, fields) ?? wrongAddress(fields, "server"));
  return [...mirrors, parseHost(fields, root, path)];
}

function wrongAddress(fields: Fields, key: string): never {
  throw fields.wrong(JSON.stringify(key), "is not the address of a registry: http[s]://HOST[:PORT][/PATH]");
}

/** The root of a host's API. Other than for containerd the API of docker.io is where it really is. */
function rootOf(address: string, fields: Fields): URL | undefined {
  const url = URL.parse(address.includes("://") ? address : `https://${address}`);
  if (
    url === null ||
    (url.protocol !== "https:" && url.protocol !== "http:") ||
    url.search + url.hash + url.username !== ""
  )
    return undefined;
  if (url.host === DOCKER_HUB) url.host = "registry-1.docker.io";
  const path = url.pathname.replace(/\/+$/, "");
  url.pathname = fields.boolean("override_path") || path.endsWith("/v2") ? path : `${path}/v2`;
  return url;
}

function parseHost(fields: Fields, root: URL, path: string): RegistryHost {
  const directory = dirname(path);
  const authorities = fields.strings("ca").map((file) => resolve(directory, file));
  const proxy = fields.string("proxy");
  if (proxy !== "") parseProxy(proxy, `proxy in ${path}`);
  return {
    root,
    capabilities: parseCapabilities(fields),
    tls: {
      insecure: fields.boolean("skip_verify"),
      authorities,
      client: parseClient(fields, directory),
    },
    headers: parseHeaders(fields.object("header")),
    proxy: proxy === "" ? undefined : proxy,
    dialTimeout: parseDuration(fields, "dial_timeout"),
  };
}

function parseCapabilities(fields: Fields): Capability[] {
  const names = fields.strings("capabilities").map((name) => name.toLowerCase());
  const unknown = names.find((name) => !CAPABILITIES.includes(name));
  if (unknown !== undefined) throw fields.wrong("capabilities", `must be of ${CAPABILITIES.join(", ")}`);
  return (names.length === 0 ? CAPABILITIES : names) as Capability[];
}

/** A file with certificate and key, a list of such, or a list of pairs of files. */
function parseClient(fields: Fields, directory: string): { certificate: string; key: string } | undefined {
  const [first, ...others] = fields.list("client");
  if (first === undefined) return undefined;
  if (others.length > 0) throw fields.wrong("client", "names several client certificates; one can be used");
  const pair = Array.isArray(first) ? first : [first, ""];
  const [certificate, key] = pair;
  if (pair.length !== 2 || typeof certificate !== "string" || typeof key !== "string" || certificate === "")
    throw fields.wrong("client", "must be the path of a PEM file, or [[CERTIFICATE, KEY]]");
  return { certificate: resolve(directory, certificate), key: resolve(directory, key || certificate) };
}

function parseHeaders(fields: Fields): Record<string, string> {
  const headers = fields.keys().map((name) => {
    const value = fields.strings(name).join(", ");
    if (!/^[!#$%&'*+.^_`|~0-9A-Za-z-]+$/.test(name) || !/^[\t\x20-\x7e]*$/.test(value))
      throw fields.wrong(name, "cannot be a header field");
    return [name.toLowerCase(), value];
  });
  return Object.fromEntries(headers);
}

/** Milliseconds of a duration as Go writes it: `1s`, `1m30s`, `500ms`. */
function parseDuration(fields: Fields, key: string): number | undefined {
  const text = fields.string(key);
  if (text === "") return undefined;
  const parts = [...text.matchAll(/(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)/g)];
  const milliseconds = parts.reduce((sum, [, number, unit]) => sum + Number(number) * UNITS[unit], 0);
  if (parts.map(([part]) => part).join("") !== text || milliseconds <= 0)
    throw fields.wrong(key, 'must be a duration such as "1s" or "500ms"');
  return milliseconds;
}
