/**
 * Which HTTP proxy a request goes through. The runtime reads the environment too, by rules of its own; every request
 * states what was decided here instead (`fetchTransport`).
 */
import { BlockList, isIP, isIPv4 } from "node:net";
import { OverlaybdError } from "../error.ts";

/** The proxy for a URL, or undefined: connect directly. */
export type ProxyChoice = (url: URL) => URL | undefined;

type Environment = Readonly<Record<string, string | undefined>>;

/**
 * The usual rules: `setting` for every request, else `HTTPS_PROXY` and `HTTP_PROXY` by the scheme of the URL, also in lower
 * case. What `NO_PROXY` lists is reached directly. Only an explicit setting applies to this machine's own addresses.
 * @param setting `http://[user:password@]host[:port]`; "": as the environment says
 * @throws OverlaybdError E_CONFIG without quoting the value, which may hold a password
 */
export function chooseProxy(setting = "", environment: Environment = process.env): ProxyChoice {
  const variable = (name: string): URL | undefined => {
    const [upper, lower] = [name, name.toLowerCase()];
    const value = environment[upper] || environment[lower];
    return value ? parseProxy(value, environment[upper] ? upper : lower) : undefined;
  };
  const explicit = setting === "" ? undefined : parseProxy(setting, "the proxy setting");
  const secure = explicit ?? variable("HTTPS_PROXY");
  const plain = explicit ?? variable("HTTP_PROXY");
  const exempt = parseExemptions(`${environment.NO_PROXY ?? ""},${environment.no_proxy ?? ""}`);
  return (url) => {
    if (exempt(url) || (explicit === undefined && isLoopback(hostOf(url)))) return undefined;
    return url.protocol === "https:" ? secure : plain;
  };
}

/** @param name what to call it in an error */
export function parseProxy(text: string, name: string): URL {
  const url = URL.parse(text.includes("://") ? text : `http://${text}`);
  if (url === null || (url.protocol !== "http:" && url.protocol !== "https:") || url.pathname !== "/") {
    throw new OverlaybdError(
      "E_CONFIG",
      `${name} is not the address of an HTTP proxy: http://[USER:PASSWORD@]HOST[:PORT]`,
    );
  }
  return url;
}

/**
 * Entries of NO_PROXY, separated by commas: `*`, an IP address, a CIDR block, a domain (itself and everything below it,
 * with or without a leading dot or `*.`), each with an optional port.
 */
function parseExemptions(text: string): (url: URL) => boolean {
  const blocks = new BlockList();
  const rules: { readonly name: string; readonly port: string }[] = [];
  for (const part of text.split(",")) {
    const entry = part.trim().toLowerCase();
    if (entry === "") continue;
    const [, address = "", bits] = /^(.*)\/(\d{1,3})$/.exec(entry) ?? [];
    if (isIP(address) !== 0 && Number(bits) <= (isIPv4(address) ? 32 : 128)) {
      blocks.addSubnet(address, Number(bits), isIPv4(address) ? "ipv4" : "ipv6");
      continue;
    }
    // The colons of a bare IPv6 address are no ports.
    const port = isIP(entry) === 0 ? (/:(\d+)$/.exec(entry)?.[1] ?? "") : "";
    const name = port === "" ? entry : entry.slice(0, -port.length - 1);
    rules.push({ name: unbracket(name).replace(/^\*?\./, ""), port });
  }
  return (url) => {
    const host = hostOf(url);
    const port = url.port || (url.protocol === "https:" ? "443" : "80");
    if (isIP(host) !== 0 && blocks.check(host, isIPv4(host) ? "ipv4" : "ipv6")) return true;
    return rules.some((rule) => {
      if (rule.port !== "" && rule.port !== port) return false;
      return rule.name === "*" || rule.name === host || (isIP(host) === 0 && host.endsWith(`.${rule.name}`));
    });
  };
}

const loopback = new BlockList();
loopback.addSubnet("127.0.0.0", 8, "ipv4");
loopback.addAddress("::1", "ipv6");

function isLoopback(host: string): boolean {
  if (isIP(host) !== 0) return loopback.check(host, isIPv4(host) ? "ipv4" : "ipv6");
  return host === "localhost";
}

function hostOf(url: URL): string {
  return unbracket(url.hostname.toLowerCase());
}

function unbracket(host: string): string {
  return host.replace(/^\[(.*)\]$/, "$1");
}
